//! Where files are that several processes share: what jobs begin with, their checkpoints, their results, uploaded text.
//!
//! An artifact is a folder of files, written once and named by its content: the sha256 of the list of its files, each
//! with its own. The files are objects of an object store, a local folder or a bucket of an S3-compatible service; the
//! records are in the job store ([`super::store::artifacts`]), which also knows who needs which artifact. Whatever comes
//! out of here has been compared with its hashes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use object_store::aws::AmazonS3Builder;
use object_store::buffered::BufWriter;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::store::artifacts::Artifact;
use super::store::{Store, StoreError};
use crate::artifacts::atomic::sync_directory;
use crate::artifacts::manifest::{FileRecord, records};
use crate::artifacts::{ArtifactError, hexadecimal};
use crate::settings::Settings;

/// Bytes that are read at once, and what a part of a long upload has.
const PIECE: usize = 8 << 20;

/// Why an artifact could not be kept or brought.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactStoreError {
    #[error(transparent)]
    Record(#[from] StoreError),
    #[error("the artifact store: {0}")]
    Objects(#[from] object_store::Error),
    #[error(transparent)]
    File(#[from] ArtifactError),
    #[error("the artifact store: {0}")]
    System(#[from] std::io::Error),
    #[error("artifact {0} is not kept any more")]
    Gone(String),
    #[error("artifact {sha256} is damaged: {file} has sha256 {found}")]
    Damaged {
        sha256: String,
        file: String,
        found: String,
    },
    #[error("{0} changed while it was read")]
    Changed(PathBuf),
    #[error("an upload took {0:?}, longer than half of artifacts.keep_hours")]
    Slow(Duration),
}

impl ArtifactStoreError {
    /// There was no room, or no leave for more of it: ENOSPC, EFBIG or EDQUOT somewhere down.
    pub fn is_full(&self) -> bool {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = cause {
            let number = error
                .downcast_ref::<std::io::Error>()
                .and_then(std::io::Error::raw_os_error);
            if matches!(number, Some(28 | 27 | 122)) {
                return true;
            }
            cause = error.source();
        }
        false
    }
}

/// A file's content as it comes; the last word is whether it was what was kept.
pub type Pieces = BoxStream<'static, Result<Bytes, ArtifactStoreError>>;

/// The artifacts of one installation.
#[derive(Debug, Clone)]
pub struct ArtifactStore {
    objects: Arc<dyn ObjectStore>,
    /// What all keys begin with.
    root: Key,
    store: Store,
    /// How long what nobody holds is kept.
    keep: Duration,
}

impl ArtifactStore {
    /// The one that the settings name.
    pub fn of(settings: &Settings, store: &Store) -> Result<Self, ArtifactStoreError> {
        let place = &settings.artifacts;
        let keep = Duration::from_secs(place.keep_hours * 3600);
        let Some((bucket, root)) = place.bucket() else {
            let folder = match place.url.as_str() {
                "" => settings.data_dir.join("artifacts"),
                folder => PathBuf::from(folder),
            };
            std::fs::create_dir_all(&folder)?;
            let objects = LocalFileSystem::new_with_prefix(folder)?
                .with_fsync(true)
                .with_automatic_cleanup(true);
            return Ok(ArtifactStore {
                objects: Arc::new(objects),
                root: Key::default(),
                store: store.clone(),
                keep,
            });
        };
        crate::tls::choose();
        // Who may read and write there, the environment says, as for all programs of this kind.
        let mut service = AmazonS3Builder::from_env().with_bucket_name(bucket);
        if !place.region.is_empty() {
            service = service.with_region(&place.region);
        }
        if !place.endpoint.is_empty() {
            service = service
                .with_endpoint(&place.endpoint)
                .with_allow_http(place.endpoint.starts_with("http://"));
        }
        Ok(ArtifactStore {
            objects: Arc::new(service.build()?),
            root: Key::from(root),
            store: store.clone(),
            keep,
        })
    }

    /// The same, but keeping what nobody holds for so long.
    pub fn keeping(self, keep: Duration) -> Self {
        ArtifactStore { keep, ..self }
    }

    /// Keeps the files of a folder; the artifact's sha256. What is kept already is not written again.
    pub async fn put(&self, folder: &Path) -> Result<String, ArtifactStoreError> {
        let begun = Instant::now();
        let files = records_of(folder).await?;
        let list = serde_json::to_vec(&files).map_err(std::io::Error::other)?;
        let sha256 = hexadecimal(&Sha256::digest(&list));
        if self.store.take_up(&sha256).await?.is_some() {
            return Ok(sha256);
        }
        let artifact = Artifact {
            sha256,
            place: uuid::Uuid::new_v4().simple().to_string(),
            files,
        };
        for file in &artifact.files {
            self.upload(&file.name.under(folder), &artifact.place, file)
                .await?;
        }
        // Later its first files might be taken for left over.
        if begun.elapsed() > self.keep / 2 && !self.keep.is_zero() {
            return Err(ArtifactStoreError::Slow(begun.elapsed()));
        }
        let kept = self.store.add_artifact(&artifact).await?;
        if kept != artifact.place {
            self.remove(&artifact.place).await?;
        }
        Ok(artifact.sha256)
    }

    async fn upload(
        &self,
        from: &Path,
        place: &str,
        file: &FileRecord,
    ) -> Result<(), ArtifactStoreError> {
        let mut source = tokio::fs::File::open(from).await?;
        let mut writer =
            BufWriter::with_capacity(self.objects.clone(), self.key(place, file), PIECE);
        let (mut hasher, mut piece) = (Sha256::new(), vec![0; 1 << 18]);
        loop {
            let count = source.read(&mut piece).await?;
            if count == 0 {
                break;
            }
            hasher.update(&piece[..count]);
            writer.write_all(&piece[..count]).await?;
        }
        if hexadecimal(&hasher.finalize()) != file.sha256 {
            writer.abort().await?;
            return Err(ArtifactStoreError::Changed(from.to_owned()));
        }
        Ok(writer.shutdown().await?)
    }

    /// Brings an artifact's files into the folder `to`, which is there as a whole or not at all.
    pub async fn get(&self, sha256: &str, to: &Path) -> Result<(), ArtifactStoreError> {
        if tokio::fs::try_exists(to).await? {
            return Ok(());
        }
        let artifact = self.record(sha256).await?;
        let parent = to.parent().unwrap_or(Path::new("."));
        tokio::fs::create_dir_all(parent).await?;
        let partial = tempfile::Builder::new()
            .prefix(".bringing-")
            .tempdir_in(parent)?;
        for file in &artifact.files {
            let target = file.name.under(partial.path());
            if let Some(folder) = target.parent() {
                tokio::fs::create_dir_all(folder).await?;
            }
            let mut written = tokio::fs::File::create(&target).await?;
            let mut pieces = self.pieces(&artifact, file).await?;
            while let Some(piece) = pieces.next().await {
                written.write_all(&piece?).await?;
            }
            written.sync_all().await?;
        }
        match tokio::fs::rename(partial.path(), to).await {
            // Somebody was faster; it has the same files.
            Err(_) if tokio::fs::try_exists(to).await? => {}
            done => done?,
        }
        sync_directory(parent)?;
        Ok(())
    }

    /// What the only file of an artifact holds, piece by piece; an error at the end where it is not what was kept.
    pub async fn read_only_file(&self, sha256: &str) -> Result<Pieces, ArtifactStoreError> {
        let artifact = self.record(sha256).await?;
        match artifact.files.as_slice() {
            [file] => self.pieces(&artifact, file).await,
            _ => Err(ArtifactStoreError::Gone(sha256.to_owned())),
        }
    }

    /// Reads all of an artifact and compares it with its hashes.
    pub async fn verify(&self, sha256: &str) -> Result<(), ArtifactStoreError> {
        let artifact = self.record(sha256).await?;
        for file in &artifact.files {
            let mut pieces = self.pieces(&artifact, file).await?;
            while let Some(piece) = pieces.next().await {
                piece?;
            }
        }
        Ok(())
    }

    async fn record(&self, sha256: &str) -> Result<Artifact, ArtifactStoreError> {
        let artifact = self.store.take_up(sha256).await?;
        artifact.ok_or_else(|| ArtifactStoreError::Gone(sha256.to_owned()))
    }

    async fn pieces(
        &self,
        artifact: &Artifact,
        file: &FileRecord,
    ) -> Result<Pieces, ArtifactStoreError> {
        let pieces = self
            .objects
            .get(&self.key(&artifact.place, file))
            .await?
            .into_stream();
        let (sha256, file) = (artifact.sha256.clone(), file.clone());
        let checked = futures_util::stream::try_unfold(
            (pieces, Some(Sha256::new())),
            move |(mut pieces, hasher)| {
                let (sha256, file) = (sha256.clone(), file.clone());
                async move {
                    let Some(mut hasher) = hasher else {
                        return Ok(None);
                    };
                    if let Some(piece) = pieces.try_next().await? {
                        hasher.update(&piece);
                        return Ok(Some((piece, (pieces, Some(hasher)))));
                    }
                    let found = hexadecimal(&hasher.finalize());
                    match found == file.sha256 {
                        true => Ok(None),
                        false => Err(ArtifactStoreError::Damaged {
                            sha256,
                            file: file.name.to_string(),
                            found,
                        }),
                    }
                }
            },
        );
        Ok(checked.boxed())
    }

    /// Removes an artifact, unless somebody holds it. Only for those that nobody else can be about to hold.
    pub async fn remove_if_unheld(&self, sha256: &str) -> Result<(), ArtifactStoreError> {
        match self.store.remove_if_unheld(sha256).await? {
            Some(place) => self.remove(&place).await,
            None => Ok(()),
        }
    }

    /// Removes what nobody needs: artifacts that nobody holds and nobody has looked for lately, what jobs hold that
    /// failed long ago, and what uploads that were broken off have left. How many places were removed.
    pub async fn sweep(&self) -> Result<usize, ArtifactStoreError> {
        self.store.give_failed_jobs_up(self.keep).await?;
        let mut places = self.store.remove_unheld(self.keep).await?;
        let known = self.store.places().await?;
        let folders = self.objects.list_with_delimiter(Some(&self.root)).await?;
        for folder in folders.common_prefixes {
            let Some(place) = folder.filename().map(str::to_owned) else {
                continue;
            };
            if !known.contains(&place) && !places.contains(&place) && self.is_old(&folder).await? {
                places.push(place);
            }
        }
        for place in &places {
            self.remove(place).await?;
        }
        Ok(places.len())
    }

    /// Whether nothing below `folder` has been written lately.
    async fn is_old(&self, folder: &Key) -> Result<bool, ArtifactStoreError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let before = now.unwrap_or_default().saturating_sub(self.keep);
        let mut objects = self.objects.list(Some(folder));
        while let Some(object) = objects.try_next().await? {
            if object.last_modified.timestamp() >= before.as_secs() as i64 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn remove(&self, place: &str) -> Result<(), ArtifactStoreError> {
        let folder = self.root.clone().join(place);
        let keys = self.objects.list(Some(&folder));
        let keys: Vec<Key> = keys.map_ok(|object| object.location).try_collect().await?;
        for key in keys {
            match self.objects.delete(&key).await {
                // Somebody else is removing it as well.
                Err(object_store::Error::NotFound { .. }) => {}
                done => done?,
            }
        }
        Ok(())
    }

    fn key(&self, place: &str, file: &FileRecord) -> Key {
        let name = file.name.to_string();
        let parts = name.split('/');
        parts.fold(self.root.clone().join(place), |key, part| key.join(part))
    }
}

async fn records_of(folder: &Path) -> Result<Vec<FileRecord>, ArtifactStoreError> {
    let folder = folder.to_owned();
    let read = tokio::task::spawn_blocking(move || records(&folder)).await;
    Ok(read.map_err(std::io::Error::other)??)
}
