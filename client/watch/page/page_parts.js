// What all views use: the line that says whether the server is there, questions, and cleaning up.

/** Says at the top whether the server is there; error: why it is not, or nothing. */
export function showConnection(error = null) {
  const line = document.getElementById("connection");
  const text = error ? (error.reason === "WATCH_ENDED" ? error.message : `server lost: ${error.message}`) : "connected";
  line.classList.toggle("lost", error !== null);
  if (line.textContent !== text) line.textContent = text;
}

/** Whether a model is a Differentiable Neural Computer: the server tells its sizes then. */
export const isDnc = (model) => "nr_cells" in model.config;

/** Whether its memory can be shown as one of all slots: a sparse one is shown field by field, as another model's state. */
export const hasDenseMemory = (model) => isDnc(model) && (model.config.memory ?? "dense") === "dense";

/** Puts a text into a note, which is not there without one. */
export function say(note, text) {
  if (note.textContent !== text) note.textContent = text;
  note.hidden = !text;
}

/** Asks; returns null if cancelled, else what was answered ("" without a field). */
export function ask(title, text, ok, field = null) {
  const dialog = document.getElementById("confirm");
  const [label, answer] = [dialog.querySelector("label"), dialog.querySelector("input")];
  dialog.querySelector("h2").textContent = title;
  dialog.querySelector("p").textContent = text;
  dialog.querySelector("button[value=ok]").textContent = ok;
  label.hidden = field === null;
  label.querySelector("span").textContent = field ? `${field.label} ` : "";
  answer.value = field?.value ?? "";
  answer.pattern = "[A-Za-z0-9._~:@\\-]{1,128}";
  answer.required = field !== null;
  dialog.returnValue = "cancel";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "ok" ? answer.value : null), { once: true });
  });
}

/** Fills the page with a template's content. */
export function fill(templateId) {
  const view = document.getElementById("view");
  view.replaceChildren(document.getElementById(templateId).content.cloneNode(true));
  return (selector) => view.querySelector(selector);
}

/** Waits, or ends early when the signal aborts. */
export function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}

/** Runs `step` again and again until the signal aborts; while it fails, the page says that the server is lost. */
export async function repeat(milliseconds, signal, step) {
  while (!signal.aborted) {
    try {
      await step();
      showConnection();
    } catch (error) {
      if (signal.aborted) return;
      if (!error.lost) throw error;
      showConnection(error);
    }
    await pause(milliseconds, signal);
  }
}

export function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB"];
  const unit = Math.min(Math.floor(Math.log2(Math.max(count, 1)) / 10), units.length - 1);
  return `${(count / 1024 ** unit).toFixed(unit ? 1 : 0)} ${units[unit]}`;
}
