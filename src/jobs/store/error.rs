//! Why the store did not do it, told apart by what the databases report.

use sqlx::migrate::MigrateError;
use sqlx::postgres::PgDatabaseError;
use sqlx::sqlite::SqliteError;

use crate::artifacts::is_full;
use crate::jobs::job::{Status, Wish};

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the job store: {0}")]
    Database(sqlx::Error),
    #[error("the job store: {0}")]
    Migration(MigrateError),
    #[error("the job store: {0}")]
    System(#[from] std::io::Error),
    /// The database has no room, or no leave for more of it.
    #[error(
        "the job store takes nothing in, its disk is full or may not be written any further: {0}"
    )]
    Full(sqlx::Error),
    /// The SQLite file is damaged, or no SQLite file at all.
    #[error(
        "the job store is damaged or no SQLite database: {0}. Restore jobs.sqlite in data_dir from a copy; or move it \
         (with jobs.sqlite-wal and jobs.sqlite-shm) and the folder of artifacts away, to begin without jobs, uploaded \
         files and trained models"
    )]
    Damaged(sqlx::Error),
    #[error("the job store holds what cannot be read: {0}")]
    Unreadable(String),
    /// The lease has lapsed and somebody else has the job, or the job has ended.
    #[error("the job is no longer this worker's")]
    Lost,
    #[error("there is no such job")]
    NoSuchJob,
    #[error("a job that is {from} cannot be asked to {wish}", wish = wish.as_str())]
    Refused { wish: Wish, from: Status },
    #[error("the idempotency key belongs to a job with another request")]
    OtherRequest,
    #[error("{0:?} is the name of another job's result")]
    NameTaken(String),
    #[error("what the job would go on from is not kept any more; create it anew")]
    GivenUp,
    #[error("a job that is {0} is still to be worked on; cancel it first")]
    NotEnded(Status),
    #[error("the job's result {0:?} is still there; delete that model first")]
    HasResult(String),
}

impl StoreError {
    /// There was no room.
    pub fn is_full(&self) -> bool {
        match self {
            StoreError::Full(_) => true,
            StoreError::System(error) => is_full(error),
            _ => false,
        }
    }
}

/// SQLite's result codes, of which the lowest byte says what kind a further one is of.
mod sqlite {
    pub const KIND: i32 = 0xff;
    pub const CORRUPT: i32 = 11;
    pub const FULL: i32 = 13;
    pub const NOT_A_DATABASE: i32 = 26;
    /// A write failed: other reasons than ENOSPC for want of room come so.
    pub const WRITE_FAILED: i32 = 10 | 3 << 8;
    /// The file that connections share could not be made longer.
    pub const SHARED_MEMORY_SIZE: i32 = 10 | 19 << 8;
}

/// PostgreSQL's `disk_full`.
const POSTGRES_FULL: &str = "53100";

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let sqlx::Error::Database(reported) = &error else {
            return StoreError::Database(error);
        };
        let code = reported.code().unwrap_or_default();
        if reported.try_downcast_ref::<SqliteError>().is_some() {
            let code: i32 = code.parse().unwrap_or(0);
            return match (code, code & sqlite::KIND) {
                (sqlite::WRITE_FAILED | sqlite::SHARED_MEMORY_SIZE, _) | (_, sqlite::FULL) => {
                    StoreError::Full(error)
                }
                (_, sqlite::CORRUPT | sqlite::NOT_A_DATABASE) => StoreError::Damaged(error),
                _ => StoreError::Database(error),
            };
        }
        let full =
            reported.try_downcast_ref::<PgDatabaseError>().is_some() && code == POSTGRES_FULL;
        match full {
            true => StoreError::Full(error),
            false => StoreError::Database(error),
        }
    }
}

impl From<MigrateError> for StoreError {
    fn from(error: MigrateError) -> Self {
        match error {
            MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => error.into(),
            error => StoreError::Migration(error),
        }
    }
}
