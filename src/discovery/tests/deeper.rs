//! Patches from a sparse model into a deeper dense one enter where its places are joined.

use super::{between, prompts};
use crate::bridge::site_map::SiteMap;
use crate::discovery::attribution::Attribution;
use crate::discovery::contrast::{ContrastOptions, contrast};
use crate::discovery::patching::Patching;
use crate::discovery::route::Route;
use crate::features::group::Write;
use crate::features::pair::Pair;
use crate::features::test_pair::{D_SPARSE, LAYERS, random_pair_with};
use crate::models::location::{Location, Site};
use crate::numerics::rows;

const DENSE_LAYERS: usize = 5;

fn models(seed: u64) -> Pair {
    let site_map = SiteMap::spaced(DENSE_LAYERS, LAYERS).unwrap();
    random_pair_with(seed, site_map).pair()
}

#[test]
fn a_site_is_patched_where_it_is_joined() {
    let models = models(3);
    let mut patching = Patching::new(&models, prompts(between), &[]).unwrap();
    let all: Vec<usize> = (0..D_SPARSE).collect();
    for (site, joined) in models.bridge.site_map.sites() {
        let place = Location::Site(site);
        let patch = patching
            .location_patch(place, Route::Bridge(Write::Residual))
            .unwrap();
        assert_eq!(patch.columns.target, Location::Site(joined));
        let [presented, counterfactual] = patching.sparse_values(place).unwrap();
        let change = (counterfactual - presented).unwrap();
        let decoded = models.bridge.decode_change(site, &change).unwrap();
        let expected = patching
            .answers_with_dense(joined, rows::to_vec(&decoded).unwrap())
            .unwrap();
        let found = patching
            .answers_with(&patch, patch.group(&all, 1.0))
            .unwrap();
        for (found, expected) in found.logit_diffs.iter().zip(&expected.logit_diffs) {
            assert!(
                (found - expected).abs() < 1e-3,
                "{site}: {found} {expected}"
            );
        }
        assert_ne!(found, patching.answers.dense_presented, "{site}");
    }
}

#[test]
fn sublayer_inputs_enter_the_sublayer_behind_the_joined_site() {
    let models = models(9);
    let places = models.inner_inputs();
    let patching = Patching::new(&models, prompts(between), &places).unwrap();
    for &place in &places {
        let joined = models.bridge.site_map.dense_site(place);
        for (write, expected) in [
            (Write::Sublayer, joined.read_by().unwrap()),
            (Write::Residual, Location::Site(joined)),
        ] {
            let patch = patching
                .location_patch(place, Route::Bridge(write))
                .unwrap();
            assert_eq!(patch.columns.target, expected, "{place}");
        }
    }
}

#[test]
fn mean_differences_and_swapped_tokens_are_of_the_dense_models_sites() {
    let models = models(4);
    let mut patching = Patching::new(&models, prompts(between), &[]).unwrap();
    let first = Site::before_attention(0, DENSE_LAYERS);
    let swap = patching.token_swap().unwrap();
    let swapped = patching.answers_with_dense(first, swap).unwrap();
    let expected = &patching.answers.dense_counterfactual;
    for (found, expected) in swapped.logit_diffs.iter().zip(&expected.logit_diffs) {
        assert!((found - expected).abs() < 1e-3, "{found} {expected}");
    }
    for site in Site::all(DENSE_LAYERS) {
        let differences = patching.dense_mean_differences(site).unwrap();
        let largest = differences
            .iter()
            .flatten()
            .fold(0f32, |a, b| a.max(b.abs()));
        assert!(largest > 0.0 && largest.is_finite(), "{site}");
    }
}

#[test]
fn first_order_effects_are_the_slopes_of_real_ones() {
    let route = Route::Bridge(Write::Residual);
    // Only pairs that the dense model gets right count.
    let counts = |models: &Pair| {
        let patching = Patching::new(models, prompts(between), &[]).unwrap();
        patching.right(route).contains(&true)
    };
    let models = (5..25).map(models).find(counts).unwrap();
    let mut patching = Patching::new(&models, prompts(between), &[]).unwrap();
    let attribution = Attribution::new(&patching, route).unwrap();
    let place = Location::parse("1.resid_in", LAYERS).unwrap();
    let patch = patching.location_patch(place, route).unwrap();
    let gradient = attribution
        .gradient(&patch, &patch.nothing(), f32::INFINITY)
        .unwrap();
    let slopes = patch.first_order(&gradient);
    let right = patching.right(route);
    const STEP: f32 = 1e-2;
    let mut told = 0;
    for (channel, &slope) in slopes.iter().enumerate() {
        let mut at = |strength: f32| -> f64 {
            let change = patch.group(&[channel], strength);
            let answers = patching.answers_with(&patch, change).unwrap();
            let differences = answers.logit_diffs.iter().zip(&right);
            differences
                .filter(|(_, right)| **right)
                .map(|(difference, _)| f64::from(*difference))
                .sum()
        };
        let measured = (at(STEP) - at(-STEP)) / (2.0 * f64::from(STEP));
        told += usize::from(measured.abs() > 1e-2);
        assert!(
            (slope - measured).abs() < 0.05 * (1.0 + measured.abs()),
            "channel {channel}: {slope} against {measured}"
        );
    }
    assert!(told > 0, "nothing has an effect");
    let options = ContrastOptions::default();
    let found = contrast(&mut patching, &attribution, place, route, &options).unwrap();
    assert!(!found.ranking.is_empty());
}
