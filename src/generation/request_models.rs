//! The models that a request is about, found by its names.

use std::sync::Arc;

use super::catalog::{Catalog, JoinedModels, LoadedModel, ModelKind};
use super::request::EngineError;
use crate::features::FeatureError;
use crate::features::measured::MeasuredGroup;
use crate::features::statistics::measure_groups;
use crate::interventions::plan::{Scene, unmeasured_groups};
use crate::interventions::reference::ReferenceStatistics;
use crate::interventions::request::{
    AblateTo, Destination, EditRequest, FeatureAddress, SteerRequest, Unit,
};
use crate::interventions::subject::Group;

/// The model that answers, and its bridge with the models that it joins.
pub struct RequestModels {
    pub model: Arc<LoadedModel>,
    pub joined: Option<JoinedModels>,
    /// Why there is no bridge, where something better can be said than that the model has none.
    unjoined: Option<String>,
}

impl RequestModels {
    pub fn of(
        catalog: &Catalog,
        model: &str,
        steer: Option<&SteerRequest>,
    ) -> Result<Self, EngineError> {
        let model = catalog.model(model)?.clone();
        let (bridge, unjoined) =
            match steer.map(|steer| catalog.bridge_of(&model, steer.bridge.as_deref())) {
                None => (None, None),
                Some(Ok(bridge)) => (bridge, None),
                // Several bridges and none named: no matter to edits that need none.
                Some(Err(error)) if steer.is_some_and(|steer| steer.bridge.is_none()) => {
                    (None, Some(error.to_string()))
                }
                Some(Err(error)) => return Err(error),
            };
        Ok(RequestModels {
            joined: bridge.map(|bridge| catalog.joined(bridge)).transpose()?,
            model,
            unjoined,
        })
    }

    /// What the request is held against.
    pub fn scene<'a>(
        &'a self,
        prompts: &'a [Vec<u32>],
        measured: &'a [Arc<MeasuredGroup>],
    ) -> Scene<'a> {
        Scene {
            model: &self.model.transformer,
            model_id: &self.model.id,
            native: self.model.kind == ModelKind::Sparse,
            joined: self.joined.as_ref().map(JoinedModels::view),
            unjoined: self.unjoined.clone(),
            tokenizer: &self.model.tokenizer,
            prompts,
            measured,
        }
    }
}

/// Groups that a request needs statistics of.
pub struct NeededGroups {
    sparse: Arc<LoadedModel>,
    reference: Arc<ReferenceStatistics>,
    groups: Vec<Group>,
}

/// Whether any edit may need statistics that no file has; cheap, so that other requests pay nothing.
pub fn may_need_statistics(steer: &SteerRequest) -> bool {
    let may_need = |edit: &EditRequest| {
        let counts_in_statistics = matches!(edit.unit, Some(Unit::Std | Unit::Max));
        let to_mean = edit.to == Some(Destination::Ablation(AblateTo::Mean));
        let is_vector = matches!(edit.feature, FeatureAddress::Vector(_));
        (counts_in_statistics || to_mean) && !is_vector
    };
    steer.edits.iter().any(may_need)
}

impl NeededGroups {
    /// The groups of `steer` that no file has statistics of; none where there is no reference text to measure them
    /// over. A request that is at fault is refused when it is planned.
    pub fn of(catalog: &Catalog, model: &str, steer: &SteerRequest) -> Option<Self> {
        if !may_need_statistics(steer) {
            return None;
        }
        let models = RequestModels::of(catalog, model, Some(steer)).ok()?;
        let groups = unmeasured_groups(steer, &models.scene(&[], &[]));
        let joined = models.joined?;
        let reference = joined.bridge.reference.clone();
        (reference.text.is_some() && !groups.is_empty()).then_some(NeededGroups {
            sparse: joined.sparse,
            reference,
            groups,
        })
    }

    /// What is known of them; none where some must be measured first.
    pub fn known(&self) -> Option<Vec<Arc<MeasuredGroup>>> {
        let groups = self.groups.iter();
        groups
            .map(|group| self.reference.measured.get(group))
            .collect()
    }

    /// Runs the sparse model over the reference text and keeps what it finds out.
    pub fn measure(&self) -> Result<Vec<Arc<MeasuredGroup>>, FeatureError> {
        let Some(text) = &self.reference.text else {
            return Ok(Vec::new());
        };
        let measured = measure_groups(&self.sparse.transformer, text, &self.groups)?;
        let measured: Vec<_> = measured.into_iter().map(Arc::new).collect();
        for group in &measured {
            self.reference
                .measured
                .keep(group.group.clone(), group.clone());
        }
        Ok(measured)
    }
}
