//! One arm of a request: a sequence that grows token by token until something ends it.

use super::next::Next;
use super::request::{Delta, EngineError, Finish, GenerationRequest, Token};
use super::sampler::{Sampler, log_probabilities};
use super::stop::GrowingText;
use crate::interventions::request::Variant;
use crate::interventions::rows_of_arms::Feed;
use crate::models::tokenizer::Tokenizer;
use crate::numerics::kernels::operations::TokenDraw;

/// A sequence that is generated.
pub struct Arm {
    pub prompt: usize,
    pub prompt_length: usize,
    pub variant: Variant,
    pub strength: Option<f64>,
    /// Its place among the choices; none for a baseline that runs only to be compared with.
    pub choice: Option<usize>,
    pub finish: Option<Finish>,
    /// The logits of the first generated token, where a receipt compares them.
    pub first_logits: Option<Vec<f32>>,
    /// Tokens of the prompt that an earlier run has computed.
    pub reused: usize,
    /// The prompt with its log-probabilities, where they are asked for.
    pub echoed: Vec<Token>,
    pub generated: Vec<Token>,
    pub text: GrowingText,
    /// Prompt and answer.
    tokens: Vec<u32>,
    fed: usize,
    /// The most tokens it may generate.
    limit: usize,
    sampler: Sampler,
    /// Generated tokens whose place in the text is known.
    placed: usize,
    reported: usize,
    /// The prompt is still to be told.
    echoes: bool,
    /// The request named its variants.
    named: bool,
    /// All is told.
    told: bool,
}

/// What distinguishes an arm from the others of its request.
#[derive(Debug, Clone, Copy)]
pub struct ArmKey {
    pub prompt: usize,
    pub variant: Variant,
    pub strength: Option<f64>,
    pub choice: Option<usize>,
    pub seed: u64,
}

impl Arm {
    pub fn new(
        request: &GenerationRequest,
        key: ArmKey,
        limit: usize,
        tokenizer: &Tokenizer,
    ) -> Self {
        let prompt = &request.prompts[key.prompt];
        Arm {
            prompt: key.prompt,
            prompt_length: prompt.len(),
            variant: key.variant,
            strength: key.strength,
            choice: key.choice,
            finish: None,
            first_logits: None,
            reused: 0,
            echoed: Vec::new(),
            generated: Vec::new(),
            text: GrowingText::new(&request.stop, prompt, tokenizer),
            tokens: prompt.clone(),
            fed: 0,
            limit,
            sampler: Sampler::new(&request.sampling, key.seed, prompt),
            placed: 0,
            reported: 0,
            echoes: request.echo,
            named: request
                .steer
                .as_ref()
                .is_some_and(|steer| steer.variants.is_some()),
            told: false,
        }
    }

    /// What the model has not seen yet, at most `most` tokens of it.
    pub fn feed(&self, index: usize, most: usize) -> Feed<'_> {
        Feed {
            arm: index,
            prompt: self.prompt,
            prompt_length: self.prompt_length,
            tokens: &self.tokens[..self.tokens.len().min(self.fed.saturating_add(most))],
            from: self.fed,
        }
    }

    /// Prompt and answer so far, in tokens.
    pub fn length(&self) -> usize {
        self.tokens.len()
    }

    /// Prompt and answer so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The token at a position of prompt and answer.
    pub fn token_at(&self, position: usize) -> u32 {
        self.tokens[position]
    }

    /// How many tokens the model has not seen yet.
    pub fn unfed(&self) -> usize {
        self.tokens.len() - self.fed
    }

    /// How many tokens the model has seen.
    pub fn fed(&self) -> usize {
        self.fed
    }

    /// The prompt's first tokens need not be run: what they leave in the caches is there.
    pub fn skip_to(&mut self, position: usize) {
        self.reused = position;
        self.mark_fed(position);
    }

    /// The model has seen the tokens before `position`.
    pub fn mark_fed(&mut self, position: usize) {
        self.fed = self.fed.max(position);
    }

    /// Refuses logits that no token can be drawn from.
    pub fn check(&self, next: &Next) -> Result<(), EngineError> {
        let sound = match next {
            Next::Logits(logits) => logits.iter().all(|logit| logit.is_finite()),
            Next::Token(token) => token.is_some(),
        };
        if sound {
            return Ok(());
        }
        Err(match self.variant {
            Variant::Baseline => EngineError::Failed("the model's logits are not numbers".into()),
            Variant::Steered | Variant::Random | Variant::RandomFeature => EngineError::Invalid {
                message: "the edits are so large that the model's values overflow; give smaller \
                          values or strengths"
                    .to_owned(),
                param: Some("steer.edits".to_owned()),
            },
        })
    }

    /// The logits after the prompt token at `position`: how probable the next one was.
    pub fn echo(&mut self, position: usize, logits: &[f32], top: usize) {
        if let Some(&next) = self.tokens.get(position + 1) {
            self.echoed.push(token(next, logits, Some(top)));
        }
    }

    /// The prompt's tokens with what [`Self::echo`] was told of them.
    pub fn prompt_tokens(&self) -> Vec<Token> {
        let plain = |&id: &u32| Token {
            id,
            start: 0,
            logprob: None,
            top: Vec::new(),
        };
        let prompt = &self.tokens[..self.prompt_length];
        match self.echoed.is_empty() {
            true => prompt.iter().map(plain).collect(),
            false => prompt
                .iter()
                .take(1)
                .map(plain)
                .chain(self.echoed.iter().cloned())
                .collect(),
        }
    }

    /// Draws the next token from the logits after the last one.
    pub fn extend(
        &mut self,
        logits: &[f32],
        tokenizer: &Tokenizer,
        logprobs: Option<usize>,
    ) -> Result<(), EngineError> {
        if self.limit == 0 {
            self.finish = Some(Finish::Length);
            return Ok(());
        }
        let Some(id) = self.sampler.draw(logits) else {
            return Err(EngineError::Failed("no token can be drawn".into()));
        };
        self.append(id, tokenizer, |id| token(id, logits, logprobs));
        Ok(())
    }

    /// How the next token is drawn where nothing but the logits decides it.
    pub fn plain_draw(&self) -> Option<TokenDraw> {
        // An arm without tokens to draw says so of whatever comes.
        (self.limit > 0)
            .then(|| self.sampler.plain_draw())
            .flatten()
    }

    /// Goes on with a token that was drawn so.
    pub fn extend_by(&mut self, id: Option<u32>, tokenizer: &Tokenizer) -> Result<(), EngineError> {
        let Some(id) = id else {
            return Err(EngineError::Failed("no token can be drawn".into()));
        };
        self.sampler.take(id);
        self.append(id, tokenizer, |id| token(id, &[], None));
        Ok(())
    }

    /// Takes a token that was drawn: the end, or one more of the answer.
    fn append(&mut self, id: u32, tokenizer: &Tokenizer, described: impl FnOnce(u32) -> Token) {
        if tokenizer.ends().contains(&id) {
            self.end(Finish::Stop, tokenizer);
            return;
        }
        self.tokens.push(id);
        self.generated.push(described(id));
        if self.text.push(id, tokenizer) {
            self.end(Finish::Stop, tokenizer);
        } else if self.generated.len() == self.limit {
            self.end(Finish::Length, tokenizer);
        }
    }

    /// No token comes any more. What the decoder held back may complete a stop text; tokens that lie wholly in the stop
    /// text, or behind it, are not part of the answer.
    fn end(&mut self, finish: Finish, tokenizer: &Tokenizer) {
        let stopped = self.text.finish(tokenizer);
        self.finish = Some(if stopped { Finish::Stop } else { finish });
        let kept = self.text.tokens_within(self.generated.len());
        self.generated.truncate(kept);
        self.place(kept);
    }

    /// Says of the first `count` tokens where in the text they begin.
    fn place(&mut self, count: usize) {
        for index in self.placed..count {
            self.generated[index].start = self.text.start_of(index);
        }
        self.placed = self.placed.max(count);
    }

    /// The variant, where the request named them.
    pub fn named_variant(&self) -> Option<Variant> {
        self.named.then_some(self.variant)
    }

    /// What can be told of the answer that has not been told.
    pub fn news(&mut self) -> Option<Delta> {
        if self.told {
            return None;
        }
        self.told = self.finish.is_some();
        let text = self.text.release(self.finish.is_some());
        let ready = match self.finish {
            Some(_) => self.generated.len(),
            None => self.text.tokens_released().min(self.generated.len()),
        };
        self.place(ready);
        let from = self.reported.min(ready);
        self.reported = ready.max(self.reported);
        let choice = self.choice?;
        let begins = self.echoes && self.fed >= self.prompt_length;
        let delta = Delta {
            choice,
            prompt: match begins {
                true => self.prompt_tokens(),
                false => Vec::new(),
            },
            text,
            tokens: self.generated[from..ready].to_vec(),
            finish: self.finish,
            variant: self.named_variant(),
            strength: self.strength,
        };
        self.echoes &= !begins;
        let silent = delta.text.is_empty()
            && delta.tokens.is_empty()
            && delta.prompt.is_empty()
            && delta.finish.is_none();
        (!silent).then_some(delta)
    }
}

fn token(id: u32, logits: &[f32], logprobs: Option<usize>) -> Token {
    match logprobs {
        None => Token {
            id,
            start: 0,
            logprob: None,
            top: Vec::new(),
        },
        Some(count) => {
            let (logprob, top) = log_probabilities(logits, id, count);
            Token {
                id,
                start: 0,
                logprob: Some(logprob),
                top,
            }
        }
    }
}
