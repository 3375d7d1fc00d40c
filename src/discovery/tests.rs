//! Planted features are found, patches agree with plain forward passes, statistics with plain sums.

mod deeper;
mod logit_effects;

use candle_core::{Device, Tensor};

use super::attribution::Attribution;
use super::contrast::{ContrastOptions, contrast, evaluate_prefixes};
use super::patching::Patching;
use super::question::{PromptPair, Question};
use super::route::Route;
use super::search::search;
use crate::bridge::tensor_name;
use crate::features::group::{WeightedChannel, Write};
use crate::features::pair::Pair;
use crate::features::reference::{ReferenceStatistics, ReferenceText};
use crate::features::statistics::{group_activations, measure, of_channel, statistics_of};
use crate::features::test_pair::{D_DENSE, D_SPARSE, LAYERS, VOCABULARY, random_pair, set};
use crate::features::top_activations::top_activations;
use crate::models::location::{Location, Site};
use crate::models::tap::{NoTap, Recorder};
use crate::models::token_rows::TokenRows;
use crate::numerics::rows;

fn site(index: usize) -> Location {
    Location::Site(Site::new(index, LAYERS).unwrap())
}

/// Prompts of different lengths that differ in one token each.
fn prompts(question: impl Fn(usize) -> Question) -> Vec<PromptPair> {
    (0..12)
        .map(|index| {
            let mut presented: Vec<u32> = (0..5 + index % 4)
                .map(|at| ((index * 7 + at * 3) % VOCABULARY) as u32)
                .collect();
            let mut counterfactual = presented.clone();
            presented[1 + index % 3] = 1;
            counterfactual[1 + index % 3] = 2;
            PromptPair {
                presented,
                counterfactual,
                question: question(index),
            }
        })
        .collect()
}

fn between(_: usize) -> Question {
    Question::Between {
        presented: 10,
        counterfactual: 11,
    }
}

fn models(seed: u64) -> Pair {
    random_pair(seed).pair()
}

#[test]
fn a_patch_agrees_with_a_plain_forward_pass() {
    let models = models(3);
    let pairs = prompts(between);
    let mut patching = Patching::new(&models, pairs.clone(), &[]).unwrap();
    let place = site(2);
    let patch = patching
        .location_patch(place, Route::Bridge(Write::Residual))
        .unwrap();
    let all: Vec<usize> = (0..D_SPARSE).collect();
    let answers = patching
        .answers_with(&patch, patch.group(&all, 0.5))
        .unwrap();
    for (index, pair) in pairs.iter().enumerate() {
        let run = |model: &crate::models::transformer::Transformer, ids: &[u32]| {
            let mut recorder = Recorder::of_sites(LAYERS);
            let mut rows = TokenRows::sequences(ids, ids.len(), &Device::Cpu).unwrap();
            model.forward(&mut rows, &mut recorder).unwrap();
            recorder.get(place).unwrap().clone()
        };
        let change = (run(&models.sparse, &pair.counterfactual)
            - run(&models.sparse, &pair.presented))
        .unwrap();
        let site = place.site(LAYERS);
        let change = models.bridge.decode_change(site, &change).unwrap();
        let stream =
            (run(&models.dense, &pair.presented) + change.affine(0.5, 0.0).unwrap()).unwrap();
        let mut rows =
            TokenRows::sequences(&pair.presented, pair.presented.len(), &Device::Cpu).unwrap();
        let logits = models.dense.tail(site, stream, &mut rows).unwrap();
        let logits = rows::to_vec(&logits).unwrap();
        let last = &logits[logits.len() - VOCABULARY..];
        let expected = pair.question.logit_diff(last);
        let found = answers.logit_diffs[index];
        assert!(
            (expected - found).abs() < 1e-3,
            "pair {index}: {expected} against {found}"
        );
    }
}

#[test]
fn patching_everything_natively_gives_the_counterfactual() {
    let models = models(4);
    let mut patching = Patching::new(&models, prompts(between), &[]).unwrap();
    let patch = patching.location_patch(site(0), Route::Native).unwrap();
    let all: Vec<usize> = (0..D_SPARSE).collect();
    let answers = patching
        .answers_with(&patch, patch.group(&all, 1.0))
        .unwrap();
    let expected = &patching.answers.sparse_counterfactual;
    for (found, expected) in answers.logit_diffs.iter().zip(&expected.logit_diffs) {
        assert!(
            (found - expected).abs() < 1e-3,
            "{found} against {expected}"
        );
    }
}

#[test]
fn first_order_effects_are_the_slopes_of_real_ones() {
    let models = models(5);
    let question = |index: usize| match index % 3 {
        0 => Question::Between {
            presented: 10,
            counterfactual: 11,
        },
        1 => Question::NotPresented { candidate: 7 },
        _ => Question::OnlyCounterfactual { candidate: 8 },
    };
    for route in [Route::Bridge(Write::Residual), Route::Native] {
        let mut patching = Patching::new(&models, prompts(question), &[]).unwrap();
        let right = patching.right(route);
        let attribution = Attribution::new(&patching, route).unwrap();
        // The last site: no AbsTopK follows it whose choice a small change could alter.
        let patch = patching.location_patch(site(2 * LAYERS), route).unwrap();
        let gradient = attribution
            .gradient(&patch, &patch.nothing(), f32::INFINITY)
            .unwrap();
        let estimates = patch.first_order(&gradient);
        let before = patching.before(route).clone();
        for (channel, estimate) in estimates.iter().enumerate() {
            let step = 0.02;
            let after = patching
                .answers_with(&patch, patch.group(&[channel], step))
                .unwrap();
            let sum: f32 = (0..right.len())
                .filter(|&pair| right[pair])
                .map(|pair| after.logit_diffs[pair] - before.logit_diffs[pair])
                .sum();
            let measured = f64::from(sum / step);
            assert!(
                (measured - estimate).abs() < 0.05 * (1.0 + estimate.abs()),
                "{route}, channel {channel}: {measured} against {estimate}"
            );
        }
    }
}

/// Token 2 in place of token 1 moves sparse channel 5 alone, and the decoder writes that channel along the
/// direction that the dense model reads as token 11 rather than 10.
fn planted() -> Pair {
    let mut files = random_pair(6);
    let embedding = files
        .sparse
        .tensors
        .get_mut("transformer.wte.weight")
        .unwrap();
    let row: Vec<f32> = rows::to_vec(&embedding.narrow(0, 1, 1).unwrap()).unwrap();
    for (channel, value) in row.iter().enumerate() {
        let moved = if channel == 5 { value + 4.0 } else { *value };
        set(embedding, 2, channel, moved);
    }
    let unembedding = rows::to_vec(&files.dense.tensors["lm_head.weight"]).unwrap();
    for index in 0..=2 * LAYERS {
        let decoder = files
            .tensors
            .get_mut(&tensor_name(index, "decoder", "weight"))
            .unwrap();
        for row in 0..D_DENSE {
            let direction = unembedding[11 * D_DENSE + row] - unembedding[10 * D_DENSE + row];
            set(decoder, row, 5, 3.0 * direction);
        }
    }
    // Layers that add little: what is written to the stream is what is read at its end.
    for (name, tensor) in &mut files.dense.tensors {
        if name.contains(".c_proj.") {
            *tensor = tensor.affine(0.05, 0.0).unwrap();
        }
    }
    let bias: Vec<f32> = (0..VOCABULARY)
        .map(|token| if token == 10 { 1.5 } else { 0.0 })
        .collect();
    let bias = Tensor::new(bias, &Device::Cpu).unwrap();
    files
        .dense
        .tensors
        .insert("final_logits_bias".to_owned(), bias);
    files.pair()
}

/// The questions that the planted model answers with the presented token.
fn planted_pairs(models: &Pair) -> Vec<PromptPair> {
    // The prompts end in the differing token, where the change reaches the answer directly.
    let pairs: Vec<PromptPair> = prompts(between)
        .into_iter()
        .map(|mut pair| {
            let at = pair.first_difference() + 1;
            pair.presented.truncate(at);
            pair.counterfactual.truncate(at);
            pair
        })
        .collect();
    let patching = Patching::new(models, pairs.clone(), &[]).unwrap();
    let right = patching.right(Route::Bridge(Write::Residual));
    let pairs = pairs.into_iter().zip(right).filter(|(_, right)| *right);
    let pairs: Vec<PromptPair> = pairs.map(|(pair, _)| pair).collect();
    assert!(pairs.len() >= 3, "the random model answers too few");
    pairs
}

#[test]
fn a_planted_feature_is_found_first_and_alone() {
    let models = planted();
    let mut patching = Patching::new(&models, planted_pairs(&models), &[]).unwrap();
    let route = Route::Bridge(Write::Residual);
    let attribution = Attribution::new(&patching, route).unwrap();
    // At site 0 only the planted channel changes.
    let found = contrast(
        &mut patching,
        &attribution,
        site(0),
        route,
        &ContrastOptions::default(),
    )
    .unwrap();
    assert_eq!(
        found
            .ranking
            .iter()
            .map(|effect| effect.channel)
            .collect::<Vec<_>>(),
        [5]
    );
    // At a later site the change has spread over all channels, the planted one still leads.
    let options = ContrastOptions {
        target_flips: 0.3,
        ..ContrastOptions::default()
    };
    let found = contrast(&mut patching, &attribution, site(2), route, &options).unwrap();
    assert_eq!(found.ranking[0].channel, 5);
    assert_eq!(found.group[0].channel, 5);
    assert_eq!(found.channels_to_flip, Some(1));
    assert!((found.weights.iter().map(|w| w * w).sum::<f64>() - 1.0).abs() < 1e-9);
}

#[test]
fn a_groups_flips_are_those_of_its_prefixes() {
    let models = models(8);
    let mut patching = Patching::new(&models, prompts(between), &[]).unwrap();
    let route = Route::Bridge(Write::Residual);
    let attribution = Attribution::new(&patching, route).unwrap();
    let places: Vec<_> = models
        .inner_sites()
        .into_iter()
        .map(|place| (place, route))
        .collect();
    let found = search(
        &mut patching,
        &attribution,
        &places,
        2,
        &ContrastOptions::default(),
    )
    .unwrap();
    assert_eq!(found.len(), 2);
    let best = &found[0];
    let steps = evaluate_prefixes(&mut patching, best.place, route, &best.channels()).unwrap();
    for (found, expected) in steps.iter().zip(&best.group) {
        assert!((found.flips - expected.flips).abs() < 1e-9);
        assert!((found.share - expected.share).abs() < 1e-4);
    }
    if let Some(count) = best.channels_to_flip {
        assert!(steps[count - 1].flips >= 0.5);
        assert!(steps[..count - 1].iter().all(|step| step.flips < 0.5));
    }
}

#[test]
fn sublayer_inputs_are_patched_after_their_norm() {
    let models = models(9);
    let places = models.inner_inputs();
    let mut patching = Patching::new(&models, prompts(between), &places).unwrap();
    for write in [Write::Sublayer, Write::Residual] {
        for &place in &places {
            let patch = patching
                .location_patch(place, Route::Bridge(write))
                .unwrap();
            let expected = if write == Write::Sublayer {
                place
            } else {
                Location::Site(place.site(LAYERS))
            };
            assert_eq!(patch.columns.target, expected);
            let all: Vec<usize> = (0..D_SPARSE).collect();
            let answers = patching
                .answers_with(&patch, patch.group(&all, 1.0))
                .unwrap();
            assert_ne!(
                answers, patching.answers.dense_presented,
                "{place} {write:?}"
            );
        }
    }
    let refused = patching.location_patch(site(1), Route::Bridge(Write::Sublayer));
    assert!(refused.is_err());
}

#[test]
fn reference_statistics_agree_with_plain_sums_and_survive_the_disk() {
    let models = models(10);
    let length = 8;
    let tokens: Vec<u32> = (0..length * 20)
        .map(|at| (at * at % VOCABULARY) as u32)
        .collect();
    let places = models.described_locations();
    let mut reference = measure(&models.sparse, &tokens, length, &places).unwrap();
    reference.text = Some(ReferenceText {
        tokens: tokens.clone(),
        length,
    });
    let place = Location::parse("1.mlp.act_in", LAYERS).unwrap();
    let mut recorder = Recorder::of([place]);
    let mut token_rows = TokenRows::sequences(&tokens, length, &Device::Cpu).unwrap();
    models
        .sparse
        .forward(&mut token_rows, &mut recorder)
        .unwrap();
    let values = rows::to_vec(recorder.get(place).unwrap()).unwrap();
    let column: Vec<f64> = values
        .iter()
        .skip(3)
        .step_by(D_SPARSE)
        .map(|&x| f64::from(x))
        .collect();
    let n = column.len() as f64;
    let mean = column.iter().sum::<f64>() / n;
    let std = (column.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt();
    let found = of_channel(&reference, place, 3).unwrap();
    assert!((found.mean - mean).abs() < 1e-6);
    assert!((found.std - std).abs() < 1e-6);
    let density = column.iter().filter(|x| **x != 0.0).count() as f64 / n;
    assert!((found.density - density).abs() < 1e-6);
    assert!(density < 1.0, "AbsTopK leaves zeros");
    assert_eq!(found.tokens, tokens.len());

    let directory = std::env::temp_dir().join(format!("reference-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir(&directory).unwrap();
    reference.write(&directory).unwrap();
    let back = ReferenceStatistics::read(&directory, &models.sparse.config).unwrap();
    std::fs::remove_dir_all(&directory).unwrap();
    assert_eq!(back.text, reference.text);
    let read = of_channel(&back, place, 3).unwrap();
    assert_eq!(read.tokens, found.tokens);
    assert!((read.max - found.max).abs() < 1e-6 && (read.min - found.min).abs() < 1e-6);

    let alone = [WeightedChannel {
        channel: 3,
        weight: 1.0,
    }];
    let activations = group_activations(&models.sparse, &tokens, length, place, &alone).unwrap();
    let group = statistics_of(&activations);
    assert!((group.mean - mean).abs() < 1e-6 && (group.std - std).abs() < 1e-6);
}

#[test]
fn examples_are_the_extremes_with_their_surroundings() {
    let tokens: Vec<u32> = (0..40).collect();
    let mut activations = vec![0f32; 40];
    (
        activations[5],
        activations[6],
        activations[15],
        activations[25],
    ) = (3.0, 2.5, 9.0, -4.0);
    let found = top_activations(&tokens, 10, &activations, 2);
    let tops: Vec<f32> = found
        .top
        .iter()
        .map(|example| example.activation())
        .collect();
    assert_eq!(tops, [9.0, 3.0], "one a sequence");
    assert_eq!(found.bottom[0].activation(), -4.0);
    for example in found
        .top
        .iter()
        .chain(&found.bottom)
        .chain(&found.quantiles)
    {
        let token = example.tokens[example.at] as usize;
        assert_eq!(activations[token], example.activation());
        assert_eq!(
            example.tokens[0] as usize / 10,
            token / 10,
            "never from another sequence"
        );
    }
    assert!(top_activations(&tokens, 10, &[0.0; 40], 2).top.is_empty());
}

#[test]
fn answers_are_read_from_the_right_side() {
    let logits = Tensor::new(&[[2.0f32, 1.0, 0.0]], &Device::Cpu).unwrap();
    let read = |question| super::question::Answers::read([question].into_iter(), &logits).unwrap();
    let between = read(Question::Between {
        presented: 0,
        counterfactual: 1,
    });
    assert!((between.logit_diffs[0] + 1.0).abs() < 1e-6);
    let total: f32 = [2.0f32, 1.0, 0.0].iter().map(|x| x.exp()).sum();
    let p = 2.0f32.exp() / total;
    let not = read(Question::NotPresented { candidate: 0 });
    assert!((not.shares().next().unwrap() - f64::from(1.0 - p)).abs() < 1e-5);
    assert!((not.probabilities[0] - (1.0 - p)).abs() < 1e-5);
    let only = read(Question::OnlyCounterfactual { candidate: 0 });
    assert!((only.shares().next().unwrap() - f64::from(p)).abs() < 1e-5);
    assert_eq!(only.flips(&[true]), Some(1.0));
    assert_eq!(only.flips(&[false]), None);
}

#[test]
fn a_forward_pass_without_edits_gives_the_unedited_answers() {
    let models = models(11);
    let pairs = prompts(between);
    let patching = Patching::new(&models, pairs.clone(), &[]).unwrap();
    let pair = &pairs[4];
    let mut token_rows =
        TokenRows::sequences(&pair.presented, pair.presented.len(), &Device::Cpu).unwrap();
    let logits = rows::to_vec(&models.dense.forward(&mut token_rows, &mut NoTap).unwrap()).unwrap();
    let logit_diff = pair
        .question
        .logit_diff(&logits[logits.len() - VOCABULARY..]);
    assert!((patching.answers.dense_presented.logit_diffs[4] - logit_diff).abs() < 1e-4);
}
