//! What the server is told before it starts, from four sources, each overriding the one before it: the
//! defaults below, a TOML file, environment variables, the command line.
//!
//! A key `limits.max_prompts` of the file is `CAUSEWAY_LIMITS__MAX_PROMPTS` in the environment. A key that
//! does not exist is refused wherever it stands: a misspelt limit must not silently be no limit.

pub mod hub;
pub mod jobs;
pub mod keys;
mod limits;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

pub use self::hub::HubSettings;
pub use self::jobs::{ArtifactSettings, JobSettings};
use self::keys::KeySettings;
pub use self::limits::Limits;
use crate::artifacts::{ArtifactError, ArtifactId, atomic};
use crate::generation::capacity::Capacity;

/// What every variable of the environment that is read here begins with.
const PREFIX: &str = "CAUSEWAY_";
/// Between the parts of a nested key in the environment.
const NESTING: &str = "__";
/// A longer file is no settings file.
const LONGEST_FILE: u64 = 1 << 20;

/// The server's settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The address and port to listen on.
    pub listen: SocketAddr,
    /// Allows a `listen` that other machines can reach although there are no `keys`: whoever reaches the port
    /// may then do everything.
    pub allow_remote: bool,
    /// Where the server keeps what callers make; by default `causeway` in the system's directory for a user's data
    /// (`$XDG_DATA_HOME` or `~/.local/share`).
    pub data_dir: PathBuf,
    /// Threads that parse requests and write answers; the engine has its own.
    pub threads: usize,
    /// How long a request in progress may take once the server was told to stop, in seconds.
    pub shutdown_seconds: u64,
    /// How long the engine may take to answer before the server calls itself not ready, in seconds.
    pub ready_seconds: f64,
    /// Directories of pairs to serve beside the shipped one.
    pub pairs: Vec<PathBuf>,
    /// Whether the shipped pair is served.
    pub shipped_pair: bool,
    /// Directories of single models to serve, by id.
    pub models: BTreeMap<ArtifactId, PathBuf>,
    /// A directory of further pairs and models, each in a folder named by its id: they can be taken into service
    /// while serving. It need not exist.
    pub library: PathBuf,
    /// Who may use the server; with none, everybody who reaches it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<KeySettings>,
    pub engine: Capacity,
    pub limits: Limits,
    pub telemetry: TelemetrySettings,
    pub jobs: JobSettings,
    pub artifacts: ArtifactSettings,
    pub hub: HubSettings,
    /// The program whose `trial` is run on what comes into service: this one, except in tests.
    #[serde(skip, default = "this_program")]
    pub program: PathBuf,
}

fn this_program() -> PathBuf {
    std::env::current_exe().unwrap_or_default()
}

/// What the server tells of its work.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetrySettings {
    /// How log lines are written to standard error; the environment's `RUST_LOG` chooses which.
    pub log: LogFormat,
    /// Where traces go: the URL of an OpenTelemetry collector's traces, OTLP over HTTP. Empty sends none.
    pub traces_endpoint: String,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    /// One object a line.
    Json,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080),
            allow_remote: false,
            data_dir: user_data(),
            threads: 2,
            shutdown_seconds: 30,
            ready_seconds: 2.0,
            pairs: Vec::new(),
            shipped_pair: true,
            models: BTreeMap::new(),
            library: PathBuf::from("library"),
            keys: Vec::new(),
            engine: Capacity::default(),
            limits: Limits::default(),
            telemetry: TelemetrySettings::default(),
            jobs: JobSettings::default(),
            artifacts: ArtifactSettings::default(),
            hub: HubSettings::default(),
            program: this_program(),
        }
    }
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error(transparent)]
    File(#[from] ArtifactError),
    #[error("{source_name}: {problem}")]
    Invalid {
        source_name: String,
        problem: String,
    },
    #[error(
        "{0} can be reached from other machines, and there are no API keys: whoever reaches it may use and change \
         everything. Give [[keys]], listen on 127.0.0.1, or say --allow-remote"
    )]
    Remote(SocketAddr),
}

impl Settings {
    /// The defaults, overridden by `file` and then by `environment`; the command line has the last word and
    /// then calls [`Settings::check`].
    pub fn read(
        file: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, SettingsError> {
        let (mut table, file_name) = match file {
            Some(path) => (read_table(path)?, path.display().to_string()),
            None => (Table::new(), "the defaults".to_owned()),
        };
        // First by itself, so that what is wrong in the file is told of the file.
        parse(table.clone(), &file_name)?;
        let known = known_keys()?;
        for (name, text) in environment.filter(|(name, _)| name.starts_with(PREFIX)) {
            override_with(&mut table, &known, &name, &text)?;
        }
        parse(table, "the environment")
    }

    /// The same without the password that `jobs.database` may have and without the hub's token.
    pub fn without_secrets(mut self) -> Self {
        let database = &self.jobs.database;
        if let Some((scheme, rest)) = database.split_once("://")
            && let Some((user, place)) = rest.rsplit_once('@')
            && let Some((user, _)) = user.split_once(':')
        {
            self.jobs.database = format!("{scheme}://{user}:...@{place}");
        }
        if !self.hub.token.is_empty() {
            self.hub.token = "...".to_owned();
        }
        self
    }

    /// Checks what no single key can tell.
    pub fn check(&self) -> Result<(), SettingsError> {
        let invalid = |problem: &str| SettingsError::Invalid {
            source_name: "the settings".to_owned(),
            problem: problem.to_owned(),
        };
        if self.threads == 0 {
            return Err(invalid("threads is 0; at least 1 is needed"));
        }
        if self.limits.max_unparsed_bytes < self.limits.max_body_bytes {
            return Err(invalid(
                "limits.max_unparsed_bytes is less than limits.max_body_bytes: a body as long as that could never be read",
            ));
        }
        if !(self.ready_seconds.is_finite()
            && self.ready_seconds > 0.0
            && self.ready_seconds <= 3600.0)
        {
            return Err(invalid("ready_seconds must be above 0 and at most 3600"));
        }
        keys::check(&self.keys).map_err(|problem| invalid(&problem))?;
        for (name, value) in [
            ("engine.sequences", self.engine.sequences),
            ("engine.prefill_tokens", self.engine.prefill_tokens),
            (
                "limits.deadline_seconds",
                self.limits.deadline_seconds as usize,
            ),
            (
                "limits.first_token_seconds",
                self.limits.first_token_seconds as usize,
            ),
            ("limits.max_examinations", self.limits.max_examinations),
            (
                "limits.examination_seconds",
                self.limits.examination_seconds as usize,
            ),
            ("limits.max_model_mib", self.limits.max_model_mib as usize),
            ("limits.load_seconds", self.limits.load_seconds as usize),
            (
                "limits.max_weights_mib",
                self.limits.max_weights_mib as usize,
            ),
            (
                "limits.weights_idle_seconds",
                self.limits.weights_idle_seconds as usize,
            ),
            ("limits.body_seconds", self.limits.body_seconds as usize),
            ("limits.unread_seconds", self.limits.unread_seconds as usize),
            ("limits.max_tokenisations", self.limits.max_tokenisations),
            ("limits.template_mib", self.limits.template_mib as usize),
            (
                "limits.template_seconds",
                self.limits.template_seconds as usize,
            ),
            ("limits.max_unsent_bytes", self.limits.max_unsent_bytes),
        ] {
            if value == 0 {
                return Err(invalid(&format!("{name} is 0; at least 1 is needed")));
            }
        }
        if self.limits.max_feature_bytes > Limits::LARGEST_FEATURE_BYTES {
            return Err(invalid(&format!(
                "limits.max_feature_bytes is above {}, the most that is read at the next start",
                Limits::LARGEST_FEATURE_BYTES
            )));
        }
        if self.limits.max_direction_bytes > Limits::LARGEST_DIRECTION_BYTES {
            return Err(invalid(&format!(
                "limits.max_direction_bytes is above {}, the most that is read at the next start",
                Limits::LARGEST_DIRECTION_BYTES
            )));
        }
        self.artifacts
            .check()
            .and_then(|()| self.jobs.check())
            .and_then(|()| self.hub.check())
            .map_err(|problem| invalid(&problem))?;
        match self.listen.ip().is_loopback() || self.allow_remote || !self.keys.is_empty() {
            true => Ok(()),
            false => Err(SettingsError::Remote(self.listen)),
        }
    }
}

/// The system's directory for what a user's programs keep, or `data` here where the system names none.
fn user_data() -> PathBuf {
    use etcetera::BaseStrategy;
    match etcetera::choose_base_strategy() {
        Ok(strategy) => strategy.data_dir().join("causeway"),
        Err(_) => PathBuf::from("data"),
    }
}

fn read_table(path: &Path) -> Result<Table, SettingsError> {
    let bytes = atomic::read_small(path, LONGEST_FILE)?;
    let text = String::from_utf8_lossy(&bytes);
    text.parse::<Table>()
        .map_err(|error| SettingsError::Invalid {
            source_name: path.display().to_string(),
            problem: error.to_string(),
        })
}

fn parse(table: Table, source_name: &str) -> Result<Settings, SettingsError> {
    Settings::deserialize(table).map_err(|error| SettingsError::Invalid {
        source_name: source_name.to_owned(),
        problem: error.to_string(),
    })
}

/// Every key with a value of its type: the defaults.
fn known_keys() -> Result<Table, SettingsError> {
    Table::try_from(Settings::default()).map_err(|error| SettingsError::Invalid {
        source_name: "the defaults".to_owned(),
        problem: error.to_string(),
    })
}

/// Puts the value of one environment variable into `table`, read as the type that its key has in `known`.
fn override_with(
    table: &mut Table,
    known: &Table,
    name: &str,
    text: &str,
) -> Result<(), SettingsError> {
    let invalid = |problem: String| SettingsError::Invalid {
        source_name: name.to_owned(),
        problem,
    };
    let key = name[PREFIX.len()..].to_lowercase();
    let mut parts: Vec<&str> = key.split(NESTING).collect();
    let Some(last) = parts.pop() else {
        return Ok(());
    };
    let (mut table, mut known) = (table, known);
    for part in parts {
        let Some(Value::Table(nested)) = known.get(part) else {
            return Err(invalid(unknown_key(known)));
        };
        known = nested;
        let entry = table
            .entry(part)
            .or_insert_with(|| Value::Table(Table::new()));
        let Value::Table(nested) = entry else {
            return Err(invalid(format!("{part} is no table")));
        };
        table = nested;
    }
    let value = match known.get(last) {
        None => return Err(invalid(unknown_key(known))),
        Some(Value::String(_)) => Value::String(text.to_owned()),
        Some(Value::Integer(_)) => Value::Integer(
            text.parse()
                .map_err(|_| invalid(format!("{text:?} is no integer")))?,
        ),
        Some(Value::Float(_)) => Value::Float(
            text.parse()
                .map_err(|_| invalid(format!("{text:?} is no number")))?,
        ),
        Some(Value::Boolean(_)) => Value::Boolean(
            text.parse()
                .map_err(|_| invalid(format!("{text:?} is neither true nor false")))?,
        ),
        Some(Value::Array(_)) => {
            // Directories, separated as in PATH.
            let paths =
                std::env::split_paths(text).map(|path| Value::String(path.display().to_string()));
            Value::Array(paths.collect())
        }
        Some(Value::Table(_) | Value::Datetime(_)) => {
            return Err(invalid("can only be set in the file".to_owned()));
        }
    };
    table.insert(last.to_owned(), value);
    Ok(())
}

fn unknown_key(known: &Table) -> String {
    let names: Vec<String> = known.keys().map(|key| key.to_uppercase()).collect();
    format!("no such setting; there are {}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        let variables = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Settings::read(None, variables)
    }

    fn key(name: &str) -> KeySettings {
        KeySettings {
            name: name.parse().expect("a name"),
            sha256: "0a".repeat(32),
            role: keys::Role::Infer,
            requests_per_minute: None,
        }
    }

    #[test]
    fn keys_must_be_hashes_of_different_callers() {
        let check = |keys: Vec<KeySettings>| {
            let settings = Settings {
                keys,
                ..Settings::default()
            };
            settings.check().is_ok()
        };
        assert!(check(vec![key("a"), key("b")]));
        assert!(!check(vec![key("a"), key("a")]));
        for sha256 in ["", "0a", &"0g".repeat(32), &"\u{e9}".repeat(32)] {
            let sha256 = sha256.to_owned();
            assert!(!check(vec![KeySettings { sha256, ..key("a") }]));
        }
    }

    #[test]
    fn passwords_are_not_shown() {
        for (database, shown) in [
            (
                "postgres://me:p@ss@host/jobs",
                "postgres://me:...@host/jobs",
            ),
            ("postgres://me@host/jobs", "postgres://me@host/jobs"),
            ("", ""),
        ] {
            let mut settings = Settings::default();
            settings.jobs.database = database.to_owned();
            settings.hub.token = "hf_secret".to_owned();
            let told = settings.without_secrets();
            assert_eq!(told.jobs.database, shown);
            assert_eq!(told.hub.token, "...");
        }
    }

    #[test]
    fn artifacts_are_in_a_folder_or_a_bucket() {
        for (url, endpoint, good) in [
            ("", "", true),
            ("kept/here", "", true),
            ("s3://bucket/prefix", "http://127.0.0.1:9000", true),
            ("s3://", "", false),
            ("https://bucket", "", false),
            ("kept/here", "http://127.0.0.1:9000", false),
        ] {
            let artifacts = ArtifactSettings {
                url: url.to_owned(),
                endpoint: endpoint.to_owned(),
                ..ArtifactSettings::default()
            };
            let settings = Settings {
                artifacts,
                ..Settings::default()
            };
            assert_eq!(settings.check().is_ok(), good, "{url} {endpoint}");
        }
    }

    #[test]
    fn the_environment_overrides_the_defaults() {
        let settings = read(&[
            ("CAUSEWAY_LISTEN", "127.0.0.1:9"),
            ("CAUSEWAY_LIMITS__MAX_PROMPTS", "3"),
            ("PATH", "x"),
        ]);
        let settings = settings.expect("valid settings");
        assert_eq!(settings.listen.port(), 9);
        assert_eq!(
            settings.limits,
            Limits {
                max_prompts: 3,
                ..Limits::default()
            }
        );
    }

    #[test]
    fn unknown_keys_and_wrong_types_are_refused() {
        for (name, value) in [
            ("CAUSEWAY_LISTENS", "x"),
            ("CAUSEWAY_LIMITS__MAX_PROMPT", "3"),
            ("CAUSEWAY_THREADS", "many"),
            ("CAUSEWAY_LISTEN", "nowhere"),
            ("CAUSEWAY_LIMITS", "x"),
        ] {
            assert!(read(&[(name, value)]).is_err(), "{name}");
        }
    }

    #[test]
    fn the_example_shows_every_setting_with_its_default() {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/server.toml");
        let settings = Settings::read(Some(&example), std::iter::empty()).expect("a valid example");
        assert_eq!(settings, Settings::default());
        let table = read_table(&example).expect("a table");
        let known = known_keys().expect("the defaults");
        // The directory for data differs from user to user; the example only says so.
        assert_eq!(table.len() + 1, known.len());
        for nested in ["limits", "engine", "telemetry", "jobs", "artifacts", "hub"] {
            let keys = |table: &Table| table[nested].as_table().map(Table::len);
            assert_eq!(keys(&table), keys(&known), "{nested}");
        }
    }

    #[test]
    fn the_container_s_example_is_valid() {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/server-container.toml");
        let settings = Settings::read(Some(&example), std::iter::empty()).expect("a valid example");
        assert!(settings.check().is_ok());
    }

    #[test]
    fn other_machines_are_let_in_only_when_told() {
        let mut settings = Settings::default();
        assert!(settings.check().is_ok());
        settings.listen.set_ip(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        assert!(matches!(settings.check(), Err(SettingsError::Remote(_))));
        settings.allow_remote = true;
        assert!(settings.check().is_ok());
        settings.allow_remote = false;
        settings.keys = vec![key("a")];
        assert!(settings.check().is_ok());
    }
}
