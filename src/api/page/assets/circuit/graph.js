// A circuit as a graph: places are columns in the order of the pass, nodes are sorted so that edges cross little, and what
// joins two nodes through the residual stream is dotted. Edges are drawn once; only those of the node at hand are drawn
// again, on a layer of their own, so that thousands of them stay quick.

import { html, useEffect, useMemo, useRef, useState } from "../html.js";
import { order } from "../parts/places.js";
import { short } from "../parts/numbers.js";

export const nameOf = (node) => `${node.node}:${node.channel}`;

// Where everything stands: columns by place, nodes in each by the mean height of what they are joined to.
export function layOut(circuit) {
  const places = [...new Set(circuit.nodes.map((node) => node.node))].sort((one, two) => order(one) - order(two));
  const nodes = circuit.nodes.map((node) => ({ ...node, name: nameOf(node), column: places.indexOf(node.node) }));
  const byName = new Map(nodes.map((node) => [node.name, node]));
  const edges = circuit.edges.map((edge) => ({ ...edge, source: byName.get(nameOf(edge.from)), target: byName.get(nameOf(edge.to)) }))
    .filter((edge) => edge.source && edge.target);
  const links = [];
  const writers = nodes.filter((node) => node.node.endsWith("resid_delta"));
  for (const reader of nodes.filter((node) => node.node.endsWith("act_in"))) {
    for (const writer of writers) if (writer.channel === reader.channel && order(writer.node) < order(reader.node)) links.push({ source: writer, target: reader });
  }
  const columns = places.map((_, at) => nodes.filter((node) => node.column === at));
  const tallest = Math.max(...columns.map((column) => column.length), 1);
  const gap = Math.max(13, Math.min(34, 620 / tallest));
  const height = Math.max(220, tallest * gap + 20);
  // All columns on one screen where they may be, at least as far apart as their edges can be told.
  const spread = Math.max(76, Math.min(118, 1080 / places.length));
  const place = (column) => column.forEach((node, at) => {
    node.y = 60 + (height - column.length * gap) / 2 + (at + 0.5) * gap;
    node.x = 60 + node.column * spread;
  });
  columns.forEach(place);
  const joined = new Map(nodes.map((node) => [node, []]));
  for (const { source, target } of [...edges, ...links]) {
    joined.get(source).push(target);
    joined.get(target).push(source);
  }
  for (let sweep = 0; sweep < 6; sweep += 1) {
    for (const column of sweep % 2 === 0 ? columns : [...columns].reverse()) {
      const middle = (node) => (joined.get(node).length === 0 ? node.y : joined.get(node).reduce((sum, other) => sum + other.y, 0) / joined.get(node).length);
      column.sort((one, two) => middle(one) - middle(two));
      place(column);
    }
  }
  return { places, nodes, edges, links, byName, spread, width: 120 + places.length * spread, height: height + 80 };
}

const curve = (edge) => {
  const bend = Math.max(30, (edge.target.x - edge.source.x) / 2);
  return `M${edge.source.x} ${edge.source.y}C${edge.source.x + bend} ${edge.source.y} ${edge.target.x - bend} ${edge.target.y} ${edge.target.x} ${edge.target.y}`;
};

// Edges of one sign and about one width are drawn as one path.
function bundles(edges, kind, width) {
  const found = new Map();
  for (const edge of edges) {
    const rounded = Math.round(width(edge) * 2) / 2;
    const name = `${kind(edge)} ${rounded}`;
    if (!found.has(name)) found.set(name, { kind: kind(edge), width: rounded, edges: [] });
    found.get(name).edges.push(edge);
  }
  return [...found];
}

export function CircuitGraph({ laid, threshold, pinned, onPin }) {
  const [over, setOver] = useState(null);
  const box = useRef(null);
  const most = Math.max(...laid.edges.map((edge) => Math.abs(edge.weight)), 1e-9);
  const strongest = Math.max(...laid.nodes.map((node) => Math.abs(node.effect)), 1e-9);
  const shown = useMemo(() => laid.edges.filter((edge) => Math.abs(edge.effect) >= threshold), [laid, threshold]);
  const width = (edge) => 0.6 + (Math.abs(edge.weight) / most) * 3;
  const kind = (edge) => (edge.weight < 0 ? "edge down" : "edge up");
  const background = useMemo(() => html`<svg class="edges" width=${laid.width} height=${laid.height} aria-hidden="true">
    <path class="stream" d=${laid.links.map(curve).join("")} />
    ${bundles(shown, kind, width).map(([name, bundle]) => html`<path key=${name} class=${bundle.kind} d=${bundle.edges.map(curve).join("")} stroke-width=${bundle.width} />`)}</svg>`, [laid, shown]);
  const at = over ?? pinned;
  const own = at ? shown.filter((edge) => edge.source.name === at || edge.target.name === at) : [];
  const near = new Set(own.flatMap((edge) => [edge.source.name, edge.target.name]));
  const ordered = useMemo(() => [...laid.nodes].sort((one, two) => one.column - two.column || one.y - two.y), [laid]);
  const move = (event) => {
    const from = ordered.findIndex((node) => node.name === (over ?? pinned));
    const here = ordered[Math.max(0, from)];
    let next = null;
    if (from < 0) next = ["ArrowDown", "ArrowRight"].includes(event.key) ? ordered[0] : null;
    else if (event.key === "ArrowDown") next = ordered[from + 1];
    else if (event.key === "ArrowUp") next = ordered[from - 1];
    else if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
      const step = event.key === "ArrowRight" ? 1 : -1;
      const column = laid.nodes.filter((node) => node.column === here.column + step);
      next = column.sort((one, two) => Math.abs(one.y - here.y) - Math.abs(two.y - here.y))[0];
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      if (over) onPin(over === pinned ? "" : over);
      return;
    } else return;
    event.preventDefault();
    if (!next) return;
    setOver(next.name);
    box.current.querySelector(`[data-name="${CSS.escape(next.name)}"]`)?.scrollIntoView({ block: "nearest", inline: "nearest" });
  };
  useEffect(() => {
    if (pinned) box.current.querySelector(`[data-name="${CSS.escape(pinned)}"]`)?.scrollIntoView({ block: "nearest", inline: "center" });
  }, [pinned, laid]);
  const pointed = (event) => {
    const name = event.target.dataset?.name;
    if ((name ?? null) !== over) setOver(name ?? null);
  };
  const known = laid.byName.get(at);
  return html`<div class="graph" ref=${box} tabindex="0" role="group" aria-label="Graph of the circuit: arrow keys go from node to node, Enter pins one" onKeyDown=${move} onBlur=${() => setOver(null)}>
    <div class=${at ? "layers dimmed" : "layers"} style=${{ width: `${laid.width}px`, height: `${laid.height}px` }}>
    ${background}
    <svg class="front" width=${laid.width} height=${laid.height} role="img" aria-label=${`${laid.nodes.length} nodes and ${shown.length} of ${laid.edges.length} edges`}
      onMouseOver=${pointed} onMouseLeave=${() => setOver(null)} onClick=${(event) => event.target.dataset?.name && onPin(event.target.dataset.name === pinned ? "" : event.target.dataset.name)}>
      ${laid.places.map((place, column) => html`<text key=${place} class="place" x=${60 + column * laid.spread} y=${16 + (column % 3) * 15} text-anchor="middle">${place}</text>`)}
      <g class="own">${own.map((edge, index) => html`<path key=${index} class=${kind(edge)} d=${curve(edge)} stroke-width=${width(edge) + 1} />`)}</g>
      ${laid.nodes.map((node) => html`<circle key=${node.name} data-name=${node.name} cx=${node.x} cy=${node.y} r=${4 + 6 * Math.sqrt(Math.max(0, node.effect) / strongest)}
        class=${`node${node.name === pinned ? " pinned" : ""}${at && node.name !== at && !near.has(node.name) ? " far" : ""}`} />`)}
      ${known ? html`<text class="name" x=${known.x} y=${known.y - 12} text-anchor="middle">${known.channel}: effect ${short(known.effect, 2)}</text>` : null}
    </svg></div>
    <p class="visually-hidden" role="status">${known ? `${known.name}, effect ${short(known.effect, 2)}, ${own.length} edges` : ""}</p>
  </div>`;
}
