// Numbers for any model: typed or pasted into a table, or read from a file that is dropped on it.
import { make, short } from "./heatmap.js";
import { readFile } from "./server.js";

// A table of more columns is no way to type; a line of text is.
const MOST_COLUMNS = 24;
const MOST_ROWS_SHOWN = 40;
const MOST_OUTPUTS_SHOWN = 100;
const MOST_VALUES_SHOWN = 12;

/** A table with a row for each timestep, [rows][numbers]; each number a text until it is sent. */
export function showTableBox(section, sender, { name, inputs, input_size: size }, _timeline) {
  let rows = [new Array(size).fill("0")];
  const shape = `${inputs.dtype}[${inputs.shape.join(", ")}]`;
  const typed = size <= MOST_COLUMNS;
  const note = make("p", { class: "note", role: "status", id: "table-note" });
  const held = typed ? make("table", { class: "numbers", id: "numbers" }) : make("textarea", { id: "numbers", rows: "5", spellcheck: "false", "aria-label": `Timesteps, a line each of ${size} numbers` });
  const file = make("input", { type: "file", id: "file", accept: ".csv,.npy,.txt", "aria-label": "A CSV or .npy file of timesteps" });
  const slowly = make("input", { type: "checkbox", id: "slowly", checked: "" });
  const [add, clear, send] = [make("button", { id: "add-row" }, "Add a timestep"), make("button", { id: "clear" }, "Clear"), make("button", { id: "send", class: "strong" }, "Send")];
  const outputs = make("pre", { id: "outputs", tabindex: "0", role: "region", "aria-label": "Outputs" });
  section.append(
    make("p", { class: "note" }, `A timestep is ${shape}${inputs.shape.length > 1 ? `, ${size} numbers in a row` : ""}. Type, paste, or drop a CSV or .npy file.`),
    make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Timesteps" }, held),
    make("div", { class: "toolbar" }, ...(typed ? [add] : []), clear, file), make("div", { class: "toolbar" }, send, make("label", {}, slowly, "slowly enough to see")), note, outputs,
  );

  const draw = () => {
    if (!typed) return void (held.value = rows.slice(0, MOST_ROWS_SHOWN).map((row) => row.join(" ")).join("\n"));
    const head = make("tr", {}, make("td", {}), ...Array.from({ length: size }, (_, column) => make("th", { scope: "col" }, String(column))));
    held.replaceChildren(head, ...rows.slice(0, MOST_ROWS_SHOWN).map((row, timestep) => make(
      "tr", {}, make("th", { scope: "row" }, String(timestep + 1)),
      ...row.map((value, column) => make("td", {}, make("input", { inputmode: "decimal", value, "data-at": `${timestep} ${column}`, "aria-label": `timestep ${timestep + 1}, input ${column}` }))),
    )));
    if (rows.length > MOST_ROWS_SHOWN) note.textContent = `${rows.length} timesteps, of which the first ${MOST_ROWS_SHOWN} are shown`;
  };
  const take = (timesteps) => {
    rows = timesteps.map((row) => row.map(String));
    note.textContent = `${rows.length} timesteps, to be sent`;
    draw();
  };
  held.addEventListener("input", ({ target }) => {
    if (!typed) return void (rows = parse(held.value));
    const [timestep, column] = target.dataset.at.split(" ").map(Number);
    rows[timestep][column] = target.value;
  });
  held.addEventListener("paste", (event) => {
    const pasted = parse(event.clipboardData.getData("text"));
    if (!typed || !event.target.dataset.at || pasted.flat().length < 2) return;
    event.preventDefault();
    const [timestep, column] = event.target.dataset.at.split(" ").map(Number);
    const first = pasted.every((row) => row.length === size) ? 0 : column;
    pasted.forEach((row, index) => {
      rows[timestep + index] ??= new Array(size).fill("0");
      row.slice(0, size - first).forEach((value, at) => (rows[timestep + index][first + at] = value));
    });
    const cut = pasted.some((row) => row.length > size - first);
    note.textContent = cut ? `the pasted lines are longer than the ${size} numbers of a timestep: the rest was left out` : "";
    draw();
  });
  const read = async (chosen) => {
    note.textContent = `reading ${chosen.name}…`;
    try {
      take(await readFile(chosen, name));
    } catch (error) {
      note.textContent = error.message;
    }
  };
  file.addEventListener("change", () => file.files.length && read(file.files[0]));
  section.addEventListener("dragover", (event) => event.preventDefault());
  section.addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files.length) read(event.dataTransfer.files[0]);
  });
  add.addEventListener("click", () => {
    rows.push([...rows.at(-1)]);
    draw();
    held.querySelector(`[data-at="${rows.length - 1} 0"]`)?.focus();
  });
  clear.addEventListener("click", () => {
    rows = typed ? [new Array(size).fill("0")] : [];
    file.value = outputs.textContent = note.textContent = "";
    draw();
  });
  send.addEventListener("click", async () => {
    const wrong = fault(rows, size, inputs.dtype);
    note.textContent = wrong ?? "sending…";
    if (wrong) return;
    send.disabled = true;
    const lines = [];
    try {
      await sender.send(rows.map((row) => row.map(Number)), { slowly: slowly.checked }, (output, _, position) => {
        lines.push(`${position}: ${described(output)}`);
        outputs.textContent = lines.slice(-MOST_OUTPUTS_SHOWN).join("\n");
        outputs.scrollTop = outputs.scrollHeight;
      });
      note.textContent = `${rows.length} ${rows.length === 1 ? "timestep" : "timesteps"} sent`;
    } catch (error) {
      note.textContent = `${lines.length ? `${lines.length} timesteps were sent, then: ` : ""}${error.message}`;
    } finally {
      send.disabled = false;
    }
  });
  draw();
}

/** Lines of numbers that blanks, commas, semicolons or tabs stand between. */
function parse(text) {
  return text.split("\n").map((line) => line.trim()).filter(Boolean).map((line) => line.split(/[\s,;]+/).filter(Boolean));
}

/** What is wrong with the timesteps, in words, or null. */
function fault(rows, size, dtype) {
  if (!rows.length) return "there is nothing to send";
  for (const [timestep, row] of rows.entries()) {
    if (row.length !== size) return `timestep ${timestep + 1} has ${row.length} numbers, expected ${size}`;
    for (const [column, text] of row.entries()) {
      const value = Number(text);
      const fits = text.trim() !== "" && Number.isFinite(value) && (dtype.includes("float") || Number.isInteger(value));
      if (!fits) return `timestep ${timestep + 1}, input ${column} is ${JSON.stringify(text)}, expected a number of ${dtype}`;
    }
  }
  return null;
}

/** An output in a line; one of several axes in row-major order. */
function described(output) {
  const values = [output].flat(Infinity).map(Number);
  const more = values.length > MOST_VALUES_SHOWN ? ` … ${values.length} numbers` : "";
  return values.slice(0, MOST_VALUES_SHOWN).map(short).join(" ") + more;
}
