// Two scales that colour-blind readers can tell apart: cividis for shares, orange to violet for signed values.
const SHARES = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"];
const SIGNED = {
  light: ["#7f3b08", "#b35806", "#e08214", "#fdb863", "#fee0b6", "#f7f7f7", "#d8daeb", "#b2abd2", "#8073ac", "#542788", "#2d004b"],
  dark: ["#fee0b6", "#fdb863", "#e08214", "#9a4d08", "#4d2a0c", "#1d2026", "#2b2a55", "#4b4590", "#7d73c4", "#aea8e6", "#dcdcfa"],
};
const LEVELS = 256;
const darkness = matchMedia("(prefers-color-scheme: dark)");

/** The scale as pixels, from the lowest to the highest value. */
export function palette(kind) {
  const stops = kind === "share" ? SHARES : SIGNED[darkness.matches ? "dark" : "light"];
  const pixels = new Uint32Array(LEVELS);
  for (let level = 0; level < LEVELS; level++) {
    const place = (level / (LEVELS - 1)) * (stops.length - 1);
    const below = Math.min(Math.floor(place), stops.length - 2);
    const channel = (at) => {
      const [from, to] = [stops[below], stops[below + 1]].map((stop) => parseInt(stop.slice(at, at + 2), 16));
      return Math.round(from + (to - from) * (place - below));
    };
    pixels[level] = (255 << 24) | (channel(5) << 16) | (channel(3) << 8) | channel(1);
  }
  return pixels;
}

/** Fills pixels with the colours of values between low and high; what is no number stays transparent. */
export function paint(pixels, values, colours, low, high) {
  const scale = (LEVELS - 1) / (high - low || 1);
  for (let i = 0; i < values.length; i++) {
    const level = Math.round((values[i] - low) * scale);
    pixels[i] = level === level ? colours[level < 0 ? 0 : level >= LEVELS ? LEVELS - 1 : level] : 0;
  }
}

/** Calls back when the reader switches between light and dark. */
export function onThemeChange(redraw) {
  darkness.addEventListener("change", redraw);
}
