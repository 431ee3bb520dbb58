// What the forms share: one run at a time, Stop, status, and problems that mark their field.

import { isAbort, modelDetail, Problem } from "./api.js";
import { byId, el } from "./dom.js";

/**
 * Run `work(signal)` when `<name>-form` is submitted, until it ends or is stopped.
 * `work` returns the line for the status; `stopped` returns that line for a stopped run.
 */
export function onSubmit(name, { busy, work, stopped }) {
  const form = byId(`${name}-form`);
  const status = byId(`${name}-status`);
  const start = byId(`${name}-start`);
  const stop = byId(`${name}-stop`);
  let running = null;

  stop.addEventListener("click", () => running?.abort());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    running?.abort();
    const mine = new AbortController();
    running = mine;
    clearProblem(name);
    status.textContent = busy;
    stop.disabled = false;
    form.setAttribute("aria-busy", "true");
    try {
      const line = await work(mine.signal);
      if (running === mine) status.textContent = line;
    } catch (error) {
      if (running !== mine) return;
      status.textContent = isAbort(error) ? stopped() : "";
      if (!isAbort(error)) showProblem(name, error);
    } finally {
      if (running === mine) {
        running = null;
        // A disabled button loses the focus, and a keyboard user would lose their place.
        if (document.activeElement === stop) start.focus();
        stop.disabled = true;
        form.removeAttribute("aria-busy");
      }
    }
  });
}

/** Show an error beside the form and mark the fields that it points at. */
export function showProblem(name, error) {
  if (!(error instanceof Problem)) {
    // A bug in this page: show a message, and let the console have the error.
    showProblem(name, new Problem({ title: "This page failed", detail: "Reload it and try again." }));
    throw error;
  }
  const box = byId(`${name}-problem`);
  const items = error.errors.map(({ pointer, detail }) => {
    const field = fieldOf(name, pointer);
    field?.setAttribute("aria-invalid", "true");
    field?.setAttribute("aria-errormessage", box.id);
    return el("li", {}, el("strong", {}, `${labelOf(field) ?? (pointer || "Request")}: `), detail);
  });
  const wait = error.retryAfter && `Try again in ${error.retryAfter} s.`;
  box.replaceChildren(
    el("h2", {}, error.title),
    items.length ? el("ul", {}, items) : el("p", {}, error.message),
    ...[wait && el("p", {}, wait), error.requestId && el("small", {}, `Request ${error.requestId}`)].filter(Boolean),
  );
  box.hidden = false;
  // Unfold the options if one of their fields must be corrected.
  for (const field of document.querySelectorAll(`#${name}-options [aria-invalid=true]`)) {
    field.closest("details").open = true;
  }
  box.scrollIntoView({ block: "nearest" });
}

function clearProblem(name) {
  const box = byId(`${name}-problem`);
  box.hidden = true;
  box.replaceChildren();
  for (const field of byId(`${name}-form`).elements) {
    field.removeAttribute("aria-invalid");
    field.removeAttribute("aria-errormessage");
  }
}

function fieldOf(name, pointer) {
  const form = document.getElementById(`${name}-form`);
  return form?.elements.namedItem(pointer.split("/")[1]) ?? null;
}

function labelOf(field) {
  return field?.labels?.[0]?.firstChild.textContent.trim();
}

/** The number in a field, null if it is empty. Throws Problem if JavaScript cannot represent it. */
export function numberIn(id) {
  const field = byId(id);
  const value = Number(field.value);
  if (field.validity.badInput || (Number.isInteger(value) && !Number.isSafeInteger(value))) {
    const detail = `on this page, a whole number up to ${Number.MAX_SAFE_INTEGER}`;
    throw new Problem({ title: "Invalid request", detail, errors: [{ pointer: `/${field.name}`, detail }] });
  }
  return field.value.trim() === "" ? null : value;
}

/** Show a slider's value beside it. */
export function mirror(id, digits) {
  const field = byId(id);
  const output = byId(`${id}-value`);
  const show = () => {
    output.value = Number(field.value).toFixed(digits);
  };
  field.addEventListener("input", show);
  show();
}

/**
 * Put an example into the fields of a form and run it, so that there is something to see. It never
 * replaces what a person typed: `fill(detail)` fills the fields and returns whether it did.
 */
export function onExample(name, fill) {
  const select = byId(`${name}-model`);
  return async () => {
    if (!select.value) return;
    if (fill(await modelDetail(select.value))) byId(`${name}-form`).requestSubmit();
  };
}

/** Whether a field holds something that a person typed instead of the example `given`. */
export function isTyped(field, given) {
  return field.value !== given || document.activeElement === field;
}

/** Fill a list of models. Without any model of the kind, the form says so and cannot be submitted. */
export function chooseModel(name, names, wanted, kind) {
  choose(byId(`${name}-model`), names, wanted);
  if (names.length) return;
  byId(`${name}-start`).disabled = true;
  byId(`${name}-status`).textContent = `This service has no ${kind}.`;
}

export function choose(select, names, wanted) {
  select.replaceChildren(...names.map((name) => el("option", { value: name }, name)));
  if (names.includes(wanted)) select.value = wanted;
}
