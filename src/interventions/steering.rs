//! A plan being carried out, for the arms of one request.
//!
//! A step takes up to three passes: the unedited runs that edits read from, the second runs of sparse sublayers
//! that are edited inside, and the answering model with everything in place. This module says which tokens of
//! the request take part in each and which tap stands beside them; whose else the rows of a pass are is the
//! caller's business.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::carried::{Beside, CarriedTap};
use super::control::{Directions, Draws};
use super::effect::{Effect, Fingerprints};
use super::host_copies::HostCopies;
use super::in_place::InPlaceTap;
use super::plan::counterfactual::StreamModel;
use super::plan::{Plan, PlanError, Scene};
use super::readings::{ReadingNeeds, Readings};
use super::receipt::Records;
use super::request::Variant;
use super::row_edits::RowEdits;
use super::rows_of_arms::{Feed, PassRows, Row, SteeredArm, cache_rows, ids_of};
use crate::features::pair::Pair;
use crate::models::tap::RowTap;

/// One arm before its models are set up.
#[derive(Debug, Clone, Copy)]
pub struct ArmPlan {
    /// Its number among the request's.
    pub prompt: usize,
    pub variant: Variant,
    pub strength: Option<f64>,
    /// Of the arm's sample.
    pub seed: u64,
}

/// The cache slots of one arm.
#[derive(Debug, Clone, Default)]
pub struct ArmSlots {
    /// In the answering model's cache.
    pub answer: usize,
    /// Of the sparse model's unedited runs; empty for an arm that reads nothing.
    pub sparse: Vec<usize>,
    /// Of the answering model's counterfactual runs.
    pub dense: Vec<usize>,
    /// One for each second run, in the sparse model's cache.
    pub replays: Vec<usize>,
}

/// How many slots an arm takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SlotNeeds {
    pub sparse: usize,
    pub dense: usize,
    pub replays: usize,
}

/// A plan, its arms and what has been noted of them.
pub struct Steering {
    pub plan: Plan,
    pub arms: Vec<SteeredArm>,
    pub records: Records,
    sparse: Option<ReadingNeeds>,
    dense: Option<ReadingNeeds>,
    fingerprints: Fingerprints,
}

/// What one step has read so far.
#[derive(Default)]
pub struct StepReadings {
    pub sparse: Readings,
    pub dense: Readings,
    /// For each replay of the plan.
    pub replays: Vec<Readings>,
}

impl StepReadings {
    /// The readings of one model.
    pub fn of(&mut self, kind: StreamModel) -> &mut Readings {
        match kind {
            StreamModel::Sparse => &mut self.sparse,
            StreamModel::Dense => &mut self.dense,
        }
    }
}

impl Steering {
    /// Sets up the arms.
    pub fn new(plan: Plan, scene: &Scene, arms: &[ArmPlan]) -> Result<Self, PlanError> {
        // Arms of one sample of one prompt share their directions, whatever their strength.
        let mut drawn: BTreeMap<(usize, Variant, u64), Option<Arc<Directions>>> = BTreeMap::new();
        let mut draws = Draws::new(&plan, scene);
        let mut steered = Vec::with_capacity(arms.len());
        for arm in arms {
            let key = (arm.prompt, arm.variant, arm.seed);
            if let std::collections::btree_map::Entry::Vacant(entry) = drawn.entry(key) {
                let drawn = draws.draw(arm.variant, arm.prompt, arm.seed)?;
                entry.insert(drawn.map(Arc::new));
            }
            steered.push(SteeredArm {
                variant: arm.variant,
                strength: arm.strength,
                directions: drawn.get(&key).cloned().flatten(),
                follows: arm.variant != Variant::Baseline || plan.activations,
            });
        }
        let has_sparse = scene.native || scene.pair.is_some();
        Ok(Steering {
            records: Records::of(&plan),
            fingerprints: Fingerprints::of(&plan, scene),
            arms: steered,
            sparse: ReadingNeeds::of(&plan, StreamModel::Sparse).filter(|_| has_sparse),
            dense: ReadingNeeds::of(&plan, StreamModel::Dense),
            plan,
        })
    }

    /// The slots that an arm takes beside its own in the answering model's cache.
    pub fn slots(&self, arm: usize) -> SlotNeeds {
        if !self.arms[arm].follows {
            return SlotNeeds::default();
        }
        let slots = |needs: &Option<ReadingNeeds>| needs.as_ref().map_or(0, ReadingNeeds::slots);
        SlotNeeds {
            sparse: slots(&self.sparse),
            dense: slots(&self.dense),
            replays: self.plan.replays.len(),
        }
    }

    /// What the edits do to an arm's tokens in the answering model; `prompt` is the prompt's number and its length.
    /// None where they do nothing.
    pub fn effect(&self, arm: usize, prompt: (usize, usize)) -> Option<Effect> {
        let arm = &self.arms[arm];
        let (all, drawn) = (0..self.plan.edits.len(), arm.directions.is_some());
        let (plan, fingerprints) = (&self.plan, &self.fingerprints);
        fingerprints.effect(plan, all.collect(), arm, prompt, drawn)
    }

    /// The same of a second run: what a control arm draws does not enter it.
    pub fn replay_effect(
        &self,
        arm: usize,
        replay: usize,
        prompt: (usize, usize),
    ) -> Option<Effect> {
        let edits = self.plan.replays[replay].edits.clone();
        let (plan, fingerprints) = (&self.plan, &self.fingerprints);
        fingerprints.effect(plan, edits, &self.arms[arm], prompt, false)
    }

    /// What is read in a model.
    pub fn needs(&self, kind: StreamModel) -> Option<&ReadingNeeds> {
        match kind {
            StreamModel::Sparse => self.sparse.as_ref(),
            StreamModel::Dense => self.dense.as_ref(),
        }
    }

    /// The tokens of an unedited run of one model beside `feeds`, and the readings to fill.
    pub fn reading<'s>(
        &self,
        kind: StreamModel,
        feeds: &[Feed],
        slots: impl Fn(usize) -> &'s ArmSlots,
    ) -> Option<(PassRows, Readings)> {
        let prepared = self
            .needs(kind)?
            .prepare(&self.plan, feeds, |arm| match kind {
                StreamModel::Sparse => slots(arm).sparse.as_slice(),
                StreamModel::Dense => slots(arm).dense.as_slice(),
            });
        Some(prepared)
    }

    /// The rows of `feeds` that a second run takes, and their tokens.
    pub fn replay_rows<'s>(
        &self,
        replay: usize,
        feeds: &[Feed],
        rows: &[Row],
        slots: impl Fn(usize) -> &'s ArmSlots,
    ) -> (Vec<Row>, PassRows) {
        let follows = |arm: usize| self.arms[arm].follows;
        let fed = feeds.iter().filter(|feed| follows(feed.arm)).copied();
        let fed: Vec<Feed> = fed.collect();
        let followed: Vec<Row> = rows
            .iter()
            .filter(|row| follows(row.arm))
            .copied()
            .collect();
        let rows = PassRows {
            ids: ids_of(&fed),
            at: cache_rows(&followed, |arm| slots(arm).replays[replay]),
            copies: Vec::new(),
        };
        (followed, rows)
    }

    /// The tap of a second run on `rows`.
    pub fn replay_tap<'a>(
        &'a mut self,
        replay: usize,
        rows: &'a [Row],
        readings: &'a StepReadings,
    ) -> InPlaceTap<'a> {
        let Steering {
            plan,
            arms,
            records,
            ..
        } = self;
        let replay = &plan.replays[replay];
        InPlaceTap {
            plan,
            arms,
            edits: &replay.edits,
            places: &replay.places,
            rows,
            readings: &readings.sparse,
            controls: false,
            wanted: Some(replay.output),
            recorded: BTreeMap::new(),
            records,
            tested: HostCopies::default(),
            table: RowEdits::default(),
            notes: Vec::new(),
        }
    }

    /// The tap of the answering model on `rows`; `edits` numbers all edits of the plan.
    pub fn answering_tap<'a>(
        &'a mut self,
        pair: Option<&'a Pair>,
        edits: &'a [usize],
        rows: &'a [Row],
        readings: &'a StepReadings,
    ) -> Box<dyn RowTap + 'a> {
        let Steering {
            plan,
            arms,
            records,
            ..
        } = self;
        if plan.native {
            return Box::new(InPlaceTap {
                plan,
                arms,
                edits,
                places: &plan.places,
                rows,
                readings: &readings.sparse,
                controls: true,
                wanted: None,
                recorded: BTreeMap::new(),
                records,
                tested: HostCopies::default(),
                table: RowEdits::default(),
                notes: Vec::new(),
            });
        }
        let beside = Beside {
            sparse: &readings.sparse,
            dense: &readings.dense,
            replays: &readings.replays,
        };
        Box::new(CarriedTap::new(plan, pair, arms, rows, beside, records))
    }
}
