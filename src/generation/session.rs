//! One generation request from admission to answer.
//!
//! Everything that can be wrong with a request is found before a model runs. Then all its arms prefill, and step
//! together, one token each, until the last of them is finished. A row's result does not depend on the rows
//! beside it, so neither does an answer.

use candle_core::{Device, Tensor};

use super::arms::{Arm, ArmKey};
use super::catalog::{Catalog, LoadedModel, ModelKind};
use super::request::{Choice, Delta, EngineError, Generation, GenerationRequest};
use crate::bridge::record::BridgeRecord;
use crate::interventions::plan::{Plan, PlanError, Scene};
use crate::interventions::request::Variant;
use crate::interventions::rows_of_arms::{Feed, rows_of};
use crate::interventions::steering::{ArmPlan, Steering, run};
use crate::models::kv_cache::KvCache;
use crate::models::tap::NoTap;
use crate::numerics::loss::divergence;
use crate::numerics::rows;

/// No request has more arms: prompts times samples times variants times strengths.
pub const MOST_ARMS: usize = 512;
/// Arms prefill in groups of about this many tokens, to bound the memory of a pass.
const ROWS_OF_A_PASS: usize = 4096;
/// Logits are computed for this many rows at once.
const ROWS_OF_LOGITS: usize = 256;

/// Sees an answer while it is made.
pub trait Observer {
    /// More of one choice; false ends the request.
    fn more(&mut self, delta: Delta) -> bool;
    /// Whether anyone still waits for the answer; asked before every step.
    fn waits(&self) -> bool;
}

/// Nobody watches.
pub struct Unobserved;

impl Observer for Unobserved {
    fn more(&mut self, _delta: Delta) -> bool {
        true
    }

    fn waits(&self) -> bool {
        true
    }
}

/// Answers a request.
pub fn generate(
    catalog: &Catalog,
    request: &GenerationRequest,
    observer: &mut dyn Observer,
) -> Result<Generation, EngineError> {
    let mut session = Session::admit(catalog, request)?;
    session.complete(observer)?;
    Ok(session.answer())
}

struct Session<'c> {
    request: &'c GenerationRequest,
    model: &'c LoadedModel,
    record: Option<&'c BridgeRecord>,
    arms: Vec<Arm>,
    cache: KvCache,
    steering: Option<Steering<'c>>,
}

impl From<PlanError> for EngineError {
    fn from(error: PlanError) -> Self {
        match error {
            PlanError::Refused { message, param } => EngineError::Invalid {
                message,
                param: Some(param),
            },
            PlanError::Failed(error) => error.into(),
        }
    }
}

impl From<candle_core::Error> for EngineError {
    fn from(error: candle_core::Error) -> Self {
        EngineError::Failed(error.to_string())
    }
}

fn invalid(message: impl Into<String>, param: &str) -> EngineError {
    EngineError::Invalid {
        message: message.into(),
        param: Some(param.to_owned()),
    }
}

impl<'c> Session<'c> {
    fn admit(catalog: &'c Catalog, request: &'c GenerationRequest) -> Result<Self, EngineError> {
        let model = catalog.model(&request.model)?;
        check(request, model)?;
        let steer = request.steer.as_ref();
        let (bridge, unjoined) =
            match steer.map(|steer| catalog.bridge_of(model, steer.bridge.as_deref())) {
                None => (None, None),
                Some(Ok(bridge)) => (bridge, None),
                // Several bridges and none named: no matter to edits that need none.
                Some(Err(error)) if steer.is_some_and(|steer| steer.bridge.is_none()) => {
                    (None, Some(error.to_string()))
                }
                Some(Err(error)) => return Err(error),
            };
        let scene = Scene {
            model: &model.transformer,
            model_id: &model.id,
            native: model.kind == ModelKind::Sparse,
            joined: bridge.map(|bridge| catalog.joined(bridge)).transpose()?,
            unjoined,
            tokenizer: &model.tokenizer,
            prompts: &request.prompts,
        };
        let plan = steer.map(|steer| Plan::new(steer, &scene)).transpose()?;
        let limits = limits(request, plan.as_ref(), &scene)?;
        let keys = keys(request, plan.as_ref())?;
        let longest = |tokens: &Vec<u32>| tokens.len();
        let streams = plan
            .iter()
            .flat_map(|plan| &plan.streams)
            .flat_map(|stream| &stream.prompts);
        let longest_prompt = request
            .prompts
            .iter()
            .chain(streams)
            .map(longest)
            .max()
            .unwrap_or(1);
        let capacity = longest_prompt + limits.iter().max().copied().unwrap_or(0);
        let steering = match plan {
            None => None,
            Some(plan) => {
                let arms: Vec<ArmPlan> = keys
                    .iter()
                    .map(|key| ArmPlan {
                        variant: key.variant,
                        strength: key.strength,
                        seed: key.seed,
                    })
                    .collect();
                Some(Steering::new(plan, &scene, &arms, capacity)?)
            }
        };
        let arms = keys.into_iter().map(|key| {
            let limit = if key.choice.is_some() {
                limits[key.prompt]
            } else {
                0
            };
            Arm::new(request, key, limit)
        });
        let arms: Vec<Arm> = arms.collect();
        Ok(Session {
            request,
            model,
            record: bridge.map(|bridge| &bridge.record),
            cache: KvCache::new(&model.transformer.config, arms.len(), capacity),
            arms,
            steering,
        })
    }

    fn complete(&mut self, observer: &mut dyn Observer) -> Result<(), EngineError> {
        loop {
            let unfinished = |(_, arm): &(usize, &Arm)| arm.finish.is_none();
            let active: Vec<usize> = self
                .arms
                .iter()
                .enumerate()
                .filter(unfinished)
                .map(|(at, _)| at)
                .collect();
            if active.is_empty() {
                return Ok(());
            }
            let mut rest = active.as_slice();
            while !rest.is_empty() {
                if !observer.waits() {
                    return Err(EngineError::Failed("the request was given up".into()));
                }
                let mut tokens = 0;
                let fitting = rest.iter().take_while(|&&at| {
                    tokens += self.arms[at].unfed();
                    tokens <= ROWS_OF_A_PASS
                });
                let (group, left) = rest.split_at(fitting.count().max(1));
                self.step(group)?;
                rest = left;
            }
            for &at in &active {
                if let Some(delta) = self.arms[at].news()
                    && !observer.more(delta)
                {
                    return Err(EngineError::Failed("the request was given up".into()));
                }
            }
        }
    }

    /// Feeds these arms' new tokens and draws each one's next.
    fn step(&mut self, group: &[usize]) -> Result<(), EngineError> {
        let transformer = &self.model.transformer;
        let feeds: Vec<Feed> = group.iter().map(|&at| self.arms[at].feed(at)).collect();
        let (fed_rows, ids) = (
            rows_of(&feeds),
            crate::interventions::rows_of_arms::ids_of(&feeds),
        );
        let stream = match &mut self.steering {
            Some(steering) => steering.step(transformer, &mut self.cache, &feeds)?,
            None => run(transformer, &mut self.cache, &feeds, &fed_rows, &mut NoTap)?,
        };
        let echo = self.request.echo && self.request.logprobs.is_some();
        let last = |at: usize| {
            fed_rows
                .get(at + 1)
                .is_none_or(|next| next.arm != fed_rows[at].arm)
        };
        let wanted: Vec<u32> = (0..fed_rows.len())
            .filter(|&at| last(at) || echo)
            .map(|at| at as u32)
            .collect();
        let is_last: Vec<bool> = wanted.iter().map(|&at| last(at as usize)).collect();
        let receipt = self
            .steering
            .as_ref()
            .is_some_and(|steering| steering.plan.receipt);
        let vocabulary = transformer.config.vocab_size;
        for (wanted, is_last) in wanted
            .chunks(ROWS_OF_LOGITS)
            .zip(is_last.chunks(ROWS_OF_LOGITS))
        {
            let picked = Tensor::new(wanted, &Device::Cpu)?;
            let picked_ids: Vec<u32> = wanted.iter().map(|&at| ids[at as usize]).collect();
            let picked_ids = Tensor::new(picked_ids, &Device::Cpu)?;
            let logits = transformer.unembed(&stream.index_select(&picked, 0)?, &picked_ids)?;
            let logits = rows::to_vec(&logits)?;
            for ((logits, &at), &last) in logits.chunks_exact(vocabulary).zip(wanted).zip(is_last) {
                let row = fed_rows[at as usize];
                let arm = &mut self.arms[row.arm];
                if echo && row.position + 1 < row.prompt_length {
                    arm.echo(row.position, logits, self.request.logprobs.unwrap_or(0));
                }
                if last {
                    if receipt && arm.fed() == 0 {
                        arm.first_logits = Some(logits.to_vec());
                    }
                    arm.mark_fed();
                    arm.extend(logits, &self.model.tokenizer, self.request.logprobs)?;
                }
            }
        }
        Ok(())
    }

    fn answer(self) -> Generation {
        let mut choices = Vec::new();
        for (index, arm) in self
            .arms
            .iter()
            .enumerate()
            .filter(|(_, arm)| arm.choice.is_some())
        {
            let steering = self.steering.as_ref();
            let receipt = steering
                .filter(|steering| steering.plan.receipt)
                .and_then(|steering| {
                    let steered = (index, &steering.arms[index]);
                    let kl = self.divergence_from_baseline(arm);
                    serde_json::to_value(steering.records.receipt(
                        &steering.plan,
                        self.record,
                        steered,
                        kl,
                    ))
                    .ok()
                });
            let activations = steering
                .filter(|steering| steering.plan.activations)
                .and_then(|steering| {
                    let steered = (index, &steering.arms[index]);
                    serde_json::to_value(steering.records.activations(&steering.plan, steered)).ok()
                });
            let named = steering.is_some_and(|steering| steering.plan.names_variants);
            choices.push(Choice {
                text: arm.text.text(),
                tokens: arm.generated.clone(),
                prompt: if self.request.echo {
                    arm.prompt_tokens()
                } else {
                    Vec::new()
                },
                finish: arm.finish.unwrap_or(super::request::Finish::Length),
                variant: named.then_some(arm.variant),
                strength: arm.strength,
                receipt,
                activations,
            });
        }
        Generation {
            prompt_tokens: self.request.prompts.iter().map(Vec::len).sum(),
            completion_tokens: choices.iter().map(|choice| choice.tokens.len()).sum(),
            choices,
        }
    }

    fn divergence_from_baseline(&self, arm: &Arm) -> Option<f32> {
        let mut baselines = self
            .arms
            .iter()
            .filter(|other| other.variant == Variant::Baseline);
        let baseline = baselines.find(|other| other.prompt == arm.prompt)?;
        let (baseline, own) = (baseline.first_logits.as_ref()?, arm.first_logits.as_ref()?);
        // Rounding can put a divergence of nothing a little below zero.
        Some(divergence(baseline, own).max(0.0))
    }
}

/// What concerns the model alone.
fn check(request: &GenerationRequest, model: &LoadedModel) -> Result<(), EngineError> {
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
    let sampling = &request.sampling;
    let numbers = [
        (
            "temperature",
            sampling.temperature,
            sampling.temperature >= 0.0,
        ),
        ("top_p", sampling.top_p, sampling.top_p > 0.0),
        (
            "min_p",
            sampling.min_p,
            (0.0..=1.0).contains(&sampling.min_p),
        ),
        ("presence_penalty", sampling.presence_penalty, true),
        ("frequency_penalty", sampling.frequency_penalty, true),
        (
            "repetition_penalty",
            sampling.repetition_penalty,
            sampling.repetition_penalty > 0.0,
        ),
    ];
    for (name, number, allowed) in numbers {
        if !number.is_finite() || !allowed {
            return Err(invalid(format!("{name} cannot be {number}"), name));
        }
    }
    if let Some((id, _)) = sampling
        .logit_bias
        .iter()
        .find(|(id, bias)| **id as usize >= vocabulary || bias.is_nan())
    {
        return Err(invalid(
            format!("token {id} is outside the vocabulary, or its bias no number"),
            "logit_bias",
        ));
    }
    Ok(())
}

/// How many tokens each prompt's arms may generate: what is asked for, or what the context has room for.
fn limits(
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

/// The arms: prompt, sample, variant as requested, strength; after them the baselines that only receipts need.
fn keys(request: &GenerationRequest, plan: Option<&Plan>) -> Result<Vec<ArmKey>, EngineError> {
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
            let seed = seed.wrapping_add(sample as u64);
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
