//! A pair of tiny random models with a random bridge, and one named feature, as a directory.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use causeway::artifacts::atomic;
use causeway::bridge::pair;
use causeway::bridge::record::{BridgeRecord, SiteRecord};
use causeway::corpus::{CorpusGenerator, Split};
use causeway::features::reference::{LocationStatistics, ReferenceStatistics, ReferenceText};
use causeway::models::config::{
    Activation, Norm, Positions, ResidualActivation, TransformerConfig,
};
use causeway::models::layout::ModelFiles;
use causeway::models::location::{Location, Site};
use causeway::models::tokenizer::{Tokenizer, train_bpe};
use causeway::training::initialise;
use serde_json::json;

pub const VOCABULARY: usize = 320;
pub const CONTEXT: usize = 64;
pub const LAYERS: usize = 2;
/// Sequences of reference text, this long.
pub const REFERENCE_LENGTH: usize = 32;

fn config(d_model: usize) -> TransformerConfig {
    TransformerConfig {
        n_layers: LAYERS,
        d_model,
        n_heads: 2,
        d_head: 8,
        d_mlp: 4 * d_model,
        vocab_size: VOCABULARY,
        context_length: CONTEXT,
        norm: Norm::Rms,
        bias: true,
        activation: Activation::Gelu,
        residual_activation: ResidualActivation::Identity,
        positions: Positions::Added,
        active_fraction: None,
        active_locations: Default::default(),
        tied_unembedding: false,
        bigram_table: false,
        attention_sinks: false,
        variant: Default::default(),
    }
}

/// Every tenth weight of every matrix; gains and biases as they are.
fn thinned(tensors: BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    let thin = |tensor: &Tensor| {
        if tensor.rank() < 2 {
            return tensor.clone();
        }
        let mut values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        values
            .iter_mut()
            .enumerate()
            .filter(|(index, _)| index % 10 != 0)
            .for_each(|(_, value)| *value = 0.0);
        Tensor::from_vec(values, tensor.shape(), &Device::Cpu).unwrap()
    };
    tensors
        .into_iter()
        .map(|(name, tensor)| (name, thin(&tensor)))
        .collect()
}

/// The first tokens of a text.
fn pair_tokens(tokenizer: &[u8], text: &str) -> Vec<u32> {
    let ids = Tokenizer::from_bytes(tokenizer).unwrap().encode(text);
    ids.unwrap()[..REFERENCE_LENGTH].to_vec()
}

/// Writes the pair `tiny` with the models `tiny` and `tiny-sparse`.
pub fn write(directory: &Path) {
    let (dense, sparse) = (config(16), config(32));
    let texts: Vec<String> = CorpusGenerator::new(1, Split::Train).take(60).collect();
    let tokenizer = train_bpe(texts.into_iter(), VOCABULARY)
        .unwrap()
        .to_json()
        .unwrap();
    let device = Device::Cpu;
    let site = |site: Site| SiteRecord {
        site: site.to_string(),
        dense_rms: 1.0,
        sparse_rms: 1.0,
        encoder_nmse: 0.5,
        decoder_nmse: 0.5,
        dense_to_sparse_kl: 0.25,
        sparse_to_dense_kl: 0.25,
    };
    let mut stream = 1000;
    let draw = |name: &str, shape: &[usize], deviation: f64| {
        stream += 1;
        initialise::tensor(name, shape, deviation, 3, stream, &device)
    };
    let tensors = causeway::bridge::initial_tensors(2 * LAYERS + 1, 16, 32, draw, &device).unwrap();
    let files = |config: &TransformerConfig, tensors| ModelFiles {
        config: config.clone(),
        tensors,
        quantised: Default::default(),
        tokenizer: Some(tokenizer.clone()),
    };
    let record = BridgeRecord {
        id: "tiny".parse().unwrap(),
        dense: "tiny".parse().unwrap(),
        sparse: "tiny-sparse".parse().unwrap(),
        encoder_fraction: 0.25,
        site_map: None,
        sites: Site::all(LAYERS).map(site).collect(),
        training: serde_json::Map::new(),
    };
    let dense_files = files(&dense, initialise::model(&dense, 1, &device).unwrap());
    let thin = thinned(initialise::model(&sparse, 2, &device).unwrap());
    let sparse_files = files(&sparse, thin);
    pair::write(directory, (&dense_files, &sparse_files), &tensors, &record).unwrap();
    let text: Vec<u32> = CorpusGenerator::new(1, Split::Train)
        .take(10)
        .flat_map(|text| pair_tokens(&tokenizer, &text))
        .collect();
    let mut reference = ReferenceStatistics::default();
    reference.text = Some(ReferenceText {
        tokens: text,
        length: REFERENCE_LENGTH,
    });
    for place in Location::all(LAYERS) {
        let each = |value: f32| vec![value; place.width(&sparse)];
        let statistics = LocationStatistics {
            mean: each(0.1),
            std: each(0.5),
            max: each(2.0),
            min: each(-1.0),
            density: each(0.25),
            tokens: 1000,
        };
        reference.insert(place, statistics);
    }
    reference.write(directory).unwrap();
    let features = json!({"features": [{
        "name": "shipped_feature", "description": "Came with the pair.", "node": "1.attn.act_in",
        "channels": [{"channel": 3, "weight": 1.0}], "write": "sublayer", "tasks": ["single_double_quote"],
        "stats": {"mean": 0.1, "std": 0.5, "max": 2.0, "min": -1.0, "density": 0.25, "tokens": 1000},
        "tests": []
    }]});
    atomic::write(
        &directory.join("features.json"),
        features.to_string().as_bytes(),
    )
    .unwrap();
}
