// The Features view: all features that have names, searched and filtered; an address with a feature's id shows that one.

import { html, useEffect, useMemo, useState } from "../html.js";
import { link, note, opened, valuesWith } from "../address.js";
import { bridges, features, statsOf } from "../served.js";
import { Term } from "../glossary.js";
import { SelectField, TextField } from "../parts/fields.js";
import { percent, short } from "../parts/numbers.js";
import { Prose } from "../parts/tokens.js";
import { FeaturePage } from "../feature/page.js";

// The link to a feature's page.
export function featureLink(feature) {
  return feature.object === "direction"
    ? link("features", { model: feature.model }, feature.id) : link("features", { bridge: feature.bridge }, feature.id);
}

export default function Features() {
  return opened.value.rest ? html`<${FeaturePage} id=${opened.value.rest} />` : html`<${FeatureList} />`;
}

function FeatureList() {
  const [state, setState] = useState(() => valuesWith({ query: "", bridge: "", task: "", order: "listed", channel: "" }));
  useEffect(() => note("features", state), [state]);
  const change = (changes) => setState((now) => ({ ...now, ...changes }));
  const tasks = useMemo(() => [...new Set(features.value.flatMap((feature) => feature.tasks ?? []))].sort(), [features.value]);
  const wanted = state.query.toLowerCase();
  const found = features.value.filter((feature) => {
    const places = feature.node ?? feature.directions?.map((direction) => direction.site).join(" ");
    const text = `${feature.id} ${feature.description} ${places} ${(feature.tasks ?? []).join(" ")}`.toLowerCase();
    return text.includes(wanted) && (!state.bridge || feature.bridge === state.bridge)
      && (!state.task || feature.tasks?.includes(state.task));
  });
  const orders = {
    listed: null, name: (one, two) => one.id.localeCompare(two.id),
    flips: (one, two) => (two.effects?.own.flips ?? -1) - (one.effects?.own.flips ?? -1),
    density: (one, two) => (statsOf(one)?.density ?? 2) - (statsOf(two)?.density ?? 2),
  };
  if (orders[state.order]) found.sort(orders[state.order]);
  const channel = /^[^\s:]+:\d+$/.test(state.query.trim()) ? state.query.trim() : null;
  return html`<h1>Features</h1>
    <div class="filters">
      <${TextField} label="Search" value=${state.query} placeholder="name, task, place, or NODE:CHANNEL" onInput=${(query) => change({ query })} />
      <${SelectField} label="Bridge" value=${state.bridge} options=${[["", "all"], ...bridges.value.map((bridge) => bridge.id)]} onInput=${(bridge) => change({ bridge })} />
      <${SelectField} label="Task" value=${state.task} options=${[["", "all"], ...tasks.map((task) => [task, task.replaceAll("_", " ")])]} onInput=${(task) => change({ task })} />
      <${SelectField} label="Order" value=${state.order} options=${[["listed", "as listed"], ["name", "name"], ["flips", "effect"], ["density", "rarest first"]]} onInput=${(order) => change({ order })} />
    </div>
    ${channel ? html`<p><a href=${link("features", { bridge: state.bridge }, channel)}>Look at channel <code>${channel}</code></a></p>` : null}
    <p class="hint" role="status">${found.length} of ${features.value.length} features. Any <${Term} name="channel" /> can be looked at: search for one such as <code>0.mlp.act_in:20</code>.</p>
    <ul class="feature-list">${found.map((feature) => {
      const stats = statsOf(feature);
      const effect = feature.effects?.own;
      return html`<li key=${`${feature.bridge ?? feature.model}/${feature.id}`} class="card">
        <h2><a href=${featureLink(feature)}>${feature.id}</a></h2>
        <p><${Prose} text=${feature.description} /></p>
        <p class="hint">${feature.node ? html`<code>${feature.node}</code>, ${feature.channels.length} ${feature.channels.length === 1 ? "channel" : "channels"}`
          : html`direction of <code>${feature.model}</code> at ${feature.directions.map((direction) => direction.site).join(", ")}`}
          ${stats ? html` · ±${short(stats.std)}, at most ${short(stats.max)}` : null}
          ${effect ? html` · patching turns <b>${percent(effect.flips)}</b> of answers, random ${percent(effect.random_flips)}` : null}</p>
      </li>`;
    })}</ul>`;
}
