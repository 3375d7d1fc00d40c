//! What a request must be before it is begun: its fields, its lengths, and the arms it comes to.

use super::arms::ArmKey;
use super::request::{EngineError, GenerationRequest};
use super::sampling::sample_seed;
use crate::interventions::cost::kept_bytes;
use crate::interventions::plan::{Plan, Scene};
use crate::interventions::request::Variant;
use crate::interventions::steering::{ArmPlan, Steering};
use crate::models::model::LoadedModel;

/// No request has more arms: prompts times samples times variants times strengths.
pub const MOST_ARMS: usize = 512;

pub fn invalid(message: impl Into<String>, param: &str) -> EngineError {
    EngineError::Invalid {
        message: message.into(),
        param: Some(param.to_owned()),
    }
}

/// What concerns the model alone.
pub fn check(request: &GenerationRequest, model: &LoadedModel) -> Result<(), EngineError> {
    let vocabulary = model.transformer.config.vocab_size;
    if request.prompts.is_empty() {
        return Err(invalid("there is no prompt", "prompt"));
    }
    for prompt in &request.prompts {
        if prompt.is_empty() {
            return Err(invalid("a prompt has no tokens", "prompt"));
        }
        if let Some(id) = prompt.iter().find(|id| **id as usize >= vocabulary) {
            return Err(invalid(
                format!("token id {id} is outside the vocabulary of {vocabulary}"),
                "prompt",
            ));
        }
    }
    if request.n == 0 {
        return Err(invalid("`n` must be at least 1", "n"));
    }
    if request.stop.iter().any(String::is_empty) {
        return Err(invalid("a stop text is empty", "stop"));
    }
    let checked = request.sampling.check(vocabulary);
    checked.map_err(|error| invalid(error.message, error.param))
}

/// Refuses edits that could be made for no prompt. What the prompts decide, such as whether a position is in them, is
/// found out with them.
pub fn check_edits(request: &GenerationRequest) -> Result<(), EngineError> {
    let Some(steer) = &request.steer else {
        return Ok(());
    };
    let scene = request.scene();
    let plan = Plan::new(steer, &scene)?;
    let variants = plan.variants.clone().into_iter();
    let arms: Vec<ArmPlan> = variants
        .map(|variant| ArmPlan {
            prompt: 0,
            variant,
            strength: None,
            seed: 0,
        })
        .collect();
    Steering::new(plan, &scene, &arms)?;
    Ok(())
}

/// How many tokens each prompt's arms may generate: what is asked for, or what the context has room for.
pub fn limits(
    request: &GenerationRequest,
    plan: Option<&Plan>,
    scene: &Scene,
) -> Result<Vec<usize>, EngineError> {
    let context = match plan {
        Some(plan) if !plan.is_empty() => scene.context_length(),
        _ => scene.model.config.context_length,
    };
    let prompts = request.prompts.iter().enumerate();
    prompts
        .map(|(index, prompt)| {
            let streams = plan.iter().flat_map(|plan| &plan.streams);
            let beside = streams.map(|stream| stream.prompts[index].len()).max().unwrap_or(0);
            let length = prompt.len().max(beside);
            let needed = length + request.max_tokens.min(1);
            if needed > context {
                let what = if beside > prompt.len() { "the counterfactual of prompt" } else { "prompt" };
                let message = format!(
                    "{what} {index} has {length} tokens; the context of {context} leaves no room for {} more",
                    request.max_tokens.min(1)
                );
                return Err(invalid(message, "prompt"));
            }
            Ok(request.max_tokens.min(context - length))
        })
        .collect()
}

/// A token's log-probability with what holds it, and one of its alternatives; both with their JSON.
const LOGPROB: usize = 160;
const ALTERNATIVE: usize = 96;

/// What the request would keep until it is answered: nothing of that size exists yet.
pub fn check_bytes(
    request: &GenerationRequest,
    plan: Option<&Plan>,
    scene: &Scene,
    keys: &[ArmKey],
    limits: &[usize],
) -> Result<(), EngineError> {
    let Some(limit) = request.answer_bytes else {
        return Ok(());
    };
    let generated = |key: &ArmKey| {
        if key.choice.is_some() {
            limits[key.prompt]
        } else {
            0
        }
    };
    let tokenizer = scene.tokenizer;
    let prompts = request.prompts.iter();
    let texts: Vec<usize> = prompts
        .map(|prompt| {
            prompt
                .iter()
                .map(|&id| tokenizer.token_bytes(id).len())
                .sum()
        })
        .collect();
    let lengths = keys.iter().map(|key| {
        let text = texts[key.prompt] + generated(key).saturating_mul(tokenizer.longest_token());
        let tokens = request.prompts[key.prompt].len() + generated(key);
        (key.variant, tokens, text)
    });
    let kept = plan.map_or(0, |plan| kept_bytes(plan, scene, lengths));
    let told = match request.logprobs {
        None => 0,
        Some(top) => {
            let tokens = keys.iter().map(|key| {
                let echoed = if request.echo {
                    request.prompts[key.prompt].len()
                } else {
                    0
                };
                generated(key) + echoed
            });
            let tokens = tokens.fold(0, usize::saturating_add);
            tokens.saturating_mul(LOGPROB + top * ALTERNATIVE)
        }
    };
    let total = kept.saturating_add(told);
    if total <= limit {
        return Ok(());
    }
    let mebibytes = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    let (what, instead, param) = match kept > told {
        true => (
            "receipts, activations and control arms",
            "fewer prompts, samples, variants, strengths, tokens, edits or channels, or nothing to return",
            "steer.return",
        ),
        false => (
            "log-probabilities",
            "fewer tokens, samples or alternatives",
            "logprobs",
        ),
    };
    let message = format!(
        "the {what} of this request take about {:.0} MiB; an answer may take {:.0} MiB (limits.max_answer_bytes): ask \
         for {instead}",
        mebibytes(total),
        mebibytes(limit),
    );
    Err(invalid(message, param))
}

/// The arms: prompt, sample, variant as requested, strength; after them the baselines that only receipts need.
pub fn keys(request: &GenerationRequest, plan: Option<&Plan>) -> Result<Vec<ArmKey>, EngineError> {
    let variants: Vec<Variant> = plan.map_or(vec![Variant::Baseline], |plan| plan.variants.clone());
    let sweep: Vec<Option<f64>> = match plan.and_then(|plan| plan.sweep.as_ref()) {
        Some(strengths) => strengths.iter().copied().map(Some).collect(),
        None => vec![None],
    };
    let once = [None];
    let strengths = |variant: Variant| match variant {
        Variant::Baseline => once.as_slice(),
        Variant::Steered | Variant::Random | Variant::RandomFeature => sweep.as_slice(),
    };
    let per_sample: usize = variants
        .iter()
        .map(|&variant| strengths(variant).len())
        .sum();
    let count = request
        .prompts
        .len()
        .saturating_mul(request.n)
        .saturating_mul(per_sample);
    if count > MOST_ARMS {
        let message = format!(
            "prompts times samples times variants times strengths are {count}; a request has at most {MOST_ARMS}"
        );
        return Err(invalid(message, "n"));
    }
    // Two halves, for each has bits that say only what kind of identifier it is.
    let drawn = || {
        let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
        high ^ low.rotate_left(32)
    };
    let seed = request.sampling.seed.unwrap_or_else(drawn);
    let mut keys = Vec::with_capacity(count);
    for prompt in 0..request.prompts.len() {
        for sample in 0..request.n {
            let seed = sample_seed(seed, sample);
            for &variant in &variants {
                for &strength in strengths(variant) {
                    keys.push(ArmKey {
                        prompt,
                        variant,
                        strength,
                        choice: Some(keys.len()),
                        seed,
                    });
                }
            }
        }
    }
    if plan.is_some_and(|plan| plan.receipt) && !variants.contains(&Variant::Baseline) {
        let variant = Variant::Baseline;
        let hidden = |prompt| ArmKey {
            prompt,
            variant,
            strength: None,
            choice: None,
            seed,
        };
        keys.extend((0..request.prompts.len()).map(hidden));
    }
    Ok(keys)
}
