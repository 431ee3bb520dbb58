// The attention of a translation as a Hinton diagram: the area of a square is the weight.

import { el } from "./dom.js";
import { glyph, percent, tokenName } from "./format.js";
import { hide, hideSoon, show } from "./inspector.js";

const SHOWN = 0.005; // smaller weights have no square

/** `weights[t][s]` is the attention of target token t to source token s. */
export function alignmentMatrix(targets, sources, weights) {
  const heads = sources.map((token, s) => el("th", { scope: "col", "aria-colindex": s + 2 }, glyph(token)));
  const cells = [];
  const rows = targets.map((token, t) => {
    const row = weights[t].map((weight) =>
      el(
        "td",
        { role: "gridcell", tabindex: "-1" },
        weight < SHOWN ? "" : el("i", { "--w": Math.sqrt(weight).toFixed(3) }),
        el("span", { class: "visually-hidden" }, percent(weight)),
      ),
    );
    cells.push(row);
    return el("tr", {}, el("th", { scope: "row" }, glyph(token)), row);
  });
  const grid = el(
    "table",
    { class: "matrix", role: "grid", "aria-label": "Attention: target tokens by source tokens" },
    el("thead", {}, el("tr", {}, el("td", { class: "corner" }, "↓ target · source →"), heads)),
    el("tbody", {}, rows),
  );
  const readout = el("p", { class: "readout" }, "Point at a square, or move with the arrow keys.");
  const at = [0, 0];
  if (cells.length) cells[0][0].tabIndex = 0;

  let marked = null;

  function mark(t, s) {
    if (marked === cells[t][s]) return;
    marked = cells[t][s];
    for (const node of grid.querySelectorAll(".on")) node.classList.remove("on");
    for (const row of cells) row[s].classList.add("on");
    for (const cell of cells[t]) cell.classList.add("on");
    heads[s].classList.add("on");
    rows[t].firstChild.classList.add("on");
    const text = `${tokenName(targets[t])} took ${percent(weights[t][s])} from ${tokenName(sources[s])}`;
    readout.textContent = `${text}.`;
    show(cells[t][s], el("span", {}, text));
  }

  function placeOf(target) {
    const cell = target.closest("td[role]");
    if (!cell) return null;
    return [cell.parentNode.sectionRowIndex, cell.cellIndex - 1];
  }

  function focus(t, s) {
    cells[at[0]][at[1]].tabIndex = -1;
    [at[0], at[1]] = [t, s];
    cells[t][s].tabIndex = 0;
    cells[t][s].focus();
  }

  grid.addEventListener("pointermove", (event) => {
    const place = placeOf(event.target);
    if (place) mark(...place);
  });
  grid.addEventListener("pointerleave", () => {
    marked = null;
    hideSoon();
  });
  grid.addEventListener("focusin", (event) => {
    const place = placeOf(event.target);
    if (place) mark(...place);
  });
  grid.addEventListener("focusout", () => {
    marked = null;
    hide();
  });
  grid.addEventListener("click", (event) => {
    const place = placeOf(event.target);
    if (place) focus(...place);
  });
  grid.addEventListener("keydown", (event) => {
    const [t, s] = at;
    const to = {
      ArrowDown: [t + 1, s],
      ArrowUp: [t - 1, s],
      ArrowRight: [t, s + 1],
      ArrowLeft: [t, s - 1],
      Home: [t, 0],
      End: [t, sources.length - 1],
    }[event.key];
    if (!to || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    if (cells[to[0]]?.[to[1]]) focus(...to);
  });
  const scroll = el("div", { class: "scroll" }, grid);
  return el("div", {}, scroll, readout);
}
