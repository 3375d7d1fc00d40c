//! The fields that only a completion of text has, against their ranges.

use super::request::{CreateCompletion, PromptField};
use crate::api::ApiError;
use crate::api::completions::parameters::{self, Asked, Checked, unsupported};
use crate::api::completions::prompt::Prompt;
use crate::api::completions::request::common_fields;
use crate::serving::named_model::NamedModel;
use crate::settings::Limits;

const DEFAULT_MAX_TOKENS: usize = 16;
pub const MOST_LOGPROBS: usize = 5;

/// A request that is within its ranges and budgets.
#[derive(Debug)]
pub struct CheckedText {
    pub prompts: Vec<Prompt>,
    pub checked: Checked,
    pub best_of: Option<BestOf>,
    /// Choices of each prompt that are answered with.
    pub per_prompt: usize,
    /// Whether log-probabilities were asked for.
    pub logprobs: bool,
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
    named: &NamedModel,
    limits: &Limits,
) -> Result<CheckedText, ApiError> {
    if request.suffix.is_some() {
        let message = "suffix is not supported: these models continue text, they do not fill gaps";
        return Err(unsupported("suffix", message));
    }
    let max_tokens = request.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS);
    let echo = request.echo.unwrap_or(false);
    if max_tokens == 0 && !echo {
        return Err(ApiError::invalid(
            "max_tokens",
            "max_tokens is 0, which only makes sense with echo",
        ));
    }
    let kept = parameters::samples("n", request.n.unwrap_or(1))?;
    let samples = parameters::samples("best_of", request.best_of.unwrap_or(kept))?;
    if samples < kept {
        let message =
            format!("best_of is {samples} and n is {kept}; the best n of fewer cannot be kept");
        return Err(ApiError::invalid("best_of", message));
    }
    if let Some(count) = request.logprobs.filter(|&count| count > MOST_LOGPROBS) {
        let message = format!("logprobs is {count}; it must be between 0 and {MOST_LOGPROBS}");
        return Err(ApiError::invalid("logprobs", message));
    }
    let best_of = (samples > kept).then_some(BestOf { samples, kept });
    let chosen = request.best_of.is_some_and(|best_of| best_of > 1);
    let prompts = prompts(request.prompt, limits)?;
    let asked = Asked {
        prompts: prompts.len(),
        samples,
        max_tokens: Some(max_tokens),
        max_tokens_field: "max_tokens",
        // Ranking needs each token's own log-probability.
        logprobs: request.logprobs.or(best_of.map(|_| 0)),
        echo,
    };
    let checked = parameters::check(common_fields!(request), asked, named, limits)?;
    let steer = checked.steer.as_ref();
    let several_arms = checked.arms > 1 || steer.is_some_and(|steer| steer.variants.is_some());
    if chosen && several_arms {
        let message =
            "best_of cannot choose between arms: leave it out with variants or a list of strengths";
        return Err(ApiError::invalid("best_of", message));
    }
    if best_of.is_some() && checked.streaming.is_some() {
        let message = "the best of several cannot be known before all have ended: leave out best_of or stream";
        return Err(ApiError::invalid("best_of", message));
    }
    Ok(CheckedText {
        prompts,
        best_of,
        per_prompt: kept * checked.arms,
        checked,
        logprobs: request.logprobs.is_some(),
    })
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
