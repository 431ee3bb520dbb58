// Line charts in SVG, drawn at their actual size, and bar charts as tables.

import { el, svg } from "./dom.js";

const HEIGHT = 210;
const EDGE = { left: 46, right: 14, top: 24, bottom: 34 };
const TICKS = 5;

/**
 * A line chart that redraws itself when its size changes.
 *
 * `series`: [{name, points: [[x, y], …], kind}]; the kinds "raw", "a", "b" and "dots" are in the style sheet.
 * `marks`: x values of vertical lines. `onPoint(x)` is called as the pointer moves.
 */
export function lineChart({ label, xLabel, yLabel, series, marks = [], fromZero = true, onPoint = null, onLeave = null }) {
  const node = el("div", { class: "chart" });
  let scale = null;
  const observer = new ResizeObserver(() => {
    const width = node.clientWidth;
    if (width) scale = draw(node, width, { label, xLabel, yLabel, series, marks, fromZero });
  });
  observer.observe(node);
  if (onPoint) {
    node.addEventListener("pointermove", (event) => {
      if (scale) onPoint(scale.x.back(event.clientX - node.getBoundingClientRect().left));
    });
    node.addEventListener("pointerleave", onLeave);
  }
  /** Show a vertical line at x. */
  const pointAt = (x) => {
    const line = node.querySelector(".cursor");
    if (!line) return;
    line.setAttribute("x1", scale.x.to(x));
    line.setAttribute("x2", scale.x.to(x));
    line.classList.remove("off");
  };
  return { node, pointAt };
}

function draw(node, width, { label, xLabel, yLabel, series, marks, fromZero }) {
  const xs = series.flatMap((one) => one.points.map(([x]) => x));
  const ys = series.flatMap((one) => one.points.map(([, y]) => y));
  const x = axis(xs, EDGE.left, width - EDGE.right);
  const y = axis(fromZero ? [0, ...ys] : ys, HEIGHT - EDGE.bottom, EDGE.top);
  const parts = [];
  for (const tick of y.ticks) {
    parts.push(
      svg("line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: y.to(tick), y2: y.to(tick) }),
      svg("text", { x: EDGE.left - 7, y: y.to(tick) + 4, "text-anchor": "end" }, compact(tick)),
    );
  }
  for (const tick of x.ticks) {
    parts.push(svg("text", { x: x.to(tick), y: HEIGHT - EDGE.bottom + 16, "text-anchor": "middle" }, compact(tick)));
  }
  parts.push(
    svg("text", { x: width - EDGE.right, y: HEIGHT - 4, "text-anchor": "end" }, xLabel),
    svg("text", { x: 4, y: 12 }, yLabel),
  );
  for (const mark of marks) {
    parts.push(svg("line", { class: "mark", x1: x.to(mark), x2: x.to(mark), y1: EDGE.top, y2: HEIGHT - EDGE.bottom }));
  }
  for (const { points, kind } of series) {
    const places = thinned(points, width).map(([px, py]) => [x.to(px), y.to(py)]);
    const path = places.map(([px, py], i) => `${i ? "L" : "M"}${px.toFixed(1)} ${py.toFixed(1)}`).join("");
    parts.push(svg("path", { class: `line ${kind}`, d: path }));
    if (kind === "dots") parts.push(...places.map(([cx, cy]) => svg("circle", { cx, cy, r: 3 })));
  }
  parts.push(svg("line", { class: "cursor off", x1: 0, x2: 0, y1: EDGE.top, y2: HEIGHT - EDGE.bottom }));
  node.replaceChildren(
    svg("svg", { role: "img", "aria-label": label, viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT }, parts),
  );
  return { x, y };
}

/** A scale from values to pixels and back, with ticks at round values. */
function axis(values, from, to) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (low === high) high = low + 1;
  const step = roundStep((high - low) / TICKS);
  const ticks = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) ticks.push(i * step);
  const ratio = (to - from) / (high - low);
  return {
    ticks,
    to: (value) => from + (value - low) * ratio,
    back: (place) => Math.max(low, Math.min(high, low + (place - from) / ratio)),
  };
}

function roundStep(rough) {
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= rough);
}

function compact(value) {
  if (value === 0) return "0";
  if (Math.abs(value) >= 10_000) return `${Number((value / 1000).toPrecision(3))}k`;
  return String(Number(value.toPrecision(3)));
}

/** The points reduced to at most a peak and a trough per pixel. */
function thinned(points, width) {
  const size = Math.ceil(points.length / width);
  if (size < 2) return points;
  const kept = [];
  for (let i = 0; i < points.length; i += size) {
    const bucket = points.slice(i, i + size);
    const low = bucket.reduce((a, b) => (b[1] < a[1] ? b : a));
    const high = bucket.reduce((a, b) => (b[1] > a[1] ? b : a));
    kept.push(...(low[0] < high[0] ? [low, high] : [high, low]));
  }
  return kept;
}

/** Each value replaced by the mean of the `window` values around it. */
export function smoothed(values, window) {
  const sums = [0];
  for (const value of values) sums.push(sums.at(-1) + value);
  const half = Math.floor(window / 2);
  return values.map((_, i) => {
    const from = Math.max(0, i - half);
    const to = Math.min(values.length, i + half + 1);
    return (sums[to] - sums[from]) / (to - from);
  });
}

/** A table of bars with their numbers; `rows`: [{name, value, text, kind}]. */
export function barTable(caption, unit, rows) {
  const most = Math.max(...rows.map((row) => row.value));
  const body = rows.map(({ name, value, text, kind }) =>
    el(
      "tr",
      { class: kind },
      el("th", { scope: "row" }, name),
      el("td", { class: "number" }, text),
      el("td", { class: "track", "aria-hidden": "true" }, el("i", { class: "bar", "--v": value / most })),
    ),
  );
  const head = el(
    "tr",
    {},
    el("th", { scope: "col" }, "Text or baseline"),
    el("th", { scope: "col", class: "number" }, unit),
    el("td", { "aria-hidden": "true" }),
  );
  return el("table", { class: "bars" }, el("caption", {}, caption), el("thead", {}, head), el("tbody", {}, body));
}
