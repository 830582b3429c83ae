// The fields of any model's state, by name: as they are now, and over time.
import { Heatmap } from "./heatmap.js";
import { part } from "./server.js";
import { Strip } from "./timeline.js";

const MOST_ROWS = 64;
const INEXACT = ["int32", "int64", "float64"];

/** An array as rows and columns: axes of one left out, one row for a vector, all but the last axis below each other. */
export function asGrid({ values, shape, full }) {
  const kept = full.map((size, axis) => axis).filter((axis) => full[axis] > 1);
  const [sizes, fullSizes] = [shape, full].map((all) => kept.map((axis) => all[axis]));
  const rowsOf = (all) => all.slice(0, -1).reduce((product, size) => product * size, 1);
  return { values, rows: rowsOf(sizes), columns: sizes.at(-1) ?? 1, full: [rowsOf(fullSizes), fullSizes.at(-1) ?? 1] };
}

/** How a field is pictured: its kind of scale, what its axes are called, and a height that fits its rows. */
export function pictureOf({ name, shape, dtype }) {
  const sizes = shape.filter((size) => size > 1);
  const rows = sizes.slice(0, -1).reduce((product, size) => product * size, 1);
  const axis = (at) => `axis ${shape.indexOf(sizes.at(at))}`;
  return {
    kind: dtype === "bool" ? "share" : "signed",
    rows: sizes.length > 2 ? "row" : sizes.length > 1 ? axis(0) : "value",
    columns: sizes.length > 1 ? axis(-1) : "element",
    height: `${Math.min(20, Math.max(1.6, 0.5 * rows))}rem`,
    detail: `${dtype}[${shape.join(", ")}]${INEXACT.includes(dtype) ? ", shown as float32" : ""}`,
    inexact: INEXACT.includes(dtype),
    title: name,
  };
}

/** A heatmap for each part of each of the fields. */
export class FieldMaps {
  constructor(fields, section) {
    this.maps = fields.flatMap((field) => Array.from({ length: field.parts }, (_, index) => {
      const { title, ...options } = pictureOf(field);
      const of = field.parts > 1 ? ` ${index + 1}` : "";
      return { field: field.name, index, map: new Heatmap(`field-${field.name}${field.parts > 1 ? `-${index}` : ""}`, title + of, options) };
    }));
    section.append(...this.maps.map(({ map }) => map.figure));
  }

  show(arrays) {
    for (const { field, index, map } of this.maps) {
      const { values, rows, columns, full } = asGrid(part(arrays[field], index));
      map.show(values, rows, columns, full);
    }
  }
}

/** A strip over time of something with many numbers: of more rows than can be told apart, the strongest of each few. */
export function numbersStrip(id, title, { dtype, shape }, { values, onPick }) {
  const size = shape.reduce((product, length) => product * length, 1);
  const rows = Math.min(size, MOST_ROWS);
  return new Strip(id, title, {
    kind: dtype === "bool" ? "share" : "signed",
    rows: size > MOST_ROWS ? "row" : "value",
    height: `${Math.min(8, Math.max(1.6, 0.55 * rows))}rem`,
    detail: size > MOST_ROWS ? `the strongest of each ${Math.ceil(size / MOST_ROWS)}` : "",
    column: (moment) => strongestOfEach(values(moment), MOST_ROWS),
    onPick,
  });
}

/** At most so many numbers, each of largest magnitude of those that it stands for. */
function strongestOfEach(values, most) {
  if (!values || values.length <= most) return values;
  const block = Math.ceil(values.length / most);
  return Float32Array.from({ length: Math.ceil(values.length / block) }, (_, row) =>
    values.subarray(row * block, (row + 1) * block).reduce((best, value) => (Math.abs(value) > Math.abs(best) ? value : best), 0));
}
