//! The values of chosen places and features on every token of one sequence, as the model computes them with or without
//! edits.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;

use super::batch::{self, Share};
use super::next::Next;
use super::request::{
    Activations, ActivationsRequest, EngineError, FeatureValues, GenerationRequest,
};
use super::session::Session;
use super::slots::Caches;
use crate::interventions::nearest::suggestion;
use crate::interventions::plan::{Resolved, resolve};
use crate::models::location::{Location, Node, NodeKind};
use crate::numerics::rows;

/// What a run has computed.
struct Run {
    seen: BTreeMap<Location, Tensor>,
    /// `[tokens][vocabulary]`, where they were asked for.
    logits: Vec<Vec<f32>>,
}

/// Answers a request for activations.
pub fn activations(request: &ActivationsRequest) -> Result<Activations, EngineError> {
    let asked = &request.run;
    let scene = asked.scene();
    let config = &asked.model.transformer.config;
    let places = places(&request.places, config.n_layers)?;
    let features = request.features.iter().enumerate();
    let features: Vec<Resolved> = features
        .map(|(index, address)| resolve(address, &scene, &format!("features[{index}]")))
        .collect::<Result<_, _>>()?;
    // A dense model has the directions of its own stream; channels are the sparse model's.
    let is_own = |feature: &&Resolved| scene.native || feature.subject.is_dense();
    let place_of = |feature: &Resolved| feature.subject.place();
    let own = features.iter().filter(is_own).map(place_of);
    let heads = request.attention.iter();
    let scored = heads.flat_map(|(layer, _)| queries_and_keys(*layer));
    let own: BTreeSet<Location> = places.iter().copied().chain(own).chain(scored).collect();
    let read = features.iter().filter(|feature| !is_own(feature));
    let read: BTreeSet<Location> = read.map(place_of).collect();
    let answered = run(asked.clone(), own)?;
    let sparse = match &asked.pair {
        Some(pair) if !read.is_empty() => {
            let prompts = asked.prompts.clone();
            let unedited = GenerationRequest::of_prompts(pair.sparse.clone(), prompts, false);
            run(unedited, read)?.seen
        }
        _ => BTreeMap::new(),
    };
    let mut values = Vec::with_capacity(places.len());
    for (place, name) in places.iter().zip(&request.places) {
        let value = visited(&answered.seen, *place)?;
        values.push((name.clone(), place.width(config), rows::to_vec(value)?));
    }
    let mut measured = Vec::with_capacity(features.len());
    for feature in features {
        let seen = match is_own(&&feature) {
            true => &answered.seen,
            false => &sparse,
        };
        let value = visited(seen, place_of(&feature))?;
        let width = value.dim(1)?;
        measured.push(FeatureValues {
            name: feature.name,
            node: feature.subject.place().to_string(),
            values: rows::to_vec(value)?
                .chunks_exact(width)
                .map(|row| feature.subject.value_in(row))
                .collect(),
        });
    }
    let attention = request.attention.iter().map(|&(layer, head)| {
        let [q, k] = queries_and_keys(layer);
        let (q, k) = (visited(&answered.seen, q)?, visited(&answered.seen, k)?);
        let model = &asked.model.transformer;
        let patterns = model.attention_patterns(layer, &[head], q, k)?;
        Ok(patterns.into_iter().flatten().collect())
    });
    let attention = attention.collect::<Result<_, EngineError>>()?;
    Ok(Activations {
        places: values,
        features: measured,
        attention,
        logits: asked.echo.then_some(answered.logits),
    })
}

/// What a layer's heads score tokens by.
fn queries_and_keys(layer: usize) -> [Location; 2] {
    [NodeKind::Q, NodeKind::K].map(|kind| Location::Node(Node { layer, kind }))
}

fn places(names: &[String], n_layers: usize) -> Result<Vec<Location>, EngineError> {
    let parse = |(index, name): (usize, &String)| {
        Location::parse(name, n_layers).map_err(|error| {
            let known: Vec<String> = Location::all(n_layers)
                .iter()
                .map(Location::to_string)
                .collect();
            let near = suggestion(name, known.iter().map(String::as_str));
            EngineError::Invalid {
                message: format!("{error}{near}"),
                param: Some(format!("nodes[{index}]")),
            }
        })
    };
    names.iter().enumerate().map(parse).collect()
}

fn visited(seen: &BTreeMap<Location, Tensor>, place: Location) -> Result<&Tensor, EngineError> {
    let value = seen.get(&place);
    value.ok_or_else(|| EngineError::Failed(format!("{place} was not visited")))
}

/// Runs the whole sequence through a model, as the one arm of a request that generates nothing.
fn run(asked: GenerationRequest, watched: BTreeSet<Location>) -> Result<Run, EngineError> {
    let mut session = Session::admit(asked)?;
    if session.arms.len() != 1 {
        return Err(EngineError::Invalid {
            message:
                "activations are of one arm: one variant, no list of strengths, nothing to return"
                    .to_owned(),
            param: Some("steer".to_owned()),
        });
    }
    let needs = session.needs(0);
    let mut caches = Caches::new(Caches::largest_need(&session, needs));
    session.slots[0] = caches.lend(&session, needs)?;
    if session.slots[0].is_none() {
        return Err(EngineError::Failed(
            "an arm alone found no slots".to_owned(),
        ));
    }
    let mut shares = [Share {
        session: &mut session,
        arms: vec![(0, usize::MAX)],
        watched,
    }];
    let computed = batch::run(&mut shares, &mut caches)?.pop();
    let computed = computed.ok_or_else(|| EngineError::Failed("nothing was run".to_owned()))?;
    for (_, next) in &computed.next {
        session.arms[0].check(next)?;
    }
    Ok(Run {
        seen: computed.seen,
        logits: computed
            .next
            .into_iter()
            .filter_map(|(_, next)| match next {
                Next::Logits(logits) => Some(logits),
                Next::Token(_) => None,
            })
            .collect(),
    })
}
