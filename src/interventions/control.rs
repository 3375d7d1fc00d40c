//! The control arms: what stands in for each change at the same norm.
//!
//! A random direction tells a feature from mere disturbance, another live channel tells it from any feature at
//! all. Each edit has one direction for every prompt and sample, the same for all tokens and strengths, drawn from
//! the sample's seed and the prompt's number; per token it is scaled to the norm of the change that the edit would
//! have made there. Edits that are carried out together in one sublayer's second run share the direction of the
//! first of them.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

use super::carry::{Carrier, KnownColumns};
use super::operation::norm;
use super::plan::{Edit, Plan, PlanError, Route, Scene, refused, sublayer_output};
use super::request::{Variant, Write};
use super::subject::Subject;
use crate::models::location::Place;

const VARIANTS: &str = "steer.variants";

/// A unit direction for each edit of a plan.
#[derive(Debug, Clone)]
pub struct Directions {
    /// `[edits][width of what is changed]`.
    units: Vec<Vec<f32>>,
}

/// What the control arms of a request are drawn from.
pub struct Draws<'a> {
    plan: &'a Plan,
    scene: &'a Scene<'a>,
    /// For each edit, the channels that can stand in for its own; found when first asked for.
    candidates: BTreeMap<usize, (Place, Vec<usize>)>,
    columns: KnownColumns,
}

impl<'a> Draws<'a> {
    pub fn new(plan: &'a Plan, scene: &'a Scene<'a>) -> Self {
        Draws {
            plan,
            scene,
            candidates: BTreeMap::new(),
            columns: KnownColumns::new(),
        }
    }

    /// The directions of one sample of prompt number `prompt`; none for arms that are no control.
    pub fn draw(
        &mut self,
        variant: Variant,
        prompt: usize,
        seed: u64,
    ) -> Result<Option<Directions>, PlanError> {
        let (plan, scene) = (self.plan, self.scene);
        let generator = |edit| generator(seed, variant, prompt, edit);
        let edits = plan.edits.iter().enumerate();
        let units = match variant {
            Variant::Steered | Variant::Baseline => return Ok(None),
            Variant::Random => edits
                .map(|(index, edit)| gaussian(edit.changed_width(scene), &mut generator(index)))
                .collect(),
            Variant::RandomFeature => edits
                .map(|(index, edit)| self.other_feature(index, edit, &mut generator(index)))
                .collect::<Result<_, PlanError>>()?,
        };
        Ok(Some(Directions { units }))
    }

    /// The counterpart of another live channel of the same place.
    fn other_feature(
        &mut self,
        index: usize,
        edit: &Edit,
        generator: &mut ChaCha8Rng,
    ) -> Result<Vec<f32>, PlanError> {
        let scene = self.scene;
        if let Entry::Vacant(entry) = self.candidates.entry(index) {
            entry.insert(candidates(edit, scene)?);
        }
        let Some((place, candidates)) = self.candidates.get_mut(&index) else {
            return Err(refused("an edit has no channels beside it", VARIANTS));
        };
        let place = *place;
        while !candidates.is_empty() {
            let at = generator.random_range(0..candidates.len());
            let channel = candidates[at];
            if scene.native {
                let mut unit = vec![0.0; place.width(&scene.model.config)];
                unit[channel] = 1.0;
                return Ok(unit);
            }
            match counterpart(place, channel, edit.write, scene, &mut self.columns)? {
                Some(direction) => return Ok(direction),
                // It cannot be carried over, whoever asks: nobody need try it again.
                None => candidates.remove(at),
            };
        }
        let message = format!("{place} has no other live channel that can be carried over");
        Err(refused(message, VARIANTS))
    }
}

impl Directions {
    /// What is written in place of edit number `edit`: a unit vector of what it changes.
    pub fn of_edit(&self, edit: usize) -> Option<&[f32]> {
        self.units.get(edit).map(Vec::as_slice)
    }
}

/// Its own stream for every prompt and edit, apart from the one that draws tokens.
fn generator(seed: u64, variant: Variant, prompt: usize, edit: usize) -> ChaCha8Rng {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    let kind = if variant == Variant::Random { 1 } else { 2 };
    generator.set_stream(kind << 60 | (prompt as u64) << 32 | edit as u64);
    generator
}

fn gaussian(width: usize, generator: &mut ChaCha8Rng) -> Vec<f32> {
    loop {
        let mut direction: Vec<f32> = (0..width)
            .map(|_| generator.sample(StandardNormal))
            .collect();
        if normalise(&mut direction) {
            return direction;
        }
    }
}

/// To unit length; false for a vector that has none.
fn normalise(direction: &mut [f32]) -> bool {
    let length = norm(direction);
    direction.iter_mut().for_each(|value| *value /= length);
    length > 0.0 && length.is_finite()
}

/// The place whose channels can stand in for those of an edit, and its live channels without the edit's own.
fn candidates(edit: &Edit, scene: &Scene) -> Result<(Place, Vec<usize>), PlanError> {
    let own_place = edit.subject.place();
    let place = match edit.route {
        Route::Replayed => sublayer_output(own_place).unwrap_or(own_place),
        Route::InPlace | Route::Carried(_) => own_place,
    };
    let Some(pair) = scene.pair else {
        let message = "`random_feature` needs a bridge to take a feature from";
        return Err(refused(message, VARIANTS));
    };
    let Some(statistics) = pair.reference.place(place) else {
        let message =
            format!("`random_feature` needs reference statistics of {place}, and there are none");
        return Err(refused(message, VARIANTS));
    };
    let edited: BTreeSet<usize> = match &edit.subject {
        Subject::Channels(group) if group.place == place => {
            group.channels.iter().copied().collect()
        }
        _ => BTreeSet::new(),
    };
    let live = statistics.live_channels();
    let candidates = live.filter(|channel| !edited.contains(channel)).collect();
    Ok((place, candidates))
}

/// The dense direction of one sparse channel, written as the edit is.
fn counterpart(
    place: Place,
    channel: usize,
    write: Option<Write>,
    scene: &Scene,
    columns: &mut KnownColumns,
) -> candle_core::Result<Option<Vec<f32>>> {
    let Some(pair) = scene.pair else {
        return Ok(None);
    };
    let (dense, sparse) = (&pair.dense, &pair.sparse);
    let write = write.unwrap_or(Write::Residual);
    // The scale is of no account: only the direction is kept.
    let carrier = Carrier::sharing(
        dense,
        sparse,
        &pair.bridge,
        place,
        &[channel],
        write,
        1.0,
        columns,
    )?;
    let Ok(carrier) = carrier else {
        return Ok(None);
    };
    let mut direction = vec![0.0; carrier.width()];
    carrier.add(&[1.0], 1.0, &mut direction);
    Ok(normalise(&mut direction).then_some(direction))
}
