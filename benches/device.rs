//! What a device takes for decoding, for edits and for AbsTopK, as lines of JSON that `benches/peers/device.py` compares
//! with PyTorch on the same machine and weights.
//!
//! `cargo bench --bench device -- write DIR`: a random model of the paper's shape, 1 weight in 64 not zero.
//! `... -- decode DIR DEVICE [ROWS] [DTYPE]`: seconds of a step of so many rows, each in a sequence of its own, and the
//! bytes of weights that a step reads at least.
//! `... -- edits DEVICE [ROWS]`: tokens a second of so many sequences of the shipped pair's dense model, as they are and
//! with an edit each that no other has.
//! `... -- top_k DEVICE [ROWS] [WIDTH]`: seconds of AbsTopK that keeps a quarter.
//!
//! DEVICE is `cpu` or `cuda:N` (with `--features cuda`). A step ends when its logits are on the host.

mod paper;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use candle_core::{DType, Tensor};
use causeway::features::pair::Pair;
use causeway::generation::capacity::Capacity;
use causeway::generation::request::{Delta, EngineError, Generation, GenerationRequest};
use causeway::generation::sampling::Sampling;
use causeway::generation::scheduler::{Observer, Scheduler};
use causeway::models::kv_cache::{CacheRow, KvCache};
use causeway::models::layers::Purpose;
use causeway::models::layout::{ModelFiles, ReadOptions};
use causeway::models::model::placed;
use causeway::models::tap::NoTap;
use causeway::models::token_rows::TokenRows;
use causeway::models::transformer::Transformer;
use causeway::numerics::abs_top_k::abs_top_k;
use causeway::numerics::device::{DeviceChoice, MatrixType, Placement};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use serde_json::json;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const WARM_UP: usize = 8;
const STEPS: usize = 64;
const ROUNDS: usize = 7;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    let given = |index: usize| arguments.get(index).map(String::as_str);
    let number = |index: usize, default: usize| -> Outcome<usize> {
        Ok(given(index).map(str::parse).transpose()?.unwrap_or(default))
    };
    let device =
        |index: usize| -> Outcome<DeviceChoice> { Ok(given(index).unwrap_or("cpu").parse()?) };
    match (given(0), given(1)) {
        (Some("write"), Some(directory)) => write(Path::new(directory)),
        (Some("decode"), Some(directory)) => {
            let dtype = given(4).unwrap_or("float32").parse()?;
            decode(Path::new(directory), device(2)?, number(3, 1)?, dtype)
        }
        (Some("edits"), _) => edits(device(1)?, number(2, 256)?),
        (Some("top_k"), _) => top_k(device(1)?, number(2, 256)?, number(3, 8192)?),
        _ => Err("write DIR, decode DIR DEVICE, edits DEVICE or top_k DEVICE".into()),
    }
}

fn write(directory: &Path) -> Outcome<()> {
    let config = paper::config();
    let files = ModelFiles {
        tensors: paper::tensors(&config)?,
        config,
        quantised: Default::default(),
        tokenizer: None,
    };
    files.write(directory)?;
    // With all zeros, as whoever else reads it expects.
    let tensors: HashMap<_, _> = files.tensors.into_iter().collect();
    candle_core::safetensors::save(&tensors, directory.join("model.safetensors"))?;
    Ok(())
}

/// The fastest and the median of the rounds, in seconds.
fn timed(mut round: impl FnMut() -> Outcome<usize>) -> Outcome<(f64, f64)> {
    let mut seconds = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        let steps = round()?;
        seconds.push(begun.elapsed().as_secs_f64() / steps as f64);
    }
    seconds.sort_by(f64::total_cmp);
    Ok((seconds[0], seconds[ROUNDS / 2]))
}

fn decode(directory: &Path, device: DeviceChoice, rows: usize, dtype: MatrixType) -> Outcome<()> {
    let files = ModelFiles::read(directory)?;
    let on = device.open()?;
    let purpose = match dtype {
        MatrixType::Float32 => Purpose::Inference,
        MatrixType::Bfloat16 => Purpose::InferenceInBf16,
    };
    let model = Transformer::new(
        files.config.clone(),
        &*placed(&files.tensors, &on)?,
        purpose,
    )?;
    let vocabulary = model.config.vocab_size;
    let capacity = model.config.context_length;
    let mut cache = KvCache::new(&model.config, rows, capacity, &on)?;
    let steps = STEPS.min((capacity - WARM_UP) / ROUNDS);
    let mut position = 0;
    let mut step = |count: usize| -> Outcome<usize> {
        for _ in 0..count {
            let ids: Vec<u32> = (0..rows)
                .map(|row| ((position * 7919 + row * 31 + 13) % vocabulary) as u32)
                .collect();
            let at = (0..rows).map(|slot| CacheRow { slot, position });
            let mut fed = TokenRows::cached(&ids, at.collect(), &mut cache)?;
            model.forward(&mut fed, &mut NoTap)?.to_vec2::<f32>()?;
            position += 1;
        }
        Ok(count)
    };
    step(WARM_UP)?;
    let (fastest, median) = timed(|| step(steps))?;
    // Of the embedding a step reads a row a token.
    let matrices = files
        .tensors
        .iter()
        .filter(|(name, _)| !name.contains("wte"));
    let mut bytes = 0;
    for (_, tensor) in matrices {
        let values = tensor
            .flatten_all()?
            .to_dtype(DType::F32)?
            .to_vec1::<f32>()?;
        let nonzero = values.iter().filter(|value| **value != 0.0).count();
        bytes += match (50 * nonzero < 3 * values.len(), dtype) {
            // A number and its place, by rows or by columns.
            (true, _) => 6 * nonzero,
            (false, MatrixType::Float32) => 4 * values.len(),
            (false, MatrixType::Bfloat16) => 2 * values.len(),
        };
    }
    println!(
        "{}",
        json!({"what": "decode", "device": device.to_string(), "rows": rows, "dtype": dtype.to_string(), "fastest": fastest,
            "median": median, "bytes": bytes, "bytes_per_second": bytes as f64 / median})
    );
    Ok(())
}

fn top_k(device: DeviceChoice, rows: usize, width: usize) -> Outcome<()> {
    let on = device.open()?;
    let mut rng = SmallRng::seed_from_u64(2);
    let values: Vec<f32> = (0..rows * width)
        .map(|_| rng.random_range(-1.0..1.0))
        .collect();
    let x = Tensor::from_vec(values, (rows, width), &on)?;
    // Told when the last of them has a number on the host.
    let round = || -> Outcome<usize> {
        let mut last = x.clone();
        for _ in 0..STEPS {
            last = abs_top_k(&x, width / 4)?;
        }
        last.narrow(0, 0, 1)?
            .narrow(1, 0, 1)?
            .flatten_all()?
            .to_vec1::<f32>()?;
        Ok(STEPS)
    };
    round()?;
    let (fastest, median) = timed(round)?;
    println!(
        "{}",
        json!({"what": "top_k", "device": device.to_string(), "rows": rows, "width": width, "fastest": fastest,
            "median": median})
    );
    Ok(())
}

struct Answer(Arc<Mutex<Option<Result<Generation, EngineError>>>>);

impl Observer for Answer {
    fn more(&mut self, _: Delta) -> bool {
        true
    }

    fn waits(&self) -> bool {
        true
    }

    fn done(self: Box<Self>, answer: Result<Generation, EngineError>) {
        *self.0.lock().unwrap_or_else(|held| held.into_inner()) = Some(answer);
    }
}

/// Tokens a second of requests that are answered together.
fn rate(requests: Vec<GenerationRequest>) -> Outcome<f64> {
    let mut scheduler = Scheduler::new(Capacity {
        sequences: requests.len(),
        waiting: requests.len(),
        prefix_cache_mib: 0,
        ..Capacity::default()
    });
    let begun = Instant::now();
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
    let elapsed = begun.elapsed().as_secs_f64();
    let mut tokens = 0;
    for answer in answers {
        let taken = answer
            .lock()
            .unwrap_or_else(|held| held.into_inner())
            .take();
        tokens += taken
            .ok_or("a request without an answer")??
            .completion_tokens;
    }
    Ok(tokens as f64 / elapsed)
}

fn edits(device: DeviceChoice, rows: usize) -> Outcome<()> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("bridges/tinypython");
    let options = ReadOptions {
        placement: Placement::both(device),
        ..ReadOptions::UNBOUNDED
    };
    let pair = Arc::new(Pair::read_within(&directory, options)?);
    let width = pair.dense.config.d_model;
    let mut rng = SmallRng::seed_from_u64(3);
    let mut requests = |edited: bool| -> Outcome<Vec<GenerationRequest>> {
        (0..rows)
            .map(|row| {
                let vector: Vec<f32> = (0..width).map(|_| rng.random_range(-1.0..1.0)).collect();
                let steer = json!({
                    "edits": [{"feature": {"site": "2.resid_mid", "vector": vector}, "op": "add", "value": 1e-3}],
                    "variants": ["steered"],
                });
                Ok(GenerationRequest {
                    pair: Some(pair.clone()),
                    prompts: vec![pair.tokenizer().encode(&format!("x{row} = "))?],
                    max_tokens: 64,
                    sampling: Sampling::greedy(),
                    steer: edited.then(|| serde_json::from_value(steer)).transpose()?,
                    ..GenerationRequest::of_one_token(pair.dense.clone())
                })
            })
            .collect()
    };
    rate(requests(false)?)?;
    let mut ratios = Vec::new();
    let (mut plain, mut edited) = (0.0, 0.0);
    for round in 0..ROUNDS {
        // Which goes first changes every time.
        let mut one = |edits: bool| -> Outcome<f64> { rate(requests(edits)?) };
        let (first, second) = (one(round % 2 == 0)?, one(round % 2 != 0)?);
        (edited, plain) = match round % 2 == 0 {
            true => (first, second),
            false => (second, first),
        };
        ratios.push(edited / plain);
    }
    ratios.sort_by(f64::total_cmp);
    println!(
        "{}",
        json!({"what": "edits", "device": device.to_string(), "rows": rows, "plain": plain, "edited": edited,
            "ratio": ratios[ROUNDS / 2], "lowest": ratios[0], "highest": ratios[ROUNDS - 1]})
    );
    Ok(())
}
