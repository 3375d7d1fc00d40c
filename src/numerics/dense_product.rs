//! The product of two whole float32 matrices, added to a third.

use gemm::Parallelism;

/// A row-major matrix of `rows x columns` values; `transposed` says it is stored as `columns x rows`.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    pub values: &'a [f32],
    pub rows: usize,
    pub columns: usize,
    pub transposed: bool,
}

impl Matrix<'_> {
    /// Distances in values from one row to the next and from one column to the next.
    fn strides(&self) -> (isize, isize) {
        if self.transposed {
            (1, self.rows as isize)
        } else {
            (self.columns as isize, 1)
        }
    }
}

/// More parts than threads: a thread that is held up leaves its parts to the others.
pub fn all_threads() -> Parallelism {
    match rayon::current_num_threads() {
        1 => Parallelism::None,
        several => Parallelism::Rayon(4 * several),
    }
}

/// `output += left * right`, `output` row-major. Sizes that do not go together are a fault of the caller, and panic.
pub fn add_product(output: &mut [f32], left: Matrix, right: Matrix, threads: Parallelism) {
    let (m, n, k) = (left.rows, right.columns, left.columns);
    assert_eq!(
        right.rows, k,
        "a product of {m} x {k} and {} x {n}",
        right.rows
    );
    assert!(left.values.len() == m * k && right.values.len() == k * n && output.len() == m * n);
    let (left_rows, left_columns) = left.strides();
    let (right_rows, right_columns) = right.strides();
    // SAFETY: the sizes were checked against the slices above, the strides stay inside them, and `output` is
    // borrowed mutably, so it overlaps neither input.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            output.as_mut_ptr(),
            1,
            n as isize,
            true,
            left.values.as_ptr(),
            left_columns,
            left_rows,
            right.values.as_ptr(),
            right_columns,
            right_rows,
            1f32,
            1f32,
            false,
            false,
            false,
            threads,
        );
    }
}
