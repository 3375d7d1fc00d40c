//! What results are called: a name is one job's from its creation until the job ends without a result, or its result is
//! deleted.

use sqlx::Transaction;
use sqlx::any::Any;

use super::StoreError;
use crate::jobs::spec::JobSpec;

/// Takes what the result is to be called.
pub(super) async fn take_names(
    transaction: &mut Transaction<'_, Any>,
    job: &str,
    spec: &JobSpec,
) -> Result<(), StoreError> {
    for name in spec.names() {
        let taken =
            sqlx::query("INSERT INTO names (name, job) VALUES ($1, $2) ON CONFLICT DO NOTHING")
                .bind(&name)
                .bind(job)
                .execute(&mut **transaction)
                .await?;
        if taken.rows_affected() == 0 {
            return Err(StoreError::NameTaken(name));
        }
    }
    Ok(())
}

/// Leaves what a job's result is, or was to be, called to others.
pub(super) async fn free_names(
    transaction: &mut Transaction<'_, Any>,
    job: &str,
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM names WHERE job = $1")
        .bind(job)
        .execute(&mut **transaction)
        .await?;
    Ok(())
}
