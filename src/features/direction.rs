//! Directions: named vectors at residual sites of a dense model. They need no bridge.
//!
//! A direction `v` is read as the projection `p = <h, v> / <v, v>` of the stream `h` on it. One of several sites is a
//! *stack*: what is done to it is done at each of its sites with that site's own vector. What it does over text is
//! measured in the model itself; without text it has no statistics.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::FeatureError;
use super::reference::ReferenceText;
use super::statistics::{Moments, visit_locations};
use crate::documented::documented;
use crate::models::config::TransformerConfig;
use crate::models::location::{Location, Site};
use crate::models::transformer::Transformer;

/// A direction is measured over no more tokens of reference text.
const MOST_TOKENS: usize = 1 << 13;
/// Tokens run at once, in whole sequences.
const CHUNK: usize = 1024;

/// The directions of one model by name.
pub type NamedDirections = BTreeMap<String, Arc<NamedDirection>>;

/// A direction as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedDirection {
    /// `[a-z0-9._-]`, unique among the directions of its model.
    pub name: String,
    pub description: String,
    pub source: DirectionSource,
    /// In the order of the forward pass; each site once.
    pub parts: Vec<DirectionPart>,
}

/// A direction at one site.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirectionPart {
    /// A residual site's name.
    pub site: String,
    /// One number a channel of the stream, finite and not all zero.
    pub vector: Vec<f32>,
    /// None where there was no text to measure over, or the projection is no finite number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stats: Option<ProjectionStatistics>,
}

/// The projection on a direction over text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProjectionStatistics {
    pub mean: f64,
    /// The unit `std` of edits.
    pub std: f64,
    /// The unit `max` of edits.
    pub max: f64,
    pub min: f64,
    /// The mean norm of the residual stream at the site.
    pub residual_norm: f64,
    /// The tokens these were taken over.
    pub tokens: usize,
}

/// Where a direction came from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum DirectionSource {
    /// Its vectors were given.
    Given {},
    /// It was made of contrast prompts on this server.
    Contrast {
        method: DirectionMethod,
        positions: ReadPositions,
        /// Prompts that it was made of, of either kind.
        positive: usize,
        negative: usize,
    },
    /// It was read from a control vector's file.
    ControlVector {
        /// The kind of model that the file says it was made for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(nullable = false)]
        model_hint: Option<String>,
        /// `direction.N` of the file is added at the output of block N + `layer_offset`, counted from 0.
        layer_offset: i64,
        /// Of the file, in hexadecimal.
        sha256: String,
    },
}

documented! {
    /// How a direction is made of the activations of contrast prompts.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
    #[serde(rename_all = "snake_case")]
    pub enum DirectionMethod {
        /// The mean of the positive prompts' activations less that of the negative ones'.
        DifferenceOfMeans,
        /// The first principal component of the differences of pairs, the n-th positive prompt less the n-th negative
        /// one, about zero and not about their mean; its sign is that of the difference of means, its length the root
        /// mean square of the differences along it.
        Pca,
    }
}

documented! {
    /// Which tokens of a contrast prompt its activations are read at.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
    #[serde(rename_all = "snake_case")]
    pub enum ReadPositions {
        /// The last token.
        Last,
        /// Every token: their mean.
        All,
        /// The tokens of the answer: their mean.
        Answer,
    }
}

impl DirectionPart {
    /// The length of its vector.
    pub fn norm(&self) -> f64 {
        norm(&self.vector)
    }
}

/// The Euclidean length of a vector.
pub fn norm(vector: &[f32]) -> f64 {
    let squares = vector.iter().map(|&value| f64::from(value).powi(2));
    squares.sum::<f64>().sqrt()
}

/// Whether a direction's sites and vectors are those of a model of this shape.
pub fn check(direction: &NamedDirection, config: &TransformerConfig) -> Result<(), String> {
    let of = |problem: String| format!("direction {:?}: {problem}", direction.name);
    if direction.parts.is_empty() {
        return Err(of("has no site".to_owned()));
    }
    let mut seen = BTreeSet::new();
    for part in &direction.parts {
        let site = site_of(&part.site, config.n_layers).map_err(of)?;
        if !seen.insert(site) {
            return Err(of(format!("names {site} twice")));
        }
        check_vector(&part.vector, config.d_model)
            .map_err(|problem| of(format!("{site}: {problem}")))?;
    }
    Ok(())
}

/// The residual site of this name.
pub fn site_of(name: &str, n_layers: usize) -> Result<Site, String> {
    match Location::parse(name, n_layers) {
        Ok(Location::Site(site)) => Ok(site),
        Ok(node) => Err(format!(
            "{node} is a node; a direction is at a residual site"
        )),
        Err(error) => Err(error.to_string()),
    }
}

/// Whether a vector can be a direction of a stream of `width` channels.
pub fn check_vector(vector: &[f32], width: usize) -> Result<(), String> {
    if vector.len() != width {
        return Err(format!(
            "the vector has {} numbers; the residual stream of the model has {width} channels",
            vector.len()
        ));
    }
    if vector.iter().any(|value| !value.is_finite()) {
        return Err("the vector holds a number that is not finite".to_owned());
    }
    match vector.iter().all(|&value| value == 0.0) {
        true => Err("the vector is zero; it has no direction".to_owned()),
        false => Ok(()),
    }
}

/// As much of a reference text as directions are measured over, in its sequences.
pub fn sequences(text: &ReferenceText) -> Vec<Vec<u32>> {
    let sequences = text.tokens.chunks_exact(text.length);
    let most = (MOST_TOKENS / text.length).max(1);
    sequences.take(most).map(<[u32]>::to_vec).collect()
}

/// Measures a direction over texts, of which no more than 8192 tokens and at least one sequence are run;
/// `goes_on` is asked before every pass.
pub fn measure<E: From<FeatureError>>(
    model: &Transformer,
    texts: &[Vec<u32>],
    parts: &mut [DirectionPart],
    mut goes_on: impl FnMut() -> Result<(), E>,
) -> Result<(), E> {
    let n_layers = model.config.n_layers;
    let sites: Vec<Location> = parts
        .iter()
        .map(|part| site_of(&part.site, n_layers).map(Location::Site))
        .collect::<Result<_, _>>()
        .map_err(FeatureError::Invalid)?;
    let squares: Vec<f64> = parts.iter().map(|part| part.norm().powi(2)).collect();
    let mut moments = vec![Moments::default(); parts.len()];
    let mut norms = vec![0f64; parts.len()];
    let mut tokens = 0;
    for (length, chunk) in chunks(texts) {
        goes_on()?;
        tokens += chunk.len();
        visit_locations(model, &chunk, length, &sites, |_, place, rows, width| {
            let of_place = parts.iter().zip(&sites).zip(&squares);
            let seen = moments.iter_mut().zip(&mut norms);
            for (((part, _), square), (moments, norms)) in of_place
                .zip(seen)
                .filter(|(((_, site), _), _)| **site == place)
            {
                for row in rows.chunks_exact(width) {
                    let dot: f64 = row
                        .iter()
                        .zip(&part.vector)
                        .map(|(&one, &other)| f64::from(one) * f64::from(other))
                        .sum();
                    moments.add((dot / square) as f32);
                    *norms += norm(row);
                }
            }
        })?;
    }
    if tokens == 0 {
        return Ok(());
    }
    for ((part, moments), norms) in parts.iter_mut().zip(moments).zip(norms) {
        let found = moments.statistics();
        let stats = ProjectionStatistics {
            mean: found.mean,
            std: found.std,
            max: found.max,
            min: found.min,
            residual_norm: norms / tokens as f64,
            tokens,
        };
        // The projection on a vector can be too large for a number; what it is then is not known.
        let numbers = [
            stats.mean,
            stats.std,
            stats.max,
            stats.min,
            stats.residual_norm,
        ];
        part.stats = numbers
            .iter()
            .all(|number| number.is_finite())
            .then_some(stats);
    }
    Ok(())
}

/// Texts end to end, as many of one length together as are run at once, with that length.
fn chunks(texts: &[Vec<u32>]) -> Vec<(usize, Vec<u32>)> {
    let mut chunks: Vec<(usize, Vec<u32>)> = Vec::new();
    let mut tokens = 0;
    for text in texts.iter().filter(|text| !text.is_empty()) {
        if tokens > 0 && tokens + text.len() > MOST_TOKENS {
            break;
        }
        tokens += text.len();
        match chunks.last_mut() {
            Some((length, chunk)) if *length == text.len() && chunk.len() + text.len() <= CHUNK => {
                chunk.extend(text);
            }
            _ => chunks.push((text.len(), text.clone())),
        }
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::test_pair::{D_DENSE, LAYERS, random_pair};

    fn direction(parts: Vec<DirectionPart>) -> NamedDirection {
        NamedDirection {
            name: "d".to_owned(),
            description: String::new(),
            source: DirectionSource::Given {},
            parts,
        }
    }

    fn part(site: &str, vector: Vec<f32>) -> DirectionPart {
        DirectionPart {
            site: site.to_owned(),
            vector,
            stats: None,
        }
    }

    #[test]
    fn a_direction_is_of_sites_and_vectors_of_its_model() {
        let config = random_pair(1).dense.config;
        let vector = vec![0.5; D_DENSE];
        let good = direction(vec![part("final_resid", vector.clone())]);
        assert_eq!(check(&good, &config), Ok(()));
        for (parts, said) in [
            (vec![], "no site"),
            (vec![part("0.mlp.act_in", vector.clone())], "is a node"),
            (vec![part("9.resid_in", vector.clone())], "9.resid_in"),
            (vec![part("0.resid_in", vec![1.0])], "1 numbers"),
            (vec![part("0.resid_in", vec![0.0; D_DENSE])], "zero"),
            (
                vec![part("0.resid_in", vec![f32::INFINITY; D_DENSE])],
                "not finite",
            ),
            (
                vec![
                    part("0.resid_in", vector.clone()),
                    part("0.resid_in", vector.clone()),
                ],
                "twice",
            ),
        ] {
            let error = check(&direction(parts), &config).expect_err(said);
            assert!(error.contains(said), "{said}: {error}");
        }
    }

    #[test]
    fn a_projection_is_measured_over_texts_of_any_lengths() {
        let pair = random_pair(2).pair();
        let model = &pair.dense.transformer;
        let mut vector = vec![0f32; D_DENSE];
        vector[1] = 2.0;
        let mut parts = [
            part("final_resid", vector.clone()),
            part("0.resid_in", vector),
        ];
        let texts = [vec![1, 2, 3], vec![4, 5], vec![6, 7]];
        let go = || Ok::<(), FeatureError>(());
        measure(model, &texts, &mut parts, go).expect("measured");
        // By hand: each text by itself, the channel halved.
        for (at, place) in [
            (0, Site::new(2 * LAYERS, LAYERS)),
            (1, Site::new(0, LAYERS)),
        ] {
            let place = Location::Site(place.expect("a site"));
            let (mut values, mut norms) = (Vec::new(), Vec::new());
            for text in &texts {
                visit_locations(model, text, text.len(), &[place], |_, _, rows, width| {
                    for row in rows.chunks_exact(width) {
                        values.push(f64::from(row[1]) / 2.0);
                        norms.push(norm(row));
                    }
                })
                .expect("a pass");
            }
            let found = parts[at].stats.expect("statistics");
            assert_eq!((values.len(), found.tokens), (7, 7));
            let mean = values.iter().sum::<f64>() / 7.0;
            let variance = values
                .iter()
                .map(|value| (value - mean).powi(2))
                .sum::<f64>()
                / 7.0;
            assert!((found.mean - mean).abs() < 1e-5, "{found:?}");
            assert!((found.std - variance.sqrt()).abs() < 1e-4, "{found:?}");
            let largest = values.iter().copied().fold(f64::MIN, f64::max);
            assert!((found.max - largest).abs() < 1e-5, "{found:?}");
            let norm = norms.iter().sum::<f64>() / 7.0;
            assert!((found.residual_norm - norm).abs() < 1e-5, "{found:?}");
        }
        let given_up = || Err(FeatureError::Invalid("enough".to_owned()));
        assert!(measure(model, &texts, &mut parts, given_up).is_err());
    }

    #[test]
    fn a_kept_direction_is_read_back_to_the_bit() {
        let bits = (0..4096u32).map(|index| f32::from_bits(0x3000_0000 + index * 77_777));
        let kept = direction(vec![part("final_resid", bits.collect())]);
        let json = serde_json::to_vec(&kept).expect("JSON");
        let read: NamedDirection = serde_json::from_slice(&json).expect("a direction");
        assert_eq!(read, kept);
    }
}
