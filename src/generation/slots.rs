//! The cache slots of every model that runs: allocated when first needed, lent to arms.
//!
//! A model has one cache of a bounded number of slots, each as long as its context. An arm gets all slots it will
//! need, in both models, or none: half an arm cannot run. Beside its slots a model has the blocks of keys and values
//! that outlived their requests; all models' blocks together have one bound, and what was not used for the longest
//! time makes room.

use std::sync::{Arc, Weak};

use super::capacity::Capacity;
use super::prefix_cache::PrefixCache;
use super::prefix_chain::{BLOCK, BlockKey};
use super::request::EngineError;
use super::session::Session;
use crate::interventions::steering::{ArmSlots, SlotNeeds};
use crate::models::kv_cache::KvCache;
use crate::models::model::LoadedModel;

/// The caches of all models that have run.
pub struct Caches {
    pools: Vec<Pool>,
    /// Slots that each model's cache may have.
    per_model: usize,
    /// Bytes that the blocks of all models may take.
    most_kept: usize,
    /// Counts the uses of blocks.
    clock: u64,
}

struct Pool {
    /// Whoever serves the model and the sessions that it answers keep it; a cache does not.
    model: Weak<LoadedModel>,
    cache: KvCache,
    free: Vec<usize>,
    kept: PrefixCache,
}

impl Caches {
    /// No caches yet; each will have at most `per_model` slots, and nothing is kept.
    pub fn new(per_model: usize) -> Self {
        Self::keeping(per_model, 0)
    }

    /// The same; keys and values that take no more than `most_kept` bytes outlive their requests.
    pub fn keeping(per_model: usize, most_kept: usize) -> Self {
        Caches {
            pools: Vec::new(),
            per_model,
            most_kept,
            clock: 0,
        }
    }

    /// Those that an engine of this capacity has.
    pub fn of(capacity: &Capacity) -> Self {
        Self::keeping(
            capacity.sequences,
            capacity.prefix_cache_mib.saturating_mul(1 << 20),
        )
    }

    /// Others of the same bounds, with nothing in them.
    pub fn renewed(&self) -> Self {
        Self::keeping(self.per_model, self.most_kept)
    }

    pub fn per_model(&self) -> usize {
        self.per_model
    }

    /// A model's cache.
    pub fn cache_of(&mut self, model: &Arc<LoadedModel>) -> &mut KvCache {
        &mut self.pool(model).cache
    }

    /// The share of slots that are lent, of the model with the most.
    pub fn usage(&self) -> f64 {
        let lent = |pool: &Pool| pool.cache.slots() - pool.free.len();
        let used = self.pools.iter().map(lent);
        used.max().unwrap_or(0) as f64 / self.per_model.max(1) as f64
    }

    /// The most slots of one model that an arm of these needs takes.
    pub fn largest_need(session: &Session, needs: SlotNeeds) -> usize {
        let answer = 1 + needs.dense;
        let sparse = needs.sparse + needs.replays;
        match is_own_sparse(session) {
            true => answer + sparse,
            false => answer.max(sparse),
        }
    }

    /// Slots for an arm, if enough are free or can be made; an error where memory has no room for them, with or
    /// without those that are lent.
    pub fn lend(
        &mut self,
        session: &Session,
        needs: SlotNeeds,
    ) -> Result<Option<ArmSlots>, EngineError> {
        let answering = 1 + needs.dense;
        let sparse = needs.sparse + needs.replays;
        let both = is_own_sparse(session);
        let here = answering + if both { sparse } else { 0 };
        if !self.make_free(&session.model, here)? {
            return Ok(None);
        }
        let elsewhere = session.sparse().filter(|_| sparse > 0 && !both).cloned();
        if let Some(model) = &elsewhere
            && !self.make_free(model, sparse)?
        {
            return Ok(None);
        }
        let mut own = self.pool(&session.model).take(here);
        let mut read = match &elsewhere {
            Some(model) => self.pool(model).take(sparse),
            None => own.split_off(answering),
        };
        Ok(Some(ArmSlots {
            answer: own.remove(0),
            dense: own,
            replays: read.split_off(needs.sparse),
            sparse: read,
        }))
    }

    /// Whether so many slots of a model are free, after new ones were made where there are too few.
    fn make_free(&mut self, model: &Arc<LoadedModel>, count: usize) -> Result<bool, EngineError> {
        let per_model = self.per_model;
        let pool = self.pool(model);
        while pool.free.len() < count {
            if pool.cache.slots() >= per_model {
                return Ok(false);
            }
            match pool.cache.add_slot() {
                Ok(slot) => pool.free.push(slot),
                // Those that are lent come back.
                Err(_) if pool.cache.slots() > pool.free.len() => return Ok(false),
                Err(error) => {
                    return Err(match EngineError::from(error) {
                        EngineError::Failed(problem) => EngineError::NoMemory(problem),
                        other => other,
                    });
                }
            }
        }
        Ok(true)
    }

    /// Takes an arm's slots back.
    pub fn give_back(&mut self, session: &Session, slots: ArmSlots) {
        let ArmSlots {
            answer,
            sparse,
            dense,
            replays,
        } = slots;
        let own = self.pool(&session.model);
        own.free.push(answer);
        own.free.extend(dense);
        if let Some(model) = session.sparse().cloned() {
            self.pool(&model)
                .free
                .extend(sparse.into_iter().chain(replays));
        }
    }

    /// Whether anything may be kept.
    pub fn keeps(&self) -> bool {
        self.most_kept > 0
    }

    /// Bytes of the keys and values that are kept.
    pub fn kept_bytes(&self) -> usize {
        self.pools.iter().map(|pool| pool.kept.bytes()).sum()
    }

    /// How many of a text's blocks, from its first on, are kept of a model.
    pub fn known_blocks(&mut self, model: &Arc<LoadedModel>, keys: &[BlockKey]) -> usize {
        self.pool(model).kept.known(keys)
    }

    /// Puts the first `positions` of a text, whose blocks are kept, into a slot.
    pub fn restore(
        &mut self,
        model: &Arc<LoadedModel>,
        slot: usize,
        keys: &[BlockKey],
        positions: usize,
    ) -> Result<(), EngineError> {
        for (key, from) in keys.iter().zip((0..positions).step_by(BLOCK)) {
            let now = self.tick();
            let Pool { kept, cache, .. } = self.pool(model);
            let Some(block) = kept.get(key, now) else {
                return Err(EngineError::Failed("a block is not kept any more".into()));
            };
            cache.write_block(slot, from..positions.min(from + BLOCK), block)?;
        }
        Ok(())
    }

    /// Keeps the last of a text's blocks, which stands in a slot with all before it. False where there is no room for
    /// it or the block before it has gone: then no later one can be kept either.
    pub fn keep(
        &mut self,
        model: &Arc<LoadedModel>,
        slot: usize,
        keys: &[BlockKey],
    ) -> Result<bool, EngineError> {
        let Some((&key, before)) = keys.split_last() else {
            return Ok(false);
        };
        let parent = before.last().copied();
        // What it stands on is in use, and makes no room for it.
        let begun = self.tick();
        if parent.is_some_and(|parent| self.pool(model).kept.get(&parent, begun).is_none()) {
            return Ok(false);
        }
        let now = self.tick();
        let pool = self.pool(model);
        if pool.kept.get(&key, now).is_some() {
            return Ok(true);
        }
        let bytes = pool.cache.values_of(BLOCK) * size_of::<f32>();
        if !self.make_room(bytes, begun) {
            return Ok(false);
        }
        let pool = self.pool(model);
        let first = before.len() * BLOCK;
        let Some(values) = pool.cache.read_block(slot, first..first + BLOCK)? else {
            return Ok(false);
        };
        pool.kept.insert(parent, key, values, now);
        Ok(true)
    }

    /// Lets blocks go that were last used before `begun` until there is room for so many bytes more.
    fn make_room(&mut self, bytes: usize, begun: u64) -> bool {
        let Some(most) = self.most_kept.checked_sub(bytes) else {
            return false;
        };
        while self.kept_bytes() > most {
            let oldest = self.pools.iter_mut().filter_map(|pool| {
                let used = pool.kept.oldest().filter(|&used| used < begun)?;
                Some((used, pool))
            });
            match oldest.min_by_key(|(used, _)| *used) {
                Some((_, pool)) => pool.kept.drop_oldest(),
                None => return false,
            }
        }
        true
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Lets everything go that has outlived its request.
    pub fn drop_kept(&mut self) {
        for pool in &mut self.pools {
            pool.kept = PrefixCache::default();
        }
    }

    /// Drops the caches of models that nothing else holds any more.
    pub fn forget_unused(&mut self) {
        self.pools.retain(|pool| pool.model.strong_count() > 0);
    }

    /// The models that have caches and that something else still holds.
    pub fn models(&self) -> Vec<Arc<LoadedModel>> {
        let models = self.pools.iter().map(|pool| pool.model.upgrade());
        models.flatten().collect()
    }

    fn pool(&mut self, model: &Arc<LoadedModel>) -> &mut Pool {
        let known = self
            .pools
            .iter()
            .position(|pool| pool.model.as_ptr() == Arc::as_ptr(model));
        let index = known.unwrap_or_else(|| {
            let config = &model.transformer.config;
            self.pools.push(Pool {
                model: Arc::downgrade(model),
                cache: KvCache::empty(config, config.context_length, model.transformer.device()),
                // The last to come back is the first to go: what was just used is warm.
                free: Vec::new(),
                kept: PrefixCache::default(),
            });
            self.pools.len() - 1
        });
        &mut self.pools[index]
    }
}

impl Pool {
    fn take(&mut self, count: usize) -> Vec<usize> {
        self.free.split_off(self.free.len() - count)
    }
}

/// The answering model is itself the sparse one that is read.
fn is_own_sparse(session: &Session) -> bool {
    session
        .sparse()
        .is_some_and(|sparse| Arc::ptr_eq(sparse, &session.model))
}
