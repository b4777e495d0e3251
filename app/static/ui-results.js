// How inputs compare: every one with every one as a heat map, and documents ranked for each query.

import { el } from "./ui-dom.js";
import { rangeOf, ranked } from "./ui-vectors.js";

const LABEL_CHARS = 60;

/** The whole comparison of inputs, from their cosines. */
export function drawComparison(inputs, matrix) {
  const named = inputs.map((input, index) => ({ ...input, number: index + 1, label: labelOf(input) }));
  return el("div", { class: "comparison" }, drawMatrix(named, matrix), drawRanking(named, matrix));
}

function labelOf({ text, image }) {
  const words = text.length > LABEL_CHARS ? `${text.slice(0, LABEL_CHARS - 1)}…` : text;
  return image ? `image ${image.name}${words && ` with “${words}”`}` : `“${words}”`;
}

function digits(value, places) {
  const rounded = value.toFixed(places);
  return rounded.startsWith("-") ? `−${rounded.slice(1)}` : rounded;
}

/** The short form of an input: its picture, or the beginning of its text. */
function brief({ text, image, label }) {
  return el("span", { class: "brief", title: label },
    image ? el("img", { src: image.shown, alt: label, width: 24, height: 24 }) : null, text || (image ? image.name : ""));
}

// The heat map ----------------------------------------------------------------------------------------------

function drawMatrix(inputs, matrix) {
  const [low, high] = rangeOf(matrix);
  const places = inputs.length > 8 ? 2 : 3;
  const detail = el("p", { class: "detail", "aria-hidden": "true" }, "Point at a cell, or move among them with the arrow keys.");
  const cells = matrix.map((row, y) => row.map((value, x) => {
    const what = x === y ? `${inputs[y].label} with itself` : `${inputs[y].label} with ${inputs[x].label}`;
    const cell = el("td", { role: "gridcell", tabindex: -1, "aria-label": `${inputs[y].number} and ${inputs[x].number}: ${digits(value, 4)}. ${what}` }, digits(value, places));
    const heat = high > low ? (value - low) / (high - low) : 1;
    if (x === y) cell.className = "self";
    else cell.style.setProperty("--heat", heat.toFixed(3));
    const tell = () => detail.replaceChildren(el("b", {}, digits(value, 4)), ` ${what}`);
    cell.addEventListener("focus", tell);
    cell.addEventListener("pointerenter", tell);
    return cell;
  }));
  cells[0][0].tabIndex = 0;
  const table = el("table", { class: "matrix", role: "grid", "aria-label": "Cosine of each input with each", onkeydown: (event) => move(event, cells) },
    el("thead", {}, el("tr", { role: "row" }, el("td", { class: "corner" }),
      ...inputs.map((input) => el("th", { scope: "col", role: "columnheader", class: input.role, "aria-label": `${input.number}: ${input.label}`, title: input.label }, String(input.number))))),
    el("tbody", {}, ...inputs.map((input, y) => el("tr", { role: "row" },
      el("th", { scope: "row", role: "rowheader", class: input.role }, el("span", { class: "number" }, String(input.number)), brief(input)),
      ...cells[y]))));
  return el("div", { class: "block" },
    el("h3", {}, "Each with each"),
    scrolling(table),
    el("div", { class: "legend" }, el("span", {}, digits(low, places)), el("span", { class: "ramp", "aria-hidden": "true" }), el("span", {}, digits(high, places))),
    detail);
}

/** A box that scrolls sideways, and fades at the edges behind which there is more. */
function scrolling(content) {
  const fade = () => {
    box.classList.toggle("more-left", box.scrollLeft > 1);
    box.classList.toggle("more-right", box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
  };
  const box = el("div", { class: "scroll", onscroll: fade }, content);
  // It has no width before it is shown, and another one when the phone is turned.
  new ResizeObserver(fade).observe(box);
  return box;
}

/** Arrow keys, Home and End, within the row or, with Ctrl, the whole (WAI-ARIA grid pattern). */
function move(event, cells) {
  const y = cells.findIndex((row) => row.includes(event.target));
  if (y < 0) return;
  const x = cells[y].indexOf(event.target);
  const last = cells.length - 1;
  const target = {
    ArrowRight: [y, x + 1], ArrowLeft: [y, x - 1], ArrowDown: [y + 1, x], ArrowUp: [y - 1, x],
    Home: [event.ctrlKey ? 0 : y, 0], End: [event.ctrlKey ? last : y, last],
  }[event.key];
  const cell = target && cells[target[0]]?.[target[1]];
  if (!target) return;
  event.preventDefault();
  if (!cell) return;
  event.target.tabIndex = -1;
  cell.tabIndex = 0;
  cell.focus();
}

// The ranking -----------------------------------------------------------------------------------------------

function drawRanking(inputs, matrix) {
  const of = (role) => inputs.filter((input) => input.role === role);
  const [queries, documents] = [of("query"), of("document")];
  if (!queries.length || !documents.length) {
    return el("p", { class: "hint" }, `Make one input a ${queries.length ? "document" : "query"} to see documents ranked.`);
  }
  return el("div", { class: "block" }, el("h3", {}, "Queries against documents"), el("div", { class: "rankings" },
    ...queries.map((query) => {
      const row = matrix[query.number - 1];
      const order = ranked(row, documents.map(({ number }) => number - 1));
      return el("section", { class: "ranking", "aria-label": `Ranking for ${query.label}` },
        el("h4", { class: "query" }, el("span", { class: "number" }, String(query.number)), brief(query)),
        el("ol", {}, ...order.map((index) => rankedRow(inputs[index], row[index]))));
    })));
}

function rankedRow(document_, value) {
  const bar = el("span", { class: "bar", "aria-hidden": "true" });
  // From nothing in common to the same direction.
  bar.style.setProperty("--part", Math.max(0, value).toFixed(3));
  return el("li", {}, el("b", {}, digits(value, 3)), bar, el("span", { class: "number" }, String(document_.number)), brief(document_));
}
