//! The OpenAPI document, made from the handlers and wire types themselves. `openapi/openapi.json` is its
//! committed copy; a test compares the two, and `causeway openapi` prints it.

use actix_web::HttpResponse;
use utoipa::OpenApi;

use super::{activations, bridges, completions, features, health, models};

/// The whole API.
#[derive(Debug, OpenApi)]
#[openapi(
    info(
        title = "Causeway",
        description = "Completions of a dense language model, steered by editing named features of a \
            weight-sparse one. Every error has the same body, and every answer the header `x-request-id`, which a \
            request may set to 1 to 128 of letters, digits, `.`, `_`, `:` and `-`. An unknown address is answered \
            with 404, a wrong method with 405, a body over the limit with 413."
    ),
    paths(
        completions::create,
        models::list,
        models::retrieve,
        bridges::list,
        bridges::retrieve,
        features::list::list,
        features::change::create,
        features::detail::retrieve,
        features::change::update,
        features::change::delete,
        features::contrast::create,
        features::verify::create,
        activations::create,
        health::live,
        health::ready,
        health::metrics,
    ),
    tags(
        (name = "completions", description = "Text, steered or not"),
        (name = "models", description = "Dense and sparse models"),
        (name = "bridges", description = "Pairs of models that edits are carried across"),
        (name = "features", description = "Named features of sparse models"),
        (name = "activations", description = "What the models compute"),
        (name = "health", description = "For those who run the server")
    )
)]
pub struct ApiDocument;

/// The document as it is committed: indented, with a newline at its end.
pub fn text() -> Result<String, serde_json::Error> {
    Ok(ApiDocument::openapi().to_pretty_json()? + "\n")
}

/// This document.
pub async fn document() -> Result<HttpResponse, super::ApiError> {
    let text = text().map_err(super::ApiError::internal)?;
    Ok(HttpResponse::Ok()
        .content_type("application/json")
        .body(text))
}
