//! What callers do with jobs.

use std::collections::BTreeMap;

use sqlx::any::AnyRow;
use sqlx::{AssertSqlSafe, Row};

use super::artifacts::{Holder, hold, let_go};
use super::names::{free_names, take_names};
use super::{Store, StoreError, json, text};
use crate::jobs::job::{Job, Status, Step, Wish};
use crate::jobs::spec::JobSpec;

/// A job that is yet to be kept.
#[derive(Debug, Clone)]
pub struct NewJob {
    pub id: String,
    pub spec: JobSpec,
    pub metadata: BTreeMap<String, String>,
    /// Empty for none.
    pub idempotency_key: String,
    /// Of the request's body: one key is for one request.
    pub request_sha256: String,
    /// The artifacts that it begins with, by the parts they play.
    pub inputs: BTreeMap<&'static str, String>,
}

/// Which jobs a list has, newest first.
#[derive(Debug, Clone, Default)]
pub struct Query {
    /// The id of the job before the first.
    pub after: Option<String>,
    pub limit: usize,
    /// All of these must be so.
    pub metadata: BTreeMap<String, String>,
}

/// How all jobs stand.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tally {
    pub states: BTreeMap<Status, u64>,
    pub running: Vec<Training>,
}

/// A training that runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Training {
    pub job: String,
    pub step: i64,
    pub trained_tokens: i64,
    /// What its last step told, by name.
    pub terms: BTreeMap<String, f64>,
}

const COLUMNS: &str = "id, spec, metadata, status, wish, attempt, created_at, started_at, finished_at, step, \
    trained_tokens, step_milliseconds, failure, results, evaluation";

impl Store {
    /// Keeps a job. The same idempotency key and request give the job they gave before.
    pub async fn create(&self, new: &NewJob) -> Result<Job, StoreError> {
        if let Some(job) = self
            .created_before(&new.idempotency_key, &new.request_sha256)
            .await?
        {
            return Ok(job);
        }
        let mut transaction = self.pool().await?.begin().await?;
        let inserted = sqlx::query(self.statement(
            "INSERT INTO jobs (id, spec, output, metadata, idempotency_key, request_sha256, status, wish, attempt, \
             worker, lease_until, created_at, started_at, finished_at, step, trained_tokens, step_milliseconds, \
             failure, results, evaluation) \
             VALUES ($1, $2, $3, $4, $5, $6, 'queued', '', 0, '', 0, {now}, 0, 0, 0, 0, 0, '', '{}', '') \
             ON CONFLICT DO NOTHING",
        ))
        .bind(&new.id)
        .bind(text(&new.spec)?)
        .bind(new.spec.output.as_str())
        .bind(text(&new.metadata)?)
        .bind(&new.idempotency_key)
        .bind(&new.request_sha256)
        .execute(&mut *transaction)
        .await?;
        if inserted.rows_affected() == 1 {
            take_names(&mut transaction, &new.id, &new.spec).await?;
            for (part, artifact) in &new.inputs {
                hold(&mut transaction, Holder::Job(&new.id, part), artifact).await?;
            }
            transaction.commit().await?;
            return self.job(&new.id).await?.ok_or(StoreError::NoSuchJob);
        }
        // The same request has come twice at once.
        transaction.rollback().await?;
        let before = self.created_before(&new.idempotency_key, &new.request_sha256);
        before.await?.ok_or(StoreError::NoSuchJob)
    }

    /// The job that the same request with this idempotency key has given before.
    pub async fn created_before(
        &self,
        idempotency_key: &str,
        request_sha256: &str,
    ) -> Result<Option<Job>, StoreError> {
        let row = sqlx::query(
            "SELECT id, request_sha256 FROM jobs WHERE idempotency_key = $1 AND $1 <> ''",
        )
        .bind(idempotency_key)
        .fetch_optional(self.pool().await?)
        .await?;
        match row {
            None => Ok(None),
            Some(row) if row.try_get::<String, _>(1)? != request_sha256 => {
                Err(StoreError::OtherRequest)
            }
            Some(row) => self.job(&row.try_get::<String, _>(0)?).await,
        }
    }

    /// A job by its id.
    pub async fn job(&self, id: &str) -> Result<Option<Job>, StoreError> {
        let query = format!("SELECT {COLUMNS} FROM jobs WHERE id = $1");
        let row = sqlx::query(AssertSqlSafe(query))
            .bind(id)
            .fetch_optional(self.pool().await?)
            .await?;
        row.as_ref().map(job_of).transpose()
    }

    /// A page of jobs, and whether there are more.
    pub async fn jobs(&self, query: &Query) -> Result<(Vec<Job>, bool), StoreError> {
        let after = match &query.after {
            Some(id) => {
                let row = sqlx::query("SELECT created_at FROM jobs WHERE id = $1")
                    .bind(id)
                    .fetch_optional(self.pool().await?)
                    .await?;
                let row = row.ok_or(StoreError::NoSuchJob)?;
                (row.try_get::<i64, _>(0)?, id.clone())
            }
            None => (i64::MAX, String::new()),
        };
        let sql = format!(
            "SELECT {COLUMNS} FROM jobs WHERE created_at < $1 OR (created_at = $1 AND id < $2) \
             ORDER BY created_at DESC, id DESC"
        );
        let mut rows = sqlx::query(AssertSqlSafe(sql))
            .bind(after.0)
            .bind(after.1)
            .fetch(self.pool().await?);
        let mut found = Vec::new();
        while let Some(row) = futures_util::TryStreamExt::try_next(&mut rows).await? {
            // Before the rest of the row is looked at: a recipe is long.
            if !query.metadata.is_empty() {
                let own: BTreeMap<String, String> = json(&row.try_get::<String, _>("metadata")?)?;
                let wanted = |(key, value): (&String, &String)| own.get(key) == Some(value);
                if !query.metadata.iter().all(wanted) {
                    continue;
                }
            }
            if found.len() == query.limit {
                return Ok((found, true));
            }
            found.push(job_of(&row)?);
        }
        Ok((found, false))
    }

    /// How many jobs are kept.
    pub async fn job_count(&self) -> Result<u64, StoreError> {
        let row = sqlx::query("SELECT COUNT(*) FROM jobs")
            .fetch_one(self.pool().await?)
            .await?;
        Ok(row.try_get::<i64, _>(0)?.unsigned_abs())
    }

    /// Forgets a job that has ended and has no result any more, with its events and checkpoints.
    pub async fn remove_job(&self, id: &str) -> Result<(), StoreError> {
        let job = self.job(id).await?.ok_or(StoreError::NoSuchJob)?;
        if !job.status.is_final() {
            return Err(StoreError::NotEnded(job.status));
        }
        let mut transaction = self.pool().await?.begin().await?;
        let model = sqlx::query("SELECT id FROM models WHERE job = $1")
            .bind(id)
            .fetch_optional(&mut *transaction)
            .await?;
        if let Some(model) = model {
            return Err(StoreError::HasResult(model.try_get(0)?));
        }
        // A failed job may be resumed at this moment; then it stays as it is.
        let ended = sqlx::query("UPDATE jobs SET wish = '' WHERE id = $1 AND status = $2")
            .bind(id)
            .bind(job.status.as_str())
            .execute(&mut *transaction)
            .await?;
        if ended.rows_affected() == 0 {
            return Err(StoreError::NotEnded(Status::Queued));
        }
        let_go(&mut transaction, "job", id).await?;
        free_names(&mut transaction, id).await?;
        for statement in [
            "DELETE FROM events WHERE job = $1",
            "DELETE FROM checkpoints WHERE job = $1",
            "DELETE FROM jobs WHERE id = $1",
        ] {
            sqlx::query(statement)
                .bind(id)
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// How all jobs stand.
    pub async fn tally(&self) -> Result<Tally, StoreError> {
        let mut tally = Tally::default();
        let states = sqlx::query("SELECT status, COUNT(*) FROM jobs GROUP BY status");
        for row in states.fetch_all(self.pool().await?).await? {
            let status: String = row.try_get(0)?;
            let count: i64 = row.try_get(1)?;
            let status = status.parse().map_err(StoreError::Unreadable)?;
            tally.states.insert(status, count.unsigned_abs());
        }
        let running = sqlx::query(
            "SELECT id, step, trained_tokens, COALESCE((SELECT metrics FROM events \
                WHERE job = jobs.id AND key LIKE 'step:%' ORDER BY number DESC LIMIT 1), '{}') \
             FROM jobs WHERE status = 'running' ORDER BY created_at",
        );
        for row in running.fetch_all(self.pool().await?).await? {
            let terms: BTreeMap<String, serde_json::Value> = json(&row.try_get::<String, _>(3)?)?;
            let numbers = terms.into_iter().filter(|(name, _)| name != "step");
            tally.running.push(Training {
                job: row.try_get(0)?,
                step: row.try_get(1)?,
                trained_tokens: row.try_get(2)?,
                terms: numbers
                    .filter_map(|(name, value)| Some((name, value.as_f64()?)))
                    .collect(),
            });
        }
        Ok(tally)
    }

    /// Asks something of a job: done at once where no worker has it, else by its worker.
    pub async fn wish(&self, id: &str, wish: Wish) -> Result<Job, StoreError> {
        loop {
            let job = self.job(id).await?.ok_or(StoreError::NoSuchJob)?;
            let statement = match wish.step(job.status) {
                Step::Nothing => return Ok(job),
                Step::Refused => {
                    return Err(StoreError::Refused {
                        wish,
                        from: job.status,
                    });
                }
                Step::Becomes(status) => self.become_status(id, job.status, status).await?,
                Step::Asks => self.ask(id, wish).await?,
            };
            // Else it has changed since; look again.
            if statement == 1 {
                return self.job(id).await?.ok_or(StoreError::NoSuchJob);
            }
        }
    }

    async fn become_status(&self, id: &str, from: Status, to: Status) -> Result<u64, StoreError> {
        let mut transaction = self.pool().await?.begin().await?;
        let done = sqlx::query(self.statement(
            "UPDATE jobs SET status = $3, wish = '', failure = '', finished_at = CASE WHEN $4 = 1 THEN {now} ELSE 0 END \
             WHERE id = $1 AND status = $2",
        ))
        .bind(id)
        .bind(from.as_str())
        .bind(to.as_str())
        .bind(i64::from(to.is_final()))
        .execute(&mut *transaction)
        .await?;
        if done.rows_affected() == 1 && to == Status::Cancelled {
            let_go(&mut transaction, "job", id).await?;
            free_names(&mut transaction, id).await?;
        }
        if done.rows_affected() == 1 && from == Status::Failed && to == Status::Queued {
            let row = sqlx::query("SELECT COUNT(*) FROM holds WHERE kind = 'job' AND owner = $1")
                .bind(id)
                .fetch_one(&mut *transaction)
                .await?;
            if row.try_get::<i64, _>(0)? == 0 {
                return Err(StoreError::GivenUp);
            }
            // A job that failed has left its names, and another may have taken them.
            let job = self.job(id).await?.ok_or(StoreError::NoSuchJob)?;
            take_names(&mut transaction, id, &job.spec).await?;
        }
        transaction.commit().await?;
        Ok(done.rows_affected())
    }

    async fn ask(&self, id: &str, wish: Wish) -> Result<u64, StoreError> {
        let wish = if wish == Wish::Resume {
            ""
        } else {
            wish.as_str()
        };
        let done = sqlx::query("UPDATE jobs SET wish = $2 WHERE id = $1 AND status = 'running'")
            .bind(id)
            .bind(wish)
            .execute(self.pool().await?)
            .await?;
        Ok(done.rows_affected())
    }
}

/// A job of a row with [`COLUMNS`].
fn job_of(row: &AnyRow) -> Result<Job, StoreError> {
    let column = |name: &str| row.try_get::<String, _>(name);
    let number = |name: &str| row.try_get::<i64, _>(name);
    let time = |name: &str| number(name).map(|time| (time > 0).then_some(time));
    let status: String = column("status")?;
    let (failure, evaluation) = (column("failure")?, column("evaluation")?);
    let step_milliseconds: f64 = row.try_get("step_milliseconds")?;
    Ok(Job {
        id: column("id")?,
        spec: json(&column("spec")?)?,
        metadata: json(&column("metadata")?)?,
        status: status.parse().map_err(StoreError::Unreadable)?,
        wish: match column("wish")?.as_str() {
            "cancel" => Some(Wish::Cancel),
            "pause" => Some(Wish::Pause),
            _ => None,
        },
        attempt: number("attempt")?,
        created_at: number("created_at")?,
        started_at: time("started_at")?,
        finished_at: time("finished_at")?,
        step: number("step")?,
        trained_tokens: number("trained_tokens")?,
        step_milliseconds: (step_milliseconds > 0.0).then_some(step_milliseconds),
        failure: (!failure.is_empty()).then(|| json(&failure)).transpose()?,
        results: json(&column("results")?)?,
        evaluation: (!evaluation.is_empty())
            .then(|| json(&evaluation))
            .transpose()?,
    })
}
