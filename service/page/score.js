// Score: how surprising a text is, character by character, also compared with another text or model,
// or with the same model while it adapts.

import { modelDetail, postJson } from "./api.js";
import { CharacterMap, legend } from "./charmap.js";
import { barTable, lineChart, smoothed } from "./chart.js";
import { byId, el, table } from "./dom.js";
import { bits, bitsPerChar, count, measuredName, oneLine, plural, signed } from "./format.js";
import { hideSoon } from "./inspector.js";
import { surprisingSpans } from "./spans.js";
import { choose, chooseModel, isTyped, onExample, onSubmit } from "./task.js";

const ALTERNATIVES = 5;
const MOST_SPANS = 8;
const SPAN_CHARS = 60;

export function startScore(served) {
  // An encoder-decoder that fills blanks does nothing else; labels have a tab of their own.
  const models = served.filter(({ task, fills }) => task === "language_model" || (task === "encoder_decoder" && !fills));
  const names = models.map((model) => model.name);
  const tasks = new Map(models.map((model) => [model.name, model.task]));
  const adaptive = new Set(models.filter((model) => model.adapts).map((model) => model.name));
  chooseModel("score", names, "alice-lstm", "model");
  const isSourced = () => tasks.get(byId("score-model").value) === "encoder_decoder";
  let kind = null;

  /** Show the fields that apply to the chosen model and comparison. */
  function arrange() {
    byId("score-adapt-field").hidden = !adaptive.has(byId("score-model").value);
    const compare = compared();
    const sourced = isSourced();
    if (kind !== sourced) {
      kind = sourced;
      // The service's own default: a translation is complete, a text may go on.
      byId("score-eos").checked = sourced;
      const alike = names.filter((name) => (tasks.get(name) === "encoder_decoder") === sourced);
      choose(byId("score-model-b"), alike, alike.find((name) => name !== byId("score-model").value));
    }
    byId("score-source-field").hidden = !sourced;
    byId("score-context-field").hidden = sourced;
    byId("score-compare-field").hidden = compare === "adapt";
    byId("score-text-b-field").hidden = compare !== "text";
    byId("score-model-b-field").hidden = compare !== "model";
  }
  byId("score-form").addEventListener("change", arrange);
  arrange();
  let suggested = "";
  let suggestedSource = "";

  const example = onExample("score", (detail) => {
    const [text, source] = [byId("score-text"), byId("score-source")];
    if (isTyped(text, suggested) || isTyped(source, suggestedSource)) return false;
    const [first] = detail.examples;
    suggested = typeof first === "string" ? first : (first?.targets[0] ?? "");
    suggestedSource = first?.source ?? "";
    text.value = suggested;
    source.value = suggestedSource;
    arrange();
    return true;
  });
  byId("score-model").addEventListener("change", example);

  onSubmit("score", {
    busy: "Scoring…",
    work: async (signal) => {
      byId("score-results").replaceChildren();
      const scored = await ask(isSourced(), signal);
      const details = await Promise.all(scored.map((one) => modelDetail(one.model)));
      const views = scored.map((one, i) => view(one, details[i]));
      byId("score-results").replaceChildren(...page(views));
      return `Scored: ${scored.map(summary).join("; ")}.`;
    },
    stopped: () => "Stopped.",
  });
  return example;
}

/** What stands beside the score of the text: "" for nothing, else "text", "model" or "adapt". */
function compared() {
  const adapts = byId("score-adapt").checked && !byId("score-adapt-field").hidden;
  return adapts ? "adapt" : byId("score-compare").value;
}

/** Request one or two results; each gets a title, and what the answer says of its model. */
async function ask(sourced, signal) {
  const compare = compared();
  const model = byId("score-model").value;
  const texts = [byId("score-text").value];
  if (compare === "text") texts.push(byId("score-text-b").value);
  const body = {
    text: texts,
    tokens: true,
    top_logprobs: ALTERNATIVES,
    eos: byId("score-eos").checked,
    ...(sourced ? { source: byId("score-source").value } : { context: byId("score-context").value }),
  };
  const asked = [{ model }];
  if (compare === "model") asked.push({ model: byId("score-model-b").value });
  if (compare === "adapt") asked.push({ model, adapt: true });
  const answers = await Promise.all(
    asked.map(async (one) => {
      const percentile = !body.context && !one.adapt && Boolean((await modelDetail(one.model)).percentiles);
      return postJson("score", { ...body, ...one, percentile }, signal);
    }),
  );
  const results = answers.flatMap(({ results: scored, ...answer }) => scored.map((result) => ({ ...answer, ...result })));
  if (results.length === 1) return [{ ...results[0], title: "Text" }];
  const titles = { model: results.map((result) => result.model), adapt: ["As trained", "Adapting"] }[compare];
  return results.map((result, i) => ({ ...result, title: titles?.[i] ?? `Text ${"AB"[i]}` }));
}

function summary(one) {
  const rate = one.bits_per_char === null ? "" : `, ${bitsPerChar(one.bits_per_char)}`;
  const name = one.title === "Text" ? "" : `${one.title} `;
  return `${name}${bits(one.bits, 1)} over ${plural(one.chars, "character")}${rate}`;
}

function view(one, detail) {
  const node = el("p", { class: "charmap" });
  const surprisals = one.tokens.map((token) => token.surprisal_bits ?? 0);
  const shown = { ...one, detail, surprisals, pointers: [] };
  const onCursor = (i) => shown.pointers.forEach((pointAt) => pointAt(i));
  shown.map = new CharacterMap(node, `${one.title}: characters by surprisal`, onCursor);
  shown.map.append(one.tokens);
  return shown;
}

function page(views) {
  const cards = views.map((one) =>
    el(
      "div",
      { class: "card" },
      el("h2", {}, one.title, el("small", {}, one.title === one.model ? ` ${one.precision}` : ` ${one.model}, ${one.precision}`)),
      el("p", { class: "figures" }, figures(one)),
      standing(one),
      one.map.node,
      notes(one),
      el("div", { class: "legend" }, legend()),
    ),
  );
  const parts = [el("div", { class: views.length > 1 ? "two" : "one" }, cards)];
  if (views.length > 1) parts.push(el("div", { class: "card" }, comparison(views)));
  const adapts = views.at(-1).adapt && views.length > 1;
  if (adapts) parts.push(el("div", { class: "card" }, el("h2", {}, "Saved by adapting"), saved(views)));
  parts.push(el("div", { class: "card" }, el("h2", {}, "Curve of bits"), curve(views)));
  for (const one of views) parts.push(el("div", { class: "card" }, spans(one, views.length > 1)));
  const floors = baselines(views);
  if (floors) parts.push(el("div", { class: "card" }, floors));
  return parts;
}

function figures(one) {
  const items = [
    [bits(one.bits, 1), "in total"],
    [one.bits_per_char === null ? "–" : bitsPerChar(one.bits_per_char), "on average"],
    [one.perplexity_per_char === null ? "–" : one.perplexity_per_char.toPrecision(4), "perplexity per character"],
    [count(one.chars), one.chars === 1 ? "character" : "characters"],
  ];
  return items.map(([value, what]) => el("span", {}, el("strong", {}, value), ` ${what}`));
}

/** Where the text stands among held-out texts of its length, if that is known. */
function standing(one) {
  if (one.percentile === null) return null;
  const percent = (value) => `${Number(value.toFixed(1))} %`;
  const share = el("strong", {}, percent(one.percentile));
  const texts = `${count(one.percentile_texts)} held-out texts of this length`;
  const interval = `${percent(one.percentile_low)} to ${percent(one.percentile_high)}`;
  return el("p", { class: "note standing" }, "More surprising than ", share, ` of ${texts} (95 % interval: ${interval}).`);
}

function notes(one) {
  if (!one.unknown_chars) return null;
  const where = one.unknown.slice(0, 10).map((i) => count(i + 1)).join(", ");
  const more = one.unknown_chars > 10 ? ", …" : "";
  const what = plural(one.unknown_chars, "character is", "characters are");
  return el("p", { class: "note" }, `${what} outside the vocabulary, at ${where}${more}.`);
}

function comparison(views) {
  const [a, b] = views;
  const rows = [
    ["Bits", bits(a.bits, 1), bits(b.bits, 1), `${signed(b.bits - a.bits, 1)} bits`],
    ["Characters", count(a.chars), count(b.chars), signed(b.chars - a.chars, 0)],
  ];
  if (a.bits_per_char !== null && b.bits_per_char !== null) {
    const difference = `${signed(b.bits_per_char - a.bits_per_char, 3)} bits/char`;
    rows.splice(1, 0, ["On average", bitsPerChar(a.bits_per_char), bitsPerChar(b.bits_per_char), difference]);
  }
  const parts = [el("h2", {}, "Side by side"), table("Both results and their difference", ["Figure", a.title, b.title, "Difference"], rows)];
  if (b.adapt) {
    const [gain, verb] = [a.bits - b.bits, a.bits < b.bits ? "costs" : "saves"];
    const share = a.bits ? ` of ${bits(a.bits, 1)}` : "";
    parts.push(el("p", {}, `Adapting ${verb} ${bits(Math.abs(gain), 1)}${share}.`));
  } else if (a.chars === b.chars || a.model === b.model) {
    const likelier = a.bits <= b.bits ? a : b;
    const factor = Math.abs(a.bits - b.bits);
    parts.push(el("p", {}, `${likelier.title} is likelier by a factor of 2^${factor.toFixed(1)}.`));
  }
  return parts;
}

function curve(views) {
  const longest = Math.max(...views.map((one) => one.surprisals.length));
  const window = 2 * Math.max(2, Math.floor(longest / 80)) + 1;
  const points = (values) => values.map((value, i) => [i, value]);
  const series = views.flatMap((one, i) => [
    ...(views.length === 1 ? [{ points: points(one.surprisals), kind: "raw" }] : []),
    { points: points(smoothed(one.surprisals, window)), kind: "ab"[i] },
  ]);
  if (!longest) return el("p", {}, "There are no characters to draw.");
  const { node, pointAt } = lineChart({
    label: `Surprisal by position; ${views.map(summary).join("; ")}`,
    xLabel: "position, characters",
    yLabel: "bits",
    series,
    onPoint: (x) => {
      const i = Math.round(x);
      pointAt(i);
      views[0].map.peek(Math.min(i, views[0].surprisals.length - 1));
    },
    onLeave: hideSoon,
  });
  for (const one of views) one.pointers.push(pointAt);
  const keys = views.map((one, i) =>
    el("span", {}, el("i", { class: `key ${"ab"[i]}` }), ` ${one.title === "Text" ? "" : `${one.title}, `}mean of ${window} characters`),
  );
  if (views.length === 1) keys.unshift(el("span", {}, el("i", { class: "key raw" }), " each character"));
  return el("div", {}, node, el("p", { class: "legend" }, keys));
}

/** The bits that adapting has saved up to each character; below 0 it has cost some. */
function saved([plain, adapting]) {
  let total = 0;
  const points = plain.surprisals.map((value, i) => [i, (total += value - adapting.surprisals[i])]);
  if (!points.length) return el("p", {}, "There are no characters to draw.");
  const middle = points[Math.floor(points.length / 2)][1];
  const { node, pointAt } = lineChart({
    label: `Bits saved by adapting: ${signed(middle, 1)} up to the middle of the text, ${signed(total, 1)} up to its end`,
    xLabel: "position, characters",
    yLabel: "bits saved so far",
    series: [{ points, kind: "a" }],
    onPoint: (x) => adapting.map.peek(Math.round(x)),
    onLeave: hideSoon,
  });
  for (const one of [plain, adapting]) one.pointers.push(pointAt);
  return node;
}

function spans(one, named) {
  const entropies = one.tokens.map((token) => token.entropy_bits ?? 0);
  const found = surprisingSpans(one.surprisals, entropies, MOST_SPANS);
  const title = el("h2", {}, "Most surprising spans", named ? el("small", {}, ` ${one.title}`) : "");
  if (!found.length) return [title, el("p", {}, "No part of the text surprised the model more than expected.")];
  const rows = found.map(({ start, end, bits: total, excess }) => {
    const text = oneLine(one.tokens.slice(start, Math.min(end, start + SPAN_CHARS)).map((token) => token.token).join(""));
    const cut = end - start > SPAN_CHARS ? "…" : "";
    const go = () => {
      one.map.node.focus();
      one.map.moveTo(start);
    };
    return [
      el("button", { type: "button", class: "span", onclick: go, "aria-label": `Show “${text}” in the text` }, text, cut),
      count(start + 1),
      bits(total, 1),
      bits(excess, 1),
    ];
  });
  const head = ["Span", "At character", "Surprisal", "Above expectation"];
  const caption = `Spans${named ? ` of ${one.title}` : ""} by how far they exceed the entropy before them`;
  return [title, table(caption, head, rows)];
}

/** Every text compared with what the models and their baselines reach on held-out text. */
function baselines(views) {
  const parts = [];
  const seen = new Set();
  for (const { detail } of views) {
    if (detail.task !== "language_model" || seen.has(detail.name)) continue;
    seen.add(detail.name);
    const own = views
      .filter((one) => one.model === detail.name && one.bits_per_char !== null)
      .map((one) => ({ name: one.title === "Text" ? "This text" : one.title, value: one.bits_per_char, kind: "own" }));
    const held = detail.metrics.measurements
      .filter((row) => ["baseline", "part"].includes(row.kind) || row.name === detail.precision)
      .map((row) => ({ name: measuredName(row, detail.name), value: row.bits_per_char, kind: row.kind }));
    const rows = [...own, ...held].sort((a, b) => a.value - b.value);
    parts.push(
      barTable(
        `${detail.name}: this text compared with ${count(detail.metrics.chars)} held-out characters of its own data`,
        "bits/char",
        rows.map((row) => ({ ...row, text: row.value.toFixed(3) })),
      ),
    );
  }
  return parts.length ? [el("h2", {}, "Compared with the baselines"), ...parts] : null;
}
