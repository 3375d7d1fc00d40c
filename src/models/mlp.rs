//! The MLP sublayer, of dense and sparse models alike.

use candle_core::{Result, Tensor};

use super::config::{Activation, ActiveLocation, TransformerConfig};
use super::layers::{Active, Linear, SublayerInput, Weights};
use super::location::{Location, Node, NodeKind};
use super::tap::ResidualTap;
use crate::numerics::activation::{gelu, gelu_tanh, relu};

/// Reads the stream, applies one hidden layer, returns what is to be added to it.
#[derive(Debug, Clone)]
pub struct Mlp {
    layer: usize,
    pub input: SublayerInput,
    expand: Linear,
    activation: Activation,
    active: [Active; 2],
    pub project: Linear,
}

impl Mlp {
    pub fn load(weights: &Weights, config: &TransformerConfig, layer: usize) -> Result<Self> {
        let at = |name: &str| format!("transformer.h.{layer}.{name}");
        Ok(Mlp {
            layer,
            input: SublayerInput::load(
                weights,
                config,
                (&at("ln_2"), &at("ln_p2")),
                ActiveLocation::MlpIn,
            )?,
            expand: Linear::load(
                weights,
                &at("mlp.c_fc"),
                config.d_mlp,
                config.d_read(),
                config.bias,
            )?,
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
        let x = tap.visit(node(NodeKind::MlpIn), self.input.forward(h, positional)?)?;
        let hidden = self.expand.forward(&x)?;
        let neurons = match self.activation {
            Activation::Gelu => gelu(&hidden)?,
            Activation::GeluTanh => gelu_tanh(&hidden)?,
            Activation::Relu => relu(&hidden)?,
        };
        let neurons = tap.visit(node(NodeKind::PostAct), self.active[0].forward(neurons)?)?;
        let delta = self.active[1].forward(self.project.forward(&neurons)?)?;
        tap.visit(node(NodeKind::MlpOut), delta)
    }

    /// The layers in the order they are applied.
    pub fn linears(&self) -> [&Linear; 2] {
        [&self.expand, &self.project]
    }
}
