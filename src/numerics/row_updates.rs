//! Taking some rows of a tensor out and putting others in their place, wherever the tensor is.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

use super::rows;

/// The rows of `values [_, width]` with these numbers, one after another: `[rows, width]`, in one copy.
pub fn gather(values: &Tensor, rows: &[u32]) -> Result<Vec<f32>> {
    let width = values.dim(1)?;
    if !values.device().is_cpu() {
        let rows = Tensor::new(rows, values.device())?;
        return rows::to_vec(&values.index_select(&rows, 0)?);
    }
    rows::with_values(values, |values| {
        let mut gathered = Vec::with_capacity(rows.len() * width);
        for &row in rows {
            gathered.extend_from_slice(&values[row as usize * width..][..width]);
        }
        gathered
    })
}

/// `values [_, width]` with `replaced [rows, width]` in the place of the rows with these numbers, each named once.
pub fn scatter(values: &Tensor, rows: &[u32], replaced: Vec<f32>) -> Result<Tensor> {
    let shape = (rows.len(), values.dim(1)?);
    let replaced = Tensor::from_vec(replaced, shape, values.device())?;
    if values.device().is_cpu() {
        return values.apply_op2_no_bwd(&replaced, &PutRows(rows));
    }
    let numbers = Tensor::new(rows, values.device())?.reshape((rows.len(), 1))?;
    let numbers = numbers.broadcast_as(shape)?.contiguous()?;
    values.contiguous()?.scatter(&numbers, &replaced, 0)
}

/// The CPU's way: one copy, and the rows over it.
struct PutRows<'r>(&'r [u32]);

impl CustomOp2 for PutRows<'_> {
    fn name(&self) -> &'static str {
        "put-rows"
    }

    fn cpu_fwd(
        &self,
        values: &CpuStorage,
        layout: &Layout,
        replaced: &CpuStorage,
        replaced_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let width = rows::width(layout)?;
        let mut values = rows::values(values, layout)?.to_vec();
        let replaced = rows::values(replaced, replaced_layout)?;
        for (&row, replaced) in self.0.iter().zip(replaced.chunks_exact(width)) {
            let Some(place) = values.get_mut(row as usize * width..(row as usize + 1) * width)
            else {
                bail!("there is no row {row}")
            };
            place.copy_from_slice(replaced);
        }
        Ok((CpuStorage::F32(values), layout.shape().clone()))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn rows_are_taken_out_and_put_back_as_candle_does_it() {
        let values: Vec<f32> = (0..20).map(|value| value as f32).collect();
        let values = Tensor::from_vec(values, (5, 4), &Device::Cpu).expect("a tensor");
        // A part of a larger batch.
        let part = values.narrow(0, 1, 4).expect("rows");
        let rows = [3u32, 0];
        let gathered = gather(&part, &rows).expect("rows");
        assert_eq!(gathered, [16., 17., 18., 19., 4., 5., 6., 7.]);
        let replaced: Vec<f32> = gathered.iter().map(|value| -value).collect();
        let put = scatter(&part, &rows, replaced.clone()).expect("rows");
        let numbers = Tensor::new(&[[3u32; 4], [0; 4]], &Device::Cpu).expect("numbers");
        let source = Tensor::from_vec(replaced, (2, 4), &Device::Cpu).expect("rows");
        let oracle = part
            .contiguous()
            .and_then(|part| part.scatter(&numbers, &source, 0));
        let text = |tensor: &Tensor| tensor.to_vec2::<f32>().expect("values");
        assert_eq!(text(&put), text(&oracle.expect("candle's")));
        assert_eq!(text(&part)[3], [16., 17., 18., 19.], "the original stays");
        assert!(scatter(&part, &[4], vec![0.0; 4]).is_err());
    }
}
