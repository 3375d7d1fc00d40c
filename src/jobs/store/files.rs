//! The records of uploaded files.

use sqlx::Row;
use sqlx::any::AnyRow;

use super::artifacts::{Holder, hold, let_go};
use super::{Store, StoreError};
use crate::jobs::job::StoredFile;

impl Store {
    /// Keeps the record of a file, whose content is an artifact.
    pub async fn add_file(
        &self,
        file: &StoredFile,
        artifact: &str,
    ) -> Result<StoredFile, StoreError> {
        let mut transaction = self.pool().await?.begin().await?;
        let row = sqlx::query(self.statement(
            "INSERT INTO files (id, name, bytes, documents, sha256, created_at) VALUES ($1, $2, $3, $4, $5, {now}) \
             RETURNING id, name, bytes, documents, sha256, created_at",
        ))
        .bind(&file.id)
        .bind(&file.name)
        .bind(file.bytes)
        .bind(file.documents)
        .bind(&file.sha256)
        .fetch_one(&mut *transaction)
        .await?;
        hold(&mut transaction, Holder::File(&file.id), artifact).await?;
        transaction.commit().await?;
        file_of(&row)
    }

    /// How many files are kept, and their bytes together.
    pub async fn files_kept(&self) -> Result<(u64, u64), StoreError> {
        let row =
            sqlx::query("SELECT COUNT(*), CAST(COALESCE(SUM(bytes), 0) AS BIGINT) FROM files")
                .fetch_one(self.pool().await?)
                .await?;
        let number = |column: usize| row.try_get::<i64, _>(column).map(i64::unsigned_abs);
        Ok((number(0)?, number(1)?))
    }

    pub async fn file(&self, id: &str) -> Result<Option<StoredFile>, StoreError> {
        let row = sqlx::query(
            "SELECT id, name, bytes, documents, sha256, created_at FROM files WHERE id = $1",
        )
        .bind(id)
        .fetch_optional(self.pool().await?)
        .await?;
        row.as_ref().map(file_of).transpose()
    }

    /// All files, newest first.
    pub async fn files(&self) -> Result<Vec<StoredFile>, StoreError> {
        let rows = sqlx::query(
            "SELECT id, name, bytes, documents, sha256, created_at FROM files ORDER BY created_at DESC, id DESC",
        )
        .fetch_all(self.pool().await?)
        .await?;
        rows.iter().map(file_of).collect()
    }

    /// Whether there was such a file. Jobs that begin with it hold its content on.
    pub async fn remove_file(&self, id: &str) -> Result<bool, StoreError> {
        let mut transaction = self.pool().await?.begin().await?;
        let done = sqlx::query("DELETE FROM files WHERE id = $1")
            .bind(id)
            .execute(&mut *transaction)
            .await?;
        let_go(&mut transaction, "file", id).await?;
        transaction.commit().await?;
        Ok(done.rows_affected() == 1)
    }
}

fn file_of(row: &AnyRow) -> Result<StoredFile, StoreError> {
    Ok(StoredFile {
        id: row.try_get(0)?,
        name: row.try_get(1)?,
        bytes: row.try_get(2)?,
        documents: row.try_get(3)?,
        sha256: row.try_get(4)?,
        created_at: row.try_get(5)?,
    })
}
