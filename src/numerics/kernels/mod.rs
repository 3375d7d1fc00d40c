//! The kernels for CUDA devices: their sources, as the engine compiles them by NVRTC at first use and as tests run them.
//!
//! Plain CUDA C without libraries. What each kernel takes, with shapes, stands at the head of its file; every one runs in
//! blocks of [`THREADS`], and its order of sums depends on a row's own shape alone, never on the batch: a row has the
//! same bits alone and among others. The functions of [`super`] are their oracles: `tests/kernels.rs` runs every kernel on
//! the host, under an emulation, against them, and takes its list from here.

mod argument;
#[cfg(feature = "cuda")]
mod cuda;
pub mod dense_matrix;
pub mod edit_table;
pub mod launch;
pub mod operations;
pub mod sparse_matrix;
pub mod training;

use sha2::{Digest, Sha256};

#[cfg(feature = "cuda")]
pub(super) use self::cuda::{busy, free_and_all, keep_freed, trim};
pub use self::launch::run_on;

/// Threads of a block, of every kernel: `THREADS` of `device.cuh`.
pub const THREADS: u32 = 256;
/// Entries that a warp looks at together: `LANES` of `device.cuh`.
pub const LANES: u32 = 32;
/// Warps of a block, as many as `norm_top_k_product` keeps sums of a panel.
pub const WARPS: u32 = THREADS / LANES;
/// Positions of a block of the cache, of `attention.cu`.
pub const POSITIONS: u32 = 64;
/// Positions whose attention is summed together; `attention_chunk` takes a part of a launch for each.
pub const ATTENTION_CHUNK: u32 = 256;
/// Counts that the search for the weight mask's threshold keeps.
pub const MASK_BUCKETS: u32 = 2048;
/// Levels of that search.
pub const MASK_LEVELS: u32 = 3;
/// Weights that a block of `mask_equals` and `mask_apply` goes through.
pub const MASK_CHUNK: u32 = 4096;
/// Entries of a gradient that a block of `gradient_squares` goes through.
pub const GRADIENT_CHUNK: u32 = 4096;
/// What the compiler must be told. Without the first, products and sums are contracted as it likes, and the device's
/// rounding is not the one that was tested.
pub const COMPILER_OPTIONS: [&str; 2] = ["--fmad=false", "--std=c++17"];

/// A file of kernels.
#[derive(Debug, Clone, Copy)]
pub struct KernelSource {
    /// The file's name without `.cu`.
    pub name: &'static str,
    text: &'static str,
    /// What it includes, each after what it includes itself.
    headers: &'static [&'static str],
    /// The names that kernels are found by.
    pub kernels: &'static [&'static str],
}

const DEVICE: &str = include_str!("device.cuh");
const SELECTION: &str = include_str!("selection.cuh");
const NORM: &str = include_str!("norm.cuh");
const WEIGHT_MASK: &str = include_str!("weight_mask.cuh");

/// All files of kernels.
pub const SOURCES: [KernelSource; 13] = [
    KernelSource {
        name: "abs_top_k",
        text: include_str!("abs_top_k.cu"),
        headers: &[DEVICE, SELECTION],
        kernels: &[
            "abs_top_k_f32",
            "abs_top_k_bf16",
            "abs_top_k_backward_f32",
            "abs_top_k_backward_bf16",
        ],
    },
    KernelSource {
        name: "norm",
        text: include_str!("norm.cu"),
        headers: &[DEVICE, NORM],
        kernels: &["norm_f32", "norm_bf16"],
    },
    KernelSource {
        name: "sparse_decode",
        text: include_str!("sparse_decode.cu"),
        headers: &[DEVICE, NORM, SELECTION],
        kernels: &["norm_top_k_product_f32", "norm_top_k_product_bf16"],
    },
    KernelSource {
        name: "sparse_product",
        text: include_str!("sparse_product.cu"),
        headers: &[DEVICE, SELECTION],
        kernels: &[
            "transpose_f32",
            "transpose_bf16",
            "sparse_product_f32",
            "sparse_product_bf16",
        ],
    },
    KernelSource {
        name: "dense_product",
        text: include_str!("dense_product.cu"),
        headers: &[DEVICE, SELECTION],
        kernels: &[
            "dense_decode_f32",
            "dense_decode_bf16",
            "dense_tile_f32",
            "dense_tile_bf16",
        ],
    },
    KernelSource {
        name: "rotary",
        text: include_str!("rotary.cu"),
        headers: &[DEVICE],
        kernels: &["rotary_f32", "rotary_bf16"],
    },
    KernelSource {
        name: "attention",
        text: include_str!("attention.cu"),
        headers: &[DEVICE],
        kernels: &[
            "attention_f32",
            "attention_bf16",
            "attention_chunk_f32",
            "attention_chunk_bf16",
            "attention_join_f32",
            "attention_join_bf16",
            "cache_store_f32",
            "cache_store_bf16",
        ],
    },
    KernelSource {
        name: "draw",
        text: include_str!("draw.cu"),
        headers: &[DEVICE],
        kernels: &["draw_f32"],
    },
    KernelSource {
        name: "row_edits",
        text: include_str!("row_edits.cu"),
        headers: &[DEVICE],
        kernels: &["row_edits_f32", "row_edits_bf16"],
    },
    KernelSource {
        name: "clip",
        text: include_str!("clip.cu"),
        headers: &[DEVICE],
        kernels: &["gradient_squares", "clip_scale"],
    },
    KernelSource {
        name: "adamw",
        text: include_str!("adamw.cu"),
        headers: &[DEVICE, WEIGHT_MASK],
        kernels: &["adamw_f32"],
    },
    KernelSource {
        name: "weight_mask",
        text: include_str!("weight_mask.cu"),
        headers: &[DEVICE, SELECTION, WEIGHT_MASK],
        kernels: &[
            "mask_begin",
            "mask_protect",
            "mask_count",
            "mask_narrow",
            "mask_equals",
            "mask_offsets",
            "mask_apply",
        ],
    },
    KernelSource {
        name: "kl_divergence",
        text: include_str!("kl_divergence.cu"),
        headers: &[DEVICE],
        kernels: &[
            "kl_begin",
            "kl_take_in_f32",
            "kl_take_in_bf16",
            "kl_end",
            "kl_gradient_f32",
            "kl_gradient_bf16",
        ],
    },
];

impl KernelSource {
    /// The whole text, as a compiler without files takes it: the headers first, no line that includes one.
    pub fn text(&self) -> String {
        let parts = self.headers.iter().chain([&self.text]);
        let lines = parts.flat_map(|part| part.lines());
        let lines = lines.filter(|line| !line.starts_with("#include \""));
        lines.flat_map(|line| [line, "\n"]).collect()
    }

    /// Of the text and the compiler's options: what was compiled under this name stays right as long as it is the same.
    pub fn hash(&self) -> String {
        let mut hash = Sha256::new();
        for option in COMPILER_OPTIONS {
            hash.update(option);
            hash.update([0]);
        }
        hash.update(self.text());
        hash.finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_source_is_whole_and_names_its_kernels() {
        let mut names = BTreeSet::new();
        for source in &SOURCES {
            let text = source.text();
            assert!(!text.contains("#include"), "{}", source.name);
            let declared = source.text.lines().filter_map(|line| {
                let (name, _) = line.strip_prefix("KERNEL ")?.split_once('(')?;
                Some(name)
            });
            assert_eq!(
                declared.collect::<Vec<_>>(),
                source.kernels,
                "{}",
                source.name
            );
            for kernel in source.kernels {
                assert!(names.insert(*kernel), "{kernel} is in two sources");
            }
        }
    }

    #[test]
    fn what_is_included_is_what_is_listed() {
        let headers = [
            ("device.cuh", DEVICE),
            ("selection.cuh", SELECTION),
            ("norm.cuh", NORM),
            ("weight_mask.cuh", WEIGHT_MASK),
        ];
        for source in &SOURCES {
            let wanted = |text: &str| -> BTreeSet<&str> {
                let named = headers
                    .iter()
                    .filter(|(name, _)| text.contains(&format!("#include \"{name}\"")));
                named.map(|(name, _)| *name).collect()
            };
            let listed: BTreeSet<&str> = headers
                .iter()
                .filter(|(_, text)| source.headers.contains(text))
                .map(|(name, _)| *name)
                .collect();
            let mut included = wanted(source.text);
            for header in source.headers {
                included.extend(wanted(header));
            }
            assert_eq!(included, listed, "{}", source.name);
        }
    }

    #[test]
    fn a_hash_is_one_sources_own() {
        let hashes: BTreeSet<String> = SOURCES.iter().map(KernelSource::hash).collect();
        assert_eq!(hashes.len(), SOURCES.len());
        assert!(hashes.iter().all(|hash| hash.len() == 64));
    }
}
