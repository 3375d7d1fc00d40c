//! Trainings that outlive the request that asked for them.
//!
//! A job is plain data ([`job`]): what is to be trained or pruned ([`spec`], as its caller says it [`method`]), where it stands, who works on it. The [`store`] keeps
//! jobs, their events and their files' records in SQLite or PostgreSQL, and is the only place where two processes meet.
//! What they begin with and what comes of them is in the [`artifact_store`], from where it is downloaded as an [`archive`]. A [`worker`] takes one job after the other
//! and carries each out in a process of its own ([`process`]), which it follows ([`following`]); a result is published
//! by the row of the store that ends its job. What its steps told of becomes [`curves`].
//!
//! A worker holds a job by a lease that it renews. When a lease lapses, another worker takes the job over with the next
//! attempt number, from the last checkpoint; every write of a worker names its attempt, and one that is out of date
//! changes nothing. What a step computes follows from the recipe and the step alone, so that a step told twice says the
//! same twice: events are kept by what they tell of, and nothing is lost or doubled.

pub mod archive;
pub mod artifact_store;
pub mod curves;
pub mod estimate;
pub mod following;
pub mod job;
pub mod method;
pub mod process;
pub mod spec;
pub mod store;
pub mod worker;
