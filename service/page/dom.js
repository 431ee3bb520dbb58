// Elements built from data. Text is added as text nodes only: nothing here parses HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("--")) node.style.setProperty(name, value);
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** An HTML element; `--x` properties become CSS custom properties, `onx` properties listeners. */
export function el(tag, properties = {}, ...children) {
  return fill(document.createElement(tag), properties, children);
}

/** The same for SVG. */
export function svg(tag, properties = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

export function byId(id) {
  return document.getElementById(id);
}

/** A table in a region that scrolls sideways if needed, also by keyboard. */
export function table(caption, head, rows, properties = {}) {
  const header = el("tr", {}, head.map((cell) => el("th", { scope: "col" }, cell)));
  const body = rows.map((cells) =>
    el("tr", {}, cells.map((cell, i) => (i ? el("td", { "data-column": head[i] }, cell) : el("th", { scope: "row" }, cell)))),
  );
  const whole = el("table", properties, el("caption", {}, caption), el("thead", {}, header), el("tbody", {}, body));
  return el("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": caption }, whole);
}

/** A list of names and values; pairs without a value are left out. */
export function facts(pairs) {
  return el(
    "dl",
    { class: "facts" },
    pairs.filter(([, value]) => value).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
  );
}
