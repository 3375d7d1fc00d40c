//! A plan being carried out: one step of all arms through the models it takes.
//!
//! First the unedited runs that edits read from, then the second runs of sparse sublayers that are edited
//! inside, then the answering model with everything in place. Each of them is one batch whatever the arms' edits.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::carried::{Beside, CarriedTap};
use super::control::Directions;
use super::in_place::InPlaceTap;
use super::plan::counterfactual::StreamModel;
use super::plan::{Joined, Plan, PlanError, Scene};
use super::readings::{ReadingRun, Readings};
use super::receipt::Records;
use super::request::Variant;
use super::rows_of_arms::{Feed, Row, SteeredArm, cache_rows, ids_of, rows_of};
use crate::models::kv_cache::KvCache;
use crate::models::location::Site;
use crate::models::tap::{NoTap, ResidualTap};
use crate::models::token_rows::TokenRows;
use crate::models::transformer::Transformer;

/// One arm before its models are set up.
#[derive(Debug, Clone, Copy)]
pub struct ArmPlan {
    pub variant: Variant,
    pub strength: Option<f64>,
    /// Of the arm's sample.
    pub seed: u64,
}

/// A plan with the models and caches that carry it out.
pub struct Steering<'m> {
    pub plan: Plan,
    pub arms: Vec<SteeredArm>,
    pub records: Records,
    joined: Option<Joined<'m>>,
    sparse: Option<ReadingRun<'m>>,
    dense: Option<ReadingRun<'m>>,
    /// One cache for each replay.
    replays: Vec<KvCache>,
}

impl<'m> Steering<'m> {
    /// Sets up the runs for these arms, none longer than `capacity` tokens.
    pub fn new(
        plan: Plan,
        scene: &Scene<'m>,
        arms: &[ArmPlan],
        capacity: usize,
    ) -> std::result::Result<Self, PlanError> {
        // Arms of one sample share their directions, whatever their strength.
        let mut drawn: BTreeMap<(Variant, u64), Option<Arc<Directions>>> = BTreeMap::new();
        let mut steered = Vec::with_capacity(arms.len());
        for arm in arms {
            let key = (arm.variant, arm.seed);
            if let std::collections::btree_map::Entry::Vacant(entry) = drawn.entry(key) {
                entry.insert(Directions::draw(&plan, scene, arm.variant, arm.seed)?.map(Arc::new));
            }
            steered.push(SteeredArm {
                variant: arm.variant,
                strength: arm.strength,
                directions: drawn.get(&key).cloned().flatten(),
                follows: arm.variant != Variant::Baseline || plan.activations,
            });
        }
        let sparse_model = match (scene.native, &scene.joined) {
            (true, _) => Some(scene.model),
            (false, joined) => joined.map(|joined| joined.sparse),
        };
        let run = |kind, model| ReadingRun::new(&plan, kind, model, arms.len(), capacity);
        let sparse = sparse_model.and_then(|model| run(StreamModel::Sparse, model));
        let dense = run(StreamModel::Dense, scene.model);
        let replay = || sparse_model.map(|model| KvCache::new(&model.config, arms.len(), capacity));
        Ok(Steering {
            replays: plan.replays.iter().filter_map(|_| replay()).collect(),
            records: Records::of(&plan),
            arms: steered,
            joined: scene.joined,
            sparse,
            dense,
            plan,
        })
    }

    /// Feeds tokens to the answering model: the stream at its last site, one row a token.
    pub fn step(
        &mut self,
        model: &Transformer,
        cache: &mut KvCache,
        feeds: &[Feed],
    ) -> Result<Tensor> {
        if self.plan.is_empty() {
            return run(model, cache, feeds, &rows_of(feeds), &mut NoTap);
        }
        let Steering {
            plan,
            arms,
            records,
            joined,
            sparse,
            dense,
            replays,
        } = self;
        let rows = rows_of(feeds);
        let follows = |arm: usize| arms[arm].follows;
        let read = |run: &mut Option<ReadingRun>| match run {
            Some(run) => run.step(plan, feeds, follows),
            None => Ok(Readings::default()),
        };
        let (sparse, dense) = (read(sparse)?, read(dense)?);
        if plan.native {
            let every: Vec<usize> = (0..plan.edits.len()).collect();
            let mut tap = InPlaceTap {
                plan,
                arms,
                edits: &every,
                rows: &rows,
                readings: &sparse,
                controls: true,
                wanted: None,
                recorded: BTreeMap::new(),
                records,
            };
            return run(model, cache, feeds, &rows, &mut tap);
        }
        let mut replayed = Vec::with_capacity(replays.len());
        for (replay, cache) in plan.replays.iter().zip(replays) {
            let Some(joined) = joined else {
                continue;
            };
            let fed: Vec<Feed> = feeds
                .iter()
                .filter(|feed| follows(feed.arm))
                .copied()
                .collect();
            let followed: Vec<Row> = rows
                .iter()
                .filter(|row| follows(row.arm))
                .copied()
                .collect();
            if fed.is_empty() {
                replayed.push(Readings::default());
                continue;
            }
            let mut tap = InPlaceTap {
                plan,
                arms,
                edits: &replay.edits,
                rows: &followed,
                readings: &sparse,
                controls: false,
                wanted: Some(replay.output),
                recorded: BTreeMap::new(),
                records,
            };
            run(joined.sparse, cache, &fed, &followed, &mut tap)?;
            replayed.push(Readings::of_rows(tap.recorded, &followed, rows.len()));
        }
        let beside = Beside {
            sparse: &sparse,
            dense: &dense,
            replays: &replayed,
        };
        let mut tap = CarriedTap::new(plan, *joined, arms, &rows, beside, records);
        run(model, cache, feeds, &rows, &mut tap)
    }
}

/// The stream at a model's last site for these tokens.
pub fn run(
    model: &Transformer,
    cache: &mut KvCache,
    feeds: &[Feed],
    rows: &[Row],
    tap: &mut dyn ResidualTap,
) -> Result<Tensor> {
    let mut tokens = TokenRows::cached(&ids_of(feeds), cache_rows(rows), cache)?;
    let stream = model.embed(&tokens)?;
    model.run(
        Site::before_attention(0, model.config.n_layers),
        stream,
        &mut tokens,
        tap,
    )
}
