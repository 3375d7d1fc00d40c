// The page's frame: its header with the views, the field for a key, light and dark, and the view that the address names.
// A view's module is fetched when it is first opened.

import { Component, html, render, signal, useEffect, useId, useState } from "./html.js";
import { giveKey, key, keyAsked, learnRole, role } from "./api.js";
import { opened } from "./address.js";
import { models, problem, refresh } from "./served.js";
import { Problem } from "./parts/fields.js";
import { hideTip, TipLayer } from "./tip.js";

const VIEWS = [
  ["steer", "Steer", () => import("./views/steer.js")],
  ["dose", "Dose", () => import("./views/dose.js")],
  ["features", "Features", () => import("./views/features.js")],
  ["contrast", "Contrast", () => import("./views/contrast.js")],
  ["activations", "Activations", () => import("./views/activations.js")],
  ["circuits", "Circuits", () => import("./views/circuits.js")],
  ["models", "Models", () => import("./views/models.js")],
  ["jobs", "Jobs", () => import("./views/jobs.js")],
];
const SCHEMES = { auto: "System", light: "Light", dark: "Dark" };

const scheme = signal(storedScheme());

// Only the scheme is kept in the browser, and only where it lets pages keep anything.
function storedScheme() {
  try {
    return localStorage.getItem("scheme") ?? "auto";
  } catch {
    return "auto";
  }
}

function setScheme(value) {
  scheme.value = value;
  applyScheme();
  try {
    localStorage.setItem("scheme", value);
  } catch {
    // Kept until the page is closed.
  }
}

function applyScheme() {
  if (scheme.value === "auto") delete document.documentElement.dataset.scheme;
  else document.documentElement.dataset.scheme = scheme.value;
}

function KeyForm() {
  const id = useId();
  const [text, setText] = useState("");
  const [open, setOpen] = useState(false);
  const asked = keyAsked.value;
  if (!asked && !open) {
    return html`<button type="button" class="quiet" onClick=${() => setOpen(true)}>
      ${key.value ? `Key: ${role.value ?? "…"}` : "Key"}</button>`;
  }
  const give = (event) => {
    event.preventDefault();
    giveKey(text);
    setText("");
    setOpen(false);
    refresh();
  };
  return html`<form class="key-form" onSubmit=${give}>
    <label for=${id}>API key</label>
    <input id=${id} type="password" autocomplete="off" value=${text} onInput=${(event) => setText(event.currentTarget.value)} />
    <button type="submit" class="primary">Use it</button>
    ${asked ? null : html`<button type="button" onClick=${() => setOpen(false)}>Close</button>`}
    <p class="hint" role=${asked ? "alert" : undefined}>${asked
      ? `The server says: ${asked}. ` : ""}The key stays in this page's memory and is forgotten when it is closed.</p>
  </form>`;
}

function Header({ current }) {
  return html`<header class="top">
    <a class="brand" href="#/steer"><img src="/page/icon.svg" alt="" width="24" height="24" /> Causeway</a>
    <nav aria-label="Views"><ul>
      ${VIEWS.map(([name, title]) => html`<li key=${name}><a href=${`#/${name}`}
        aria-current=${name === current ? "page" : undefined}>${title}</a></li>`)}
    </ul></nav>
    <div class="top-right">
      <${KeyForm} />
      <label class="scheme"><span class="visually-hidden">Colours</span>
        <select value=${scheme.value} onChange=${(event) => setScheme(event.currentTarget.value)}>
          ${Object.entries(SCHEMES).map(([value, text]) => html`<option key=${value} value=${value}
            selected=${value === scheme.value}>${text}</option>`)}
        </select></label>
      <a href="/docs" class="quiet-link">API</a>
    </div>
  </header>`;
}

// What a view that fails leaves in its place, so that the others can still be gone to.
class Net extends Component {
  state = { error: null };

  componentDidCatch(error) {
    console.error(error);
    this.setState({ error });
  }

  render({ children }, { error }) {
    return error ? html`<${Problem} error=${{ message: `this view has failed: ${error.message}` }} />` : children;
  }
}

function View({ name, load, visit }) {
  const [loaded, setLoaded] = useState(null);
  const [failed, setFailed] = useState(null);
  useEffect(() => {
    let here = true;
    hideTip();
    load().then((module) => here && setLoaded({ name, view: module.default }), (error) => here && setFailed(error));
    return () => (here = false);
  }, [name]);
  if (failed) return html`<${Problem} error=${{ message: `this view could not be fetched: ${failed.message}` }} />`;
  if (loaded?.name !== name) return html`<p class="waiting">…</p>`;
  return html`<${Net} key=${visit}><${loaded.view} /><//>`;
}

function Page() {
  const { view, visit } = opened.value;
  const [name, title, load] = VIEWS.find(([name]) => name === view) ?? VIEWS[0];
  useEffect(() => {
    document.title = `${title} · Causeway`;
  }, [title]);
  let content;
  if (models.value === null) {
    content = problem.value
      ? html`<${Problem} error=${problem.value} again=${refresh} />` : html`<p class="waiting">Asking the server…</p>`;
  } else if (models.value.length === 0 && name !== "models" && name !== "jobs") {
    content = html`<p>This server serves no model yet. <a href="#/models">Models</a> brings one in.</p>`;
  } else {
    content = html`<${View} key=${name} name=${name} load=${load} visit=${visit} />`;
  }
  return html`<a class="skip" href="#main" onClick=${(event) => {
      event.preventDefault();
      document.getElementById("main").focus();
    }}>To the content</a>
    <${Header} current=${name} />
    <main id="main" tabindex="-1" data-view=${name}>${content}</main>
    <${TipLayer} />`;
}

applyScheme();
const place = document.getElementById("page");
place.replaceChildren();
render(html`<${Page} />`, place);
refresh();
learnRole();
