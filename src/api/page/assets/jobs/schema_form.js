// A form made from a schema of the API's document: what the server would take is what can be typed. Fields that may be left
// out are folded away; what has no form of its own is typed as JSON.

import { html, useState } from "../html.js";
import { ask } from "../api.js";
import { CheckField, isAbout, NumberField, Problem, SelectField, TextField } from "../parts/fields.js";
import { Prose } from "../parts/tokens.js";

let fetched = null;

export function apiDocument() {
  fetched ??= ask("/openapi.json").catch((error) => {
    fetched = null;
    throw error;
  });
  return fetched;
}

// The schema itself, whatever it is called or wrapped in; `nullable` where it may be null.
export function resolved(schema, api) {
  let found = schema;
  let description = schema.description;
  let nullable = false;
  for (;;) {
    if (found.$ref) found = api.components.schemas[found.$ref.split("/").at(-1)];
    else if (found.oneOf?.length === 2 && found.oneOf.some((option) => option.type === "null")) {
      nullable = true;
      found = found.oneOf.find((option) => option.type !== "null");
    } else if (found.oneOf?.length === 1) found = found.oneOf[0];
    else break;
    description ??= found.description;
  }
  const types = Array.isArray(found.type) ? found.type : [found.type];
  const words = found.oneOf?.every((option) => option.enum?.length === 1) ? found.oneOf.map((option) => option.enum[0]) : found.enum;
  return { ...found, description, words, type: types.find((type) => type !== "null"), nullable: nullable || types.includes("null") };
}

const titled = (name) => name.replaceAll("_", " ");

function JsonField({ value, onInput, ...field }) {
  const [text, setText] = useState(value === undefined ? "" : JSON.stringify(value));
  const [wrong, setWrong] = useState(false);
  const write = (typed) => {
    setText(typed);
    try {
      onInput(typed.trim() === "" ? undefined : JSON.parse(typed));
      setWrong(false);
    } catch {
      setWrong(true);
    }
  };
  return html`<${TextField} ...${field} rows=${2} value=${text} onInput=${write} hint=${wrong ? "this is no JSON yet" : field.hint} />`;
}

// The field or the group of fields of one schema. A value that is undefined is left out of the request.
export function SchemaField({ name, schema, api, value, onInput, param, error, required }) {
  const found = resolved(schema, api);
  const label = required ? titled(name) : `${titled(name)} (optional)`;
  const common = { label, hint: found.description, param, error };
  if (found.properties) {
    return html`<${SchemaGroup} name=${name} found=${found} api=${api} value=${value} onInput=${onInput} param=${param} error=${error} required=${required} />`;
  }
  if (found.words) {
    const options = required ? found.words : [["", `as the server has it${found.default ? ` (${found.default})` : ""}`], ...found.words];
    return html`<${SelectField} ...${common} value=${value ?? ""} options=${options} onInput=${(text) => onInput(text === "" ? undefined : text)} />`;
  }
  if (found.type === "boolean") {
    if (required) return html`<${CheckField} checked=${Boolean(value)} label=${titled(name)} onInput=${onInput} />`;
    return html`<${SelectField} ...${common} value=${value === undefined ? "" : String(value)} options=${[["", `as the server has it${found.default === undefined ? "" : ` (${found.default})`}`], ["true", "yes"], ["false", "no"]]}
      onInput=${(text) => onInput(text === "" ? undefined : text === "true")} />`;
  }
  if (found.type === "integer" || found.type === "number") {
    return html`<${NumberField} ...${common} optional=${!required} value=${value ?? ""} min=${found.minimum} max=${found.maximum} step=${found.type === "integer" ? 1 : "any"}
      onInput=${(number) => onInput(number ?? undefined)} />`;
  }
  if (found.type === "string") {
    return html`<${TextField} ...${common} value=${value ?? ""} onInput=${(text) => onInput(text === "" && !required ? undefined : text)} />`;
  }
  return html`<${JsonField} ...${common} value=${value} onInput=${onInput} />`;
}

function SchemaGroup({ name, found, api, value, onInput, param, error, required }) {
  const needed = new Set(found.required ?? []);
  const names = Object.keys(found.properties);
  const given = value ?? {};
  const change = (child, childValue) => {
    const next = { ...given, [child]: childValue };
    if (childValue === undefined) delete next[child];
    onInput(next);
  };
  const field = (child) => html`<${SchemaField} key=${child} name=${child} schema=${found.properties[child]} api=${api} value=${given[child]}
    param=${`${param}.${child}`} error=${error} required=${needed.has(child)} onInput=${(childValue) => change(child, childValue)} />`;
  if (!required && value === undefined) {
    return html`<p><button type="button" onClick=${() => onInput(beginning(found, api))}>Add ${titled(name)}</button>
      ${found.description ? html` <span class="hint"><${Prose} text=${found.description} /></span>` : null}</p>
      ${isAbout(error, param) ? html`<${Problem} error=${error} />` : null}`;
  }
  const optional = names.filter((child) => !needed.has(child));
  const isSet = (child) => given[child] !== undefined;
  const claimed = names.some((child) => isAbout(error, `${param}.${child}`));
  return html`<fieldset class="schema"><legend>${titled(name)}</legend>
    ${required ? null : html`<button type="button" class="remove" aria-label=${`Leave out ${titled(name)}`} onClick=${() => onInput(undefined)}>×</button>`}
    ${found.description ? html`<p class="hint"><${Prose} text=${found.description} /></p>` : null}
    <div class="schema-fields">${names.filter((child) => needed.has(child) || isSet(child)).map(field)}</div>
    ${optional.some((child) => !isSet(child)) ? html`<details><summary>More of ${titled(name)}</summary><div class="schema-fields">${optional.filter((child) => !isSet(child)).map(field)}</div></details>` : null}
    ${isAbout(error, param) && !claimed ? html`<${Problem} error=${error} />` : null}
  </fieldset>`;
}

// What a schema's fields begin with: what `example` has under the same names, else the schema's own defaults.
export function beginning(schema, api, example = {}) {
  const found = resolved(schema, api);
  if (!found.properties) return example[found.name];
  const value = {};
  for (const name of found.required ?? []) {
    const child = resolved(found.properties[name], api);
    if (example[name] !== undefined) value[name] = example[name];
    else if (child.default !== undefined) value[name] = child.default;
    else if (child.properties) value[name] = beginning(child, api, example);
    else if (child.words) value[name] = child.words[0];
    else if (child.type === "boolean") value[name] = false;
    else if (child.type === "integer" || child.type === "number") value[name] = child.minimum ?? 0;
    else if (child.type === "string") value[name] = "";
  }
  return value;
}
