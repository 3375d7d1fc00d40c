//! The groups of a request's edits whose statistics no file has: they are measured over the reference text before the
//! request is planned.

use std::sync::Arc;

use super::request::GenerationRequest;
use crate::features::FeatureError;
use crate::features::group::Group;
use crate::features::measured::MeasuredGroup;
use crate::features::pair::Pair;
use crate::features::statistics::measure_groups;
use crate::interventions::plan::unmeasured_groups;
use crate::interventions::request::{
    AblateTo, Destination, EditRequest, FeatureAddress, SteerRequest, Unit,
};

/// Groups that a request needs statistics of.
pub struct NeededGroups {
    pair: Arc<Pair>,
    groups: Vec<Group>,
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
        let groups = unmeasured_groups(steer, &request.scene());
        (pair.reference.text.is_some() && !groups.is_empty())
            .then_some(NeededGroups { pair, groups })
    }

    /// What is known of them; none where some must be measured first.
    pub fn known(&self) -> Option<Vec<Arc<MeasuredGroup>>> {
        let groups = self.groups.iter();
        groups
            .map(|group| self.pair.reference.measured.get(group))
            .collect()
    }

    /// Runs the sparse model over the reference text and keeps what it finds out.
    pub fn measure(&self) -> Result<Vec<Arc<MeasuredGroup>>, FeatureError> {
        let Some(text) = &self.pair.reference.text else {
            return Ok(Vec::new());
        };
        let measured = measure_groups(&self.pair.sparse.transformer, text, &self.groups)?;
        let measured: Vec<_> = measured.into_iter().map(Arc::new).collect();
        for group in &measured {
            self.pair
                .reference
                .measured
                .keep(group.group.clone(), group.clone());
        }
        Ok(measured)
    }
}
