//! `GET /v1/features/{id}`: all that is known of one feature: what it is, where in reference text it shows, which
//! tokens it speaks for, and what it is connected to.

use actix_web::{HttpRequest, HttpResponse, web};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::direction_wire::DirectionObject;
use super::lookup::{self, Found, FoundDirection, Whose};
use super::wire::{FeatureObject, FeatureOrigin};
use crate::api::ApiError;
use crate::api::error::ErrorBody;
use crate::api::examiner::Effort;
use crate::api::state::State;
use crate::discovery::DiscoveryError;
use crate::discovery::logit_effects::logit_effects;
use crate::documented::documented;
use crate::features::label::contrast;
use crate::features::logit_effects::{LogitEffectMethod, LogitEffectQuery, TokenScore};
use crate::features::pair::Pair;
use crate::features::registry;
use crate::features::statistics::group_activations;
use crate::features::top_activations::{self, Example};
use crate::features::wiring::{Edge, wiring};
use crate::models::tokenizer::Tokenizer;

const DEFAULT_EXAMPLES: usize = 3;
const MOST_EXAMPLES: usize = 20;
/// Tokens told at either end of the vocabulary.
const TOKENS: usize = 10;
/// Weights told of each channel and direction; their count is told in any case.
const WEIGHTS: usize = 20;
/// Of a histogram.
const BINS: usize = 48;

/// What to tell of a feature.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DetailQuery {
    /// The bridge; needed where more than one has a feature of this id.
    #[param(example = "tinypython")]
    pub bridge: Option<String>,
    /// The model, of a direction; needed where more than one has a direction of this id, or a bridge has a feature of it.
    pub model: Option<String>,
    /// Examples of each kind. They take a pass over the reference text.
    #[param(minimum = 0, maximum = 20, default = 3, example = 1)]
    pub examples: Option<usize>,
}

/// A feature, or a direction with its vectors.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum FeatureAnswer {
    Feature(Box<FeatureDetail>),
    Direction(DirectionObject),
}

/// One feature and what is known of it.
#[derive(Debug, Serialize, ToSchema)]
pub struct FeatureDetail {
    #[serde(flatten)]
    pub feature: FeatureObject,
    /// The tokens that it makes more probable, as `promotion` says; null where its node has no direction in the
    /// residual stream, or where the effect would have to be measured and the bridge came without reference text.
    #[schema(required = true)]
    pub promoted: Option<Vec<ScoredToken>>,
    /// And those that it makes less probable.
    #[schema(required = true)]
    pub suppressed: Option<Vec<ScoredToken>>,
    /// How these tokens were found; null where there are none.
    #[schema(required = true)]
    pub promotion: Option<PromotionBasis>,
    /// Channel by channel, its nonzero weights in the sparse model.
    pub weights: Vec<ChannelWeights>,
    /// What tells the places of reference text where it is strongest from those where it is weakest: the tokens that stand
    /// at them, or up to twelve tokens before, each with the share of the places that it is true of. Null where no token
    /// tells them apart, and wherever `examples` is null.
    #[schema(
        required = true,
        example = "strongest at \" '\" (83%); weakest at \" \\\"\" (79%)"
    )]
    pub label: Option<String>,
    /// Where in reference text it shows; null where the bridge came without any, or none were asked for.
    #[schema(required = true)]
    pub examples: Option<Examples>,
    /// How often it has which value over reference text; null where `examples` is.
    #[schema(required = true)]
    pub histogram: Option<Histogram>,
}

/// Tokens of reference text by the feature's value.
#[derive(Debug, Serialize, ToSchema)]
pub struct Histogram {
    /// Where the bins begin and end, ascending: one more than there are bins.
    pub edges: Vec<f32>,
    /// Tokens in each bin.
    pub counts: Vec<usize>,
}

documented! {
    /// How the tokens that a feature promotes are found.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
    #[serde(rename_all = "snake_case")]
    pub enum ScoredBy {
        /// The feature is written to the last site, where nothing but the unembedding follows: scores are logits for a
        /// unit of the feature, less their mean over the vocabulary. Scores of one feature compare with each other
        /// only.
        Unembedding,
        /// The feature is written before other layers, so its effect is measured: scores are mean changes of the next
        /// token's log-probability in the dense model, in nats.
        Measured,
    }
}

/// What the scores of `promoted` and `suppressed` are.
#[derive(Debug, Serialize, ToSchema)]
pub struct PromotionBasis {
    pub scored_by: ScoredBy,
    /// What is added to the feature at every token: its standard deviation over reference text, or 1 where it never
    /// varies or is not measured.
    pub added: f64,
    /// The tokens of reference text that the scores are means over; 0 where they are not measured.
    pub tokens: usize,
}

/// A token of the vocabulary.
#[derive(Debug, Serialize, ToSchema)]
pub struct ScoredToken {
    pub id: u32,
    pub text: String,
    /// In logits or nats, as `promotion.scored_by` says.
    pub score: f32,
}

/// The largest nonzero weights of one channel.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChannelWeights {
    pub channel: usize,
    /// How many there are into it.
    pub n_incoming: usize,
    pub n_outgoing: usize,
    /// The largest first, at most 20.
    pub incoming: Vec<Weight>,
    pub outgoing: Vec<Weight>,
}

/// One nonzero weight.
#[derive(Debug, Serialize, ToSchema)]
pub struct Weight {
    /// Where it comes from or leads to.
    #[schema(example = "1.mlp.post_act")]
    pub node: String,
    pub channel: usize,
    pub weight: f32,
}

/// Windows of reference text, at most one a sequence.
#[derive(Debug, Serialize, ToSchema)]
pub struct Examples {
    /// Where the feature's value is largest.
    pub top: Vec<ExampleWindow>,
    /// Where it is smallest.
    pub bottom: Vec<ExampleWindow>,
    /// Evenly spaced among its values that are not zero, ascending.
    pub quantiles: Vec<ExampleWindow>,
}

/// A window of text with the feature's value at every token.
#[derive(Debug, Serialize, ToSchema)]
pub struct ExampleWindow {
    pub tokens: Vec<String>,
    /// The feature's value at each of them.
    pub values: Vec<f32>,
    /// The index in `tokens` of the token that counts.
    pub at: usize,
    /// The feature's value there.
    pub value: f32,
}

/// One feature or direction: by its name, or any channel of the sparse model by its address, such as `0.mlp.act_in:20`.
#[utoipa::path(get, path = "/v1/features/{id}", tag = "features", operation_id = "retrieveFeature",
    params(("id" = String, Path, description = "A name, such as `quote_type`, or `NODE:CHANNEL`", example = "0.mlp.act_in:20"), DetailQuery),
    responses(
        (status = 200, description = "The feature", body = FeatureAnswer),
        (status = 400, description = "Which bridge is meant is not clear, or it does not exist; or too many examples \
            are asked for", body = ErrorBody),
        (status = 404, description = "There is no such feature: code `feature_not_found`", body = ErrorBody),
        (status = 503, description = "Too many look at features: code `overloaded`", body = ErrorBody),
        (status = 504, description = "It took longer than it may: code `deadline_exceeded`", body = ErrorBody)
    ))]
pub async fn retrieve(
    http: HttpRequest,
    state: web::Data<State>,
    id: web::Path<String>,
    query: web::Query<DetailQuery>,
) -> Result<HttpResponse, ApiError> {
    let count = query.examples.unwrap_or(DEFAULT_EXAMPLES);
    if count > MOST_EXAMPLES {
        let message = format!("examples is {count}; it must be between 0 and {MOST_EXAMPLES}");
        return Err(ApiError::invalid("examples", message));
    }
    let whose = Whose {
        bridge: query.bridge.as_deref(),
        model: query.model.as_deref(),
    };
    let (bridge, feature, origin) = match lookup::find(&state, &id, whose)? {
        Found::Direction(FoundDirection { model, direction }) => {
            let object = DirectionObject::new(&model, &direction, true);
            return Ok(HttpResponse::Ok().json(FeatureAnswer::Direction(object)));
        }
        Found::Named(stored) => {
            let origin = FeatureOrigin::from(stored.origin);
            (stored.bridge, stored.feature, origin)
        }
        Found::Unnamed { bridge, feature } => (bridge, feature, FeatureOrigin::Unnamed),
    };
    let place = lookup::place_of(&state, &bridge, &feature)?;
    let examined = feature.clone();
    let examined_pair = state.snapshot().bridge(&bridge, None)?;
    let known = state
        .examiner
        .examine(
            &http,
            Effort::Look,
            &examined_pair,
            "id",
            move |models, _| Known::of(models, place, &examined, count),
        )
        .await?;
    let name = match origin {
        FeatureOrigin::Unnamed => None,
        _ => Some(feature.name.clone()),
    };
    let (promoted, suppressed, promotion) = match known.tokens {
        Some((promoted, suppressed, basis)) => (Some(promoted), Some(suppressed), Some(basis)),
        None => (None, None, None),
    };
    let detail = FeatureDetail {
        feature: FeatureObject::new(feature.name.clone(), name, bridge, feature, origin)
            .with_circuits(&state.snapshot()),
        promoted,
        suppressed,
        promotion,
        weights: known.weights,
        label: known.label,
        examples: known.examples,
        histogram: known.histogram,
    };
    Ok(HttpResponse::Ok().json(FeatureAnswer::Feature(Box::new(detail))))
}

/// What an examination finds out.
struct Known {
    tokens: Option<(Vec<ScoredToken>, Vec<ScoredToken>, PromotionBasis)>,
    weights: Vec<ChannelWeights>,
    label: Option<String>,
    examples: Option<Examples>,
    histogram: Option<Histogram>,
}

impl Known {
    fn of(
        models: &Pair,
        place: crate::models::location::Location,
        feature: &registry::Feature,
        count: usize,
    ) -> Result<Self, DiscoveryError> {
        let tokenizer = models.tokenizer();
        let scored = |tokens: &[TokenScore]| -> Vec<ScoredToken> {
            let told = |token: &TokenScore| ScoredToken {
                id: token.token,
                text: tokenizer.token_text(token.token),
                score: token.score,
            };
            tokens.iter().map(told).collect()
        };
        let asked = LogitEffectQuery {
            place,
            group: feature.channels.clone(),
            write: feature.write,
            std: feature.stats.map(|statistics| statistics.std),
            count: TOKENS,
        };
        let ends = logit_effects(models, &asked)?;
        let ends = ends.as_ref().as_ref();
        let tokens = ends.map(|ends| {
            let basis = match ends.method {
                LogitEffectMethod::Unembedding => PromotionBasis {
                    scored_by: ScoredBy::Unembedding,
                    added: 1.0,
                    tokens: 0,
                },
                LogitEffectMethod::Measured { added, tokens } => PromotionBasis {
                    scored_by: ScoredBy::Measured,
                    added,
                    tokens,
                },
            };
            (scored(&ends.promoted), scored(&ends.suppressed), basis)
        });
        let weights = feature.channels.iter().map(|member| {
            let wiring = wiring(&models.sparse, place, member.channel)?;
            Ok(ChannelWeights {
                channel: member.channel,
                n_incoming: wiring.incoming.len(),
                n_outgoing: wiring.outgoing.len(),
                incoming: largest(&wiring.incoming),
                outgoing: largest(&wiring.outgoing),
            })
        });
        let mut histogram = None;
        let (label, examples) = match &models.reference.text {
            Some(text) if count > 0 => {
                let values = group_activations(
                    &models.sparse,
                    &text.tokens,
                    text.length,
                    place,
                    &feature.channels,
                )?;
                let found =
                    top_activations::top_activations(&text.tokens, text.length, &values, count);
                let ends = contrast(&text.tokens, text.length, &values);
                histogram = Some(Histogram::of(&values));
                let examples = Examples {
                    top: windows(&found.top, tokenizer),
                    bottom: windows(&found.bottom, tokenizer),
                    quantiles: windows(&found.quantiles, tokenizer),
                };
                let label = ends.label(&|token| tokenizer.token_text(token));
                (label, Some(examples))
            }
            _ => (None, None),
        };
        Ok(Known {
            tokens,
            weights: weights.collect::<Result<_, DiscoveryError>>()?,
            label,
            examples,
            histogram,
        })
    }
}

impl Histogram {
    /// Bins of equal width from the least value to the largest.
    fn of(values: &[f32]) -> Self {
        let least = values.iter().copied().fold(f32::INFINITY, f32::min);
        let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if !least.is_finite() || !largest.is_finite() || least >= largest {
            let edges = match values.first() {
                Some(&only) => vec![only, only],
                None => Vec::new(),
            };
            let counts = edges.first().map_or(Vec::new(), |_| vec![values.len()]);
            return Histogram { edges, counts };
        }
        let width = (largest - least) / BINS as f32;
        let mut counts = vec![0; BINS];
        for value in values {
            let bin = ((value - least) / width) as usize;
            counts[bin.min(BINS - 1)] += 1;
        }
        let inner = (0..BINS).map(|bin| least + width * bin as f32);
        Histogram {
            edges: inner.chain([largest]).collect(),
            counts,
        }
    }
}

fn largest(edges: &[Edge]) -> Vec<Weight> {
    let told = |edge: &Edge| Weight {
        node: edge.node.to_string(),
        channel: edge.channel,
        weight: edge.weight,
    };
    edges.iter().take(WEIGHTS).map(told).collect()
}

fn windows(examples: &[Example], tokenizer: &Tokenizer) -> Vec<ExampleWindow> {
    let window = |example: &Example| ExampleWindow {
        tokens: example
            .tokens
            .iter()
            .map(|&id| tokenizer.token_text(id))
            .collect(),
        values: example.activations.clone(),
        at: example.at,
        value: example.activation(),
    };
    examples.iter().map(window).collect()
}
