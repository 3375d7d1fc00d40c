//! A pair: both models, the bridge between them, and what is known of the sparse one's channels.
//!
//! It is read from its directory once, held once in memory, and shared by whatever runs it: completions and steering
//! on the engine's thread, examinations beside it, evaluations. Changing its named features makes another pair of the
//! same weights.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::logit_effects::KnownLogitEffects;
use super::reference::{ReferenceError, ReferenceStatistics};
use super::registry::{self, Feature};
use super::shipped_circuits::{self, CircuitHost};
use crate::bridge::Bridge;
use crate::bridge::pair::{self, PairError};
use crate::bridge::record::BridgeRecord;
use crate::circuits::circuit::NamedCircuits;
use crate::memory;
use crate::models::layout::{ModelFiles, ReadOptions};
use crate::models::location::{Location, Node, NodeKind, Site};
use crate::models::model::{LoadedModel, ModelKind, fingerprint, placed};
use crate::models::tokenizer::Tokenizer;

/// Both models of a pair and what joins them.
#[derive(Debug, Clone)]
pub struct Pair {
    pub dense: Arc<LoadedModel>,
    pub sparse: Arc<LoadedModel>,
    pub bridge: Arc<Bridge>,
    pub record: Arc<BridgeRecord>,
    /// The named features by name: those that it came with, or as they have been changed since.
    pub features: Arc<BTreeMap<String, Feature>>,
    /// The circuits that it came with, of either model, by their ids.
    pub circuits: Arc<NamedCircuits>,
    /// What single channels of the sparse model do over reference text, where that was measured.
    pub reference: Arc<ReferenceStatistics>,
    /// Which tokens features speak for, as far as anyone asked.
    pub logit_effects: Arc<KnownLogitEffects>,
    /// Sha256 of the bridge's weights, in hexadecimal.
    pub fingerprint: String,
}

impl Pair {
    /// Reads a pair's directory and checks that its parts fit each other.
    pub fn read(directory: &Path) -> Result<Self, PairError> {
        Self::read_within(directory, ReadOptions::UNBOUNDED)
    }

    /// The same of a pair neither of whose models may exceed `limits`.
    pub fn read_within(directory: &Path, limits: ReadOptions) -> Result<Self, PairError> {
        let record = pair::read_record(directory)?;
        // One after the other, so that the tensors of no more than one lie beside what is made of them.
        let half =
            |name: &str, id: &str, kind| -> Result<(LoadedModel, Option<Vec<u8>>), PairError> {
                let directory = directory.join(name);
                let files = ModelFiles::read_within(&directory, limits)?;
                let model =
                    LoadedModel::from_files(&files, id, Some(kind), &directory, limits.placement)?;
                Ok((model, files.tokenizer))
            };
        let (dense, dense_tokens) = half("dense", record.dense.as_str(), ModelKind::Dense)?;
        let (sparse, sparse_tokens) = half("sparse", record.sparse.as_str(), ModelKind::Sparse)?;
        if dense_tokens != sparse_tokens {
            return Err(PairError::Invalid {
                path: directory.display().to_string(),
                problem: pair::DIFFERENT_TOKENIZERS.to_owned(),
            });
        }
        let hosts = [&dense, &sparse].map(|model| CircuitHost {
            id: &model.id,
            fingerprint: &model.fingerprint,
            config: &model.config,
        });
        let circuits = shipped_circuits::read(directory, &hosts)?;
        let tensors = pair::read_tensors(directory, &record, &dense.config, &sparse.config)?;
        memory::give_back();
        Ok(Pair {
            features: Arc::new(registry::read_shipped(directory, &sparse.config)?),
            circuits: Arc::new(circuits),
            reference: Arc::new(ReferenceStatistics::read(directory, &sparse.config)?),
            bridge: Arc::new(pair::build(
                &*placed(&tensors, dense.device())?,
                &record,
                &dense.config,
                &sparse.config,
            )?),
            record: Arc::new(record),
            dense: Arc::new(dense),
            sparse: Arc::new(sparse),
            logit_effects: Arc::default(),
            fingerprint: fingerprint(&[], &tensors)?,
        })
    }

    /// The same pair with other named features.
    pub fn with_features(&self, features: BTreeMap<String, Feature>) -> Self {
        Pair {
            features: Arc::new(features),
            ..self.clone()
        }
    }

    /// The name under which requests find it.
    pub fn id(&self) -> &str {
        self.record.id.as_str()
    }

    /// The tokenizer that both models share.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.dense.tokenizer
    }

    /// Layers of the sparse model, whose places features have.
    pub fn n_layers(&self) -> usize {
        self.sparse.config.n_layers
    }

    /// Mean RMS of the sparse stream at a site over that of the dense one where it is joined.
    pub fn rms_ratio(&self, site: Site) -> f64 {
        match self.record.sites.get(site.index()) {
            Some(record) if record.dense_rms > 0.0 => record.sparse_rms / record.dense_rms,
            _ => 1.0,
        }
    }

    /// The residual sites that a steering figure may be about: neither the first, where a change is one of the
    /// input, nor the last, where it is one of the output.
    pub fn inner_sites(&self) -> Vec<Location> {
        Site::all(self.n_layers())
            .filter(|site| site.index() > 0 && !site.is_last())
            .map(Location::Site)
            .collect()
    }

    /// The sublayer inputs that read an inner site.
    pub fn inner_inputs(&self) -> Vec<Location> {
        (0..self.n_layers())
            .flat_map(|layer| {
                [NodeKind::AttnIn, NodeKind::MlpIn].map(|kind| Location::Node(Node { layer, kind }))
            })
            .filter(|place| place.site(self.n_layers()).index() > 0)
            .collect()
    }

    /// The places whose channels are described by reference statistics.
    pub fn described_locations(&self) -> Vec<Location> {
        Location::all(self.n_layers())
            .into_iter()
            .filter(|place| match place {
                Location::Site(_) => true,
                Location::Node(node) => matches!(
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

impl From<ReferenceError> for PairError {
    fn from(error: ReferenceError) -> Self {
        match error {
            ReferenceError::Artifact(error) => error.into(),
            ReferenceError::Invalid { path, problem } => PairError::Invalid {
                path: path.display().to_string(),
                problem,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::bridge::site_map::SiteMap;
    use crate::features::test_pair::{LAYERS, random_pair, random_pair_with};

    /// The record that a pair's folder holds.
    fn record_in(directory: &Path) -> Value {
        let json = std::fs::read(directory.join("bridge.json")).unwrap();
        serde_json::from_slice(&json).unwrap()
    }

    #[test]
    fn a_record_says_how_models_of_different_depth_are_joined() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        random_pair(1).write(directory);
        assert!(record_in(directory).get("site_map").is_none());
        let map = SiteMap::spaced(2 * LAYERS + 1, LAYERS).unwrap();
        random_pair_with(1, map.clone()).write(directory);
        let read = pair::read_record(directory).unwrap();
        assert_eq!(read.site_map, map.names());
        let written = record_in(directory);
        for (site_map, told) in [
            (None, "site_map is missing"),
            (Some(json!([])), "names 0 sites"),
            (
                Some(json!([
                    "0.resid_in",
                    "1.resid_in",
                    "1.resid_in",
                    "2.resid_in",
                    "final_resid"
                ])),
                "1.resid_in after 1.resid_in",
            ),
            (
                Some(json!([
                    "0.resid_in",
                    "1.resid_in",
                    "2.resid_in",
                    "3.resid_in",
                    "5.resid_in"
                ])),
                "\"5.resid_in\"",
            ),
            (
                Some(json!([
                    "0.resid_in",
                    "1.mlp.act_in",
                    "2.resid_in",
                    "3.resid_in",
                    "final_resid"
                ])),
                "1.mlp.act_in",
            ),
            (Some(json!("all")), "invalid type"),
        ] {
            let mut record = written.clone();
            match site_map {
                Some(site_map) => record["site_map"] = site_map,
                None => drop(record.as_object_mut().unwrap().remove("site_map")),
            }
            std::fs::write(directory.join("bridge.json"), record.to_string()).unwrap();
            let error = Pair::read(directory).expect_err("a refusal").to_string();
            assert!(error.contains(told), "expected {told:?} in: {error}");
        }
        // A dense model that is the shallower one.
        let mut parts = random_pair(1);
        parts.dense = random_pair_with(1, SiteMap::identity(1)).dense;
        parts.write(directory);
        let error = Pair::read(directory).expect_err("a refusal").to_string();
        assert!(error.contains("sparse.n_layers is 2"), "{error}");
    }
}
