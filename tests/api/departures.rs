//! Clients that leave: nothing of them stays.

use std::io::Read;

use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

use crate::client::{Server, wait_until};

/// So many arms that they cannot be done before a client has gone.
fn long(stream: bool) -> Value {
    json!({
        "model": "tiny", "prompt": ["x = 1", "y = 2", "def f():", "import os"], "n": 128, "max_tokens": 60,
        "seed": 5, "stream": stream
    })
}

fn server() -> Server {
    Server::with(|settings| settings.limits.max_generated_tokens = 1 << 20)
}

#[test]
fn a_client_that_leaves_is_noticed() {
    let server = server();
    for stream in [true, false] {
        let mut socket = server.begin(&long(stream), 1.0);
        if stream {
            socket.read_exact(&mut [0; 64]).unwrap();
        }
        let running = || server.metric("causeway_requests_running");
        wait_until("it is begun", || running() == 1.0);
        drop(socket);
        server.wait_until_idle();
    }
}

#[test]
fn many_that_leave_anywhere_leave_nothing() {
    let server = server();
    let mut rng = StdRng::seed_from_u64(1);
    let mut sockets = Vec::new();
    for client in 0..90 {
        let stream = rng.random();
        let share = match client % 3 {
            0 => rng.random_range(0.0..1.0),
            _ => 1.0,
        };
        sockets.push(server.begin(&long(stream), share));
        // Some are waiting when they leave, some are answered, some have not asked yet.
        let leaver = rng.random_range(0..sockets.len());
        if rng.random() {
            let mut socket = sockets.swap_remove(leaver);
            socket.set_nonblocking(true).unwrap();
            let _ = socket.read(&mut [0; 1000]);
        }
    }
    drop(sockets);
    server.wait_until_idle();
    let normal = json!({"model": "tiny", "prompt": "x = 1", "max_tokens": 2});
    server.post("/v1/completions", &normal).ok();
    server.wait_until_idle();
}
