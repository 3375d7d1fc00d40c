//! Prompts that need not be run again: what an arm's slots would hold after the first tokens is taken from what
//! earlier arms left behind, and what it computes is left for later ones.
//!
//! An arm has one place in its prompt, so it begins no later than the slot that least is known of allows: the
//! answering model's, those of unedited runs on its own tokens and on counterfactuals, those of second runs. Copied
//! keys and values are those that the arm would have computed, bit for bit. Blocks are left as soon as they are
//! complete, so an arm that is given up leaves whole blocks, and a step that fails leaves nothing.

use super::prefix_chain::BLOCK;
use super::request::EngineError;
use super::session::Session;
use super::slot_text::SlotText;
use super::slots::Caches;
use crate::interventions::plan::counterfactual::StreamModel;
use crate::interventions::steering::ArmSlots;

/// Prompt tokens of arms that have begun.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reuse {
    /// Of arms that could have taken them from earlier ones.
    pub queried: usize,
    /// Those that were taken.
    pub hit: usize,
}

/// Begins an arm that has just been lent its slots: what is known of its prompt is put into them.
pub fn begin(
    caches: &mut Caches,
    session: &mut Session,
    arm: usize,
    slots: &ArmSlots,
) -> Result<Reuse, EngineError> {
    if !caches.keeps() {
        return Ok(Reuse::default());
    }
    let mut texts = slot_texts(session, arm, slots);
    let (plan, own, most) = (session.plan(), &session.arms[arm], session.most_reused(arm));
    let mut reused = most;
    for text in &mut texts {
        let needed = text.tokens_before(plan, own, reused);
        text.name_blocks(plan, own, needed.next_multiple_of(BLOCK));
        let known = BLOCK * caches.known_blocks(&text.model, text.keys());
        reused = text.last_place(plan, own, known).min(reused);
    }
    for text in &mut texts {
        let positions = text.tokens_before(plan, own, reused);
        caches.restore(&text.model, text.slot, text.keys(), positions)?;
        text.left = positions / BLOCK;
    }
    let queried = match most {
        0 => 0,
        _ => own.prompt_length,
    };
    session.texts[arm] = texts;
    session.arms[arm].skip_to(reused);
    Ok(Reuse {
        queried,
        hit: reused,
    })
}

/// Leaves what an arm has computed in whole blocks.
pub fn leave(caches: &mut Caches, session: &mut Session, arm: usize) -> Result<(), EngineError> {
    let mut texts = std::mem::take(&mut session.texts[arm]);
    let (plan, own) = (session.plan(), &session.arms[arm]);
    let mut failed = Ok(());
    // A text of which a block cannot be kept has no later one either.
    texts.retain_mut(|text| {
        let run = text.tokens_before(plan, own, own.fed());
        text.name_blocks(plan, own, run);
        while text.left < (run / BLOCK).min(text.keys().len()) {
            let keys = &text.keys()[..text.left + 1];
            match caches.keep(&text.model, text.slot, keys) {
                Ok(true) => text.left += 1,
                Ok(false) => return false,
                Err(error) => {
                    failed = Err(error);
                    return false;
                }
            }
        }
        true
    });
    session.texts[arm] = texts;
    failed
}

/// What an arm's slots will hold, and of which model.
fn slot_texts(session: &Session, arm: usize, slots: &ArmSlots) -> Vec<SlotText> {
    let own = &session.arms[arm];
    let prompt = (own.prompt, own.prompt_length);
    let salt = session.request.cache_salt.as_deref();
    let steering = session.steering.as_ref();
    let effect = steering.and_then(|steering| steering.effect(arm, prompt));
    let answer = (&session.model, slots.answer);
    let mut texts = vec![SlotText::new(answer, None, effect, salt)];
    let Some(steering) = steering else {
        return texts;
    };
    let beside = [
        (StreamModel::Dense, Some(&session.model), &slots.dense),
        (StreamModel::Sparse, session.sparse(), &slots.sparse),
    ];
    for (kind, model, slots) in beside {
        if let Some((model, needs)) = model.zip(steering.needs(kind)) {
            let slots = slots.iter().zip(needs.texts());
            texts.extend(
                slots.map(|(&slot, stream)| SlotText::new((model, slot), stream, None, salt)),
            );
        }
    }
    if let Some(model) = session.sparse() {
        let replays = slots.replays.iter().enumerate();
        texts.extend(replays.map(|(replay, &slot)| {
            let effect = steering.replay_effect(arm, replay, prompt);
            SlotText::new((model, slot), None, effect, salt)
        }));
    }
    texts
}
