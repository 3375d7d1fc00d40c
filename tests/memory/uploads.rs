//! What uploaded files cost a server.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::MOST_ABOVE_IDLE;
use crate::server::Server;

/// Uploads `count` times `line` as a file of this name; the whole answer.
fn upload(server: &Server, name: &str, line: &[u8], count: usize) -> String {
    let head = format!(
        "--limit\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nfine-tune\r\n--limit\r\n\
         content-disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\r\n"
    );
    let end = b"\r\n--limit--\r\n";
    let length = head.len() + line.len() * count + end.len();
    let mut stream = TcpStream::connect(&server.address).unwrap();
    let wait = Some(Duration::from_secs(120));
    stream.set_write_timeout(wait).unwrap();
    stream.set_read_timeout(wait).unwrap();
    let request = format!(
        "POST /v1/files HTTP/1.1\r\nhost: {}\r\ncontent-type: multipart/form-data; boundary=limit\r\n\
         content-length: {length}\r\nconnection: close\r\n\r\n{head}",
        server.address
    );
    stream.write_all(request.as_bytes()).unwrap();
    for _ in 0..count {
        stream.write_all(line).unwrap();
    }
    stream.write_all(end).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn long_files_go_to_the_disk_and_not_into_memory() {
    let server = Server::start(&[]);
    let json = format!("{{\"text\": \"{}\"}}\n", "x = 1; ".repeat(10_000));
    let plain = format!("{}\n", "y = 2; ".repeat(10_000));
    for (name, line) in [("code.jsonl", json), ("code.txt", plain)] {
        let count = (256 << 20) / line.len();
        let above = server.peak_above_idle(|| {
            let answer = upload(&server, name, line.as_bytes(), count);
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            assert!(
                answer.contains(&format!("\"bytes\":{}", line.len() * count)),
                "{answer}"
            );
        });
        assert!(above <= MOST_ABOVE_IDLE, "{name}: {above} bytes");
    }
}

#[test]
fn a_file_of_one_endless_line_is_refused_at_little_cost() {
    let server = Server::start(&[]);
    let line = "x".repeat(1 << 20);
    let above = server.peak_above_idle(|| {
        let answer = upload(&server, "code.txt", line.as_bytes(), 256);
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
        assert!(answer.contains("longest line"), "{answer}");
    });
    assert!(above <= MOST_ABOVE_IDLE, "{above} bytes");
}
