//! A first token, before anything is served: whatever is wrong with a model's or a pair's files shows here.
//!
//! Files that were made to do harm take memory or time without bound, or overflow the stack, while they are read or
//! used for the first time. So this runs in a process of its own (`causeway trial`), which bounds itself; see
//! [`super::trial_process`] for the server's side.

use std::path::{Path, PathBuf};

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::bridge::pair::{PairError, is_pair};
use crate::features::pair::Pair;
use crate::memory;
use crate::models::kv_cache::{CacheRow, KvCache};
use crate::models::layout::{LayoutError, ModelFiles, ReadOptions};
use crate::models::location::{Location, Site};
use crate::models::model::{LoadedModel, ModelError, ModelKind};
use crate::models::tap::{NoTap, Recorder};
use crate::models::token_rows::TokenRows;
use crate::models::tokenizer_files;
use crate::numerics::rows;

/// Letters, digits, white space and characters of several bytes: whatever a tokenizer's rules are about.
const TEXT: &str =
    "The quick brown fox jumps over 13 lazy dogs.\n\tprint('\u{e9} \u{6f22}\u{5b57} \u{1f642}')";
/// Tokens of the text that the models are given.
const TOKENS: usize = 8;
/// Bytes that a trial may take beside what its files account for: what passes costs the server hardly more.
const SPARE: u64 = 128 << 20;
/// Weights are there as tensors and as the layers hold them; while a tensor in double precision is read, it is there
/// three times more.
const PER_WEIGHT: u64 = 6;
/// Bytes that a byte of a tokenizer's file may become; half as many are usual.
const PER_TOKENIZER_BYTE: u64 = 16;

/// Why something cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Pair(#[from] PairError),
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    #[error("{}: {problem}", directory.display())]
    NoToken { directory: PathBuf, problem: String },
}

/// What was tried and answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tried {
    /// Of each model's configuration and weights: a model's own, or a dense and a sparse one's.
    pub fingerprints: Vec<String>,
    /// Of the same models.
    #[serde(default)]
    pub sizes: Vec<ModelSize>,
    /// Of a pair's bridge.
    #[serde(default)]
    pub bridge: Option<String>,
}

/// What can be told of a model once its weights have been seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelSize {
    pub is_sparse: bool,
    pub parameters: usize,
    pub nonzeros: usize,
}

impl Tried {
    fn of(models: &[&LoadedModel], bridge: Option<String>) -> Self {
        let size = |model: &&LoadedModel| ModelSize {
            is_sparse: model.kind == ModelKind::Sparse,
            parameters: model.parameters,
            nonzeros: model.nonzeros,
        };
        let fingerprint = |model: &&LoadedModel| model.fingerprint.clone();
        Tried {
            fingerprints: models.iter().map(fingerprint).collect(),
            sizes: models.iter().map(size).collect(),
            bridge,
        }
    }
}

/// Bytes that reading and trying the pair or model in `directory` may take: its configurations and the sizes of its
/// tokenizers' files say how much. The models themselves are held against `limits` first.
pub fn memory_bound(directory: &Path, limits: ReadOptions) -> Result<u64, TrialError> {
    let mut bound = SPARE;
    for model in models_of(directory) {
        let need = ModelFiles::memory_need(&model, limits)?;
        let weights = need.weights.saturating_mul(PER_WEIGHT);
        let tokenizer = tokenizer_files::json_bytes(&model);
        bound = bound
            .saturating_add(weights)
            .saturating_add(need.sequence)
            .saturating_add(tokenizer.saturating_mul(PER_TOKENIZER_BYTE));
    }
    Ok(bound)
}

/// Bounds this process, then reads what is in `directory` and lets it answer.
pub fn bounded(directory: &Path, limits: ReadOptions) -> Result<Tried, TrialError> {
    let bound = memory_bound(directory, limits)?;
    memory::bound_growth(bound).map_err(candle_core::Error::wrap)?;
    match is_pair(directory) {
        true => {
            let pair = Pair::read_within(directory, limits)?;
            pair_answers(&pair, directory)?;
            Ok(Tried::of(
                &[&*pair.dense, &*pair.sparse],
                Some(pair.fingerprint),
            ))
        }
        false => {
            let model = LoadedModel::read_within("trial", directory, limits)?;
            model_answers(&model, directory)?;
            Ok(Tried::of(&[&model], None))
        }
    }
}

/// The directories of the models that `directory` holds.
fn models_of(directory: &Path) -> Vec<PathBuf> {
    match is_pair(directory) {
        true => vec![directory.join("dense"), directory.join("sparse")],
        false => vec![directory.to_owned()],
    }
}

/// A short text's tokens, at least one.
fn tokens(model: &LoadedModel, directory: &Path) -> Result<Vec<u32>, TrialError> {
    let failed = |problem: String| TrialError::NoToken {
        directory: directory.to_owned(),
        problem,
    };
    let mut ids = model
        .tokenizer
        .encode_prompt(TEXT)
        .map_err(|error| failed(format!("its tokenizer fails on a short text: {error}")))?;
    let config = &model.transformer.config;
    ids.truncate(TOKENS.min(config.context_length));
    match ids.iter().find(|&&id| id as usize >= config.vocab_size) {
        _ if ids.is_empty() => Err(failed(
            "its tokenizer makes no token of a short text".to_owned(),
        )),
        Some(id) => Err(failed(format!(
            "its tokenizer makes token {id} of a short text; the model has {}",
            config.vocab_size
        ))),
        None => Ok(ids),
    }
}

/// The stream at every site, at the first token of a short text, after the model has answered it.
fn model_answers(model: &LoadedModel, directory: &Path) -> Result<Vec<(Site, Tensor)>, TrialError> {
    if let Some(template) = &model.chat_template {
        template.check().map_err(|error| TrialError::NoToken {
            directory: directory.to_owned(),
            problem: error.to_string(),
        })?;
    }
    let ids = tokens(model, directory)?;
    let config = &model.transformer.config;
    let mut cache = KvCache::new(config, 1, config.context_length, model.transformer.device())?;
    let at = (0..ids.len()).map(|position| CacheRow { slot: 0, position });
    let mut rows = TokenRows::cached(&ids, at.collect(), &mut cache)?;
    let mut recorder = Recorder::of(Site::all(config.n_layers).map(Location::Site));
    let logits = model.transformer.forward(&mut rows, &mut recorder)?;
    finite(&logits, "the model's logits", directory)?;
    let last: Vec<f32> = rows::to_vec(&logits.narrow(0, ids.len() - 1, 1)?)?;
    let best = last
        .iter()
        .enumerate()
        .max_by(|left, right| left.1.total_cmp(right.1))
        .map_or(0, |(id, _)| id as u32);
    drop(model.tokenizer.decode(&[ids, vec![best]].concat()));
    let streams = recorder.into_values().into_iter();
    let sites = streams.filter_map(|(place, stream)| match place {
        Location::Site(site) => Some((site, stream)),
        Location::Node(_) => None,
    });
    sites
        .map(|(site, stream)| Ok((site, stream.narrow(0, 0, 1)?)))
        .collect()
}

/// Both models answer, and what the bridge makes of the dense one's stream can be gone on from.
fn pair_answers(pair: &Pair, directory: &Path) -> Result<(), TrialError> {
    model_answers(&pair.sparse, &directory.join("sparse"))?;
    let streams = model_answers(&pair.dense, &directory.join("dense"))?;
    let ids = tokens(&pair.dense, directory)?;
    let site_map = &pair.bridge.site_map;
    let middle = site_map.n_sites() / 2;
    for (site, joined) in site_map.sites() {
        let Some((_, dense)) = streams.get(joined.index()) else {
            continue;
        };
        let sparse = pair.bridge.encode(site, dense)?;
        finite(&sparse, &format!("the encoder at {site}"), directory)?;
        let back = pair.bridge.decode(site, &sparse)?;
        finite(&back, &format!("the decoder at {site}"), directory)?;
        if site.index() == middle {
            let halves = [(&pair.sparse, site, sparse), (&pair.dense, joined, back)];
            for (model, site, stream) in halves {
                let transformer = &model.transformer;
                let mut cache = KvCache::new(&transformer.config, 1, 1, transformer.device())?;
                let first = CacheRow {
                    slot: 0,
                    position: 0,
                };
                let mut rows = TokenRows::cached(&ids[..1], vec![first], &mut cache)?;
                let last = transformer.run(site, stream, &mut rows, &mut NoTap)?;
                let logits = transformer.unembed(&last, &rows.ids)?;
                let of = format!("the logits of {} from {site} on", model.id);
                finite(&logits, &of, directory)?;
            }
        }
    }
    Ok(())
}

fn finite(values: &Tensor, of: &str, directory: &Path) -> Result<(), TrialError> {
    let all = |values: &[f32]| values.iter().all(|value| value.is_finite());
    match rows::with_values(values, all)? {
        true => Ok(()),
        false => Err(TrialError::NoToken {
            directory: directory.to_owned(),
            problem: format!(
                "{of} are no finite numbers on a short text; its weights are too large"
            ),
        }),
    }
}
