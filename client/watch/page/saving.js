// Pictures and numbers of the page as files.

const WIDTH = 1200;
const MARGIN = 24;
const LABELS = 150;
const LARGEST_CELL = 24;

/** Offers one PNG of parts below each other: each is a heatmap, or draws itself by `drawOn`. */
export async function savePng(title, parts) {
  const drawings = await Promise.all(parts.map((part) => (part.drawOn ? part.drawOn(WIDTH - LABELS - 2 * MARGIN) : ofHeatmap(part))));
  const height = drawings.reduce((sum, drawing) => sum + drawing.height + 58, 60);
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [WIDTH, height];
  const context = canvas.getContext("2d");
  const style = getComputedStyle(document.documentElement);
  const [ground, ink, quiet] = ["--ground", "--ink", "--quiet"].map((name) => style.getPropertyValue(name));
  context.fillStyle = ground;
  context.fillRect(0, 0, WIDTH, height);
  const write = (text, x, y, colour, font, align = "left") => {
    Object.assign(context, { fillStyle: colour, font: `${font} system-ui, sans-serif`, textAlign: align });
    context.fillText(text, x, y);
  };
  write(title, MARGIN, 34, ink, "600 20px");
  let y = 60;
  for (const drawing of drawings) {
    if (parts.length > 1) write(drawing.title, MARGIN, y + 14, ink, "600 15px");
    const top = y + 24;
    drawing.paint(context, MARGIN + LABELS, top);
    drawing.rowLabels.forEach(([text, share]) => write(text, MARGIN + LABELS - 8, top + share * drawing.height + 4, quiet, "13px", "right"));
    drawing.columnLabels.forEach((text, index, all) => {
      const share = all.length === 1 ? 0 : index / (all.length - 1);
      write(text, MARGIN + LABELS + share * drawing.width, top + drawing.height + 17, quiet, "13px", ["left", "center", "right"][all.length === 1 ? 0 : Math.round(2 * share)]);
    });
    y += drawing.height + 58;
  }
  canvas.toBlob((blob) => save(blob, `${title}.png`));
}

function ofHeatmap(map) {
  const width = WIDTH - LABELS - 2 * MARGIN;
  const height = Math.round(Math.min(560, Math.max(24, Math.min(LARGEST_CELL, (560 / map.rows)) * map.rows)));
  const texts = (axis) => [...axis.children].map((child) => child.textContent);
  const names = texts(map.rowAxis);
  const isNamed = map.rowAxis.classList.contains("named");
  const place = (index) => (isNamed ? (index + 0.5) / names.length : index / Math.max(1, names.length - 1));
  return {
    title: map.title, width, height,
    rowLabels: names.map((text, index) => [text, place(index)]),
    columnLabels: texts(map.columnAxis),
    paint(context, x, y) {
      context.imageSmoothingEnabled = false;
      context.drawImage(map.canvas, x, y, width, height);
    },
  };
}

/** Offers the numbers of a heatmap as CSV. */
export function saveCsv(map) {
  const [header, rows] = map.table();
  const quoted = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const lines = [...(header ? [header.map(quoted).join(",")] : []), ...Array.from(rows, (row) => Array.from(row, number).join(","))];
  save(new Blob([`${lines.join("\n")}\n`], { type: "text/csv" }), `${map.title}.csv`);
}

/** Nine digits give every float32 back; what was not seen is left empty. */
const number = (value) => (Number.isNaN(value) ? "" : String(Number(value.toPrecision(9))));

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name.replace(/[^\w.-]+/g, "-");
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
