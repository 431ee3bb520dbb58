// The characters of a tagged text: how sure the model is of each, and the labels it may have.

import { el } from "./dom.js";
import { glyph, percent, tokenName } from "./format.js";

// Lower ends of the levels: the probability of the likeliest label.
const STEPS = [0.99, 0.9, 0.7, 0.5];
const LEGEND = ["sure (99 % or more)", "90–99 %", "70–90 %", "50–70 %", "under 50 %"];

/** How a map of characters shows places; see CharacterMap. */
export const PLACES = { cell, card, sentence };

/** The legend of the tints; the underlines show the same without colour. */
export function placesLegend(applied) {
  const levels = LEGEND.map((words, i) => el("span", {}, el("span", { class: `ch s${i}` }, "a"), ` ${words}`));
  return [...levels, el("span", {}, el("span", { class: "ch tagged" }, "a"), applied ? " changed" : " in a tag")];
}

/** The tags with their characters. */
export function tagsIn({ text, tags }) {
  const characters = [...text];
  return tags.map((tag) => ({ ...tag, text: characters.slice(tag.start, tag.end).join("") }));
}

/** One entry for each character of the text; `from` has what stood there before, if that is known. */
export function placesOf({ text, tags }, places, from = null) {
  const characters = [...text];
  const tagged = new Map();
  for (const { start, end, label } of tags) {
    for (let i = start; i < end; i++) tagged.set(i, { label, begins: i === start });
  }
  return characters.map((token, i) => ({
    token,
    before: from?.[i] ?? null,
    label: tagged.get(i)?.label ?? null,
    begins: tagged.get(i)?.begins ?? false,
    labels: places[i].labels,
  }));
}

function level({ labels: [best] }) {
  const at = STEPS.findIndex((step) => best.probability >= step);
  return at < 0 ? STEPS.length : at;
}

function cell(place) {
  const classes = `ch s${level(place)}${place.label === null ? "" : " tagged"}`;
  const name = place.begins && place.before === null ? place.label : null;
  return el("span", { class: classes, "data-label": name }, glyph(place.token), place.token === "\n" ? "\n" : "");
}

/** A label in words: the empty one leaves the character as it is. */
function labelName(label) {
  return label === "" ? "unchanged" : label;
}

function heading({ token, before }) {
  return before === null || before === token ? tokenName(token) : `${tokenName(token)}, was ${tokenName(before)}`;
}

function card(place) {
  const rows = place.labels.map(({ label, probability }) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, labelName(label)),
      el("td", {}, el("i", { class: "bar", "--v": probability })),
      el("td", {}, percent(probability)),
    ),
  );
  const tag = place.label !== null && place.before === null ? el("p", {}, `In a tag: ${place.label}`) : null;
  return el("div", {}, el("strong", {}, heading(place)), tag, el("table", {}, el("caption", {}, "Likeliest labels"), el("tbody", {}, rows)));
}

/** The same in one sentence, for screen readers. */
function sentence(place) {
  const tag = place.label !== null && place.before === null ? `, in a tag: ${place.label}` : "";
  const labels = place.labels.map(({ label, probability }) => `${labelName(label)} ${percent(probability)}`);
  return `${heading(place)}${tag}. Likeliest labels: ${labels.join(", ")}`;
}
