// SPDX-License-Identifier: Apache-2.0
"use strict";
// Numbers for people, and the few lines that make elements of a document.

const SVG = "http://www.w3.org/2000/svg";
const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const THREE_DIGITS = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

const byId = (id) => document.getElementById(id);
const count = (number) => WHOLE.format(number);
const short = (number) => (Number.isInteger(number) ? count(number) : THREE_DIGITS.format(number));
const percent = (share) => `${THREE_DIGITS.format(100 * share)} %`;
const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

/** A number of bytes in the unit that leaves it above one. */
function bytes(number) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = number < 1 ? 0 : Math.min(4, Math.floor(Math.log2(number) / 10));
  return `${THREE_DIGITS.format(number / 1024 ** power)} ${units[power]}`;
}

/** A number of seconds in the unit that leaves it above one. */
function seconds(number) {
  if (number >= 1) return `${THREE_DIGITS.format(number)} s`;
  return number >= 1e-3 ? `${THREE_DIGITS.format(1e3 * number)} ms` : `${THREE_DIGITS.format(1e6 * number)} µs`;
}

/** An element of the page: its attributes, and texts or elements inside it. */
function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** The same of a picture. */
function shape(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** What a picture shows under the pointer. */
class Tip {
  constructor(picture) {
    this.picture = picture;
    this.box = element("div", { class: "tip", "aria-live": "polite", hidden: "" });
    picture.append(this.box);
  }

  /** Show `text` beside the point `x`, `y` of the window. */
  show(text, x, y) {
    const frame = this.picture.getBoundingClientRect();
    this.box.textContent = text;
    this.box.hidden = false;
    const left = Math.min(x - frame.left + 12, frame.width - this.box.offsetWidth);
    this.box.style.left = `${Math.max(0, left)}px`;
    this.box.style.top = `${y - frame.top - this.box.offsetHeight - 8}px`;
  }

  hide() {
    this.box.hidden = true;
  }
}
