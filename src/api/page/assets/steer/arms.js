// The answers of a try while they come: each arm's text cut into tokens, with what the model thought at each.

import { stream } from "../api.js";
import { armsOf, requestBody } from "./request.js";

export function emptyArm() {
  return { text: "", tokens: [], finish: null, receipt: null };
}

// Adds a piece of a stream to an arm. A token's text is what lies between its offset and the next one's, so that parts of
// characters, which have no text alone, stand with the token that completes them.
export function addPiece(arm, piece) {
  arm.text += piece.text;
  const logprobs = piece.logprobs;
  for (let at = 0; at < (logprobs?.tokens.length ?? 0); at += 1) {
    arm.tokens.push({
      name: logprobs.tokens[at],
      offset: logprobs.text_offset[at],
      logprob: logprobs.token_logprobs[at],
      top: Object.entries(logprobs.top_logprobs[at] ?? {}).sort((one, other) => other[1] - one[1]),
    });
  }
  if (piece.finish_reason) arm.finish = piece.finish_reason;
  if (piece.receipt) arm.receipt = piece.receipt;
}

// The texts of an arm's tokens.
export function tokenTexts(arm) {
  const characters = [...arm.text];
  return arm.tokens.map((token, at) => {
    const end = arm.tokens[at + 1]?.offset ?? characters.length;
    return characters.slice(token.offset, end).join("");
  });
}

// The index of the first token in which two arms differ; -1 where as far as both go they do not.
export function firstDifference(one, other) {
  const length = Math.min(one.tokens.length, other.tokens.length);
  for (let at = 0; at < length; at += 1) {
    if (one.tokens[at].name !== other.tokens[at].name) return at;
  }
  const bothDone = one.finish && other.finish;
  return bothDone && one.tokens.length !== other.tokens.length ? length : -1;
}

// Whether the end of a text says the same thing over and over: few different tokens among its last ones.
export function collapses(arm) {
  const last = arm.tokens.slice(-24).map((token) => token.name);
  if (last.length < 12) return false;
  const repeated = last.filter((name, at) => at > 0 && name === last[at - 1]).length;
  return new Set(last).size <= last.length / 5 || repeated >= last.length * 0.6;
}

// Runs a try; `told` is called with the arms, at most once a frame, and at the end. Throws the server's refusal.
export async function run(state, abort, told) {
  const names = armsOf(state);
  const arms = Object.fromEntries(names.map((name) => [name, emptyArm()]));
  let due = false;
  const tell = () => {
    if (due) return;
    due = true;
    requestAnimationFrame(() => {
      due = false;
      told({ ...arms });
    });
  };
  told({ ...arms });
  const body = { ...requestBody(state), stream: true };
  try {
    for await (const event of stream("/v1/completions", { body, abort })) {
      for (const piece of event.choices) {
        const name = piece.variant ?? names[piece.index] ?? "baseline";
        addPiece(arms[name], piece);
        arms[name] = { ...arms[name] };
      }
      tell();
    }
  } finally {
    told({ ...arms });
  }
  return arms;
}
