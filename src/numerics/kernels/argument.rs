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

/// A launch whose tensors have become bytes.
pub struct HostLaunch {
    pub kernel: String,
    pub grid: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    pub arguments: Vec<HostArgument>,
}

pub enum HostArgument {
    /// A number of the kernel's own width.
    Number(Vec<u8>),
    Read(Vec<u8>),
    Written(Vec<u8>),
    Null,
}
