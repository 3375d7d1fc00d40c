//! The records of artifacts: which there are, who holds them, and which models they are.
//!
//! An artifact is kept as long as somebody holds it. One that nobody holds is still kept for a while: whoever writes one
//! holds it a moment later. Both ways of taking one up, finding it here and adding it, set its time, and removing one
//! looks at that time in the same statement, so that none is removed under the hands of its next holder.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sqlx::any::Any;
use sqlx::{Row, Transaction};

use super::names::free_names;
use super::{Store, StoreError, json, milliseconds, text};
use crate::artifacts::manifest::FileRecord;
use crate::jobs::job::Milliseconds;
use crate::jobs::spec::ResultKind;

/// What the kinds of results are called in the database.
const MODEL: &str = "model";
const CIRCUIT: &str = "circuit";

pub(super) fn name_of_kind(kind: ResultKind) -> &'static str {
    match kind {
        ResultKind::Model => MODEL,
        ResultKind::Circuit => CIRCUIT,
    }
}

/// A folder of files in the object store.
#[derive(Debug, Clone, PartialEq)]
pub struct Artifact {
    /// Of the list of its files.
    pub sha256: String,
    /// What the keys of its files begin with.
    pub place: String,
    pub files: Vec<FileRecord>,
}

/// Who holds an artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder<'a> {
    Model(&'a str),
    File(&'a str),
    /// A job, by its id and the part that the artifact plays in it.
    Job(&'a str, &'a str),
}

impl Holder<'_> {
    fn columns(&self) -> (&'static str, &str, &str) {
        match self {
            Holder::Model(id) => ("model", id, ""),
            Holder::File(id) => ("file", id, ""),
            Holder::Job(id, part) => ("job", id, part),
        }
    }
}

/// A job's result that is kept: a model, a pair or a circuit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainedModel {
    /// What it is served under.
    pub id: String,
    /// The job it came of.
    pub job: String,
    /// The sha256 of its artifact.
    pub artifact: String,
    pub created_at: Milliseconds,
    pub kind: ResultKind,
}

impl Store {
    /// The artifact with that content, if there is one; it is then not removed for a while.
    pub async fn take_up(&self, sha256: &str) -> Result<Option<Artifact>, StoreError> {
        let row = sqlx::query(self.statement(
            "UPDATE artifacts SET used_at = {now} WHERE sha256 = $1 RETURNING place, files",
        ))
        .bind(sha256)
        .fetch_optional(self.pool().await?)
        .await?;
        let artifact = row.map(|row| {
            Ok(Artifact {
                sha256: sha256.to_owned(),
                place: row.try_get(0)?,
                files: json(&row.try_get::<String, _>(1)?)?,
            })
        });
        artifact.transpose()
    }

    /// Keeps the record of an artifact whose files are in their place, if they have been put there since `began` and in
    /// at most `longest`. The place of the one with the same content, where somebody was faster.
    pub async fn add_artifact(
        &self,
        artifact: &Artifact,
        began: Milliseconds,
        longest: Duration,
    ) -> Result<Option<String>, StoreError> {
        let row = sqlx::query(self.statement(
            "INSERT INTO artifacts (sha256, place, files, used_at) \
             SELECT $1, $2, $3, {now} WHERE $5 = 0 OR {now} - $4 <= $5 \
             ON CONFLICT (sha256) DO UPDATE SET used_at = {now} RETURNING place",
        ))
        .bind(&artifact.sha256)
        .bind(&artifact.place)
        .bind(text(&artifact.files)?)
        .bind(began)
        .bind(milliseconds(longest))
        .fetch_optional(self.pool().await?)
        .await?;
        Ok(row.map(|row| row.try_get(0)).transpose()?)
    }

    /// What tells these jobs from those of another database.
    pub async fn installation(&self) -> Result<String, StoreError> {
        sqlx::query("INSERT INTO installation (number, id) VALUES (1, $1) ON CONFLICT DO NOTHING")
            .bind(uuid::Uuid::new_v4().to_string())
            .execute(self.pool().await?)
            .await?;
        let row = sqlx::query("SELECT id FROM installation")
            .fetch_one(self.pool().await?)
            .await?;
        Ok(row.try_get(0)?)
    }

    /// What a job holds, by the parts it plays there.
    pub async fn held_by_job(&self, job: &str) -> Result<BTreeMap<String, String>, StoreError> {
        let rows =
            sqlx::query("SELECT part, artifact FROM holds WHERE kind = 'job' AND owner = $1")
                .bind(job)
                .fetch_all(self.pool().await?)
                .await?;
        let held = rows
            .iter()
            .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
        held.collect()
    }

    /// What an uploaded file holds.
    pub async fn held_by_file(&self, file: &str) -> Result<Option<String>, StoreError> {
        let row = sqlx::query("SELECT artifact FROM holds WHERE kind = 'file' AND owner = $1")
            .bind(file)
            .fetch_optional(self.pool().await?)
            .await?;
        Ok(row.map(|row| row.try_get(0)).transpose()?)
    }

    /// All trained models and pairs, oldest first.
    pub async fn models(&self) -> Result<Vec<TrainedModel>, StoreError> {
        self.results_of(ResultKind::Model).await
    }

    /// All circuits that jobs have found, oldest first.
    pub async fn circuits(&self) -> Result<Vec<TrainedModel>, StoreError> {
        self.results_of(ResultKind::Circuit).await
    }

    async fn results_of(&self, kind: ResultKind) -> Result<Vec<TrainedModel>, StoreError> {
        let results = self.results().await?.into_iter();
        Ok(results.filter(|result| result.kind == kind).collect())
    }

    /// The results of all jobs, oldest first.
    pub async fn results(&self) -> Result<Vec<TrainedModel>, StoreError> {
        let rows = sqlx::query(
            "SELECT models.id, models.job, holds.artifact, models.created_at, models.kind FROM models \
             JOIN holds ON holds.kind = 'model' AND holds.owner = models.id ORDER BY models.created_at, models.id",
        )
        .fetch_all(self.pool().await?)
        .await?;
        let model = |row: &sqlx::any::AnyRow| {
            Ok(TrainedModel {
                id: row.try_get(0)?,
                job: row.try_get(1)?,
                artifact: row.try_get(2)?,
                created_at: row.try_get(3)?,
                kind: match row.try_get::<String, _>(4)?.as_str() {
                    CIRCUIT => ResultKind::Circuit,
                    _ => ResultKind::Model,
                },
            })
        };
        rows.iter().map(model).collect()
    }

    /// Deletes a job's result, of whatever kind, and frees its names; whether there was one.
    pub async fn remove_model(&self, id: &str) -> Result<bool, StoreError> {
        let mut transaction = self.pool().await?.begin().await?;
        let row = sqlx::query("DELETE FROM models WHERE id = $1 RETURNING job")
            .bind(id)
            .fetch_optional(&mut *transaction)
            .await?;
        if let Some(row) = &row {
            let_go(&mut transaction, "model", id).await?;
            free_names(&mut transaction, &row.try_get::<String, _>(0)?).await?;
        }
        transaction.commit().await?;
        Ok(row.is_some())
    }

    /// Lets go of what jobs hold that failed so long ago.
    pub async fn give_failed_jobs_up(&self, after: Duration) -> Result<u64, StoreError> {
        let done = sqlx::query(self.statement(
            "DELETE FROM holds WHERE kind = 'job' AND owner IN \
             (SELECT id FROM jobs WHERE status = 'failed' AND finished_at <= {now} - $1 {locked})",
        ))
        .bind(milliseconds(after))
        .execute(self.pool().await?)
        .await?;
        Ok(done.rows_affected())
    }

    /// Removes the records of what nobody holds and nobody has taken up for so long; their places.
    pub async fn remove_unheld(&self, unused_for: Duration) -> Result<Vec<String>, StoreError> {
        let rows = sqlx::query(self.statement(
            "DELETE FROM artifacts WHERE used_at <= {now} - $1 \
             AND NOT EXISTS (SELECT 1 FROM holds WHERE holds.artifact = artifacts.sha256) RETURNING place",
        ))
        .bind(milliseconds(unused_for))
        .fetch_all(self.pool().await?)
        .await?;
        Ok(rows
            .iter()
            .map(|row| row.try_get(0))
            .collect::<Result<_, _>>()?)
    }

    /// Removes the record of one artifact, unless somebody holds it; its place.
    pub async fn remove_if_unheld(&self, sha256: &str) -> Result<Option<String>, StoreError> {
        let row = sqlx::query(
            "DELETE FROM artifacts WHERE sha256 = $1 \
             AND NOT EXISTS (SELECT 1 FROM holds WHERE holds.artifact = artifacts.sha256) RETURNING place",
        )
        .bind(sha256)
        .fetch_optional(self.pool().await?)
        .await?;
        Ok(row.map(|row| row.try_get(0)).transpose()?)
    }

    /// The places of all artifacts.
    pub async fn places(&self) -> Result<BTreeSet<String>, StoreError> {
        let rows = sqlx::query("SELECT place FROM artifacts")
            .fetch_all(self.pool().await?)
            .await?;
        Ok(rows
            .iter()
            .map(|row| row.try_get(0))
            .collect::<Result<_, _>>()?)
    }
}

/// Makes `holder` hold an artifact, instead of what it held before.
pub(super) async fn hold(
    transaction: &mut Transaction<'_, Any>,
    holder: Holder<'_>,
    artifact: &str,
) -> Result<(), StoreError> {
    let (kind, owner, part) = holder.columns();
    sqlx::query(
        "INSERT INTO holds (kind, owner, part, artifact) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (kind, owner, part) DO UPDATE SET artifact = $4",
    )
    .bind(kind)
    .bind(owner)
    .bind(part)
    .bind(artifact)
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

/// Lets go of everything that an owner holds.
pub(super) async fn let_go(
    transaction: &mut Transaction<'_, Any>,
    kind: &str,
    owner: &str,
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM holds WHERE kind = $1 AND owner = $2")
        .bind(kind)
        .bind(owner)
        .execute(&mut **transaction)
        .await?;
    Ok(())
}
