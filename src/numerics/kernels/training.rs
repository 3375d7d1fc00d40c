//! What training does on a device beside the forward pass: the gradient's norm and clipping, AdamW, the weight mask, and the
//! divergence of two models with its gradient. None of it waits for the host.
//!
//! The kernels' files say what each argument is; `training/optimizer.rs`, `training/weight_mask.rs` and [`super::super::loss`]
//! are their oracles.

use candle_core::{DType, Device, Result, Tensor};

use super::launch::{Launch, unwritten};
use super::{GRADIENT_CHUNK, MASK_BUCKETS, MASK_CHUNK, MASK_LEVELS, THREADS};

/// Blocks that go through as many numbers as there are.
const MOST_BLOCKS: usize = 1024;

fn blocks(count: usize) -> usize {
    count.div_ceil(THREADS as usize).clamp(1, MOST_BLOCKS)
}

/// How a gradient is clipped, as `clip.cu` numbers it, with the limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Clipping {
    /// The norm is at most this.
    Norm(f64),
    /// The root mean square over all entries is.
    Rms(f64),
    /// That is made this.
    NormaliseRms(f64),
}

/// What a gradient is multiplied by, `[1]` in float32, and its norm before, `[1]` in float64.
#[derive(Debug, Clone)]
pub struct Clipped {
    pub scale: Tensor,
    pub norm: Tensor,
}

/// The clipping of gradients that are one vector together; parameters without a gradient count as zeros among `count`.
pub fn clipped(
    gradients: &[Tensor],
    count: usize,
    clipping: Clipping,
    device: &Device,
) -> Result<Clipped> {
    let chunks_of = |gradient: &Tensor| gradient.elem_count().div_ceil(GRADIENT_CHUNK as usize);
    let chunks: usize = gradients.iter().map(chunks_of).sum();
    let squares = unwritten(chunks.max(1), DType::F64, device)?;
    let mut first = 0;
    for gradient in gradients {
        let own = chunks_of(gradient);
        Launch::of("gradient_squares", [own, 1, 1])?
            .read(&gradient.contiguous()?)?
            .written(&squares.narrow(0, first, own)?)?
            .long(gradient.elem_count())
            .run(device)?;
        first += own;
    }
    let clipped = Clipped {
        scale: unwritten(1, DType::F32, device)?,
        norm: unwritten(1, DType::F64, device)?,
    };
    let (mode, limit) = match clipping {
        Clipping::Norm(limit) => (0, limit),
        Clipping::Rms(limit) => (1, limit),
        Clipping::NormaliseRms(limit) => (2, limit),
    };
    Launch::of("clip_scale", [1, 1, 1])?
        .read(&squares)?
        .written(&clipped.scale)?
        .written(&clipped.norm)?
        .count(chunks)?
        .long(count)
        .count(mode)?
        .double(limit)
        .run(device)?;
    Ok(clipped)
}

/// The numbers of one step of AdamW.
#[derive(Debug, Clone, Copy)]
pub struct AdamwNumbers {
    pub beta1: f32,
    pub beta2: f32,
    /// The rate over the first moment's correction.
    pub step: f32,
    /// One over the second moment's correction.
    pub square_scale: f32,
    pub epsilon: f32,
    /// Multiplies the weights: decay.
    pub shrink: f32,
}

/// Weights with their moments, each as long as the other.
#[derive(Debug, Clone, Copy)]
pub struct Moving<'m> {
    pub weights: &'m Tensor,
    pub mean: &'m Tensor,
    pub square: &'m Tensor,
}

/// Changes weights and moments where they stand. The search of a mask that protects nothing begins in the same pass.
pub fn adamw(
    moving: Moving,
    gradient: &Tensor,
    scale: &Tensor,
    numbers: AdamwNumbers,
    search: Option<&MaskSearch>,
) -> Result<()> {
    let count = moving.weights.elem_count();
    Launch::of("adamw_f32", [blocks(count), 1, 1])?
        .written(moving.weights)?
        .read(&gradient.contiguous()?)?
        .written(moving.mean)?
        .written(moving.square)?
        .read(scale)?
        .changed(search.map(|search| &search.counts))?
        .long(count)
        .float(numbers.beta1)
        .float(numbers.beta2)
        .float(numbers.step)
        .float(numbers.square_scale)
        .float(numbers.epsilon)
        .float(numbers.shrink)
        .run(moving.weights.device())
}

/// The lines of a matrix in which some weights are protected: how many lines, how many weights each has, how far lines and
/// their weights are apart, and how many of each line stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProtectedLines {
    pub lines: usize,
    pub length: usize,
    pub line_stride: usize,
    pub stride: usize,
    pub each: usize,
}

/// The search for the smallest magnitude that a matrix keeps.
#[derive(Debug)]
pub struct MaskSearch {
    state: Tensor,
    counts: Tensor,
}

impl MaskSearch {
    /// For the `keep` largest weights, fewer than there are.
    pub fn begin(keep: usize, device: &Device) -> Result<Self> {
        let search = MaskSearch {
            state: unwritten(4, DType::U32, device)?,
            counts: unwritten(MASK_BUCKETS as usize, DType::U32, device)?,
        };
        Launch::of("mask_begin", [1, 1, 1])?
            .written(&search.state)?
            .written(&search.counts)?
            .long(keep)
            .run(device)?;
        Ok(search)
    }

    /// Loses all other weights. `counted` says that [`adamw`] has begun the search.
    pub fn apply(
        self,
        weights: &Tensor,
        protected: Option<ProtectedLines>,
        counted: bool,
    ) -> Result<()> {
        let (count, device) = (weights.elem_count(), weights.device());
        let protected = match protected {
            None => None,
            Some(lines) => {
                let bits = Tensor::zeros(count.div_ceil(32), DType::U32, device)?;
                Launch::of("mask_protect", [lines.lines, 1, 1])?
                    .read(weights)?
                    .written(&bits)?
                    .count(lines.length)?
                    .long(lines.line_stride)
                    .long(lines.stride)
                    .count(lines.each)?
                    .run(device)?;
                Some(bits)
            }
        };
        for level in 0..MASK_LEVELS {
            if level > 0 || !counted {
                Launch::of("mask_count", [blocks(count), 1, 1])?
                    .read(weights)?
                    .optional(protected.as_ref())?
                    .read(&self.state)?
                    .written(&self.counts)?
                    .long(count)
                    .run(device)?;
            }
            Launch::of("mask_narrow", [1, 1, 1])?
                .written(&self.state)?
                .written(&self.counts)?
                .run(device)?;
        }
        let chunks = count.div_ceil(MASK_CHUNK as usize);
        let equals = unwritten(chunks, DType::U32, device)?;
        Launch::of("mask_equals", [chunks, 1, 1])?
            .read(weights)?
            .optional(protected.as_ref())?
            .read(&self.state)?
            .written(&equals)?
            .long(count)
            .run(device)?;
        Launch::of("mask_offsets", [1, 1, 1])?
            .written(&equals)?
            .count(chunks)?
            .run(device)?;
        Launch::of("mask_apply", [chunks, 1, 1])?
            .written(weights)?
            .optional(protected.as_ref())?
            .read(&self.state)?
            .read(&equals)?
            .null()
            .long(count)
            .run(device)
    }
}

/// `KL(softmax(teacher) || softmax(student))` of each row `[rows]`, as a function of the student's logits
/// `[rows, vocabulary]`: the gradient comes from a kernel too.
pub fn kl_divergence(teacher: &Tensor, student: &Tensor) -> Result<Tensor> {
    let teacher = teacher.detach().contiguous()?;
    let logits = student.detach().contiguous()?;
    let (rows, width) = logits.dims2()?;
    let device = logits.device();
    let across = rows.div_ceil(THREADS as usize);
    let state = unwritten((rows, 5), DType::F64, device)?;
    Launch::of("kl_begin", [across, 1, 1])?
        .written(&state)?
        .count(rows)?
        .run(device)?;
    Launch::new("kl_take_in", logits.dtype(), [rows, 1, 1])?
        .read(&teacher)?
        .read(&logits)?
        .written(&state)?
        .count(width)?
        .run(device)?;
    let losses = unwritten(rows, DType::F32, device)?;
    let totals = unwritten((rows, 2), DType::F32, device)?;
    Launch::of("kl_end", [across, 1, 1])?
        .read(&state)?
        .written(&losses)?
        .written(&totals)?
        .count(rows)?
        .run(device)?;
    if !student.track_op() {
        return Ok(losses);
    }
    let slope = unwritten(logits.shape(), logits.dtype(), device)?;
    Launch::new("kl_gradient", logits.dtype(), [rows, 1, 1])?
        .read(&teacher)?
        .read(&logits)?
        .read(&totals)?
        .read(&Tensor::ones(rows, DType::F32, device)?)?
        .written(&slope)?
        .count(width)?
        .run(device)?;
    // The row's product with its slope has this gradient; its value is put in the divergence's place.
    let along = (student * &slope)?.sum(1)?;
    &losses + (&along - along.detach())?
}
