//! Circuits: what one is, apart from how it is found ([`crate::pruning`]).
//!
//! A *node* is one channel at one of eight places inside a sublayer; an *edge* is a nonzero weight that joins two nodes.
//! A circuit of a task is a set of nodes that still does the task while every other node is held at its mean over
//! reference text. [`circuit`] is the record that is kept and served, [`nodes`] the set itself, [`edges`] the weights
//! between its nodes, [`stream_links`] what joins them through the residual stream, [`directory`] its file, [`fitting`]
//! whether one fits a model. [`drawing`] makes pictures and text of one, [`trace`] runs a prompt for that
//! ([`traced_run`], [`prompt_trace`]).

pub mod circuit;
pub mod directory;
pub mod drawing;
pub mod edges;
pub mod fitting;
pub mod nodes;
pub mod prompt_trace;
pub mod stream_links;
pub mod trace;
pub mod traced_run;
