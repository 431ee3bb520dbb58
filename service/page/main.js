// The page: four tabs over the service's native interface.

import { getJson } from "./api.js";
import { legend } from "./charmap.js";
import { byId } from "./dom.js";
import { hide } from "./inspector.js";
import { showModels } from "./models.js";
import { startScore } from "./score.js";
import { startTabs } from "./tabs.js";
import { showProblem } from "./task.js";
import { startTranslate } from "./translate.js";
import { startWrite } from "./write.js";

/** What each tab does when it is first shown. */
async function start() {
  for (const node of document.querySelectorAll("[data-legend]")) node.append(...legend());
  const { models } = await getJson("models");
  startWrite(models);
  startScore(models);
  const suggest = startTranslate(models);
  const pending = new Map([
    ["models", () => showModels(models)],
    ["translate", suggest],
  ]);
  startTabs(document.querySelector("[role=tablist]"), async (id) => {
    hide();
    const first = pending.get(id);
    pending.delete(id);
    if (first) byId(`${id}-problem`).hidden = true;
    try {
      await first?.();
    } catch (error) {
      pending.set(id, first); // the next visit asks again
      showProblem(id, error);
    }
  });
  byId("main").setAttribute("data-ready", "");
}

try {
  await start();
} catch (error) {
  showProblem("start", error);
}
