//! `GET /v1/bridges`: the pairs of models that edits can be carried across.

use std::collections::BTreeMap;

use actix_web::{HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

use super::ApiError;
use super::error::ErrorBody;
use super::state::State;
use crate::serving::snapshot::ServedPair;

/// One bridge.
#[derive(Debug, Serialize, ToSchema)]
pub struct Bridge {
    #[schema(example = "tinypython")]
    pub id: String,
    #[schema(example = "bridge")]
    pub object: &'static str,
    /// The model whose completions are steered.
    pub dense: String,
    /// The model whose features are edited.
    pub sparse: String,
    /// The share of the sparse channels that an encoder leaves active.
    #[schema(minimum = 0, maximum = 1)]
    pub encoder_fraction: f64,
    /// Fidelity at each residual site of the sparse model, measured on held-out text.
    pub sites: Vec<BridgeSite>,
    /// How many features have names.
    pub features: usize,
    /// How the pair was trained, in the words of who trained it.
    #[schema(value_type = Object)]
    pub training: serde_json::Map<String, serde_json::Value>,
    /// Changes with the pair's files.
    pub fingerprint: String,
    /// What its maker recorded: recipe, data, time.
    #[schema(value_type = Object)]
    pub provenance: BTreeMap<String, serde_json::Value>,
}

/// One residual site of a bridge's sparse model.
#[derive(Debug, Serialize, ToSchema)]
pub struct BridgeSite {
    #[schema(example = "2.resid_mid")]
    pub site: String,
    /// The dense model's site that it is joined to: the one of the same name where both models have as many layers.
    #[schema(example = "2.resid_mid")]
    pub dense_site: String,
    /// Mean over tokens of the root mean square of the dense stream.
    pub dense_rms: f64,
    /// The same of the sparse stream.
    pub sparse_rms: f64,
    /// Normalised squared error of the encoded dense stream against the sparse one; 0 is perfect, 1 is no
    /// better than the mean.
    pub encoder_nmse: f64,
    /// The same of the decoded sparse stream against the dense one.
    pub decoder_nmse: f64,
    /// KL(dense || hybrid) in nats a token where the sparse model goes on from the encoded dense stream.
    pub dense_to_sparse_kl: f64,
    /// The same where the dense model goes on from the decoded sparse stream.
    pub sparse_to_dense_kl: f64,
}

/// All bridges, by their ids.
#[derive(Debug, Serialize, ToSchema)]
pub struct BridgeList {
    #[schema(example = "list")]
    pub object: &'static str,
    pub data: Vec<Bridge>,
}

fn bridge(card: &ServedPair, features: usize) -> Bridge {
    let record = &card.record;
    let dense_site = |index: usize, site: &str| {
        let joined = record.site_map.as_ref().and_then(|names| names.get(index));
        joined.map_or(site, String::as_str).to_owned()
    };
    let sites = record
        .sites
        .iter()
        .enumerate()
        .map(|(index, site)| BridgeSite {
            site: site.site.clone(),
            dense_site: dense_site(index, &site.site),
            dense_rms: site.dense_rms,
            sparse_rms: site.sparse_rms,
            encoder_nmse: site.encoder_nmse,
            decoder_nmse: site.decoder_nmse,
            dense_to_sparse_kl: site.dense_to_sparse_kl,
            sparse_to_dense_kl: site.sparse_to_dense_kl,
        });
    Bridge {
        id: record.id.to_string(),
        object: "bridge",
        dense: record.dense.to_string(),
        sparse: record.sparse.to_string(),
        encoder_fraction: record.encoder_fraction,
        sites: sites.collect(),
        features,
        training: record.training.clone(),
        fingerprint: card.fingerprint.clone(),
        provenance: card.provenance.clone(),
    }
}

/// All bridges.
#[utoipa::path(get, path = "/v1/bridges", tag = "bridges", operation_id = "listBridges",
    responses((status = 200, description = "The bridges", body = BridgeList)))]
pub async fn list(state: web::Data<State>) -> HttpResponse {
    let snapshot = state.snapshot();
    let cards = snapshot.bridges.values();
    let data = cards
        .map(|card| bridge(card, state.features.count(card.record.id.as_str())))
        .collect();
    HttpResponse::Ok().json(BridgeList {
        object: "list",
        data,
    })
}

/// One bridge.
#[utoipa::path(get, path = "/v1/bridges/{id}", tag = "bridges", operation_id = "retrieveBridge",
    params(("id" = String, Path, description = "The bridge's id", example = "tinypython")),
    responses(
        (status = 200, description = "The bridge", body = Bridge),
        (status = 404, description = "No bridge has this id: code `bridge_not_found`", body = ErrorBody)
    ))]
pub async fn retrieve(
    state: web::Data<State>,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    let card = state.snapshot().bridge(&id, None)?;
    Ok(HttpResponse::Ok().json(bridge(&card, state.features.count(&id))))
}
