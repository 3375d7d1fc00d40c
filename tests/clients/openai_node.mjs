// The official Node client against a running server: `openai_node.mjs http://127.0.0.1:8080 KEY`.
import assert from "node:assert/strict";
import OpenAI from "openai";

const [base, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${base}/v1`, apiKey, maxRetries: 0 });
const request = { model: "tinypython", prompt: "def area(width, height):\n    return", max_tokens: 12, seed: 3 };
const complete = (fields = {}) => client.completions.create({ ...request, ...fields });

const ids = [];
for await (const model of client.models.list()) ids.push(model.id);
assert.ok(ids.includes("tinypython") && ids.includes("tinypython-sparse"));

const greedy = await complete({ temperature: 0, logprobs: 2 });
assert.equal(greedy.object, "text_completion");
assert.equal(greedy.choices[0].logprobs.tokens.join(""), greedy.choices[0].text);
const several = await complete({ n: 4, temperature: 1 });
assert.deepEqual(several.choices.map((choice) => choice.index), [0, 1, 2, 3]);
const stop = greedy.choices[0].text.slice(2, 4);
assert.ok(!(await complete({ temperature: 0, stop })).choices[0].text.includes(stop));

let text = "";
for await (const chunk of await complete({ temperature: 0, stream: true })) text += chunk.choices[0].text;
assert.equal(text, greedy.choices[0].text);

const steer = {
  edits: [{ feature: { node: "1.resid_mid", channel: 3 }, op: "add", value: 2 }],
  variants: ["steered", "baseline"],
};
const steered = await complete({ temperature: 0, steer });
assert.deepEqual(steered.choices.map((choice) => choice.variant), ["steered", "baseline"]);
assert.equal(steered.choices[1].text, greedy.choices[0].text);

const conversation = {
  model: "my-chat-model",
  messages: [{ role: "user", content: "def area(width, height):" }],
  max_completion_tokens: 12,
  temperature: 0,
};
const said = await client.chat.completions.create(conversation);
assert.equal(said.choices[0].message.role, "assistant");
let content = "";
for await (const chunk of await client.chat.completions.create({ ...conversation, stream: true })) {
  content += chunk.choices[0].delta.content ?? "";
}
assert.equal(content, said.choices[0].message.content);

await assert.rejects(complete({ temperature: 9 }), (error) => {
  assert.ok(error instanceof OpenAI.BadRequestError);
  assert.equal(error.param, "temperature");
  return true;
});
await assert.rejects(complete({ model: "nothing" }), OpenAI.NotFoundError);
await assert.rejects(
  new OpenAI({ baseURL: `${base}/v1`, apiKey: "ck-wrong", maxRetries: 0 }).models.list(),
  OpenAI.AuthenticationError,
);
console.log("node: ok");
