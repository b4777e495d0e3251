// Small charts of the last two minutes, drawn as SVG paths. A sample is {at, ...}: seconds on the page's clock.

import { el, say, svg } from "./ui-dom.js";

export const CHART_S = 120;
const WIDTH = 240;
const HEIGHT = 60;
// The line of a greatest value is not cut in half by the edge.
const TOP = 2;
// More seconds than this between two samples are a gap: the tab was hidden, or the server away.
const GAP_S = 3.5;

/** 1, 2 or 5 times a power of ten, and not less than the value. */
export function niceMax(value, least) {
  const wanted = Math.max(value, least);
  const power = 10 ** Math.floor(Math.log10(wanted));
  return [1, 2, 5, 10].map((step) => step * power).find((one) => one >= wanted * 0.9999);
}

/** The pieces of a line: samples that follow each other and have a value. */
export function pieces(samples, valueOf) {
  const found = [];
  let last = null;
  for (const sample of samples) {
    const value = valueOf(sample);
    if (value === null || value === undefined) {
      last = null;
      continue;
    }
    if (last === null || sample.at - last > GAP_S) found.push([]);
    found.at(-1).push([sample.at, value]);
    last = sample.at;
  }
  return found;
}

const SCALES = {
  linear: {
    low: 0,
    place: (value, max) => value / max,
    max: (greatest, least) => niceMax(greatest, least),
    lines: () => [0.5, 1],
  },
  // From 1 up, a line a power of ten: a median and its tail are often a hundred times apart.
  log: {
    low: 1,
    place: (value, max) => Math.log10(Math.max(value, 1)) / Math.log10(max),
    max: (greatest, least) => 10 ** Math.ceil(Math.log10(Math.max(greatest, least))),
    lines: (max) => Array.from({ length: Math.round(Math.log10(max)) }, (_, step) => (step + 1) / Math.log10(max)),
  },
};

const coordinate = (number) => Math.round(number * 10) / 10;

/** One chart. `series` is a list of {valueOf, kind: "line" | "area" | "thin"}, drawn in that order. */
export class Chart {
  constructor({ series, least, format, label, scale = "linear" }) {
    this.series = series;
    this.least = least;
    this.format = format;
    this.scale = SCALES[scale];
    this.paths = series.map(({ kind }) => svg("path", { class: `series ${kind}` }));
    this.grid = svg("path", { class: "grid" });
    this.cursor = svg("line", { class: "cursor", y1: 0, y2: HEIGHT });
    this.svg = svg(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" },
      this.grid,
      svg("line", { class: "base", x1: 0, x2: WIDTH, y1: HEIGHT, y2: HEIGHT }),
      ...this.paths,
      this.cursor,
    );
    this.top = el("span", { class: "tick", "aria-hidden": "true" });
    const bottom = this.scale.low ? el("span", { class: "tick low", "aria-hidden": "true" }, format(this.scale.low)) : null;
    this.node = el("div", { class: "chart", role: "img", "aria-label": label }, this.svg, this.top, bottom ?? "");
  }

  /** Draw the samples; `now` is at the right edge, and `look` marks a moment in between. */
  draw(samples, now, look = null) {
    const inside = samples.filter(({ at }) => at >= now - CHART_S - 2);
    const greatest = Math.max(0, ...this.series.flatMap(({ valueOf }) => inside.map((one) => valueOf(one) ?? 0)));
    const max = this.scale.max(greatest, this.least);
    const x = (at) => coordinate(WIDTH * (1 - (now - at) / CHART_S));
    const y = (part) => coordinate(HEIGHT - (HEIGHT - TOP) * Math.min(part, 1));
    this.series.forEach(({ valueOf, kind }, index) => {
      const path = pieces(inside, valueOf).map((points) => {
        const line = points.map(([at, value]) => `${x(at)} ${y(this.scale.place(value, max))}`);
        // A single sample is a dot, which a line of no length with round ends is.
        if (line.length === 1) line.push(line[0]);
        return kind === "area" ? `M${line.join("L")}L${x(points.at(-1)[0])} ${HEIGHT}L${x(points[0][0])} ${HEIGHT}Z` : `M${line.join("L")}`;
      });
      this.paths[index].setAttribute("d", path.join(""));
    });
    this.cursor.setAttribute("x1", look === null ? -9 : x(look));
    this.cursor.setAttribute("x2", look === null ? -9 : x(look));
    this.grid.setAttribute("d", this.scale.lines(max).map((part) => `M0 ${y(part)}H${WIDTH}`).join(""));
    say(this.top, this.format(max));
  }
}
