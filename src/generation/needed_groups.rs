//! The groups of a request's edits whose statistics no file has: they are measured over the reference text before the
//! request is planned.

use std::sync::Arc;

use super::request::GenerationRequest;
use crate::features::FeatureError;
use crate::features::group::Group;
use crate::features::measured::{KnownGroups, MeasuredGroup, MeasuredGroups};
use crate::features::pair::Pair;
use crate::features::statistics::measure_groups;
use crate::interventions::plan::{UnmeasuredGroups, unmeasured_groups};
use crate::interventions::request::{
    AblateTo, Destination, EditRequest, FeatureAddress, SteerRequest, Unit,
};
use crate::models::model::LoadedModel;

/// Groups that a request needs statistics of.
pub struct NeededGroups {
    pair: Arc<Pair>,
    groups: UnmeasuredGroups,
}

/// Whether any edit may need statistics that no file has; cheap, so that other requests pay nothing.
fn may_need_statistics(steer: &SteerRequest) -> bool {
    let may_need = |edit: &EditRequest| {
        let counts_in_statistics = matches!(edit.unit, Some(Unit::Std | Unit::Max));
        let to_mean = edit.to == Some(Destination::Ablation(AblateTo::Mean));
        let is_vector = matches!(edit.feature, FeatureAddress::Vector(_));
        (counts_in_statistics || to_mean) && !is_vector
    };
    steer.edits.iter().any(may_need)
}

impl NeededGroups {
    /// The groups of a request's edits that no file has statistics of; none where there is no reference text to measure
    /// them over. A request that is at fault is refused when it is planned.
    pub fn of(request: &GenerationRequest) -> Option<Self> {
        let steer = request
            .steer
            .as_ref()
            .filter(|steer| may_need_statistics(steer))?;
        let pair = request.pair.clone()?;
        let mut groups = unmeasured_groups(steer, &request.scene());
        let text = pair.reference.text.as_ref()?;
        // The text is cut for the sparse model; a dense one with less room cannot run it.
        if text.length > pair.dense.transformer.config.context_length {
            groups.dense.clear();
        }
        let is_empty = groups.sparse.is_empty() && groups.dense.is_empty();
        (!is_empty).then_some(NeededGroups { pair, groups })
    }

    /// What is known of them; none where some must be measured first.
    pub fn known(&self) -> Option<KnownGroups> {
        let reference = &self.pair.reference;
        Some(KnownGroups {
            sparse: known(&self.groups.sparse, &reference.measured)?,
            dense: known(&self.groups.dense, &reference.measured_dense)?,
        })
    }

    /// Runs the models over the reference text and keeps what it finds out.
    pub fn measure(&self) -> Result<KnownGroups, FeatureError> {
        let (pair, groups) = (&self.pair, &self.groups);
        let reference = &pair.reference;
        Ok(KnownGroups {
            sparse: self.measure_in(&pair.sparse, &groups.sparse, &reference.measured)?,
            dense: self.measure_in(&pair.dense, &groups.dense, &reference.measured_dense)?,
        })
    }

    fn measure_in(
        &self,
        model: &LoadedModel,
        groups: &[Group],
        kept: &MeasuredGroups,
    ) -> Result<Vec<Arc<MeasuredGroup>>, FeatureError> {
        let Some(text) = &self.pair.reference.text else {
            return Ok(Vec::new());
        };
        if let Some(known) = known(groups, kept) {
            return Ok(known);
        }
        let measured = measure_groups(&model.transformer, text, groups)?;
        let measured: Vec<_> = measured.into_iter().map(Arc::new).collect();
        for group in &measured {
            kept.keep(group.group.clone(), group.clone());
        }
        Ok(measured)
    }
}

fn known(groups: &[Group], kept: &MeasuredGroups) -> Option<Vec<Arc<MeasuredGroup>>> {
    groups.iter().map(|group| kept.get(group)).collect()
}
