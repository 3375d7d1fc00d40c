//! Answers of a task's pairs as logit differences, their task loss, and the scale and shift that suit them.
//!
//! A logit difference is the log odds of the counterfactual's answer: below zero is right after a presented prompt, above
//! zero after a counterfactual one. The task loss is the mean over all prompts of the cross-entropy of the right answer,
//! `ln(1 + exp(d))` and `ln(1 + exp(-d))`, in nats.

/// One a prompt.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LogitDiffs {
    pub presented: Vec<f32>,
    pub counterfactual: Vec<f32>,
}

/// What logit differences are multiplied by, and what is added to them then.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rescaling {
    pub scale: f64,
    pub shift: f64,
}

impl Rescaling {
    pub const NONE: Rescaling = Rescaling {
        scale: 1.0,
        shift: 0.0,
    };
    /// The steps that a fit takes at most.
    const STEPS: usize = 16;
    /// Keeps a fit to answers that are all right from growing without end.
    const RIDGE: f64 = 1e-4;

    /// The scale and shift of the least task loss, by Newton's method: the loss is convex in both. A small ridge around
    /// no change keeps them finite.
    pub fn fitted(diffs: &LogitDiffs) -> Self {
        let mut at = Rescaling::NONE;
        let mut loss = at.penalised(diffs);
        for _ in 0..Self::STEPS {
            let count = diffs.len().max(1) as f64;
            let (mut gradient, mut curvature) = ([0f64; 2], [0f64; 3]);
            for (diff, right) in diffs.each() {
                let share = 1.0 / (1.0 + (-at.of(diff)).exp());
                let slope = (share - right) / count;
                let bend = (share * (1.0 - share)) / count;
                gradient = [gradient[0] + slope * diff, gradient[1] + slope];
                curvature = [
                    curvature[0] + bend * diff * diff,
                    curvature[1] + bend * diff,
                    curvature[2] + bend,
                ];
            }
            gradient[0] += Self::RIDGE * (at.scale - 1.0);
            gradient[1] += Self::RIDGE * at.shift;
            curvature[0] += Self::RIDGE;
            curvature[2] += Self::RIDGE;
            let determinant = curvature[0] * curvature[2] - curvature[1] * curvature[1];
            if !(determinant.is_finite() && determinant > 0.0) {
                break;
            }
            let step = [
                (curvature[2] * gradient[0] - curvature[1] * gradient[1]) / determinant,
                (curvature[0] * gradient[1] - curvature[1] * gradient[0]) / determinant,
            ];
            // Shorter where a whole step would lead too far.
            let halves = (0..12).map(|halvings| 0.5f64.powi(halvings));
            let better = halves
                .map(|part| Rescaling {
                    scale: at.scale - part * step[0],
                    shift: at.shift - part * step[1],
                })
                .find(|next| next.penalised(diffs) < loss);
            let Some(next) = better else {
                break;
            };
            at = next;
            loss = at.penalised(diffs);
        }
        at
    }

    fn of(self, diff: f64) -> f64 {
        self.scale * diff + self.shift
    }

    fn penalised(self, diffs: &LogitDiffs) -> f64 {
        let away = (self.scale - 1.0).powi(2) + self.shift.powi(2);
        diffs.loss(self) + 0.5 * Self::RIDGE * away
    }
}

impl LogitDiffs {
    pub fn append(&mut self, other: LogitDiffs) {
        self.presented.extend(other.presented);
        self.counterfactual.extend(other.counterfactual);
    }

    /// Prompts.
    pub fn len(&self) -> usize {
        self.presented.len() + self.counterfactual.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Each logit difference, and the probability that the counterfactual's answer should have: 0 or 1.
    fn each(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        let presented = self.presented.iter().map(|&diff| (f64::from(diff), 0.0));
        let counterfactual = self.counterfactual.iter();
        presented.chain(counterfactual.map(|&diff| (f64::from(diff), 1.0)))
    }

    /// The task loss; infinite where an answer is no number.
    pub fn loss(&self, rescaling: Rescaling) -> f64 {
        let losses = self.each().map(|(diff, right)| {
            let diff = rescaling.of(diff);
            let away = if right == 0.0 { diff } else { -diff };
            // ln(1 + exp(away)), whatever the size of it.
            away.max(0.0) + (-away.abs()).exp().ln_1p()
        });
        let mean = losses.sum::<f64>() / self.len().max(1) as f64;
        match mean.is_nan() {
            true => f64::INFINITY,
            false => mean,
        }
    }

    /// The share of prompts that are answered rightly.
    pub fn accuracy(&self, rescaling: Rescaling) -> f64 {
        let right = self.each().filter(|(diff, right)| {
            let diff = rescaling.of(*diff);
            if *right == 0.0 {
                diff < 0.0
            } else {
                diff > 0.0
            }
        });
        right.count() as f64 / self.len().max(1) as f64
    }

    /// The derivative of each prompt's own loss with respect to its logit difference before it is rescaled.
    pub fn slopes(&self, rescaling: Rescaling) -> impl Iterator<Item = f32> + '_ {
        self.each().map(move |(diff, right)| {
            let share = 1.0 / (1.0 + (-rescaling.of(diff)).exp());
            (rescaling.scale * (share - right)) as f32
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loss_is_the_cross_entropy_of_the_right_answer() {
        let diffs = LogitDiffs {
            presented: vec![-2.0, 0.5],
            counterfactual: vec![3.0],
        };
        let expected = [
            (1.0 + (-2f64).exp()).ln(),
            (1.0 + 0.5f64.exp()).ln(),
            (1.0 + (-3f64).exp()).ln(),
        ];
        let mean = expected.iter().sum::<f64>() / 3.0;
        assert!((diffs.loss(Rescaling::NONE) - mean).abs() < 1e-12);
        assert!((diffs.accuracy(Rescaling::NONE) - 2.0 / 3.0).abs() < 1e-12);
        let rescaled = Rescaling {
            scale: 0.4,
            shift: -0.7,
        };
        for rescaling in [Rescaling::NONE, rescaled] {
            for (index, slope) in diffs.slopes(rescaling).enumerate() {
                let moved = |by: f32| {
                    let mut moved = diffs.clone();
                    match index {
                        2 => moved.counterfactual[0] += by,
                        index => moved.presented[index] += by,
                    }
                    3.0 * moved.loss(rescaling)
                };
                let difference = (moved(1e-2) - moved(-1e-2)) / 2e-2;
                assert!((difference - f64::from(slope)).abs() < 1e-4);
            }
        }
        let broken = LogitDiffs {
            presented: vec![f32::NAN],
            counterfactual: vec![1.0],
        };
        assert_eq!(broken.loss(Rescaling::NONE), f64::INFINITY);
    }

    #[test]
    fn a_shifted_and_shrunken_answer_is_put_right() {
        // Right but for a shift by 5, and a tenth of the size.
        let diffs = LogitDiffs {
            presented: (0..50).map(|at| 5.0 - 0.1 - 0.002 * at as f32).collect(),
            counterfactual: (0..50).map(|at| 5.0 + 0.1 + 0.002 * at as f32).collect(),
        };
        assert!(diffs.loss(Rescaling::NONE) > 2.0);
        let fitted = Rescaling::fitted(&diffs);
        assert!(
            diffs.loss(fitted) < 0.3,
            "{fitted:?} {}",
            diffs.loss(fitted)
        );
        assert_eq!(diffs.accuracy(fitted), 1.0);
        // There is nothing to be fitted to noise: the best is to say nothing.
        let noise = LogitDiffs {
            presented: vec![1.0, -1.0],
            counterfactual: vec![1.0, -1.0],
        };
        let fitted = Rescaling::fitted(&noise);
        assert!((noise.loss(fitted) - 2f64.ln()).abs() < 1e-3, "{fitted:?}");
    }
}
