// A text with each character tinted and underlined, for example by its surprisal, and a cursor for the details.

import { el } from "./dom.js";
import { glyph, surprisal } from "./format.js";
import { hide, hideSoon, show, tokenCard, tokenSentence } from "./inspector.js";

// Upper ends of the levels in bits, which are probabilities of 1/2, 1/4, 1/16, 1/64 and 1/256.
const STEPS = [1, 2, 4, 6, 8];
const LABELS = ["under 1 bit", "1–2", "2–4", "4–6", "6–8", "8 bits or more"];
const PAGE = 20;

export function level(bits) {
  const at = STEPS.findIndex((step) => bits < step);
  return at < 0 ? STEPS.length : at;
}

/** The legend of the tints; the underlines show the same without colour. */
export function legend() {
  return LABELS.map((label, i) => el("span", {}, el("span", { class: `ch s${i}` }, "a"), ` ${label}`));
}

// How a token is shown: as a cell of the map, as a card of details, and in a sentence.
const TOKENS = { cell: cellOf, card: tokenCard, sentence: tokenSentence };

export class CharacterMap {
  /** `node` becomes a control: a single tab stop, with arrow keys inside. */
  constructor(node, label, onCursor = () => {}, view = TOKENS) {
    this.node = node;
    this.view = view;
    this.tokens = [];
    this.cells = [];
    this.cursor = 0;
    this.pointed = null;
    this.onCursor = onCursor;
    // A slider over positions: screen readers speak its value and do not read its children.
    for (const [name, value] of Object.entries({ role: "slider", "aria-label": label, "aria-valuemin": 0 })) {
      node.setAttribute(name, value);
    }
    node.addEventListener("keydown", (event) => this.#key(event));
    node.addEventListener("focus", () => this.#look(this.cursor));
    node.addEventListener("blur", () => hide());
    node.addEventListener("pointermove", (event) => this.#point(event));
    node.addEventListener("click", (event) => {
      const i = this.#indexOf(event.target);
      if (i !== null) this.moveTo(i);
    });
    node.addEventListener("pointerleave", () => {
      this.pointed = null;
      hideSoon();
    });
    this.clear("");
  }

  /** Remove the text and start again after `before`, which has no tints. */
  clear(before) {
    this.tokens = [];
    this.cells = [];
    this.cursor = 0;
    this.node.replaceChildren(before ? el("span", { class: "before" }, before) : "");
    this.node.tabIndex = -1;
    this.#value();
  }

  append(tokens) {
    const cells = tokens.map((token) => this.view.cell(token));
    this.tokens.push(...tokens);
    this.cells.push(...cells);
    this.node.append(...cells);
    if (this.tokens.length) this.node.tabIndex = 0;
    if (tokens.some((token) => [...token.token].length > 1)) this.node.classList.add("symbols");
    this.#value();
  }

  /** Begin another text on a new line. */
  newLine() {
    this.node.append("\n");
  }

  /** Move the cursor to a character and show its details. */
  moveTo(i) {
    this.cells[this.cursor]?.classList.remove("at");
    this.cursor = i;
    this.cells[i].classList.add("at");
    this.#value();
    this.cells[i].scrollIntoView({ block: "nearest" });
    this.#look(i);
  }

  /** Show a character's details without moving the cursor. */
  peek(i) {
    if (this.cells[i]) show(this.cells[i], this.view.card(this.tokens[i]));
  }

  #look(i) {
    if (!this.cells[i]) return;
    this.peek(i);
    this.onCursor(i);
  }

  #point(event) {
    const i = this.#indexOf(event.target);
    if (i === null || i === this.pointed || event.pointerType === "touch") return;
    this.pointed = i;
    this.#look(i);
  }

  #indexOf(target) {
    const i = this.cells.indexOf(target.closest(".ch"));
    return i < 0 ? null : i;
  }

  #key(event) {
    if (!this.cells.length) return;
    const last = this.cells.length - 1;
    const moves = {
      ArrowRight: this.cursor + 1,
      ArrowLeft: this.cursor - 1,
      PageDown: this.cursor + PAGE,
      PageUp: this.cursor - PAGE,
      Home: 0,
      End: last,
    };
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      moves[event.key] = this.#onLine(event.key === "ArrowDown" ? 1 : -1);
    }
    if (moves[event.key] === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.moveTo(Math.max(0, Math.min(last, moves[event.key])));
  }

  /** The character on the next line below (or above) the cursor. */
  #onLine(direction) {
    const from = this.cells[this.cursor].getBoundingClientRect();
    let best = this.cursor;
    let line = null;
    for (let i = this.cursor + direction; this.cells[i]; i += direction) {
      const { left, top } = this.cells[i].getBoundingClientRect();
      if (Math.abs(top - from.top) < from.height / 2) continue;
      line ??= { top, distance: Infinity };
      if (Math.abs(top - line.top) > from.height / 2) break;
      const distance = Math.abs(left - from.left);
      if (distance < line.distance) [line.distance, best] = [distance, i];
    }
    return best;
  }

  #value() {
    const { node, tokens, cursor } = this;
    node.setAttribute("aria-valuemax", Math.max(0, tokens.length - 1));
    node.setAttribute("aria-valuenow", cursor);
    node.setAttribute("aria-valuetext", tokens.length ? this.view.sentence(tokens[cursor]) : "no text yet");
  }
}

function cellOf(token) {
  const bits = token.logprob === null ? null : surprisal(token.logprob);
  const classes = `ch ${bits === null ? "unknown" : `s${level(bits)}`}`;
  return el("span", { class: classes }, glyph(token.token), token.token === "\n" ? "\n" : "");
}
