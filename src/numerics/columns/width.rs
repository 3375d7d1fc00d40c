//! How many outputs and rows the kernels take together.

/// Outputs whose sums stay in registers together.
pub const PANEL: usize = 64;
/// Rows that share each weight that is read.
pub const ROWS_TOGETHER: usize = 4;
