//! How much of a list one answer has.

use crate::api::ApiError;

/// How many a page has.
pub fn page(limit: Option<usize>, most: usize) -> Result<usize, ApiError> {
    let limit = limit.unwrap_or(20);
    match (1..=most).contains(&limit) {
        true => Ok(limit),
        false => Err(ApiError::invalid(
            "limit",
            format!("limit is {limit}; it must be between 1 and {most}"),
        )),
    }
}
