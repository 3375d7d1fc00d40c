//! The tokens that features speak for.

use std::sync::Arc;

use super::models;
use crate::discovery::logit_effects::logit_effects;
use crate::discovery::prompt_run::PromptRun;
use crate::discovery::route::{ChannelColumns, Route};
use crate::features::group::{WeightedChannel, Write};
use crate::features::logit_effects::{LogitEffectMethod, LogitEffectQuery};
use crate::features::pair::Pair;
use crate::features::reference::ReferenceText;
use crate::features::statistics::{group_activations, statistics_of};
use crate::features::test_pair::{LAYERS, VOCABULARY};
use crate::interventions::carry::row_rms;
use crate::models::location::Location;
use crate::numerics::rows;

/// The reference text of a random pair, in sequences of `length`.
fn with_text(seed: u64, length: usize) -> Pair {
    let mut models = models(seed);
    let tokens =
        (0..6 * length as u32).map(|index| (index * 7 + index * index) % VOCABULARY as u32);
    Arc::make_mut(&mut models.reference).text = Some(ReferenceText {
        tokens: tokens.collect(),
        length,
    });
    models
}

/// By the definition: each beginning of each sequence is a prompt of its own, run with and without the change.
fn effects_one_by_one(models: &Pair, asked: &LogitEffectQuery, added: f64) -> Vec<f64> {
    let text = models.reference.text.as_ref().unwrap();
    let columns = ChannelColumns::new(models, asked.place, Route::Bridge(asked.write)).unwrap();
    let site = Location::Site(asked.place.site(LAYERS));
    let mut sums = vec![0f64; VOCABULARY];
    for sequence in text.tokens.chunks(text.length) {
        for end in 1..=sequence.len() {
            let prompt = [&sequence[..end]];
            let sparse = PromptRun::new(&models.sparse, &prompt, &[0], [site]).unwrap();
            let mut dense = PromptRun::new(&models.dense, &prompt, &[0], []).unwrap();
            let rms = row_rms(sparse.value(site).unwrap()).unwrap();
            let mut change = vec![0f32; end * columns.width];
            for (row, out) in change.chunks_exact_mut(columns.width).enumerate() {
                let factor = if columns.times_sparse_rms {
                    rms[row]
                } else {
                    1.0
                };
                for member in &asked.group {
                    columns.add(member.channel, (added * member.weight) as f32 * factor, out);
                }
            }
            let before = rows::to_vec(dense.logits()).unwrap();
            let after = rows::to_vec(&dense.with_change(columns.target, change).unwrap()).unwrap();
            let log_probabilities = |logits: &[f32]| -> Vec<f64> {
                let total = logits
                    .iter()
                    .map(|&logit| f64::from(logit).exp())
                    .sum::<f64>();
                let logits = logits.iter().map(|&logit| f64::from(logit));
                logits.map(|logit| logit - total.ln()).collect()
            };
            let pairs = log_probabilities(&after)
                .into_iter()
                .zip(log_probabilities(&before));
            for (sum, (after, before)) in sums.iter_mut().zip(pairs) {
                *sum += after - before;
            }
        }
    }
    sums.iter()
        .map(|sum| sum / text.tokens.len() as f64)
        .collect()
}

#[test]
fn what_a_feature_promotes_is_measured_where_layers_follow() {
    let models = with_text(30, 9);
    let cases = [
        ("0.resid_in", Write::Residual, Some(0.7)),
        ("1.attn.act_in", Write::Residual, None),
        ("1.attn.act_in", Write::Sublayer, None),
        ("1.resid_mid", Write::Residual, Some(0.0)),
    ];
    for (place, write, std) in cases {
        let group =
            [(3, 0.6), (4, -0.8)].map(|(channel, weight)| WeightedChannel { channel, weight });
        let asked = LogitEffectQuery {
            place: Location::parse(place, LAYERS).unwrap(),
            group: group.to_vec(),
            write,
            std,
            count: VOCABULARY,
        };
        let found = logit_effects(&models, &asked).unwrap();
        let promotion = found.as_ref().as_ref().unwrap();
        let text = models.reference.text.as_ref().unwrap();
        let values = group_activations(
            &models.sparse,
            &text.tokens,
            text.length,
            asked.place,
            &group,
        )
        .unwrap();
        let added = match std {
            Some(std) if std > 0.0 => std,
            // What never varies is raised by one.
            Some(_) => 1.0,
            None => statistics_of(&values).std,
        };
        let method = LogitEffectMethod::Measured {
            added,
            tokens: text.tokens.len(),
        };
        assert_eq!(promotion.method, method, "{place}");
        let expected = effects_one_by_one(&models, &asked, added);
        for score in promotion.promoted.iter().chain(&promotion.suppressed) {
            let expected = expected[score.token as usize];
            assert!(
                (f64::from(score.score) - expected).abs() < 1e-4,
                "{place} {write:?}: {} instead of {expected}",
                score.score
            );
        }
        let scores: Vec<f32> = promotion.promoted.iter().map(|token| token.score).collect();
        assert!(
            scores.is_sorted_by(|a, b| a >= b) && scores[0] > 0.01,
            "{scores:?}"
        );
    }
}

#[test]
fn the_unembedding_speaks_where_nothing_else_follows() {
    let models = with_text(31, 9);
    let without_text = self::models(31);
    let asked = |place: &str| LogitEffectQuery {
        place: Location::parse(place, LAYERS).unwrap(),
        group: vec![WeightedChannel {
            channel: 5,
            weight: 1.0,
        }],
        write: Write::Residual,
        std: Some(1.0),
        count: VOCABULARY,
    };
    for place in ["final_resid", "1.mlp.resid_delta", "1.mlp.post_act"] {
        let found = logit_effects(&models, &asked(place)).unwrap();
        let method = found.as_ref().as_ref().unwrap().method;
        assert_eq!(method, LogitEffectMethod::Unembedding, "{place}");
        assert_eq!(
            found,
            logit_effects(&without_text, &asked(place)).unwrap(),
            "{place}"
        );
    }
    for place in [
        "0.resid_in",
        "1.mlp.act_in",
        "1.resid_mid",
        "1.attn.resid_delta",
    ] {
        let found = logit_effects(&models, &asked(place)).unwrap();
        let method = found.as_ref().as_ref().unwrap().method;
        assert!(
            matches!(method, LogitEffectMethod::Measured { .. }),
            "{place}"
        );
        assert_eq!(
            *logit_effects(&without_text, &asked(place)).unwrap(),
            None,
            "{place}"
        );
    }
    // Asked again, it is what was found before.
    let first = logit_effects(&models, &asked("0.resid_in")).unwrap();
    let again = logit_effects(&models, &asked("0.resid_in")).unwrap();
    assert!(Arc::ptr_eq(&first, &again));
}
