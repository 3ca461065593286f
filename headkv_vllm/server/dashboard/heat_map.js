// SPDX-License-Identifier: Apache-2.0
// One number per KV head of every layer: layers across, heads down.
// A few heads have most of it, so colours go by the square root: small values differ to the eye too.

const MARGIN = { left: 52, top: 22 };
const CELL = { least: 11, most: 54, withNumber: 34 }; // pixels

class HeatMap {
  /** label: what a value is. describe(value): how the tip says it. */
  constructor(picture, label, describe) {
    Object.assign(this, { picture, label, describe, values: [], cells: [], current: null });
    picture.classList.add("picture");
    this.svg = shape("svg", { role: "group", tabindex: "0" });
    this.legend = element("div", { class: "legend" });
    picture.append(element("div", { class: "scroll" }, this.svg), this.legend);
    this.tip = new Tip(picture);
    this.svg.addEventListener("pointermove", (event) => this.point(event.target.dataset));
    this.svg.addEventListener("pointerleave", () => this.leave());
    this.svg.addEventListener("blur", () => this.leave());
    this.svg.addEventListener("keydown", (event) => this.walk(event));
    new ResizeObserver(() => this.width !== picture.clientWidth && this.draw()).observe(picture);
  }

  /** Show `values`, [layers][heads], none of them negative. */
  show(values) {
    this.values = values;
    this.draw();
  }

  draw() {
    if (!this.values.length || !this.picture.clientWidth) return;
    const [layers, heads] = [this.values.length, this.values[0].length];
    this.width = this.picture.clientWidth;
    const room = Math.floor((this.width - MARGIN.left) / layers);
    this.size = Math.max(CELL.least, Math.min(CELL.most, room));
    this.svg.setAttribute("width", MARGIN.left + layers * this.size);
    this.svg.setAttribute("height", MARGIN.top + heads * this.size);
    const all = this.values.flat();
    this.most = Math.max(...all);
    this.svg.setAttribute("aria-label", this.summary(layers, heads, Math.min(...all)));
    this.cells = this.values.map((row, layer) => row.map((value, head) => this.cell(value, layer, head)));
    this.svg.replaceChildren(...this.labels(layers, heads), ...this.cells.flat().flat());
    this.drawLegend(Math.min(...all));
    if (this.current) this.point(this.current);
  }

  summary(layers, heads, least) {
    const range = `from ${short(least)} to ${short(this.most)}`;
    return `${this.label}, ${layers} layers of ${heads} KV heads, ${range}. Arrow keys go from head to head.`;
  }

  cell(value, layer, head) {
    const share = this.most > 0 ? Math.sqrt(value / this.most) : 0;
    const [x, y] = [MARGIN.left + layer * this.size, MARGIN.top + head * this.size];
    const cell = shape("rect", {
      class: "cell", x, y, width: this.size - 1, height: this.size - 1, rx: 2,
      "data-layer": layer, "data-head": head, "data-value": value,
    });
    cell.style.setProperty("--share", share);
    if (this.size < CELL.withNumber) return [cell];
    const place = { x: x + this.size / 2, y: y + this.size / 2, class: share > 0.5 ? "value high" : "value" };
    return [cell, shape("text", place, Number.isInteger(value) ? count(value) : value.toFixed(2))];
  }

  /** Every label that there is room for, beginning with the first. */
  labels(layers, heads) {
    const every = (room) => Math.ceil(room / this.size);
    const texts = [shape("text", { x: 0, y: 12 }, "layer")];
    for (let layer = 0; layer < layers; layer += every(24)) {
      const x = MARGIN.left + (layer + 0.5) * this.size;
      texts.push(shape("text", { x, y: 12, "text-anchor": "middle" }, layer));
    }
    for (let head = 0; head < heads; head += every(14)) {
      const y = MARGIN.top + (head + 0.5) * this.size;
      const place = { x: MARGIN.left - 8, y, "text-anchor": "end", "dominant-baseline": "central" };
      texts.push(shape("text", place, head ? head : "head 0"));
    }
    return texts;
  }

  drawLegend(least) {
    const ramp = element("span", {}, "0", element("span", { class: "ramp" }), short(this.most));
    const range = element("span", {}, "lowest ", element("b", {}, short(least)), ", highest ", element("b", {}, short(this.most)));
    const middle = element("span", {}, `middle ${short(this.most / 4)}`);
    this.legend.replaceChildren(element("span", {}, this.label), ramp, middle, range);
  }

  /** Mark the head that `where` names and say its value. */
  point(where) {
    if (where.layer === undefined) return;
    const [layer, head] = [Number(where.layer), Number(where.head)];
    this.unmark();
    const [cell] = this.cells[layer]?.[head] ?? [];
    if (!cell) return this.leave();
    this.current = { layer, head };
    cell.classList.add("current");
    const place = cell.getBoundingClientRect();
    const text = `layer ${layer}, head ${head}: ${this.describe(this.values[layer][head])}`;
    this.tip.show(text, place.left + place.width / 2, place.top);
  }

  walk(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const step = steps[event.key];
    if (!step) return;
    event.preventDefault();
    const from = this.current ?? { layer: -step[0], head: -step[1] };
    const within = (value, length) => Math.max(0, Math.min(length - 1, value));
    this.point({
      layer: within(from.layer + step[0], this.values.length),
      head: within(from.head + step[1], this.values[0].length),
    });
    this.svg.querySelector(".current").scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  unmark() {
    this.svg.querySelector(".current")?.classList.remove("current");
  }

  leave() {
    this.unmark();
    this.current = null;
    this.tip.hide();
  }
}
