//! Trainings that outlive the request that asked for them.
//!
//! A job is plain data ([`job`]): what is to be trained ([`spec`]), where it stands, who works on it. The [`store`] keeps
//! jobs, their events and their files' records in SQLite or PostgreSQL, and is the only place where two processes meet.
//! A [`worker`] takes one job after the other and carries each out in a process of its own ([`process`]), which it
//! follows ([`following`]) and whose result it publishes ([`publishing`]).
//!
//! A worker holds a job by a lease that it renews. When a lease lapses, another worker takes the job over with the next
//! attempt number, from the last checkpoint; every write of a worker names its attempt, and one that is out of date
//! changes nothing. What a step computes follows from the recipe and the step alone, so that a step told twice says the
//! same twice: events are kept by what they tell of, and nothing is lost or doubled.

pub mod following;
pub mod job;
pub mod process;
pub mod publishing;
pub mod spec;
pub mod store;
pub mod worker;
