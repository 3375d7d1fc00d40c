// Pairs of prompts that differ in one fact, each with the token that follows: typed, or taken from a task.

import { html, useEffect, useState } from "../html.js";
import { ask } from "../api.js";
import { isAbout, Problem, SelectField } from "./fields.js";

export const emptyPair = () => ({ prompt: "", counterfactual: "", expected: "", instead: "" });

// A pair as a link gives it: its texts, and nothing else.
export function pairOf(given) {
  return Object.fromEntries(Object.keys(emptyPair()).map((name) => [name, typeof given?.[name] === "string" ? given[name] : ""]));
}

// Some pairs of a task for a model: after patching, the counterfactual's answer is expected instead of the prompt's own.
export async function pairsOfTask(task, model, count) {
  const query = `?examples=${count}&model=${encodeURIComponent(model)}`;
  const told = await ask(`/v1/tasks/${encodeURIComponent(task)}${query}`);
  return told.examples.filter((pair) => !pair.unusable).map((pair) => ({
    prompt: pair.presented.prompt, counterfactual: pair.counterfactual.prompt,
    expected: pair.counterfactual.tokens?.candidate_str ?? pair.counterfactual.answer,
    instead: pair.presented.tokens?.candidate_str ?? pair.presented.answer,
  }));
}

const COLUMNS = [["prompt", "Prompt"], ["counterfactual", "Counterfactual"], ["expected", "Expected after"], ["instead", "Instead of"]];

// Line breaks are shown and typed as \n, so that a pair stays in one line.
const shown = (text) => text.replaceAll("\\", "\\\\").replaceAll("\n", "\\n").replaceAll("\t", "\\t");
const meant = (text) => text.replace(/\\(.)/g, (_, letter) => ({ n: "\n", t: "\t" })[letter] ?? letter);

export function PairsEditor({ pairs, onInput, model, error, param = "pairs" }) {
  const [tasks, setTasks] = useState([]);
  const [problem, setProblem] = useState(null);
  useEffect(() => {
    ask("/v1/tasks").then((list) => setTasks(list.data), setProblem);
  }, []);
  const change = (index, name, text) =>
    onInput(pairs.map((pair, at) => (at === index ? { ...pair, [name]: meant(text) } : pair)));
  const take = async (task) => {
    setProblem(null);
    try {
      onInput(await pairsOfTask(task, model, 8));
    } catch (refusal) {
      setProblem(refusal);
    }
  };
  return html`<div class="pairs">
    <${SelectField} label="Take pairs of a task" value="" options=${[["", "choose one…"], ...tasks.map((task) => [task.id, task.id.replaceAll("_", " ")])]}
      onInput=${(task) => task && take(task)} />
    <${Problem} error=${problem} />
    <div class="scroll" tabindex="0" role="region" aria-label="Pairs"><table><thead><tr>${COLUMNS.map(([name, title]) => html`<th key=${name}>${title}</th>`)}<th><span class="visually-hidden">Remove</span></th></tr></thead>
    <tbody>${pairs.map((pair, index) => html`<tr key=${index}>
      ${COLUMNS.map(([name, title]) => html`<td key=${name}><input type="text" class=${`pair-${name}`} spellcheck=${false} value=${shown(pair[name])}
        aria-label=${`${title} of pair ${index + 1}`} aria-invalid=${isAbout(error, `${param}[${index}].${name}`) ? "true" : undefined}
        onChange=${(event) => change(index, name, event.currentTarget.value)} /></td>`)}
      <td><button type="button" aria-label=${`Remove pair ${index + 1}`} onClick=${() => onInput(pairs.filter((_, at) => at !== index))}>×</button></td>
    </tr>`)}</tbody></table></div>
    <p class="hint">\\n is a line break.</p>
    ${isAbout(error, param) ? html`<${Problem} error=${error} />` : null}
    <button type="button" onClick=${() => onInput([...pairs, emptyPair()])}>Add a pair</button>
  </div>`;
}
