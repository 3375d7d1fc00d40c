//! The MLP sublayer, of dense and sparse models alike.

use candle_core::{Result, Tensor};

use super::config::{Activation, ActiveLocation, TransformerConfig};
use super::layers::{Active, Linear, NormLayer, SublayerInput, Weights, output_norm};
use super::location::{Location, Node, NodeKind};
use super::tap::ResidualTap;
use crate::numerics::activation::{gelu, gelu_tanh, relu, silu};

/// Reads the stream, applies one hidden layer, returns what is to be added to it.
#[derive(Debug, Clone)]
pub struct Mlp {
    layer: usize,
    pub input: SublayerInput,
    expand: Linear,
    /// Of a gated MLP; the nonlinearity is applied to it instead of to what `expand` gives.
    gate: Option<Linear>,
    activation: Activation,
    active: [Active; 2],
    pub project: Linear,
    /// Of what is added to the stream.
    output_norm: Option<NormLayer>,
}

impl Mlp {
    pub fn load(weights: &Weights, config: &TransformerConfig, layer: usize) -> Result<Self> {
        let at = |name: &str| format!("transformer.h.{layer}.{name}");
        let expand = |name: &str| {
            Linear::load(
                weights,
                &at(name),
                config.d_mlp,
                config.d_read(),
                config.bias,
            )
        };
        let gated = config.variant.gated_mlp;
        Ok(Mlp {
            layer,
            input: SublayerInput::load(
                weights,
                config,
                (&at("ln_2"), &at("ln_p2")),
                ActiveLocation::MlpIn,
            )?,
            expand: expand("mlp.c_fc")?,
            gate: gated.then(|| expand("mlp.c_gate")).transpose()?,
            output_norm: output_norm(weights, config, &at("ln_2_after"))?,
            activation: config.activation,
            active: [
                Active::at(config, ActiveLocation::MlpNeuron, config.d_mlp),
                Active::at(config, ActiveLocation::MlpOut, config.d_model),
            ],
            project: Linear::load(
                weights,
                &at("mlp.c_proj"),
                config.d_model,
                config.d_mlp,
                config.bias,
            )?,
        })
    }

    /// `h [rows, d_model] -> [rows, d_model]`, the residual delta.
    pub fn forward(
        &self,
        h: &Tensor,
        positional: Option<&Tensor>,
        tap: &mut dyn ResidualTap,
    ) -> Result<Tensor> {
        let node = |kind| {
            Location::Node(Node {
                layer: self.layer,
                kind,
            })
        };
        let (layer, kind) = (self.layer, NodeKind::MlpIn);
        let (read, input) = ((h, positional), Node { layer, kind });
        let nonlinear = |x: &Tensor| match self.activation {
            Activation::Gelu => gelu(x),
            Activation::GeluTanh => gelu_tanh(x),
            Activation::Relu => relu(x),
            Activation::Silu => silu(x),
        };
        let neurons = match &self.gate {
            Some(gate) => {
                let layers = [&self.expand, gate];
                let [hidden, gate] = self.input.read_by(read, input, layers, tap)?;
                (nonlinear(&gate)? * hidden)?
            }
            None => {
                let [hidden] = self.input.read_by(read, input, [&self.expand], tap)?;
                nonlinear(&hidden)?
            }
        };
        let neurons = tap.visit(node(NodeKind::PostAct), self.active[0].forward(neurons)?)?;
        let delta = self.project.forward(&neurons)?;
        let delta = match &self.output_norm {
            Some(norm) => norm.forward(&delta)?,
            None => delta,
        };
        let delta = self.active[1].forward(delta)?;
        tap.visit(node(NodeKind::MlpOut), delta)
    }

    /// The layers in the order they are applied.
    pub fn linears(&self) -> [&Linear; 2] {
        [&self.expand, &self.project]
    }

    /// The gate of a gated MLP.
    pub fn gate(&self) -> Option<&Linear> {
        self.gate.as_ref()
    }
}
