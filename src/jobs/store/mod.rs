//! Where jobs are kept: SQLite, or PostgreSQL where several machines work on them.
//!
//! - [`jobs`]: what callers do: create, look, wish. - [`claims`]: what workers do: take, renew, tell, finish; each write
//!   names its attempt and fails with [`StoreError::Lost`] when another has begun. - [`events`] and [`files`]: their
//!   records. - [`artifacts`]: the records of what is in the artifact store, and who needs it.
//!
//! Both databases run the same statements. Times are the database's own, so that leases do not depend on the clocks of
//! workers.

pub mod artifacts;
pub mod claims;
pub mod events;
pub mod files;
pub mod jobs;

use std::path::Path;
use std::time::Duration;

use sqlx::any::AnyPoolOptions;
use sqlx::{AnyPool, AssertSqlSafe, Executor, Row};

use super::job::{Milliseconds, Wish};
use crate::settings::Settings;

/// How long a statement waits for another process's.
const PATIENCE: Duration = Duration::from_secs(20);
const CONNECTIONS: u32 = 4;

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the job store: {0}")]
    Database(#[from] sqlx::Error),
    #[error("the job store: {0}")]
    Migration(#[from] sqlx::migrate::MigrateError),
    #[error("the job store: {0}")]
    System(#[from] std::io::Error),
    #[error("the job store holds what cannot be read: {0}")]
    Unreadable(String),
    /// The lease has lapsed and somebody else has the job, or the job has ended.
    #[error("the job is no longer this worker's")]
    Lost,
    #[error("there is no such job")]
    NoSuchJob,
    #[error("a job that is {from} cannot be asked to {wish}", wish = wish.as_str())]
    Refused {
        wish: Wish,
        from: super::job::Status,
    },
    #[error("the idempotency key belongs to a job with another request")]
    OtherRequest,
    #[error("{0:?} is the name of another job's result")]
    NameTaken(String),
    #[error("what the job would go on from is not kept any more; create it anew")]
    GivenUp,
}

/// The jobs of one installation.
#[derive(Debug, Clone)]
pub struct Store {
    pool: AnyPool,
    dialect: Dialect,
}

/// What the two databases say differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Sqlite,
    Postgres,
}

impl Dialect {
    /// Milliseconds since 1970.
    fn now(self) -> &'static str {
        match self {
            Dialect::Sqlite => "CAST(unixepoch('subsec') * 1000 AS BIGINT)",
            Dialect::Postgres => "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)",
        }
    }

    /// After a selection that is to be changed: others do not wait for it, they take the next. SQLite has one writer.
    fn skip_locked(self) -> &'static str {
        match self {
            Dialect::Sqlite => "",
            Dialect::Postgres => "FOR UPDATE SKIP LOCKED",
        }
    }

    /// After a selection that must still be so when the statement ends.
    fn locked(self) -> &'static str {
        match self {
            Dialect::Sqlite => "",
            Dialect::Postgres => "FOR UPDATE",
        }
    }
}

impl Store {
    /// Opens the store that the settings name.
    pub async fn of(settings: &Settings) -> Result<Self, StoreError> {
        let url = &settings.jobs.database;
        let url = (!url.is_empty()).then_some(url.as_str());
        Self::open(url, &settings.data_dir.join("jobs.sqlite")).await
    }

    /// Opens the database at `url` (`postgres://...`), or the SQLite file at `file` where there is none, and brings its
    /// tables up to date.
    pub async fn open(url: Option<&str>, file: &Path) -> Result<Self, StoreError> {
        sqlx::any::install_default_drivers();
        let (url, dialect) = match url {
            Some(url) => (url.to_owned(), Dialect::Postgres),
            None => (
                format!("sqlite://{}?mode=rwc", file.display()),
                Dialect::Sqlite,
            ),
        };
        let options = AnyPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(PATIENCE);
        let pool = options
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    if dialect == Dialect::Sqlite {
                        connection
                            .execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 20000")
                            .await?;
                    }
                    Ok(())
                })
            })
            .connect(&url)
            .await?;
        // Two processes that open a new SQLite file at once: one is told that the tables are there.
        let migrations = sqlx::migrate!("src/jobs/migrations");
        if migrations.run(&pool).await.is_err() {
            migrations.run(&pool).await?;
        }
        Ok(Store { pool, dialect })
    }

    /// The database's time.
    pub async fn now(&self) -> Result<Milliseconds, StoreError> {
        let row = sqlx::query(self.statement("SELECT {now}"))
            .fetch_one(&self.pool)
            .await?;
        Ok(row.try_get(0)?)
    }

    /// A statement in which `{now}` is the database's time, and `{skip_locked}` and `{locked}` what selections end in.
    fn statement(&self, text: &'static str) -> AssertSqlSafe<String> {
        let text = text.replace("{now}", self.dialect.now());
        let text = text.replace("{locked}", self.dialect.locked());
        // Nothing but constants was put in.
        AssertSqlSafe(text.replace("{skip_locked}", self.dialect.skip_locked()))
    }
}

/// A JSON text of a column.
fn json<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::Unreadable(error.to_string()))
}

/// The JSON of a column.
fn text(value: &impl serde::Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Unreadable(error.to_string()))
}
