//! `causeway serve` as a process: it starts, answers, and ends when told to.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

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

#[cfg(unix)]
#[test]
fn it_answers_until_it_is_told_to_stop() {
    let directory = std::env::temp_dir().join(format!("causeway-serve-{}", uuid::Uuid::new_v4()));
    tiny_pair::write(&directory.join("pair"));
    let mut child = serve(&directory, "127.0.0.1:0");
    let mut log = BufReader::new(child.stderr.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let line = log
        .find(|line| line.contains("listening on http://"))
        .expect("it says where it listens");
    let address = line.split("http://").nth(1).unwrap().trim().to_owned();
    let mut stream = TcpStream::connect(&address).unwrap();
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
    assert!(
        Command::new("kill")
            .args(["-TERM", &child.id().to_string()])
            .status()
            .unwrap()
            .success()
    );
    let rest: Vec<String> = log.collect();
    assert!(child.wait().unwrap().success());
    assert!(
        rest.iter().any(|line| line.ends_with("stopped")),
        "{rest:?}"
    );
    let _ = std::fs::remove_dir_all(&directory);
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
