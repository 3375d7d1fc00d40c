//! What features and directions may be called, and what is said of them.

use crate::api::ApiError;
use crate::artifacts::ArtifactId;

/// The longest description, in characters.
const LONGEST_DESCRIPTION: usize = 10_000;
/// Features of these names could not be reached.
const OTHER_ADDRESSES: [&str; 3] = ["contrast", "direction", "control_vector"];

/// A name that a feature can have.
pub fn checked_name(name: &str, param: &str) -> Result<ArtifactId, ApiError> {
    let name: ArtifactId = name
        .parse()
        .map_err(|error| ApiError::invalid(param, format!("{error}")))?;
    match OTHER_ADDRESSES.contains(&name.as_str()) {
        true => {
            let message = format!("/v1/features/{name} is another address; choose another name");
            Err(ApiError::invalid(param, message))
        }
        false => Ok(name),
    }
}

/// Refuses a longer description than is kept.
pub fn check_description(description: &str, param: &str) -> Result<(), ApiError> {
    match description.chars().count() > LONGEST_DESCRIPTION {
        true => {
            let message = format!("a description has at most {LONGEST_DESCRIPTION} characters");
            Err(ApiError::invalid(param, message))
        }
        false => Ok(()),
    }
}
