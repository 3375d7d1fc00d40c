//! A completion's request, field by field against its range, and as a whole against the budgets: prompts x
//! samples x arms x tokens, before anything of that size exists.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::prompt::Prompt;
use super::request::{CreateCompletion, PromptField, StopField};
use crate::api::ApiError;
use crate::api::inventory::ModelCard;
use crate::generation::request::{GenerationRequest, Sampling};
use crate::interventions::request::{
    CounterfactualPrompt, Destination, SteerRequest, Strength, Variant,
};
use crate::settings::Limits;

const DEFAULT_MAX_TOKENS: usize = 16;
const MOST_SAMPLES: usize = 128;
const MOST_LOGPROBS: usize = 5;
pub const MOST_STOPS: usize = 4;
/// Text is held back for as long as it could be the beginning of a stop.
pub const LONGEST_STOP: usize = 1000;

/// A request that is within its ranges and budgets.
#[derive(Debug)]
pub struct Checked {
    pub prompts: Vec<Prompt>,
    /// What the engine is asked, still without its prompts.
    pub engine: GenerationRequest,
    pub best_of: Option<BestOf>,
    /// None for an answer in one piece.
    pub streaming: Option<Streaming>,
    /// Completions of all prompts together.
    pub choices: usize,
    pub echo: bool,
    pub logprobs: Option<usize>,
}

/// How a stream is answered.
#[derive(Debug, Clone, Copy)]
pub struct Streaming {
    pub include_usage: bool,
}

/// Of so many samples a prompt so many are kept.
#[derive(Debug, Clone, Copy)]
pub struct BestOf {
    pub samples: usize,
    pub kept: usize,
}

/// Checks all that can be said without tokenising.
pub fn check(
    request: CreateCompletion,
    card: &ModelCard,
    limits: &Limits,
) -> Result<Checked, ApiError> {
    refuse_unsupported(&request)?;
    let steer = match (request.steer, request.steering) {
        (Some(_), Some(_)) => {
            return Err(ApiError::invalid(
                "steering",
                "steer and steering are one field; give one of them",
            ));
        }
        (steer, None) | (None, steer) => steer,
    };
    let max_tokens = request.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS);
    let echo = request.echo.unwrap_or(false);
    if max_tokens == 0 && !echo {
        return Err(ApiError::invalid(
            "max_tokens",
            "max_tokens is 0, which only makes sense with echo",
        ));
    }
    let kept = count("n", request.n.unwrap_or(1))?;
    let samples = count("best_of", request.best_of.unwrap_or(kept))?;
    if samples < kept {
        let message =
            format!("best_of is {samples} and n is {kept}; the best n of fewer cannot be kept");
        return Err(ApiError::invalid("best_of", message));
    }
    let arms = steer.as_ref().map_or(1, arms);
    let several_arms = arms > 1 || steer.as_ref().is_some_and(|steer| steer.variants.is_some());
    if several_arms && request.best_of.is_some_and(|best_of| best_of > 1) {
        let message =
            "best_of cannot choose between arms: leave it out with variants or a list of strengths";
        return Err(ApiError::invalid("best_of", message));
    }
    let prompts = prompts(request.prompt, limits)?;
    let choices = prompts.len().saturating_mul(samples).saturating_mul(arms);
    check_budgets(choices, max_tokens, limits)?;
    check_counterfactuals(steer.as_ref(), limits)?;
    let logprobs = match request.logprobs {
        Some(count) if count > MOST_LOGPROBS => {
            let message = format!("logprobs is {count}; it must be between 0 and {MOST_LOGPROBS}");
            return Err(ApiError::invalid("logprobs", message));
        }
        logprobs => logprobs,
    };
    let best_of = (samples > kept).then_some(BestOf { samples, kept });
    let streaming = request.stream.unwrap_or(false).then(|| Streaming {
        include_usage: request
            .stream_options
            .and_then(|options| options.include_usage)
            .unwrap_or(false),
    });
    if streaming.is_some() && best_of.is_some() {
        let message = "the best of several cannot be known before all have ended: leave out best_of or stream";
        return Err(ApiError::invalid("best_of", message));
    }
    let sampling = Sampling {
        temperature: number("temperature", request.temperature, 1.0, 0.0..=2.0)?,
        top_p: number("top_p", request.top_p, 1.0, 0.0..=1.0)?,
        top_k: top_k(request.top_k)?,
        min_p: number("min_p", request.min_p, 0.0, 0.0..=1.0)?,
        // Any integer is a seed; which of the 2^64 it is does not matter.
        seed: request.seed.map(i64::cast_unsigned),
        logit_bias: logit_bias(
            request.logit_bias.unwrap_or_default(),
            card.config.vocab_size,
        )?,
        presence_penalty: number(
            "presence_penalty",
            request.presence_penalty,
            0.0,
            -2.0..=2.0,
        )?,
        frequency_penalty: number(
            "frequency_penalty",
            request.frequency_penalty,
            0.0,
            -2.0..=2.0,
        )?,
        repetition_penalty: number(
            "repetition_penalty",
            request.repetition_penalty,
            1.0,
            f64::MIN_POSITIVE..=10.0,
        )?,
    };
    let engine = GenerationRequest {
        model: card.id.clone(),
        prompts: Vec::new(),
        max_tokens,
        n: samples,
        sampling,
        stop: stop(request.stop)?,
        // Ranking needs each token's own log-probability.
        logprobs: logprobs.or(best_of.map(|_| 0)),
        echo,
        steer,
        deadline: Some(Duration::from_secs(limits.deadline_seconds)),
        first_token_within: Some(Duration::from_secs(limits.first_token_seconds)),
    };
    Ok(Checked {
        prompts,
        engine,
        best_of,
        streaming,
        choices,
        echo,
        logprobs,
    })
}

fn refuse_unsupported(request: &CreateCompletion) -> Result<(), ApiError> {
    if request.stream_options.is_some() && request.stream != Some(true) {
        return Err(ApiError::invalid(
            "stream_options",
            "stream_options is for streams; leave it out, or set stream to true",
        ));
    }
    if request.suffix.is_some() {
        let message = "suffix is not supported: these models continue text, they do not fill gaps";
        return Err(ApiError::invalid_with_code(
            "suffix",
            "unsupported",
            message,
        ));
    }
    Ok(())
}

/// The choices that one sample becomes: the baseline once, every other arm once for each strength.
fn arms(steer: &SteerRequest) -> usize {
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

fn prompts(field: Option<PromptField>, limits: &Limits) -> Result<Vec<Prompt>, ApiError> {
    let prompts: Vec<Prompt> = match field {
        None => vec![Prompt::Text(String::new())],
        Some(PromptField::Text(text)) => vec![Prompt::Text(text)],
        Some(PromptField::Tokens(tokens)) => vec![Prompt::Tokens(tokens)],
        Some(PromptField::Texts(texts)) => texts.into_iter().map(Prompt::Text).collect(),
        Some(PromptField::TokenLists(lists)) => lists.into_iter().map(Prompt::Tokens).collect(),
    };
    let limit = limits.max_prompts;
    match prompts.len() <= limit {
        true => Ok(prompts),
        false => {
            let message = format!(
                "the request has {} prompts; at most {limit} are taken",
                prompts.len()
            );
            Err(ApiError::invalid("prompt", message))
        }
    }
}

fn check_budgets(choices: usize, max_tokens: usize, limits: &Limits) -> Result<(), ApiError> {
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
            "the request asks for up to {tokens} tokens (prompts x samples x arms x max_tokens); at most {} are \
             generated",
            limits.max_generated_tokens
        );
        return Err(ApiError::invalid_with_code(
            "max_tokens",
            "over_budget",
            message,
        ));
    }
    Ok(())
}

/// Counterfactual prompts are tokenised and run like any other.
fn check_counterfactuals(steer: Option<&SteerRequest>, limits: &Limits) -> Result<(), ApiError> {
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

fn count(param: &str, value: usize) -> Result<usize, ApiError> {
    match (1..=MOST_SAMPLES).contains(&value) {
        true => Ok(value),
        false => Err(ApiError::invalid(
            param,
            format!("{param} is {value}; it must be between 1 and {MOST_SAMPLES}"),
        )),
    }
}

fn number(
    param: &str,
    value: Option<f64>,
    default: f64,
    range: RangeInclusive<f64>,
) -> Result<f64, ApiError> {
    let value = value.unwrap_or(default);
    match range.contains(&value) {
        true => Ok(value),
        // The smallest positive number stands for "above 0".
        false if *range.start() == f64::MIN_POSITIVE => {
            let message = format!(
                "{param} is {value}; it must be above 0 and at most {}",
                range.end()
            );
            Err(ApiError::invalid(param, message))
        }
        false => {
            let message = format!(
                "{param} is {value}; it must be between {} and {}",
                range.start(),
                range.end()
            );
            Err(ApiError::invalid(param, message))
        }
    }
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
    biases: BTreeMap<String, f64>,
    vocabulary: usize,
) -> Result<BTreeMap<u32, f32>, ApiError> {
    let check = |(key, bias): (String, f64)| {
        let id = key
            .parse::<u32>()
            .ok()
            .filter(|id| (*id as usize) < vocabulary);
        let Some(id) = id else {
            let shown: String = key.chars().take(80).collect();
            let message = format!(
                "{shown:?} is no token id of the model; they run from 0 to {}",
                vocabulary - 1
            );
            return Err(ApiError::invalid("logit_bias", message));
        };
        if !(-100.0..=100.0).contains(&bias) {
            let message =
                format!("the bias of token {id} is {bias}; it must be between -100 and 100");
            return Err(ApiError::invalid("logit_bias", message));
        }
        Ok((id, bias as f32))
    };
    biases.into_iter().map(check).collect()
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
