// Fill: texts for the blanks of a text, and how well each suits the left side and the right side.

import { postJson } from "./api.js";
import { byId, el, table } from "./dom.js";
import { oneLine, percent, plural } from "./format.js";
import { choose, chooseModel, isTyped, numberIn, onExample, onSubmit } from "./task.js";

const BLANK = "___";
const ITSELF = "the model itself";
const WORD = /(?<= )\p{Ll}{3,9}(?= )/gu;

export function startFill(models) {
  const names = models.filter((model) => model.fills).map((model) => model.name);
  const deciders = models.filter((model) => model.task === "language_model").map((model) => model.name);
  chooseModel("fill", names, "alice-lstm", "model that fills blanks");
  choose(byId("fill-rescore"), [ITSELF, ...deciders], ITSELF);
  let suggested = "";

  /** Show the fields that apply to the chosen model, and to blanks without candidates. */
  function arrange() {
    byId("fill-rescore-field").hidden = deciders.includes(byId("fill-model").value) || !deciders.length;
    byId("fill-open").hidden = candidates().length > 0;
  }
  byId("fill-form").addEventListener("input", arrange);
  arrange();

  const example = onExample("fill", ({ examples }) => {
    const text = byId("fill-text");
    arrange();
    if (isTyped(text, suggested)) return false;
    suggested = typeof examples[0] === "string" ? withBlank(examples[0]) : "";
    text.value = suggested;
    return suggested !== "";
  });
  byId("fill-model").addEventListener("change", example);

  onSubmit("fill", {
    busy: "Filling…",
    work: async (signal) => {
      byId("fill-results").replaceChildren();
      const body = request();
      const { results, ...answer } = await postJson("infill", body, signal);
      byId("fill-results").replaceChildren(...page(results[0], body.text.split(BLANK), answer));
      return told(results[0]);
    },
    stopped: () => "Stopped.",
  });
  return example;
}

/** The longest line of a text without a word from its middle; of a single word, its beginning. */
function withBlank(text) {
  const lines = text.split("\n").map((line) => line.trim());
  const line = lines.reduce((longest, each) => (each.length > longest.length ? each : longest));
  const word = [...line.matchAll(WORD)].find(({ index }) => index >= line.length / 3);
  if (word) return line.slice(0, word.index) + BLANK + line.slice(word.index + word[0].length);
  return line.slice(0, Math.ceil(line.length / 2)) + BLANK;
}

function candidates() {
  return byId("fill-candidates").value.split("\n").filter((line) => line !== "");
}

function request() {
  const listed = candidates();
  const body = {
    model: byId("fill-model").value,
    text: byId("fill-text").value,
    num_fills: numberIn("fill-count"),
    eos: byId("fill-eos").checked,
  };
  if (listed.length) return { ...body, candidates: listed };
  const rescore = byId("fill-rescore-field").hidden ? ITSELF : byId("fill-rescore").value;
  return {
    ...body,
    length: numberIn("fill-length"),
    max_tokens: numberIn("fill-max-tokens"),
    pattern: byId("fill-pattern").value || null,
    seed: numberIn("fill-seed"),
    rescore: rescore === ITSELF ? null : rescore,
  };
}

function told({ fills, compared, unknown_chars: unknown }) {
  const missing = unknown ? ` ${plural(unknown, "character is", "characters are")} outside the vocabulary.` : "";
  if (!fills.length) return `Nothing fits.${missing}`;
  const [best] = fills;
  return `${plural(compared, "fill")} compared; the best is “${shownTexts(best).join(" · ")}”, with ${percent(best.posterior)} of their probability.${missing}`;
}

/** A fill's texts, each on one line; a text may be empty. */
function shownTexts({ texts }) {
  return texts.map((text) => oneLine(text) || "(nothing)");
}

/** A fill with the spaces at the ends of its texts drawn. They stay spaces, to copy and to hear. */
function drawn(fill) {
  return shownTexts(fill).flatMap((text, i) => {
    const parts = text.split(/(^\s+|\s+$)/u).map((part, at) => (at % 2 ? [...part].map(space) : [part]));
    return [i ? " · " : "", ...parts.flat()];
  });
}

function space(character) {
  return el("span", { class: "space" }, character);
}

function page({ fills }, pieces, { model, rescore }) {
  const shown = el("p", { class: "filled" });
  const showOne = ({ texts }) =>
    shown.replaceChildren(...pieces.flatMap((piece, i) => (i < texts.length ? [piece, el("mark", {}, texts[i])] : [piece])));
  if (!fills.length) return [];
  showOne(fills[0]);
  const columns = columnsOf(fills);
  const rows = fills.map((fill, i) => {
    const input = el("input", { type: "radio", name: "fill", value: i, onchange: () => showOne(fill), checked: i === 0 });
    return [el("label", {}, input, el("span", { class: "said" }, drawn(fill))), ...columns.map(({ shares }) => bar(shares[i]))];
  });
  const decided = rescore ? `proposed by ${model}, ranked by ${rescore}` : model;
  const head = ["Fill", ...columns.map(({ name }) => name)];
  return [
    el("div", { class: "card" }, el("h2", {}, "Text"), shown),
    el(
      "div",
      { class: "card" },
      el("h2", {}, "Fills", el("small", {}, ` ${decided}`)),
      table("Share of each fill; select one to see it in the text", head, rows, { class: "fills" }),
      el("p", { class: "note" }, columns.length > 1 ? SIDES : BOTH),
    ),
  ];
}

const SIDES =
  "Left alone: how likely each fill is after the text before it. Right alone: how likely the text that follows is after each fill. These " +
  "are shares among the fills shown. Both together: the share among all fills that were compared.";
const BOTH = "This model reads both sides at once, so there is no share for either side alone.";

/** The columns of bars, each with a share for every fill. */
function columnsOf(fills) {
  const both = { name: "Both together", shares: fills.map(({ posterior }) => posterior) };
  if (fills.some((fill) => fill.suffix_logprob === null)) return [both];
  return [
    { name: "Left alone", shares: normalized(fills.map(({ logprob }) => logprob)) },
    { name: "Right alone", shares: normalized(fills.map((fill) => fill.suffix_logprob)) },
    both,
  ];
}

/** Probabilities that add up to 1, from their logs. */
function normalized(logs) {
  const most = Math.max(...logs);
  const weights = logs.map((log) => Math.exp(log - most));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return weights.map((weight) => weight / total);
}

function bar(share) {
  return el("span", {}, percent(share), el("i", { class: "bar", "--v": share, "aria-hidden": "true" }));
}
