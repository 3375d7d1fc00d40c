//! Tiny random checkpoints of every dense family against what `transformers` made of them in float32: the stream before
//! every layer and the logits, whole and token by token (`tests/golden/families.py` wrote them).

#[path = "families/gguf.rs"]
mod gguf;
#[path = "families/precision.rs"]
mod precision;
#[path = "families/tokenizers.rs"]
mod tokenizers;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use causeway::models::kv_cache::{CacheRow, KvCache};
use causeway::models::layers::Purpose;
use causeway::models::layout::ModelFiles;
use causeway::models::location::{Location, Site};
use causeway::models::tap::{NoTap, Recorder};
use causeway::models::token_rows::TokenRows;
use causeway::models::transformer::Transformer;

/// What float32 rounding may do.
const TOLERANCE: f32 = 1e-3;

struct Golden {
    name: String,
    files: ModelFiles,
    ids: Vec<u32>,
    expected: BTreeMap<String, Vec<f32>>,
}

fn goldens() -> Vec<Golden> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/families");
    let mut folders: Vec<PathBuf> = fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    folders.sort();
    assert!(folders.len() >= 17, "{} folders", folders.len());
    folders.iter().map(|folder| golden(folder)).collect()
}

fn golden(folder: &Path) -> Golden {
    let name = folder.file_name().unwrap().to_string_lossy().into_owned();
    let stored = candle_core::safetensors::load(folder.join("expected.safetensors"), &Device::Cpu);
    let mut stored = stored.unwrap();
    let ids = stored.remove("ids").unwrap().to_vec1::<i32>().unwrap();
    let values = |tensor: Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    Golden {
        files: ModelFiles::read(folder).unwrap_or_else(|error| panic!("{name}: {error}")),
        name,
        ids: ids.into_iter().map(|id| id as u32).collect(),
        expected: stored
            .into_iter()
            .map(|(name, tensor)| (name, values(tensor)))
            .collect(),
    }
}

impl Golden {
    fn model(&self, purpose: Purpose) -> Transformer {
        Transformer::new(self.files.config.clone(), &self.files.tensors, purpose).unwrap()
    }

    #[track_caller]
    fn compare(&self, what: &str, found: &Tensor, rows: std::ops::Range<usize>) {
        let found = found.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let expected = &self.expected[what];
        let width = found.len() / rows.len();
        let expected = &expected[rows.start * width..rows.end * width];
        let furthest = found
            .iter()
            .zip(expected)
            .map(|(one, other)| (one - other).abs());
        let furthest = furthest.fold(0.0, f32::max);
        assert!(
            furthest < TOLERANCE,
            "{}: {what} of {rows:?} is off by {furthest}",
            self.name
        );
    }
}

#[test]
fn whole_prompts_give_the_streams_and_logits_of_the_reference() {
    for golden in goldens() {
        for purpose in [Purpose::Frozen, Purpose::Inference] {
            let model = golden.model(purpose);
            let length = golden.ids.len();
            let mut rows = TokenRows::sequences(&golden.ids, length, &Device::Cpu).unwrap();
            let n_layers = model.config.n_layers;
            let mut recorder = Recorder::of(Site::all(n_layers).map(Location::Site));
            let logits = model.forward(&mut rows, &mut recorder).unwrap();
            let streams = recorder.into_values();
            for layer in 0..n_layers {
                let site = Location::Site(Site::before_attention(layer, n_layers));
                golden.compare(&format!("stream.{layer}"), &streams[&site], 0..length);
            }
            golden.compare("logits", &logits, 0..length);
        }
    }
}

#[test]
fn token_by_token_and_in_chunks_the_logits_are_the_same() {
    for golden in goldens() {
        let model = golden.model(Purpose::Inference);
        for chunk in [1, 16] {
            let mut cache = KvCache::new(&model.config, 1, golden.ids.len(), &Device::Cpu).unwrap();
            for start in (0..golden.ids.len()).step_by(chunk) {
                let end = (start + chunk).min(golden.ids.len());
                let at = (start..end).map(|position| CacheRow { slot: 0, position });
                let mut rows =
                    TokenRows::cached(&golden.ids[start..end], at.collect(), &mut cache).unwrap();
                let logits = model.forward(&mut rows, &mut NoTap).unwrap();
                golden.compare("logits", &logits, start..end);
            }
        }
    }
}

/// The gradient of the logits with respect to the stream, against finite differences: bridges are trained through
/// these models.
#[test]
fn gradients_flow_through_every_family() {
    for golden in goldens() {
        let model = golden.model(Purpose::Frozen);
        let length = 12;
        let ids = &golden.ids[..length];
        let n_layers = model.config.n_layers;
        let site = Site::before_attention(1, n_layers);
        let rows = || TokenRows::sequences(ids, length, &Device::Cpu).unwrap();
        let mut recorder = Recorder::of([Location::Site(site)]);
        model.forward(&mut rows(), &mut recorder).unwrap();
        let stream = recorder
            .into_values()
            .remove(&Location::Site(site))
            .unwrap();
        let loss = |stream: &Tensor| {
            let logits = model.tail(site, stream.clone(), &mut rows()).unwrap();
            logits
                .narrow(0, length - 1, 1)
                .unwrap()
                .sqr()
                .unwrap()
                .sum_all()
                .unwrap()
        };
        let variable = candle_core::Var::from_tensor(&stream).unwrap();
        let gradients = loss(variable.as_tensor()).backward().unwrap();
        let gradient = gradients.get(&variable).expect("a gradient");
        let direction = (0..stream.elem_count()).map(|index| (index as f32 * 1.7).sin());
        let direction = Tensor::from_iter(direction, &Device::Cpu).unwrap();
        let direction = direction.reshape(stream.shape()).unwrap();
        let slope = (gradient * &direction).unwrap().sum_all().unwrap();
        let slope = f64::from(slope.to_scalar::<f32>().unwrap());
        let step = 1e-2;
        let at = |by: f64| {
            let moved = (&stream + (&direction * by).unwrap()).unwrap();
            f64::from(loss(&moved).to_scalar::<f32>().unwrap())
        };
        let measured = (at(step) - at(-step)) / (2.0 * step);
        let scale = slope.abs().max(1.0);
        assert!(
            (slope - measured).abs() < 0.03 * scale,
            "{}: {slope} by gradient, {measured} by difference",
            golden.name
        );
    }
}
