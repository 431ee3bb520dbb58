// Models: what is served, how it compares with its baselines, and how it was trained.

import { modelDetail } from "./api.js";
import { lineChart } from "./chart.js";
import { byId, el, facts, table } from "./dom.js";
import { count, plural } from "./format.js";
import { showProblem } from "./task.js";

const METRICS = {
  loss: ["Loss", (x, of) => `${x.toPrecision(4)} nats/${of}`],
  bits_per_char: ["Bits/char", (x) => x.toFixed(4)],
  perplexity: ["Perplexity", (x) => x.toPrecision(4)],
  exact_match: ["Exact", (x) => share(x)],
  word_error_rate: ["Word errors", (x) => share(x)],
  symbol_error_rate: ["Symbol errors", (x) => share(x)],
  bleu: ["BLEU", (x) => x.toFixed(1)],
  chrf: ["chrF", (x) => x.toFixed(1)],
  accuracy: ["Accuracy", (x) => share(x)],
  macro_f1: ["Macro F1", (x) => share(x)],
  micro_f1: ["Micro F1", (x) => share(x)],
  span_f1: ["Tag F1", (x) => share(x)],
  ece: ["Calibration error", (x) => share(x)],
  character_error_rate: ["Character errors", (x) => share(x)],
  base_errors: ["Other letters", (x) => count(x)],
};
// The table shows the first of these that a model was measured in; true: more is better.
const HEADLINES = [["bits_per_char", false], ["bleu", true], ["symbol_error_rate", false], ["exact_match", true]];
const LABEL_HEADLINES = [["word_error_rate", false], ["span_f1", true], ["macro_f1", true], ["accuracy", true]];

// What the name of a measurement does not say.
const NOTES = { adapting: ", adapting", part: " (part)", baseline: " (baseline)" };

const MOST_DETAILS = 40; // models whose details the table shows
const MOST_NAMES = 100; // that are listed at once
const MOST_LABELS = 60; // that are listed

const share = (x) => `${(100 * x).toFixed(1)} %`;

export async function showModels(models) {
  if (models.length > MOST_DETAILS) {
    showNames(models);
    return;
  }
  const details = await Promise.all(models.map((model) => modelDetail(model.name)));
  const place = el("div", { id: "model-detail" });
  const rows = details.map((detail) => {
    const { measured, floor } = headline(detail);
    const open = el("button", { type: "button", class: "link", "aria-controls": "model-detail" }, detail.name);
    open.addEventListener("click", () => {
      place.replaceChildren(about(detail));
      place.firstChild.focus();
    });
    return [open, detail.description, kind(detail), parameters(detail), measured, floor, detail.data.name, detail.license];
  });
  const head = ["Model", "What it is", "Kind", "Parameters", "Held out", "Best baseline", "Trained on", "Licence"];
  byId("models-results").replaceChildren(
    el("div", { class: "card" }, el("h2", {}, "Models"), table(`${plural(details.length, "model")} served; select a name for all details`, head, rows)),
    place,
  );
}

/** Many models: the names with a search field, since the details of all would open every model. */
function showNames(models) {
  const place = el("div", { id: "model-detail" });
  const listed = el("div", {});
  const wanted = el("input", { id: "model-search", type: "search", autocomplete: "off" });
  const show = () => {
    const found = models.filter(({ name }) => name.includes(wanted.value.trim()));
    const rows = found.slice(0, MOST_NAMES).map((model) => {
      const open = el("button", { type: "button", class: "link", "aria-controls": "model-detail" }, model.name);
      open.addEventListener("click", async () => {
        try {
          place.replaceChildren(about(await modelDetail(model.name)));
          place.firstChild.focus();
        } catch (error) {
          showProblem("models", error);
        }
      });
      return [open, model.description, model.task.replace("_", " "), model.precision];
    });
    const title = `${plural(found.length, "model")} found; ${Math.min(found.length, MOST_NAMES)} listed`;
    listed.replaceChildren(table(title, ["Model", "What it is", "Kind", "Arithmetic"], rows));
  };
  wanted.addEventListener("input", show);
  show();
  byId("models-results").replaceChildren(
    el("div", { class: "card" }, el("h2", {}, "Models"), el("label", { for: "model-search" }, "Name contains"), wanted, listed),
    place,
  );
}

/** The models that are mixed, or the only one. */
function shapes(detail) {
  return detail.parts?.length ? detail.parts.map((part) => part.model) : [detail.model];
}

function parameters(detail) {
  return shapes(detail)
    .map((model) => (model.order ? plural(model.parameters, "n-gram") : count(model.parameters)))
    .join(" + ");
}

function kind(detail) {
  const { model } = detail;
  if (detail.task === "language_model") {
    const names = shapes(detail).map(({ cell, order }) => (order ? `${order}-gram` : cell.toUpperCase()));
    return `${names.join(" + ")} language model, ${detail.precision}${detail.adapts ? ", can adapt" : ""}`;
  }
  if (detail.labels) {
    const { scope, applied, names } = detail.labels;
    const what = scope === "text" ? "classifier" : applied ? "restoring tagger" : "tagger";
    return `${model.cell.toUpperCase()} ${what}, ${plural(names.length, "label")}, ${detail.precision}`;
  }
  return `${model.cell.toUpperCase()} encoder-decoder, ${detail.source_lang} → ${detail.target_lang}, ${detail.precision}`;
}

/** The held-out sets, as rows with the same `values` for all kinds of model. */
function measuredSets(detail) {
  const sets = Array.isArray(detail.metrics) ? detail.metrics : [detail.metrics];
  return sets.map((set) => ({
    title: `${set.split}: ${sizeOf(set)}`,
    rows: set.measurements.map(({ name, kind: of, values, ...flat }) => ({ name, kind: of, values: values ?? flat })),
  }));
}

function sizeOf({ chars, texts, labels, sources, pairs }) {
  if (chars) return plural(chars, "character");
  return texts ? `${plural(texts, "text")}, ${plural(labels, "label")}` : `${plural(sources, "source")}, ${plural(pairs, "pair")}`;
}

function headline(detail) {
  const rows = measuredSets(detail)[0]?.rows ?? [];
  const headlines = detail.labels ? LABEL_HEADLINES : HEADLINES;
  const found = headlines.find(([name]) => rows.some((row) => name in row.values));
  if (!found) return { measured: "none", floor: "none" };
  const [key, more] = found;
  const [unit, shown] = METRICS[key];
  const best = (of) => {
    const values = rows.filter((row) => row.kind === of && key in row.values);
    values.sort((a, b) => (a.values[key] - b.values[key]) * (more ? -1 : 1));
    // Of a model in several precisions, the one that is served.
    return values.find((row) => row.name === detail.precision) ?? values[0];
  };
  const told = (row) => (row ? `${unit} ${shown(row.values[key])} (${row.name})` : "none");
  const adapting = best("adapting");
  const gain = adapting ? `, adapting ${shown(adapting.values[key])}` : "";
  return { measured: told(best("model")) + gain, floor: told(best("baseline")) };
}

function about(detail) {
  const { data, training } = detail;
  const sizes = sizesOf(data);
  const tables = measuredSets(detail).map(({ title, rows }) => {
    const keys = Object.keys(METRICS).filter((key) => rows.some((row) => key in row.values));
    const cells = rows.map((row) => [
      row.name + (NOTES[row.kind] ?? ""),
      ...keys.map((key) => (key in row.values ? METRICS[key][1](row.values[key], detail.labels ? "label" : "token") : "–")),
    ]);
    return table(`Measured on ${title}`, ["Measured", ...keys.map((key) => METRICS[key][0])], cells);
  });
  return el(
    "article",
    { class: "card", tabindex: "-1", "aria-label": detail.name },
    el("h2", {}, detail.name),
    el("p", {}, detail.description),
    facts([
      ["Shape", !detail.parts?.length && shapeOf(detail.model)],
      ["Precision served", `${detail.precision} (in the bundle: ${detail.precisions.join(", ")})`],
      ["Labels", detail.labels && labelsOf(detail)],
      ["Temperature", detail.labels && detail.temperature.toPrecision(3)],
      ["Adapting", detail.adapt && adapting(detail.adapt)],
      ["Fitted on", detail.fit && `${detail.fit.split}: ${plural(detail.fit.chars, "character")}`],
      ["Calibration", calibration(detail.metrics)],
      ["Trained on", `${data.name}: ${sizes}`],
      ["Source of the data", data.source],
      ["Licence of the data", data.license],
      ["Licence of the weights", detail.license],
      ["Exported", `${detail.created}, step ${count(training.steps)}, seed ${training.seed}, commit ${training.git_commit?.slice(0, 10) ?? "unknown"}`],
    ]),
    ...mixture(detail),
    ...tables,
    el("h3", {}, "Learning curve"),
    learningCurve(training),
    ...examples(detail),
  );
}

function sizesOf(data) {
  if (data.train_chars) {
    return `${plural(data.train_chars, "character")} to train on, ${count(data.valid_chars)} to validate, ${count(data.test_chars)} to test`;
  }
  const [what, train, valid] = data.train_texts ? ["text", data.train_texts, data.valid_texts] : ["pair", data.train_pairs, data.valid_pairs];
  return `${plural(train, what)} to train on, ${count(valid)} to validate`;
}

/** The labels of a labeler, and how they belong together. */
function labelsOf({ labels, has_chain: chained }) {
  const names = labels.names.filter((name) => name !== labels.outside);
  const more = names.length > MOST_LABELS ? ` and ${count(names.length - MOST_LABELS)} more` : "";
  const several = labels.several ? "; a text may have several" : "";
  return `${names.slice(0, MOST_LABELS).join(labels.applied ? " " : ", ")}${more}${several}${chained ? "; the labels of neighbours depend on each other" : ""}`;
}

function shapeOf(model) {
  return Object.entries(model)
    .filter(([, value]) => value !== null)
    .map(([name, value]) => `${name.replaceAll("_", " ")} ${typeof value === "number" ? count(value) : value}`)
    .join(", ");
}

function adapting({ rate, decay, rank }) {
  const features = rank ? `${plural(rank, "direction")} of the hidden outputs` : "all hidden outputs";
  return `the output layer learns from ${features}, rate ${Number(rate.toPrecision(3))}, decay ${Number(decay.toPrecision(3))}`;
}

/** The bits that the model expects to need, beside those that it needs: equal where it is calibrated. */
function calibration({ expected_bits_per_char: expected, measurements }) {
  const found = measurements?.find((row) => row.kind === "model" && row.name === "fp32");
  if (!found || (expected ?? null) === null) return null;
  return `expects ${expected.toFixed(4)} bits/char, needs ${found.bits_per_char.toFixed(4)} (fp32)`;
}

/** The parts of a mixture, with what was fitted for each. */
function mixture({ parts, exponent, adapt }) {
  if (!parts?.length) return [];
  const fitted = (value) => value?.toPrecision(3) ?? "–";
  const rows = parts.map((part, i) => [
    part.name,
    shapeOf(part.model),
    fitted(part.weight),
    fitted(part.temperature),
    ...(adapt ? [fitted(adapt.weights[i]), fitted(adapt.temperatures[i])] : []),
  ]);
  const head = ["Part", "Shape", "Weight", "Temperature", ...(adapt ? ["Weight, adapting", "Temperature, adapting"] : [])];
  const power = parts.length > 1 ? `, then raised to the power ${fitted(exponent)}` : "";
  return [table(`Parts whose probabilities are averaged${power}`, head, rows)];
}

function learningCurve({ curve, steps }) {
  if (!curve) return el("p", {}, "This bundle has no learning curve.");
  const points = curve.steps.map((step, i) => [step, curve.values[i]]);
  const [first, last] = [points[0], points.at(-1)];
  const { node } = lineChart({
    label: `Validation, ${curve.unit}: ${first[1].toPrecision(4)} after ${count(first[0])} steps, ${last[1].toPrecision(4)} after ${count(last[0])}`,
    xLabel: "steps",
    yLabel: curve.unit,
    series: [{ points, kind: "dots" }],
    marks: [steps],
    fromZero: false,
  });
  const rows = points.map(([step, value]) => [count(step), value.toPrecision(4)]);
  return el(
    "div",
    {},
    node,
    el("p", { class: "note" }, `Validation, ${curve.unit}; the dashed line marks the exported weights.`),
    el("details", {}, el("summary", {}, "Show as a table"), table("Learning curve", ["Step", curve.unit], rows)),
  );
}

function examples({ examples: shown, labels }) {
  if (!shown?.length) return [];
  const title = el("h3", {}, "Held-out examples, not hand-picked");
  if (labels) {
    const rows = shown.map(({ text, labels: right, found }) => {
      const [wanted, given] = [right, found].map((each) => labelled(text, each, labels));
      return [text, wanted, wanted === given ? `${given} ✓` : given];
    });
    return [title, table("Examples", ["Text", "In the data", "Model"], rows)];
  }
  if (typeof shown[0] === "string") {
    const texts = shown.map((text) => el("blockquote", { class: "said" }, text));
    return [el("h3", {}, "Held-out text, not hand-picked"), ...texts];
  }
  const rows = shown.map(({ source, targets, translation }) => [
    source,
    targets.join(" · "),
    targets.includes(translation) ? `${translation} ✓` : translation,
  ]);
  return [title, table("Examples", ["Source", "In the data", "Model, beam 5"], rows)];
}

/** Labels in one line: those of a text by name; of characters, the text with its labels. */
function labelled(text, names, { scope, applied }) {
  const characters = [...text];
  if (scope === "text" || names.length !== characters.length) return names.join(", ");
  if (applied) return characters.map((character, i) => names[i] || character).join("");
  const starts = names.map((name, i) => i === 0 || name !== names[i - 1]);
  return characters.map((character, i) => (starts[i] ? `${i ? " " : ""}${names[i]}:` : "") + character).join("");
}
