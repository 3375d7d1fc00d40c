//! Matrices of llama.cpp's quantised types, by panels: what a weight is stays as the file has it, where it lies does not.
//!
//! A weight is `q * scale + least` in float32: `q` a small integer, `scale` and `least` shared by 16 or 32 inputs of one
//! output. The types of blocks of 256 inputs have two levels: `scale` is a float16 of the block times a small integer of
//! the group. All of that is kept in as many bits as it needs, in 64 outputs side by side, and comes out as the bits that
//! `candle` makes of it.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Result, bail};
use multiversion::multiversion;

use super::block_bits::{Block, GROUP};
use super::halves::from_f16;
use super::kernels::{multiply_add, prefetch};
use super::width::PANEL;

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

    /// What a panel of so many inputs has of each kind.
    #[inline(always)]
    fn extent(self, inputs: usize) -> Extent {
        let blocks = inputs / self.block * PANEL;
        let groups = self.group.map_or(0, |group| inputs / group * PANEL);
        let least = |length| if self.has_least { length } else { 0 };
        Extent {
            q: inputs * self.width(),
            scale: blocks,
            least: least(blocks),
            scales: groups,
            leasts: least(groups),
        }
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

/// A panel's weights: 64 outputs, all inputs.
#[derive(Clone, Copy)]
struct Panel<'a> {
    form: Form,
    /// `[inputs, 32]` bytes where they are narrow (output `o` in the low half, `o + 32` in the high one), else `[inputs, 64]`;
    /// the panels behind it follow.
    q: &'a [u8],
    /// `[inputs / block, 64]` float16 bits.
    scale: &'a [u16],
    /// The same, or nothing.
    least: &'a [u16],
    /// `[inputs / group, 64]`, or nothing.
    scales: &'a [i8],
    leasts: &'a [u8],
}

/// The weights of one layer; panels may differ in their type, as the parts of a stacked layer do.
///
/// What all panels have of a kind lies in one allocation of just its size: an allocator rounds each up, and what a growing
/// one leaves behind stays resident.
#[derive(Debug)]
pub struct QuantisedPanels {
    inputs: usize,
    panels: Vec<Place>,
    /// Of all panels, one after another: most of what is read, and asked for ahead.
    q: Vec<u8>,
    scale: Vec<u16>,
    least: Vec<u16>,
    scales: Vec<i8>,
    leasts: Vec<u8>,
}

/// What a panel's weights are, and where they begin in what its layer has of each kind.
#[derive(Debug, Clone, Copy)]
struct Place {
    form: Form,
    begin: Extent,
}

/// How many values there are of each kind.
#[derive(Debug, Clone, Copy, Default)]
struct Extent {
    q: usize,
    scale: usize,
    least: usize,
    scales: usize,
    leasts: usize,
}

/// Whether matrices of this type are kept as they are, given how many inputs they have.
pub fn is_kept(dtype: GgmlDType, inputs: usize) -> bool {
    Form::of(dtype).is_some_and(|form| inputs.is_multiple_of(form.block))
}

impl QuantisedPanels {
    /// From matrices `[out, in]` one below the other; all but the last must have a multiple of 64 outputs.
    pub fn new(parts: &[&QTensor]) -> Result<Self> {
        let mut inputs = 0;
        let (mut panels, mut end) = (Vec::new(), Extent::default());
        for (index, part) in parts.iter().enumerate() {
            let outputs;
            (outputs, inputs) = part.shape().dims2()?;
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
            let one = form.extent(inputs);
            for _ in 0..outputs.div_ceil(PANEL) {
                panels.push(Place { form, begin: end });
                end = end.plus(one);
            }
        }
        let mut all = QuantisedPanels {
            inputs,
            panels,
            q: vec![0; end.q],
            scale: vec![0; end.scale],
            least: vec![0; end.least],
            scales: vec![0; end.scales],
            leasts: vec![0; end.leasts],
        };
        let mut first = 0;
        for part in parts {
            first += all.fill(first, part)?;
        }
        Ok(all)
    }

    /// Takes in one of the matrices, whose first panel is `first`; the number of its panels.
    fn fill(&mut self, first: usize, part: &QTensor) -> Result<usize> {
        let (outputs, inputs) = part.shape().dims2()?;
        let panels = outputs.div_ceil(PANEL);
        let bytes = part.data()?;
        let Some(Place { form, .. }) = self.panels.get(first).copied() else {
            return Ok(panels);
        };
        let row_bytes = inputs / form.block * form.block_bytes;
        if inputs != self.inputs || bytes.len() != outputs * row_bytes {
            bail!(
                "a matrix of {outputs} times {inputs} weights has {} bytes",
                bytes.len()
            )
        }
        for (output, row) in bytes.chunks_exact(row_bytes.max(1)).enumerate() {
            let place = self.panels[first + output / PANEL];
            for (index, bytes) in row.chunks_exact(form.block_bytes).enumerate() {
                let block = Block::read(part.dtype(), bytes)?;
                self.put(place, output % PANEL, index, &block);
            }
        }
        Ok(panels)
    }

    fn put(&mut self, place: Place, output: usize, index: usize, block: &Block) {
        let Place { form, begin } = place;
        let all = &mut self.q[begin.q..];
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
        let of_block = index * PANEL + output;
        self.scale[begin.scale + of_block] = block.scale;
        if form.has_least {
            self.least[begin.least + of_block] = block.least;
        }
        let Some(group) = form.group else {
            return;
        };
        let groups = form.block / group;
        for within in 0..groups {
            let of_group = (index * groups + within) * PANEL + output;
            self.scales[begin.scales + of_group] = block.scales[within];
            if form.has_least {
                self.leasts[begin.leasts + of_group] = block.leasts[within];
            }
        }
    }

    fn panel(&self, index: usize) -> Panel<'_> {
        let Place { form, begin } = self.panels[index];
        let end = begin.plus(form.extent(self.inputs));
        Panel {
            form,
            q: &self.q[begin.q..],
            scale: &self.scale[begin.scale..end.scale],
            least: &self.least[begin.least..end.least],
            scales: &self.scales[begin.scales..end.scales],
            leasts: &self.leasts[begin.leasts..end.leasts],
        }
    }

    /// The float32 weights of a panel's inputs from `first` on, `[inputs, 64]`, as many as `out` has room for; `first` and
    /// their number are multiples of the group of 16.
    pub fn decode(&self, panel: usize, first: usize, out: &mut [[f32; PANEL]]) {
        decode(&self.panel(panel), first, out);
    }

    /// Adds to the sums of one row what all inputs `x` add in a panel. A weight goes from its bits into the sum.
    pub fn add_to_row(&self, panel: usize, x: &[f32], sums: &mut [f32; PANEL]) {
        add_to_row(&self.panel(panel), x, sums);
    }

    /// Bytes that are read for one of `inputs` of a row, about: what a group shares is spread over its inputs.
    pub fn bytes_per_input(&self, inputs: usize) -> usize {
        let halves = 2 * (self.scale.len() + self.least.len());
        let factors = halves + self.scales.len() + self.leasts.len();
        (self.q.len() + factors).div_ceil(inputs.max(1))
    }
}

impl Extent {
    fn plus(self, other: Extent) -> Self {
        Extent {
            q: self.q + other.q,
            scale: self.scale + other.scale,
            least: self.least + other.least,
            scales: self.scales + other.scales,
            leasts: self.leasts + other.leasts,
        }
    }
}

impl Panel<'_> {
    /// What the weights of an input's group are made with: scales, and leasts where the type has them.
    #[inline(always)]
    fn factors(&self, input: usize) -> ([f32; PANEL], [f32; PANEL]) {
        let form = self.form;
        let of_block = input / form.block * PANEL;
        let mut scale = halves(self.scale, of_block);
        let mut least = match form.has_least {
            true => halves(self.least, of_block),
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
fn decode(panel: &Panel, first: usize, out: &mut [[f32; PANEL]]) {
    let form = panel.form;
    for (index, out) in out.chunks_mut(GROUP).enumerate() {
        let input = first + index * GROUP;
        let q = &panel.q[input * form.width()..];
        for_each_input!(form, q, panel.factors(input), out, |out, weights| *out =
            weights);
    }
}

#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
    "x86_64+avx2+fma"
))]
fn add_to_row(panel: &Panel, x: &[f32], sums: &mut [f32; PANEL]) {
    let (form, all_q) = (panel.form, panel.q);
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
