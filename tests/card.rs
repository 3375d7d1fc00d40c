//! The shipped pair's card against the pair's own files: what follows from them is written again and compared, and the
//! losses on generated programs are measured again.

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Device;
use causeway::bridge::fidelity;
use causeway::circuits::directory::read_file;
use causeway::circuits::drawing::table::table;
use causeway::evaluation::card;
use causeway::evaluation::catalogue::FeaturesFile;
use causeway::features::pair::Pair;
use causeway::training::data::{documents, spread_sequences, tokenise};
use causeway::training::recipe::Source;

/// What another order of additions may change.
const TOLERANCE: f64 = 2e-3;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("bridges/tinypython")
}

fn text() -> String {
    fs::read_to_string(directory().join("README.md")).unwrap()
}

#[test]
fn tables_and_completions_are_those_of_the_files() {
    let (models, text) = (Pair::read(&directory()).unwrap(), text());
    assert!(text.contains(&card::models_table(&models).unwrap()));
    let features = fs::read(directory().join("features.json")).unwrap();
    let FeaturesFile { features } = serde_json::from_slice(&features).unwrap();
    assert!(features.iter().any(|feature| feature.effects.is_some()));
    assert!(text.contains(&card::features_tables(&features)));
    assert!(text.contains(&card::completions(&models).unwrap()));
}

#[test]
fn the_table_of_circuits_is_that_of_the_files() {
    let circuits = fs::read_dir(directory().join("circuits")).unwrap();
    let mut files: Vec<PathBuf> = circuits
        .map(|folder| folder.unwrap().path().join("circuit.json"))
        .collect();
    files.sort();
    let circuits: Vec<_> = files.iter().map(|file| read_file(file).unwrap()).collect();
    assert!(text().contains(&table(&circuits, &[])));
}

#[test]
fn losses_on_generated_programs_are_as_the_card_says() {
    let (models, text) = (Pair::read(&directory()).unwrap(), text());
    let row = text
        .lines()
        .find_map(|line| line.strip_prefix("| generated | "))
        .unwrap();
    let row: Vec<f64> = row
        .split(" | ")
        .take(4)
        .map(|cell| cell.parse().unwrap())
        .collect();
    let length = models.dense.config.context_length;
    let source = Source::Generated {
        documents: 1,
        seed: 1,
        weight: 1.0,
    };
    let texts = documents(&source).unwrap().held_out;
    let tokens = tokenise(&texts, models.tokenizer()).unwrap();
    let sequences = row[0] as usize / length;
    let batch = spread_sequences(&tokens, sequences, length);
    let measured = fidelity::measure(
        &models.dense,
        &models.sparse,
        &models.bridge,
        batch.text(),
        &Device::Cpu,
        [],
    )
    .unwrap();
    for (what, told, measured) in [
        ("dense", row[1], measured.dense_loss),
        ("sparse", row[2], measured.sparse_loss),
        ("KL", row[3], measured.distillation),
    ] {
        assert!(
            (told - measured).abs() < TOLERANCE,
            "{what}: the card says {told}; it is {measured}"
        );
    }
}
