// Keeps a try's edits on the server under an id, so that any client can ask for them by it.

import { html, useState } from "../html.js";
import { ask } from "../api.js";
import { refresh } from "../served.js";
import { isAbout, Problem, TextField } from "../parts/fields.js";
import { steerBody } from "./request.js";

export function KeepPreset({ state }) {
  const [id, setId] = useState("");
  const [kept, setKept] = useState(null);
  const [problem, setProblem] = useState(null);
  const keep = async () => {
    setProblem(null);
    setKept(null);
    try {
      // A preset makes one choice: its edits, without arms to compare them with.
      const { variants, ...steer } = steerBody(state);
      const made = await ask("/v1/presets", { body: { id, model: state.model, steer: { ...steer, return: [] } } });
      setKept(made.name ?? made.id);
      await refresh();
    } catch (refusal) {
      setProblem(refusal);
    }
  };
  return html`<details><summary>Keep it as a preset</summary>
    <${TextField} label="Preset's id" value=${id} placeholder="single_quotes" param="id" error=${problem} onInput=${setId}
      hint="Any client is steered so that names the model MODEL@PRESET." />
    <button type="button" disabled=${id === ""} onClick=${keep}>Keep it</button>
    ${kept ? html`<p role="status">Kept as <code>${kept}</code>.</p>` : null}
    ${problem && !isAbout(problem, "id") ? html`<${Problem} error=${problem} again=${keep} />` : null}
  </details>`;
}
