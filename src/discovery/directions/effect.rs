//! What adding a direction at every token does to a measure on held-out prompts, beside random directions of the same
//! norm.
//!
//! What is added at a token is as long as a share of the residual stream there, so a strength means the same at every
//! site and in every model, and a random direction of a strength is as large a disturbance as the direction itself.

use std::ops::Range;

use candle_core::{Device, Result, Tensor};
use serde::Serialize;
use utoipa::ToSchema;

use super::reading::{ContrastPrompt, ContrastSet, batches, cache_of, rows_of};
use crate::discovery::DiscoveryError;
use crate::discovery::patience::Patience;
use crate::discovery::prompt_run::AddAt;
use crate::documented::documented;
use crate::features::direction::norm;
use crate::models::kv_cache::{CacheRow, KvCache};
use crate::models::location::{Location, Site};
use crate::models::tap::{NoTap, Recorder, ResidualTap};
use crate::models::token_rows::TokenRows;
use crate::models::transformer::Transformer;
use crate::numerics::loss::log_sum_exp;
use crate::numerics::rows;

/// Logits held at once.
const LOGITS: usize = 1 << 22;

documented! {
    /// What a direction is to move. All three are in nats and larger where the model leans to what is positive.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
    #[serde(rename_all = "snake_case")]
    pub enum DirectionMeasure {
        /// The log-probability of the given positive answer's token after each held-out prompt, less that of the negative
        /// one's: the mean over held-out prompts of both kinds.
        AnswerTokens,
        /// The mean log-probability of a token of the held-out positive prompts' answers, each after its own prompt, less
        /// that of the negative ones'.
        Answers,
        /// Of the next token after each held-out prompt: the sum over the vocabulary of its log-probability times by how
        /// much likelier the unchanged model holds it after positive prompts than after negative ones, the mean over
        /// held-out prompts of both kinds. It is what positive prompts go on with against what negative ones do.
        NextToken,
    }
}

/// A number that says which way a model leans, over all held-out prompts.
pub struct Measure {
    asked: Vec<AskedSequence>,
    reading: LogitReading,
}

/// A sequence after some of whose tokens the logits are read.
struct AskedSequence {
    tokens: Vec<u32>,
    /// The positions of those.
    after: Range<usize>,
    /// Of the mean over these in the whole.
    weight: f64,
    /// The positive and the negative token that may follow, where the measure is between two.
    between: Option<(u32, u32)>,
}

/// What is read off the logits after a token.
enum LogitReading {
    /// The log odds of the sequence's two tokens.
    Between,
    /// The log-probability of the sequence's own next token.
    Next,
    /// The sum of the logits with these weights, one for each token of the vocabulary, which come to nothing together.
    Weighted(Vec<f64>),
}

impl AsRef<[u32]> for AskedSequence {
    fn as_ref(&self) -> &[u32] {
        &self.tokens
    }
}

impl AskedSequence {
    /// A prompt whose next token is asked for.
    fn at_the_end(prompt: &ContrastPrompt, weight: f64) -> Self {
        let tokens = prompt.prompt().to_vec();
        AskedSequence {
            after: tokens.len().saturating_sub(1)..tokens.len(),
            tokens,
            weight,
            between: None,
        }
    }

    /// A prompt whose answer's tokens are asked for.
    fn with_answer(prompt: &ContrastPrompt, weight: f64) -> Self {
        AskedSequence {
            tokens: prompt.tokens.clone(),
            after: prompt.answer - 1..prompt.tokens.len() - 1,
            weight,
            between: None,
        }
    }
}

impl Measure {
    /// The measure that suits the prompts: the log odds of `answers` where they are given, for the positive prompts and then
    /// for the negative ones, else the answers that the prompts have, else what the model itself goes on with.
    pub fn of(
        model: &Transformer,
        held_out: &ContrastSet,
        answers: Option<&[(u32, u32)]>,
        patience: &Patience,
    ) -> std::result::Result<Self, DiscoveryError> {
        let kinds = [(&held_out.positive, 1.0), (&held_out.negative, -1.0)];
        let both = || kinds.iter().flat_map(|(prompts, _)| prompts.iter());
        let of_all = 1.0 / both().count().max(1) as f64;
        // Each kind weighs as much as the other, however many there are of it.
        let by_kind = |ask: fn(&ContrastPrompt, f64) -> AskedSequence| -> Vec<AskedSequence> {
            let asked = kinds.iter().flat_map(|(prompts, sign)| {
                let weight = sign / prompts.len().max(1) as f64;
                prompts.iter().map(move |prompt| ask(prompt, weight))
            });
            asked.collect()
        };
        let next_tokens = || both().map(|prompt| AskedSequence::at_the_end(prompt, of_all));
        if let Some(answers) = answers {
            let asked = next_tokens().zip(answers);
            let asked = asked.map(|(asked, answers)| AskedSequence {
                between: Some(*answers),
                ..asked
            });
            return Ok(Measure {
                asked: asked.collect(),
                reading: LogitReading::Between,
            });
        }
        if both().all(ContrastPrompt::has_answer) {
            return Ok(Measure {
                asked: by_kind(AskedSequence::with_answer),
                reading: LogitReading::Next,
            });
        }
        let mut leaning = vec![0f64; model.config.vocab_size];
        let asked = by_kind(AskedSequence::at_the_end);
        for batch in batches(&asked) {
            patience.check()?;
            let mut run = BatchRun::new(model, batch)?;
            let stream = run.whole(&mut NoTap)?;
            run.each_logits(&stream, |asked, _, logits| {
                let total = log_sum_exp(logits);
                for (sum, &logit) in leaning.iter_mut().zip(logits) {
                    *sum += asked.weight * f64::from(logit - total).exp();
                }
            })?;
        }
        Ok(Measure {
            asked: next_tokens().collect(),
            reading: LogitReading::Weighted(leaning),
        })
    }

    pub fn kind(&self) -> DirectionMeasure {
        match self.reading {
            LogitReading::Between => DirectionMeasure::AnswerTokens,
            LogitReading::Next => DirectionMeasure::Answers,
            LogitReading::Weighted(_) => DirectionMeasure::NextToken,
        }
    }

    /// A batch's part of the measure, given its stream at the last site.
    fn part(&self, run: &BatchRun, stream: &Tensor) -> Result<f64> {
        let mut sum = 0.0;
        run.each_logits(stream, |asked, position, logits| {
            let value = match &self.reading {
                LogitReading::Between => asked.between.map_or(0.0, |(positive, negative)| {
                    f64::from(logits[positive as usize]) - f64::from(logits[negative as usize])
                }),
                LogitReading::Next => {
                    let next = asked.tokens[position + 1] as usize;
                    f64::from(logits[next] - log_sum_exp(logits))
                }
                LogitReading::Weighted(weights) => {
                    let terms = weights.iter().zip(logits);
                    terms
                        .map(|(weight, &logit)| weight * f64::from(logit))
                        .sum()
                }
            };
            sum += asked.weight / asked.after.len() as f64 * value;
        })?;
        Ok(sum)
    }
}

/// Effects on a measure.
pub struct MeasuredEffects {
    /// The measure of the unchanged model.
    pub baseline: f64,
    /// `[sites][strengths][directions]`: its changes.
    pub changes: Vec<Vec<Vec<f64>>>,
}

/// What adding each of a site's `vectors` does to the measure at each strength; `vectors` is `[sites][directions][d_model]`.
pub fn effects(
    model: &Transformer,
    measure: &Measure,
    sites: &[Site],
    vectors: &[Vec<Vec<f32>>],
    strengths: &[f64],
    patience: &Patience,
) -> std::result::Result<MeasuredEffects, DiscoveryError> {
    let of_site = |vectors: &Vec<Vec<f32>>| vec![vec![0f64; vectors.len()]; strengths.len()];
    let mut found = MeasuredEffects {
        baseline: 0.0,
        changes: vectors.iter().map(of_site).collect(),
    };
    for batch in batches(&measure.asked) {
        let mut run = BatchRun::new(model, batch)?;
        let mut baseline = None;
        for ((site, vectors), changes) in sites.iter().zip(vectors).zip(&mut found.changes) {
            patience.check()?;
            let (start, target) = (site.pass_start(&model.config), Location::Site(*site));
            let mut recorder = Recorder::of([Location::Site(start), target]);
            let last = run.whole(&mut recorder)?;
            let before = match baseline {
                Some(before) => before,
                None => *baseline.insert(measure.part(&run, &last)?),
            };
            let missing = || candle_core::Error::Msg(format!("{site} was not visited"));
            let from = recorder
                .get(Location::Site(start))
                .cloned()
                .ok_or_else(missing)?;
            let stream = recorder.get(target).ok_or_else(missing)?;
            let width = model.config.d_model;
            let norms: Vec<f64> = rows::with_values(stream, |values| {
                values.chunks_exact(width).map(norm).collect()
            })?;
            for (strength, changes) in strengths.iter().zip(changes) {
                for (vector, change) in vectors.iter().zip(changes) {
                    patience.check()?;
                    let added = added(vector, &norms, *strength)?;
                    let mut tap = AddAt {
                        target,
                        change: &added,
                    };
                    let last = run.from(start, from.clone(), &mut tap)?;
                    *change += measure.part(&run, &last)? - before;
                }
            }
        }
        found.baseline += baseline.unwrap_or_default();
    }
    Ok(found)
}

/// A vector for each row, as long as a share of the row's norm: `[rows, d_model]`.
fn added(vector: &[f32], norms: &[f64], strength: f64) -> Result<Tensor> {
    let length = norm(vector);
    let mut values = Vec::with_capacity(norms.len() * vector.len());
    for norm in norms {
        let scale = strength * norm / length;
        values.extend(
            vector
                .iter()
                .map(|&value| (scale * f64::from(value)) as f32),
        );
    }
    Tensor::from_vec(values, (norms.len(), vector.len()), &Device::Cpu)
}

/// Sequences that go through the model together, again and again.
struct BatchRun<'m> {
    model: &'m Transformer,
    batch: &'m [AskedSequence],
    ids: Vec<u32>,
    at: Vec<CacheRow>,
    cache: KvCache,
}

impl<'m> BatchRun<'m> {
    fn new(model: &'m Transformer, batch: &'m [AskedSequence]) -> Result<Self> {
        let (ids, at) = rows_of(batch);
        Ok(BatchRun {
            model,
            batch,
            ids,
            at,
            cache: cache_of(model, batch)?,
        })
    }

    /// The stream at the last site.
    fn whole(&mut self, tap: &mut dyn ResidualTap) -> Result<Tensor> {
        let mut rows = TokenRows::cached(&self.ids, self.at.clone(), &mut self.cache)?;
        let stream = self.model.embed(&rows)?;
        let first = Site::before_attention(0, self.model.config.n_layers);
        self.model.run(first, stream, &mut rows, tap)
    }

    /// The same where the stream at `start` is known.
    fn from(&mut self, start: Site, stream: Tensor, tap: &mut dyn ResidualTap) -> Result<Tensor> {
        let mut rows = TokenRows::cached(&self.ids, self.at.clone(), &mut self.cache)?;
        self.model.run(start, stream, &mut rows, tap)
    }

    /// Shows the logits after every token that is asked for: its sequence, its position, `[vocabulary]`.
    fn each_logits(
        &self,
        stream: &Tensor,
        mut see: impl FnMut(&AskedSequence, usize, &[f32]),
    ) -> Result<()> {
        let wanted: Vec<u32> = (0u32..)
            .zip(&self.at)
            .filter(|(_, at)| self.batch[at.slot].after.contains(&at.position))
            .map(|(row, _)| row)
            .collect();
        let vocabulary = self.model.config.vocab_size;
        for wanted in wanted.chunks((LOGITS / vocabulary).max(1)) {
            let ids: Vec<u32> = wanted.iter().map(|&row| self.ids[row as usize]).collect();
            let rows = stream.index_select(&Tensor::new(wanted, self.model.device())?, 0)?;
            let logits = self
                .model
                .unembed(&rows, &Tensor::new(ids, self.model.device())?)?;
            rows::with_values(&logits, |logits| {
                for (&row, logits) in wanted.iter().zip(logits.chunks_exact(vocabulary)) {
                    let at = self.at[row as usize];
                    see(&self.batch[at.slot], at.position, logits);
                }
            })?;
        }
        Ok(())
    }
}
