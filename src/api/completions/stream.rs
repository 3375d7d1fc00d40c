//! A completion piece by piece, as server-sent events.
//!
//! `data: {chunk}` for every piece, one choice each, then what is known only at the end (receipts, usage), then
//! `data: [DONE]`. The texts of a choice's chunks joined are its text in one answer. The headers wait for the first
//! piece, so that a request that is turned away after it has waited gets the status that says so. From then on, while
//! nothing comes, comments keep the connection alive, and find out when the client has gone: dropping the stream gives
//! the request up. An error after the headers is a `data: {"error": ...}`, and the last thing sent before the end.

use std::time::Duration;

use actix_web::web::Bytes;
use actix_web::{HttpResponse, rt};
use serde::Serialize;
use serde_json::json;
use tokio::sync::mpsc;
use utoipa::openapi::extensions::Extensions;
use utoipa::openapi::schema::{AnyOfBuilder, ObjectBuilder};
use utoipa::openapi::{Ref, RefOr, Schema, Type};

use super::response::{Arm, Chunk, Frame, Style, Usage};
use crate::api::ApiError;
use crate::api::event_stream;
use crate::api::state::State;
use crate::generation::engine::Stream;
use crate::generation::request::{Delta, Generation};
use crate::models::tokenizer::Tokenizer;

/// How often a client hears something.
const HEARTBEAT: Duration = Duration::from_millis(200);
/// Events made but not yet sent; the producer waits for a client that reads slowly.
const EVENTS: usize = 16;

/// What `data` of an event may be, for the API's description: the end of the stream, or the JSON of an error or of the
/// schema named `chunk`. The library has no word for what the JSON inside a text must be.
pub fn event_data(chunk: &str) -> RefOr<Schema> {
    let end = ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some("The end of the stream"))
        .enum_values(Some(["[DONE]"]));
    let of = |name: &str| json!({"$ref": Ref::from_schema_name(name).ref_location});
    let content = json!({"anyOf": [of(chunk), of("ErrorBody")]});
    let chunk = ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some("A chunk, or the error that the stream ends with"))
        .content_media_type("application/json")
        .extensions(Some(Extensions::from_iter([("contentSchema", content)])));
    AnyOfBuilder::new().item(end).item(chunk).into()
}

/// The chunks of one stream, and what they have in common.
pub struct Chunks<S> {
    frame: Frame,
    include_usage: bool,
    style: S,
}

impl<S: Style> Chunks<S> {
    pub fn new(frame: Frame, include_usage: bool, style: S) -> Self {
        Chunks {
            frame,
            include_usage,
            style,
        }
    }

    fn chunk(&self, choices: Vec<S::Piece>) -> Chunk<S::Piece> {
        Chunk {
            id: self.frame.id.clone(),
            object: S::CHUNK_OBJECT,
            created: self.frame.created,
            model: self.frame.model.clone(),
            choices,
            usage: self.include_usage.then_some(None),
            system_fingerprint: self.frame.system_fingerprint.clone(),
        }
    }

    /// The chunks of what has become certain.
    fn pieces(&mut self, delta: Delta, tokenizer: &Tokenizer) -> Vec<Chunk<S::Piece>> {
        let pieces = self.style.pieces(delta, tokenizer).into_iter();
        pieces.map(|piece| self.chunk(vec![piece])).collect()
    }

    /// The chunks that come when all choices have ended.
    fn ends(&self, generation: Generation) -> Vec<Chunk<S::Piece>> {
        let usage = Usage::of(&generation);
        let told = generation.choices.into_iter().enumerate();
        let mut chunks: Vec<Chunk<S::Piece>> = told
            .filter(|(_, choice)| choice.receipt.is_some() || choice.activations.is_some())
            .map(|(index, choice)| self.chunk(vec![self.style.report(index, Arm::of(choice))]))
            .collect();
        if self.include_usage {
            chunks.push(Chunk {
                usage: Some(Some(usage)),
                ..self.chunk(Vec::new())
            });
        }
        chunks
    }
}

/// Answers with the events of `stream`; the metrics count the whole, steered over `bridge`, once it is there.
pub fn respond<S: Style>(
    stream: Stream,
    chunks: Chunks<S>,
    tokenizer: std::sync::Arc<Tokenizer>,
    state: actix_web::web::Data<State>,
    bridge: Option<String>,
) -> HttpResponse {
    let (sender, receiver) = mpsc::channel::<Bytes>(EVENTS);
    // Ends when the answer does, or at the first event that nobody takes.
    rt::spawn(async move {
        let _ = produce(stream, chunks, &tokenizer, &state, bridge, &sender).await;
    });
    event_stream::respond(receiver)
}

type Sent = Result<(), mpsc::error::SendError<Bytes>>;

async fn produce<S: Style>(
    mut stream: Stream,
    mut chunks: Chunks<S>,
    tokenizer: &Tokenizer,
    state: &State,
    bridge: Option<String>,
    sender: &mpsc::Sender<Bytes>,
) -> Sent {
    loop {
        match tokio::time::timeout(HEARTBEAT, stream.pieces.recv()).await {
            Ok(Some(delta)) => {
                for chunk in chunks.pieces(delta, tokenizer) {
                    sender.send(event(&chunk)).await?;
                }
            }
            Ok(None) => break,
            Err(_) => sender.send(Bytes::from_static(b": still here\n\n")).await?,
        }
    }
    let answer = stream.answer.await;
    let answer = answer.unwrap_or(Err(crate::generation::request::EngineError::Stopped));
    match answer {
        Ok(generation) => {
            state.metrics.generated(&generation, bridge.as_deref());
            for chunk in chunks.ends(generation) {
                sender.send(event(&chunk)).await?;
            }
        }
        Err(error) => {
            let error = ApiError::from(error);
            error.log();
            sender.send(event(&error.body())).await?;
        }
    }
    sender.send(Bytes::from_static(b"data: [DONE]\n\n")).await
}

/// `data: ...`, or an end of the stream that says so: what is sent here always has a JSON form.
fn event(data: &impl Serialize) -> Bytes {
    match serde_json::to_string(data) {
        Ok(json) => Bytes::from(format!("data: {json}\n\n")),
        Err(error) => Bytes::from(format!(": {error}\n\n")),
    }
}
