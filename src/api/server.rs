//! Routes to handlers, and the server around them.

use std::net::TcpListener;

use actix_web::dev::Server;
use actix_web::http::header::CONTENT_SECURITY_POLICY;
use actix_web::middleware::from_fn;
use actix_web::{App, HttpResponse, HttpServer, Resource, web};

use super::body::query_config;
use super::jobs::{creation, events, files, handlers, plot, trained};
use super::state::State;
use super::{
    ApiError, activations, bridges, completions, disconnect, docs, features, health, library,
    models, observe, openapi, tasks,
};
use crate::settings::Settings;

/// A server on `listener`, which the caller has bound. It stops when its handle says so, after the requests
/// in progress are answered.
pub fn run(
    listener: TcpListener,
    state: web::Data<State>,
    settings: &Settings,
) -> std::io::Result<Server> {
    let limit = state.limits.max_body_bytes;
    state.jobs.start(&state)?;
    let server = HttpServer::new(move || {
        App::new()
            .app_data(state.clone())
            .app_data(web::PayloadConfig::new(limit))
            .app_data(query_config())
            .wrap(from_fn(observe::observe))
            .configure(routes)
            .default_service(web::to(no_such_address))
    })
    .workers(settings.threads)
    .on_connect(disconnect::remember)
    .shutdown_timeout(settings.shutdown_seconds)
    // Signals are the command line's business; the library's own handling of Ctrl-C drops requests.
    .disable_signals()
    .listen(listener)?;
    Ok(server.run())
}

fn routes(config: &mut web::ServiceConfig) {
    config
        .service(at("/v1/completions", "POST").route(web::post().to(completions::text::create)))
        .service(
            at("/v1/chat/completions", "POST").route(web::post().to(completions::chat::create)),
        )
        .service(at("/v1/models", "GET").route(web::get().to(models::list)))
        .service(at("/v1/tasks", "GET").route(web::get().to(tasks::list)))
        .service(
            at("/v1/models/{id}", "GET, DELETE")
                .route(web::get().to(models::retrieve))
                .route(web::delete().to(trained::delete)),
        )
        .service(at("/v1/bridges", "GET").route(web::get().to(bridges::list)))
        .service(at("/v1/bridges/{id}", "GET").route(web::get().to(bridges::retrieve)))
        .service(
            at("/v1/features", "GET, POST")
                .route(web::get().to(features::list))
                .route(web::post().to(features::create)),
        )
        .service(
            at("/v1/features/contrast", "POST").route(web::post().to(features::contrast::create)),
        )
        .service(
            at("/v1/features/{id}/verify", "POST").route(web::post().to(features::verify::create)),
        )
        .service(
            at("/v1/features/{id}", "GET, PATCH, DELETE")
                .route(web::get().to(features::retrieve))
                .route(web::patch().to(features::update))
                .route(web::delete().to(features::delete)),
        )
        .service(at("/v1/library", "GET").route(web::get().to(library::list)))
        .service(at("/v1/library/{id}/load", "POST").route(web::post().to(library::load)))
        .service(at("/v1/library/{id}/unload", "POST").route(web::post().to(library::unload)))
        .configure(job_routes)
        .service(at("/v1/activations", "POST").route(web::post().to(activations::create)))
        .service(
            at("/healthz", "GET, HEAD")
                .route(web::get().to(health::live))
                .route(web::head().to(health::live)),
        )
        .service(
            at("/livez", "GET, HEAD")
                .route(web::get().to(health::live))
                .route(web::head().to(health::live)),
        )
        .service(
            at("/readyz", "GET, HEAD")
                .route(web::get().to(health::ready))
                .route(web::head().to(health::ready)),
        )
        .service(at("/metrics", "GET").route(web::get().to(health::metrics)))
        .service(at("/openapi.json", "GET").route(web::get().to(openapi::document)))
        .service(at("/docs", "GET").route(web::get().to(docs::page)))
        .service(at("/docs/", "GET").route(web::get().to(docs::page)))
        .service(at("/docs/{asset}", "GET").route(web::get().to(docs::asset)))
        .service(at("/", "GET").route(web::get().to(front_page)));
}

fn job_routes(config: &mut web::ServiceConfig) {
    config
        .service(
            at("/v1/files", "GET, POST")
                .route(web::get().to(files::list))
                .route(web::post().to(files::create)),
        )
        .service(
            at("/v1/files/{id}", "GET, DELETE")
                .route(web::get().to(files::retrieve))
                .route(web::delete().to(files::delete)),
        )
        .service(at("/v1/files/{id}/content", "GET").route(web::get().to(files::content)))
        .service(
            at("/v1/fine_tuning/jobs", "GET, POST")
                .route(web::get().to(handlers::list))
                .route(web::post().to(creation::create)),
        )
        .service(
            at("/v1/fine_tuning/jobs/estimate", "POST").route(web::post().to(creation::estimate)),
        )
        .service(at("/v1/fine_tuning/jobs/{id}", "GET").route(web::get().to(handlers::retrieve)))
        .service(
            at("/v1/fine_tuning/jobs/{id}/cancel", "POST").route(web::post().to(handlers::cancel)),
        )
        .service(
            at("/v1/fine_tuning/jobs/{id}/pause", "POST").route(web::post().to(handlers::pause)),
        )
        .service(
            at("/v1/fine_tuning/jobs/{id}/resume", "POST").route(web::post().to(handlers::resume)),
        )
        .service(at("/v1/fine_tuning/jobs/{id}/plot", "GET").route(web::get().to(plot::numbers)))
        .service(
            at("/v1/fine_tuning/jobs/{id}/plot.svg", "GET").route(web::get().to(plot::picture)),
        )
        .service(at("/v1/fine_tuning/jobs/{id}/events", "GET").route(web::get().to(events::list)))
        .service(
            at("/v1/fine_tuning/jobs/{id}/checkpoints", "GET")
                .route(web::get().to(handlers::checkpoints)),
        );
}

/// A resource that answers other methods than `allowed` with 405.
fn at(path: &str, allowed: &'static str) -> Resource {
    let refuse =
        move || async move { Err::<HttpResponse, _>(ApiError::MethodNotAllowed { allowed }) };
    web::resource(path).default_service(web::to(refuse))
}

async fn no_such_address() -> Result<HttpResponse, ApiError> {
    Err(ApiError::no_such_address())
}

async fn front_page() -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/html; charset=utf-8")
        .insert_header((
            CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'",
        ))
        .body(include_str!("front_page.html"))
}
