//! Training through the API: `/v1/files` and `/v1/fine_tuning/jobs`, in OpenAI's shapes.
//!
//! [`files`] takes training text, [`creation`] asks for trainings ([`prunable`]: what a pruning needs) and [`handlers`] are the routes of those that there are,
//! with their bodies in [`request`] and [`response`]; [`events`] follows a job, [`plot`] draws it, [`archive`] hands its result out. Beside the requests, [`background`] carries
//! jobs out, where the settings say so, and [`trained`] serves their results: those of other machines' workers too.

pub mod archive;
pub mod background;
pub mod creation;
pub mod events;
pub mod files;
pub mod handlers;
pub mod paging;
pub mod plot;
pub mod prunable;
pub mod request;
pub mod response;
pub mod trained;
pub mod uploads;

use super::ApiError;
use crate::jobs::store::StoreError;

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NoSuchJob => ApiError::NotFound {
                message: error.to_string(),
                param: None,
                code: Some("job_not_found"),
            },
            StoreError::Refused { .. } => ApiError::Invalid {
                message: error.to_string(),
                param: None,
                code: Some("wrong_status"),
            },
            StoreError::OtherRequest => ApiError::invalid_with_code(
                "idempotency-key",
                "idempotency_key_reused",
                error.to_string(),
            ),
            StoreError::NameTaken(_) => {
                ApiError::invalid_with_code("suffix", "already_exists", error.to_string())
            }
            StoreError::GivenUp | StoreError::NotEnded(_) => ApiError::Invalid {
                message: error.to_string(),
                param: None,
                code: Some("wrong_status"),
            },
            StoreError::HasResult(_) => ApiError::Invalid {
                message: error.to_string(),
                param: None,
                code: Some("in_use"),
            },
            error if error.is_full() => {
                tracing::error!(%error, "there is no room");
                ApiError::DiskFull
            }
            StoreError::Damaged(_) => {
                tracing::error!(%error, "the job store");
                ApiError::NotReady(error.to_string())
            }
            StoreError::Database(_)
            | StoreError::Full(_)
            | StoreError::System(_)
            | StoreError::Migration(_)
            | StoreError::Unreadable(_)
            | StoreError::Lost => ApiError::internal(error),
        }
    }
}
