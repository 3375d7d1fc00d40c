//! The values of chosen places on every token of one sequence.

use super::request::{Activations, ActivationsRequest, EngineError};
use crate::interventions::nearest::suggestion;
use crate::models::location::{Place, Site};
use crate::models::tap::Recorder;
use crate::models::token_rows::TokenRows;
use crate::numerics::rows;

/// Answers a request for activations.
pub fn activations(request: &ActivationsRequest) -> Result<Activations, EngineError> {
    let model = &request.model.transformer;
    let config = &model.config;
    let invalid = |message: String, param: String| EngineError::Invalid {
        message,
        param: Some(param),
    };
    let length = request.tokens.len();
    if length == 0 || length > config.context_length {
        let message = format!(
            "the prompt has {length} tokens; it must have 1 to {}",
            config.context_length
        );
        return Err(invalid(message, "prompt".into()));
    }
    if let Some(id) = request
        .tokens
        .iter()
        .find(|id| **id as usize >= config.vocab_size)
    {
        return Err(invalid(
            format!("token id {id} is outside the vocabulary"),
            "prompt".into(),
        ));
    }
    let mut places = Vec::with_capacity(request.places.len());
    for (index, name) in request.places.iter().enumerate() {
        let place = Place::parse(name, config.n_layers).map_err(|error| {
            let known: Vec<String> = Place::all(config.n_layers)
                .iter()
                .map(Place::to_string)
                .collect();
            let near = suggestion(name, known.iter().map(String::as_str));
            invalid(format!("{error}{near}"), format!("nodes[{index}]"))
        })?;
        places.push(place);
    }
    let mut recorder = Recorder::of(places.iter().copied());
    let mut tokens = TokenRows::sequences(&request.tokens, length, &candle_core::Device::Cpu)?;
    let stream = model.embed(&tokens)?;
    let ids = tokens.ids.clone();
    let first = Site::before_attention(0, config.n_layers);
    let last = model.run(first, stream, &mut tokens, &mut recorder)?;
    let mut values = Vec::with_capacity(places.len());
    for (place, name) in places.iter().zip(&request.places) {
        let Some(value) = recorder.get(*place) else {
            return Err(EngineError::Failed(format!("{place} was not visited")));
        };
        values.push((name.clone(), place.width(config), rows::to_vec(value)?));
    }
    let logits = match request.logits {
        true => {
            let logits = rows::to_vec(&model.unembed(&last, &ids)?)?;
            Some(
                logits
                    .chunks_exact(config.vocab_size)
                    .map(<[f32]>::to_vec)
                    .collect(),
            )
        }
        false => None,
    };
    Ok(Activations {
        places: values,
        logits,
    })
}
