//! Clients that send much or read nothing.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::MOST_ABOVE_IDLE;
use crate::server::Server;

fn send(server: &Server, path: &str, body: &Value) -> TcpStream {
    let body = body.to_string();
    let mut stream = TcpStream::connect(&server.address).unwrap();
    stream
        .set_write_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        server.address,
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    // A server that refuses a body may close before it has read it all.
    let _ = stream.write_all(body.as_bytes());
    stream
}

/// The status of an answer.
fn status(stream: &mut TcpStream) -> u16 {
    let mut head = [0; 12];
    stream
        .set_read_timeout(Some(Duration::from_secs(120)))
        .unwrap();
    stream.read_exact(&mut head).unwrap();
    std::str::from_utf8(&head[9..]).unwrap().parse().unwrap()
}

#[test]
fn answers_that_nobody_reads_are_bounded() {
    let server = Server::start(&[]);
    let nodes: Vec<String> = (0..4)
        .map(|layer| format!("{layer}.mlp.post_act"))
        .collect();
    let tokens: Vec<u32> = (0..250).collect();
    let body = json!({"model": "tinypython-sparse", "prompt": tokens, "nodes": nodes});
    let (answered, answer) = server.post("/v1/activations", &body);
    assert_eq!(answered, 200);
    assert!(answer.len() > 2 << 20, "{} bytes", answer.len());
    drop(answer);
    let above = server.peak_above_idle(|| {
        let mut clients: Vec<TcpStream> = Vec::new();
        let mut refused = 0;
        for _ in 0..100 {
            let mut client = send(&server, "/v1/activations", &body);
            // Its head tells how it was answered; the rest stays unread.
            match status(&mut client) {
                200 => clients.push(client),
                503 => refused += 1,
                other => panic!("answered {other}"),
            }
        }
        assert!(refused > 0, "all {} answers are kept", clients.len());
    });
    assert!(above <= MOST_ABOVE_IDLE, "{above} bytes");
}

#[test]
fn long_bodies_are_read_beside_everything_else() {
    let server = Server::start(&[]);
    // As long as a body may be, and slow to parse: a prompt of more token ids than any context has.
    let ids = vec![1; 1_900_000];
    let body = json!({"model": "tinypython", "prompt": ids, "max_tokens": 1});
    let done = AtomicUsize::new(0);
    let above = server.peak_above_idle(|| {
        std::thread::scope(|scope| {
            for _ in 0..30 {
                scope.spawn(|| {
                    let answered = status(&mut send(&server, "/v1/completions", &body));
                    assert_eq!(answered, 400);
                    done.fetch_add(1, Ordering::Relaxed);
                });
            }
            let mut asked = 0;
            while done.load(Ordering::Relaxed) < 30 {
                let (alive, _) = server.get("/livez");
                assert_eq!(alive, 200);
                asked += 1;
            }
            assert!(
                asked > 3,
                "{asked} questions were answered beside thirty bodies"
            );
        });
    });
    assert!(above <= MOST_ABOVE_IDLE, "{above} bytes");
}
