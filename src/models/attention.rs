//! The attention sublayer, of dense and sparse models alike.

use candle_core::{Result, Tensor};

use super::config::{ActiveLocation, TransformerConfig};
use super::layers::{Active, Linear, SublayerInput, Weights, sinks};
use super::location::{Location, Node, NodeKind};
use super::tap::ResidualTap;
use super::token_rows::{Arrangement, TokenRows};
use crate::numerics::attention::{Heads, causal_attention};

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
    heads: Heads,
    pub project: Linear,
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
        let joint = weights.get(&at("attn.c_attn.weight"), &[3 * d_attention, d_read])?;
        let joint_bias = match config.bias {
            true => Some(weights.get(&at("attn.c_attn.bias"), &[3 * d_attention])?),
            false => None,
        };
        // The rows of `c_attn` are q, then k, then v. Three layers, because each has its own AbsTopK.
        let part = |index: usize| {
            let pick = |t: &Tensor| t.narrow(0, index * d_attention, d_attention);
            let bias = joint_bias.as_ref().map(pick).transpose()?;
            Linear::new(pick(&joint)?, bias, weights.purpose)
        };
        let device = joint.device();
        Ok(Attention {
            layer,
            input,
            q: part(0)?,
            k: part(1)?,
            v: part(2)?,
            active: [
                Active::at(config, ActiveLocation::AttnQ, d_attention),
                Active::at(config, ActiveLocation::AttnK, d_attention),
                Active::at(config, ActiveLocation::AttnV, d_attention),
                Active::at(config, ActiveLocation::AttnOut, config.d_model),
            ],
            sinks: sinks(weights, config, &at("attn.attn_imp.sink_logit"), device)?,
            heads: Heads {
                count: config.n_heads,
                d_head: config.d_head,
            },
            project: Linear::load(
                weights,
                &at("attn.c_proj"),
                config.d_model,
                d_attention,
                config.bias,
            )?,
        })
    }

    /// `h [rows, d_model] -> [rows, d_model]`, the residual delta.
    pub fn forward(
        &self,
        h: &Tensor,
        positional: Option<&Tensor>,
        rows: &mut TokenRows,
        tap: &mut dyn ResidualTap,
    ) -> Result<Tensor> {
        let node = |kind| {
            Location::Node(Node {
                layer: self.layer,
                kind,
            })
        };
        let x = tap.visit(node(NodeKind::AttnIn), self.input.forward(h, positional)?)?;
        let q = tap.visit(
            node(NodeKind::Q),
            self.active[0].forward(self.q.forward(&x)?)?,
        )?;
        let k = tap.visit(
            node(NodeKind::K),
            self.active[1].forward(self.k.forward(&x)?)?,
        )?;
        let v = tap.visit(
            node(NodeKind::V),
            self.active[2].forward(self.v.forward(&x)?)?,
        )?;
        let y = match &mut rows.arrangement {
            Arrangement::Sequences { length } => {
                causal_attention(&q, &k, &v, &self.sinks, self.heads, *length)?
            }
            Arrangement::Cached { at, copies, cache } => {
                cache.attend(self.layer, (at, copies), (&q, &k, &v), &self.sinks)?
            }
        };
        let y = tap.visit(node(NodeKind::AttnY), y)?;
        let delta = self.active[3].forward(self.project.forward(&y)?)?;
        tap.visit(node(NodeKind::AttnOut), delta)
    }

    /// The layers in the order they are applied.
    pub fn linears(&self) -> [&Linear; 4] {
        [&self.q, &self.k, &self.v, &self.project]
    }
}
