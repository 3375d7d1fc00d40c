// The Steer view: a prompt, edits of features, and the answers with, without and beside a control, as they come.

import { html, signal, useEffect, useRef, useSignal, useState } from "../html.js";
import { key, may } from "../api.js";
import { link, note, opened, valuesWith } from "../address.js";
import { bridgesOf, circuits, featuresOf, firstModel, models } from "../served.js";
import { Term } from "../glossary.js";
import { CopyButton, isAbout, NumberField, Problem, SelectField, TextField } from "../parts/fields.js";
import { TokenChoice, useTokens } from "../parts/tokens.js";
import { run } from "../steer/arms.js";
import { Beginnings, firstTry } from "../steer/beginnings.js";
import { Column } from "../steer/column.js";
import { EditCard } from "../steer/edit_card.js";
import { KeepPreset } from "../steer/keep_preset.js";
import { warnings } from "../steer/receipt.js";
import { armsOf, asCurl, asPython, CONTROLS, DEFAULTS, newEdit } from "../steer/request.js";

// Tries of this visit, the newest first; they are gone when the page is closed, their links are not.
const tries = signal([]);
const MOST_TRIES = 30;

function FirstVisit({ begin }) {
  return html`<section class="first-visit" aria-label="Welcome">
    <h1>See a feature, turn the knob, watch the model change</h1>
    <p>This server runs a <${Term} name="dense model" /> and a small <${Term} name="sparse model" /> side by side.
      The sparse one has <${Term} name="feature">features</${Term}> with names, such as which quote opened a string, and
      a trained <${Term} name="bridge" /> carries an edit of one over to the dense model.
      You see the dense model's answer steered, unsteered, and with a <${Term} name="random control" /> of the same size, with
      a <${Term} name="receipt" /> of what was done.</p>
    <p><button type="button" class="primary large" onClick=${begin}>Steer it now</button></p>
  </section>`;
}

function Snippets({ state }) {
  const [shown, setShown] = useState("curl");
  const text = shown === "curl" ? asCurl(state, key.value !== "") : asPython(state, key.value !== "");
  return html`<details class="snippets"><summary>The same as curl or Python</summary>
    <div class="row">
      ${[["curl", "curl"], ["python", "Python"]].map(([name, title]) => html`<button key=${name} type="button"
        aria-pressed=${shown === name ? "true" : "false"} onClick=${() => setShown(name)}>${title}</button>`)}
      <${CopyButton} text=${text}>Copy as ${shown === "curl" ? "curl" : "Python"}<//>
    </div>
    <pre tabindex="0" aria-label=${`The request as ${shown}`}>${text}</pre></details>`;
}

function Tries({ goBack }) {
  if (tries.value.length === 0) return null;
  return html`<section class="tries" aria-label="Tries"><h2>Tries</h2><ol>
    ${tries.value.map((tried) => html`<li key=${tried.number}><button type="button" onClick=${() => goBack(tried)}>
      <code>${tried.label}</code> <span>${tried.edits}</span> → <code>${tried.steered}</code></button></li>`)}
  </ol></section>`;
}

// The arms of a try side by side.
function Answers({ arms, of, inputTokens, running, error, inColumn, again }) {
  const now = arms.value;
  const doubts = of && !running ? warnings(now, of.control) : [];
  return html`<div class="columns" aria-live="off">
      ${(of ? armsOf(of) : []).map((name) => html`<${Column} key=${name} name=${name} arm=${now[name]} baseline=${now.baseline}
        prompt=${of.prompt} inputTokens=${inputTokens} running=${running && !now[name]?.finish}
        error=${inColumn && !now[name]?.finish ? error : null} again=${again}
        notes=${doubts.filter(([arm]) => arm === name).map(([, text]) => text)} />`)}
    </div>
    <p class="visually-hidden" role="status">${running ? "Running." : of && !error ? `Done. ${doubts.map(([, text]) => text).join(" ")}` : ""}</p>`;
}

// Fields whose errors stand beside them; any other error stands at the button.
const FIELDS = ["prompt", "model", "steer.bridge", "max_tokens", "temperature", "seed", "stop"];

export default function Steer() {
  const [state, setState] = useState(() => {
    const values = valuesWith(DEFAULTS);
    values.edits = values.edits.filter((edit) => typeof edit === "object" && edit !== null).map(newEdit);
    values.model ||= firstModel();
    return values;
  });
  // The answers change with every frame while they come: only what shows them is drawn again then.
  const arms = useSignal({});
  const [result, setResult] = useState({ of: null, error: null, running: false });
  const [active, setActive] = useState(0);
  const aborter = useRef(null);
  const answers = useRef(null);
  const welcome = opened.value.view === "" && state.edits.length === 0 && !result.of;
  const tokens = useTokens(state.model, state.prompt);

  useEffect(() => () => aborter.current?.abort(), []);
  useEffect(() => {
    if (state.go) start(state);
  }, []);
  useEffect(() => {
    if (!welcome) note("steer", state);
  }, [state, welcome]);

  const change = (changes) => setState((now) => ({ ...now, go: false, ...changes }));
  const changeEdit = (index, changes) => {
    setActive(index);
    change({ edits: state.edits.map((edit, at) => (at === index ? { ...edit, ...changes } : edit)) });
  };

  async function start(asked) {
    aborter.current?.abort();
    const abort = new AbortController();
    aborter.current = abort;
    const of = { ...asked, go: true };
    setState(of);
    const show = (now) => {
      if (aborter.current === abort) arms.value = now;
    };
    arms.value = {};
    setResult({ of, error: null, running: true });
    // On a narrow screen the answers are below the form.
    if (asked !== state || !asked.go) requestAnimationFrame(() => matchMedia("(max-width: 60rem)").matches && answers.current?.scrollIntoView());
    let error = null;
    try {
      keep(of, await run(of, abort.signal, show));
    } catch (refusal) {
      if (!abort.signal.aborted) error = refusal;
    }
    if (aborter.current === abort) setResult((now) => ({ ...now, error, running: false }));
  }

  function keep(of, ended) {
    const shown = ended.steered ?? ended.baseline;
    const tried = {
      number: (tries.value[0]?.number ?? 0) + 1, state: of, arms: ended, label: of.prompt.slice(-32),
      edits: of.edits.map((edit) => `${edit.op} ${edit.feature}`).join(", ") || "no edit", steered: shown.text.slice(0, 32),
    };
    tries.value = [tried, ...tries.value].slice(0, MOST_TRIES);
  }

  const begin = (values) => values && start({ ...DEFAULTS, ...values });
  const goBack = (tried) => {
    aborter.current?.abort();
    setState(tried.state);
    arms.value = tried.arms;
    setResult({ of: tried.state, error: null, running: false });
  };
  const submit = (event) => {
    event.preventDefault();
    start(state);
  };
  const hurry = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit(event);
  };
  const { error, running, of } = result;
  const placed = error && (FIELDS.some((name) => isAbout(error, name)) || state.edits.some((_, at) => isAbout(error, `steer.edits[${at}]`)));
  const inColumn = error && !placed && Object.values(arms.peek()).some((arm) => arm.tokens.length > 0);
  const edit = state.edits[active] ?? state.edits[0];
  const editAt = state.edits[active] ? active : 0;
  const chosen = new Set((edit?.at ?? []).map((at) => (at < 0 ? tokens.texts.length + at : at)));
  const toggle = (at) => {
    if (!edit) return;
    const next = new Set(chosen);
    if (!next.delete(at)) next.add(at);
    changeEdit(editAt, { at: next.size > 0 ? [...next].sort((one, two) => one - two) : undefined });
  };
  const choices = models.value.filter((model) => model.kind !== "preset").map((model) => [model.id, `${model.id} (${model.kind})`]);

  return html`<div class="steer">
    ${welcome ? html`<${FirstVisit} begin=${() => begin(firstTry(state.model))} />` : html`<h1 class="visually-hidden">Steer</h1>`}
    <form class="steer-form" onSubmit=${submit} onKeyDown=${hurry} aria-label="Try">
      <div class="pair">
        <${SelectField} label="Model" value=${state.model} options=${choices} param="model" error=${error} onInput=${(model) => change({ model, bridge: "" })} />
        <${Beginnings} state=${state} begin=${begin} />
      </div>
      ${bridgesOf(state.model).length > 1 || state.bridge ? html`<${SelectField} label=${html`<${Term} name="bridge">Bridge</${Term}>`} value=${state.bridge} param="steer.bridge" error=${error}
        options=${[["", "the model's own"], ...bridgesOf(state.model).map((bridge) => bridge.id)]} onInput=${(bridge) => change({ bridge })} />` : null}
      <${TextField} label="Prompt" rows=${3} value=${state.prompt} param="prompt" error=${error} onInput=${(prompt) => change({ prompt })} />
      <div class="prompt-tokens">
        <p class="hint">${tokens.texts.length} ${tokens.texts.length === 1 ? "token" : "tokens"}.${" "}${edit ? (Array.isArray(edit.at)
          ? `Edit ${editAt + 1} acts at the marked ones.` : `Edit ${editAt + 1} acts at every one; click tokens to make it act there only.`) : ""}</p>
        <${TokenChoice} texts=${tokens.texts} chosen=${chosen} onToggle=${toggle} label="Tokens of the prompt" />
        ${tokens.error && tokens.error.message !== error?.message ? html`<${Problem} error=${tokens.error} />` : null}
      </div>
      ${state.edits.map((edit, index) => html`<${EditCard} key=${index} edit=${edit} index=${index} model=${state.model} bridge=${state.bridge}
        list="feature-names" promptTokens=${tokens} error=${error} change=${(changes) => changeEdit(index, changes)}
        remove=${() => change({ edits: state.edits.filter((_, at) => at !== index) })} />`)}
      <datalist id="feature-names">
        ${featuresOf(state.model, state.bridge).map((feature) => html`<option key=${feature.id} value=${feature.id}>${feature.description}</option>`)}
        ${circuits.value.filter((circuit) => !circuit.stale).map((circuit) => html`<option key=${circuit.id} value=${`circuit:${circuit.id}`}>circuit for ${circuit.task}</option>`)}
      </datalist>
      <p><button type="button" onClick=${() => change({ edits: [...state.edits, newEdit()] })}>Add an edit</button></p>
      <details class="settings"><summary>Settings: ${state.max} tokens, temperature ${state.temperature}, seed ${state.seed}, ${CONTROLS[state.control]}</summary>
        <div class="grid">
          <${NumberField} label="Most tokens" value=${state.max} min="1" step="1" param="max_tokens" error=${error} onInput=${(max) => change({ max: Math.round(max) })} />
          <${NumberField} label=${html`<${Term} name="temperature">Temperature</${Term}>`} value=${state.temperature} min="0" max="2" step="0.1" param="temperature" error=${error} onInput=${(temperature) => change({ temperature })} />
          <${NumberField} label=${html`<${Term} name="seed">Seed</${Term}>`} value=${state.seed} step="1" param="seed" error=${error} onInput=${(seed) => change({ seed: Math.round(seed) })} />
          <${TextField} label="Stop at" value=${state.stop} placeholder="\\n" hint="\\n is a line break; | between several" param="stop" error=${error} onInput=${(stop) => change({ stop })} />
          <${SelectField} label="Control" value=${state.control} options=${Object.entries(CONTROLS)} onInput=${(control) => change({ control })} />
        </div></details>
      <div class="row actions">
        <button type="submit" class="primary" disabled=${running}>Run</button>
        <button type="button" disabled=${!running} onClick=${() => aborter.current?.abort()}>Stop</button>
        <${CopyButton} text=${() => `${location.origin}/${link("steer", { ...state, go: true })}`}>Copy link<//>
        ${state.edits.length > 0 ? html`<a class="button" href=${link("dose", { from: { ...state, go: undefined } })}>Sweep its strength</a>` : null}
      </div>
      ${error && !placed && !inColumn ? html`<${Problem} error=${error} again=${() => start(state)} />` : null}
      <${Snippets} state=${state} />
      ${may("admin") && state.edits.length > 0 ? html`<${KeepPreset} state=${state} />` : null}
    </form>
    <div class="steer-result" ref=${answers}>
      <${Answers} arms=${arms} of=${of} inputTokens=${tokens.texts.length} running=${running} error=${error} inColumn=${inColumn} again=${() => start(state)} />
      ${!of && !welcome ? html`<p class="empty">Write a prompt, add an edit, and run; or begin with one that works.</p>` : null}
      <${Tries} goBack=${goBack} />
    </div>
  </div>`;
}
