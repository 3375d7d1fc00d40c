//! `GET /v1/circuits`: the circuits of the models that are served, as records, pictures and texts, and on a prompt.

use actix_web::http::header::{CONTENT_SECURITY_POLICY, X_CONTENT_TYPE_OPTIONS};
use actix_web::{HttpRequest, HttpResponse, web};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::ApiError;
use super::error::ErrorBody;
use super::examiner::Effort;
use super::state::State;
use crate::circuits::circuit::{
    Circuit, CircuitControls, CircuitEdge, CircuitFigures, CircuitNode, LossAtSize, PruningMethod,
};
use crate::circuits::drawing::attribution_graph::{AttributionGraph, attribution_graph};
use crate::circuits::drawing::{dot, svg, text};
use crate::circuits::fitting;
use crate::circuits::trace::{TraceError, trace};
use crate::discovery::DiscoveryError;
use crate::models::config::TransformerConfig;
use crate::serving::snapshot::Snapshot;

const DEFAULT_LIMIT: usize = 100;
const LARGEST_LIMIT: usize = 1000;
/// Tokens of a prompt that a circuit is drawn on: attention is drawn from every token to every later one.
const MOST_TOKENS: usize = 256;
/// The likeliest next tokens that are drawn.
const LOGITS: usize = 10;

/// Which circuits to list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct CircuitListQuery {
    /// Circuits of this model.
    pub model: Option<String>,
    /// Circuits for this task.
    #[param(example = "single_double_quote")]
    pub task: Option<String>,
    /// At most so many.
    #[param(minimum = 1, maximum = 1000, default = 100, example = 10)]
    pub limit: Option<usize>,
    /// Only what comes after the circuit of this id, the `last_id` of the page before.
    pub after: Option<String>,
}

/// What to tell of a circuit.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct CircuitQuery {
    /// A text: the circuit's attribution graph on it is answered instead of its record. At most 256 tokens, and no more
    /// than the model reads at once.
    #[param(min_length = 1)]
    pub prompt: Option<String>,
}

/// One circuit without its nodes and edges.
#[derive(Debug, Serialize, ToSchema)]
pub struct ListedCircuit {
    /// What requests call it: the id that it was found under, or, of a circuit that came with a bridge where another is
    /// called so, `BRIDGE.ID`.
    #[schema(example = "quotes")]
    pub id: String,
    #[schema(example = "circuit")]
    pub object: &'static str,
    /// The model that it is a part of.
    pub model: String,
    /// The task that it does.
    #[schema(example = "single_double_quote")]
    pub task: String,
    /// How many nodes it has.
    pub nodes: usize,
    /// How many edges it has.
    pub edges: usize,
    /// Of the circuit alone, on held-out pairs, in nats.
    pub task_loss: f64,
    /// What its figures say, in words.
    pub summary: String,
    pub controls: CircuitControls,
    /// Whether no model of this id and the weights that it was found in is served: it can be looked at, and not used.
    pub stale: bool,
}

/// A page of circuits, by their ids.
#[derive(Debug, Serialize, ToSchema)]
pub struct CircuitList {
    #[schema(example = "list")]
    pub object: &'static str,
    pub data: Vec<ListedCircuit>,
    /// The last circuit of this page; the next page's `after`.
    #[schema(required = true)]
    pub last_id: Option<String>,
    pub has_more: bool,
}

/// One circuit.
#[derive(Debug, Serialize, ToSchema)]
pub struct CircuitObject {
    /// What requests call it.
    #[schema(example = "quotes")]
    pub id: String,
    #[schema(example = "circuit")]
    pub object: &'static str,
    /// The model that it is a part of.
    pub model: String,
    /// Of that model's configuration and weights, when it was found.
    pub model_fingerprint: String,
    /// The task that it does.
    #[schema(example = "single_double_quote")]
    pub task: String,
    /// What its figures say, in words: whether it does its task, and whether it beats its controls.
    pub summary: String,
    pub method: PruningMethod,
    pub figures: CircuitFigures,
    pub controls: CircuitControls,
    /// In the order of the pass.
    pub nodes: Vec<CircuitNode>,
    /// In the order of the pass.
    pub edges: Vec<CircuitEdge>,
    /// Task loss by the number of nodes kept: what the size was chosen on.
    pub sizes: Vec<LossAtSize>,
    /// Whether no model of this id and the weights that it was found in is served: it can be looked at, and not used.
    pub stale: bool,
}

/// A circuit, or, where a prompt was given, its attribution graph on that.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum CircuitAnswer {
    Record(Box<CircuitObject>),
    Graph(Box<AttributionGraph>),
}

impl ListedCircuit {
    fn new(id: &str, circuit: &Circuit, snapshot: &Snapshot) -> Self {
        ListedCircuit {
            id: id.to_owned(),
            object: "circuit",
            model: circuit.model.clone(),
            task: circuit.task.clone(),
            nodes: circuit.nodes.len(),
            edges: circuit.edges.len(),
            task_loss: circuit.figures.task_loss,
            summary: circuit.summary.clone(),
            controls: circuit.controls.clone(),
            stale: snapshot.model_of_circuit(circuit).is_none(),
        }
    }
}

impl CircuitObject {
    fn new(circuit: Circuit, stale: bool) -> Self {
        CircuitObject {
            id: circuit.id.to_string(),
            object: "circuit",
            model: circuit.model,
            model_fingerprint: circuit.model_fingerprint,
            task: circuit.task,
            summary: circuit.summary,
            method: circuit.method,
            figures: circuit.figures,
            controls: circuit.controls,
            nodes: circuit.nodes,
            edges: circuit.edges,
            sizes: circuit.sizes,
            stale,
        }
    }
}

/// Circuits, by their ids: those that bridges came with and those that jobs have found.
#[utoipa::path(get, path = "/v1/circuits", tag = "circuits", operation_id = "listCircuits", params(CircuitListQuery),
    responses(
        (status = 200, description = "A page of circuits", body = CircuitList),
        (status = 400, description = "A parameter is unknown or out of range, or names nothing", body = ErrorBody)
    ))]
pub async fn list(
    state: web::Data<State>,
    query: web::Query<CircuitListQuery>,
) -> Result<HttpResponse, ApiError> {
    let limit = query.limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=LARGEST_LIMIT).contains(&limit) {
        let message = format!("limit is {limit}; it must be between 1 and {LARGEST_LIMIT}");
        return Err(ApiError::invalid("limit", message));
    }
    let snapshot = state.snapshot();
    if let Some(model) = &query.model {
        let known = snapshot.model(model);
        known.map_err(|error| ApiError::invalid("model", error.to_string()))?;
    }
    let is_asked_for = |circuit: &Circuit| {
        let has =
            |asked: &Option<String>, own: &str| asked.as_ref().is_none_or(|asked| asked == own);
        has(&query.model, &circuit.model) && has(&query.task, &circuit.task)
    };
    let circuits = snapshot.circuits.iter();
    let circuits: Vec<_> = circuits
        .filter(|(_, circuit)| is_asked_for(circuit))
        .collect();
    let start = match &query.after {
        None => 0,
        Some(after) => {
            let position = circuits.iter().position(|(id, _)| *id == after);
            1 + position.ok_or_else(|| {
                let message = "no circuit of this list has the id given as `after`";
                ApiError::invalid("after", message)
            })?
        }
    };
    let has_more = circuits.len() > start + limit;
    let page = circuits.into_iter().skip(start).take(limit);
    let data: Vec<ListedCircuit> = page
        .map(|(id, circuit)| ListedCircuit::new(id, circuit, &snapshot))
        .collect();
    Ok(HttpResponse::Ok().json(CircuitList {
        object: "list",
        last_id: data.last().map(|listed| listed.id.clone()),
        data,
        has_more,
    }))
}

/// One circuit with its nodes and edges; with `prompt`, what the circuit does on that text inside the whole model, as an
/// attribution graph for viewers of such.
#[utoipa::path(get, path = "/v1/circuits/{id}", tag = "circuits", operation_id = "retrieveCircuit",
    params(("id" = String, Path, description = "The circuit's id", example = "single_double_quote"), CircuitQuery),
    responses(
        (status = 200, description = "The circuit", body = CircuitAnswer),
        (status = 400, description = "The prompt is empty or too long, or the circuit is stale and cannot be run",
            body = ErrorBody),
        (status = 404, description = "There is no such circuit: code `circuit_not_found`", body = ErrorBody),
        (status = 503, description = "Too many look at circuits and features: code `overloaded`", body = ErrorBody),
        (status = 504, description = "It took longer than it may: code `deadline_exceeded`", body = ErrorBody)
    ))]
pub async fn retrieve(
    http: HttpRequest,
    state: web::Data<State>,
    id: web::Path<String>,
    query: web::Query<CircuitQuery>,
) -> Result<HttpResponse, ApiError> {
    record(&http, &state, &id, query.into_inner()).await
}

async fn record(
    http: &HttpRequest,
    state: &State,
    id: &str,
    query: CircuitQuery,
) -> Result<HttpResponse, ApiError> {
    let snapshot = state.snapshot();
    let circuit = snapshot.circuit(id)?;
    let card = snapshot.model_of_circuit(&circuit).cloned();
    let Some(prompt) = query.prompt else {
        let object = CircuitObject::new(Circuit::clone(&circuit), card.is_none());
        return Ok(HttpResponse::Ok().json(CircuitAnswer::Record(Box::new(object))));
    };
    if prompt.is_empty() {
        let message = "is empty; give the text that the circuit shall be drawn on".to_owned();
        return Err(ApiError::invalid("prompt", message));
    }
    let Some(card) = card else {
        let message = format!(
            "circuit {id:?} is stale: no model {:?} with the weights that it was found in is served; find it anew",
            circuit.model
        );
        return Err(ApiError::invalid("id", message));
    };
    let work = move |model: &crate::models::model::LoadedModel, _: &_| {
        let tokens = model.tokenizer.encode_prompt(&prompt)?.len();
        if tokens > MOST_TOKENS {
            let problem = format!(
                "the prompt has {tokens} tokens; a circuit is drawn on {MOST_TOKENS} at most"
            );
            return Err(DiscoveryError::Invalid(problem));
        }
        fitting::check(&circuit, &model.config).map_err(DiscoveryError::Invalid)?;
        let traced = trace(&circuit, model, &prompt, LOGITS).map_err(|error| match error {
            TraceError::Tensor(error) => DiscoveryError::Compute(error),
            error => DiscoveryError::Invalid(error.to_string()),
        })?;
        Ok(attribution_graph(&circuit, &traced))
    };
    let examiner = &state.examiner;
    let graph = examiner.examine_model(http, Effort::Look, &card, "prompt", work);
    let graph = CircuitAnswer::Graph(Box::new(graph.await?));
    Ok(HttpResponse::Ok().json(graph))
}

/// A form that a circuit is drawn in.
#[derive(Debug, Clone, Copy)]
enum Form {
    Dot,
    Svg,
    Text,
}

impl Form {
    fn suffix(self) -> &'static str {
        match self {
            Form::Dot => ".dot",
            Form::Svg => ".svg",
            Form::Text => ".txt",
        }
    }

    fn content_type(self) -> &'static str {
        match self {
            Form::Dot => "text/vnd.graphviz; charset=utf-8",
            Form::Svg => "image/svg+xml",
            Form::Text => "text/plain; charset=utf-8",
        }
    }

    /// Draws a circuit, with what its model's configuration tells of it where that is there.
    fn draw(self, circuit: &Circuit, config: Option<&TransformerConfig>) -> String {
        match (self, config) {
            (Form::Dot, None) => dot::dot(circuit),
            (Form::Dot, Some(config)) => dot::dot_of_model(circuit, config),
            (Form::Svg, None) => svg::svg(circuit),
            (Form::Svg, Some(config)) => svg::svg_of_model(circuit, config),
            (Form::Text, None) => text::text(circuit),
            (Form::Text, Some(config)) => text::text_of_model(circuit, config),
        }
    }
}

/// A circuit as a graph in the language of Graphviz.
#[utoipa::path(get, path = "/v1/circuits/{id}.dot", tag = "circuits", operation_id = "graphCircuit",
    params(("id" = String, Path, description = "The circuit's id", example = "single_double_quote"), CircuitQuery),
    responses(
        (status = 200, description = "The graph; the record of a circuit whose id ends so", content(
            (String = "text/vnd.graphviz"), (CircuitAnswer = "application/json"))),
        (status = 400, description = "A prompt is given, and the id is not that of a circuit whose id ends so; or the \
            prompt is wrong, or a parameter is unknown", body = ErrorBody),
        (status = 503, description = "Too many look at circuits and features: code `overloaded`", body = ErrorBody),
        (status = 504, description = "It took longer than it may: code `deadline_exceeded`", body = ErrorBody),
        (status = 404, description = "There is no such circuit: code `circuit_not_found`", body = ErrorBody)
    ))]
pub async fn graph(
    http: HttpRequest,
    state: web::Data<State>,
    id: web::Path<String>,
    query: web::Query<CircuitQuery>,
) -> Result<HttpResponse, ApiError> {
    drawn(&http, &state, (&id, Form::Dot), query.into_inner()).await
}

/// A circuit as a picture: its layers as columns, the strength of weights as width, their sign as colour and dashes. Of
/// large circuits the strongest nodes and edges are drawn, and the picture says so.
#[utoipa::path(get, path = "/v1/circuits/{id}.svg", tag = "circuits", operation_id = "drawCircuit",
    params(("id" = String, Path, description = "The circuit's id", example = "single_double_quote"), CircuitQuery),
    responses(
        (status = 200, description = "The picture; the record of a circuit whose id ends so", content(
            (String = "image/svg+xml"), (CircuitAnswer = "application/json"))),
        (status = 400, description = "A prompt is given, and the id is not that of a circuit whose id ends so; or the \
            prompt is wrong, or a parameter is unknown", body = ErrorBody),
        (status = 503, description = "Too many look at circuits and features: code `overloaded`", body = ErrorBody),
        (status = 504, description = "It took longer than it may: code `deadline_exceeded`", body = ErrorBody),
        (status = 404, description = "There is no such circuit: code `circuit_not_found`", body = ErrorBody)
    ))]
pub async fn picture(
    http: HttpRequest,
    state: web::Data<State>,
    id: web::Path<String>,
    query: web::Query<CircuitQuery>,
) -> Result<HttpResponse, ApiError> {
    drawn(&http, &state, (&id, Form::Svg), query.into_inner()).await
}

/// A circuit as text for a terminal: its figures and controls, and node by node what it is and what it reads.
#[utoipa::path(get, path = "/v1/circuits/{id}.txt", tag = "circuits", operation_id = "printCircuit",
    params(("id" = String, Path, description = "The circuit's id", example = "single_double_quote"), CircuitQuery),
    responses(
        (status = 200, description = "The text; the record of a circuit whose id ends so", content(
            (String = "text/plain"), (CircuitAnswer = "application/json"))),
        (status = 400, description = "A prompt is given, and the id is not that of a circuit whose id ends so; or the \
            prompt is wrong, or a parameter is unknown", body = ErrorBody),
        (status = 503, description = "Too many look at circuits and features: code `overloaded`", body = ErrorBody),
        (status = 504, description = "It took longer than it may: code `deadline_exceeded`", body = ErrorBody),
        (status = 404, description = "There is no such circuit: code `circuit_not_found`", body = ErrorBody)
    ))]
pub async fn printed(
    http: HttpRequest,
    state: web::Data<State>,
    id: web::Path<String>,
    query: web::Query<CircuitQuery>,
) -> Result<HttpResponse, ApiError> {
    drawn(&http, &state, (&id, Form::Text), query.into_inner()).await
}

async fn drawn(
    http: &HttpRequest,
    state: &State,
    (id, form): (&str, Form),
    query: CircuitQuery,
) -> Result<HttpResponse, ApiError> {
    let snapshot = state.snapshot();
    // An id may end like a form: then it is the circuit that is meant.
    let whole = format!("{id}{}", form.suffix());
    if snapshot.circuits.contains_key(&whole) {
        return record(http, state, &whole, query).await;
    }
    let circuit = snapshot.circuit(id)?;
    if query.prompt.is_some() {
        let message = format!(
            "{} is of the circuit itself; what it does on a prompt is at /v1/circuits/ID?prompt=TEXT",
            form.suffix()
        );
        return Err(ApiError::invalid("prompt", message));
    }
    let config = snapshot
        .model_of_circuit(&circuit)
        .map(|card| card.config.clone());
    let drawn = web::block(move || form.draw(&circuit, config.as_ref()));
    Ok(HttpResponse::Ok()
        .content_type(form.content_type())
        .insert_header((X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .insert_header((
            CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; sandbox",
        ))
        .body(drawn.await.map_err(ApiError::internal)?))
}
