// The pictures of a DNC's memory at one moment.
import { FieldMaps } from "./fields.js";
import { Heatmap, make } from "./heatmap.js";
import { part } from "./server.js";

const LINK_THRESHOLD = 0.1;
const MAX_SLOTS_LISTED = 256;
const CONTROLLER = ["read_vectors", "controller_hidden", "controller_cell"];

/** The pictures, made for a model: its memory, and below it all else. */
export class MemoryMaps {
  constructor({ config, state }, memory, rest) {
    const { read_heads: reads, write_heads: writes } = config;
    const numbered = (name, count) => Array.from({ length: count }, (_, i) => (count > 1 ? `${name} ${i + 1}` : name));
    this.heads = { reads: numbered("read head", reads), writes: numbered("write head", writes) };
    this.memory = new Heatmap("memory", "Memory", { kind: "signed", rows: "slot", columns: "word element", height: "20rem" });
    this.links = this.heads.writes.map((head, index) => new Heatmap(
      `links-${index}`, writes > 1 ? `Links of ${head}` : "Links", { kind: "share", rows: "to slot", columns: "from slot", height: "17rem" },
    ));
    this.weightings = new Heatmap("weightings", "Weightings", {
      kind: "share", rows: "", columns: "slot", height: `${2 + 1.6 * (reads + 2 * writes)}rem`,
      rowNames: ["usage", ...this.heads.writes.map((head) => `${head}: write`), ...this.heads.writes.map((head) => `${head}: last`), ...this.heads.reads.map((head) => `${head}: read`)].map(plainName),
    });
    this.gates = { names: gateNames(config), of: gates };
    this.gatesShown = new GateList("gates-shown", "Gates and read modes", this.gates.names);
    this.order = make("div", { class: "slots", id: "order" });
    const order = make("figure", {}, make("figcaption", {}, make("b", {}, "Slots in the order in which they were written")), this.order);
    memory.append(this.memory.figure);
    rest.append(...[...this.links, this.weightings, this.gatesShown].map((map) => map.figure), order);
    const controller = make("section", { class: "fields", "aria-label": "Controller" }, make("h2", {}, "The controller"));
    rest.append(controller);
    this.controller = new FieldMaps(state.filter(({ name }) => CONTROLLER.includes(name)), controller);
  }

  /** Shows the arrays of one moment. */
  show(arrays, layer) {
    const { values: memory, shape: memoryShape, full: memoryFull } = part(arrays.memory, layer);
    this.memory.show(memory, memoryShape[0], memoryShape[1], memoryFull);
    this.gatesShown.show(gates(arrays, layer));
    const weightings = ["usage_vector", "write_weights", "precedence", "read_weights"].map((name) => part(arrays[name], layer));
    const slots = weightings[0].shape[0];
    const joined = Float32Array.from(weightings.flatMap(({ values }) => [...values]));
    this.weightings.show(joined, joined.length / slots, slots, [joined.length / slots, weightings[0].full[0]]);
    const { values, shape: [, rows, columns], full } = part(arrays.link_matrix, layer);
    this.links.forEach((map, head) => map.show(values.slice(head * rows * columns, (head + 1) * rows * columns), rows, columns, full.slice(1)));
    this.#showOrder(part(arrays.precedence, layer));
    this.controller.show(arrays);
  }

  #showOrder(precedence) {
    const chains = this.links.map((links) => writtenOrder(links.values, links.rows));
    const items = chains.flatMap((chain, head) => {
      const last = strongest(precedence.values.subarray(head * precedence.shape[1], (head + 1) * precedence.shape[1]));
      const width = this.links[head].blocks[0];
      const slot = (index) => (width === 1 ? String(index) : `${index * width}–${(index + 1) * width - 1}`);
      const shown = chain.slice(-MAX_SLOTS_LISTED).map((index) => make("span", last === index * width ? { class: "last" } : {}, slot(index)));
      return this.links.length > 1 ? [`${this.heads.writes[head]}:`, ...shown] : shown;
    });
    this.order.replaceChildren(...(items.length ? items : [make("i", { class: "quiet" }, "nothing linked")]));
  }
}

/** The gates and read modes of one moment, as bars with their numbers. */
class GateList {
  constructor(id, title, names) {
    this.names = names;
    this.list = make("div", { class: "gates" });
    this.figure = make("figure", { id }, make("figcaption", {}, make("b", {}, title)), this.list);
  }

  show(values) {
    if (!values) {
      this.list.replaceChildren(make("i", { class: "quiet" }, "No timestep has led here since all was new."));
      return;
    }
    const bars = this.names.flatMap((name, index) => {
      const bar = make("meter", { min: 0, max: 1, value: values[index], "aria-label": name });
      return [make("span", {}, name), bar, make("span", { class: "number" }, values[index].toFixed(2))];
    });
    this.list.replaceChildren(...bars);
  }
}

/** What the last timestep asked of memory, in the order of `gateNames`; null if there was none. */
function gates(arrays, layer) {
  if (!arrays.write_gates) return null;
  const each = ["write_gates", "allocation_gates", "free_gates", "read_modes"].map((name) => part(arrays[name], layer).values);
  return Float32Array.from(each.flatMap((values) => [...values]));
}

const plainName = (name) => name.replace(/^write head: write$/, "written").replace(/^write head: last$/, "precedence").replace(/^read head: read$/, "read");

function gateNames({ read_heads: reads, write_heads: writes }) {
  const each = (count, name) => Array.from({ length: count }, (_, head) => (count > 1 ? `${name} ${head + 1}` : name));
  const modes = (read) => [...each(writes, `${read}backward`), ...each(writes, `${read}forward`), `${read}by content`];
  return [
    ...each(writes, "write gate"), ...each(writes, "allocation"), ...each(reads, "free gate"),
    ...each(reads, "read").flatMap((read) => modes(reads > 1 ? `${read} ` : "")),
  ];
}

/** The slots in the order in which the links say that they were written: entry [i, j] links j to i after it. */
export function writtenOrder(links, slots) {
  const next = new Int32Array(slots).fill(-1);
  const hasPrevious = new Uint8Array(slots);
  for (let from = 0; from < slots; from++) {
    let best = LINK_THRESHOLD;
    for (let to = 0; to < slots; to++) {
      if (to !== from && links[to * slots + from] > best) [best, next[from]] = [links[to * slots + from], to];
    }
    if (next[from] >= 0) hasPrevious[next[from]] = 1;
  }
  const order = [];
  const listed = new Uint8Array(slots);
  const follow = (slot) => {
    for (; slot >= 0 && !listed[slot]; slot = next[slot]) {
      listed[slot] = 1;
      order.push(slot);
    }
  };
  for (let slot = 0; slot < slots; slot++) if (next[slot] >= 0 && !hasPrevious[slot]) follow(slot);
  for (let slot = 0; slot < slots; slot++) if (next[slot] >= 0) follow(slot); // circles
  return order;
}

function strongest(values) {
  let best = -1;
  for (let i = 0; i < values.length; i++) if (values[i] > (best < 0 ? 0 : values[best])) best = i;
  return best;
}
