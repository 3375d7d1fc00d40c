//! One generation request from admission to answer.
//!
//! Everything that can be wrong with a request is found before a model runs. Its arms then wait for cache slots
//! and grow token by token, each by itself: a row's result does not depend on the rows beside it, so neither
//! does an answer.

use std::sync::Arc;
use std::time::Duration;

use super::admission::{check, check_bytes, keys, limits};
use super::arms::Arm;
use super::next::Next;
use super::request::{Choice, Delta, EngineError, Finish, Generation, GenerationRequest};
use super::slot_text::SlotText;
use crate::features::pair::Pair;
use crate::interventions::cost::work_per_token;
use crate::interventions::plan::{Plan, PlanError};
use crate::interventions::request::Variant;
use crate::interventions::rows_of_arms::Row;
use crate::interventions::steering::{ArmPlan, ArmSlots, SlotNeeds, Steering};
use crate::models::model::{LoadedModel, ModelKind};
use crate::numerics::device::DeviceFailure;
use crate::numerics::kernels::operations::TokenDraw;
use crate::numerics::loss::divergence;

/// A request that is being answered.
pub struct Session {
    pub request: GenerationRequest,
    /// The model that answers.
    pub model: Arc<LoadedModel>,
    /// Its models and the bridge between them, where the edits go over one.
    pub pair: Option<Arc<Pair>>,
    pub arms: Vec<Arm>,
    /// By arm, while it runs.
    pub slots: Vec<Option<ArmSlots>>,
    /// By arm, while it runs: what of its slots can be left for others.
    pub texts: Vec<Vec<SlotText>>,
    /// None where there is nothing to edit.
    pub steering: Option<Steering>,
    /// What the edits add to a token, in tokens that the answering model runs.
    pub(super) edits_cost: usize,
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
        let told = error.to_string();
        match DeviceFailure::of(&told) {
            Some(DeviceFailure::NoMemory) => EngineError::NoMemory(told),
            Some(DeviceFailure::Lost) => EngineError::DeviceLost(told),
            None => EngineError::Failed(told),
        }
    }
}

impl Session {
    /// Checks a request and sets up its arms; no model runs yet.
    pub fn admit(request: GenerationRequest) -> Result<Self, EngineError> {
        let model = request.model.clone();
        check(&request, &model)?;
        let scene = request.scene();
        let steer = request.steer.as_ref();
        let plan = steer.map(|steer| Plan::new(steer, &scene)).transpose()?;
        let limits = limits(&request, plan.as_ref(), &scene)?;
        let keys = keys(&request, plan.as_ref())?;
        check_bytes(&request, plan.as_ref(), &scene, &keys, &limits)?;
        let steering = match plan {
            None => None,
            Some(plan) => {
                let arms: Vec<ArmPlan> = keys
                    .iter()
                    .map(|key| ArmPlan {
                        prompt: key.prompt,
                        variant: key.variant,
                        strength: key.strength,
                        seed: key.seed,
                    })
                    .collect();
                Some(Steering::new(plan, &scene, &arms)?)
            }
        };
        let arms: Vec<Arm> = keys
            .into_iter()
            .map(|key| {
                let limit = if key.choice.is_some() {
                    limits[key.prompt]
                } else {
                    0
                };
                Arm::new(&request, key, limit, &model.tokenizer)
            })
            .collect();
        Ok(Session {
            slots: vec![None; arms.len()],
            texts: arms.iter().map(|_| Vec::new()).collect(),
            pair: request.pair.clone(),
            request,
            arms,
            edits_cost: steering.as_ref().map_or(0, |steering| {
                work_per_token(&steering.plan) / model.parameters.max(1)
            }),
            steering,
            model,
        })
    }

    /// The sparse model whose unedited values are read.
    pub fn sparse(&self) -> Option<&Arc<LoadedModel>> {
        match self.model.kind {
            ModelKind::Sparse => Some(&self.model),
            ModelKind::Dense => self.pair.as_ref().map(|pair| &pair.sparse),
        }
    }

    /// What its edits come to, where it has a `steer` field.
    pub fn plan(&self) -> Option<&Plan> {
        self.steering.as_ref().map(|steering| &steering.plan)
    }

    /// How many tokens of an arm's prompt need not be run if what they leave in the caches is known. The last one's
    /// logits are always needed, and none can be left out of which something is told.
    pub fn most_reused(&self, arm: usize) -> usize {
        let prompt_length = self.arms[arm].prompt_length;
        let told = self.steering.as_ref().filter(|steering| {
            let arm = &steering.arms[arm];
            arm.follows && steering.records.wanted()
        });
        let untold = match told {
            _ if self.echoes() => 0,
            Some(steering) if steering.plan.activations => 0,
            // A receipt is of the tokens that are touched.
            Some(steering) => {
                let effect = steering.effect(arm, (self.arms[arm].prompt, prompt_length));
                let touched = effect.and_then(|effect| effect.first_touched(&steering.plan));
                touched.unwrap_or(prompt_length)
            }
            None => prompt_length,
        };
        untold.min(prompt_length.saturating_sub(1))
    }

    /// Whether any value is changed in any arm.
    pub fn edits(&self) -> bool {
        let mut plans = self.steering.iter().map(|steering| &steering.plan);
        plans.any(|plan| !plan.is_empty())
    }

    /// The slots that an arm takes beside its own.
    pub fn needs(&self, arm: usize) -> SlotNeeds {
        self.steering
            .as_ref()
            .map_or_else(SlotNeeds::default, |steering| steering.slots(arm))
    }

    /// What one token of an arm takes of a step, in tokens of a model: its own, those of the runs beside it, and its
    /// edits' arithmetic.
    pub fn cost(&self, arm: usize) -> usize {
        let SlotNeeds {
            sparse,
            dense,
            replays,
        } = self.needs(arm);
        let edited = self
            .steering
            .as_ref()
            .is_some_and(|steering| steering.arms[arm].follows);
        1 + sparse + dense + replays + if edited { self.edits_cost } else { 0 }
    }

    /// Whether every arm has come to its end.
    pub fn finished(&self) -> bool {
        self.arms.iter().all(|arm| arm.finish.is_some())
    }

    /// The first arm that waits for slots.
    pub fn waiting_arm(&self) -> Option<usize> {
        let waits = |(arm, slots): &(usize, &Option<ArmSlots>)| {
            slots.is_none() && self.arms[*arm].finish.is_none()
        };
        let mut arms = self.slots.iter().enumerate().filter(waits);
        arms.next().map(|(arm, _)| arm)
    }

    /// How many arms have slots.
    pub fn running_arms(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    /// Whether the logits after a row are needed, the row being the last that its arm has so far or not.
    pub fn wants_logits(&self, row: &Row) -> bool {
        let last = row.position + 1 == self.arms[row.arm].length();
        last || (self.echoes() && row.position + 1 < row.prompt_length)
    }

    /// How the token after a row is drawn, where its logits are good for nothing else.
    pub fn draw_after(&self, row: &Row) -> Option<TokenDraw> {
        let arm = &self.arms[row.arm];
        let told = self.request.logprobs.is_some() || self.compares(arm);
        let is_last = row.position + 1 == arm.length();
        match told || !is_last {
            true => None,
            false => arm.plain_draw(),
        }
    }

    /// Whether a receipt compares the logits of the first token that the arm draws, which it has yet to draw.
    fn compares(&self, arm: &Arm) -> bool {
        let steering = self.steering.as_ref();
        steering.is_some_and(|steering| steering.plan.receipt) && arm.first_logits.is_none()
    }

    fn echoes(&self) -> bool {
        self.request.echo && self.request.logprobs.is_some()
    }

    /// Takes in what a step has computed: `rows` are all rows that were fed, with what comes after those of which it was
    /// wanted, in their order.
    pub fn advance(&mut self, rows: &[Row], next: Vec<(usize, Next)>) -> Result<(), EngineError> {
        let echoes = self.echoes();
        for row in rows {
            self.arms[row.arm].mark_fed(row.position + 1);
        }
        for (at, next) in next {
            let row = rows[at];
            let compares = self.compares(&self.arms[row.arm]);
            let arm = &mut self.arms[row.arm];
            arm.check(&next)?;
            let logits = match next {
                Next::Logits(logits) => logits,
                Next::Token(token) => {
                    arm.extend_by(token, &self.model.tokenizer)?;
                    continue;
                }
            };
            if echoes && row.position + 1 < row.prompt_length {
                arm.echo(
                    row.position,
                    &logits,
                    self.request.logprobs.unwrap_or_default(),
                );
            }
            if row.position + 1 == arm.length() {
                arm.extend(&logits, &self.model.tokenizer, self.request.logprobs)?;
                if compares {
                    arm.first_logits = Some(logits);
                }
            }
        }
        Ok(())
    }

    /// What has become certain since the last time.
    pub fn news(&mut self) -> impl Iterator<Item = Delta> {
        self.arms.iter_mut().filter_map(Arm::news)
    }

    /// The finished answer.
    pub fn answer(&self) -> Generation {
        let record = self.pair.as_deref().map(|pair| &*pair.record);
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
                .map(|steering| {
                    let steered = (index, &steering.arms[index]);
                    let kl = self.divergence_from_baseline(arm);
                    let text = |position| self.model.tokenizer.token_text(arm.token_at(position));
                    let records = &steering.records;
                    records.receipt(&steering.plan, record, steered, text, kl)
                });
            let activations =
                steering
                    .filter(|steering| steering.plan.activations)
                    .map(|steering| {
                        let steered = (index, &steering.arms[index]);
                        steering.records.activations(&steering.plan, steered)
                    });
            choices.push(Choice {
                text: arm.text.text(),
                tokens: arm.generated.clone(),
                prompt: if self.request.echo {
                    arm.prompt_tokens()
                } else {
                    Vec::new()
                },
                finish: arm.finish.unwrap_or(Finish::Length),
                variant: arm.named_variant(),
                strength: arm.strength,
                receipt,
                activations,
            });
        }
        Generation {
            prompt_tokens: self.request.prompts.iter().map(Vec::len).sum(),
            cached_tokens: self.cached_tokens(),
            completion_tokens: choices.iter().map(|choice| choice.tokens.len()).sum(),
            choices,
            queued: Duration::ZERO,
            to_first_token: Duration::ZERO,
            between_tokens: None,
        }
    }

    /// The tokens of the prompts that no arm has run.
    fn cached_tokens(&self) -> usize {
        let of_prompt = |prompt| {
            let arms = self.arms.iter().filter(|arm| arm.prompt == prompt);
            arms.map(|arm| arm.reused).min().unwrap_or(0)
        };
        (0..self.request.prompts.len()).map(of_prompt).sum()
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
