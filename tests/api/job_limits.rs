//! What files and jobs may take: how many, how long, and what a recipe may ask for.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::client::{Response, Server};
use crate::jobs::{JOBS, bridge, upload};

const LINES: &[u8] = b"{\"text\": \"x = 1\\n\"}\n{\"text\": \"y = 2\\n\"}\n";

fn upload_text(server: &Server, name: &str, text: &[u8]) -> Response {
    let file = format!("file/{name}");
    upload(server, &[("purpose", b"fine-tune"), (&file, text)])
}

fn told(response: &Response) -> String {
    response.json()["error"]["message"].to_string()
}

#[test]
fn files_are_bounded_in_number_and_together() {
    let server = Server::with(|settings| {
        settings.jobs.max_files = 2;
        settings.jobs.max_files_bytes = 10_000;
    });
    let first = upload_text(&server, "a.jsonl", LINES).ok();
    upload_text(&server, "b.jsonl", LINES).ok();
    let refused = upload_text(&server, "c.jsonl", LINES);
    refused.is_error(400, Some("file"), Some("quota_exceeded"));
    assert!(
        told(&refused).contains("jobs.max_files"),
        "{}",
        refused.body
    );
    let address = format!("/v1/files/{}", first["id"].as_str().unwrap());
    server.delete(&address).ok();
    let long = format!("{}\n", "x".repeat(4_000)).repeat(3);
    let refused = upload_text(&server, "long.txt", long.as_bytes());
    refused.is_error(400, Some("file"), Some("quota_exceeded"));
    assert!(
        told(&refused).contains("jobs.max_files_bytes"),
        "{}",
        refused.body
    );
    // What was refused counts no more.
    upload_text(&server, "c.jsonl", LINES).ok();
}

#[test]
fn text_is_counted_in_characters_and_a_byte_order_mark_is_none_of_it() {
    let server = Server::new();
    let with_mark = [b"\xef\xbb\xbf", LINES].concat();
    let file = upload_text(&server, "mark.jsonl", &with_mark).ok();
    assert_eq!(file["documents"], 2);
    let line = "\u{6f22}".repeat(1024) + "\n";
    let file = upload_text(&server, "han.txt", line.repeat(8).as_bytes()).ok();
    assert_eq!(file["documents"], 2);
}

#[test]
fn jobs_are_bounded_in_number_and_those_that_have_ended_can_be_deleted() {
    let server = Server::with(|settings| settings.jobs.max_jobs = 2);
    let first = server.post(JOBS, &bridge("one")).ok();
    server.post(JOBS, &bridge("two")).ok();
    let refused = server.post(JOBS, &bridge("three"));
    refused.is_error(400, None, Some("quota_exceeded"));
    assert!(told(&refused).contains("jobs.max_jobs"), "{}", refused.body);
    let address = format!("{JOBS}/{}", first["id"].as_str().unwrap());
    server
        .delete(&address)
        .is_error(400, None, Some("wrong_status"));
    server.post(&format!("{address}/cancel"), &json!({})).ok();
    assert_eq!(server.delete(&address).ok()["deleted"], true);
    server
        .get(&address)
        .is_error(404, None, Some("job_not_found"));
    server
        .delete(&address)
        .is_error(404, None, Some("job_not_found"));
    server.post(JOBS, &bridge("three")).ok();
}

#[test]
fn lists_of_jobs_hold_no_recipes() {
    let server = Server::new();
    let mut body = bridge("one");
    let fields = &mut body["method"]["bridge"]["hyperparameters"];
    fields["terms"]["twin"] = json!({"weight": 1, "task_pairs": 0, "at": ["1.resid_in"]});
    let job = server.post(JOBS, &body).ok();
    assert_eq!(
        job["method"]["bridge"]["hyperparameters"]["batches"]["steps"],
        4
    );
    let listed = server.get(JOBS).ok()["data"][0].clone();
    assert_eq!(listed["id"], job["id"]);
    assert_eq!(listed["method"], json!({"type": "bridge"}));
    assert_eq!((&listed["steps"], &listed["seed"]), (&json!(4), &json!(3)));
}

/// Each was kept as a job once, and failed only when it ran, or kept a thread busy for minutes.
#[test]
fn recipes_are_bounded_and_checked_when_they_are_sent() {
    let server = Server::new();
    let names: Vec<String> = (0..100_000)
        .map(|name| format!("{name}.resid_mid"))
        .collect();
    let twin = |at: Value| json!({"weight": 1, "task_pairs": 1, "at": at});
    let same = vec!["1.resid_in"; 100_000];
    let long = "x".repeat(1_000_000);
    let tasks = vec!["single_double_quote"; 50_000];
    for (field, value, blamed) in [
        ("/terms/twin", twin(json!(names)), "terms.twin.at"),
        ("/terms/twin", twin(json!(same)), "terms.twin.at"),
        ("/terms/twin", twin(json!([long])), "terms.twin.at"),
        ("/watch", json!({"tasks": tasks}), "watch.tasks"),
        ("/terms/encoder", json!(-1), "terms.encoder"),
        ("/terms/decoder", json!(1e39), "terms.decoder"),
        (
            "/terms/hybrid_sequences",
            json!(u64::MAX),
            "terms.hybrid_sequences",
        ),
        (
            "/optimizer/warmup_steps",
            json!(u64::MAX),
            "optimizer.warmup_steps",
        ),
    ] {
        let mut body = bridge("absurd");
        let (parent, name) = field.rsplit_once('/').unwrap();
        let parent = format!("/method/bridge/hyperparameters{parent}");
        body.pointer_mut(&parent).unwrap()[name] = value;
        let refused = server.post(JOBS, &body);
        refused.blames(&format!("method.bridge.hyperparameters.{blamed}"));
        assert!(
            refused.body.len() < 2_000,
            "{field}: {} bytes",
            refused.body.len()
        );
    }
    // The size is looked at before the names are.
    let mut body = bridge("absurd");
    let fields = &mut body["method"]["bridge"]["hyperparameters"];
    fields["sparse"]["n_layers"] = json!(1 << 24);
    fields["terms"]["twin"] = twin(json!(["nowhere"]));
    server
        .post(JOBS, &body)
        .blames("method.bridge.hyperparameters.sparse.n_layers");
    assert_eq!(server.get(JOBS).ok()["data"], json!([]));
}

#[test]
fn what_is_started_from_need_not_be_described_again() {
    let server = Server::new();
    let mut further = bridge("further");
    let fields = &mut further["method"]["bridge"]["hyperparameters"];
    let described = fields["sparse"].take();
    server
        .post(JOBS, &further)
        .blames("method.bridge.hyperparameters.sparse");
    let fields = &mut further["method"]["bridge"]["hyperparameters"];
    fields["start_from"] = json!("tiny");
    server.post(JOBS, &further).ok();
    let fields = &mut further["method"]["bridge"]["hyperparameters"];
    fields["sparse"] = described;
    further["suffix"] = json!("other");
    server
        .post(JOBS, &further)
        .blames("method.bridge.hyperparameters.sparse");

    let mut dense = json!({"model": "tiny", "suffix": "dense", "method": {"type": "dense", "dense": {"hyperparameters": {
        "generated": {"documents": 20, "seed": 1},
        "batches": {"steps": 4, "sequences": 2, "length": 16, "seed": 3},
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 1},
    }}}});
    server
        .post(JOBS, &dense)
        .blames("method.dense.hyperparameters.model");
    dense["method"]["dense"]["hyperparameters"]["start_from_model"] = json!(true);
    server.post(JOBS, &dense).ok();
}

#[test]
fn an_upload_that_does_not_come_is_given_up() {
    let server = Server::with(|settings| settings.limits.body_seconds = 1);
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let head = format!(
        "POST /v1/files HTTP/1.1\r\nhost: {}\r\ncontent-type: multipart/form-data; boundary=limit\r\n\
         content-length: 100000\r\n\r\n--limit\r\ncontent-disposition: form-data; name=\"file\"; \
         filename=\"a.txt\"\r\n\r\nand then nothing",
        server.address
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = [0; 4096];
    let count = stream.read(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer[..count]);
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(answer.contains("slow_body"), "{answer}");
    assert_eq!(server.get("/v1/files").ok()["data"], json!([]));
}
