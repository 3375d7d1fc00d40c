//! What stands in one slot of an arm: whose tokens, edited by what, and the names of their blocks.
//!
//! A slot has the arm's own tokens, or those of a counterfactual and then what the arm generates. Places are counted in
//! the arm's tokens: a counterfactual is as far as its arm when its next token is the one beside the arm's.

use std::sync::Arc;

use super::arms::Arm;
use super::prefix_chain::{BLOCK, BlockKey, Chain, Edited};
use crate::interventions::effect::Effect;
use crate::interventions::plan::Plan;
use crate::interventions::plan::counterfactual::Stream;
use crate::models::model::LoadedModel;

/// The tokens of one slot.
pub struct SlotText {
    /// Whose slot it is.
    pub model: Arc<LoadedModel>,
    pub slot: usize,
    /// Blocks that have been left for others.
    pub left: usize,
    /// The stream whose tokens it has; none for the arm's own.
    stream: Option<usize>,
    effect: Option<Effect>,
    chain: Chain,
}

impl SlotText {
    /// Of a slot of `model`, without a named block.
    pub fn new(
        (model, slot): (&Arc<LoadedModel>, usize),
        stream: Option<usize>,
        effect: Option<Effect>,
        salt: Option<&str>,
    ) -> Self {
        SlotText {
            model: model.clone(),
            slot,
            left: 0,
            stream,
            effect,
            chain: Chain::new(salt),
        }
    }

    /// The names of its first blocks.
    pub fn keys(&self) -> &[BlockKey] {
        self.chain.keys()
    }

    /// How many of its tokens are run before the arm's token at `position`.
    pub fn tokens_before(&self, plan: Option<&Plan>, arm: &Arm, position: usize) -> usize {
        match self.counterfactual(plan) {
            None => position,
            // An arm that has not begun has run none of the stream, which may be the longer one.
            Some(_) if position == 0 => 0,
            Some(stream) => stream.before(arm.prompt, arm.prompt_length, position),
        }
    }

    /// The last place of the arm before which no more than `tokens` of these are run.
    pub fn last_place(&self, plan: Option<&Plan>, arm: &Arm, tokens: usize) -> usize {
        match self.counterfactual(plan) {
            None => tokens,
            Some(stream) => {
                let length = stream.prompts[arm.prompt].len();
                (tokens + arm.prompt_length).saturating_sub(length)
            }
        }
    }

    /// Names the whole blocks among its first `count` tokens, as far as those are there.
    pub fn name_blocks(&mut self, plan: Option<&Plan>, arm: &Arm, count: usize) {
        let stream = self.counterfactual(plan);
        let prompt: &[u32] = match stream {
            None => arm.tokens(),
            Some(stream) => &stream.prompts[arm.prompt],
        };
        let generated = match stream {
            None => &[],
            Some(_) => &arm.tokens()[arm.prompt_length..],
        };
        let count = count.min(prompt.len() + generated.len());
        let effect = self.effect.as_ref().zip(plan);
        while !self.chain.has_ended() && (self.chain.keys().len() + 1) * BLOCK <= count {
            let first = self.chain.keys().len() * BLOCK;
            let positions = first..first + BLOCK;
            let token = |position: usize| match position.checked_sub(prompt.len()) {
                None => prompt[position],
                Some(after) => generated[after],
            };
            let tokens: Vec<u32> = positions.clone().map(token).collect();
            let edited = match effect {
                None => Edited::Nowhere,
                Some((effect, plan)) => {
                    let touching = positions.map(|position| effect.touching(plan, position));
                    let touching: Vec<Vec<usize>> = touching.collect();
                    match touching.iter().all(Vec::is_empty) {
                        true => Edited::Nowhere,
                        false => Edited::Here(effect.digest.as_ref(), touching),
                    }
                }
            };
            self.chain.push(&tokens, &edited);
        }
    }

    fn counterfactual<'p>(&self, plan: Option<&'p Plan>) -> Option<&'p Stream> {
        Some(&plan?.streams[self.stream?])
    }
}
