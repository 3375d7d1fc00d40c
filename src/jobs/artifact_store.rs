//! Where files are that several processes share: what jobs begin with, their checkpoints, their results, uploaded text.
//!
//! An artifact is a folder of files, written once and named by its content: the sha256 of the list of its files, each
//! with its own. The files are objects of an object store, a local folder or a bucket of an S3-compatible service; the
//! records are in the job store ([`super::store::artifacts`]), which also knows who needs which artifact. Whatever comes
//! out of here has been compared with its hashes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use object_store::aws::AmazonS3Builder;
use object_store::buffered::BufWriter;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::OnceCell;

use super::store::artifacts::Artifact;
use super::store::{Store, StoreError};
use crate::artifacts::atomic::sync_directory;
use crate::artifacts::manifest::{FileRecord, Links, records};
use crate::artifacts::{ArtifactError, hexadecimal, is_full, regular};
use crate::settings::{ArtifactSettings, Settings};

/// Bytes that are read at once, and what a part of a long upload has.
const PIECE: usize = 8 << 20;
/// What folders begin with that an artifact is being brought into.
const BRINGING: &str = ".bringing-";
/// Below this are the places of artifacts, and nothing else.
const PLACES: &str = "places";

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
    #[error("an upload took longer than half of artifacts.keep_hours")]
    Slow,
    #[error(
        "the artifacts that the settings name belong to other jobs than those in the database that they name: give \
         artifacts.url another folder or prefix, or jobs.database the database that goes with it"
    )]
    OfOthers,
}

impl ArtifactStoreError {
    /// There was no room.
    pub fn is_full(&self) -> bool {
        match self {
            ArtifactStoreError::Record(error) => error.is_full(),
            error => is_full(error),
        }
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
    /// Where the objects are, if they are files of this machine.
    folder: Option<PathBuf>,
    store: Store,
    /// How long what nobody holds is kept.
    keep: Duration,
    /// Set once it is known that the artifacts are this installation's.
    claimed: Arc<OnceCell<()>>,
}

impl ArtifactStore {
    /// The one that the settings name. It belongs to one job store: what another has put there is none of this one's.
    pub async fn of(settings: &Settings, store: &Store) -> Result<Self, ArtifactStoreError> {
        let place = &settings.artifacts;
        let (objects, root, folder): (Arc<dyn ObjectStore>, _, _) = match place.bucket() {
            Some((bucket, root)) => (service(place, bucket)?, Key::from(root), None),
            None => {
                let folder = match place.url.as_str() {
                    "" => settings.data_dir.join("artifacts"),
                    folder => PathBuf::from(folder),
                };
                tokio::fs::create_dir_all(&folder).await?;
                let objects = LocalFileSystem::new_with_prefix(&folder)?.with_fsync(true);
                (Arc::new(objects), Key::default(), Some(folder))
            }
        };
        let artifacts = ArtifactStore {
            objects,
            root,
            folder,
            store: store.clone(),
            keep: Duration::from_secs(place.keep_hours.saturating_mul(3600)),
            claimed: Arc::default(),
        };
        match artifacts.claim_once().await {
            Err(error) if error.is_full() => {
                tracing::error!(%error, "nothing can be kept until there is room again");
                Ok(artifacts)
            }
            claimed => claimed.map(|()| artifacts),
        }
    }

    /// [`ArtifactStore::claim`], until it has succeeded: a disk may be full when a server starts.
    async fn claim_once(&self) -> Result<(), ArtifactStoreError> {
        let claimed = self.claimed.get_or_try_init(|| self.claim()).await;
        claimed.copied()
    }

    /// Writes down whose artifacts these are, or finds that they are another's.
    async fn claim(&self) -> Result<(), ArtifactStoreError> {
        let (own, key) = (
            self.store.installation().await?,
            self.root.clone().join("installation"),
        );
        match self.objects.get(&key).await {
            Ok(found) => return is_own(&found.bytes().await?, &own),
            Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let options = PutOptions::from(PutMode::Create);
        let text = PutPayload::from(own.clone().into_bytes());
        match self.objects.put_opts(&key, text, options).await {
            Ok(_) => return Ok(()),
            Err(object_store::Error::AlreadyExists { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        // Somebody else has just written it.
        is_own(&self.objects.get(&key).await?.bytes().await?, &own)
    }

    /// The same, but keeping what nobody holds for so long.
    pub fn keeping(self, keep: Duration) -> Self {
        ArtifactStore { keep, ..self }
    }

    /// Keeps the files of a folder; the artifact's sha256. What is kept already is not written again.
    pub async fn put(&self, folder: &Path) -> Result<String, ArtifactStoreError> {
        self.claim_once().await?;
        let began = self.store.now().await?;
        let files = files_of(folder).await?;
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
            let from = file.name.under(folder);
            self.upload(&from, &artifact.place, file).await?;
        }
        // Later, its first files might have been taken for left over.
        let kept = self.store.add_artifact(&artifact, began, self.keep / 2);
        let kept = kept.await?.ok_or(ArtifactStoreError::Slow)?;
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
        let path = from.to_owned();
        let opened = tokio::task::spawn_blocking(move || regular::open(&path)).await;
        let (source, _) = opened.map_err(std::io::Error::other)??;
        let mut source = tokio::fs::File::from_std(source);
        let mut writer =
            BufWriter::with_capacity(self.objects.clone(), self.key(place, file), PIECE);
        match self.copy(&mut source, &mut writer).await {
            Ok(sha256) if sha256 == file.sha256 => Ok(writer.shutdown().await?),
            wrong => {
                // Parts that were sent would be kept otherwise.
                writer.abort().await?;
                Err(match wrong {
                    Ok(_) => ArtifactStoreError::Changed(from.to_owned()),
                    Err(error) => error.into(),
                })
            }
        }
    }

    /// The sha256 of what was copied.
    async fn copy(
        &self,
        source: &mut tokio::fs::File,
        writer: &mut BufWriter,
    ) -> std::io::Result<String> {
        let (mut hasher, mut piece) = (Sha256::new(), vec![0; 1 << 18]);
        loop {
            let count = source.read(&mut piece).await?;
            if count == 0 {
                return Ok(hexadecimal(&hasher.finalize()));
            }
            hasher.update(&piece[..count]);
            writer.write_all(&piece[..count]).await?;
        }
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
            .prefix(BRINGING)
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
            // A write's failure is told by the next call; syncing alone would pass over it.
            written.flush().await?;
            written.sync_all().await?;
            if let Some(folder) = target.parent() {
                sync_directory(folder)?;
            }
        }
        match tokio::fs::rename(partial.path(), to).await {
            // Somebody was faster; it has the same files.
            Err(_) if tokio::fs::try_exists(to).await? => {}
            done => done?,
        }
        sync_directory(parent)?;
        Ok(())
    }

    /// What the only file of an artifact holds, piece by piece; an error instead of the last where it is not what was kept.
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

    /// The artifact of that content, which is then kept for a while.
    pub(super) async fn record(&self, sha256: &str) -> Result<Artifact, ArtifactStoreError> {
        let artifact = self.store.take_up(sha256).await?;
        artifact.ok_or_else(|| ArtifactStoreError::Gone(sha256.to_owned()))
    }

    /// What a file of an artifact holds; an error instead of the last piece where it is not what was kept.
    pub(super) async fn pieces(
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
        // Each piece waits for the next one, the last for the hash.
        let state = (pieces, Sha256::new(), None::<Bytes>, false);
        let checked = futures_util::stream::try_unfold(state, move |state| {
            let (sha256, file) = (sha256.clone(), file.clone());
            async move {
                let (mut pieces, mut hasher, mut waiting, ended) = state;
                if ended {
                    return Ok(None);
                }
                while let Some(piece) = pieces.try_next().await? {
                    hasher.update(&piece);
                    if let Some(before) = waiting.replace(piece) {
                        return Ok(Some((before, (pieces, hasher, waiting, false))));
                    }
                }
                let found = hexadecimal(&hasher.finalize());
                if found != file.sha256 {
                    let file = file.name.to_string();
                    return Err(ArtifactStoreError::Damaged {
                        sha256,
                        file,
                        found,
                    });
                }
                Ok(waiting.map(|last| (last, (pieces, Sha256::new(), None, true))))
            }
        });
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
        // Before anything is removed that the records do not know: they must be those that belong here.
        self.claim().await?;
        self.store.give_failed_jobs_up(self.keep).await?;
        let unheld = self.store.remove_unheld(self.keep).await?;
        for place in &unheld {
            self.remove(place).await?;
        }
        let before = self.time().await? - self.keep.as_secs() as i64;
        let known = self.store.places().await?;
        let mut removed = unheld.len();
        for place in self.listed().await? {
            if !known.contains(&place) && self.is_left_over(&place, before).await? {
                self.remove(&place).await?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// The time by which objects are dated, in seconds since 1970: the service's clock, not this machine's.
    async fn time(&self) -> Result<i64, ArtifactStoreError> {
        let key = self.root.clone().join("swept");
        self.objects.put(&key, PutPayload::default()).await?;
        Ok(self.objects.head(&key).await?.last_modified.timestamp())
    }

    /// The places that there are objects in, or were.
    async fn listed(&self) -> Result<Vec<String>, ArtifactStoreError> {
        let root = self.root.clone().join(PLACES);
        let folders = self.objects.list_with_delimiter(Some(&root)).await?;
        let names = folders.common_prefixes.into_iter();
        Ok(names
            .filter_map(|folder| folder.filename().map(str::to_owned))
            .collect())
    }

    /// Whether there is something in a place, and nothing that was written at `before` or later.
    async fn is_left_over(&self, place: &str, before: i64) -> Result<bool, ArtifactStoreError> {
        if let Some(folder) = self.folder_of(place) {
            // Files that are being written are hidden from those who list objects.
            let newest = tokio::task::spawn_blocking(move || newest(&folder));
            let newest = newest.await.map_err(std::io::Error::other)??;
            return Ok(newest < before);
        }
        let folder = self.root.clone().join(PLACES).join(place);
        let mut objects = self.objects.list(Some(&folder));
        let mut any = false;
        while let Some(object) = objects.try_next().await? {
            if object.last_modified.timestamp() >= before {
                return Ok(false);
            }
            any = true;
        }
        Ok(any)
    }

    async fn remove(&self, place: &str) -> Result<(), ArtifactStoreError> {
        if let Some(folder) = self.folder_of(place) {
            return match tokio::fs::remove_dir_all(folder).await {
                // Somebody else was faster.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
                done => Ok(done?),
            };
        }
        let folder = self.root.clone().join(PLACES).join(place);
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

    fn folder_of(&self, place: &str) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(PLACES).join(place))
    }

    fn key(&self, place: &str, file: &FileRecord) -> Key {
        let name = file.name.to_string();
        let folder = self.root.clone().join(PLACES).join(place);
        name.split('/').fold(folder, |key, part| key.join(part))
    }
}

fn is_own(found: &[u8], own: &str) -> Result<(), ArtifactStoreError> {
    match found == own.as_bytes() {
        true => Ok(()),
        false => Err(ArtifactStoreError::OfOthers),
    }
}

fn service(
    place: &ArtifactSettings,
    bucket: &str,
) -> Result<Arc<dyn ObjectStore>, ArtifactStoreError> {
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
    Ok(Arc::new(service.build()?))
}

/// The files below a folder, hidden ones left out. Links are followed: a downloaded model may consist of them.
async fn files_of(folder: &Path) -> Result<Vec<FileRecord>, ArtifactStoreError> {
    let folder = folder.to_owned();
    let read = tokio::task::spawn_blocking(move || records(&folder, Links::Followed)).await;
    Ok(read.map_err(std::io::Error::other)??)
}

/// When something below `folder` was last written, in seconds since 1970.
fn newest(folder: &Path) -> std::io::Result<i64> {
    let seconds = |time: SystemTime| {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        since.as_secs() as i64
    };
    let mut newest = seconds(std::fs::metadata(folder)?.modified()?);
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        newest = newest.max(match entry.file_type()?.is_dir() {
            true => self::newest(&entry.path())?,
            false => seconds(entry.metadata()?.modified()?),
        });
    }
    Ok(newest)
}
