//! The HTTP API over real sockets, with a pair of tiny random models: shapes, errors, and what a client may
//! rely on.

#[path = "api/activations.rs"]
mod activations;
#[path = "api/chat.rs"]
mod chat;
#[path = "api/circuits.rs"]
mod circuits;
#[path = "api/client.rs"]
mod client;
#[path = "api/clients.rs"]
mod clients;
#[path = "api/command.rs"]
mod command;
#[path = "api/completions.rs"]
mod completions;
#[path = "api/control_vectors.rs"]
mod control_vectors;
#[path = "api/damage.rs"]
mod damage;
#[path = "api/dashboards.rs"]
mod dashboards;
#[path = "api/departures.rs"]
mod departures;
#[path = "api/direction_search.rs"]
mod direction_search;
#[path = "api/directions.rs"]
mod directions;
#[path = "api/docs.rs"]
mod docs;
#[path = "api/document.rs"]
mod document;
#[path = "api/examples.rs"]
mod examples;
#[path = "api/faults.rs"]
mod faults;
#[path = "api/features.rs"]
mod features;
#[path = "api/hub.rs"]
mod hub;
#[path = "api/job_limits.rs"]
mod job_limits;
#[path = "api/jobs.rs"]
mod jobs;
#[path = "api/keys.rs"]
mod keys;
#[path = "api/library.rs"]
mod library;
#[path = "api/models_command.rs"]
mod models_command;
#[path = "api/mutations.rs"]
mod mutations;
#[path = "api/overload.rs"]
mod overload;
#[path = "api/prefixes.rs"]
mod prefixes;
#[path = "api/preset_answers.rs"]
mod preset_answers;
#[path = "api/presets.rs"]
mod presets;
#[path = "api/refusals.rs"]
mod refusals;
#[path = "api/service.rs"]
mod service;
#[path = "api/steering.rs"]
mod steering;
#[path = "api/streaming.rs"]
mod streaming;
#[path = "api/tasks.rs"]
mod tasks;
#[path = "api/test_hub.rs"]
mod test_hub;
#[path = "api/tiny_pair.rs"]
mod tiny_pair;
#[path = "api/tokenizers.rs"]
mod tokenizers;
#[path = "api/tokens.rs"]
mod tokens;
#[path = "api/wire_errors.rs"]
mod wire_errors;
