//! A pair's features: the groups that steer a task, named, described, with statistics and tests.
//!
//! A task earns a feature where half of its held-out pairs flip both natively and through the bridge. The feature
//! is the group of the better way over the bridge, cut where further channels no longer flip more training
//! pairs; its first `channels_to_flip` channels alone flip half.

use serde::{Deserialize, Serialize};

use super::EvaluationError;
use super::task_pairs;
use super::task_table::{RouteFigures, TaskRow, route_figures};
use crate::corpus::Split;
use crate::discovery::patching::Patching;
use crate::discovery::patience::Patience;
use crate::discovery::question::{PromptPair, share};
use crate::discovery::route::Route;
use crate::discovery::twin::twin_check;
use crate::discovery::verify::{test_pair, verify};
use crate::features::effects::{FeatureEffects, OutsideEffect, TwinAgreement};
use crate::features::group::WeightedChannel;
use crate::features::pair::Pair;
use crate::features::registry::{Feature, FeatureTest};
use crate::features::statistics::{group_activations, statistics_of};
use crate::models::location::Location;
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

/// Pairs of prompts that people wrote, a line each: not in the style of the generated programs, and written before any
/// feature was tried on them.
const OUTSIDE_PROMPTS: &str = include_str!("outside_prompts.jsonl");

/// One line of them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OutsidePrompt {
    task: Task,
    prompt: String,
    counterfactual: String,
    /// What follows the counterfactual prompt, and what follows the prompt.
    expected: String,
    instead: String,
}

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

/// What features are measured on.
pub struct Measured<'a> {
    pub models: &'a Pair,
    /// Reference text, in sequences of `length` tokens.
    pub reference: &'a [u32],
    pub length: usize,
    pub seed: u64,
    /// Features keep all channels that were selected, also those that flip no further pair.
    pub whole: bool,
}

/// Makes the features of a task from its row: that of the best way over the bridge, where the task earned one, and, where
/// that acts in the first half of the model, that of the best way in the later half, called `NAME_late`. A feature that
/// passes no test is none.
pub fn features(measured: &Measured, row: &TaskRow) -> Result<Vec<Feature>, EvaluationError> {
    let natively = row
        .native
        .as_ref()
        .is_some_and(|figures| figures.channels_to_flip.is_some());
    let Some(best) = row
        .best_bridge()
        .filter(|best| natively && best.channels_to_flip.is_some())
    else {
        return Ok(Vec::new());
    };
    let (name, _) = name_of(row.task);
    let late = row.best_late().filter(|late| late.place != best.place);
    let mut features: Vec<Feature> = feature(measured, row, name, best)?.into_iter().collect();
    let in_first_half = best
        .place
        .in_model(row.n_layers)
        .is_ok_and(|place| 2 * place.layer() < row.n_layers);
    if let Some(late) = late.filter(|_| in_first_half) {
        features.extend(feature(measured, row, &format!("{name}_late"), late)?);
    }
    Ok(features)
}

/// The feature of a group that steers a task, with statistics, tests and effects; none where no test of it passes.
pub fn feature(
    measured: &Measured,
    row: &TaskRow,
    name: &str,
    figures: &RouteFigures,
) -> Result<Option<Feature>, EvaluationError> {
    let models = measured.models;
    let (Route::Bridge(write), Some(channels_to_flip)) = (figures.route, figures.channels_to_flip)
    else {
        return Ok(None);
    };
    let channels = match measured.whole {
        true => with_unit_length(figures.channels.clone()),
        false => trimmed(figures, channels_to_flip),
    };
    let place = figures
        .place
        .in_model(models.n_layers())
        .map_err(crate::discovery::DiscoveryError::from)?;
    let (reference, length) = (measured.reference, measured.length);
    let activations = group_activations(&models.sparse, reference, length, place, &channels)?;
    let mut statistics = statistics_of(&activations);
    statistics.channels_to_flip = Some(channels_to_flip);
    let mut feature = Feature {
        name: name.to_owned(),
        description: format!(
            "{} Task {}: {}.",
            name_of(row.task).1,
            row.task,
            row.task.description()
        ),
        node: figures.place.as_str().to_owned(),
        channels,
        write,
        tasks: vec![row.task],
        stats: Some(statistics),
        effects: None,
        tests: Vec::new(),
    };
    feature.tests = tests(models, &feature, row.task, measured.seed)?;
    if feature.tests.is_empty() {
        return Ok(None);
    }
    feature.effects = Some(effects(measured, row, &feature, place)?);
    Ok(Some(feature))
}

/// What patching a feature does: on the task's held-out pairs, layer by layer, and on prompts that people wrote.
fn effects(
    measured: &Measured,
    row: &TaskRow,
    feature: &Feature,
    place: Location,
) -> Result<FeatureEffects, EvaluationError> {
    let (models, seed) = (measured.models, measured.seed);
    let pairs = task_pairs(models, row.task, row.held_out_pairs, seed, Split::HeldOut)?;
    let twin = twin_of(models, feature, &pairs, Patience::endless())?;
    let mut held_out = Patching::new(models, pairs, &[place])?;
    let route = Route::Bridge(feature.write);
    let own = route_figures(&mut held_out, place, route, &feature.channels, seed)?;
    let own = own.effect().ok_or_else(|| {
        EvaluationError::Invalid(format!("{} is not carried over the bridge", feature.name))
    })?;
    Ok(FeatureEffects {
        pairs: row.held_out_pairs,
        own,
        layers: row.layers.iter().filter_map(RouteFigures::effect).collect(),
        outside: outside_effect(models, feature, row.task)?,
        twin: Some(twin),
    })
}

/// How what a feature does to pairs natively agrees with what it does to them over the bridge.
pub fn twin_of(
    models: &Pair,
    feature: &Feature,
    pairs: &[PromptPair],
    patience: Patience,
) -> Result<TwinAgreement, EvaluationError> {
    let place = Location::parse(&feature.node, models.n_layers())
        .map_err(crate::discovery::DiscoveryError::from)?;
    let members = feature.channels.iter();
    let channels: Vec<usize> = members.map(|member| member.channel).collect();
    let found = twin_check(models, pairs, place, feature.write, &channels, patience)?;
    Ok(found)
}

/// The prompts that people wrote for a task.
pub fn outside_prompts(task: Task) -> Result<Vec<FeatureTest>, EvaluationError> {
    let damaged = |error| EvaluationError::Invalid(format!("outside_prompts.jsonl: {error}"));
    let mut prompts = Vec::new();
    for line in OUTSIDE_PROMPTS.lines().filter(|line| !line.is_empty()) {
        let written: OutsidePrompt = serde_json::from_str(line).map_err(damaged)?;
        if written.task == task {
            prompts.push(FeatureTest {
                prompt: written.prompt,
                counterfactual: written.counterfactual,
                expected: written.expected,
                instead: written.instead,
                at_least: 0.5,
                at_most_before: 0.5,
            });
        }
    }
    Ok(prompts)
}

fn outside_effect(
    models: &Pair,
    feature: &Feature,
    task: Task,
) -> Result<Option<OutsideEffect>, EvaluationError> {
    let tokenizer = models.tokenizer();
    let written = outside_prompts(task)?;
    let cut = written.iter().map(|test| test_pair(test, tokenizer));
    let pairs: Vec<PromptPair> = cut.filter_map(Result::ok).collect();
    if pairs.is_empty() {
        return Ok(None);
    }
    let flips = flips(models, feature, pairs)?;
    let flipped = flips.flips.unwrap_or(0.0) * flips.right as f64;
    Ok(Some(OutsideEffect {
        pairs: flips.pairs,
        right: flips.right,
        flipped: flipped.round() as usize,
    }))
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
    /// Pairs whose right answer is the dense model's most probable next token, and the share of those whose most probable
    /// next token becomes the counterfactual's.
    pub greedily_right: usize,
    pub greedy_flips: Option<f64>,
    pub two_way_before: f64,
    pub two_way: f64,
}

/// Patches a feature on given pairs.
pub fn flips(
    models: &Pair,
    feature: &Feature,
    pairs: Vec<PromptPair>,
) -> Result<FeatureFlips, EvaluationError> {
    let place = Location::parse(&feature.node, models.n_layers())
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
    let greedily_right = patching.before(route).greedily_presented();
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
        greedily_right: greedily_right.iter().filter(|right| **right).count(),
        greedy_flips: answers.greedy_flips(&greedily_right),
        two_way_before: mean(&patching.answers.dense_presented.logit_diffs),
        two_way: mean(&answers.logit_diffs),
    })
}
