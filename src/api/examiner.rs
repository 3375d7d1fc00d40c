//! Pairs opened for examination: finding channels and running features' tests need gradients and whole prompts
//! at once, so they work on a copy of the pair's own and leave the engine to its requests.
//!
//! A pair is opened when it is first examined. One examination runs at a time; the others wait.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use actix_web::web;

use super::ApiError;
use crate::features::FeatureError;
use crate::features::paired_models::PairedModels;
use crate::features::question::PromptPair;

/// The pairs that can be examined.
#[derive(Debug)]
pub struct Examiner {
    /// By bridge.
    directories: Mutex<BTreeMap<String, PathBuf>>,
    open: Arc<Mutex<BTreeMap<String, Arc<PairedModels>>>>,
    turn: tokio::sync::Mutex<()>,
}

impl Examiner {
    /// An examiner of the pairs in these directories, by the ids of their bridges.
    pub fn new(directories: BTreeMap<String, PathBuf>) -> Self {
        Examiner {
            directories: Mutex::new(directories),
            open: Arc::default(),
            turn: tokio::sync::Mutex::new(()),
        }
    }

    /// From now on the pair of `bridge` in `directory` can be examined.
    pub fn open(&self, bridge: &str, directory: &Path) {
        let mut directories = self
            .directories
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        directories.insert(bridge.to_owned(), directory.to_path_buf());
    }

    /// Lets go of a bridge's pair.
    pub fn close(&self, bridge: &str) {
        let mut directories = self
            .directories
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        directories.remove(bridge);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.remove(bridge);
    }

    /// Does `work` on a bridge's pair, off the threads that serve. What the work refuses is told of the
    /// request's field `param`.
    pub async fn examine<T, W>(&self, bridge: &str, param: &str, work: W) -> Result<T, ApiError>
    where
        T: Send + 'static,
        W: FnOnce(&PairedModels) -> Result<T, FeatureError> + Send + 'static,
    {
        let directory = {
            let directories = self.directories.lock();
            let directories = directories.unwrap_or_else(PoisonError::into_inner);
            directories.get(bridge).cloned()
        };
        let Some(directory) = directory else {
            return Err(ApiError::Internal(format!(
                "the pair of bridge {bridge} cannot be examined"
            )));
        };
        let open = self.open.clone();
        let bridge = bridge.to_owned();
        let _turn = self.turn.lock().await;
        let examined = web::block(move || {
            let known = open
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get(&bridge)
                .cloned();
            let models = match known {
                Some(models) => models,
                None => {
                    let models = Arc::new(PairedModels::read(&directory)?);
                    open.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .insert(bridge, models.clone());
                    models
                }
            };
            work(&models)
        });
        match examined.await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(error)) => Err(refusal(error, param)),
            Err(_) => Err(ApiError::Internal("an examination ended early".to_owned())),
        }
    }
}

fn refusal(error: FeatureError, param: &str) -> ApiError {
    match error {
        FeatureError::Invalid(_)
        | FeatureError::NotCarried(_)
        | FeatureError::Place(_)
        | FeatureError::Tokenizer(_) => ApiError::invalid(param, error.to_string()),
        FeatureError::Compute(_)
        | FeatureError::Artifact(_)
        | FeatureError::Pair(_)
        | FeatureError::Reference(_) => ApiError::internal(error),
    }
}

/// Refuses pairs whose prompts are longer than either model's context.
pub fn check_length(pairs: &[PromptPair], models: &PairedModels) -> Result<(), FeatureError> {
    let context = models
        .dense
        .config
        .context_length
        .min(models.sparse.config.context_length);
    let long = |pair: &PromptPair| pair.presented.len().max(pair.counterfactual.len()) > context;
    match pairs.iter().position(long) {
        None => Ok(()),
        Some(index) => {
            let problem = format!(
                "the prompts of pair {index} are longer than the context of {context} tokens"
            );
            Err(FeatureError::Invalid(problem))
        }
    }
}
