//! How tokens are drawn: a request's parameters, with the range and the default of each. Requests are checked against
//! these ranges, and the API's document reads them too.

use std::collections::BTreeMap;

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Samples of one prompt.
pub const MOST_SAMPLES: usize = 128;
/// A bias lies between this and its negative.
pub const LARGEST_BIAS: f64 = 100.0;

pub const TEMPERATURE: NumberRange = NumberRange::new("temperature", 1.0, 0.0, 2.0);
pub const TOP_P: NumberRange = NumberRange::new("top_p", 1.0, 0.0, 1.0);
pub const MIN_P: NumberRange = NumberRange::new("min_p", 0.0, 0.0, 1.0);
pub const PRESENCE_PENALTY: NumberRange = NumberRange::new("presence_penalty", 0.0, -2.0, 2.0);
pub const FREQUENCY_PENALTY: NumberRange = NumberRange::new("frequency_penalty", 0.0, -2.0, 2.0);
pub const REPETITION_PENALTY: NumberRange = NumberRange {
    excludes_least: true,
    ..NumberRange::new("repetition_penalty", 1.0, 0.0, 10.0)
};
/// All of them.
pub const RANGES: [NumberRange; 6] = [
    TEMPERATURE,
    TOP_P,
    MIN_P,
    PRESENCE_PENALTY,
    FREQUENCY_PENALTY,
    REPETITION_PENALTY,
];

/// The range of one parameter, both ends included unless said.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NumberRange {
    /// The parameter's field.
    pub name: &'static str,
    /// The value of a request that gives none.
    pub default: f64,
    pub least: f64,
    /// The value must be above `least`.
    pub excludes_least: bool,
    pub most: f64,
}

impl NumberRange {
    const fn new(name: &'static str, default: f64, least: f64, most: f64) -> Self {
        NumberRange {
            name,
            default,
            least,
            excludes_least: false,
            most,
        }
    }

    /// Whether a value is not below the range.
    fn has_meaning(&self, value: f64) -> bool {
        match self.excludes_least {
            true => value > self.least,
            false => value >= self.least,
        }
    }

    /// The value, where it lies in the range.
    pub fn check(&self, value: f64) -> Result<f64, OutOfRange> {
        if value <= self.most && self.has_meaning(value) {
            return Ok(value);
        }
        let NumberRange {
            name, least, most, ..
        } = *self;
        let range = match self.excludes_least {
            true => format!("above {least} and at most {most}"),
            false => format!("between {least} and {most}"),
        };
        Err(OutOfRange {
            param: name,
            message: format!("{name} is {value}; it must be {range}"),
        })
    }
}

/// A parameter outside its range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct OutOfRange {
    /// The parameter's field.
    pub param: &'static str,
    pub message: String,
}

/// How a token is drawn from the logits.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Zero takes the most probable token.
    pub temperature: f64,
    /// Zero takes the most probable token.
    pub top_p: f64,
    /// Zero considers all tokens.
    pub top_k: usize,
    pub min_p: f64,
    pub seed: Option<u64>,
    pub logit_bias: BTreeMap<u32, f32>,
    pub presence_penalty: f64,
    pub frequency_penalty: f64,
    /// One leaves the logits as they are.
    pub repetition_penalty: f64,
}

impl Sampling {
    /// Whether some tokens may not be drawn however probable they are.
    pub fn is_limited(&self) -> bool {
        self.top_k > 0 || self.top_p < 1.0 || self.min_p > 0.0
    }

    /// Always the most probable token.
    pub fn greedy() -> Self {
        Sampling {
            temperature: 0.0,
            top_p: TOP_P.default,
            top_k: 0,
            min_p: MIN_P.default,
            seed: None,
            logit_bias: BTreeMap::new(),
            presence_penalty: PRESENCE_PENALTY.default,
            frequency_penalty: FREQUENCY_PENALTY.default,
            repetition_penalty: REPETITION_PENALTY.default,
        }
    }

    /// Refuses what no token can be drawn with: numbers that are not finite or below their ranges, and biases of tokens
    /// that a vocabulary of this size does not have. Numbers above their ranges still say what is meant.
    pub fn check(&self, vocabulary: usize) -> Result<(), OutOfRange> {
        for (range, value) in [
            (TEMPERATURE, self.temperature),
            (TOP_P, self.top_p),
            (MIN_P, self.min_p),
            (PRESENCE_PENALTY, self.presence_penalty),
            (FREQUENCY_PENALTY, self.frequency_penalty),
            (REPETITION_PENALTY, self.repetition_penalty),
        ] {
            if !value.is_finite() || !range.has_meaning(value) {
                range.check(value)?;
            }
        }
        for (&id, &bias) in &self.logit_bias {
            if id as usize >= vocabulary || bias.is_nan() {
                check_bias(id, f64::from(bias), vocabulary)?;
            }
        }
        Ok(())
    }
}

/// Refuses the bias of a token that a vocabulary of this size does not have, and one outside its range.
pub fn check_bias(id: u32, bias: f64, vocabulary: usize) -> Result<(), OutOfRange> {
    let message = if id as usize >= vocabulary {
        let last = vocabulary.saturating_sub(1);
        format!("{id} is no token id of the model; they run from 0 to {last}")
    } else if !(-LARGEST_BIAS..=LARGEST_BIAS).contains(&bias) {
        format!(
            "the bias of token {id} is {bias}; it must be between -{LARGEST_BIAS} and {LARGEST_BIAS}"
        )
    } else {
        return Ok(());
    };
    Err(OutOfRange {
        param: "logit_bias",
        message,
    })
}

/// Numbers the streams that seeds of samples come from; tokens and control arms are drawn from others.
const SAMPLE_STREAMS: u64 = 3 << 60;

/// The seed of one sample of a request. The first sample has the request's own. Those of the others follow from the
/// seed and the sample's number together, so that requests of neighbouring seeds have no sample in common.
pub fn sample_seed(seed: u64, sample: usize) -> u64 {
    if sample == 0 {
        return seed;
    }
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    generator.set_stream(SAMPLE_STREAMS | sample as u64);
    generator.next_u64()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_samples_of_neighbouring_seeds_share_their_seed() {
        let mut seen = BTreeSet::new();
        for seed in [0, 1, 2, 3, u64::MAX] {
            for sample in 0..MOST_SAMPLES {
                assert!(
                    seen.insert(sample_seed(seed, sample)),
                    "{seed}, {sample}: seen before"
                );
            }
        }
        assert_eq!(sample_seed(7, 0), 7);
        assert_eq!(sample_seed(7, 5), sample_seed(7, 5));
    }

    #[test]
    fn ranges_include_their_ends_unless_said() {
        for range in RANGES {
            assert_eq!(range.check(range.default), Ok(range.default));
            assert_eq!(range.check(range.most), Ok(range.most));
            assert_eq!(range.check(range.least).is_err(), range.excludes_least);
            for value in [
                range.most + 0.1,
                range.least - 0.1,
                f64::NAN,
                f64::INFINITY,
                f64::NEG_INFINITY,
            ] {
                let error = range.check(value).expect_err("outside");
                assert_eq!(error.param, range.name);
            }
        }
        assert!(REPETITION_PENALTY.check(f64::MIN_POSITIVE).is_ok());
    }
}
