// The form of a new job, made from the document's schema of each method, with what it would cost before it is started.

import { html, useEffect, useState } from "../html.js";
import { ask } from "../api.js";
import { link, note, valuesWith } from "../address.js";
import { models } from "../served.js";
import { Field, isAbout, Problem, SelectField, TextField } from "../parts/fields.js";
import { bytes, duration, short } from "../parts/numbers.js";
import { apiDocument, beginning, resolved, SchemaField } from "./schema_form.js";

const KINDS = { dense: "a dense model", sparse: "a sparse model", bridge: "a sparse partner with its bridge", prune: "the circuit of a task" };
const hyperOf = (kind, api) => {
  const method = api.components.schemas.Method.properties[kind];
  return resolved(method, api).properties.hyperparameters;
};

// What the form of a method begins with: what the document's own example has under the same names.
function startOf(kind, api) {
  const example = api.paths["/v1/fine_tuning/jobs"].post.requestBody.content["application/json"].example;
  const given = Object.values(example.method).find((value) => value?.hyperparameters)?.hyperparameters ?? {};
  const value = beginning(hyperOf(kind, api), api, given);
  const known = Object.keys(resolved(hyperOf(kind, api), api).properties);
  for (const name of ["generated", "sparse", "sparsity"]) if (kind !== "prune" && known.includes(name) && given[name] && !(kind === "dense" && name === "sparsity")) value[name] = given[name];
  if (kind === "sparse") value.model = given.sparse;
  if (kind === "dense") value.start_from_model = true;
  if (kind === "prune") value.task = "single_double_quote";
  return value;
}

function Files({ value, onInput, error }) {
  const [files, setFiles] = useState([]);
  const [problem, setProblem] = useState(null);
  const list = () => ask("/v1/files").then((answer) => setFiles(answer.data), setProblem);
  useEffect(() => {
    list();
  }, []);
  const upload = async (event) => {
    const [file] = event.currentTarget.files;
    if (!file) return;
    setProblem(null);
    const form = new FormData();
    form.append("purpose", "fine-tune");
    form.append("file", file);
    try {
      const made = await ask("/v1/files", { body: form });
      await list();
      onInput(made.id);
    } catch (refusal) {
      setProblem(refusal);
    }
  };
  return html`<div class="pair"><${SelectField} label="Training text" value=${value} param="training_file" error=${error} onInput=${onInput}
      options=${[["", "generated programs only"], ...files.map((file) => [file.id, `${file.filename} (${bytes(file.bytes)})`])]} />
    <${Field} label="Upload text (.txt, or .jsonl with text)">${(tied) => html`<input ...${tied} type="file" accept=".txt,.jsonl" onChange=${upload} />`}<//></div>
    <${Problem} error=${problem} />`;
}

function Estimate({ told }) {
  return html`<dl class="facts" role="status"><dt>Time</dt><dd>about <b>${duration(told.seconds)}</b>: ${told.steps} steps of ${duration(told.step_seconds)}, ${duration(told.setup_seconds)} before the first, on ${told.threads} ${told.threads === 1 ? "thread" : "threads"}</dd>
    <dt>Parameters</dt><dd>${short(told.parameters)}${told.bridge_parameters ? ` and ${short(told.bridge_parameters)} of the bridge` : ""}</dd>
    <dt>Tokens</dt><dd>${short(told.tokens)}</dd><dt>Memory</dt><dd>${told.memory_mib === null ? "not measured" : `${told.memory_mib} MiB`}</dd><dt>A checkpoint</dt><dd>${bytes(told.checkpoint_bytes)}</dd></dl>`;
}

export function NewJob({ started }) {
  const [state, setState] = useState(() => {
    const values = valuesWith({ type: "bridge", model: "", file: "", suffix: "", hyper: {} });
    return values.type in KINDS ? values : { ...values, type: "bridge", hyper: {} };
  });
  const [api, setApi] = useState(null);
  const [problem, setProblem] = useState(null);
  const [estimate, setEstimate] = useState(null);
  const [busy, setBusy] = useState("");
  useEffect(() => {
    apiDocument().then(setApi, setProblem);
  }, []);
  useEffect(() => note("jobs", state), [state]);
  const change = (changes) => {
    setEstimate(null);
    setState((now) => ({ ...now, ...changes }));
  };
  if (!api) return html`<${Problem} error=${problem} />`;
  const kinds = Object.keys(KINDS).filter((kind) => api.components.schemas.Method.properties[kind]);
  const hyper = Object.keys(state.hyper).length > 0 ? state.hyper : startOf(state.type, api);
  const bases = models.value.filter((model) => model.kind === "dense" || (state.type === "prune" && model.kind === "sparse")).map((model) => model.id);
  const model = state.model && bases.includes(state.model) ? state.model : bases[0] ?? "";
  const body = () => ({
    model, method: { type: state.type, [state.type]: { hyperparameters: hyper } },
    ...(state.file ? { training_file: state.file } : {}), ...(state.suffix ? { suffix: state.suffix } : {}),
  });
  const send = async (path, what, then) => {
    setBusy(what);
    setProblem(null);
    try {
      then(await ask(path, { body: body() }));
    } catch (refusal) {
      setProblem(refusal);
    }
    setBusy("");
  };
  const begin = (event) => {
    event.preventDefault();
    send("/v1/fine_tuning/jobs", "start", started);
  };
  const param = `method.${state.type}.hyperparameters`;
  const placed = ["model", "training_file", "suffix", param].some((name) => isAbout(problem, name));
  return html`<form class="panel" onSubmit=${begin} aria-label="New job"><h2>Train</h2>
    <div class="grid">
      <${SelectField} label="Train" value=${state.type} options=${kinds.map((kind) => [kind, KINDS[kind]])} onInput=${(type) => change({ type, hyper: {} })} />
      <${SelectField} label="of the model" value=${model} options=${bases} param="model" error=${problem} onInput=${(model) => change({ model })} />
      <${TextField} label="Call the result" value=${state.suffix} placeholder="the job's id" param="suffix" error=${problem} onInput=${(suffix) => change({ suffix })} />
    </div>
    <${Files} value=${state.file} onInput=${(file) => change({ file })} error=${problem} />
    <${SchemaField} key=${state.type} name="hyperparameters" schema=${hyperOf(state.type, api)} api=${api} value=${hyper} required=${true} param=${param} error=${problem} onInput=${(hyper) => change({ hyper })} />
    <div class="row"><button type="button" disabled=${busy !== ""} onClick=${() => send("/v1/fine_tuning/jobs/estimate", "estimate", setEstimate)}>${busy === "estimate" ? "Trying a few steps…" : "Estimate"}</button>
      <button type="submit" class="primary" disabled=${busy !== ""}>Start</button></div>
    ${problem && !placed ? html`<${Problem} error=${problem} />` : null}
    ${estimate ? html`<${Estimate} told=${estimate} />` : null}
  </form>`;
}
