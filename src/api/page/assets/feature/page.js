// The page of one feature or channel: where it shows, what it speaks for, what it is wired to, and what it does.

import { html, useEffect, useState } from "../html.js";
import { ask, may } from "../api.js";
import { link, note, valuesWith } from "../address.js";
import { bridgeOf, bridges, features, refresh, statsOf } from "../served.js";
import { Term } from "../glossary.js";
import { Problem, TextField } from "../parts/fields.js";
import { Histogram } from "../parts/chart.js";
import { percent, short } from "../parts/numbers.js";
import { HeatText, Prose, visible } from "../parts/tokens.js";
import { tryOfTest } from "../steer/beginnings.js";
import { newEdit } from "../steer/request.js";

function Examples({ title, windows, largest }) {
  if (windows.length === 0) return null;
  return html`<section><h3>${title}</h3>${windows.map((window, index) => html`<div key=${index} class="example">
    <span class="value">${short(window.value)}</span>
    <${HeatText} tokens=${window.tokens} values=${window.values ?? window.tokens.map((_, at) => (at === window.at ? window.value : 0))}
      largest=${largest} at=${window.at} /></div>`)}</section>`;
}

function Tokens({ title, tokens }) {
  const most = Math.max(...tokens.map((token) => Math.abs(token.score)), 1e-9);
  return html`<section><h3>${title}</h3><table><tbody>${tokens.map((token) => html`<tr key=${token.id}>
    <td><code>${visible(token.text)}</code></td><td class="number">${short(token.score)}</td>
    <td><span class=${`bar ${token.score < 0 ? "down" : "up"}`} style=${{ width: `${Math.round(Math.abs(token.score) / most * 90)}px` }}></span></td></tr>`)}</tbody></table></section>`;
}

function Weights({ weights, bridge }) {
  const [shown, setShown] = useState(0);
  const channel = weights[shown];
  if (!channel) return null;
  const list = (title, edges, count) => html`<section><h3>${title} <span class="hint">${count === edges.length ? count : `${edges.length} largest of ${count}`}</span></h3>
    ${edges.length === 0 ? html`<p class="hint">None inside a sublayer.</p>` : html`<div class="scroll" tabindex="0" role="region" aria-label=${title}><table><tbody>${edges.map((edge) => html`<tr key=${`${edge.node}:${edge.channel}`}>
      <td><a href=${link("features", { bridge }, `${edge.node}:${edge.channel}`)}><code>${edge.node}:${edge.channel}</code></a></td>
      <td class="number">${short(edge.weight)}</td></tr>`)}</tbody></table></div>`}</section>`;
  return html`<section class="panel"><h2>Weights</h2>
    ${weights.length > 1 ? html`<div class="row" role="group" aria-label="Channel">${weights.map((entry, index) => html`<button key=${entry.channel} type="button"
      aria-pressed=${index === shown ? "true" : "false"} onClick=${() => setShown(index)}>channel ${entry.channel}</button>`)}</div>` : null}
    <div class="split">${list("Into it", channel.incoming, channel.n_incoming)}${list("Out of it", channel.outgoing, channel.n_outgoing)}</div></section>`;
}

function Tests({ feature, bridge }) {
  const [result, setResult] = useState(null);
  const [problem, setProblem] = useState(null);
  const [busy, setBusy] = useState(false);
  if (feature.tests.length === 0) return null;
  const run = async () => {
    setBusy(true);
    setProblem(null);
    try {
      setResult(await ask(`/v1/features/${encodeURIComponent(feature.id)}/verify?bridge=${encodeURIComponent(bridge.id)}`, { method: "POST" }));
    } catch (refusal) {
      setProblem(refusal);
    }
    setBusy(false);
  };
  return html`<section class="panel"><h2>Tests</h2>
    <p class="hint">Each claims: patched from the counterfactual, the feature makes the expected token likelier than the other one.</p>
    <div class="scroll" tabindex="0" role="region" aria-label="Tests"><table><thead><tr><th>prompt</th><th>counterfactual</th><th>expected</th><th>before</th><th>after</th><th><span class="visually-hidden">Result</span></th></tr></thead>
    <tbody>${feature.tests.map((test, index) => {
      const told = result?.tests[index];
      return html`<tr key=${index}><td><code>${visible(test.prompt)}</code></td><td><code>${visible(test.counterfactual)}</code></td>
        <td><code>${visible(test.expected)}</code> instead of <code>${visible(test.instead)}</code></td>
        <td>${told ? percent(told.before) : `≤ ${percent(test.at_most_before)}`}</td><td>${told ? percent(told.after) : `≥ ${percent(test.at_least)}`}</td>
        <td>${told ? html`<b class=${told.passed ? "passed" : "failed"}>${told.passed ? "passed" : "failed"}</b>` : html`<a href=${link("steer", { ...tryOfTest(bridge.dense, feature, test), go: true })}>steer</a>`}</td></tr>`;
    })}</tbody></table></div>
    <div class="row"><button type="button" disabled=${busy} onClick=${run}>${busy ? "Running…" : "Run the tests now"}</button>
      ${result ? html`<span role="status">${result.passed ? "All passed." : "Not all passed."}</span>` : null}</div>
    ${result?.twin ? html`<p>Patched on ${result.twin.pairs} pairs of its first task, it changes the dense model's answers as it changes the sparse model's:
      the effects correlate by <b>${result.twin.correlation === null ? "–" : short(result.twin.correlation)}</b> and have the same sign for ${percent(result.twin.same_sign)} of the prompts.</p>` : null}
    ${result?.binarised ? html`<p>With two values only (${short(result.binarised.low)} and ${short(result.binarised.high)}) the sparse model answers ${percent(result.binarised.accuracy_binarised)} of those prompts rightly; as it is, ${percent(result.binarised.accuracy)}.</p>` : null}
    <${Problem} error=${problem} again=${run} /></section>`;
}

function OwnText({ feature, model, text, onInput }) {
  const [told, setTold] = useState(null);
  const [problem, setProblem] = useState(null);
  const look = async (event) => {
    event?.preventDefault();
    setProblem(null);
    try {
      const address = feature.name === null ? { node: feature.node, channel: feature.channels[0].channel } : feature.id;
      setTold(await ask("/v1/activations", { body: { model, prompt: text, features: [address], ...(feature.bridge ? { steer: { bridge: feature.bridge, edits: [] } } : {}) } }));
    } catch (refusal) {
      setProblem(refusal);
    }
  };
  useEffect(() => {
    if (text) look();
  }, []);
  const values = told?.features[0]?.values;
  return html`<section class="panel"><h2>On my own text</h2><form onSubmit=${look}>
    <${TextField} label="Text" rows=${2} value=${text} onInput=${onInput} param="prompt" error=${problem} />
    <button type="submit">Look</button></form>
    ${problem && problem.param !== "prompt" ? html`<${Problem} error=${problem} again=${look} />` : null}
    ${values ? html`<${HeatText} tokens=${told.tokens.map((token) => token.text)} values=${values} largest=${statsOf(feature)?.max} label="The text, coloured by activation" />
      <p class="hint">From ${short(Math.min(...values))} to ${short(Math.max(...values))}; point at a token for its value.</p>` : null}
  </section>`;
}

function Effects({ effects }) {
  if (!effects) return null;
  const own = effects.own;
  return html`<section class="panel"><h2>What patching it does</h2>
    <p>On ${effects.pairs} pairs of its first task it turns <b>${percent(own.flips)}</b> of the dense model's answers;
      a <${Term} name="random control">random direction</${Term}> turns ${percent(own.random_flips)}, <${Term} name="another feature" /> ${percent(own.random_feature_flips)}.${" "}
      ${own.channels_to_flip === null ? "" : `${own.channels_to_flip} of its ${own.channels} channels suffice for half of them.`}</p></section>`;
}

export function FeaturePage({ id }) {
  const [state, setState] = useState(() => valuesWith({ bridge: "", model: "", text: "", examples: 5 }));
  const [feature, setFeature] = useState(null);
  const [problem, setProblem] = useState(null);
  useEffect(() => note("features", { ...state, examples: state.examples === 5 ? undefined : state.examples }, id), [state]);
  const load = async () => {
    setProblem(null);
    const query = new URLSearchParams({ examples: state.examples });
    if (state.bridge) query.set("bridge", state.bridge);
    if (state.model) query.set("model", state.model);
    try {
      setFeature(await ask(`/v1/features/${encodeURIComponent(id)}?${query}`));
    } catch (refusal) {
      setProblem(refusal);
    }
  };
  useEffect(() => {
    load();
  }, [state.examples]);
  const remove = async () => {
    const query = feature.bridge ? `bridge=${encodeURIComponent(feature.bridge)}` : `model=${encodeURIComponent(feature.model)}`;
    try {
      await ask(`/v1/features/${encodeURIComponent(id)}?${query}`, { method: "DELETE" });
      await refresh();
      location.hash = link("features");
    } catch (refusal) {
      setProblem(refusal);
    }
  };
  const back = html`<p><a href=${link("features")}>← All features</a></p>`;
  if (!feature) return html`${back}<h1>${id}</h1>${problem ? html`<${Problem} error=${problem} again=${load} />` : html`<p class="waiting">Reading the reference text…</p>`}`;
  const isDirection = feature.object === "direction";
  const bridge = isDirection ? null : bridges.value.find((bridge) => bridge.id === feature.bridge) ?? bridgeOf(state.model);
  const model = isDirection ? feature.model : bridge?.dense;
  const stats = statsOf(feature);
  const examples = feature.examples;
  const all = examples ? [...examples.top, ...examples.bottom, ...examples.quantiles] : [];
  const largest = Math.max(...all.map((window) => Math.abs(window.value)), 1e-9);
  const removable = may("train") && (isDirection || feature.origin === "own" || feature.origin === "changed");
  const tried = feature.tests?.[0] ? tryOfTest(model, feature, feature.tests[0])
    : { model, bridge: bridge && bridgeOf(model)?.id !== bridge.id ? bridge.id : "", prompt: state.text || "x = ", edits: [newEdit({ feature: feature.id, op: "add", value: 4, unit: stats ? "std" : "raw" })] };
  return html`${back}<h1>${feature.id}</h1>
    <p>${feature.description ? html`<${Prose} text=${feature.description} />` : feature.name === null ? "A channel that nobody has named." : ""}</p>
    <div class="row"><a class="button primary-link" href=${link("steer", { ...tried, go: true })}>Steer with it</a>
      ${isDirection ? null : html`<a class="button" href=${link("activations", { nodes: [feature.node], channels: feature.channels.map((member) => member.channel), text: state.text })}>Its channels in Activations</a>`}
      ${removable ? html`<button type="button" onClick=${remove}>${feature.origin === "changed" ? "Undo the changes" : "Delete it"}</button>` : null}</div>
    <${Problem} error=${problem} />
    <dl class="facts">
      ${isDirection ? html`<dt>Direction of</dt><dd>${feature.model} at ${feature.directions.map((direction) => direction.site).join(", ")}</dd>`
        : html`<dt>Place</dt><dd><code>${feature.node}</code> of ${bridge?.sparse ?? feature.bridge}, written to the ${feature.write === "residual" ? "residual stream" : "sublayer's input"}</dd>
          <dt>Channels</dt><dd>${feature.channels.map((member) => html`<a key=${member.channel} href=${link("features", { bridge: feature.bridge }, `${feature.node}:${member.channel}`)}>${member.channel}</a>${feature.channels.length > 1 ? ` × ${short(member.weight, 2)}  ` : ""}`)}</dd>`}
      ${stats ? html`<dt>Typically</dt><dd>±${short(stats.std)} around ${short(stats.mean)}, from ${short(stats.min)} to ${short(stats.max)}${stats.density === undefined ? "" : html`; not zero at ${percent(stats.density)} of tokens (<${Term} name="density" />)`}</dd>` : null}
      ${feature.tasks?.length > 0 ? html`<dt>Tasks</dt><dd>${feature.tasks.map((task) => html`<a key=${task} href=${link("features", { task })}>${task.replaceAll("_", " ")}</a> `)}</dd>` : null}
      ${feature.circuits?.length > 0 ? html`<dt>Circuits</dt><dd>${feature.circuits.map((circuit) => html`<a key=${circuit} href=${link("circuits", {}, circuit)}>${circuit}</a> `)}</dd>` : null}
    </dl>
    <${Effects} effects=${feature.effects} />
    ${isDirection ? null : html`<${Tests} feature=${feature} bridge=${bridge} />`}
    ${model ? html`<${OwnText} feature=${feature} model=${model} text=${state.text} onInput=${(text) => setState((now) => ({ ...now, text }))} />` : null}
    ${feature.histogram ? html`<section class="panel"><h2>How often it has which value</h2><${Histogram} ...${feature.histogram} title="Tokens of reference text by activation (heights are square roots)" /></section>` : null}
    ${examples ? html`<section class="panel"><h2>Where it shows</h2>
      <p class="hint">Reference text, coloured by <${Term} name="activation" />; the framed token is the one that counts.</p>
      ${feature.label ? html`<p>Counted at its strongest and weakest places: ${feature.label}.</p>` : null}
      <${Examples} title="Strongest" windows=${examples.top} largest=${largest} />
      <${Examples} title="Weakest, or strongest the other way" windows=${examples.bottom} largest=${largest} />
      <${Examples} title="In between, by quantiles" windows=${examples.quantiles} largest=${largest} />
      ${state.examples < 20 ? html`<button type="button" onClick=${() => setState((now) => ({ ...now, examples: 20 }))}>More examples</button>` : null}</section>` : null}
    ${feature.promoted ? html`<section class="panel"><h2><${Term} name="logit effects">Tokens it speaks for</${Term}></h2>
      <p class="hint">${feature.promotion.scored_by === "measured" ? `Measured: mean change of log-probability in the dense model when ${short(feature.promotion.added)} is added, over ${feature.promotion.tokens} tokens.` : "By the unembedding: logits for a unit of the feature."}</p>
      <div class="split"><${Tokens} title="Likelier" tokens=${feature.promoted} /><${Tokens} title="Less likely" tokens=${feature.suppressed} /></div></section>` : null}
    ${feature.weights ? html`<${Weights} weights=${feature.weights} bridge=${feature.bridge} />` : null}`;
}
