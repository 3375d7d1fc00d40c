//! Getting at a tensor's rows, and working on them from several threads.
//!
//! Work is split between rows only, never inside one, so the split does not change any result.

use candle_core::{CpuStorage, Layout, Result, Tensor, bail};
use rayon::prelude::*;

/// Below this many values a loop is cheaper than waking another thread.
const WORTH_A_THREAD: usize = 16 * 1024;

/// The float32 values of a contiguous CPU storage.
pub fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let CpuStorage::F32(values) = storage else {
        bail!("expected float32 values")
    };
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&values[start..end]),
        None => bail!("expected a contiguous tensor, got {layout:?}"),
    }
}

/// The last dimension of a layout: how many values a row has.
pub fn width(layout: &Layout) -> Result<usize> {
    match layout.dims().last() {
        Some(&width) if width > 0 => Ok(width),
        _ => bail!(
            "expected rows of at least one value, got {:?}",
            layout.shape()
        ),
    }
}

/// A tensor's values, copied out in row order.
pub fn to_vec(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1::<f32>()
}

/// Calls `each(row index, input row, output row)` for all rows, on several threads where that pays.
pub fn map_rows(
    input: &[f32],
    input_width: usize,
    output: &mut [f32],
    output_width: usize,
    each: impl Fn(usize, &[f32], &mut [f32]) + Send + Sync,
) {
    let rows = output.len() / output_width;
    let per_task = (WORTH_A_THREAD / input_width.max(output_width)).max(1);
    let run = |first: usize, block: &mut [f32]| {
        for (offset, out) in block.chunks_exact_mut(output_width).enumerate() {
            let row = first + offset;
            each(row, &input[row * input_width..][..input_width], out);
        }
    };
    if rows <= per_task {
        run(0, output);
    } else {
        output
            .par_chunks_mut(per_task * output_width)
            .enumerate()
            .for_each(|(task, block)| run(task * per_task, block));
    }
}

/// The sum of `[rows, width]` values over the rows: `[width]`, in row order.
pub fn sum_over_rows(values: &[f32], width: usize) -> Vec<f32> {
    let mut total = vec![0f32; width];
    for row in values.chunks_exact(width) {
        for (sum, value) in total.iter_mut().zip(row) {
            *sum += value;
        }
    }
    total
}

/// Calls `read` with a tensor's values without copying them where they are contiguous on the CPU.
pub fn with_values<T>(tensor: &Tensor, read: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let tensor = tensor.to_device(&candle_core::Device::Cpu)?.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        candle_core::Storage::Cpu(storage) => Ok(read(values(storage, layout)?)),
        _ => bail!("expected values on the CPU"),
    }
}

/// The same for two tensors.
pub fn with_two<T>(a: &Tensor, b: &Tensor, read: impl FnOnce(&[f32], &[f32]) -> T) -> Result<T> {
    with_values(a, |a| with_values(b, |b| read(a, b)))?
}
