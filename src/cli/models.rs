//! `causeway models`: brings models into the library that `causeway serve` serves, lists what is there, takes out.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use crate::artifacts::{ArtifactId, Manifest, manifest::FileName};
use crate::bridge::pair::{is_pair, read_record};
use crate::hub::fetch::{FetchedModel, KEPT, WantedModel, fetch, forget_old};
use crate::hub::name::{HubId, Revision};
use crate::hub::transfer::Transfer;
use crate::interventions::nearest::suggestion;
use crate::models::layout::ModelFiles;
use crate::models::memory_need::MemoryNeed;
use crate::serving::arrivals::{Arrival, Arrivals};
use crate::serving::library::{Entry, EntryKind, Library};
use crate::settings::Settings;

const LOOK: Duration = Duration::from_millis(100);
const MIB: f64 = (1 << 20) as f64;
const GGUF: &str = "gguf";

/// Bring models into the library that `causeway serve` serves, list what is there, take something out.
#[derive(Debug, Args)]
pub struct ModelsArguments {
    #[command(subcommand)]
    what: What,
    /// The server's settings, a TOML file: `library`, `limits` and `[hub]` count here.
    #[arg(long, global = true)]
    config: Option<PathBuf>,
    /// The library's directory, in place of the settings'.
    #[arg(long, global = true, value_name = "DIR")]
    library: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Bring a model of a hub, a directory with a model or a pair, or a GGUF file into the library. It answers a token
    /// before it gets its place there; what cannot be served leaves nothing behind.
    Add(AddArguments),
    /// What is in the library, a line each.
    List,
    /// Take something out of the library. A server that serves it goes on until it unloads it.
    Rm { id: ArtifactId },
}

#[derive(Debug, Args)]
struct AddArguments {
    /// OWNER/NAME or OWNER/NAME@REVISION on the hub, a directory, or a .gguf file. What is there as a path is meant as
    /// one.
    #[arg(value_name = "HUB_ID[@REV]|PATH|FILE.gguf")]
    from: String,
    /// What it is called in the library; unless given, as on the hub, as its directory or file, or as its bridge.
    #[arg(long)]
    id: Option<ArtifactId>,
    /// Of a hub's model: the GGUF file of its repository that is meant.
    #[arg(long, value_name = "FILE.gguf")]
    file: Option<FileName>,
    /// Of a directory: keep a symbolic link to it and copy nothing.
    #[arg(long)]
    link: bool,
}

/// Where something comes from.
enum Origin {
    Hub(WantedModel),
    Directory(PathBuf),
    Gguf(PathBuf),
}

impl ModelsArguments {
    pub fn run(self) -> anyhow::Result<()> {
        let mut settings = Settings::read(self.config.as_deref(), std::env::vars())?;
        settings.library = self.library.unwrap_or(settings.library);
        settings.check()?;
        match self.what {
            What::Add(arguments) => arguments.add(&settings),
            What::List => list(&settings.library),
            What::Rm { id } => remove(&settings, &id),
        }
    }
}

impl AddArguments {
    fn add(self, settings: &Settings) -> anyhow::Result<()> {
        let from = self.source()?;
        let id = match (self.id, &from) {
            (Some(id), Origin::Directory(directory)) if is_pair(directory) => {
                let own = read_record(directory)?.id;
                ensure!(
                    own == id,
                    "a pair is called as its bridge, which calls itself {own}; leave --id out"
                );
                id
            }
            (Some(id), _) => id,
            (None, from) => from.id()?,
        };
        let arrivals = Arrivals::new(settings);
        arrivals.check_free(&id)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let arrival = match from {
            Origin::Hub(wanted) => {
                let fetched = watched(settings, &wanted, &arrivals.downloads())?;
                eprintln!("commit {}; letting it answer", fetched.commit);
                let endpoint = &settings.hub.endpoint;
                let arriving = arrivals.from_hub(endpoint, &wanted, fetched, &id);
                runtime.block_on(arriving)?
            }
            Origin::Directory(directory) => {
                runtime.block_on(arrivals.from_directory(&directory, &id, self.link))?
            }
            Origin::Gguf(file) => runtime.block_on(arrivals.from_gguf(&file, &id))?,
        };
        say(&added(&id, &arrival))
    }

    fn source(&self) -> anyhow::Result<Origin> {
        let path = PathBuf::from(&self.from);
        let is_gguf = |path: &Path| {
            path.extension()
                .is_some_and(|extension| extension.eq_ignore_ascii_case(GGUF))
        };
        let from = match (path.is_dir(), path.is_file()) {
            (true, _) => Origin::Directory(path),
            (_, true) if is_gguf(&path) => Origin::Gguf(path),
            (_, true) => bail!(
                "{} is neither a directory nor a .gguf file; a model is a directory with its configuration, tokenizer \
                 and weights",
                self.from
            ),
            _ => {
                let (id, revision) = match self.from.split_once('@') {
                    Some((id, revision)) => (id, revision.parse()?),
                    None => (self.from.as_str(), Revision::main()),
                };
                let id: HubId = id.parse().with_context(|| {
                    format!("there is no directory or file {:?} here", self.from)
                })?;
                Origin::Hub(WantedModel {
                    id,
                    revision,
                    file: self.file.clone(),
                })
            }
        };
        let is_hub = matches!(from, Origin::Hub(_));
        ensure!(
            is_hub || self.file.is_none(),
            "--file is for a model of a hub"
        );
        let is_directory = matches!(from, Origin::Directory(_));
        ensure!(is_directory || !self.link, "--link is for a directory");
        Ok(from)
    }
}

impl Origin {
    /// What it is called where nobody says otherwise.
    fn id(&self) -> anyhow::Result<ArtifactId> {
        let of = |name: Option<&std::ffi::OsStr>| {
            let name = name
                .unwrap_or_default()
                .to_string_lossy()
                .to_ascii_lowercase();
            let id = name.parse::<ArtifactId>();
            id.context("give an id with --id")
        };
        match self {
            Origin::Hub(wanted) => {
                let id = wanted.id.entry_id();
                id.context("its name on the hub makes no id here; give one with --id")
            }
            Origin::Directory(directory) if is_pair(directory) => Ok(read_record(directory)?.id),
            Origin::Directory(directory) => of(directory.canonicalize()?.file_name()),
            Origin::Gguf(file) => of(file.file_stem()),
        }
    }
}

/// Brings a model and shows how far it is; a bar hides where there is no terminal.
fn watched(
    settings: &Settings,
    wanted: &WantedModel,
    downloads: &Path,
) -> anyhow::Result<FetchedModel> {
    forget_old(downloads, KEPT);
    let transfer = Transfer::default();
    let is_over = AtomicBool::new(false);
    let bar = ProgressBar::no_length();
    let style = "{bar:24} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    let style = ProgressStyle::with_template(style);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let fetched = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                if let Some(total) = transfer.total() {
                    bar.set_length(total);
                    bar.set_position(transfer.done());
                }
                std::thread::sleep(LOOK);
            }
        });
        let fetched = fetch(&settings.hub, wanted, downloads, &transfer);
        is_over.store(true, Ordering::Relaxed);
        fetched
    });
    bar.finish_and_clear();
    Ok(fetched?)
}

fn added(id: &ArtifactId, arrival: &Arrival) -> String {
    let parameters: usize = arrival.tried.sizes.iter().map(|size| size.parameters).sum();
    let kind = kind(arrival.entry.kind);
    format!(
        "{id}: a {kind} with {parameters} parameters, in {}",
        arrival.entry.directory.display()
    )
}

fn kind(kind: EntryKind) -> &'static str {
    match kind {
        EntryKind::Pair => "pair",
        EntryKind::Model => "model",
    }
}

fn list(library: &Path) -> anyhow::Result<()> {
    let library = Library::new(BTreeMap::new(), library.to_owned());
    for (id, entry) in library.entries() {
        say(&line(&id, &entry))?;
    }
    for skipped in library.skipped() {
        eprintln!("{:?} cannot be served: {}", skipped.folder, skipped.problem);
    }
    Ok(())
}

/// An entry: its id, what it is, what its weights take in memory, and where it came from.
fn line(id: &str, entry: &Entry) -> String {
    let models = match entry.kind {
        EntryKind::Pair => vec![
            entry.directory.join("dense"),
            entry.directory.join("sparse"),
        ],
        EntryKind::Model => vec![entry.directory.clone()],
    };
    let configs: Result<Vec<_>, _> = models
        .iter()
        .map(|model| ModelFiles::read_config(model))
        .collect();
    let size = match configs {
        Ok(configs) => {
            let bytes: u64 = configs
                .iter()
                .map(|config| MemoryNeed::of(config).weights)
                .sum();
            format!("{:.1} MiB", bytes as f64 / MIB)
        }
        Err(error) => format!("cannot be read: {error}"),
    };
    let from = Manifest::read(&entry.directory).map(|manifest| manifest.provenance);
    let from = from.unwrap_or_default();
    let told = |name: &str| from.get(name).and_then(|value| value.as_str());
    let from = match (told("hub_id"), told("commit")) {
        (Some(id), Some(commit)) => format!("{id}@{commit}"),
        _ => entry
            .directory
            .read_link()
            .map_or(String::new(), |target| target.display().to_string()),
    };
    let line = format!("{id}\t{}\t{size}\t{from}", kind(entry.kind));
    line.trim_end().to_owned()
}

fn remove(settings: &Settings, id: &ArtifactId) -> anyhow::Result<()> {
    if Arrivals::new(settings).remove(id)? {
        return say(&format!("{id} is taken out"));
    }
    let library = Library::new(BTreeMap::new(), settings.library.clone());
    let entries = library.entries();
    let near = suggestion(id.as_str(), entries.keys().map(String::as_str));
    bail!("there is no {id} in {}{near}", settings.library.display())
}

/// Writes a line. `println!` would panic once nobody reads.
fn say(line: &str) -> anyhow::Result<()> {
    Ok(writeln!(io::stdout(), "{line}")?)
}
