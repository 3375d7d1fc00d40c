//! `/v1/library`: the pairs and models that can be served, and taking them into service and out of it while
//! everything else goes on. For keys of the role `admin`.
//!
//! An entry is a pair (both models and their bridge) or a single model, in a directory that the settings name, in a
//! folder of the settings' `library`, or brought from the artifact store after a job has trained it; requests name it by
//! id. It is read off the threads that serve and
//! comes into service in one step; requests in progress keep what they began with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use actix_web::{HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

use super::ApiError;
use super::error::ErrorBody;
use super::inventory::{Inventory, Provenance, shortened};
use super::loading::check_features;
use super::state::State;
use crate::artifacts::{ArtifactId, Manifest};
use crate::bridge::pair::PairFiles;
use crate::generation::catalog::{Catalog, CatalogError, LoadedModel, LoadedPair};
use crate::interventions::nearest::suggestion;
use crate::models::layout::{ModelFiles, ReadLimits};
use crate::serving::trial_process::TrialFailure;

/// Where entries are.
#[derive(Debug)]
pub struct Library {
    /// By id: those that the settings name.
    named: BTreeMap<String, Entry>,
    /// Whose folders are entries too.
    directory: PathBuf,
    /// By id: what jobs have trained.
    trained: RwLock<BTreeMap<String, Trained>>,
    /// One thing is tried and read at a time.
    reading: tokio::sync::Mutex<()>,
    /// One thing comes or goes at a time; no file is read meanwhile.
    turn: tokio::sync::Mutex<()>,
}

/// A job's result that this server has brought.
#[derive(Debug, Clone)]
pub struct Trained {
    /// The sha256 of its artifact.
    pub artifact: String,
    pub entry: Entry,
}

/// What a directory holds.
#[derive(Debug, Clone)]
pub struct Entry {
    pub kind: EntryKind,
    pub directory: PathBuf,
}

/// What an entry brings into service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// A dense and a sparse model with the bridge between them; its id is the bridge's.
    Pair,
    Model,
}

/// Something that can be served.
#[derive(Debug, Serialize, ToSchema)]
pub struct LibraryEntry {
    #[schema(example = "tinypython")]
    pub id: String,
    #[schema(example = "library.entry")]
    pub object: &'static str,
    pub kind: EntryKind,
    /// Whether it is served now.
    pub loaded: bool,
}

/// All entries, by their ids.
#[derive(Debug, Serialize, ToSchema)]
pub struct LibraryList {
    #[schema(example = "list")]
    pub object: &'static str,
    pub data: Vec<LibraryEntry>,
}

/// Something read and not yet in service.
enum Read {
    Pair(Box<LoadedPair>),
    Model(Box<LoadedModel>),
}

impl Library {
    pub fn new(named: BTreeMap<String, Entry>, directory: PathBuf) -> Self {
        Library {
            named,
            directory,
            trained: RwLock::default(),
            reading: tokio::sync::Mutex::new(()),
            turn: tokio::sync::Mutex::new(()),
        }
    }

    /// All entries; reads the directory.
    fn entries(&self) -> BTreeMap<String, Entry> {
        let folders = std::fs::read_dir(&self.directory).into_iter().flatten();
        let found = folders.flatten().filter_map(|folder| {
            // A folder whose name is no id cannot be asked for.
            let id: ArtifactId = folder.file_name().to_str()?.parse().ok()?;
            Some((id.to_string(), Entry::of(folder.path())?))
        });
        let mut entries: BTreeMap<String, Entry> = found.collect();
        let trained = self.trained().into_iter();
        entries.extend(trained.map(|(id, trained)| (id, trained.entry)));
        entries.extend(self.named.clone());
        entries
    }

    /// Whether an id is that of something that no job has trained.
    pub fn is_own(&self, id: &str) -> bool {
        self.named.contains_key(id) || Entry::of(self.directory.join(id)).is_some()
    }

    /// What jobs have trained, by id.
    pub fn trained(&self) -> BTreeMap<String, Trained> {
        let trained = self.trained.read().unwrap_or_else(PoisonError::into_inner);
        trained.clone()
    }

    /// Makes a job's result an entry.
    pub fn add_trained(&self, id: &str, trained: Trained) {
        let mut all = self.trained.write().unwrap_or_else(PoisonError::into_inner);
        all.insert(id.to_owned(), trained);
    }

    /// Leaves a job's result out from now on.
    pub fn remove_trained(&self, id: &str) {
        let mut all = self.trained.write().unwrap_or_else(PoisonError::into_inner);
        all.remove(id);
    }

    /// The directory of a model: its own, or its half of a pair's.
    pub fn model_directory(&self, inventory: &Inventory, id: &str) -> Option<PathBuf> {
        let entries = self.entries();
        if let Some(entry) = entries
            .get(id)
            .filter(|entry| entry.kind == EntryKind::Model)
        {
            return Some(entry.directory.clone());
        }
        let bridge = inventory.bridges_of(id).next()?;
        let pair = entries.get(bridge.record.id.as_str())?;
        let half = match bridge.record.dense.as_str() == id {
            true => "dense",
            false => "sparse",
        };
        Some(pair.directory.join(half))
    }

    /// The directory of a pair.
    pub fn pair_directory(&self, id: &str) -> Option<PathBuf> {
        let entry = self.entries().remove(id)?;
        (entry.kind == EntryKind::Pair).then_some(entry.directory)
    }

    fn find(&self, id: &str) -> Result<Entry, ApiError> {
        let mut entries = self.entries();
        entries.remove(id).ok_or_else(|| {
            let near = suggestion(&shortened(id), entries.keys().map(String::as_str));
            ApiError::NotFound {
                message: format!("the library has no {:?}{near}", shortened(id)),
                param: None,
                code: Some("entry_not_found"),
            }
        })
    }
}

impl Entry {
    /// What `directory` holds, if it is something to serve.
    pub fn of(directory: PathBuf) -> Option<Self> {
        let kind = match (
            PairFiles::is_pair(&directory),
            ModelFiles::is_model(&directory),
        ) {
            (true, _) => EntryKind::Pair,
            (false, true) => EntryKind::Model,
            (false, false) => return None,
        };
        Some(Entry { kind, directory })
    }
}

fn is_loaded(inventory: &Inventory, id: &str, kind: EntryKind) -> bool {
    match kind {
        EntryKind::Pair => inventory.bridges.contains_key(id),
        EntryKind::Model => inventory.models.contains_key(id),
    }
}

fn described(inventory: &Inventory, id: String, kind: EntryKind) -> LibraryEntry {
    LibraryEntry {
        loaded: is_loaded(inventory, &id, kind),
        id,
        object: "library.entry",
        kind,
    }
}

/// Everything that can be served.
#[utoipa::path(get, path = "/v1/library", tag = "library", operation_id = "listLibrary",
    responses((status = 200, description = "The entries", body = LibraryList)))]
pub async fn list(state: web::Data<State>) -> Result<HttpResponse, ApiError> {
    let looked = state.clone();
    let entries = web::block(move || looked.library.entries()).await;
    let entries = entries.map_err(ApiError::internal)?;
    let inventory = state.inventory();
    let data = entries
        .into_iter()
        .map(|(id, entry)| described(&inventory, id, entry.kind))
        .collect();
    Ok(HttpResponse::Ok().json(LibraryList {
        object: "list",
        data,
    }))
}

/// Takes an entry into service. One that is served already stays as it is.
#[utoipa::path(post, path = "/v1/library/{id}/load", tag = "library", operation_id = "loadEntry",
    params(("id" = String, Path, description = "The entry's id", example = "tinypython")),
    responses(
        (status = 200, description = "It is served", body = LibraryEntry),
        (status = 400, description = "Its files are damaged, do not fit what is served, hold a pickle, or do not give a token \
            within `limits.max_model_mib` and `limits.load_seconds`: code `cannot_load`",
            body = ErrorBody),
        (status = 404, description = "The library has no such entry: code `entry_not_found`", body = ErrorBody),
        (status = 503, description = "The engine is not running", body = ErrorBody)
    ))]
pub async fn load(
    state: web::Data<State>,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    let id = id.into_inner();
    let kind = take_into_service(&state, &id).await?;
    Ok(HttpResponse::Ok().json(described(&state.inventory(), id, kind)))
}

/// Serves an entry from now on, if it is not served already. It is tried in a process of its own and then read before
/// the library's turn is taken: files that take long hold up nobody but those who wait to read others.
pub async fn take_into_service(state: &web::Data<State>, id: &str) -> Result<EntryKind, ApiError> {
    let _reading = state.library.reading.lock().await;
    let entry = found(state, id).await?;
    if is_loaded(&state.inventory(), id, entry.kind) {
        return Ok(entry.kind);
    }
    let tried = state.trial.run(&entry.directory, false).await;
    tried.map_err(|failure| match failure {
        TrialFailure::System(error) => ApiError::internal(error),
        failure => cannot_load(failure),
    })?;
    let limits = ReadLimits {
        model_bytes: state.limits.max_model_bytes(),
        pickles: false,
    };
    let (name, of) = (id.to_owned(), entry.clone());
    let reading = web::block(move || read(&name, &of, limits));
    // What was tried may have been replaced since.
    let limit = Duration::from_secs(state.limits.load_seconds);
    let read = tokio::time::timeout(limit, reading)
        .await
        .map_err(|_| cannot_load(TrialFailure::Slow(limit.as_secs())))?
        .map_err(ApiError::internal)??;
    let _turn = state.library.turn.lock().await;
    // A job's result may have been deleted meanwhile.
    let still = found(state, id).await?;
    if still.directory != entry.directory {
        return Err(cannot_load("it was replaced while it was read"));
    }
    take_in(state, id, &entry, read).await?;
    tracing::info!(id, "taken into service");
    Ok(entry.kind)
}

/// The entry of that id; looks at the library's directory on a thread that may wait.
async fn found(state: &web::Data<State>, id: &str) -> Result<Entry, ApiError> {
    let (state, id) = (state.clone(), id.to_owned());
    let found = web::block(move || state.library.find(&id)).await;
    found.map_err(ApiError::internal)?
}

/// Serves what a job has trained no more. Requests in progress keep what they began with, which goes with the last.
pub async fn give_up(state: &State, id: &str) -> Result<(), ApiError> {
    let _turn = state.library.turn.lock().await;
    if let Some(trained) = state.library.trained().remove(id) {
        if is_loaded(&state.inventory(), id, trained.entry.kind) {
            take_out(state, id, trained.entry.kind).await?;
            tracing::info!(id, "taken out of service");
        }
        state.features.remove_bridge(id, &trained.artifact);
        state.library.remove_trained(id);
    }
    Ok(())
}

/// Takes an entry out of service. A pair takes those of its models along that no other pair joins. Requests in
/// progress are finished.
#[utoipa::path(post, path = "/v1/library/{id}/unload", tag = "library", operation_id = "unloadEntry",
    params(("id" = String, Path, description = "The entry's id", example = "tinypython")),
    responses(
        (status = 200, description = "It is not served any more", body = LibraryEntry),
        (status = 400, description = "A pair that is served needs the model: code `in_use`", body = ErrorBody),
        (status = 404, description = "The library has no such entry: code `entry_not_found`", body = ErrorBody),
        (status = 503, description = "The engine is not running", body = ErrorBody)
    ))]
pub async fn unload(
    state: web::Data<State>,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    let id = id.into_inner();
    let _turn = state.library.turn.lock().await;
    let entry = found(&state, &id).await?;
    let inventory = state.inventory();
    if is_loaded(&inventory, &id, entry.kind) {
        if entry.kind == EntryKind::Model
            && let Some(bridge) = inventory.bridges_of(&id).next()
        {
            let message = format!(
                "bridge {:?} joins it: unload that",
                bridge.record.id.as_str()
            );
            return Err(ApiError::Invalid {
                message,
                param: None,
                code: Some("in_use"),
            });
        }
        take_out(&state, &id, entry.kind).await?;
        tracing::info!(id, "taken out of service");
    }
    Ok(HttpResponse::Ok().json(described(&state.inventory(), id, entry.kind)))
}

fn read(id: &str, entry: &Entry, limits: ReadLimits) -> Result<Read, ApiError> {
    let read = match entry.kind {
        EntryKind::Pair => {
            LoadedPair::read_within(&entry.directory, limits).map(|pair| Read::Pair(Box::new(pair)))
        }
        EntryKind::Model => LoadedModel::read_within(id, &entry.directory, limits)
            .map(|model| Read::Model(Box::new(model))),
    };
    let read = read.map_err(cannot_load)?;
    match &read {
        Read::Pair(pair) if pair.bridge.id != id => Err(cannot_load(format!(
            "the bridge in folder {id:?} calls itself {:?}",
            pair.bridge.id
        ))),
        Read::Pair(_) | Read::Model(_) => Ok(read),
    }
}

fn cannot_load(problem: impl std::fmt::Display) -> ApiError {
    ApiError::Invalid {
        message: problem.to_string(),
        param: None,
        code: Some("cannot_load"),
    }
}

/// First what stands beside the engine, then the engine, last the inventory: nothing is offered before it is there.
async fn take_in(state: &State, id: &str, entry: &Entry, read: Read) -> Result<(), ApiError> {
    let directory = entry.directory.clone();
    let before = state.inventory();
    let provenance = BTreeMap::from([(id.to_owned(), provenance(&entry.directory))]);
    let read = match read {
        Read::Pair(mut pair) => {
            let shipped = pair.bridge.features.values().cloned().collect();
            let trained = state.library.trained().remove(id);
            let of = trained.as_ref().map(|trained| trained.artifact.as_str());
            let opened = state.features.open_bridge(id, of, shipped);
            opened.map_err(cannot_load)?;
            let checked = check_features(&state.features, id, &pair.sparse.transformer.config);
            checked.map_err(|error| {
                state.features.close_bridge(id);
                cannot_load(error)
            })?;
            pair.bridge.features = state.features.by_name(id);
            state.examiner.open(id, &entry.directory);
            Read::Pair(pair)
        }
        model => model,
    };
    let inserted = state
        .engine
        .with_catalog(move |catalog| -> Result<Inventory, CatalogError> {
            match read {
                Read::Pair(pair) => catalog.insert_pair(*pair, &directory)?,
                Read::Model(model) => catalog.insert_model(*model, &directory)?,
            }
            Ok(Inventory::of(catalog, &before, &provenance))
        });
    let inserted = inserted
        .await
        .map_err(ApiError::from)
        .and_then(|inserted| inserted.map_err(cannot_load));
    match inserted {
        Ok(inventory) => {
            state.serve(inventory);
            Ok(())
        }
        Err(error) => {
            forget(state, id, entry.kind);
            Err(error)
        }
    }
}

async fn take_out(state: &State, id: &str, kind: EntryKind) -> Result<(), ApiError> {
    let before = state.inventory();
    let name = id.to_owned();
    let removed = state.engine.with_catalog(move |catalog: &mut Catalog| {
        match kind {
            EntryKind::Pair => catalog.remove_pair(&name),
            EntryKind::Model => catalog.remove_model(&name),
        }
        Inventory::of(catalog, &before, &BTreeMap::new())
    });
    state.serve(removed.await?);
    forget(state, id, kind);
    Ok(())
}

/// Lets go of what stands beside the engine.
fn forget(state: &State, id: &str, kind: EntryKind) {
    if kind == EntryKind::Pair {
        state.features.close_bridge(id);
        state.examiner.close(id);
    }
}

/// A directory without a manifest is served all the same; it only cannot say where it came from.
pub fn provenance(directory: &Path) -> Provenance {
    Manifest::read(directory)
        .map(|manifest| manifest.provenance)
        .unwrap_or_default()
}
