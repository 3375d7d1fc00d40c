//! The attention sublayer, of dense and sparse models alike.

use candle_core::{Result, Tensor};

use std::sync::Arc;

use super::config::{ActiveLocation, TransformerConfig};
use super::layers::{Active, Linear, NormLayer, SublayerInput, Weights, output_norm, sinks};
use super::location::{Location, Node, NodeKind};
use super::tap::ResidualTap;
use super::token_rows::{Arrangement, TokenRows};
use super::variant::QkNorm;
use crate::numerics::attention::causal_attention;
use crate::numerics::attention::kernel::{Blocks, Heads, Keys, Scores, padded, probabilities};
use crate::numerics::rotary::{Pairing, Turns, rotate};
use crate::numerics::rows;

/// Reads the stream, attends, returns what is to be added to it.
#[derive(Debug, Clone)]
pub struct Attention {
    layer: usize,
    pub input: SublayerInput,
    q: Linear,
    k: Linear,
    v: Linear,
    active: [Active; 4],
    sinks: Tensor,
    /// Of queries and of keys, before they are rotated.
    qk_norms: Option<[NormLayer; 2]>,
    /// Whether queries and keys are rotated, and how their channels are paired.
    rotated: Option<Pairing>,
    heads: Heads,
    pub project: Linear,
    /// Of what is added to the stream.
    output_norm: Option<NormLayer>,
}

/// How the heads of a layer are laid out and scored.
pub fn heads(config: &TransformerConfig, layer: usize) -> Heads {
    let variant = &config.variant;
    let plain = Heads::plain(config.n_heads, config.d_head);
    let window = variant.window.as_ref();
    let window = window.filter(|window| window.layers.contains(&layer));
    Heads {
        kv_count: config.n_kv_heads(),
        scores: Scores {
            scale: variant.attention_scale.unwrap_or(plain.scores.scale),
            soft_cap: variant.attention_soft_cap,
            window: window.map(|window| window.size),
        },
        ..plain
    }
}

impl Attention {
    pub fn load(weights: &Weights, config: &TransformerConfig, layer: usize) -> Result<Self> {
        let at = |name: &str| format!("transformer.h.{layer}.{name}");
        let (d_read, d_attention) = (config.d_read(), config.d_attention());
        let input = SublayerInput::load(
            weights,
            config,
            (&at("ln_1"), &at("ln_p1")),
            ActiveLocation::AttnIn,
        )?;
        let d_key_value = config.d_key_value();
        let d_joint = d_attention + 2 * d_key_value;
        let joint = weights.matrix(&at("attn.c_attn.weight"), [d_joint, d_read])?;
        let joint_bias = match config.bias {
            true => Some(weights.get(&at("attn.c_attn.bias"), &[d_joint])?),
            false => None,
        };
        // The rows of `c_attn` are q, then k, then v. Three layers, because each has its own AbsTopK.
        let part = |first: usize, width: usize| {
            let bias = joint_bias.as_ref().map(|bias| bias.narrow(0, first, width));
            let weight = joint.outputs(first..first + width)?.kept()?;
            Linear::new(weight, bias.transpose()?, weights.purpose)
        };
        let variant = &config.variant;
        let qk_norms = variant.qk_norm.map(|over| {
            let norm = |name: &str, width| {
                let channels = match over {
                    QkNorm::PerHead => config.d_head,
                    QkNorm::WholeWidth => width,
                };
                NormLayer::load(weights, &at(name), config, channels)
            };
            Ok::<_, candle_core::Error>([
                norm("attn.q_norm", d_attention)?,
                norm("attn.k_norm", d_key_value)?,
            ])
        });
        let rotary = variant.rotary.as_ref();
        let rotary = rotary.filter(|rotary| !rotary.layers_without.contains(&layer));
        let device = weights.device();
        Ok(Attention {
            layer,
            input,
            q: part(0, d_attention)?,
            k: part(d_attention, d_key_value)?,
            v: part(d_attention + d_key_value, d_key_value)?,
            qk_norms: qk_norms.transpose()?,
            rotated: rotary.map(|rotary| rotary.pairing(config.d_head)),
            output_norm: output_norm(weights, config, &at("ln_1_after"))?,
            active: [
                Active::at(config, ActiveLocation::AttnQ, d_attention),
                Active::at(config, ActiveLocation::AttnK, d_key_value),
                Active::at(config, ActiveLocation::AttnV, d_key_value),
                Active::at(config, ActiveLocation::AttnOut, config.d_model),
            ],
            sinks: sinks(weights, config, &at("attn.attn_imp.sink_logit"), device)?,
            heads: heads(config, layer),
            project: Linear::load(
                weights,
                &at("attn.c_proj"),
                config.d_model,
                d_attention,
                config.bias,
            )?,
        })
    }

    /// `h [rows, d_model] -> [rows, d_model]`, the residual delta. `positional` and `turns` are of the rows' positions.
    pub fn forward(
        &self,
        h: &Tensor,
        positional: Option<&Tensor>,
        turns: Option<&Arc<Turns>>,
        rows: &mut TokenRows,
        tap: &mut dyn ResidualTap,
    ) -> Result<Tensor> {
        let node = |kind| {
            Location::Node(Node {
                layer: self.layer,
                kind,
            })
        };
        let (layer, kind) = (self.layer, NodeKind::AttnIn);
        let [q, k, v] = self.input.read_by(
            (h, positional),
            Node { layer, kind },
            [&self.q, &self.k, &self.v],
            tap,
        )?;
        let q = tap.visit(node(NodeKind::Q), self.active[0].forward(q)?)?;
        let k = tap.visit(node(NodeKind::K), self.active[1].forward(k)?)?;
        let v = tap.visit(node(NodeKind::V), self.active[2].forward(v)?)?;
        let (q, k) = self.scored(q, k, turns)?;
        let y = match &mut rows.arrangement {
            Arrangement::Sequences { length } => {
                causal_attention(&q, &k, &v, &self.sinks, self.heads, *length)?
            }
            Arrangement::Cached { at, copies, cache } => cache.attend(
                self.layer,
                (at, copies),
                (&q, &k, &v),
                &self.sinks,
                self.heads,
            )?,
        };
        let y = tap.visit(node(NodeKind::AttnY), y)?;
        let delta = self.project.forward(&y)?;
        let delta = match &self.output_norm {
            Some(norm) => norm.forward(&delta)?,
            None => delta,
        };
        let delta = self.active[3].forward(delta)?;
        tap.visit(node(NodeKind::AttnOut), delta)
    }

    /// Queries and keys as scores are made of them: normalised and rotated, where the model does that.
    fn scored(&self, q: Tensor, k: Tensor, turns: Option<&Arc<Turns>>) -> Result<(Tensor, Tensor)> {
        let (q, k) = match &self.qk_norms {
            Some([of_q, of_k]) => (of_q.forward_parts(&q)?, of_k.forward_parts(&k)?),
            None => (q, k),
        };
        match (self.rotated, turns) {
            (Some(pairing), Some(turns)) => {
                Ok((rotate(&q, turns, pairing)?, rotate(&k, turns, pairing)?))
            }
            _ => Ok((q, k)),
        }
    }

    /// The attention probabilities of some heads within one sequence, each `[tokens, tokens]`: a row says how much of each
    /// token's values its token takes. `q` and `k` are those of the whole sequence, as they were made from what was read.
    pub fn patterns(
        &self,
        q: &Tensor,
        k: &Tensor,
        turns: Option<&Arc<Turns>>,
        wanted: &[usize],
    ) -> Result<Vec<Vec<f32>>> {
        let (q, k) = self.scored(q.clone(), k.clone(), turns)?;
        let (tokens, heads) = (q.dim(0)?, self.heads);
        let sinks = rows::to_vec(&self.sinks)?;
        let stride = padded(tokens);
        let one = |q: &[f32], k: &[f32], head: usize| {
            let first = heads.kv_head(head) * heads.d_head;
            let mut by_channel = vec![0f32; heads.d_head * stride];
            for (token, key) in k.chunks_exact(heads.kv_width()).enumerate() {
                for (channel, value) in key[first..][..heads.d_head].iter().enumerate() {
                    by_channel[channel * stride + token] = *value;
                }
            }
            let keys = Keys {
                by_channel: &by_channel,
                stride,
                blocks: Blocks::ONE,
            };
            let mut pattern = vec![0f32; tokens * tokens];
            let mut weights = vec![0f32; stride];
            for (token, row) in pattern.chunks_exact_mut(tokens).enumerate() {
                let q = &q[token * heads.width() + head * heads.d_head..][..heads.d_head];
                let weights = &mut weights[..padded(token + 1)];
                let seen = heads.scores.first_seen(token + 1)..token + 1;
                probabilities(q, keys, sinks[head], seen, heads.scores, weights);
                row[..=token].copy_from_slice(&weights[..=token]);
            }
            pattern
        };
        rows::with_two(&q, &k, |q, k| {
            wanted.iter().map(|&head| one(q, k, head)).collect()
        })
    }

    /// The layers in the order they are applied.
    pub fn linears(&self) -> [&Linear; 4] {
        [&self.q, &self.k, &self.v, &self.project]
    }
}
