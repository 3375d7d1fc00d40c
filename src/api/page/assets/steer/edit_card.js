// One edit of a try: which feature, what is done to it, how much, and where.

import { html } from "../html.js";
import { link } from "../address.js";
import { Term } from "../glossary.js";
import { featuresOf, statsOf } from "../served.js";
import { CheckField, Field, isAbout, NumberField, Problem, SelectField, SliderField, TextField } from "../parts/fields.js";
import { short } from "../parts/numbers.js";
import { Prose, TokenChoice, useTokens } from "../parts/tokens.js";
import { OPERATIONS } from "./request.js";

const UNITS = [["std", "standard deviations"], ["max", "largest values"], ["raw", "raw"]];

// The ends and the step of a slider in these units: as far as a feature usually goes, and somewhat beyond.
function reach(unit, stats) {
  if (unit === "std") return { min: -12, max: 12, step: 0.25 };
  if (unit === "max") return { min: -3, max: 3, step: 0.05 };
  const most = stats ? Math.max(Math.abs(stats.max), Math.abs(stats.min)) * 3 : 10;
  const end = Number(most.toPrecision(1)) || 10;
  return { min: -end, max: end, step: end / 100 };
}

// The same value counted in another unit.
function converted(value, from, to, stats) {
  if (!stats || value === undefined) return value;
  const size = { std: stats.std, max: stats.max, raw: 1 };
  return Number((value * size[from] / size[to]).toPrecision(3));
}

function Amount({ edit, change, stats, param, error }) {
  const range = reach(edit.unit ?? "raw", stats);
  const unitField = html`<${SelectField} label="in units of" value=${edit.unit ?? "raw"} options=${UNITS} param=${`${param}.unit`} error=${error}
    onInput=${(unit) => change({
      unit, value: converted(edit.value, edit.unit ?? "raw", unit, stats), min: converted(edit.min, edit.unit ?? "raw", unit, stats),
      max: converted(edit.max, edit.unit ?? "raw", unit, stats),
    })} />`;
  const slider = (name, label, bounds = range) => html`<${SliderField} label=${label} value=${edit[name] ?? 0} ...${bounds}
    unit=${edit.unit ?? ""} param=${`${param}.${name}`} error=${error} onInput=${(value) => change({ [name]: value })} />`;
  switch (edit.op) {
    case "add": return html`${slider("value", "Value to add")}${unitField}`;
    case "set": return html`${slider("value", "Value to set")}${unitField}`;
    case "scale": return slider("value", "Factor", { min: -4, max: 4, step: 0.1 });
    case "clamp": return html`${slider("min", "Least")}${slider("max", "Most")}${unitField}`;
    case "ablate": return html`<${SelectField} label="to" value=${edit.to ?? "zero"} param=${`${param}.to`} error=${error}
      options=${[["zero", "zero"], ["mean", "its mean over reference text"]]} onInput=${(to) => change({ to })} />`;
    case "swap": return html`<${NumberField} label="Channel to swap with" value=${edit.with ?? 0} min="0" step="1"
      param=${`${param}.with`} error=${error} onInput=${(channel) => change({ with: Math.round(channel) })} />`;
    default: return null;
  }
}

// The other prompt of a patch, with whether its tokens fit the prompt's.
function Counterfactual({ edit, change, model, promptTokens, param, error }) {
  const { texts, prompt } = useTokens(model, edit.prompt ?? "");
  const known = prompt === (edit.prompt ?? "") && promptTokens.texts.length > 0;
  const differ = known && texts.length !== promptTokens.texts.length;
  const hint = known ? `${texts.length} tokens beside the prompt's ${promptTokens.texts.length}` : undefined;
  return html`<${TextField} label=${html`<${Term} name="counterfactual prompt">Counterfactual prompt</${Term}>`} rows=${2} value=${edit.prompt ?? ""}
      hint=${hint} param=${`${param}.to`} error=${error} onInput=${(text) => change({ prompt: text })} />
    ${differ || edit.align === "end" ? html`<${CheckField} checked=${edit.align === "end"}
      label="Align the two prompts at their ends (their tokens differ in number)"
      onInput=${(on) => change({ align: on ? "end" : undefined })} />` : null}`;
}

function Places({ edit, index, change, promptTokens }) {
  const some = Array.isArray(edit.at);
  const chosen = new Set((edit.at ?? []).map((at) => (at < 0 ? promptTokens.texts.length + at : at)));
  const toggle = (at) => {
    const next = new Set(chosen);
    if (!next.delete(at)) next.add(at);
    change({ at: [...next].sort((one, two) => one - two) });
  };
  return html`<fieldset class="places"><legend>Where</legend>
    <${CheckField} checked=${!some} label="every token of the prompt" onInput=${(all) => change({ at: all ? undefined : [] })} />
    <${CheckField} checked=${edit.generation !== false} label="generated tokens"
      onInput=${(on) => change({ generation: on ? undefined : false })} />
    ${some ? html`<p class="hint">Click the tokens at which this edit acts:</p>
      <${TokenChoice} texts=${promptTokens.texts} chosen=${chosen} onToggle=${toggle} label=${`Tokens where edit ${index + 1} acts`} />` : null}
  </fieldset>`;
}

export function EditCard({ edit, index, model, bridge, list, promptTokens, change, remove, error }) {
  const param = `steer.edits[${index}]`;
  const known = featuresOf(model, bridge).find((feature) => feature.id === edit.feature);
  const stats = statsOf(known);
  const shownAt = ["feature", "value", "unit", "min", "max", "to", "with", "strength", "when", "op", "at", "read", "write"];
  const elsewhere = isAbout(error, param) && !shownAt.some((name) => isAbout(error, `${param}.${name}`));
  const choose = (feature) => {
    const next = featuresOf(model, bridge).find((other) => other.id === feature);
    const test = next?.tests?.[0];
    change({ feature, ...(next && !known && edit.op === "patch" && !edit.prompt && test ? { prompt: test.counterfactual } : {}) });
  };
  const when = edit.when ?? {};
  return html`<fieldset class="card edit"><legend>Edit ${index + 1}</legend>
    <button type="button" class="remove" onClick=${remove} aria-label=${`Remove edit ${index + 1}`}>×</button>
    <${TextField} label=${html`<${Term} name="feature">Feature</${Term}>`} value=${edit.feature} list=${list} onInput=${choose}
      placeholder="a name, or NODE:CHANNEL" param=${`${param}.feature`} error=${error}
      hint=${known ? html`<${Prose} text=${known.description} /> ${stats ? html`<${Term} name="typical activation">Typically</${Term}> ±${short(stats.std)}, at most ${short(stats.max)}. ` : null}<a href=${link("features", { bridge: known.bridge, model: known.bridge ? "" : model }, known.id)}>Look at it</a>`
        : undefined} />
    <${SelectField} label=${html`<${Term} name="operation">Operation</${Term}>`} value=${edit.op} options=${OPERATIONS} param=${`${param}.op`} error=${error}
      onInput=${(op) => change({ op, ...(op === "scale" ? { value: 0 } : {}), ...(op === "patch" && !edit.prompt && known?.tests?.[0]
        ? { prompt: known.tests[0].counterfactual } : {}) })} />
    <${Amount} edit=${edit} change=${change} stats=${stats} param=${param} error=${error} />
    ${edit.op === "patch" ? html`<${Counterfactual} edit=${edit} change=${change} model=${model} promptTokens=${promptTokens} param=${param} error=${error} />` : null}
    <${SliderField} label=${html`<${Term} name="strength">Strength</${Term}>`} name="Strength" min=${-2} max=${2} step=${0.05} value=${edit.strength ?? 1}
      param=${`${param}.strength`} error=${error} onInput=${(strength) => change({ strength })} />
    <${Places} edit=${edit} index=${index} change=${change} promptTokens=${promptTokens} />
    ${isAbout(error, `${param}.at`) ? html`<${Problem} error=${error} />` : null}
    <details open=${Boolean(edit.when?.feature || edit.read || edit.write)}><summary>Condition, read and write</summary>
      <${TextField} label=${html`<${Term} name="condition">Only where this feature</${Term}>`} value=${when.feature ?? ""} list=${list}
        placeholder="always" param=${`${param}.when`} error=${error}
        onInput=${(feature) => change({ when: feature ? { side: "gt", value: 0, ...when, feature } : undefined })} />
      ${when.feature ? html`<div class="pair">
        <${SelectField} label="is" value=${when.side ?? "gt"} options=${[["gt", "above"], ["lt", "below"]]}
          onInput=${(side) => change({ when: { ...when, side } })} />
        <${NumberField} label="this (raw)" value=${when.value ?? 0} onInput=${(value) => change({ when: { ...when, value } })} />
      </div>` : null}
      <div class="pair">
      <${SelectField} label="Read from" value=${edit.read ?? ""} param=${`${param}.read`} error=${error}
        options=${[["", "default"], ["sparse", "the sparse model"], ["encoder", "the dense stream"]]} onInput=${(read) => change({ read: read || undefined })} />
      <${SelectField} label="Write to" value=${edit.write ?? ""} param=${`${param}.write`} error=${error}
        options=${[["", "default"], ["sublayer", "the sublayer"], ["residual", "the stream"]]} onInput=${(write) => change({ write: write || undefined })} />
      </div>
    </details>
    ${elsewhere ? html`<${Problem} error=${error} />` : null}
  </fieldset>`;
}
