import { Heatmap, make } from "./heatmap.js";
import { fill, repeat, showConnection } from "./page_parts.js";
import { getJson, getMemory, part } from "./server.js";

const PICTURES = [
  { name: "memory", title: "Memory", kind: "signed", rows: "slot", columns: "word element", height: "20rem" },
  { name: "link_matrix", title: "Links", kind: "share", rows: "to slot", columns: "from slot", height: "20rem" },
  { name: "usage_vector", title: "Usage", kind: "share", rows: "usage", columns: "slot" },
  { name: "write_weights", title: "Write weighting", kind: "share", rows: "write head", columns: "slot" },
  { name: "read_weights", title: "Read weighting", kind: "share", rows: "read head", columns: "slot" },
];

/** Two positions of a session, or of two, side by side with their difference. */
export async function showComparison(query, model, signal) {
  const find = fill("compare-template");
  const form = find("#choice");
  for (const name of ["a", "pa", "b", "pb"]) form.elements[name].value = query.get(name) ?? "";
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const chosen = new URLSearchParams([...new FormData(form)].filter(([, value]) => value !== ""));
    if (location.hash === `#/compare?${chosen}`) compare();
    else location.hash = `#/compare?${chosen}`;
  });
  const side = (letter) => [query.get(letter), query.get(`p${letter}`) || null];
  const note = find("#compare-note");
  const compare = async () => {
    try {
      const [a, b] = await Promise.all([side("a"), side("b")].map(([id, position]) => getMemory(id, position, signal)));
      show(find("#comparison"), note, a, b, side("a")[0], side("b")[0], model.config);
      showConnection("");
    } catch (error) {
      if (signal.aborted) return;
      if (error.lost) showConnection(error.message);
      note.textContent = error.message;
    }
  };
  const offerIds = async () => {
    const { sessions } = await getJson("api/sessions", signal);
    find("#ids").replaceChildren(...sessions.map(({ id }) => make("option", { value: id })));
  };
  if (query.get("a") && query.get("b")) await compare();
  await repeat(5000, signal, offerIds);
}

function show(section, note, a, b, idA, idB, { num_layers: layers }) {
  section.replaceChildren();
  let different = 0;
  let largest = 0;
  for (const picture of PICTURES) {
    const memories = a.arrays[picture.name].shape[0];
    for (let memory = 0; memory < Math.min(memories, layers); memory++) {
      const suffix = memories > 1 ? ` of memory ${memory + 1}` : "";
      const sides = [a, b].map(({ arrays }) => flat(part(arrays[picture.name], memory)));
      const difference = sides[1].values.map((value, index) => value - sides[0].values[index]);
      different += difference.reduce((count, value) => count + (value !== 0), 0);
      largest = difference.reduce((most, value) => Math.max(most, Math.abs(value)), largest);
      const limit = picture.kind === "signed" ? Math.max(...sides.map(({ values }) => values.reduce((most, value) => Math.max(most, Math.abs(value)), 0))) || 1 : null;
      const titles = [`A: ${idA} at ${a.position}`, `B: ${idB} at ${b.position}`, "B − A"];
      const maps = [sides[0].values, sides[1].values, difference].map((values, column) => {
        const kind = column === 2 ? "signed" : picture.kind;
        const map = new Heatmap(`${picture.name}-${memory}-${"abd"[column]}`, titles[column], { ...few(picture, sides[0].rows), kind });
        map.show(values, sides[0].rows, sides[0].columns, sides[0].full, column === 2 ? null : limit);
        return map.figure;
      });
      section.append(make("h2", {}, picture.title + suffix), make("div", {}, ...maps));
    }
  }
  const thinned = PICTURES.filter(({ name }) => String(a.arrays[name].shape) !== String(a.arrays[name].full));
  const differ = `${different} ${thinned.length ? "of the numbers shown" : "numbers"} differ, by ${largest.toPrecision(3)} at most.`;
  note.textContent = different ? differ : thinned.length ? "What is shown is equal." : "They are equal, bit for bit.";
  if (thinned.length) {
    const titles = thinned.map(({ title }) => title.toLowerCase()).join(" and ");
    note.textContent += ` Too large to be shown whole: ${titles}; a cell is the strongest of those that it stands for.`;
  }
}

/** Names for the rows of a picture that has a row for each head. */
function few(picture, rows) {
  if (picture.height) return picture;
  const rowNames = Array.from({ length: rows }, (_, row) => (rows > 1 ? `${picture.rows} ${row + 1}` : picture.rows));
  return { ...picture, rowNames, height: `${1 + 1.3 * rows}rem` };
}

/** All heads' rows below each other. */
function flat({ values, shape, full }) {
  const columns = shape.at(-1);
  const fullRows = full.slice(0, -1).reduce((product, size) => product * size, 1);
  return { values, rows: values.length / columns, columns, full: [fullRows, full.at(-1)] };
}
