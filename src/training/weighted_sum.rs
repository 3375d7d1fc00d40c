//! A loss of several terms: their weighted sum for the gradient, and each by itself for the figures.

use candle_core::{Result as CandleResult, Tensor};

use super::TrainingError;
use super::run::Loss;

/// The terms of a loss as they are added up.
#[derive(Default)]
pub struct WeightedSum {
    total: Option<Tensor>,
    terms: Vec<(String, Tensor)>,
}

impl WeightedSum {
    /// Adds `weight * term()`; a term of weight zero is not computed.
    pub fn add(
        &mut self,
        name: &str,
        weight: f32,
        term: impl FnOnce() -> CandleResult<Tensor>,
    ) -> CandleResult<()> {
        if weight == 0.0 {
            return Ok(());
        }
        let value = term()?;
        self.add_total(&(&value * f64::from(weight))?)?;
        self.tell(name, Some(value));
        Ok(())
    }

    /// Adds what is weighted already.
    pub fn add_total(&mut self, weighted: &Tensor) -> CandleResult<()> {
        self.total = Some(match self.total.take() {
            Some(total) => (total + weighted)?,
            None => weighted.clone(),
        });
        Ok(())
    }

    /// A term's value, for the figures.
    pub fn tell(&mut self, name: &str, value: Option<Tensor>) {
        self.terms
            .extend(value.map(|value| (name.to_owned(), value)));
    }

    pub fn into_loss(self, tokens: usize) -> Result<Loss, TrainingError> {
        match self.total {
            Some(total) => Ok(Loss {
                total,
                terms: self.terms,
                tokens,
            }),
            None => Err(TrainingError::Recipe(
                "every term of the loss has weight zero".into(),
            )),
        }
    }
}
