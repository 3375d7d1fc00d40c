//! An artifact as one stream: a tar archive that is made while it is sent, piece by piece.

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use tar::{EntryType, Header};

use super::artifact_store::{ArtifactStore, ArtifactStoreError, Pieces};
use crate::artifacts::manifest::FileRecord;

/// What the parts of an archive are multiples of.
const BLOCK: u64 = 512;
/// Two blocks of zeros end an archive.
const END: [u8; 2 * BLOCK as usize] = [0; 2 * BLOCK as usize];
const MODE: u32 = 0o644;

/// An archive that is yet to be sent.
pub struct Archive {
    /// Its length.
    pub bytes: u64,
    /// An error in place of a piece where a file is not what was kept.
    pub pieces: Pieces,
}

/// The files of an artifact below a folder of that name, dated `time` seconds after 1970.
pub async fn archive(
    artifacts: &ArtifactStore,
    sha256: &str,
    folder: &str,
    time: u64,
) -> Result<Archive, ArtifactStoreError> {
    let artifact = artifacts.record(sha256).await?;
    let mut bytes = END.len() as u64;
    let mut files: Vec<Result<_, ArtifactStoreError>> = Vec::new();
    for file in &artifact.files {
        let header = header(folder, file, time)?;
        bytes += BLOCK + file.size.next_multiple_of(BLOCK);
        files.push(Ok((header, file.clone())));
    }
    let artifacts = artifacts.clone();
    let entries = stream::iter(files).and_then(move |(header, file)| {
        let (artifacts, artifact) = (artifacts.clone(), artifact.clone());
        async move {
            let content = artifacts.pieces(&artifact, &file).await?;
            let rest = file.size.next_multiple_of(BLOCK) - file.size;
            let padding = Bytes::from(vec![0; rest as usize]);
            let around = |bytes: Bytes| stream::iter([Ok(bytes)]);
            Ok(around(header).chain(content).chain(around(padding)).boxed())
        }
    });
    let end = stream::iter([Ok(Bytes::from_static(&END))]);
    Ok(Archive {
        bytes,
        pieces: entries.try_flatten().chain(end).boxed(),
    })
}

fn header(folder: &str, file: &FileRecord, time: u64) -> Result<Bytes, ArtifactStoreError> {
    let mut header = Header::new_ustar();
    header.set_path(format!("{folder}/{}", file.name))?;
    header.set_entry_type(EntryType::Regular);
    header.set_size(file.size);
    header.set_mode(MODE);
    header.set_mtime(time);
    header.set_cksum();
    Ok(Bytes::copy_from_slice(header.as_bytes()))
}
