//! A hub of one repository that speaks Hugging Face's HTTP: what a repository holds at a revision, files of a commit,
//! small ones from the hub itself and large ones, by a redirection, from another host; ranges, tokens, and faults.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use sha1::{Digest, Sha1};
use sha2::Sha256;

use crate::tiny_pair::{self, VOCABULARY};

pub const ID: &str = "Somebody/Tiny-Llama";
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// Who may read a gated repository.
pub const TOKEN: &str = "hf_somebody";

pub type Files = BTreeMap<String, Vec<u8>>;

/// What goes wrong, and how the hub is.
#[derive(Debug, Default)]
pub struct Faults {
    /// By file: after how many bytes its next connections break, one after the other.
    pub cuts: BTreeMap<String, Vec<usize>>,
    /// A file whose last byte is another than was announced.
    pub wrong: Option<String>,
    /// Only whoever has the token may read.
    pub gated: bool,
    /// The list of files tells neither sizes nor hashes.
    pub silent_listing: bool,
    /// A further name in the list of files.
    pub listed: Option<String>,
    /// A size that the list of files tells of the weights.
    pub claimed_size: Option<u64>,
    /// The host of large files ignores ranges.
    pub no_ranges: bool,
}

struct Shared {
    files: Files,
    faults: Mutex<Faults>,
    /// `METHOD PATH` of each request, and its range.
    requests: Mutex<Vec<(String, Option<String>)>>,
    /// Somebody sent the token to another host.
    leaked: AtomicBool,
    /// Large files stop in their middle while this is set.
    held: AtomicBool,
    hub: SocketAddr,
    other_host: SocketAddr,
}

/// The hub; it answers for as long as the tests run.
pub struct TestHub {
    shared: Arc<Shared>,
}

impl TestHub {
    pub fn new(files: Files) -> Self {
        let hub = TcpListener::bind("127.0.0.1:0").unwrap();
        let other = TcpListener::bind("127.0.0.2:0").unwrap();
        let shared = Arc::new(Shared {
            files,
            faults: Mutex::default(),
            requests: Mutex::default(),
            leaked: AtomicBool::new(false),
            held: AtomicBool::new(false),
            hub: hub.local_addr().unwrap(),
            other_host: other.local_addr().unwrap(),
        });
        for listener in [hub, other] {
            let shared = shared.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let shared = shared.clone();
                    // A client that leaves in the middle is no concern of the hub's.
                    std::thread::spawn(move || drop(shared.answer(stream)));
                }
            });
        }
        TestHub { shared }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.shared.hub)
    }

    pub fn set(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.shared.faults.lock().unwrap());
    }

    /// Whether large files stop in their middle from now on.
    pub fn hold(&self, held: bool) {
        self.shared.held.store(held, Ordering::SeqCst);
    }

    pub fn has_leaked(&self) -> bool {
        self.shared.leaked.load(Ordering::SeqCst)
    }

    pub fn content(&self, name: &str) -> &[u8] {
        &self.shared.files[name]
    }

    /// The ranges that were asked for of the host of large files, in order.
    pub fn ranges(&self) -> Vec<Option<String>> {
        let requests = self.shared.requests.lock().unwrap();
        let large = requests
            .iter()
            .filter(|(of, _)| of.starts_with("GET /blobs/"));
        large.map(|(_, range)| range.clone()).collect()
    }

    /// The requests, without their ranges.
    pub fn requests(&self) -> Vec<String> {
        let requests = self.shared.requests.lock().unwrap();
        requests.iter().map(|(of, _)| of.clone()).collect()
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sha256(content: &[u8]) -> String {
    hexadecimal(&Sha256::digest(content))
}

fn git_hash(content: &[u8]) -> String {
    let hasher = Sha1::new().chain_update(format!("blob {}\0", content.len()));
    hexadecimal(&hasher.chain_update(content).finalize())
}

fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".gguf")
}

impl Shared {
    fn answer(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream);
        let (mut line, mut headers) = (String::new(), BTreeMap::new());
        reader.read_line(&mut line)?;
        let mut first = line.split(' ').map(str::to_owned);
        let (method, target) = (first.next().unwrap(), first.next().unwrap_or_default());
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            match line.trim().split_once(':') {
                Some((name, value)) => {
                    headers.insert(name.to_lowercase(), value.trim().to_owned());
                }
                None => break,
            }
        }
        let range = headers.get("range").cloned();
        let request = (format!("{method} {target}"), range.clone());
        self.requests.lock().unwrap().push(request);
        let mut stream = reader.into_inner();
        let authorization = headers.get("authorization");
        if let Some(hash) = target.strip_prefix("/blobs/") {
            self.leaked
                .fetch_or(authorization.is_some(), Ordering::SeqCst);
            return self.blob(&mut stream, hash, range.as_deref());
        }
        let (gated, bearer) = (self.faults.lock().unwrap().gated, format!("Bearer {TOKEN}"));
        match authorization {
            None if gated => {
                return respond(
                    &mut stream,
                    401,
                    &[("x-error-message", "Access to it is restricted.")],
                    b"",
                );
            }
            Some(given) if gated && *given != bearer => {
                return respond(&mut stream, 403, &[("x-error-code", "GatedRepo")], b"");
            }
            _ => {}
        }
        let revisions = format!("/api/models/{ID}/revision/");
        if let Some(rest) = target.strip_prefix(&revisions) {
            return match rest.split_once('?') {
                Some(("main" | "v1" | COMMIT, "blobs=true")) => {
                    let listing = self.listing().to_string();
                    respond(&mut stream, 200, &[], listing.as_bytes())
                }
                _ => respond(
                    &mut stream,
                    404,
                    &[("x-error-message", "Invalid rev id")],
                    b"",
                ),
            };
        }
        let files = format!("/{ID}/resolve/{COMMIT}/");
        let found = target.strip_prefix(&files);
        match found.and_then(|name| Some((name, self.files.get(name)?))) {
            Some((name, content)) => self.file(&mut stream, &method, name, content),
            None => respond(
                &mut stream,
                404,
                &[("x-error-message", "Repository not found")],
                b"",
            ),
        }
    }

    fn listing(&self) -> Value {
        let faults = self.faults.lock().unwrap();
        let sibling = |(name, content): (&String, &Vec<u8>)| {
            let size = match (&faults.claimed_size, is_large(name)) {
                (Some(claimed), true) => *claimed,
                _ => content.len() as u64,
            };
            match (faults.silent_listing, is_large(name)) {
                (true, _) => json!({"rfilename": name}),
                (_, true) => {
                    json!({"rfilename": name, "size": size, "blobId": git_hash(b"a pointer"),
                    "lfs": {"sha256": sha256(content), "size": size, "pointerSize": 134}})
                }
                (_, false) => json!({"rfilename": name, "size": size, "blobId": git_hash(content)}),
            }
        };
        let mut siblings: Vec<Value> = self.files.iter().map(sibling).collect();
        siblings.extend(faults.listed.iter().map(|name| json!({"rfilename": name})));
        json!({"id": ID, "sha": COMMIT, "gated": false, "siblings": siblings})
    }

    fn file(
        &self,
        stream: &mut TcpStream,
        method: &str,
        name: &str,
        content: &[u8],
    ) -> std::io::Result<()> {
        if is_large(name) {
            let hash = sha256(content);
            let (etag, size) = (format!("\"{hash}\""), content.len().to_string());
            let location = format!("http://{}/blobs/{hash}", self.other_host);
            let headers = [
                ("location", location.as_str()),
                ("x-repo-commit", COMMIT),
                ("x-linked-etag", &etag),
                ("x-linked-size", &size),
            ];
            return respond(stream, 302, &headers, b"");
        }
        let etag = format!("\"{}\"", git_hash(content));
        let headers = [("x-repo-commit", COMMIT), ("etag", etag.as_str())];
        match method {
            "HEAD" => {
                let length = content.len().to_string();
                respond(
                    stream,
                    200,
                    &[&headers[..], &[("content-length", &length)]].concat(),
                    b"",
                )
            }
            _ => respond(stream, 200, &headers, content),
        }
    }

    /// A large file, from a range's beginning on.
    fn blob(&self, stream: &mut TcpStream, hash: &str, range: Option<&str>) -> std::io::Result<()> {
        let found = self
            .files
            .iter()
            .find(|(_, content)| sha256(content) == hash);
        let (name, content) = found.expect("a file of this hash");
        let (mut content, cut, no_ranges) = {
            let mut faults = self.faults.lock().unwrap();
            let mut content = content.clone();
            if faults.wrong.as_ref() == Some(name) {
                *content.last_mut().unwrap() ^= 1;
            }
            let cuts = faults.cuts.entry(name.clone()).or_default();
            let cut = (!cuts.is_empty()).then(|| cuts.remove(0));
            (content, cut, faults.no_ranges)
        };
        let whole = content.len();
        let from = range.filter(|_| !no_ranges).map(|range| {
            let from = range
                .strip_prefix("bytes=")
                .and_then(|range| range.strip_suffix('-'));
            from.unwrap().parse::<usize>().unwrap()
        });
        content.drain(..from.unwrap_or(0));
        let status = match from {
            Some(from) => format!(
                "206 Partial\r\ncontent-range: bytes {from}-{}/{whole}",
                whole - 1
            ),
            None => "200 OK".to_owned(),
        };
        let length = content.len();
        write!(
            stream,
            "HTTP/1.1 {status}\r\ncontent-length: {length}\r\netag: \"d41d8cd98f00b204e9800998ecf8427e\"\r\n\
             connection: close\r\n\r\n"
        )?;
        let half = cut.unwrap_or(length / 2).min(length);
        stream.write_all(&content[..half])?;
        if cut.is_some() {
            return stream.shutdown(std::net::Shutdown::Both);
        }
        while self.held.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(10));
        }
        stream.write_all(&content[half..])
    }
}

fn respond(
    stream: &mut TcpStream,
    status: u16,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 {status} X\r\nconnection: close\r\n")?;
    for (name, value) in headers {
        write!(stream, "{name}: {value}\r\n")?;
    }
    if !headers.iter().any(|(name, _)| *name == "content-length") {
        write!(stream, "content-length: {}\r\n", body.len())?;
    }
    stream.write_all(b"\r\n")?;
    stream.write_all(body)
}

/// The random Llama of the golden checkpoints in Hugging Face's form, its vocabulary made as large as a tokenizer of
/// bytes needs, in one file of weights or in several.
pub fn model(shards: usize) -> Files {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/families/llama");
    let rows: Vec<u32> = (0..VOCABULARY as u32).map(|row| row % 48).collect();
    let rows = Tensor::new(rows, &Device::Cpu).unwrap();
    let weights = candle_core::safetensors::load(golden.join("model.safetensors"), &Device::Cpu);
    let weights: BTreeMap<String, Tensor> = weights
        .unwrap()
        .into_iter()
        .map(|(name, tensor)| match tensor.dims()[0] == 48 {
            true => (name, tensor.index_select(&rows, 0).unwrap()),
            false => (name, tensor),
        })
        .collect();
    let config = std::fs::read(golden.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    config["vocab_size"] = json!(VOCABULARY);
    let scratch = tempfile::tempdir().unwrap();
    tiny_pair::write(scratch.path());
    let tokenizer = std::fs::read(scratch.path().join("dense/tokenizer.json")).unwrap();
    let mut files = Files::from([
        ("config.json".to_owned(), config.to_string().into_bytes()),
        ("tokenizer.json".to_owned(), tokenizer),
        ("README.md".to_owned(), b"# A model".to_vec()),
        (
            ".gitattributes".to_owned(),
            b"*.safetensors filter=lfs".to_vec(),
        ),
        ("pytorch_model.bin".to_owned(), b"a pickle".to_vec()),
    ]);
    let (mut map, mut parts) = (BTreeMap::new(), vec![Vec::new(); shards]);
    for (index, (name, tensor)) in weights.into_iter().enumerate() {
        let shard = index % shards;
        let file = format!("model-{}-of-{shards}.safetensors", shard + 1);
        map.insert(name.clone(), file);
        parts[shard].push((name, tensor));
    }
    for (shard, part) in parts.into_iter().enumerate() {
        let path = scratch.path().join("weights");
        candle_core::safetensors::save(&part.into_iter().collect(), &path).unwrap();
        let name = match shards {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{}-of-{shards}.safetensors", shard + 1),
        };
        files.insert(name, std::fs::read(&path).unwrap());
    }
    if shards > 1 {
        let index = json!({"metadata": {}, "weight_map": map}).to_string();
        files.insert(
            "model.safetensors.index.json".to_owned(),
            index.into_bytes(),
        );
    }
    files
}

/// A repository of one GGUF file.
pub fn gguf() -> Files {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf/Q8_0.gguf");
    Files::from([(
        "gguf/tiny.Q8_0.gguf".to_owned(),
        std::fs::read(golden).unwrap(),
    )])
}
