//! The control arms: what stands in for each change at the same norm.
//!
//! A random direction tells a feature from mere disturbance, another live channel tells it from any feature at
//! all. Each edit has one direction for every prompt and sample, the same for all tokens and strengths, drawn from
//! the sample's seed and the prompt's number; per token it is scaled to the norm of the change that the edit would
//! have made there. Edits that are carried out together in one sublayer's second run share the direction of the
//! first of them.

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

use super::carry::Carrier;
use super::operation::norm;
use super::plan::subject::Subject;
use super::plan::{Edit, Plan, PlanError, Route, Scene, refused, sublayer_output};
use super::request::{Variant, Write};
use crate::models::location::Place;

/// A unit direction for each edit of a plan.
#[derive(Debug, Clone)]
pub struct Directions {
    /// `[edits][width of what is changed]`.
    units: Vec<Vec<f32>>,
}

impl Directions {
    /// The directions of one sample of prompt number `prompt`; none for arms that are no control.
    pub fn draw(
        plan: &Plan,
        scene: &Scene,
        variant: Variant,
        prompt: usize,
        seed: u64,
    ) -> Result<Option<Self>, PlanError> {
        let generator = |edit| generator(seed, variant, prompt, edit);
        let edits = plan.edits.iter().enumerate();
        let units = match variant {
            Variant::Steered | Variant::Baseline => return Ok(None),
            Variant::Random => edits
                .map(|(index, edit)| Ok(gaussian(width(edit, scene), &mut generator(index))))
                .collect::<Result<_, PlanError>>()?,
            Variant::RandomFeature => edits
                .map(|(index, edit)| other_feature(edit, scene, &mut generator(index)))
                .collect::<Result<_, PlanError>>()?,
        };
        Ok(Some(Directions { units }))
    }

    /// Turns `change` into the direction of edit number `edit`, keeping its norm.
    pub fn replace(&self, edit: usize, change: &mut [f32]) {
        let size = norm(change);
        change.fill(0.0);
        for (change, unit) in change.iter_mut().zip(&self.units[edit]) {
            *change = size * unit;
        }
    }
}

/// Its own stream for every prompt and edit, apart from the one that draws tokens.
fn generator(seed: u64, variant: Variant, prompt: usize, edit: usize) -> ChaCha8Rng {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    let kind = if variant == Variant::Random { 1 } else { 2 };
    generator.set_stream(kind << 60 | (prompt as u64) << 32 | edit as u64);
    generator
}

/// The width of what the edit changes: its own place, or the dense stream.
fn width(edit: &Edit, scene: &Scene) -> usize {
    match scene.native {
        true => edit.subject.place().width(&scene.model.config),
        false => scene.model.config.d_model,
    }
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

/// The counterpart of another live channel of the same place.
fn other_feature(
    edit: &Edit,
    scene: &Scene,
    generator: &mut ChaCha8Rng,
) -> Result<Vec<f32>, PlanError> {
    let param = "steer.variants";
    let own_place = edit.subject.place();
    let place = match edit.route {
        Route::Replayed => sublayer_output(own_place).unwrap_or(own_place),
        Route::InPlace | Route::Carried(_) => own_place,
    };
    let Some(joined) = scene.joined else {
        return Err(refused(
            "`random_feature` needs a bridge to take a feature from",
            param,
        ));
    };
    let Some(statistics) = joined.reference.place(place) else {
        let message =
            format!("`random_feature` needs reference statistics of {place}, and there are none");
        return Err(refused(message, param));
    };
    let edited: &[usize] = match &edit.subject {
        Subject::Channels(group) if group.place == place => &group.channels,
        _ => &[],
    };
    let mut candidates: Vec<usize> = statistics
        .live_channels()
        .filter(|channel| !edited.contains(channel))
        .collect();
    candidates.shuffle(generator);
    for channel in candidates {
        if scene.native {
            let mut unit = vec![0.0; place.width(&scene.model.config)];
            unit[channel] = 1.0;
            return Ok(unit);
        }
        if let Some(direction) = counterpart(place, channel, edit.write, scene)? {
            return Ok(direction);
        }
    }
    Err(refused(
        format!("{place} has no other live channel that can be carried over"),
        param,
    ))
}

/// The dense direction of one sparse channel, written as the edit is.
fn counterpart(
    place: Place,
    channel: usize,
    write: Option<Write>,
    scene: &Scene,
) -> candle_core::Result<Option<Vec<f32>>> {
    let Some(joined) = scene.joined else {
        return Ok(None);
    };
    let (dense, sparse) = (joined.dense, joined.sparse);
    let write = write.unwrap_or(Write::Residual);
    // The scale is of no account: only the direction is kept.
    let carrier = Carrier::new(dense, sparse, joined.bridge, place, &[channel], write, 1.0)?;
    let Ok(carrier) = carrier else {
        return Ok(None);
    };
    let mut direction = vec![0.0; carrier.width()];
    carrier.add(&[1.0], 1.0, &mut direction);
    Ok(normalise(&mut direction).then_some(direction))
}
