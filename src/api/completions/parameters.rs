//! What both kinds of completion are checked for: each common field against its range, and the request as a
//! whole against the budgets: prompts x samples x arms x tokens, before anything of that size exists.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::request::{Common, StopField};
use crate::api::ApiError;
use crate::api::presets::applied;
use crate::circuits::circuit::NamedCircuits;
use crate::features::direction::NamedDirections;
use crate::features::pair::Pair;
use crate::generation::request::GenerationRequest;
use crate::generation::sampling::{
    self, MOST_SAMPLES, NumberRange, OutOfRange, Sampling, check_bias,
};
use crate::interventions::request::{
    CounterfactualPrompt, Destination, SteerRequest, Strength, Variant,
};
use crate::models::model::LoadedModel;
use crate::serving::named_model::NamedModel;
use crate::settings::Limits;

pub const MOST_STOPS: usize = 4;
/// Text is held back for as long as it could be the beginning of a stop.
pub const LONGEST_STOP: usize = 1000;

/// What a request asks for in fields of its own.
#[derive(Debug)]
pub struct Asked {
    pub prompts: usize,
    /// Samples for each prompt.
    pub samples: usize,
    /// None for as many as the context and the budget leave room for.
    pub max_tokens: Option<usize>,
    /// The field that says so.
    pub max_tokens_field: &'static str,
    /// So many alternatives are reported beside each token's own log-probability; none reports nothing.
    pub logprobs: Option<usize>,
    pub echo: bool,
}

/// A request that is within its ranges and budgets.
#[derive(Debug)]
pub struct Checked {
    pub max_tokens: usize,
    /// For each prompt.
    pub samples: usize,
    pub sampling: Sampling,
    pub stop: Vec<String>,
    pub logprobs: Option<usize>,
    pub echo: bool,
    pub steer: Option<SteerRequest>,
    cache_salt: Option<String>,
    answer_bytes: usize,
    deadline: Duration,
    first_token_within: Duration,
    /// None for an answer in one piece.
    pub streaming: Option<Streaming>,
    /// The choices that one sample becomes.
    pub arms: usize,
}

/// How a stream is answered.
#[derive(Debug, Clone, Copy)]
pub struct Streaming {
    pub include_usage: bool,
}

/// Checks all that can be said without tokenising.
pub fn check(
    common: Common,
    asked: Asked,
    named: &NamedModel,
    limits: &Limits,
) -> Result<Checked, ApiError> {
    let streaming = streaming(&common)?;
    let config = &named.card.config;
    let sampling = sampling(&common, config.vocab_size)?;
    let own = match (common.steer, common.steering) {
        (Some(_), Some(_)) => {
            return Err(ApiError::invalid(
                "steering",
                "steer and steering are one field; give one of them",
            ));
        }
        (steer, None) | (None, steer) => steer,
    };
    if common.cache_salt.as_ref().is_some_and(String::is_empty) {
        return Err(ApiError::invalid(
            "cache_salt",
            "an empty salt is none; leave cache_salt out instead",
        ));
    }
    let steer = applied::steer(named, own)?;
    let arms = steer.as_ref().map_or(1, arms);
    let samples = asked.prompts.saturating_mul(asked.samples);
    let choices = samples.saturating_mul(arms);
    let max_tokens = asked.max_tokens.unwrap_or_else(|| {
        let share = limits.max_generated_tokens / choices.max(1);
        share.clamp(1, config.context_length)
    });
    check_budgets(choices, max_tokens, asked.max_tokens_field, limits)?;
    let counterfactuals = check_counterfactuals(steer.as_ref(), limits);
    counterfactuals.map_err(|error| applied::told(named, error))?;
    Ok(Checked {
        max_tokens,
        samples: asked.samples,
        sampling,
        stop: stop(common.stop)?,
        logprobs: asked.logprobs,
        echo: asked.echo,
        steer,
        cache_salt: common.cache_salt,
        answer_bytes: limits.max_answer_bytes,
        deadline: Duration::from_secs(limits.deadline_seconds),
        first_token_within: Duration::from_secs(limits.first_token_seconds),
        streaming,
        arms,
    })
}

impl Checked {
    /// What the engine is asked: to complete `prompts` with `model`, which has these directions and circuits and whose
    /// other edits go over `pair`.
    pub fn into_request(
        self,
        model: Arc<LoadedModel>,
        pair: Option<Arc<Pair>>,
        (directions, circuits): (Arc<NamedDirections>, Arc<NamedCircuits>),
        prompts: Vec<Vec<u32>>,
    ) -> GenerationRequest {
        GenerationRequest {
            model,
            pair,
            directions,
            circuits,
            prompts,
            measured: Default::default(),
            max_tokens: self.max_tokens,
            n: self.samples,
            sampling: self.sampling,
            stop: self.stop,
            logprobs: self.logprobs,
            echo: self.echo,
            steer: self.steer,
            cache_salt: self.cache_salt,
            answer_bytes: Some(self.answer_bytes),
            deadline: Some(self.deadline),
            first_token_within: Some(self.first_token_within),
        }
    }
}

/// How many samples a field asks for.
pub fn samples(param: &str, value: usize) -> Result<usize, ApiError> {
    match (1..=MOST_SAMPLES).contains(&value) {
        true => Ok(value),
        false => Err(ApiError::invalid(
            param,
            format!("{param} is {value}; it must be between 1 and {MOST_SAMPLES}"),
        )),
    }
}

/// A field that this server does not have.
pub fn unsupported(param: &str, message: impl Into<String>) -> ApiError {
    ApiError::invalid_with_code(param, "unsupported", message)
}

fn streaming(common: &Common) -> Result<Option<Streaming>, ApiError> {
    let wanted = common.stream.unwrap_or(false);
    if common.stream_options.is_some() && !wanted {
        return Err(ApiError::invalid(
            "stream_options",
            "stream_options is for streams; leave it out, or set stream to true",
        ));
    }
    let options = common.stream_options.unwrap_or_default();
    Ok(wanted.then(|| Streaming {
        include_usage: options.include_usage.unwrap_or(false),
    }))
}

fn sampling(common: &Common, vocabulary: usize) -> Result<Sampling, ApiError> {
    Ok(Sampling {
        temperature: number(&sampling::TEMPERATURE, common.temperature)?,
        top_p: number(&sampling::TOP_P, common.top_p)?,
        top_k: top_k(common.top_k)?,
        min_p: number(&sampling::MIN_P, common.min_p)?,
        // Any integer is a seed; which of the 2^64 it is does not matter.
        seed: common.seed.map(i64::cast_unsigned),
        logit_bias: logit_bias(common.logit_bias.as_ref(), vocabulary)?,
        presence_penalty: number(&sampling::PRESENCE_PENALTY, common.presence_penalty)?,
        frequency_penalty: number(&sampling::FREQUENCY_PENALTY, common.frequency_penalty)?,
        repetition_penalty: number(&sampling::REPETITION_PENALTY, common.repetition_penalty)?,
    })
}

/// The choices that one sample becomes: the baseline once, every other arm once for each strength.
pub fn arms(steer: &SteerRequest) -> usize {
    let strengths = steer.edits.iter().filter_map(|edit| match &edit.strength {
        Some(Strength::Sweep(strengths)) => Some(strengths.len()),
        _ => None,
    });
    let strengths = strengths.max().unwrap_or(1).max(1);
    let of_variant = |variant: &Variant| {
        if *variant == Variant::Baseline {
            1
        } else {
            strengths
        }
    };
    match &steer.variants {
        Some(variants) => variants
            .iter()
            .map(of_variant)
            .fold(0, usize::saturating_add)
            .max(1),
        None => strengths,
    }
}

fn check_budgets(
    choices: usize,
    max_tokens: usize,
    max_tokens_field: &str,
    limits: &Limits,
) -> Result<(), ApiError> {
    if choices > limits.max_choices {
        let message = format!(
            "the request asks for {choices} completions (prompts x samples x arms); at most {} are made",
            limits.max_choices
        );
        return Err(ApiError::invalid_with_code("n", "over_budget", message));
    }
    let tokens = choices.saturating_mul(max_tokens);
    if tokens > limits.max_generated_tokens {
        let message = format!(
            "the request asks for up to {tokens} tokens (prompts x samples x arms x {max_tokens_field}); at \
             most {} are generated",
            limits.max_generated_tokens
        );
        return Err(ApiError::invalid_with_code(
            max_tokens_field,
            "over_budget",
            message,
        ));
    }
    Ok(())
}

/// Counterfactual prompts are tokenised and run like any other.
pub fn check_counterfactuals(
    steer: Option<&SteerRequest>,
    limits: &Limits,
) -> Result<(), ApiError> {
    let edits = steer.iter().flat_map(|steer| &steer.edits);
    let prompts = edits.filter_map(|edit| match &edit.to {
        Some(Destination::Counterfactual(to)) => to.prompt.as_ref(),
        _ => None,
    });
    let (mut count, mut characters) = (0, 0);
    for prompt in prompts {
        let (more, long) = match prompt {
            CounterfactualPrompt::Text(text) => (1, text.chars().count()),
            CounterfactualPrompt::Tokens(tokens) => (1, tokens.len()),
            CounterfactualPrompt::Texts(texts) => (
                texts.len(),
                texts.iter().map(|text| text.chars().count()).sum(),
            ),
            CounterfactualPrompt::TokenLists(lists) => {
                (lists.len(), lists.iter().map(Vec::len).sum())
            }
        };
        count += more;
        characters += long;
    }
    if count > limits.max_prompts || characters > limits.max_prompt_characters {
        let message = format!(
            "the counterfactual prompts are {count} with {characters} characters; at most {} with {} are taken",
            limits.max_prompts, limits.max_prompt_characters
        );
        return Err(ApiError::invalid_with_code(
            "steer.edits",
            "over_budget",
            message,
        ));
    }
    Ok(())
}

fn number(range: &NumberRange, value: Option<f64>) -> Result<f64, ApiError> {
    let value = value.unwrap_or(range.default);
    range.check(value).map_err(out_of_range)
}

fn out_of_range(error: OutOfRange) -> ApiError {
    ApiError::invalid(error.param, error.message)
}

fn top_k(value: Option<i64>) -> Result<usize, ApiError> {
    match value {
        None | Some(-1) => Ok(0),
        Some(value) => usize::try_from(value).map_err(|_| {
            ApiError::invalid(
                "top_k",
                format!("top_k is {value}; it must be positive, or 0 or -1 for all tokens"),
            )
        }),
    }
}

fn logit_bias(
    biases: Option<&BTreeMap<String, f64>>,
    vocabulary: usize,
) -> Result<BTreeMap<u32, f32>, ApiError> {
    let check = |(key, &bias): (&String, &f64)| {
        let Ok(id) = key.parse::<u32>() else {
            let shown: String = key.chars().take(80).collect();
            let message = format!(
                "{shown:?} is no token id of the model; they run from 0 to {}",
                vocabulary - 1
            );
            return Err(ApiError::invalid("logit_bias", message));
        };
        check_bias(id, bias, vocabulary).map_err(out_of_range)?;
        Ok((id, bias as f32))
    };
    biases.into_iter().flatten().map(check).collect()
}

fn stop(field: Option<StopField>) -> Result<Vec<String>, ApiError> {
    let stops = match field {
        None => Vec::new(),
        Some(StopField::One(text)) => vec![text],
        Some(StopField::Several(texts)) => texts,
    };
    if stops.len() > MOST_STOPS {
        let message = format!(
            "stop has {} texts; at most {MOST_STOPS} are taken",
            stops.len()
        );
        return Err(ApiError::invalid("stop", message));
    }
    if stops.iter().any(String::is_empty) {
        return Err(ApiError::invalid(
            "stop",
            "an empty text ends everything; leave stop out instead",
        ));
    }
    if stops.iter().any(|stop| stop.chars().count() > LONGEST_STOP) {
        return Err(ApiError::invalid(
            "stop",
            format!("a text of stop has at most {LONGEST_STOP} characters"),
        ));
    }
    Ok(stops)
}
