//! Listing features.

use actix_web::{HttpResponse, web};

use super::direction_wire::DirectionObject;
use super::wire::{FeatureList, FeatureObject, ListQuery, ListedFeature};
use crate::api::ApiError;
use crate::api::error::ErrorBody;
use crate::api::state::State;
use crate::serving::feature_store::StoredFeature;
use crate::serving::snapshot::Snapshot;
use crate::tasks::Task;

impl ListedFeature {
    fn id(&self) -> &str {
        match self {
            ListedFeature::Feature(feature) => &feature.id,
            ListedFeature::Direction(direction) => &direction.id,
        }
    }

    /// The same with the circuits that are served now; directions are of none.
    fn with_circuits(self, snapshot: &Snapshot) -> Self {
        match self {
            ListedFeature::Feature(feature) => {
                ListedFeature::Feature(Box::new(feature.with_circuits(snapshot)))
            }
            direction @ ListedFeature::Direction(_) => direction,
        }
    }
}

const DEFAULT_LIMIT: usize = 100;
const LARGEST_LIMIT: usize = 1000;

/// Named features, in the order of their registries, and after them the directions of models; those of a task by how
/// well they serve it.
#[utoipa::path(get, path = "/v1/features", tag = "features", operation_id = "listFeatures", params(ListQuery),
    responses(
        (status = 200, description = "A page of features", body = FeatureList),
        (status = 400, description = "A parameter is unknown or out of range, or names nothing", body = ErrorBody)
    ))]
pub async fn list(
    state: web::Data<State>,
    query: web::Query<ListQuery>,
) -> Result<HttpResponse, ApiError> {
    let limit = query.limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=LARGEST_LIMIT).contains(&limit) {
        let message = format!("limit is {limit}; it must be between 1 and {LARGEST_LIMIT}");
        return Err(ApiError::invalid("limit", message));
    }
    let model = model_of(&state, &query)?;
    let mut features = state.features.all();
    keep_asked_for(&state, &query, &mut features)?;
    let features = features.into_iter().map(FeatureObject::from);
    let features = features.map(|feature| ListedFeature::Feature(Box::new(feature)));
    let directions = directions(&state, &query).into_iter();
    let features: Vec<ListedFeature> = features
        .chain(directions.map(ListedFeature::Direction))
        .collect();
    let start = match &query.after {
        None => 0,
        Some(after) => {
            let position = features.iter().position(|listed| listed.id() == after);
            1 + position.ok_or_else(|| {
                ApiError::invalid(
                    "after",
                    "no feature of this list has the id given as `after`",
                )
            })?
        }
    };
    let has_more = features.len() > start + limit;
    let snapshot = state.snapshot();
    let page = features.into_iter().skip(start).take(limit);
    let data: Vec<ListedFeature> = page.map(|listed| listed.with_circuits(&snapshot)).collect();
    let last_id = data.last().map(|listed| listed.id().to_owned());
    Ok(HttpResponse::Ok().json(FeatureList {
        object: "list",
        model,
        data,
        last_id,
        has_more,
    }))
}

/// The directions that are asked for: none where features of a bridge or a task are.
fn directions(state: &State, query: &ListQuery) -> Vec<DirectionObject> {
    if query.bridge.is_some() || query.task.is_some() {
        return Vec::new();
    }
    let text = query.query.as_ref().map(|text| text.to_lowercase());
    let mut found = Vec::new();
    for (model, directions) in state.directions.all() {
        if query.model.as_ref().is_some_and(|asked| *asked != model) {
            continue;
        }
        for direction in directions.values() {
            let sites = direction.parts.iter().map(|part| part.site.as_str());
            let mut places = [direction.name.as_str(), &direction.description]
                .into_iter()
                .chain(sites);
            let is_asked_for = text
                .as_ref()
                .is_none_or(|text| places.any(|place| place.to_lowercase().contains(text)));
            if is_asked_for {
                found.push(DirectionObject::new(&model, direction, false));
            }
        }
    }
    found
}

fn model_of(state: &State, query: &ListQuery) -> Result<Option<String>, ApiError> {
    if let Some(model) = &query.model {
        state
            .snapshot()
            .model(model)
            .map_err(|error| ApiError::invalid("model", error.to_string()))?;
        return Ok(Some(model.clone()));
    }
    if let Some(bridge) = &query.bridge {
        return Ok(Some(
            state
                .snapshot()
                .bridge(bridge, Some("bridge"))?
                .record
                .dense
                .to_string(),
        ));
    }
    let snapshot = state.snapshot();
    let mut bridges = snapshot.bridges.values();
    let only = bridges.next().filter(|_| bridges.next().is_none());
    Ok(only.map(|bridge| bridge.record.dense.to_string()))
}

fn keep_asked_for(
    state: &State,
    query: &ListQuery,
    features: &mut Vec<StoredFeature>,
) -> Result<(), ApiError> {
    if let Some(bridge) = &query.bridge {
        let id = &state.snapshot().bridge(bridge, Some("bridge"))?.record.id;
        features.retain(|stored| stored.bridge == id.as_str());
    }
    if let Some(model) = &query.model {
        let snapshot = state.snapshot();
        let bridges: Vec<&str> = snapshot
            .bridges_of(model)
            .map(|bridge| bridge.record.id.as_str())
            .collect();
        features.retain(|stored| bridges.contains(&stored.bridge.as_str()));
    }
    if let Some(task) = &query.task {
        let task: Task = task
            .parse()
            .map_err(|error| ApiError::invalid("task", format!("{error}")))?;
        let rank =
            |stored: &StoredFeature| stored.feature.tasks.iter().position(|known| *known == task);
        features.retain(|stored| rank(stored).is_some());
        features.sort_by_key(rank);
    }
    if let Some(text) = &query.query {
        let text = text.to_lowercase();
        features.retain(|stored| {
            let feature = &stored.feature;
            let tasks = feature.tasks.iter().map(|task| task.name());
            let mut places = [feature.name.as_str(), &feature.description, &feature.node]
                .into_iter()
                .chain(tasks);
            places.any(|place| place.to_lowercase().contains(&text))
        });
    }
    Ok(())
}
