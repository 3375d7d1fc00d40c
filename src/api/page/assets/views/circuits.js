// The Circuits view: the circuits that are served, and one of them as a graph with what its nodes do, its controls beside its
// figures.

import { html, useEffect, useMemo, useState } from "../html.js";
import { ask, may } from "../api.js";
import { link, note, opened, valuesWith } from "../address.js";
import { circuits } from "../served.js";
import { Term } from "../glossary.js";
import { LineChart } from "../parts/chart.js";
import { DownloadButton, Field, Problem, SelectField } from "../parts/fields.js";
import { percent, short } from "../parts/numbers.js";
import { CircuitGraph, layOut } from "../circuit/graph.js";
import { Ablation, NodePanel } from "../circuit/node.js";

export default function Circuits() {
  return opened.value.rest ? html`<${CircuitPage} id=${opened.value.rest} />` : html`<${CircuitList} />`;
}

function CircuitList() {
  const list = circuits.value;
  return html`<h1>Circuits</h1>
    <p>A <${Term} name="circuit" /> is the few nodes and weights of a model that one task needs.</p>
    ${list.length === 0 ? html`<p class="empty">No circuit is served yet. A job of the type <b>prune</b> finds one for a task${may("train") ? html`: <a href=${link("jobs", { type: "prune" })}>start one</a>` : ""}; what it finds is shown here as soon as it has ended.</p>` : html`
    <div class="scroll" tabindex="0" role="region" aria-label="Circuits"><table><thead><tr><th>circuit</th><th>model</th><th>task</th><th class="number">nodes</th><th class="number">edges</th><th class="number"><${Term} name="task loss" /></th><th>beats its controls</th><th>what it says</th></tr></thead>
    <tbody>${list.map((circuit) => html`<tr key=${circuit.id}><td><a href=${link("circuits", {}, circuit.id)}>${circuit.id}</a>${circuit.stale ? " (stale)" : ""}</td><td>${circuit.model}</td><td>${circuit.task}</td>
      <td class="number">${circuit.nodes}</td><td class="number">${circuit.edges}</td><td class="number">${short(circuit.task_loss)}</td><td>${circuit.controls.beats_controls === null ? "not asked" : circuit.controls.beats_controls ? "yes" : "no"}</td><td>${circuit.summary}</td></tr>`)}</tbody></table></div>`}`;
}

function Figures({ circuit }) {
  const { figures, controls } = circuit;
  const rows = [
    ["the circuit alone", figures.nodes, figures.edges, figures.task_loss_train, figures.task_loss, percent(figures.accuracy)],
    ["the whole model", "all", "all", null, figures.task_loss_whole, percent(figures.accuracy_whole)],
    ["the model without the circuit", "all others", "", null, figures.task_loss_without, percent(figures.accuracy_without)],
    ...[["shuffled_labels", "control: shuffled labels"], ["random_model", "control: random model"], ["frozen_norms", "with frozen norms"]]
      .filter(([name]) => controls[name]).map(([name, title]) => [title, controls[name].nodes, controls[name].edges, controls[name].task_loss_train, null, controls[name].reaches_target ? "reaches the target" : "does not reach the target"]),
  ];
  return html`<section class="panel"><h2>Figures, and its controls</h2><div class="scroll" tabindex="0" role="region" aria-label="Figures and controls"><table><thead><tr><th>what</th><th class="number">nodes</th><th class="number">edges</th><th class="number"><${Term} name="task loss" />, training</th><th class="number">held out</th><th>right</th></tr></thead>
    <tbody>${rows.map((row) => html`<tr key=${row[0]}><th scope="row">${row[0]}</th><td class="number">${row[1]}</td><td class="number">${row[2]}</td><td class="number">${row[3] === null ? "" : short(row[3])}</td><td class="number">${row[4] === null ? "" : short(row[4])}</td><td>${row[5]}</td></tr>`)}</tbody></table></div>
    ${controls.interchange === null ? null : html`<p>Taking its nodes' values from the other prompt turns <b>${percent(controls.interchange)}</b> of answers; as many nodes drawn at random turn ${percent(controls.interchange_random_nodes)}.</p>`}
    ${circuit.sizes.length > 1 ? html`<${Sizes} sizes=${circuit.sizes} />` : null}</section>`;
}

function Sizes({ sizes }) {
  const sorted = useMemo(() => [...sizes].sort((one, two) => one.nodes - two.nodes), [sizes]);
  const x = useMemo(() => sorted.map((size) => size.nodes), [sorted]);
  const lines = useMemo(() => [{ label: "task loss", colour: "accent", values: sorted.map((size) => size.task_loss) }], [sorted]);
  return html`<${LineChart} title="Task loss by the number of nodes kept" x=${x} xLabel="nodes" lines=${lines} height=${180} />`;
}

function CircuitPage({ id }) {
  const [state, setState] = useState(() => valuesWith({ pinned: "", threshold: 0 }));
  const [circuit, setCircuit] = useState(null);
  const [problem, setProblem] = useState(null);
  const load = () => ask(`/v1/circuits/${encodeURIComponent(id)}`).then(setCircuit, setProblem);
  useEffect(() => {
    load();
  }, []);
  useEffect(() => note("circuits", { ...state, threshold: state.threshold || undefined }, id), [state]);
  const laid = useMemo(() => circuit && layOut(circuit), [circuit]);
  const back = html`<p><a href=${link("circuits")}>← All circuits</a></p>`;
  if (!circuit) return html`${back}<h1>${id}</h1>${problem ? html`<${Problem} error=${problem} again=${load} />` : html`<p class="waiting">…</p>`}`;
  // The slider goes over the edges' effects by rank, so that each of its steps takes some away.
  const effects = laid.edges.map((edge) => Math.abs(edge.effect)).sort((one, two) => one - two);
  const rank = effects.filter((effect) => effect < state.threshold).length;
  const setRank = (value) => setState((now) => ({ ...now, threshold: value === 0 ? 0 : effects[Math.min(value, effects.length - 1)] }));
  const pin = (pinned) => setState((now) => ({ ...now, pinned }));
  return html`${back}<h1>${circuit.id}</h1>
    <p>${circuit.summary}</p>
    ${circuit.stale ? html`<p class="warning" role="note">Stale: no model with the weights that it was found in is served. It can be looked at, and neither run nor steered with.</p>` : null}
    <p class="hint">Of <b>${circuit.model}</b>, for ${circuit.task}. ${laid.nodes.length} nodes, ${laid.edges.length} edges. Circles are larger where the <${Term} name="effect" /> is; solid edges have positive weights, dashed ones negative; dotted lines go through the stream.</p>
    <div class="filters">
      <${Field} label="Hide weak edges" hint=${`${effects.length - rank} of ${effects.length} shown${state.threshold > 0 ? `: effects from ${short(state.threshold, 2)}` : ""}`}>${(tied) => html`<input ...${tied} type="range" min="0" max=${Math.max(0, effects.length - 1)} value=${rank} onInput=${(event) => setRank(Number(event.currentTarget.value))} />`}<//>
      <${SelectField} label="Node" value=${state.pinned} options=${[["", "none"], ...laid.nodes.map((node) => [node.name, node.name])]} onInput=${pin} />
    </div>
    <div class="circuit"><${CircuitGraph} laid=${laid} threshold=${state.threshold} pinned=${state.pinned} onPin=${pin} />
      <aside class="panel" aria-label="Node"><${NodePanel} circuit=${circuit} laid=${laid} name=${state.pinned} onPin=${pin} /></aside></div>
    <section class="panel"><h2>All of it</h2><div class="row">
      <${Ablation} circuit=${circuit} part=${{}} to=${circuit.method.ablation} label="Ablate the circuit" />
      <${Ablation} circuit=${circuit} part=${{ complement: true }} to=${circuit.method.ablation} label="Ablate everything else" /></div>
      <p class="row">${circuit.stale ? null : html`<a class="button" href=${link("steer", { model: circuit.model, edits: [{ feature: `circuit:${circuit.id}`, op: "ablate" }], prompt: circuit.nodes[0]?.examples[0]?.tokens.join("") ?? "" })}>Steer with it</a>`}
        <${DownloadButton} path=${`/v1/circuits/${encodeURIComponent(id)}.svg`} name=${`${id}.svg`}>Picture<//>
        <${DownloadButton} path=${`/v1/circuits/${encodeURIComponent(id)}`} name=${`${id}.json`}>Record<//></p></section>
    <${Figures} circuit=${circuit} />`;
}
