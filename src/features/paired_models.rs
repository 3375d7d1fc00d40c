//! A pair ready to be examined: both models, their bridge and their tokenizer.
//!
//! Each model is held twice over the same tensors' values: once for inference, where a sparse model's zeros
//! cost nothing, and once as matrices that gradients flow through.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::Tensor;

use super::FeatureError;
use super::promoted_tokens::KnownPromotions;
use crate::bridge::Bridge;
use crate::bridge::pair::PairFiles;
use crate::bridge::record::BridgeRecord;
use crate::interventions::reference::ReferenceStatistics;
use crate::models::layers::Purpose;
use crate::models::location::{Node, NodeKind, Place, Site};
use crate::models::tokenizer::Tokenizer;
use crate::models::transformer::Transformer;

/// Both models of a pair and what joins them.
#[derive(Debug, Clone)]
pub struct PairedModels {
    pub dense: Transformer,
    pub sparse: Transformer,
    /// The same models, held so that gradients flow through them (never to their weights).
    pub dense_frozen: Transformer,
    pub sparse_frozen: Transformer,
    pub bridge: Bridge,
    pub record: BridgeRecord,
    /// The sparse model's tensors by name, to be read rather than run.
    pub sparse_weights: BTreeMap<String, Tensor>,
    pub reference: ReferenceStatistics,
    /// Which tokens features speak for, as far as anyone asked.
    pub promotions: Arc<KnownPromotions>,
    /// None where the pair came without one; whatever works on token ids still does.
    pub tokenizer: Option<Tokenizer>,
}

impl PairedModels {
    /// Reads a pair's directory.
    pub fn read(directory: &Path) -> Result<Self, FeatureError> {
        let mut models = Self::new(&PairFiles::read(directory)?)?;
        models.reference = ReferenceStatistics::read(directory, &models.sparse.config)?;
        Ok(models)
    }

    /// Builds both models and the bridge; without reference statistics, which are files of their own.
    pub fn new(files: &PairFiles) -> Result<Self, FeatureError> {
        let build = |model: &crate::models::layout::ModelFiles, purpose| {
            Transformer::new(model.config.clone(), &model.tensors, purpose)
        };
        let tokenizer = files.dense.tokenizer.as_deref();
        Ok(PairedModels {
            dense: build(&files.dense, Purpose::Inference)?,
            sparse: build(&files.sparse, Purpose::Inference)?,
            dense_frozen: build(&files.dense, Purpose::Frozen)?,
            sparse_frozen: build(&files.sparse, Purpose::Frozen)?,
            bridge: files.bridge()?,
            record: files.record.clone(),
            sparse_weights: files.sparse.tensors.clone(),
            reference: ReferenceStatistics::default(),
            promotions: Arc::default(),
            tokenizer: tokenizer.map(Tokenizer::from_bytes).transpose()?,
        })
    }

    /// The tokenizer, or an error that says what is missing.
    pub fn tokenizer(&self) -> Result<&Tokenizer, FeatureError> {
        self.tokenizer
            .as_ref()
            .ok_or_else(|| FeatureError::Invalid("the pair has no tokenizer".to_owned()))
    }

    /// Layers of either model.
    pub fn n_layers(&self) -> usize {
        self.sparse.config.n_layers
    }

    /// Mean RMS of the sparse stream at a site over that of the dense one.
    pub fn rms_ratio(&self, site: Site) -> f64 {
        match self.record.sites.get(site.index()) {
            Some(record) if record.dense_rms > 0.0 => record.sparse_rms / record.dense_rms,
            _ => 1.0,
        }
    }

    /// The residual sites that a steering figure may be about: neither the first, where a change is one of the
    /// input, nor the last, where it is one of the output.
    pub fn inner_sites(&self) -> Vec<Place> {
        Site::all(self.n_layers())
            .filter(|site| site.index() > 0 && !site.is_last())
            .map(Place::Site)
            .collect()
    }

    /// The sublayer inputs that read an inner site.
    pub fn inner_inputs(&self) -> Vec<Place> {
        (0..self.n_layers())
            .flat_map(|layer| {
                [NodeKind::AttnIn, NodeKind::MlpIn].map(|kind| Place::Node(Node { layer, kind }))
            })
            .filter(|place| place.site(self.n_layers()).index() > 0)
            .collect()
    }

    /// The places whose channels are described by reference statistics.
    pub fn described_places(&self) -> Vec<Place> {
        Place::all(self.n_layers())
            .into_iter()
            .filter(|place| match place {
                Place::Site(_) => true,
                Place::Node(node) => matches!(
                    node.kind,
                    NodeKind::AttnIn
                        | NodeKind::AttnOut
                        | NodeKind::MlpIn
                        | NodeKind::PostAct
                        | NodeKind::MlpOut
                ),
            })
            .collect()
    }
}
