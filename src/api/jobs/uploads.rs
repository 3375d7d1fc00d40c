//! Files that are being received: a folder for each until it is checked, and what all of them take together.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use tempfile::TempDir;
use tokio::sync::Semaphore;

use crate::api::ApiError;
use crate::jobs::store::Store;
use crate::settings::JobSettings;

/// Where uploads are until they are checked, and how much is coming in.
#[derive(Debug)]
pub struct Uploads {
    folder: PathBuf,
    /// Bytes that are coming in and are no file yet.
    receiving: AtomicU64,
    /// One file is read through at a time: it takes the memory of its longest line.
    pub checks: Semaphore,
}

impl Uploads {
    pub fn new(folder: PathBuf) -> Self {
        Uploads {
            folder,
            receiving: AtomicU64::new(0),
            checks: Semaphore::new(1),
        }
    }

    /// Begins to receive a file, if there may be another one.
    pub async fn begin(
        &self,
        store: &Store,
        settings: &JobSettings,
    ) -> Result<Upload<'_>, ApiError> {
        let (files, bytes) = store.files_kept().await?;
        if files >= settings.max_files {
            let most = settings.max_files;
            return Err(quota(format!(
                "there are {files} files, and {most} are kept (jobs.max_files); delete some first"
            )));
        }
        tokio::fs::create_dir_all(&self.folder)
            .await
            .map_err(ApiError::storage)?;
        Ok(Upload {
            uploads: self,
            folder: TempDir::new_in(&self.folder).map_err(ApiError::storage)?,
            kept: bytes,
            most: settings.max_files_bytes,
            bytes: 0,
        })
    }
}

/// A file that is being received. Its folder is removed again when it is in the artifact store, or refused.
#[derive(Debug)]
pub struct Upload<'a> {
    uploads: &'a Uploads,
    pub folder: TempDir,
    /// Bytes of the files that are kept.
    kept: u64,
    /// Bytes of all files together.
    most: u64,
    /// Bytes received so far.
    pub bytes: u64,
}

impl Upload<'_> {
    /// Takes so many more bytes in, if all files together may have them.
    pub fn take(&mut self, bytes: u64) -> Result<(), ApiError> {
        self.bytes += bytes;
        let receiving = self.uploads.receiving.fetch_add(bytes, Ordering::Relaxed) + bytes;
        match self.kept.saturating_add(receiving) <= self.most {
            true => Ok(()),
            false => Err(quota(format!(
                "with this one the files would have more than the {} bytes that are kept of all together \
                 (jobs.max_files_bytes); delete some first",
                self.most
            ))),
        }
    }
}

impl Drop for Upload<'_> {
    fn drop(&mut self) {
        let uploads = self.uploads;
        uploads.receiving.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

fn quota(message: String) -> ApiError {
    ApiError::invalid_with_code("file", "quota_exceeded", message)
}
