//! The engine as it is on a device, without one: its kernels' own text is run by the emulation of `tests/kernels`, and all
//! that surrounds them (what they are given, the cache in the device's memory, rows put back) is what a device would have.
//! Where `CAUSEWAY_TEST_DEVICE` names a device, that one is taken.

#[path = "device/edits.rs"]
mod edits;
#[path = "kernels/emulation.rs"]
#[allow(dead_code)]
mod emulation;
#[path = "device/steering.rs"]
mod steering;
#[path = "device/training.rs"]
mod training;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use candle_core::{Device, Tensor, Var};
use causeway::features::pair::Pair;
use causeway::generation::capacity::Capacity;
use causeway::generation::request::{EngineError, Generation, GenerationRequest};
use causeway::generation::sampling::Sampling;
use causeway::generation::scheduler::{Observer, Scheduler};
use causeway::models::kv_cache::{CacheRow, KvCache};
use causeway::models::layers::{Linear, Purpose};
use causeway::models::layout::{ModelFiles, ReadOptions};
use causeway::models::location::Location;
use causeway::models::model::{LoadedModel, placed};
use causeway::models::tap::{NoTap, ResidualTap};
use causeway::models::token_rows::TokenRows;
use causeway::models::transformer::Transformer;
use causeway::numerics::columns::StoredMatrix;
use causeway::numerics::device::{DeviceChoice, Placement};
use causeway::numerics::kernels::launch::{HostKernels, HostLaunch, stand_in};
use serde_json::{Value, json};

use self::emulation::{Emulation, Launch, Order};

/// Runs launches one after another, and counts them.
struct Emulated {
    driver: Mutex<Emulation>,
    launched: Arc<Mutex<BTreeMap<String, usize>>>,
}

impl HostKernels for Emulated {
    fn run(&self, launch: &HostLaunch) -> candle_core::Result<Vec<Vec<u8>>> {
        *self
            .launched
            .lock()
            .unwrap()
            .entry(launch.kernel.clone())
            .or_default() += 1;
        let mut driver = self.driver.lock().unwrap();
        let left = driver.run_once(&Launch::from(launch), Order::Forwards, 0);
        Ok(left.unwrap_or_else(|| panic!("the driver ended in {}", launch.kernel)))
    }
}

/// Which kernels were launched; a device of its own does not tell.
#[derive(Debug)]
struct Launched(Option<BTreeSet<String>>);

impl Launched {
    fn contains(&self, kernel: &str) -> bool {
        self.0.as_ref().is_none_or(|names| names.contains(kernel))
    }
}

static PLACE: Mutex<DeviceChoice> = Mutex::new(DeviceChoice::Cpu);

/// Where the work of [`both`] is to be done now.
fn placement() -> Placement {
    Placement::both(*PLACE.lock().unwrap_or_else(|held| held.into_inner()))
}

fn device() -> Device {
    placement().dense.open().unwrap()
}

fn go_to(choice: DeviceChoice) {
    *PLACE.lock().unwrap_or_else(|held| held.into_inner()) = choice;
}

/// What `work` returns with the CPU's functions, and with kernels in their place; and the kernels that were launched.
fn both<T>(work: impl Fn() -> T) -> (T, T, Launched) {
    // What stands in for a device does so for the whole process.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(|held| held.into_inner());
    go_to(DeviceChoice::Cpu);
    let on_cpu = work();
    if let Ok(named) = std::env::var("CAUSEWAY_TEST_DEVICE") {
        go_to(named.parse().unwrap());
        let on_device = work();
        return (on_cpu, on_device, Launched(None));
    }
    let launched = Arc::default();
    stand_in(Some(Box::new(Emulated {
        driver: Mutex::new(Emulation::start()),
        launched: Arc::clone(&launched),
    })));
    let on_device = work();
    stand_in(None);
    let launched = launched.lock().unwrap().keys().cloned().collect();
    (on_cpu, on_device, Launched(Some(launched)))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn furthest(one: &[f32], other: &[f32]) -> f32 {
    assert_eq!(one.len(), other.len());
    let differences = one
        .iter()
        .zip(other)
        .map(|(one, other)| (one - other).abs());
    differences.fold(0.0, f32::max)
}

/// A model where the work is to be done.
fn model(files: &ModelFiles, purpose: Purpose) -> Transformer {
    let tensors = placed(&files.tensors, &device()).unwrap();
    Transformer::new(files.config.clone(), &tensors, purpose).unwrap()
}

/// Feeds a sequence in chunks over a cache: `[tokens, vocabulary]`, row after row.
fn logits(files: &ModelFiles, ids: &[u32], chunk: usize) -> Vec<f32> {
    let model = model(files, Purpose::Inference);
    let mut cache = KvCache::new(&model.config, 2, ids.len(), model.device()).unwrap();
    let mut all = Vec::new();
    for start in (0..ids.len()).step_by(chunk) {
        let end = (start + chunk).min(ids.len());
        let at = (start..end).map(|position| CacheRow { slot: 1, position });
        let mut rows = TokenRows::cached(&ids[start..end], at.collect(), &mut cache).unwrap();
        let logits = model.forward(&mut rows, &mut NoTap).unwrap();
        all.extend(logits.flatten_all().unwrap().to_vec1::<f32>().unwrap());
    }
    all
}

#[test]
fn every_family_has_the_same_logits_by_kernels() {
    let folders = std::fs::read_dir(root().join("tests/golden/families")).unwrap();
    let mut folders: Vec<PathBuf> = folders.map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    let mut launched: Option<BTreeSet<String>> = Some(BTreeSet::new());
    for folder in folders {
        let files = ModelFiles::read(&folder).unwrap();
        let stored =
            candle_core::safetensors::load(folder.join("expected.safetensors"), &Device::Cpu);
        let ids = stored.unwrap().remove("ids").unwrap();
        let ids: Vec<i32> = ids.to_vec1().unwrap();
        let ids: Vec<u32> = ids.into_iter().map(|id| id as u32).collect();
        let (on_cpu, on_device, kernels) = both(|| logits(&files, &ids, 24));
        let difference = furthest(&on_cpu, &on_device);
        assert!(difference < 1e-4, "{}: {difference}", folder.display());
        launched = launched.zip(kernels.0).map(|(mut all, own)| {
            all.extend(own);
            all
        });
    }
    let launched = Launched(launched);
    for kernel in ["attention_f32", "cache_store_f32", "norm_f32", "rotary_f32"] {
        assert!(
            launched.contains(kernel),
            "{kernel} is not among {launched:?}"
        );
    }
}

/// A sequence that is longer than a chunk of attention is divided between blocks where there are few.
#[test]
fn long_sequences_are_divided_between_blocks() {
    let folder = root().join("bridges/tinypython/dense");
    let files = ModelFiles::read(&folder).unwrap();
    let mut config = files.config.clone();
    config.context_length = 300;
    // The positions behind the model's own context are its first ones again.
    let mut tensors = files.tensors.clone();
    if let Some(table) = tensors.get("transformer.wpe.weight").cloned() {
        let longer = Tensor::cat(&[&table, &table.narrow(0, 0, 300 - 256).unwrap()], 0).unwrap();
        tensors.insert("transformer.wpe.weight".to_owned(), longer);
    }
    let files = ModelFiles {
        config,
        tensors,
        ..files
    };
    let ids: Vec<u32> = (0..262).map(|n| n * 37 % 2048).collect();
    let (on_cpu, on_device, launched) = both(|| {
        let (first, last) = ids.split_at(260);
        let model = model(&files, Purpose::Inference);
        let mut cache = KvCache::new(&model.config, 1, 300, model.device()).unwrap();
        let mut feed = |ids: &[u32], from: usize| {
            let at = (from..from + ids.len()).map(|position| CacheRow { slot: 0, position });
            let mut rows = TokenRows::cached(ids, at.collect(), &mut cache).unwrap();
            let logits = model.forward(&mut rows, &mut NoTap).unwrap();
            logits.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        feed(first, 0);
        feed(last, 260)
    });
    let difference = furthest(&on_cpu, &on_device);
    assert!(difference < 1e-3, "{difference}");
    for kernel in ["attention_chunk_f32", "attention_join_f32"] {
        assert!(
            launched.contains(kernel),
            "{kernel} is not among {launched:?}"
        );
    }
}

/// Blocks of the cache are what they are on the CPU, and go back into another slot.
#[test]
fn blocks_of_a_devices_cache_are_read_and_written() {
    let folder = root().join("tests/golden/families");
    let folder = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .min();
    let files = ModelFiles::read(&folder.unwrap()).unwrap();
    let (on_cpu, on_device, _) = both(|| {
        let model = model(&files, Purpose::Inference);
        let mut cache = KvCache::empty(&model.config, 70, model.device());
        let ids: Vec<u32> = (0..66).map(|n| n % 7).collect();
        // Slots are added while others are in use.
        cache.add_slot().unwrap();
        let at = (0..66).map(|position| CacheRow { slot: 0, position });
        let mut rows = TokenRows::cached(&ids, at.collect(), &mut cache).unwrap();
        model.forward(&mut rows, &mut NoTap).unwrap();
        cache.add_slot().unwrap();
        cache.add_slot().unwrap();
        let first = cache.read_block(0, 0..64).unwrap().unwrap();
        let second = cache.read_block(0, 64..66).unwrap().unwrap();
        cache.write_block(2, 0..64, &first).unwrap();
        cache.write_block(2, 64..65, &second).unwrap();
        let mut rows = TokenRows::cached(
            &[3],
            vec![CacheRow {
                slot: 2,
                position: 65,
            }],
            &mut cache,
        );
        let logits = model.forward(rows.as_mut().unwrap(), &mut NoTap).unwrap();
        let logits = logits.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        (first, second, logits)
    });
    assert!(furthest(&on_cpu.0, &on_device.0) < 1e-4);
    assert!(furthest(&on_cpu.1, &on_device.1) < 1e-4);
    assert!(furthest(&on_cpu.2, &on_device.2) < 1e-4);
}

struct Answer(Arc<Mutex<Option<Result<Generation, EngineError>>>>);

impl Observer for Answer {
    fn more(&mut self, _: causeway::generation::request::Delta) -> bool {
        true
    }

    fn waits(&self) -> bool {
        true
    }

    fn done(self: Box<Self>, answer: Result<Generation, EngineError>) {
        *self.0.lock().unwrap() = Some(answer);
    }
}

/// Answers all requests together.
fn answered(requests: Vec<GenerationRequest>) -> Vec<Generation> {
    let mut scheduler = Scheduler::new(Capacity::default());
    let answers: Vec<_> = requests
        .into_iter()
        .map(|request| {
            let answer = Arc::default();
            scheduler.submit(request, Box::new(Answer(Arc::clone(&answer))));
            answer
        })
        .collect();
    while !scheduler.is_idle() {
        scheduler.step();
    }
    let taken = answers.iter().map(|answer| answer.lock().unwrap().take());
    taken
        .map(|answer| answer.expect("an answer").unwrap())
        .collect()
}

fn request(
    pair: &Arc<Pair>,
    model: &Arc<LoadedModel>,
    prompt: &str,
    steer: Option<Value>,
) -> GenerationRequest {
    GenerationRequest {
        pair: Some(pair.clone()),
        prompts: vec![pair.tokenizer().encode(prompt).unwrap()],
        max_tokens: 3,
        logprobs: Some(1),
        // Controls are drawn from it.
        sampling: Sampling {
            seed: Some(7),
            ..Sampling::greedy()
        },
        steer: steer.map(|steer| serde_json::from_value(steer).unwrap()),
        ..GenerationRequest::of_one_token(model.clone())
    }
}

/// The shipped pair: both models, edits over the bridge and natively, with their controls, in one batch.
#[test]
fn steered_answers_are_those_of_the_cpu() {
    let steer = |feature: &str| {
        json!({
            "edits": [{"feature": feature, "op": "ablate"}],
            "variants": ["steered", "baseline", "random"],
            "return": ["receipt"],
        })
    };
    let (on_cpu, on_device, launched) = both(|| {
        let pair = Arc::new(
            Pair::read_within(
                &root().join("bridges/tinypython"),
                ReadOptions {
                    placement: placement(),
                    ..ReadOptions::UNBOUNDED
                },
            )
            .unwrap(),
        );
        let feature = pair.features.keys().next().expect("a feature").clone();
        let prompts = ["print(\"hello", "for i in range("];
        // One whose tokens the device draws, from the probabilities.
        let drawn = GenerationRequest {
            logprobs: None,
            sampling: Sampling {
                temperature: 0.8,
                ..request(&pair, &pair.dense, prompts[1], None).sampling
            },
            ..request(&pair, &pair.dense, prompts[1], None)
        };
        answered(vec![
            request(&pair, &pair.dense, prompts[0], Some(steer(&feature))),
            request(&pair, &pair.sparse, prompts[0], Some(steer(&feature))),
            request(&pair, &pair.dense, prompts[1], None),
            drawn,
        ])
    });
    assert_eq!(on_cpu.len(), on_device.len());
    for (on_cpu, on_device) in on_cpu.iter().zip(&on_device) {
        assert_eq!(on_cpu.choices.len(), on_device.choices.len());
        for (one, other) in on_cpu.choices.iter().zip(&on_device.choices) {
            assert_eq!(one.text, other.text);
            assert_eq!(one.variant, other.variant);
            assert_eq!(one.receipt.is_some(), other.receipt.is_some());
            let logprobs = |choice: &causeway::generation::request::Choice| -> Vec<f32> {
                choice
                    .tokens
                    .iter()
                    .filter_map(|token| token.logprob)
                    .collect()
            };
            assert!(furthest(&logprobs(one), &logprobs(other)) < 1e-3);
        }
    }
    for kernel in [
        "abs_top_k_f32",
        "attention_f32",
        "cache_store_f32",
        "dense_decode_f32",
        "dense_tile_f32",
        "draw_f32",
        "norm_f32",
        "norm_top_k_product_f32",
        "row_edits_f32",
        "sparse_product_f32",
    ] {
        assert!(
            launched.contains(kernel),
            "{kernel} is not among {launched:?}"
        );
    }
}

/// Rows of both shipped models, each the first of its sequence: `[rows][vocabulary]`.
fn first_rows(model: &Transformer, ids: &[u32], tap: &mut dyn ResidualTap) -> Vec<Vec<f32>> {
    let mut cache = KvCache::new(&model.config, ids.len(), 64, model.device()).unwrap();
    let at = (0..ids.len()).map(|slot| CacheRow { slot, position: 0 });
    let mut rows = TokenRows::cached(ids, at.collect(), &mut cache).unwrap();
    model.forward(&mut rows, tap).unwrap().to_vec2().unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn a_row_has_the_same_bits_alone_and_among_others() {
    for kind in ["dense", "sparse"] {
        let files = ModelFiles::read(&root().join("bridges/tinypython").join(kind)).unwrap();
        let ids: Vec<u32> = (0..40).map(|n| n * 37 % 2048).collect();
        let (on_cpu, on_device, launched) = both(|| {
            let model = model(&files, Purpose::Inference);
            let alone = first_rows(&model, &ids[33..34], &mut NoTap);
            // A tap that looks everywhere lets nothing be done in one launch.
            let watched = first_rows(&model, &ids[33..34], &mut Everywhere);
            (first_rows(&model, &ids, &mut NoTap), alone, watched)
        });
        for (one, other) in on_cpu.0.iter().zip(&on_device.0) {
            assert!(furthest(one, other) < 1e-3, "{kind}");
        }
        assert_eq!(bits(&on_device.1[0]), bits(&on_device.0[33]), "{kind}");
        assert_eq!(bits(&on_device.2[0]), bits(&on_device.1[0]), "{kind}");
        let expected = match kind {
            "dense" => "dense_tile_f32",
            _ => "norm_top_k_product_f32",
        };
        assert!(launched.contains(expected), "{launched:?}");
    }
}

/// Who asks for gradients through a model that is served gets them.
#[test]
fn gradients_go_through_served_models() {
    for kind in ["dense", "sparse"] {
        let files = ModelFiles::read(&root().join("bridges/tinypython").join(kind)).unwrap();
        let (on_cpu, on_device, _) = both(|| {
            let model = model(&files, Purpose::Inference);
            let width = model.config.d_model;
            let values: Vec<f32> = (0..3 * width).map(|n| (n as f32 * 0.37).sin()).collect();
            let stream = Tensor::from_vec(values, (3, width), &device()).unwrap();
            let stream = Var::from_tensor(&stream).unwrap();
            let ids = Tensor::new(&[1u32, 2, 3], &device()).unwrap();
            let logits = model.unembed(stream.as_tensor(), &ids).unwrap();
            let loss = logits.narrow(1, 5, 3).unwrap().sum_all().unwrap();
            let gradients = loss.backward().unwrap();
            let gradient = gradients.get(&stream).expect("a gradient");
            gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        });
        assert!(on_cpu.iter().any(|value| value.abs() > 1e-3), "{kind}");
        assert!(furthest(&on_cpu, &on_device) < 1e-4, "{kind}");
    }
}

struct Everywhere;

impl ResidualTap for Everywhere {
    fn visit(&mut self, _: Location, value: Tensor) -> candle_core::Result<Tensor> {
        Ok(value)
    }
}

/// Matrices in bfloat16 are read by the same kernels; many rows are rounded too.
#[test]
fn matrices_may_be_bfloat16() {
    let files = ModelFiles::read(&root().join("bridges/tinypython/dense")).unwrap();
    let ids: Vec<u32> = (0..40).map(|n| n * 37 % 2048).collect();
    let (exact, rounded, launched) = both(|| {
        let purpose = Purpose::InferenceInBf16;
        let model = model(&files, purpose);
        let few = first_rows(&model, &ids[..3], &mut NoTap);
        let alone = first_rows(&model, &ids[2..3], &mut NoTap);
        (few, alone, first_rows(&model, &ids, &mut NoTap))
    });
    assert_eq!(bits(&rounded.1[0]), bits(&rounded.0[2]));
    let worst = |one: &[Vec<f32>], other: &[Vec<f32>]| {
        let rows = one.iter().zip(other);
        rows.map(|(one, other)| furthest(one, other))
            .fold(0.0, f32::max)
    };
    let (few, many) = (worst(&exact.0, &rounded.0), worst(&exact.2, &rounded.2));
    assert!(few > 1e-4 && few < 0.3, "{few}");
    assert!(many > 1e-4 && many < 0.5, "{many}");
    assert!(launched.contains("dense_decode_bf16"), "{launched:?}");
}

/// A sparse layer gives a row the same bits by itself and among others, and the CPU's numbers.
#[test]
fn sparse_layers_are_those_of_the_cpu_and_the_same_in_a_batch() {
    let (inputs, outputs, rows) = (300, 1030, 40);
    let noise = |n: usize| ((n * 7919 % 2003) as f32 / 1000.0 - 1.0).sin();
    let weight = |n: usize| {
        if (n * 31).is_multiple_of(17) {
            noise(n)
        } else {
            0.0
        }
    };
    let weight: Vec<f32> = (0..inputs * outputs).map(weight).collect();
    let bias: Vec<f32> = (0..outputs).map(noise).collect();
    let x: Vec<f32> = (0..inputs * rows).map(|n| noise(n + 5)).collect();
    let (on_cpu, on_device, launched) = both(|| {
        let tensor = |values: &[f32], shape: (usize, usize)| {
            Tensor::from_slice(values, shape, &device()).unwrap()
        };
        let stored = StoredMatrix::Plain(tensor(&weight, (outputs, inputs)));
        let bias = Tensor::new(bias.as_slice(), &device()).unwrap();
        let layer = Linear::new(stored, Some(bias), Purpose::Inference).unwrap();
        let forward = |x: Tensor| {
            let y = layer.forward(&x).unwrap();
            y.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let x = tensor(&x, (rows, inputs));
        let alone = forward(x.narrow(0, 33, 1).unwrap());
        (forward(x), alone, layer.weights_of_output(1029).unwrap())
    });
    assert!(furthest(&on_cpu.0, &on_device.0) < 1e-4);
    assert_eq!(
        bits(&on_device.1),
        bits(&on_device.0[33 * outputs..][..outputs])
    );
    assert_eq!(on_cpu.2, on_device.2);
    for kernel in [
        "norm_top_k_product_f32",
        "transpose_f32",
        "sparse_product_f32",
    ] {
        assert!(
            launched.contains(kernel),
            "{kernel} is not among {launched:?}"
        );
    }
}
