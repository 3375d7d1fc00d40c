//! `POST /v1/features/contrast`: which channels of the sparse model make the difference between two sets of
//! prompts, by what patching them does to the dense model's answers.

use actix_web::{HttpRequest, HttpResponse, web};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::lookup;
use crate::api::ApiError;
use crate::api::body::JsonBody;
use crate::api::error::ErrorBody;
use crate::api::examiner::{Effort, check_length};
use crate::api::state::State;
use crate::discovery::attribution::Attribution;
use crate::discovery::contrast::{self, ContrastOptions};
use crate::discovery::patching::{Patching, UneditedAnswers};
use crate::discovery::patience::Patience;
use crate::discovery::question::PromptPair;
use crate::discovery::route::Route;
use crate::discovery::search::search;
use crate::discovery::{DiscoveryError, verify};
use crate::features::group::{WeightedChannel, Write};
use crate::features::pair::Pair;
use crate::features::registry::FeatureTest;
use crate::models::location::Location;
use crate::serving::snapshot::ServedPair;

const MOST_PAIRS: usize = 64;
const MOST_NODES: usize = 64;
const MOST_CHANNELS: usize = 32;
const DEFAULT_CHANNELS: usize = 16;
/// Nodes searched in earnest unless said.
const DEFAULT_LIMIT: usize = 3;

/// Two sets of prompts, pair by pair.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateContrast {
    /// The bridge to carry patches over; left out, the first that came into service.
    pub bridge: Option<String>,
    /// Pairs of prompts, each pair of equal length in tokens.
    #[schema(min_items = 1, max_items = 64)]
    pub pairs: Vec<ContrastPair>,
    /// The nodes and sites to search; unless said, what the sublayers read after the first one.
    #[schema(min_items = 1, max_items = 64)]
    pub nodes: Option<Vec<String>>,
    /// How patches enter the dense model; unless said, `sublayer` for `act_in` nodes and `residual` elsewhere.
    pub write: Option<Write>,
    /// The most channels of a group; 16 unless said.
    #[schema(minimum = 1, maximum = 32, default = 16)]
    pub max_channels: Option<usize>,
    /// The share of pairs that a group must flip; 0.5 unless said.
    #[schema(exclusive_minimum = 0, maximum = 1, default = 0.5)]
    pub target: Option<f64>,
    /// How many nodes, the most promising first, are searched in earnest; 3 unless said.
    #[schema(minimum = 1, default = 3)]
    pub limit: Option<usize>,
}

/// Two prompts that call for different next tokens.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ContrastPair {
    pub prompt: String,
    /// The prompt whose values are patched in.
    pub counterfactual: String,
    /// What follows the counterfactual; its first token counts.
    #[schema(min_length = 1)]
    pub expected: String,
    /// What follows the prompt; its first token counts.
    #[schema(min_length = 1)]
    pub instead: String,
}

/// What was found.
#[derive(Debug, Serialize, ToSchema)]
pub struct Contrast {
    #[schema(example = "contrast")]
    pub object: &'static str,
    pub bridge: String,
    /// The share of all prompts, of both sets, that the dense model answers rightly. Flips are counted among the
    /// pairs whose `prompt` it does.
    #[schema(minimum = 0, maximum = 1)]
    pub dense_accuracy: f64,
    /// The same of the sparse model.
    #[schema(minimum = 0, maximum = 1)]
    pub sparse_accuracy: f64,
    /// Node by node, the one that needs the fewest channels first.
    pub data: Vec<NodeContrast>,
}

/// What was found at one node.
#[derive(Debug, Serialize, ToSchema)]
pub struct NodeContrast {
    #[schema(example = "3.attn.act_in")]
    pub node: String,
    pub write: Write,
    /// Channels by their effect alone, the strongest first.
    pub ranking: Vec<ChannelEffect>,
    /// A group of channels, each chosen for what it adds to those before it.
    pub group: Vec<GroupStep>,
    /// The fewest channels of the group that flip the target share; null where all together do not.
    #[schema(required = true)]
    pub channels_to_flip: Option<usize>,
    /// Those channels, else the whole group, as a new feature's `channels`.
    pub channels: Vec<WeightedChannel>,
}

/// One channel patched by itself.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChannelEffect {
    pub channel: usize,
    /// The mean change of the log odds of `expected` against `instead` in the dense model, in nats.
    pub effect: f64,
    /// The gradient's estimate of the same.
    pub first_order: f64,
}

/// A group once this channel is in it.
#[derive(Debug, Serialize, ToSchema)]
pub struct GroupStep {
    pub channel: usize,
    /// The share of pairs that the group so far flips.
    #[schema(minimum = 0, maximum = 1)]
    pub flips: f64,
    /// The mean share of `expected` in the two tokens' probability.
    #[schema(minimum = 0, maximum = 1)]
    pub probability: f64,
}

/// Finds the channels that make the difference between two sets of prompts. This takes seconds to minutes;
/// name `nodes` to search fewer.
#[utoipa::path(post, path = "/v1/features/contrast", tag = "features", operation_id = "contrastFeatures",
    request_body(content = CreateContrast, example = json!({
        "pairs": [{"prompt": "print(\"hello world", "counterfactual": "print('hello world", "expected": "')",
            "instead": "\")"}],
        "nodes": ["0.mlp.act_in"], "max_channels": 4
    })),
    responses(
        (status = 200, description = "The channels, ranked", body = Contrast),
        (status = 400, description = "A field is wrong, or a pair's prompts differ in length", body = ErrorBody),
        (status = 503, description = "Too many examinations wait: code `overloaded`", body = ErrorBody),
        (status = 504, description = "It took longer than it may: code `deadline_exceeded`", body = ErrorBody)
    ))]
pub async fn create(
    http: HttpRequest,
    state: web::Data<State>,
    body: JsonBody<CreateContrast>,
) -> Result<HttpResponse, ApiError> {
    let request = body.0;
    let bridge = state
        .snapshot()
        .bridge_or_first(request.bridge.as_deref(), "bridge")?;
    let places = places(&state, &bridge, &request)?;
    let options = options(&request)?;
    let limit = request.limit.unwrap_or(DEFAULT_LIMIT);
    if limit == 0 {
        return Err(ApiError::invalid(
            "limit",
            "limit is 0; it must be at least 1",
        ));
    }
    check_pairs(&state, &request.pairs)?;
    let tests: Vec<FeatureTest> = request
        .pairs
        .into_iter()
        .map(ContrastPair::into_test)
        .collect();
    let id = bridge.record.id.to_string();
    let write = request.write;
    let found = state
        .examiner
        .examine(
            &http,
            Effort::Search,
            &bridge,
            "pairs",
            move |models, patience| {
                let places = if places.is_empty() {
                    models.inner_inputs()
                } else {
                    places
                };
                let search = Search {
                    places: &places,
                    write,
                    limit,
                    options: &options,
                };
                search.run(models, &tests, patience)
            },
        )
        .await?;
    let (dense_accuracy, sparse_accuracy, found) = found;
    let data = found.into_iter().map(NodeContrast::from).collect();
    Ok(HttpResponse::Ok().json(Contrast {
        object: "contrast",
        bridge: id,
        dense_accuracy,
        sparse_accuracy,
        data,
    }))
}

fn places(
    state: &State,
    bridge: &ServedPair,
    request: &CreateContrast,
) -> Result<Vec<Location>, ApiError> {
    let names = request.nodes.as_deref().unwrap_or_default();
    if request.nodes.is_some() && !(1..=MOST_NODES).contains(&names.len()) {
        return Err(ApiError::invalid(
            "nodes",
            format!("nodes names between 1 and {MOST_NODES} places"),
        ));
    }
    let model = lookup::sparse_model(state, bridge)?;
    let config = &model.config;
    let parse = |(index, name): (usize, &String)| {
        Location::parse(name, config.n_layers)
            .map_err(|error| ApiError::invalid(format!("nodes[{index}]"), error.to_string()))
    };
    names.iter().enumerate().map(parse).collect()
}

fn options(request: &CreateContrast) -> Result<ContrastOptions, ApiError> {
    let most_channels = request.max_channels.unwrap_or(DEFAULT_CHANNELS);
    if !(1..=MOST_CHANNELS).contains(&most_channels) {
        let message =
            format!("max_channels is {most_channels}; it must be between 1 and {MOST_CHANNELS}");
        return Err(ApiError::invalid("max_channels", message));
    }
    let target_flips = request.target.unwrap_or(0.5);
    if !(target_flips > 0.0 && target_flips <= 1.0) {
        let message = format!("target is {target_flips}; it must be above 0 and at most 1");
        return Err(ApiError::invalid("target", message));
    }
    Ok(ContrastOptions {
        most_channels,
        target_flips,
        ..ContrastOptions::default()
    })
}

fn check_pairs(state: &State, pairs: &[ContrastPair]) -> Result<(), ApiError> {
    if !(1..=MOST_PAIRS).contains(&pairs.len()) {
        let message = format!(
            "there are {} pairs; between 1 and {MOST_PAIRS} are taken",
            pairs.len()
        );
        return Err(ApiError::invalid("pairs", message));
    }
    let texts = pairs.iter().flat_map(|pair| {
        [
            &pair.prompt,
            &pair.counterfactual,
            &pair.expected,
            &pair.instead,
        ]
    });
    let characters: usize = texts.map(|text| text.chars().count()).sum();
    let limit = state.limits.max_prompt_characters;
    if characters > limit {
        let message = format!("the pairs have {characters} characters; at most {limit} are taken");
        return Err(ApiError::invalid_with_code(
            "pairs",
            "prompt_too_long",
            message,
        ));
    }
    Ok(())
}

type Found = (f64, f64, Vec<contrast::Contrast>);

/// Where channels are searched, and how.
struct Search<'a> {
    places: &'a [Location],
    write: Option<Write>,
    /// The most places that are searched in earnest.
    limit: usize,
    options: &'a ContrastOptions,
}

impl Search<'_> {
    fn run(
        &self,
        models: &Pair,
        tests: &[FeatureTest],
        patience: &Patience,
    ) -> Result<Found, DiscoveryError> {
        let tokenizer = models.tokenizer();
        let pairs: Vec<PromptPair> = tests
            .iter()
            .map(|test| verify::test_pair(test, tokenizer))
            .collect::<Result<_, _>>()?;
        check_length(&pairs, models)?;
        let mut patching = Patching::patient(models, pairs, self.places, patience.clone())?;
        let route =
            |place| Route::Bridge(self.write.unwrap_or_else(|| lookup::default_write(place)));
        let places = self.places.iter();
        let routes: Vec<(Location, Route)> = places.map(|&place| (place, route(place))).collect();
        let answers = &patching.answers;
        let dense =
            UneditedAnswers::accuracy(&answers.dense_presented, &answers.dense_counterfactual);
        let sparse =
            UneditedAnswers::accuracy(&answers.sparse_presented, &answers.sparse_counterfactual);
        let attribution = Attribution::new(&patching, routes[0].1)?;
        let found = search(
            &mut patching,
            &attribution,
            &routes,
            self.limit,
            self.options,
        )?;
        Ok((dense, sparse, found))
    }
}

impl ContrastPair {
    fn into_test(self) -> FeatureTest {
        let ContrastPair {
            prompt,
            counterfactual,
            expected,
            instead,
        } = self;
        FeatureTest {
            prompt,
            counterfactual,
            expected,
            instead,
            at_least: 0.0,
            at_most_before: 1.0,
        }
    }
}

impl From<contrast::Contrast> for NodeContrast {
    fn from(found: contrast::Contrast) -> Self {
        let channels = found.weighted(found.channels_to_flip.unwrap_or(found.group.len()));
        let write = match found.route {
            Route::Bridge(write) => write,
            Route::Native => Write::Residual,
        };
        NodeContrast {
            node: found.place.to_string(),
            write,
            ranking: found
                .ranking
                .into_iter()
                .map(|channel| ChannelEffect {
                    channel: channel.channel,
                    effect: channel.alone,
                    first_order: channel.first_order,
                })
                .collect(),
            group: found
                .group
                .into_iter()
                .map(|step| GroupStep {
                    channel: step.channel,
                    flips: step.flips,
                    probability: step.share,
                })
                .collect(),
            channels_to_flip: found.channels_to_flip,
            channels,
        }
    }
}
