//! Trainings as jobs: the store, on SQLite and, where `TEST_POSTGRES` names a server, on PostgreSQL too; and
//! workers as processes of their own, which are killed and frozen.

#[path = "jobs/disturbances.rs"]
mod disturbances;
#[path = "jobs/installation.rs"]
mod installation;
#[path = "jobs/store.rs"]
mod store;
