//! Sixteen numbers side by side.
//!
//! Written as values that go through small functions rather than as loops over slices, because the compiler
//! keeps the former in vector registers on every machine and often turns the latter into gathers.

/// The width of [`Lanes`].
pub const LANES: usize = 16;

/// Sixteen float32 values.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub struct Lanes([f32; LANES]);

impl Lanes {
    #[inline(always)]
    pub fn splat(x: f32) -> Self {
        Lanes([x; LANES])
    }

    /// The first sixteen values of a slice, which must have as many.
    #[inline(always)]
    pub fn load(values: &[f32]) -> Self {
        let mut lanes = [0f32; LANES];
        lanes.copy_from_slice(&values[..LANES]);
        Lanes(lanes)
    }

    #[inline(always)]
    pub fn store(self, values: &mut [f32]) {
        values[..LANES].copy_from_slice(&self.0);
    }

    #[inline(always)]
    pub fn map(self, f: impl Fn(f32) -> f32) -> Self {
        let mut out = self;
        for x in &mut out.0 {
            *x = f(*x);
        }
        out
    }

    #[inline(always)]
    pub fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        let mut out = self;
        for (x, &y) in out.0.iter_mut().zip(&other.0) {
            *x = f(*x, y);
        }
        out
    }

    /// `self + a * b`.
    #[inline(always)]
    pub fn add_product(self, a: Self, b: Self) -> Self {
        self.zip(a.zip(b, |a, b| a * b), |sum, product| sum + product)
    }

    #[inline(always)]
    pub fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    /// The sum of the lanes, always in the same order.
    #[inline(always)]
    pub fn sum(self) -> f32 {
        self.0.iter().sum()
    }

    /// The largest of the lanes.
    #[inline(always)]
    pub fn largest(self) -> f32 {
        self.0
            .iter()
            .fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m })
    }
}

impl std::ops::Add for Lanes {
    type Output = Self;

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
}
