//! The OpenAPI document, made from the handlers and wire types themselves. `openapi/openapi.json` is its
//! committed copy; a test compares the two, and `causeway openapi` prints it.
//!
//! - [`answers`]: what every operation may answer. - [`bounds`]: of variants. - [`variants`]: what they mean. All
//!   complete what the handlers' and types' own annotations say.

pub mod answers;
pub mod bounds;
pub mod variants;

use actix_web::{HttpResponse, web};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};

use self::answers::OperationAccess;
use super::completions::chat::response::ChatPiece;
use super::completions::response::Chunk;
use super::completions::text::response::TextPiece;
use super::tasks::wire::TaskSplit;
use super::{
    activations, bridges, circuits, completions, features, health, jobs, library, models,
    operations, presets, tasks, tokens,
};

/// The whole API.
#[derive(Debug, OpenApi)]
#[openapi(
    info(
        title = "Causeway",
        description = "Completions of a dense language model, steered by editing named features of a \
            weight-sparse one.\n\nEvery error has the same body, an `ErrorBody`, and every answer the header \
            `x-request-id`, which a request may set to 1 to 128 of letters, digits, `.`, `_`, `:` and `-`. An \
            unknown address is answered with 404 and the code `no_such_address`; a method that an address does not \
            have with 405, the code `method_not_allowed` and the header `allow`, which lists those it has. Bodies \
            and queries may hold the documented fields only, and whole numbers no fraction: 1, not 1.0. \
            Log-probabilities and divergences are in nats, times in seconds, token positions and channels count from \
            0."
    ),
    modifiers(&Completion),
    components(schemas(Chunk<TextPiece>, Chunk<ChatPiece>, TaskSplit)),
    paths(
        completions::text::create,
        completions::chat::create,
        models::list,
        tasks::list::list,
        tasks::change::create,
        tasks::list::retrieve,
        tasks::change::delete,
        tasks::change::upload,
        models::retrieve,
        jobs::trained::delete,
        bridges::list,
        bridges::retrieve,
        circuits::list,
        circuits::retrieve,
        circuits::graph,
        circuits::picture,
        circuits::printed,
        features::list::list,
        features::change::create,
        features::detail::retrieve,
        features::change::update,
        features::change::delete,
        features::contrast::create,
        features::direction::create,
        features::control_vector::import,
        features::control_vector::export,
        features::verify::create,
        presets::list::list,
        presets::change::create,
        presets::list::retrieve,
        presets::change::delete,
        activations::create,
        tokens::tokenize,
        tokens::tokenize_at_root,
        tokens::detokenize,
        tokens::detokenize_at_root,
        library::list,
        library::load,
        library::unload,
        operations::create,
        operations::list,
        operations::retrieve,
        operations::cancel,
        jobs::archive::download,
        jobs::files::create,
        jobs::files::list,
        jobs::files::retrieve,
        jobs::files::content,
        jobs::files::delete,
        jobs::creation::create,
        jobs::creation::estimate,
        jobs::handlers::list,
        jobs::handlers::retrieve,
        jobs::handlers::cancel,
        jobs::handlers::delete,
        jobs::handlers::pause,
        jobs::handlers::resume,
        jobs::handlers::checkpoints,
        jobs::events::list,
        jobs::plot::numbers,
        jobs::plot::picture,
        health::live,
        health::ready,
        health::metrics,
        document,
    ),
    tags(
        (name = "completions", description = "Text and conversations, steered or not"),
        (name = "tokens", description = "Texts as tokens, and back"),
        (name = "models", description = "Dense and sparse models"),
        (name = "bridges", description = "Pairs of models that edits are carried across"),
        (name = "circuits", description = "The parts of models that do a task"),
        (name = "features", description = "Named features of sparse models, and directions of dense ones"),
        (name = "tasks", description = "Pairs of prompts that differ in one fact, which circuits and features are found on"),
        (name = "presets", description = "Steering kept under ids, for clients that know nothing of it"),
        (name = "library", description = "What can be served, for those who run the server"),
        (name = "files", description = "Training text"),
        (name = "fine_tuning", description = "Trainings"),
        (name = "activations", description = "What the models compute"),
        (name = "health", description = "For those who run the server")
    )
)]
pub struct ApiDocument;

/// What the annotations cannot say, or would say once for each operation.
struct Completion;

const SCHEME: &str = "api_key";

impl Modify for Completion {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some(
                "One of the server's API keys; needed where the server has any",
            ))
            .build();
        if let Some(components) = &mut document.components {
            components.add_security_scheme(SCHEME, SecurityScheme::Http(scheme));
        }
        bounds::add(document);
        variants::describe(document);
    }
}

/// The document as it is committed: indented, with a newline at its end.
pub fn text(accesses: &[OperationAccess]) -> Result<String, serde_json::Error> {
    let mut document = ApiDocument::openapi();
    answers::complete(&mut document, accesses, SCHEME);
    Ok(document.to_pretty_json()? + "\n")
}

/// The document's text as one server serves it.
pub struct Document(pub String);

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "health", operation_id = "openapi",
    responses((status = 200, description = "The OpenAPI document", body = Object)))]
pub async fn document(document: web::Data<Document>) -> HttpResponse {
    HttpResponse::Ok()
        .content_type("application/json")
        .body(document.0.clone())
}
