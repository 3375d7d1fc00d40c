// Tokens of text: made visible, coloured by a value, chosen one by one.

import { html, useEffect, useState } from "../html.js";
import { ask } from "../api.js";
import { short } from "./numbers.js";

// A token's text with its spaces and line breaks to be seen.
export function visible(text) {
  return text.replaceAll(" ", "·").replaceAll("\n", "↵").replaceAll("\t", "→") || "∅";
}

// A text of the server's in which `code` is set apart.
export function Prose({ text }) {
  return (text ?? "").split("`").map((part, at) => (at % 2 === 1 ? html`<code>${part}</code>` : part));
}

// The tokens of a text for a model, a moment after the last change of either: `{texts, ids, error}`.
export function useTokens(model, prompt) {
  const [told, setTold] = useState({ prompt: null, texts: [], ids: [], error: null });
  useEffect(() => {
    if (!model) return undefined;
    const abort = new AbortController();
    const timer = setTimeout(async () => {
      try {
        const answer = await ask("/v1/tokenize", { body: { model, prompt }, abort: abort.signal });
        setTold({ prompt, texts: answer.token_strs, ids: answer.tokens, error: null });
      } catch (error) {
        if (!abort.signal.aborted) setTold({ prompt, texts: [], ids: [], error });
      }
    }, 120);
    return () => {
      clearTimeout(timer);
      abort.abort();
    };
  }, [model, prompt]);
  return told;
}

// Moves the focus among the buttons of a group by arrow keys; only the current one is a stop of the tab key.
export function arrows(event) {
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  const buttons = [...event.currentTarget.querySelectorAll("button")];
  const at = buttons.indexOf(document.activeElement);
  if (at < 0) return;
  let next = at + (steps[event.key] ?? 0);
  if (event.key === "Home") next = 0;
  if (event.key === "End") next = buttons.length - 1;
  if (next === at || !buttons[next]) return;
  event.preventDefault();
  buttons[at].tabIndex = -1;
  buttons[next].tabIndex = 0;
  buttons[next].focus();
}

// Tokens as buttons that are pressed where they are chosen.
export function TokenChoice({ texts, chosen, onToggle, label }) {
  return html`<div class="token-choice" role="group" aria-label=${label} onKeyDown=${arrows}>
    ${texts.map((text, at) => html`<button key=${at} type="button" class="token" tabindex=${at === 0 ? 0 : -1}
      aria-pressed=${chosen.has(at) ? "true" : "false"} onClick=${() => onToggle(at)}
      aria-label=${`token ${at}: ${text.trim() === "" ? visible(text) : text}`}>${visible(text)}</button>`)}
  </div>`;
}

// The colour of a value: its sign is the hue, its size against `largest` how much of it. Text stays readable on all.
export function heat(value, largest) {
  const share = largest > 0 ? Math.min(1, Math.abs(value) / largest) : 0;
  const hue = value >= 0 ? "var(--warm)" : "var(--cold)";
  return `color-mix(in srgb, ${hue} ${Math.round(share * 78)}%, transparent)`;
}

// A text whose tokens are coloured by a value each. `at` marks one of them.
export function HeatText({ tokens, values, largest, at = -1, label }) {
  const most = largest ?? Math.max(...values.map(Math.abs), 1e-9);
  return html`<p class="heat-text" aria-label=${label}>
    ${tokens.map((text, index) => html`<span key=${index} class=${index === at ? "marked" : ""}
      style=${{ background: heat(values[index] ?? 0, most) }}
      title=${`${visible(text)}  ${short(values[index])}`}>${text.replaceAll("\n", "↵\n")}</span>`)}
  </p>`;
}
