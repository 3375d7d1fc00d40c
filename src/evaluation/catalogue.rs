//! A pair's features: the groups that steer a task, named, described, with statistics and tests.
//!
//! A task earns a feature where half of its held-out pairs flip both natively and through the bridge. The feature
//! is the group of the better way over the bridge, cut where further channels no longer flip more training
//! pairs; its first `channels_to_flip` channels alone flip half.

use serde::{Deserialize, Serialize};

use super::EvaluationError;
use super::task_table::{RouteFigures, TaskRow};
use crate::corpus::Split;
use crate::discovery::patching::Patching;
use crate::discovery::patience::Patience;
use crate::discovery::question::{PromptPair, share};
use crate::discovery::route::Route;
use crate::discovery::verify::{test_pair, verify};
use crate::features::group::WeightedChannel;
use crate::features::pair::Pair;
use crate::features::registry::{Feature, FeatureTest};
use crate::features::statistics::{group_activations, statistics_of};
use crate::models::tokenizer::Tokenizer;
use crate::tasks::{Task, TextPair, token_pair};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// The file in a pair's directory.
pub const FEATURES_FILE: &str = "features.json";
/// Tests a feature is given.
const TESTS: usize = 4;
/// Text pairs looked at for tests.
const CONSIDERED: usize = 200;
/// A test is only made of a pair that the edit decides clearly.
const CLEAR_BEFORE: f64 = 0.2;
const CLEAR_AFTER: f64 = 0.8;
/// Keeps the pairs of tests apart from those of the table.
const TEST_STREAM: u64 = 1 << 50;
/// Further channels must flip this much more of the pairs to be part of a feature.
const LEAST_FLIPS: f64 = 0.005;

/// `features.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeaturesFile {
    pub features: Vec<Feature>,
}

/// The name and the description of the feature that decides a task.
pub fn name_of(task: Task) -> (&'static str, &'static str) {
    match task {
        Task::SingleDoubleQuote => (
            "quote_type",
            "Which quote opened the string: double, or single when patched.",
        ),
        Task::BracketCounting => ("bracket_depth", "How many brackets are open."),
        Task::BracketBrace => (
            "dict_or_list",
            "Inside a dictionary's braces or a list's brackets.",
        ),
        Task::SetOrString => (
            "set_or_string",
            "Whether a variable began as a set or as a string.",
        ),
        Task::SetOrStringFixedvarname => (
            "current_set_or_string",
            "Whether the variable `current` began as a set or as a string.",
        ),
        Task::ClassInit => (
            "assigned_attribute",
            "The name being assigned to `self.name`.",
        ),
        Task::WithAs => (
            "with_statement",
            "Whether the line is a `with` statement, which goes on with `as`.",
        ),
        Task::WithOpen => (
            "file_role",
            "Whether a file is opened for reading or for writing.",
        ),
        Task::FinalKwarg => ("keyword_defaults", "Whether parameters have defaults."),
        Task::ForWhile => ("for_or_while", "Whether the loop is a `for` or a `while`."),
        Task::ElseElif => (
            "else_or_elif",
            "Whether the branch is an `else` or an `elif`.",
        ),
        Task::FstringBrace => ("f_string", "Whether the open string is an f-string."),
        Task::IfTernary => (
            "statement_if",
            "Whether an `if` is a statement or inside an expression.",
        ),
        Task::VarSwap => (
            "swapped_name",
            "The first name of an exchange of two variables.",
        ),
        Task::IndentFor => ("block_opened", "Whether the line before opened a block."),
        Task::LambdaFunc => ("lambda_or_def", "Whether a `lambda` or a `def` was begun."),
        Task::IfEquals => (
            "condition_or_assignment",
            "Whether the line compares or assigns.",
        ),
        Task::EnumerateRange => (
            "two_loop_variables",
            "Whether a loop has two variables or one.",
        ),
        Task::VarIf => (
            "if_or_assignment",
            "Whether `True` ends an `if` or an assignment.",
        ),
        Task::WhileReturnTrue => (
            "return_or_while",
            "Whether `True` ends a `return` or a `while`.",
        ),
    }
}

/// Makes the feature of a task from its row, if it earned one: the `whole` group that was selected, or as much of it
/// as flips more pairs. `reference` holds sequences of `length` tokens. A feature that passes no test is none.
pub fn feature(
    models: &Pair,
    row: &TaskRow,
    reference: &[u32],
    length: usize,
    seed: u64,
    whole: bool,
) -> Result<Option<Feature>, EvaluationError> {
    let natively = row
        .native
        .as_ref()
        .and_then(|figures| figures.channels_to_flip);
    let Some((figures, channels_to_flip)) = row
        .best_bridge()
        .and_then(|figures| Some((figures, figures.channels_to_flip?)))
        .filter(|_| natively.is_some())
    else {
        return Ok(None);
    };
    let Route::Bridge(write) = figures.route else {
        return Ok(None);
    };
    let (name, description) = name_of(row.task);
    let channels = match whole {
        true => with_unit_length(figures.channels.clone()),
        false => trimmed(figures, channels_to_flip),
    };
    let place = figures
        .place
        .in_model(models.n_layers())
        .map_err(crate::discovery::DiscoveryError::from)?;
    let activations = group_activations(&models.sparse, reference, length, place, &channels)?;
    let mut statistics = statistics_of(&activations);
    statistics.channels_to_flip = Some(channels_to_flip);
    let mut feature = Feature {
        name: name.to_owned(),
        description: format!(
            "{description} Task {}: {}.",
            row.task,
            row.task.description()
        ),
        node: figures.place.as_str().to_owned(),
        channels,
        write,
        tasks: vec![row.task],
        stats: Some(statistics),
        tests: Vec::new(),
    };
    feature.tests = tests(models, &feature, row.task, seed)?;
    Ok(Some(feature).filter(|feature| !feature.tests.is_empty()))
}

/// The group without the channels at its end that flip nothing more.
fn trimmed(figures: &RouteFigures, channels_to_flip: usize) -> Vec<WeightedChannel> {
    let most = figures.flips.iter().copied().fold(0.0, f64::max);
    let enough = figures
        .flips
        .iter()
        .position(|&flips| flips >= most - LEAST_FLIPS);
    let count = enough
        .map_or(figures.channels.len(), |index| index + 1)
        .max(channels_to_flip);
    with_unit_length(figures.channels[..count.min(figures.channels.len())].to_vec())
}

fn with_unit_length(mut channels: Vec<WeightedChannel>) -> Vec<WeightedChannel> {
    let weights = channels.iter().map(|member| member.weight).collect();
    for (member, weight) in channels
        .iter_mut()
        .zip(crate::discovery::contrast::unit(weights))
    {
        member.weight = weight;
    }
    channels
}

/// Tests made of held-out pairs that the feature decides clearly.
fn tests(
    models: &Pair,
    feature: &Feature,
    task: Task,
    seed: u64,
) -> Result<Vec<FeatureTest>, EvaluationError> {
    let tokenizer = models.tokenizer();
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ TEST_STREAM);
    let candidates: Vec<FeatureTest> = (0..CONSIDERED)
        .filter_map(|_| test_of(&task.text_pair(&mut rng, Split::HeldOut), tokenizer).transpose())
        .collect::<Result<_, EvaluationError>>()?;
    let tried = Feature {
        tests: candidates,
        ..feature.clone()
    };
    let outcomes = verify(models, &tried, Patience::endless())?;
    let clear = tried
        .tests
        .into_iter()
        .zip(outcomes)
        .filter(|(_, outcome)| outcome.before <= CLEAR_BEFORE && outcome.after >= CLEAR_AFTER);
    let mut tests: Vec<FeatureTest> = clear.map(|(test, _)| test).collect();
    tests.sort_by_key(|test| test.prompt.len());
    tests.truncate(TESTS);
    Ok(tests)
}

/// A text pair as a test, where the tokenizer cuts it and the test's own text leads to the same tokens.
fn test_of(pair: &TextPair, tokenizer: &Tokenizer) -> Result<Option<FeatureTest>, EvaluationError> {
    let Ok(tokens) = token_pair(pair, |text| tokenizer.encode_with_offsets(text))? else {
        return Ok(None);
    };
    let test = FeatureTest {
        prompt: pair.presented.prompt.clone(),
        counterfactual: pair.counterfactual.prompt.clone(),
        expected: tokenizer.token_text(tokens.counterfactual.candidate),
        instead: tokenizer.token_text(tokens.presented.candidate),
        at_least: 0.5,
        at_most_before: 0.5,
    };
    let same = test_pair(&test, tokenizer).is_ok_and(|cut| {
        cut.presented == tokens.presented.prompt
            && cut.counterfactual == tokens.counterfactual.prompt
            && cut.question.logit_diff_tokens()
                == Some((tokens.presented.candidate, tokens.counterfactual.candidate))
    });
    Ok(same.then_some(test))
}

/// What a feature does to a set of pairs when patched: flips among those that the dense model gets right, and how
/// many those are.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FeatureFlips {
    pub pairs: usize,
    pub right: usize,
    pub flips: Option<f64>,
    pub two_way_before: f64,
    pub two_way: f64,
}

/// Patches a feature on given pairs.
pub fn flips(
    models: &Pair,
    feature: &Feature,
    pairs: Vec<PromptPair>,
) -> Result<FeatureFlips, EvaluationError> {
    let place = crate::models::location::Location::parse(&feature.node, models.n_layers())
        .map_err(crate::discovery::DiscoveryError::from)?;
    let mut patching = Patching::new(models, pairs, &[place])?;
    let route = Route::Bridge(feature.write);
    let patch = patching.location_patch(place, route)?;
    let channels: Vec<usize> = feature
        .channels
        .iter()
        .map(|member| member.channel)
        .collect();
    let answers = patching.answers_with(&patch, patch.group(&channels, 1.0))?;
    let right = patching.right(route);
    let mean = |logit_diffs: &[f32]| {
        logit_diffs
            .iter()
            .map(|&logit_diff| share(logit_diff))
            .sum::<f64>()
            / logit_diffs.len().max(1) as f64
    };
    Ok(FeatureFlips {
        pairs: right.len(),
        right: right.iter().filter(|right| **right).count(),
        flips: answers.flips(&right),
        two_way_before: mean(&patching.answers.dense_presented.logit_diffs),
        two_way: mean(&answers.logit_diffs),
    })
}
