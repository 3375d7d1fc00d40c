//! Routes to handlers, and the server around them.

use std::net::TcpListener;

use actix_web::dev::Server;
use actix_web::middleware::from_fn;
use actix_web::{App, HttpServer, web};

use super::addresses::{self, Address, at};
use super::body::query_config;
use super::jobs::{archive, creation, events, files, handlers, plot, trained};
use super::keys::Access;
use super::openapi::Document;
use super::state::State;
use super::{
    activations, bridges, circuits, completions, disconnect, docs, features, health, library,
    models, observe, openapi, operations, page, presets, tasks, tokens,
};
use crate::settings::Settings;

/// A server on `listener`, which the caller has bound. It stops when its handle says so, after the requests
/// in progress are answered.
pub fn run(
    listener: TcpListener,
    state: web::Data<State>,
    settings: &Settings,
) -> std::io::Result<Server> {
    state.jobs.start(&state.service)?;
    let document = web::Data::new(Document(document()?));
    let server = HttpServer::new(move || {
        App::new()
            .app_data(state.clone())
            .app_data(document.clone())
            .app_data(query_config())
            .wrap(from_fn(observe::observe))
            .configure(routes)
            .default_service(addresses::nowhere())
    })
    .workers(settings.threads)
    .on_connect(disconnect::remember)
    .shutdown_timeout(settings.shutdown_seconds)
    // Signals are the command line's business; the library's own handling of Ctrl-C drops requests.
    .disable_signals()
    .listen(listener)?;
    Ok(server.run())
}

/// Every address of the API.
pub fn addresses() -> Vec<Address> {
    let mut addresses = vec![
        at("/v1/completions").post(Access::Infer, completions::text::create),
        at("/v1/chat/completions").post(Access::Infer, completions::chat::create),
        at("/v1/models").get(Access::Infer, models::list),
        at("/v1/tasks")
            .get(Access::Infer, tasks::list)
            .post(Access::Train, tasks::create),
        at("/v1/tasks/{id}")
            .get(Access::Infer, tasks::retrieve)
            .delete(Access::Train, tasks::delete),
        at("/v1/tasks/{id}/pairs").post(Access::Train, tasks::upload),
        at("/v1/models/{id}")
            .get(Access::Infer, models::retrieve)
            .delete(Access::Train, trained::delete),
        at("/v1/bridges").get(Access::Infer, bridges::list),
        at("/v1/bridges/{id}").get(Access::Infer, bridges::retrieve),
        at("/v1/circuits").get(Access::Infer, circuits::list),
        // Before the record's address, which is one of anything.
        at("/v1/circuits/{id}.dot").get(Access::Infer, circuits::graph),
        at("/v1/circuits/{id}.svg").get(Access::Infer, circuits::picture),
        at("/v1/circuits/{id}.txt").get(Access::Infer, circuits::printed),
        at("/v1/circuits/{id}").get(Access::Infer, circuits::retrieve),
        at("/v1/features")
            .get(Access::Infer, features::list)
            .post(Access::Train, features::create),
        at("/v1/features/contrast").post(Access::Infer, features::contrast::create),
        at("/v1/features/direction").post(Access::Infer, features::direction::create),
        at("/v1/features/control_vector").post(Access::Train, features::control_vector::import),
        at("/v1/features/{id}/control_vector").get(Access::Infer, features::control_vector::export),
        at("/v1/features/{id}/verify").post(Access::Infer, features::verify::create),
        at("/v1/features/{id}")
            .get(Access::Infer, features::retrieve)
            .patch(Access::Train, features::update)
            .delete(Access::Train, features::delete),
        at("/v1/presets")
            .get(Access::Infer, presets::list)
            .post(Access::Admin, presets::create),
        at("/v1/presets/{id}")
            .get(Access::Infer, presets::retrieve)
            .delete(Access::Admin, presets::delete),
        at("/v1/library")
            .get(Access::Admin, library::list)
            .post(Access::Admin, operations::create),
        at("/v1/library/{id}/load").post(Access::Admin, library::load),
        at("/v1/library/{id}/unload").post(Access::Admin, library::unload),
        at("/v1/library/operations").get(Access::Admin, operations::list),
        at("/v1/library/operations/{id}").get(Access::Admin, operations::retrieve),
        at("/v1/library/operations/{id}/cancel").post(Access::Admin, operations::cancel),
        at("/v1/tokenize").post(Access::Infer, tokens::tokenize),
        at("/tokenize").post(Access::Infer, tokens::tokenize_at_root),
        at("/v1/detokenize").post(Access::Infer, tokens::detokenize),
        at("/detokenize").post(Access::Infer, tokens::detokenize_at_root),
        at("/v1/activations").post(Access::Infer, activations::create),
        at("/healthz")
            .get(Access::Everybody, health::live)
            .head(Access::Everybody, health::live),
        at("/livez")
            .get(Access::Everybody, health::live)
            .head(Access::Everybody, health::live),
        at("/readyz")
            .get(Access::Everybody, health::ready)
            .head(Access::Everybody, health::ready),
        at("/metrics").get(Access::Infer, health::metrics),
        at("/openapi.json").get(Access::Everybody, openapi::document),
        at("/docs").get(Access::Everybody, docs::page),
        at("/docs/").get(Access::Everybody, docs::page),
        at("/docs/{asset}").get(Access::Everybody, docs::asset),
        at("/").get(Access::Everybody, page::page),
        at("/page/{path:.*}").get(Access::Everybody, page::asset),
    ];
    addresses.extend(training_addresses());
    addresses
}

fn training_addresses() -> Vec<Address> {
    vec![
        at("/v1/files")
            .get(Access::Train, files::list)
            .post(Access::Train, files::create),
        at("/v1/files/{id}")
            .get(Access::Train, files::retrieve)
            .delete(Access::Train, files::delete),
        at("/v1/models/{id}/archive").get(Access::Train, archive::download),
        at("/v1/files/{id}/content").get(Access::Train, files::content),
        at("/v1/fine_tuning/jobs")
            .get(Access::Train, handlers::list)
            .post(Access::Train, creation::create),
        at("/v1/fine_tuning/jobs/estimate").post(Access::Train, creation::estimate),
        at("/v1/fine_tuning/jobs/{id}")
            .get(Access::Train, handlers::retrieve)
            .delete(Access::Train, handlers::delete),
        at("/v1/fine_tuning/jobs/{id}/cancel").post(Access::Train, handlers::cancel),
        at("/v1/fine_tuning/jobs/{id}/pause").post(Access::Train, handlers::pause),
        at("/v1/fine_tuning/jobs/{id}/resume").post(Access::Train, handlers::resume),
        at("/v1/fine_tuning/jobs/{id}/plot").get(Access::Train, plot::numbers),
        at("/v1/fine_tuning/jobs/{id}/plot.svg").get(Access::Train, plot::picture),
        at("/v1/fine_tuning/jobs/{id}/events").get(Access::Train, events::list),
        at("/v1/fine_tuning/jobs/{id}/checkpoints").get(Access::Train, handlers::checkpoints),
    ]
}

/// The API's description, with who may use what.
pub fn document() -> Result<String, serde_json::Error> {
    let addresses = addresses();
    let routes = addresses.iter().flat_map(|address| {
        let methods = address.methods();
        methods.map(|(method, access)| (address.path(), method, access))
    });
    openapi::text(&routes.collect::<Vec<_>>())
}

fn routes(config: &mut web::ServiceConfig) {
    for address in addresses() {
        config.service(address.into_resource());
    }
}
