// One arm of a try: its text as it comes, token by token. Arrow keys or the mouse go through the tokens and show what else
// the model could have said there, beside the baseline.

import { html, useRef, useState } from "../html.js";
import { Term } from "../glossary.js";
import { hideTip, showTip } from "../tip.js";
import { Problem } from "../parts/fields.js";
import { percent, signedPercent } from "../parts/numbers.js";
import { visible } from "../parts/tokens.js";
import { firstDifference, tokenTexts } from "./arms.js";
import { Receipt } from "./receipt.js";

const TITLES = {
  baseline: ["Baseline", "baseline"], steered: ["Steered", "strength"], random: ["Random control", "random control"],
  random_feature: ["Another feature", "another feature"],
};

// What else could have stood at a token. Against the baseline it is compared as long as both have read the same text.
function Alternatives({ token, baseline, sameContext }) {
  const own = new Map(token.top);
  const other = new Map(sameContext && baseline ? baseline.top : []);
  const names = [...new Set([...own.keys(), ...other.keys()])];
  const share = (map, name) => (map.has(name) ? Math.exp(map.get(name)) : null);
  // A token that is not among an arm's most probable ones is less probable than the least of them.
  const bound = (map) => Math.exp(Math.min(...map.values()));
  const shown = (map, name) => (map.has(name) ? percent(share(map, name), 1) : `<${percent(bound(map), 1)}`);
  const change = (name) => {
    if (own.has(name) && other.has(name)) return signedPercent(share(own, name) - share(other, name));
    if (own.has(name)) return share(own, name) > bound(other) ? `≥${signedPercent(share(own, name) - bound(other))}` : "";
    return share(other, name) > bound(own) ? `≤${signedPercent(bound(own) - share(other, name))}` : "";
  };
  names.sort((one, two) => (share(own, two) ?? 0) - (share(own, one) ?? 0));
  return html`<table class="alternatives"><thead><tr><th>token</th><th>here</th>${other.size > 0
    ? html`<th>baseline</th><th>change</th>` : null}</tr></thead><tbody>
    ${names.slice(0, 8).map((name) => html`<tr key=${name} class=${name === token.name ? "taken" : ""}><td><code>${visible(name)}</code></td>
      <td>${shown(own, name)}</td>
      ${other.size > 0 ? html`<td>${shown(other, name)}</td><td>${change(name)}</td>` : null}</tr>`)}</tbody></table>
    ${sameContext ? null : html`<p class="hint">From the first difference on, each arm reads its own text.</p>`}`;
}

export function Column({ name, arm, baseline, prompt, inputTokens, running, error, again, notes }) {
  const [current, setCurrent] = useState(-1);
  const box = useRef(null);
  const cache = useRef({ arm: null });
  const [title, term] = TITLES[name];
  const texts = arm ? tokenTexts(arm) : [];
  const differs = arm && baseline && name !== "baseline" ? firstDifference(baseline, arm) : -1;

  const tell = (at) => {
    const span = box.current?.querySelector(`[data-at="${at}"]`);
    const token = arm?.tokens[at];
    if (!span || !token) return;
    const sameContext = name === "baseline" || differs < 0 || at <= differs;
    const beside = name === "baseline" ? null : baseline?.tokens[at];
    showTip(span, html`<${Alternatives} token=${token} baseline=${beside} sameContext=${sameContext} />`);
  };
  const over = (event) => {
    const at = event.target.dataset?.at;
    if (at !== undefined) tell(Number(at));
  };
  const move = (event) => {
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    const step = steps[event.key];
    if (!step || texts.length === 0) return;
    event.preventDefault();
    const at = Math.max(0, Math.min(texts.length - 1, current < 0 ? 0 : current + step));
    setCurrent(at);
    tell(at);
  };
  const leave = () => {
    setCurrent(-1);
    hideTip();
  };
  // A token that has been drawn is not compared again while others come.
  if (cache.current.marked !== differs || cache.current.current !== current || !arm || arm.tokens.length < cache.current.drawn?.length) {
    cache.current = { marked: differs, current, drawn: [], texts: [] };
  }
  const { drawn, texts: known } = cache.current;
  texts.forEach((text, at) => {
    if (drawn[at] && known[at] === text) return;
    known[at] = text;
    const kind = `tok${at === differs ? " differs" : ""}${at === current ? " current" : ""}`;
    drawn[at] = html`<span key=${at} class=${kind} data-at=${at}>${text.replaceAll("\n", "↵\n")}</span>`;
  });
  return html`<section class=${`column ${name}`} aria-label=${title}>
    <h2>${term === "strength" ? title : html`<${Term} name=${term}>${title}</${Term}>`}
      ${running ? html`<span class="busy" role="img" aria-label="running">●</span>` : null}</h2>
    <div class="text" ref=${box} role="group" tabindex="0" data-text=${arm?.text ?? ""} onMouseOver=${over} onMouseLeave=${hideTip}
      onKeyDown=${move} onBlur=${leave} aria-label=${`${title}: text; arrow keys show what else each token could have been`}>
      <span class="prompt-text">${prompt}</span>${drawn.slice(0, texts.length)}</div>
    ${differs >= 0 ? html`<p class="difference">First difference: token ${differs + 1}.</p>` : null}
    ${arm?.finish ? html`<p class="finish">${arm.finish === "stop" ? "Ended at a stop." : "Ended at the most tokens asked for."}</p>` : null}
    ${arm ? html`<${Receipt} arm=${arm} name=${name} inputTokens=${inputTokens} />` : null}
    ${notes.map((note) => html`<p key=${note} class="warning" role="note">${note}</p>`)}
    <${Problem} error=${error} again=${again} />
  </section>`;
}
