//! The control arms: what stands in for each change at the same norm.
//!
//! A random direction tells a feature from mere disturbance, another live channel tells it from any feature at
//! all. Each edit has one direction for every prompt and sample, the same for all tokens and strengths, drawn from
//! the sample's seed and the prompt's number; per token it is scaled to the norm of the change that the edit would
//! have made there. Edits that are carried out together in one sublayer's second run share the direction of the
//! first of them.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use super::carry::{Carrier, KnownColumns};
use super::control_directions::{self, ControlDraw};
use super::plan::{Edit, Plan, PlanError, Route, Scene, refused, sublayer_output};
use super::request::Variant;
use super::subject::Subject;
use crate::features::group::Write;
use crate::models::location::Location;

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
    candidates: BTreeMap<usize, (Location, Vec<usize>)>,
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
        let draw = |edit| ControlDraw { seed, prompt, edit };
        let edits = plan.edits.iter().enumerate();
        let units = match variant {
            Variant::Steered | Variant::Baseline => return Ok(None),
            Variant::Random => edits
                .map(|(index, edit)| draw(index).random(edit.changed_width(scene)))
                .collect(),
            Variant::RandomFeature => edits
                .map(|(index, edit)| self.other_feature(draw(index), edit))
                .collect::<Result<_, PlanError>>()?,
        };
        Ok(Some(Directions { units }))
    }

    /// The counterpart of another live channel of the same place.
    fn other_feature(&mut self, draw: ControlDraw, edit: &Edit) -> Result<Vec<f32>, PlanError> {
        let scene = self.scene;
        if let Entry::Vacant(entry) = self.candidates.entry(draw.edit) {
            entry.insert(candidates(edit, scene)?);
        }
        let Some((place, candidates)) = self.candidates.get_mut(&draw.edit) else {
            return Err(refused("an edit has no channels beside it", VARIANTS));
        };
        let place = *place;
        let columns = &mut self.columns;
        let found = draw.random_feature(candidates, |channel| {
            if scene.native {
                let mut unit = vec![0.0; place.width(&scene.model.config)];
                unit[channel] = 1.0;
                return Ok(Some(unit));
            }
            counterpart(place, channel, edit.write, scene, columns)
        })?;
        found.ok_or_else(|| {
            let message = format!("{place} has no other live channel that can be carried over");
            refused(message, VARIANTS)
        })
    }
}

impl Directions {
    /// What is written in place of edit number `edit`: a unit vector of what it changes.
    pub fn of_edit(&self, edit: usize) -> Option<&[f32]> {
        self.units.get(edit).map(Vec::as_slice)
    }
}

/// The place whose channels can stand in for those of an edit, and its live channels without the edit's own.
fn candidates(edit: &Edit, scene: &Scene) -> Result<(Location, Vec<usize>), PlanError> {
    let own_place = edit.subject.place();
    let place = match edit.route {
        Route::Replayed => sublayer_output(own_place).unwrap_or(own_place),
        Route::InPlace | Route::Carried(_) => own_place,
    };
    if matches!(edit.subject, Subject::OwnChannels(_)) {
        let message = format!(
            "`random_feature` needs reference statistics of {own_place} of the dense model itself, and there are none; \
             `random` needs none"
        );
        return Err(refused(message, VARIANTS));
    }
    let Some(pair) = scene.pair else {
        let message = "`random_feature` needs a bridge to take a feature from";
        return Err(refused(message, VARIANTS));
    };
    let edited: BTreeSet<usize> = match &edit.subject {
        Subject::Channels(group) if group.place == place => {
            group.channels.iter().copied().collect()
        }
        _ => BTreeSet::new(),
    };
    match control_directions::candidates(pair, place, &edited) {
        Some(candidates) => Ok((place, candidates)),
        None => {
            let message = format!(
                "`random_feature` needs reference statistics of {place}, and there are none"
            );
            Err(refused(message, VARIANTS))
        }
    }
}

/// The dense direction of one sparse channel, written as the edit is.
fn counterpart(
    place: Location,
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
    Ok(Some(direction))
}
