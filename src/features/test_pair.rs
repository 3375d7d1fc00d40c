//! A small random pair for tests.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};

use super::pair::Pair;
use super::reference::ReferenceStatistics;
use crate::bridge::Bridge;
use crate::bridge::pair;
use crate::bridge::record::{BridgeRecord, SiteRecord};
use crate::bridge::site_map::SiteMap;
use crate::models::config::{
    Activation, ActiveLocation, Norm, Positions, ResidualActivation, TransformerConfig,
};
use crate::models::layout::ModelFiles;
use crate::models::model::{LoadedModel, ModelKind};
use crate::models::tensor_names::tensor_shapes;
use crate::models::tokenizer::Tokenizer;
use crate::numerics::device::Placement;

pub const VOCABULARY: usize = 40;
pub const D_DENSE: usize = 12;
pub const D_SPARSE: usize = 24;
pub const LAYERS: usize = 2;

fn config(d_model: usize, sparse: bool) -> TransformerConfig {
    TransformerConfig {
        n_layers: LAYERS,
        d_model,
        n_heads: 2,
        d_head: 4,
        d_mlp: 2 * d_model,
        vocab_size: VOCABULARY,
        context_length: 32,
        norm: Norm::Rms,
        bias: true,
        activation: Activation::Gelu,
        residual_activation: ResidualActivation::Identity,
        positions: if sparse {
            Positions::None
        } else {
            Positions::Added
        },
        active_fraction: sparse.then_some(0.5),
        active_locations: match sparse {
            true => [ActiveLocation::AttnIn, ActiveLocation::MlpIn].into(),
            false => [].into(),
        },
        tied_unembedding: false,
        bigram_table: false,
        attention_sinks: false,
        variant: Default::default(),
    }
}

/// Normal values everywhere, gains of one.
fn random_tensors(shapes: BTreeMap<String, Vec<usize>>, seed: u64) -> BTreeMap<String, Tensor> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let normal = Normal::new(0.0, 0.3).unwrap();
    shapes
        .into_iter()
        .map(|(name, shape)| {
            let count = shape.iter().product();
            let gain = name.contains(".ln_") && name.ends_with(".weight");
            let mut value = || {
                if gain {
                    1.0
                } else {
                    normal.sample(&mut rng) as f32
                }
            };
            let values: Vec<f32> = (0..count).map(|_| value()).collect();
            let tensor = Tensor::from_vec(values, shape.as_slice(), &Device::Cpu).unwrap();
            (name, tensor)
        })
        .collect()
}

/// What a pair is made of.
pub struct Parts {
    pub dense: ModelFiles,
    pub sparse: ModelFiles,
    /// The bridge's.
    pub tensors: BTreeMap<String, Tensor>,
    pub record: BridgeRecord,
}

impl Parts {
    /// Writes the pair's directory.
    pub fn write(&self, directory: &Path) {
        let models = (&self.dense, &self.sparse);
        pair::write(directory, models, &self.tensors, &self.record).unwrap();
    }

    /// The pair, without named features and reference statistics.
    pub fn pair(&self) -> Pair {
        let tokenizer = Arc::new(Tokenizer::from_bytes(&tokenizer()).unwrap());
        let model = |id: &str, files: &ModelFiles, kind| {
            Arc::new(
                LoadedModel::new(id, files, Some(kind), tokenizer.clone(), Placement::CPU).unwrap(),
            )
        };
        let (dense, sparse) = (&self.dense.config, &self.sparse.config);
        Pair {
            bridge: Arc::new(pair::build(&self.tensors, &self.record, dense, sparse).unwrap()),
            dense: model("test-dense", &self.dense, ModelKind::Dense),
            sparse: model("test-sparse", &self.sparse, ModelKind::Sparse),
            record: Arc::new(self.record.clone()),
            features: Arc::default(),
            reference: Arc::new(ReferenceStatistics::default()),
            circuits: Arc::default(),
            logit_effects: Arc::default(),
            fingerprint: String::new(),
        }
    }
}

/// The `tokenizer.json` whose tokens are the words `t0`, `t1` and so on.
fn tokenizer() -> Vec<u8> {
    let words = (0..VOCABULARY).map(|id| (format!("t{id}"), id));
    let vocabulary: BTreeMap<String, usize> = words.collect();
    let json = serde_json::json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "t0"}});
    json.to_string().into_bytes()
}

/// The parts of a pair of random weights.
pub fn random_pair(seed: u64) -> Parts {
    random_pair_with(seed, SiteMap::identity(LAYERS))
}

/// The same of a sparse model and a dense one whose sites are joined like this.
pub fn random_pair_with(seed: u64, site_map: SiteMap) -> Parts {
    let dense = TransformerConfig {
        n_layers: site_map.dense_layers(),
        ..config(D_DENSE, false)
    };
    let sparse = config(D_SPARSE, true);
    let model = |config: &TransformerConfig, seed| ModelFiles {
        config: config.clone(),
        tensors: random_tensors(tensor_shapes(config), seed),
        quantised: Default::default(),
        tokenizer: Some(tokenizer()),
    };
    let n_sites = site_map.n_sites();
    let site = |index: usize| SiteRecord {
        site: crate::models::location::Site::new(index, LAYERS)
            .unwrap()
            .to_string(),
        dense_rms: 1.0,
        sparse_rms: 1.0,
        encoder_nmse: 0.1,
        decoder_nmse: 0.1,
        dense_to_sparse_kl: 0.1,
        sparse_to_dense_kl: 0.1,
    };
    let id = |text: &str| serde_json::from_value(serde_json::json!(text)).unwrap();
    Parts {
        tensors: random_tensors(Bridge::tensor_shapes(n_sites, D_DENSE, D_SPARSE), seed + 2),
        record: BridgeRecord {
            id: id("test"),
            dense: id("test-dense"),
            sparse: id("test-sparse"),
            encoder_fraction: 0.5,
            site_map: site_map.names(),
            sites: (0..n_sites).map(site).collect(),
            training: serde_json::Map::new(),
        },
        dense: model(&dense, seed),
        sparse: model(&sparse, seed + 1),
    }
}

/// A tensor's value at `[row, column]` replaced.
pub fn set(tensor: &mut Tensor, row: usize, column: usize, value: f32) {
    let (rows, columns) = tensor.dims2().unwrap();
    let mut values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
    values[row * columns + column] = value;
    *tensor = Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap();
}
