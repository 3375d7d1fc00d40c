//! A feature's own tests, run again on a pair.

use std::ops::Range;

use serde::Serialize;
use utoipa::ToSchema;

use super::DiscoveryError;
use super::patching::Patching;
use super::patience::Patience;
use super::question::{PromptPair, Question, share};
use super::route::Route;
use crate::features::pair::Pair;
use crate::features::registry::{Feature, FeatureTest};
use crate::models::location::Location;
use crate::models::tokenizer::Tokenizer;

/// What one test found.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct TestOutcome {
    pub prompt: String,
    pub counterfactual: String,
    /// Two-way probability of the expected token without the edit and with it.
    pub before: f64,
    pub after: f64,
    pub at_most_before: f64,
    pub at_least: f64,
    pub passed: bool,
}

/// Runs every test of a feature, patching it from the counterfactual through the bridge at full strength.
pub fn verify(
    models: &Pair,
    feature: &Feature,
    patience: Patience,
) -> Result<Vec<TestOutcome>, DiscoveryError> {
    if feature.tests.is_empty() {
        return Ok(Vec::new());
    }
    let tokenizer = models.tokenizer();
    let place = Location::parse(&feature.node, models.n_layers())?;
    let pairs = feature
        .tests
        .iter()
        .map(|test| test_pair(test, tokenizer))
        .collect::<Result<Vec<_>, _>>()?;
    let mut patching = Patching::patient(models, pairs, &[place], patience)?;
    let patch = patching.location_patch(place, Route::Bridge(feature.write))?;
    let channels: Vec<usize> = feature
        .channels
        .iter()
        .map(|member| member.channel)
        .collect();
    for &channel in &channels {
        if channel >= patch.channels {
            let problem = format!(
                "{place} has {} channels; there is no channel {channel}",
                patch.channels
            );
            return Err(DiscoveryError::Invalid(problem));
        }
        if let Some(refusal) = patch.columns.refusal(channel) {
            return Err(refusal.clone().into());
        }
    }
    let after = patching.answers_with(&patch, patch.group(&channels, 1.0))?;
    let before = &patching.answers.dense_presented;
    let logit_diffs = before.logit_diffs.iter().zip(&after.logit_diffs);
    Ok(feature
        .tests
        .iter()
        .zip(logit_diffs)
        .map(|(test, (&before, &after))| {
            let (before, after) = (share(before), share(after));
            TestOutcome {
                prompt: test.prompt.clone(),
                counterfactual: test.counterfactual.clone(),
                before,
                after,
                at_most_before: test.at_most_before,
                at_least: test.at_least,
                passed: before <= test.at_most_before && after >= test.at_least,
            }
        })
        .collect())
}

/// A test as tokens. The candidates are cut from the full text: the first token that starts where the prompt
/// ends, in the tokenisation of the prompt together with what is said to follow.
pub fn test_pair(test: &FeatureTest, tokenizer: &Tokenizer) -> Result<PromptPair, DiscoveryError> {
    let (presented, instead) = cut(tokenizer, &test.prompt, &test.instead)?;
    let (_, expected) = cut(tokenizer, &test.prompt, &test.expected)?;
    let (counterfactual, _) = cut(tokenizer, &test.counterfactual, &test.expected)?;
    if presented.len() != counterfactual.len() {
        let (one, other) = (presented.len(), counterfactual.len());
        let problem = format!(
            "the prompt {:?} has {one} tokens and its counterfactual {:?} has {other}; they must agree",
            test.prompt, test.counterfactual
        );
        return Err(DiscoveryError::Invalid(problem));
    }
    if expected == instead {
        let problem = format!(
            "{:?} and {:?} begin with the same token after {:?}",
            test.expected, test.instead, test.prompt
        );
        return Err(DiscoveryError::Invalid(problem));
    }
    let question = Question::Between {
        presented: instead,
        counterfactual: expected,
    };
    Ok(PromptPair {
        presented,
        counterfactual,
        question,
    })
}

/// The tokens before `prompt.len()` bytes of `prompt + following`, and the one that starts there.
fn cut(
    tokenizer: &Tokenizer,
    prompt: &str,
    following: &str,
) -> Result<(Vec<u32>, u32), DiscoveryError> {
    let (before, following) = split(tokenizer, prompt, following)?;
    Ok((before, following[0]))
}

/// The tokens before `prompt.len()` bytes of `prompt + following`, as a prompt begins, and those from there on, of which
/// there is at least one.
pub fn split(
    tokenizer: &Tokenizer,
    prompt: &str,
    following: &str,
) -> Result<(Vec<u32>, Vec<u32>), DiscoveryError> {
    let tokens: Vec<(u32, Range<usize>)> =
        tokenizer.encode_with_offsets(&format!("{prompt}{following}"))?;
    let at = tokens
        .iter()
        .position(|(_, bytes)| bytes.start >= prompt.len());
    match at {
        // A tokenizer may leave the space between two tokens to neither.
        Some(at) if at > 0 && tokens[at - 1].1.end <= prompt.len() => {
            let ids = |tokens: &[(u32, Range<usize>)]| tokens.iter().map(|(id, _)| *id).collect();
            let (before, following): (Vec<u32>, Vec<u32>) =
                (ids(&tokens[..at]), ids(&tokens[at..]));
            Ok((tokenizer.begun(before), following))
        }
        _ => {
            let problem =
                format!("no token starts where the prompt {prompt:?} ends before {following:?}");
            Err(DiscoveryError::Invalid(problem))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_test_is_cut_as_its_tokenizer_cuts_and_begins_as_a_prompt_does() {
        let byte_level =
            json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true});
        let vocabulary = json!({"?": 0, "<s>": 1, "\u{120}The": 2, "\u{120}A": 3, "\u{120}boat": 4, "\u{120}ship": 5});
        let begin = json!({"id": "<s>", "ids": [1], "tokens": ["<s>"]});
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
            "added_tokens": [{"id": 1, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true}],
            "pre_tokenizer": byte_level, "decoder": byte_level,
            "post_processor": {"type": "Sequence", "processors": [byte_level, {"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [], "special_tokens": {"<s>": begin}}]},
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "?"}
        });
        let tokenizer = Tokenizer::from_bytes(tokenizer.to_string().as_bytes()).expect("JSON");
        let test = FeatureTest {
            prompt: "The".to_owned(),
            counterfactual: "A".to_owned(),
            expected: " boat".to_owned(),
            instead: " ship".to_owned(),
            at_least: 0.5,
            at_most_before: 0.5,
        };
        let pair = test_pair(&test, &tokenizer).expect("a pair");
        assert_eq!(
            (pair.presented, pair.counterfactual),
            (vec![1, 2], vec![1, 3])
        );
        assert!(matches!(
            pair.question,
            Question::Between {
                presented: 5,
                counterfactual: 4
            }
        ));
    }
}
