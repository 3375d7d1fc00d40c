//! Which channels of one place make the difference between two sets of prompts.
//!
//! The search is for the smallest group of channels whose patch flips at least half of the pairs. First-order
//! effects choose the candidates, the patch's real effect on all pairs decides: forward selection, one channel
//! at a time, the gradient taken again as the group grows; once enough pairs flip, every
//! member is tried without, and the rest is put in order again. A group is therefore a *ranking*: its first `n`
//! channels are what is patched where `n` channels are asked for.

use serde::Serialize;

use super::DiscoveryError;
use super::attribution::Attribution;
use super::patching::{LocationPatch, Patching};
use super::question::Answers;
use super::route::Route;
use crate::features::group::WeightedChannel;
use crate::models::location::{Location, LocationName};

/// A logit difference beyond this is a flip that needs no more help, and no longer counts towards a group's score.
const ENOUGH: f32 = 1.0;
/// What one flipped pair is worth beside its logit difference.
const FLIP_BONUS: f64 = 2.0;
/// A channel must raise the score by this to join a group.
const LEAST_GAIN: f64 = 1e-3;

/// How a contrast is searched.
#[derive(Debug, Clone, Copy)]
pub struct ContrastOptions {
    /// The most channels of a group.
    pub most_channels: usize,
    /// The share of pairs that must flip.
    pub target_flips: f64,
    /// Candidates tried in each step of the selection.
    pub candidates: usize,
    /// Channels whose effect alone is measured for the ranking.
    pub ranked: usize,
    /// Go on to `most_channels` after the target is reached.
    pub beyond_target: bool,
    /// Give up once the group has this many channels and has not reached the target.
    pub give_up_after: Option<usize>,
}

impl Default for ContrastOptions {
    fn default() -> Self {
        ContrastOptions {
            most_channels: 16,
            target_flips: 0.5,
            candidates: 8,
            ranked: 24,
            beyond_target: true,
            give_up_after: None,
        }
    }
}

/// One channel by itself.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ChannelEffect {
    pub channel: usize,
    /// Mean change of the answers' log odds, estimated by the gradient.
    pub first_order: f64,
    /// The same, measured by patching this channel alone.
    pub alone: f64,
}

/// A group after its latest channel was added.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct GroupStep {
    pub channel: usize,
    /// Share of the pairs flipped by this channel and those before it.
    pub flips: f64,
    /// Their mean two-way probability.
    pub share: f64,
}

/// What a contrast found at one place.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Contrast {
    #[serde(serialize_with = "place_name")]
    pub place: Location,
    pub route: Route,
    /// Channels by their effect alone, the strongest first.
    pub ranking: Vec<ChannelEffect>,
    /// The group, channel by channel.
    pub group: Vec<GroupStep>,
    /// The fewest channels of the group that reach the target.
    pub channels_to_flip: Option<usize>,
    /// Unit weights of the group, from the channels' mean changes.
    pub weights: Vec<f64>,
}

fn place_name<S: serde::Serializer>(place: &Location, serializer: S) -> Result<S::Ok, S::Error> {
    LocationName::from(*place).serialize(serializer)
}

impl Contrast {
    /// The group's channels in order.
    pub fn channels(&self) -> Vec<usize> {
        self.group.iter().map(|step| step.channel).collect()
    }

    /// The first `count` channels with weights of unit length.
    pub fn weighted(&self, count: usize) -> Vec<WeightedChannel> {
        let first = self.group.iter().zip(&self.weights).take(count);
        let (channels, weights): (Vec<usize>, Vec<f64>) =
            first.map(|(step, &weight)| (step.channel, weight)).unzip();
        let weights = unit(weights);
        channels
            .into_iter()
            .zip(weights)
            .map(|(channel, weight)| WeightedChannel { channel, weight })
            .collect()
    }

    /// Smaller is better: few channels to the target, then many flips, then a high two-way probability.
    pub fn badness(&self) -> f64 {
        let last = self.group.last();
        let (flips, share) = last.map_or((0.0, 0.0), |step| (step.flips, step.share));
        let channels = self
            .channels_to_flip
            .map_or(1e3, |channels| channels as f64);
        channels - 0.5 * flips - 0.1 * share
    }
}

/// The same direction at length one; equal weights where it has no length.
pub fn unit(mut weights: Vec<f64>) -> Vec<f64> {
    let norm = weights
        .iter()
        .map(|weight| weight * weight)
        .sum::<f64>()
        .sqrt();
    if norm > 0.0 {
        weights.iter_mut().for_each(|weight| *weight /= norm);
    } else {
        let equal = (weights.len().max(1) as f64).sqrt().recip();
        weights.fill(equal);
    }
    weights
}

/// Ranks the channels of `place` and selects a group among them.
pub fn contrast(
    patching: &mut Patching,
    attribution: &Attribution,
    place: Location,
    route: Route,
    options: &ContrastOptions,
) -> Result<Contrast, DiscoveryError> {
    if !attribution.suits(route) {
        let problem = "the gradients were prepared for the other model".to_owned();
        return Err(DiscoveryError::Invalid(problem));
    }
    let patch = patching.location_patch(place, route)?;
    let mut selection = Selection::new(patching, attribution, patch, options)?;
    let ranking = selection.rank()?;
    selection.forward(Some(&ranking))?;
    if selection.reached() {
        selection.prune()?;
        selection.order()?;
        if options.beyond_target {
            selection.forward(None)?;
        }
    }
    Ok(selection.finish(ranking))
}

/// A group being put together.
struct Selection<'s, 'm> {
    patching: &'s mut Patching<'m>,
    attribution: &'s Attribution<'s>,
    patch: LocationPatch,
    options: &'s ContrastOptions,
    right: Vec<bool>,
    before: Answers,
    group: Vec<GroupStep>,
    /// The group's patch.
    change: Vec<f32>,
    score: f64,
}

impl<'s, 'm> Selection<'s, 'm> {
    fn new(
        patching: &'s mut Patching<'m>,
        attribution: &'s Attribution<'s>,
        patch: LocationPatch,
        options: &'s ContrastOptions,
    ) -> Result<Self, DiscoveryError> {
        let right = patching.right(patch.route);
        let before = patching.before(patch.route).clone();
        let score = score(&before, &right);
        let change = patch.nothing();
        Ok(Selection {
            patching,
            attribution,
            patch,
            options,
            right,
            before,
            group: Vec::new(),
            change,
            score,
        })
    }

    fn reached(&self) -> bool {
        self.group
            .last()
            .is_some_and(|step| step.flips >= self.options.target_flips)
    }

    /// Measures the channels of the largest first-order effects one by one.
    fn rank(&mut self) -> Result<Vec<ChannelEffect>, DiscoveryError> {
        let gradient = self
            .attribution
            .gradient(&self.patch, &self.change, f32::INFINITY)?;
        let first_order = self.patch.first_order(&gradient);
        let mut effects = Vec::new();
        for channel in strongest(&first_order, self.options.ranked, &[]) {
            let answers = self.answers(&[], Some(channel))?;
            let gains = answers
                .logit_diffs
                .iter()
                .zip(&self.before.logit_diffs)
                .zip(&self.right);
            let gains: Vec<f64> = gains
                .filter(|(_, right)| **right)
                .map(|((after, before), _)| f64::from(after - before))
                .collect();
            let alone = gains.iter().sum::<f64>() / gains.len().max(1) as f64;
            effects.push(ChannelEffect {
                channel,
                first_order: first_order[channel],
                alone,
            });
        }
        effects.sort_by(|one, other| other.alone.total_cmp(&one.alone));
        Ok(effects)
    }

    /// Adds the best channel until the target is reached, or past it once it has been.
    fn forward(&mut self, ranking: Option<&[ChannelEffect]>) -> Result<(), DiscoveryError> {
        let stop_at_target = !self.reached();
        // Effects change as the group grows, ever more slowly: the gradient is taken again when it has doubled.
        let mut effects: Option<Vec<f64>> = None;
        while self.group.len() < self.options.most_channels {
            if stop_at_target && self.reached() {
                break;
            }
            let hopeless = |limit: usize| self.group.len() >= limit;
            if stop_at_target && self.options.give_up_after.is_some_and(hopeless) {
                break;
            }
            let members: Vec<usize> = self.group.iter().map(|step| step.channel).collect();
            let candidates = match ranking {
                Some(ranking) if members.is_empty() => {
                    ranking.iter().map(|effect| effect.channel).collect()
                }
                _ => {
                    let stale = members.len().is_power_of_two();
                    let latest = match effects.take().filter(|_| !stale) {
                        Some(effects) => effects,
                        None => {
                            let gradient =
                                self.attribution
                                    .gradient(&self.patch, &self.change, ENOUGH)?;
                            self.patch.first_order(&gradient)
                        }
                    };
                    let candidates = strongest(&latest, self.options.candidates, &members);
                    effects = Some(latest);
                    candidates
                }
            };
            if !self.add_best(&candidates)? {
                break;
            }
        }
        Ok(())
    }

    /// Adds the candidate that raises the score most; false where none does.
    fn add_best(&mut self, candidates: &[usize]) -> Result<bool, DiscoveryError> {
        let mut best: Option<(f64, usize, Answers)> = None;
        for &channel in candidates {
            let mut change = self.change.clone();
            self.patch.add(channel, 1.0, &mut change);
            let answers = self.patching.answers_with(&self.patch, change)?;
            let score = score(&answers, &self.right);
            if best.as_ref().is_none_or(|(least, ..)| score > *least) {
                best = Some((score, channel, answers));
            }
        }
        match best {
            Some((score, channel, answers)) if score > self.score + LEAST_GAIN => {
                self.patch.add(channel, 1.0, &mut self.change);
                self.push(channel, &answers);
                self.score = score;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Drops members as long as the rest reaches the target.
    fn prune(&mut self) -> Result<(), DiscoveryError> {
        let mut members: Vec<usize> = self.group.iter().map(|step| step.channel).collect();
        while members.len() > 1 {
            let mut best: Option<(f64, usize)> = None;
            for index in 0..members.len() {
                let mut rest = members.clone();
                rest.remove(index);
                let answers = self.answers(&rest, None)?;
                let flips = answers.flips(&self.right).unwrap_or(0.0);
                let score = score(&answers, &self.right);
                let better = best.is_none_or(|(least, _)| score > least);
                if flips >= self.options.target_flips && better {
                    best = Some((score, index));
                }
            }
            let Some((_, index)) = best else {
                break;
            };
            members.remove(index);
        }
        self.group.retain(|step| members.contains(&step.channel));
        Ok(())
    }

    /// Puts the members in the order in which they help most.
    fn order(&mut self) -> Result<(), DiscoveryError> {
        let mut rest: Vec<usize> = self.group.drain(..).map(|step| step.channel).collect();
        self.change = self.patch.nothing();
        while !rest.is_empty() {
            // A member may be worth something only beside the others: it is taken whatever its gain.
            self.score = f64::NEG_INFINITY;
            if !self.add_best(&rest)? {
                break;
            }
            let added = self.group.last().map(|step| step.channel);
            rest.retain(|&channel| Some(channel) != added);
        }
        Ok(())
    }

    fn push(&mut self, channel: usize, answers: &Answers) {
        self.group.push(GroupStep {
            channel,
            flips: answers.flips(&self.right).unwrap_or(0.0),
            share: answers.mean_share(&self.right).unwrap_or(0.0),
        });
    }

    fn answers(
        &mut self,
        members: &[usize],
        also: Option<usize>,
    ) -> Result<Answers, DiscoveryError> {
        let channels: Vec<usize> = members.iter().copied().chain(also).collect();
        let change = self.patch.group(&channels, 1.0);
        self.patching.answers_with(&self.patch, change)
    }

    fn finish(self, ranking: Vec<ChannelEffect>) -> Contrast {
        let enough = |step: &GroupStep| step.flips >= self.options.target_flips;
        let weights = self
            .group
            .iter()
            .map(|step| self.patch.mean_change(step.channel))
            .collect();
        Contrast {
            place: self.patch.place,
            route: self.patch.route,
            ranking,
            channels_to_flip: self.group.iter().position(enough).map(|index| index + 1),
            weights: unit(weights),
            group: self.group,
        }
    }
}

/// How far a set of answers has come: logit differences up to [`ENOUGH`], and the share flipped.
fn score(answers: &Answers, right: &[bool]) -> f64 {
    let marked = answers
        .logit_diffs
        .iter()
        .zip(right)
        .filter(|(_, right)| **right);
    let clipped: Vec<f64> = marked
        .map(|(&logit_diff, _)| f64::from(logit_diff.min(ENOUGH)))
        .collect();
    let mean = clipped.iter().sum::<f64>() / clipped.len().max(1) as f64;
    mean + FLIP_BONUS * answers.flips(right).unwrap_or(0.0)
}

/// The channels of the largest positive effects that are not members yet, the largest first.
pub(super) fn strongest(effects: &[f64], count: usize, members: &[usize]) -> Vec<usize> {
    let mut channels: Vec<usize> = (0..effects.len())
        .filter(|channel| effects[*channel] > 0.0 && !members.contains(channel))
        .collect();
    channels.sort_by(|&one, &other| effects[other].total_cmp(&effects[one]));
    channels.truncate(count);
    channels
}

/// Flips and mean two-way probability of the first `1..` channels of a ranking, on whatever pairs `patching`
/// holds: select on some pairs, evaluate on others.
pub fn evaluate_prefixes(
    patching: &mut Patching,
    place: Location,
    route: Route,
    channels: &[usize],
) -> Result<Vec<GroupStep>, DiscoveryError> {
    let patch = patching.location_patch(place, route)?;
    let right = patching.right(route);
    let mut change = patch.nothing();
    let mut steps = Vec::with_capacity(channels.len());
    for &channel in channels {
        patch.add(channel, 1.0, &mut change);
        let answers = patching.answers_with(&patch, change.clone())?;
        steps.push(GroupStep {
            channel,
            flips: answers.flips(&right).unwrap_or(0.0),
            share: answers.mean_share(&right).unwrap_or(0.0),
        });
    }
    Ok(steps)
}
