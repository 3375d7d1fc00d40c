//! What happened to a job: events and checkpoints, numbered within it.

use sqlx::any::Any;
use sqlx::{Row, Transaction};

use super::{Store, StoreError, json, text};
use crate::jobs::job::{CheckpointRecord, Event, Level, NewEvent};

/// Keeps events that are not there yet, in their order, numbered on from the last.
pub(super) async fn insert(
    store: &Store,
    transaction: &mut Transaction<'_, Any>,
    job: &str,
    events: &[NewEvent],
) -> Result<(), StoreError> {
    for event in events {
        let metrics = match &event.metrics {
            Some(metrics) => text(metrics)?,
            None => String::new(),
        };
        sqlx::query(store.statement(
            "INSERT INTO events (job, number, key, created_at, level, message, metrics) \
             SELECT $1, COALESCE(MAX(number), 0) + 1, $2, {now}, $3, $4, $5 FROM events WHERE job = $1 \
             ON CONFLICT DO NOTHING",
        ))
        .bind(job)
        .bind(&event.key)
        .bind(event.level.as_str())
        .bind(&event.message)
        .bind(metrics)
        .execute(&mut **transaction)
        .await?;
    }
    Ok(())
}

/// Which events come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    OldestFirst,
    NewestFirst,
}

impl Store {
    /// Up to `limit` events that come after the one numbered `after` in this order.
    pub async fn events(
        &self,
        job: &str,
        order: Order,
        after: Option<i64>,
        limit: usize,
    ) -> Result<Vec<Event>, StoreError> {
        let (query, beginning) = match order {
            Order::OldestFirst => (
                "SELECT number, created_at, level, message, metrics FROM events WHERE job = $1 AND number > $2 \
                 ORDER BY number LIMIT $3",
                0,
            ),
            Order::NewestFirst => (
                "SELECT number, created_at, level, message, metrics FROM events WHERE job = $1 AND number < $2 \
                 ORDER BY number DESC LIMIT $3",
                i64::MAX,
            ),
        };
        let after = after.unwrap_or(beginning);
        let rows = sqlx::query(query)
            .bind(job)
            .bind(after)
            .bind(limit as i64)
            .fetch_all(self.pool().await?)
            .await?;
        let event = |row: &sqlx::any::AnyRow| {
            let metrics: String = row.try_get(4)?;
            Ok(Event {
                number: row.try_get(0)?,
                created_at: row.try_get(1)?,
                level: match row.try_get::<String, _>(2)?.as_str() {
                    "error" => Level::Error,
                    "warn" => Level::Warn,
                    _ => Level::Info,
                },
                message: row.try_get(3)?,
                metrics: (!metrics.is_empty()).then(|| json(&metrics)).transpose()?,
            })
        };
        rows.iter().map(event).collect()
    }

    /// How often work on a job was interrupted since it last got further.
    pub async fn interruptions(&self, job: &str) -> Result<i64, StoreError> {
        let row = sqlx::query(
            "SELECT COUNT(*) FROM events WHERE job = $1 AND key LIKE '%:interrupted' AND number > \
             (SELECT COALESCE(MAX(number), 0) FROM events WHERE job = $1 AND key LIKE 'checkpoint:%')",
        )
        .bind(job)
        .fetch_one(self.pool().await?)
        .await?;
        Ok(row.try_get(0)?)
    }

    /// All checkpoints that were written, oldest first.
    pub async fn checkpoints(&self, job: &str) -> Result<Vec<CheckpointRecord>, StoreError> {
        let rows = sqlx::query(
            "SELECT step, created_at, metrics FROM checkpoints WHERE job = $1 ORDER BY step",
        )
        .bind(job)
        .fetch_all(self.pool().await?)
        .await?;
        let record = |row: &sqlx::any::AnyRow| {
            Ok(CheckpointRecord {
                step: row.try_get(0)?,
                created_at: row.try_get(1)?,
                metrics: json(&row.try_get::<String, _>(2)?)?,
            })
        };
        rows.iter().map(record).collect()
    }
}
