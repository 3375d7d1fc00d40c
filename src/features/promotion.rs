//! The tokens that a feature speaks for: its direction, carried into the dense model's last site, against the
//! dense unembedding.
//!
//! What layers between the feature's place and the last site would make of the direction is left out, so this
//! is a description, not a prediction; the effect of an edit is measured by making it.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};

use super::FeatureError;
use super::paired_models::PairedModels;
use super::route::{ChannelColumns, Route};
use super::wiring::wiring;
use crate::interventions::request::{WeightedChannel, Write};
use crate::models::location::{Node, NodeKind, Place};
use crate::numerics::rows;

/// A token and how far a direction leads towards it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenScore {
    pub token: u32,
    /// In logits for a unit of the feature, the last norm's divisor taken as one: tokens of one feature compare,
    /// features do not.
    pub score: f32,
}

/// The ends of the vocabulary, as one feature sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Promotion {
    /// Highest scores first.
    pub promoted: Vec<TokenScore>,
    /// Lowest scores first.
    pub suppressed: Vec<TokenScore>,
}

/// The `count` tokens at either end for a group of channels of `place`; none where a channel has no direction in
/// the dense stream.
pub fn promotion(
    models: &PairedModels,
    place: Place,
    group: &[WeightedChannel],
    count: usize,
) -> Result<Option<Promotion>, FeatureError> {
    let Some((place, group)) = in_the_stream(models, place, group)? else {
        return Ok(None);
    };
    let columns = ChannelColumns::new(models, place, Route::Bridge(Write::Residual))?;
    if group
        .iter()
        .any(|member| columns.refusal(member.channel).is_some())
    {
        return Ok(None);
    }
    let mut direction = vec![0f32; columns.width];
    for member in &group {
        columns.add(member.channel, member.weight as f32, &mut direction);
    }
    let direction = Tensor::from_vec(direction, (1, columns.width), &Device::Cpu)?;
    let scores = rows::to_vec(&models.dense.direct_effect(&direction)?)?;
    let mean = scores.iter().sum::<f32>() / scores.len() as f32;
    // What all logits share changes no probability.
    let mut ranked: Vec<TokenScore> = (0u32..)
        .zip(&scores)
        .map(|(token, score)| TokenScore {
            token,
            score: score - mean,
        })
        .collect();
    ranked.sort_by(|a, b| b.score.total_cmp(&a.score));
    Ok(Some(Promotion {
        promoted: ranked.iter().take(count).copied().collect(),
        suppressed: ranked.iter().rev().take(count).copied().collect(),
    }))
}

/// The group as residual channels: itself where its place is one of the stream, what its weights write for neurons
/// and heads' outputs; none for queries, keys and values, which write nothing themselves.
fn in_the_stream(
    models: &PairedModels,
    place: Place,
    group: &[WeightedChannel],
) -> Result<Option<(Place, Vec<WeightedChannel>)>, FeatureError> {
    let (layer, output) = match place {
        Place::Node(Node { layer, kind }) => match kind {
            NodeKind::Q | NodeKind::K | NodeKind::V => return Ok(None),
            NodeKind::AttnY => (layer, NodeKind::AttnOut),
            NodeKind::PostAct => (layer, NodeKind::MlpOut),
            _ => return Ok(Some((place, group.to_vec()))),
        },
        Place::Site(_) => return Ok(Some((place, group.to_vec()))),
    };
    let (weights, config) = (&models.sparse_weights, &models.sparse.config);
    let mut written: BTreeMap<usize, f64> = BTreeMap::new();
    for member in group {
        for edge in wiring(weights, config, place, member.channel)?.outgoing {
            *written.entry(edge.channel).or_default() += member.weight * f64::from(edge.weight);
        }
    }
    let written = written.into_iter();
    let written = written.map(|(channel, weight)| WeightedChannel { channel, weight });
    let output = Place::Node(Node {
        layer,
        kind: output,
    });
    Ok(Some((output, written.collect())))
}
