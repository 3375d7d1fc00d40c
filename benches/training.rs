//! What a training beside it costs a stream: `cargo bench --bench training [-- PAIRS]`.
//!
//! One client reads a stream's pieces, on the last core, in turns with and without a training job on one thread of the
//! same machine; what is compared are the medians and 99th percentiles of the times between two pieces.

mod server;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use server::{PAIR, Server, pin_to_last_core};

const PAIRS: usize = 5;
const STREAMS: usize = 40;
const TOKENS: usize = 64;

/// The body of an answer.
fn ask(server: &Server, method: &str, path: &str, body: &Value) -> Value {
    let mut stream = send(server, method, path, body);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let body = answer.split_once("\r\n\r\n").expect("a head").1;
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"))
}

fn send(server: &Server, method: &str, path: &str, body: &Value) -> TcpStream {
    let body = body.to_string();
    let mut stream = TcpStream::connect(&server.address).expect("a connection");
    stream.set_nodelay(true).expect("a socket option");
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        server.address,
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).expect("sent");
    stream
}

/// Seconds between the pieces of streams, sorted.
fn between_pieces(server: &Server) -> Vec<f64> {
    let mut times = Vec::new();
    for seed in 0..STREAMS {
        let body = json!({
            "model": "tinypython", "prompt": "def compute(first, second):\n    total = ", "max_tokens": TOKENS,
            "temperature": 1, "seed": seed, "logit_bias": {"2047": -100}, "stream": true
        });
        let mut last = None;
        for line in BufReader::new(send(server, "POST", "/v1/completions", &body)).lines() {
            if !line.expect("a line").starts_with("data: {") {
                continue;
            }
            let now = Instant::now();
            times.extend(last.map(|last: Instant| (now - last).as_secs_f64()));
            last = Some(now);
        }
    }
    times.sort_by(f64::total_cmp);
    times
}

fn at(times: &[f64], share: f64) -> f64 {
    times[((times.len() - 1) as f64 * share) as usize]
}

/// A training that does not end by itself.
fn start_training(server: &Server) -> String {
    let recipe = json!({
        "sparse": {
            "n_layers": 4, "d_model": 384, "n_heads": 24, "d_head": 16, "d_mlp": 1024, "vocab_size": 2048,
            "context_length": 256, "norm": "rms", "bias": true, "activation": "gelu", "positions": "added"
        },
        "generated": {"documents": 200, "seed": 1},
        "batches": {"steps": 1_000_000, "sequences": 4, "length": 128, "seed": 1},
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 10}, "bridge_learning_rate": 1e-3,
        "sparsity": {"kept_fraction": 0.1},
        "terms": {"cross_entropy": 1, "distillation": 1, "encoder": 1, "decoder": 1, "dense_to_sparse": 1,
            "sparse_to_dense": 1}
    });
    let body = json!({"model": "tinypython",
        "method": {"type": "bridge", "bridge": {"hyperparameters": recipe}}});
    let job = ask(server, "POST", "/v1/fine_tuning/jobs", &body);
    let id = job["id"]
        .as_str()
        .unwrap_or_else(|| panic!("{job}"))
        .to_owned();
    while ask(
        server,
        "GET",
        &format!("/v1/fine_tuning/jobs/{id}"),
        &json!({}),
    )["step"]
        == 0
    {
        std::thread::sleep(Duration::from_millis(100));
    }
    id
}

fn main() {
    let given = std::env::args()
        .skip(1)
        .find_map(|argument| argument.parse().ok());
    let pairs: usize = given.unwrap_or(PAIRS);
    let server = Server::start(&["--no-shipped-pair", "--pair", PAIR]);
    pin_to_last_core();
    let _ = between_pieces(&server);
    let (mut medians, mut tails) = (Vec::new(), Vec::new());
    for _ in 0..pairs {
        let idle = between_pieces(&server);
        let job = start_training(&server);
        let busy = between_pieces(&server);
        ask(
            &server,
            "POST",
            &format!("/v1/fine_tuning/jobs/{job}/cancel"),
            &json!({}),
        );
        std::thread::sleep(Duration::from_secs(1));
        medians.push((at(&busy, 0.5), at(&idle, 0.5)));
        tails.push((at(&busy, 0.99), at(&idle, 0.99)));
    }
    for (name, mut figures) in [("median", medians), ("99th percentile", tails)] {
        figures.sort_by(|left, right| (left.0 / left.1).total_cmp(&(right.0 / right.1)));
        let (busy, idle) = figures[figures.len() / 2];
        println!(
            "{name} between two pieces while a training runs: {:.2} times an idle machine's ({:.2} to {:.2} ms, \
             median of {pairs} pairs)",
            busy / idle,
            busy * 1e3,
            idle * 1e3
        );
    }
}
