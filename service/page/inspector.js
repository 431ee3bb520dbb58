// The page's single tooltip: follows the pointer or the focus, can be hovered, closes with Escape.

import { el } from "./dom.js";
import { bits, count, percent, surprisal, tokenName } from "./format.js";

const MARGIN = 8;
const LINGER_MS = 200; // time to move the pointer from a character to its tooltip
const box = document.getElementById("inspector");
let hiding = null;
let anchored = null;

box.addEventListener("pointerenter", () => clearTimeout(hiding));
box.addEventListener("pointerleave", () => hideSoon());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") hide();
});
window.addEventListener("scroll", () => place(), { passive: true, capture: true });

/** Show content beside an element, inside the window. */
export function show(anchor, content) {
  clearTimeout(hiding);
  anchored = anchor;
  box.replaceChildren(content);
  box.hidden = false;
  place();
}

function place() {
  if (box.hidden || !anchored.isConnected) return;
  const at = anchored.getClientRects()[0] ?? anchored.getBoundingClientRect();
  const { offsetWidth: width, offsetHeight: height } = box;
  const { clientWidth, clientHeight } = document.documentElement;
  const left = Math.max(MARGIN, Math.min(at.left + at.width / 2 - width / 2, clientWidth - width - MARGIN));
  const below = at.bottom + MARGIN;
  const top = below + height <= clientHeight ? below : Math.max(MARGIN, at.top - height - MARGIN);
  box.style.left = `${left}px`;
  box.style.top = `${top}px`;
}

export function hide() {
  clearTimeout(hiding);
  box.hidden = true;
}

export function hideSoon() {
  clearTimeout(hiding);
  hiding = setTimeout(hide, LINGER_MS);
}

/** The model's probabilities for a token, as a card. */
export function tokenCard(token) {
  const rows = [];
  if (token.logprob !== null) {
    rows.push(["Probability", percent(Math.exp(token.logprob))], ["Surprisal", bits(surprisal(token.logprob))]);
  }
  if (token.rank !== null) rows.push(["Rank", count(token.rank)]);
  if (token.entropy_bits !== null) rows.push(["Entropy before it", bits(token.entropy_bits)]);
  const facts = rows.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)));
  const others = token.top.map((other) => {
    const share = Math.exp(other.logprob);
    const here = other.token === token.token;
    return el(
      "tr",
      { class: here ? "here" : null },
      el("th", { scope: "row" }, tokenName(other.token), here ? " ◂" : ""),
      el("td", {}, el("i", { class: "bar", "--v": share })),
      el("td", {}, percent(share)),
    );
  });
  return el(
    "div",
    {},
    el("strong", {}, tokenName(token.token)),
    el("dl", {}, facts),
    others.length ? el("table", {}, el("caption", {}, "Likeliest here"), el("tbody", {}, others)) : null,
  );
}

/** The same in one sentence, for screen readers. */
export function tokenSentence(token) {
  const parts = [tokenName(token.token)];
  if (token.logprob !== null) {
    parts.push(percent(Math.exp(token.logprob)), bits(surprisal(token.logprob)));
  }
  if (token.rank !== null) parts.push(`rank ${count(token.rank)}`);
  if (token.entropy_bits !== null) parts.push(`entropy ${bits(token.entropy_bits)}`);
  const others = token.top.map((other) => `${tokenName(other.token)} ${percent(Math.exp(other.logprob))}`);
  return parts.join(", ") + (others.length ? `. Likeliest: ${others.join(", ")}` : "");
}
