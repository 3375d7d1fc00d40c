//! The twin check: does an edit do in the dense model, carried over the bridge, what it does in the sparse model itself?
//!
//! A group of channels is patched from each prompt of a pair into the other, natively and over the bridge. What is compared
//! is the change of the log odds of the pair's answers, one number a prompt and route.

use super::DiscoveryError;
use super::patching::Patching;
use super::patience::Patience;
use super::question::PromptPair;
use super::route::Route;
use crate::features::effects::TwinAgreement;
use crate::features::group::Write;
use crate::features::pair::Pair;
use crate::models::location::Location;
use crate::numerics::correlation::Correlation;

/// How the effects of patching `channels` of `place` agree over `pairs`, of which there is at least one.
pub fn twin_check(
    models: &Pair,
    pairs: &[PromptPair],
    place: Location,
    write: Write,
    channels: &[usize],
    patience: Patience,
) -> Result<TwinAgreement, DiscoveryError> {
    let both = PromptPair::both_ways(pairs);
    let mut patching = Patching::patient(models, both, &[place], patience)?;
    let mut effects = |route: Route| -> Result<Vec<f32>, DiscoveryError> {
        let patch = patching.location_patch(place, route)?;
        if let Some(refusal) = channels.iter().find_map(|&at| patch.columns.refusal(at)) {
            return Err(refusal.clone().into());
        }
        let after = patching.answers_with(&patch, patch.group(channels, 1.0))?;
        let before = &patching.before(route).logit_diffs;
        let changes = after.logit_diffs.iter().zip(before);
        let changes = changes.enumerate().map(|(index, (after, before))| {
            // Reversed pairs count the other way round.
            let sign = if index < pairs.len() { 1.0 } else { -1.0 };
            sign * (after - before)
        });
        Ok(changes.collect())
    };
    let native = effects(Route::Native)?;
    let bridged = effects(Route::Bridge(write))?;
    Ok(agreement(&native, &bridged))
}

/// Of effects of which the first half are of the one direction, the others of the other.
fn agreement(native: &[f32], bridged: &[f32]) -> TwinAgreement {
    let of = |native: &[f32], bridged: &[f32]| {
        let mut correlation = Correlation::default();
        for (native, bridged) in native.iter().zip(bridged) {
            correlation.add(*native, *bridged);
        }
        correlation.value()
    };
    let half = native.len() / 2;
    let ways = [
        of(&native[..half], &bridged[..half]),
        of(&native[half..], &bridged[half..]),
    ];
    let known: Vec<f64> = ways.into_iter().flatten().collect();
    let same = native.iter().zip(bridged);
    let same = same.filter(|(native, bridged)| **native * **bridged > 0.0);
    let share = |count: usize| count as f64 / native.len().max(1) as f64;
    let magnitude = |effects: &[f32]| {
        let sum: f64 = effects.iter().map(|effect| f64::from(effect.abs())).sum();
        sum / effects.len().max(1) as f64
    };
    TwinAgreement {
        pairs: half,
        correlation: of(native, bridged),
        correlation_one_way: (!known.is_empty())
            .then(|| known.iter().sum::<f64>() / known.len() as f64),
        same_sign: share(same.count()),
        native: magnitude(native),
        bridged: magnitude(bridged),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agreement_within_a_direction_is_not_that_of_both() {
        // Both directions apart, and within each the stronger natively the weaker over the bridge.
        let native = [1.0, 2.0, 3.0, -1.0, -2.0, -3.0];
        let bridged = [6.0, 5.0, 4.0, -6.0, -5.0, -4.0];
        let found = agreement(&native, &bridged);
        assert_eq!((found.pairs, found.same_sign), (3, 1.0));
        assert!(found.correlation.expect("both change") > 0.7);
        assert!((found.correlation_one_way.expect("both change") + 1.0).abs() < 1e-9);
        assert_eq!((found.native, found.bridged), (2.0, 5.0));
        let still = agreement(&[0.0; 4], &[1.0; 4]);
        assert_eq!((still.correlation, still.same_sign), (None, 0.0));
    }
}
