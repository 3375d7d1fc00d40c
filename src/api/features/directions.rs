//! Registering, changing and removing directions, and measuring them over text.

use std::sync::Arc;

use actix_web::{HttpRequest, HttpResponse};

use super::contrast_prompts::Encoder;
use super::direction_wire::DirectionObject;
use super::lookup::FoundDirection;
use super::naming::{check_description, checked_name};
use super::wire::{CreateFeature, ListedFeature, UpdateFeature};
use crate::api::ApiError;
use crate::api::completions::prompt::tokenise;
use crate::api::examiner::Effort;
use crate::api::state::State;
use crate::features::direction::{
    DirectionPart, DirectionSource, NamedDirection, check_vector, measure, sequences, site_of,
};
use crate::interventions::request::VectorAddress;
use crate::models::location::Site;
use crate::models::model::LoadedModel;
use crate::serving::direction_store::DirectionChange;
use crate::serving::feature_store::StoreError;
use crate::serving::snapshot::ModelCard;

/// The dense model that a request names.
pub fn dense_model(state: &State, id: &str) -> Result<Arc<ModelCard>, ApiError> {
    let card = state.snapshot().model(id)?;
    match card.sparse {
        true => {
            let message = format!(
                "{id:?} is a sparse model; directions are of dense ones, and its own features are channels"
            );
            Err(ApiError::invalid("model", message))
        }
        false => Ok(card),
    }
}

/// Registers the direction that a body with `directions` describes.
pub async fn create(
    http: &HttpRequest,
    state: &State,
    request: CreateFeature,
    vectors: Vec<VectorAddress>,
) -> Result<HttpResponse, ApiError> {
    for (field, is_given) in [
        ("bridge", request.bridge.is_some()),
        ("node", request.node.is_some()),
        ("channels", request.channels.is_some()),
        ("write", request.write.is_some()),
        ("tasks", !request.tasks.is_empty()),
        ("tests", !request.tests.is_empty()),
    ] {
        if is_given {
            let message = format!("{field} is of a feature of a bridge; a direction has none");
            return Err(ApiError::invalid(field, message));
        }
    }
    let model = request.model.ok_or_else(|| {
        let message = "model is missing: a direction belongs to a dense model";
        ApiError::invalid_with_code("model", "missing_field", message)
    })?;
    let card = dense_model(state, &model)?;
    let name = checked_name(&request.name, "name")?;
    check_description(&request.description, "description")?;
    check_free(state, &card, name.as_str(), "name")?;
    let parts = parts(vectors, &card)?;
    let texts = texts(state, &card, request.texts).await?;
    let direction = NamedDirection {
        name: name.to_string(),
        description: request.description,
        source: DirectionSource::Given {},
        parts: measured(http, state, &card, parts, texts, "directions").await?,
    };
    let object = register(state, &card, direction, "name").await?;
    Ok(HttpResponse::Created().json(ListedFeature::Direction(object)))
}

/// The vectors in the order of the forward pass.
fn parts(vectors: Vec<VectorAddress>, card: &ModelCard) -> Result<Vec<DirectionPart>, ApiError> {
    if vectors.is_empty() {
        let message = "directions is empty; a direction has at least one site";
        return Err(ApiError::invalid("directions", message));
    }
    let mut parts: Vec<(Site, DirectionPart)> = Vec::with_capacity(vectors.len());
    for (index, VectorAddress { site, vector }) in vectors.into_iter().enumerate() {
        let field = |name: &str| format!("directions[{index}].{name}");
        let place = site_of(&site, card.config.n_layers)
            .map_err(|error| ApiError::invalid(field("site"), error))?;
        if parts.iter().any(|(known, _)| *known == place) {
            return Err(ApiError::invalid(
                field("site"),
                format!("{place} is named twice"),
            ));
        }
        check_vector(&vector, card.config.d_model)
            .map_err(|error| ApiError::invalid(field("vector"), error))?;
        let part = DirectionPart {
            site,
            vector,
            stats: None,
        };
        parts.push((place, part));
    }
    parts.sort_by_key(|(site, _)| *site);
    Ok(parts.into_iter().map(|(_, part)| part).collect())
}

/// What to measure directions of a model over: the texts that were sent, else the reference text of a bridge of the
/// model; nothing where there is neither.
pub async fn texts(
    state: &State,
    card: &ModelCard,
    sent: Option<Vec<String>>,
) -> Result<Vec<Vec<u32>>, ApiError> {
    let Some(sent) = sent else {
        let snapshot = state.snapshot();
        let mut bridges = snapshot.bridges_of(&card.id);
        let text = bridges.find_map(|bridge| bridge.reference.text.as_ref());
        return Ok(text.map(sequences).unwrap_or_default());
    };
    let most = state.limits.max_prompts;
    if !(1..=most).contains(&sent.len()) {
        let message = format!(
            "there are {} texts; between 1 and {most} are taken (limits.max_prompts)",
            sent.len()
        );
        return Err(ApiError::invalid("texts", message));
    }
    let encoder = Encoder::of(card);
    encoder.check_characters(sent.iter().map(String::as_str), "texts", &state.limits)?;
    tokenise(state, move || {
        let texts = sent.iter().enumerate();
        texts
            .map(|(index, text)| encoder.text(text, &format!("texts[{index}]")))
            .collect()
    })
    .await?
}

/// The parts with what they do over texts; as they are where there are none.
pub async fn measured(
    http: &HttpRequest,
    state: &State,
    card: &ModelCard,
    mut parts: Vec<DirectionPart>,
    texts: Vec<Vec<u32>>,
    param: &str,
) -> Result<Vec<DirectionPart>, ApiError> {
    if texts.is_empty() {
        return Ok(parts);
    }
    state
        .examiner
        .examine_model(
            http,
            Effort::Look,
            card,
            param,
            move |model: &LoadedModel, patience| {
                measure(model, &texts, &mut parts, || patience.check())?;
                Ok(parts)
            },
        )
        .await
}

/// Refuses a name that something else of the model has.
pub fn check_free(
    state: &State,
    card: &ModelCard,
    name: &str,
    param: &str,
) -> Result<(), ApiError> {
    let taken = |message: String| ApiError::invalid_with_code(param, "already_exists", message);
    let model = &card.id;
    if state.directions.of(model).contains_key(name) {
        let message = format!("model {model} has a direction {name} already; delete it first");
        return Err(taken(message));
    }
    for bridge in state.snapshot().bridges_of(model) {
        let features = state.features.of(bridge.record.id.as_str());
        if features.iter().any(|stored| stored.feature.name == name) {
            let bridge = &bridge.record.id;
            let message = format!(
                "bridge {bridge} of the model has a feature {name} already; choose another name"
            );
            return Err(taken(message));
        }
    }
    Ok(())
}

/// Keeps a new direction, whose name is the request's field `param`.
pub async fn register(
    state: &State,
    card: &ModelCard,
    direction: NamedDirection,
    param: &str,
) -> Result<DirectionObject, ApiError> {
    // Nobody takes the name for a feature of a bridge meanwhile.
    let _features = state.features.change().await;
    let guard = state.directions.change().await;
    check_free(state, card, &direction.name, param)?;
    let object = DirectionObject::new(&card.id, &direction, false);
    let change = DirectionChange::Put(Box::new(direction));
    guard.apply(&card.id, change).await.map_err(not_kept)?;
    state.service.renew_directions(&card.id);
    Ok(object)
}

/// Changes what is said of a direction.
pub async fn update(
    state: &State,
    found: FoundDirection,
    changes: UpdateFeature,
) -> Result<DirectionObject, ApiError> {
    for (field, is_given) in [
        ("write", changes.write.is_some()),
        ("tasks", changes.tasks.is_some()),
        ("tests", changes.tests.is_some()),
    ] {
        if is_given {
            let message = format!(
                "{field} is of features of a bridge; only the description of a direction can be changed"
            );
            return Err(ApiError::invalid(field, message));
        }
    }
    let guard = state.directions.change().await;
    // As it is now that nobody else changes it.
    let known = state.directions.of(&found.model);
    let mut direction = match known.get(&found.direction.name) {
        Some(direction) => NamedDirection::clone(direction),
        None => return Err(gone(&found.direction.name)),
    };
    if let Some(description) = changes.description {
        direction.description = description;
    }
    let object = DirectionObject::new(&found.model, &direction, false);
    let change = DirectionChange::Put(Box::new(direction));
    guard.apply(&found.model, change).await.map_err(not_kept)?;
    state.service.renew_directions(&found.model);
    Ok(object)
}

/// Removes a direction.
pub async fn delete(state: &State, found: FoundDirection) -> Result<(), ApiError> {
    let guard = state.directions.change().await;
    let change = DirectionChange::Remove(found.direction.name.clone());
    guard.apply(&found.model, change).await.map_err(not_kept)?;
    state.service.renew_directions(&found.model);
    Ok(())
}

fn gone(name: &str) -> ApiError {
    ApiError::NotFound {
        message: format!("there is no feature {name:?} any more"),
        param: None,
        code: Some("feature_not_found"),
    }
}

/// Why something was not kept.
pub fn not_kept(error: StoreError) -> ApiError {
    match error {
        StoreError::Full(message) => ApiError::Invalid {
            message,
            param: None,
            code: Some("over_budget"),
        },
        other => ApiError::storage(other),
    }
}
