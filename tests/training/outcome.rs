//! What a training leaves behind.

use candle_core::Tensor;
use causeway::models::layout::ModelFiles;
use causeway::models::tokenizer::Tokenizer;

use super::{STEPS, VOCABULARY, Workshop};

/// The loss at the first steps and at the last, the held-out losses with them.
fn losses(workshop: &Workshop) -> (f64, f64) {
    let metrics = workshop.metrics();
    let steps: Vec<f64> = metrics
        .iter()
        .filter_map(|line| line["loss"].as_f64())
        .collect();
    assert_eq!(steps.len(), STEPS);
    let evaluations: Vec<_> = metrics
        .iter()
        .filter(|line| line["evaluation"] == true)
        .collect();
    assert_eq!(evaluations.len(), 2);
    for source in ["held_out_generated", "held_out_real"] {
        let at = |index: usize| {
            evaluations[index][source]
                .as_f64()
                .expect("a held-out loss")
        };
        assert!(at(1) < at(0), "{source} rose from {} to {}", at(0), at(1));
    }
    (steps[0], steps[STEPS - 5..].iter().sum::<f64>() / 5.0)
}

#[test]
fn a_dense_model_learns() {
    let workshop = Workshop::new();
    workshop
        .train("dense", &workshop.dense_recipe(), &[])
        .expect("a training");
    let (first, last) = losses(&workshop);
    // The first guess is near the uniform one; the last must know far more than which tokens are frequent.
    assert!(
        (first - (VOCABULARY as f64).ln()).abs() < 0.5,
        "the first loss is {first}"
    );
    assert!(
        last < 0.55 * first,
        "the loss fell from {first} to {last} only"
    );
    let model = ModelFiles::read(&workshop.output().join("model")).expect("a model");
    let tokenizer =
        Tokenizer::from_bytes(&model.tokenizer.expect("its tokenizer")).expect("a tokenizer");
    assert_eq!(tokenizer.vocab_size(), VOCABULARY);
}

#[test]
fn a_sparse_model_learns_with_its_mask_and_protected_weights_exact() {
    let workshop = Workshop::new();
    workshop
        .train("sparse", &workshop.sparse_recipe(), &[])
        .expect("a training");
    let (first, last) = losses(&workshop);
    assert!(
        last < 0.7 * first,
        "the loss fell from {first} to {last} only"
    );
    let kept: Vec<f64> = workshop
        .metrics()
        .iter()
        .filter_map(|line| line["kept_fraction"].as_f64())
        .collect();
    assert!(
        kept[0] > 0.9 && kept.windows(2).all(|pair| pair[1] <= pair[0]),
        "{kept:?}"
    );
    assert!((kept[STEPS - 1] - 0.15).abs() < 1e-6, "{kept:?}");

    let model = ModelFiles::read(&workshop.output().join("model")).expect("a model");
    let mut matrices = 0;
    for (name, tensor) in &model.tensors {
        let nonzero = |tensor: &Tensor| {
            let values = tensor
                .flatten_all()
                .and_then(|t| t.to_vec1::<f32>())
                .expect("float32");
            values.iter().filter(|value| **value != 0.0).count()
        };
        let (kept, all) = (nonzero(tensor), tensor.elem_count());
        let allowed = (0.15 * all as f64).floor() as usize;
        let masked = ["c_attn", "c_proj", "c_fc", "wte", "wpe", "lm_head"]
            .iter()
            .any(|part| name.contains(part));
        if masked && tensor.rank() == 2 {
            matrices += 1;
            assert_eq!(kept, allowed, "{name} keeps {kept} of {all}");
        } else if masked {
            // A bias of a neuron that never was active is zero of itself.
            assert!(kept <= allowed && kept > 0, "{name} keeps {kept} of {all}");
        } else if name.contains(".ln_") || name.contains("sink_logit") {
            assert_eq!(kept, all, "{name} is not masked");
        } else if name == "bigram_table" {
            assert!(kept > all / 10, "{name} keeps {kept} of {all}");
        }
        let lines = match name {
            name if name.ends_with("c_fc.weight") || name.ends_with("c_attn.weight") => 0,
            name if name.ends_with("c_proj.weight") => 1,
            _ => continue,
        };
        for line in 0..tensor.dim(lines).expect("a matrix") {
            let channel = tensor
                .narrow(lines, line, 1)
                .expect("one neuron or channel");
            assert!(
                nonzero(&channel) >= 2,
                "{name}: channel {line} lost its protected weights"
            );
        }
    }
    assert_eq!(matrices, 2 * 4 + 3);
}

#[test]
fn a_tokenizer_is_trained_from_a_recipe() {
    let workshop = Workshop::new();
    let root = workshop.0.display();
    let recipe = format!(
        "vocab_size = 400\ndocuments = 20\noutput = \"{root}/new/tokenizer.json\"\n\
         [[sources]]\nkind = \"generated\"\ndocuments = 30\nseed = 1\nweight = 1.0\n"
    );
    workshop
        .train("tokenizer", &recipe, &[])
        .expect("a tokenizer");
    let read = || std::fs::read(workshop.0.join("new/tokenizer.json")).expect("a tokenizer");
    let first = read();
    let tokenizer = Tokenizer::from_bytes(&first).expect("a tokenizer");
    assert_eq!(
        (tokenizer.vocab_size(), tokenizer.end_of_text()),
        (400, Some(399))
    );
    let text = "def f(x):\n    return x + 1\n";
    assert_eq!(
        tokenizer.decode(&tokenizer.encode(text).expect("tokens")),
        text
    );
    workshop
        .train("tokenizer", &recipe, &[])
        .expect("a tokenizer");
    assert_eq!(read(), first, "the same recipe gives the same tokenizer");
}
