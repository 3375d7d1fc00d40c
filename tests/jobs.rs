//! Trainings as jobs: the store, on SQLite and, where `TEST_POSTGRES` names a server, on PostgreSQL too; and
//! workers and servers as processes of their own, which are killed and frozen. Where `TEST_S3` names a service, the
//! artifacts of the PostgreSQL installations are in a bucket of it.

#[path = "jobs/artifacts.rs"]
mod artifacts;
#[path = "jobs/damaged_store.rs"]
mod damaged_store;
#[path = "jobs/disturbances.rs"]
mod disturbances;
#[path = "jobs/full_disk.rs"]
mod full_disk;
#[path = "jobs/installation.rs"]
mod installation;
#[path = "jobs/prunings.rs"]
mod prunings;
#[path = "jobs/results.rs"]
mod results;
#[path = "jobs/served.rs"]
mod served;
#[path = "jobs/store.rs"]
mod store;
