// Elements and numbers. Every text goes through textContent: nothing that a reader types can become markup.

/** Make an element: el("a", {href: "#x"}, "text", child). */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== undefined && value !== null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export const byId = (id) => document.getElementById(id);

/** Change a text only where it differs: an assistant that reads along says every change. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** A button that copies a text, and says that it did. */
export function copyButton(label, text) {
  const button = el("button", { type: "button", class: "copy", "aria-label": label }, "Copy");
  let timer;
  button.addEventListener("click", async () => {
    say(button, (await copied(typeof text === "function" ? text() : text)) ? "Copied" : "Not allowed");
    clearTimeout(timer);
    timer = setTimeout(() => say(button, "Copy"), 1500);
  });
  return button;
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copiedBySelection(text);
  }
}

/** Browsers have no clipboard on plain http, except on this machine. */
function copiedBySelection(text) {
  const focused = document.activeElement;
  const area = el("textarea", { class: "offscreen", "aria-hidden": "true", tabindex: "-1" });
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return done;
}

// Numbers ---------------------------------------------------------------------------------------------------

const NONE = "–";
const whole = new Intl.NumberFormat("en");

/** 0, 0.4, 12, 1,234, 56k, 7.8M: at most five characters, so that columns stand still. */
export function short(value) {
  if (value === null || value === undefined) return NONE;
  if (Number.isInteger(value) && value < 9_999.5) return whole.format(value);
  if (value < 0.095) return value.toFixed(2);
  if (value < 9.95) return value.toFixed(1);
  if (value < 9_999.5) return whole.format(Math.round(value));
  if (value < 999_500) return `${Math.round(value / 1000)}k`;
  return `${(value / 1e6).toFixed(value < 9.95e6 ? 1 : 0)}M`;
}

export const count = (value) => (value === null || value === undefined ? NONE : whole.format(Math.round(value)));

/** 0.42 ms, 5.3 ms, 120 ms, 1.24 s, 95 s */
export function duration(ms) {
  if (ms === null || ms === undefined) return NONE;
  if (ms === 0) return "0 ms";
  if (ms < 0.995) return `${ms.toFixed(2)} ms`;
  if (ms < 9.95) return `${ms.toFixed(1)} ms`;
  if (ms < 999.5) return `${Math.round(ms)} ms`;
  if (ms < 9_950) return `${(ms / 1000).toFixed(2)} s`;
  return `${short(ms / 1000)} s`;
}

/** A round number of milliseconds, at an axis: 1 ms, 10 s. */
export const roundDuration = (ms) => (ms < 1000 ? `${ms} ms` : `${ms / 1000} s`);

export const percent = (ratio) => (ratio === null || ratio === undefined ? NONE : `${Math.round(ratio * 100)} %`);

export function bytes(value) {
  if (value === null || value === undefined) return NONE;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let step = 0;
  while (value >= 1024 && step < units.length - 1) {
    value /= 1024;
    step += 1;
  }
  return `${value < 9.95 && step ? value.toFixed(1) : Math.round(value)} ${units[step]}`;
}

/** 42 s, 12 min 5 s, 3 h 12 min, 5 d 3 h */
export function span(seconds) {
  const s = Math.floor(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86_400)} d ${Math.floor((s % 86_400) / 3600)} h`;
}
