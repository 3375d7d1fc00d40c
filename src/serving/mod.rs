//! What is served, apart from how it is asked for: nothing here knows HTTP.
//!
//! - [`service`]: what comes into service and goes out of it; [`library`] what could, [`trained`] what jobs have made.
//! - [`arrivals`]: what comes into the library; [`downloads`] what a running server brings there from a hub.
//! - [`snapshot`]: the models, pairs, features and presets that are served at one moment; [`named_model`] what of it a
//!   request's `model` is; [`feature_store`] keeps features, [`direction_store`] directions, [`preset_store`] presets and
//!   [`task_store`] tasks.
//! - [`served_circuits`]: the snapshot's circuits; [`trained_circuits`] brings those that jobs have found.
//! - [`weights`]: those that stay in memory, and those of jobs' results, which come and go; [`description`] says what
//!   is known of something without its weights.
//! - [`data_directory`]: one server at a time keeps what callers make.
//! - [`trial`]: a pair or a model answers one token, or is told why it cannot be served; [`trial_process`] does the
//!   same in a process of its own, whose memory and time are bounded.
//! - [`template_process`]: chat templates in processes of their own.

pub mod arrivals;
pub mod data_directory;
pub mod description;
pub mod direction_store;
pub mod downloads;
pub mod feature_store;
pub mod library;
pub mod named_model;
pub mod preset_store;
pub mod served_circuits;
pub mod service;
pub mod snapshot;
pub mod task_store;
pub mod template_process;
pub mod trained;
pub mod trained_circuits;
pub mod trial;
pub mod trial_process;
pub mod weights;
