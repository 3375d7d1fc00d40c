//! What a launch gives its kernel, whoever carries it out.

use candle_core::Tensor;

/// One of a kernel's arguments.
#[derive(Debug, Clone)]
pub(super) enum Argument {
    Read(Tensor),
    Written(Tensor),
    Null,
    Count(u32),
    Long(u64),
    Float(f32),
    Double(f64),
}
