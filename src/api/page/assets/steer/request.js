// A try of the Steer view as data, and the request that it is: what is sent, and the same as curl and Python.

export const CONTROLS = { random: "random control", random_feature: "another feature" };

export const DEFAULTS = {
  model: "", bridge: "", prompt: "", edits: [], control: "random", max: 24, temperature: 0, seed: 1, stop: "", go: false,
};

// An edit as the view keeps it. `value` stays where the operation does without, so that going back finds it again. What a
// link gives is of the types that the view knows, or left out.
export function newEdit(given = {}) {
  const edit = { feature: "", op: "add", value: 2, unit: "std", strength: 1, ...given };
  const asText = (address) => (typeof address === "string" ? address : textOf(address ?? ""));
  edit.feature = asText(edit.feature);
  if (typeof edit.prompt !== "string") delete edit.prompt;
  if (!Array.isArray(edit.at) || !edit.at.every(Number.isInteger)) delete edit.at;
  if (edit.when) edit.when = { ...edit.when, feature: asText(edit.when.feature) };
  return edit;
}

// The operations with what they are in words.
export const OPERATIONS = [
  ["add", "add to it"], ["set", "set it to"], ["scale", "multiply it by"], ["clamp", "clamp it between"],
  ["ablate", "ablate it"], ["patch", "patch it from another prompt"], ["swap", "swap it with a channel"],
];

// What a typed feature is in a request: a name, `NODE:CHANNEL`, `circuit:ID`, or an object as JSON.
export function addressOf(text) {
  const typed = text.trim();
  const circuit = /^circuit:(.+)$/.exec(typed);
  if (circuit) return { circuit: circuit[1] };
  const channel = /^([^:{}\s]+):(\d+)$/.exec(typed);
  if (channel) return { node: channel[1], channel: Number(channel[2]) };
  if (typed.startsWith("{")) {
    try {
      return JSON.parse(typed);
    } catch {
      return typed;
    }
  }
  return typed;
}

// The text that `addressOf` reads as this address.
export function textOf(address) {
  if (typeof address === "string") return address;
  if (address.circuit && Object.keys(address).length === 1) return `circuit:${address.circuit}`;
  if (Number.isInteger(address.channel) && address.node && Object.keys(address).length === 2) {
    return `${address.node}:${address.channel}`;
  }
  return JSON.stringify(address);
}

// The `edits` entry of an edit.
export function editBody(edit) {
  const body = { feature: addressOf(edit.feature), op: edit.op };
  const unit = edit.unit && edit.unit !== "raw" ? { unit: edit.unit } : {};
  if (edit.op === "add" || edit.op === "set") Object.assign(body, { value: edit.value ?? 0 }, unit);
  if (edit.op === "scale") body.value = edit.value ?? 0;
  if (edit.op === "clamp") Object.assign(body, { min: edit.min ?? 0, max: edit.max ?? 1 }, unit);
  if (edit.op === "ablate" && edit.to === "mean") body.to = "mean";
  if (edit.op === "patch") {
    body.to = { prompt: edit.prompt ?? "" };
    if (edit.align === "end") body.to.align = "end";
  }
  if (edit.op === "swap") body.with = edit.with ?? 0;
  if ((edit.strength ?? 1) !== 1) body.strength = edit.strength;
  const at = {};
  if (Array.isArray(edit.at)) at.prompt = edit.at.length > 0 ? edit.at : "none";
  if (edit.generation === false) at.generation = "none";
  if (Object.keys(at).length > 0) body.at = at;
  if (edit.when?.feature) body.when = { all: [{ feature: addressOf(edit.when.feature), [edit.when.side ?? "gt"]: edit.when.value ?? 0 }] };
  if (edit.read) body.read = edit.read;
  if (edit.write) body.write = edit.write;
  return body;
}

// An edit of a request, such as a preset's, as the view keeps it; null where the view has no words for it.
export function editOf(body) {
  const edit = newEdit({ feature: textOf(body.feature), op: body.op, unit: body.unit ?? "raw" });
  const list = body.at?.prompt;
  const beyond = [body.at?.text, body.when?.any, Array.isArray(body.strength), Array.isArray(body.to?.prompt),
    body.to?.value !== undefined && body.to?.value !== null, Array.isArray(list) && !list.every(Number.isInteger),
    Array.isArray(body.at?.generation), (body.when?.all?.length ?? 0) > 1];
  if (beyond.some(Boolean)) return null;
  for (const name of ["value", "min", "max", "with", "read", "write", "strength"]) {
    if (body[name] !== undefined && body[name] !== null) edit[name] = body[name];
  }
  if (body.to === "mean") edit.to = "mean";
  if (body.to?.prompt !== undefined) Object.assign(edit, { prompt: body.to.prompt ?? "", align: body.to.align ?? undefined });
  if (list === "none") edit.at = [];
  else if (Array.isArray(list)) edit.at = list;
  if (body.at?.generation === "none") edit.generation = false;
  const when = body.when?.all?.[0];
  if (when) {
    const side = when.gt === undefined || when.gt === null ? "lt" : "gt";
    edit.when = { feature: textOf(when.feature), side, value: when[side] };
  }
  return edit;
}

// The arms of a try, in the order of the request's `variants`.
export function armsOf(state) {
  return state.edits.length > 0 ? ["baseline", "steered", state.control] : ["baseline"];
}

export function steerBody(state) {
  return { ...(state.bridge ? { bridge: state.bridge } : {}), edits: state.edits.map(editBody), variants: armsOf(state), return: ["receipt"] };
}

// The whole request. An empty list of edits leaves `steer` out.
export function requestBody(state) {
  const body = {
    model: state.model, prompt: state.prompt, max_tokens: state.max, temperature: state.temperature, seed: state.seed,
    logprobs: 5,
  };
  const stops = state.stop.split(/\s*\|\s*/).filter(Boolean).map((text) => text.replaceAll("\\n", "\n"));
  if (stops.length > 0) body.stop = stops.length === 1 ? stops[0] : stops;
  if (state.edits.length > 0) body.steer = steerBody(state);
  return body;
}

export function asCurl(state, hasKey) {
  const { logprobs, ...body } = requestBody(state);
  const text = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  const authorization = hasKey ? " -H \"authorization: Bearer $CAUSEWAY_KEY\"" : "";
  return `curl -s ${location.origin}/v1/completions -H 'content-type: application/json'${authorization} -d '${text}'\n`;
}

// A JSON value as Python writes it.
function python(value, indent) {
  const inner = `${indent}    `;
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map((item) => python(item, indent)).join(", ")}]`;
  if (typeof value === "object") {
    const entries = Object.entries(value).map(([name, item]) => `${inner}${JSON.stringify(name)}: ${python(item, inner)},\n`);
    return `{\n${entries.join("")}${indent}}`;
  }
  return JSON.stringify(value);
}

export function asPython(state, hasKey) {
  const { logprobs, steer, ...body } = requestBody(state);
  const named = Object.entries(body).map(([name, value]) => `    ${name}=${python(value, "    ")},\n`).join("");
  const extra = steer ? `    extra_body={"steer": ${python(steer, "    ")}},\n` : "";
  return `from openai import OpenAI

client = OpenAI(base_url=${JSON.stringify(`${location.origin}/v1`)}, api_key=${hasKey ? "\"YOUR KEY\"" : "\"none\""})
answer = client.completions.create(
${named}${extra})
for choice in answer.choices:
    print(getattr(choice, "variant", None), repr(choice.text))
`;
}
