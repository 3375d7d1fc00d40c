//! Which tasks there are.

use std::sync::Arc;

use actix_web::{HttpResponse, web};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::counting::{BothCounts, count, shown};
use super::wire::{
    TaskDetail, TaskDetailQuery, TaskList, TaskObject, TaskOrigin, TaskQuery, TaskSizes,
    UsablePairs,
};
use crate::api::ApiError;
use crate::api::error::ErrorBody;
use crate::api::state::State;
use crate::corpus::Split;
use crate::evaluation::catalogue::name_of;
use crate::interventions::nearest::suggestion;
use crate::serving::snapshot::{ModelCard, shortened};
use crate::serving::task_store::KeptTask;
use crate::tasks::{AnyTask, Task};

/// Pairs of each split that are looked at, in a list and for one task, and the most that may be asked for.
const DEFAULT_LISTED: usize = 64;
const MOST_LISTED: usize = 256;
const DEFAULT_COUNTED: usize = 256;
const MOST_COUNTED: usize = 4096;
const DEFAULT_EXAMPLES: usize = 4;
const MOST_EXAMPLES: usize = 100;

/// The tasks, each with an example, and where a model is named with how many of some pairs of each it can use.
#[utoipa::path(get, path = "/v1/tasks", tag = "tasks", operation_id = "listTasks", params(TaskQuery),
    responses(
        (status = 200, description = "The tasks", body = TaskList),
        (status = 400, description = "A parameter is unknown or out of range, or names nothing", body = ErrorBody),
        (status = 503, description = "Too many texts wait to be tokenised: code `overloaded`", body = ErrorBody)
    ))]
pub async fn list(
    state: web::Data<State>,
    query: web::Query<TaskQuery>,
) -> Result<HttpResponse, ApiError> {
    let card = model(&state, query.model.as_deref())?;
    let pairs = within("pairs", query.pairs, DEFAULT_LISTED, 1, MOST_LISTED)?;
    let kept = state.service.tasks.all();
    let mut data = Vec::new();
    for task in Task::ALL {
        let usable = usable(&state, &task.into(), card.as_ref(), pairs, 0).await?;
        data.push(built_in(task, &state, usable));
    }
    for kept in kept.values() {
        let task = AnyTask::User(kept.task.clone());
        let usable = usable(&state, &task, card.as_ref(), pairs, 0).await?;
        data.extend(own(kept, usable));
    }
    Ok(HttpResponse::Ok().json(TaskList {
        object: "list",
        data,
    }))
}

/// One task with some of its pairs; where a model is named with their tokens, and with how many of some pairs it can use.
#[utoipa::path(get, path = "/v1/tasks/{id}", tag = "tasks", operation_id = "retrieveTask",
    params(("id" = String, Path, description = "The task's name", example = "list_or_tuple"), TaskDetailQuery),
    responses(
        (status = 200, description = "The task", body = TaskDetail),
        (status = 400, description = "A parameter is unknown or out of range, or names nothing", body = ErrorBody),
        (status = 404, description = "There is no such task: code `task_not_found`", body = ErrorBody),
        (status = 503, description = "Too many texts wait to be tokenised: code `overloaded`", body = ErrorBody)
    ))]
pub async fn retrieve(
    state: web::Data<State>,
    id: web::Path<String>,
    query: web::Query<TaskDetailQuery>,
) -> Result<HttpResponse, ApiError> {
    let kept = state.service.tasks.all().get(&*id).cloned();
    let task = match &kept {
        Some(kept) => AnyTask::User(kept.task.clone()),
        None => id.parse::<Task>().map_err(|_| no_task(&state, &id))?.into(),
    };
    let card = model(&state, query.model.as_deref())?;
    let pairs = within("pairs", query.pairs, DEFAULT_COUNTED, 1, MOST_COUNTED)?;
    let examples = within(
        "examples",
        query.examples,
        DEFAULT_EXAMPLES,
        0,
        MOST_EXAMPLES,
    )?;
    let split = split(query.split.as_deref())?;
    let seed = query.seed.unwrap_or(0).cast_unsigned();
    let usable = usable(&state, &task, card.as_ref(), pairs, seed).await?;
    let texts = task.text_pairs(examples, seed, split);
    let examples = shown(&state, texts, card.as_ref()).await?;
    let object = match (&task, &kept) {
        (AnyTask::Generated(task), _) => Some(built_in(*task, &state, usable)),
        (_, Some(kept)) => own(kept, usable),
        (_, None) => None,
    };
    let task = object.ok_or_else(|| no_task(&state, &id))?;
    Ok(HttpResponse::Ok().json(TaskDetail { task, examples }))
}

/// The error of an address whose last part is no task's name.
pub fn no_task(state: &State, name: &str) -> ApiError {
    let kept = state.service.tasks.all();
    let mut known: Vec<&str> = kept.keys().map(String::as_str).collect();
    known.extend(Task::ALL.map(Task::name));
    let near = suggestion(&shortened(name), known);
    ApiError::NotFound {
        message: format!("there is no task {:?}{near}", shortened(name)),
        param: None,
        code: Some("task_not_found"),
    }
}

/// What is told of a task that a caller brought.
pub fn own(kept: &KeptTask, usable: Option<UsablePairs>) -> Option<TaskObject> {
    // There is one: a task without held-out pairs is not kept.
    let example = kept.task.shuffled(0, Split::HeldOut).next()?.clone();
    Some(TaskObject {
        id: kept.task.name().to_owned(),
        object: "task",
        origin: TaskOrigin::Own,
        description: kept.task.description().to_owned(),
        feature: None,
        bridges: Vec::new(),
        created: Some(kept.created),
        pairs: Some(TaskSizes {
            train: kept.task.pairs_of(Split::Train),
            held_out: kept.task.pairs_of(Split::HeldOut),
        }),
        usable,
        example: example.into(),
    })
}

fn built_in(task: Task, state: &State, usable: Option<UsablePairs>) -> TaskObject {
    let (feature, _) = name_of(task);
    let has = |bridge: &&String| state.features.by_name(bridge).contains_key(feature);
    let snapshot = state.snapshot();
    let mut random = ChaCha8Rng::seed_from_u64(task as u64);
    let example = task.text_pair(&mut random, Split::HeldOut);
    TaskObject {
        id: task.name().to_owned(),
        object: "task",
        origin: TaskOrigin::BuiltIn,
        description: task.description().to_owned(),
        feature: Some(feature),
        bridges: snapshot.bridges.keys().filter(has).cloned().collect(),
        created: None,
        pairs: None,
        usable,
        example: example.into(),
    }
}

async fn usable(
    state: &State,
    task: &AnyTask,
    card: Option<&Arc<ModelCard>>,
    pairs: usize,
    seed: u64,
) -> Result<Option<UsablePairs>, ApiError> {
    let Some(card) = card else {
        return Ok(None);
    };
    let counts = count(state, task, card, pairs, seed).await?;
    Ok(Some(UsablePairs::of(&card.id, counts)))
}

impl UsablePairs {
    pub fn of(model: &str, counts: BothCounts) -> Self {
        UsablePairs {
            model: model.to_owned(),
            train: counts.train.into(),
            held_out: counts.held_out.into(),
        }
    }
}

/// The model that a query names.
fn model(state: &State, id: Option<&str>) -> Result<Option<Arc<ModelCard>>, ApiError> {
    let found = id.map(|id| state.snapshot().model(id)).transpose();
    found.map_err(|error| ApiError::invalid("model", error.to_string()))
}

fn within(
    param: &str,
    given: Option<usize>,
    default: usize,
    least: usize,
    most: usize,
) -> Result<usize, ApiError> {
    let value = given.unwrap_or(default);
    match (least..=most).contains(&value) {
        true => Ok(value),
        false => {
            let message = format!("{param} is {value}; it must be between {least} and {most}");
            Err(ApiError::invalid(param, message))
        }
    }
}

fn split(name: Option<&str>) -> Result<Split, ApiError> {
    let Some(name) = name else {
        return Ok(Split::HeldOut);
    };
    match name {
        "train" => Ok(Split::Train),
        "held_out" => Ok(Split::HeldOut),
        _ => {
            let message = format!(
                "there is no split {:?}; there are train and held_out",
                shortened(name)
            );
            Err(ApiError::invalid("split", message))
        }
    }
}
