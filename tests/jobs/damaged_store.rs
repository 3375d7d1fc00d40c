//! A job store whose file is damaged, or is no database at all.

use std::path::Path;

use causeway::jobs::store::jobs::Query;
use causeway::jobs::store::{Store, StoreError};

use sqlx::{Connection, Executor, SqliteConnection};

use crate::installation::job;

async fn looked_at(file: &Path) -> Result<(), StoreError> {
    let store = Store::open(None, file).await?;
    store
        .jobs(&Query {
            limit: 10,
            ..Query::default()
        })
        .await?;
    store.create(&job("another", 4)).await?;
    Ok(())
}

#[tokio::test]
async fn a_damaged_database_is_called_that_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("jobs.sqlite");
    {
        let store = Store::open(None, &file).await.unwrap();
        for number in 0..40 {
            store
                .create(&job(&format!("job-{number}"), 4))
                .await
                .unwrap();
        }
    }
    looked_at(&file).await.unwrap();
    // What stands in the log goes into the file; else the log would mend the damage.
    let mut connection = SqliteConnection::connect(&format!("sqlite://{}", file.display()))
        .await
        .unwrap();
    let merge = "PRAGMA wal_checkpoint(TRUNCATE)";
    connection.execute(merge).await.unwrap();
    connection.close().await.unwrap();
    let whole = std::fs::read(&file).unwrap();
    let mut beyond_the_header = whole.clone();
    beyond_the_header[4096..].fill(0x5a);
    for damaged in [
        b"this is no database, however often it is read. ".repeat(200),
        beyond_the_header,
    ] {
        for other in ["jobs.sqlite-wal", "jobs.sqlite-shm"] {
            let _ = std::fs::remove_file(folder.path().join(other));
        }
        std::fs::write(&file, damaged).unwrap();
        let told = looked_at(&file).await.unwrap_err();
        assert!(matches!(told, StoreError::Damaged(_)), "{told}");
        let told = told.to_string();
        assert!(
            told.contains("jobs.sqlite") && told.contains("from a copy"),
            "{told}"
        );
    }
    for other in ["jobs.sqlite-wal", "jobs.sqlite-shm"] {
        let _ = std::fs::remove_file(folder.path().join(other));
    }
    std::fs::write(&file, whole).unwrap();
    let store = Store::open(None, &file).await.unwrap();
    assert!(store.job_count().await.unwrap() >= 40);
}

/// Nobody listens there: that is said, not that a pool's time was up.
#[tokio::test]
async fn a_database_that_is_not_there_is_called_that() {
    let port = {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().port()
    };
    let url = format!("postgres://somebody@127.0.0.1:{port}/nothing");
    let told = Store::open(Some(&url), Path::new("unused"))
        .await
        .unwrap_err();
    assert!(told.to_string().contains("refused"), "{told}");
}
