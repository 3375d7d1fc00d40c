//! What the masks of a recipe are trained on: the model and its tasks' pairs, and the same for each control.

use std::collections::BTreeMap;

use candle_core::Tensor;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::held::means;
use super::recipe::PruneRecipe;
use super::run::Material;
use super::subject::PrunedModel;
use super::task_file::read_task;
use crate::circuits::circuit::Ablation;
use crate::circuits::nodes::node_locations;
use crate::corpus::Split;
use crate::discovery::question::PromptPair;
use crate::features::reference::ReferenceText;
use crate::models::config::TransformerConfig;
use crate::models::layers::Purpose;
use crate::models::layout::ModelFiles;
use crate::models::tokenizer::Tokenizer;
use crate::models::transformer::Transformer;
use crate::numerics::columns::StoredMatrix;
use crate::numerics::rows;
use crate::training::TrainingError;
use crate::training::data::{TrainingData, spread_sequences};

/// Text that means are taken over: whole sequences one after another.
pub struct Text {
    pub ids: Vec<u32>,
    pub length: usize,
}

/// A task's pairs.
pub struct Pairs {
    /// What the mask is trained on.
    pub train: Vec<PromptPair>,
    /// What nodes and edges are chosen on: some of those, and as many of the held-out split, whose words the mask has not
    /// seen, in turns.
    pub trimming: Vec<PromptPair>,
    /// What figures are measured on: of the held-out split, none of them used before.
    pub held_out: Vec<PromptPair>,
}

/// The model's weights, all in float32.
pub fn float32_tensors(files: &ModelFiles) -> candle_core::Result<BTreeMap<String, Tensor>> {
    let plain = files.tensors.iter();
    let plain = plain.map(|(name, tensor)| {
        let tensor = tensor.to_dtype(candle_core::DType::F32)?;
        Ok((name.clone(), tensor))
    });
    let quantised = files.quantised.iter().map(|(name, parts)| {
        let tensor = StoredMatrix::Quantised(parts.clone()).to_float32()?;
        Ok((name.clone(), tensor))
    });
    plain.chain(quantised).collect()
}

/// The text of a recipe, as it says.
pub fn text(
    recipe: &PruneRecipe,
    config: &TransformerConfig,
    tokenizer: &Tokenizer,
) -> Result<Text, TrainingError> {
    let search = &recipe.search;
    let length = search.reference_length.min(config.context_length);
    if let Some(path) = &recipe.reference {
        let text = ReferenceText::read(path, config)
            .map_err(|error| TrainingError::Data(error.to_string()))?;
        let length = length.min(text.length);
        let sequences = text.tokens.chunks_exact(text.length);
        let sequences = sequences.take(search.reference_sequences);
        return Ok(Text {
            ids: sequences
                .flat_map(|sequence| sequence[..length].to_vec())
                .collect(),
            length,
        });
    }
    let data = TrainingData::load(&recipe.sources, tokenizer, length)?;
    let sources = recipe.sources.len().max(1);
    let each = search.reference_sequences.div_ceil(sources);
    let parts = data.tokens();
    let ids = parts.flat_map(|(_, train, _)| spread_sequences(train, each, length).inputs);
    Ok(Text {
        ids: ids.collect(),
        length,
    })
}

/// The pairs of a recipe's task, cut with the model's tokenizer.
pub fn pairs(
    recipe: &PruneRecipe,
    config: &TransformerConfig,
    tokenizer: &Tokenizer,
) -> Result<Pairs, TrainingError> {
    let search = &recipe.search;
    let task = read_task(recipe)?;
    let encode = |text: &str| tokenizer.encode_with_offsets(text);
    let cut = |count: usize, split: Split| -> Result<Vec<PromptPair>, TrainingError> {
        let (context, seed) = (config.context_length, search.seed);
        let pairs = task.token_pairs_within(context, count, seed, split, encode);
        let pairs = pairs.map_err(|error| TrainingError::Data(error.to_string()))?;
        Ok(pairs.iter().map(PromptPair::from).collect())
    };
    let train = cut(search.train_pairs, Split::Train)?;
    let half = train.len().div_ceil(2);
    let mut held_out = cut(search.held_out_pairs + half, Split::HeldOut)?;
    let others = held_out.split_off(search.held_out_pairs.min(held_out.len()));
    let trimming = trimming_pairs(&train, others, &held_out);
    Ok(Pairs {
        train,
        trimming,
        held_out,
    })
}

/// Pairs that nodes and edges are chosen on, as many as `train` has: of `others`, without those that figures are measured on,
/// at most half, and of `train`, in turns, so that any part of them has both. A task of few pairs has no others.
fn trimming_pairs(
    train: &[PromptPair],
    mut others: Vec<PromptPair>,
    measured_on: &[PromptPair],
) -> Vec<PromptPair> {
    others.retain(|pair| !measured_on.contains(pair));
    others.truncate(train.len().div_ceil(2));
    let mut trimming: Vec<PromptPair> = Vec::with_capacity(train.len());
    let mut seen = train[..train.len() - others.len()].iter();
    for other in others {
        trimming.extend(seen.next().cloned());
        trimming.push(other);
    }
    trimming.extend(seen.cloned());
    trimming
}

/// What the nodes of a model are held at.
pub fn held(ablation: Ablation, model: &Transformer, text: &Text) -> candle_core::Result<Vec<f32>> {
    match ablation {
        Ablation::Mean => means(model, &text.ids, text.length),
        Ablation::Zero => {
            let nodes = node_locations(&model.config).iter().map(|at| at.1).sum();
            Ok(vec![0.0; nodes])
        }
    }
}

/// The same pairs, half of them with their answers exchanged.
pub fn with_shuffled_labels(pairs: &[PromptPair], seed: u64) -> Vec<PromptPair> {
    let mut order: Vec<usize> = (0..pairs.len()).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    let mut shuffled = pairs.to_vec();
    for &pair in &order[..pairs.len() / 2] {
        let PromptPair {
            presented,
            counterfactual,
            ..
        } = &mut shuffled[pair];
        std::mem::swap(presented, counterfactual);
    }
    shuffled
}

/// A model of the same shape whose every tensor has its numbers in a random order: as many zeros, no meaning.
pub fn random_model(
    tensors: &BTreeMap<String, Tensor>,
    seed: u64,
) -> candle_core::Result<BTreeMap<String, Tensor>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    tensors
        .iter()
        .map(|(name, tensor)| {
            let mut values = rows::to_vec(&tensor.flatten_all()?)?;
            values.shuffle(&mut rng);
            let tensor = Tensor::from_vec(values, tensor.shape(), tensor.device())?;
            Ok((name.clone(), tensor))
        })
        .collect()
}

/// A model of random weights with its own means.
pub fn random_material(
    config: &TransformerConfig,
    tensors: &BTreeMap<String, Tensor>,
    recipe: &PruneRecipe,
    text: &Text,
    pairs: &Pairs,
) -> candle_core::Result<Material> {
    let search = &recipe.search;
    let tensors = random_model(tensors, search.seed)?;
    let model = Transformer::new(config.clone(), &tensors, Purpose::Inference)?;
    let held = held(search.ablation, &model, text)?;
    Ok(Material {
        subject: PrunedModel::new(config.clone(), tensors, held, search.frozen_norms)?,
        pairs: pairs.train.clone(),
        trimming: pairs.trimming.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::question::Question;

    fn pair(first: u32) -> PromptPair {
        PromptPair {
            presented: vec![first, 1],
            counterfactual: vec![first, 2],
            question: Question::Between {
                presented: 1,
                counterfactual: 2,
            },
        }
    }

    #[test]
    fn nodes_are_chosen_on_both_splits_and_on_no_pair_that_figures_are_of() {
        let train: Vec<PromptPair> = (0..8).map(pair).collect();
        let measured_on: Vec<PromptPair> = (100..104).map(pair).collect();
        let first = |pairs: Vec<PromptPair>| -> Vec<u32> {
            pairs.iter().map(|pair| pair.presented[0]).collect()
        };
        let others = (102..110).map(pair).collect();
        let trimming = trimming_pairs(&train, others, &measured_on);
        assert_eq!(first(trimming), [0, 104, 1, 105, 2, 106, 3, 107]);
        let trimming = trimming_pairs(&train, vec![pair(103), pair(110)], &measured_on);
        assert_eq!(first(trimming), [0, 110, 1, 2, 3, 4, 5, 6]);
        let trimming = trimming_pairs(&train, Vec::new(), &measured_on);
        assert_eq!(first(trimming), [0, 1, 2, 3, 4, 5, 6, 7]);
    }
}
