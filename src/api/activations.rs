//! `POST /v1/activations`: what any place of a model holds at each token of a prompt.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, web};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ApiError;
use super::attention::{self, AttentionHead, AttentionPattern};
use super::body::JsonBody;
use super::completions::parameters;
use super::completions::prompt::{self, Prompt};
use super::disconnect;
use super::error::ErrorBody;
use super::presets::applied;
use super::state::State;
use super::steer_circuits::circuits_of;
use super::unparsed::BodyRoom;
use crate::generation::request::{ActivationsRequest, GenerationRequest};
use crate::interventions::request::{
    CounterfactualPrompt, Destination, FeatureAddress, SteerRequest,
};
use crate::models::location::Location;
use crate::serving::named_model::NamedModel;
use crate::serving::snapshot::ModelCard;
use crate::settings::Limits;

/// Features of one request.
const MOST_FEATURES: usize = 256;

/// Which activations to return.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateActivations {
    /// The id of a dense or sparse model, or a preset's full name.
    pub model: String,
    pub prompt: ActivationsPrompt,
    /// Residual sites (`2.resid_mid`, `final_resid`) and node locations (`0.attn.act_in`), each once. May only be
    /// left out with `features`, `logits` or `attention`.
    #[serde(default)]
    #[schema(value_type = BTreeSet<String>)]
    pub nodes: Vec<String>,
    /// Features whose value at each token is told. Of a sparse model they are its own. Channels and named features of a
    /// dense model are read in the sparse model of its bridge, which runs on the same prompt without edits; a `vector`
    /// in the dense stream itself.
    #[serde(default)]
    #[schema(max_items = 256)]
    pub features: Vec<FeatureAddress>,
    /// Only these channels of each node, in this order, each once; not with `top_k`.
    #[schema(value_type = Option<BTreeSet<usize>>)]
    pub channels: Option<Vec<usize>>,
    /// Only so many channels of each node and token, the largest in magnitude first.
    #[schema(minimum = 1)]
    pub top_k: Option<usize>,
    /// The logits of the token after each.
    #[schema(default = false)]
    pub logits: Option<bool>,
    /// Heads whose attention is told, each once.
    #[serde(default)]
    #[schema(max_items = 256)]
    pub attention: Vec<AttentionHead>,
    /// Edits that the model runs with; what is told are the values as edited. One arm: at most one of `variants`, no
    /// list of strengths, and nothing to `return`. Its `bridge` is also the one that `features` are looked up in.
    pub steer: Option<SteerRequest>,
}

/// Text or token ids, of one prompt or of several.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "expected text, a list of texts, a list of token ids or a list of such lists"
)]
pub enum ActivationsPrompt {
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    /// Several lists of token ids.
    TokenLists(Vec<Vec<u32>>),
}

/// What comes back: of one prompt its activations, of a list of prompts a list of them.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum ActivationsAnswer {
    One(ActivationsObject),
    List(ActivationsList),
}

/// Activations of several prompts.
#[derive(Debug, Serialize, ToSchema)]
pub struct ActivationsList {
    #[schema(example = "list")]
    pub object: &'static str,
    pub model: String,
    /// In the order of the prompts.
    pub data: Vec<ActivationsObject>,
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
    /// In the order in which they were asked for; left out where none were.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    pub features: Vec<FeatureActivations>,
    /// `[T][vocabulary]`, where they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub logits: Option<Vec<Vec<f32>>>,
    /// In the order in which they were asked for; left out where none were.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    pub attention: Vec<AttentionPattern>,
}

/// One feature at every token.
#[derive(Debug, Serialize, ToSchema)]
pub struct FeatureActivations {
    /// The registered feature's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub feature: Option<String>,
    /// Where it was read.
    pub node: String,
    /// `[T]`: of a channel its value, of a group the projection on its weights.
    pub values: Vec<f32>,
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

/// Activations of chosen places and features of one model at every token of a prompt or of several, with or without
/// edits.
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
        }))),
        ("attention" = (summary = "Where a head attends", value = json!({
            "model": "tinypython", "prompt": "print(\"hello world", "attention": [{"layer": 0, "head": 3}]
        }))),
        ("features" = (summary = "A named feature on two prompts", value = json!({
            "model": "tinypython", "prompt": ["print(\"hello", "print('hello"], "features": ["quote_type"]
        }))),
        ("steered" = (summary = "The dense stream at the end, with an edit", value = json!({
            "model": "tinypython", "prompt": "print(\"hello", "nodes": ["final_resid"], "top_k": 4,
            "steer": {"edits": [{"feature": "quote_type", "op": "patch", "to": {"prompt": "print('hello"}}]}
        })))
    )),
    responses(
        (status = 200, description = "The activations: an object of one prompt, a list of a list", body = ActivationsAnswer),
        (status = 400, description = "A field is wrong, or too many numbers were asked for", body = ErrorBody),
        (status = 404, description = "No model has this id: code `model_not_found`", body = ErrorBody),
        (status = 503, description = "The engine is not running", body = ErrorBody),
        (status = 504, description = "It took longer than the server lets a request take: code `deadline_exceeded`",
            body = ErrorBody)
    ))]
pub async fn create(
    http: HttpRequest,
    state: web::Data<State>,
    body: JsonBody<CreateActivations>,
) -> Result<HttpResponse, ApiError> {
    let patience = Duration::from_secs(state.limits.deadline_seconds);
    tokio::select! {
        answer = tokio::time::timeout(patience, answer(&state, body)) => {
            Ok(HttpResponse::Ok().json(answer.unwrap_or(Err(ApiError::Deadline))?))
        }
        // Prompts that the engine has not come to are skipped.
        () = disconnect::gone(&http) => Err(ApiError::ClientGone),
    }
}

async fn answer(
    state: &State,
    JsonBody(mut request, room): JsonBody<CreateActivations>,
) -> Result<ActivationsAnswer, ApiError> {
    let named = state.snapshot().named_model(&request.model)?;
    let asks_to_return = |steer: &SteerRequest| !steer.returns.is_empty();
    if request.steer.as_ref().is_some_and(asks_to_return) {
        let message = "there is nothing to return beside activations: name what is wanted in `features` and `nodes`";
        return Err(ApiError::invalid("steer.return", message));
    }
    let mut steer = applied::steer(&named, request.steer.take())?;
    if let Some(steer) = &mut steer {
        // What a preset returns stands beside the text of a completion.
        steer.returns.clear();
    }
    let answered = answer_with(state, &named, request, room, steer).await;
    answered.map_err(|error| applied::told(&named, error))
}

/// Answers a request that is made with these edits.
async fn answer_with(
    state: &State,
    named: &NamedModel,
    request: CreateActivations,
    room: BodyRoom,
    steer: Option<SteerRequest>,
) -> Result<ActivationsAnswer, ApiError> {
    let card = &*named.card;
    let logits = request.logits.unwrap_or(false);
    let places = check(&request, card, logits)?;
    let is_list = matches!(
        request.prompt,
        ActivationsPrompt::Texts(_) | ActivationsPrompt::TokenLists(_)
    );
    let prompts: Vec<Prompt> = match request.prompt {
        ActivationsPrompt::Text(text) => vec![Prompt::Text(text)],
        ActivationsPrompt::Tokens(tokens) => vec![Prompt::Tokens(tokens)],
        ActivationsPrompt::Texts(texts) => texts.into_iter().map(Prompt::Text).collect(),
        ActivationsPrompt::TokenLists(lists) => lists.into_iter().map(Prompt::Tokens).collect(),
    };
    let most = state.limits.max_prompts;
    if prompts.is_empty() || prompts.len() > most {
        let count = prompts.len();
        let message = format!(
            "the request has {count} prompts; between 1 and {most} are taken (limits.max_prompts)"
        );
        return Err(ApiError::invalid("prompt", message));
    }
    check_steer(steer.as_ref(), prompts.len(), &state.limits)?;
    let prompts = prompt::encode(prompts, card, state).await?;
    let steer = match steer {
        Some(steer) => Some(prompt::encode_counterfactuals(steer, card, state, false).await?),
        None => None,
    };
    drop(room);
    // Features need a bridge where edits do not name one either.
    let snapshot = state.snapshot();
    let name = steer.as_ref().and_then(|steer| steer.bridge.as_deref());
    let bridge = match steer.is_some() || !request.features.is_empty() {
        true => snapshot.bridge_for(&card.id, name, "steer.bridge")?,
        false => None,
    };
    let numbers = Numbers {
        places: &places,
        features: request.features.len(),
        logits,
        attention: request.attention.len() * prompts.iter().map(Vec::len).max().unwrap_or(0),
    };
    let tokens = prompts.iter().map(Vec::len).sum();
    numbers.check(tokens, card, state.limits.max_activation_values)?;
    let model = card.model().await?;
    let pair = match &bridge {
        Some(bridge) => Some(bridge.pair().await?),
        None => None,
    };
    let directions = snapshot.directions_of(&card.id);
    let circuits = circuits_of(&snapshot, steer.as_ref(), &request.features);
    let heads = &request.attention;
    let mut data = Vec::with_capacity(prompts.len());
    // One after the other, so that completions take their steps in between.
    for (index, tokens) in prompts.into_iter().enumerate() {
        let asked = ActivationsRequest {
            run: GenerationRequest {
                steer: steer.as_ref().map(|steer| of_prompt(steer, index)),
                answer_bytes: Some(state.limits.max_answer_bytes),
                deadline: Some(Duration::from_secs(state.limits.deadline_seconds)),
                pair: pair.clone(),
                directions: directions.clone(),
                circuits: circuits.clone(),
                ..GenerationRequest::of_prompts(model.clone(), vec![tokens.clone()], logits)
            },
            places: names(&places),
            features: request.features.clone(),
            attention: heads.iter().map(|head| (head.layer, head.head)).collect(),
        };
        let found = state.engine.activations(asked).await?;
        let nodes = found.places.into_iter().map(|(name, width, values)| {
            let rows = values.chunks(width.max(1));
            let node = choose(rows, width, request.channels.as_deref(), request.top_k);
            (name, node)
        });
        let features = found
            .features
            .into_iter()
            .map(|feature| FeatureActivations {
                feature: feature.name,
                node: feature.node,
                values: feature.values,
            });
        let token = |id: u32| PromptToken {
            id,
            text: card.tokenizer.token_text(id),
        };
        data.push(ActivationsObject {
            object: "activations",
            model: named.name(),
            nodes: nodes.collect(),
            features: features.collect(),
            attention: attention::told(heads, found.attention, tokens.len()),
            tokens: tokens.into_iter().map(token).collect(),
            logits: found.logits,
        });
    }
    match data.pop() {
        Some(only) if !is_list => Ok(ActivationsAnswer::One(only)),
        last => {
            data.extend(last);
            Ok(ActivationsAnswer::List(ActivationsList {
                object: "list",
                model: named.name(),
                data,
            }))
        }
    }
}

/// Refuses edits that make several arms, and more counterfactual prompts than may be.
fn check_steer(
    steer: Option<&SteerRequest>,
    prompts: usize,
    limits: &Limits,
) -> Result<(), ApiError> {
    let Some(steer) = steer else {
        return Ok(());
    };
    if parameters::arms(steer) > 1 {
        let message =
            "activations are of one arm: give at most one variant and no list of strengths";
        return Err(ApiError::invalid("steer", message));
    }
    for (index, edit) in steer.edits.iter().enumerate() {
        if let Some(count) = edit.to.as_ref().and_then(counterfactuals)
            && count != prompts
        {
            let message = format!(
                "there are {count} counterfactual prompts for {prompts} prompts; give one for all or one each"
            );
            return Err(ApiError::invalid(
                format!("steer.edits[{index}].to.prompt"),
                message,
            ));
        }
    }
    parameters::check_counterfactuals(Some(steer), limits)
}

/// How many counterfactual prompts there are, where each prompt has its own.
fn counterfactuals(to: &Destination) -> Option<usize> {
    match to {
        Destination::Counterfactual(to) => match to.prompt.as_ref()? {
            CounterfactualPrompt::Texts(texts) => Some(texts.len()),
            CounterfactualPrompt::TokenLists(lists) => Some(lists.len()),
            CounterfactualPrompt::Text(_) | CounterfactualPrompt::Tokens(_) => None,
        },
        Destination::Ablation(_) => None,
    }
}

/// The edits of one prompt of several.
fn of_prompt(steer: &SteerRequest, index: usize) -> SteerRequest {
    let mut steer = steer.clone();
    for edit in &mut steer.edits {
        if let Some(Destination::Counterfactual(to)) = &mut edit.to {
            match &mut to.prompt {
                Some(CounterfactualPrompt::Texts(texts)) => *texts = vec![texts.swap_remove(index)],
                Some(CounterfactualPrompt::TokenLists(lists)) => {
                    *lists = vec![lists.swap_remove(index)];
                }
                _ => {}
            }
        }
    }
    steer
}

fn names(places: &[Location]) -> Vec<String> {
    places.iter().map(Location::to_string).collect()
}

/// The places asked for, each once.
fn check(
    request: &CreateActivations,
    card: &ModelCard,
    logits: bool,
) -> Result<Vec<Location>, ApiError> {
    let asks_nothing = request.nodes.is_empty() && request.features.is_empty();
    if asks_nothing && !logits && request.attention.is_empty() {
        return Err(ApiError::invalid(
            "nodes",
            "nodes, features and attention are empty and logits are not asked for: nothing to answer",
        ));
    }
    attention::check(&request.attention, &card.config)?;
    if request.features.len() > MOST_FEATURES {
        let message = format!(
            "there are {} features; at most {MOST_FEATURES} are read at once",
            request.features.len()
        );
        return Err(ApiError::invalid("features", message));
    }
    let mut places = Vec::new();
    for (index, name) in request.nodes.iter().enumerate() {
        let param = format!("nodes[{index}]");
        let place = Location::parse(name, card.config.n_layers)
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

/// What is asked for at each token.
struct Numbers<'a> {
    places: &'a [Location],
    features: usize,
    logits: bool,
    /// Of all heads' patterns, at the most.
    attention: usize,
}

impl Numbers<'_> {
    /// Counts the numbers the engine has to hand over, whatever part of them is then sent.
    fn check(&self, tokens: usize, card: &ModelCard, limit: usize) -> Result<(), ApiError> {
        let places = self.places.iter();
        let widths: usize = places.map(|place| place.width(&card.config)).sum();
        let vocabulary = if self.logits {
            card.config.vocab_size
        } else {
            0
        };
        let values = tokens.saturating_mul(widths + vocabulary + self.features + self.attention);
        if values > limit {
            let message = format!(
                "{values} numbers were asked for; at most {limit} are given (limits.max_activation_values): fewer \
                 prompts, nodes, features or tokens"
            );
            return Err(ApiError::invalid("nodes", message));
        }
        Ok(())
    }
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
