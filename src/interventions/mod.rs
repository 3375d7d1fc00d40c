//! Interventions: what a caller asks to have changed inside a model, validated, compiled and carried out.
//!
//! [`request`] is what can be written in the `steer` field; a [`plan`] is what is left of it once every name is
//! resolved and every number checked. [`operation`] says what each operation moves a value to and [`carry`] how
//! a change of the sparse model becomes one of the dense. [`steering`] carries a plan out, step by step, with two
//! taps: [`in_place`] in the model that has the features, [`carried`] in the dense one. Each compiles what is to be
//! done at a place into a table of [`row_edits`], which has the one routine that carries it out; [`readings`] are the
//! unedited runs beside them, [`control`] the arms to compare with and [`control_directions`] what theirs are drawn from, [`receipt`] what was done, [`cost`] what a plan
//! takes before it is begun, and [`effect`] by what two arms' edits are known to be the same.

pub mod carried;
pub mod carry;
pub mod control;
pub mod control_directions;
pub mod cost;
pub mod effect;
pub mod host_copies;
pub mod in_place;
pub mod nearest;
pub mod operation;
pub mod plan;
pub mod readings;
pub mod receipt;
pub mod request;
pub mod row_delta;
pub mod row_edits;
pub mod rows_of_arms;
pub mod steering;
pub mod subject;
