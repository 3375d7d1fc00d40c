//! A place of its own for jobs: a folder, a database, and workers.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use std::collections::BTreeMap;

use causeway::artifacts::ArtifactId;
use causeway::jobs::artifact_store::ArtifactStore;
use causeway::jobs::job::{Job, Status};
use causeway::jobs::spec::{JobSpec, MODEL, Method, Places, Recipe};
use causeway::jobs::store::Store;
use causeway::jobs::store::jobs::NewJob;
use causeway::settings::{ArtifactSettings, Settings};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection};
use tempfile::TempDir;

/// Where jobs are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Database {
    Sqlite,
    Postgres,
}

/// Those that there are here.
pub fn databases() -> Vec<Database> {
    match postgres() {
        Some(_) => vec![Database::Sqlite, Database::Postgres],
        None => vec![Database::Sqlite],
    }
}

fn settings(directory: &Path, bucket: &ArtifactSettings) -> Settings {
    Settings {
        data_dir: directory.to_owned(),
        artifacts: bucket.clone(),
        ..Settings::default()
    }
}

/// A place of its own in the bucket that `TEST_BUCKET` names, of the service that `TEST_S3` names; its key is in the
/// environment.
fn bucket() -> Option<ArtifactSettings> {
    let bucket = std::env::var("TEST_BUCKET").ok()?;
    Some(ArtifactSettings {
        url: format!("s3://{bucket}/{}", uuid::Uuid::new_v4()),
        endpoint: std::env::var("TEST_S3").unwrap(),
        ..ArtifactSettings::default()
    })
}

fn postgres() -> Option<String> {
    std::env::var("TEST_POSTGRES").ok()
}

/// An installation; its folder goes with it.
pub struct Installation {
    directory: TempDir,
    url: Option<String>,
    bucket: ArtifactSettings,
    pub store: Store,
    pub artifacts: ArtifactStore,
}

impl Installation {
    pub async fn new(database: Database) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let url = match database {
            Database::Sqlite => None,
            Database::Postgres => Some(new_database(&postgres().unwrap()).await),
        };
        let file = directory.path().join("jobs.sqlite");
        let store = Store::open(url.as_deref(), &file).await.unwrap();
        let bucket = match database {
            Database::Sqlite => ArtifactSettings::default(),
            // As where several machines work: nothing but the database and the bucket is the same.
            Database::Postgres => bucket().unwrap_or_default(),
        };
        let settings = settings(directory.path(), &bucket);
        Installation {
            artifacts: ArtifactStore::of(&settings, &store).await.unwrap(),
            store,
            directory,
            url,
            bucket,
        }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A worker whose leases are a second long.
    pub fn worker(&self) -> Worker {
        self.command("worker", &mut Command::new(env!("CARGO_BIN_EXE_causeway")))
    }

    /// A server with a worker in it.
    pub fn server(&self) -> Worker {
        self.command("serve", &mut Command::new(env!("CARGO_BIN_EXE_causeway")))
    }

    /// Another folder for the same jobs and artifacts, as another machine has it.
    pub fn elsewhere(&self, name: &str) -> Elsewhere<'_> {
        let path = self.path().join(name);
        std::fs::create_dir(&path).unwrap();
        Elsewhere {
            installation: self,
            path,
        }
    }

    /// A server that answers; `workers` is `all` or `none`.
    pub async fn listening_server(&self, workers: &str) -> Server {
        self.here().listening_server(workers).await
    }

    /// The same by a command of its own.
    pub async fn listening_server_by(&self, workers: &str, command: &mut Command) -> Server {
        self.here().listening_server_by(workers, command).await
    }

    /// One of the two, by a command that goes before it.
    pub fn command(&self, what: &str, command: &mut Command) -> Worker {
        self.here().command(what, command, "127.0.0.1:0", 1)
    }

    fn here(&self) -> Elsewhere<'_> {
        Elsewhere {
            installation: self,
            path: self.path().to_owned(),
        }
    }

    /// What tells where its artifacts are.
    pub fn settings(&self) -> Settings {
        settings(self.path(), &self.bucket)
    }

    /// The artifacts, of which those that nobody holds are kept for so long.
    pub fn artifacts_kept_for(&self, keep: Duration) -> ArtifactStore {
        self.artifacts.clone().keeping(keep)
    }
}

/// A machine's folder.
pub struct Elsewhere<'a> {
    installation: &'a Installation,
    path: PathBuf,
}

impl Elsewhere<'_> {
    pub fn worker(&self) -> Worker {
        let mut command = Command::new(env!("CARGO_BIN_EXE_causeway"));
        self.command("worker", &mut command, "127.0.0.1:0", 1)
    }

    pub async fn listening_server(&self, workers: &str) -> Server {
        let mut command = Command::new(env!("CARGO_BIN_EXE_causeway"));
        self.listening_server_by(workers, &mut command).await
    }

    async fn listening_server_by(&self, workers: &str, command: &mut Command) -> Server {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap().to_string();
        drop(free);
        let workers = usize::from(workers == "all");
        let server = Server {
            process: self.command("serve", command, &address, workers),
            address: format!("http://{address}"),
            client: client(),
        };
        let begun = Instant::now();
        let ready = format!("{}/readyz", server.address);
        while server.client.get(&ready).send().await.is_err() {
            assert!(begun.elapsed() < Duration::from_secs(60), "no server");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        server
    }

    fn command(&self, what: &str, command: &mut Command, listen: &str, workers: usize) -> Worker {
        let settings = self.path.join("settings.toml");
        let shared = self.installation;
        let artifacts = match shared.bucket.url.is_empty() {
            true => shared.path().join("artifacts").display().to_string(),
            false => shared.bucket.url.clone(),
        };
        let text = format!(
            "listen = {listen:?}\npairs = [{:?}]\ndata_dir = {:?}\n[jobs]\ndatabase = {:?}\nlease_seconds = 1\n\
             workers = {workers}\n[artifacts]\nurl = {artifacts:?}\nendpoint = {:?}\n",
            pair(),
            self.path,
            shared.url.as_deref().unwrap_or_default(),
            shared.bucket.endpoint
        );
        std::fs::write(&settings, text).unwrap();
        let child = command
            .args([what, "--config"])
            .arg(settings)
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Worker(child)
    }
}

impl Installation {
    pub async fn create(&self, output: &str, steps: usize) -> Job {
        let dense = self.artifacts.put(&pair().join("dense")).await.unwrap();
        let inputs = BTreeMap::from([(MODEL, dense)]);
        let new = NewJob {
            inputs,
            ..job(output, steps)
        };
        self.store.create(&new).await.unwrap()
    }

    /// The job as it stands.
    pub async fn job(&self, id: &str) -> Job {
        self.store.job(id).await.unwrap().unwrap()
    }

    /// The job once it has ended.
    pub async fn ended(&self, id: &str) -> Job {
        let begun = Instant::now();
        loop {
            let job = self.job(id).await;
            if job.status.is_final() {
                return job;
            }
            assert!(begun.elapsed() < Duration::from_secs(300), "{job:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The weights of a published bridge, file by file.
    pub async fn weights(&self, output: &str) -> Vec<Vec<u8>> {
        let models = self.store.models().await.unwrap();
        let model = models.iter().find(|model| model.id == output).unwrap();
        let folder = self.path().join("looked-at").join(output);
        self.artifacts.get(&model.artifact, &folder).await.unwrap();
        let files = ["bridge.safetensors", "sparse/model.safetensors"];
        files
            .map(|file| std::fs::read(folder.join(file)).unwrap())
            .into()
    }

    /// The job has succeeded, every step and checkpoint of it is told once, and in order.
    pub async fn is_complete(&self, job: &Job) {
        self.is_complete_with(job, &[]).await;
    }

    /// The same of a job that has also written checkpoints after these steps, because it was asked to end.
    pub async fn is_complete_with(&self, job: &Job, further: &[i64]) {
        assert_eq!(job.status, Status::Succeeded, "{job:?}");
        let order = causeway::jobs::store::events::Order::OldestFirst;
        let events = self
            .store
            .events(&job.id, order, None, 100_000)
            .await
            .unwrap();
        let steps: Vec<String> = events
            .iter()
            .map(|event| event.message.clone())
            .filter(|message| message.starts_with("step "))
            .collect();
        let expected: Vec<String> = (1..=job.spec.steps())
            .map(|step| format!("step {step}"))
            .collect();
        assert_eq!(steps, expected);
        let numbers: Vec<i64> = events.iter().map(|event| event.number).collect();
        assert_eq!(numbers, (1..=events.len() as i64).collect::<Vec<_>>());
        let checkpoints = self.store.checkpoints(&job.id).await.unwrap();
        let steps: Vec<i64> = checkpoints
            .iter()
            .map(|checkpoint| checkpoint.step)
            .collect();
        let due = |step: &i64| step % CHECKPOINT_EVERY == 0 || further.contains(step);
        let expected = (1..=job.spec.steps() as i64).filter(due);
        assert_eq!(steps, expected.collect::<Vec<_>>());
        let published = events
            .iter()
            .filter(|event| event.message.ends_with("is published"));
        assert_eq!(published.count(), 1);
    }
}

/// A worker's process; it is killed when dropped.
pub struct Worker(pub Child);

impl Worker {
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([name, &self.0.id().to_string()])
            .status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Worker {
    /// The numbers of the processes that it has started and that still are there.
    pub fn children(&self) -> Vec<String> {
        let id = self.0.id();
        let threads = std::fs::read_dir(format!("/proc/{id}/task")).unwrap();
        let children = threads.flatten().filter_map(|thread| {
            let children = std::fs::read_to_string(thread.path().join("children")).ok()?;
            Some(
                children
                    .split_whitespace()
                    .map(str::to_owned)
                    .collect::<Vec<_>>(),
            )
        });
        children.flatten().collect()
    }
}

/// A server that answers.
pub struct Server {
    pub process: Worker,
    pub address: String,
    client: reqwest::Client,
}

impl Server {
    async fn ask(&self, request: reqwest::RequestBuilder) -> (u16, Value) {
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    /// The status and the JSON of an answer.
    pub async fn get(&self, path: &str) -> (u16, Value) {
        self.ask(self.client.get(format!("{}{path}", self.address)))
            .await
    }

    pub async fn bytes(&self, path: &str) -> Vec<u8> {
        let answer = self.client.get(format!("{}{path}", self.address)).send();
        let answer = answer.await.unwrap();
        assert_eq!(answer.status().as_u16(), 200, "{path}");
        answer.bytes().await.unwrap().to_vec()
    }

    pub async fn text(&self, path: &str) -> String {
        let answer = self.client.get(format!("{}{path}", self.address)).send();
        answer.await.unwrap().text().await.unwrap()
    }

    pub async fn delete(&self, path: &str) -> (u16, Value) {
        self.ask(self.client.delete(format!("{}{path}", self.address)))
            .await
    }

    /// Uploads a file of this name.
    pub async fn upload(&self, name: &str, text: &str) -> (u16, Value) {
        let body = format!(
            "--limit\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nfine-tune\r\n\
             --limit\r\ncontent-disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\r\n{text}\r\n\
             --limit--\r\n"
        );
        let request = self.client.post(format!("{}/v1/files", self.address));
        let form = "multipart/form-data; boundary=limit";
        self.ask(request.header("content-type", form).body(body))
            .await
    }

    pub async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let request = self.client.post(format!("{}{path}", self.address));
        self.ask(request.json(body)).await
    }
}

fn client() -> reqwest::Client {
    causeway::tls::choose();
    // Connections that are kept are closed by the server while a test waits for something else.
    let fresh = reqwest::Client::builder().pool_max_idle_per_host(0);
    fresh.build().unwrap()
}

const CHECKPOINT_EVERY: i64 = 4;

/// A small bridge to the shipped dense model.
pub fn job(output: &str, steps: usize) -> NewJob {
    NewJob {
        id: format!("ftjob-{output}"),
        spec: spec(output, steps),
        metadata: [("name".to_owned(), output.to_owned())].into(),
        idempotency_key: String::new(),
        request_sha256: String::new(),
        inputs: BTreeMap::new(),
    }
}

pub fn spec(output: &str, steps: usize) -> JobSpec {
    let method: Method = serde_json::from_value(method(steps)).unwrap();
    let places = Places::of_job(false, None);
    let output: ArtifactId = output.parse().unwrap();
    JobSpec {
        model: "tinypython".into(),
        training_file: None,
        recipe: Recipe::of(&method, &output, &places).unwrap(),
        output,
        method,
    }
}

pub fn method(steps: usize) -> Value {
    let sparse = json!({
        "n_layers": 4, "d_model": 32, "n_heads": 2, "d_head": 16, "d_mlp": 64, "vocab_size": 2048,
        "context_length": 64, "norm": "rms", "bias": true, "activation": "gelu", "positions": "added",
    });
    json!({"type": "bridge", "bridge": {"hyperparameters": {
        "sparse": sparse,
        "generated": {"documents": 50, "seed": 1},
        "batches": {"steps": steps, "sequences": 2, "length": 16, "seed": 3},
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 2},
        "bridge_learning_rate": 1e-3,
        "sparsity": {"kept_fraction": 0.2},
        "terms": {"cross_entropy": 1, "distillation": 1, "encoder": 1, "decoder": 1, "dense_to_sparse": 1,
            "sparse_to_dense": 1},
        "watch": {"checkpoint_every": CHECKPOINT_EVERY, "evaluate_every": 10, "evaluation_sequences": 1},
    }}})
}

fn pair() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("bridges/tinypython")
}

async fn new_database(server: &str) -> String {
    let name = format!("test_{}", uuid::Uuid::new_v4().simple());
    let mut connection = sqlx::PgConnection::connect(&format!("{server}/postgres"))
        .await
        .unwrap();
    // The name is made here.
    sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name}")))
        .execute(&mut connection)
        .await
        .unwrap();
    format!("{server}/{name}")
}

pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(20), "not yet: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
