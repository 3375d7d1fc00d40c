//! `causeway serve` as a process: it starts, answers, and ends when told to.

use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

use crate::tiny_pair;

fn serve(directory: &Path, listen: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_causeway"))
        .args(["serve", "--listen", listen, "--pair"])
        .arg(directory.join("pair"))
        .arg("--data-dir")
        .arg(directory.join("data"))
        .env("NO_COLOR", "1")
        .env_remove("RUST_LOG")
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
        let directory =
            std::env::temp_dir().join(format!("causeway-serve-{}", uuid::Uuid::new_v4()));
        tiny_pair::write(&directory.join("pair"));
        let mut child = serve(&directory, "127.0.0.1:0");
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = log
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| Some(line.split_once("listening on http://")?.1.trim().to_owned()))
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
        let rest = self.log.map(Result::unwrap).collect();
        assert!(self.child.wait().unwrap().success());
        let _ = std::fs::remove_dir_all(&self.directory);
        rest
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
    let key = printed
        .lines()
        .find_map(|line| line.strip_prefix("# ck-"))
        .expect("a key");
    let hash = Sha256::digest(format!("ck-{key}"));
    let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    let settings: toml::Table = printed.parse().unwrap();
    let settings = &settings["keys"].as_array().unwrap()[0];
    assert_eq!(settings["sha256"].as_str(), Some(hash.as_str()));
    assert_eq!(settings["name"].as_str(), Some("alice"));
}

#[test]
fn other_machines_are_not_let_in_unless_told() {
    let child = serve(Path::new("."), "0.0.0.0:0");
    let output = child.wait_with_output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(log.contains("--allow-remote"), "{log}");
}
