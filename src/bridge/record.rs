//! What is known of a bridge beside its weights: the pair it joins, its sites' scales and fidelity, its training.

use serde::{Deserialize, Serialize};

use crate::artifacts::ArtifactId;

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
    /// One entry a site, in order.
    pub sites: Vec<SiteRecord>,
    /// How the pair was trained: data, steps, time, losses, in the words of who trained it.
    #[serde(default)]
    pub training: serde_json::Map<String, serde_json::Value>,
}

/// One site's scales and fidelity, measured on held-out text.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteRecord {
    /// The site's name.
    pub site: String,
    /// Mean over tokens of the root mean square of the dense stream.
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
