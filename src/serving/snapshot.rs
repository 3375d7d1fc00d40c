//! What is served at one moment: models, pairs, their named features, and presets.
//!
//! A snapshot never changes; what comes or goes makes another, which takes its place in one step. A request looks its
//! names up once and keeps what it found for as long as it takes, whatever is served meanwhile.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::artifacts::Manifest;
use crate::bridge::record::BridgeRecord;
use crate::circuits::circuit::NamedCircuits;
use crate::features::direction::NamedDirections;
use crate::features::pair::Pair;
use crate::features::reference::ReferenceStatistics;
use crate::features::registry::Feature;
use crate::interventions::nearest::suggestion;
use crate::models::chat_template::ChatTemplate;
use crate::models::config::TransformerConfig;
use crate::models::model::{LoadedModel, ModelKind};
use crate::models::tokenizer::Tokenizer;
use crate::numerics::device::{self, MatrixType};
use crate::serving::library::EntryKind;
use crate::serving::preset_store::Presets;
use crate::serving::weights::{Loaded, ServedWeights, WeightsError};

/// All that is served.
#[derive(Debug, Default, Clone)]
pub struct Snapshot {
    pub models: BTreeMap<String, Arc<ModelCard>>,
    /// By the ids of their bridges.
    pub bridges: BTreeMap<String, Arc<ServedPair>>,
    /// All that are kept, also those of models that are not served.
    pub presets: Arc<Presets>,
    /// The circuits of all models, by the ids that they are served under: those that jobs have found by their own, and
    /// those that pairs came with by theirs, or as `BRIDGE.ID` where a job's or an earlier pair's is called so.
    pub circuits: NamedCircuits,
    /// Those of them that jobs have found.
    pub(super) found: NamedCircuits,
    /// The named directions of dense models, by the models' ids.
    directions: BTreeMap<String, Arc<NamedDirections>>,
    /// How many pairs have come so far.
    came: u64,
}

/// One model.
#[derive(Debug)]
pub struct ModelCard {
    pub id: String,
    pub sparse: bool,
    pub config: TransformerConfig,
    pub tokenizer: Arc<Tokenizer>,
    pub chat_template: Option<Arc<ChatTemplate>>,
    pub parameters: usize,
    pub nonzeros: usize,
    /// Seconds since 1970.
    pub loaded: u64,
    /// A hash of its configuration and weights.
    pub fingerprint: String,
    /// What it computes on: `cpu` or `cuda:N`.
    pub device: String,
    /// What its dense matrices are there.
    pub matrices: MatrixType,
    pub provenance: Provenance,
    /// Its own, or those of the pair that it came with.
    pub weights: ServedWeights,
}

/// One pair, by what its bridge is called.
#[derive(Debug, Clone)]
pub struct ServedPair {
    pub record: Arc<BridgeRecord>,
    pub fingerprint: String,
    pub provenance: Provenance,
    /// The circuits that it came with, by their ids.
    pub circuits: Arc<NamedCircuits>,
    /// What single channels of the sparse model do over reference text, where that was measured.
    pub reference: Arc<ReferenceStatistics>,
    /// The named features by name, as they are now.
    pub features: Arc<BTreeMap<String, Feature>>,
    /// Pairs that came before it have lower numbers.
    pub(super) number: u64,
    pub weights: ServedWeights,
}

/// A pair that is to be served.
#[derive(Debug)]
pub struct IncomingPair {
    pub pair: ServedPair,
    pub dense: ModelCard,
    pub sparse: ModelCard,
}

/// What a manifest says of where something came from.
pub type Provenance = BTreeMap<String, serde_json::Value>;

/// A directory without a manifest is served all the same; it only cannot say where it came from.
pub fn provenance(directory: &Path) -> Provenance {
    Manifest::read(directory)
        .map(|manifest| manifest.provenance)
        .unwrap_or_default()
}

/// Why something cannot be served beside what is served.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", directory.display())]
pub struct Conflict {
    directory: PathBuf,
    problem: String,
}

/// Why a name means nothing that is served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotServed {
    #[error("{message}")]
    Model { message: String },
    /// `param` is the field that names the bridge, where a body or a query does.
    #[error("{message}")]
    Bridge {
        message: String,
        param: Option<String>,
    },
    /// The bridge is served, but joins other models.
    #[error("{message}")]
    NotJoined { message: String, param: String },
    #[error("{message}")]
    Circuit { message: String },
}

impl Snapshot {
    /// The same and a pair, found in `directory`. A model of it that is served already must be the same one.
    pub fn with_pair(&self, incoming: IncomingPair, directory: &Path) -> Result<Self, Conflict> {
        let IncomingPair {
            mut pair,
            dense,
            sparse,
        } = incoming;
        let conflict = |problem: String| Conflict {
            directory: directory.to_owned(),
            problem,
        };
        let id = pair.record.id.to_string();
        if dense.id == sparse.id {
            let problem = format!("both models are called {:?}", dense.id);
            return Err(conflict(problem));
        }
        if self.bridges.contains_key(&id) {
            return Err(conflict(format!(
                "a bridge called {id:?} is loaded already"
            )));
        }
        let mut with = self.clone();
        for model in [dense, sparse] {
            match self.models.get(&model.id) {
                Some(served)
                    if served.fingerprint == model.fingerprint && served.sparse == model.sparse =>
                {
                    pair.weights.share(&served.weights, &model.id);
                }
                Some(_) => {
                    return Err(conflict(format!(
                        "another model called {:?} is loaded already",
                        model.id
                    )));
                }
                None => {
                    with.models.insert(model.id.clone(), Arc::new(model));
                }
            }
        }
        pair.number = self.came;
        with.came += 1;
        with.bridges.insert(id, Arc::new(pair));
        with.name_circuits();
        Ok(with)
    }

    /// The same and a model, found in `directory`.
    pub fn with_model(&self, model: ModelCard, directory: &Path) -> Result<Self, Conflict> {
        if self.models.contains_key(&model.id) {
            return Err(Conflict {
                directory: directory.to_owned(),
                problem: format!("a model called {:?} is loaded already", model.id),
            });
        }
        let mut with = self.clone();
        with.models.insert(model.id.clone(), Arc::new(model));
        Ok(with)
    }

    /// The same without a pair and without those of its models that no other pair joins.
    pub fn without_pair(&self, bridge: &str) -> Self {
        let mut without = self.clone();
        if let Some(removed) = without.bridges.remove(bridge) {
            for model in [&removed.record.dense, &removed.record.sparse] {
                if without.bridges_of(model.as_str()).next().is_none() {
                    without.models.remove(model.as_str());
                    without.directions.remove(model.as_str());
                }
            }
        }
        without.name_circuits();
        without
    }

    /// The same without a model.
    pub fn without_model(&self, id: &str) -> Self {
        let mut without = self.clone();
        without.models.remove(id);
        without.directions.remove(id);
        without
    }

    /// The same with other named features of one pair; nothing changes where it is not served.
    pub fn with_features(&self, bridge: &str, features: BTreeMap<String, Feature>) -> Self {
        let mut with = self.clone();
        if let Some(served) = with.bridges.get_mut(bridge) {
            *served = Arc::new(ServedPair {
                features: Arc::new(features),
                ..ServedPair::clone(served)
            });
        }
        with
    }

    /// The same with other named directions of one model; nothing changes where it is not served.
    pub fn with_directions(&self, model: &str, directions: Arc<NamedDirections>) -> Self {
        let mut with = self.clone();
        if with.models.contains_key(model) {
            with.directions.insert(model.to_owned(), directions);
        }
        with
    }

    /// The named directions of a model; none of one that is not served, or is a sparse one.
    pub fn directions_of(&self, model: &str) -> Arc<NamedDirections> {
        self.directions.get(model).cloned().unwrap_or_default()
    }

    /// The models that can have directions and have not been given theirs.
    pub fn without_directions(&self) -> Vec<Arc<ModelCard>> {
        let models = self.models.values();
        let lacking = models.filter(|card| !card.sparse && !self.directions.contains_key(&card.id));
        lacking.cloned().collect()
    }

    /// Whether an entry of the library is served.
    pub fn has(&self, id: &str, kind: EntryKind) -> bool {
        match kind {
            EntryKind::Pair => self.bridges.contains_key(id),
            EntryKind::Model => self.models.contains_key(id),
        }
    }

    /// The same with other presets.
    pub fn with_presets(&self, presets: Arc<Presets>) -> Self {
        Snapshot {
            presets,
            ..self.clone()
        }
    }

    /// The model of that id.
    pub fn model(&self, id: &str) -> Result<Arc<ModelCard>, NotServed> {
        self.models.get(id).cloned().ok_or_else(|| {
            let message = match self.presets.get(id) {
                Some(preset) => format!(
                    "{:?} is a preset of model {:?}; here only the model itself can be named",
                    preset.name(),
                    preset.model.as_str()
                ),
                None => self.no_model(id),
            };
            NotServed::Model { message }
        })
    }

    /// Says that there is no model of this id, and which are called nearly so.
    pub(super) fn no_model(&self, id: &str) -> String {
        let near = suggestion(&shortened(id), self.models.keys().map(String::as_str));
        format!("there is no model {:?}{near}", shortened(id))
    }

    /// The bridge of this id; `param` is the field that names it, where a body or a query does.
    pub fn bridge(&self, id: &str, param: Option<&str>) -> Result<Arc<ServedPair>, NotServed> {
        self.bridges.get(id).cloned().ok_or_else(|| {
            let near = suggestion(&shortened(id), self.bridges.keys().map(String::as_str));
            let message = format!("there is no bridge {:?}{near}", shortened(id));
            let param = param.map(str::to_owned);
            NotServed::Bridge { message, param }
        })
    }

    /// The bridge that a field called `param` names, or the first that is served.
    pub fn bridge_or_first(
        &self,
        id: Option<&str>,
        param: &str,
    ) -> Result<Arc<ServedPair>, NotServed> {
        if let Some(id) = id {
            return self.bridge(id, Some(param));
        }
        let first = self.bridges.values().min_by_key(|bridge| bridge.number);
        first.cloned().ok_or_else(|| NotServed::Bridge {
            message: "no bridge is served".to_owned(),
            param: Some(param.to_owned()),
        })
    }

    /// The bridges that join this model to another, as its dense or its sparse side, by their ids.
    pub fn bridges_of<'a>(&'a self, model: &str) -> impl Iterator<Item = &'a Arc<ServedPair>> {
        let bridges = self.bridges.values();
        bridges.filter(move |bridge| bridge.joins(model))
    }

    /// The bridge of a model that requests mean which name none: the first that came.
    pub fn default_bridge(&self, model: &str) -> Option<&Arc<ServedPair>> {
        let bridges = self.bridges_of(model);
        bridges.min_by_key(|bridge| bridge.number)
    }

    /// The bridge that a request for `model` means: the one that its field `param` names, or the model's first. None
    /// where the model has no bridge and none was named.
    pub fn bridge_for(
        &self,
        model: &str,
        named: Option<&str>,
        param: &str,
    ) -> Result<Option<Arc<ServedPair>>, NotServed> {
        let Some(name) = named else {
            return Ok(self.default_bridge(model).cloned());
        };
        let bridge = self.bridge(name, Some(param))?;
        match bridge.joins(model) {
            true => Ok(Some(bridge)),
            false => Err(NotServed::NotJoined {
                message: format!("bridge {name:?} does not join model {model:?}"),
                param: param.to_owned(),
            }),
        }
    }
}

impl ModelCard {
    /// A model whose weights stay in memory.
    pub fn resident(model: Arc<LoadedModel>, provenance: Provenance) -> Self {
        let weights = ServedWeights::Resident(Loaded::Model(model.clone()));
        Self::of(&model, provenance, weights)
    }

    fn of(model: &LoadedModel, provenance: Provenance, weights: ServedWeights) -> Self {
        ModelCard {
            id: model.id.clone(),
            sparse: model.kind == ModelKind::Sparse,
            config: model.config.clone(),
            tokenizer: model.tokenizer.clone(),
            chat_template: model.chat_template.clone(),
            parameters: model.parameters,
            nonzeros: model.nonzeros,
            loaded: unix_seconds(),
            fingerprint: model.fingerprint.clone(),
            device: device::name(model.device()),
            matrices: model.matrices,
            provenance,
            weights,
        }
    }

    /// The model with its weights, which are read first where they are not there.
    pub async fn model(&self) -> Result<Arc<LoadedModel>, WeightsError> {
        Ok(match self.weights.get().await? {
            Loaded::Model(model) => model,
            Loaded::Pair(pair) if self.id == pair.dense.id => pair.dense,
            Loaded::Pair(pair) => pair.sparse,
        })
    }
}

impl IncomingPair {
    /// A pair whose weights stay in memory. Its models came from where it came from.
    pub fn resident(pair: Pair, provenance: Provenance) -> Self {
        let of = |model: &Arc<LoadedModel>| ModelCard::resident(model.clone(), provenance.clone());
        IncomingPair {
            dense: of(&pair.dense),
            sparse: of(&pair.sparse),
            pair: ServedPair {
                record: pair.record.clone(),
                fingerprint: pair.fingerprint.clone(),
                provenance,
                reference: pair.reference.clone(),
                features: pair.features.clone(),
                circuits: pair.circuits.clone(),
                number: 0,
                weights: ServedWeights::Resident(Loaded::Pair(pair)),
            },
        }
    }
}

impl ServedPair {
    /// A pair of these features, statistics and circuits, which the next snapshot gives its number.
    pub fn new(
        features: BTreeMap<String, Feature>,
        (reference, circuits): (ReferenceStatistics, NamedCircuits),
        fingerprint: String,
        provenance: Provenance,
        record: BridgeRecord,
        weights: ServedWeights,
    ) -> Self {
        ServedPair {
            record: Arc::new(record),
            fingerprint,
            provenance,
            reference: Arc::new(reference),
            features: Arc::new(features),
            circuits: Arc::new(circuits),
            number: 0,
            weights,
        }
    }

    /// The pair with its weights, which are read first where they are not there, and with its features as they are.
    pub async fn pair(&self) -> Result<Arc<Pair>, WeightsError> {
        match self.weights.get().await? {
            Loaded::Pair(pair) => Ok(Arc::new(Pair {
                features: self.features.clone(),
                ..pair
            })),
            Loaded::Model(_) => Err(WeightsError::Ended {
                id: self.record.id.to_string(),
            }),
        }
    }

    fn joins(&self, model: &str) -> bool {
        self.record.dense.as_str() == model || self.record.sparse.as_str() == model
    }
}

/// Seconds since 1970.
pub fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// A name from a request, short enough to be said back.
pub fn shortened(name: &str) -> String {
    name.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::test_pair::random_pair;

    /// A pair of the same two models.
    fn incoming(bridge: &str, seed: u64) -> IncomingPair {
        let mut parts = random_pair(1);
        parts.tensors = random_pair(seed).tensors;
        parts.record.id = bridge.parse().expect("an id");
        IncomingPair::resident(parts.pair(), Provenance::new())
    }

    fn ids<'a>(bridges: impl IntoIterator<Item = &'a Arc<ServedPair>>) -> Vec<&'a str> {
        let ids = bridges.into_iter().map(|bridge| bridge.record.id.as_str());
        ids.collect()
    }

    #[tokio::test]
    async fn the_first_bridge_of_a_model_stays_its_default() {
        let directory = Path::new("somewhere");
        let none = Snapshot::default();
        let first = none
            .with_pair(incoming("later", 2), directory)
            .expect("a pair");
        let both = first
            .with_pair(incoming("earlier", 3), directory)
            .expect("another pair of the same models");
        assert_eq!(ids(both.bridges_of("test-dense")), ["earlier", "later"]);
        for (model, named, meant) in [
            ("test-dense", None, "later"),
            ("test-sparse", None, "later"),
            ("test-dense", Some("earlier"), "earlier"),
        ] {
            let found = both
                .bridge_for(model, named, "steer.bridge")
                .expect("a bridge");
            assert_eq!(ids(found.as_ref()), [meant]);
        }
        let found = both.bridge_or_first(None, "bridge").expect("a bridge");
        assert_eq!(ids([&found]), ["later"]);
        // What somebody has looked up stays as it was.
        assert_eq!(ids(first.bridges.values()), ["later"]);
        // Both run the model that requests name.
        let model = both.models["test-sparse"].model().await.expect("weights");
        let pair = both.bridges["earlier"].pair().await.expect("weights");
        assert!(Arc::ptr_eq(&model, &pair.sparse));

        let without = both.without_pair("later");
        assert_eq!(ids(without.default_bridge("test-dense")), ["earlier"]);
        assert!(without.models.contains_key("test-sparse"));
        assert!(without.without_pair("earlier").models.is_empty());
    }

    #[test]
    fn names_that_mean_nothing_are_told_from_those_that_do_not_fit() {
        let directory = Path::new("somewhere");
        let served = Snapshot::default()
            .with_pair(incoming("pair", 2), directory)
            .expect("a pair");
        let error = served.model("test-dens").expect_err("no model");
        assert!(
            matches!(&error, NotServed::Model { message } if message.contains("\"test-dense\""))
        );
        let error = served
            .bridge_for("test-dense", Some("pairs"), "steer.bridge")
            .expect_err("no bridge");
        assert!(error.to_string().contains("\"pair\""), "{error}");
        let error = served
            .bridge_for("another", Some("pair"), "steer.bridge")
            .expect_err("another model");
        assert!(matches!(error, NotServed::NotJoined { .. }));
        let none = served.bridge_for("another", None, "steer.bridge");
        assert!(none.expect("no bridge").is_none());
        assert!(
            served.with_pair(incoming("pair", 2), directory).is_err(),
            "twice"
        );
        let mut other = random_pair(9);
        other.record.id = "other".parse().expect("an id");
        let other = IncomingPair::resident(other.pair(), Provenance::new());
        assert!(
            served.with_pair(other, directory).is_err(),
            "other models of these names"
        );
    }
}
