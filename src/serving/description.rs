//! What can be told of a pair or a model without its weights in memory: what its files say beside them, and what its
//! trial has found out.

use std::path::Path;
use std::sync::Arc;

use super::snapshot::{IncomingPair, ModelCard, ServedPair, provenance, unix_seconds};
use super::trial::{ModelSize, Tried};
use super::weights::{ServedWeights, WeightMemory};
use crate::bridge::Bridge;
use crate::bridge::pair::{PairError, read_record};
use crate::features::reference::ReferenceStatistics;
use crate::features::registry;
use crate::features::shipped_circuits::{self, CircuitHost};
use crate::models::chat_template::ChatTemplate;
use crate::models::layout::ModelFiles;
use crate::models::model::{ModelError, shared_tokenizer};
use crate::numerics::device::Placement;

/// The pair in `directory`, whose weights come and go in `memory`.
pub fn pair(
    directory: &Path,
    tried: &Tried,
    memory: &Arc<WeightMemory>,
) -> Result<IncomingPair, PairError> {
    let record = read_record(directory)?;
    let paths = ["dense", "sparse"].map(|half| directory.join(half));
    let [dense, sparse] = [&paths[0], &paths[1]].map(|path| ModelFiles::read_config(path));
    let (dense, sparse) = (dense?, sparse?);
    let bridge = Bridge::tensor_shapes(sparse.n_sites(), dense.d_model, sparse.d_model);
    let values = bridge.values().map(|shape| shape.iter().product::<usize>());
    let need = |path: &Path| ModelFiles::memory_need(path, memory.limits);
    let bytes = need(&paths[0])?.weights
        + need(&paths[1])?.weights
        + (values.sum::<usize>() * size_of::<f32>()) as u64;
    let weights = memory.weights(record.id.as_str(), directory.to_owned(), tried, bytes);
    // Its models came from where it came from.
    let provenance = provenance(directory);
    let half = |path: &Path, id: &str, index| -> Result<ModelCard, ModelError> {
        Ok(ModelCard {
            provenance: provenance.clone(),
            ..card(
                path,
                id,
                tried,
                index,
                (weights.clone(), memory.limits.placement),
            )?
        })
    };
    let fingerprint = |index: usize| tried.fingerprints.get(index).map_or("", String::as_str);
    let hosts = [(&record.dense, &dense, 0), (&record.sparse, &sparse, 1)];
    let hosts = hosts.map(|(id, config, index)| CircuitHost {
        id: id.as_str(),
        fingerprint: fingerprint(index),
        config,
    });
    let circuits = shipped_circuits::read(directory, &hosts)?;
    Ok(IncomingPair {
        dense: half(&paths[0], record.dense.as_str(), 0)?,
        sparse: half(&paths[1], record.sparse.as_str(), 1)?,
        pair: ServedPair::new(
            registry::read_shipped(directory, &sparse)?,
            (ReferenceStatistics::read(directory, &sparse)?, circuits),
            tried.bridge.clone().unwrap_or_default(),
            provenance.clone(),
            record,
            weights,
        ),
    })
}

/// The model in `directory`, whose weights come and go in `memory`.
pub fn model(
    id: &str,
    directory: &Path,
    tried: &Tried,
    memory: &Arc<WeightMemory>,
) -> Result<ModelCard, ModelError> {
    let bytes = ModelFiles::memory_need(directory, memory.limits)?.weights;
    let weights = memory.weights(id, directory.to_owned(), tried, bytes);
    let mut card = card(directory, id, tried, 0, (weights, memory.limits.placement))?;
    card.provenance = provenance(directory);
    Ok(card)
}

/// The model in `directory`, the trial's of number `index`.
fn card(
    directory: &Path,
    id: &str,
    tried: &Tried,
    index: usize,
    (weights, placement): (ServedWeights, Placement),
) -> Result<ModelCard, ModelError> {
    let config = ModelFiles::read_config(directory)?;
    let json = ModelFiles::read_tokenizer(directory, &config)?;
    let json = json.ok_or_else(|| ModelError::NoTokenizer(directory.to_owned()))?;
    let unknown = ModelSize {
        is_sparse: config.active_fraction.is_some(),
        parameters: 0,
        nonzeros: 0,
    };
    let size = tried.sizes.get(index).unwrap_or(&unknown);
    Ok(ModelCard {
        id: id.to_owned(),
        sparse: size.is_sparse,
        tokenizer: shared_tokenizer(&json, directory)?,
        chat_template: ChatTemplate::read(directory)?.map(Arc::new),
        parameters: size.parameters,
        nonzeros: size.nonzeros,
        loaded: unix_seconds(),
        fingerprint: tried.fingerprints.get(index).cloned().unwrap_or_default(),
        device: match size.is_sparse {
            true => placement.sparse,
            false => placement.dense,
        }
        .to_string(),
        matrices: match size.is_sparse {
            true => placement.matrices_on(placement.sparse),
            false => placement.matrices_on(placement.dense),
        },
        provenance: Default::default(),
        config,
        weights,
    })
}
