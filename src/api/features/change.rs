//! Making, changing and removing named features.

use actix_web::{HttpRequest, HttpResponse, web};

use super::directions;
use super::lookup::{self, Found, Whose};
use super::naming::{check_description, checked_name};
use super::wire::{BridgeQuery, CreateFeature, DeletedFeature, ListedFeature, UpdateFeature};
use crate::api::ApiError;
use crate::api::body::JsonBody;
use crate::api::error::ErrorBody;
use crate::api::state::State;
use crate::features::group::WeightedChannel;
use crate::features::registry::{self, FeatureTest};
use crate::models::location::Location;
use crate::serving::feature_store::{Change, ChangeGuard, Origin, StoredFeature};
use crate::settings::Limits;

/// Names a channel, or a group of channels, of a bridge's sparse model, or, with `directions`, vectors of a dense model's
/// residual stream. It can be edited by its name at once, and is kept in the server's data directory.
#[utoipa::path(post, path = "/v1/features", tag = "features", operation_id = "createFeature",
    request_body(content = CreateFeature, examples(
        ("channels" = (summary = "Channels of a sparse model", value = json!({
            "name": "opening_quote", "description": "Two of the channels that tell which quote opened a string.",
            "node": "0.mlp.act_in", "channels": [{"channel": 20, "weight": 1}, {"channel": 254, "weight": -0.5}],
            "write": "sublayer", "tasks": ["single_double_quote"],
            "tests": [{"prompt": "print(\"hello world", "counterfactual": "print('hello world", "expected": "')",
                "instead": "\")", "at_least": 0.0, "at_most_before": 0.5}]
        }))),
        ("direction" = (summary = "A direction of a dense model", value = json!({
            "name": "first_channels", "description": "A vector at one site.", "model": "tinypython",
            "directions": [{"site": "2.resid_in", "vector": example_vector()}]
        })))
    )),
    responses(
        (status = 201, description = "The feature", body = ListedFeature),
        (status = 400, description = "A field is wrong; a name already used has the code `already_exists`, more features \
            than are kept the code `over_budget`", body = ErrorBody),
        (status = 404, description = "No model has the id of a direction's: code `model_not_found`", body = ErrorBody),
        (status = 503, description = "The engine is not running: code `not_ready`; or too many examinations wait: code \
            `overloaded`", body = ErrorBody),
        (status = 504, description = "Its channels' statistics took longer than they may: code `deadline_exceeded`",
            body = ErrorBody)
    ))]
pub async fn create(
    http: HttpRequest,
    state: web::Data<State>,
    body: JsonBody<CreateFeature>,
) -> Result<HttpResponse, ApiError> {
    let mut request = body.0;
    if let Some(vectors) = request.directions.take() {
        return directions::create(&http, &state, request, vectors).await;
    }
    for (field, is_given) in [
        ("model", request.model.is_some()),
        ("texts", request.texts.is_some()),
    ] {
        if is_given {
            let message = format!("{field} is of a direction, which has `directions`");
            return Err(ApiError::invalid(field, message));
        }
    }
    let missing = |field: &str| {
        let message = format!(
            "{field} is missing: a feature of a bridge has `node` and `channels`, a direction of a model `directions`"
        );
        ApiError::invalid_with_code(field, "missing_field", message)
    };
    let node = request.node.ok_or_else(|| missing("node"))?;
    let channels = request.channels.ok_or_else(|| missing("channels"))?;
    let bridge = state
        .snapshot()
        .bridge_or_first(request.bridge.as_deref(), "bridge")?;
    let model = lookup::sparse_model(&state, &bridge)?;
    let config = &model.config;
    let name = checked_name(&request.name, "name")?;
    let place = Location::parse(&node, config.n_layers)
        .map_err(|error| ApiError::invalid("node", error.to_string()))?;
    let channels = unit_length(&channels, place.width(config), place)?;
    check_texts(
        Some(&request.description),
        Some(&request.tests),
        &state.limits,
    )?;
    let feature = registry::Feature {
        name: name.to_string(),
        description: request.description,
        node: place.to_string(),
        write: request
            .write
            .unwrap_or_else(|| lookup::default_write(place)),
        tasks: request.tasks,
        stats: lookup::group_statistics(&http, &state, &bridge, place, &channels).await?,
        effects: None,
        channels,
        tests: request.tests,
    };
    let dense = bridge.record.dense.to_string();
    let bridge = bridge.record.id.as_str();
    let guard = state.features.change().await;
    if state.directions.of(&dense).contains_key(&feature.name) {
        let message = format!(
            "model {dense}, which bridge {bridge} joins, has a direction {name} already; choose another name"
        );
        return Err(ApiError::invalid_with_code(
            "name",
            "already_exists",
            message,
        ));
    }
    if state
        .features
        .of(bridge)
        .iter()
        .any(|stored| stored.feature.name == feature.name)
    {
        let message = format!("bridge {bridge} has a feature {name} already; change it with PATCH");
        return Err(ApiError::invalid_with_code(
            "name",
            "already_exists",
            message,
        ));
    }
    keep(
        &state,
        &guard,
        bridge,
        Change::Put(Box::new(feature.clone())),
    )
    .await?;
    let stored = StoredFeature {
        bridge: bridge.to_owned(),
        feature,
        origin: Origin::Own,
    };
    let object = ListedFeature::of(stored, &state.snapshot());
    Ok(HttpResponse::Created().json(object))
}

/// For the document: a vector of the shipped pair's dense model.
fn example_vector() -> Vec<f32> {
    let mut vector = vec![0.0; 128];
    vector[..2].copy_from_slice(&[1.0, -0.5]);
    vector
}

/// Changes what is said of a named feature. The change of a feature that came with the bridge is kept beside
/// it; deleting it brings the original back.
#[utoipa::path(patch, path = "/v1/features/{id}", tag = "features", operation_id = "updateFeature",
    params(("id" = String, Path, description = "The feature's name", example = "quote_type"), BridgeQuery),
    request_body(content = UpdateFeature, example = json!({"description": "Which quote opened the string."})),
    responses(
        (status = 200, description = "The feature as it is now", body = ListedFeature),
        (status = 400, description = "A field is wrong, or there would be more than is kept: code `over_budget`",
            body = ErrorBody),
        (status = 404, description = "There is no such feature: code `feature_not_found`", body = ErrorBody),
        (status = 503, description = "The engine is not running: code `not_ready`", body = ErrorBody)
    ))]
pub async fn update(
    state: web::Data<State>,
    id: web::Path<String>,
    query: web::Query<BridgeQuery>,
    body: JsonBody<UpdateFeature>,
) -> Result<HttpResponse, ApiError> {
    let changes = body.0;
    check_texts(
        changes.description.as_deref(),
        changes.tests.as_deref(),
        &state.limits,
    )?;
    let guard = state.features.change().await;
    let (bridge, mut feature) = match lookup::find_named(&state, &id, query.whose())? {
        Found::Named(stored) => (stored.bridge, stored.feature),
        Found::Direction(found) => {
            let changed = directions::update(&state, found, changes).await?;
            return Ok(HttpResponse::Ok().json(ListedFeature::Direction(changed)));
        }
        Found::Unnamed { .. } => return Err(ApiError::internal("a channel has a name")),
    };
    if let Some(description) = changes.description {
        feature.description = description;
    }
    if let Some(write) = changes.write {
        feature.write = write;
    }
    if let Some(tasks) = changes.tasks {
        feature.tasks = tasks;
    }
    if let Some(tests) = changes.tests {
        feature.tests = tests;
    }
    keep(&state, &guard, &bridge, Change::Put(Box::new(feature))).await?;
    let whose = Whose {
        bridge: Some(&bridge),
        model: None,
    };
    match lookup::find_named(&state, &id, whose)? {
        Found::Named(stored) => {
            let object = ListedFeature::of(stored, &state.snapshot());
            Ok(HttpResponse::Ok().json(object))
        }
        _ => Err(ApiError::internal("a changed feature is another one")),
    }
}

/// Removes a feature or direction that was made on this server, or the changes made to one that came with the bridge.
#[utoipa::path(delete, path = "/v1/features/{id}", tag = "features", operation_id = "deleteFeature",
    params(("id" = String, Path, description = "The feature's name", example = "opening_quote"), BridgeQuery),
    responses(
        (status = 200, description = "It, or what was changed of it, is gone", body = DeletedFeature),
        (status = 400, description = "It came with the bridge: code `shipped`", body = ErrorBody),
        (status = 404, description = "There is no such feature: code `feature_not_found`", body = ErrorBody),
        (status = 503, description = "The engine is not running: code `not_ready`", body = ErrorBody)
    ))]
pub async fn delete(
    state: web::Data<State>,
    id: web::Path<String>,
    query: web::Query<BridgeQuery>,
) -> Result<HttpResponse, ApiError> {
    let guard = state.features.change().await;
    let stored = match lookup::find_named(&state, &id, query.whose())? {
        Found::Named(stored) => stored,
        Found::Direction(found) => {
            directions::delete(&state, found).await?;
            return Ok(deleted(id.into_inner()));
        }
        Found::Unnamed { .. } => return Err(ApiError::internal("a channel has a name")),
    };
    if stored.origin == Origin::Shipped {
        return Err(ApiError::Invalid {
            message: format!("{id} came with bridge {} and stays with it", stored.bridge),
            param: None,
            code: Some("shipped"),
        });
    }
    keep(
        &state,
        &guard,
        &stored.bridge,
        Change::Remove(stored.feature.name),
    )
    .await?;
    Ok(deleted(id.into_inner()))
}

fn deleted(id: String) -> HttpResponse {
    HttpResponse::Ok().json(DeletedFeature {
        id,
        object: "feature",
        deleted: true,
    })
}

/// Makes the change on the disk and in what is served.
async fn keep(
    state: &State,
    guard: &ChangeGuard<'_>,
    bridge: &str,
    change: Change,
) -> Result<(), ApiError> {
    let kept = guard.apply(bridge, change).await;
    kept.map_err(directions::not_kept)?;
    state.service.renew_features(bridge);
    Ok(())
}

/// The channels with their weights scaled to a vector of length one.
fn unit_length(
    channels: &[WeightedChannel],
    width: usize,
    place: Location,
) -> Result<Vec<WeightedChannel>, ApiError> {
    if channels.is_empty() {
        return Err(ApiError::invalid(
            "channels",
            "channels is empty; a feature has at least one",
        ));
    }
    let mut seen = std::collections::BTreeSet::new();
    for (index, WeightedChannel { channel, weight }) in channels.iter().enumerate() {
        let field = |name: &str| format!("channels[{index}].{name}");
        if *channel >= width {
            let message = format!(
                "{place} has no channel {channel}; they run from 0 to {}",
                width - 1
            );
            return Err(ApiError::invalid(field("channel"), message));
        }
        if !seen.insert(channel) {
            return Err(ApiError::invalid(
                field("channel"),
                format!("channel {channel} is named twice"),
            ));
        }
        if !weight.is_finite() || *weight == 0.0 {
            return Err(ApiError::invalid(
                field("weight"),
                format!("{weight} is no weight: finite, not zero"),
            ));
        }
    }
    // Dividing by the largest first keeps the squares of very large and very small weights representable.
    let largest = channels
        .iter()
        .map(|entry| entry.weight.abs())
        .fold(0.0, f64::max);
    let length = channels
        .iter()
        .map(|entry| (entry.weight / largest).powi(2))
        .sum::<f64>()
        .sqrt();
    let scaled = |entry: &WeightedChannel| WeightedChannel {
        channel: entry.channel,
        weight: entry.weight / largest / length,
    };
    Ok(channels.iter().map(scaled).collect())
}

/// Refuses longer texts and more tests than are kept.
fn check_texts(
    description: Option<&str>,
    tests: Option<&[FeatureTest]>,
    limits: &Limits,
) -> Result<(), ApiError> {
    check_description(description.unwrap_or_default(), "description")?;
    let tests = tests.unwrap_or_default();
    let most = limits.max_feature_tests;
    if tests.len() > most {
        let message = format!(
            "there are {} tests; a feature has at most {most} (limits.max_feature_tests)",
            tests.len()
        );
        return Err(ApiError::invalid("tests", message));
    }
    for (index, test) in tests.iter().enumerate() {
        for (name, value) in [
            ("at_least", test.at_least),
            ("at_most_before", test.at_most_before),
        ] {
            if !(0.0..=1.0).contains(&value) {
                let message = format!("{value} is no probability, a number from 0 to 1");
                return Err(ApiError::invalid(format!("tests[{index}].{name}"), message));
            }
        }
    }
    Ok(())
}
