//! `POST /v1/activations`: what any place of a model holds at each token of a prompt.

use std::collections::{BTreeMap, BTreeSet};

use actix_web::{HttpResponse, web};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ApiError;
use super::body::JsonBody;
use super::completions::prompt;
use super::error::ErrorBody;
use super::state::State;
use crate::generation::request::ActivationsRequest;
use crate::models::location::Place;
use crate::serving::snapshot::ModelCard;

/// Which activations to return.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateActivations {
    /// The id of a dense or sparse model.
    pub model: String,
    pub prompt: ActivationsPrompt,
    /// Residual sites (`2.resid_mid`, `final_resid`) and node locations (`0.attn.act_in`), each once. May only be
    /// left out with `logits`.
    #[serde(default)]
    #[schema(value_type = BTreeSet<String>)]
    pub nodes: Vec<String>,
    /// Only these channels of each node, in this order, each once; not with `top_k`.
    #[schema(value_type = Option<BTreeSet<usize>>)]
    pub channels: Option<Vec<usize>>,
    /// Only so many channels of each node and token, the largest in magnitude first.
    #[schema(minimum = 1)]
    pub top_k: Option<usize>,
    /// The logits of the token after each.
    #[schema(default = false)]
    pub logits: Option<bool>,
}

/// Text or token ids.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected text or a list of token ids")]
pub enum ActivationsPrompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// Activations of one prompt.
#[derive(Debug, Serialize, ToSchema)]
pub struct ActivationsObject {
    #[schema(example = "activations")]
    pub object: &'static str,
    pub model: String,
    /// The prompt's tokens, `T` of them.
    pub tokens: Vec<PromptToken>,
    /// By the names that were asked for.
    pub nodes: BTreeMap<String, NodeActivations>,
    /// `[T][vocabulary]`, where they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub logits: Option<Vec<Vec<f32>>>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct PromptToken {
    pub id: u32,
    /// Its text; parts of characters are replacement characters.
    pub text: String,
}

/// One place's activations.
#[derive(Debug, Serialize, ToSchema)]
pub struct NodeActivations {
    /// Tokens, then values a token.
    #[schema(min_items = 2, max_items = 2)]
    pub shape: [usize; 2],
    /// One list a token.
    pub values: Vec<Vec<f32>>,
    /// The channels of `values`, where `channels` or `top_k` chose among them: one list a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub channels: Option<Vec<Vec<usize>>>,
}

/// Activations of chosen places of one model at every token of a prompt.
#[utoipa::path(post, path = "/v1/activations", tag = "activations", operation_id = "createActivations",
    request_body(content = CreateActivations, examples(
        ("channels" = (summary = "The strongest channels that a sublayer reads", value = json!({
            "model": "tinypython-sparse", "prompt": "print(\"hello world", "nodes": ["0.mlp.act_in"], "top_k": 4
        }))),
        ("stream" = (summary = "Chosen channels of the dense residual stream", value = json!({
            "model": "tinypython", "prompt": [1, 2, 3], "nodes": ["2.resid_mid", "final_resid"], "channels": [0, 95]
        }))),
        ("logits" = (summary = "What is predicted after each token", value = json!({
            "model": "tinypython", "prompt": "for i in", "logits": true
        })))
    )),
    responses(
        (status = 200, description = "The activations", body = ActivationsObject),
        (status = 400, description = "A field is wrong, or too many numbers were asked for", body = ErrorBody),
        (status = 404, description = "No model has this id: code `model_not_found`", body = ErrorBody),
        (status = 503, description = "The engine is not running", body = ErrorBody)
    ))]
pub async fn create(
    state: web::Data<State>,
    body: JsonBody<CreateActivations>,
) -> Result<HttpResponse, ApiError> {
    let request = body.0;
    let card = &*state.snapshot().model(&request.model)?;
    let logits = request.logits.unwrap_or(false);
    let places = check(&request, card, logits)?;
    let prompt = match request.prompt {
        ActivationsPrompt::Text(text) => prompt::Prompt::Text(text),
        ActivationsPrompt::Tokens(tokens) => prompt::Prompt::Tokens(tokens),
    };
    let tokens = prompt::encode(vec![prompt], card, &state).await?.remove(0);
    check_size(
        &places,
        tokens.len(),
        card,
        logits,
        state.limits.max_activation_values,
    )?;
    let asked = ActivationsRequest {
        model: card.model().await?,
        tokens: tokens.clone(),
        places: names(&places),
        logits,
    };
    let found = state.engine.activations(asked).await?;
    let nodes = found.places.into_iter().map(|(name, width, values)| {
        let rows = values.chunks(width.max(1));
        let node = choose(rows, width, request.channels.as_deref(), request.top_k);
        (name, node)
    });
    let text_of = |id: u32| card.tokenizer.token_text(id);
    Ok(HttpResponse::Ok().json(ActivationsObject {
        object: "activations",
        model: card.id.clone(),
        nodes: nodes.collect(),
        tokens: tokens
            .into_iter()
            .map(|id| PromptToken {
                id,
                text: text_of(id),
            })
            .collect(),
        logits: found.logits,
    }))
}

fn names(places: &[Place]) -> Vec<String> {
    places.iter().map(Place::to_string).collect()
}

/// The places asked for, each once.
fn check(
    request: &CreateActivations,
    card: &ModelCard,
    logits: bool,
) -> Result<Vec<Place>, ApiError> {
    if request.nodes.is_empty() && !logits {
        return Err(ApiError::invalid(
            "nodes",
            "nodes is empty and logits are not asked for: nothing to answer",
        ));
    }
    let mut places = Vec::new();
    for (index, name) in request.nodes.iter().enumerate() {
        let param = format!("nodes[{index}]");
        let place = Place::parse(name, card.config.n_layers)
            .map_err(|error| ApiError::invalid(&*param, error.to_string()))?;
        if places.contains(&place) {
            return Err(ApiError::invalid(param, format!("{place} is named twice")));
        }
        places.push(place);
    }
    if request.top_k.is_some() && request.channels.is_some() {
        return Err(ApiError::invalid(
            "top_k",
            "top_k and channels both choose channels; give one of them",
        ));
    }
    if request.top_k == Some(0) {
        return Err(ApiError::invalid(
            "top_k",
            "top_k is 0; it must be at least 1",
        ));
    }
    let mut seen = BTreeSet::new();
    for (index, channel) in request.channels.iter().flatten().enumerate() {
        let param = format!("channels[{index}]");
        if let Some(place) = places
            .iter()
            .find(|place| *channel >= place.width(&card.config))
        {
            let last = place.width(&card.config) - 1;
            let message = format!("{place} has no channel {channel}; they run from 0 to {last}");
            return Err(ApiError::invalid(param, message));
        }
        if !seen.insert(channel) {
            return Err(ApiError::invalid(
                param,
                format!("channel {channel} is named twice"),
            ));
        }
    }
    Ok(places)
}

/// Counts the numbers the engine has to hand over, whatever part of them is then sent.
fn check_size(
    places: &[Place],
    tokens: usize,
    card: &ModelCard,
    logits: bool,
    limit: usize,
) -> Result<(), ApiError> {
    let widths: usize = places.iter().map(|place| place.width(&card.config)).sum();
    let vocabulary = if logits { card.config.vocab_size } else { 0 };
    let values = tokens.saturating_mul(widths + vocabulary);
    if values > limit {
        let message = format!(
            "{values} numbers were asked for; at most {limit} are given: fewer nodes or tokens"
        );
        return Err(ApiError::invalid("nodes", message));
    }
    Ok(())
}

/// All channels of a node, those named, or the largest.
fn choose<'a>(
    rows: impl Iterator<Item = &'a [f32]>,
    width: usize,
    channels: Option<&[usize]>,
    top_k: Option<usize>,
) -> NodeActivations {
    let mut values = Vec::new();
    let mut chosen = Vec::new();
    for row in rows {
        let picked: Option<Vec<usize>> = match (channels, top_k) {
            (Some(channels), _) => Some(channels.to_vec()),
            (None, Some(count)) => Some(largest(row, count)),
            (None, None) => None,
        };
        match picked {
            None => values.push(row.to_vec()),
            Some(picked) => {
                values.push(
                    picked
                        .iter()
                        .filter_map(|&channel| row.get(channel).copied())
                        .collect(),
                );
                chosen.push(picked);
            }
        }
    }
    let per_token = values.first().map_or(width, Vec::len);
    let choice = channels.is_some() || top_k.is_some();
    NodeActivations {
        shape: [values.len(), per_token],
        values,
        channels: choice.then_some(chosen),
    }
}

/// The channels of the `count` values largest in magnitude, ties in the order of channels.
fn largest(row: &[f32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&left, &right| row[right].abs().total_cmp(&row[left].abs()));
    order.truncate(count);
    order
}
