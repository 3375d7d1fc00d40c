//! A server on a free port and a client that says exactly what is sent.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use actix_web::dev::ServerHandle;
use actix_web::web;
use causeway::api::{loading, server};
use causeway::generation::health::{NoProbe, Probe};
use causeway::serving::data_directory::DataDirectory;
use causeway::settings::{HubSettings, JobSettings, Settings};
use serde_json::Value;

use crate::document::Exchange;
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
        // Threads of the old server may still be ending, and with them its hold on the data.
        let data = directory.join("data");
        let is_free = || DataDirectory::take(&data).is_ok();
        let is_free_soon = (0..3000).any(|_| {
            let is_free = is_free();
            if !is_free {
                std::thread::sleep(Duration::from_millis(10));
            }
            is_free
        });
        assert!(is_free_soon, "the old server never lets go of its data");
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
            library: directory.join("library"),
            program: env!("CARGO_BIN_EXE_causeway").into(),
            jobs: JobSettings {
                // A worker runs the program, which a test is not.
                workers: 0,
                ..JobSettings::default()
            },
            hub: HubSettings {
                // Nobody is there: no test asks a hub of the world.
                endpoint: "http://127.0.0.1:9".to_owned(),
                ..HubSettings::default()
            },
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
        let mut stream = TcpStream::connect(self.address).unwrap();
        let headers = [headers, &[("connection", "close")]].concat();
        let head = self.head(method, path, &headers, body.len());
        stream.write_all(head.as_bytes()).unwrap();
        // A server that refuses a body may close before it has read it all.
        let _ = stream.write_all(body);
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        let response = Response::parse(&answer)
            .unwrap_or_else(|| panic!("no answer to {method} {path}: {read:?}"));
        response.is_documented(method, path, body);
        response
    }

    /// A request's head as it goes over the wire.
    pub fn head(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        length: usize,
    ) -> String {
        let mut head = format!("{method} {path} HTTP/1.1\r\n");
        if !headers.iter().any(|(name, _)| *name == "host") {
            head += &format!("host: {}\r\n", self.address);
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head + &format!("content-length: {length}\r\n\r\n")
    }

    /// A connection on which a body's beginning has been sent to where completions are made, all of it or less.
    pub fn begin(&self, body: &Value, share: f64) -> TcpStream {
        let body = body.to_string();
        let headers = [("content-type", "application/json")];
        let request = self.head("POST", "/v1/completions", &headers, body.len()) + &body;
        let sent = (request.len() as f64 * share) as usize;
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.write_all(&request.as_bytes()[..sent]).unwrap();
        stream
    }

    /// The values of metrics at one moment.
    pub fn metrics<const N: usize>(&self, names: [&str; N]) -> [f64; N] {
        let metrics = self.get("/metrics").body;
        names.map(|name| {
            let line = metrics.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|value| value.trim().parse().ok())
                .unwrap_or_else(|| panic!("no {name}"))
        })
    }

    pub fn metric(&self, name: &str) -> f64 {
        let [value] = self.metrics([name]);
        value
    }

    /// Waits until nothing of any completion is left in the engine.
    pub fn wait_until_idle(&self) {
        let gauges = [
            "causeway_requests_running",
            "causeway_requests_waiting",
            "causeway_kv_cache_usage_ratio",
        ];
        wait_until("it is idle", || self.metrics(gauges) == [0.0; 3]);
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
    /// Of a file, what of it is text.
    pub body: String,
    pub bytes: Vec<u8>,
}

impl Response {
    /// None if it is not whole.
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
            None => body
                .get(..headers.get("content-length")?.parse().ok()?)?
                .to_vec(),
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
        let is_file =
            headers.get("content-type").map(String::as_str) == Some("application/octet-stream");
        let text = match is_file {
            true => String::from_utf8_lossy(&body).into_owned(),
            false => String::from_utf8(body.clone()).ok()?,
        };
        Some(Response {
            status,
            headers,
            body: text,
            bytes: body,
        })
    }

    /// Holds the request and this answer to it against the document.
    #[track_caller]
    fn is_documented(&self, method: &str, target: &str, sent: &[u8]) {
        let exchange = Exchange {
            method,
            target,
            sent,
            status: self.status,
            headers: &self.headers,
            body: &self.body,
        };
        exchange.check();
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

    #[track_caller]
    pub fn status_is(&self, status: u16) {
        assert_eq!(self.status, status, "{}", self.body);
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
        assert_eq!(self.error_problem(), None, "{}", self.body);
        let error = &self.json()["error"];
        assert_eq!(error["param"], Value::from(param), "{error}");
        assert_eq!(error["code"], Value::from(code), "{error}");
    }

    /// Holds an error of a field of the request against it.
    #[track_caller]
    pub fn blames(&self, param: &str) {
        assert!(matches!(self.status, 400 | 404), "{}", self.body);
        assert_eq!(self.error_problem(), None, "{}", self.body);
        assert_eq!(self.json()["error"]["param"], param, "{}", self.body);
    }

    /// What an error's answer lacks of the shape that all errors have.
    pub fn error_problem(&self) -> Option<String> {
        let Ok(body) = serde_json::from_str::<Value>(&self.body) else {
            return Some("the body is no JSON".to_owned());
        };
        let error = &body["error"];
        let keys = |value: &Value| value.as_object().map_or(0, serde_json::Map::len);
        let kind = match self.status {
            ..500 => "invalid_request_error",
            _ => "server_error",
        };
        let optional = |key| {
            error
                .get(key)
                .is_some_and(|value| value.is_null() || value.is_string())
        };
        let content_type = self.headers.get("content-type").map(String::as_str);
        let wants = [
            ("one object", keys(&body) == 1 && keys(error) == 4),
            (
                "a message",
                error["message"]
                    .as_str()
                    .is_some_and(|message| !message.is_empty()),
            ),
            ("its type", error["type"] == kind),
            ("a param", optional("param")),
            ("a code", optional("code")),
            ("a request id", self.headers.contains_key("x-request-id")),
            (
                "JSON's content type",
                content_type == Some("application/json"),
            ),
        ];
        let missing = wants.iter().find(|(_, there)| !there);
        missing.map(|(what, _)| format!("the error has not {what}"))
    }
}

/// Requests one after another on one connection, and on a new one where the server has closed it.
pub struct Connection<'s> {
    server: &'s Server,
    kept: Option<TcpStream>,
}

impl<'s> Connection<'s> {
    pub fn new(server: &'s Server) -> Self {
        Connection { server, kept: None }
    }

    /// Sends JSON, or what is meant to look like it.
    pub fn send(&mut self, method: &str, path: &str, body: &[u8]) -> Response {
        let headers = [("content-type", "application/json")];
        let head = self.server.head(method, path, &headers, body.len());
        let request = [head.as_bytes(), body].concat();
        let kept = self.kept.take();
        let again = || self.exchange(TcpStream::connect(self.server.address).unwrap(), &request);
        let answered = kept
            .and_then(|stream| self.exchange(stream, &request))
            .or_else(again);
        let (response, stream) = answered.unwrap_or_else(|| panic!("no answer to {method} {path}"));
        let closes = response.headers.get("connection").map(String::as_str) == Some("close");
        self.kept = (!closes).then_some(stream);
        response.is_documented(method, path, body);
        response
    }

    /// None where the connection ends before the answer does.
    fn exchange(&self, mut stream: TcpStream, request: &[u8]) -> Option<(Response, TcpStream)> {
        // A server that refuses a body may close before it has read it all.
        let _ = stream.write_all(request);
        let (mut answer, mut piece) = (Vec::new(), [0; 1 << 16]);
        loop {
            let length = stream.read(&mut piece).ok().filter(|&length| length > 0)?;
            answer.extend_from_slice(&piece[..length]);
            if let Some(response) = Response::parse(&answer) {
                return Some((response, stream));
            }
        }
    }
}

/// Waits for what must come; a minute without it is a failure.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(20));
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
