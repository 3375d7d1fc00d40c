//! A label for a feature, made from the contrast of the places where it is strongest with those where it is weakest.
//!
//! Two sets of tokens of reference text, those of its largest values and those of its smallest, are compared: which tokens
//! stand in the one set and not in the other, and which stand shortly before. Nothing is asked of a language model: a label
//! says what can be counted.

use std::collections::{BTreeMap, BTreeSet};

/// Tokens of either set at most.
const PLACES: usize = 200;
/// Tokens before a place that are looked at.
const BEFORE: usize = 12;
/// How much more often a token must stand in one set than in the other.
const LEAST_CONTRAST: f64 = 0.2;
/// Tokens told of each kind.
const TOLD: usize = 3;

/// A token that tells the two sets from one another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TellingToken {
    pub token: u32,
    /// The share of the set's places that it stands at, or before.
    pub share: f64,
    /// The same of the other set.
    pub share_of_other: f64,
}

/// What tells a feature's strongest places from its weakest.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FeatureContrast {
    /// Places of each set.
    pub places: usize,
    /// At the places themselves, the most telling first.
    pub strongest_at: Vec<TellingToken>,
    pub weakest_at: Vec<TellingToken>,
    /// Within a few tokens before them.
    pub strongest_after: Vec<TellingToken>,
    pub weakest_after: Vec<TellingToken>,
}

/// The contrast of a feature's `activations` at each of `tokens`, sequences of `length`. Places where it is zero are
/// left out: none is strongest or weakest there.
pub fn contrast(tokens: &[u32], length: usize, activations: &[f32]) -> FeatureContrast {
    let mut order: Vec<usize> = (0..activations.len().min(tokens.len()))
        .filter(|&at| activations[at] != 0.0)
        .collect();
    order.sort_by(|&one, &other| activations[one].total_cmp(&activations[other]));
    let places = PLACES.min(order.len() / 2);
    if places == 0 {
        return FeatureContrast::default();
    }
    let (weakest, strongest) = (&order[..places], &order[order.len() - places..]);
    let at = |place: usize| place..place + 1;
    let before = |place: usize| {
        let sequence = place - place % length.max(1);
        place.saturating_sub(BEFORE).max(sequence)..place
    };
    let shares = |places: &[usize], window: &dyn Fn(usize) -> std::ops::Range<usize>| {
        let mut counts = BTreeMap::<u32, usize>::new();
        for &place in places {
            // Once a place, however often it stands there.
            let seen: BTreeSet<u32> = tokens[window(place)].iter().copied().collect();
            seen.into_iter()
                .for_each(|token| *counts.entry(token).or_default() += 1);
        }
        let share = |count: usize| count as f64 / places.len() as f64;
        let shares = counts.into_iter();
        shares
            .map(|(token, count)| (token, share(count)))
            .collect::<BTreeMap<u32, f64>>()
    };
    let (strong_at, weak_at) = (shares(strongest, &at), shares(weakest, &at));
    let (strong_before, weak_before) = (shares(strongest, &before), shares(weakest, &before));
    FeatureContrast {
        places,
        strongest_at: telling(&strong_at, &weak_at),
        weakest_at: telling(&weak_at, &strong_at),
        strongest_after: telling(&strong_before, &weak_before),
        weakest_after: telling(&weak_before, &strong_before),
    }
}

fn telling(own: &BTreeMap<u32, f64>, other: &BTreeMap<u32, f64>) -> Vec<TellingToken> {
    let mut found: Vec<TellingToken> = own
        .iter()
        .map(|(&token, &share)| TellingToken {
            token,
            share,
            share_of_other: other.get(&token).copied().unwrap_or(0.0),
        })
        .filter(|found| found.share - found.share_of_other >= LEAST_CONTRAST)
        .collect();
    found.sort_by(|one, other| {
        let contrast = |found: &TellingToken| found.share - found.share_of_other;
        contrast(other).total_cmp(&contrast(one))
    });
    found.truncate(TOLD);
    found
}

impl FeatureContrast {
    /// The contrast in words; none where no token tells the sets apart.
    pub fn label(&self, token_text: &dyn Fn(u32) -> String) -> Option<String> {
        let kinds = [
            ("strongest at", &self.strongest_at),
            ("weakest at", &self.weakest_at),
            ("strongest after", &self.strongest_after),
            ("weakest after", &self.weakest_after),
        ];
        let told = kinds.into_iter().filter(|(_, tokens)| !tokens.is_empty());
        let told = told.map(|(kind, tokens)| {
            let texts = tokens.iter().map(|found| {
                let percent = (100.0 * found.share).round();
                format!("{:?} ({percent}%)", token_text(found.token))
            });
            format!("{kind} {}", texts.collect::<Vec<_>>().join(", "))
        });
        let told: Vec<String> = told.collect();
        (!told.is_empty()).then(|| told.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Token 1 follows token 7 where the feature is strong, and token 2 follows token 8 where it is weak.
    #[test]
    fn what_stands_at_and_before_the_ends_is_told() {
        let mut tokens = Vec::new();
        let mut activations = Vec::new();
        for index in 0..40 {
            let strong = index % 2 == 0;
            tokens.extend(match strong {
                true => [7, 5, 1, 5],
                false => [8, 5, 2, 5],
            });
            let value = if strong { 2.0 } else { -1.0 };
            activations.extend([0.0, 0.0, value + index as f32 * 1e-3, 0.0]);
        }
        let found = contrast(&tokens, 4, &activations);
        assert_eq!(found.places, 20);
        let told = |tokens: &[TellingToken]| -> Vec<(u32, f64)> {
            tokens
                .iter()
                .map(|found| (found.token, found.share))
                .collect()
        };
        assert_eq!(told(&found.strongest_at), [(1, 1.0)]);
        assert_eq!(told(&found.weakest_at), [(2, 1.0)]);
        // Token 5 stands before both.
        assert_eq!(told(&found.strongest_after), [(7, 1.0)]);
        assert_eq!(told(&found.weakest_after), [(8, 1.0)]);
        let label = found.label(&|token| token.to_string()).expect("a label");
        assert!(
            label.starts_with("strongest at \"1\" (100%); weakest at"),
            "{label}"
        );
    }

    #[test]
    fn nothing_is_told_of_what_never_shows_or_never_differs() {
        assert_eq!(
            contrast(&[1, 2, 3, 4], 4, &[0.0; 4]),
            FeatureContrast::default()
        );
        let same = contrast(
            &[1; 100],
            10,
            &(1..=100).map(|at| at as f32).collect::<Vec<_>>(),
        );
        assert_eq!(same.places, 50);
        assert_eq!(same.label(&|token| token.to_string()), None);
    }
}
