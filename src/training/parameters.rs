//! The numbers a training changes, and the rules each of them follows.

use std::collections::BTreeMap;

use candle_core::{Device, Result, Tensor, Var};

use super::weight_mask::Protect;

/// Tensors on the device that a training is on.
pub fn moved(
    tensors: &BTreeMap<String, Tensor>,
    device: &Device,
) -> Result<BTreeMap<String, Tensor>> {
    let moved = tensors
        .iter()
        .map(|(name, tensor)| Ok((name.clone(), tensor.to_device(device)?)));
    moved.collect()
}

/// Which learning rate a parameter follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParameterGroup {
    Model,
    Bridge,
}

/// One tensor that is trained.
pub struct Parameter {
    pub name: String,
    pub var: Var,
    pub group: ParameterGroup,
    /// Weight decay applies.
    pub decays: bool,
    /// The magnitude mask applies, with these weights protected; none leaves the tensor dense.
    pub masked: Option<Protect>,
}

/// All of a training's parameters, by name.
pub struct Parameters(Vec<Parameter>);

impl Parameters {
    /// A model's weights. With `protected` the matrices, embeddings, positions and biases are masked; norms'
    /// gains and biases, sinks and the bigram table stay dense.
    pub fn of_model(tensors: BTreeMap<String, Tensor>, protected: Option<usize>) -> Result<Self> {
        let parameter = |(name, tensor): (String, Tensor)| {
            Ok(Parameter {
                decays: tensor.rank() == 2,
                masked: protected.and_then(|count| mask_rule(&name, count)),
                var: Var::from_tensor(&tensor)?,
                group: ParameterGroup::Model,
                name,
            })
        };
        tensors
            .into_iter()
            .map(parameter)
            .collect::<Result<_>>()
            .map(Parameters)
    }

    /// Adds a bridge's weights, dense and at their own rate.
    pub fn add_bridge(&mut self, tensors: BTreeMap<String, Tensor>) -> Result<()> {
        for (name, tensor) in tensors {
            self.0.push(Parameter {
                decays: tensor.rank() == 2,
                masked: None,
                var: Var::from_tensor(&tensor)?,
                group: ParameterGroup::Bridge,
                name,
            });
        }
        Ok(())
    }

    pub fn iter(&self) -> impl Iterator<Item = &Parameter> {
        self.0.iter()
    }

    pub fn as_slice(&self) -> &[Parameter] {
        &self.0
    }

    /// A group's tensors; changes to the parameters show in them.
    pub fn tensors(&self, group: ParameterGroup) -> BTreeMap<String, Tensor> {
        let of_group = self.0.iter().filter(|parameter| parameter.group == group);
        of_group
            .map(|p| (p.name.clone(), p.var.as_tensor().clone()))
            .collect()
    }
}

fn mask_rule(name: &str, protected: usize) -> Option<Protect> {
    let dense = [".ln_", "sink_logit", "bigram_table", "final_logits_bias"];
    if dense.iter().any(|part| name.contains(part)) {
        return None;
    }
    // A neuron or attention channel has its inputs in a row of the first matrix and its outputs in a column of
    // the second.
    Some(
        match name.rsplit_once(".h.").map_or(name, |(_, rest)| rest) {
            name if name.ends_with("c_fc.weight") || name.ends_with("c_attn.weight") => {
                Protect::Rows(protected)
            }
            name if name.ends_with("c_proj.weight") => Protect::Columns(protected),
            _ => Protect::None,
        },
    )
}
