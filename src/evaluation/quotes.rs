//! A quote feature on strings: those of generated programs, those of real files, and where there are none.

use serde::Serialize;

use super::catalogue::{FeatureFlips, flips};
use super::unseen::UnseenPackage;
use super::{EvaluationError, real_strings, task_pairs, unrelated};
use crate::corpus::Split;
use crate::discovery::DiscoveryError;
use crate::discovery::patching::Patching;
use crate::features::pair::Pair;
use crate::features::registry::Feature;
use crate::models::location::Location;
use crate::tasks::Task;
use crate::training::data::documents;
use crate::training::recipe::Source;

/// Prompts without an open string have at most this many tokens.
const LONGEST_UNRELATED: usize = 96;
/// Pairs that a feature's typical values are taken from.
const TYPICAL_PAIRS: usize = 128;

/// Code by where it is from.
pub struct TextOf {
    pub source: String,
    pub documents: Vec<String>,
}

/// The held-out documents of a recipe's sources, and those of unseen packages, a document of each package in turn.
pub fn held_out_texts(
    sources: &[Source],
    unseen: &[UnseenPackage],
) -> Result<Vec<TextOf>, EvaluationError> {
    let mut texts = Vec::new();
    for source in sources {
        texts.push(TextOf {
            source: source.name().to_owned(),
            documents: documents(source)?.held_out,
        });
    }
    if !unseen.is_empty() {
        let longest = unseen.iter().map(|package| package.documents.len()).max();
        let rounds = 0..longest.unwrap_or(0);
        let in_turn = rounds.flat_map(|round| {
            let of_round = move |package: &UnseenPackage| package.documents.get(round).cloned();
            unseen.iter().filter_map(of_round)
        });
        texts.push(TextOf {
            source: "unseen packages".to_owned(),
            documents: in_turn.collect(),
        });
    }
    Ok(texts)
}

/// What a quote feature does.
#[derive(Debug, Clone, Serialize)]
pub struct QuoteFigures {
    pub feature: String,
    /// On held-out pairs of generated programs.
    pub generated: FeatureFlips,
    /// On strings of real files, by where they are from.
    pub strings: Vec<StringFlips>,
    pub unrelated: Vec<SourceEffect>,
}

#[derive(Debug, Clone, Serialize)]
pub struct StringFlips {
    pub source: String,
    pub flips: FeatureFlips,
}

#[derive(Debug, Clone, Serialize)]
pub struct SourceEffect {
    pub source: String,
    pub effect: unrelated::UnrelatedEffect,
}

/// Measures a feature on `generated` pairs of generated programs, and on `count` strings, and as many prompts without
/// one, of each text.
pub fn measure(
    models: &Pair,
    feature: &Feature,
    texts: &[TextOf],
    generated: usize,
    count: usize,
) -> Result<QuoteFigures, EvaluationError> {
    let task = Task::SingleDoubleQuote;
    let place = Location::parse(&feature.node, models.n_layers()).map_err(DiscoveryError::from)?;
    let group = &feature.channels;
    let pairs = task_pairs(models, task, TYPICAL_PAIRS, 0, Split::Train)?;
    let patching = Patching::new(models, pairs, &[place])?;
    let values = unrelated::typical_values(&patching, place, group)?;
    let (mut strings, mut effects) = (Vec::new(), Vec::new());
    for text in texts {
        let documents = &text.documents;
        let prompts =
            unrelated::prompts_without_strings(models, documents, count, LONGEST_UNRELATED)?;
        for value in values.iter().filter(|_| !prompts.is_empty()) {
            let write = feature.write;
            let effect = unrelated::set_everywhere(models, &prompts, place, group, write, *value)?;
            effects.push(SourceEffect {
                source: text.source.clone(),
                effect,
            });
        }
        if text.source != Source::GENERATED {
            let pairs = real_strings::pairs(models, documents, count)?;
            if !pairs.is_empty() {
                strings.push(StringFlips {
                    source: text.source.clone(),
                    flips: flips(models, feature, pairs)?,
                });
            }
        }
    }
    let pairs = task_pairs(models, task, generated, 0, Split::HeldOut)?;
    Ok(QuoteFigures {
        feature: feature.name.clone(),
        generated: flips(models, feature, pairs)?,
        strings,
        unrelated: effects,
    })
}
