import { onThemeChange, paint, palette } from "./colours.js";

/** The text of a number, short. */
export function short(value) {
  return Number.isNaN(value) ? "–" : value === 0 ? "0" : Math.abs(value) >= 1e-3 ? value.toFixed(4) : value.toExponential(2);
}

/** Makes an element: make("b", {class: "x"}, "text", child). */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** The least round number that is not below a value, so that scales don't flicker. */
function roundUp(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 4, 6, 8, 10].find((step) => step * power >= value * (1 - 1e-9)) * power;
}

/** A grid of values as a picture with axes, a legend, and the value under the pointer or the arrow keys. */
export class Heatmap {
  /** kind: "share" (0 to 1) or "signed"; rows, columns: what they are called; rowNames: names instead of numbers. */
  constructor(id, title, { kind, rows, columns, height = "14rem", rowNames = null }) {
    Object.assign(this, { kind, rowsAre: rows, columnsAre: columns, rowNames });
    this.title = title;
    this.values = new Float32Array(0);
    this.rows = this.columns = 0;
    this.blocks = [1, 1]; // how many rows and columns of the session's array a cell stands for
    this.cursor = null;
    this.canvas = make("canvas", { tabindex: "0", role: "img", "aria-label": title });
    this.canvas.style.setProperty("--height", height);
    this.rowAxis = make("div", { class: "axis rows" });
    this.columnAxis = make("div", { class: "axis columns" });
    this.legend = make("div", { class: "legend" });
    this.readout = make("span", { class: "readout", "aria-live": "polite" });
    const plot = make("div", { class: "plot" }, this.rowAxis, this.canvas, this.columnAxis, this.legend);
    this.figure = make("figure", { id }, make("figcaption", {}, make("b", {}, title), this.readout), plot);
    this.figure.heatmap = this;
    this.#listen();
    onThemeChange(() => this.redraw());
  }

  /** Shows values, row after row; full: how many rows and columns they were thinned from; limit: a common scale. */
  show(values, rows, columns, full = [rows, columns], limit = null) {
    const resized = rows !== this.rows || columns !== this.columns;
    Object.assign(this, { values, rows, columns, limit });
    this.blocks = [Math.ceil(full[0] / rows), Math.ceil(full[1] / columns)];
    if (resized) {
      this.canvas.width = columns;
      this.canvas.height = rows;
      this.context = this.canvas.getContext("2d");
      this.image = this.context.createImageData(columns, rows);
      this.#label(full);
    }
    this.redraw();
  }

  redraw() {
    if (!this.rows) return;
    const [low, high] = this.range();
    paint(new Uint32Array(this.image.data.buffer), this.values, palette(this.kind), low, high);
    this.context.putImageData(this.image, 0, 0);
    this.drawLegend(low, high);
    this.tell();
  }

  /** The values with the first and the last colour. */
  range() {
    if (this.kind === "share") return [0, 1];
    const largest = this.limit ?? roundUp(this.values.reduce((most, value) => Math.max(most, Math.abs(value)), 0));
    return [-largest, largest];
  }

  drawLegend(low, high) {
    const key = `${low} ${high} ${palette(this.kind)[0]}`;
    if (key === this.legendKey) return;
    this.legendKey = key;
    const bar = make("canvas", { width: 256, height: 1, "aria-hidden": "true" });
    const context = bar.getContext("2d");
    const image = context.createImageData(256, 1);
    new Uint32Array(image.data.buffer).set(palette(this.kind));
    context.putImageData(image, 0, 0);
    this.legend.replaceChildren(String(+low.toPrecision(3)), bar, String(+high.toPrecision(3)));
  }

  /** What a cell is called: "slot 3, word 5", or ranges where cells stand for blocks. */
  describe(row, column) {
    return `${this.rowNames?.[row] ?? this.#span(this.rowsAre, row, 0)}, ${this.#span(this.columnsAre, column, 1)}`;
  }

  #span(what, index, axis) {
    const width = this.blocks[axis];
    return width === 1 ? `${what} ${index}` : `${what}s ${index * width}–${(index + 1) * width - 1}`;
  }

  tell() {
    const cell = this.cursor;
    if (!cell || cell[0] >= this.rows || cell[1] >= this.columns) this.readout.textContent = "";
    else this.readout.textContent = `${this.describe(...cell)}: ${short(this.values[cell[0] * this.columns + cell[1]])}`;
  }

  #label([rows, columns]) {
    const named = this.rowNames !== null;
    this.rowAxis.classList.toggle("named", named);
    this.rowAxis.replaceChildren(...(named ? this.rowNames : ["0", this.rowsAre, String(rows - 1)]).map((text) => make("span", {}, text)));
    this.columnAxis.replaceChildren(...["0", this.columnsAre, String(columns - 1)].map((text) => make("span", {}, text)));
  }

  #listen() {
    this.canvas.addEventListener("pointermove", (event) => {
      const box = this.canvas.getBoundingClientRect();
      const share = (at, from, length) => Math.min(Math.max((at - from) / length, 0), 0.999999);
      this.cursor = [
        Math.floor(share(event.clientY, box.top, box.height) * this.rows),
        Math.floor(share(event.clientX, box.left, box.width) * this.columns),
      ];
      this.tell();
    });
    this.canvas.addEventListener("pointerleave", () => {
      this.cursor = null;
      this.tell();
    });
    this.canvas.addEventListener("keydown", (event) => {
      const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!move || !this.rows) return;
      event.preventDefault();
      const [row, column] = this.cursor ?? [0, 0];
      const within = (value, length) => Math.min(Math.max(value, 0), length - 1);
      this.cursor = this.cursor ? [within(row + move[0], this.rows), within(column + move[1], this.columns)] : [0, 0];
      this.tell();
    });
  }
}

/**
 * What was seen over time, as a row of columns that stand for positions, the newest at the right. A column stands for
 * several positions where a session is stepped faster than it is seen; columns of which nothing was seen stay blank.
 */
export class Strip extends Heatmap {
  static LENGTH = 120;
  static KEPT = 4 * Strip.LENGTH;

  constructor(id, title, options) {
    super(id, title, { kind: "share", columns: "position", height: "9rem", ...options });
    this.moments = []; // {position, experience, reset, column}, the newest last
    this.stride = 1; // how many positions a column stands for
    this.shown = []; // the moment in each column, if any
  }

  /** Adds a column's values, seen at a moment {position, experience}; it takes the place of one of the same position. */
  push(column, moment, fullRows = column.length) {
    const last = this.moments.at(-1);
    if (last && (last.position > moment.position || last.column.length !== column.length)) this.moments = [];
    else if (last?.position === moment.position) this.moments.pop();
    const before = this.moments.at(-1);
    const reset = before !== undefined && before.experience !== moment.experience;
    this.moments.push({ ...moment, reset, column: Float32Array.from(column) });
    this.moments.splice(0, this.moments.length - Strip.KEPT);
    const jump = usualJump(this.moments);
    if (jump > this.stride || 2 * jump <= this.stride) this.stride = niceStride(jump);
    this.#place(fullRows);
  }

  #place(fullRows) {
    const [length, newest] = [Strip.LENGTH, this.moments.at(-1)];
    this.first = Math.floor(newest.position / this.stride) - length + 1;
    this.shown = new Array(length).fill(null);
    for (const moment of this.moments) {
      const column = Math.floor(moment.position / this.stride) - this.first;
      if (column >= 0) this.shown[column] = moment;
    }
    const rows = newest.column.length;
    const values = new Float32Array(rows * length).fill(NaN);
    for (const [column, moment] of this.shown.entries()) {
      if (moment) for (let row = 0; row < rows; row++) values[row * length + column] = moment.column[row];
    }
    this.show(values, rows, length, [fullRows, length]);
    const begins = this.first >= 0 ? `position ${this.first * this.stride}` : "";
    const middle = this.stride === 1 ? "position →" : `${this.stride} positions a column →`;
    this.columnAxis.replaceChildren(...[begins, middle, `position ${newest.position}`].map((text) => make("span", {}, text)));
  }

  /** What was seen at a position: the column's values, or null. */
  at(position) {
    return this.moments.findLast((moment) => moment.position === position)?.column ?? null;
  }

  forget() {
    this.moments = [];
    this.shown = [];
    this.values.fill(NaN);
    this.redraw();
  }

  describe(row, column) {
    const what = super.describe(row, column).split(", ")[0];
    const moment = this.shown[column];
    if (moment) return `${what}, position ${moment.position}${moment.reset ? " (after a reset)" : ""}`;
    const from = (this.first + column) * this.stride;
    if (!(from >= 0)) return `${what}, before the first position`;
    return `${what}, ${this.stride === 1 ? `position ${from}` : `positions ${from}–${from + this.stride - 1}`} not seen`;
  }
}

/** By how many positions moments lately lay apart: the median of the last few. */
function usualJump(moments) {
  const lately = moments.slice(-16);
  const jumps = lately.slice(1).map(({ position }, index) => position - lately[index].position).sort((a, b) => a - b);
  return jumps.length ? jumps[jumps.length >> 1] : 1;
}

/** The least of 1, 2, 5, 10, 20, … that is not below a number. */
function niceStride(jump) {
  const power = 10 ** Math.floor(Math.log10(jump));
  return [1, 2, 5, 10].find((step) => step * power >= jump) * power;
}
