// What a try can begin with: the tests that features come with, each a prompt whose answer the feature turns, and the
// presets that are kept on this server.

import { html } from "../html.js";
import { bridgeOf, presets, testedFeatures } from "../served.js";
import { SelectField } from "../parts/fields.js";
import { editOf, newEdit } from "./request.js";

// A try that runs a feature's first test: the feature patched from the counterfactual prompt.
export function tryOfTest(model, feature, test) {
  const bridge = feature.bridge && bridgeOf(model)?.id !== feature.bridge ? feature.bridge : "";
  return {
    model, bridge, prompt: test.prompt, max: 8, temperature: 0, seed: 1, stop: "\\n", control: "random",
    edits: [newEdit({ feature: feature.id, op: "patch", prompt: test.counterfactual })],
  };
}

function tryOfPreset(preset) {
  const edits = (preset.steer.edits ?? []).map(editOf);
  return edits.includes(null) ? null : { model: preset.model, bridge: preset.steer.bridge ?? "", edits };
}

// The try that the first visit offers: the feature that comes first among those with tests, else any channel, else none.
export function firstTry(model) {
  const tested = testedFeatures(model);
  const feature = tested.find((feature) => feature.id === "quote_type") ?? tested[0];
  const site = bridgeOf(model)?.sites.at(-2)?.site;
  if (!feature) return { model, prompt: "x = ", edits: site ? [newEdit({ feature: `${site}:0`, value: 4 })] : [] };
  return tryOfTest(model, feature, feature.id === "quote_type"
    ? { prompt: 'print("hello world', counterfactual: "print('hello world" } : feature.tests[0]);
}

// Whether a try at temperature 0 shows what the feature does: the model says its answer outright on many of the pairs that it
// was measured on.
function shows(feature) {
  const own = feature.effects?.own;
  return !own || own.greedily_right >= own.right / 4;
}

// A preset is begun with on the prompt and the settings that stand in the form.
export function Beginnings({ state, begin }) {
  const { model, bridge } = state;
  const tested = testedFeatures(model, bridge).filter(shows);
  const kept = presets.value.filter((preset) => preset.model === model && tryOfPreset(preset));
  if (tested.length + kept.length === 0) return null;
  const options = [["", "choose one…"],
    ...tested.map((feature) => [`test:${feature.id}`, `${feature.id.replaceAll("_", " ")}: ${feature.tests[0].instead.trim() || "↵"} becomes ${feature.tests[0].expected.trim() || "↵"}`]),
    ...kept.map((preset) => [`preset:${preset.id}`, `preset ${preset.id}`])];
  const choose = (value) => {
    const [kind, id] = value.split(/:(.*)/s);
    if (kind === "preset") begin({ ...state, ...tryOfPreset(kept.find((preset) => preset.id === id)) });
    const feature = kind === "test" && tested.find((feature) => feature.id === id);
    if (feature) begin(tryOfTest(model, feature, feature.tests[0]));
  };
  return html`<${SelectField} label="Begin with" value="" options=${options} onInput=${choose} />`;
}
