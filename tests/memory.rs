//! What requests may cost a server in memory: each test starts the program on the shipped pair, sends what is meant
//! to be expensive, and holds the process's own peak against one bound.

#[path = "memory/clients.rs"]
mod clients;
#[path = "memory/files.rs"]
mod files;
#[path = "memory/prefixes.rs"]
mod prefixes;
#[path = "memory/results.rs"]
mod results;
#[path = "memory/server.rs"]
mod server;
#[path = "memory/steering.rs"]
mod steering;
#[path = "memory/texts.rs"]
mod texts;
#[path = "memory/uploads.rs"]
mod uploads;

use serde_json::json;
use server::Server;

/// No request takes a server on the shipped pair further above what it holds when idle.
pub const MOST_ABOVE_IDLE: u64 = 300 << 20;

#[test]
fn an_ordinary_completion_is_cheap() {
    let server = Server::start(&[]);
    let above = server.peak_above_idle(|| {
        let body = json!({"model": "tinypython", "prompt": "print(\"hello", "max_tokens": 8});
        let (status, answer) = server.post("/v1/completions", &body);
        assert_eq!(status, 200, "{answer}");
    });
    assert!(above <= MOST_ABOVE_IDLE, "{above} bytes");
}
