// The page's address: everything that a view shows is in the part after `#`, so that a link reproduces it, and no server
// is told of it. `#/VIEW/REST?NAME=VALUE`; values that are no text are JSON.

import { signal } from "./html.js";

function read() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split(/\?(.*)/s);
  const [view, ...rest] = path.split("/");
  const values = {};
  for (const [name, text] of new URLSearchParams(query)) values[name] = text;
  return { view: safely(view), rest: safely(rest.join("/")), values };
}

function safely(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

// The address that the view was opened with. It is replaced when somebody follows a link, not while a view notes down
// what it shows.
export const opened = signal({ ...read(), visit: 0 });

addEventListener("hashchange", () => {
  opened.value = { ...read(), visit: opened.value.visit + 1 };
});

// The link to a view; values that are undefined, null, false or empty are left out.
export function link(view, values = {}, rest = "") {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) {
    if (value === undefined || value === null || value === "" || value === false) continue;
    if (Array.isArray(value) && value.length === 0) continue;
    query.set(name, typeof value === "string" ? value : JSON.stringify(value));
  }
  const text = query.toString();
  return `#/${view}${rest ? `/${encodeURIComponent(rest)}` : ""}${text ? `?${text}` : ""}`;
}

// Notes down what is shown, without a step in the browser's history.
export function note(view, values, rest) {
  const hash = link(view, values, rest);
  if (hash !== location.hash) history.replaceState(null, "", hash);
}

// What an address says of a view with these defaults: each value has its default's type, or is the default.
export function valuesWith(defaults) {
  const given = read().values;
  const values = { ...defaults };
  for (const [name, fallback] of Object.entries(defaults)) {
    if (!(name in given)) continue;
    if (typeof fallback === "string") {
      values[name] = given[name];
      continue;
    }
    try {
      const value = JSON.parse(given[name]);
      const fits = Array.isArray(fallback) ? Array.isArray(value) : typeof value === typeof fallback;
      if (fits && value !== null) values[name] = value;
    } catch {
      // A link that was cut off: the default stands.
    }
  }
  return values;
}
