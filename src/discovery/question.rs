//! What a pair of prompts asks: which of two next tokens, and how an answer is read off the logits.
//!
//! Every answer is a *logit difference*, the log odds of the counterfactual's answer against the presented one's:
//! its sign says which is the more probable, its logistic function is the two-way probability. Where one side
//! may be followed by anything else, that side's probability is all that the candidate leaves.

use candle_core::{Result, Tensor};

use crate::numerics::loss::log_sum_exp;
use crate::numerics::rows;
use crate::tasks::TokenPair;

/// The two answers of a pair, told apart by one token each or by one token alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// One token or the other.
    Between { presented: u32, counterfactual: u32 },
    /// The presented side calls for this token, the counterfactual for anything else.
    NotPresented { candidate: u32 },
    /// The counterfactual side calls for this token, the presented for anything else.
    OnlyCounterfactual { candidate: u32 },
}

impl Question {
    /// The same with the sides exchanged.
    pub fn reversed(self) -> Self {
        match self {
            Question::Between {
                presented,
                counterfactual,
            } => Question::Between {
                presented: counterfactual,
                counterfactual: presented,
            },
            Question::NotPresented { candidate } => Question::OnlyCounterfactual { candidate },
            Question::OnlyCounterfactual { candidate } => Question::NotPresented { candidate },
        }
    }

    /// Log odds of the counterfactual's answer.
    pub fn logit_diff(self, logits: &[f32]) -> f32 {
        match self {
            Question::Between {
                presented,
                counterfactual,
            } => logits[counterfactual as usize] - logits[presented as usize],
            Question::NotPresented { candidate } => -log_odds(logits, candidate),
            Question::OnlyCounterfactual { candidate } => log_odds(logits, candidate),
        }
    }

    /// Probability of the counterfactual's answer among all next tokens.
    pub fn probability(self, logits: &[f32]) -> f32 {
        let of = |token: u32| (logits[token as usize] - log_sum_exp(logits)).exp();
        match self {
            Question::Between { counterfactual, .. } => of(counterfactual),
            Question::NotPresented { candidate } => 1.0 - of(candidate),
            Question::OnlyCounterfactual { candidate } => of(candidate),
        }
    }

    /// Adds `weight` times the logit difference's derivative with respect to the logits.
    pub fn add_gradient(self, logits: &[f32], weight: f32, out: &mut [f32]) {
        match self {
            Question::Between {
                presented,
                counterfactual,
            } => {
                out[counterfactual as usize] += weight;
                out[presented as usize] -= weight;
            }
            Question::NotPresented { candidate } => odds_gradient(logits, candidate, -weight, out),
            Question::OnlyCounterfactual { candidate } => {
                odds_gradient(logits, candidate, weight, out);
            }
        }
    }

    /// Whose answer the most probable next token is.
    pub fn greedy_choice(self, logits: &[f32]) -> GreedyChoice {
        let best = logits
            .iter()
            .enumerate()
            .max_by(|(_, one), (_, other)| one.total_cmp(other));
        let best = best.map_or(0, |(token, _)| token as u32);
        match self {
            Question::Between { presented, .. } if best == presented => GreedyChoice::Presented,
            Question::Between { counterfactual, .. } if best == counterfactual => {
                GreedyChoice::Counterfactual
            }
            Question::Between { .. } => GreedyChoice::Other,
            Question::NotPresented { candidate } if best == candidate => GreedyChoice::Presented,
            Question::NotPresented { .. } => GreedyChoice::Counterfactual,
            Question::OnlyCounterfactual { candidate } if best == candidate => {
                GreedyChoice::Counterfactual
            }
            Question::OnlyCounterfactual { .. } => GreedyChoice::Presented,
        }
    }

    /// The presented and the counterfactual token, where there is one of each.
    pub fn logit_diff_tokens(self) -> Option<(u32, u32)> {
        match self {
            Question::Between {
                presented,
                counterfactual,
            } => Some((presented, counterfactual)),
            _ => None,
        }
    }

    /// The largest token id it is about.
    pub fn largest_token(self) -> u32 {
        match self {
            Question::Between {
                presented,
                counterfactual,
            } => presented.max(counterfactual),
            Question::NotPresented { candidate } | Question::OnlyCounterfactual { candidate } => {
                candidate
            }
        }
    }
}

/// `log(exp(l) sum)` over every token but one.
fn log_sum_others(logits: &[f32], candidate: u32) -> f32 {
    let (before, rest) = logits.split_at(candidate as usize);
    let parts = [log_sum_exp(before), log_sum_exp(&rest[1..])];
    let largest = parts[0].max(parts[1]);
    if largest == f32::NEG_INFINITY {
        return largest;
    }
    largest
        + parts
            .iter()
            .map(|part| (part - largest).exp())
            .sum::<f32>()
            .ln()
}

fn log_odds(logits: &[f32], candidate: u32) -> f32 {
    logits[candidate as usize] - log_sum_others(logits, candidate)
}

fn odds_gradient(logits: &[f32], candidate: u32, weight: f32, out: &mut [f32]) {
    let total = log_sum_others(logits, candidate);
    for (token, (out, logit)) in out.iter_mut().zip(logits).enumerate() {
        *out += match token == candidate as usize {
            true => weight,
            false => -weight * (logit - total).exp(),
        };
    }
}

/// Whose answer a next token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GreedyChoice {
    Presented,
    Counterfactual,
    /// Neither candidate.
    Other,
}

/// Two prompts of equal length, and what is asked at their end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptPair {
    pub presented: Vec<u32>,
    pub counterfactual: Vec<u32>,
    pub question: Question,
}

impl PromptPair {
    /// The pair with its prompts exchanged; its logit differences have the other sign.
    pub fn reversed(&self) -> Self {
        PromptPair {
            presented: self.counterfactual.clone(),
            counterfactual: self.presented.clone(),
            question: self.question.reversed(),
        }
    }

    /// All pairs, and after them all of them reversed.
    pub fn both_ways(pairs: &[Self]) -> Vec<Self> {
        let reversed = pairs.iter().map(PromptPair::reversed);
        pairs.iter().cloned().chain(reversed).collect()
    }

    /// The first position at which the prompts differ; the last where they are equal.
    pub fn first_difference(&self) -> usize {
        let both = self.presented.iter().zip(&self.counterfactual);
        both.take_while(|(one, other)| one == other)
            .count()
            .min(self.presented.len().saturating_sub(1))
    }
}

impl From<&TokenPair> for PromptPair {
    fn from(pair: &TokenPair) -> Self {
        let question = match pair.anything_else {
            true => Question::NotPresented {
                candidate: pair.presented.candidate,
            },
            false => Question::Between {
                presented: pair.presented.candidate,
                counterfactual: pair.counterfactual.candidate,
            },
        };
        PromptPair {
            presented: pair.presented.prompt.clone(),
            counterfactual: pair.counterfactual.prompt.clone(),
            question,
        }
    }
}

/// The answers to a list of questions.
#[derive(Debug, Clone, PartialEq)]
pub struct Answers {
    /// Log odds of the counterfactual's answer.
    pub logit_diffs: Vec<f32>,
    /// Its probability among all next tokens.
    pub probabilities: Vec<f32>,
    /// Whose answer the most probable next token is.
    pub greedy: Vec<GreedyChoice>,
}

impl Answers {
    /// Reads one answer off each row of `logits [questions, vocabulary]`.
    pub fn read(questions: impl Iterator<Item = Question>, logits: &Tensor) -> Result<Self> {
        let vocabulary = logits.dim(1)?;
        rows::with_values(logits, |values| {
            let mut answers = Answers {
                logit_diffs: Vec::new(),
                probabilities: Vec::new(),
                greedy: Vec::new(),
            };
            for (question, row) in questions.zip(values.chunks_exact(vocabulary)) {
                answers.logit_diffs.push(question.logit_diff(row));
                answers.probabilities.push(question.probability(row));
                answers.greedy.push(question.greedy_choice(row));
            }
            answers
        })
    }

    /// The counterfactual's share of the two answers.
    pub fn shares(&self) -> impl Iterator<Item = f64> + '_ {
        self.logit_diffs.iter().map(|&logit_diff| share(logit_diff))
    }

    /// Which answers are the presented one.
    pub fn presented(&self) -> Vec<bool> {
        self.logit_diffs
            .iter()
            .map(|&logit_diff| logit_diff < 0.0)
            .collect()
    }

    /// Among the pairs marked, the share whose answer is the counterfactual's; none where none is marked.
    pub fn flips(&self, among: &[bool]) -> Option<f64> {
        mean_among(
            self.logit_diffs
                .iter()
                .map(|&logit_diff| f64::from(logit_diff > 0.0)),
            among,
        )
    }

    /// Which most probable next tokens are the presented answer.
    pub fn greedily_presented(&self) -> Vec<bool> {
        let presented = |choice: &GreedyChoice| *choice == GreedyChoice::Presented;
        self.greedy.iter().map(presented).collect()
    }

    /// Among the pairs marked, the share whose most probable next token is the counterfactual's answer; none where none
    /// is marked.
    pub fn greedy_flips(&self, among: &[bool]) -> Option<f64> {
        let flipped = |choice: &GreedyChoice| f64::from(*choice == GreedyChoice::Counterfactual);
        mean_among(self.greedy.iter().map(flipped), among)
    }

    /// Among the pairs marked, the mean two-way probability.
    pub fn mean_share(&self, among: &[bool]) -> Option<f64> {
        mean_among(self.shares(), among)
    }
}

/// The two-way probability of a logit difference.
pub fn share(logit_diff: f32) -> f64 {
    1.0 / (1.0 + (-f64::from(logit_diff)).exp())
}

fn mean_among(values: impl Iterator<Item = f64>, among: &[bool]) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0);
    for (value, _) in values.zip(among).filter(|(_, marked)| **marked) {
        sum += value;
        count += 1;
    }
    (count > 0).then(|| sum / f64::from(count))
}
