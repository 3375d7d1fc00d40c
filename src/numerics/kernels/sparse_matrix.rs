//! A linear layer most of whose weights are zero, on a device: `x [rows, inputs] -> [rows, outputs]`, with the bias.
//!
//! The weights that are not zero are stored twice: by columns within panels of outputs, which few rows read, a block a panel
//! of a row; and by rows, through which many rows go together, a lane a row. Both sum in the same order, so that a row has
//! the same bits alone and in a batch. Where more of the weights are not zero than [`MOST_NONZERO`], the dense product is
//! faster and takes no more memory.

use candle_core::{Device, Result, Tensor, bail};

use super::launch::{Launch, unwritten};
use super::operations::RowNorm;
use super::{LANES, WARPS};
use crate::numerics::rows;

/// The largest share of nonzero weights with which a matrix is taken for sparse.
pub const MOST_NONZERO: f64 = 0.07;
/// With more rows, weights are read once for all of them.
const FEW_ROWS: usize = 8;
/// Outputs of a panel: a block keeps a sum of each for every warp.
const PANEL: usize = 512;
/// Numbers of inputs and of outputs within a panel are kept in sixteen bits.
const MOST_INPUTS: usize = 1 << 16;

/// The weights on their device.
#[derive(Debug, Clone)]
pub struct SparseMatrix {
    outputs: usize,
    inputs: usize,
    columns: Compressed,
    rows: Compressed,
    /// `[outputs]`.
    bias: Option<Tensor>,
}

/// Weights in one of the two orders, with where each run of them begins and which place each has in it.
#[derive(Debug, Clone)]
struct Compressed {
    starts: Tensor,
    places: Tensor,
    weights: Tensor,
}

/// The same being put together on the host.
#[derive(Default)]
struct Runs {
    starts: Vec<u32>,
    /// Unsigned; candle's tensors of sixteen bits have a sign.
    places: Vec<i16>,
    weights: Vec<f32>,
}

impl Runs {
    fn begin(&mut self) {
        self.starts.push(self.weights.len() as u32);
    }

    fn push(&mut self, place: usize, weight: f32) {
        if weight != 0.0 {
            self.places.push(place as u16 as i16);
            self.weights.push(weight);
        }
    }

    fn on(mut self, device: &Device) -> Result<Compressed> {
        if self.weights.is_empty() {
            // A tensor has at least one number; no run names it.
            self.places.push(0);
            self.weights.push(0.0);
        }
        Ok(Compressed {
            starts: Tensor::new(self.starts, device)?,
            places: Tensor::new(self.places, device)?,
            weights: Tensor::new(self.weights, device)?,
        })
    }
}

impl SparseMatrix {
    /// Of `weight [outputs, inputs]`, where it is sparse enough.
    pub fn of(weight: &Tensor, bias: Option<&Tensor>) -> Result<Option<Self>> {
        let (outputs, inputs) = weight.dims2()?;
        let made = rows::with_values(weight, |values| {
            let nonzero = values.iter().filter(|weight| **weight != 0.0).count();
            let sparse = (nonzero as f64) <= MOST_NONZERO * values.len() as f64;
            (sparse && inputs <= MOST_INPUTS && nonzero <= u32::MAX as usize)
                .then(|| compressed(values, outputs, inputs))
        })?;
        let Some((columns, by_rows)) = made else {
            return Ok(None);
        };
        let device = weight.device();
        Ok(Some(SparseMatrix {
            outputs,
            inputs,
            columns: columns.on(device)?,
            rows: by_rows.on(device)?,
            bias: bias.cloned(),
        }))
    }

    /// `[outputs]`.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// Whether so many rows are normed on their way into a product.
    pub fn norms(rows: usize) -> bool {
        rows <= FEW_ROWS
    }

    /// `x [rows, inputs] -> [rows, outputs]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.contiguous()?;
        let (count, inputs) = x.dims2()?;
        if inputs != self.inputs {
            bail!(
                "a layer of {} inputs was given rows of {inputs}",
                self.inputs
            )
        }
        if count <= FEW_ROWS {
            return self.of_normed(&x, None, None);
        }
        let y = unwritten((count, self.outputs), x.dtype(), x.device())?;
        self.by_rows(&x, &y, count)?;
        Ok(y)
    }

    /// Few rows `x [rows, inputs] -> [rows, outputs]`, normed on their way, of each the `active` largest channels alone.
    pub fn of_normed(
        &self,
        x: &Tensor,
        norm: Option<RowNorm>,
        active: Option<usize>,
    ) -> Result<Tensor> {
        let x = x.contiguous()?;
        let (count, _) = x.dims2()?;
        let y = unwritten((count, self.outputs), x.dtype(), x.device())?;
        let panel = PANEL.min(self.outputs);
        let grid = [count, self.outputs.div_ceil(panel), 1];
        Launch::new("norm_top_k_product", x.dtype(), grid)?
            .shared(4 * (self.inputs + WARPS as usize * panel))?
            .read(&x)?
            .optional(norm.map(|norm| norm.gain))?
            .optional(norm.and_then(|norm| norm.bias))?
            .read(&self.columns.starts)?
            .read(&self.columns.places)?
            .read(&self.columns.weights)?
            .optional(self.bias.as_ref())?
            .null()
            .written(&y)?
            .count(self.inputs)?
            .count(self.outputs)?
            .count(panel)?
            .float(norm.map_or(0.0, |norm| norm.epsilon))
            .count(norm.map_or(0, |norm| norm.kind as usize))?
            .count(active.unwrap_or(self.inputs))?
            .run(x.device())?;
        Ok(y)
    }

    fn by_rows(&self, x: &Tensor, y: &Tensor, count: usize) -> Result<()> {
        let lanes = LANES as usize;
        let (across, down) = (self.inputs.div_ceil(lanes), count.div_ceil(lanes));
        let by_channel = unwritten((self.inputs, count), x.dtype(), x.device())?;
        Launch::new("transpose", x.dtype(), [across, down, 1])?
            .read(x)?
            .written(&by_channel)?
            .count(count)?
            .count(self.inputs)?
            .count(count)?
            .run(x.device())?;
        let grid = [self.outputs.div_ceil(lanes), down, 1];
        Launch::new("sparse_product", x.dtype(), grid)?
            .read(&by_channel)?
            .read(&self.rows.starts)?
            .read(&self.rows.places)?
            .read(&self.rows.weights)?
            .optional(self.bias.as_ref())?
            .written(y)?
            .count(count)?
            .count(self.inputs)?
            .count(self.outputs)?
            .count(count)?
            .run(x.device())
    }
}

/// The weights by columns within panels, and by rows.
fn compressed(values: &[f32], outputs: usize, inputs: usize) -> (Runs, Runs) {
    let (mut columns, mut by_rows) = (Runs::default(), Runs::default());
    for first in (0..outputs).step_by(PANEL.min(outputs).max(1)) {
        let end = outputs.min(first + PANEL);
        for input in 0..inputs {
            columns.begin();
            for output in first..end {
                columns.push(output - first, values[output * inputs + input]);
            }
        }
        columns.begin();
    }
    for row in values.chunks_exact(inputs.max(1)) {
        by_rows.begin();
        for (input, &weight) in row.iter().enumerate() {
            by_rows.push(input, weight);
        }
    }
    by_rows.begin();
    (columns, by_rows)
}
