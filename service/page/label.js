// Label: the labels of a text with their probabilities, or the text with a label for each character,
// as you type.

import { modelDetail, postJson } from "./api.js";
import { CharacterMap } from "./charmap.js";
import { byId, el, table } from "./dom.js";
import { count, fixed, oneLine, percent, plural } from "./format.js";
import { PLACES, placesLegend, placesOf, tagsIn } from "./places.js";
import { chooseModel, isTyped, numberIn, onExample, onSubmit } from "./task.js";

const PAUSE_MS = 300; // after the last key, before the text is labelled
const ALTERNATIVES = 5; // labels of a character
const MOST_ROWS = 200; // of tags in the table

export function startLabel(models) {
  const names = models.filter((model) => model.task === "labeler").map((model) => model.name);
  chooseModel("label", names, "language-id", "classifier and no tagger");
  const [form, text] = [byId("label-form"), byId("label-text")];
  let suggested = "";
  let typing = null;

  const example = onExample("label", (detail) => {
    arrange(detail);
    if (isTyped(text, suggested)) return text.value !== "";
    suggested = detail.examples[0]?.text ?? "";
    text.value = suggested;
    return suggested !== "";
  });
  byId("label-model").addEventListener("change", example);
  form.addEventListener("input", ({ target }) => {
    if (target === byId("label-model") || !names.length) return;
    clearTimeout(typing);
    typing = setTimeout(() => form.requestSubmit(), PAUSE_MS);
  });
  form.addEventListener("submit", () => clearTimeout(typing));

  onSubmit("label", {
    busy: "Labelling…",
    work: async (signal) => {
      try {
        return await labelled(signal);
      } catch (error) {
        byId("label-results").replaceChildren(); // the labels of an earlier text
        throw error;
      }
    },
    stopped: () => "Stopped.",
  });
  return example;
}

/** Show the options that apply to the model. */
function arrange({ labels }) {
  const isOfText = labels.scope === "text";
  byId("label-top-field").hidden = byId("label-least-field").hidden = !isOfText;
  byId("label-count-field").hidden = isOfText;
}

async function labelled(signal) {
  const model = byId("label-model").value;
  const detail = await modelDetail(model);
  const body = { model, text: byId("label-text").value };
  const ask = detail.labels.scope === "text" ? classified : tagged;
  const { nodes, told } = await ask(detail, body, signal);
  byId("label-results").replaceChildren(...nodes);
  return told;
}

function missing({ unknown_chars: unknown }) {
  return unknown ? ` ${plural(unknown, "character is", "characters are")} outside the vocabulary.` : "";
}

// --- labels of a text ----------------------------------------------------------------------------

async function classified(detail, body, signal) {
  const least = numberIn("label-least");
  const options = {
    top: numberIn("label-top"),
    ...(least === null ? {} : { min_probability: least / 100 }),
    ...(detail.model.direction === "forward" ? { steps: true } : {}),
  };
  const { results, ...answer } = await postJson("classify", { ...body, ...options }, signal);
  const [{ labels, steps }] = results;
  const rows = labels.map(({ label, probability }) => [el("span", { class: "said" }, label || "(none)"), bar(probability)]);
  const note = detail.labels.several ? SEVERAL : ONE(detail.labels.names.length - labels.length);
  const list = labels.length
    ? [table("Labels, likeliest first", ["Label", "Probability"], rows, { class: "labels" }), el("p", { class: "note" }, note)]
    : [el("p", {}, "No label is that likely.")];
  const [best] = labels;
  const told = best ? `${best.label || "(none)"}, ${percent(best.probability)}.` : "No label is that likely.";
  const title = el("h2", {}, "Labels", el("small", {}, ` ${answer.model}, ${answer.precision}`));
  return { nodes: [el("div", { class: "card" }, title, ...list, decided(steps))], told: told + missing(results[0]) };
}

const SEVERAL = "A text may have several of these labels, or none: each has a probability of its own.";
const ONE = (others) => `A text has one of these labels: the probabilities${others ? `, with ${plural(others, "label")} left out here,` : ""} add up to 100 %.`;

/** From which character on the likeliest label stays the same. */
function decided(steps) {
  if (!steps?.length) return null;
  const last = steps.at(-1);
  let i = steps.length - 1;
  while (i > 0 && steps[i - 1].label === last.label) i -= 1;
  const { chars, probability } = steps[i];
  return el(
    "p",
    { class: "note decided" },
    `“${last.label}” is the likeliest label from ${plural(chars, "character")} on (then ${percent(probability)}) to the end of the text.`,
  );
}

function bar(share) {
  return el("span", {}, percent(share), el("i", { class: "bar", "--v": share, "aria-hidden": "true" }));
}

// --- labels of characters ------------------------------------------------------------------------

async function tagged(detail, body, signal) {
  const options = { n: numberIn("label-count") ?? 1, places: true, top: Math.min(ALTERNATIVES, detail.labels.names.length) };
  const { results, ...answer } = await postJson("tag", { ...body, ...options }, signal);
  const [result] = results;
  const { applied } = detail.labels;
  // What stood at each place, if normalization has left the text as it was typed.
  const typed = [...body.text];
  const before = applied && typed.length === [...result.text].length ? typed : null;
  const [shown, rest] = [el("div", { class: "one" }), el("div")];
  const taggings = [result, ...result.alternatives];
  const showOne = (tagging) => {
    const map = mapOf(tagging, result.places, applied, before);
    shown.replaceChildren(map.node, el("p", { class: "visually-hidden" }, applied ? `Restored text: ${tagging.text}` : ""));
    rest.replaceChildren(tagTable(tagging, map, applied, before));
  };
  showOne(result);
  const title = el("h2", {}, applied ? "Restored text" : "Tagged text", el("small", {}, ` ${answer.model}, ${answer.precision}`));
  const nodes = [
    el("div", { class: "card" }, title, shown, el("div", { class: "legend" }, placesLegend(applied))),
    ...(taggings.length > 1 ? [el("div", { class: "card" }, choices(taggings, applied, showOne))] : []),
    el("div", { class: "card" }, el("h2", {}, applied ? "Changes" : "Tags"), rest),
  ];
  return { nodes, told: summary(result, applied) + missing(result) };
}

function summary({ tags, places }, applied) {
  const wrong = places.reduce((sum, { labels: [best] }) => sum + 1 - best.probability, 0);
  const expected = `${Number(wrong.toPrecision(2))} of ${plural(places.length, "character")}`;
  const changed = tags.reduce((sum, { start, end }) => sum + end - start, 0);
  const what = applied ? `${plural(changed, "character")} changed` : plural(tags.length, "tag");
  return `${what}. The model expects ${expected} to be wrong.`;
}

function mapOf(tagging, places, applied, before) {
  const what = applied ? "Restored text" : "Tagged text";
  const map = new CharacterMap(el("p", { class: "charmap" }), `${what}: characters by how sure the model is`, () => {}, PLACES);
  map.append(placesOf(tagging, places, before));
  return map;
}

function tagTable(tagging, map, applied, before) {
  const tags = tagsIn(tagging);
  if (!tags.length) return el("p", {}, applied ? "No character is changed." : "No character has a tag.");
  const rows = tags.slice(0, MOST_ROWS).map(({ text, start, end, label, probability }) => {
    const go = () => {
      map.node.focus();
      map.moveTo(start);
    };
    const shown = oneLine(before?.slice(start, end).join("") ?? text);
    return [
      el("button", { type: "button", class: "span", onclick: go, "aria-label": `Show “${shown}” in the text` }, shown),
      el("span", { class: "said" }, applied ? oneLine(text) : label),
      count(start + 1),
      bar(probability),
    ];
  });
  const head = [applied ? "Character" : "Tag", applied ? "Becomes" : "Label", "At character", "Probability"];
  const caption = applied ? "Changed characters" : "Tags in order";
  const cut = tags.length > MOST_ROWS ? `; the first ${count(MOST_ROWS)} of ${count(tags.length)}` : "";
  return table(caption + cut, head, rows, { class: "labels" });
}

/** Several taggings, of which one is shown. */
function choices(taggings, applied, showOne) {
  const rows = taggings.map((tagging, i) => {
    const input = el("input", { type: "radio", name: "tagging", value: i, onchange: () => showOne(tagging), checked: i === 0 });
    const words = applied ? oneLine(tagging.text) : tagsIn(tagging).map(({ text, label }) => `${oneLine(text)} (${label})`).join(", ");
    const facts = `${percent(Math.exp(tagging.logprob))}, log-probability ${fixed(tagging.logprob, 3)} nats`;
    return el("label", { class: "hypothesis" }, input, el("span", { class: "said" }, words || "(no tag)"), el("small", {}, facts));
  });
  return el("fieldset", {}, el("legend", {}, el("h2", {}, "Likeliest taggings of the whole text")), rows);
}
