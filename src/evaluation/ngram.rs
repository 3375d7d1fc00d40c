//! Counting models to compare losses with: a bigram table and a trigram, both interpolated with lower orders.
//!
//! Jelinek-Mercer: `p = w0 / V + w1 p1(c) + w2 p2(c | b) + w3 p3(c | a b)` with maximum-likelihood parts. The
//! weights depend on how often the context was seen (by powers of two) and are fitted by expectation maximisation
//! on a part of the training tokens that is not counted.

/// Tokens a block, of which some are set aside to fit the weights.
const BLOCK: usize = 512;
/// About this many tokens are set aside.
const FITTED_TOKENS: usize = 200_000;
/// Of a small corpus, at most one block in this many is set aside.
const LEAST_STRIDE: usize = 10;
/// Contexts seen `2^(BUCKETS - 2)` times or more share their weights.
const BUCKETS: usize = 14;
const ITERATIONS: usize = 40;

/// Which contexts a model looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Bigram,
    Trigram,
}

/// Runs of tokens counted by key, in ascending order.
#[derive(Debug, Clone, Default)]
struct SortedCounts {
    keys: Vec<u64>,
    counts: Vec<u32>,
}

impl SortedCounts {
    fn new(mut keys: Vec<u64>) -> Self {
        keys.sort_unstable();
        let mut sorted = SortedCounts::default();
        for key in keys {
            match (sorted.keys.last(), sorted.counts.last_mut()) {
                (Some(&last), Some(count)) if last == key => *count += 1,
                _ => {
                    sorted.keys.push(key);
                    sorted.counts.push(1);
                }
            }
        }
        sorted
    }

    fn get(&self, key: u64) -> u32 {
        self.keys
            .binary_search(&key)
            .map_or(0, |index| self.counts[index])
    }
}

/// Counts of single tokens, pairs and triples, and the blocks that were not counted.
#[derive(Debug, Clone)]
pub struct Counts {
    vocabulary: usize,
    total: u64,
    unigrams: Vec<u64>,
    /// How often a token was the one before another.
    contexts: Vec<u64>,
    bigrams: SortedCounts,
    trigrams: SortedCounts,
    fitted: Vec<Vec<u32>>,
}

impl Counts {
    /// Counts the training tokens of all sources.
    pub fn new(sources: &[&[u32]], vocabulary: usize) -> Self {
        let tokens: usize = sources.iter().map(|source| source.len()).sum();
        let stride = (tokens / FITTED_TOKENS.max(1)).max(LEAST_STRIDE);
        let mut counts = Counts {
            vocabulary,
            total: 0,
            unigrams: vec![0; vocabulary],
            contexts: vec![0; vocabulary],
            bigrams: SortedCounts::default(),
            trigrams: SortedCounts::default(),
            fitted: Vec::new(),
        };
        let (mut bigrams, mut trigrams) = (Vec::with_capacity(tokens), Vec::with_capacity(tokens));
        for source in sources {
            for (index, block) in source.chunks(BLOCK).enumerate() {
                if index % stride == stride / 2 {
                    counts.fitted.push(block.to_vec());
                    continue;
                }
                for (at, &token) in block.iter().enumerate() {
                    counts.total += 1;
                    counts.unigrams[token as usize] += 1;
                    if at >= 1 {
                        counts.contexts[block[at - 1] as usize] += 1;
                        bigrams.push(counts.key(&block[at - 1..=at]));
                    }
                    if at >= 2 {
                        trigrams.push(counts.key(&block[at - 2..=at]));
                    }
                }
            }
        }
        counts.bigrams = SortedCounts::new(bigrams);
        counts.trigrams = SortedCounts::new(trigrams);
        counts
    }

    fn key(&self, tokens: &[u32]) -> u64 {
        tokens.iter().fold(0, |key, &token| {
            key * self.vocabulary as u64 + u64::from(token)
        })
    }

    /// The parts of the interpolation for `next` after `context` (its last two tokens count), and the bucket of
    /// the context.
    fn parts(&self, order: Order, context: &[u32], next: u32) -> ([f64; 4], usize) {
        let ratio = |count: u64, of: u64| {
            if of == 0 {
                0.0
            } else {
                count as f64 / of as f64
            }
        };
        let mut parts = [1.0 / self.vocabulary as f64, 0.0, 0.0, 0.0];
        parts[1] = ratio(self.unigrams[next as usize], self.total);
        let mut seen = 0;
        if let [.., last] = context {
            seen = self.contexts[*last as usize];
            parts[2] = ratio(u64::from(self.bigrams.get(self.key(&[*last, next]))), seen);
        }
        if order == Order::Trigram {
            seen = 0;
            if let [.., before, last] = context {
                seen = u64::from(self.bigrams.get(self.key(&[*before, *last])));
                let key = self.key(&[*before, *last, next]);
                parts[3] = ratio(u64::from(self.trigrams.get(key)), seen);
            }
        }
        // 0, 1, 2-3, 4-7 ...
        let bucket = (u64::BITS - seen.leading_zeros()) as usize;
        (parts, bucket.min(BUCKETS - 1))
    }
}

/// Counts with the weights to read them by.
#[derive(Debug, Clone)]
pub struct Interpolated<'c> {
    counts: &'c Counts,
    order: Order,
    /// Of uniform, unigram, bigram, trigram, for each bucket.
    weights: Vec<[f64; 4]>,
}

impl<'c> Interpolated<'c> {
    /// Fits the weights on the blocks set aside.
    pub fn fit(counts: &'c Counts, order: Order) -> Self {
        let start = match order {
            Order::Bigram => [0.01, 0.19, 0.8, 0.0],
            Order::Trigram => [0.01, 0.09, 0.3, 0.6],
        };
        let mut model = Interpolated {
            counts,
            order,
            weights: vec![start; BUCKETS],
        };
        let observations: Vec<([f64; 4], usize)> = counts
            .fitted
            .iter()
            .flat_map(|block| {
                (1..block.len()).map(|at| counts.parts(order, &block[..at], block[at]))
            })
            .collect();
        for _ in 0..ITERATIONS {
            let mut responsible = vec![[0.0; 4]; BUCKETS];
            for (parts, bucket) in &observations {
                let weights = &model.weights[*bucket];
                let total: f64 = parts
                    .iter()
                    .zip(weights)
                    .map(|(part, weight)| part * weight)
                    .sum();
                if total > 0.0 {
                    for index in 0..4 {
                        responsible[*bucket][index] += parts[index] * weights[index] / total;
                    }
                }
            }
            for (weights, responsible) in model.weights.iter_mut().zip(&responsible) {
                let total: f64 = responsible.iter().sum();
                if total > 0.0 {
                    for (weight, share) in weights.iter_mut().zip(responsible) {
                        // The uniform part keeps the probability of an unseen token above zero.
                        *weight = share / total;
                    }
                    weights[0] = weights[0].max(1e-6);
                }
            }
        }
        model
    }

    /// Probability of `next` after `context`.
    pub fn probability(&self, context: &[u32], next: u32) -> f64 {
        let (parts, bucket) = self.counts.parts(self.order, context, next);
        let weights = &self.weights[bucket];
        let total: f64 = weights.iter().sum();
        parts
            .iter()
            .zip(weights)
            .map(|(part, weight)| part * weight)
            .sum::<f64>()
            / total
    }

    /// Mean cross-entropy in nats over sequences of `length`, each token seeing only its own sequence: what a
    /// transformer given the same sequences sees.
    pub fn loss(&self, inputs: &[u32], targets: &[u32], length: usize) -> f64 {
        let mut total = 0.0;
        for (inputs, targets) in inputs.chunks(length).zip(targets.chunks(length)) {
            for (at, &target) in targets.iter().enumerate() {
                total -= self
                    .probability(&inputs[..=at], target)
                    .max(f64::MIN_POSITIVE)
                    .ln();
            }
        }
        total / targets.len().max(1) as f64
    }
}
