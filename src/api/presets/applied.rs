//! What a preset makes of a request that names it: its `steer` field is the request's.

use crate::api::ApiError;
use crate::interventions::request::SteerRequest;
use crate::serving::named_model::NamedModel;

/// The `steer` field that a request is answered with: its own, or the preset's, to whose `return` its own may add.
pub fn steer(
    named: &NamedModel,
    own: Option<SteerRequest>,
) -> Result<Option<SteerRequest>, ApiError> {
    let (Some(preset), Some(own)) = (&named.preset, &own) else {
        let of_preset = named.preset.as_ref().map(|preset| preset.steer.clone());
        return Ok(of_preset.or(own));
    };
    let SteerRequest {
        bridge,
        edits,
        variants,
        returns,
    } = own;
    let given = [
        ("bridge", bridge.is_some()),
        ("edits", !edits.is_empty()),
        ("variants", variants.is_some()),
    ];
    if let Some((field, _)) = given.iter().find(|(_, given)| *given) {
        let message = format!(
            "{:?} is a preset, which has a `steer` field of its own: a request to it may say what to `return`, and \
             nothing else; to steer in another way ask for model {:?}",
            preset.name(),
            named.card.id
        );
        return Err(ApiError::invalid(format!("steer.{field}"), message));
    }
    let mut steer = preset.steer.clone();
    for one in returns {
        if !steer.returns.contains(one) {
            steer.returns.push(*one);
        }
    }
    Ok(Some(steer))
}

/// The same error; one of the `steer` field says which preset the field is from.
pub fn told(named: &NamedModel, error: ApiError) -> ApiError {
    match (&named.preset, error) {
        (
            Some(preset),
            ApiError::Invalid {
                message,
                param: Some(param),
                code,
            },
        ) if param == "steer" || param.starts_with("steer.") => ApiError::Invalid {
            message: format!("preset {:?}: {message}", preset.name()),
            param: Some(param),
            code,
        },
        (_, error) => error,
    }
}
