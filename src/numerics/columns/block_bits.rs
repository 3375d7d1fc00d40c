//! The blocks of llama.cpp's quantised types, taken apart: 32 or 256 inputs of one output with what they share.

use candle_core::quantized::GgmlDType;
use candle_core::{Result, bail};

/// Inputs that share what changes from group to group, in every type: the smallest such group.
pub const GROUP: usize = 16;

/// One output's block of inputs, taken apart.
pub struct Block {
    /// `q` of each input, a narrow one plus its offset.
    pub q: [i8; 256],
    /// Float16 bits: what scales and leasts are multiples of, or are.
    pub scale: u16,
    pub least: u16,
    /// Of each group.
    pub scales: [i8; GROUP],
    pub leasts: [u8; GROUP],
}

impl Block {
    /// Takes a file's block apart; `bytes` are as many as its type has.
    pub fn read(dtype: GgmlDType, bytes: &[u8]) -> Result<Self> {
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let mut block = Block {
            q: [0; 256],
            scale: 0,
            least: 0,
            scales: [0; GROUP],
            leasts: [0; GROUP],
        };
        let q = &mut block.q;
        // Blocks of 32 have the first sixteen inputs in the low halves of their bytes, the others in the high ones.
        let mut nibbles = |from: usize| {
            for (at, &byte) in bytes[from..][..16].iter().enumerate() {
                q[at] = (byte & 15) as i8;
                q[at + 16] = (byte >> 4) as i8;
            }
        };
        match dtype {
            GgmlDType::Q4_0 => {
                block.scale = half(0);
                nibbles(2);
            }
            GgmlDType::Q4_1 => {
                (block.scale, block.least) = (half(0), half(2));
                nibbles(4);
            }
            GgmlDType::Q5_0 | GgmlDType::Q5_1 => {
                let has_least = dtype == GgmlDType::Q5_1;
                let high = if has_least { 4 } else { 2 };
                block.scale = half(0);
                if has_least {
                    block.least = half(2);
                }
                nibbles(high + 4);
                let fifth = &bytes[high..high + 4];
                for (at, q) in q[..32].iter_mut().enumerate() {
                    *q |= ((fifth[at / 8] >> (at % 8) & 1) << 4) as i8;
                    if !has_least {
                        *q -= 16;
                    }
                }
            }
            GgmlDType::Q8_0 => {
                block.scale = half(0);
                for (q, &byte) in q.iter_mut().zip(&bytes[2..34]) {
                    *q = byte as i8;
                }
            }
            GgmlDType::Q2K => {
                (block.scale, block.least) = (half(80), half(82));
                for (group, &byte) in bytes[..16].iter().enumerate() {
                    block.scales[group] = (byte & 15) as i8;
                    block.leasts[group] = byte >> 4;
                }
                for (at, q) in q.iter_mut().enumerate() {
                    *q = (two_bits(&bytes[16..80], at)) as i8;
                }
            }
            GgmlDType::Q3K => {
                block.scale = half(108);
                let (high, low, packed) = (&bytes[..32], &bytes[32..96], &bytes[96..108]);
                for (group, scale) in block.scales.iter_mut().enumerate() {
                    let low = packed[group % 8] >> (4 * (group / 8)) & 15;
                    let high = packed[8 + group % 4] >> (2 * (group / 4)) & 3;
                    *scale = (low | high << 4) as i8 - 32;
                }
                for (at, q) in q.iter_mut().enumerate() {
                    // The high bit says that four are not taken away; the offset takes them away from all.
                    let high = high[at % 32] >> (at / 32) & 1;
                    *q = (two_bits(low, at) + 4 * high) as i8;
                }
            }
            GgmlDType::Q4K | GgmlDType::Q5K => {
                (block.scale, block.least) = (half(0), half(2));
                let packed = &bytes[4..16];
                for group in 0..8 {
                    let (scale, least) = six_bits(packed, group);
                    block.scales[group] = scale as i8;
                    block.leasts[group] = least;
                }
                let is_five = dtype == GgmlDType::Q5K;
                let low = if is_five { 48 } else { 16 };
                for (at, q) in q.iter_mut().enumerate() {
                    let (group, within) = (at / 32, at % 32);
                    let byte = bytes[low + group / 2 * 32 + within];
                    *q = (byte >> (4 * (group % 2)) & 15) as i8;
                    if is_five {
                        *q |= ((bytes[16 + within] >> group & 1) << 4) as i8;
                    }
                }
            }
            GgmlDType::Q6K => {
                block.scale = half(208);
                let (low, high) = (&bytes[..128], &bytes[128..192]);
                for (scale, &byte) in block.scales.iter_mut().zip(&bytes[192..208]) {
                    *scale = byte as i8;
                }
                for (at, q) in q.iter_mut().enumerate() {
                    let (part, quarter, within) = (at / 128, at % 128 / 32, at % 32);
                    let low =
                        low[part * 64 + quarter % 2 * 32 + within] >> (4 * (quarter / 2)) & 15;
                    let high = high[part * 32 + within] >> (2 * quarter) & 3;
                    *q = (low | high << 4) as i8 - 32;
                }
            }
            other => bail!("blocks of {other:?} are not read"),
        }
        Ok(block)
    }
}

/// The two bits of the input at `at` of 256: those of inputs 32 apart share a byte.
fn two_bits(bytes: &[u8], at: usize) -> u8 {
    bytes[at / 128 * 32 + at % 32] >> (2 * (at % 128 / 32)) & 3
}

/// A group's scale and least, of six bits each, out of twelve bytes.
fn six_bits(packed: &[u8], group: usize) -> (u8, u8) {
    match group < 4 {
        true => (packed[group] & 63, packed[group + 4] & 63),
        false => (
            packed[group + 4] & 15 | packed[group - 4] >> 6 << 4,
            packed[group + 4] >> 4 | packed[group] >> 6 << 4,
        ),
    }
}
