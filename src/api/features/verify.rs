//! `POST /v1/features/{id}/verify`: what is claimed of a feature, run again on its bridge.

use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

use super::lookup::{self, Found};
use super::wire::BridgeQuery;
use crate::api::ApiError;
use crate::api::error::ErrorBody;
use crate::api::examiner::{Effort, check_length};
use crate::api::state::State;
use crate::corpus::Split;
use crate::discovery::DiscoveryError;
use crate::discovery::binarised::{Binarisation, binarised};
use crate::discovery::patience::Patience;
use crate::discovery::question::PromptPair;
use crate::discovery::verify;
use crate::evaluation::catalogue::twin_of;
use crate::evaluation::{EvaluationError, any_task_pairs};
use crate::features::effects::TwinAgreement;
use crate::features::pair::Pair;
use crate::features::registry::Feature;
use crate::models::location::Location;
use crate::tasks::AnyTask;

/// Pairs of the twin check.
const TWIN_PAIRS: usize = 32;

/// The outcome of all of a feature's tests.
#[derive(Debug, Serialize, ToSchema)]
pub struct Verification {
    #[schema(example = "feature.verification")]
    pub object: &'static str,
    /// The feature's id.
    pub feature: String,
    pub bridge: String,
    /// All tests passed; a feature without tests has nothing to fail.
    pub passed: bool,
    pub tests: Vec<TestResult>,
    /// Whether the feature does in the dense model what it does in the sparse one, over 32 held-out pairs of its first task;
    /// null where it has none, or where the models cannot take the task's prompts.
    #[schema(required = true)]
    pub twin: Option<TwinAgreement>,
    /// Whether the sparse model still does that task where the feature may take two values only, over the same pairs; null
    /// where `twin` is.
    #[schema(required = true)]
    pub binarised: Option<Binarisation>,
}

/// The outcome of one test: the feature was patched from the counterfactual, at strength 1.
#[derive(Debug, Serialize, ToSchema)]
pub struct TestResult {
    pub prompt: String,
    pub counterfactual: String,
    /// The share of `expected` in the two tokens' probability without the edit.
    #[schema(minimum = 0, maximum = 1)]
    pub before: f64,
    /// The same with it.
    #[schema(minimum = 0, maximum = 1)]
    pub after: f64,
    /// What `before` must not exceed.
    #[schema(minimum = 0, maximum = 1)]
    pub at_most_before: f64,
    /// What `after` must reach.
    #[schema(minimum = 0, maximum = 1)]
    pub at_least: f64,
    pub passed: bool,
}

/// Runs a named feature's tests on its bridge.
#[utoipa::path(post, path = "/v1/features/{id}/verify", tag = "features", operation_id = "verifyFeature",
    params(("id" = String, Path, description = "The feature's name", example = "quote_type"), BridgeQuery),
    responses(
        (status = 200, description = "What the tests found; `passed` says whether all held", body = Verification),
        (status = 400, description = "A test cannot be run: its prompts differ in length, or the feature cannot be \
            carried over; a direction has no tests: code `not_a_bridge_feature`", body = ErrorBody),
        (status = 404, description = "There is no such feature: code `feature_not_found`", body = ErrorBody),
        (status = 503, description = "Too many examinations wait: code `overloaded`", body = ErrorBody),
        (status = 504, description = "It took longer than it may: code `deadline_exceeded`", body = ErrorBody)
    ))]
pub async fn create(
    http: HttpRequest,
    state: web::Data<State>,
    id: web::Path<String>,
    query: web::Query<BridgeQuery>,
) -> Result<HttpResponse, ApiError> {
    let stored = match lookup::find_named(&state, &id, query.whose())? {
        Found::Named(stored) => stored,
        Found::Direction(_) | Found::Unnamed { .. } => {
            return Err(ApiError::Invalid {
                message: format!("{id} is a direction; tests are of features of a bridge"),
                param: None,
                code: Some("not_a_bridge_feature"),
            });
        }
    };
    let feature = stored.feature;
    let verify = move |models: &Pair, patience: &Patience| {
        let tokenizer = models.tokenizer();
        let pairs: Vec<PromptPair> = feature
            .tests
            .iter()
            .map(|test| verify::test_pair(test, tokenizer))
            .collect::<Result<_, _>>()?;
        check_length(&pairs, models)?;
        let outcomes = verify::verify(models, &feature, patience.clone())?;
        Ok((outcomes, of_task(models, &feature, patience)?))
    };
    let bridge = state.snapshot().bridge(&stored.bridge, None)?;
    let (outcomes, of_task) = state
        .examiner
        .examine(&http, Effort::Search, &bridge, "tests", verify)
        .await?;
    let tests: Vec<TestResult> = outcomes
        .into_iter()
        .map(|outcome| TestResult {
            prompt: outcome.prompt,
            counterfactual: outcome.counterfactual,
            before: outcome.before,
            after: outcome.after,
            at_most_before: outcome.at_most_before,
            at_least: outcome.at_least,
            passed: outcome.passed,
        })
        .collect();
    Ok(HttpResponse::Ok().json(Verification {
        object: "feature.verification",
        feature: id.into_inner(),
        bridge: stored.bridge,
        passed: tests.iter().all(|test| test.passed),
        tests,
        twin: of_task.map(|(twin, _)| twin),
        binarised: of_task.map(|(_, binarised)| binarised),
    }))
}

/// What is measured of a feature that implements a task.
fn of_task(
    models: &Pair,
    feature: &Feature,
    patience: &Patience,
) -> Result<Option<(TwinAgreement, Binarisation)>, DiscoveryError> {
    let Some(&task) = feature.tasks.first() else {
        return Ok(None);
    };
    let contexts = [&models.dense, &models.sparse].map(|model| model.config.context_length);
    let (tokenizer, context) = (models.tokenizer(), contexts[0].min(contexts[1]));
    let any = AnyTask::Generated(task);
    let pairs = any_task_pairs(tokenizer, context, &any, TWIN_PAIRS, 0, Split::HeldOut);
    let Some(pairs) = pairs.ok().filter(|pairs| !pairs.is_empty()) else {
        return Ok(None);
    };
    let twin = match twin_of(models, feature, &pairs, patience.clone()) {
        Ok(twin) => twin,
        Err(EvaluationError::Discovery(error)) => return Err(error),
        Err(error) => return Err(DiscoveryError::Invalid(error.to_string())),
    };
    let place = Location::parse(&feature.node, models.n_layers())?;
    let channels = &feature.channels;
    let binarised = binarised(models, &pairs, place, channels, patience.clone())?;
    Ok(Some((twin, binarised)))
}
