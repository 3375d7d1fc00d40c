//! Which requests take part in the next step: continuous batching.
//!
//! Requests join and leave at token boundaries. Their arms get cache slots in turn, so that a request of many arms
//! does not keep the others waiting; in every step each arm that is past its prompt feeds one token, and what is
//! left of a step's budget goes to prompts, a piece at a time, so that a long prompt does not hold up the rest.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::batch::{self, Computed, Share};
use super::capacity::Capacity;
use super::health::{EngineHealth, KeptPrefixes, Load, NoProbe};
use super::needed_groups::NeededGroups;
use super::request::{Delta, EngineError, Generation, GenerationRequest};
use super::reuse::{self, Reuse};
use super::session::Session;
use super::slots::Caches;
use crate::models::model::LoadedModel;

/// A token that costs no more, in tokens of a model, is one like all others: its own, a sparse run beside it, a
/// counterfactual, and edits of a few channels.
const ORDINARY_COST: usize = 4;

/// Sees an answer while it is made.
pub trait Observer {
    /// More of one choice; false ends the request.
    fn more(&mut self, delta: Delta) -> bool;
    /// Whether anyone still waits for the answer; asked before every step.
    fn waits(&self) -> bool;
    /// The answer, or why there is none. Nothing comes after it.
    fn done(self: Box<Self>, answer: Result<Generation, EngineError>);
}

/// The requests in progress and the caches they share.
pub struct Scheduler<'o> {
    caches: Caches,
    capacity: Capacity,
    /// In the order of their arrival.
    tickets: VecDeque<Ticket<'o>>,
    /// How many costly arms have had their turn: where the next step goes on.
    turns: usize,
    /// Of all arms that have begun.
    reuse: Reuse,
    health: Arc<EngineHealth>,
}

struct Ticket<'o> {
    session: Session,
    observer: Box<dyn Observer + 'o>,
    arrived: Instant,
    started: Option<Instant>,
    first_token: Option<Instant>,
    failed: Option<EngineError>,
}

impl<'o> Scheduler<'o> {
    pub fn new(capacity: Capacity) -> Self {
        Self::watched(capacity, Arc::new(EngineHealth::new(Box::new(NoProbe))))
    }

    /// One whose panics are noted.
    pub fn watched(capacity: Capacity, health: Arc<EngineHealth>) -> Self {
        Scheduler {
            caches: Caches::of(&capacity),
            capacity,
            tickets: VecDeque::new(),
            turns: 0,
            reuse: Reuse::default(),
            health,
        }
    }

    /// One that keeps so many bytes of keys and values after their requests.
    #[cfg(test)]
    pub fn keeping(capacity: Capacity, most_kept: usize) -> Self {
        Scheduler {
            caches: Caches::keeping(capacity.sequences, most_kept),
            ..Self::new(capacity)
        }
    }

    /// Takes a request on, or tells its observer why not.
    pub fn submit(&mut self, request: GenerationRequest, observer: Box<dyn Observer + 'o>) {
        if self.queue_is_full() {
            // Of those that came since the last step some may not need to wait.
            self.lend_slots();
            if self.queue_is_full() {
                return observer.done(Err(EngineError::Busy));
            }
        }
        let admitted = self.health.contain(|| Session::admit(request));
        match admitted.and_then(|session| self.fits(session)) {
            Ok(session) => self.tickets.push_back(Ticket {
                session,
                observer,
                arrived: Instant::now(),
                started: None,
                first_token: None,
                failed: None,
            }),
            Err(error) => observer.done(Err(error)),
        }
    }

    fn queue_is_full(&self) -> bool {
        self.load().waiting >= self.capacity.waiting
    }

    /// An arm that needs more slots than there are could never run.
    fn fits(&self, session: Session) -> Result<Session, EngineError> {
        let arms = 0..session.arms.len();
        let most = arms.map(|arm| Caches::largest_need(&session, session.needs(arm)));
        let (most, limit) = (most.max().unwrap_or(0), self.caches.per_model());
        match most <= limit {
            true => Ok(session),
            false => Err(EngineError::Invalid {
                message: format!(
                    "the edits need {most} sequences beside each other for one completion; the engine has room \
                     for {limit}: use fewer counterfactual prompts"
                ),
                param: Some("steer.edits".to_owned()),
            }),
        }
    }

    pub fn is_idle(&self) -> bool {
        self.tickets.is_empty()
    }

    pub fn load(&self) -> Load {
        let running = self.tickets.iter().filter(|ticket| ticket.runs()).count();
        Load {
            running,
            waiting: self.tickets.len() - running,
            cache_usage: self.caches.usage(),
        }
    }

    /// One step of all requests that have slots, and the ends it brings.
    pub fn step(&mut self) {
        for ticket in &mut self.tickets {
            let failed = match ticket.observer.waits() {
                true => ticket.overdue(),
                false => Some(EngineError::Failed("the request was given up".into())),
            };
            ticket.failed = failed.or(ticket.failed.take());
        }
        self.settle();
        self.lend_slots();
        self.tell();
        let mut arms = self.chosen_arms();
        let (mut shares, mut members) = (Vec::new(), Vec::new());
        for (ticket, arms) in self.tickets.iter_mut().zip(&mut arms) {
            if !arms.is_empty() {
                shares.push(Share {
                    session: &mut ticket.session,
                    arms: std::mem::take(arms),
                    watched: BTreeSet::new(),
                });
                members.push((
                    &mut ticket.failed,
                    &mut ticket.observer,
                    &mut ticket.first_token,
                ));
            }
        }
        let health = &*self.health;
        let computed = compute(&mut shares, &mut self.caches, health);
        // Drawing a token takes a pass over the vocabulary: each request's is its own.
        let advanced: Vec<Result<Advanced, EngineError>> = shares
            .into_par_iter()
            .zip(computed)
            .map(|(share, computed)| health.contain(|| advance(share.session, computed?)))
            .collect();
        for (advanced, (failed, observer, first_token)) in advanced.into_iter().zip(members) {
            let told = health.contain(|| {
                let Advanced { drew, news } = advanced?;
                if drew {
                    first_token.get_or_insert_with(Instant::now);
                }
                match news.into_iter().all(|delta| observer.more(delta)) {
                    true => Ok(()),
                    false => Err(EngineError::Failed("the request was given up".into())),
                }
            });
            *failed = told.err();
        }
        self.leave_prefixes();
        self.settle();
    }

    /// Leaves what the arms have computed for later requests.
    fn leave_prefixes(&mut self) {
        let tickets = self.tickets.iter_mut();
        for ticket in tickets.filter(|ticket| ticket.failed.is_none()) {
            for arm in 0..ticket.session.arms.len() {
                if let Err(error) = reuse::leave(&mut self.caches, &mut ticket.session, arm) {
                    self.health.note(&error);
                    ticket.failed = Some(error);
                }
            }
        }
    }

    /// Lends free slots, always to the request that has the fewest arms running, the earliest of equals. Whoever's
    /// turn it is waits until enough are free: nobody overtakes it.
    fn lend_slots(&mut self) {
        loop {
            let sound = self
                .tickets
                .iter_mut()
                .filter(|ticket| ticket.failed.is_none());
            let waiting = sound.filter_map(|ticket| {
                let arm = ticket.session.waiting_arm()?;
                Some((ticket, arm))
            });
            let next = waiting.min_by_key(|(ticket, _)| ticket.session.running_arms());
            let Some((ticket, arm)) = next else {
                return;
            };
            let session = &mut ticket.session;
            match self.caches.lend(session, session.needs(arm)) {
                Ok(Some(slots)) => {
                    match reuse::begin(&mut self.caches, session, arm, &slots) {
                        Ok(Reuse { queried, hit }) => {
                            self.reuse.queried += queried;
                            self.reuse.hit += hit;
                        }
                        Err(error) => {
                            self.health.note(&error);
                            ticket.failed = Some(error);
                        }
                    }
                    session.slots[arm] = Some(slots);
                    ticket.started.get_or_insert_with(Instant::now);
                }
                Ok(None) => return,
                Err(error) => {
                    self.health.note(&error);
                    ticket.failed = Some(error);
                }
            }
        }
    }

    /// For each request the arms that take part, with how many tokens at most. Arms that stand at the same token of
    /// the same prompt go on together, since part of their way is computed once for all of them. A token counts as
    /// many as its runs and edits cost: no request makes a step so long that the others wait for it.
    fn chosen_arms(&mut self) -> Vec<Vec<(usize, usize)>> {
        let mut left = self.capacity.prefill_tokens;
        let mut chosen = Vec::with_capacity(self.tickets.len());
        let mut costly = Vec::new();
        for (number, ticket) in self.tickets.iter().enumerate() {
            let session = &ticket.session;
            let mut arms = Vec::new();
            let mut abreast: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
            for (index, arm) in session.arms.iter().enumerate() {
                if session.slots[index].is_none() || arm.finish.is_some() {
                    continue;
                }
                match arm.unfed() {
                    1 if session.cost(index) > ORDINARY_COST => {
                        costly.push((number, index, session.cost(index)));
                    }
                    1 => arms.push((index, 1)),
                    unfed => abreast.entry((arm.prompt, unfed)).or_default().push(index),
                }
            }
            for ((_, unfed), abreast) in abreast {
                // Unedited, they are one until their first own token.
                let together = if session.edits() { abreast.len() } else { 1 };
                let dearest = abreast.iter().map(|&arm| session.cost(arm)).max();
                let cost = dearest.unwrap_or(1).div_ceil(ORDINARY_COST);
                let most = unfed.min((left / (together * cost)).max(1));
                for group in abreast.chunks(abreast.len() / together) {
                    if left > 0 {
                        left = left.saturating_sub(most * cost);
                        arms.extend(group.iter().map(|&arm| (arm, most)));
                    }
                }
            }
            chosen.push(arms);
        }
        // Of the costly ones so many as a step has room for, each in its turn, and always one.
        let mut room = self.capacity.sequences + self.capacity.prefill_tokens;
        let first = self.turns % costly.len().max(1);
        for &(ticket, arm, cost) in costly[first..].iter().chain(&costly[..first]) {
            if room == 0 {
                break;
            }
            room = room.saturating_sub(cost);
            self.turns = self.turns.wrapping_add(1);
            chosen[ticket].push((arm, 1));
        }
        chosen
    }

    /// Takes back the slots of arms that have ended, and sends away requests that are answered or failed.
    fn settle(&mut self) {
        let mut ended = Vec::new();
        let mut index = 0;
        while index < self.tickets.len() {
            let ticket = &mut self.tickets[index];
            let failed = ticket.failed.is_some();
            for arm in 0..ticket.session.arms.len() {
                if (failed || ticket.session.arms[arm].finish.is_some())
                    && let Some(slots) = ticket.session.slots[arm].take()
                {
                    ticket.session.texts[arm].clear();
                    self.caches.give_back(&ticket.session, slots);
                }
            }
            if failed || ticket.session.finished() {
                ended.extend(self.tickets.remove(index));
            } else {
                index += 1;
            }
        }
        // Before anyone hears of an end: who then looks finds it gone.
        self.tell();
        for ticket in ended {
            ticket.end(&self.health);
        }
    }

    /// Tells those who ask how the engine is.
    fn tell(&self) {
        self.health.set_load(self.load());
        self.health.set_kept(self.kept());
    }

    /// What is kept of prompts, and what it was good for.
    pub fn kept(&self) -> KeptPrefixes {
        KeptPrefixes {
            queried_tokens: self.reuse.queried,
            hit_tokens: self.reuse.hit,
            bytes: self.caches.kept_bytes(),
        }
    }

    /// The models that have run and are still held by somebody.
    pub fn models(&self) -> Vec<Arc<LoadedModel>> {
        self.caches.models()
    }

    /// Drops the caches of models that nobody holds any more.
    pub fn forget_unused(&mut self) {
        self.caches.forget_unused();
        self.tell();
    }

    /// Begins with new caches, unless someone still uses the old ones; nothing that was kept in them is used again.
    pub fn renew_caches(&mut self) {
        match self.is_idle() {
            true => self.caches = self.caches.renewed(),
            false => self.caches.drop_kept(),
        }
        self.tell();
    }
}

impl Ticket<'_> {
    /// The error of a request that has taken longer than it may.
    fn overdue(&self) -> Option<EngineError> {
        let request = &self.session.request;
        let begun = match request.max_tokens {
            0 => self.started,
            _ => self.first_token,
        };
        request.overdue(self.arrived.elapsed(), begun.is_some())
    }

    fn runs(&self) -> bool {
        self.session.running_arms() > 0
    }

    fn end(self, health: &EngineHealth) {
        let Ticket {
            session,
            observer,
            arrived,
            started,
            first_token,
            failed,
        } = self;
        let since = |moment: Option<Instant>| moment.map_or(Duration::ZERO, |at| at - arrived);
        let longest = session.arms.iter().map(|arm| arm.generated.len()).max();
        let intervals = longest.unwrap_or(0).saturating_sub(1) as u32;
        let generating = first_token.map(|first| first.elapsed());
        let answer = health.contain(|| match failed {
            Some(error) => Err(error),
            None => Ok(Generation {
                queued: since(started),
                to_first_token: since(first_token),
                between_tokens: generating.and_then(|time| time.checked_div(intervals)),
                ..session.answer()
            }),
        });
        observer.done(answer);
    }
}

/// What a step has brought one request.
struct Advanced {
    /// It has drawn a token.
    drew: bool,
    news: Vec<Delta>,
}

fn advance(session: &mut Session, computed: Computed) -> Result<Advanced, EngineError> {
    let Computed { rows, next, .. } = computed;
    let drew = !next.is_empty();
    session.advance(&rows, next)?;
    let news = session.news().collect();
    Ok(Advanced { drew, news })
}

/// A step of all requests together; where that fails, each alone, so that one cannot fail the others.
fn compute(
    shares: &mut [Share],
    caches: &mut Caches,
    health: &EngineHealth,
) -> Vec<Result<Computed, EngineError>> {
    if shares.is_empty() {
        return Vec::new();
    }
    let mut together = |shares: &mut [Share]| {
        health.contain(|| {
            for share in shares.iter() {
                health.probe.computing(&share.session.request)?;
            }
            Ok(batch::run(shares, caches)?)
        })
    };
    match together(shares) {
        Ok(computed) => computed.into_iter().map(Ok).collect(),
        Err(error @ EngineError::DeviceLost(_)) => {
            shares.iter().map(|_| Err(error.clone())).collect()
        }
        Err(error) if shares.len() == 1 => vec![Err(error)],
        Err(_) => shares
            .chunks_mut(1)
            .map(|alone| {
                let mut computed = together(alone)?;
                computed
                    .pop()
                    .ok_or_else(|| EngineError::Failed("nothing was computed".into()))
            })
            .collect(),
    }
}

/// Answers one request without a thread of its own.
pub fn generate(
    request: &GenerationRequest,
    mut observe: impl FnMut(Delta) -> bool,
) -> Result<Generation, EngineError> {
    let mut request = request.clone();
    if let Some(needed) = NeededGroups::of(&request) {
        let measured = needed.known().map_or_else(|| needed.measure(), Ok);
        request.measured = measured.map_err(|error| EngineError::Failed(error.to_string()))?;
    }
    let mut answer = None;
    // Nobody comes after it.
    let mut scheduler = Scheduler::new(Capacity {
        prefix_cache_mib: 0,
        ..Capacity::default()
    });
    let alone = Alone {
        observe: &mut observe,
        answer: &mut answer,
    };
    scheduler.submit(request, Box::new(alone));
    while !scheduler.is_idle() {
        scheduler.step();
    }
    drop(scheduler);
    answer.unwrap_or_else(|| Err(EngineError::Failed("nothing came of it".into())))
}

struct Alone<'a> {
    observe: &'a mut dyn FnMut(Delta) -> bool,
    answer: &'a mut Option<Result<Generation, EngineError>>,
}

impl Observer for Alone<'_> {
    fn more(&mut self, delta: Delta) -> bool {
        (self.observe)(delta)
    }

    fn waits(&self) -> bool {
        true
    }

    fn done(self: Box<Self>, answer: Result<Generation, EngineError>) {
        *self.answer = Some(answer);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::generation::tests::forward::PROMPT;
    use crate::generation::tests::pair::{request, steered};

    struct Nobody;

    impl Observer for Nobody {
        fn more(&mut self, _delta: Delta) -> bool {
            true
        }

        fn waits(&self) -> bool {
            true
        }

        fn done(self: Box<Self>, answer: Result<Generation, EngineError>) {
            answer.expect("an answer");
        }
    }

    #[test]
    fn costly_arms_take_turns_and_hold_up_nobody() {
        let capacity = Capacity {
            sequences: 32,
            prefill_tokens: 16,
            waiting: 8,
            ..Capacity::default()
        };
        let mut scheduler = Scheduler::new(capacity);
        let edit =
            json!({"feature": {"node": "1.resid_in", "channel": 3}, "op": "add", "value": 1});
        let mut costly = steered(&[PROMPT], json!({"edits": [edit]}));
        costly.n = 12;
        scheduler.submit(costly, Box::new(Nobody));
        scheduler.submit(request(&[PROMPT]), Box::new(Nobody));
        scheduler.tickets[0].session.edits_cost = 0;
        while scheduler.tickets.iter().any(|ticket| {
            let mut arms = ticket.session.arms.iter();
            arms.any(|arm| arm.unfed() != 1)
        }) {
            scheduler.step();
        }
        // As if each token of the first request cost as much as ten of a model without edits.
        let session = &mut scheduler.tickets[0].session;
        session.edits_cost = 10;
        let room = capacity.sequences + capacity.prefill_tokens;
        let mut had_a_turn = BTreeSet::new();
        for _ in 0..4 {
            let chosen = scheduler.chosen_arms();
            assert!(!chosen[0].is_empty());
            assert!(chosen[0].len() * 10 < room + 10, "{} arms", chosen[0].len());
            assert_eq!(chosen[1], [(0, 1)], "the other goes on in every step");
            had_a_turn.extend(chosen[0].iter().map(|&(arm, _)| arm));
        }
        assert_eq!(had_a_turn.len(), 12, "nobody is passed over");
        while !scheduler.is_idle() {
            scheduler.step();
        }
    }
}
