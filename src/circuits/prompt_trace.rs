//! What one prompt's run through a model gives to draw a circuit on that prompt: every node's values, and what they are made of.
//!
//! Everything here is exact on this prompt. Nonlinear parts are taken as they are: what a norm divides by, which channels an
//! AbsTopK lets through, attention probabilities. With those fixed, what a node reads is a sum, each part of which is of one
//! node, of the token's embedding, or of what is outside of the circuit.

use std::collections::BTreeMap;

use crate::models::location::Node;

/// A prompt with what a circuit does on it. `T` tokens; nodes and edges are those of the circuit's record, in its order.
#[derive(Debug, Clone)]
pub struct PromptTrace {
    /// What the circuit is run on.
    pub prompt: String,
    pub ids: Vec<u32>,
    /// One a token.
    pub tokens: Vec<String>,
    /// Where each node is.
    pub places: Vec<(Node, usize)>,
    /// Whether the attention and the MLP of a layer read the same stream.
    pub parallel: bool,
    /// Of each node, `[T]`: its value.
    pub values: Vec<Vec<f32>>,
    /// Of each node, `[T]`: what its parts add up to. It is the value of a node that reads the stream, and before nonlinearity,
    /// AbsTopK and bias what a linear layer gives.
    pub sums: Vec<Vec<f32>>,
    /// Of each node, `[T]`: what its parts are multiplied by. It is a norm's factor and gain in this channel, and one where no
    /// norm stands between.
    pub factors: Vec<Vec<f32>>,
    /// Of each node that reads the stream, `[T]`: the token's embedding's part, factor included; zeros for others.
    pub embedded: Vec<Vec<f32>>,
    /// Of each edge from a value: the head that moves it between tokens.
    pub heads: Vec<Option<usize>>,
    /// Attention probabilities by layer and head, `[T, T]`.
    pub patterns: BTreeMap<(usize, usize), Vec<f32>>,
    /// Channels of the stream in which a nonlinearity stands between sublayers, each with whether it let the channel through:
    /// `[sites, T]`. None where the stream only adds up.
    pub gates: Option<BTreeMap<usize, Vec<bool>>>,
    /// The likeliest next tokens, the likeliest first.
    pub logits: Vec<TracedLogit>,
}

/// A likely next token with what its logit is made of.
#[derive(Debug, Clone)]
pub struct TracedLogit {
    pub id: u32,
    pub text: String,
    pub logit: f32,
    pub probability: f32,
    /// What its parts add up to: the logit before a soft cap, without the bias.
    pub sum: f32,
    /// Each node's part: its value at the last token, in its channel of the stream, through the last norm and the unembedding.
    pub from_nodes: Vec<f32>,
    /// The last token's embedding's part, and what a bigram table adds.
    pub from_embedding: f32,
}

impl PromptTrace {
    /// Whether a channel of the stream passed every nonlinearity from site `from` to site `to` at a token.
    pub fn passes(&self, channel: usize, from: usize, to: usize, token: usize) -> bool {
        let Some(gates) = &self.gates else {
            return true;
        };
        let Some(open) = gates.get(&channel) else {
            return true;
        };
        let tokens = self.ids.len();
        (from..=to).all(|site| open.get(site * tokens + token) != Some(&false))
    }
}
