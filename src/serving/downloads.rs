//! Models that a running server brings from a hub: each a visible operation with a thread of its own, a bounded number
//! of them at a time.
//!
//! An operation lives as long as the server; what has arrived of it stays for a while, and goes on when the same model
//! is asked for again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde::Serialize;
use tokio::sync::Semaphore;
use utoipa::ToSchema;
use uuid::Uuid;

use super::arrivals::{ArrivalError, Arrivals};
use super::service::{Service, ServiceError};
use super::snapshot::unix_seconds;
use crate::artifacts::{ArtifactId, is_full};
use crate::documented::documented;
use crate::hub::HubError;
use crate::hub::fetch::{KEPT, WantedModel, fetch, forget_old, remove_folder};
use crate::hub::transfer::{Stop, Transfer};
use crate::settings::{HubSettings, Settings};

/// Operations that have ended and are still told of.
const MOST_ENDED: usize = 100;

documented! {
    /// How far the bringing of a model is.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
    #[serde(rename_all = "snake_case")]
    pub enum DownloadStatus {
        /// Others are brought first.
        Queued,
        /// Its files are on their way.
        Downloading,
        /// Its files are there; a process of its own lets it answer.
        Trying,
        /// It is in the library and served.
        Succeeded,
        /// `error` says why.
        Failed,
        /// Somebody has ended it.
        Cancelled,
    }
}

/// The downloads of one server. Dropped, it ends them.
pub struct Downloads {
    shared: Arc<Shared>,
}

struct Shared {
    hub: HubSettings,
    arrivals: Arrivals,
    /// Oldest first.
    all: Mutex<VecDeque<Arc<Download>>>,
    turns: Semaphore,
}

/// One model that is or was being brought.
#[derive(Debug)]
pub struct Download {
    pub id: String,
    /// What it will be called in the library.
    pub entry: ArtifactId,
    pub wanted: WantedModel,
    /// Seconds since 1970.
    pub created: u64,
    pub transfer: Transfer,
    state: Mutex<DownloadState>,
}

/// Where a download is now.
#[derive(Debug, Clone)]
pub struct DownloadState {
    pub status: DownloadStatus,
    pub failure: Option<DownloadFailure>,
    /// Seconds since 1970.
    pub finished: Option<u64>,
}

/// Why a model was not brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DownloadFailure {
    /// For programs.
    pub code: &'static str,
    pub message: String,
}

/// Why no download begins, or none is found.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    #[error("this server brings no models from a hub (hub.enabled)")]
    Disabled,
    #[error(transparent)]
    Offline(HubError),
    #[error("there is {0:?} already, or it is being brought; give another id")]
    Taken(ArtifactId),
    #[error("{0} is being brought already, by operation {1:?}")]
    UnderWay(String, String),
    #[error("as many downloads wait as may (hub.max_waiting = {most}); try again in a few minutes")]
    Full { most: usize },
    #[error(
        "there is no operation {0:?}; those that ended long ago, or before the server's start, are forgotten"
    )]
    None(String),
    #[error("it is {0}: only what has not ended can be cancelled")]
    Ended(&'static str),
    #[error(transparent)]
    Thread(#[from] std::io::Error),
}

impl Downloads {
    pub fn new(settings: &Settings) -> Self {
        let arrivals = Arrivals::new(settings);
        forget_old(&arrivals.downloads(), KEPT);
        Downloads {
            shared: Arc::new(Shared {
                hub: settings.hub.clone(),
                arrivals,
                all: Mutex::default(),
                turns: Semaphore::new(settings.hub.at_once),
            }),
        }
    }

    /// Begins to bring a model, which `service` then serves as `entry`. Looks at the library's directory.
    pub fn begin(
        &self,
        service: &Arc<Service>,
        wanted: WantedModel,
        entry: ArtifactId,
    ) -> Result<Arc<Download>, DownloadError> {
        let hub = &self.shared.hub;
        if !hub.enabled {
            return Err(DownloadError::Disabled);
        }
        if hub.offline {
            return Err(DownloadError::Offline(HubError::Offline));
        }
        let known = service.library.entries().contains_key(entry.as_str())
            || service.snapshot().models.contains_key(entry.as_str());
        if known || self.shared.arrivals.check_free(&entry).is_err() {
            return Err(DownloadError::Taken(entry));
        }
        let mut all = self.shared.all();
        let under_way: Vec<&Arc<Download>> = all
            .iter()
            .filter(|download| !download.has_ended())
            .collect();
        if under_way.iter().any(|download| download.entry == entry) {
            return Err(DownloadError::Taken(entry));
        }
        if let Some(same) = under_way.iter().find(|download| download.wanted == wanted) {
            return Err(DownloadError::UnderWay(
                wanted.id.to_string(),
                same.id.clone(),
            ));
        }
        if under_way.len() >= hub.at_once.saturating_add(hub.max_waiting) {
            return Err(DownloadError::Full {
                most: hub.max_waiting,
            });
        }
        let ended = all.len() - under_way.len();
        let download = Arc::new(Download {
            id: format!("libop-{}", Uuid::new_v4().simple()),
            entry,
            wanted,
            created: unix_seconds(),
            transfer: Transfer::default(),
            state: Mutex::new(DownloadState {
                status: DownloadStatus::Queued,
                failure: None,
                finished: None,
            }),
        });
        let (shared, begun, service) = (
            self.shared.clone(),
            download.clone(),
            Arc::downgrade(service),
        );
        std::thread::Builder::new()
            .name("hub-download".to_owned())
            .spawn(move || shared.carry_out(&begun, &service))?;
        if ended >= MOST_ENDED
            && let Some(oldest) = all.iter().position(|download| download.has_ended())
        {
            all.remove(oldest);
        }
        all.push_back(download.clone());
        Ok(download)
    }

    /// All that are remembered, the newest first.
    pub fn all(&self) -> Vec<Arc<Download>> {
        self.shared.all().iter().rev().cloned().collect()
    }

    pub fn find(&self, id: &str) -> Result<Arc<Download>, DownloadError> {
        let all = self.shared.all();
        let found = all.iter().find(|download| download.id == id);
        let unknown = || DownloadError::None(id.chars().take(80).collect());
        found.cloned().ok_or_else(unknown)
    }

    /// Ends a download; what has arrived of it is forgotten.
    pub fn cancel(&self, id: &str) -> Result<Arc<Download>, DownloadError> {
        let download = self.find(id)?;
        match download.state().status {
            DownloadStatus::Succeeded => return Err(DownloadError::Ended("succeeded")),
            DownloadStatus::Failed => return Err(DownloadError::Ended("failed")),
            _ => download.transfer.stop(Stop::Forget),
        }
        Ok(download)
    }

    /// Ends all because the server stops; what has arrived stays for a while.
    pub fn stop(&self) {
        for download in self.shared.all().iter() {
            download.transfer.stop(Stop::Keep);
        }
    }
}

impl Drop for Downloads {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Download {
    pub fn state(&self) -> DownloadState {
        self.changing().clone()
    }

    fn changing(&self) -> MutexGuard<'_, DownloadState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_ended(&self) -> bool {
        self.changing().finished.is_some()
    }

    fn end(&self, outcome: Result<(), Ended>) {
        let mut state = self.changing();
        state.finished = Some(unix_seconds());
        (state.status, state.failure) = match outcome {
            Ok(()) => (DownloadStatus::Succeeded, None),
            Err(Ended::Cancelled) => (DownloadStatus::Cancelled, None),
            Err(Ended::Failed(failure)) => (DownloadStatus::Failed, Some(failure)),
        };
    }
}

/// How a download ended that did not succeed.
enum Ended {
    Cancelled,
    Failed(DownloadFailure),
}

impl From<HubError> for Ended {
    fn from(error: HubError) -> Self {
        match error {
            HubError::Stopped => Ended::Cancelled,
            error => Ended::Failed(DownloadFailure {
                code: error.code(),
                message: error.to_string(),
            }),
        }
    }
}

impl From<ArrivalError> for Ended {
    fn from(error: ArrivalError) -> Self {
        let code = match &error {
            ArrivalError::Refused(_) => "cannot_load",
            ArrivalError::Taken(_) => "already_exists",
            ArrivalError::Artifact(error) if is_full(error) => "disk_full",
            ArrivalError::Artifact(_) | ArrivalError::Failed(_) => "internal_error",
        };
        Ended::Failed(DownloadFailure {
            code,
            message: error.to_string(),
        })
    }
}

impl From<ServiceError> for Ended {
    fn from(error: ServiceError) -> Self {
        let code = match &error {
            ServiceError::CannotLoad(_) | ServiceError::InUse { .. } => "cannot_load",
            ServiceError::NoEntry { .. } => "entry_not_found",
            ServiceError::Engine(_) | ServiceError::Failed(_) => "internal_error",
        };
        Ended::Failed(DownloadFailure {
            code,
            message: format!("it is in the library, but could not be taken into service: {error}"),
        })
    }
}

impl Shared {
    fn all(&self) -> MutexGuard<'_, VecDeque<Arc<Download>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn carry_out(&self, download: &Download, service: &Weak<Service>) {
        let outcome = self.brought(download, service);
        let (id, entry) = (&download.id, &download.entry);
        match &outcome {
            Ok(()) => tracing::info!(id, %entry, "a model was brought from a hub"),
            Err(Ended::Cancelled) => tracing::info!(id, %entry, "a download was cancelled"),
            Err(Ended::Failed(failure)) => {
                let problem = &failure.message;
                tracing::warn!(id, %entry, problem, "a model could not be brought from a hub");
            }
        }
        download.end(outcome);
    }

    fn brought(&self, download: &Download, service: &Weak<Service>) -> Result<(), Ended> {
        let failed = |problem: String| {
            Ended::Failed(DownloadFailure {
                code: "internal_error",
                message: problem,
            })
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| failed(error.to_string()))?;
        let transfer = &download.transfer;
        let turn = runtime.block_on(async {
            tokio::select! {
                turn = self.turns.acquire() => turn.ok(),
                () = transfer.stopped() => None,
            }
        });
        transfer.go_on()?;
        let _turn = turn.ok_or_else(|| failed("its turn did not come".to_owned()))?;
        download.changing().status = DownloadStatus::Downloading;
        let downloads = self.arrivals.downloads();
        forget_old(&downloads, KEPT);
        let fetched = fetch(&self.hub, &download.wanted, &downloads, transfer)?;
        download.changing().status = DownloadStatus::Trying;
        let folder = fetched.folder.clone();
        runtime.block_on(async {
            let (wanted, entry) = (&download.wanted, &download.entry);
            let arriving = self
                .arrivals
                .from_hub(&self.hub.endpoint, wanted, fetched, entry);
            let arrival = tokio::select! {
                biased;
                arrival = arriving => arrival?,
                () = transfer.stopped() => {
                    if transfer.is_forgotten() {
                        remove_folder(&folder).map_err(|error| failed(error.to_string()))?;
                    }
                    return Err(Ended::Cancelled);
                }
            };
            let service = service.upgrade().ok_or(Ended::Cancelled)?;
            service.take_arrival(entry.as_str(), arrival.tried).await?;
            Ok(())
        })
    }
}
