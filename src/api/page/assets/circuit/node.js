// One node of a circuit: what it is joined to, what it holds, and what becomes of the task without it.

import { html, useEffect, useState } from "../html.js";
import { link } from "../address.js";
import { bridgeOf, byId } from "../served.js";
import { Term } from "../glossary.js";
import { Problem } from "../parts/fields.js";
import { percent, short } from "../parts/numbers.js";
import { pairsOfTask } from "../parts/pairs.js";
import { score } from "../parts/scoring.js";
import { HeatText } from "../parts/tokens.js";

// The task loss and the accuracy of a model on some held-out pairs, whole and with edits: both prompts of each pair are asked
// for both answers.
export async function taskLoss(model, task, edits) {
  const pairs = await pairsOfTask(task, model, 8);
  const asked = pairs.flatMap((pair) => [[pair.prompt, pair.instead], [pair.prompt, pair.expected], [pair.counterfactual, pair.expected], [pair.counterfactual, pair.instead]]);
  const scored = await score({ model, asked, edits, variants: ["baseline", "steered"], seed: 1 });
  const arm = (variant) => {
    const losses = [];
    for (let at = 0; at < scored.length; at += 2) {
      const [right, wrong] = [at, at + 1].map((index) => scored[index].find((choice) => choice.variant === variant).probability);
      losses.push(-Math.log(Math.max(right / (right + wrong), 1e-12)));
    }
    return { loss: losses.reduce((sum, loss) => sum + loss, 0) / losses.length, right: losses.filter((loss) => loss < Math.LN2).length / losses.length };
  };
  return { whole: arm("baseline"), without: arm("steered"), pairs: pairs.length };
}

// A button that ablates a part of a circuit in the whole model, and what comes of it.
export function Ablation({ circuit, part, label, to }) {
  const [told, setTold] = useState(null);
  const [problem, setProblem] = useState(null);
  const [busy, setBusy] = useState(false);
  useEffect(() => setTold(null), [JSON.stringify(part)]);
  const run = async () => {
    setBusy(true);
    setProblem(null);
    try {
      setTold(await taskLoss(circuit.model, circuit.task, [{ feature: { circuit: circuit.id, ...part }, op: "ablate", ...(to === "mean" ? { to } : {}) }]));
    } catch (refusal) {
      setProblem(refusal);
    }
    setBusy(false);
  };
  return html`<div class="ablation"><button type="button" disabled=${busy || circuit.stale} onClick=${run}>${busy ? "Running…" : label}</button>
    ${told ? html`<p role="status">Task loss of the whole model on ${told.pairs} pairs: <b>${short(told.whole.loss)}</b> whole, <b>${short(told.without.loss)}</b> so edited; right ${percent(told.whole.right)} → ${percent(told.without.right)}.</p>` : null}
    <${Problem} error=${problem} again=${run} /></div>`;
}

function Connections({ title, edges, end, onPin }) {
  if (edges.length === 0) return null;
  const sorted = [...edges].sort((one, two) => Math.abs(two.effect) - Math.abs(one.effect));
  return html`<section><h3>${title}</h3><div class="scroll" tabindex="0" role="region" aria-label=${title}><table><thead><tr><th>node</th><th class="number">weight</th><th class="number">effect</th></tr></thead>
    <tbody>${sorted.map((edge) => html`<tr key=${edge[end].name}><td><button type="button" class="link" onClick=${() => onPin(edge[end].name)}>${edge[end].name}</button></td>
      <td class="number">${short(edge.weight)}</td><td class="number">${short(edge.effect, 2)}</td></tr>`)}</tbody></table></div></section>`;
}

export function NodePanel({ circuit, laid, name, onPin }) {
  const node = laid.byName.get(name);
  if (!node) return html`<p class="hint">Point at a node to see what it is joined to; click one to keep it here.</p>`;
  const bridge = bridgeOf(circuit.model);
  const inSparse = bridge && bridge.sparse === circuit.model;
  const address = JSON.stringify({ circuit: circuit.id, node: node.node, channel: node.channel });
  const answering = inSparse && byId.value.has(bridge.dense) ? bridge.dense : circuit.model;
  const example = node.examples[0]?.tokens.join("") ?? "";
  const largest = Math.max(Math.abs(node.reference.max), Math.abs(node.reference.min), 1e-9);
  return html`<section aria-label=${name}><h2><code>${name}</code></h2>
    <dl class="facts"><dt><${Term} name="effect">Effect</${Term}></dt><dd>${short(node.effect)} in the circuit, ${short(node.effect_in_whole_model)} in the whole model</dd>
      <dt><${Term} name="held at">Held at</${Term}></dt><dd>${short(node.held_at)}</dd>
      <dt>At the last token</dt><dd>${short(node.presented)} presented, ${short(node.counterfactual)} counterfactual</dd>
      <dt>Over reference text</dt><dd>±${short(node.reference.std)} around ${short(node.reference.mean)}, ${short(node.reference.min)} to ${short(node.reference.max)}, not zero at ${percent(node.reference.density)}</dd>
      <dt>Same inside and outside</dt><dd>correlation ${short(node.correlation, 2)}</dd></dl>
    <div class="row">${circuit.stale ? null : html`<a class="button" href=${link("steer", { model: answering, prompt: example, max: 8, stop: "\\n", edits: [{ feature: address, op: "ablate", to: "zero" }], go: true })}>Steer with it</a>`}
      ${inSparse ? html`<a class="button" href=${link("features", { bridge: bridge.id }, name)}>As a feature</a>` : null}
      <button type="button" onClick=${() => onPin("")}>Let go</button></div>
    <${Ablation} circuit=${circuit} part=${{ node: node.node, channel: node.channel }} to=${circuit.method.ablation} label="Ablate it now" />
    <div class="split"><${Connections} title="Reads" edges=${laid.edges.filter((edge) => edge.target === node)} end="source" onPin=${onPin} />
      <${Connections} title="Is read by" edges=${laid.edges.filter((edge) => edge.source === node)} end="target" onPin=${onPin} /></div>
    ${node.examples.length > 0 ? html`<h3>On the task's prompts</h3>${node.examples.map((example, at) => html`<${HeatText} key=${at} tokens=${example.tokens} values=${example.values} largest=${largest} />`)}` : null}
  </section>`;
}
