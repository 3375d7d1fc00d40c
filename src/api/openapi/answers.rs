//! What every operation may answer whatever it does, and what every answer carries: added to the document here,
//! so that no handler has to repeat it.

use serde_json::{Value, json};
use utoipa::openapi::extensions::Extensions;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::SecurityRequirement;
use utoipa::openapi::{Content, OpenApi, Ref, RefOr, Response, ResponseBuilder};

use crate::api::keys::Access;

/// Refusals of any operation.
const ALWAYS: [(&str, &str); 3] = [
    (
        "403",
        "The host is not this server's: code `foreign_host`; a page of another site asks: code `foreign_origin`; or \
         the API key's role does not allow this: code `insufficient_role`",
    ),
    ("500", "The request failed inside the server"),
    (
        "503",
        "The server is stopping: code `stopping`; or answers that clients have not read yet leave this one no room: \
         code `overloaded`",
    ),
];
/// Refusals of operations that need a key where the server has any.
const WITH_KEYS: [(&str, &str); 2] = [
    ("401", "The server has API keys, and this is none of them"),
    ("429", "The API key's rate is used up"),
];
/// Refusals of operations that read a body.
const WITH_BODY: [(&str, &str); 3] = [
    (
        "400",
        "The body is no JSON, or a field is unknown, missing, wrong or out of range; `param` names it. Or the body \
         was not sent in time: code `slow_body`",
    ),
    (
        "413",
        "The body is longer than the server reads: code `body_too_large`",
    ),
    (
        "415",
        "The body is not sent as `application/json`: code `unsupported_media_type`",
    ),
];

/// Who may use an operation: its path, its method, and the access that its route was registered with.
pub type OperationAccess = (&'static str, &'static str, Access);

/// Completes every operation of the document; `accesses` says who may use each, `scheme` how a key is sent.
pub fn complete(document: &mut OpenApi, accesses: &[OperationAccess], scheme: &str) {
    for (path, item) in &mut document.paths.paths {
        for (method, operation) in operations(item) {
            let mut routes = accesses.iter();
            let route = routes.find(|(of, name, _)| of == path && *name == method);
            // A documented operation without a route is found by a test.
            let access = route.map_or(Access::Infer, |(_, _, access)| *access);
            complete_operation(operation, access, scheme);
        }
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = (&'static str, &mut Operation)> {
    let operations = [
        ("GET", &mut item.get),
        ("PUT", &mut item.put),
        ("POST", &mut item.post),
        ("PATCH", &mut item.patch),
        ("DELETE", &mut item.delete),
    ];
    let operations = operations.into_iter();
    operations.filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

/// Adds what an operation may answer, and the key where it needs one.
fn complete_operation(operation: &mut Operation, access: Access, scheme: &str) {
    let mut refusals = ALWAYS.to_vec();
    if let Some(role) = access.role() {
        refusals.extend(WITH_KEYS);
        let sentence = format!(
            "Where the server has API keys, this needs one whose role is at least `{role}`."
        );
        let description = operation.description.take();
        let description = description.filter(|text| !text.is_empty());
        operation.description = Some(match description {
            Some(text) => format!("{text}\n\n{sentence}"),
            None => sentence,
        });
        operation.security = Some(vec![
            SecurityRequirement::default(),
            SecurityRequirement::new::<_, _, String>(scheme, []),
        ]);
    }
    if operation.request_body.is_some() {
        refusals.extend(WITH_BODY);
    }
    let responses = &mut operation.responses.responses;
    for (status, description) in refusals {
        responses
            .entry(status.to_owned())
            .or_insert_with(|| refusal(description).into());
    }
    for (status, response) in responses {
        if let RefOr::T(response) = response {
            add_headers(status, response);
        }
    }
}

fn refusal(description: &str) -> Response {
    let body = Content::new(Some(Ref::from_schema_name("ErrorBody")));
    ResponseBuilder::new()
        .description(description)
        .content("application/json", body)
        .build()
}

/// The headers that an answer of this status always has. They are written as an extension because the library's
/// headers cannot be `required`.
fn add_headers(status: &str, response: &mut Response) {
    let mut headers = json!({"x-request-id": {
        "description": "The request's own id where it sent one in this header that can be used, else a new one",
        "required": true,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"}
    }});
    match status {
        "401" => {
            headers["www-authenticate"] = header(
                "How to authenticate",
                json!({"type": "string", "enum": ["Bearer"]}),
            );
        }
        "429" | "503" => {
            headers["retry-after"] = header(
                "Seconds to wait before trying again",
                json!({"type": "integer", "minimum": 1}),
            );
        }
        _ => {}
    }
    response.headers.clear();
    let headers = Extensions::from_iter([("headers", headers)]);
    response.extensions.get_or_insert_default().merge(headers);
}

fn header(description: &str, schema: Value) -> Value {
    json!({"description": description, "required": true, "schema": schema})
}
