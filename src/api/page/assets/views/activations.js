// The Activations view: what any place of a pair's two models holds at each token of a text, side by side, with named
// features; and where a head attends.

import { html, useEffect, useRef, useState } from "../html.js";
import { ask } from "../api.js";
import { link, note, valuesWith } from "../address.js";
import { bridgeOf, byId, featuresOf, firstModel, models, statsOf } from "../served.js";
import { Term } from "../glossary.js";
import { isAbout, NumberField, Problem, save, SelectField, TextField } from "../parts/fields.js";
import { nodeLocations } from "../parts/places.js";
import { short } from "../parts/numbers.js";
import { heat, visible } from "../parts/tokens.js";

const DEFAULTS = { model: "", text: 'print("hello world', node: "", nodes: [], channels: [], denseNode: "", count: 10, layer: 0, head: 0, side: "dense", go: false };

// The channels of a place that are largest anywhere in the text, with their values; of `wanted` ones, those.
function columnsOf(told, count, wanted) {
  if (!told) return [];
  const { values, channels } = told;
  // With `top_k` every token tells its own channels.
  const rows = values.map((row, at) => new Map(row.map((value, index) => [channels ? channels[at][index] : index, value])));
  const most = new Map();
  for (const row of rows) for (const [channel, value] of row) most.set(channel, Math.max(most.get(channel) ?? 0, Math.abs(value)));
  const order = wanted.length > 0 ? wanted : [...most].sort((one, two) => two[1] - one[1]).slice(0, count).map(([channel]) => channel);
  return order.map((channel) => ({ name: String(channel), channel, largest: most.get(channel) ?? 1, values: rows.map((row) => row.get(channel) ?? 0) }));
}

// Named features that are active somewhere, against what they typically are.
function featureColumns(told, features, count) {
  const columns = (told?.features ?? []).map((found, index) => {
    const stats = statsOf(features[index]);
    const largest = stats ? Math.max(Math.abs(stats.max), Math.abs(stats.min)) : Math.max(...found.values.map(Math.abs), 1e-9);
    return { name: features[index].id, feature: features[index], largest, values: found.values };
  });
  const strength = (column) => Math.max(...column.values.map(Math.abs)) / column.largest;
  return columns.sort((one, two) => strength(two) - strength(one)).slice(0, count);
}

function Grid({ tokens, groups }) {
  const shown = groups.filter((group) => group.columns.length > 0);
  return html`<div class="scroll grid-scroll" tabindex="0" role="region" aria-label="Activations, token by token"><table class="activations">
    <thead><tr><th scope="col" rowspan="2">token</th>${shown.map((group) => html`<th key=${group.title} scope="colgroup" colspan=${group.columns.length} class="group">${group.title}</th>`)}</tr>
      <tr>${shown.flatMap((group) => group.columns.map((column, index) => html`<th key=${`${group.title}/${column.name}`} scope="col" class=${index === 0 ? "column-name group" : "column-name"}>
        ${group.linkTo ? html`<a href=${group.linkTo(column)}>${column.name}</a>` : column.name}</th>`))}</tr></thead>
    <tbody>${tokens.map((token, at) => html`<tr key=${at}><th scope="row"><span class="position">${at}</span> <code>${visible(token.text)}</code></th>
      ${shown.flatMap((group) => group.columns.map((column, index) => html`<td key=${`${group.title}/${column.name}`} class=${index === 0 ? "group" : ""}
        style=${{ background: heat(column.values[at], column.largest) }}>${Math.abs(column.values[at]) < column.largest / 200 ? "" : short(column.values[at], 2)}</td>`))}</tr>`)}</tbody>
  </table></div>`;
}

function Pattern({ tokens, pattern, title }) {
  const [over, setOver] = useState(null);
  const size = Math.max(8, Math.min(22, Math.floor(520 / tokens.length)));
  const width = tokens.length * size;
  return html`<figure class="chart"><figcaption>${title}</figcaption>
    <div class="scroll" tabindex="0" role="region" aria-label=${`${title}, as a picture`}><svg class="pattern" width=${width + 90} height=${width + 90} role="img"
      aria-label=${`${title}: each row is a token, each column one that it attends to`} onMouseLeave=${() => setOver(null)}>
      ${tokens.map((token, at) => html`<text key=${`row${at}`} x="84" y=${90 + at * size + size * 0.75} text-anchor="end" class=${over?.[0] === at ? "lit" : ""}>${visible(token.text).slice(0, 10)}</text>`)}
      ${tokens.map((token, at) => html`<text key=${`column${at}`} transform=${`translate(${90 + at * size + size * 0.75} 84) rotate(-90)`} class=${over?.[1] === at ? "lit" : ""}>${visible(token.text).slice(0, 10)}</text>`)}
      ${pattern.flatMap((row, to) => row.slice(0, to + 1).map((share, from) => html`<rect key=${`${to}-${from}`} x=${90 + from * size} y=${90 + to * size} width=${size - 1} height=${size - 1}
        fill-opacity=${Math.max(0.03, share)} onMouseEnter=${() => setOver([to, from, share])}><title>${`${visible(tokens[to].text)} attends to ${visible(tokens[from].text)}: ${short(share)}`}</title></rect>`))}
    </svg></div>
    <p class="hint">${over ? html`<code>${visible(tokens[over[0]].text)}</code> takes ${short(over[2])} from <code>${visible(tokens[over[1]].text)}</code>` : "Each row is a token, each column one that it takes values from. What is missing from a row's sum is the sink."}</p>
  </figure>`;
}

export default function Activations() {
  const [state, setState] = useState(() => {
    const values = valuesWith(DEFAULTS);
    const model = values.model || firstModel();
    const [node] = values.nodes.filter((name) => typeof name === "string");
    const counted = { count: Math.max(1, Math.min(64, Math.round(values.count))), layer: Math.max(0, Math.round(values.layer)), head: Math.max(0, Math.round(values.head)) };
    return { ...values, ...counted, model, text: values.text || DEFAULTS.text, node: node ?? values.node, nodes: [], channels: values.channels.filter(Number.isInteger) };
  });
  const [result, setResult] = useState(null);
  const [problem, setProblem] = useState(null);
  const [busy, setBusy] = useState(false);
  const aborter = useRef(null);
  const change = (changes) => setState((now) => ({ ...now, go: false, ...changes }));
  const bridge = bridgeOf(state.model);
  const dense = byId.value.get(bridge ? bridge.dense : state.model);
  const sparse = bridge ? byId.value.get(bridge.sparse) : null;
  const own = sparse ?? dense;
  const node = state.node || (sparse?.sites.includes("1.resid_mid") ? "1.resid_mid" : own?.sites.at(-1)) || "";
  const joined = bridge?.sites.find((site) => site.site === node)?.dense_site;
  const denseNode = state.denseNode || joined || (dense?.sites.includes(node) || nodeLocations(dense).includes(node) ? node : dense?.sites.at(-1)) || "";
  useEffect(() => note("activations", { ...state, text: state.text === DEFAULTS.text ? "" : state.text }), [state]);
  useEffect(() => () => aborter.current?.abort(), []);
  useEffect(() => {
    look();
  }, []);

  async function look(event) {
    event?.preventDefault();
    aborter.current?.abort();
    const abort = new AbortController();
    aborter.current = abort;
    setBusy(true);
    setProblem(null);
    const features = featuresOf(dense.id).filter((feature) => feature.object === "feature").slice(0, 256);
    // All channels of a narrow model, of a wide one the largest.
    const some = (model, wanted) => (wanted.length > 0 ? { channels: wanted } : model.d_model > 1024 ? { top_k: 64 } : {});
    const of = (model, place, wanted, more = {}) => ask("/v1/activations", { body: { model: model.id, prompt: state.text, nodes: [place], ...some(model, wanted), ...more }, abort: abort.signal });
    try {
      const asked = [of(dense, denseNode, []), sparse ? of(sparse, node, state.channels) : null,
        features.length > 0 ? ask("/v1/activations", { body: { model: dense.id, prompt: state.text, features: features.map((feature) => feature.id), steer: { bridge: bridge.id, edits: [] } }, abort: abort.signal }) : null];
      const [ofDense, ofSparse, ofFeatures] = await Promise.all(asked);
      const side = state.side === "sparse" && sparse ? sparse : dense;
      const layer = Math.min(state.layer, side.n_layers - 1);
      const heads = await ask("/v1/activations", { body: { model: side.id, prompt: state.text, attention: [{ layer, head: Math.min(state.head, side.n_heads - 1) }] }, abort: abort.signal });
      setResult({ tokens: ofDense.tokens, dense: ofDense.nodes[denseNode], denseNode, sparse: ofSparse?.nodes[node], node, features, told: ofFeatures, attention: heads.attention?.[0], side: side.id, answers: { dense: ofDense, sparse: ofSparse, features: ofFeatures, attention: heads } });
    } catch (refusal) {
      if (!abort.signal.aborted) setProblem(refusal);
    }
    if (aborter.current === abort) setBusy(false);
  }

  const denseChoices = models.value.filter((model) => model.kind === "dense").map((model) => model.id);
  const places = (model) => [...(model?.sites ?? []), ...nodeLocations(model)];
  const side = state.side === "sparse" && sparse ? sparse : dense;
  const groups = result ? [
    { title: `${dense.id}: ${result.denseNode}`, columns: columnsOf(result.dense, state.count, []) },
    { title: `${sparse?.id}: ${result.node}`, columns: columnsOf(result.sparse, state.count, state.channels), linkTo: (column) => link("features", { bridge: bridge.id }, `${result.node}:${column.channel}`) },
    { title: "features", columns: featureColumns(result.told, result.features, 8), linkTo: (column) => link("features", { bridge: column.feature.bridge }, column.name) },
  ] : [];
  const placed = ["prompt", "model", "nodes"].some((name) => isAbout(problem, name));
  return html`<h1>Activations</h1>
    <p>What a place of each model holds at every token: the channels that are largest anywhere in the text, and the named <${Term} name="feature">features</${Term}>, each against what it typically is.</p>
    <form class="panel" onSubmit=${look} aria-label="Activations">
      <${TextField} label="Text" rows=${2} value=${state.text} param="prompt" error=${problem} onInput=${(text) => change({ text })} />
      <div class="grid">
        <${SelectField} label="Model" value=${dense?.id} options=${denseChoices} param="model" error=${problem} onInput=${(model) => change({ model, node: "", denseNode: "", channels: [] })} />
        <${SelectField} label=${html`Place in the <${Term} name="dense model">dense</${Term}>`} value=${denseNode} options=${places(dense)} param="nodes" error=${problem} onInput=${(denseNode) => change({ denseNode })} />
        ${sparse ? html`<${SelectField} label=${html`Place in the <${Term} name="sparse model">sparse</${Term}>`} value=${node} options=${places(sparse)} onInput=${(node) => change({ node, denseNode: "", channels: [] })} />` : null}
        <${NumberField} label="Channels of each" value=${state.count} min="1" max="64" step="1" onInput=${(count) => change({ count: Math.max(1, Math.min(64, Math.round(count))) })} />
        <${SelectField} label=${html`<${Term} name="attention">Attention</${Term}> of`} value=${state.side} options=${[["dense", "the dense model"], ...(sparse ? [["sparse", "the sparse model"]] : [])]} onInput=${(side) => change({ side, head: 0 })} />
        <${SelectField} label="Layer" value=${String(state.layer)} options=${Array.from({ length: side?.n_layers ?? 0 }, (_, layer) => String(layer))} onInput=${(layer) => change({ layer: Number(layer) })} />
        <${SelectField} label="Head" value=${String(state.head)} options=${Array.from({ length: side?.n_heads ?? 0 }, (_, head) => String(head))} param="attention" error=${problem} onInput=${(head) => change({ head: Number(head) })} />
      </div>
      ${state.channels.length > 0 ? html`<p>Only channels ${state.channels.join(", ")} of the sparse model. <button type="button" onClick=${() => change({ channels: [] })}>All</button></p>` : null}
      <div class="row"><button type="submit" class="primary" disabled=${busy}>${busy ? "Looking…" : "Look"}</button>
        ${result ? html`<button type="button" onClick=${() => save("activations.json", "application/json", JSON.stringify(result.answers))}>Download as JSON</button>` : null}
        <a class="button" href=${link("steer", { model: state.model, prompt: state.text })}>Steer this text</a></div>
      ${problem && !placed ? html`<${Problem} error=${problem} again=${() => look()} />` : null}
    </form>
    ${result ? html`<${Grid} tokens=${result.tokens} groups=${groups} />
      ${result.attention ? html`<section class="panel"><h2>Attention</h2><${Pattern} tokens=${result.tokens} pattern=${result.attention.values} title=${`${result.side}: layer ${result.attention.layer}, head ${result.attention.head}`} /></section>` : null}` : null}`;
}
