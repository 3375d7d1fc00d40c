//! What is known of a bridge beside its weights: the pair it joins, its sites' scales and fidelity, its training.

use serde::{Deserialize, Serialize};

use super::site_map::SiteMap;
use crate::artifacts::ArtifactId;
use crate::models::config::TransformerConfig;

/// `bridge.json` of a pair's directory.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BridgeRecord {
    pub id: ArtifactId,
    /// The ids under which the two models are served.
    pub dense: ArtifactId,
    pub sparse: ArtifactId,
    /// The share of sparse channels that an encoder's AbsTopK keeps.
    pub encoder_fraction: f64,
    /// For each site of the sparse model, in order, the name of the dense model's that it is joined to; left out where
    /// both models have as many layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site_map: Option<Vec<String>>,
    /// One entry a site of the sparse model, in order.
    pub sites: Vec<SiteRecord>,
    /// How the pair was trained: data, steps, time, losses, in the words of who trained it.
    #[serde(default)]
    pub training: serde_json::Map<String, serde_json::Value>,
}

impl BridgeRecord {
    /// How the sites of two models of these configurations are joined, or why they cannot be.
    pub fn joined(
        &self,
        dense: &TransformerConfig,
        sparse: &TransformerConfig,
    ) -> Result<SiteMap, String> {
        SiteMap::recorded(self.site_map.as_deref(), dense.n_layers, sparse.n_layers)
            .map_err(|error| format!("{} {error}", error.field()))
    }
}

/// One site's scales and fidelity, measured on held-out text.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteRecord {
    /// The site's name in the sparse model.
    pub site: String,
    /// Mean over tokens of the root mean square of the dense stream, at the site that it is joined to.
    pub dense_rms: f64,
    /// The same of the sparse stream.
    pub sparse_rms: f64,
    /// NMSE of `f(h_d)` against `h_s`.
    pub encoder_nmse: f64,
    /// NMSE of `g(h_s)` against `h_d`.
    pub decoder_nmse: f64,
    /// KL(dense || hybrid) in nats a token when the sparse model goes on from `f(h_d)`.
    pub dense_to_sparse_kl: f64,
    /// The same when the dense model goes on from `g(h_s)`.
    pub sparse_to_dense_kl: f64,
}
