//! Matrices of llama.cpp's quantised types, by panels: what a weight is stays as the file has it, where it lies does not.
//!
//! A weight is `q * scale + least` in float32: `q` a small integer, `scale` and `least` shared by 16 or 32 inputs of one
//! output. The types of blocks of 256 inputs have two levels: `scale` is a float16 of the block times a small integer of
//! the group. All of that is kept in as many bits as it needs, in 64 outputs side by side, and comes out as the bits that
//! `candle` makes of it.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Result, bail};
use multiversion::multiversion;

use super::halves::from_f16;
use super::kernels::{multiply_add, prefetch};
use super::width::PANEL;

/// Inputs that share what changes from group to group, in every type: the smallest such group.
const GROUP: usize = 16;

/// Groups of inputs ahead whose weights are asked for.
const AHEAD: usize = 3;

/// How a type has its weights.
#[derive(Debug, Clone, Copy)]
struct Form {
    /// Inputs that share a float16 scale.
    block: usize,
    block_bytes: usize,
    /// Inputs that share a scale, where that is not the block's.
    group: Option<usize>,
    /// Whether `q` takes four bits.
    narrow: bool,
    /// Whether the file has `least`, and not just `-offset * scale`.
    has_least: bool,
    /// What is taken from a narrow `q`.
    offset: u8,
}

impl Form {
    /// Bytes of an input's `q` in a panel.
    #[inline(always)]
    fn width(self) -> usize {
        if self.narrow { PANEL / 2 } else { PANEL }
    }

    fn of(dtype: GgmlDType) -> Option<Self> {
        let form = |block, block_bytes, group, narrow, has_least, offset| {
            Some(Form {
                block,
                block_bytes,
                group,
                narrow,
                has_least,
                offset,
            })
        };
        match dtype {
            GgmlDType::Q4_0 => form(32, 18, None, true, false, 8),
            GgmlDType::Q4_1 => form(32, 20, None, true, true, 0),
            GgmlDType::Q5_0 => form(32, 22, None, false, false, 0),
            GgmlDType::Q5_1 => form(32, 24, None, false, true, 0),
            GgmlDType::Q8_0 => form(32, 34, None, false, false, 0),
            GgmlDType::Q2K => form(256, 84, Some(16), true, true, 0),
            GgmlDType::Q3K => form(256, 110, Some(16), true, false, 4),
            GgmlDType::Q4K => form(256, 144, Some(32), true, true, 0),
            GgmlDType::Q5K => form(256, 176, Some(32), false, true, 0),
            GgmlDType::Q6K => form(256, 210, Some(16), false, false, 0),
            _ => None,
        }
    }
}

/// One output's block of inputs, taken apart.
struct Block {
    /// `q` of each input, a narrow one plus its offset.
    q: [i8; 256],
    /// Float16 bits: what scales and leasts are multiples of, or are.
    scale: u16,
    least: u16,
    /// Of each group.
    scales: [i8; GROUP],
    leasts: [u8; GROUP],
}

/// A panel's weights: 64 outputs, all inputs.
#[derive(Debug)]
struct Panel {
    form: Form,
    /// Where its `q` begin: `[inputs, 32]` bytes where they are narrow (output `o` in the low half, `o + 32` in the high one),
    /// else `[inputs, 64]`.
    q: usize,
    /// `[inputs / block, 64]` float16 bits.
    scale: Vec<u16>,
    /// The same, or nothing.
    least: Vec<u16>,
    /// `[inputs / group, 64]`, or nothing.
    scales: Vec<i8>,
    leasts: Vec<u8>,
}

/// The weights of one layer; panels may differ in their type, as the parts of a stacked layer do.
#[derive(Debug)]
pub struct QuantisedPanels {
    panels: Vec<Panel>,
    /// Of all panels, one after another: most of what is read, and asked for ahead.
    q: Vec<u8>,
}

/// Whether matrices of this type are kept as they are, given how many inputs they have.
pub fn is_kept(dtype: GgmlDType, inputs: usize) -> bool {
    Form::of(dtype).is_some_and(|form| inputs.is_multiple_of(form.block))
}

impl QuantisedPanels {
    /// From matrices `[out, in]` one below the other; all but the last must have a multiple of 64 outputs.
    pub fn new(parts: &[&QTensor]) -> Result<Self> {
        let (mut panels, mut q) = (Vec::new(), Vec::new());
        for (index, part) in parts.iter().enumerate() {
            let (outputs, inputs) = part.shape().dims2()?;
            let Some(form) = Form::of(part.dtype()).filter(|_| is_kept(part.dtype(), inputs))
            else {
                bail!(
                    "a matrix of {inputs} inputs in {:?} is not kept",
                    part.dtype()
                )
            };
            if index + 1 < parts.len() && !outputs.is_multiple_of(PANEL) {
                bail!("{outputs} outputs with others below them are not whole panels")
            }
            let bytes = part.data()?;
            let row_bytes = inputs / form.block * form.block_bytes;
            if bytes.len() != outputs * row_bytes {
                bail!(
                    "a matrix of {outputs} times {inputs} weights has {} bytes",
                    bytes.len()
                )
            }
            for rows in bytes.chunks(PANEL * row_bytes) {
                panels.push(Panel::new(
                    form,
                    part.dtype(),
                    inputs,
                    (rows, row_bytes),
                    &mut q,
                )?);
            }
        }
        Ok(QuantisedPanels { panels, q })
    }

    /// The float32 weights of a panel's inputs from `first` on, `[inputs, 64]`, as many as `out` has room for; `first` and
    /// their number are multiples of the group of 16.
    pub fn decode(&self, panel: usize, first: usize, out: &mut [[f32; PANEL]]) {
        let panel = &self.panels[panel];
        decode(panel, &self.q[panel.q..], first, out);
    }

    /// Adds to the sums of one row what all inputs `x` add in a panel. A weight goes from its bits into the sum.
    pub fn add_to_row(&self, panel: usize, x: &[f32], sums: &mut [f32; PANEL]) {
        let panel = &self.panels[panel];
        add_to_row(panel, &self.q[panel.q..], x, sums);
    }

    /// Bytes that are read for one of `inputs` of a row, about: what a group shares is spread over its inputs.
    pub fn bytes_per_input(&self, inputs: usize) -> usize {
        let factors = |panel: &Panel| {
            let halves = 2 * (panel.scale.len() + panel.least.len());
            halves + panel.scales.len() + panel.leasts.len()
        };
        let factors: usize = self.panels.iter().map(factors).sum();
        (self.q.len() + factors).div_ceil(inputs.max(1))
    }
}

impl Panel {
    /// From the blocks of up to 64 outputs, row after row.
    fn new(
        form: Form,
        dtype: GgmlDType,
        inputs: usize,
        (rows, row_bytes): (&[u8], usize),
        q: &mut Vec<u8>,
    ) -> Result<Self> {
        let blocks = inputs / form.block * PANEL;
        let groups = form.group.map_or(0, |group| inputs / group * PANEL);
        let least = |length: usize| if form.has_least { length } else { 0 };
        let mut panel = Panel {
            form,
            q: q.len(),
            scale: vec![0; blocks],
            least: vec![0; least(blocks)],
            scales: vec![0; groups],
            leasts: vec![0; least(groups)],
        };
        q.resize(panel.q + inputs * form.width(), 0);
        let q = &mut q[panel.q..];
        for (output, row) in rows.chunks_exact(row_bytes).enumerate() {
            for (index, bytes) in row.chunks_exact(form.block_bytes).enumerate() {
                let block = Block::read(dtype, bytes)?;
                panel.put(q, output, index, &block);
            }
        }
        Ok(panel)
    }

    fn put(&mut self, all: &mut [u8], output: usize, index: usize, block: &Block) {
        let form = self.form;
        for (offset, &q) in block.q[..form.block].iter().enumerate() {
            let input = index * form.block + offset;
            match form.narrow {
                true => {
                    let place = input * (PANEL / 2) + output % (PANEL / 2);
                    all[place] |= (q as u8) << (4 * (output / (PANEL / 2)));
                }
                false => all[input * PANEL + output] = q as u8,
            }
        }
        self.scale[index * PANEL + output] = block.scale;
        if form.has_least {
            self.least[index * PANEL + output] = block.least;
        }
        let Some(group) = form.group else {
            return;
        };
        let groups = form.block / group;
        for within in 0..groups {
            let place = (index * groups + within) * PANEL + output;
            self.scales[place] = block.scales[within];
            if form.has_least {
                self.leasts[place] = block.leasts[within];
            }
        }
    }

    /// What the weights of an input's group are made with: scales, and leasts where the type has them.
    #[inline(always)]
    fn factors(&self, input: usize) -> ([f32; PANEL], [f32; PANEL]) {
        let form = self.form;
        let of_block = input / form.block * PANEL;
        let mut scale = halves(&self.scale, of_block);
        let mut least = match form.has_least {
            true => halves(&self.least, of_block),
            false => [0.0; PANEL],
        };
        if let Some(group) = form.group {
            let of_group = input / group * PANEL;
            for (scale, &of_group) in scale.iter_mut().zip(&self.scales[of_group..]) {
                *scale *= f32::from(of_group);
            }
            if form.has_least {
                for (least, &of_group) in least.iter_mut().zip(&self.leasts[of_group..]) {
                    *least *= -f32::from(of_group);
                }
            }
        }
        if form.offset > 0 {
            for (least, &scale) in least.iter_mut().zip(&scale) {
                *least = -f32::from(form.offset) * scale;
            }
        }
        (scale, least)
    }

    /// Inputs that share their factors.
    fn group(&self) -> usize {
        self.form.group.unwrap_or(self.form.block)
    }
}

/// The float32 of 64 float16 from `first` on.
#[inline(always)]
fn halves(bits: &[u16], first: usize) -> [f32; PANEL] {
    let mut values = [0.0; PANEL];
    for (value, &bits) in values.iter_mut().zip(&bits[first..first + PANEL]) {
        *value = from_f16(bits);
    }
    values
}

/// Does something with the float32 weights of one input after another, beside what an iterator gives. The product with a
/// narrow `q`, and with one that has a least, is exact, so that a fused sum gives the bits of two roundings.
macro_rules! for_each_input {
    ($form:expr, $q:expr, $factors:expr, $beside:expr, |$item:pat_param, $weights:ident| $body:expr) => {{
        let (scale, least): ([f32; PANEL], [f32; PANEL]) = $factors;
        match ($form.narrow, $form.has_least) {
            (true, _) => {
                for (q, $item) in $q.as_chunks::<{ PANEL / 2 }>().0.iter().zip($beside) {
                    let mut $weights = [0f32; PANEL];
                    for lane in 0..PANEL / 2 {
                        let q = f32::from(q[lane] & 15);
                        $weights[lane] = multiply_add!(q, scale[lane], least[lane]);
                    }
                    for lane in PANEL / 2..PANEL {
                        let q = f32::from(q[lane - PANEL / 2] >> 4);
                        $weights[lane] = multiply_add!(q, scale[lane], least[lane]);
                    }
                    $body
                }
            }
            (false, true) => {
                for (q, $item) in $q.as_chunks::<PANEL>().0.iter().zip($beside) {
                    let mut $weights = [0f32; PANEL];
                    for lane in 0..PANEL {
                        let q = f32::from(q[lane] as i8);
                        $weights[lane] = multiply_add!(q, scale[lane], least[lane]);
                    }
                    $body
                }
            }
            (false, false) => {
                for (q, $item) in $q.as_chunks::<PANEL>().0.iter().zip($beside) {
                    let mut $weights = [0f32; PANEL];
                    for lane in 0..PANEL {
                        $weights[lane] = f32::from(q[lane] as i8) * scale[lane];
                    }
                    $body
                }
            }
        }
    }};
}

#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
fn decode(panel: &Panel, q: &[u8], first: usize, out: &mut [[f32; PANEL]]) {
    let form = panel.form;
    for (index, out) in out.chunks_mut(GROUP).enumerate() {
        let input = first + index * GROUP;
        let q = &q[input * form.width()..];
        for_each_input!(form, q, panel.factors(input), out, |out, weights| *out =
            weights);
    }
}

#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
fn add_to_row(panel: &Panel, all_q: &[u8], x: &[f32], sums: &mut [f32; PANEL]) {
    let form = panel.form;
    let (group, mut all) = (panel.group(), *sums);
    let rows = x.chunks(group).zip(all_q.chunks(group * form.width()));
    for (index, (x, q)) in rows.enumerate() {
        // Weights come from memory, and the processor does not look ahead beyond a page.
        let ahead = (index + AHEAD) * group * form.width();
        prefetch(all_q, ahead, group * form.width() / 64);
        let factors = panel.factors(index * group);
        for_each_input!(form, q, factors, x, |&x, weights| {
            for lane in 0..PANEL {
                all[lane] = multiply_add!(x, weights[lane], all[lane]);
            }
        });
    }
    *sums = all;
}

impl Block {
    /// Takes a file's block apart; `bytes` are as many as its type has.
    fn read(dtype: GgmlDType, bytes: &[u8]) -> Result<Self> {
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

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    const KEPT: [GgmlDType; 10] = [
        GgmlDType::Q4_0,
        GgmlDType::Q4_1,
        GgmlDType::Q5_0,
        GgmlDType::Q5_1,
        GgmlDType::Q8_0,
        GgmlDType::Q2K,
        GgmlDType::Q3K,
        GgmlDType::Q4K,
        GgmlDType::Q5K,
        GgmlDType::Q6K,
    ];

    fn matrix(outputs: usize, inputs: usize, dtype: GgmlDType) -> QTensor {
        let values =
            (0..outputs * inputs).map(|i| ((i * 7919 + i / 97) % 1013) as f32 / 500.0 - 1.0);
        let values = Tensor::from_iter(values, &Device::Cpu).unwrap();
        QTensor::quantize(&values.reshape((outputs, inputs)).unwrap(), dtype).unwrap()
    }

    #[test]
    fn every_type_comes_out_as_candle_has_it() {
        for dtype in KEPT {
            // The last panel is not full.
            let (outputs, inputs) = (2 * PANEL + 9, 512);
            let stored = matrix(outputs, inputs, dtype);
            let expected = stored.dequantize(&Device::Cpu).unwrap();
            let expected = expected.to_vec2::<f32>().unwrap();
            let panels = QuantisedPanels::new(&[&stored]).unwrap();
            let mut out = vec![[0f32; PANEL]; inputs];
            for panel in 0..3 {
                panels.decode(panel, 0, &mut out);
                for (lane, row) in expected.iter().skip(panel * PANEL).take(PANEL).enumerate() {
                    for (input, &expected) in row.iter().enumerate() {
                        assert_eq!(out[input][lane], expected, "{dtype:?}, input {input}");
                    }
                }
                // A piece is as the whole.
                let mut piece = vec![[0f32; PANEL]; 48];
                panels.decode(panel, 208, &mut piece);
                assert_eq!(piece, out[208..256]);
            }
        }
    }

    #[test]
    fn parts_of_different_types_follow_each_other() {
        let (first, second) = (
            matrix(PANEL, 256, GgmlDType::Q4K),
            matrix(PANEL, 256, GgmlDType::Q6K),
        );
        let both = QuantisedPanels::new(&[&first, &second]).unwrap();
        let alone = QuantisedPanels::new(&[&second]).unwrap();
        let (mut one, mut other) = (vec![[0f32; PANEL]; 256], vec![[0f32; PANEL]; 256]);
        both.decode(1, 0, &mut one);
        alone.decode(0, 0, &mut other);
        assert_eq!(one, other);
        let ragged = matrix(PANEL + 1, 256, GgmlDType::Q8_0);
        assert!(QuantisedPanels::new(&[&ragged, &second]).is_err());
        assert!(!is_kept(GgmlDType::Q4K, 576) && is_kept(GgmlDType::Q4_1, 576));
    }
}
