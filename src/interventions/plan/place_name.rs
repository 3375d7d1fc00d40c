//! Names of places in requests, with the nearest known ones where there is no such place.

use super::scene::{PlanError, refused};
use crate::interventions::nearest::suggestion;
use crate::models::location::Location;

/// The place called `name` in a model of `n_layers` layers. `param` is the name's path in the request.
pub fn named_place(name: &str, n_layers: usize, param: &str) -> Result<Location, PlanError> {
    Location::parse(name, n_layers).map_err(|error| {
        let names: Vec<String> = Location::all(n_layers)
            .iter()
            .map(Location::to_string)
            .collect();
        let near = suggestion(name, names.iter().map(String::as_str));
        refused(format!("{error}{near}"), param)
    })
}
