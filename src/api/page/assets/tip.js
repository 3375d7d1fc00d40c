// The one small window that tells more of what is pointed at or focused.

import { html, signal, useLayoutEffect, useRef } from "./html.js";

const shown = signal(null);

// Shows `content` beside `anchor`, which it describes until `hideTip`.
export function showTip(anchor, content) {
  if (shown.value && shown.value.anchor !== anchor) shown.value.anchor.removeAttribute("aria-describedby");
  anchor.setAttribute("aria-describedby", "tip");
  shown.value = { anchor, content, box: anchor.getBoundingClientRect() };
}

export function hideTip() {
  shown.value?.anchor.removeAttribute("aria-describedby");
  shown.value = null;
}

addEventListener("keydown", (event) => event.key === "Escape" && hideTip());
// What has the focus keeps its tip, and takes it along; the focus itself makes the page scroll.
addEventListener("scroll", () => {
  const tip = shown.value;
  if (!tip) return;
  if (tip.anchor === document.activeElement) shown.value = { ...tip, box: tip.anchor.getBoundingClientRect() };
  else hideTip();
}, { passive: true, capture: true });
addEventListener("hashchange", hideTip);

export function TipLayer() {
  const own = useRef(null);
  const tip = shown.value;
  useLayoutEffect(() => {
    if (!tip) return;
    const size = own.current.getBoundingClientRect();
    const left = Math.max(8, Math.min(tip.box.left, innerWidth - size.width - 8));
    const below = tip.box.bottom + 6;
    const top = below + size.height > innerHeight - 8 ? Math.max(8, tip.box.top - size.height - 6) : below;
    own.current.style.left = `${left}px`;
    own.current.style.top = `${top}px`;
  }, [tip]);
  return html`<div id="tip" role="tooltip" class="tip" hidden=${!tip} ref=${own}>${tip?.content}</div>`;
}
