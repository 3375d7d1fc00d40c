//! Files of strangers: every reader is given thousands of small files that were changed at random, in a process of its own
//! that may take little memory. Whatever is in them, a reader answers: it neither panics nor hangs, nor takes more memory
//! than a bound that does not depend on what a file claims.
//!
//! Each test runs a fixed number of cases. `CAUSEWAY_MUTATION_SECONDS=600` lets it run for so long instead, and
//! `CAUSEWAY_MUTATION_SEED` says where to begin; a failure names the seed of its case.

#[path = "mutations/changes.rs"]
mod changes;
#[path = "mutations/readers.rs"]
mod readers;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use causeway::memory;
use rand::SeedableRng;
use rand::rngs::StdRng;

use changes::changed;

/// Cases of a test, where no time is given.
const CASES: u64 = 1000;
/// Bytes that a process may take beyond what it took to read unchanged files: every file is far smaller. The allocator
/// may have room left from the system, so that the system's own bound is not enough; the peak is looked at too.
const MOST_BYTES: u64 = 96 << 20;
/// A case that takes longer has hung: the files are small, and others take milliseconds.
const LONGEST_CASE: Duration = Duration::from_secs(120);

const CHILD: &str = "CAUSEWAY_MUTATION_CHILD";
const SECONDS: &str = "CAUSEWAY_MUTATION_SECONDS";
const SEED: &str = "CAUSEWAY_MUTATION_SEED";

/// A kind of file and who reads it.
struct Reader {
    /// Whole files; each case changes one of them.
    files: Vec<Vec<u8>>,
    /// Reads a changed file, for which it has a folder of its own, and says whether it was accepted.
    read: fn(&[u8], &Path) -> bool,
}

/// What a test's process has done so far.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
struct Progress {
    cases: u64,
    accepted: u64,
    /// The seed of the case that runs.
    seed: u64,
    /// Seeds of cases that panicked or took too much memory, and what is known of them.
    faults: Vec<(u64, String)>,
    done: bool,
}

/// Runs the test of this name in a process of its own; within that process, its cases.
fn survives(test: &str, reader: fn() -> Reader) {
    match std::env::var_os(CHILD) {
        Some(folder) => run(&reader(), &PathBuf::from(folder)),
        None => supervise(test),
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// What the last panic said, and where.
static PANIC: Mutex<String> = Mutex::new(String::new());

fn run(reader: &Reader, folder: &Path) {
    let scratch = folder.join("scratch");
    fs::create_dir(&scratch).unwrap();
    for file in &reader.files {
        assert!((reader.read)(file, &scratch), "a whole file was refused");
    }
    std::panic::set_hook(Box::new(|panic| {
        *PANIC.lock().unwrap() = panic.to_string();
    }));
    memory::bound_growth(MOST_BYTES).unwrap();
    let whole = memory::peak_mib().unwrap_or(0);
    let mut progress = Progress {
        seed: number(SEED).unwrap_or(1),
        ..Progress::default()
    };
    let report = folder.join("progress");
    let write = |progress: &Progress| {
        fs::write(&report, serde_json::to_vec(progress).unwrap()).unwrap();
    };
    let until = number(SECONDS).map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let goes_on = |cases: u64| match until {
        Some(until) => Instant::now() < until,
        None => cases < CASES,
    };
    while goes_on(progress.cases) {
        write(&progress);
        let mut rng = StdRng::seed_from_u64(progress.seed);
        let file = changed(&reader.files, &mut rng);
        // A thread of its own: what a library keeps for each thread goes with it.
        let read = || thread::scope(|scope| scope.spawn(|| (reader.read)(&file, &scratch)).join());
        match read() {
            Ok(accepted) => progress.accepted += u64::from(accepted),
            Err(_) => {
                let said = PANIC.lock().unwrap().clone();
                progress.faults.push((progress.seed, said));
            }
        }
        let taken = memory::peak_mib().unwrap_or(0).saturating_sub(whole);
        if taken > MOST_BYTES >> 20 {
            let said = format!("{taken} MiB were taken");
            progress.faults.push((progress.seed, said));
            // Of the cases after it the peak says nothing.
            break;
        }
        progress.cases += 1;
        progress.seed += 1;
        if progress.faults.len() == 20 {
            break;
        }
    }
    progress.done = true;
    write(&progress);
}

fn supervise(test: &str) {
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads", "1"])
        .env(CHILD, folder.path())
        .stdout(Stdio::null())
        .stderr(fs::File::create(folder.path().join("stderr")).unwrap())
        .spawn()
        .unwrap();
    let progress = || -> Option<Progress> {
        let report = fs::read(folder.path().join("progress")).ok()?;
        // It may be being written.
        serde_json::from_slice(&report).ok()
    };
    let (mut last, mut since) = (None, Instant::now());
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        let now = progress();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        if since.elapsed() > LONGEST_CASE {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{test}: a case hangs: {last:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let stderr = fs::read_to_string(folder.path().join("stderr")).unwrap_or_default();
    let said: Vec<&str> = stderr.lines().rev().take(5).collect();
    let progress = progress().unwrap_or_default();
    assert!(
        status.success() && progress.done,
        "{test}: {status} in {progress:?}: {said:?}"
    );
    assert!(progress.faults.is_empty(), "{test}: {progress:#?}");
    let cases = progress.cases;
    eprintln!("{test}: {cases} cases, {} accepted", progress.accepted);
    assert!(
        cases > 0 && progress.accepted < cases,
        "{test}: nothing was refused"
    );
}

#[test]
fn safetensors_files() {
    survives("safetensors_files", readers::safetensors);
}

#[test]
fn sharded_indices() {
    survives("sharded_indices", readers::shard_index);
}

#[test]
fn directories_of_families() {
    survives("directories_of_families", readers::families);
}

#[test]
fn gguf_models() {
    survives("gguf_models", readers::gguf_models);
}

#[test]
fn gguf_tokenizers() {
    survives("gguf_tokenizers", readers::gguf_tokenizers);
}

#[test]
fn pickled_checkpoints() {
    survives("pickled_checkpoints", readers::checkpoints);
}

#[test]
fn pickles_with_true_checksums() {
    survives("pickles_with_true_checksums", readers::pickles);
}

#[test]
fn tokenizer_jsons() {
    survives("tokenizer_jsons", readers::tokenizer_jsons);
}

#[test]
fn sentencepiece_models() {
    survives("sentencepiece_models", readers::sentencepiece_models);
}

#[test]
fn vocabularies_and_their_settings() {
    survives("vocabularies_and_their_settings", readers::vocabularies);
}
