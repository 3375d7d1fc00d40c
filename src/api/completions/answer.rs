//! From a checked request to its answer: the engine is asked once for both kinds of completion, and answers whole
//! or piece by piece.

use actix_web::{HttpRequest, HttpResponse, web};
use uuid::Uuid;

use super::parameters::Checked;
use super::prompt::{self, EchoedText, Prompt};
use super::response::{Frame, Style};
use super::stream::{self, Chunks};
use crate::api::ApiError;
use crate::api::disconnect;
use crate::api::presets::applied;
use crate::api::state::State;
use crate::api::steer_circuits::circuits_of;
use crate::api::unparsed::BodyRoom;
use crate::generation::request::EngineError;
use crate::serving::named_model::{NamedModel, system_fingerprint};
use crate::serving::snapshot::unix_seconds;

/// Answers `prompts`, whose body takes `room` until they are token ids; `style` makes what its answers look like of the
/// prompts' texts, where they are echoed.
pub async fn answer<S: Style>(
    http: &HttpRequest,
    state: web::Data<State>,
    named: &NamedModel,
    prompts: Vec<Prompt>,
    room: BodyRoom,
    checked: Checked,
    style: impl FnOnce(Vec<EchoedText>) -> S,
) -> Result<HttpResponse, ApiError> {
    let answered = answer_with(http, state, named, prompts, room, checked, style).await;
    answered.map_err(|error| applied::told(named, error))
}

async fn answer_with<S: Style>(
    http: &HttpRequest,
    state: web::Data<State>,
    named: &NamedModel,
    prompts: Vec<Prompt>,
    room: BodyRoom,
    mut checked: Checked,
    style: impl FnOnce(Vec<EchoedText>) -> S,
) -> Result<HttpResponse, ApiError> {
    let card = &*named.card;
    let edits = checked
        .steer
        .as_ref()
        .is_some_and(|steer| !steer.edits.is_empty());
    let snapshot = state.snapshot();
    let directions = snapshot.directions_of(&card.id);
    let circuits = circuits_of(&snapshot, checked.steer.as_ref(), &[]);
    let bridge = match &checked.steer {
        Some(steer) => snapshot.bridge_for(&card.id, steer.bridge.as_deref(), "steer.bridge")?,
        None => None,
    };
    let encoded = prompt::encode_echoed(prompts, card, &state, checked.echo).await?;
    let (prompts, echoed): (Vec<_>, Vec<_>) = encoded
        .into_iter()
        .map(|prompt| (prompt.ids, prompt.echoed))
        .unzip();
    let style = style(echoed.into_iter().flatten().collect());
    if let Some(steer) = checked.steer {
        let encoded =
            prompt::encode_counterfactuals(steer, card, &state, S::IN_CONVERSATION).await?;
        checked.steer = Some(encoded);
    }
    drop(room);
    let model = card.model().await?;
    let pair = match &bridge {
        Some(bridge) => Some(bridge.pair().await?),
        None => None,
    };
    let bridge = bridge.filter(|_| edits);
    let frame = Frame {
        id: format!("{}-{}", S::ID_PREFIX, Uuid::new_v4().simple()),
        created: unix_seconds(),
        model: named.name(),
        system_fingerprint: system_fingerprint(named, bridge.as_deref()),
    };
    let bridge = bridge.map(|bridge| bridge.record.id.to_string());
    let streaming = checked.streaming;
    let asked = checked.into_request(model, pair, (directions, circuits), prompts);
    if let Some(streaming) = streaming {
        let stream = unless_gone::<S, _>(http, state.engine.stream(asked)).await?;
        let chunks = Chunks::new(frame, streaming.include_usage, style);
        let tokenizer = card.tokenizer.clone();
        return Ok(stream::respond(
            stream,
            chunks,
            tokenizer,
            state.clone(),
            bridge,
        ));
    }
    let generation = unless_gone::<S, _>(http, state.engine.generate(asked)).await?;
    state.metrics.generated(&generation, bridge.as_deref());
    let completion = frame.completion(&style, generation, &card.tokenizer);
    Ok(HttpResponse::Ok().json(completion))
}

/// What the engine answers, unless the client goes before: dropping the engine's future gives the request up.
async fn unless_gone<S: Style, T>(
    http: &HttpRequest,
    answer: impl Future<Output = Result<T, EngineError>>,
) -> Result<T, ApiError> {
    tokio::select! {
        answer = answer => answer.map_err(refusal::<S>),
        () = disconnect::gone(http) => Err(ApiError::ClientGone),
    }
}

/// The engine knows prompts; the caller knows the field they were made of.
fn refusal<S: Style>(error: EngineError) -> ApiError {
    let named = |param: Option<String>| match param.as_deref() {
        Some("prompt") => Some(S::PROMPT_FIELD.to_owned()),
        _ => param,
    };
    match error {
        EngineError::Invalid { message, param } => ApiError::from(EngineError::Invalid {
            message,
            param: named(param),
        }),
        other => ApiError::from(other),
    }
}
