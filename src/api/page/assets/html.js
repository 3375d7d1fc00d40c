// What every module writes elements with: preact's elements as tagged templates, its hooks, and signals, which redraw the
// components that read them. Text in a template is always text: nothing in this page sets inner HTML.

import { Component, Fragment, h, render } from "preact";
import htm from "htm";

export const html = htm.bind(h);
export { Component, Fragment, render };
export { useEffect, useId, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
export { batch, computed, effect, signal, useComputed, useSignal } from "@preact/signals";
