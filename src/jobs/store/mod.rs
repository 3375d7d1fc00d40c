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
pub mod error;
pub mod events;
pub mod files;
pub mod jobs;
mod names;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::any::AnyPoolOptions;
use sqlx::{AnyConnection, AnyPool, AssertSqlSafe, Connection, Executor, Row};
use tokio::sync::OnceCell;

pub use self::error::StoreError;
use super::job::Milliseconds;
use crate::settings::Settings;

/// How long a statement waits for another process's.
const PATIENCE: Duration = Duration::from_secs(20);
const CONNECTIONS: u32 = 4;
/// Before a database that is just starting is asked again.
const REST: Duration = Duration::from_millis(250);

/// How a connection to SQLite writes, and that it waits for others.
const AS_CAREFUL: &str = "PRAGMA synchronous = FULL; PRAGMA busy_timeout = 20000";

/// The jobs of one installation.
#[derive(Debug, Clone)]
pub struct Store {
    pool: AnyPool,
    dialect: Dialect,
    url: Arc<str>,
    /// Set once the tables are up to date.
    prepared: Arc<OnceCell<()>>,
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
    /// tables up to date. Where there is no room for that it is done when there is; until then everything asked of the
    /// store fails with [`StoreError::Full`].
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
                        // A pool makes connections anew, until its time is up, where this fails. What is wrong with the
                        // file the first statement says.
                        let set = connection.execute(AS_CAREFUL).await;
                        let _ = set.inspect_err(|error| tracing::warn!(%error, "the job store"));
                    }
                    Ok(())
                })
            })
            .connect_lazy(&url)?;
        let store = Store {
            pool,
            dialect,
            url: url.into(),
            prepared: Arc::default(),
        };
        match store.pool().await {
            Err(error) if error.is_full() => {
                tracing::error!(%error, "no job or file can be kept until there is room again");
            }
            prepared => drop(prepared?),
        }
        Ok(store)
    }

    /// The connections to a database whose tables are up to date.
    async fn pool(&self) -> Result<&AnyPool, StoreError> {
        self.prepared.get_or_try_init(|| self.prepare()).await?;
        Ok(&self.pool)
    }

    /// Brings the tables up to date, by a connection of its own: what fails here says why, where a pool would only say
    /// that its time is up.
    async fn prepare(&self) -> Result<(), StoreError> {
        let mut connection = self.connect().await?;
        if self.dialect == Dialect::Sqlite {
            connection.execute("PRAGMA busy_timeout = 20000").await?;
            connection.execute("PRAGMA journal_mode = WAL").await?;
        }
        // Two processes that open a new SQLite file at once: one is told that the tables are there.
        let migrations = sqlx::migrate!("src/jobs/migrations");
        let first = migrations.run_direct(None, &mut connection, false).await;
        if first.is_err() {
            migrations.run_direct(None, &mut connection, false).await?;
        }
        connection.close().await?;
        Ok(())
    }

    /// Waits for a database that is just starting.
    async fn connect(&self) -> Result<AnyConnection, sqlx::Error> {
        let begun = Instant::now();
        loop {
            let starting = match AnyConnection::connect(&self.url).await {
                Err(sqlx::Error::Io(error))
                    if error.kind() == std::io::ErrorKind::ConnectionRefused =>
                {
                    sqlx::Error::Io(error)
                }
                Err(sqlx::Error::Database(error)) if error.is_transient_in_connect_phase() => {
                    sqlx::Error::Database(error)
                }
                connected => return connected,
            };
            if begun.elapsed() > PATIENCE {
                return Err(starting);
            }
            tokio::time::sleep(REST).await;
        }
    }

    /// The database's time.
    pub async fn now(&self) -> Result<Milliseconds, StoreError> {
        let row = sqlx::query(self.statement("SELECT {now}"))
            .fetch_one(self.pool().await?)
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

fn milliseconds(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX / 4)
}
