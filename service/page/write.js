// Write: continue a prompt, character by character, each with its alternatives.

import { postStream } from "./api.js";
import { CharacterMap } from "./charmap.js";
import { byId } from "./dom.js";
import { bitsPerChar, plural, surprisal } from "./format.js";
import { chooseModel, isTyped, mirror, numberIn, onExample, onSubmit } from "./task.js";

const ALTERNATIVES = 5;
const PROMPT_CHARS = 24; // at most, from the beginning of an example, cut at a space
const REASONS = { stop: "the text ended", length: "maximum length reached" };

export function startWrite(models) {
  const names = models.filter((model) => model.task === "language_model").map((model) => model.name);
  chooseModel("write", names, "alice-lstm", "language model");
  mirror("write-temperature", 2);
  mirror("write-top-p", 2);
  const map = new CharacterMap(byId("write-map"), "Written characters, by surprisal");
  let written = [];

  let suggested = "";
  let unknown = 0;

  const example = onExample("write", (detail) => {
    // A model of short texts writes several whole ones; any other model continues a beginning.
    const short = detail.examples.length > 1;
    byId("write-count-field").hidden = !short;
    byId("write-count").disabled = !short;
    const prompt = byId("write-prompt");
    if (isTyped(prompt, suggested)) return false;
    suggested = short ? "" : beginning(detail.examples[0]);
    prompt.value = suggested;
    return true;
  });
  byId("write-model").addEventListener("change", example);
  byId("write-reroll").addEventListener("click", reroll);
  onSubmit("write", {
    busy: "Writing…",
    work: async (signal) => {
      if (!byId("write-lock").checked || isEmpty(byId("write-seed"))) reroll();
      written = [];
      unknown = 0;
      map.clear(byId("write-prompt").value);
      byId("write-plain").textContent = "";
      let reason = "";
      try {
        const later = [];
        for await (const { event, value } of postStream("generate", request(), signal)) {
          if (event === "done") {
            [{ finish_reason: reason }] = value.choices;
            unknown = value.unknown_chars?.[0] ?? 0;
          }
          if (event !== "token" || value.token === null) continue;
          if (value.choice) (later[value.choice] ??= []).push(value);
          else shown([value]);
        }
        // The first text is shown character by character, the others when they are complete.
        for (const tokens of later.filter(Boolean)) {
          map.newLine();
          shown(tokens);
        }
      } finally {
        tell();
      }
      return told("Done", REASONS[reason] ?? reason);
    },
    stopped: () => told("Stopped", "by you"),
  });

  function shown(tokens) {
    written.push(...tokens);
    map.append(tokens);
  }

  /** For screen readers: the whole text, once at the end, not character by character. */
  function tell() {
    const text = written.map((token) => token.text).join("");
    byId("write-plain").textContent = text && `Written text: ${text}`;
  }

  function told(what, why) {
    // The end of the text is a token but not a character.
    const counted = written.filter((token) => token.text !== "");
    const bits = counted.reduce((sum, token) => sum + surprisal(token.logprob), 0);
    const missing = unknown ? ` ${plural(unknown, "character of the prompt is", "characters of the prompt are")} unknown to the model.` : "";
    const rate = counted.length ? `, ${bitsPerChar(bits / counted.length)} on average` : "";
    return `${what} (${why}): ${plural(counted.length, "character")}${rate}, seed ${byId("write-seed").value}.${missing}`;
  }
  return example;
}

/** A few words of a text, from the start of a paragraph or sentence if there is one. */
function beginning(text) {
  const start = /\n\s*\n\s*|[.!?]["')\]]*\s+/.exec(text);
  const rest = start ? text.slice(start.index + start[0].length) : text;
  const from = rest.length > PROMPT_CHARS ? rest : text;
  const end = from.lastIndexOf(" ", PROMPT_CHARS);
  return from.slice(0, end > 0 ? end + 1 : PROMPT_CHARS);
}

function isEmpty(field) {
  return field.value === "" && !field.validity.badInput;
}

function reroll() {
  byId("write-seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
}

function request() {
  const pattern = byId("write-pattern").value;
  const body = {
    model: byId("write-model").value,
    prompt: byId("write-prompt").value,
    temperature: numberIn("write-temperature"),
    top_p: numberIn("write-top-p"),
    max_tokens: numberIn("write-max-tokens"),
    seed: numberIn("write-seed"),
    logprobs: ALTERNATIVES,
  };
  if (!byId("write-count").disabled) body.n = numberIn("write-count");
  return pattern ? { ...body, pattern } : body;
}
