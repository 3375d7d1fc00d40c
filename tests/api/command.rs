//! `causeway serve` as a process: it starts, answers, and ends when told to.

use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

use crate::tiny_pair;

fn serve(directory: &Path, listen: &str, environment: &[(&str, &str)]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_causeway"))
        .args(["serve", "--listen", listen, "--no-shipped-pair", "--pair"])
        .arg(directory.join("pair"))
        .arg("--data-dir")
        .arg(directory.join("data"))
        .env("NO_COLOR", "1")
        .env_remove("RUST_LOG")
        .envs(environment.iter().copied())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// A server process with the tiny pair.
struct Process {
    child: Child,
    log: Lines<BufReader<ChildStderr>>,
    address: String,
    directory: PathBuf,
}

impl Process {
    fn start() -> Self {
        Self::with(&[])
    }

    fn with(environment: &[(&str, &str)]) -> Self {
        let directory =
            std::env::temp_dir().join(format!("causeway-serve-{}", uuid::Uuid::new_v4()));
        tiny_pair::write(&directory.join("pair"));
        let mut child = serve(&directory, "127.0.0.1:0", environment);
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = log
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| {
                let (_, rest) = line.split_once("listening on http://")?;
                // A line of JSON goes on behind the address.
                let address = rest.split(['"', ' ']).next()?;
                Some(address.to_owned())
            })
            .expect("it says where it listens");
        Process {
            child,
            log,
            address,
            directory,
        }
    }

    fn terminate(&self) {
        let process = self.child.id().to_string();
        let kill = Command::new("kill").args(["-TERM", &process]).status();
        assert!(kill.unwrap().success());
    }

    /// Waits for its end, which must be a good one, and returns what it has logged since its start.
    fn end(mut self) -> Vec<String> {
        let rest = self.log.by_ref().map(Result::unwrap).collect();
        assert!(self.child.wait().unwrap().success());
        rest
    }
}

/// Nothing is left behind, however a test ends.
impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

#[cfg(unix)]
#[test]
fn it_answers_until_it_is_told_to_stop() {
    let process = Process::start();
    let address = &process.address;
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "GET /readyz HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let ready = Command::new(env!("CARGO_BIN_EXE_causeway"))
        .args(["ready", &format!("http://{address}")])
        .output()
        .unwrap();
    assert!(ready.status.success(), "{ready:?}");
    process.terminate();
    let rest = process.end();
    assert!(
        rest.iter().any(|line| line.ends_with("stopped")),
        "{rest:?}"
    );
}

#[cfg(unix)]
#[test]
fn streams_that_have_begun_are_ended_before_it_stops() {
    let process = Process::start();
    let body = r#"{"model": "tiny", "prompt": "x", "max_tokens": 40, "n": 64, "stream": true}"#;
    let mut stream = TcpStream::connect(&process.address).unwrap();
    write!(
        stream,
        "POST /v1/completions HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        process.address,
        body.len()
    )
    .unwrap();
    let mut answer = BufReader::new(stream).lines().map(Result::unwrap);
    let first = answer.find(|line| line.starts_with("data: "));
    assert!(first.is_some());
    process.terminate();
    let rest: Vec<String> = answer.collect();
    let rest = rest.join("\n");
    assert!(rest.contains("data: [DONE]"), "{rest}");
    let finished = rest.matches("\"finish_reason\":\"").count();
    assert!(finished >= 63, "{finished} of 64 choices came to their end");
    process.end();
}

#[test]
fn what_the_settings_come_to_can_be_printed() {
    let output = Command::new(env!("CARGO_BIN_EXE_causeway"))
        .args([
            "serve",
            "--print-config",
            "--listen",
            "127.0.0.1:7",
            "--model",
            "m=somewhere",
        ])
        .env("CAUSEWAY_LIMITS__MAX_PROMPTS", "3")
        .output()
        .unwrap();
    assert!(output.status.success());
    let printed = String::from_utf8(output.stdout).unwrap();
    let printed: toml::Table = printed.parse().unwrap();
    assert_eq!(printed["listen"].as_str(), Some("127.0.0.1:7"));
    assert_eq!(printed["limits"]["max_prompts"].as_integer(), Some(3));
    assert_eq!(printed["models"]["m"].as_str(), Some("somewhere"));
}

#[test]
fn a_new_key_fits_its_hash() {
    use sha2::{Digest, Sha256};
    let output = Command::new(env!("CARGO_BIN_EXE_causeway"))
        .args(["key", "alice"])
        .output()
        .unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let shown = String::from_utf8(output.stderr).unwrap();
    let key = shown
        .lines()
        .find_map(|line| line.strip_prefix("ck-"))
        .expect("a key");
    assert!(!printed.contains(key), "a file keeps its hash only");
    let hash = Sha256::digest(format!("ck-{key}"));
    let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    let settings: toml::Table = printed.parse().unwrap();
    let settings = &settings["keys"].as_array().unwrap()[0];
    assert_eq!(settings["sha256"].as_str(), Some(hash.as_str()));
    assert_eq!(settings["name"].as_str(), Some("alice"));
}

/// The way that the documentation describes: the example, and what `causeway key` prints behind it.
#[test]
fn a_new_key_can_be_put_behind_the_example_of_settings() {
    let print = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_causeway"))
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/server.toml");
    let defaults = print(&["serve", "--print-config"]);
    for settings in [std::fs::read_to_string(example).unwrap(), defaults] {
        let file = tempfile::NamedTempFile::new().unwrap();
        let both = settings + &print(&["key", "alice"]) + &print(&["key", "bob"]);
        std::fs::write(file.path(), both).unwrap();
        let path = file.path().to_str().unwrap();
        let printed = print(&["serve", "--config", path, "--print-config"]);
        let printed: toml::Table = printed.parse().unwrap();
        assert_eq!(printed["keys"].as_array().unwrap().len(), 2);
    }
}

#[test]
fn naming_a_model_does_not_take_the_shipped_pair_away() {
    let pairs = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_causeway"))
            .args(["serve", "--print-config", "--model", "m=somewhere"])
            .args(arguments)
            .output()
            .unwrap();
        let printed: toml::Table = String::from_utf8(output.stdout).unwrap().parse().unwrap();
        printed["pairs"].as_array().unwrap().len()
    };
    assert_eq!(pairs(&[]), 1);
    assert_eq!(pairs(&["--no-shipped-pair"]), 0);
    // Named as well, it is served once.
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/bridges/tinypython");
    assert_eq!(pairs(&["--pair", shipped]), 1);
}

#[test]
fn whoever_is_not_there_is_named() {
    // Bound and closed again: nobody listens there.
    let address = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let url = format!("http://{address}");
    for arguments in [vec!["ready", &url], vec!["jobs", "list", "--server", &url]] {
        let output = Command::new(env!("CARGO_BIN_EXE_causeway"))
            .args(&arguments)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success());
        assert!(
            said.contains(&url) && said.contains("refused"),
            "{arguments:?}: {said}"
        );
    }
}

#[cfg(unix)]
#[test]
fn a_log_that_goes_to_a_file_has_no_colours_and_a_server_keeps_nothing_here() {
    let here = tempfile::tempdir().unwrap();
    tiny_pair::write(&here.path().join("pair"));
    let mut child = Command::new(env!("CARGO_BIN_EXE_causeway"))
        .args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--no-shipped-pair",
            "--pair",
            "pair",
        ])
        .current_dir(here.path())
        .env("XDG_DATA_HOME", here.path().join("home"))
        .env_remove("NO_COLOR")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut lines = Vec::new();
    for line in log.by_ref().map_while(Result::ok) {
        let listening = line.contains("listening on");
        lines.push(line);
        if listening {
            break;
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(
        lines.iter().all(|line| !line.contains('\u{1b}')),
        "{lines:?}"
    );
    assert!(here.path().join("home/causeway").is_dir());
    assert!(!here.path().join("data").exists());
}

/// A body that does not come holds up nobody's end.
#[cfg(unix)]
#[test]
fn a_slow_body_does_not_keep_a_server_from_stopping() {
    let process = Process::start();
    let mut stream = TcpStream::connect(&process.address).unwrap();
    write!(
        stream,
        "POST /v1/completions HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{{",
        process.address
    )
    .unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    let started = std::time::Instant::now();
    process.terminate();
    process.end();
    // Far from the 30 seconds that requests in progress may take.
    assert!(started.elapsed().as_secs() < 15, "{:?}", started.elapsed());
}

/// What one server has acknowledged is not overwritten by another.
#[test]
fn a_second_server_on_a_data_directory_is_refused() {
    let process = Process::start();
    let second = serve(&process.directory, "127.0.0.1:0", &[]);
    let output = second.wait_with_output().unwrap();
    assert!(!output.status.success());
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        error.contains("another server keeps its data in") && error.contains("--data-dir"),
        "{error}"
    );
}

#[test]
fn other_machines_are_not_let_in_unless_told() {
    let child = serve(Path::new("."), "0.0.0.0:0", &[]);
    let output = child.wait_with_output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(log.contains("--allow-remote"), "{log}");
}

/// Answers whatever comes with 200, and keeps it.
fn collector() -> (String, std::sync::mpsc::Receiver<Vec<u8>>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let (mut length, mut line) = (0, String::new());
            while line != "\r\n" {
                line.clear();
                stream.read_line(&mut line).unwrap();
                if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).unwrap();
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            stream.get_mut().write_all(answer).unwrap();
            if sender.send(body).is_err() {
                return;
            }
        }
    });
    (address, receiver)
}

#[cfg(unix)]
#[test]
fn a_request_is_a_span_of_its_caller_s_trace_and_a_line_of_the_log() {
    let (address, spans) = collector();
    let endpoint = format!("http://{address}/v1/traces");
    let process = Process::with(&[
        ("CAUSEWAY_TELEMETRY__TRACES_ENDPOINT", endpoint.as_str()),
        ("CAUSEWAY_TELEMETRY__LOG", "json"),
    ]);
    let trace: [u8; 16] = std::array::from_fn(|at| at as u8 + 1);
    let hexadecimal: String = trace.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut stream = TcpStream::connect(&process.address).unwrap();
    write!(
        stream,
        "GET /v1/models/tiny HTTP/1.1\r\nhost: {}\r\nconnection: close\r\nx-request-id: mine\r\n\
         traceparent: 00-{hexadecimal}-00f067aa0ba902b7-01\r\n\r\n",
        process.address
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    process.terminate();
    let log = process.end();
    let lines = log.iter().map(|line| serde_json::from_str(line).unwrap());
    let lines: Vec<serde_json::Value> = lines.collect();
    let answered = |line: &&serde_json::Value| line["fields"]["message"] == "answered";
    let answered = lines.iter().find(answered).expect("a line of the request");
    assert_eq!(answered["span"]["request_id"], "mine");
    assert_eq!(answered["fields"]["status"], 200);
    let sent: Vec<u8> = spans.try_iter().flatten().collect();
    let contains = |part: &[u8]| sent.windows(part.len()).any(|window| window == part);
    assert!(contains(&trace), "the caller's trace goes on");
    let readable = String::from_utf8_lossy(&sent);
    assert!(
        readable.contains("GET /v1/models/{id}"),
        "named by its route: {readable}"
    );
}
