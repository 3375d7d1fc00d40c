//! `POST /v1/features/direction`: a direction of a dense model from contrast prompts, checked on held-out ones.

use actix_web::{HttpRequest, HttpResponse, web};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::contrast_prompts::{AnswerToken, DirectionPrompt, Encoder, check_total};
use super::direction_wire::DirectionObject;
use super::directions::{check_free, dense_model, register, texts};
use super::naming::{check_description, checked_name};
use crate::api::ApiError;
use crate::api::body::JsonBody;
use crate::api::completions::prompt::tokenise;
use crate::api::error::ErrorBody;
use crate::api::examiner::Effort;
use crate::api::keys::Access;
use crate::api::state::State;
use crate::discovery::directions::effect::DirectionMeasure;
use crate::discovery::directions::finding::{DirectionSearch, MOST_BYTES, SiteDirection, find};
use crate::discovery::directions::reading::{ContrastPrompt, ContrastSet};
use crate::features::direction::{
    DirectionMethod, DirectionPart, DirectionSource, NamedDirection, ReadPositions, measure,
    site_of,
};
use crate::interventions::plan::LARGEST_STRENGTH;
use crate::models::location::Site;
use crate::serving::snapshot::ModelCard;

const MOST_PROMPTS: usize = 256;
const MOST_SITES: usize = 256;
const MOST_STRENGTHS: usize = 16;
const DEFAULT_STRENGTHS: [f64; 3] = [0.1, 0.2, 0.4];
/// Of the prompts that are given, the last of so many is held out.
const HELD_OUT: usize = 4;

/// Prompts of two kinds, and what to make of them.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateDirection {
    /// The id of a dense model.
    pub model: String,
    /// Prompts that have what the direction is to stand for. All prompts have answers, or none has.
    #[schema(min_items = 1, max_items = 256)]
    pub positive: Vec<DirectionPrompt>,
    /// Prompts that lack it; with `pca` as many as positive ones, the n-th the n-th one's partner.
    #[schema(min_items = 1, max_items = 256)]
    pub negative: Vec<DirectionPrompt>,
    /// Prompts that the direction is checked on. Left out, every fourth of either kind, or the last where there are fewer,
    /// is held out and the direction is made of the others.
    pub held_out: Option<HeldOutPrompts>,
    /// The residual sites, each once; each has a direction of its own.
    #[schema(min_items = 1, max_items = 256)]
    pub sites: Vec<String>,
    /// `difference_of_means` unless said.
    pub method: Option<DirectionMethod>,
    /// `answer` where prompts have answers, else `last`, unless said.
    pub positions: Option<ReadPositions>,
    /// What may follow every held-out prompt, for the measure `answer_tokens`.
    pub answers: Option<ContrastAnswers>,
    /// How much is added in the check of effects, as shares of the residual stream's norm, from -10 to 10; 0.1, 0.2 and
    /// 0.4 unless said. None of them leaves the check out.
    #[schema(max_items = 16, example = json!([0.1, 0.2]))]
    pub strengths: Option<Vec<f64>>,
    /// What random directions are drawn from; 0 unless said.
    pub seed: Option<u64>,
    /// With `register`: texts to measure the direction over, as when a direction is made from vectors.
    #[schema(min_items = 1)]
    pub texts: Option<Vec<String>>,
    /// Registers the directions of all sites as one feature. This needs a key that may make features.
    pub register: Option<RegisterDirection>,
}

/// Held-out prompts of both kinds.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HeldOutPrompts {
    #[schema(min_items = 1, max_items = 256)]
    pub positive: Vec<DirectionPrompt>,
    #[schema(min_items = 1, max_items = 256)]
    pub negative: Vec<DirectionPrompt>,
}

/// Two tokens that differ after every prompt.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ContrastAnswers {
    /// What the direction is to make likelier.
    pub positive: AnswerToken,
    /// And what less likely.
    pub negative: AnswerToken,
}

/// What a found direction is called.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterDirection {
    /// As a new feature's `name`.
    #[schema(pattern = r"^[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?$", max_length = 64)]
    pub id: String,
    /// For people.
    #[serde(default)]
    #[schema(max_length = 10_000)]
    pub description: String,
}

/// Directions and what was found of them.
#[derive(Debug, Serialize, ToSchema)]
pub struct FoundDirectionsObject {
    #[schema(example = "direction.search")]
    pub object: &'static str,
    pub model: String,
    pub method: DirectionMethod,
    pub positions: ReadPositions,
    /// How many prompts of either kind the directions were made of, and checked on.
    pub prompts: PromptCounts,
    /// What effects were measured on.
    pub measure: DirectionMeasure,
    /// The measure without any change, in nats; null where no effects were asked for.
    #[schema(required = true)]
    pub baseline: Option<f64>,
    /// Site by site, in the order of the request.
    pub data: Vec<SiteDirection>,
    /// The feature that was made of them; null where none was asked for.
    #[schema(required = true)]
    pub registered: Option<DirectionObject>,
}

/// How many prompts were used.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct PromptCounts {
    pub positive: usize,
    pub negative: usize,
    pub held_out_positive: usize,
    pub held_out_negative: usize,
}

/// Makes a direction of contrast prompts and checks it on prompts that it was not made of: how well it tells them apart,
/// and how far adding it moves the model, beside ten random directions of the same norm. This takes seconds to minutes;
/// fewer sites, prompts or strengths take less.
#[utoipa::path(post, path = "/v1/features/direction", tag = "features", operation_id = "createDirection",
    request_body(content = CreateDirection, example = json!({
        "model": "tinypython",
        "positive": ["print('hello", "x = 'a", "name = 'world", "f('abc", "y = ['one"],
        "negative": ["print(\"hello", "x = \"a", "name = \"world", "f(\"abc", "y = [\"one"],
        "sites": ["1.resid_in"], "strengths": [0.5], "answers": {"positive": "'", "negative": "\""}
    })),
    responses(
        (status = 200, description = "The directions, and what they do", body = FoundDirectionsObject),
        (status = 400, description = "A field is wrong; a name already used has the code `already_exists`, more \
            directions than are kept the code `over_budget`", body = ErrorBody),
        (status = 404, description = "No model has this id: code `model_not_found`", body = ErrorBody),
        (status = 503, description = "Too many examinations wait: code `overloaded`", body = ErrorBody),
        (status = 504, description = "It took longer than it may: code `deadline_exceeded`", body = ErrorBody)
    ))]
pub async fn create(
    http: HttpRequest,
    state: web::Data<State>,
    body: JsonBody<CreateDirection>,
) -> Result<HttpResponse, ApiError> {
    let request = body.0;
    let card = dense_model(&state, &request.model)?;
    if request.register.is_some() {
        state.keys.allow(Access::Train, http.headers())?;
    }
    let sites = sites(&request.sites, &card)?;
    let strengths = strengths(request.strengths)?;
    let method = request.method.unwrap_or(DirectionMethod::DifferenceOfMeans);
    let given = Given::of(request.positive, request.negative, request.held_out, method)?;
    check_total(given.length(), "positive", &state.limits)?;
    let positions = given.positions(request.positions)?;
    let values = given
        .prompts()
        .saturating_mul(sites.len())
        .saturating_mul(card.config.d_model);
    if values.saturating_mul(size_of::<f32>()) > MOST_BYTES {
        let message = format!(
            "the activations of {} prompts at {} sites would take more than {} MiB; name fewer sites or prompts",
            given.prompts(),
            sites.len(),
            MOST_BYTES >> 20
        );
        return Err(ApiError::invalid("sites", message));
    }
    let register_as = match &request.register {
        None => None,
        Some(register) => {
            let name = checked_name(&register.id, "register.id")?;
            check_description(&register.description, "register.description")?;
            check_free(&state, &card, name.as_str(), "register.id")?;
            Some((name, register.description.clone()))
        }
    };
    let texts = match (&register_as, request.texts) {
        (None, Some(_)) => {
            let message =
                "texts are what a registered direction is measured over; there is no `register`";
            return Err(ApiError::invalid("texts", message));
        }
        (None, None) => Vec::new(),
        (Some(_), sent) => texts(&state, &card, sent).await?,
    };
    let encoder = Encoder::of(&card);
    let answers = request.answers;
    let encoded = tokenise(&state, move || given.encode(&encoder, answers.as_ref())).await??;
    let Encoded {
        made_of,
        held_out,
        answers,
    } = encoded;
    let prompts = PromptCounts {
        positive: made_of.positive.len(),
        negative: made_of.negative.len(),
        held_out_positive: held_out.positive.len(),
        held_out_negative: held_out.negative.len(),
    };
    let search = DirectionSearch {
        sites,
        method,
        positions,
        strengths,
        answers,
        seed: request.seed.unwrap_or(0),
    };
    let (found, parts) = state
        .examiner
        .examine_model(
            &http,
            Effort::Search,
            &card,
            "positive",
            move |model, patience| {
                let found = find(model, &made_of, &held_out, &search, patience)?;
                let mut parts = parts(&search.sites, &found.sites);
                if !texts.is_empty() {
                    measure(model, &texts, &mut parts, || patience.check())?;
                }
                Ok((found, parts))
            },
        )
        .await?;
    let registered = match register_as {
        None => None,
        Some((name, description)) => {
            let direction = NamedDirection {
                name: name.to_string(),
                description,
                source: DirectionSource::Contrast {
                    method,
                    positions,
                    positive: prompts.positive,
                    negative: prompts.negative,
                },
                parts,
            };
            Some(register(&state, &card, direction, "register.id").await?)
        }
    };
    Ok(HttpResponse::Ok().json(FoundDirectionsObject {
        object: "direction.search",
        model: card.id.clone(),
        method,
        positions,
        prompts,
        measure: found.measure,
        baseline: found.baseline,
        data: found.sites,
        registered,
    }))
}

/// The directions as parts of one, in the order of the forward pass.
fn parts(sites: &[Site], found: &[SiteDirection]) -> Vec<DirectionPart> {
    let mut parts: Vec<(&Site, &SiteDirection)> = sites.iter().zip(found).collect();
    parts.sort_by_key(|(site, _)| **site);
    let parts = parts.into_iter();
    parts
        .map(|(_, found)| DirectionPart {
            site: found.site.clone(),
            vector: found.vector.clone(),
            stats: None,
        })
        .collect()
}

fn sites(names: &[String], card: &ModelCard) -> Result<Vec<Site>, ApiError> {
    if !(1..=MOST_SITES).contains(&names.len()) {
        let message = format!(
            "there are {} sites; between 1 and {MOST_SITES} are taken",
            names.len()
        );
        return Err(ApiError::invalid("sites", message));
    }
    let mut sites = Vec::with_capacity(names.len());
    for (index, name) in names.iter().enumerate() {
        let param = format!("sites[{index}]");
        let site = site_of(name, card.config.n_layers)
            .map_err(|error| ApiError::invalid(&*param, error))?;
        if sites.contains(&site) {
            return Err(ApiError::invalid(param, format!("{site} is named twice")));
        }
        sites.push(site);
    }
    Ok(sites)
}

fn strengths(given: Option<Vec<f64>>) -> Result<Vec<f64>, ApiError> {
    let strengths = given.unwrap_or_else(|| DEFAULT_STRENGTHS.to_vec());
    if strengths.len() > MOST_STRENGTHS {
        let message = format!(
            "there are {} strengths; at most {MOST_STRENGTHS} are taken",
            strengths.len()
        );
        return Err(ApiError::invalid("strengths", message));
    }
    let allowed = -LARGEST_STRENGTH..=LARGEST_STRENGTH;
    match strengths
        .iter()
        .position(|strength| !allowed.contains(strength))
    {
        None => Ok(strengths),
        Some(index) => {
            let message = format!(
                "strength {} is outside -{LARGEST_STRENGTH} to {LARGEST_STRENGTH}",
                strengths[index]
            );
            Err(ApiError::invalid(format!("strengths[{index}]"), message))
        }
    }
}

/// A prompt and the field that it was sent in.
struct Sent {
    prompt: DirectionPrompt,
    field: String,
}

/// The prompts that a direction is made of and those it is checked on.
struct Given {
    positive: Vec<Sent>,
    negative: Vec<Sent>,
    held_positive: Vec<Sent>,
    held_negative: Vec<Sent>,
}

/// The same as token ids.
struct Encoded {
    made_of: ContrastSet,
    held_out: ContrastSet,
    answers: Option<Vec<(u32, u32)>>,
}

impl Given {
    fn of(
        positive: Vec<DirectionPrompt>,
        negative: Vec<DirectionPrompt>,
        held_out: Option<HeldOutPrompts>,
        method: DirectionMethod,
    ) -> Result<Self, ApiError> {
        let least = if held_out.is_some() { 1 } else { 2 };
        for (field, prompts, least) in [
            ("positive", &positive, least),
            ("negative", &negative, least),
        ]
        .into_iter()
        .chain(held_out.iter().flat_map(|held| {
            [
                ("held_out.positive", &held.positive, 1),
                ("held_out.negative", &held.negative, 1),
            ]
        })) {
            let count = prompts.len();
            if !(least..=MOST_PROMPTS).contains(&count) {
                let message = format!(
                    "there are {count} prompts; between {least} and {MOST_PROMPTS} are taken{}",
                    match least {
                        2 => ", at least one to make the direction of and one to check it on",
                        _ => "",
                    }
                );
                return Err(ApiError::invalid(field, message));
            }
        }
        if method == DirectionMethod::Pca && positive.len() != negative.len() {
            let message = format!(
                "pca compares pairs: there are {} positive prompts and {} negative ones",
                positive.len(),
                negative.len()
            );
            return Err(ApiError::invalid("negative", message));
        }
        let sent = |prompts: Vec<DirectionPrompt>, field: &str| -> Vec<Sent> {
            let prompts = prompts.into_iter().enumerate();
            prompts
                .map(|(index, prompt)| Sent {
                    prompt,
                    field: format!("{field}[{index}]"),
                })
                .collect()
        };
        let (positive, negative) = (sent(positive, "positive"), sent(negative, "negative"));
        let given = match held_out {
            Some(held) => Given {
                positive,
                negative,
                held_positive: sent(held.positive, "held_out.positive"),
                held_negative: sent(held.negative, "held_out.negative"),
            },
            None => {
                let (positive, held_positive) = hold_out(positive);
                let (negative, held_negative) = hold_out(negative);
                Given {
                    positive,
                    negative,
                    held_positive,
                    held_negative,
                }
            }
        };
        let has_answers = given.has_answers();
        if let Some(other) = given
            .all()
            .find(|sent| sent.prompt.has_answer() != has_answers)
        {
            let message = "all prompts have answers, or none has; this one is unlike the first";
            return Err(ApiError::invalid(&*other.field, message));
        }
        Ok(given)
    }

    fn all(&self) -> impl Iterator<Item = &Sent> {
        self.positive
            .iter()
            .chain(&self.negative)
            .chain(&self.held_positive)
            .chain(&self.held_negative)
    }

    fn has_answers(&self) -> bool {
        self.all()
            .next()
            .is_some_and(|sent| sent.prompt.has_answer())
    }

    /// Characters, or ids.
    fn length(&self) -> usize {
        self.all().map(|sent| sent.prompt.length()).sum()
    }

    fn prompts(&self) -> usize {
        self.all().count()
    }

    fn positions(&self, asked: Option<ReadPositions>) -> Result<ReadPositions, ApiError> {
        match (asked, self.has_answers()) {
            (Some(ReadPositions::Answer), false) => Err(ApiError::invalid(
                "positions",
                "the prompts have no answers whose tokens could be read; give each as {\"prompt\": ..., \"answer\": ...}",
            )),
            (Some(positions), _) => Ok(positions),
            (None, true) => Ok(ReadPositions::Answer),
            (None, false) => Ok(ReadPositions::Last),
        }
    }

    fn encode(
        &self,
        encoder: &Encoder,
        answers: Option<&ContrastAnswers>,
    ) -> Result<Encoded, ApiError> {
        let encode = |sent: &[Sent]| -> Result<Vec<ContrastPrompt>, ApiError> {
            sent.iter()
                .map(|sent| encoder.prompt(&sent.prompt, &sent.field))
                .collect()
        };
        let held_out = self.held_positive.iter().chain(&self.held_negative);
        let answers = answers.map(|answers| {
            held_out
                .map(|sent| {
                    let token = |answer: &AnswerToken, param: &str| {
                        encoder.answer(answer, sent.prompt.text(), param)
                    };
                    let positive = token(&answers.positive, "answers.positive")?;
                    let negative = token(&answers.negative, "answers.negative")?;
                    match positive == negative {
                        true => {
                            let message = format!(
                                "both answers begin with the token {positive} after {}; there is nothing to compare",
                                sent.field
                            );
                            Err(ApiError::invalid("answers.negative", message))
                        }
                        false => Ok((positive, negative)),
                    }
                })
                .collect::<Result<Vec<_>, ApiError>>()
        });
        Ok(Encoded {
            made_of: ContrastSet {
                positive: encode(&self.positive)?,
                negative: encode(&self.negative)?,
            },
            held_out: ContrastSet {
                positive: encode(&self.held_positive)?,
                negative: encode(&self.held_negative)?,
            },
            answers: answers.transpose()?,
        })
    }
}

/// Every fourth prompt apart from the others, or the last of fewer.
fn hold_out(prompts: Vec<Sent>) -> (Vec<Sent>, Vec<Sent>) {
    let every = HELD_OUT.min(prompts.len());
    let (mut made_of, mut held_out) = (Vec::new(), Vec::new());
    for (index, prompt) in prompts.into_iter().enumerate() {
        match (index + 1) % every {
            0 => held_out.push(prompt),
            _ => made_of.push(prompt),
        }
    }
    (made_of, held_out)
}
