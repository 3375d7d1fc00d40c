//! How answers leave the server: long ones in pieces, no more of them at once than there is room for, and not for ever.
//!
//! The HTTP library takes the whole of an answer into a connection's buffer and keeps it until the client has read
//! it. A long body is therefore handed over piece by piece, as the client reads; it takes a share of the room
//! that all clients have together ([`Unsent`]); and a connection on which nothing moves is closed.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use actix_web::HttpRequest;
use actix_web::body::{BodySize, MessageBody};
use actix_web::web::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::ApiError;
use super::disconnect;

/// Shorter bodies fit a connection's own buffer.
const LONG: usize = 1 << 16;
/// What is handed over at once.
const PIECE: usize = 1 << 15;
/// The unit in which room is counted.
const UNIT: usize = 1 << 10;

/// The room for what clients have not read yet.
#[derive(Debug, Clone)]
pub struct Unsent {
    bytes: usize,
    room: Arc<Semaphore>,
    patience: Duration,
}

impl Unsent {
    /// Room for `bytes` of long answers; a connection on which none of one moves for `patience` is closed.
    pub fn new(bytes: usize, patience: Duration) -> Self {
        Unsent {
            bytes,
            room: Arc::new(Semaphore::new(bytes / UNIT + 1)),
            patience,
        }
    }

    /// How long a connection may stand still.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// Takes a body whose bytes are all there. A long one needs room; one that is longer than all room takes all of
    /// it.
    pub fn deliver<B>(&self, body: B, request: &HttpRequest) -> Result<Delivery<B>, ApiError>
    where
        B: MessageBody + 'static,
    {
        let bytes = match body.try_into_bytes() {
            Ok(bytes) => bytes,
            Err(body) => return Ok(Delivery::Streamed(Box::pin(body))),
        };
        if bytes.len() <= LONG {
            return Ok(Delivery::Short(bytes));
        }
        let units = bytes.len().min(self.bytes) / UNIT;
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        let room = self.room.clone().try_acquire_many_owned(units);
        let room = room.map_err(|_| ApiError::Unsent { bytes: self.bytes })?;
        let progress = Arc::new(Progress::default());
        watch(progress.clone(), request, self.patience);
        Ok(Delivery::Long(Long {
            bytes,
            progress,
            _room: room,
        }))
    }
}

/// A body on its way.
pub enum Delivery<B> {
    Short(Bytes),
    Long(Long),
    /// Made as it is sent, by something that bounds it itself.
    Streamed(Pin<Box<B>>),
}

/// What of a long body is still to be handed over.
pub struct Long {
    bytes: Bytes,
    progress: Arc<Progress>,
    _room: OwnedSemaphorePermit,
}

/// How far a long body has come.
#[derive(Debug, Default)]
struct Progress {
    pieces: AtomicU64,
    ended: AtomicBool,
}

impl Drop for Long {
    fn drop(&mut self) {
        self.progress.ended.store(true, Ordering::Relaxed);
    }
}

impl<B: MessageBody> MessageBody for Delivery<B> {
    type Error = B::Error;

    fn size(&self) -> BodySize {
        match self {
            Delivery::Short(bytes) => BodySize::Sized(bytes.len() as u64),
            Delivery::Long(long) => BodySize::Sized(long.bytes.len() as u64),
            Delivery::Streamed(body) => body.size(),
        }
    }

    fn poll_next(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        match self.get_mut() {
            Delivery::Short(bytes) if bytes.is_empty() => Poll::Ready(None),
            Delivery::Short(bytes) => Poll::Ready(Some(Ok(std::mem::take(bytes)))),
            Delivery::Long(long) if long.bytes.is_empty() => Poll::Ready(None),
            Delivery::Long(long) => {
                long.progress.pieces.fetch_add(1, Ordering::Relaxed);
                let piece = long.bytes.split_to(PIECE.min(long.bytes.len()));
                Poll::Ready(Some(Ok(piece)))
            }
            Delivery::Streamed(body) => body.as_mut().poll_next(context),
        }
    }
}

/// Closes the connection of `request` once a long body has not moved for `patience`.
fn watch(progress: Arc<Progress>, request: &HttpRequest, patience: Duration) {
    let Some(peer) = disconnect::peer(request) else {
        return;
    };
    actix_web::rt::spawn(async move {
        let (mut pieces, mut since) = (0, Instant::now());
        while !progress.ended.load(Ordering::Relaxed) {
            let now = progress.pieces.load(Ordering::Relaxed);
            if now != pieces {
                (pieces, since) = (now, Instant::now());
            }
            if since.elapsed() >= patience {
                tracing::info!("a client reads nothing of its answer; its connection is closed");
                peer.close();
                return;
            }
            tokio::time::sleep(patience / 8).await;
        }
    });
}
