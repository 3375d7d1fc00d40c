// The Contrast view: pairs of prompts in, channels ranked by what patching them does to the dense model out; the best can be
// given a name.

import { html, useEffect, useRef, useState } from "../html.js";
import { ask, may } from "../api.js";
import { link, note, valuesWith } from "../address.js";
import { bridgeOf, bridges, byId, refresh } from "../served.js";
import { Term } from "../glossary.js";
import { isAbout, NumberField, Problem, SelectField, TextField } from "../parts/fields.js";
import { nodeLocations } from "../parts/places.js";
import { percent, short } from "../parts/numbers.js";
import { pairOf, PairsEditor } from "../parts/pairs.js";

const EXAMPLE = { prompt: 'print("hello world', counterfactual: "print('hello world", expected: "')", instead: '")' };

// A group of channels that was found, to be named and kept.
function Register({ found, bridge, pairs, done }) {
  const [name, setName] = useState("");
  const [description, setDescription] = useState("");
  const [problem, setProblem] = useState(null);
  const register = async (event) => {
    event.preventDefault();
    setProblem(null);
    try {
      const tests = pairs.slice(0, 20).map((pair) => ({ ...pair, at_least: 0, at_most_before: 1 }));
      const body = { bridge, name, description, node: found.node, channels: found.channels, write: found.write, tests };
      const made = await ask("/v1/features", { body });
      await refresh();
      done(made);
    } catch (refusal) {
      setProblem(refusal);
    }
  };
  return html`<form class="row register" onSubmit=${register} aria-label=${`Name the channels of ${found.node}`}>
    <${TextField} label="Name" value=${name} placeholder="opening_quote" param="name" error=${problem} onInput=${setName} />
    <${TextField} label="Description" value=${description} param="description" error=${problem} onInput=${setDescription} />
    <button type="submit">Register it</button>
    ${problem && !isAbout(problem, "name") && !isAbout(problem, "description") ? html`<${Problem} error=${problem} again=${() => {}} />` : null}
  </form>`;
}

function Found({ found, bridge, dense, pairs }) {
  const [made, setMade] = useState(null);
  const strongest = Math.max(...found.ranking.map((channel) => Math.abs(channel.effect)), 1e-9);
  const feature = made?.id ?? { node: found.node, channels: found.channels };
  const text = typeof feature === "string" ? feature : JSON.stringify(feature);
  const pair = pairs[0];
  return html`<section class="panel" aria-label=${found.node}><h2><code>${found.node}</code></h2>
    <p>${found.channels_to_flip === null ? `All ${found.channels.length} channels together do not turn half of the answers.`
      : html`<b>${found.channels_to_flip}</b> ${found.channels_to_flip === 1 ? "channel turns" : "channels turn"} half of the answers.`}</p>
    <div class="split"><section><h3>Channels by effect</h3><div class="scroll" tabindex="0" role="region" aria-label=${`Channels of ${found.node} by effect`}><table><thead><tr><th>channel</th><th class="number">effect</th><th><span class="visually-hidden">As a bar</span></th></tr></thead><tbody>${found.ranking.slice(0, 24).map((channel) => html`<tr key=${channel.channel}>
        <td><a href=${link("features", { bridge }, `${found.node}:${channel.channel}`)}>${channel.channel}</a></td><td class="number">${short(channel.effect)}</td>
        <td><span class=${`bar ${channel.effect < 0 ? "down" : "up"}`} style=${{ width: `${Math.round(Math.abs(channel.effect) / strongest * 90)}px` }}></span></td></tr>`)}</tbody></table></div></section>
      <section><h3>Together, one more at a time</h3><div class="scroll" tabindex="0" role="region" aria-label=${`Channels of ${found.node} together`}><table><thead><tr><th>with channel</th><th class="number">turned</th><th class="number">probability</th></tr></thead><tbody>${found.group.map((step, index) => html`<tr key=${index}>
        <td>${step.channel}</td><td class="number">${percent(step.flips)}</td><td class="number">${percent(step.probability)}</td></tr>`)}</tbody></table></div></section></div>
    <div class="row"><a class="button" href=${link("steer", { model: dense, bridge: bridgeOf(dense)?.id === bridge ? "" : bridge, prompt: pair.prompt, edits: [{ feature: text, op: "patch", prompt: pair.counterfactual }], max: 8, stop: "\\n", go: true })}>Steer with it</a>
      ${made ? html`<span role="status">Registered as <a href=${link("features", { bridge }, made.id)}>${made.id}</a>.</span>` : null}</div>
    ${!made && may("train") ? html`<${Register} found=${found} bridge=${bridge} pairs=${pairs} done=${setMade} />` : null}
  </section>`;
}

export default function Contrast() {
  const [state, setState] = useState(() => {
    const values = valuesWith({ bridge: "", pairs: [], node: "", max: 8 });
    return { ...values, bridge: values.bridge || (bridges.value[0]?.id ?? ""), pairs: values.pairs.length > 0 ? values.pairs.map(pairOf) : [EXAMPLE] };
  });
  const [result, setResult] = useState(null);
  const [problem, setProblem] = useState(null);
  const [busy, setBusy] = useState(false);
  const aborter = useRef(null);
  useEffect(() => note("contrast", state), [state]);
  useEffect(() => () => aborter.current?.abort(), []);
  const change = (changes) => setState((now) => ({ ...now, ...changes }));
  if (bridges.value.length === 0) return html`<h1>Contrast</h1><p>No <${Term} name="bridge" /> is served, and channels are compared over one. <a href="#/models">Models</a></p>`;
  const bridge = bridges.value.find((bridge) => bridge.id === state.bridge) ?? bridges.value[0];
  const sparse = byId.value.get(bridge.sparse);
  const search = async (event) => {
    event?.preventDefault();
    const abort = new AbortController();
    aborter.current = abort;
    setProblem(null);
    setResult(null);
    setBusy(true);
    try {
      const body = { bridge: bridge.id, pairs: state.pairs, max_channels: state.max, ...(state.node ? { nodes: [state.node] } : {}) };
      setResult({ ...(await ask("/v1/features/contrast", { body, abort: abort.signal })), pairs: state.pairs });
    } catch (refusal) {
      if (!abort.signal.aborted) setProblem(refusal);
    }
    setBusy(false);
  };
  const placed = ["pairs", "nodes", "max_channels", "bridge"].some((name) => isAbout(problem, name));
  return html`<h1>Contrast</h1>
    <p>Give pairs of prompts that differ in one fact and in nothing else, with the answer that each wants. Every <${Term} name="channel" /> of
      the <${Term} name="sparse model" /> is asked what patching it does to the <${Term} name="dense model">dense model's</${Term}> answer; several pairs together find channels that mean the fact.</p>
    <form class="panel" onSubmit=${search} aria-label="Contrast">
      <${PairsEditor} pairs=${state.pairs} model=${bridge.dense} error=${problem} onInput=${(pairs) => change({ pairs })} />
      <div class="grid">
        <${SelectField} label="Bridge" value=${bridge.id} options=${bridges.value.map((bridge) => bridge.id)} param="bridge" error=${problem} onInput=${(bridge) => change({ bridge })} />
        <${SelectField} label="Place" value=${state.node} options=${[["", "all (takes longer)"], ...(sparse?.sites ?? []), ...nodeLocations(sparse).filter((node) => node.endsWith("act_in"))]} param="nodes" error=${problem} onInput=${(node) => change({ node })} />
        <${NumberField} label="Most channels" value=${state.max} min="1" max="32" step="1" param="max_channels" error=${problem} onInput=${(max) => change({ max: Math.round(max) })} />
      </div>
      <div class="row"><button type="submit" class="primary" disabled=${busy}>${busy ? "Searching…" : "Find channels"}</button>
        <button type="button" disabled=${!busy} onClick=${() => aborter.current?.abort()}>Stop</button></div>
      ${problem && !placed ? html`<${Problem} error=${problem} again=${() => search()} />` : null}
    </form>
    ${result ? html`<p role="status">On these pairs the dense model is right in ${percent(result.dense_accuracy)}, the sparse one in ${percent(result.sparse_accuracy)}. ${result.data.length === 1 ? "" : `${result.data.length} places, the best first.`}</p>
      ${result.data.map((found) => html`<${Found} key=${found.node} found=${found} bridge=${bridge.id} dense=${bridge.dense} pairs=${result.pairs} />`)}` : null}`;
}
