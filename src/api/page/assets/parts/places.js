// The names of a model's places in the order of the pass.

const IN_ATTENTION = ["act_in", "q", "k", "v", "y", "resid_delta"];
const IN_MLP = ["act_in", "post_act", "resid_delta"];

// The locations inside the sublayers of a model.
export function nodeLocations(model) {
  const layers = Array.from({ length: model?.n_layers ?? 0 }, (_, layer) => layer);
  return layers.flatMap((layer) => [
    ...IN_ATTENTION.map((kind) => `${layer}.attn.${kind}`), ...IN_MLP.map((kind) => `${layer}.mlp.${kind}`),
  ]);
}

// Where a place stands in the pass, to sort by.
export function order(place) {
  if (place === "final_resid") return Infinity;
  const [layer, ...rest] = place.split(".");
  const kinds = ["resid_in", ...IN_ATTENTION.map((kind) => `attn.${kind}`), "resid_mid", ...IN_MLP.map((kind) => `mlp.${kind}`)];
  return Number(layer) * 100 + Math.max(0, kinds.indexOf(rest.join(".")));
}
