//! Whether this processor has the instructions that the kernels here are written in.

/// Tokens that are computed side by side.
pub const LANES: usize = 16;

/// The environment's variable that asks for the portable operations, whatever the processor.
pub const PORTABLE: &str = "CAUSEWAY_PORTABLE";

/// The proof that this processor has the instructions.
#[derive(Debug, Clone, Copy)]
pub struct Avx512(());

impl Avx512 {
    /// None also where the environment asks for [`PORTABLE`].
    #[cfg(target_arch = "x86_64")]
    pub fn detect() -> Option<Self> {
        let is_wanted = std::env::var_os(PORTABLE).is_none();
        let has_all = is_wanted
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("fma");
        has_all.then_some(Avx512(()))
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub fn detect() -> Option<Self> {
        None
    }
}
