// Requests to the service's native API, and its errors as problems to show.

import { events } from "./sse.js";

const BASE = new URL("../", import.meta.url);
const KEY = "unroll-api-key";

/** Send this API key with every request from now on, in this tab only. */
export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

/** An error to show: the service's problem document, or one made here if there is none. */
export class Problem extends Error {
  constructor(document) {
    super(document.detail);
    this.title = document.title;
    this.status = document.status ?? 0;
    this.errors = document.errors ?? [];
    this.requestId = document.request_id ?? "";
    this.retryAfter = document.retryAfter ?? null;
  }
}

export function isAbort(error) {
  return error instanceof DOMException && error.name === "AbortError";
}

export async function getJson(path) {
  return (await fetched(path, {})).json();
}

export async function postJson(path, body, signal) {
  return (await fetched(path, post(body, signal))).json();
}

/** The events of a streamed answer, with parsed data. An `error` event is thrown. */
export async function* postStream(path, body, signal) {
  const response = await fetched(path, post({ ...body, stream: true }, signal));
  let ended = false;
  for await (const { event, data } of events(response.body)) {
    const value = JSON.parse(data);
    if (event === "error") throw new Problem(value);
    ended ||= event === "done";
    yield { event, value };
  }
  if (!ended) throw new Problem({ title: "Incomplete answer", detail: "The connection closed before the answer was complete. Try again." });
}

/** Every served model, page by page. */
export async function allModels() {
  const models = [];
  for (let after = ""; after !== null; ) {
    const page = await getJson(`models?limit=1000&after=${encodeURIComponent(after)}`);
    models.push(...page.models);
    after = page.next;
  }
  return models;
}

const details = new Map();

/** The details of a model, requested once. */
export function modelDetail(name) {
  if (!details.has(name)) {
    const asked = getJson(`models/${encodeURIComponent(name)}`);
    asked.catch(() => details.delete(name));
    details.set(name, asked);
  }
  return details.get(name);
}

function post(body, signal) {
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal };
}

async function fetched(path, options) {
  let response;
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  try {
    response = await fetch(new URL(path, BASE), { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (isAbort(error)) throw error;
    throw new Problem({ title: "No answer", detail: "The service cannot be reached. Check that it is running." });
  }
  if (response.ok) return response;
  throw await problemOf(response);
}

async function problemOf(response) {
  const type = response.headers.get("content-type") ?? "";
  if (!type.startsWith("application/problem+json")) {
    return new Problem({ title: "Error", detail: `The service answered with status ${response.status}.` });
  }
  const retryAfter = response.headers.get("retry-after");
  return new Problem({ ...(await response.json()), retryAfter });
}
