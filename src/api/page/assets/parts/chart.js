// Line charts. The library that draws them is fetched with the first one.

import { html, useEffect, useRef } from "../html.js";
import { short } from "./numbers.js";

let library = null;

function fetchLibrary() {
  if (!library) {
    const style = Object.assign(document.createElement("link"), { rel: "stylesheet", href: "/page/vendor/uplot.css" });
    document.head.append(style);
    library = import("uplot").then((module) => module.default);
  }
  return library;
}

function colour(element, name) {
  // The library draws on a canvas, which knows no variables and no `light-dark`.
  const probe = document.createElement("span");
  probe.style.color = `var(--${name})`;
  element.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

// `lines` are `{label, colour, values, dashes?, low?, high?}` over `x`; `low` and `high` are drawn as a band. Below the
// chart the same numbers are a table, for whoever cannot see it.
export function LineChart({ title, x, xLabel, lines, range, height = 260, logarithmic = false }) {
  const place = useRef(null);
  useEffect(() => {
    let chart = null;
    let gone = false;
    let observer = null;
    const draw = async () => {
      const Plot = await fetchLibrary();
      if (gone || !place.current) return;
      chart?.destroy();
      const box = place.current;
      const ink = colour(box, "faint");
      const grid = { stroke: colour(box, "line"), width: 1 };
      const series = [{ label: xLabel, value: (_, value) => short(value) }];
      const data = [x];
      const bands = [];
      for (const line of lines) {
        const stroke = colour(box, line.colour);
        if (line.low) {
          const fill = stroke.replace(/^rgb\(([^)]*)\)$/, "rgba($1, 0.16)");
          for (const edge of [line.high, line.low]) {
            data.push(edge);
            series.push({ label: "", stroke: "transparent", width: 0, points: { show: false } });
          }
          bands.push({ series: [data.length - 2, data.length - 1], fill });
        }
        data.push(line.values);
        series.push({
          label: line.label, stroke, width: 2, dash: line.dashes, spanGaps: true,
          points: { show: x.length < 40, size: 6, fill: stroke },
        });
      }
      const axis = { stroke: ink, grid, ticks: grid, font: "12px system-ui" };
      chart = new Plot({
        width: Math.max(240, box.clientWidth), height, series, bands,
        legend: { show: false }, cursor: { points: { show: false } },
        scales: { x: { time: false }, y: { ...(range ? { range: () => range } : {}), ...(logarithmic ? { distr: 3 } : {}) } },
        axes: [{ ...axis, label: xLabel, labelSize: 20 }, { ...axis, size: 56, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : short(tick))) }],
      }, data, box);
      observer ??= new ResizeObserver(() => chart?.setSize({ width: Math.max(240, box.clientWidth), height }));
      observer.observe(box);
    };
    draw();
    const dark = matchMedia("(prefers-color-scheme: dark)");
    dark.addEventListener("change", draw);
    const schemes = new MutationObserver(draw);
    schemes.observe(document.documentElement, { attributeFilter: ["data-scheme"] });
    return () => {
      gone = true;
      observer?.disconnect();
      schemes.disconnect();
      dark.removeEventListener("change", draw);
      chart?.destroy();
    };
  }, [x, lines, title, height]);
  const shown = x.length > 60 ? x.map((_, at) => at).filter((at) => at % Math.ceil(x.length / 60) === 0) : x.map((_, at) => at);
  return html`<figure class="chart"><figcaption>${title}</figcaption>
    <ul class="legend">${lines.map((line) => html`<li key=${line.label}><span class="key" style=${{
      borderTopColor: `var(--${line.colour})`, borderTopStyle: line.dashes ? "dashed" : "solid" }}></span>${line.label}</li>`)}</ul>
    <div ref=${place} role="img" aria-label=${`${title}; its numbers are in the table below`}></div>
    <details><summary>As a table</summary><div class="scroll" tabindex="0" role="region" aria-label=${`${title}, as a table`}><table>
      <thead><tr><th>${xLabel}</th>${lines.map((line) => html`<th key=${line.label}>${line.label}</th>`)}</tr></thead>
      <tbody>${shown.map((at) => html`<tr key=${at}><td>${short(x[at])}</td>${lines.map((line) => html`<td key=${line.label}>${short(line.values[at])}${line.low
        ? html` <span class="position">(${short(line.low[at])} to ${short(line.high[at])})</span>` : null}</td>`)}</tr>`)}</tbody>
    </table></div></details></figure>`;
}

// A histogram as bars of one colour, drawn as an image of its own.
export function Histogram({ edges, counts, title }) {
  const most = Math.max(...counts, 1);
  const [width, height] = [480, 120];
  const span = edges.at(-1) - edges[0] || 1;
  const at = (value) => ((value - edges[0]) / span) * width;
  // A root, so that the few large values are seen beside the many small ones.
  const tall = (count) => (count === 0 ? 0 : Math.max(1.5, Math.sqrt(count / most) * (height - 18)));
  return html`<figure class="chart"><figcaption>${title}</figcaption>
    <svg class="histogram" viewBox=${`0 0 ${width} ${height}`} role="img" aria-label=${`${title}: from ${short(edges[0])} to ${short(edges.at(-1))}`}>
      ${counts.map((count, index) => html`<rect key=${index} x=${at(edges[index])} y=${height - 16 - tall(count)}
        width=${Math.max(1, at(edges[index + 1]) - at(edges[index]) - 1)} height=${tall(count)}><title>${`${short(edges[index])} to ${short(edges[index + 1])}: ${count} tokens`}</title></rect>`)}
      <text x="0" y=${height - 2}>${short(edges[0])}</text>
      ${edges[0] < 0 && edges.at(-1) > 0 ? html`<text x=${at(0)} y=${height - 2} text-anchor="middle">0</text>` : null}
      <text x=${width} y=${height - 2} text-anchor="end">${short(edges.at(-1))}</text>
    </svg></figure>`;
}
