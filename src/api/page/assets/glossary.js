// What the page's terms mean, told where they stand: a term is a button whose explanation shows while it is hovered,
// focused or pressed.

import { html } from "./html.js";
import { hideTip, showTip } from "./tip.js";

const MEANINGS = {
  "dense model": "The model whose answer is steered. All of its weights count, so single channels rarely mean anything.",
  "sparse model": "A transformer whose weights are almost all zero, taught to predict what the dense one predicts. Few of its channels are active at a token, and each is wired to few others.",
  bridge: "For every site an encoder (dense stream to sparse stream) and a decoder (back). Edits of the sparse model's features are carried over to the dense model through the decoder.",
  feature: "A channel of the sparse model, or a weighted group of channels of one place, with a name and tests.",
  channel: "One number of a place, for each token.",
  site: "A point of the residual stream, such as 2.resid_mid: what all later layers read.",
  "node location": "A point inside a layer, such as 0.mlp.act_in: what layer 0's MLP reads after its norm.",
  activation: "A feature's value at a token.",
  "typical activation": "What a feature's values usually are, over reference text: std is their standard deviation, max the largest one seen. Sliders count in these.",
  baseline: "The same request without edits.",
  "random control": "A direction drawn at random, as large at each token as the edit's change. An effect that it has too is no effect of the feature.",
  "another feature": "Another live channel of the sparse model, carried over at the same size: a stronger control than a random direction.",
  strength: "How much of the change is made: the feature moves to a + strength · (target − a). 0 is nothing, 1 is the whole change.",
  operation: "What happens to the feature's value a: add to it, set it, clamp it between two numbers, scale it, ablate it (to zero or its mean), patch it with its value in another prompt, or swap it with another channel.",
  "counterfactual prompt": "A prompt that differs in one fact. Patching gives the feature the values that it has there, token by token.",
  receipt: "What was done: which tokens were touched, how large the change was against the stream, and how far the first token's distribution moved.",
  KL: "How far the distribution of the first generated token moved from the baseline's, in nats. 0 is not at all; above 1 is another answer.",
  "bridge error": "NMSE of the bridge's decoder at this site: how much of the dense stream it loses. 0 is nothing, 1 is all.",
  condition: "The edit acts only on tokens at which another feature, in the unedited run, is above or below a number.",
  seed: "All random draws follow from it: the same request with the same seed gives the same text.",
  temperature: "0 always takes the likeliest token; 1 draws from the model's own distribution.",
  circuit: "The few nodes and weights of a model that one task needs, found by training a mask; everything else is held at its mean.",
  "task loss": "Cross-entropy of the right answer among a pair's two, in nats. ln 2 = 0.69 is chance.",
  effect: "How much the circuit's task loss rises without this node or edge.",
  "held at": "The value that a node has where it is not part of the circuit: its mean over reference text, or zero.",
  density: "The share of tokens at which the feature is not zero.",
  "logit effects": "The tokens that a feature makes more or less probable.",
  NMSE: "Normalised mean squared error: 0 is a perfect copy, 1 is as bad as guessing the mean.",
  "hybrid KL": "What it costs to go on from the translated stream in the other model, in nats a token.",
  contrast: "Two sets of prompts that differ in one fact: channels are ranked by what patching them does to the dense model's answer.",
  dose: "The strength of an edit, swept from nothing to more than all of it.",
  attention: "How much of each earlier token's values a head takes to the present one.",
  perplexity: "The exponential of the loss: among how many tokens the model is as good as guessing.",
};

// A term of the page with its meaning; `children` where the text differs from the term's name.
export function Term({ name, children }) {
  const show = (event) => showTip(event.currentTarget, html`<p>${MEANINGS[name]}</p>`);
  return html`<button type="button" class="term" onMouseEnter=${show} onMouseLeave=${hideTip} onFocus=${show}
    onBlur=${hideTip} onClick=${show}>${children ?? name}</button>`;
}
