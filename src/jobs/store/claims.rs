//! What workers do with jobs. Every write but the first names the claim it is made under.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use sqlx::any::Any;
use sqlx::{Row, Transaction};

use super::events::insert;
use super::{Store, StoreError, text};
use crate::jobs::job::{Claim, Failure, Job, NewEvent, Status, Wish};

/// What a step of a training has come to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Position {
    /// Steps done.
    pub step: i64,
    pub trained_tokens: i64,
    pub step_milliseconds: f64,
}

/// How a worker leaves a job.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    Succeeded {
        results: BTreeMap<String, f64>,
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
        .fetch_optional(&self.pool)
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
        let mut transaction = self.pool.begin().await?;
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
        let mut transaction = self.pool.begin().await?;
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

    /// Keeps the record of a checkpoint; one that is there already stays.
    pub async fn checkpoint(
        &self,
        claim: &Claim,
        lease: Duration,
        step: i64,
        metrics: &Value,
    ) -> Result<(), StoreError> {
        let mut transaction = self.pool.begin().await?;
        self.hold(&mut transaction, claim, lease).await?;
        sqlx::query(self.statement(
            "INSERT INTO checkpoints (job, step, created_at, metrics) VALUES ($1, $2, {now}, $3) ON CONFLICT DO NOTHING",
        ))
        .bind(&claim.job)
        .bind(step)
        .bind(text(metrics)?)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Ends the claim.
    pub async fn finish(
        &self,
        claim: &Claim,
        outcome: &Outcome,
        event: &NewEvent,
    ) -> Result<(), StoreError> {
        let status = outcome.status();
        let failure = match outcome {
            Outcome::Failed(failure) => text(failure)?,
            _ => String::new(),
        };
        let results = match outcome {
            Outcome::Succeeded { results } => text(results)?,
            _ => "{}".to_owned(),
        };
        let mut transaction = self.pool.begin().await?;
        self.hold(&mut transaction, claim, Duration::ZERO).await?;
        insert(
            self,
            &mut transaction,
            &claim.job,
            std::slice::from_ref(event),
        )
        .await?;
        sqlx::query(self.statement(
            "UPDATE jobs SET status = $2, wish = '', worker = '', lease_until = 0, failure = $3, results = $4, \
             finished_at = CASE WHEN $5 = 1 THEN {now} ELSE 0 END WHERE id = $1",
        ))
        .bind(&claim.job)
        .bind(status.as_str())
        .bind(failure)
        .bind(results)
        .bind(i64::from(status.is_final()))
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(())
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

fn milliseconds(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX / 4)
}
