//! What serving many clients costs, over HTTP on the shipped pair: `cargo bench --bench serving [-- PAIRS] [WORD]`;
//! with a word, only the lines that have it.
//!
//! Each line compares two ways of doing the same amount of work, run in turns (which goes first changes every time):
//! the median of the ratios of their tokens a second, with a 95% interval from the order statistics. The clients
//! are pinned to the last core, the server is not.
//!
//! The lines of first tokens are of one client: prompts that begin like an earlier one against prompts that nobody asked
//! before. `CAUSEWAY_BENCH_MODEL=DIR` adds one for the model in a directory, with a beginning of 2,000 tokens or as many
//! as its context has room for.

mod server;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Barrier, Mutex};
use std::time::Instant;

use serde_json::{Value, json};

use server::{PAIR, Server, pin_to_last_core};

const TOKENS: usize = 64;
/// How often each request of a line is sent in one measurement.
const ROUNDS: usize = 4;
const PAIRS: usize = 20;
/// Tokens that the prompts of a line of first tokens have in common, where the context has room for them.
const SHARED: usize = 2000;
/// Tokens of such a prompt that no other has.
const OWN: usize = 8;

/// One client on its own connection.
struct Client {
    stream: BufReader<TcpStream>,
    address: String,
}

impl Client {
    fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).expect("a connection");
        stream.set_nodelay(true).expect("a socket option");
        Client {
            stream: BufReader::new(stream),
            address: address.to_owned(),
        }
    }

    /// Sends one completion and returns how many tokens came back.
    fn complete(&mut self, body: &str) -> usize {
        let answer = self.send("POST /v1/completions", body);
        answer["usage"]["completion_tokens"]
            .as_u64()
            .expect("a count") as usize
    }

    /// Sends a request and returns the JSON that came back.
    fn send(&mut self, target: &str, body: &str) -> Value {
        let head = format!(
            "{target} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        let stream = self.stream.get_mut();
        stream.write_all((head + body).as_bytes()).expect("sent");
        let mut length = 0;
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("a status");
        assert!(line.contains(" 200 "), "{line}");
        loop {
            line.clear();
            self.stream.read_line(&mut line).expect("a header");
            if line == "\r\n" {
                break;
            }
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().expect("a length");
            }
        }
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer).expect("an answer");
        serde_json::from_slice(&answer).expect("JSON")
    }
}

/// Tokens a second of all bodies, by so many clients at once.
fn tokens_per_second(server: &Server, bodies: &[String], clients: usize) -> f64 {
    let next = Mutex::new((0..ROUNDS).flat_map(|_| bodies));
    let tokens = Mutex::new(0);
    let started = Mutex::new(None);
    let barrier = Barrier::new(clients);
    std::thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                pin_to_last_core();
                let mut client = Client::connect(&server.address);
                if barrier.wait().is_leader() {
                    *started.lock().expect("a lock") = Some(Instant::now());
                }
                barrier.wait();
                loop {
                    let Some(body) = next.lock().expect("a lock").next() else {
                        return;
                    };
                    let count = client.complete(body);
                    *tokens.lock().expect("a lock") += count;
                }
            });
        }
    });
    let started = started.lock().expect("a lock").expect("a start");
    let tokens = *tokens.lock().expect("a lock");
    assert_eq!(
        tokens,
        ROUNDS * bodies.len() * TOKENS,
        "every answer is as long as asked for"
    );
    tokens as f64 / started.elapsed().as_secs_f64()
}

/// First tokens a second of a prompt that nobody asked before; what stands before its own last tokens is new as well, or
/// always the same.
fn first_token(server: &Server, model: &str, shared: usize, number: u32, new: bool) -> f64 {
    // Ids that every model has.
    let mut prompt: Vec<u32> = (0..shared as u32)
        .map(|at| (at * 7 + at / 3) % 900)
        .collect();
    if new {
        (prompt[0], prompt[1]) = (900 + number % 64, number / 64);
    }
    prompt.extend((0..OWN as u32).map(|at| (number + at * 31) % 900));
    let body =
        json!({"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0}).to_string();
    let timed = || {
        pin_to_last_core();
        let mut client = Client::connect(&server.address);
        let started = Instant::now();
        client.send("POST /v1/completions", &body);
        started.elapsed().as_secs_f64()
    };
    // On a thread of its own: servers are started from this one, and are not pinned.
    1.0 / std::thread::scope(|scope| scope.spawn(timed).join().expect("an answer"))
}

/// Compares first tokens of prompts with a beginning that is known with those of new ones.
fn compare_first_tokens(server: &Server, model: &str, pairs: usize) {
    let described = Client::connect(&server.address).send(&format!("GET /v1/models/{model}"), "");
    let context = described["context_length"].as_u64().expect("a length") as usize;
    let shared = SHARED.min(context - OWN - 1);
    let numbers = AtomicU32::new(0);
    let first = |new| {
        let number = numbers.fetch_add(1, Ordering::Relaxed);
        first_token(server, model, shared, number, new)
    };
    compare(
        &format!("first tokens of {model} behind {shared} known tokens against new ones"),
        pairs,
        || first(false),
        || first(true),
    );
}

fn body(index: usize, steer: Option<Value>) -> String {
    // The end of the text would end answers early.
    let mut body = json!({
        "model": "tinypython", "prompt": format!("def compute_{index}(first, second):\n    total = "),
        "max_tokens": TOKENS, "temperature": 1, "seed": index, "logit_bias": {"2047": -100}
    });
    if let Some(steer) = steer {
        body["steer"] = steer;
    }
    body.to_string()
}

/// Runs both in turns and prints the median ratio of `one` to `other`.
fn compare(name: &str, pairs: usize, mut one: impl FnMut() -> f64, mut other: impl FnMut() -> f64) {
    let (mut ratios, mut speeds) = (Vec::new(), Vec::new());
    // Once for nothing: caches are allocated at the first request.
    let _ = (one(), other());
    for pair in 0..pairs {
        let (ours, theirs) = match pair % 2 {
            0 => {
                let ours = one();
                (ours, other())
            }
            _ => {
                let theirs = other();
                (one(), theirs)
            }
        };
        ratios.push(ours / theirs);
        speeds.push((ours, theirs));
    }
    ratios.sort_by(f64::total_cmp);
    // The ranks between which the median lies in 95% of samples: n/2 -+ 1.96 sqrt(n)/2.
    let spread = 0.98 * (pairs as f64).sqrt();
    let rank = |at: f64| ratios[(at.max(0.0) as usize).min(pairs - 1)];
    let middle = pairs as f64 / 2.0;
    let mean = |of: fn(&(f64, f64)) -> f64| speeds.iter().map(of).sum::<f64>() / pairs as f64;
    println!(
        "{name}: {:.3} [{:.3}, {:.3}] ({:.0} to {:.0} tokens/s, {pairs} pairs)",
        (rank(middle - 0.5) + rank(middle)) / 2.0,
        rank((middle - spread).floor()),
        rank((middle + spread).ceil()),
        mean(|speeds| speeds.0),
        mean(|speeds| speeds.1),
    );
}

fn main() {
    let given = std::env::args()
        .skip(1)
        .find_map(|argument| argument.parse().ok());
    let pairs: usize = given.unwrap_or(PAIRS);
    let word = std::env::args()
        .skip(1)
        .find(|argument| argument.parse::<usize>().is_err() && !argument.starts_with("--"));
    let wanted = |name: &str| {
        word.as_ref()
            .is_none_or(|word| name.contains(word.as_str()))
    };
    let server = Server::start(&["--no-shipped-pair", "--pair", PAIR]);

    let plain = |count: usize| {
        (0..count)
            .map(|index| body(index, None))
            .collect::<Vec<_>>()
    };
    let edited = |edit: &dyn Fn(usize) -> Value| {
        let steer = |index| json!({"edits": [edit(index)]});
        (0..64)
            .map(|index| body(index, Some(steer(index))))
            .collect::<Vec<_>>()
    };
    let feature = |index: usize| json!({"node": "1.resid_mid", "channel": 3 + index % 64});
    let adds = edited(
        &|index| json!({"feature": feature(index), "op": "add", "value": 0.1 + 0.01 * index as f64}),
    );
    let sets = edited(
        &|index| json!({"feature": feature(index), "op": "set", "value": 0.1 + 0.01 * index as f64, "read": "sparse"}),
    );
    let shared =
        edited(&|_| json!({"feature": feature(0), "op": "set", "value": 0.1, "read": "sparse"}));
    let (few, many) = (plain(32), plain(64));

    let lines: [(&str, &[String], &[String], usize); 3] = [
        (
            "32 clients at once against one after another",
            &few,
            &few,
            1,
        ),
        (
            "64 rows with 64 different adds against 64 unsteered",
            &adds,
            &many,
            64,
        ),
        (
            "64 rows with 64 different sets, read from the sparse model, against one shared edit",
            &sets,
            &shared,
            64,
        ),
    ];
    for (name, one, other, clients) in lines {
        if wanted(name) {
            compare(
                name,
                pairs,
                || tokens_per_second(&server, one, one.len()),
                || tokens_per_second(&server, other, clients),
            );
        }
    }
    if wanted("first tokens") {
        compare_first_tokens(&server, "tinypython", pairs);
        if let Ok(directory) = std::env::var("CAUSEWAY_BENCH_MODEL") {
            let model = format!("given={directory}");
            let given = Server::start(&["--no-shipped-pair", "--model", &model]);
            compare_first_tokens(&given, "given", pairs);
        }
    }
    let name = "nobody steers: with the sparse model loaded against without";
    if wanted(name) {
        // Both as new as each other: the first server has seen every kind of request by now.
        let pair = Server::start(&["--no-shipped-pair", "--pair", PAIR]);
        let dense_only = Server::start(&[
            "--no-shipped-pair",
            "--model",
            &format!("tinypython={PAIR}/dense"),
        ]);
        compare(
            name,
            pairs,
            || tokens_per_second(&pair, &many, 64),
            || tokens_per_second(&dense_only, &many, 64),
        );
    }
}
