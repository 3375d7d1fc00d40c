//! Pruning: finding the smallest circuit of a model for a task.
//!
//! Every node of the model has a mask parameter; those above zero are kept, all others are held at their mean over
//! reference text. The parameters are trained on a task's pairs to do the task with few nodes, then the nodes are sorted
//! by them and the smallest number that still does it is kept. [`recipe`] says what is pruned and how.

pub mod answers;
pub mod edge_pruning;
pub mod held;
pub mod mask_training;
pub mod recipe;
pub mod run;
pub mod size;
pub mod subject;
pub mod task_file;
