//! A server on a free port and a client that says exactly what is sent.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;

use actix_web::dev::ServerHandle;
use actix_web::web;
use causeway::api::{loading, server};
use causeway::generation::soundness::{NoProbe, Probe};
use causeway::settings::Settings;
use serde_json::Value;

use crate::tiny_pair;

/// A running server; it stops when dropped, and its files go with it.
pub struct Server {
    pub address: SocketAddr,
    pub directory: PathBuf,
    handle: ServerHandle,
    thread: Option<JoinHandle<()>>,
    keep: bool,
}

impl Server {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let directory = std::env::temp_dir().join(format!("causeway-api-{}", uuid::Uuid::new_v4()));
        tiny_pair::write(&directory.join("pair"));
        Self::in_directory(directory, change, Box::new(NoProbe))
    }

    /// One whose engine fails where the probe makes it.
    pub fn probed(probe: impl Probe + 'static) -> Self {
        let directory = std::env::temp_dir().join(format!("causeway-api-{}", uuid::Uuid::new_v4()));
        tiny_pair::write(&directory.join("pair"));
        Self::in_directory(directory, |_| {}, Box::new(probe))
    }

    /// The same server again, over the same files.
    pub fn restarted(mut self) -> Self {
        self.keep = true;
        let directory = self.directory.clone();
        drop(self);
        Self::in_directory(directory, |_| {}, Box::new(NoProbe))
    }

    fn in_directory(
        directory: PathBuf,
        change: impl FnOnce(&mut Settings),
        probe: Box<dyn Probe>,
    ) -> Self {
        let mut settings = Settings {
            data_dir: directory.join("data"),
            pairs: vec![directory.join("pair")],
            threads: 1,
            shutdown_seconds: 5,
            ..Settings::default()
        };
        change(&mut settings);
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, receiver) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            actix_web::rt::System::new().block_on(async {
                let state =
                    web::Data::new(loading::load_probed(&settings, address, probe).unwrap());
                let running = server::run(listener, state, &settings).unwrap();
                sender.send(running.handle()).unwrap();
                running.await.unwrap();
            });
        });
        let handle = receiver.recv().expect("the server starts");
        Server {
            address,
            directory,
            handle,
            thread: Some(thread),
            keep: false,
        }
    }

    pub fn get(&self, path: &str) -> Response {
        self.send("GET", path, &[], b"")
    }

    pub fn delete(&self, path: &str) -> Response {
        self.send("DELETE", path, &[], b"")
    }

    pub fn post(&self, path: &str, body: &Value) -> Response {
        self.send(
            "POST",
            path,
            &[("content-type", "application/json")],
            body.to_string().as_bytes(),
        )
    }

    pub fn patch(&self, path: &str, body: &Value) -> Response {
        self.send(
            "PATCH",
            path,
            &[("content-type", "application/json")],
            body.to_string().as_bytes(),
        )
    }

    pub fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Response {
        let mut request = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
        if !headers.iter().any(|(name, _)| *name == "host") {
            request += &format!("host: {}\r\n", self.address);
        }
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        request += &format!("content-length: {}\r\n\r\n", body.len());
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        // A server that refuses a body may close before it has read it all.
        let _ = stream.write_all(body);
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        Response::parse(&answer).unwrap_or_else(|| panic!("no answer to {method} {path}: {read:?}"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The command is sent at once; the future only waits for it to be done.
        drop(self.handle.stop(false));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if !self.keep {
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }
}

/// An answer.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Response {
    fn parse(answer: &[u8]) -> Option<Self> {
        let split = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&answer[..split]).into_owned();
        let mut lines = head.lines();
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers: BTreeMap<String, String> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
            .collect();
        let body = &answer[split + 4..];
        let body = match headers.get("transfer-encoding").map(String::as_str) {
            None => body.to_vec(),
            Some(encoding) => {
                assert_eq!(encoding, "chunked");
                let events = headers.get("content-type").map(String::as_str);
                assert_eq!(
                    events,
                    Some("text/event-stream"),
                    "other answers have a length"
                );
                unchunked(body)?
            }
        };
        let body = String::from_utf8(body).ok()?;
        Some(Response {
            status,
            headers,
            body,
        })
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    /// The events of a stream, heartbeats left out, without the `[DONE]` that ends it.
    pub fn events(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{}", self.body);
        let events = self.body.split_terminator("\n\n");
        let mut data: Vec<&str> = events
            .filter_map(|event| event.strip_prefix("data: "))
            .collect();
        assert_eq!(data.pop(), Some("[DONE]"), "{}", self.body);
        let parse = |data: &str| serde_json::from_str(data).unwrap_or_else(|_| panic!("{data}"));
        data.into_iter().map(parse).collect()
    }

    /// The body of a 200.
    #[track_caller]
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.json()
    }

    /// Holds an error against its status, param and code, and against the shape that all errors have.
    #[track_caller]
    pub fn is_error(&self, status: u16, param: Option<&str>, code: Option<&str>) {
        assert_eq!(self.status, status, "{}", self.body);
        let body = self.json();
        assert_eq!(
            body.as_object().map(serde_json::Map::len),
            Some(1),
            "{body}"
        );
        let error = &body["error"];
        let keys: Vec<&String> = error.as_object().unwrap().keys().collect();
        assert_eq!(keys.len(), 4, "{keys:?}");
        assert!(
            error["message"]
                .as_str()
                .is_some_and(|message| !message.is_empty()),
            "{error}"
        );
        let kind = if status < 500 {
            "invalid_request_error"
        } else {
            "server_error"
        };
        assert_eq!(error["type"], kind, "{error}");
        assert_eq!(error.get("param"), Some(&Value::from(param)), "{error}");
        assert_eq!(error.get("code"), Some(&Value::from(code)), "{error}");
        assert!(
            self.headers.contains_key("x-request-id"),
            "{:?}",
            self.headers
        );
        assert_eq!(
            self.headers.get("content-type").map(String::as_str),
            Some("application/json")
        );
    }
}

/// What was sent in chunks; none if the last one is missing.
fn unchunked(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|window| window == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).ok()?, 16).ok()?;
        rest = &rest[line + 2..];
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size + 2..)?;
    }
}

/// The file in which a server keeps the features made for a bridge.
pub fn kept_features(server: &Server) -> PathBuf {
    Path::new(&server.directory).join("data/features/tiny.json")
}
