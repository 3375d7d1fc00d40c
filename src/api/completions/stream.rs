//! A completion piece by piece, as server-sent events.
//!
//! `data: {chunk}` for every piece, one choice each, then what is known only at the end (receipts, usage), then
//! `data: [DONE]`. The texts of a choice's chunks joined are its text in one answer. The headers wait for the first
//! piece, so that a request that is turned away after it has waited gets the status that says so. From then on, while
//! nothing comes, comments keep the connection alive, and find out when the client has gone: dropping the stream gives
//! the request up. An error after the headers is a `data: {"error": ...}`, and the last thing sent before the end.

use std::collections::BTreeMap;
use std::time::Duration;

use actix_web::web::Bytes;
use actix_web::{HttpResponse, rt};
use serde::Serialize;
use serde_json::json;
use tokio::sync::mpsc;
use utoipa::ToSchema;
use utoipa::openapi::extensions::Extensions;
use utoipa::openapi::schema::{AnyOfBuilder, ObjectBuilder};
use utoipa::openapi::{Ref, RefOr, Schema, Type};

use super::response::{self, FinishReason, Frame, Logprobs, Usage};
use crate::api::ApiError;
use crate::api::state::State;
use crate::generation::engine::Stream;
use crate::generation::request::{Delta, Generation};
use crate::interventions::receipt::{EditActivations, Receipt};
use crate::interventions::request::Variant;
use crate::models::tokenizer::Tokenizer;

/// How often a client hears something.
const HEARTBEAT: Duration = Duration::from_millis(200);
/// Events made but not yet sent; the producer waits for a client that reads slowly.
const EVENTS: usize = 16;

/// One event of a stream, as it is told to those who read the API's description.
#[derive(Debug, ToSchema)]
pub struct CompletionEvent {
    #[schema(schema_with = event_data)]
    pub data: String,
}

/// The end of the stream, or the JSON of a chunk or an error. The library has no word for what the JSON inside a text
/// must be.
fn event_data() -> RefOr<Schema> {
    let end = ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some("The end of the stream"))
        .enum_values(Some(["[DONE]"]));
    let of = |name: &str| json!({"$ref": Ref::from_schema_name(name).ref_location});
    let content = json!({"anyOf": [of("CompletionChunk"), of("ErrorBody")]});
    let chunk = ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some("A chunk, or the error that the stream ends with"))
        .content_media_type("application/json")
        .extensions(Some(Extensions::from_iter([("contentSchema", content)])));
    AnyOfBuilder::new().item(end).item(chunk).into()
}

/// What one event of a stream says.
#[derive(Debug, Serialize, ToSchema)]
pub struct CompletionChunk {
    /// The same in all chunks of a stream.
    #[schema(example = "cmpl-0a1b2c3d4e5f60718293a4b5c6d7e8f9")]
    pub id: String,
    #[schema(example = "text_completion")]
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    pub model: String,
    /// One choice; none in the chunk with the usage.
    pub choices: Vec<ChunkChoice>,
    /// With `stream_options.include_usage`, null in every chunk but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
    pub system_fingerprint: String,
}

/// More of one choice.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChunkChoice {
    pub text: String,
    pub index: usize,
    /// Of the tokens whose text is now complete; null unless they were asked for.
    #[schema(required = true)]
    pub logprobs: Option<Logprobs>,
    /// Null before the choice's end.
    #[schema(required = true)]
    pub finish_reason: Option<FinishReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub variant: Option<Variant>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub strength: Option<f64>,
    /// After all choices have ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Receipt, required = false)]
    pub receipt: Option<serde_json::Value>,
    /// After all choices have ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<EditActivations>, required = false)]
    pub activations: Option<serde_json::Value>,
}

/// What the chunks of one stream have in common, and where each choice stands.
pub struct Chunks {
    frame: Frame,
    id: String,
    include_usage: bool,
    /// The texts that `echo` begins each choice with, by prompt.
    echoed: Vec<String>,
    /// Choices of each prompt.
    per_prompt: usize,
    progress: BTreeMap<usize, Progress>,
}

/// What a client has been told of one choice.
#[derive(Default)]
struct Progress {
    characters: usize,
    /// Where the generated text begins.
    begins: usize,
    /// The bytes of its generated tokens.
    bytes: Vec<u8>,
}

impl Chunks {
    pub fn new(frame: Frame, include_usage: bool, echoed: Vec<String>, choices: usize) -> Self {
        Chunks {
            id: response::new_id(),
            per_prompt: (choices / echoed.len().max(1)).max(1),
            frame,
            include_usage,
            echoed,
            progress: BTreeMap::new(),
        }
    }

    fn chunk(&self, choices: Vec<ChunkChoice>) -> CompletionChunk {
        CompletionChunk {
            id: self.id.clone(),
            object: "text_completion",
            created: self.frame.created,
            model: self.frame.model.clone(),
            choices,
            usage: self.include_usage.then_some(None),
            system_fingerprint: self.frame.system_fingerprint.clone(),
        }
    }

    /// The chunk of a piece.
    fn piece(&mut self, delta: Delta, tokenizer: &Tokenizer) -> CompletionChunk {
        let first = !self.progress.contains_key(&delta.choice);
        let progress = self.progress.entry(delta.choice).or_default();
        let mut text = String::new();
        if first && self.frame.echo {
            text.clone_from(&self.echoed[delta.choice / self.per_prompt]);
            progress.begins = text.chars().count();
        }
        text += &delta.text;
        progress.characters += text.chars().count();
        let logprobs = self.frame.logprobs.map(|_| {
            let mut logprobs = Logprobs::default();
            logprobs.extend(
                &delta.prompt,
                &mut Vec::new(),
                0..=progress.begins,
                tokenizer,
            );
            let place = progress.begins..=progress.characters;
            logprobs.extend(&delta.tokens, &mut progress.bytes, place, tokenizer);
            logprobs
        });
        self.chunk(vec![ChunkChoice {
            text,
            index: delta.choice,
            logprobs,
            finish_reason: delta.finish.map(FinishReason::from),
            variant: delta.variant,
            strength: delta.strength,
            receipt: None,
            activations: None,
        }])
    }

    /// The chunks that come when all choices have ended.
    fn ends(&self, generation: Generation) -> Vec<CompletionChunk> {
        let usage = Usage::of(&generation);
        let told = generation.choices.into_iter().enumerate();
        let mut chunks: Vec<CompletionChunk> = told
            .filter(|(_, choice)| choice.receipt.is_some() || choice.activations.is_some())
            .map(|(index, choice)| {
                self.chunk(vec![ChunkChoice {
                    text: String::new(),
                    index,
                    logprobs: None,
                    finish_reason: None,
                    variant: choice.variant,
                    strength: choice.strength,
                    receipt: choice.receipt,
                    activations: choice.activations,
                }])
            })
            .collect();
        if self.include_usage {
            chunks.push(CompletionChunk {
                usage: Some(Some(usage)),
                ..self.chunk(Vec::new())
            });
        }
        chunks
    }
}

/// Answers with the events of `stream`; the metrics count the whole, steered over `bridge`, once it is there.
pub fn respond(
    stream: Stream,
    chunks: Chunks,
    tokenizer: std::sync::Arc<Tokenizer>,
    state: actix_web::web::Data<State>,
    bridge: Option<String>,
) -> HttpResponse {
    let (sender, receiver) = mpsc::channel::<Bytes>(EVENTS);
    // Ends when the answer does, or at the first event that nobody takes.
    rt::spawn(async move {
        let _ = produce(stream, chunks, &tokenizer, &state, bridge, &sender).await;
    });
    let body = futures_util::stream::unfold(receiver, |mut receiver| async {
        let event = receiver.recv().await?;
        Some((Ok::<Bytes, actix_web::Error>(event), receiver))
    });
    HttpResponse::Ok()
        .content_type("text/event-stream")
        .insert_header(("cache-control", "no-cache"))
        // Asks proxies not to collect events.
        .insert_header(("x-accel-buffering", "no"))
        .streaming(body)
}

type Sent = Result<(), mpsc::error::SendError<Bytes>>;

async fn produce(
    mut stream: Stream,
    mut chunks: Chunks,
    tokenizer: &Tokenizer,
    state: &State,
    bridge: Option<String>,
    sender: &mpsc::Sender<Bytes>,
) -> Sent {
    loop {
        match tokio::time::timeout(HEARTBEAT, stream.pieces.recv()).await {
            Ok(Some(delta)) => sender.send(event(&chunks.piece(delta, tokenizer))).await?,
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
