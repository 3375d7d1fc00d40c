//! Counting models beat their parts, intervals cover, files have the shape they promise.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::interval::Interval;
use super::ngram::{Counts, Interpolated, Order};
use super::real_strings::text_pair;
use super::steering::{ARMS, Dose, dose_response};
use super::task_table::geometric_share;
use super::unrelated::{code_without_strings, set_everywhere, typical_values};
use super::{controls, report};
use crate::corpus::literals::{Literal, literals};
use crate::discovery::patching::{Part, Patching};
use crate::discovery::question::{PromptPair, Question};
use crate::discovery::route::Route;
use crate::features::group::{WeightedChannel, Write};
use crate::features::test_pair::{LAYERS, random_pair};
use crate::interventions::control_directions::ControlDraw;
use crate::models::location::Location;

fn pairs() -> Vec<PromptPair> {
    (0..10u32)
        .map(|index| {
            let presented = vec![3 + index, 1, 5, 6 + index % 3];
            let counterfactual = vec![3 + index, 2, 5, 6 + index % 3];
            let question = Question::Between {
                presented: 10,
                counterfactual: 11,
            };
            PromptPair {
                presented,
                counterfactual,
                question,
            }
        })
        .collect()
}

/// Tokens in which the last two decide the next, most of the time.
fn second_order_source(count: usize) -> Vec<u32> {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut tokens = vec![0u32, 1];
    while tokens.len() < count {
        let (a, b) = (tokens[tokens.len() - 2], tokens[tokens.len() - 1]);
        let next = match rng.random_range(0..10u32) {
            0 => rng.random_range(0..8u32),
            _ => (3 * a + 5 * b + a * b) % 8,
        };
        tokens.push(next);
    }
    tokens
}

#[test]
fn an_interpolated_trigram_beats_its_parts_and_nears_the_truth() {
    let tokens = second_order_source(60_000);
    let counts = Counts::new(&[&tokens[..50_000]], 8);
    let trigram = Interpolated::fit(&counts, Order::Trigram);
    let bigram = Interpolated::fit(&counts, Order::Bigram);
    let (inputs, targets) = (&tokens[50_000..59_999], &tokens[50_001..60_000]);
    let trigram_loss = trigram.loss(inputs, targets, 9_999);
    let bigram_loss = bigram.loss(inputs, targets, 9_999);
    // The source's own entropy: 0.9 + 0.1 / 8 on one token, 0.1 / 8 on each of the other seven.
    let (one, other) = (0.9 + 0.1 / 8.0, 0.1f64 / 8.0);
    let entropy = -one * f64::ln(one) - 7.0 * other * other.ln();
    assert!(
        trigram_loss < entropy + 0.03,
        "{trigram_loss} against {entropy}"
    );
    assert!(
        bigram_loss > trigram_loss + 0.2,
        "{bigram_loss} against {trigram_loss}"
    );
    let total: f64 = (0..8).map(|next| trigram.probability(&[1, 2], next)).sum();
    assert!(
        (total - 1.0).abs() < 0.02,
        "a seen context's probabilities sum to {total}"
    );
}

#[test]
fn a_token_never_counted_still_has_a_probability() {
    let counts = Counts::new(&[&[0, 1, 0, 1, 0, 1, 2, 2, 0, 1].repeat(600)], 50);
    let model = Interpolated::fit(&counts, Order::Trigram);
    assert!(model.loss(&[40, 41], &[41, 42], 2).is_finite());
}

#[test]
fn intervals_hold_their_mean_and_narrow_with_more_values() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let values: Vec<f64> = (0..4000).map(|_| rng.random_range(0.0..1.0)).collect();
    let (few, many) = (
        Interval::bootstrap(&values[..40]),
        Interval::bootstrap(&values),
    );
    for interval in [few, many] {
        assert!(interval.low <= interval.mean && interval.mean <= interval.high);
    }
    assert!(many.high - many.low < 0.2 * (few.high - few.low));
    // 1.96 standard errors on each side, of uniform values.
    let expected = 2.0 * 1.96 * (1.0f64 / 12.0 / 4000.0).sqrt();
    assert!(((many.high - many.low) / expected - 1.0).abs() < 0.15);
    assert_eq!(
        Interval::bootstrap(&[0.5; 9]),
        Interval {
            mean: 0.5,
            low: 0.5,
            high: 0.5
        }
    );
}

#[test]
fn a_dose_response_starts_at_the_baseline_and_has_every_arm() {
    let models = random_pair(20).pair();
    let place = Location::parse("1.resid_in", LAYERS).unwrap();
    let mut held_out = Patching::new(&models, pairs(), &[]).unwrap();
    let train = Patching::new(&models, pairs(), &[]).unwrap();
    let dose = Dose {
        place,
        channels: (0..12).collect(),
        write: Write::Residual,
        seed: 1,
    };
    let response = dose_response(&mut held_out, &train, &dose).unwrap();
    let baseline: f64 = held_out.answers.dense_presented.shares().sum::<f64>() / 10.0;
    for (curve, arm) in response.curves.iter().zip(ARMS) {
        assert_eq!(curve.arm, arm);
        assert_eq!(curve.points.len(), 11);
        assert!((curve.points[0].two_way.mean - baseline).abs() < 1e-5);
        assert_ne!(
            curve.points[0].two_way.mean, curve.points[10].two_way.mean,
            "{arm}"
        );
    }
    let csv = response.to_csv();
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(lines.len(), 1 + 4 * 11);
    let columns = lines[0].split(',').count();
    assert!(lines.iter().all(|line| line.split(',').count() == columns));
    assert!(lines[1].starts_with("steered,0.0,"));

    let svg = response.plot("a < b & \"c\"").to_svg();
    assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
    assert!(svg.contains("a &lt; b &amp; &quot;c&quot;") && !svg.contains("a < b"));
    assert_eq!(svg.matches("<polyline").count(), 4);
    assert_eq!(svg.matches("<polygon").count(), 4);
    assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    assert!(!svg.contains("NaN") && !svg.contains("inf"));
}

#[test]
fn random_arms_have_the_steered_norm_at_every_token() {
    let models = random_pair(21).pair();
    let patching = Patching::new(&models, pairs(), &[]).unwrap();
    let place = Location::parse("1.resid_mid", LAYERS).unwrap();
    let patch = patching
        .location_patch(place, Route::Bridge(Write::Residual))
        .unwrap();
    let group = [0, 1, 2, 3];
    let change = patch.group(&group, 1.0);
    let width = patch.columns.width;
    let feature = controls::random_feature(&patching, &patch, &group, &change, 1).unwrap();
    for arm in [controls::random(&patching, &patch, &change, 1), feature] {
        for (arm, steered) in arm.chunks(width).zip(change.chunks(width)) {
            let (found, expected) = (controls::norm(arm), controls::norm(steered));
            assert!((found - expected).abs() <= 1e-4 * (1.0 + expected));
        }
        assert_ne!(arm, change);
    }
    let before = controls::before_last(&patching, &patch, change.clone());
    for (row, values) in before.chunks(width).enumerate() {
        let last = patching.last_rows().contains(&(row as u32));
        assert_eq!(values.iter().all(|&value| value == 0.0), last);
    }
}

#[test]
fn the_controls_are_those_of_requests() {
    let models = random_pair(24).pair();
    let patching = Patching::new(&models, pairs(), &[]).unwrap();
    let place = Location::parse("1.resid_mid", LAYERS).unwrap();
    let patch = patching
        .location_patch(place, Route::Bridge(Write::Residual))
        .unwrap();
    let change = patch.group(&[0, 1], 1.0);
    let width = patch.columns.width;
    let found = controls::random(&patching, &patch, &change, 7);
    let tokens = found.chunks(width).zip(change.chunks(width));
    for ((found, change), prompt) in tokens.zip(patching.pair_of_rows()) {
        let draw = ControlDraw {
            seed: 7,
            prompt,
            edit: 0,
        };
        let norm = controls::norm(change);
        for (found, unit) in found.iter().zip(draw.random(width)) {
            assert!((found - norm * unit).abs() <= 1e-5 * (1.0 + norm));
        }
    }
}

#[test]
fn setting_a_feature_to_the_value_it_has_does_nothing() {
    let models = random_pair(22).pair();
    let place = Location::parse("1.resid_in", LAYERS).unwrap();
    let group = [
        WeightedChannel {
            channel: 3,
            weight: 0.6,
        },
        WeightedChannel {
            channel: 4,
            weight: -0.8,
        },
    ];
    let patching = Patching::new(&models, pairs(), &[]).unwrap();
    let [presented, counterfactual] = typical_values(&patching, place, &group).unwrap();
    assert_ne!(presented, counterfactual);
    let prompt = vec![vec![4u32]];
    let mut at = Patching::new(
        &models,
        vec![PromptPair {
            presented: vec![4],
            counterfactual: vec![4],
            question: Question::Between {
                presented: 1,
                counterfactual: 2,
            },
        }],
        &[],
    )
    .unwrap();
    let [own, same] = typical_values(&at, place, &group).unwrap();
    assert_eq!(own, same);
    let write = Write::Residual;
    let nothing = set_everywhere(&models, &prompt, place, &group, write, own).unwrap();
    assert!(nothing.mean_kl.abs() < 1e-6);
    let much = set_everywhere(&models, &prompt, place, &group, write, own + 3.0).unwrap();
    assert!(much.mean_kl > 1e-3);
    // The same change by hand: three along the group's unit weights.
    let patch = at.location_patch(place, Route::Bridge(write)).unwrap();
    let mut change = patch.nothing();
    for member in group {
        patch
            .columns
            .add(member.channel, 3.0 * member.weight as f32, &mut change);
    }
    let by_hand = at.answers_with(&patch, change).unwrap();
    assert_ne!(by_hand, at.answers.dense_presented);
}

#[test]
fn plain_literals_are_found_and_the_others_left() {
    let code = "a = \"one two\"  # it's \"not\" code\nb = f'formatted' + 'it\\'s' + 'plain one'\n\
                \"\"\"a 'doc' string\"\"\"\nc = 'mixed \"quote\"'\nd = 'x'\nopen_ended = 'abc\ne = \"last\"\n";
    let found: Vec<&str> = literals(code)
        .iter()
        .map(|literal| &code[literal.open..=literal.close])
        .collect();
    assert_eq!(found, ["\"one two\"", "'plain one'", "\"last\""]);
}

#[test]
fn a_literals_pair_swaps_its_own_quotes_only() {
    let code = "x = 'first'\nprint('hello', \"there\")\nafter()\n";
    let literal: Literal = literals(code)[1];
    let pair = text_pair(code, literal).unwrap();
    assert_eq!(pair.presented.prompt, "x = 'first'\nprint('hello");
    assert_eq!(pair.presented.answer, "', \"there\")\n");
    assert_eq!(pair.counterfactual.prompt, "x = 'first'\nprint(\"hello");
    assert_eq!(pair.counterfactual.answer, "\", \"there\")\n");
    let long = format!("{}\n{code}", "# filler\n".repeat(100));
    let literal = literals(&long)[0];
    let pair = text_pair(&long, literal).unwrap();
    assert!(
        pair.presented.prompt.starts_with("# filler\n"),
        "whole lines: {:?}",
        pair.presented.prompt
    );
    assert!(pair.presented.prompt.len() < 300);
}

#[test]
fn unrelated_prompts_begin_and_end_in_code() {
    let code = "\"\"\"Doc\nstring.\n\"\"\"\nimport os  # not 'open\ntext = 'a long string here'\nif os.name == other:\n    pass\n";
    // The lines before it are a docstring, a comment from their middle on, or a string.
    let found = code_without_strings(code, 1).unwrap();
    assert!(found.ends_with("if os.name =="), "{found:?}");
    assert!(found.starts_with("\"\"\"Doc"), "{found:?}");
    assert_eq!(code_without_strings("x = 'never closed\n", 0), None);
}

#[test]
fn rows_are_told_apart_by_where_they_stand() {
    let models = random_pair(23).pair();
    let patching = Patching::new(&models, pairs(), &[]).unwrap();
    let expected = [Part::First, Part::Between, Part::Last].repeat(10);
    assert_eq!(patching.parts(), expected);
}

#[test]
fn the_geometric_share_is_a_ratio_of_geometric_means() {
    assert!((geometric_share(&[0.1, 0.4], &[0.4, 0.4]) - 0.5).abs() < 1e-6);
}

#[test]
fn every_row_of_the_table_has_as_many_cells_as_its_header() {
    let row = super::task_table::TaskRow {
        task: crate::tasks::Task::ForWhile,
        held_out_pairs: 1,
        dense_accuracy: 1.0,
        sparse_accuracy: 0.5,
        dense_right: 1,
        sparse_right: 0,
        native: None,
        residual: None,
        sublayer: None,
        n_layers: 4,
        layers: Vec::new(),
    };
    let table = report::task_table(&[row]);
    let cells: Vec<usize> = table
        .lines()
        .map(|line| line.matches('|').count())
        .collect();
    assert!(cells.iter().all(|&count| count == cells[0]), "{table}");
}
