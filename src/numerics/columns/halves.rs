//! Numbers of sixteen bits and their float32, one by one and without branches, so that loops over them run in vectors.

/// 2 to the power of 112: what the exponent of a float16, shifted into that of a float32, is short of.
const SHORT_OF: f32 = f32::from_bits(0x7780_0000);

/// The finite float16 of these bits. Numbers below the normal ones come out exact too.
#[inline(always)]
pub fn from_f16(bits: u16) -> f32 {
    let magnitude = f32::from_bits(u32::from(bits & 0x7fff) << 13) * SHORT_OF;
    f32::from_bits(magnitude.to_bits() | (u32::from(bits & 0x8000) << 16))
}

/// The bfloat16 of these bits.
#[inline(always)]
pub fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;

    #[test]
    fn every_finite_number_is_its_float32() {
        let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        for (dtype, decode) in [
            (DType::F16, from_f16 as fn(u16) -> f32),
            (DType::BF16, from_bf16),
        ] {
            let expected = Tensor::from_raw_buffer(&all, dtype, &[1 << 16], &Device::Cpu).unwrap();
            let expected = expected.to_dtype(DType::F32).unwrap();
            let expected = expected.to_vec1::<f32>().unwrap();
            for (bits, expected) in (0..=u16::MAX).zip(expected) {
                if expected.is_finite() {
                    assert_eq!(decode(bits).to_bits(), expected.to_bits(), "{bits:#x}");
                }
            }
        }
    }
}
