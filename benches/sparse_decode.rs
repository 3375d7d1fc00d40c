//! Decoding at batch 1 on the CPU: our sparse columns with a key-value cache against the same model as dense
//! matrices through candle's `matmul`.
//!
//! The paper's shape: 8 layers, `d_model` 2048, `d_mlp` 8192, `d_head` 16, vocabulary 2048; 1 weight in 64 is not
//! zero, AbsTopK keeps a quarter at every node. Both run in this process, in turns, on the same tokens at the same
//! positions, with as many threads as `RAYON_NUM_THREADS` says. Times move with the machine; the ratio is the
//! result. The dense side uses our AbsTopK, which is faster than candle's sort: the ratio is of the rest.
//!
//! `RAYON_NUM_THREADS=1 cargo bench --bench sparse_decode -- [--json] [--rounds N] [--tokens N]`

mod paper;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use candle_core::{D, DType, Device, Result, Tensor};
use causeway::models::config::TransformerConfig;
use causeway::models::kv_cache::{CacheRow, KvCache};
use causeway::models::layers::Purpose;
use causeway::models::location::{Location, Node, NodeKind, Site};
use causeway::models::tap::{NoTap, Recorder};
use causeway::models::token_rows::TokenRows;
use causeway::models::transformer::Transformer;
use causeway::numerics::abs_top_k::abs_top_k;
use serde_json::json;

use paper::{ONE_IN, config, tensors};

/// The model as anyone would write it on candle, for one token at a time.
struct Dense<'a> {
    config: &'a TransformerConfig,
    tensors: &'a BTreeMap<String, Tensor>,
    /// `[heads, context, d_head]` of each layer.
    keys: Vec<Tensor>,
    values: Vec<Tensor>,
}

impl<'a> Dense<'a> {
    fn new(config: &'a TransformerConfig, tensors: &'a BTreeMap<String, Tensor>) -> Result<Self> {
        let shape = (config.n_heads, config.context_length, config.d_head);
        let empty = || -> Result<Vec<Tensor>> {
            (0..config.n_layers)
                .map(|_| Tensor::zeros(shape, DType::F32, &Device::Cpu))
                .collect()
        };
        Ok(Dense {
            config,
            tensors,
            keys: empty()?,
            values: empty()?,
        })
    }

    fn linear(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        let product = x.matmul(&self.tensors[&format!("{name}.weight")].t()?)?;
        match self.tensors.get(&format!("{name}.bias")) {
            Some(bias) => product.broadcast_add(bias),
            None => Ok(product),
        }
    }

    fn norm(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        candle_nn::ops::rms_norm(
            x,
            &self.tensors[&format!("{name}.weight")],
            self.config.norm.epsilon(),
        )
    }

    fn quarter(&self, x: &Tensor) -> Result<Tensor> {
        abs_top_k(x, x.dim(D::Minus1)? / 4)
    }

    /// The logits `[1, vocabulary]` of a token.
    fn step(&self, token: u32, position: usize) -> Result<Tensor> {
        let id = Tensor::new(&[token], &Device::Cpu)?;
        let mut h = self.tensors["transformer.wte.weight"].index_select(&id, 0)?;
        for layer in 0..self.config.n_layers {
            let at = |name: &str| format!("transformer.h.{layer}.{name}");
            let x = self.quarter(&self.norm(&at("ln_1"), &h)?)?;
            let y = self.attend(layer, &self.linear(&at("attn.c_attn"), &x)?, position)?;
            h = (h + self.quarter(&self.linear(&at("attn.c_proj"), &y)?)?)?;
            let x = self.quarter(&self.norm(&at("ln_2"), &h)?)?;
            let neurons = self.quarter(&self.linear(&at("mlp.c_fc"), &x)?.gelu_erf()?)?;
            h = (h + self.quarter(&self.linear(&at("mlp.c_proj"), &neurons)?)?)?;
        }
        let logits = self.linear("lm_head", &self.norm("transformer.ln_f", &h)?)?;
        logits.broadcast_add(&self.tensors["final_logits_bias"])
    }

    fn attend(&self, layer: usize, joint: &Tensor, position: usize) -> Result<Tensor> {
        let (heads, d_head) = (self.config.n_heads, self.config.d_head);
        let part = |index: usize| {
            let part = joint
                .narrow(1, index * heads * d_head, heads * d_head)?
                .contiguous()?;
            self.quarter(&part)?.reshape((heads, 1, d_head))
        };
        let q = part(0)?;
        self.keys[layer].slice_set(&part(1)?, 1, position)?;
        self.values[layer].slice_set(&part(2)?, 1, position)?;
        let keys = self.keys[layer].narrow(1, 0, position + 1)?;
        let values = self.values[layer].narrow(1, 0, position + 1)?;
        let scores = (q.matmul(&keys.t()?)? / (d_head as f64).sqrt())?;
        let weights = candle_nn::ops::softmax_last_dim(&scores)?;
        weights.matmul(&values)?.reshape((1, heads * d_head))
    }
}

/// Our model, one token at a time.
struct Sparse {
    model: Transformer,
    cache: KvCache,
}

impl Sparse {
    fn step(&mut self, token: u32, position: usize) -> Result<Tensor> {
        let at = vec![CacheRow { slot: 0, position }];
        self.model.forward(
            &mut TokenRows::cached(&[token], at, &mut self.cache)?,
            &mut NoTap,
        )
    }

    /// The bytes of weights that one token reads: what `Columns` counts for the inputs that are active in it.
    fn bytes_touched(&mut self, token: u32, position: usize) -> Result<usize> {
        let n_layers = self.model.config.n_layers;
        let mut recorder = Recorder::of(Location::all(n_layers));
        let at = vec![CacheRow { slot: 0, position }];
        self.model.forward(
            &mut TokenRows::cached(&[token], at, &mut self.cache)?,
            &mut recorder,
        )?;
        // In the order of `linears`: q, k, v and the output of attention, both of the MLP; the unembedding last,
        // whose norm leaves zeros zero.
        let kinds = [
            NodeKind::AttnIn,
            NodeKind::AttnIn,
            NodeKind::AttnIn,
            NodeKind::AttnY,
            NodeKind::MlpIn,
            NodeKind::PostAct,
        ];
        let nodes =
            (0..n_layers).flat_map(|layer| kinds.map(|kind| Location::Node(Node { layer, kind })));
        let places = nodes.chain(Site::new(2 * n_layers, n_layers).map(Location::Site));
        let mut bytes = 0;
        for (linear, place) in self.model.linears().zip(places) {
            let (Some(columns), Some(input)) = (linear.columns(), recorder.get(place)) else {
                candle_core::bail!("{place} feeds no columns")
            };
            let input = input.flatten_all()?.to_vec1::<f32>()?;
            bytes +=
                columns.bytes_touched((0..input.len()).filter(|&channel| input[channel] != 0.0));
        }
        Ok(bytes)
    }
}

/// Seconds a token took in each round.
#[derive(Default)]
struct Times(Vec<f64>);

impl Times {
    fn add(&mut self, elapsed: Duration, tokens: usize) {
        self.0.push(elapsed.as_secs_f64() / tokens as f64);
    }

    fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    }
}

fn option(arguments: &[String], name: &str, default: usize) -> usize {
    let given = arguments.iter().position(|argument| argument == name);
    let value = given.and_then(|index| arguments.get(index + 1)?.parse().ok());
    value.unwrap_or(default)
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (rounds, tokens) = (
        option(&arguments, "--rounds", 7),
        option(&arguments, "--tokens", 16),
    );
    let config = config();
    if rounds == 0 || tokens == 0 || 1 + rounds * tokens > config.context_length {
        candle_core::bail!(
            "{rounds} rounds of {tokens} tokens and one before do not fit the context of 256"
        )
    }
    let tensors = tensors(&config)?;
    let dense = Dense::new(&config, &tensors)?;
    let mut sparse = Sparse {
        model: Transformer::new(config.clone(), &tensors, Purpose::Inference)?,
        cache: KvCache::new(&config, 1, config.context_length, &Device::Cpu)
            .expect("room in memory"),
    };
    let token = |position: usize| ((position * 7919 + 13) % config.vocab_size) as u32;

    // The first token warms both up and shows that they are one model.
    let (ours, theirs) = (sparse.step(token(0), 0)?, dense.step(token(0), 0)?);
    let difference = (&ours - &theirs)?.abs()?.max_all()?.to_scalar::<f32>()?;
    let size = theirs.abs()?.max_all()?.to_scalar::<f32>()?;
    if difference > 1e-3 * size {
        candle_core::bail!("the two disagree by {difference} in logits of up to {size}")
    }

    let (mut sparse_times, mut dense_times) = (Times::default(), Times::default());
    for round in 0..rounds {
        let positions = || 1 + round * tokens..1 + (round + 1) * tokens;
        let started = Instant::now();
        for position in positions() {
            sparse.step(token(position), position)?;
        }
        sparse_times.add(started.elapsed(), tokens);
        let started = Instant::now();
        for position in positions() {
            dense.step(token(position), position)?;
        }
        dense_times.add(started.elapsed(), tokens);
    }
    let last = rounds * tokens;
    let sparse_bytes = sparse.bytes_touched(token(last), last)?;
    let weights: usize = tensors.values().map(Tensor::elem_count).sum();
    let dense_bytes = 4 * (weights - tensors["transformer.wte.weight"].elem_count());
    let (sparse_time, dense_time) = (sparse_times.median(), dense_times.median());
    let report = json!({
        "threads": rayon::current_num_threads(),
        "weights": weights,
        "tokens": rounds * tokens,
        "sparse_tokens_per_second": 1.0 / sparse_time,
        "dense_tokens_per_second": 1.0 / dense_time,
        "ratio": dense_time / sparse_time,
        "sparse_bytes_per_token": sparse_bytes,
        "dense_bytes_per_token": dense_bytes,
        "sparse_bytes_per_second": sparse_bytes as f64 / sparse_time,
        "dense_bytes_per_second": dense_bytes as f64 / dense_time,
        "largest_logit_difference": difference,
    });
    if arguments.iter().any(|argument| argument == "--json") {
        println!("{report}");
        return Ok(());
    }
    println!(
        "{weights} weights, 1 in {ONE_IN} not zero, {} threads",
        rayon::current_num_threads()
    );
    let line = |name: &str, time: f64, bytes: usize| {
        let (rate, size, bandwidth) = (1.0 / time, bytes as f64 / 1e6, bytes as f64 / time / 1e9);
        println!(
            "{name:<22}{rate:>9.1} tokens/s {:>9.2} ms {size:>8.1} MB/token {bandwidth:>6.1} GB/s",
            1e3 * time
        );
    };
    line("sparse columns", sparse_time, sparse_bytes);
    line("dense, candle matmul", dense_time, dense_bytes);
    println!(
        "ratio {:.1}; logits differ by at most {difference:.1e} of {size:.1}",
        dense_time / sparse_time
    );
    Ok(())
}
