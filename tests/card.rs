//! The shipped pair's card says what its files hold: what follows from the files alone is written again and compared,
//! and the losses on generated text are measured again.

use std::fs;
use std::path::Path;

use candle_core::Device;
use causeway::bridge::fidelity;
use causeway::evaluation::card::{completions, features_tables, models_table};
use causeway::features::pair::Pair;
use causeway::features::registry::Feature;
use causeway::training::data::{documents, spread_sequences, tokenise};
use causeway::training::recipe::Source;

const PAIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/bridges/tinypython");

fn card() -> String {
    fs::read_to_string(Path::new(PAIR).join("README.md")).unwrap()
}

#[track_caller]
fn holds(card: &str, part: &str) {
    for line in part.lines().filter(|line| !line.is_empty()) {
        assert!(card.contains(line), "the card lacks the line {line}");
    }
    assert!(card.contains(part), "its lines are there, but not together");
}

#[test]
fn the_card_describes_the_models_and_completions_that_are_there() {
    let models = Pair::read(Path::new(PAIR)).unwrap();
    let card = card();
    holds(&card, &models_table(&models).unwrap());
    holds(&card, &completions(&models).unwrap());
}

#[test]
fn the_card_tells_the_effects_of_the_features_that_are_there() {
    #[derive(serde::Deserialize)]
    struct File {
        features: Vec<Feature>,
    }
    let json = fs::read(Path::new(PAIR).join("features.json")).unwrap();
    let File { features } = serde_json::from_slice(&json).unwrap();
    assert!(features.iter().all(|feature| feature.effects.is_some()));
    holds(&card(), &features_tables(&features));
}

#[test]
fn the_losses_on_generated_text_are_those_of_the_card() {
    let models = Pair::read(Path::new(PAIR)).unwrap();
    let source = Source::Generated {
        documents: 1,
        seed: 1,
        weight: 1.0,
    };
    let held_out = documents(&source).unwrap().held_out;
    let tokens = tokenise(&held_out, models.tokenizer()).unwrap();
    let length = models.dense.config.context_length;
    let batch = spread_sequences(&tokens, 64, length);
    let measured = fidelity::measure(
        &models.dense,
        &models.sparse,
        &models.bridge,
        batch.text(),
        &Device::Cpu,
        [],
    )
    .unwrap();
    let card = card();
    let row = card
        .lines()
        .find(|line| line.starts_with("| generated | 16384 |"))
        .expect("a row of losses on generated text");
    let told: Vec<f64> = row
        .split('|')
        .skip(3)
        .take(3)
        .map(|cell| cell.trim().parse().unwrap())
        .collect();
    let measured = [
        measured.dense_loss,
        measured.sparse_loss,
        measured.distillation,
    ];
    for (told, measured) in told.iter().zip(measured) {
        assert!(
            (told - measured).abs() < 2e-3,
            "the card says {told}, measured {measured}"
        );
    }
}
