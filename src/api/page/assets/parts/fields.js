// Labelled fields, each with the place where the server's error about it is shown.

import { html, useId, useState } from "../html.js";
import { request } from "../api.js";
import { Prose } from "./tokens.js";

// Whether an error is about the field of this name: the server's `param` is it or lies within it.
export function isAbout(error, param) {
  const at = error?.param;
  return Boolean(at && param) && (at === param || at.startsWith(`${param}.`) || at.startsWith(`${param}[`));
}

// An error in the server's words; with `again`, a button that tries once more, as a server that is busy asks for.
export function Problem({ error, again, id }) {
  if (!error) return null;
  const wait = error.retryAfter ? ` (the server asks to wait ${error.retryAfter} s)` : "";
  return html`<p class="problem" role="alert" id=${id}>
    <span>${error.param ? html`<code>${error.param}</code>: ` : null}${error.message}${wait}</span>
    ${again && (error.status === 0 || error.status === 429 || error.status >= 500)
      ? html` <button type="button" onClick=${again}>Try again</button>` : null}
  </p>`;
}

// A label with a control. `children` makes the control from the attributes that tie both and an error together.
export function Field({ label, hint, param, error, children, className = "" }) {
  const id = useId();
  const own = isAbout(error, param) ? error : null;
  const described = [hint ? `${id}-hint` : null, own ? `${id}-problem` : null].filter(Boolean).join(" ");
  const tied = { id, "aria-describedby": described || undefined, "aria-invalid": own ? "true" : undefined };
  return html`<div class=${`field ${className}`}>
    <label for=${id}>${label}</label>
    ${children(tied)}
    ${hint ? html`<p class="hint" id=${`${id}-hint`}>${typeof hint === "string" ? html`<${Prose} text=${hint} />` : hint}</p>` : null}
    ${own ? html`<${Problem} error=${own} id=${`${id}-problem`} />` : null}
  </div>`;
}

export function TextField({ value, onInput, rows, list, placeholder, spell = false, ...field }) {
  const write = (event) => onInput(event.currentTarget.value);
  return html`<${Field} ...${field}>${(tied) => rows
    ? html`<textarea ...${tied} rows=${rows} spellcheck=${spell} placeholder=${placeholder} value=${value} onInput=${write} />`
    : html`<input ...${tied} type="text" spellcheck=${spell} autocomplete="off" list=${list} placeholder=${placeholder}
        value=${value} onInput=${write} />`}<//>`;
}

// A number; what is no number yet is left to be typed on.
export function NumberField({ value, onInput, min, max, step = "any", ...field }) {
  const write = (event) => {
    const text = event.currentTarget.value;
    if (text !== "" && Number.isFinite(Number(text))) onInput(Number(text));
    else if (text === "" && field.optional) onInput(null);
  };
  return html`<${Field} ...${field}>${(tied) => html`<input ...${tied} type="number" inputmode="decimal" min=${min} max=${max}
    step=${step} value=${value ?? ""} onInput=${write} />`}<//>`;
}

// A slider and a number that are the same value. The number may go beyond the slider's ends.
export function SliderField({ value, onInput, min, max, step, unit = "", ...field }) {
  return html`<${Field} ...${field} className="slider">${(tied) => html`<div class="slider-row">
    <input ...${tied} type="range" min=${min} max=${max} step=${step} value=${value}
      aria-valuetext=${`${value} ${unit}`} onInput=${(event) => onInput(Number(event.currentTarget.value))} />
    <input type="number" step="any" value=${value} aria-label=${`${typeof field.label === "string" ? field.label : field.name}, as a number`}
      onInput=${(event) => {
        const text = event.currentTarget.value;
        if (text !== "" && Number.isFinite(Number(text))) onInput(Number(text));
      }} />
  </div>`}<//>`;
}

// `options` are `[value, text]` or values.
export function SelectField({ value, onInput, options, ...field }) {
  const pairs = options.map((option) => (Array.isArray(option) ? option : [option, option]));
  const known = pairs.some(([option]) => option === value);
  return html`<${Field} ...${field}>${(tied) => html`<select ...${tied} value=${value}
    onChange=${(event) => onInput(event.currentTarget.value)}>
    ${known ? null : html`<option value=${value}>${value || "–"}</option>`}
    ${pairs.map(([option, text]) => html`<option key=${option} value=${option} selected=${option === value}>${text}</option>`)}
  </select>`}<//>`;
}

export function CheckField({ checked, onInput, label }) {
  return html`<label class="check"><input type="checkbox" checked=${checked}
    onChange=${(event) => onInput(event.currentTarget.checked)} /> <span>${label}</span></label>`;
}

// A button that copies text, and says so.
export function CopyButton({ text, children }) {
  const [said, setSaid] = useState(null);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(typeof text === "function" ? text() : text);
      setSaid("Copied");
    } catch {
      setSaid("The browser does not let this page copy");
    }
    setTimeout(() => setSaid(null), 1500);
  };
  return html`<button type="button" onClick=${copy}>${said ?? children}</button>`;
}

// A button that fetches a file, with the key that a link would not send, and gives it to the browser to save.
export function DownloadButton({ path, name, children }) {
  const [problem, setProblem] = useState(null);
  const fetchIt = async () => {
    setProblem(null);
    try {
      const response = await request(path);
      save(name, response.headers.get("content-type") ?? "", await response.blob());
    } catch (refusal) {
      setProblem(refusal);
    }
  };
  return html`<button type="button" onClick=${fetchIt}>${children}</button><${Problem} error=${problem} again=${fetchIt} />`;
}

// Gives a text or a blob to the browser as a file to save.
export function save(name, type, content) {
  const url = URL.createObjectURL(new Blob([content], { type }));
  const anchor = Object.assign(document.createElement("a"), { href: url, download: name });
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
