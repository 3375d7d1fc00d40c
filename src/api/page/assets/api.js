// Asks the server through its public API, as any client does, and tells errors in the server's own words.
//
// The key lives in this module's memory alone. A request that is answered with 401 waits until somebody has typed a key,
// and is then sent again.

import { signal } from "./html.js";

export const key = signal("");
// What the server said when it asked for a key; null while it does not.
export const keyAsked = signal(null);
// What the key may do: `infer`, `train` or `admin`; null before that is known.
export const role = signal(null);

// An answer that is an error, or no answer. `param` is the field at fault, `retryAfter` in seconds.
export class Refusal extends Error {
  constructor(message, { status = 0, param = null, code = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, param, code, retryAfter });
  }
}

const waiting = [];

// Takes the key that was typed; requests that wait for one go on with it.
export function giveKey(text) {
  key.value = text.trim();
  keyAsked.value = null;
  role.value = null;
  waiting.splice(0).forEach((goOn) => goOn());
  learnRole();
}

function keyGiven(message, abort) {
  keyAsked.value = message;
  return new Promise((resolve, reject) => {
    waiting.push(resolve);
    abort?.addEventListener("abort", () => reject(abort.reason));
  });
}

async function refusalOf(response) {
  const told = await response.json().catch(() => null);
  const error = told?.error ?? {};
  const after = Number(response.headers.get("retry-after"));
  return new Refusal(error.message ?? `the server answered ${response.status} ${response.statusText}`, {
    status: response.status,
    param: error.param ?? null,
    code: error.code ?? null,
    retryAfter: Number.isFinite(after) && after > 0 ? after : null,
  });
}

// Sends a request and gives the response; anything but success is thrown as a `Refusal`.
export async function request(path, { method, body, abort, headers = {} } = {}) {
  for (;;) {
    const sent = { method: method ?? (body === undefined ? "GET" : "POST"), headers: { ...headers }, signal: abort };
    if (key.value) sent.headers.authorization = `Bearer ${key.value}`;
    if (body instanceof FormData || body instanceof Blob) sent.body = body;
    else if (body !== undefined) {
      sent.headers["content-type"] = "application/json";
      sent.body = JSON.stringify(body);
    }
    let response;
    try {
      response = await fetch(path, sent);
    } catch (error) {
      if (abort?.aborted) throw error;
      throw new Refusal("the server cannot be reached");
    }
    if (response.ok) return response;
    const refusal = await refusalOf(response);
    if (refusal.status !== 401) throw refusal;
    await keyGiven(refusal.message, abort);
  }
}

// Sends a request and gives the JSON of its answer.
export async function ask(path, options) {
  const response = await request(path, options);
  return response.json();
}

// All objects of a list that comes in pages.
export async function askAll(path, most = 2000) {
  const data = [];
  let after = null;
  while (data.length < most) {
    const separator = path.includes("?") ? "&" : "?";
    const page = await ask(path + (after === null ? "" : `${separator}after=${encodeURIComponent(after)}`));
    data.push(...page.data);
    after = page.last_id ?? page.data.at(-1)?.id;
    if (!page.has_more || page.data.length === 0) break;
  }
  return data;
}

// The events of a stream as they come, each parsed; ends at `[DONE]` or, where `open` says that there is none, with the
// answer. A stream that breaks off before is an error, and so is an event that tells one.
export async function* stream(path, { open = false, ...options } = {}) {
  const response = await request(path, options);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { done, value } = await reader.read().catch((error) => {
        if (options.abort?.aborted) throw error;
        throw new Refusal("the connection broke before the answer's end");
      });
      if (done) break;
      text += value;
      let end;
      while ((end = text.indexOf("\n\n")) >= 0) {
        const lines = text.slice(0, end).split("\n");
        text = text.slice(end + 2);
        const data = lines.filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
        if (data.length === 0) continue;
        if (data[0] === "[DONE]") return;
        const event = JSON.parse(data.join("\n"));
        if (event.error?.message) throw new Refusal(event.error.message, event.error);
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
  if (!open) throw new Refusal("the connection broke before the answer's end");
}

const RANKS = ["infer", "train", "admin"];

// Whether the key may do what needs this role; false while that is not known.
export function may(needed) {
  return role.value !== null && RANKS.indexOf(role.value) >= RANKS.indexOf(needed);
}

// Finds out what the key may do by asking for something that needs each role, the highest first.
export async function learnRole() {
  const asked = key.value;
  const allowed = (path) => ask(path).then(() => true, (error) => error.status !== 403 && error.status !== 0);
  let found = "infer";
  if (await allowed("/v1/library")) found = "admin";
  else if (await allowed("/v1/fine_tuning/jobs?limit=1")) found = "train";
  if (asked === key.value) role.value = found;
}
