//! How much memory a model takes, by its configuration alone: computed before any of it is there.

use super::config::TransformerConfig;
use super::kv_cache::KvCache;
use super::tensor_names::tensor_shapes;

const BYTES: u64 = size_of::<f32>() as u64;
const MIB: u64 = 1 << 20;

/// What serving one sequence of a model takes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryNeed {
    /// All of its tensors, as f32.
    pub weights: u64,
    /// The keys and values of one sequence as long as the context.
    pub sequence: u64,
}

/// A model that takes more memory than it may.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the weights take {weights_mib} MiB and the key-value cache of one sequence takes {sequence_mib} MiB; together \
     they may take {limit_mib} MiB (limits.max_model_mib): use a smaller model or a shorter context_length, or raise \
     the limit"
)]
pub struct TooLarge {
    pub weights_mib: u64,
    pub sequence_mib: u64,
    pub limit_mib: u64,
}

impl MemoryNeed {
    /// Of a model of any configuration, valid or not; what exceeds all bounds comes out as `u64::MAX`.
    pub fn of(config: &TransformerConfig) -> Self {
        // Layers are all alike, and a stranger's configuration may claim millions of them.
        let values_of = |n_layers: usize| -> u64 {
            let config = TransformerConfig {
                n_layers,
                ..config.clone()
            };
            let shapes = tensor_shapes(&config);
            let values = shapes.values().map(|shape| {
                let sizes = shape.iter().map(|&size| size as u64);
                sizes.fold(1, u64::saturating_mul)
            });
            values.fold(0, u64::saturating_add)
        };
        let (none, one) = (values_of(0), values_of(1));
        let layers = (one - none).saturating_mul(config.n_layers as u64);
        let cached = KvCache::values_per_sequence(config, config.context_length);
        MemoryNeed {
            weights: none.saturating_add(layers).saturating_mul(BYTES),
            sequence: (cached as u64).saturating_mul(BYTES),
        }
    }

    /// Weights and one sequence together, in bytes.
    pub fn total(self) -> u64 {
        self.weights.saturating_add(self.sequence)
    }

    /// Holds the need against a limit in bytes.
    pub fn within(self, limit: u64) -> Result<(), TooLarge> {
        match self.total() <= limit {
            true => Ok(()),
            false => Err(TooLarge {
                weights_mib: self.weights.div_ceil(MIB),
                sequence_mib: self.sequence.div_ceil(MIB),
                limit_mib: limit / MIB,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::config::{Activation, Norm, Positions, ResidualActivation};

    fn config() -> TransformerConfig {
        TransformerConfig {
            n_layers: 3,
            d_model: 16,
            n_heads: 2,
            d_head: 8,
            d_mlp: 64,
            vocab_size: 100,
            context_length: 64,
            norm: Norm::Rms,
            bias: true,
            activation: Activation::Gelu,
            residual_activation: ResidualActivation::Identity,
            positions: Positions::Added,
            active_fraction: None,
            active_locations: Default::default(),
            tied_unembedding: true,
            bigram_table: false,
            attention_sinks: false,
            variant: Default::default(),
        }
    }

    #[test]
    fn the_need_is_that_of_all_tensors_and_of_one_sequence() {
        let values: usize = tensor_shapes(&config())
            .values()
            .map(|shape| shape.iter().product::<usize>())
            .sum();
        let need = MemoryNeed::of(&config());
        assert_eq!(need.weights, 4 * values as u64);
        assert_eq!(need.sequence, 4 * 3 * 2 * 16 * 64);
        assert!(need.within(need.total()).is_ok());
        let refused = need.within(need.total() - 1).expect_err("too large");
        assert!(refused.to_string().contains("limits.max_model_mib"));
    }

    /// Each of these products exceeds 64 bits somewhere.
    #[test]
    fn absurd_sizes_are_too_large_and_overflow_nothing() {
        let huge = usize::MAX / 2;
        for change in [
            (|config, huge| config.n_layers = huge) as fn(&mut TransformerConfig, usize),
            |config, huge| (config.n_heads, config.d_head) = (huge, huge),
            |config, huge| (config.d_model, config.vocab_size) = (huge, huge),
            |config, huge| config.d_mlp = huge,
            |config, huge| config.context_length = huge,
            |config, huge| config.positions = Positions::Concatenated { channels: huge },
            |config, huge| (config.bigram_table, config.vocab_size) = (true, huge),
        ] {
            let mut config = config();
            change(&mut config, huge);
            assert!(
                MemoryNeed::of(&config).within(1 << 40).is_err(),
                "{config:?}"
            );
            assert!(config.validate().is_err(), "{config:?}");
        }
    }
}
