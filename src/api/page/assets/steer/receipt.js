// A receipt in words, and what should make one doubt an effect.

import { html, useState } from "../html.js";
import { Term } from "../glossary.js";
import { mean, percent, short } from "../parts/numbers.js";
import { visible } from "../parts/tokens.js";
import { collapses, firstDifference } from "./arms.js";
import { CONTROLS } from "./request.js";

const touchedTokens = (receipt) => receipt.edits.flatMap((edit) => edit.tokens);

// The mean share of the stream's norm that the edits moved, over touched tokens.
export function moved(receipt) {
  const shares = touchedTokens(receipt).map((token) => token.relative_change);
  return shares.length > 0 ? mean(shares) : 0;
}

export function Receipt({ arm, name, inputTokens }) {
  const receipt = arm.receipt;
  if (!receipt) return null;
  if (name === "baseline") return html`<p class="receipt">Not edited: what the others are compared with.</p>`;
  const positions = new Set(touchedTokens(receipt).map((token) => token.position));
  const errors = receipt.edits.map((edit) => edit.decoder_nmse).filter((value) => value !== undefined);
  const fed = Math.max(inputTokens + Math.max(0, arm.tokens.length - 1), positions.size);
  return html`<div class="receipt">
    <p>${name === "steered" ? "Edited" : "Disturbed"} <b>${positions.size} of ${fed}</b> tokens, moved the stream
      by <b>${percent(moved(receipt))}</b>, <${Term} name="KL" /> <b>${short(receipt.kl_to_baseline, 2)}</b>${errors.length > 0
        ? html`; <${Term} name="bridge error" /> here <b>${short(Math.max(...errors), 2)}</b>` : "; natively, without a bridge"}.</p>
    ${positions.size > 0 ? html`<${TokenByToken} receipt=${receipt} name=${name} />` : null}
  </div>`;
}

// What was done at each token. It is long, and made only while it is open.
function TokenByToken({ receipt, name }) {
  const [open, setOpen] = useState(false);
  return html`<details onToggle=${(event) => setOpen(event.currentTarget.open)}><summary>Receipt: token by token</summary>
    ${open ? html`<div class="scroll" tabindex="0" role="region" aria-label=${`Receipt of ${name}, token by token`}><table>
      <thead><tr><th>token</th><th>edit</th><th>before</th><th>after</th><th>moved</th></tr></thead>
      <tbody>${receipt.edits.flatMap((edit, index) => edit.tokens.map((token) => html`<tr key=${`${index}-${token.position}`}>
        <td><span class="position">${token.position}</span> <code>${visible(token.text)}</code></td>
        <td>${edit.feature ?? edit.circuit?.id ?? edit.node}${edit.dense_node ? ` → ${edit.dense_node}` : ""}</td>
        <td>${short(token.before)}</td><td>${short(token.after)}</td><td>${percent(token.relative_change)}</td>
      </tr>`))}</tbody></table></div>` : null}</details>`;
}

// Reasons for doubt, each with the arm that it is about.
export function warnings(arms, control) {
  const found = [];
  const { baseline, steered } = arms;
  const other = arms[control];
  if (!steered?.receipt || !baseline) return found;
  const own = steered.receipt.kl_to_baseline ?? 0;
  const name = CONTROLS[control];
  if (touchedTokens(steered.receipt).length === 0) {
    found.push(["steered", "No token was touched: nothing was edited."]);
  } else if (own < 1e-3 && firstDifference(baseline, steered) < 0) {
    found.push(["steered", "The edit changed nothing that can be seen. A larger strength, another place or fewer tokens may."]);
  }
  if (collapses(steered) && !collapses(baseline)) {
    found.push(["steered", "The text collapses into repetition, which the baseline does not: the edit disturbs the model more than it steers it."]);
  }
  if (moved(steered.receipt) >= 1) {
    found.push(["steered", "The change is as large as the stream itself: it says more about the disturbance than about the feature."]);
  }
  const theirs = other?.receipt?.kl_to_baseline ?? 0;
  if (own >= 1e-3 && theirs >= own / 2) {
    found.push([control, `The ${name} moves the model as much as the edit (KL ${short(theirs, 2)} beside ${short(own, 2)}): this is no effect of the feature.`]);
  } else if (other && firstDifference(baseline, other) >= 0 && firstDifference(baseline, steered) >= 0 && own < 0.1) {
    found.push([control, `The ${name} changes the text too: look at more prompts under Dose before you believe it.`]);
  }
  return found;
}
