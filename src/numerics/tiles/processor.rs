//! Which instructions the kernels here may use on this processor.
//!
//! Each kernel has two forms: AVX-512's, in its own instructions, and AVX2's, in plain loops over sixteen numbers that the
//! compiler turns into two registers of eight. Both add up in the same order, so that they give the same sums.

/// Tokens that are computed side by side.
pub const LANES: usize = 16;

/// The environment's variable that asks for the portable operations, whatever the processor.
pub const PORTABLE: &str = "CAUSEWAY_PORTABLE";

/// The proof that this processor has the instructions of one of the two forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Processor(Instructions);

/// The form of kernels that a processor runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instructions {
    /// AVX-512 F, DQ, BW and VL, and FMA.
    Avx512,
    /// AVX2 and FMA.
    Avx2,
}

impl Processor {
    /// The best there is; none also where the environment asks for [`PORTABLE`].
    pub fn detect() -> Option<Self> {
        match std::env::var_os(PORTABLE) {
            Some(_) => None,
            None => Self::all().first().copied(),
        }
    }

    /// Every form that this processor can run, the best first.
    #[cfg(target_arch = "x86_64")]
    pub fn all() -> Vec<Self> {
        let has_avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let has_avx512 = has_avx2
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl");
        [
            (has_avx512, Instructions::Avx512),
            (has_avx2, Instructions::Avx2),
        ]
        .into_iter()
        .filter(|(has, _)| *has)
        .map(|(_, instructions)| Processor(instructions))
        .collect()
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub fn all() -> Vec<Self> {
        Vec::new()
    }

    pub fn instructions(self) -> Instructions {
        self.0
    }
}
