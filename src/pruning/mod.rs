//! Pruning: finding the smallest circuit of a model for a task.
//!
//! Every node of the model has a mask parameter; those above zero are kept, all others are held at their mean over
//! reference text ([`held`]). The parameters are trained on a task's pairs to do the task with few nodes
//! ([`mask_training`], [`run`]), then the nodes are sorted by them and the smallest number that still does it is kept
//! ([`size`]). Of these nodes and of the edges between them ([`edge_pruning`]) those go that the task does not need
//! ([`trimming`]). [`recipe`] says what is pruned and how, [`materials`] makes what it names, [`evaluator`] tries one change
//! after another, [`finding`] is the way from recipe to circuit, [`measures`] what is known of it in the end.

pub mod answers;
pub mod edge_pruning;
pub mod evaluator;
pub mod finding;
pub mod held;
pub mod mask_training;
pub mod materials;
pub mod measures;
pub mod recipe;
pub mod run;
pub mod size;
pub mod subject;
pub mod task_file;
#[cfg(test)]
mod test_quote_closer;
pub mod trimming;
