//! Where the time of a training step goes: a clock for each kind of work, which runs only while somebody measures.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// A kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Products of weights and activations, and of weights and gradients.
    Products,
    WeightGradients,
    Attention,
    AbsTopK,
    Norms,
    /// Nonlinearities, masks and sums.
    Elementwise,
    /// Activations laid out another way.
    Layout,
    /// The losses on logits with their gradients.
    Losses,
    /// AdamW and the weight mask.
    Optimizer,
    /// Weights prepared for a step.
    Preparation,
}

impl Part {
    pub const ALL: [(Part, &'static str); 10] = [
        (Part::Products, "products"),
        (Part::WeightGradients, "weight_gradients"),
        (Part::Attention, "attention"),
        (Part::AbsTopK, "abs_top_k"),
        (Part::Norms, "norms"),
        (Part::Elementwise, "elementwise"),
        (Part::Layout, "layout"),
        (Part::Losses, "losses"),
        (Part::Optimizer, "optimizer"),
        (Part::Preparation, "preparation"),
    ];

    /// The clock of this part runs until what is returned is dropped. Clocks of parts do not contain one another.
    pub fn begin(self) -> Running {
        let started = MEASURES.load(Ordering::Relaxed).then(Instant::now);
        Running {
            part: self,
            started,
        }
    }
}

static MEASURES: AtomicBool = AtomicBool::new(false);
/// Nanoseconds of all threads together, in the order of [`Part::ALL`].
static TAKEN: [AtomicU64; Part::ALL.len()] = [const { AtomicU64::new(0) }; Part::ALL.len()];

/// A clock that runs.
#[derive(Debug)]
pub struct Running {
    part: Part,
    started: Option<Instant>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(started) = self.started {
            let taken = started.elapsed().as_nanos() as u64;
            TAKEN[self.part as usize].fetch_add(taken, Ordering::Relaxed);
        }
    }
}

/// Starts all clocks at zero.
pub fn measure() {
    for taken in &TAKEN {
        taken.store(0, Ordering::Relaxed);
    }
    MEASURES.store(true, Ordering::Relaxed);
}

/// Stops all clocks: what they show, in seconds of all threads together.
pub fn measured() -> impl Iterator<Item = (&'static str, f64)> {
    MEASURES.store(false, Ordering::Relaxed);
    Part::ALL.into_iter().map(|(part, name)| {
        let taken = TAKEN[part as usize].load(Ordering::Relaxed);
        (name, taken as f64 * 1e-9)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_has_its_clock() {
        for (index, (part, _)) in Part::ALL.into_iter().enumerate() {
            assert_eq!(part as usize, index);
        }
    }
}
