// The Models view: what is served, how large it is and how far its bridges can be trusted; and, for admins, the library that
// it comes from.

import { html, useEffect, useState } from "../html.js";
import { ask, may } from "../api.js";
import { link } from "../address.js";
import { bridges, models, presets, refresh } from "../served.js";
import { Term } from "../glossary.js";
import { isAbout, Problem, TextField } from "../parts/fields.js";
import { bytes, clock, percent, short } from "../parts/numbers.js";

// Runs what changes the server and then looks at it anew; what it refuses is kept to be shown.
function useAction(then) {
  const [problem, setProblem] = useState(null);
  const [busy, setBusy] = useState(false);
  const act = async (path, options) => {
    setBusy(true);
    setProblem(null);
    try {
      await ask(path, options);
      await refresh();
      await then?.();
    } catch (refusal) {
      setProblem(refusal);
    }
    setBusy(false);
  };
  return { act, problem, busy };
}

function Served() {
  const { act, problem } = useAction();
  const shown = models.value.filter((model) => model.kind !== "preset");
  return html`<section class="panel"><h2>Served</h2><${Problem} error=${problem} />
    <div class="scroll" tabindex="0" role="region" aria-label="Models"><table><thead><tr><th>model</th><th>kind</th><th class="number">parameters</th><th class="number">not zero</th><th>shape</th><th>weights</th><th>bridges</th><th><span class="visually-hidden">Actions</span></th></tr></thead>
    <tbody>${shown.map((model) => html`<tr key=${model.id}><th scope="row">${model.id}</th><td>${model.kind}${model.chat ? ", chat" : ""}</td><td class="number">${short(model.parameters)}</td><td class="number">${percent(model.nonzeros / model.parameters)}</td>
      <td>${model.n_layers} layers of ${model.d_model}, ${model.n_heads} heads, ${model.vocab_size} tokens, context ${model.context_length}</td><td>${model.in_memory ? "in memory" : "read when asked for"}</td><td>${model.bridges.join(", ") || "–"}</td>
      <td class="row"><a class="button" href=${link("steer", { model: model.id })}>Steer</a>
        ${may("train") && model.provenance?.job ? html`<button type="button" onClick=${() => act(`/v1/models/${encodeURIComponent(model.id)}`, { method: "DELETE" })}>Delete</button>` : null}</td></tr>`)}</tbody></table></div></section>`;
}

function Bridges() {
  if (bridges.value.length === 0) return null;
  return html`<section class="panel"><h2>Bridges</h2>${bridges.value.map((bridge) => html`<details key=${bridge.id} open=${bridges.value.length === 1}>
    <summary><b>${bridge.id}</b>: ${bridge.sparse} to ${bridge.dense}, ${bridge.features} features</summary>
    <div class="scroll" tabindex="0" role="region" aria-label=${`Sites of ${bridge.id}`}><table><thead><tr><th><${Term} name="site" /></th><th class="number">encoder <${Term} name="NMSE" /></th><th class="number">decoder NMSE</th><th class="number"><${Term} name="hybrid KL" />, dense to sparse</th><th class="number">sparse to dense</th></tr></thead>
    <tbody>${bridge.sites.map((site) => html`<tr key=${site.site}><th scope="row">${site.site}${site.dense_site !== site.site ? ` → ${site.dense_site}` : ""}</th><td class="number">${short(site.encoder_nmse)}</td><td class="number">${short(site.decoder_nmse)}</td><td class="number">${short(site.dense_to_sparse_kl)}</td><td class="number">${short(site.sparse_to_dense_kl)}</td></tr>`)}</tbody></table></div></details>`)}</section>`;
}

function Presets() {
  const { act, problem } = useAction();
  if (presets.value.length === 0) return null;
  return html`<section class="panel"><h2>Presets</h2><${Problem} error=${problem} /><table><tbody>${presets.value.map((preset) => html`<tr key=${preset.name}><th scope="row"><code>${preset.name}</code></th><td>${preset.description}</td>
    <td>${preset.served ? "" : "its model is not served"}</td><td>${may("admin") ? html`<button type="button" onClick=${() => act(`/v1/presets/${encodeURIComponent(preset.name)}`, { method: "DELETE" })}>Delete</button>` : null}</td></tr>`)}</tbody></table></section>`;
}

function Library() {
  const [library, setLibrary] = useState(null);
  const [operations, setOperations] = useState([]);
  const [problem, setProblem] = useState(null);
  const [asked, setAsked] = useState({ hub_id: "", revision: "", file: "", id: "" });
  const look = async () => {
    try {
      const [entries, running] = await Promise.all([ask("/v1/library"), ask("/v1/library/operations")]);
      setLibrary(entries);
      setOperations(running.data);
      setProblem(null);
    } catch (refusal) {
      setProblem(refusal);
    }
  };
  const bring = useAction(look);
  const entry = useAction(look);
  useEffect(() => {
    look();
    const timer = setInterval(look, 2000);
    return () => clearInterval(timer);
  }, []);
  const add = (event) => {
    event.preventDefault();
    const body = Object.fromEntries(Object.entries(asked).filter(([, text]) => text.trim() !== ""));
    bring.act("/v1/library", { body: { hub_id: "", ...body } });
  };
  const field = (name, label, placeholder) => html`<${TextField} label=${label} placeholder=${placeholder} value=${asked[name]} param=${name} error=${bring.problem} onInput=${(text) => setAsked((now) => ({ ...now, [name]: text }))} />`;
  const placed = Object.keys(asked).some((name) => isAbout(bring.problem, name));
  return html`<section class="panel"><h2>Library</h2><${Problem} error=${problem} again=${look} /><${Problem} error=${entry.problem} />
    ${library?.data.length === 0 ? html`<p class="hint">The library is empty.</p>` : null}
    ${library?.data.length > 0 ? html`<table><tbody>${library.data.map((item) => html`<tr key=${item.id}><th scope="row">${item.id}</th><td>${item.kind}</td><td>${item.loaded ? "served" : "not served"}</td>
      <td><button type="button" disabled=${entry.busy} onClick=${() => entry.act(`/v1/library/${encodeURIComponent(item.id)}/${item.loaded ? "unload" : "load"}`, { method: "POST" })}>${item.loaded ? "Unload" : "Load"}</button></td></tr>`)}</tbody></table>` : null}
    ${library?.skipped.map((folder) => html`<p key=${folder.folder} class="warning">${folder.folder}: ${folder.problem}</p>`)}
    <form onSubmit=${add} aria-label="Bring a model from the hub"><h3>Bring a model from the hub</h3><div class="grid">
      ${field("hub_id", "Its id there", "HuggingFaceTB/SmolLM2-135M-Instruct")}${field("revision", "Revision", "main")}${field("file", "GGUF file", "none")}${field("id", "Call it here", "its name")}</div>
      <button type="submit" disabled=${bring.busy}>Bring it</button>
      ${bring.problem && !placed ? html`<${Problem} error=${bring.problem} />` : null}</form>
    ${operations.length > 0 ? html`<h3>Operations</h3><div class="scroll" tabindex="0" role="region" aria-label="Operations"><table><tbody>${operations.map((operation) => html`<tr key=${operation.id}><th scope="row">${operation.hub_id}</th><td>${operation.status}</td>
      <td><progress max=${operation.bytes_total ?? 1} value=${operation.bytes_done} aria-label=${`${operation.hub_id}: bytes done`}></progress> ${bytes(operation.bytes_done)} of ${bytes(operation.bytes_total)}</td><td>${clock(operation.created_at)}</td>
      <td>${operation.finished_at === null ? html`<button type="button" onClick=${() => entry.act(`/v1/library/operations/${encodeURIComponent(operation.id)}/cancel`, { method: "POST" })}>Cancel</button>` : null}${operation.error ? html`<${Problem} error=${operation.error} />` : null}</td></tr>`)}</tbody></table></div>` : null}</section>`;
}

export default function Models() {
  return html`<h1>Models</h1><${Served} /><${Bridges} /><${Presets} />
    ${may("train") ? html`<p>A pair of your own is <a href="#/jobs">a job</a>.</p>` : null}
    ${may("admin") ? html`<${Library} />` : html`<p class="hint">What is served is changed by keys of the role admin.</p>`}`;
}
