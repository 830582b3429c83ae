import { onThemeChange, paint, palette } from "./colours.js";
import { saveCsv, savePng } from "./saving.js";

// Above this a float32, as which numbers travel, no longer holds every whole number.
const LARGEST_WHOLE = 2 ** 24;
const LEAST_FOR_THREE_LABELS = 3.4; // rem

/** The text of a number, short. */
export function short(value) {
  if (Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (Number.isInteger(value) && Math.abs(value) < LARGEST_WHOLE) return String(value);
  return Math.abs(value) >= 1e-3 && Math.abs(value) < 1e6 ? value.toFixed(4) : value.toExponential(2);
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

/** The largest magnitude among finite values. */
export function largest(values) {
  return values.reduce((most, value) => (Math.abs(value) < Infinity ? Math.max(most, Math.abs(value)) : most), 0);
}

/** A grid of values as a picture with axes, a legend, and the value under the pointer or the arrow keys. */
export class Heatmap {
  /**
   * kind: "share" (0 to 1) or "signed"; rows, columns: what they are called; rowNames: names instead of numbers;
   * detail: what stands behind the title.
   */
  constructor(id, title, { kind, rows, columns, height = "14rem", rowNames = null, detail = "" }) {
    Object.assign(this, { kind, rowsAre: rows, columnsAre: columns, rowNames, title, isLow: parseFloat(height) < LEAST_FOR_THREE_LABELS });
    this.values = new Float32Array(0);
    this.rows = this.columns = 0;
    this.blocks = [1, 1]; // how many rows and columns of the session's array a cell stands for
    this.cursor = null;
    this.canvas = make("canvas", { tabindex: "0", role: "img", "aria-label": title });
    this.canvas.style.setProperty("--height", height);
    this.frame = make("div", { class: "frame" }, this.canvas);
    this.rowAxis = make("div", { class: "axis rows" });
    this.columnAxis = make("div", { class: "axis columns" });
    this.legend = make("div", { class: "legend" });
    this.readout = make("span", { class: "readout", "aria-live": "polite" });
    const save = (name, how) => {
      const button = make("button", { class: "save", "aria-label": `${title} as ${name}` }, name);
      button.addEventListener("click", how);
      return button;
    };
    const saves = make("span", { class: "saves" }, save("PNG", () => savePng(title, [this])), save("CSV", () => saveCsv(this)));
    const heading = [make("b", {}, title), ...(detail ? [make("span", { class: "quiet" }, detail)] : [])];
    this.plot = make("div", { class: "plot" }, this.rowAxis, this.frame, this.columnAxis, this.legend);
    this.figure = make("figure", { id }, make("figcaption", {}, ...heading, this.readout, saves), this.plot);
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
      this.label(full);
    }
    this.redraw();
  }

  redraw() {
    if (!this.rows || !this.columns) return;
    const [low, high] = this.range();
    paint(new Uint32Array(this.image.data.buffer), this.values, palette(this.kind), low, high);
    this.context.putImageData(this.image, 0, 0);
    this.drawLegend(low, high);
    this.tell();
  }

  /** The values with the first and the last colour. */
  range() {
    if (this.kind === "share") return [0, 1];
    const most = this.limit ?? roundUp(largest(this.values));
    return [-most, most];
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
    const text = (value) => (Math.abs(value) < 1e5 ? String(+value.toPrecision(3)) : value.toExponential().replace("e+", "e"));
    this.legend.replaceChildren(text(low), bar, text(high));
  }

  /** What a cell is called: "slot 3, word 5", or ranges where cells stand for blocks. */
  describe(row, column) {
    const names = [this.rowNames?.[row] ?? this.#span(this.rowsAre, row, 0), this.#span(this.columnsAre, column, 1)];
    if (this.rows === 1 && !this.rowNames) names.shift();
    return names.join(", ");
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

  /** Names the axes; an axis of one has nothing to count. */
  label([rows, columns]) {
    const range = [rows === 1 ? this.rowsAre : `${this.rowsAre}s 0–${rows - 1}`];
    const named = this.rowNames ?? (rows === 1 || this.isLow ? range : null);
    this.rowAxis.classList.toggle("named", named !== null);
    this.rowAxis.replaceChildren(...(named ?? ["0", this.rowsAre, String(rows - 1)]).map((text) => make("span", {}, text)));
    const along = columns === 1 ? [this.columnsAre] : ["0", this.columnsAre, String(columns - 1)];
    this.columnAxis.replaceChildren(...along.map((text) => make("span", {}, text)));
  }

  /** The header of a CSV of these values, and its lines. */
  table() {
    const rows = Array.from({ length: this.rows }, (_, row) => this.values.subarray(row * this.columns, (row + 1) * this.columns));
    return [this.rowNames && [this.columnsAre, ...this.rowNames], rows];
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
