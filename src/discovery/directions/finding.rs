//! From contrast prompts to directions with what was found of them, one at each site.

use serde::Serialize;
use utoipa::ToSchema;

use super::effect::{DirectionMeasure, Measure, effects};
use super::fitting::{self, Fit, Kinds, Separation, fit, random_directions};
use super::reading::{ContrastPrompt, ContrastSet, activations};
use crate::discovery::DiscoveryError;
use crate::discovery::patience::Patience;
use crate::features::direction::{DirectionMethod, ReadPositions, norm};
use crate::models::location::Site;
use crate::models::transformer::Transformer;

/// Random directions that a direction is held against.
pub const RANDOM_DIRECTIONS: usize = 10;
/// Bytes that the activations of one request may take.
pub const MOST_BYTES: usize = 256 << 20;

/// What is looked for, and how it is checked.
#[derive(Debug, Clone)]
pub struct DirectionSearch {
    pub sites: Vec<Site>,
    pub method: DirectionMethod,
    pub positions: ReadPositions,
    /// Norms of what is added, as shares of the residual stream's; none for no check of effects.
    pub strengths: Vec<f64>,
    /// Two tokens that may follow each held-out prompt, first of the positive prompts and then of the negative ones: the
    /// measure is the log odds of the first token against the second.
    pub answers: Option<Vec<(u32, u32)>>,
    /// Of the random directions.
    pub seed: u64,
}

/// What was found.
#[derive(Debug)]
pub struct FoundDirections {
    pub sites: Vec<SiteDirection>,
    pub measure: DirectionMeasure,
    /// The measure without any change; none where no effect was measured.
    pub baseline: Option<f64>,
}

/// The direction at one site.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct SiteDirection {
    #[schema(example = "2.resid_in")]
    pub site: String,
    /// One number a channel of the residual stream.
    pub vector: Vec<f32>,
    /// Its length.
    pub norm: f64,
    /// The mean length of the residual stream where the prompts were read.
    pub residual_norm: f64,
    /// `pca`: the share of the differences' squared lengths that lies along it; null of other methods.
    #[schema(required = true, minimum = 0, maximum = 1)]
    pub explained: Option<f64>,
    pub separation: Separation,
    /// One for each strength, in their order.
    pub effects: Vec<StrengthEffect>,
}

/// What adding the direction at every token does to the measure, on held-out prompts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct StrengthEffect {
    /// The norm of what is added over that of the residual stream, at each token; negative strengths subtract.
    pub strength: f64,
    /// The change of the measure, in nats.
    pub effect: f64,
    /// The mean change that ten random directions of the same norm make.
    pub random_mean: f64,
    /// The standard deviation of their changes.
    pub random_std: f64,
    /// The largest size of one of their changes.
    pub random_largest: f64,
    /// How many of them move the measure less far in the direction's own sense.
    pub random_exceeded: usize,
}

/// Finds the direction of each site in the prompts `made_of`, and checks it on `held_out`.
pub fn find(
    model: &Transformer,
    made_of: &ContrastSet,
    held_out: &ContrastSet,
    search: &DirectionSearch,
    patience: &Patience,
) -> Result<FoundDirections, DiscoveryError> {
    let read = |prompts: &[ContrastPrompt]| {
        activations(model, prompts, &search.sites, search.positions, patience)
    };
    let (positive, negative) = (read(&made_of.positive)?, read(&made_of.negative)?);
    let (held_positive, held_negative) = (read(&held_out.positive)?, read(&held_out.negative)?);
    let width = model.config.d_model;
    let mut sites = Vec::with_capacity(search.sites.len());
    let mut vectors = Vec::with_capacity(search.sites.len());
    for (index, site) in search.sites.iter().enumerate() {
        patience.check()?;
        let made_of = Kinds {
            positive: &positive.of_sites[index],
            negative: &negative.of_sites[index],
        };
        let held = Kinds {
            positive: &held_positive.of_sites[index],
            negative: &held_negative.of_sites[index],
        };
        let Fit { vector, explained } = fit(made_of, search.method)
            .ok_or_else(|| DiscoveryError::Invalid(no_difference(*site)))?;
        let random = random_directions(RANDOM_DIRECTIONS, width, search.seed, index as u64);
        let count = (positive.prompts() + negative.prompts()) as f64;
        sites.push(SiteDirection {
            site: site.to_string(),
            norm: norm(&vector),
            residual_norm: (positive.norm_sums[index] + negative.norm_sums[index]) / count,
            explained,
            separation: fitting::separation(made_of, held, &vector, &random),
            effects: Vec::new(),
            vector: vector.clone(),
        });
        vectors.push([vec![vector], random].concat());
    }
    let measure = Measure::of(model, held_out, search.answers.as_deref(), patience)?;
    let kind = measure.kind();
    let mut baseline = None;
    if !search.strengths.is_empty() {
        let measured = effects(
            model,
            &measure,
            &search.sites,
            &vectors,
            &search.strengths,
            patience,
        )?;
        baseline = Some(measured.baseline);
        for (found, of_site) in sites.iter_mut().zip(measured.changes) {
            let strengths = search.strengths.iter().zip(of_site);
            found.effects = strengths
                .map(|(&strength, changes)| StrengthEffect::of(strength, &changes))
                .collect();
        }
    }
    Ok(FoundDirections {
        sites,
        measure: kind,
        baseline,
    })
}

fn no_difference(site: Site) -> String {
    format!(
        "at {site} the activations of positive and negative prompts do not differ; there is no direction"
    )
}

impl StrengthEffect {
    /// Of the changes that the direction and then the random ones make.
    fn of(strength: f64, changes: &[f64]) -> Self {
        let (effect, random) = match changes {
            [effect, random @ ..] => (*effect, random),
            [] => (0.0, changes),
        };
        let count = random.len().max(1) as f64;
        let mean = random.iter().sum::<f64>() / count;
        let squares: f64 = random.iter().map(|change| (change - mean).powi(2)).sum();
        let sense = effect.signum();
        StrengthEffect {
            strength,
            effect,
            random_mean: mean,
            random_std: (squares / count).sqrt(),
            random_largest: random
                .iter()
                .fold(0.0, |most, change| most.max(change.abs())),
            random_exceeded: random
                .iter()
                .filter(|&&change| change * sense < effect.abs())
                .count(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_effect_is_held_against_random_ones_in_its_own_sense() {
        let found = StrengthEffect::of(0.2, &[2.0, 1.0, -1.0, 3.0, 1.0]);
        assert_eq!((found.effect, found.random_mean), (2.0, 1.0));
        assert_eq!(found.random_std, 2f64.sqrt());
        assert_eq!((found.random_largest, found.random_exceeded), (3.0, 3));
        let backwards = StrengthEffect::of(0.2, &[-2.0, -3.0, 1.0]);
        assert_eq!(
            (backwards.random_largest, backwards.random_exceeded),
            (3.0, 1)
        );
    }
}
