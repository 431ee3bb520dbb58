// Write: a prompt goes in, and characters come one by one, each with what else it could have been.

import { postStream } from "./api.js";
import { CharacterMap } from "./charmap.js";
import { byId } from "./dom.js";
import { bitsPerChar, plural, surprisal } from "./format.js";
import { chooseModel, mirror, numberIn, onSubmit } from "./task.js";

const ALTERNATIVES = 5;
const REASONS = { stop: "the text ended", length: "the length is reached" };

export function startWrite(models) {
  const names = models.filter((model) => model.task === "language_model").map((model) => model.name);
  chooseModel("write", names, "alice-lstm", "language model");
  mirror("write-temperature", 2);
  mirror("write-top-p", 2);
  const map = new CharacterMap(byId("write-map"), "Written characters, by surprisal");
  let written = [];

  byId("write-reroll").addEventListener("click", reroll);
  onSubmit("write", {
    busy: "Writing…",
    work: async (signal) => {
      if (!byId("write-lock").checked || isEmpty(byId("write-seed"))) reroll();
      written = [];
      map.clear(byId("write-prompt").value);
      byId("write-plain").textContent = "";
      let reason = "";
      try {
        for await (const { event, value } of postStream("generate", request(), signal)) {
          if (event === "done") [{ finish_reason: reason }] = value.choices;
          if (event !== "token" || value.token === null) continue;
          written.push(value);
          map.append([value]);
        }
      } finally {
        tell();
      }
      return told("Done", REASONS[reason] ?? reason);
    },
    stopped: () => told("Stopped", "as you asked"),
  });

  /** All at once, and only in the end: what is fed by the character cannot be listened to. */
  function tell() {
    const text = written.map((token) => token.text).join("");
    byId("write-plain").textContent = text && `Written text: ${text}`;
  }

  function told(what, why) {
    // The end of the text is a token, too, but no character.
    const counted = written.filter((token) => token.text !== "");
    const bits = counted.reduce((sum, token) => sum + surprisal(token.logprob), 0);
    const rate = counted.length ? `, ${bitsPerChar(bits / counted.length)} on average` : "";
    return `${what} (${why}): ${plural(counted.length, "character")}${rate}, seed ${byId("write-seed").value}.`;
  }
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
  return pattern ? { ...body, pattern } : body;
}
