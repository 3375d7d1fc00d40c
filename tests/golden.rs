//! The forward pass against the released code: four small checkpoints whose every activation and logit the
//! sparse models' authors' own code computed in float32, along each way a token can take through ours.

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::{Device, Result, Tensor};
use causeway::models::config::TransformerConfig;
use causeway::models::kv_cache::{CacheRow, KvCache};
use causeway::models::layers::Purpose;
use causeway::models::layout::ModelFiles;
use causeway::models::location::Location;
use causeway::models::tap::Recorder;
use causeway::models::token_rows::TokenRows;
use causeway::models::transformer::Transformer;

/// What one forward pass showed: the values at its places, and its logits.
type Pass = (BTreeMap<Location, Tensor>, Tensor);

const CHECKPOINTS: [&str; 4] = [
    "plain",
    "cat_pos_emb",
    "sink_bigram",
    "layernorm_tied_dense",
];
/// Largest difference from the released code's float32, for any activation or logit.
const TOLERANCE: f32 = 1e-4;

/// One checkpoint with what the released code makes of it.
struct Golden {
    name: &'static str,
    files: ModelFiles,
    /// `[sequences * length]`, sequence after sequence.
    ids: Vec<u32>,
    length: usize,
    /// `[rows, channels]` each.
    activations: BTreeMap<Location, Tensor>,
    logits: Tensor,
}

impl Golden {
    fn read(name: &'static str) -> Self {
        let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("tests/golden/circuit_sparsity")
            .join(name);
        let files = ModelFiles::read(&directory).expect("a readable checkpoint");
        let path = directory.join("expected.safetensors");
        let mut expected =
            candle_core::safetensors::load(path, &Device::Cpu).expect("expected values");
        let ids = expected.remove("input_ids").expect("input_ids");
        let (_, length) = ids.dims2().expect("[sequences, length]");
        let logits = as_rows(&expected.remove("logits").expect("logits"));
        let activations = expected.iter().map(|(name, value)| {
            let name = name.strip_prefix("activations.").expect("an activation");
            let place = Location::parse(name, files.config.n_layers).expect("a place of ours");
            (place, as_rows(value))
        });
        Golden {
            name,
            ids: flat_ids(&ids),
            length,
            activations: activations.collect(),
            logits,
            files,
        }
    }

    fn model(&self, purpose: Purpose) -> Transformer {
        Transformer::new(self.files.config.clone(), &self.files.tensors, purpose).expect("a model")
    }

    fn config(&self) -> &TransformerConfig {
        &self.files.config
    }

    fn recorder(&self) -> Recorder {
        Recorder::of(Location::all(self.config().n_layers))
    }

    fn sequences(&self) -> usize {
        self.ids.len() / self.length
    }

    /// Holds a whole pass against the released code's; rows in the order of `self.ids`.
    fn check(&self, seen: &BTreeMap<Location, Tensor>, logits: &Tensor) {
        // Location by place in the order of the pass, so that the first line of a failure is the first cause.
        for place in Location::all(self.config().n_layers) {
            let (expected, seen) = (&self.activations[&place], &seen[&place]);
            assert_eq!(seen.dims(), expected.dims(), "{} {place}", self.name);
            close(seen, expected, &format!("{} {place}", self.name));
        }
        close(logits, &self.logits, &format!("{} logits", self.name));
    }
}

/// `[sequences, length, channels] -> [rows, channels]`.
fn as_rows(tensor: &Tensor) -> Tensor {
    tensor.flatten(0, 1).expect("[sequences, length, channels]")
}

fn flat_ids(ids: &Tensor) -> Vec<u32> {
    let ids = ids
        .to_dtype(candle_core::DType::U32)
        .and_then(|ids| ids.flatten_all()?.to_vec1());
    ids.expect("token ids")
}

fn close(seen: &Tensor, expected: &Tensor, what: &str) {
    let read = |tensor: &Tensor| tensor.to_vec2::<f32>().expect("float32 rows");
    for (row, (seen, expected)) in read(seen).iter().zip(&read(expected)).enumerate() {
        for (channel, (s, e)) in seen.iter().zip(expected).enumerate() {
            assert!(
                (s - e).abs() <= TOLERANCE,
                "{what}, row {row}, channel {channel}: {s}, the released code has {e}"
            );
        }
    }
}

fn whole_sequences(golden: &Golden, purpose: Purpose) -> Result<()> {
    let model = golden.model(purpose);
    let mut rows = TokenRows::sequences(&golden.ids, golden.length, &Device::Cpu)?;
    let mut recorder = golden.recorder();
    let logits = model.forward(&mut rows, &mut recorder)?;
    golden.check(&recorder.into_values(), &logits);
    Ok(())
}

#[test]
fn expected_values_cover_every_place() {
    for name in CHECKPOINTS {
        let golden = Golden::read(name);
        let places = Location::all(golden.config().n_layers);
        assert!(
            places
                .iter()
                .all(|place| golden.activations.contains_key(place)),
            "{name}"
        );
        assert_eq!(golden.activations.len(), places.len(), "{name}");
        assert!(golden.sequences() >= 2 && golden.length >= 16, "{name}");
    }
}

#[test]
fn whole_sequences_of_inference_agree_with_the_released_code() -> Result<()> {
    CHECKPOINTS
        .iter()
        .try_for_each(|name| whole_sequences(&Golden::read(name), Purpose::Inference))
}

#[test]
fn whole_sequences_of_training_agree_with_the_released_code() -> Result<()> {
    CHECKPOINTS
        .iter()
        .try_for_each(|name| whole_sequences(&Golden::read(name), Purpose::Training))
}

#[test]
fn a_frozen_model_agrees_with_the_released_code() -> Result<()> {
    CHECKPOINTS
        .iter()
        .try_for_each(|name| whole_sequences(&Golden::read(name), Purpose::Frozen))
}

#[test]
fn token_by_token_agrees_with_the_released_code() -> Result<()> {
    for name in CHECKPOINTS {
        let golden = Golden::read(name);
        let model = golden.model(Purpose::Inference);
        let (sequences, length) = (golden.sequences(), golden.length);
        let mut cache = KvCache::new(golden.config(), sequences, length, &Device::Cpu).unwrap();
        // One row of each sequence a pass, as a server runs them; put back in order of sequences below.
        let mut passes: Vec<Pass> = Vec::new();
        for position in 0..length {
            let ids: Vec<u32> = (0..sequences)
                .map(|s| golden.ids[s * length + position])
                .collect();
            let at = (0..sequences)
                .map(|slot| CacheRow { slot, position })
                .collect();
            let mut rows = TokenRows::cached(&ids, at, &mut cache)?;
            let mut recorder = golden.recorder();
            let logits = model.forward(&mut rows, &mut recorder)?;
            passes.push((recorder.into_values(), logits));
        }
        let by_sequence = |pick: &dyn Fn(&Pass) -> Tensor| -> Result<Tensor> {
            let picked: Vec<Tensor> = passes.iter().map(pick).collect();
            Tensor::stack(&picked, 1)?.flatten(0, 1)
        };
        let seen = Location::all(golden.config().n_layers)
            .into_iter()
            .map(|place| Ok((place, by_sequence(&|pass| pass.0[&place].clone())?)))
            .collect::<Result<BTreeMap<_, _>>>()?;
        golden.check(&seen, &by_sequence(&|pass| pass.1.clone())?);
    }
    Ok(())
}
