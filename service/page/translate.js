// Translate: the hypotheses for a source, and what each of their tokens attended to.

import { modelDetail, postJson } from "./api.js";
import { byId, el } from "./dom.js";
import { fixed, percent, plural, tokenName } from "./format.js";
import { alignmentMatrix } from "./matrix.js";
import { chooseModel, isTyped, mirror, numberIn, onExample, onSubmit } from "./task.js";

const REASONS = { stop: "complete", length: "cut off at the maximum length", repetition: "stopped in a loop" };

export function startTranslate(models) {
  const names = models.filter(({ task, fills }) => task === "encoder_decoder" && !fills).map((model) => model.name);
  chooseModel("translate", names, "g2p-en", "encoder-decoder");
  mirror("translate-penalty", 1);
  const source = byId("translate-source");
  let suggested = "";
  const example = onExample("translate", ({ examples }) => {
    if (isTyped(source, suggested) || !examples.length) return false;
    suggested = examples[0].source;
    source.value = suggested;
    return true;
  });
  byId("translate-model").addEventListener("change", example);

  onSubmit("translate", {
    busy: "Translating…",
    work: async (signal) => {
      byId("translate-results").replaceChildren();
      const model = byId("translate-model").value;
      const detail = await modelDetail(model);
      const attends = detail.model.attention !== "none";
      const answer = await postJson("translate", request(model, attends), signal);
      byId("translate-results").replaceChildren(...page(answer.results[0], detail));
      return told(answer.results[0]);
    },
    stopped: () => "Stopped.",
  });
  return example;
}

function request(model, attends) {
  return {
    model,
    source: byId("translate-source").value,
    beam_size: numberIn("translate-beam"),
    num_hypotheses: numberIn("translate-count"),
    length_penalty: numberIn("translate-penalty"),
    tokens: true,
    return_alignments: attends,
  };
}

function told({ hypotheses, unknown_chars }) {
  const missing = unknown_chars ? ` ${plural(unknown_chars, "character is", "characters are")} outside the vocabulary.` : "";
  return `${plural(hypotheses.length, "hypothesis", "hypotheses")}; the best is ${hypotheses[0].text}.${missing}`;
}

function page({ hypotheses, source_tokens: sources }, detail) {
  const shown = el("div", { id: "translate-alignment" });
  const choices = hypotheses.map((hypothesis, i) => {
    const input = el("input", { type: "radio", name: "hypothesis", value: i, onchange: () => showOne(i), checked: i === 0 });
    const sure = hypothesis.confidence === null ? "" : `${percent(hypothesis.confidence)} likely right, `;
    const facts = `${sure}score ${fixed(hypothesis.score, 3)}, log-probability ${fixed(hypothesis.logprob, 3)} nats, ${percent(Math.exp(hypothesis.logprob))}, ${REASONS[hypothesis.finish_reason]}`;
    return el("label", { class: "hypothesis" }, input, el("span", { class: "said" }, hypothesis.text || "(nothing)"), el("small", {}, facts));
  });

  function showOne(i) {
    const { tokens, alignment } = hypotheses[i];
    const chain = tokens.map(({ token, logprob }) =>
      el("li", {}, el("span", { class: "said" }, tokenName(token)), el("small", {}, percent(Math.exp(logprob)))),
    );
    shown.replaceChildren(
      el("h3", {}, "Tokens and their probabilities"),
      el("ol", { class: "tokens" }, chain),
      el("h3", {}, "Alignment"),
      alignment === null
        ? el("p", {}, "This model has no attention, so there is no alignment.")
        : alignmentMatrix(tokens.map(({ token }) => token), sources, alignment),
    );
  }
  showOne(0);
  const title = detail.source_lang && detail.target_lang ? `, ${detail.source_lang} → ${detail.target_lang}` : "";
  return [
    el("div", { class: "card" }, el("fieldset", {}, el("legend", {}, el("h2", {}, `Hypotheses${title}`)), choices)),
    el("div", { class: "card" }, shown),
  ];
}
