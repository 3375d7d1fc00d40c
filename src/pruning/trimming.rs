//! Taking parts of a circuit away for good: nodes, or edges.
//!
//! Greedy removal that judges every part on the pairs that the loss is then told of keeps what suits these very pairs and
//! does worse on others. Here two sets of pairs share the work. On the *judging* pairs, other ones in every round, each part
//! is tried by itself: how much does the loss rise without it? On the *deciding* pairs, only one thing is chosen: how many of
//! the parts whose loss rises least go together, so that the target is still reached. A round lets the loss rise a share of
//! the way to the target, so that dear parts do not use up what many cheap ones cost; rounds end when no part can be spared.

use candle_core::Result;

use super::answers::Rescaling;
use super::subject::{PreparedPairs, PrunedModel};
use crate::discovery::question::PromptPair;

/// Pairs that a round's parts are judged on.
const JUDGING_PAIRS: usize = 64;

/// What each round lets the loss rise by, as a share of what is left to the target; the last holds for all further rounds.
const SHARES: [f64; 3] = [0.2, 0.5, 1.0];
/// When a search ends: after so many rounds in turn that may use all of what is left to the target and take away no more than
/// a share of the parts.
#[derive(Debug, Clone, Copy)]
pub struct StopRule {
    pub rounds: usize,
    pub share: f64,
}

/// Two sets of judging pairs name no part that can be spared.
pub const THOROUGH: StopRule = StopRule {
    rounds: 2,
    share: 0.0,
};
/// What comes next is more exact.
pub const COARSE: StopRule = StopRule {
    rounds: 1,
    share: 0.05,
};
/// Rounds at most.
const ROUNDS: usize = 40;

/// The two sets of pairs.
pub struct TrimmingPairs {
    pub deciding: PreparedPairs,
    /// One after another, each for a round.
    judging: Vec<PreparedPairs>,
}

impl TrimmingPairs {
    /// The first half decides, the second judges. Where there are too few for two sets, all do both.
    pub fn new(subject: &PrunedModel, pairs: &[PromptPair]) -> Result<Self> {
        let (deciding, judging) = match pairs.len() < 2 * JUDGING_PAIRS {
            true => (pairs, pairs),
            false => pairs.split_at(pairs.len() / 2),
        };
        let judging = judging.chunks(JUDGING_PAIRS);
        Ok(TrimmingPairs {
            deciding: subject.prepare(deciding)?,
            judging: judging
                .map(|pairs| subject.prepare(pairs))
                .collect::<Result<_>>()?,
        })
    }

    pub fn judging(&self, round: usize) -> &PreparedPairs {
        &self.judging[round % self.judging.len()]
    }
}

/// A circuit that parts are taken away from.
pub trait Trimmable {
    /// The loss on the deciding pairs with these parts alone, by the best scale and shift.
    fn loss(&mut self, kept: &[bool]) -> Result<(Rescaling, f64)>;

    /// How much the loss rises without each of the kept parts alone, on the judging pairs of a round; what is not kept is
    /// not looked at.
    fn rises(&mut self, kept: &[bool], round: usize) -> Result<Vec<f64>>;
}

/// What is left of a circuit.
#[derive(Debug, Clone, PartialEq)]
pub struct Trimmed {
    pub kept: Vec<bool>,
    pub rescaling: Rescaling,
    pub task_loss: f64,
}

/// Takes away what the target is reached without. `liked` decides between parts whose loss rises equally: the least liked
/// goes first.
pub fn trim(
    circuit: &mut dyn Trimmable,
    kept: Vec<bool>,
    liked: &[f64],
    target: f64,
    stop_rule: StopRule,
) -> Result<Trimmed> {
    let (rescaling, task_loss) = circuit.loss(&kept)?;
    let mut found = Trimmed {
        kept,
        rescaling,
        task_loss,
    };
    let mut vain = 0;
    for round in 0..ROUNDS {
        if found.task_loss > target || vain == stop_rule.rounds {
            break;
        }
        let share = SHARES[round.min(SHARES.len() - 1)];
        let most = found.task_loss + share * (target - found.task_loss);
        let rises = circuit.rises(&found.kept, round)?;
        let mut order: Vec<usize> = (0..rises.len()).filter(|&part| found.kept[part]).collect();
        order.sort_by(|&one, &other| {
            let by_loss = rises[one].total_cmp(&rises[other]);
            let by_liking = liked[one].total_cmp(&liked[other]);
            by_loss.then(by_liking).then(one.cmp(&other))
        });
        if let Some(less) = most_spared(circuit, &found, &order, most)? {
            found = less;
        }
        let left = found.kept.iter().filter(|kept| **kept).count();
        let taken = order.len() - left;
        vain = match taken as f64 > stop_rule.share * order.len() as f64 {
            true => 0,
            // A strict round is no reason to end.
            false => vain + usize::from(share == 1.0),
        };
        tracing::info!(
            round,
            left,
            task_loss = found.task_loss,
            "parts were taken away"
        );
    }
    Ok(found)
}

/// The most of the first parts in `order` that can go with a loss of at most `most`; none where not even the first can.
fn most_spared(
    circuit: &mut dyn Trimmable,
    from: &Trimmed,
    order: &[usize],
    most: f64,
) -> Result<Option<Trimmed>> {
    let (mut low, mut high) = (0, order.len());
    let mut best = None;
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        let mut kept = from.kept.clone();
        order[..middle].iter().for_each(|&part| kept[part] = false);
        let (rescaling, task_loss) = circuit.loss(&kept)?;
        match task_loss <= most {
            true => {
                low = middle;
                best = Some(Trimmed {
                    kept,
                    rescaling,
                    task_loss,
                });
            }
            false => high = middle - 1,
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parts that each raise the loss by so much.
    struct Costs(Vec<f64>);

    impl Trimmable for Costs {
        fn loss(&mut self, kept: &[bool]) -> Result<(Rescaling, f64)> {
            let lost = self.0.iter().zip(kept).filter(|(_, kept)| !**kept);
            Ok((Rescaling::NONE, lost.map(|(cost, _)| cost).sum()))
        }

        fn rises(&mut self, _kept: &[bool], round: usize) -> Result<Vec<f64>> {
            // Judged a little wrongly, otherwise in every round.
            let wrongly = |(part, cost): (usize, &f64)| cost + 1e-3 * ((part + round) % 3) as f64;
            Ok(self.0.iter().enumerate().map(wrongly).collect())
        }
    }

    #[test]
    fn what_is_needed_stays_and_nothing_else() {
        let mut costs = Costs(vec![0.0; 100]);
        let needed = [3, 40, 41, 99];
        needed.iter().for_each(|&part| costs.0[part] = 1.0);
        let found =
            trim(&mut costs, vec![true; 100], &[0.0; 100], 0.15, THOROUGH).expect("no failure");
        let left: Vec<usize> = (0..100).filter(|&part| found.kept[part]).collect();
        assert_eq!((left.as_slice(), found.task_loss), (needed.as_slice(), 0.0));
    }

    #[test]
    fn many_cheap_parts_go_before_a_dear_one_and_the_target_holds() {
        let mut costs = Costs(vec![0.0099; 20]);
        costs.0[7] = 0.14;
        let found =
            trim(&mut costs, vec![true; 20], &[0.0; 20], 0.15, THOROUGH).expect("no failure");
        assert!(found.task_loss <= 0.15, "{}", found.task_loss);
        assert!(found.kept[7]);
        assert_eq!(found.kept.iter().filter(|kept| **kept).count(), 5);
        // What does not reach the target at first stays whole.
        let mut costs = Costs(vec![0.0099; 20]);
        let mut kept = vec![true; 20];
        kept[..18].fill(false);
        let found = trim(&mut costs, kept.clone(), &[0.0; 20], 0.15, THOROUGH).expect("no failure");
        assert_eq!(found.kept, kept);
    }

    #[test]
    fn of_parts_alike_the_least_liked_goes() {
        struct Alike;
        impl Trimmable for Alike {
            fn loss(&mut self, kept: &[bool]) -> Result<(Rescaling, f64)> {
                let lost = kept.iter().filter(|kept| !**kept).count();
                Ok((Rescaling::NONE, 0.1 * lost as f64))
            }

            fn rises(&mut self, kept: &[bool], _round: usize) -> Result<Vec<f64>> {
                Ok(vec![0.0; kept.len()])
            }
        }
        let found =
            trim(&mut Alike, vec![true; 3], &[3.0, 1.0, 2.0], 0.15, THOROUGH).expect("no failure");
        assert_eq!(found.kept, [true, false, true]);
    }
}
