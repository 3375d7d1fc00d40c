//! Seeded damage to every kind of file: whatever is cut off or changed, a reader answers, and does not panic.

use std::fs;
use std::path::Path;

use causeway::artifacts::tensors::FloatPrecision;
use causeway::artifacts::{Manifest, tensors, torch_pickle};
use causeway::models::layout::ModelFiles;
use causeway::models::released;
use causeway::models::tokenizer::Tokenizer;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::storage::{archive, program};
use crate::{Scratch, golden};

/// Calls `read` with `rounds` damaged copies of `content`; returns how many it accepted. Half of the damage
/// falls into `hot`, the part of the file that describes the rest.
fn damage(
    content: &[u8],
    hot: std::ops::Range<usize>,
    rounds: usize,
    mut read: impl FnMut(&[u8]) -> bool,
) -> usize {
    let mut rng = StdRng::seed_from_u64(content.len() as u64);
    let mut accepted = 0;
    for round in 0..rounds {
        let mut copy = content.to_vec();
        if round % 4 == 0 {
            copy.truncate(rng.random_range(0..copy.len()));
        } else {
            for _ in 0..rng.random_range(1..6) {
                let position = match rng.random_bool(0.5) {
                    true => rng.random_range(hot.clone()),
                    false => rng.random_range(0..copy.len()),
                };
                copy[position] = match rng.random_range(0..3) {
                    0 => rng.random(),
                    1 => copy[position] ^ (1 << rng.random_range(0..8)),
                    _ => [0, 0xff, 0x7f, 0x80][rng.random_range(0..4)],
                };
            }
        }
        accepted += usize::from(read(&copy));
    }
    accepted
}

/// Writes each damaged copy to a file and reads that.
fn damage_file(
    content: &[u8],
    hot: std::ops::Range<usize>,
    rounds: usize,
    mut read: impl FnMut(&Path) -> bool,
) -> usize {
    let scratch = Scratch::new();
    damage(content, hot, rounds, |copy| {
        let path = scratch.file("damaged", copy);
        read(&path)
    })
}

#[test]
fn damaged_checkpoints_are_answered() {
    let content = fs::read(golden("plain").join("final_model.pt")).unwrap();
    // The program begins right after the first entry's header, the central directory is at the end.
    let program_end = 3000;
    let directory = content.len() - 3500..content.len();
    let read = |path: &Path| torch_pickle::read(path).is_ok();
    damage_file(&content, 0..program_end, 300, read);
    damage_file(&content, directory, 300, read);
}

/// The checksum hides most damage from the program's reader, so here it is made before the checksum is.
#[test]
fn damaged_programs_are_answered() {
    let scratch = Scratch::new();
    let storage = [0u8; 24];
    let simple = program(6, 0, &[3, 2], &[1, 3]);
    let golden = zip_entry(
        &golden("sink_bigram").join("final_model.pt"),
        "final_model/data.pkl",
    );
    for (program, rounds) in [(simple, 3000), (golden, 1000)] {
        let accepted = damage(&program, 0..program.len(), rounds, |copy| {
            let path = scratch.file("m.pt", &archive(copy, &storage));
            torch_pickle::read(&path).is_ok()
        });
        assert!(accepted < rounds / 2, "{accepted}");
    }
}

fn zip_entry(path: &Path, name: &str) -> Vec<u8> {
    let mut zip = zip::ZipArchive::new(fs::File::open(path).unwrap()).unwrap();
    let mut content = Vec::new();
    std::io::Read::read_to_end(&mut zip.by_name(name).unwrap(), &mut content).unwrap();
    content
}

#[test]
fn every_flipped_weight_is_noticed() {
    let content = fs::read(golden("plain").join("final_model.pt")).unwrap();
    let scratch = Scratch::new();
    let mut rng = StdRng::seed_from_u64(1);
    // Inside the largest storages, well clear of headers.
    let weights = 4608..content.len() - 4000;
    let mut noticed = 0;
    for _ in 0..50 {
        let mut copy = content.clone();
        copy[rng.random_range(weights.clone())] ^= 0x40;
        let path = scratch.file("m.pt", &copy);
        noticed += usize::from(torch_pickle::read(&path).is_err());
    }
    // Padding between entries, the only bytes that may change freely, is a small part of the file.
    assert!(noticed >= 40, "{noticed}");
}

#[test]
fn damaged_safetensors_are_answered() {
    let content = fs::read(golden("plain").join("expected.safetensors")).unwrap();
    let read = |path: &Path| tensors::read(path, FloatPrecision::Single).is_ok();
    damage_file(&content, 0..2500, 600, read);
}

#[test]
fn every_truncation_of_a_safetensors_file_is_an_error() {
    let content = fs::read(golden("plain").join("expected.safetensors")).unwrap();
    let scratch = Scratch::new();
    for length in (0..content.len())
        .step_by(997)
        .chain([7, 8, content.len() - 1])
    {
        let path = scratch.file("t", &content[..length]);
        assert!(
            tensors::read(&path, FloatPrecision::Single).is_err(),
            "{length}"
        );
    }
}

#[test]
fn damaged_configurations_are_answered() {
    let content = fs::read(golden("cat_pos_emb").join("beeg_config.json")).unwrap();
    let all = 0..content.len();
    let accepted = damage(&content, all, 3000, |copy| {
        released::parse_config(copy).is_ok()
    });
    assert!(accepted < 3000);
}

#[test]
fn damaged_tokenizers_are_answered() {
    let content = fs::read(golden("plain").join("tokenizer.json")).unwrap();
    let all = 0..content.len();
    damage(&content, all, 1000, |copy| {
        match Tokenizer::from_bytes(copy) {
            Ok(tokenizer) => tokenizer.encode("some text\n").is_ok(),
            Err(_) => false,
        }
    });
}

#[test]
fn damaged_manifests_are_answered() {
    let scratch = Scratch::new();
    scratch.file("a.txt", b"content");
    let id = "a".parse().unwrap();
    let manifest =
        Manifest::of_directory(&scratch.0, id, "x".to_owned(), Default::default()).unwrap();
    manifest.write(&scratch.0).unwrap();
    let content = fs::read(scratch.0.join("manifest.json")).unwrap();
    damage(&content, 0..content.len(), 2000, |copy| {
        scratch.file("manifest.json", copy);
        let manifest = Manifest::read(&scratch.0);
        manifest.is_ok_and(|manifest| manifest.verify(&scratch.0).is_ok())
    });
}

#[test]
fn damaged_models_in_our_layout_are_answered() {
    let mut model = ModelFiles::read(&golden("sink_bigram")).unwrap();
    for tensor in model
        .tensors
        .values_mut()
        .filter(|tensor| tensor.rank() == 2)
    {
        let mask = tensor
            .ge(0.03f64)
            .unwrap()
            .to_dtype(tensor.dtype())
            .unwrap();
        *tensor = (&*tensor * mask).unwrap();
    }
    let scratch = Scratch::new();
    model.write(&scratch.0).unwrap();
    let weights = fs::read(scratch.0.join("model.safetensors")).unwrap();
    damage(&weights, 0..weights.len() / 4, 300, |copy| {
        scratch.file("model.safetensors", copy);
        ModelFiles::read(&scratch.0).is_ok()
    });
    scratch.file("model.safetensors", &weights);
    let config = fs::read(scratch.0.join("config.json")).unwrap();
    damage(&config, 0..config.len(), 300, |copy| {
        scratch.file("config.json", copy);
        ModelFiles::read(&scratch.0).is_ok()
    });
}
