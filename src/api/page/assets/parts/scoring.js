// How probable given answers are behind given prompts, with and without edits: each answer's token is appended to its
// prompt, and the server scores the whole (`echo` with no token generated), which gives any token's probability exactly.

import { ask } from "../api.js";

// The tokens of `prompt` and the one that `answer` begins with there.
export async function promptAndToken(model, prompt, answer, abort) {
  const whole = await ask("/v1/tokenize", { body: { model, prompt: prompt + answer }, abort });
  const length = [...prompt].length;
  const at = whole.offsets.findIndex(([start]) => start >= length);
  const cut = at < 0 ? whole.tokens.length - 1 : at;
  if (answer === "" || whole.offsets[cut][0] !== length) {
    const error = new Error(`${JSON.stringify(answer)} does not begin with a token behind ${JSON.stringify(prompt)}: end the prompt elsewhere`);
    throw Object.assign(error, { param: null });
  }
  return { ids: whole.tokens.slice(0, cut), token: whole.tokens[cut] };
}

// Positions that count from the prompt's end, moved by the token that is appended; generated tokens are none.
function shifted(at) {
  if (!at || !Array.isArray(at.prompt)) return at?.prompt ? { prompt: at.prompt } : undefined;
  const move = (position) => (typeof position === "number" && position < 0 ? position - 1 : position);
  return { prompt: at.prompt.map((entry) => (Array.isArray(entry) ? entry.map(move) : move(entry))) };
}

// Scores every `[prompt, answer]` of `asked` in each arm. `edits` are those of a request; `counterfactuals` are the texts
// that patches take their values from, one for each of `asked`, or null to leave the edits' own. The result has for each of
// `asked` a list of `{variant, strength, probability}`.
export async function score({ model, bridge, asked, edits, counterfactuals, variants, seed, abort }) {
  const prompts = [];
  for (const [prompt, answer] of asked) prompts.push(await promptAndToken(model, prompt, answer, abort));
  const others = [];
  for (const text of counterfactuals ?? []) {
    const told = await ask("/v1/tokenize", { body: { model, prompt: text }, abort });
    others.push(told.tokens);
  }
  const whole = [];
  for (const edit of edits) {
    const own = { ...edit, ...(edit.at ? { at: shifted(edit.at) } : {}) };
    if (edit.at && !own.at) delete own.at;
    if (edit.op === "patch" && edit.to?.prompt !== undefined) {
      const texts = others.length > 0 ? others
        : await Promise.all(prompts.map(async () => (await ask("/v1/tokenize", { body: { model, prompt: edit.to.prompt }, abort })).tokens));
      own.to = { ...edit.to, prompt: texts.map((ids, index) => [...ids, prompts[index].token]) };
    }
    whole.push(own);
  }
  const body = {
    model, prompt: prompts.map(({ ids, token }) => [...ids, token]), max_tokens: 0, echo: true, logprobs: 0, temperature: 0, seed,
    ...(whole.length > 0 ? { steer: { ...(bridge ? { bridge } : {}), edits: whole, variants } } : {}),
  };
  const answer = await ask("/v1/completions", { body, abort });
  const each = answer.choices.length / asked.length;
  return asked.map((_, index) => answer.choices.slice(index * each, (index + 1) * each).map((choice) => ({
    variant: choice.variant ?? "baseline", strength: choice.strength ?? 1,
    probability: Math.exp(choice.logprobs.token_logprobs.at(-1)),
  })));
}
