// What the server has: models, bridges, features, presets and circuits. Asked for once, and again when a view says that
// something has changed.

import { computed, signal } from "./html.js";
import { ask, askAll } from "./api.js";

export const models = signal(null);
export const bridges = signal([]);
export const features = signal([]);
export const presets = signal([]);
export const circuits = signal([]);
// Why the models could not be asked for.
export const problem = signal(null);

export async function refresh() {
  try {
    const list = await ask("/v1/models");
    const others = [ask("/v1/bridges"), askAll("/v1/features?limit=1000"), askAll("/v1/presets?limit=100"),
      askAll("/v1/circuits?limit=100")];
    const [bridgeList, featureList, presetList, circuitList] = await Promise.all(others);
    bridges.value = bridgeList.data;
    features.value = featureList;
    presets.value = presetList;
    circuits.value = circuitList;
    models.value = list.data;
    problem.value = null;
  } catch (error) {
    problem.value = error;
  }
}

export const byId = computed(() => new Map((models.value ?? []).map((model) => [model.id, model])));

// The model a view begins with: the dense one of whose features most have tests, else one with a bridge, else any.
export function firstModel() {
  const worth = (model) => (model.kind === "dense" ? 1 : 0) + (model.bridges.length > 0 ? 1 : 0)
    + (model.kind === "dense" ? 2 * testedFeatures(model.id).length : 0);
  const list = (models.value ?? []).filter((model) => model.kind !== "preset");
  return [...list].sort((one, two) => worth(two) - worth(one))[0]?.id ?? "";
}

// The bridges that a model is the dense or the sparse side of.
export function bridgesOf(modelId) {
  const base = byId.value.get(modelId)?.base_model ?? modelId;
  return bridges.value.filter((bridge) => bridge.dense === base || bridge.sparse === base);
}

// The bridge that a model's features are taken from: the one that was chosen, else the model's default.
export function bridgeOf(modelId, chosen = "") {
  const model = byId.value.get(modelId);
  const base = model?.base_model ?? modelId;
  const own = bridgesOf(modelId);
  const preferred = chosen || (byId.value.get(base)?.default_bridge ?? model?.default_bridge);
  return own.find((bridge) => bridge.id === preferred) ?? own[0] ?? null;
}

// The features that requests to a model can name.
export function featuresOf(modelId, chosen = "") {
  const bridge = bridgeOf(modelId, chosen);
  return features.value.filter((feature) =>
    feature.object === "direction" ? feature.model === modelId : bridge !== null && feature.bridge === bridge.id);
}

// Statistics of a feature as an edit's units take them; null where there are none.
export function statsOf(feature) {
  if (!feature) return null;
  return feature.object === "direction" ? feature.directions[0]?.stats ?? null : feature.stats;
}

// Shipped with tests, best first: what a try can begin with.
export function testedFeatures(modelId, chosen = "") {
  const tested = featuresOf(modelId, chosen).filter((feature) => feature.tests?.length > 0);
  return tested.sort((one, other) => (other.effects?.own.flips ?? 0) - (one.effects?.own.flips ?? 0));
}
