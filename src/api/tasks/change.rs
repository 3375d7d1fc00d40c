//! Keeping and removing tasks.

use std::sync::Arc;

use actix_web::{HttpResponse, web};

use super::counting::{BothCounts, count};
use super::list::{no_task, own};
use super::wire::{CreateTask, DeletedTask, TaskFileQuery, TaskObject, UsablePairs};
use crate::api::ApiError;
use crate::api::body::{JsonBody, LinesBody};
use crate::api::error::ErrorBody;
use crate::api::state::State;
use crate::serving::snapshot::unix_seconds;
use crate::serving::task_store::TaskStoreError;
use crate::tasks::{AnyTask, LEAST_IN_SPLIT, Task, UserTask, UserTaskError};

/// Keeps a task of pairs of prompts, which circuits can then be found for by its name. It is kept in the server's data
/// directory and belongs to no model.
#[utoipa::path(post, path = "/v1/tasks", tag = "tasks", operation_id = "createTask",
    request_body(content = CreateTask, example = json!({
        "id": "list_or_tuple", "description": "`]` closes a list, `)` a tuple.", "model": "tinypython",
        "pairs": [
            {"presented": {"prompt": "x = [1, 2", "answer": "]\n"}, "counterfactual": {"prompt": "x = (1, 2", "answer": ")\n"}},
            {"presented": {"prompt": "y = [1, 2", "answer": "]\n"}, "counterfactual": {"prompt": "y = (1, 2", "answer": ")\n"}},
            {"presented": {"prompt": "z = [1, 2", "answer": "]\n"}, "counterfactual": {"prompt": "z = (1, 2", "answer": ")\n"}},
            {"presented": {"prompt": "x = [3, 4", "answer": "]\n"}, "counterfactual": {"prompt": "x = (3, 4", "answer": ")\n"}},
            {"presented": {"prompt": "y = [3, 4", "answer": "]\n"}, "counterfactual": {"prompt": "y = (3, 4", "answer": ")\n"}},
            {"presented": {"prompt": "z = [3, 4", "answer": "]\n"}, "counterfactual": {"prompt": "z = (3, 4", "answer": ")\n"}},
            {"presented": {"prompt": "a = [1, 2", "answer": "]\n"}, "counterfactual": {"prompt": "a = (1, 2", "answer": ")\n"}},
            {"presented": {"prompt": "b = [1, 2", "answer": "]\n"}, "counterfactual": {"prompt": "b = (1, 2", "answer": ")\n"}},
            {"presented": {"prompt": "a = [3, 4", "answer": "]\n"}, "counterfactual": {"prompt": "a = (3, 4", "answer": ")\n"}},
            {"presented": {"prompt": "b = [3, 4", "answer": "]\n"}, "counterfactual": {"prompt": "b = (3, 4", "answer": ")\n"}}
        ]
    })),
    responses(
        (status = 201, description = "The task", body = TaskObject),
        (status = 400, description = "A field is wrong: `param` names it, such as `pairs[3].presented.prompt`; a name already \
            used has the code `already_exists`, more or longer tasks than are kept the code `over_budget`, too few pairs of a \
            split, or too few that `model` can use, the code `too_few_pairs`", body = ErrorBody),
        (status = 404, description = "No model has this id: code `model_not_found`", body = ErrorBody),
        (status = 503, description = "Too many texts wait to be tokenised: code `overloaded`", body = ErrorBody),
        (status = 507, description = "There is no room on the server's disk: code `disk_full`", body = ErrorBody)
    ))]
pub async fn create(
    state: web::Data<State>,
    body: JsonBody<CreateTask>,
) -> Result<HttpResponse, ApiError> {
    // Its room is kept until the task is.
    let JsonBody(request, _room) = body;
    let CreateTask {
        id,
        description,
        pairs,
        model,
    } = request;
    let make = move || {
        let pairs = pairs.into_iter().map(Into::into).collect();
        UserTask::new(id, description.unwrap_or_default(), pairs)
    };
    keep(&state, model.as_deref(), make).await
}

/// Keeps a task whose pairs come as a file, each a line of JSON as in `pairs` of `POST /v1/tasks`. Blank lines are passed
/// over; an error's `message` names the first line at fault, counted from 1.
#[utoipa::path(post, path = "/v1/tasks/{id}/pairs", tag = "tasks", operation_id = "uploadTask",
    params(("id" = String, Path, description = "What the task is to be called"), TaskFileQuery),
    request_body(content = String, description = "The lines", content_type = "application/x-ndjson"),
    responses(
        (status = 201, description = "The task", body = TaskObject),
        (status = 400, description = "As at `POST /v1/tasks`; `param` counts pairs from 0, and `message` names the line",
            body = ErrorBody),
        (status = 404, description = "No model has this id: code `model_not_found`", body = ErrorBody),
        (status = 415, description = "The body is not sent as `application/x-ndjson`, or as `application/jsonl`: code \
            `unsupported_media_type`", body = ErrorBody),
        (status = 503, description = "Too many texts wait to be tokenised: code `overloaded`", body = ErrorBody),
        (status = 507, description = "There is no room on the server's disk: code `disk_full`", body = ErrorBody)
    ))]
pub async fn upload(
    state: web::Data<State>,
    id: web::Path<String>,
    query: web::Query<TaskFileQuery>,
    body: LinesBody,
) -> Result<HttpResponse, ApiError> {
    let TaskFileQuery { description, model } = query.into_inner();
    let LinesBody(lines, _room) = body;
    let id = id.into_inner();
    let make = move || UserTask::parse(id, description.unwrap_or_default(), &lines);
    keep(&state, model.as_deref(), make).await
}

/// Removes a task that a caller brought. Circuits that were found for it, and jobs that look for some, stay.
#[utoipa::path(delete, path = "/v1/tasks/{id}", tag = "tasks", operation_id = "deleteTask",
    params(("id" = String, Path, description = "The task's name", example = "list_or_tuple")),
    responses(
        (status = 200, description = "It is gone", body = DeletedTask),
        (status = 400, description = "It is one of the twenty: code `built_in`", body = ErrorBody),
        (status = 404, description = "There is no such task: code `task_not_found`", body = ErrorBody)
    ))]
pub async fn delete(
    state: web::Data<State>,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    if let Ok(task) = id.parse::<Task>() {
        return Err(ApiError::Invalid {
            message: format!(
                "task {task} is built in; only tasks that callers brought can be deleted"
            ),
            param: None,
            code: Some("built_in"),
        });
    }
    let removed = state.service.tasks.remove(&id).await?;
    let removed = removed.ok_or_else(|| no_task(&state, &id))?;
    Ok(HttpResponse::Ok().json(DeletedTask {
        id: removed.task.name().to_owned(),
        object: "task",
        deleted: true,
    }))
}

/// Keeps what `make` makes, off the threads that serve, if the model can use enough of it.
async fn keep(
    state: &State,
    model: Option<&str>,
    make: impl FnOnce() -> Result<UserTask, UserTaskError> + Send + 'static,
) -> Result<HttpResponse, ApiError> {
    let card = model
        .map(|model| state.snapshot().model(model))
        .transpose()?;
    // Long bodies are looked at one at a time, as they are parsed.
    let turn = state.parsing.acquire().await.map_err(ApiError::internal)?;
    let made = web::block(make).await.map_err(ApiError::internal)??;
    drop(turn);
    let task = Arc::new(made);
    let usable = match card {
        None => None,
        Some(card) => {
            let any = AnyTask::User(task.clone());
            let counts = count(state, &any, &card, usize::MAX, 0).await?;
            check_enough(&card.id, &counts)?;
            Some(UsablePairs::of(&card.id, counts))
        }
    };
    let kept = state.service.tasks.add(task, unix_seconds()).await?;
    let object = own(&kept, usable);
    let object = object.ok_or_else(|| ApiError::internal("a task without held-out pairs"))?;
    Ok(HttpResponse::Created().json(object))
}

/// Refuses a task that a model could not be asked.
fn check_enough(model: &str, counts: &BothCounts) -> Result<(), ApiError> {
    let BothCounts { train, held_out } = counts;
    if train.usable.min(held_out.usable) >= LEAST_IN_SPLIT {
        return Ok(());
    }
    let message = format!(
        "model {model:?} can use too few of the pairs: of those for training {train}, of those held out {held_out}; it \
         must be {LEAST_IN_SPLIT} or more of both"
    );
    Err(ApiError::invalid_with_code(
        "pairs",
        "too_few_pairs",
        message,
    ))
}

impl From<UserTaskError> for ApiError {
    fn from(error: UserTaskError) -> Self {
        let message = error.to_string();
        match error {
            UserTaskError::Name { .. } => ApiError::invalid("id", message),
            UserTaskError::Taken(_) => ApiError::invalid_with_code("id", "already_exists", message),
            UserTaskError::Description { .. } => ApiError::invalid("description", message),
            UserTaskError::Pair { index, fault, .. } => {
                let param = match fault.field.as_str() {
                    "" => format!("pairs[{index}]"),
                    field => format!("pairs[{index}].{field}"),
                };
                ApiError::invalid(param, message)
            }
            UserTaskError::TooMany | UserTaskError::TooLong { .. } => {
                ApiError::invalid_with_code("pairs", "over_budget", message)
            }
            UserTaskError::TooFew { .. } => {
                ApiError::invalid_with_code("pairs", "too_few_pairs", message)
            }
        }
    }
}

impl From<TaskStoreError> for ApiError {
    fn from(error: TaskStoreError) -> Self {
        let message = error.to_string();
        match error {
            TaskStoreError::Exists { .. } => {
                ApiError::invalid_with_code("id", "already_exists", message)
            }
            TaskStoreError::Full(_) | TaskStoreError::NoRoom { .. } => ApiError::Invalid {
                message,
                param: None,
                code: Some("over_budget"),
            },
            TaskStoreError::TooLong(_) => {
                ApiError::invalid_with_code("pairs", "over_budget", message)
            }
            error => ApiError::storage(error),
        }
    }
}
