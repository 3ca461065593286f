// SPDX-License-Identifier: Apache-2.0
// KV blocks in use over the last minutes, beside what stock vLLM would hold for the same requests.

const SPAN = 300; // seconds that are shown
const GAP = 6; // seconds without a reading after which the line breaks
const CHART = { height: 230, left: 62, right: 14, top: 12, bottom: 26 };

class UsageChart {
  constructor(picture) {
    Object.assign(this, { picture, readings: [] });
    picture.classList.add("picture");
    this.svg = shape("svg", { role: "img", height: CHART.height });
    this.legend = element("div", { class: "legend" });
    picture.append(this.svg, this.legend);
    this.tip = new Tip(picture);
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.tip.hide());
    new ResizeObserver(() => this.width !== picture.clientWidth && this.draw()).observe(picture);
  }

  /** Add one reading: time in seconds, blocks in use, and the same in stock vLLM. */
  add(reading) {
    this.readings = this.readings.filter(({ time }) => reading.time - time <= SPAN);
    this.readings.push(reading);
    this.draw();
  }

  clear() {
    this.readings = [];
    this.svg.replaceChildren();
  }

  draw() {
    this.width = this.picture.clientWidth;
    if (!this.readings.length || !this.width) return;
    const last = this.readings.at(-1);
    this.end = last.time;
    this.most = niceAbove(Math.max(4, ...this.readings.map(({ used, stock }) => Math.max(used, stock))));
    this.svg.setAttribute("width", this.width);
    this.svg.setAttribute(
      "aria-label",
      `KV blocks in use over the last five minutes. Now ${count(last.used)} with HeadKV, ` +
        `${count(last.stock)} in stock vLLM.`,
    );
    this.svg.replaceChildren(...this.grid(), ...this.curves());
    this.drawLegend(last);
  }

  x(time) {
    return this.width - CHART.right - ((this.end - time) / SPAN) * (this.width - CHART.left - CHART.right);
  }

  y(blocks) {
    return CHART.height - CHART.bottom - (blocks / this.most) * (CHART.height - CHART.top - CHART.bottom);
  }

  grid() {
    const parts = [];
    for (let tick = 0; tick <= 4; tick += 1) {
      const value = (this.most * tick) / 4;
      const y = this.y(value);
      parts.push(shape("line", { class: tick ? "grid" : "axis", x1: CHART.left, x2: this.width - CHART.right, y1: y, y2: y }));
      parts.push(shape("text", { x: CHART.left - 8, y, "text-anchor": "end", "dominant-baseline": "central" }, count(value)));
    }
    for (let minute = 0; minute <= SPAN / 60; minute += this.width < 500 ? 2 : 1) {
      const anchor = minute ? "middle" : "end";
      const place = { x: this.x(this.end - 60 * minute), y: CHART.height - 6, "text-anchor": anchor };
      parts.push(shape("text", place, minute ? `−${minute} min` : "now"));
    }
    return parts;
  }

  curves() {
    const drawn = [];
    for (const run of this.runs()) {
      const line = (key) => run.map((reading) => `${this.x(reading.time)},${this.y(reading[key])}`).join(" L");
      const ground = this.y(0);
      const area = `M${this.x(run[0].time)},${ground} L${line("used")} L${this.x(run.at(-1).time)},${ground} Z`;
      drawn.push(shape("path", { class: "area", d: area }));
      drawn.push(shape("path", { class: "used", d: `M${line("used")}` }));
      drawn.push(shape("path", { class: "stock", d: `M${line("stock")}` }));
    }
    return drawn;
  }

  /** The readings, parted where none came for a while. */
  runs() {
    const runs = [];
    this.readings.forEach((reading, index) => {
      const before = this.readings[index - 1];
      if (!before || reading.time - before.time > GAP) runs.push([]);
      runs.at(-1).push(reading);
    });
    return runs;
  }

  drawLegend({ used, stock }) {
    const entry = (kind, text, value, id) =>
      element("span", {}, element("span", { class: `swatch ${kind}` }), `${text} `, element("b", { id }, count(value)));
    this.legend.replaceChildren(
      entry("", "blocks in use", used, "used-now"),
      entry("stock", "stock vLLM would hold", stock, "stock-now"),
    );
  }

  point(event) {
    if (!this.readings.length) return;
    const place = this.svg.getBoundingClientRect();
    const distance = ({ time }) => Math.abs(place.left + this.x(time) - event.clientX);
    const nearest = this.readings.reduce((best, reading) => (distance(reading) < distance(best) ? reading : best));
    const ago = Math.round(this.end - nearest.time);
    const when = ago ? `${ago} s ago` : "now";
    this.tip.show(
      `${when}: ${count(nearest.used)} blocks, stock vLLM ${count(nearest.stock)}`,
      place.left + this.x(nearest.time),
      place.top + this.y(Math.max(nearest.used, nearest.stock)),
    );
  }
}

/** The first of 4, 8, 12, 20, 40, 80, 120, ... that is not below `value`: all have whole quarters. */
function niceAbove(value) {
  for (let power = 4; ; power *= 10) {
    for (const factor of [1, 2, 3, 5]) if (power * factor >= value) return power * factor;
  }
}
