// What a session did over time: moments from its journal, and strips that show them on one axis.
import { Heatmap, make } from "./heatmap.js";
import { pause } from "./page_parts.js";
import { pastOf } from "./server.js";

const MOST_COLUMNS = 120;
export const SPANS = [30, 60, 120, 600, 2400, 9600];
const MOST_KEPT = 16 * MOST_COLUMNS;
// What asking for the past may take of the server's time.
const REST = 4;

/**
 * A window of columns that end at or behind the position that is shown. A column stands for `every` positions, and shows
 * the last of them: column c those behind (c − 1) · every, up to c · every.
 */
export class Timeline {
  /** keeps: whether the server keeps a journal. `listeners` are called when there is something new to draw. */
  constructor(id, keeps, signal) {
    this.listeners = [];
    Object.assign(this, { id, keeps, signal, moments: new Map(), first: 1, newest: 0, earliest: 0, shown: 0 });
    this.chosen = null; // the span that the reader chose, if any
    this.note = "";
  }

  /** How many positions the window spans: while nobody has chosen, the fewest that the session fills. */
  get span() {
    return this.chosen ?? SPANS.find((span) => span >= Math.min(this.newest, MOST_COLUMNS));
  }

  get columns() {
    return Math.min(this.span, MOST_COLUMNS);
  }

  get every() {
    return this.span / this.columns;
  }

  /** Takes another span; null: whichever fits. */
  choose(span) {
    const before = this.every;
    this.chosen = span;
    if (this.every !== before) this.moments.clear();
    this.show(this.shown, this.newest);
  }

  /** Moves the window so that a position is in it, as little as need be, and asks for what is not known of it. */
  show(position, newest, earliest = this.earliest) {
    if (newest < this.newest) this.moments.clear(); // another session of that name
    Object.assign(this, { shown: position, newest, earliest });
    const column = Math.max(1, this.columnOf(position));
    if (column < this.first) this.first = column - (this.columns >> 1);
    this.first = Math.max(this.first, column - this.columns + 1);
    this.first = Math.max(1, Math.min(this.first, this.columnOf(newest) - this.columns + 1));
    this.#tell();
    if (this.keeps) this.#fill();
  }

  #tell() {
    for (const listener of this.listeners) listener();
  }

  columnOf(position) {
    return Math.ceil(position / this.every);
  }

  /** The last of the positions that a place in the window stands for, as far as there are any. */
  positionAt(place) {
    return Math.min((this.first + place) * this.every, this.newest);
  }

  /** The moments in the window, null where none is known. */
  window() {
    return Array.from({ length: this.columns }, (_, place) => this.moments.get(this.first + place) ?? null);
  }

  /** What was seen at a position, or null. */
  at(position) {
    const moment = this.moments.get(this.columnOf(position));
    return moment?.position === position ? moment : null;
  }

  /** All moments that are known up to a position, the latest first. */
  before(position) {
    return [...this.moments.values()].filter((moment) => moment.position <= position).sort((a, b) => b.position - a.position);
  }

  /** Adds a moment {position, experience, arrays}. */
  add(moment) {
    this.moments.set(this.columnOf(moment.position), moment);
    if (this.moments.size > MOST_KEPT) {
      const far = [...this.moments.keys()].filter((column) => column < this.first || column >= this.first + this.columns);
      for (const column of far) this.moments.delete(column);
    }
  }

  /** Asks for the first stretch of the window that is not known, then for the next, leaving the server time between. */
  async #fill() {
    if (this.filling) return;
    this.filling = true;
    try {
      for (let gap = this.#gap(); gap && !this.signal.aborted; gap = this.#gap()) {
        const began = performance.now();
        const { every } = this;
        for await (const moment of pastOf(this.id, ...gap, every, this.signal)) if (every === this.every) this.add(moment);
        this.note = "";
        this.#tell();
        await pause(Math.max(100, REST * (performance.now() - began)), this.signal);
      }
    } catch (error) {
      if (!error.lost && !this.signal.aborted) this.note = error.message;
      this.#tell();
      await pause(1000, this.signal);
    } finally {
      this.filling = false;
    }
  }

  /** [after, until] of what is to be asked for, or null if all that there is is known. */
  #gap() {
    const last = Math.min(this.first + this.columns - 1, this.columnOf(this.newest));
    const known = (column) => this.moments.get(column)?.position >= Math.min(column * this.every, this.newest);
    let from = Math.max(this.first, Math.floor(this.earliest / this.every) + 1);
    while (from <= last && known(from)) from++;
    if (from > last) return null;
    let to = last;
    while (known(to)) to--;
    return [Math.max((from - 1) * this.every, this.earliest), Math.min(to * this.every, this.newest)];
  }
}

/** What one array was at each moment of a timeline: a column each. Columns of which nothing is known stay blank. */
export class Strip extends Heatmap {
  /** column(moment) → its values, or null; onPick(position, row) when the reader picks a column. */
  constructor(id, title, { column, onPick, ...options }) {
    super(id, title, { kind: "share", columns: "position", height: "9rem", ...options });
    Object.assign(this, { column, onPick });
    this.marker = make("i", { class: "marker", "aria-hidden": "true" });
    this.resets = make("div", { "aria-hidden": "true" });
    this.frame.append(this.resets, this.marker);
    this.canvas.addEventListener("click", () => this.#pick());
    this.canvas.addEventListener("keydown", ({ key }) => key === "Enter" && this.#pick());
  }

  #pick() {
    const position = this.cursor && this.timeline?.positionAt(this.cursor[1]);
    if (position > 0) this.onPick?.(position, this.cursor[0]);
  }

  draw(timeline) {
    this.timeline = timeline;
    this.shown = timeline.window();
    const columns = this.shown.map((moment) => moment && this.column(moment));
    const rows = columns.find(Boolean)?.length ?? (this.rows || 1);
    const values = new Float32Array(rows * columns.length).fill(NaN);
    for (const [place, column] of columns.entries()) {
      if (column) for (let row = 0; row < rows; row++) values[row * columns.length + place] = column[row];
    }
    this.show(values, rows, columns.length);
    this.canvas.dataset.first = timeline.first;
    const ends = [timeline.first, timeline.first + columns.length - 1].map((column) => column * timeline.every);
    const middle = timeline.every === 1 ? "position →" : `${timeline.every} positions a column →`;
    this.columnAxis.replaceChildren(...[ends[0], middle, ends[1]].map((text) => make("span", {}, String(text))));
    const left = (place) => `left: ${(100 * (place + 0.5)) / columns.length}%`;
    this.marker.style.cssText = left(timeline.columnOf(timeline.shown) - timeline.first);
    this.marker.hidden = timeline.shown < 1;
    this.resets.replaceChildren(...resetsIn(this.shown).map((place) => {
      const mark = make("i", { class: "reset" });
      mark.style.cssText = left(place - 0.5);
      return mark;
    }));
  }

  table() {
    const names = this.rowNames ?? Array.from({ length: this.rows }, (_, row) => `${this.rowsAre} ${row}`);
    const lines = this.shown.filter((moment) => moment && this.column(moment)).map((moment) => [moment.position, ...this.column(moment)]);
    return [["position", ...names], lines];
  }

  describe(row, place) {
    const what = this.rowNames?.[row] ?? `${this.rowsAre} ${row}`;
    const moment = this.shown[place];
    if (moment) return `${what}, position ${moment.position}${resetsIn(this.shown).includes(place) ? " (after a reset)" : ""}`;
    const from = (this.timeline.first + place - 1) * this.timeline.every + 1;
    const to = from + this.timeline.every - 1;
    if (from > this.timeline.newest) return `${what}, after the last position`;
    return `${what}, ${from === to ? `position ${from}` : `positions ${from}–${to}`} not kept`;
  }
}

/** The places of a window before which the experience was reset. */
export function resetsIn(moments) {
  let before = null;
  return moments.flatMap((moment, place) => {
    const isNew = moment && before && moment.experience !== before.experience;
    before = moment ?? before;
    return isNew ? [place] : [];
  });
}
