//! Directions of control arms: what a feature's change is replaced by, at the same norm.
//!
//! A Gaussian direction tells a feature from mere disturbance, the column of another live channel tells it from any
//! feature at all. Requests and evaluations draw both here: a direction follows from the sample's seed, the prompt's
//! number and the edit's number, and from nothing else. Every direction is a unit vector of what is changed, `[width]`.

use std::collections::BTreeSet;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

use super::operation::norm;
use crate::features::pair::Pair;
use crate::models::location::Location;

/// Whose direction is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControlDraw {
    /// The sample's.
    pub seed: u64,
    /// The number of the prompt in its request, or of the pair in its evaluation.
    pub prompt: usize,
    /// The number of the edit in its request.
    pub edit: usize,
}

/// The streams of one seed that are no prompt's tokens.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Random = 1,
    RandomFeature = 2,
}

impl ControlDraw {
    /// Its own stream, apart from the one that draws tokens.
    fn generator(self, kind: Kind) -> ChaCha8Rng {
        let mut generator = ChaCha8Rng::seed_from_u64(self.seed);
        generator.set_stream((kind as u64) << 60 | (self.prompt as u64) << 32 | self.edit as u64);
        generator
    }

    /// A Gaussian direction.
    pub fn random(self, width: usize) -> Vec<f32> {
        let generator = &mut self.generator(Kind::Random);
        loop {
            let mut direction: Vec<f32> = (0..width)
                .map(|_| generator.sample(StandardNormal))
                .collect();
            if normalise(&mut direction) {
                return direction;
            }
        }
    }

    /// The column of one of `candidates`, drawn until one has a column that is not zero. Candidates that have none are
    /// removed from the list: nobody need try them again. None where no candidate is left.
    pub fn random_feature<E>(
        self,
        candidates: &mut Vec<usize>,
        mut column: impl FnMut(usize) -> Result<Option<Vec<f32>>, E>,
    ) -> Result<Option<Vec<f32>>, E> {
        let generator = &mut self.generator(Kind::RandomFeature);
        while !candidates.is_empty() {
            let at = generator.random_range(0..candidates.len());
            if let Some(mut direction) = column(candidates[at])?
                && normalise(&mut direction)
            {
                return Ok(Some(direction));
            }
            candidates.remove(at);
        }
        Ok(None)
    }
}

/// The channels of a place that vary over the pair's reference text, without those that are edited. None where the
/// pair has no statistics of the place.
pub fn candidates(pair: &Pair, place: Location, edited: &BTreeSet<usize>) -> Option<Vec<usize>> {
    let live = pair.reference.place(place)?.live_channels();
    Some(live.filter(|channel| !edited.contains(channel)).collect())
}

/// To unit length; false for a vector that has none.
fn normalise(direction: &mut [f32]) -> bool {
    let length = norm(direction);
    direction.iter_mut().for_each(|value| *value /= length);
    length > 0.0 && length.is_finite()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directions_follow_from_seed_prompt_and_edit() {
        let draw = |seed, prompt, edit| ControlDraw { seed, prompt, edit }.random(16);
        assert_eq!(draw(1, 2, 3), draw(1, 2, 3));
        for other in [draw(2, 2, 3), draw(1, 3, 3), draw(1, 2, 4)] {
            assert_ne!(draw(1, 2, 3), other);
        }
        assert!((norm(&draw(1, 2, 3)) - 1.0).abs() < 1e-6);
    }

    #[test]
    fn channels_without_a_column_are_tried_once() {
        let draw = ControlDraw {
            seed: 5,
            prompt: 0,
            edit: 0,
        };
        let mut candidates: Vec<usize> = (0..8).collect();
        let column = |channel: usize| -> Result<Option<Vec<f32>>, ()> {
            Ok((channel == 6).then(|| vec![0.0, 2.0]))
        };
        let found = draw.random_feature(&mut candidates, column);
        assert_eq!(found, Ok(Some(vec![0.0, 1.0])));
        assert!(candidates.contains(&6));
        let nothing = |_: usize| -> Result<Option<Vec<f32>>, ()> { Ok(Some(vec![0.0, 0.0])) };
        assert_eq!(draw.random_feature(&mut candidates, nothing), Ok(None));
        assert!(candidates.is_empty());
    }
}
