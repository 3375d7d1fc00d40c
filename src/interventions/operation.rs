//! What each operation moves a feature's value to, on one token's values.
//!
//! Every operation names a target; the change is `strength * (target(a) - a)`. A feature over several channels
//! has a unit weight vector `u`: `a = <u, x>` and `x` moves along `u`, except that patching and ablating move
//! every channel to its own destination, and that nodes of a circuit move each by itself. A direction `v` of a residual stream is read as its projection
//! `p = <h, v> / <v, v>`. Sums run in double precision, so that a change of zero is exactly zero.

use super::subject::{Direction, Subject};
use crate::features::group::Group;

/// An operation with every number resolved to the feature's raw unit.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    Add(f64),
    /// `add` on a direction, by this times the norm of the residual.
    AddResidual(f64),
    Set(f64),
    Clamp {
        min: f64,
        max: f64,
    },
    Scale(f64),
    /// Every channel to its own value: zero, or its mean.
    Ablate(Vec<f32>),
    /// Every channel to its value in this counterfactual stream.
    Patch {
        stream: usize,
    },
    /// The first two channels exchange their values.
    Swap,
    /// To every channel its own number is added.
    AddEach(Vec<f64>),
    /// Every channel is kept between its own bounds, the lower one first.
    ClampEach(Vec<(f64, f64)>),
    /// Every channel is multiplied.
    ScaleEach(f64),
}

/// What one edit did to one token.
#[derive(Debug, Clone, PartialEq)]
pub struct Moved {
    pub before: f32,
    pub after: f32,
    /// One number a channel of a group, or one a channel of the whole row for a direction.
    pub change: Vec<f32>,
}

impl Moved {
    pub fn norm(&self) -> f32 {
        norm(&self.change)
    }
}

/// The Euclidean norm of a row.
pub fn norm(row: &[f32]) -> f32 {
    dot(row, row).sqrt() as f32
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    let products = a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b));
    products.sum()
}

impl Action {
    /// The target of a single number; none for operations that move by a known distance, or each channel to a
    /// place of its own.
    fn target(&self, a: f64) -> Option<f64> {
        match *self {
            Action::Set(value) => Some(value),
            Action::Clamp { min, max } => Some(a.clamp(min, max)),
            Action::Scale(value) => Some(a * value),
            Action::Add(_)
            | Action::AddResidual(_)
            | Action::Ablate(_)
            | Action::Patch { .. }
            | Action::Swap
            | Action::AddEach(_)
            | Action::ClampEach(_)
            | Action::ScaleEach(_) => None,
        }
    }
}

impl Subject {
    /// The feature's value on one token, given the whole row of its place.
    pub fn read(&self, row: &[f32]) -> f32 {
        match self {
            Subject::Channels(group) | Subject::OwnChannels(group) => group.read(row) as f32,
            Subject::Direction(direction) => direction.read(row) as f32,
        }
    }

    /// Moves one token's row of the feature's place. `counterfactual` is the partner's row where the operation
    /// is a patch; without it nothing moves.
    pub fn apply(
        &self,
        action: &Action,
        row: &mut [f32],
        counterfactual: Option<&[f32]>,
        strength: f64,
    ) -> Moved {
        match self {
            Subject::Channels(group) | Subject::OwnChannels(group) => {
                group.apply(action, row, counterfactual, strength)
            }
            Subject::Direction(direction) => direction.apply(action, row, counterfactual, strength),
        }
    }

    /// What an `add` to channels does, whatever their values; the values themselves are left out.
    pub fn known_move(&self, action: &Action, strength: f64) -> Moved {
        let change = match (self, action) {
            (Subject::Channels(group), Action::Add(value)) => {
                let weights = group.weights.iter();
                weights
                    .map(|weight| (strength * value * weight) as f32)
                    .collect()
            }
            _ => Vec::new(),
        };
        Moved {
            before: 0.0,
            after: 0.0,
            change,
        }
    }
}

impl Group {
    fn read(&self, row: &[f32]) -> f64 {
        let terms = self.channels.iter().zip(&self.weights);
        terms
            .map(|(&channel, &weight)| weight * f64::from(row[channel]))
            .sum()
    }

    fn apply(
        &self,
        action: &Action,
        row: &mut [f32],
        counterfactual: Option<&[f32]>,
        strength: f64,
    ) -> Moved {
        let a = self.read(row);
        let values: Vec<f64> = self
            .channels
            .iter()
            .map(|&channel| f64::from(row[channel]))
            .collect();
        let targets: Vec<f64> = match (action, action.target(a)) {
            // One channel: its weight is 1 or -1, and its target is met exactly.
            (_, Some(target)) if self.channels.len() == 1 => vec![target * self.weights[0]],
            (_, Some(target)) => {
                let along = values.iter().zip(&self.weights);
                along.map(|(x, weight)| x + weight * (target - a)).collect()
            }
            (Action::Ablate(to), None) => to.iter().map(|&value| f64::from(value)).collect(),
            (Action::Patch { .. }, None) => match counterfactual {
                Some(partner) => self
                    .channels
                    .iter()
                    .map(|&c| f64::from(partner[c]))
                    .collect(),
                None => values.clone(),
            },
            (Action::Swap, None) => values.iter().rev().copied().collect(),
            (Action::ClampEach(bounds), None) => {
                let bounded = values.iter().zip(bounds);
                bounded.map(|(x, &(min, max))| x.clamp(min, max)).collect()
            }
            (Action::ScaleEach(value), None) => values.iter().map(|x| x * value).collect(),
            (_, None) => values.clone(),
        };
        let mut change = Vec::with_capacity(values.len());
        let places = self.channels.iter().zip(&self.weights).zip(&values);
        for (index, (((&channel, weight), &x), target)) in places.zip(targets).enumerate() {
            // A known distance need not be found again as a difference, which would round it.
            let added = match action {
                Action::Add(value) => Some(strength * value * weight),
                Action::AddEach(values) => values.get(index).map(|value| strength * value),
                _ => None,
            };
            let step = added.unwrap_or(strength * (target - x));
            // At full strength the target itself, free of the rounding of a sum.
            row[channel] = match (added, strength == 1.0) {
                (Some(_), _) | (_, false) => (x + step) as f32,
                (None, true) => target as f32,
            };
            change.push(step as f32);
        }
        Moved {
            before: a as f32,
            after: self.read(row) as f32,
            change,
        }
    }
}

impl Direction {
    fn read(&self, row: &[f32]) -> f64 {
        dot(row, &self.vector) / self.squared_norm
    }

    fn apply(
        &self,
        action: &Action,
        row: &mut [f32],
        counterfactual: Option<&[f32]>,
        strength: f64,
    ) -> Moved {
        let p = self.read(row);
        let distance = match (action, action.target(p)) {
            // The difference to the target would only round what is already known.
            (Action::Add(value), _) => *value,
            (_, Some(target)) => target - p,
            (Action::AddResidual(value), None) => {
                value * (dot(row, row) / self.squared_norm).sqrt()
            }
            (Action::Ablate(_), None) => -p,
            (Action::Patch { .. }, None) => {
                counterfactual.map_or(0.0, |partner| self.read(partner) - p)
            }
            (_, None) => 0.0,
        };
        let along = strength * distance;
        let change: Vec<f32> = self
            .vector
            .iter()
            .map(|&v| (along * f64::from(v)) as f32)
            .collect();
        for (x, step) in row.iter_mut().zip(&change) {
            *x += step;
        }
        Moved {
            before: p as f32,
            after: self.read(row) as f32,
            change,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::location::{Location, Site};

    fn place() -> Location {
        Location::Site(Site::before_attention(0, 1))
    }

    fn single(channel: usize) -> Subject {
        Subject::Channels(Group {
            place: place(),
            channels: vec![channel],
            weights: vec![1.0],
        })
    }

    #[test]
    fn one_channel_meets_its_target() {
        let apply = |action: Action, strength| {
            let mut row = [1.0, 0.3, -2.0];
            let moved = single(1).apply(&action, &mut row, Some(&[9.0, 8.0, 7.0]), strength);
            assert_eq!(row[0], 1.0);
            assert_eq!(moved.after, row[1]);
            assert_eq!(moved.before, 0.3);
            row[1]
        };
        assert_eq!(apply(Action::Set(0.7), 1.0), 0.7);
        assert_eq!(apply(Action::Set(0.7), 0.0), 0.3);
        assert!((apply(Action::Set(0.7), 0.5) - 0.5).abs() < 1e-7);
        assert!((apply(Action::Add(2.0), -1.0) + 1.7).abs() < 1e-6);
        assert_eq!(apply(Action::Clamp { min: 1.0, max: 2.0 }, 1.0), 1.0);
        assert!((apply(Action::Scale(-2.0), 1.0) + 0.6).abs() < 1e-6);
        assert_eq!(apply(Action::Ablate(vec![0.0]), 1.0), 0.0);
        assert_eq!(apply(Action::Patch { stream: 0 }, 1.0), 8.0);
    }

    #[test]
    fn a_group_moves_along_its_weights_and_is_patched_channel_by_channel() {
        let weights = vec![0.6, 0.8];
        let group = Subject::Channels(Group {
            place: place(),
            channels: vec![0, 2],
            weights,
        });
        let mut row = [1.0, 5.0, 2.0];
        let moved = group.apply(&Action::Set(3.2), &mut row, None, 1.0);
        assert!((moved.before - 2.2).abs() < 1e-6 && (moved.after - 3.2).abs() < 1e-6);
        assert!((row[0] - 1.6).abs() < 1e-6 && row[1] == 5.0 && (row[2] - 2.8).abs() < 1e-6);
        group.apply(
            &Action::Patch { stream: 0 },
            &mut row,
            Some(&[7.0, 8.0, 9.0]),
            1.0,
        );
        assert_eq!(row, [7.0, 5.0, 9.0]);
        let unpaired = group.apply(&Action::Patch { stream: 0 }, &mut row, None, 1.0);
        assert_eq!((row, unpaired.norm()), ([7.0, 5.0, 9.0], 0.0));
    }

    #[test]
    fn nodes_of_a_circuit_move_each_by_itself() {
        let nodes = Subject::OwnChannels(Group {
            place: place(),
            channels: vec![0, 2],
            weights: vec![0.5f64.sqrt(); 2],
        });
        let apply = |action: Action, strength| {
            let mut row = [1.0, 5.0, -3.0];
            let moved = nodes.apply(&action, &mut row, None, strength);
            let change = [row[0] - 1.0, row[2] + 3.0];
            assert_eq!(moved.change, change, "{action:?}");
            assert!((moved.before + 2.0 * 0.5f32.sqrt()).abs() < 1e-6);
            row
        };
        assert_eq!(
            apply(Action::AddEach(vec![0.5, 2.0]), 1.0),
            [1.5, 5.0, -1.0]
        );
        assert_eq!(
            apply(Action::AddEach(vec![0.5, 2.0]), -2.0),
            [0.0, 5.0, -7.0]
        );
        assert_eq!(apply(Action::ScaleEach(2.0), 1.0), [2.0, 5.0, -6.0]);
        assert_eq!(apply(Action::ScaleEach(2.0), 0.5), [1.5, 5.0, -4.5]);
        let bounds = vec![(0.0, 0.5), (-4.0, -2.0)];
        assert_eq!(apply(Action::ClampEach(bounds), 1.0), [0.5, 5.0, -3.0]);
        assert_eq!(
            apply(Action::Ablate(vec![0.25, 1.0]), 1.0),
            [0.25, 5.0, 1.0]
        );
    }

    #[test]
    fn a_swap_exchanges_two_channels() {
        let weights = vec![1.0, 0.0];
        let pair = Subject::Channels(Group {
            place: place(),
            channels: vec![2, 0],
            weights,
        });
        let mut row = [1.0, 5.0, 2.0];
        let moved = pair.apply(&Action::Swap, &mut row, None, 1.0);
        assert_eq!(
            (row, moved.before, moved.after),
            ([2.0, 5.0, 1.0], 2.0, 1.0)
        );
    }

    #[test]
    fn a_direction_is_read_as_its_projection() {
        let vector = vec![0.0, 2.0];
        let direction = Direction {
            site: Site::before_attention(0, 1),
            vector,
            squared_norm: 4.0,
        };
        let subject = Subject::Direction(direction);
        let mut row = [3.0, 4.0];
        assert_eq!(subject.read(&row), 2.0);
        subject.apply(&Action::Set(0.5), &mut row, None, 1.0);
        assert_eq!(row, [3.0, 1.0]);
        let mut row = [3.0, 4.0];
        let moved = subject.apply(&Action::AddResidual(0.2), &mut row, None, 1.0);
        assert!((moved.norm() - 1.0).abs() < 1e-6 && (row[1] - 5.0).abs() < 1e-6);
    }
}
