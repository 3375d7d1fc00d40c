//! A contrast over many places: which place needs the fewest channels.
//!
//! Every place is screened cheaply (first-order ranking, flips of its first 1, 2, 4, 8 and 16 channels); the most
//! promising are searched in earnest, each given up once it needs more channels than the best so far; the best
//! is then searched to the end.

use super::DiscoveryError;
use super::attribution::Attribution;
use super::contrast::{Contrast, ContrastOptions, contrast, strongest};
use super::patching::Patching;
use super::route::Route;
use crate::models::location::Location;

/// Group sizes a screening looks at.
const SCREENED_SIZES: [usize; 5] = [1, 2, 4, 8, 16];

/// Places that the screening gave up on are searched in earnest only while fewer than this many have been.
const HOPELESS_REFINED: usize = 2;
/// The badness of such a place is above this.
const HOPELESS: f64 = 16.0;

/// A place as the screening sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Screened {
    pub place: Location,
    pub route: Route,
    /// Smaller is more promising.
    pub badness: f64,
}

/// Screens places: how few of the first-order strongest channels flip the pairs.
pub fn screen(
    patching: &mut Patching,
    attribution: &Attribution,
    places: &[(Location, Route)],
    target_flips: f64,
) -> Result<Vec<Screened>, DiscoveryError> {
    let mut screened = Vec::with_capacity(places.len());
    for &(place, route) in places {
        let patch = patching.location_patch(place, route)?;
        let right = patching.right(route);
        let gradient = attribution.gradient(&patch, &patch.nothing(), f32::INFINITY)?;
        let channels = strongest(&patch.first_order(&gradient), 16, &[]);
        let mut badness = None;
        let mut share = 0.0;
        for size in SCREENED_SIZES {
            let group = &channels[..size.min(channels.len())];
            let answers = patching.answers_with(&patch, patch.group(group, 1.0))?;
            let flips = answers.flips(&right).unwrap_or(0.0);
            share = answers.mean_share(&right).unwrap_or(0.0);
            if flips >= target_flips {
                badness = Some(size as f64 - flips);
                break;
            }
        }
        // Where sixteen are not enough, the more probable their answer the better.
        let badness = badness.unwrap_or(32.0 - 10.0 * share);
        screened.push(Screened {
            place,
            route,
            badness,
        });
    }
    screened.sort_by(|one, other| one.badness.total_cmp(&other.badness));
    Ok(screened)
}

/// The places searched in earnest, the best first; `refined` of them at most. All routes must edit one model.
pub fn search(
    patching: &mut Patching,
    attribution: &Attribution,
    places: &[(Location, Route)],
    refined: usize,
    options: &ContrastOptions,
) -> Result<Vec<Contrast>, DiscoveryError> {
    let screened = screen(patching, attribution, places, options.target_flips)?;
    let mut found: Vec<Contrast> = Vec::new();
    for place in screened.iter().take(refined.max(1)) {
        if found.len() >= HOPELESS_REFINED && place.badness > HOPELESS {
            break;
        }
        let best = found
            .iter()
            .filter_map(|contrast| contrast.channels_to_flip)
            .min();
        let options = ContrastOptions {
            beyond_target: false,
            // One more than the best: pruning may take it away again.
            give_up_after: best.map(|best| best + 1),
            ..*options
        };
        let contrast = contrast(patching, attribution, place.place, place.route, &options)?;
        tracing::debug!(
            place = %place.place,
            route = %place.route,
            screened = place.badness,
            channels = contrast.group.len(),
            to_flip = ?contrast.channels_to_flip,
            "searched"
        );
        found.push(contrast);
    }
    found.sort_by(|one, other| one.badness().total_cmp(&other.badness()));
    if options.beyond_target
        && let Some(best) = found.first_mut()
    {
        *best = contrast(patching, attribution, best.place, best.route, options)?;
    }
    Ok(found)
}
