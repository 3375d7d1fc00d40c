//! `/v1/files`: training text, streamed to disk, checked line by line, and kept with its hash.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use actix_multipart::{Field, Multipart, MultipartError};
use actix_web::body::SizedStream;
use actix_web::{HttpResponse, web};
use futures_util::TryStreamExt;
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use utoipa::ToSchema;
use uuid::Uuid;

use super::uploads::Upload;
use crate::api::ApiError;
use crate::api::body::in_time;
use crate::api::error::ErrorBody;
use crate::api::state::State;
use crate::artifacts::hexadecimal;
use crate::artifacts::text_files::{DocumentReader, TextError, TextFormat};
use crate::jobs::job::StoredFile;
use crate::serving::snapshot::shortened;

/// A longer field than the file itself.
const LONGEST_FIELD: usize = 1000;
const PURPOSE: &str = "fine-tune";

/// What is sent.
#[derive(Debug, ToSchema)]
pub struct UploadFile {
    /// Only `fine-tune`.
    #[schema(example = "fine-tune")]
    pub purpose: String,
    /// UTF-8: `.jsonl` with an object that has a string `text` in each line, each a document; or plain text, which is
    /// cut into documents of about 4,096 characters at the ends of lines.
    #[schema(value_type = String, format = Binary)]
    pub file: Vec<u8>,
}

/// An uploaded file.
#[derive(Debug, Serialize, ToSchema)]
pub struct FileObject {
    #[schema(example = "file-0a1b2c3d")]
    pub id: String,
    #[schema(example = "file")]
    pub object: &'static str,
    pub bytes: i64,
    /// Seconds since 1970.
    pub created_at: i64,
    pub filename: String,
    #[schema(example = "fine-tune")]
    pub purpose: &'static str,
    #[schema(example = "processed")]
    pub status: &'static str,
    /// How many documents it has.
    pub documents: i64,
    /// Of its content, in hexadecimal.
    pub sha256: String,
}

/// All files, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct FileList {
    #[schema(example = "list")]
    pub object: &'static str,
    pub data: Vec<FileObject>,
    pub has_more: bool,
}

/// A file that is no more.
#[derive(Debug, Serialize, ToSchema)]
pub struct FileDeleted {
    pub id: String,
    #[schema(example = "file")]
    pub object: &'static str,
    pub deleted: bool,
}

impl From<StoredFile> for FileObject {
    fn from(file: StoredFile) -> Self {
        FileObject {
            id: file.id,
            object: "file",
            bytes: file.bytes,
            created_at: file.created_at / 1000,
            filename: file.name,
            purpose: PURPOSE,
            status: "processed",
            documents: file.documents,
            sha256: file.sha256,
        }
    }
}

/// What a file called `name` is called in its artifact: readers tell by the ending what it is.
pub fn name_of_text(name: &str) -> &'static str {
    match TextFormat::of(name) {
        TextFormat::JsonLines => "text.jsonl",
        TextFormat::Plain => "text.txt",
    }
}

/// Keeps training text. It is written to the disk as it comes, so that a file may be long; a part that does not come
/// within `limits.body_seconds` ends the upload.
#[utoipa::path(post, path = "/v1/files", tag = "files", operation_id = "createFile",
    request_body(content = UploadFile, content_type = "multipart/form-data"),
    responses(
        (status = 200, description = "The file", body = FileObject),
        (status = 400, description = "The form is not as it should be, or the text is not (code `invalid_file`): \
            `message` names the first line at fault; or there are as many files, or bytes of them, as are kept: code \
            `quota_exceeded`", body = ErrorBody),
        (status = 413, description = "The file is longer than the server keeps: code `body_too_large`",
            body = ErrorBody),
        (status = 415, description = "The body is no `multipart/form-data`: code `unsupported_media_type`",
            body = ErrorBody),
        (status = 507, description = "There is no room on the server's disk: code `disk_full`", body = ErrorBody)
    ))]
pub async fn create(
    state: web::Data<State>,
    mut form: Multipart,
) -> Result<HttpResponse, ApiError> {
    let id = format!("file-{}", Uuid::new_v4().simple());
    let settings = &state.jobs.settings.jobs;
    let uploads = &state.jobs.uploads;
    let mut upload = uploads.begin(&state.jobs.store, settings).await?;
    let (mut purpose, mut received) = (None, None);
    while let Some(field) = in_time(&state, form.try_next()).await?.map_err(broken)? {
        let name = field.name().unwrap_or_default().to_owned();
        match name.as_str() {
            "file" if received.is_none() => {
                received = Some(receive(&state, field, &mut upload).await?);
            }
            "purpose" => purpose = Some(short_field(&state, field).await?),
            _ => {
                let name = shortened(&name);
                let message =
                    format!("there is no field {name:?}; a form has purpose and one file");
                return Err(ApiError::invalid_with_code(&name, "unknown_field", message));
            }
        }
    }
    if purpose.as_deref() != Some(PURPOSE) {
        return Err(ApiError::invalid(
            "purpose",
            format!("purpose must be {PURPOSE}"),
        ));
    }
    let received = received
        .ok_or_else(|| ApiError::invalid_with_code("file", "missing_field", "file is missing"))?;
    let turn = uploads.checks.acquire().await.map_err(ApiError::internal)?;
    let (path, longest_line) = (received.path.clone(), settings.max_line_bytes);
    let documents = web::block(move || documents(&path, longest_line)).await;
    drop(turn);
    let file = StoredFile {
        id,
        name: received.name,
        bytes: i64::try_from(upload.bytes).unwrap_or(i64::MAX),
        documents: documents.map_err(ApiError::internal)??,
        sha256: received.sha256,
        created_at: 0,
    };
    let artifact = state.jobs.artifacts.put(upload.folder.path()).await?;
    let file = state.jobs.store.add_file(&file, &artifact).await?;
    Ok(HttpResponse::Ok().json(FileObject::from(file)))
}

/// All files.
#[utoipa::path(get, path = "/v1/files", tag = "files", operation_id = "listFiles",
    responses((status = 200, description = "The files, newest first", body = FileList)))]
pub async fn list(state: web::Data<State>) -> Result<HttpResponse, ApiError> {
    let files = state.jobs.store.files().await?;
    Ok(HttpResponse::Ok().json(FileList {
        object: "list",
        data: files.into_iter().map(FileObject::from).collect(),
        has_more: false,
    }))
}

/// One file.
#[utoipa::path(get, path = "/v1/files/{id}", tag = "files", operation_id = "retrieveFile",
    params(("id" = String, Path, description = "The file's id")),
    responses(
        (status = 200, description = "The file", body = FileObject),
        (status = 404, description = "There is no such file: code `file_not_found`", body = ErrorBody)
    ))]
pub async fn retrieve(
    state: web::Data<State>,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    Ok(HttpResponse::Ok().json(FileObject::from(find(&state, &id).await?)))
}

/// What a file holds, as it was sent.
#[utoipa::path(get, path = "/v1/files/{id}/content", tag = "files", operation_id = "downloadFile",
    params(("id" = String, Path, description = "The file's id")),
    responses(
        (status = 200, description = "Its content", body = String, content_type = "text/plain"),
        (status = 404, description = "There is no such file: code `file_not_found`", body = ErrorBody)
    ))]
pub async fn content(
    state: web::Data<State>,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    let file = find(&state, &id).await?;
    let held = state.jobs.store.held_by_file(&file.id).await?;
    let artifact = held.ok_or_else(|| ApiError::internal(format!("{} holds nothing", file.id)))?;
    let pieces = state.jobs.artifacts.read_only_file(&artifact).await?;
    Ok(HttpResponse::Ok()
        .content_type("text/plain; charset=utf-8")
        .insert_header(("x-content-type-options", "nosniff"))
        .body(SizedStream::new(file.bytes.unsigned_abs(), pieces)))
}

/// Deletes a file. Jobs that were created before still train on it.
#[utoipa::path(delete, path = "/v1/files/{id}", tag = "files", operation_id = "deleteFile",
    params(("id" = String, Path, description = "The file's id")),
    responses(
        (status = 200, description = "It is deleted", body = FileDeleted),
        (status = 404, description = "There is no such file: code `file_not_found`", body = ErrorBody)
    ))]
pub async fn delete(
    state: web::Data<State>,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    let file = find(&state, &id).await?;
    state.jobs.store.remove_file(&file.id).await?;
    Ok(HttpResponse::Ok().json(FileDeleted {
        id: file.id,
        object: "file",
        deleted: true,
    }))
}

async fn find(state: &State, id: &str) -> Result<StoredFile, ApiError> {
    let file = state.jobs.store.file(id).await?;
    file.ok_or_else(|| ApiError::NotFound {
        message: format!("there is no file {:?}", shortened(id)),
        param: None,
        code: Some("file_not_found"),
    })
}

/// What has come in.
struct Received {
    name: String,
    path: PathBuf,
    sha256: String,
}

async fn receive(
    state: &State,
    mut field: Field,
    upload: &mut Upload<'_>,
) -> Result<Received, ApiError> {
    let limit = state.jobs.settings.jobs.max_file_bytes;
    let disposition = field.content_disposition();
    let name = disposition.and_then(|disposition| disposition.get_filename());
    let name: String = name.unwrap_or("file.txt").chars().take(255).collect();
    let path = upload.folder.path().join(name_of_text(&name));
    let mut file = tokio::fs::File::create(&path)
        .await
        .map_err(ApiError::storage)?;
    let mut hasher = Sha256::new();
    while let Some(piece) = in_time(state, field.try_next()).await?.map_err(broken)? {
        upload.take(piece.len() as u64)?;
        if upload.bytes > limit {
            return Err(ApiError::TooLarge {
                limit: usize::try_from(limit).unwrap_or(usize::MAX),
            });
        }
        hasher.update(&piece);
        file.write_all(&piece).await.map_err(ApiError::storage)?;
    }
    // A write's failure is told by the next call; syncing alone would pass over it.
    file.flush().await.map_err(ApiError::storage)?;
    file.sync_all().await.map_err(ApiError::storage)?;
    Ok(Received {
        name,
        path,
        sha256: hexadecimal(&hasher.finalize()),
    })
}

async fn short_field(state: &State, mut field: Field) -> Result<String, ApiError> {
    let mut bytes = Vec::new();
    while let Some(piece) = in_time(state, field.try_next()).await?.map_err(broken)? {
        bytes.extend_from_slice(&piece);
        if bytes.len() > LONGEST_FIELD {
            let message = format!("the field is longer than {LONGEST_FIELD} bytes");
            return Err(ApiError::invalid("purpose", message));
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn broken(error: MultipartError) -> ApiError {
    match error {
        MultipartError::ContentTypeMissing | MultipartError::ContentTypeIncompatible => {
            ApiError::NotForm
        }
        error => ApiError::Invalid {
            message: format!("the form could not be read: {error}"),
            param: None,
            code: Some("unreadable_body"),
        },
    }
}

/// How many documents a file has, read line by line; the first thing wrong with it otherwise.
fn documents(path: &Path, longest_line: u64) -> Result<i64, ApiError> {
    let wrong = |message: String| ApiError::invalid_with_code("file", "invalid_file", message);
    let file = File::open(path).map_err(ApiError::internal)?;
    let format = TextFormat::of(&path.to_string_lossy());
    let mut count = 0;
    for document in DocumentReader::of(BufReader::new(file), format, longest_line) {
        match document {
            Ok(document) => count += i64::from(!document.text.trim().is_empty()),
            Err(error @ TextError::Line { .. }) => return Err(wrong(error.to_string())),
            Err(TextError::Read(error)) => return Err(ApiError::internal(error)),
        }
    }
    match count {
        0 | 1 => Err(wrong(format!(
            "the file has {count} documents with text in them; at least two are needed, one to train on and one held out"
        ))),
        count => Ok(count),
    }
}
