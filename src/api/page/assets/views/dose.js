// The Dose view: the strength of a try's edits swept, over several prompts, as the probabilities of chosen answers beside
// the control's.

import { html, useEffect, useMemo, useRef, useState } from "../html.js";
import { link, note, valuesWith } from "../address.js";
import { bridgeOf, featuresOf, firstModel, models, testedFeatures } from "../served.js";
import { Term } from "../glossary.js";
import { Field, isAbout, NumberField, Problem, SelectField, TextField } from "../parts/fields.js";
import { LineChart } from "../parts/chart.js";
import { interval, percent } from "../parts/numbers.js";
import { emptyPair, pairOf, PairsEditor, pairsOfTask } from "../parts/pairs.js";
import { score } from "../parts/scoring.js";
import { useTokens } from "../parts/tokens.js";
import { tryOfTest } from "../steer/beginnings.js";
import { EditCard } from "../steer/edit_card.js";
import { CONTROLS, DEFAULTS, editBody, newEdit } from "../steer/request.js";

const OWN = { from: {}, model: "", bridge: "", edits: [], pairs: [], strengths: "0, 0.25, 0.5, 0.75, 1, 1.25", control: "random", seed: 1, go: false };

function strengthsOf(text) {
  return text.split(/[\s,;]+/).filter(Boolean).map(Number);
}

// What the view begins with: what the address says, else a try that was brought along, else a feature that has tests.
function beginning() {
  const values = valuesWith(OWN);
  values.pairs = values.pairs.map(pairOf);
  values.edits = values.edits.map(newEdit);
  if (values.edits.length > 0) return values;
  const model = values.from.model || values.model || firstModel();
  const bridge = values.from.bridge || values.bridge;
  const tested = testedFeatures(model, bridge);
  const feature = tested.find((known) => known.id === "quote_type") ?? tested[0];
  const given = values.from.edits?.length > 0 ? values.from : feature ? tryOfTest(model, feature, feature.tests[0]) : {};
  const edits = (given.edits ?? []).map(newEdit);
  const tests = featuresOf(model, bridge).find((known) => known.id === edits[0]?.feature)?.tests ?? [];
  const pairs = tests.map(({ prompt, counterfactual, expected, instead }) => ({ prompt, counterfactual, expected, instead }));
  const own = { ...emptyPair(), prompt: given.prompt ?? "", counterfactual: edits[0]?.prompt ?? "" };
  return { ...values, from: {}, fresh: true, model, bridge, edits, pairs: pairs.length > 0 ? pairs : [own], control: given.control ?? "random", seed: given.seed ?? 1 };
}

export default function Dose() {
  const [state, setState] = useState(beginning);
  const [result, setResult] = useState(null);
  const [problem, setProblem] = useState(null);
  const [busy, setBusy] = useState(false);
  const aborter = useRef(null);
  const tokens = useTokens(state.model, state.pairs[0]?.prompt ?? "");
  useEffect(() => note("dose", state), [state]);
  useEffect(() => () => aborter.current?.abort(), []);
  useEffect(() => {
    if (state.go) sweep();
    // A feature that serves a task is shown on that task's pairs, of which there are more than it has tests.
    else fromTask();
  }, []);
  const change = (changes) => setState((now) => ({ ...now, go: false, fresh: undefined, ...changes }));
  const editOf = (index, changes) => change({ edits: state.edits.map((edit, at) => (at === index ? { ...edit, ...changes } : edit)) });

  async function fromTask() {
    const feature = featuresOf(state.model, state.bridge).find((known) => known.id === state.edits[0]?.feature);
    const task = feature?.tasks?.[0];
    if (!task || !state.fresh) return;
    const pairs = await pairsOfTask(task, state.model, 8).catch(() => []);
    if (pairs.length > 0) setState((now) => (now.fresh ? { ...now, fresh: undefined, pairs } : now));
  }

  async function sweep(event) {
    event?.preventDefault();
    aborter.current?.abort();
    const abort = new AbortController();
    aborter.current = abort;
    setProblem(null);
    setBusy(true);
    try {
      const strengths = strengthsOf(state.strengths);
      const asked = state.pairs.flatMap((pair) => [[pair.prompt, pair.expected], [pair.prompt, pair.instead]]).filter(([, answer]) => answer !== "");
      if (asked.length === 0) throw Object.assign(new Error("give at least one answer whose probability is to be shown"), { param: "pairs" });
      const texts = state.pairs.flatMap((pair) => [pair.expected, pair.instead].filter((answer) => answer !== "").map(() => pair.counterfactual));
      const kinds = state.pairs.flatMap((pair) => [["expected", pair.expected], ["instead", pair.instead]].filter(([, answer]) => answer !== "").map(([kind]) => kind));
      const edits = state.edits.map((edit, index) => ({ ...editBody(edit), ...(index === 0 ? { strength: strengths } : {}) }));
      const scored = await score({
        model: state.model, bridge: state.bridge, asked, edits, counterfactuals: texts.every(Boolean) ? texts : null, variants: ["steered", state.control],
        seed: state.seed, abort: abort.signal,
      });
      const curves = {};
      scored.forEach((choices, index) => choices.forEach(({ variant, strength, probability }) => {
        const curve = (curves[`${variant} ${kinds[index]}`] ??= new Map());
        curve.set(strength, [...(curve.get(strength) ?? []), probability]);
      }));
      setResult({ strengths: [...strengths].sort((one, two) => one - two), curves, prompts: state.pairs.length, control: state.control });
      setState((now) => ({ ...now, go: true }));
    } catch (refusal) {
      if (!abort.signal.aborted) setProblem(refusal);
    }
    if (aborter.current === abort) setBusy(false);
  }

  const lines = useMemo(() => {
    if (!result) return [];
    const line = (variant, kind, label, colour, dashes) => {
      const curve = result.curves[`${variant} ${kind}`];
      if (!curve) return null;
      const points = result.strengths.map((strength) => interval(curve.get(strength) ?? [NaN]));
      return {
        label, colour, dashes, values: points.map((point) => point.mean),
        low: points.map((point) => Math.max(0, point.mean - point.half)), high: points.map((point) => Math.min(1, point.mean + point.half)),
      };
    };
    const name = CONTROLS[result.control];
    return [
      line("steered", "expected", "steered: expected answer", "steered"), line("steered", "instead", "steered: the other", "steered", [6, 5]),
      line(result.control, "expected", `${name}: expected answer`, "control"), line(result.control, "instead", `${name}: the other`, "control", [6, 5]),
    ].filter(Boolean);
  }, [result]);
  const placed = problem && ["pairs", "prompt", "model", ...state.edits.map((_, at) => `steer.edits[${at}]`)].some((name) => isAbout(problem, name));
  const choices = models.value.filter((model) => model.kind !== "preset").map((model) => [model.id, `${model.id} (${model.kind})`]);
  const end = result ? lines.map((line) => `${line.label} ${percent(line.values.at(-1))}`).join("; ") : "";
  return html`<h1>Dose</h1>
    <p>How much of an edit does how much: its <${Term} name="strength" /> is swept over several prompts at once. Bands are 95% intervals over the prompts.
      An effect of the feature rises with the dose where the <${Term} name="random control">control</${Term}> stays flat.</p>
    <div class="steer"><form class="steer-form" onSubmit=${sweep} aria-label="Sweep">
      <${SelectField} label="Model" value=${state.model} options=${choices} param="model" error=${problem} onInput=${(model) => change({ model, bridge: "" })} />
      ${state.edits.map((edit, index) => html`<${EditCard} key=${index} edit=${edit} index=${index} model=${state.model} bridge=${state.bridge} list="dose-features" promptTokens=${tokens}
        error=${problem} change=${(changes) => editOf(index, changes)} remove=${() => change({ edits: state.edits.filter((_, at) => at !== index) })} />`)}
      ${state.edits.length === 0 ? html`<p><button type="button" onClick=${() => change({ edits: [newEdit()] })}>Add an edit</button></p>` : null}
      <datalist id="dose-features">${featuresOf(state.model, state.bridge).map((feature) => html`<option key=${feature.id} value=${feature.id} />`)}</datalist>
      <${TextField} label="Strengths" value=${state.strengths} hint="of the first edit" param="steer.edits[0].strength" error=${null} onInput=${(strengths) => change({ strengths })} />
      <div class="pair"><${SelectField} label="Control" value=${state.control} options=${Object.entries(CONTROLS)} onInput=${(control) => change({ control })} />
      <${NumberField} label="Seed" value=${state.seed} step="1" param="seed" error=${problem} onInput=${(seed) => change({ seed: Math.round(seed) })} /></div>
      <div class="row"><button type="submit" class="primary" disabled=${busy || state.edits.length === 0}>${busy ? "Sweeping…" : "Sweep"}</button>
        <a class="button" href=${link("steer", { ...DEFAULTS, model: state.model, bridge: state.bridge, prompt: state.pairs[0]?.prompt ?? "", edits: state.edits.map((edit) => ({ ...edit, prompt: state.pairs[0]?.counterfactual || edit.prompt })) })}>Back to one prompt</a></div>
      ${problem && !placed ? html`<${Problem} error=${problem} again=${() => sweep()} />` : null}
    </form><div>
      <section class="panel" aria-label="Prompts"><h2>Prompts and answers</h2>
        <${PairsEditor} pairs=${state.pairs} model=${state.model} error=${problem} onInput=${(pairs) => change({ pairs })} />
        ${isAbout(problem, "prompt") ? html`<${Problem} error=${problem} />` : null}</section>
      ${result ? html`<section class="panel" aria-label="Curve"><${LineChart} title=${`Probability of the answers, mean of ${result.prompts} prompts`} x=${result.strengths} xLabel="strength" lines=${lines} range=${[0, 1]} height=${320} />
        <p role="status" class="hint">At strength ${result.strengths.at(-1)}: ${end}.</p></section>` : null}
    </div></div>`;
}
