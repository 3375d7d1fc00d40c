//! What workers do with jobs. Every write but the first names the claim it is made under.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use sqlx::any::Any;
use sqlx::{Row, Transaction};

use super::artifacts::{Holder, hold, let_go, name_of_kind};
use super::events::insert;
use super::names::free_names;
use super::{Store, StoreError, json, milliseconds, text};
use crate::jobs::job::{Claim, Failure, Job, NewEvent, Status, Wish};
use crate::jobs::spec::JobSpec;

/// What a step of a training has come to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Position {
    /// Steps done.
    pub step: i64,
    pub trained_tokens: i64,
    pub step_milliseconds: f64,
}

/// Checkpoints that a job holds.
const HELD: usize = 2;
const STEP: &str = "step-";

/// A checkpoint that was written.
#[derive(Debug)]
pub struct NewCheckpoint<'a> {
    /// Steps done.
    pub step: i64,
    pub metrics: &'a Value,
    /// None where it has been replaced by a newer one meanwhile.
    pub artifact: Option<&'a str>,
}

/// How a worker leaves a job.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The artifact is the result's, which is published by this.
    Succeeded {
        results: BTreeMap<String, f64>,
        evaluation: Option<Value>,
        artifact: String,
    },
    Failed(Failure),
    Cancelled,
    Paused,
    /// To be taken again, by whomever.
    Released,
}

impl Outcome {
    fn status(&self) -> Status {
        match self {
            Outcome::Succeeded { .. } => Status::Succeeded,
            Outcome::Failed(_) => Status::Failed,
            Outcome::Cancelled => Status::Cancelled,
            Outcome::Paused => Status::Paused,
            Outcome::Released => Status::Queued,
        }
    }
}

impl Store {
    /// The oldest job that waits, or whose worker has let its lease lapse; it is this worker's for `lease`.
    pub async fn claim(
        &self,
        worker: &str,
        lease: Duration,
    ) -> Result<Option<(Claim, Job)>, StoreError> {
        let row = sqlx::query(self.statement(
            "UPDATE jobs SET status = 'running', attempt = attempt + 1, worker = $1, lease_until = {now} + $2, \
             started_at = CASE WHEN started_at = 0 THEN {now} ELSE started_at END \
             WHERE id = (SELECT id FROM jobs \
                WHERE status = 'queued' OR (status = 'running' AND lease_until < {now}) \
                ORDER BY created_at, id LIMIT 1 {skip_locked}) \
             RETURNING id, attempt",
        ))
        .bind(worker)
        .bind(milliseconds(lease))
        .fetch_optional(self.pool().await?)
        .await?;
        let Some(row) = row else {
            return Ok(None);
        };
        let claim = Claim {
            job: row.try_get(0)?,
            attempt: row.try_get(1)?,
            worker: worker.to_owned(),
        };
        let job = self.job(&claim.job).await?.ok_or(StoreError::NoSuchJob)?;
        Ok(Some((claim, job)))
    }

    /// Keeps the job for another `lease`, and tells what has been asked of its worker.
    pub async fn renew(&self, claim: &Claim, lease: Duration) -> Result<Option<Wish>, StoreError> {
        let mut transaction = self.pool().await?.begin().await?;
        let wish = self.hold(&mut transaction, claim, lease).await?;
        transaction.commit().await?;
        Ok(wish)
    }

    /// Keeps events and the position they lead to.
    pub async fn tell(
        &self,
        claim: &Claim,
        lease: Duration,
        events: &[NewEvent],
        position: Option<Position>,
    ) -> Result<Option<Wish>, StoreError> {
        let mut transaction = self.pool().await?.begin().await?;
        let wish = self.hold(&mut transaction, claim, lease).await?;
        insert(self, &mut transaction, &claim.job, events).await?;
        if let Some(position) = position {
            sqlx::query(
                "UPDATE jobs SET step = $2, trained_tokens = $3, step_milliseconds = $4 WHERE id = $1",
            )
            .bind(&claim.job)
            .bind(position.step)
            .bind(position.trained_tokens)
            .bind(position.step_milliseconds)
            .execute(&mut *transaction)
            .await?;
        }
        transaction.commit().await?;
        Ok(wish)
    }

    /// Keeps the record of a checkpoint; one that is there already stays. With its artifact, the job holds that and the
    /// one before; what it does so no more is told.
    pub async fn checkpoint(
        &self,
        claim: &Claim,
        lease: Duration,
        checkpoint: &NewCheckpoint<'_>,
    ) -> Result<Vec<String>, StoreError> {
        let mut transaction = self.pool().await?.begin().await?;
        self.hold(&mut transaction, claim, lease).await?;
        sqlx::query(self.statement(
            "INSERT INTO checkpoints (job, step, created_at, metrics) VALUES ($1, $2, {now}, $3) ON CONFLICT DO NOTHING",
        ))
        .bind(&claim.job)
        .bind(checkpoint.step)
        .bind(text(checkpoint.metrics)?)
        .execute(&mut *transaction)
        .await?;
        let mut dropped = Vec::new();
        if let Some(artifact) = checkpoint.artifact {
            let part = part_of_step(checkpoint.step);
            hold(&mut transaction, Holder::Job(&claim.job, &part), artifact).await?;
            dropped = let_old_checkpoints_go(&mut transaction, &claim.job).await?;
        }
        transaction.commit().await?;
        Ok(dropped)
    }

    /// Ends the claim, with the event that `farewell` makes of how. A success publishes the result in the same step. What
    /// has been asked meanwhile is done now, and the outcome that this leads to is returned.
    pub async fn finish(
        &self,
        claim: &Claim,
        outcome: Outcome,
        farewell: impl Fn(&Outcome) -> NewEvent,
    ) -> Result<Outcome, StoreError> {
        let mut transaction = self.pool().await?.begin().await?;
        let wish = self.hold(&mut transaction, claim, Duration::ZERO).await?;
        let outcome = match (wish, outcome) {
            (Some(Wish::Cancel), Outcome::Paused | Outcome::Released) => Outcome::Cancelled,
            (Some(Wish::Pause), Outcome::Released) => Outcome::Paused,
            // Taken back.
            (None, Outcome::Paused) => Outcome::Released,
            (_, outcome) => outcome,
        };
        let status = outcome.status();
        let failure = match &outcome {
            Outcome::Failed(failure) => text(failure)?,
            _ => String::new(),
        };
        let (results, evaluation) = match &outcome {
            Outcome::Succeeded {
                results,
                evaluation,
                ..
            } => (text(results)?, evaluation.as_ref().map(text).transpose()?),
            _ => ("{}".to_owned(), None),
        };
        let event = [farewell(&outcome)];
        insert(self, &mut transaction, &claim.job, &event).await?;
        sqlx::query(self.statement(
            "UPDATE jobs SET status = $2, wish = '', worker = '', lease_until = 0, failure = $3, results = $4, \
             evaluation = $5, finished_at = CASE WHEN $6 = 1 THEN {now} ELSE 0 END WHERE id = $1",
        ))
        .bind(&claim.job)
        .bind(status.as_str())
        .bind(failure)
        .bind(results)
        .bind(evaluation.unwrap_or_default())
        .bind(i64::from(status.is_final()))
        .execute(&mut *transaction)
        .await?;
        if let Outcome::Succeeded { artifact, .. } = &outcome {
            let row = sqlx::query("SELECT spec FROM jobs WHERE id = $1")
                .bind(&claim.job)
                .fetch_one(&mut *transaction)
                .await?;
            let spec: JobSpec = json(&row.try_get::<String, _>(0)?)?;
            let row = sqlx::query(self.statement(
                "INSERT INTO models (id, job, kind, created_at) SELECT output, id, $2, {now} FROM jobs WHERE id = $1 \
                 RETURNING id",
            ))
            .bind(&claim.job)
            .bind(name_of_kind(spec.recipe.result_kind()))
            .fetch_one(&mut *transaction)
            .await?;
            let id: String = row.try_get(0)?;
            hold(&mut transaction, Holder::Model(&id), artifact).await?;
        }
        if matches!(status, Status::Succeeded | Status::Cancelled) {
            let_go(&mut transaction, "job", &claim.job).await?;
        }
        if matches!(status, Status::Failed | Status::Cancelled) {
            free_names(&mut transaction, &claim.job).await?;
        }
        transaction.commit().await?;
        Ok(outcome)
    }

    /// Begins a transaction's work: takes the job's row, if it is still the claim's.
    async fn hold(
        &self,
        transaction: &mut Transaction<'_, Any>,
        claim: &Claim,
        lease: Duration,
    ) -> Result<Option<Wish>, StoreError> {
        let row = sqlx::query(self.statement(
            "UPDATE jobs SET lease_until = {now} + $4 \
             WHERE id = $1 AND attempt = $2 AND worker = $3 AND status = 'running' RETURNING wish",
        ))
        .bind(&claim.job)
        .bind(claim.attempt)
        .bind(&claim.worker)
        .bind(milliseconds(lease))
        .fetch_optional(&mut **transaction)
        .await?;
        let row = row.ok_or(StoreError::Lost)?;
        Ok(match row.try_get::<String, _>(0)?.as_str() {
            "cancel" => Some(Wish::Cancel),
            "pause" => Some(Wish::Pause),
            _ => None,
        })
    }
}

/// What a job calls the checkpoint after `step` steps among what it holds.
fn part_of_step(step: i64) -> String {
    format!("{STEP}{step}")
}

/// The steps of the checkpoints among what a job holds, with their artifacts.
pub fn held_checkpoints(held: &BTreeMap<String, String>) -> BTreeMap<i64, String> {
    let steps = held.iter().filter_map(|(part, artifact)| {
        let step = part.strip_prefix(STEP)?.parse().ok()?;
        Some((step, artifact.clone()))
    });
    steps.collect()
}

/// Leaves a job the newest checkpoints; the artifacts of the others.
async fn let_old_checkpoints_go(
    transaction: &mut Transaction<'_, Any>,
    job: &str,
) -> Result<Vec<String>, StoreError> {
    let rows = sqlx::query("SELECT part, artifact FROM holds WHERE kind = 'job' AND owner = $1")
        .bind(job)
        .fetch_all(&mut **transaction)
        .await?;
    let held = rows
        .iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
        .collect::<Result<_, sqlx::Error>>()?;
    let mut dropped = Vec::new();
    for (step, artifact) in held_checkpoints(&held).into_iter().rev().skip(HELD) {
        sqlx::query("DELETE FROM holds WHERE kind = 'job' AND owner = $1 AND part = $2")
            .bind(job)
            .bind(part_of_step(step))
            .execute(&mut **transaction)
            .await?;
        dropped.push(artifact);
    }
    Ok(dropped)
}
