//! Presets: `steer` fields kept under ids, so that whoever names the model `MODEL@PRESET` is answered with one.
//!
//! Each is a file of the data directory, `presets/{model}@{id}.json`, which holds a [`Preset`]. It belongs to the id of
//! a model, whether a model of that id is served or not.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::artifacts::{ArtifactError, ArtifactId, atomic, hexadecimal};
use crate::interventions::request::SteerRequest;
use crate::settings::Limits;

/// The most bytes of a preset's file, whatever the settings. A longer one is neither written nor read.
pub const LONGEST_PRESET: usize = 1 << 20;

/// Stands between a model's id and a preset's; no id has it.
pub const SEPARATOR: char = '@';

/// Presets by their full names.
pub type Presets = BTreeMap<String, Arc<Preset>>;

/// One preset.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preset {
    pub model: ArtifactId,
    pub id: ArtifactId,
    pub description: String,
    /// Seconds since 1970.
    pub created: u64,
    pub steer: SteerRequest,
    /// A hash of what it steers with, once it is kept.
    #[serde(skip)]
    fingerprint: String,
    /// Of its file, once it is kept.
    #[serde(skip)]
    bytes: usize,
}

/// Why presets could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum PresetError {
    #[error(transparent)]
    File(#[from] ArtifactError),
    #[error("{}: {problem}", path.display())]
    Json { path: PathBuf, problem: String },
    #[error("model {model} has a preset {id} already; delete it first")]
    Exists { model: ArtifactId, id: ArtifactId },
    #[error("there are {0} presets already, as many as are kept (limits.max_presets); delete some")]
    Full(usize),
    #[error(
        "with this the presets would take {total} bytes; at most {most} are kept (limits.max_preset_bytes): delete some"
    )]
    NoRoom { total: usize, most: usize },
    #[error("the preset would take {0} bytes; one may take {LONGEST_PRESET}")]
    TooLong(usize),
    #[error("the writing of a preset ended early")]
    Ended,
}

/// All presets.
#[derive(Debug)]
pub struct PresetStore {
    directory: PathBuf,
    presets: ArcSwap<Presets>,
    /// Held over a whole change, on the disk and here, so that no two undo each other.
    changing: tokio::sync::Mutex<()>,
    limits: Limits,
}

impl Preset {
    pub fn new(
        model: ArtifactId,
        id: ArtifactId,
        description: String,
        created: u64,
        steer: SteerRequest,
    ) -> Self {
        Preset {
            model,
            id,
            description,
            created,
            steer,
            fingerprint: String::new(),
            bytes: 0,
        }
    }

    /// What requests call it: `MODEL@PRESET`.
    pub fn name(&self) -> String {
        format!("{}{SEPARATOR}{}", self.model, self.id)
    }

    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn path(&self, directory: &Path) -> PathBuf {
        directory.join(format!("{}.json", self.name()))
    }
}

impl PresetStore {
    /// The presets in `data_directory`, to which others may be added.
    pub fn open(data_directory: &Path, limits: Limits) -> Result<Self, PresetError> {
        let directory = data_directory.join("presets");
        Ok(PresetStore {
            presets: ArcSwap::from_pointee(read_all(&directory)?),
            directory,
            changing: tokio::sync::Mutex::new(()),
            limits,
        })
    }

    /// The presets as they are now.
    pub fn all(&self) -> Arc<Presets> {
        self.presets.load_full()
    }

    /// Keeps a preset, on the disk first.
    pub async fn add(&self, preset: Preset) -> Result<Arc<Preset>, PresetError> {
        let _turn = self.changing.lock().await;
        let mut presets = Presets::clone(&self.all());
        if presets.contains_key(&preset.name()) {
            let (model, id) = (preset.model, preset.id);
            return Err(PresetError::Exists { model, id });
        }
        if presets.len() >= self.limits.max_presets {
            return Err(PresetError::Full(presets.len()));
        }
        let taken: usize = presets.values().map(|preset| preset.bytes).sum();
        let (directory, most) = (self.directory.clone(), self.limits.max_preset_bytes);
        let writing = tokio::task::spawn_blocking(move || {
            let path = preset.path(&directory);
            let (json, kept) = written(&path, &preset)?;
            let total = taken + json.len();
            if total > most {
                return Err(PresetError::NoRoom { total, most });
            }
            atomic::create_directory(&directory)?;
            atomic::write(&path, &json)?;
            Ok(kept)
        });
        let preset = Arc::new(writing.await.map_err(|_| PresetError::Ended)??);
        presets.insert(preset.name(), preset.clone());
        self.presets.store(Arc::new(presets));
        Ok(preset)
    }

    /// Removes the preset of that full name, from the disk first; none where there is none.
    pub async fn remove(&self, name: &str) -> Result<Option<Arc<Preset>>, PresetError> {
        let _turn = self.changing.lock().await;
        let mut presets = Presets::clone(&self.all());
        let Some(preset) = presets.remove(name) else {
            return Ok(None);
        };
        let path = preset.path(&self.directory);
        let removing = tokio::task::spawn_blocking(move || atomic::remove(&path));
        removing.await.map_err(|_| PresetError::Ended)??;
        self.presets.store(Arc::new(presets));
        Ok(Some(preset))
    }
}

/// The presets in `directory`, which need not exist. Hidden files are what an interrupted writing has left.
fn read_all(directory: &Path) -> Result<Presets, PresetError> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Presets::new()),
        Err(error) => return Err(ArtifactError::io("read", directory)(error).into()),
    };
    let mut presets = Presets::new();
    for entry in entries {
        let path = entry.map_err(ArtifactError::io("read", directory))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with('.') || !name.ends_with(".json") {
            continue;
        }
        let preset = parse(&path, &atomic::read_small(&path, LONGEST_PRESET as u64)?)?;
        if preset.path(directory) != path {
            let problem = format!("the preset calls itself {:?}", preset.name());
            return Err(PresetError::Json { path, problem });
        }
        presets.insert(preset.name(), Arc::new(preset));
    }
    Ok(presets)
}

fn parse(path: &Path, json: &[u8]) -> Result<Preset, PresetError> {
    let preset: Preset = serde_json::from_slice(json).map_err(|error| json_error(path, &error))?;
    let steer = serde_json::to_vec(&preset.steer).map_err(|error| json_error(path, &error))?;
    Ok(Preset {
        fingerprint: hexadecimal(&Sha256::digest(steer)),
        bytes: json.len(),
        ..preset
    })
}

/// The file of a preset, and what is read from it: what could not be read again would keep the next start from
/// happening.
fn written(path: &Path, preset: &Preset) -> Result<(Vec<u8>, Preset), PresetError> {
    let json = serde_json::to_vec(preset).map_err(|error| json_error(path, &error))?;
    if json.len() > LONGEST_PRESET {
        return Err(PresetError::TooLong(json.len()));
    }
    let kept = parse(path, &json)?;
    Ok((json, kept))
}

fn json_error(path: &Path, error: &serde_json::Error) -> PresetError {
    PresetError::Json {
        path: path.to_owned(),
        problem: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn preset(name: &str, steer: Value) -> Preset {
        let (model, id) = name.split_once(SEPARATOR).expect("a full name");
        let id_of = |text: &str| text.parse().expect("an id");
        let steer = serde_json::from_value(steer).expect("a steer field");
        Preset::new(id_of(model), id_of(id), "for tests".into(), 7, steer)
    }

    fn store(directory: &tempfile::TempDir) -> Result<PresetStore, PresetError> {
        let limits = Limits {
            max_presets: 2,
            ..Limits::default()
        };
        PresetStore::open(directory.path(), limits)
    }

    fn add(value: f64) -> Value {
        json!({"edits": [{"feature": "some", "op": "add", "value": value}]})
    }

    #[tokio::test]
    async fn what_was_kept_is_read_again_bit_for_bit() {
        let directory = tempfile::tempdir().expect("a directory");
        let open = || store(&directory).expect("a store");
        let steer = json!({
            "bridge": "pair",
            "edits": [
                {"feature": "0.mlp.act_in:3", "op": "add", "value": 0.1 + 0.2, "unit": "std", "strength": 1e-7,
                 "at": {"prompt": [-1, [0, null], {"text": "x", "occurrence": -1}], "generation": "none"},
                 "when": {"any": [{"feature": {"node": "0.resid_mid", "channel": 1}, "gt": -0.1, "lt": 1e300}]}},
                {"feature": {"node": "1.mlp.act_in", "channels": [{"channel": 2, "weight": 0.7}]}, "op": "ablate",
                 "to": "mean", "read": "encoder", "write": "residual"},
                {"feature": {"site": "1.resid_in", "vector": [0.1, 16777216.0, -3.4e38, 1e-45]}, "op": "clamp",
                 "min": -5e-324, "max": 0.30000000000000004},
                {"feature": "some", "op": "patch", "to": {"prompt": "x = \u{e9}", "align": "end"}},
                {"feature": "0.mlp.act_in:3", "op": "swap", "with": 4}
            ],
            "variants": ["random"], "return": ["receipt", "activations"]
        });
        let presets = open();
        let kept = presets
            .add(preset("a@b", steer.clone()))
            .await
            .expect("kept");
        let again = open().all()["a@b"].clone();
        let told = |preset: &Preset| serde_json::to_value(&preset.steer).expect("JSON");
        assert_eq!(told(&again), told(&kept));
        assert_eq!(again.fingerprint(), kept.fingerprint());
        let SteerRequest { edits, .. } = serde_json::from_value(steer).expect("a steer field");
        let value =
            |edits: &[crate::interventions::request::EditRequest]| edits[0].value.map(f64::to_bits);
        assert_eq!(value(&again.steer.edits), value(&edits));
        assert_eq!(again.steer.edits[2].feature, edits[2].feature);
    }

    #[tokio::test]
    async fn names_are_taken_once_and_bounds_are_kept() {
        let directory = tempfile::tempdir().expect("a directory");
        let presets = store(&directory).expect("a store");
        presets.add(preset("a@one", add(1.0))).await.expect("kept");
        let twice = presets.add(preset("a@one", add(2.0))).await;
        assert!(matches!(twice, Err(PresetError::Exists { .. })));
        let long = json!({"edits": [{"feature": "f".repeat(LONGEST_PRESET), "op": "ablate"}]});
        let long = presets.add(preset("a@long", long)).await;
        assert!(matches!(long, Err(PresetError::TooLong(_))));
        presets.add(preset("b@one", add(3.0))).await.expect("kept");
        let third = presets
            .add(preset("a@two", add(4.0)))
            .await
            .expect_err("full");
        assert!(third.to_string().contains("limits.max_presets"), "{third}");
        assert!(presets.remove("a@two").await.expect("a look").is_none());
        assert!(presets.remove("a@one").await.expect("removed").is_some());
        let left = store(&directory).expect("a store").all();
        assert_eq!(left.keys().collect::<Vec<_>>(), ["b@one"]);
        presets
            .add(preset("a@two", add(4.0)))
            .await
            .expect("room again");
        let fingerprints = presets.all();
        assert_ne!(
            fingerprints["a@two"].fingerprint(),
            fingerprints["b@one"].fingerprint()
        );
    }

    #[tokio::test]
    async fn a_file_that_is_no_preset_is_told() {
        let directory = tempfile::tempdir().expect("a directory");
        let presets = store(&directory).expect("a store");
        presets.add(preset("a@one", add(1.0))).await.expect("kept");
        let folder = directory.path().join("presets");
        std::fs::write(folder.join(".a@two.json.x.part"), b"{").expect("written");
        store(&directory).expect("what was being written is passed over");
        std::fs::copy(folder.join("a@one.json"), folder.join("a@two.json")).expect("copied");
        let error = store(&directory).expect_err("of another name");
        assert!(
            error.to_string().contains("calls itself \"a@one\""),
            "{error}"
        );
        std::fs::write(folder.join("a@two.json"), b"{").expect("written");
        let error = store(&directory).expect_err("no JSON");
        assert!(error.to_string().contains("a@two.json"), "{error}");
    }
}
