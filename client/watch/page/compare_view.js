import { asGrid, pictureOf } from "./fields.js";
import { Heatmap, largest, make, short } from "./heatmap.js";
import { fill, hasDenseMemory, repeat, showConnection } from "./page_parts.js";
import { getJson, getMemory, part } from "./server.js";

const DNC_PICTURES = [
  { name: "memory", title: "Memory", kind: "signed", rows: "slot", columns: "word element", height: "20rem" },
  { name: "link_matrix", title: "Links", kind: "share", rows: "to slot", columns: "from slot", height: "20rem" },
  { name: "usage_vector", title: "Usage", kind: "share", rows: "usage", columns: "slot" },
  { name: "write_weights", title: "Write weighting", kind: "share", rows: "write head", columns: "slot" },
  { name: "read_weights", title: "Read weighting", kind: "share", rows: "read head", columns: "slot" },
];

/** What is compared: of a dense DNC its memories, of another model all fields of its state; each in so many parts. */
function picturesOf(model) {
  if (!hasDenseMemory(model)) return model.state.map((field) => ({ name: field.name, parts: field.parts, ...pictureOf(field) }));
  const memories = model.config.share_memory ? 1 : model.config.num_layers;
  return DNC_PICTURES.map((picture) => ({ ...picture, parts: memories, of: " of memory" }));
}

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
      show(find("#comparison"), note, a, b, side("a")[0], side("b")[0], picturesOf(model));
      showConnection();
    } catch (error) {
      if (signal.aborted) return;
      if (error.lost) showConnection(error);
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

function show(section, note, a, b, idA, idB, pictures) {
  section.replaceChildren();
  let different = 0;
  let most = 0;
  for (const picture of pictures) {
    for (let index = 0; index < picture.parts; index++) {
      const suffix = picture.parts > 1 ? `${picture.of ?? ""} ${index + 1}` : "";
      const sides = [a, b].map(({ arrays }) => asGrid(part(arrays[picture.name], index)));
      const difference = sides[1].values.map((value, at) => (value === sides[0].values[at] ? 0 : value - sides[0].values[at]));
      different += difference.reduce((count, value) => count + (value !== 0), 0);
      most = difference.reduce((so, value) => Math.max(so, Math.abs(value)), most);
      const limit = picture.kind === "signed" ? Math.max(...sides.map(({ values }) => largest(values))) || 1 : null;
      const titles = [`A: ${idA} at ${a.position}`, `B: ${idB} at ${b.position}`, "B − A"];
      const maps = [sides[0].values, sides[1].values, difference].map((values, column) => {
        const kind = column === 2 ? "signed" : picture.kind;
        const map = new Heatmap(`${picture.name}-${index}-${"abd"[column]}`, titles[column], { ...few(picture, sides[0].rows), kind, detail: "" });
        map.show(values, sides[0].rows, sides[0].columns, sides[0].full, column === 2 ? null : limit);
        return map.figure;
      });
      const detail = picture.inexact ? make("span", { class: "quiet" }, ` ${picture.detail}`) : "";
      section.append(make("h2", {}, picture.title + suffix, detail), make("div", {}, ...maps));
    }
  }
  const thinned = pictures.filter(({ name }) => String(a.arrays[name].shape) !== String(a.arrays[name].full));
  const differ = `${different} ${thinned.length ? "of the numbers shown" : "numbers"} differ, by ${short(most)} at most.`;
  const whole = thinned.length ? "What is shown is equal" : "They are equal";
  const exact = pictures.every(({ inexact }) => !inexact);
  note.textContent = different ? differ : exact && !thinned.length ? "They are equal, bit for bit." : `${whole}${exact ? "" : ", as float32"}.`;
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
