//! A small random pair: a LayerNorm dense model, a sparse one with every switch on, a bridge, features.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, LazyLock};

use candle_core::{Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use serde_json::{Value, json};

use crate::bridge::Bridge;
use crate::bridge::pair;
use crate::bridge::record::{BridgeRecord, SiteRecord};
use crate::features::pair::Pair;
use crate::features::reference::{LocationStatistics, ReferenceStatistics};
use crate::features::registry::Feature;
use crate::generation::request::{Choice, EngineError, Generation, GenerationRequest};
use crate::generation::sampling::Sampling;
use crate::generation::scheduler::generate;
use crate::models::config::{
    Activation, ActiveLocation, Norm, Positions, ResidualActivation, TransformerConfig,
};
use crate::models::layout::ModelFiles;
use crate::models::location::{Location, Site};
use crate::models::model::{LoadedModel, ModelKind, fingerprint};
use crate::models::tensor_names::tensor_shapes;
use crate::models::tokenizer::{Tokenizer, train_bpe};
use crate::numerics::device::Placement;

pub const LAYERS: usize = 2;
pub const CONTEXT: usize = 24;
pub const D_DENSE: usize = 16;
pub const D_SPARSE: usize = 24;
pub const POSITIONAL: usize = 4;
/// The channel of `0.attn.act_in` whose gain is zero.
pub const UNREAD: usize = 5;
pub const ENCODER_FRACTION: f64 = 0.5;

fn normal(shape: &[usize], deviation: f32, centre: f32, generator: &mut ChaCha8Rng) -> Tensor {
    let count = shape.iter().product();
    let mut draw = || centre + deviation * generator.sample::<f32, _>(StandardNormal);
    let values: Vec<f32> = (0..count).map(|_| draw()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).expect("a tensor")
}

fn random_tensors(config: &TransformerConfig, seed: u64) -> BTreeMap<String, Tensor> {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    let shapes = tensor_shapes(config).into_iter();
    let tensors = shapes.map(|(name, shape)| {
        let gain = shape.len() == 1 && name.contains(".ln_") && name.ends_with(".weight");
        let deviation = match shape.len() {
            2 if name != "bigram_table" => 0.4,
            _ => 0.2,
        };
        let tensor = normal(
            &shape,
            deviation,
            if gain { 1.0 } else { 0.0 },
            &mut generator,
        );
        (name, tensor)
    });
    tensors.collect()
}

fn dense_config(vocabulary: usize, context: usize) -> TransformerConfig {
    TransformerConfig {
        n_layers: LAYERS,
        d_model: D_DENSE,
        n_heads: 2,
        d_head: 8,
        d_mlp: 32,
        vocab_size: vocabulary,
        context_length: context,
        norm: Norm::Layer,
        bias: true,
        activation: Activation::GeluTanh,
        residual_activation: ResidualActivation::Identity,
        positions: Positions::Added,
        active_fraction: None,
        active_locations: BTreeSet::new(),
        tied_unembedding: false,
        bigram_table: false,
        attention_sinks: false,
        variant: Default::default(),
    }
}

fn sparse_config(vocabulary: usize, context: usize) -> TransformerConfig {
    use ActiveLocation::{AttnIn, AttnOut, AttnV, MlpIn, MlpNeuron, MlpOut};
    TransformerConfig {
        d_model: D_SPARSE,
        n_heads: 3,
        norm: Norm::Rms,
        activation: Activation::Gelu,
        positions: Positions::Concatenated {
            channels: POSITIONAL,
        },
        active_fraction: Some(0.5),
        active_locations: BTreeSet::from([AttnIn, AttnOut, AttnV, MlpIn, MlpNeuron, MlpOut]),
        bigram_table: true,
        attention_sinks: true,
        variant: Default::default(),
        ..dense_config(vocabulary, context)
    }
}

fn tokenizer() -> Arc<Tokenizer> {
    let text = "return the thing that the other thing returned\n".repeat(4);
    Arc::new(train_bpe(std::iter::once(text), 270).expect("a tokenizer"))
}

fn files(kind: ModelKind, tokenizer: &Tokenizer, context: usize) -> ModelFiles {
    let vocabulary = tokenizer.vocab_size();
    let (config, seed) = match kind {
        ModelKind::Dense => (dense_config(vocabulary, context), 1),
        ModelKind::Sparse => (sparse_config(vocabulary, context), 2),
    };
    let mut tensors = random_tensors(&config, seed);
    if kind == ModelKind::Sparse {
        let name = "transformer.h.0.ln_1.weight";
        let mut gains: Vec<f32> = tensors[name].to_vec1().expect("gains");
        gains[UNREAD] = 0.0;
        tensors.insert(
            name.into(),
            Tensor::new(gains, &Device::Cpu).expect("gains"),
        );
    }
    let tokenizer = Some(tokenizer.to_json().expect("a tokenizer"));
    ModelFiles {
        config,
        tensors,
        quantised: Default::default(),
        tokenizer,
    }
}

/// What a pair is made of.
pub struct Parts {
    dense: ModelFiles,
    sparse: ModelFiles,
    /// The bridge's.
    tensors: BTreeMap<String, Tensor>,
    record: BridgeRecord,
}

impl Parts {
    /// Writes the pair's directory.
    pub fn write(&self, directory: &Path) {
        let models = (&self.dense, &self.sparse);
        pair::write(directory, models, &self.tensors, &self.record).expect("written");
    }
}

/// The parts of a pair of random weights.
pub fn pair_files(id: &str, seed: u64) -> Parts {
    pair_files_of(id, seed, CONTEXT)
}

fn pair_files_of(id: &str, seed: u64, context: usize) -> Parts {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    let shapes = Bridge::tensor_shapes(2 * LAYERS + 1, D_DENSE, D_SPARSE).into_iter();
    let tensors = shapes.map(|(name, shape)| (name, normal(&shape, 0.3, 0.0, &mut generator)));
    let sites = Site::all(LAYERS).map(|site| SiteRecord {
        site: site.to_string(),
        dense_rms: 0.8,
        sparse_rms: 1.2,
        encoder_nmse: 0.25,
        decoder_nmse: 0.125,
        dense_to_sparse_kl: 0.1,
        sparse_to_dense_kl: 0.1,
    });
    let record = BridgeRecord {
        id: id.to_owned().try_into().expect("an id"),
        dense: "dense".to_owned().try_into().expect("an id"),
        sparse: "sparse".to_owned().try_into().expect("an id"),
        encoder_fraction: ENCODER_FRACTION,
        site_map: None,
        sites: sites.collect(),
        training: serde_json::Map::new(),
    };
    let tokenizer = tokenizer();
    Parts {
        dense: files(ModelKind::Dense, &tokenizer, context),
        sparse: files(ModelKind::Sparse, &tokenizer, context),
        tensors: tensors.collect(),
        record,
    }
}

pub fn pair(id: &str, seed: u64) -> Pair {
    pair_of(id, seed, CONTEXT)
}

/// The same with room for so many tokens in either model.
pub fn pair_of(id: &str, seed: u64, context: usize) -> Pair {
    built(pair_files_of(id, seed, context))
}

/// The pair `pair` with a dense model of so many layers, and the dense site that each of the sparse model's is joined to.
pub fn joined_pair(dense_layers: usize, site_map: &[&str]) -> Pair {
    let mut files = pair_files_of("pair", 3, CONTEXT);
    files.dense.config.n_layers = dense_layers;
    files.dense.tensors = random_tensors(&files.dense.config, 1);
    let names = site_map.iter().map(|site| (*site).to_owned());
    files.record.site_map = Some(names.collect());
    built(files)
}

fn built(files: Parts) -> Pair {
    let tokenizer = tokenizer();
    let model = |id: &str, files: &ModelFiles, kind| {
        Arc::new(
            LoadedModel::new(id, files, Some(kind), tokenizer.clone(), Placement::CPU)
                .expect("a model"),
        )
    };
    let (dense, sparse) = (&files.dense.config, &files.sparse.config);
    let bridge = pair::build(&files.tensors, &files.record, dense, sparse);
    Pair {
        dense: model("dense", &files.dense, ModelKind::Dense),
        sparse: model("sparse", &files.sparse, ModelKind::Sparse),
        bridge: Arc::new(bridge.expect("a bridge")),
        record: Arc::new(files.record),
        features: Arc::new(features()),
        reference: Arc::new(reference()),
        circuits: Arc::default(),
        logit_effects: Arc::default(),
        fingerprint: fingerprint(&[], &files.tensors).expect("a hash"),
    }
}

/// The list of `features.json`.
pub fn feature_list() -> Value {
    json!([
        {"name": "quote_type", "description": "", "node": "1.attn.act_in", "write": "residual",
         "channels": [{"channel": 2, "weight": 1.0}],
         "stats": {"mean": 0.1, "std": 0.5, "max": 2.0, "min": -1.0, "density": 0.3, "tokens": 100}},
        {"name": "depth", "description": "", "node": "1.resid_mid", "write": "residual",
         "channels": [{"channel": 1, "weight": 0.6}, {"channel": 7, "weight": -0.8}]},
    ])
}

fn features() -> BTreeMap<String, Feature> {
    let list: Vec<Feature> = serde_json::from_value(feature_list()).expect("features");
    list.into_iter()
        .map(|feature| (feature.name.clone(), feature))
        .collect()
}

/// Statistics of some places.
fn reference() -> ReferenceStatistics {
    let mut generator = ChaCha8Rng::seed_from_u64(5);
    let config = sparse_config(270, CONTEXT);
    let mut reference = ReferenceStatistics::default();
    for name in [
        "0.attn.act_in",
        "1.attn.act_in",
        "1.resid_in",
        "1.attn.resid_delta",
    ] {
        let place = Location::parse(name, LAYERS).expect("a place");
        let width = place.width(&config);
        let mut draw = || {
            (0..width)
                .map(|_| 0.1 + generator.random::<f32>())
                .collect::<Vec<f32>>()
        };
        reference.insert(
            place,
            LocationStatistics {
                mean: draw(),
                std: draw(),
                max: draw(),
                min: draw(),
                density: draw(),
                tokens: 64,
            },
        );
    }
    reference
}

/// What requests of a test can name.
#[derive(Clone)]
pub struct Catalog {
    pub models: BTreeMap<String, Arc<LoadedModel>>,
    pub pairs: BTreeMap<String, Arc<Pair>>,
}

impl Catalog {
    pub fn of(pair: Pair) -> Self {
        let models = [&pair.dense, &pair.sparse].map(|model| (model.id.clone(), model.clone()));
        Catalog {
            models: models.into(),
            pairs: [(pair.id().to_owned(), Arc::new(pair))].into(),
        }
    }

    /// A request on this catalog's model and pair of the same names.
    pub fn resolved(&self, request: &GenerationRequest) -> GenerationRequest {
        GenerationRequest {
            model: self.models[&request.model.id].clone(),
            pair: self.pairs.values().next().cloned(),
            ..request.clone()
        }
    }
}

/// Models `dense` and `sparse`, joined by bridge `pair`.
pub fn catalog() -> Catalog {
    static CATALOG: LazyLock<Catalog> = LazyLock::new(|| Catalog::of(pair("pair", 3)));
    CATALOG.clone()
}

/// One of the models of [`catalog`].
pub fn model(id: &str) -> Arc<LoadedModel> {
    catalog().models[id].clone()
}

/// A greedy request for eight tokens of the dense model.
pub fn request(prompts: &[&[u32]]) -> GenerationRequest {
    GenerationRequest {
        model: model("dense"),
        pair: catalog().pairs.get("pair").cloned(),
        directions: Arc::default(),
        circuits: Arc::default(),
        prompts: prompts.iter().map(|prompt| prompt.to_vec()).collect(),
        max_tokens: 8,
        n: 1,
        sampling: Sampling {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            seed: Some(7),
            // The end of the text would make answers short.
            logit_bias: BTreeMap::from([(269, -100.0)]),
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
        },
        stop: Vec::new(),
        logprobs: Some(3),
        echo: false,
        steer: None,
        cache_salt: None,
        measured: Default::default(),
        answer_bytes: None,
        deadline: None,
        first_token_within: None,
    }
}

/// The same with a `steer` field.
pub fn steered(prompts: &[&[u32]], steer: Value) -> GenerationRequest {
    let steer = Some(serde_json::from_value(steer).expect("a steer field"));
    GenerationRequest {
        steer,
        ..request(prompts)
    }
}

pub fn answer(catalog: &Catalog, request: &GenerationRequest) -> Generation {
    generate(&catalog.resolved(request), |_| true).expect("an answer")
}

pub fn refusal(catalog: &Catalog, request: &GenerationRequest) -> EngineError {
    generate(&catalog.resolved(request), |_| true).expect_err("a refusal")
}

/// Everything that two equal answers share, to the bit.
pub fn bits(choice: &Choice) -> (String, Vec<(u32, Option<u32>)>) {
    let tokens = choice
        .tokens
        .iter()
        .map(|token| (token.id, token.logprob.map(f32::to_bits)));
    (choice.text.clone(), tokens.collect())
}

/// The log-probabilities of every token as the first generated one, by id.
pub fn first_distribution(
    catalog: &Catalog,
    request: &GenerationRequest,
    choice: usize,
) -> Vec<f32> {
    let everything = GenerationRequest {
        max_tokens: 1,
        logprobs: Some(270),
        ..request.clone()
    };
    let answer = answer(catalog, &everything);
    let mut top = answer.choices[choice].tokens[0].top.clone();
    top.sort_by_key(|(id, _)| *id);
    top.into_iter().map(|(_, logprob)| logprob).collect()
}

pub fn assert_near(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(
            (found - expected).abs() <= tolerance,
            "at {index}: {found} instead of {expected}"
        );
    }
}
