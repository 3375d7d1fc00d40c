//! Pearson's correlation, pair by pair.

/// Pearson's correlation of two lists of numbers, taken in pair by pair.
#[derive(Debug, Clone, Copy, Default)]
pub struct Correlation {
    count: f64,
    /// The first pair: everything is counted from there, so that what never changes has a variance of exactly zero.
    first: Option<(f64, f64)>,
    sums: [f64; 2],
    squares: [f64; 2],
    products: f64,
}

impl Correlation {
    pub fn add(&mut self, one: f32, other: f32) {
        let (one, other) = (f64::from(one), f64::from(other));
        let first = *self.first.get_or_insert((one, other));
        let (one, other) = (one - first.0, other - first.1);
        self.count += 1.0;
        self.sums = [self.sums[0] + one, self.sums[1] + other];
        self.squares = [self.squares[0] + one * one, self.squares[1] + other * other];
        self.products += one * other;
    }

    /// None where either list never changes.
    pub fn value(&self) -> Option<f64> {
        let [one, other] = self.sums;
        let spread =
            [0, 1].map(|list| self.squares[list] - self.sums[list].powi(2) / self.count.max(1.0));
        let shared = self.products - one * other / self.count.max(1.0);
        let value = shared / (spread[0].sqrt() * spread[1].sqrt());
        (spread[0] > 0.0 && spread[1] > 0.0 && value.is_finite()).then(|| value.clamp(-1.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[(f32, f32)]) -> Option<f64> {
        let mut correlation = Correlation::default();
        for (one, other) in values {
            correlation.add(*one, *other);
        }
        correlation.value()
    }

    #[test]
    fn correlations_are_pearsons() {
        let line = of(&[(1.0, -2.0), (2.0, -4.0), (5.0, -10.0)]);
        assert!((line.expect("both change") + 1.0).abs() < 1e-12);
        // Deviations (-1, 0, 1) and (-1, 1, 0): 1 / 2.
        let half = of(&[(1.0, 1.0), (2.0, 3.0), (3.0, 2.0)]);
        assert!((half.expect("both change") - 0.5).abs() < 1e-12);
        assert_eq!(of(&[(0.1, 1.0), (0.1, 2.0), (0.1, 4.0)]), None);
        assert_eq!(of(&[(1.0, 0.3), (2.0, 0.3)]), None);
        assert_eq!(of(&[]), None);
    }
}
