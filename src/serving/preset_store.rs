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

/// The most bytes of a preset's file. A longer one is neither written nor read.
pub const LONGEST_PRESET: usize = 1 << 18;

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
    /// A hash of what it steers with.
    #[serde(skip)]
    fingerprint: String,
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
    #[error("the preset would take {0} bytes on the disk; one may take {LONGEST_PRESET}")]
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
    most: usize,
}

impl Preset {
    pub fn new(
        model: ArtifactId,
        id: ArtifactId,
        description: String,
        created: u64,
        steer: SteerRequest,
    ) -> Result<Self, serde_json::Error> {
        let preset = Preset {
            model,
            id,
            description,
            created,
            steer,
            fingerprint: String::new(),
        };
        preset.fingerprinted()
    }

    /// What requests call it: `MODEL@PRESET`.
    pub fn name(&self) -> String {
        format!("{}{SEPARATOR}{}", self.model, self.id)
    }

    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn fingerprinted(mut self) -> Result<Self, serde_json::Error> {
        self.fingerprint = hexadecimal(&Sha256::digest(serde_json::to_vec(&self.steer)?));
        Ok(self)
    }

    fn path(&self, directory: &Path) -> PathBuf {
        directory.join(format!("{}.json", self.name()))
    }
}

impl PresetStore {
    /// The presets in `data_directory`, to which others may be added until there are `most`.
    pub fn open(data_directory: &Path, most: usize) -> Result<Self, PresetError> {
        let directory = data_directory.join("presets");
        Ok(PresetStore {
            presets: ArcSwap::from_pointee(read_all(&directory)?),
            directory,
            changing: tokio::sync::Mutex::new(()),
            most,
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
        if presets.len() >= self.most {
            return Err(PresetError::Full(presets.len()));
        }
        let directory = self.directory.clone();
        let writing = tokio::task::spawn_blocking(move || {
            let path = preset.path(&directory);
            let json = written(&path, &preset)?;
            atomic::create_directory(&directory)?;
            atomic::write(&path, &json)?;
            Ok::<_, PresetError>(preset)
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
    let preset: Result<Preset, _> = serde_json::from_slice(json);
    preset
        .and_then(Preset::fingerprinted)
        .map_err(|error| json_error(path, &error))
}

/// The file of a preset. It is read once before it is written: what could not be read again would keep the next start
/// from happening.
fn written(path: &Path, preset: &Preset) -> Result<Vec<u8>, PresetError> {
    let json = serde_json::to_vec_pretty(preset).map_err(|error| json_error(path, &error))?;
    if json.len() > LONGEST_PRESET {
        return Err(PresetError::TooLong(json.len()));
    }
    parse(path, &json)?;
    Ok(json)
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
        Preset::new(id_of(model), id_of(id), "for tests".into(), 7, steer).expect("JSON")
    }

    fn add(value: f64) -> Value {
        json!({"edits": [{"feature": "some", "op": "add", "value": value}]})
    }

    #[tokio::test]
    async fn what_was_kept_is_read_again_bit_for_bit() {
        let directory = tempfile::tempdir().expect("a directory");
        let open = |most| PresetStore::open(directory.path(), most).expect("a store");
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
        let store = open(2);
        let kept = store.add(preset("a@b", steer.clone())).await.expect("kept");
        let again = open(2).all()["a@b"].clone();
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
        let store = PresetStore::open(directory.path(), 2).expect("a store");
        store.add(preset("a@one", add(1.0))).await.expect("kept");
        let twice = store.add(preset("a@one", add(2.0))).await;
        assert!(matches!(twice, Err(PresetError::Exists { .. })));
        let long = json!({"edits": [{"feature": "f".repeat(LONGEST_PRESET), "op": "ablate"}]});
        let long = store.add(preset("a@long", long)).await;
        assert!(matches!(long, Err(PresetError::TooLong(_))));
        store.add(preset("b@one", add(3.0))).await.expect("kept");
        let third = store
            .add(preset("a@two", add(4.0)))
            .await
            .expect_err("full");
        assert!(third.to_string().contains("limits.max_presets"), "{third}");
        assert!(store.remove("a@two").await.expect("a look").is_none());
        assert!(store.remove("a@one").await.expect("removed").is_some());
        let left = PresetStore::open(directory.path(), 2)
            .expect("a store")
            .all();
        assert_eq!(left.keys().collect::<Vec<_>>(), ["b@one"]);
        store
            .add(preset("a@two", add(4.0)))
            .await
            .expect("room again");
        let fingerprints = store.all();
        assert_ne!(
            fingerprints["a@two"].fingerprint(),
            fingerprints["b@one"].fingerprint()
        );
    }

    #[tokio::test]
    async fn a_file_that_is_no_preset_is_told() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = PresetStore::open(directory.path(), 2).expect("a store");
        store.add(preset("a@one", add(1.0))).await.expect("kept");
        let folder = directory.path().join("presets");
        std::fs::write(folder.join(".a@two.json.x.part"), b"{").expect("written");
        PresetStore::open(directory.path(), 2).expect("what was being written is passed over");
        std::fs::copy(folder.join("a@one.json"), folder.join("a@two.json")).expect("copied");
        let error = PresetStore::open(directory.path(), 2).expect_err("of another name");
        assert!(
            error.to_string().contains("calls itself \"a@one\""),
            "{error}"
        );
        std::fs::write(folder.join("a@two.json"), b"{").expect("written");
        let error = PresetStore::open(directory.path(), 2).expect_err("no JSON");
        assert!(error.to_string().contains("a@two.json"), "{error}");
    }
}
