//! Training text as token streams, and the batches cut from them.
//!
//! Each source becomes one stream of token ids, its documents separated by the end-of-text token, and one
//! stream of held-out documents. What a batch holds depends on the seed and the step alone, so a resumed
//! training sees what an uninterrupted one would have seen.

use std::path::Path;

use candle_core::{Device, Result as CandleResult, Tensor};
use rand::distr::{Distribution, weighted::WeightedIndex};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::TrainingError;
use super::recipe::{Batches, Source};
use crate::artifacts::text_files::{self, TextDocument};
use crate::bridge::fidelity::Sequences;
use crate::corpus::{CorpusGenerator, Split};
use crate::models::tokenizer::{Tokenizer, TokenizerError};

/// Held-out documents generated for an evaluation.
const HELD_OUT_PROGRAMS: usize = 400;

/// The training and the held-out documents of one source.
pub struct Documents {
    pub train: Vec<String>,
    pub held_out: Vec<String>,
}

/// All documents of a source.
pub fn documents(source: &Source) -> Result<Documents, TrainingError> {
    match source {
        Source::Generated {
            documents, seed, ..
        } => Ok(Documents {
            train: generate(*seed, Split::Train, *documents),
            held_out: generate(*seed, Split::HeldOut, HELD_OUT_PROGRAMS),
        }),
        Source::Directory {
            path,
            held_out_every,
            ..
        } => {
            let all = text_files::read_documents(path)?;
            let (held_out, train): (Vec<_>, Vec<_>) = all
                .into_iter()
                .partition(|document| is_held_out(document, *held_out_every));
            split(path, train, held_out)
        }
        Source::File {
            path,
            held_out_every,
            ..
        } => {
            let mut all = text_files::read_file(path)?;
            // As many as a fixed share, since a file may be small; which, its lines' numbers decide.
            all.sort_by_cached_key(place_in_line);
            let count = (all.len() / *held_out_every as usize).max(1);
            let train = all.split_off(count.min(all.len()));
            split(path, train, all)
        }
    }
}

fn split(
    path: &Path,
    train: Vec<TextDocument>,
    held_out: Vec<TextDocument>,
) -> Result<Documents, TrainingError> {
    if train.is_empty() || held_out.is_empty() {
        let problem = format!(
            "{} has {} documents to train on and {} held out; it needs some of each (held_out_every says how many are)",
            path.display(),
            train.len(),
            held_out.len()
        );
        return Err(TrainingError::Data(problem));
    }
    let texts = |documents: Vec<TextDocument>| documents.into_iter().map(|d| d.text).collect();
    Ok(Documents {
        train: texts(train),
        held_out: texts(held_out),
    })
}

fn generate(seed: u64, split: Split, count: usize) -> Vec<String> {
    (0..count as u64)
        .into_par_iter()
        .map(|index| CorpusGenerator::starting_at(seed, split, index).document())
        .collect()
}

/// An order of documents that their names decide.
fn place_in_line(document: &TextDocument) -> u64 {
    let digest = Sha256::digest(document.path.as_bytes());
    let mut first = [0u8; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_le_bytes(first)
}

/// Whether a document is kept for evaluation: decided by its path, so that adding files moves no other.
pub fn is_held_out(document: &TextDocument, every: u64) -> bool {
    place_in_line(document).is_multiple_of(every)
}

/// One source's tokens.
struct Stream {
    name: &'static str,
    weight: f64,
    train: Vec<u32>,
    held_out: Vec<u32>,
}

/// Everything a training reads.
pub struct TrainingData {
    streams: Vec<Stream>,
}

impl TrainingData {
    /// Reads and tokenises all sources.
    pub fn load(
        sources: &[Source],
        tokenizer: &Tokenizer,
        length: usize,
    ) -> Result<Self, TrainingError> {
        let mut streams = Vec::new();
        for source in sources {
            let documents = documents(source)?;
            let stream = Stream {
                name: source.name(),
                weight: source.weight(),
                train: tokenise(&documents.train, tokenizer)?,
                held_out: tokenise(&documents.held_out, tokenizer)?,
            };
            for (part, tokens) in [("training", &stream.train), ("held-out", &stream.held_out)] {
                if tokens.len() <= length {
                    let problem = format!(
                        "source {}: {} {part} tokens are too few for sequences of {length}",
                        stream.name,
                        tokens.len()
                    );
                    return Err(TrainingError::Data(problem));
                }
            }
            streams.push(stream);
        }
        Ok(TrainingData { streams })
    }

    /// Training tokens of each source, by name.
    pub fn sizes(&self) -> Vec<(&'static str, usize)> {
        self.streams
            .iter()
            .map(|stream| (stream.name, stream.train.len()))
            .collect()
    }

    /// The text sequences of step `step`.
    pub fn batch(&self, batches: &Batches, step: usize) -> Result<Batch, TrainingError> {
        let mut rng = step_rng(batches.seed, step, DRAW_TEXT);
        let weights = self.streams.iter().map(|stream| stream.weight);
        let source =
            WeightedIndex::new(weights).map_err(|error| TrainingError::Data(error.to_string()))?;
        let mut batch = Batch::new(batches.length);
        for _ in 0..batches.sequences {
            let tokens = &self.streams[source.sample(&mut rng)].train;
            let start = rng.random_range(0..tokens.len() - batches.length);
            batch.push(&tokens[start..=start + batches.length]);
        }
        Ok(batch)
    }

    /// `count` consecutive training tokens of real text, of a source drawn by weight; none where no source has
    /// so many.
    pub fn real_window(&self, count: usize, rng: &mut ChaCha8Rng) -> Option<&[u32]> {
        let real: Vec<&Stream> = self
            .streams
            .iter()
            .filter(|stream| stream.name != Source::GENERATED && stream.train.len() > count)
            .collect();
        let weights = WeightedIndex::new(real.iter().map(|stream| stream.weight)).ok()?;
        let tokens = &real[weights.sample(rng)].train;
        let start = rng.random_range(0..tokens.len() - count);
        Some(&tokens[start..start + count])
    }

    /// Held-out sequences of each source, spread evenly over it.
    pub fn held_out(&self, sequences: usize, length: usize) -> Vec<(&'static str, Batch)> {
        let streams = self.streams.iter();
        let cut = |stream: &Stream| spread_sequences(&stream.held_out, sequences, length);
        streams.map(|stream| (stream.name, cut(stream))).collect()
    }

    /// The training and held-out tokens of each source, by name.
    pub fn tokens(&self) -> impl Iterator<Item = (&'static str, &[u32], &[u32])> {
        self.streams
            .iter()
            .map(|s| (s.name, s.train.as_slice(), s.held_out.as_slice()))
    }
}

/// What a random draw is for; draws for different purposes do not share numbers.
pub const DRAW_TEXT: u64 = 0;
pub const DRAW_PAIRS: u64 = 1;
pub const DRAW_SITES: u64 = 2;
pub const DRAW_CHANNELS: u64 = 3;

/// The random numbers of one step and purpose.
pub fn step_rng(seed: u64, step: usize, purpose: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream((step as u64) << 8 | purpose);
    rng
}

/// `sequences` sequences of `length` tokens, spread evenly over more tokens than that.
pub fn spread_sequences(tokens: &[u32], sequences: usize, length: usize) -> Batch {
    let mut batch = Batch::new(length);
    let last = tokens.len() - length - 1;
    for index in 0..sequences {
        let start = last * index / sequences.max(2).saturating_sub(1).max(1);
        batch.push(&tokens[start.min(last)..=start.min(last) + length]);
    }
    batch
}

/// The documents' tokens, each document followed by the end-of-text token.
pub fn tokenise(documents: &[String], tokenizer: &Tokenizer) -> Result<Vec<u32>, TrainingError> {
    let encoded: Vec<Vec<u32>> = documents
        .par_iter()
        .map(|text| tokenizer.encode(text))
        .collect::<Result<_, TokenizerError>>()?;
    let mut tokens = Vec::new();
    for document in encoded {
        tokens.extend(document);
        tokens.extend(tokenizer.end_of_text());
    }
    Ok(tokens)
}

/// Sequences of equal length, with what follows each of their tokens.
#[derive(Debug, Clone)]
pub struct Batch {
    pub length: usize,
    pub inputs: Vec<u32>,
    pub targets: Vec<u32>,
}

impl Batch {
    pub fn new(length: usize) -> Self {
        Batch {
            length,
            inputs: Vec::new(),
            targets: Vec::new(),
        }
    }

    /// Adds a sequence of `length + 1` tokens.
    pub fn push(&mut self, tokens: &[u32]) {
        debug_assert_eq!(tokens.len(), self.length + 1);
        self.inputs.extend_from_slice(&tokens[..self.length]);
        self.targets.extend_from_slice(&tokens[1..]);
    }

    /// Adds the other's sequences.
    pub fn append(&mut self, other: Batch) {
        debug_assert_eq!(self.length, other.length);
        self.inputs.extend(other.inputs);
        self.targets.extend(other.targets);
    }

    /// As a bridge's fidelity is measured on it.
    pub fn text(&self) -> Sequences<'_> {
        Sequences {
            inputs: &self.inputs,
            targets: &self.targets,
            length: self.length,
        }
    }

    pub fn sequences(&self) -> usize {
        self.inputs.len() / self.length
    }

    /// The tokens of `count` sequences from the `first` on.
    pub fn slice(&self, first: usize, count: usize) -> &[u32] {
        &self.inputs[first * self.length..(first + count) * self.length]
    }

    /// `[rows]` u32.
    pub fn targets(&self, device: &Device) -> CandleResult<Tensor> {
        Tensor::new(self.targets.as_slice(), device)
    }
}
