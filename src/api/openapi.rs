//! The OpenAPI document, made from the handlers and wire types themselves. `openapi/openapi.json` is its
//! committed copy; a test compares the two, and `causeway openapi` prints it.

use actix_web::HttpResponse;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Ref, Response, ResponseBuilder};
use utoipa::{Modify, OpenApi};

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
    modifiers(&Keys),
    paths(
        completions::text::create,
        completions::chat::create,
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
        (name = "completions", description = "Text and conversations, steered or not"),
        (name = "models", description = "Dense and sparse models"),
        (name = "bridges", description = "Pairs of models that edits are carried across"),
        (name = "features", description = "Named features of sparse models"),
        (name = "activations", description = "What the models compute"),
        (name = "health", description = "For those who run the server")
    )
)]
pub struct ApiDocument;

/// What API keys add to every operation but health.
struct Keys;

const SCHEME: &str = "api_key";

impl Modify for Keys {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("Needed where the server has keys"))
            .build();
        if let Some(components) = &mut document.components {
            components.add_security_scheme(SCHEME, SecurityScheme::Http(scheme));
        }
        for (path, item) in &mut document.paths.paths {
            if super::keys::is_open(path) {
                continue;
            }
            let operations = [
                &mut item.get,
                &mut item.post,
                &mut item.patch,
                &mut item.delete,
            ];
            for operation in operations.into_iter().flatten() {
                guard(operation);
            }
        }
    }
}

fn guard(operation: &mut Operation) {
    operation.security = Some(vec![
        SecurityRequirement::default(),
        SecurityRequirement::new::<_, _, String>(SCHEME, []),
    ]);
    for (status, description) in [
        ("401", "The server has API keys, and this is none of them"),
        (
            "403",
            "The API key's role does not allow this, or the host is not this server's",
        ),
        (
            "429",
            "The API key's rate is used up; `retry-after` says for how long",
        ),
    ] {
        let responses = &mut operation.responses.responses;
        responses
            .entry(status.to_owned())
            .or_insert_with(|| refusal(description).into());
    }
}

fn refusal(description: &str) -> Response {
    let body = ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorBody")));
    ResponseBuilder::new()
        .description(description)
        .content("application/json", body.build())
        .build()
}

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
