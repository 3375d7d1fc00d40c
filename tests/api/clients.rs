//! Clients that are slow, that do not read, that hide, or whose page is another site's: none of them is at others'
//! cost.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use causeway::settings::keys::Role;
use serde_json::json;

use crate::client::{Server, wait_until};
use crate::keys::key;

/// What is far longer than anything here may take, and far shorter than for ever.
const LONG: Duration = Duration::from_secs(20);

/// A head for a body of which nothing comes.
fn head(server: &Server, path: &str, key: Option<&str>, length: &str) -> String {
    let key = key.map_or(String::new(), |key| {
        format!("authorization: Bearer {key}\r\n")
    });
    format!(
        "POST {path} HTTP/1.1\r\nhost: {}\r\n{key}content-type: application/json\r\n{length}\r\n\r\n",
        server.address
    )
}

/// Everything that comes until the server closes; panics where it does not.
fn until_closed(stream: &mut TcpStream) -> String {
    stream.set_read_timeout(Some(LONG)).unwrap();
    let (mut answer, mut piece) = (Vec::new(), [0; 1 << 12]);
    loop {
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => answer.extend_from_slice(&piece[..length]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(error) => panic!("the connection stays open: {error}"),
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn a_body_that_does_not_come_is_not_waited_for() {
    let server = Server::with(|settings| {
        settings.limits.body_seconds = 1;
        settings.limits.unread_seconds = 1;
        settings.keys = vec![key("reader", Role::Infer, None)];
    });
    for length in ["content-length: 1000", "transfer-encoding: chunked"] {
        let mut stream = TcpStream::connect(server.address).unwrap();
        let head = head(&server, "/v1/completions", Some("ck-reader"), length);
        stream.write_all(head.as_bytes()).unwrap();
        let answer = until_closed(&mut stream);
        assert!(answer.starts_with("HTTP/1.1 400"), "{length}: {answer}");
        assert!(answer.contains("slow_body"), "{answer}");
        assert!(answer.contains("limits.body_seconds"), "{answer}");
    }
}

#[test]
fn whoever_is_not_let_in_is_answered_before_the_body_and_goes() {
    let server = Server::with(|settings| {
        settings.limits.unread_seconds = 1;
        settings.keys = vec![key("reader", Role::Infer, None)];
    });
    for length in ["content-length: 1000", "transfer-encoding: chunked"] {
        let mut stream = TcpStream::connect(server.address).unwrap();
        let head = head(&server, "/v1/completions", None, length);
        stream.write_all(head.as_bytes()).unwrap();
        // Some of the body comes, and would go on coming.
        stream.write_all(b"5\r\n     \r\n").unwrap();
        let answer = until_closed(&mut stream);
        assert!(answer.starts_with("HTTP/1.1 401"), "{length}: {answer}");
    }
}

#[test]
fn an_answer_that_nobody_reads_is_given_up() {
    let server = Server::with(|settings| settings.limits.unread_seconds = 1);
    let mut stream = TcpStream::connect(server.address).unwrap();
    let request = "GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(400);
    // As many answers as fit nowhere, of which nothing is read.
    stream.set_write_timeout(Some(LONG)).unwrap();
    let _ = stream.write_all(request.as_bytes());
    let started = Instant::now();
    loop {
        // Writing fails once the server has closed the connection.
        let sent = stream.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n");
        if sent.is_err() {
            break;
        }
        assert!(started.elapsed() < LONG, "it is kept for ever");
        std::thread::sleep(Duration::from_millis(50));
    }
    server.get("/livez").ok();
}

#[test]
fn long_answers_wait_in_bounded_room() {
    let server = Server::with(|settings| settings.limits.max_unsent_bytes = 300_000);
    let length = server.get("/openapi.json").body.len();
    assert!(length > 150_000, "two of them must not fit");
    // One that reads nothing takes the room.
    let mut idle = TcpStream::connect(server.address).unwrap();
    let requests = "GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(400);
    idle.set_nonblocking(true).unwrap();
    let _ = idle.write(requests.as_bytes());
    wait_until("there is no room", || {
        let refused = server.get("/openapi.json");
        if refused.status == 200 {
            return false;
        }
        refused.is_error(503, None, Some("overloaded"));
        assert!(refused.headers.contains_key("retry-after"));
        refused.body.contains("limits.max_unsent_bytes")
    });
    drop(idle);
    wait_until("there is room again", || {
        server.get("/openapi.json").status == 200
    });
}

#[test]
fn a_client_that_has_sent_more_is_seen_to_leave() {
    let server = Server::with(|settings| settings.limits.max_generated_tokens = 1 << 20);
    let long = json!({
        "model": "tiny", "prompt": ["x = 1", "y = 2", "def f():", "import os"], "n": 128, "max_tokens": 60, "seed": 5
    });
    let mut socket = server.begin(&long, 1.0);
    socket
        .write_all(
            b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"
                .repeat(64)
                .as_slice(),
        )
        .unwrap();
    let running = || server.metric("causeway_requests_running");
    wait_until("it is begun", || running() == 1.0);
    drop(socket);
    server.wait_until_idle();
    let abandoned = server.get("/metrics").body;
    let ended = r#"causeway_requests_total{endpoint="/v1/completions",outcome="abandoned"} 1"#;
    assert!(abandoned.contains(ended), "{abandoned}");
}

#[test]
fn pages_of_other_sites_change_nothing() {
    let server = Server::new();
    let own = format!("http://{}", server.address);
    let json = ("content-type", "application/json");
    let ask = |path: &str, headers: &[(&str, &str)]| server.send("POST", path, headers, b"{}");
    let foreign: [&[(&str, &str)]; 5] = [
        &[("origin", "http://evil.example")],
        &[("origin", "null")],
        &[("origin", "http://localhost:1")],
        &[("sec-fetch-site", "cross-site")],
        &[("sec-fetch-site", "same-site")],
    ];
    let paths = [
        "/v1/library/tiny-bridge/unload",
        "/v1/library/tiny-bridge/load",
        "/v1/features/quote/verify",
        "/v1/files",
        "/v1/completions",
        "/v1/fine_tuning/jobs/x/cancel",
        "/nowhere",
    ];
    for path in paths {
        for headers in foreign {
            let refused = ask(path, &[headers, &[json]].concat());
            refused.is_error(403, None, Some("foreign_origin"));
        }
    }
    for method in ["DELETE", "PATCH", "PUT"] {
        let refused = server.send(method, "/v1/features/x", foreign[0], b"");
        refused.is_error(403, None, Some("foreign_origin"));
    }
    // Nothing is changed by looking, and what is the server's own may do everything.
    assert_eq!(
        server.send("GET", "/v1/models", foreign[0], b"").status,
        200
    );
    let body = json!({"model": "tiny", "prompt": "x", "max_tokens": 1}).to_string();
    for headers in [
        vec![json],
        vec![
            json,
            ("origin", own.as_str()),
            ("sec-fetch-site", "same-origin"),
        ],
        vec![json, ("sec-fetch-site", "none")],
    ] {
        let answer = server.send("POST", "/v1/completions", &headers, body.as_bytes());
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
}
