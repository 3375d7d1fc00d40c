//! Rotary positions, the cache, and attention over it.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use causeway::numerics::attention::kernel::{Blocks, Heads, Keys, Scores, Values, attend, padded};
use causeway::numerics::kernels::{ATTENTION_CHUNK, POSITIONS};
use causeway::numerics::rotary::{Pairing, Turns, rotate};

use super::emulation::{Emulation, Launch};
use super::values::{
    Element, Noise, assert_alone_as_in_batch, assert_near, assert_same, assert_same_numbers,
    bytes_of_rows, picked,
};

fn rotary_launch<E: Element>(x: &[E], turns: &Turns, pairing: Pairing, back: bool) -> Launch {
    let rows = turns.cosines.len() / turns.pairs;
    Launch::new(format!("rotary_{}", E::SUFFIX), [rows, 1, 1])
        .changed(x)
        .input(&turns.cosines)
        .input(&turns.sines)
        .count(x.len() / rows)
        .count(pairing.d_head)
        .count(turns.pairs)
        .count(usize::from(pairing.neighbours))
        .count(usize::from(back))
}

pub fn rotary<E: Element>(emulation: &mut Emulation) {
    let mut noise = Noise::new(4);
    for (rows, heads, d_head, pairs) in [(1, 1, 2, 1), (257, 3, 10, 4), (64, 4, 64, 32)] {
        let (x, angles) = (
            E::all(&noise.many(rows * heads * d_head)),
            noise.many(rows * pairs),
        );
        let turns = Turns {
            pairs,
            cosines: angles.iter().map(|angle| (9.0 * angle).cos()).collect(),
            sines: angles.iter().map(|angle| (9.0 * angle).sin()).collect(),
        };
        for neighbours in [false, true] {
            let pairing = Pairing { d_head, neighbours };
            for back in [false, true] {
                let mut turned = turns.clone();
                if back {
                    turned.sines.iter_mut().for_each(|sine| *sine = -*sine);
                }
                let shape = (rows, heads * d_head);
                let tensor = Tensor::from_vec(E::values(&x), shape, &Device::Cpu);
                let expected = rotate(&tensor.expect("rows"), &Arc::new(turned), pairing)
                    .and_then(|y| y.flatten_all()?.to_vec1())
                    .expect("turned rows");
                let found = emulation
                    .run(&rotary_launch(&x, &turns, pairing, back))
                    .take::<E>();
                assert_same(&found, &E::all(&expected), "rotary");
            }
        }
        if rows == 64 {
            let pairing = Pairing {
                d_head,
                neighbours: false,
            };
            assert_alone_as_in_batch(rows, "rotary", |rows| {
                let turns = Turns {
                    pairs,
                    cosines: picked(&turns.cosines, pairs, rows),
                    sines: picked(&turns.sines, pairs, rows),
                };
                let x = picked(&x, heads * d_head, rows);
                let left = emulation
                    .run(&rotary_launch(&x, &turns, pairing, false))
                    .take::<E>();
                bytes_of_rows(&left, heads * d_head)
            });
        }
    }
}

const LAYERS: usize = 2;
const LAYER: usize = 1;

/// Sequences, one a row, in a cache of pages that lie in any order.
struct Batch<E> {
    heads: Heads,
    /// Of the row's new token; none is no row.
    positions: Vec<Option<usize>>,
    q: Vec<E>,
    /// Each sequence's keys and values, `[positions, kv width]`.
    keys: Vec<Vec<E>>,
    values: Vec<Vec<E>>,
    sinks: Vec<f32>,
    pages: usize,
    /// `[rows, table_width]`.
    table: Vec<i32>,
    table_width: usize,
}

impl<E: Element> Batch<E> {
    fn new(noise: &mut Noise, heads: Heads, positions: Vec<Option<usize>>) -> Self {
        let longest = positions.iter().flatten().max().map_or(1, |last| last + 1);
        let table_width = longest.div_ceil(POSITIONS as usize);
        let pages = positions.len() * table_width;
        let mut free: Vec<i32> = (0..pages as i32).collect();
        let table = (0..pages).map(|_| free.swap_remove(noise.below(free.len())));
        let table = table.collect();
        let mut sequences = || {
            let lengths = positions.iter().map(|last| last.map_or(0, |last| last + 1));
            let lengths: Vec<usize> = lengths.collect();
            let rows = lengths
                .iter()
                .map(|length| E::all(&noise.many(length * heads.kv_width())));
            rows.collect::<Vec<_>>()
        };
        let (keys, values) = (sequences(), sequences());
        let sinks = (0..heads.count).map(|head| match head % 3 {
            0 => f32::NEG_INFINITY,
            other => other as f32 - 1.5,
        });
        Batch {
            heads,
            q: E::all(&noise.many(positions.len() * heads.width())),
            keys,
            values,
            sinks: sinks.collect(),
            pages,
            table,
            table_width,
            positions,
        }
    }

    /// Numbers of a page in one layer, keys or values.
    fn half(&self) -> usize {
        self.heads.kv_width() * POSITIONS as usize
    }

    /// The pool, filled by `cache_store` and held against `models/kv_cache.rs`'s layout. What was never stored is NaN.
    fn stored(&self, emulation: &mut Emulation) -> Vec<E> {
        let (half, d_head) = (self.half(), self.heads.d_head);
        let stride = 2 * LAYERS * half;
        let mut expected = vec![E::of(f32::NAN); self.pages * stride];
        let (mut sources, mut blocks, mut places) = (vec![0i32], vec![-1i32], vec![0i32]);
        for (row, keys) in self.keys.iter().enumerate() {
            for (position, key) in keys.chunks_exact(self.heads.kv_width()).enumerate() {
                let place = position % POSITIONS as usize;
                let page = self.table[row * self.table_width + position / POSITIONS as usize];
                sources.push(sources.len() as i32 - 1);
                blocks.push(page);
                places.push(place as i32);
                let value = &self.values[row][position * key.len()..][..key.len()];
                let layer = page as usize * stride + 2 * LAYER * half;
                for (c, (&key, &value)) in key.iter().zip(value).enumerate() {
                    expected[layer + c * POSITIONS as usize + place] = key;
                    let head = layer + half + c / d_head * d_head * POSITIONS as usize;
                    expected[head + place * d_head + c % d_head] = value;
                }
            }
        }
        let launch = Launch::new(format!("cache_store_{}", E::SUFFIX), [blocks.len(), 1, 1])
            .input(&self.keys.concat())
            .input(&self.values.concat())
            .changed(&vec![E::of(f32::NAN); self.pages * stride])
            .input(&sources)
            .input(&blocks)
            .input(&places)
            .count(self.heads.kv_count)
            .count(d_head)
            .number(stride as u64)
            .number((2 * LAYER * half) as u64);
        let pool = emulation.run(&launch).take::<E>();
        assert_same(&pool, &expected, "the cache");
        pool
    }

    fn with_heads(&self, launch: Launch) -> Launch {
        let Heads {
            count,
            kv_count,
            d_head,
            scores,
        } = self.heads;
        launch
            .count(count)
            .count(kv_count)
            .count(d_head)
            .number(scores.scale)
            .number(scores.soft_cap.unwrap_or(0.0))
            .count(scores.window.unwrap_or(0))
            .number((2 * LAYERS * self.half()) as u64)
            .number((2 * LAYER * self.half()) as u64)
            .count(self.table_width)
    }

    fn positions(&self, rows: &[usize]) -> Vec<i32> {
        let positions = rows.iter().map(|&row| self.positions[row]);
        positions
            .map(|position| position.map_or(-1, |position| position as i32))
            .collect()
    }

    fn run(&self, emulation: &mut Emulation, pool: &[E], rows: &[usize]) -> Vec<E> {
        let grid = [self.heads.count, rows.len(), 1];
        let launch = Launch::new(format!("attention_{}", E::SUFFIX), grid)
            .input(&picked(&self.q, self.heads.width(), rows))
            .input(pool)
            .input(&picked(&self.table, self.table_width, rows))
            .input(&self.positions(rows))
            .input(&self.sinks)
            .output::<E>(rows.len() * self.heads.width());
        emulation.run(&self.with_heads(launch)).take()
    }

    /// The same in two launches.
    fn run_in_chunks(&self, emulation: &mut Emulation, pool: &[E], rows: &[usize]) -> Vec<E> {
        let Heads {
            count,
            d_head,
            scores,
            ..
        } = self.heads;
        let chunks = (self.table_width * POSITIONS as usize).div_ceil(ATTENTION_CHUNK as usize);
        let grid = [count, rows.len(), chunks];
        // Chunks that no row reaches or sees are left as they are.
        let parts = vec![f32::NAN; rows.len() * count * chunks * (d_head + 2)];
        let launch = Launch::new(format!("attention_chunk_{}", E::SUFFIX), grid)
            .input(&picked(&self.q, self.heads.width(), rows))
            .input(pool)
            .input(&picked(&self.table, self.table_width, rows))
            .input(&self.positions(rows))
            .changed(&parts);
        let parts = emulation.run(&self.with_heads(launch)).take::<f32>();
        let launch = Launch::new(
            format!("attention_join_{}", E::SUFFIX),
            [count, rows.len(), 1],
        )
        .input(&parts)
        .input(&self.positions(rows))
        .input(&self.sinks)
        .output::<E>(rows.len() * self.heads.width())
        .count(count)
        .count(d_head)
        .count(chunks)
        .count(scores.window.unwrap_or(0));
        emulation.run(&launch).take()
    }

    fn oracle(&self) -> Vec<f32> {
        let (d_head, kv_width) = (self.heads.d_head, self.heads.kv_width());
        let mut all = Vec::new();
        for (row, position) in self.positions.iter().enumerate() {
            let Some(position) = *position else {
                all.resize(all.len() + self.heads.width(), 0.0);
                continue;
            };
            let stride = padded(position + 1);
            let (keys, values) = (E::values(&self.keys[row]), E::values(&self.values[row]));
            for head in 0..self.heads.count {
                let first = self.heads.kv_head(head) * d_head;
                let mut by_channel = vec![0.0; d_head * stride];
                for j in 0..=position {
                    for d in 0..d_head {
                        by_channel[d * stride + j] = keys[j * kv_width + first + d];
                    }
                }
                let mut out = vec![0.0; d_head];
                attend(
                    &E::values(&self.q[row * self.heads.width() + head * d_head..][..d_head]),
                    Keys {
                        by_channel: &by_channel,
                        stride,
                        blocks: Blocks::ONE,
                    },
                    Values {
                        rows: &values[first..],
                        stride: kv_width,
                        blocks: Blocks::ONE,
                    },
                    self.sinks[head],
                    position + 1,
                    self.heads.scores,
                    &mut vec![0.0; stride],
                    &mut out,
                );
                all.extend(out);
            }
        }
        all
    }
}

fn heads(count: usize, kv_count: usize, d_head: usize) -> Heads {
    Heads {
        kv_count,
        scores: Scores {
            scale: 0.3,
            soft_cap: None,
            window: None,
        },
        ..Heads::plain(count, d_head)
    }
}

pub fn attention<E: Element>(emulation: &mut Emulation) {
    let mut noise = Noise::new(5);
    let positions: Vec<Option<usize>> = [0, 1, 62, 63, 64, 127, 254, 255, 256, 300, 600]
        .map(Some)
        .into_iter()
        .chain([None])
        .collect();
    let scored = |heads: Heads, soft_cap, window| Heads {
        scores: Scores {
            soft_cap,
            window,
            ..heads.scores
        },
        ..heads
    };
    for (heads, positions) in [
        (heads(1, 1, 1), vec![Some(0)]),
        (heads(3, 3, 16), positions.clone()),
        (heads(4, 2, 7), positions.clone()),
        (scored(heads(3, 1, 33), Some(1.5), None), positions.clone()),
        (scored(heads(2, 2, 16), None, Some(1)), positions.clone()),
        (
            scored(heads(4, 1, 16), Some(2.0), Some(70)),
            positions.clone(),
        ),
        (
            scored(heads(2, 1, 256), None, Some(300)),
            vec![Some(5), Some(700), None],
        ),
        (heads(1, 1, 3), (0..257).map(|row| Some(row % 9)).collect()),
    ] {
        let mut batch = Batch::<E>::new(&mut noise, heads, positions);
        // What is not a number spoils a row that sees it, first of its chunk or not, and no row that does not.
        let kv_width = heads.kv_width();
        let long = |sequence: &&mut Vec<E>| sequence.len() > 256 * kv_width;
        if let Some(keys) = batch.keys.get_mut(9).filter(long) {
            keys[..kv_width].fill(E::of(f32::NAN));
            keys[256 * kv_width..][..kv_width].fill(E::of(f32::NAN));
        }
        if let Some(values) = batch.values.get_mut(8).filter(long) {
            values[..kv_width].fill(E::of(f32::NAN));
        }
        let pool = batch.stored(emulation);
        let rows: Vec<usize> = (0..batch.positions.len()).collect();
        let y = batch.run(emulation, &pool, &rows);
        let what = format!("attention of {heads:?}");
        assert_near(&y, &batch.oracle(), 4e-6, &what);
        let in_chunks = batch.run_in_chunks(emulation, &pool, &rows);
        assert_same_numbers(&in_chunks, &y, &format!("{what} in chunks"));
    }
    let positions = (0..64).map(|row| Some(row % 5 * 66)).collect();
    let batch = Batch::<E>::new(&mut noise, heads(2, 1, 16), positions);
    let pool = batch.stored(emulation);
    assert_alone_as_in_batch(64, "attention", |rows| {
        bytes_of_rows(&batch.run(emulation, &pool, rows), 32)
    });
    assert_alone_as_in_batch(64, "attention in chunks", |rows| {
        bytes_of_rows(&batch.run_in_chunks(emulation, &pool, rows), 32)
    });
}
