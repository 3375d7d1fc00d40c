//! `GET /v1/tasks`: what pairs of models are measured on.

use actix_web::{HttpResponse, web};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use utoipa::ToSchema;

use super::state::State;
use crate::corpus::Split;
use crate::evaluation::catalogue::name_of;
use crate::serving::snapshot::Snapshot;
use crate::tasks::{Side, Task, TextPair};

/// A question whose answer turns on one fact of the prompt.
#[derive(Debug, Serialize, ToSchema)]
pub struct TaskObject {
    #[schema(example = "single_double_quote")]
    pub id: Task,
    #[schema(example = "task")]
    pub object: &'static str,
    /// What is to be predicted; the presented prompt's answer first.
    pub description: &'static str,
    /// What the feature is called that decides the task, in pairs that have one.
    #[schema(example = "quote_type")]
    pub feature: &'static str,
    /// The bridges that are served with that feature.
    pub bridges: Vec<String>,
    /// A held-out pair of prompts.
    pub example: TaskExample,
}

/// Two prompts that differ in one fact.
#[derive(Debug, Serialize, ToSchema)]
pub struct TaskExample {
    pub presented: TaskSide,
    pub counterfactual: TaskSide,
}

/// A prompt and how it goes on.
#[derive(Debug, Serialize, ToSchema)]
pub struct TaskSide {
    pub prompt: String,
    /// The token asked for and the rest of its line.
    pub answer: String,
}

/// All tasks.
#[derive(Debug, Serialize, ToSchema)]
pub struct TaskList {
    #[schema(example = "list")]
    pub object: &'static str,
    pub data: Vec<TaskObject>,
}

impl From<Side> for TaskSide {
    fn from(side: Side) -> Self {
        TaskSide {
            prompt: side.prompt,
            answer: side.answer,
        }
    }
}

fn task(task: Task, state: &State, snapshot: &Snapshot) -> TaskObject {
    let mut random = ChaCha8Rng::seed_from_u64(task as u64);
    let TextPair {
        presented,
        counterfactual,
        ..
    } = task.text_pair(&mut random, Split::HeldOut);
    let (feature, _) = name_of(task);
    let has = |bridge: &&String| state.features.by_name(bridge).contains_key(feature);
    TaskObject {
        id: task,
        object: "task",
        description: task.description(),
        feature,
        bridges: snapshot.bridges.keys().filter(has).cloned().collect(),
        example: TaskExample {
            presented: presented.into(),
            counterfactual: counterfactual.into(),
        },
    }
}

/// The tasks that pairs are measured on, each with an example.
#[utoipa::path(get, path = "/v1/tasks", tag = "features", operation_id = "listTasks",
    responses((status = 200, description = "The tasks", body = TaskList)))]
pub async fn list(state: web::Data<State>) -> HttpResponse {
    let snapshot = state.snapshot();
    let data = Task::ALL
        .into_iter()
        .map(|one| task(one, &state, &snapshot))
        .collect();
    HttpResponse::Ok().json(TaskList {
        object: "list",
        data,
    })
}
