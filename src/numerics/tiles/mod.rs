//! The arithmetic of training on AVX-512: activations channel by channel.
//!
//! A *tile* holds one sequence's activations as `[channels][width]`, `width` its tokens rounded up to sixteen and the
//! columns past its last token zero. A row of a tile is one channel at all tokens, so that a weight matrix's nonzero
//! weights each become a scaled addition of whole rows ([`product`]), and whatever goes from channel to channel of one
//! token (norms, AbsTopK, attention) is done for sixteen tokens at a time without any sum across a register.
//!
//! Everything here wants an [`Avx512`], which only exists where the processor has the instructions. The operations of
//! the modules beside this one are the portable version and the oracle of the tests.

pub mod attention;
pub mod buffers;
pub mod elementwise;
pub mod norm;
pub mod outer;
pub mod product;
pub mod top_k;
pub mod transpose;

use self::transpose::transpose;
use crate::numerics::parts::Part;

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

/// The width of the tile of a sequence of `length` tokens.
pub fn width_of(length: usize) -> usize {
    length.next_multiple_of(LANES)
}

/// Rows `[length, channels]` as a tile `[channels][width]`.
pub fn from_rows(cpu: Avx512, rows: &[f32], channels: usize, width: usize, tile: &mut [f32]) {
    let _timed = Part::Layout.begin();
    let length = rows.len() / channels;
    transpose(cpu, rows, (length, channels), channels, tile, width);
    if length < width {
        for row in tile.chunks_exact_mut(width) {
            row[length..].fill(0.0);
        }
    }
}

/// A tile `[channels][width]` as rows `[length, channels]`.
pub fn to_rows(cpu: Avx512, tile: &[f32], channels: usize, width: usize, rows: &mut [f32]) {
    let _timed = Part::Layout.begin();
    let length = rows.len() / channels;
    transpose(cpu, tile, (channels, length), width, rows, channels);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_a_tile_and_rows_again() {
        let Some(cpu) = Avx512::detect() else {
            return;
        };
        for (length, channels) in [(1, 1), (5, 3), (16, 16), (33, 40)] {
            let rows: Vec<f32> = (0..length * channels).map(|i| i as f32 + 1.0).collect();
            let width = width_of(length);
            let mut tile = vec![f32::NAN; channels * width];
            from_rows(cpu, &rows, channels, width, &mut tile);
            for channel in 0..channels {
                for token in 0..width {
                    let expected = match token < length {
                        true => rows[token * channels + channel],
                        false => 0.0,
                    };
                    assert_eq!(tile[channel * width + token], expected);
                }
            }
            let mut again = vec![f32::NAN; rows.len()];
            to_rows(cpu, &tile, channels, width, &mut again);
            assert_eq!(again, rows);
        }
    }
}
