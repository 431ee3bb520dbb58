// The page: six tabs over the service's native API.

import { allModels, useKey } from "./api.js";
import { legend } from "./charmap.js";
import { byId } from "./dom.js";
import { startFill } from "./fill.js";
import { hide } from "./inspector.js";
import { startLabel } from "./label.js";
import { showModels } from "./models.js";
import { startScore } from "./score.js";
import { startTabs } from "./tabs.js";
import { showProblem } from "./task.js";
import { startTranslate } from "./translate.js";
import { startWrite } from "./write.js";

/** Load the models and start the tabs, each when it is first shown. */
async function start() {
  for (const node of document.querySelectorAll("[data-legend]")) node.append(...legend());
  const models = await allModels();
  const examples = new Map([
    ["write", startWrite(models)],
    ["score", startScore(models)],
    ["fill", startFill(models)],
    ["label", startLabel(models)],
    ["translate", startTranslate(models)],
  ]);
  const pending = new Map([...examples, ["models", () => showModels(models)]]);
  startTabs(document.querySelector("[role=tablist]"), async (id, otherModel) => {
    hide();
    const first = pending.get(id) ?? (otherModel ? examples.get(id) : undefined);
    pending.delete(id);
    if (first) byId(`${id}-problem`).hidden = true;
    try {
      await first?.();
    } catch (error) {
      pending.set(id, first); // try again at the next visit
      showProblem(id, error);
    }
  });
  byId("main").setAttribute("data-ready", "");
}

async function startOrAsk() {
  try {
    await start();
    byId("start-problem").hidden = byId("key-form").hidden = true;
  } catch (error) {
    showProblem("start", error);
    byId("key-form").hidden = ![401, 403].includes(error.status);
  }
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(byId("key").value.trim());
  startOrAsk();
});
await startOrAsk();
