//! A place of its own for jobs: a folder, a database, and workers.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use causeway::artifacts::ArtifactId;
use causeway::jobs::job::{Job, Status};
use causeway::jobs::spec::{JobSpec, Method, Places, Recipe};
use causeway::jobs::store::Store;
use causeway::jobs::store::jobs::NewJob;
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

fn postgres() -> Option<String> {
    std::env::var("TEST_POSTGRES").ok()
}

/// An installation; its folder goes with it.
pub struct Installation {
    directory: TempDir,
    url: Option<String>,
    pub store: Store,
}

impl Installation {
    pub async fn new(database: Database) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let url = match database {
            Database::Sqlite => None,
            Database::Postgres => Some(new_database(&postgres().unwrap()).await),
        };
        let file = directory.path().join("jobs.sqlite");
        let store = Store::open(url.as_deref(), &file);
        Installation {
            store: store.await.unwrap(),
            directory,
            url,
        }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn library(&self) -> PathBuf {
        self.path().join("library")
    }

    /// A worker whose leases are a second long.
    pub fn worker(&self) -> Worker {
        self.command("worker", &mut Command::new(env!("CARGO_BIN_EXE_causeway")))
    }

    /// A server with a worker in it.
    pub fn server(&self) -> Worker {
        self.command("serve", &mut Command::new(env!("CARGO_BIN_EXE_causeway")))
    }

    /// One of the two, by a command that goes before it.
    pub fn command(&self, what: &str, command: &mut Command) -> Worker {
        let settings = self.path().join("settings.toml");
        let text = format!(
            "listen = \"127.0.0.1:0\"\npairs = [{:?}]\ndata_dir = {:?}\nlibrary = {:?}\n[jobs]\ndatabase = {:?}\nlease_seconds = 1\n",
            pair(),
            self.path(),
            self.library(),
            self.url.as_deref().unwrap_or_default()
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

    pub async fn create(&self, output: &str, steps: usize) -> Job {
        self.store.create(&job(output, steps)).await.unwrap()
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
    pub fn weights(&self, output: &str) -> Vec<Vec<u8>> {
        let folder = self.library().join(output);
        let files = ["bridge.safetensors", "sparse/model.safetensors"];
        let read = |file| {
            std::fs::read(folder.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
        };
        files.map(read).into()
    }

    /// The job has succeeded, every step and checkpoint of it is told once, and in order.
    pub async fn is_complete(&self, job: &Job) {
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
        let expected = (1..=job.spec.steps() as i64).filter(|step| step % CHECKPOINT_EVERY == 0);
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

const CHECKPOINT_EVERY: i64 = 4;

/// A small bridge to the shipped dense model.
pub fn job(output: &str, steps: usize) -> NewJob {
    NewJob {
        id: format!("ftjob-{output}"),
        spec: spec(output, steps),
        metadata: [("name".to_owned(), output.to_owned())].into(),
        idempotency_key: String::new(),
        request_sha256: String::new(),
    }
}

pub fn spec(output: &str, steps: usize) -> JobSpec {
    let method: Method = serde_json::from_value(method(steps)).unwrap();
    let places = Places {
        model: pair().join("dense"),
        start_from: None,
        training_file: None,
    };
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
        "optimizer": {"rate": 1e-3, "warmup_steps": 2},
        "bridge_rate": 1e-3,
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
