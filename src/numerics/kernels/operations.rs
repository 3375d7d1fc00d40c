//! Operations on a device, each by one launch of a kernel: the shapes of blocks, and what the kernel is given.
//!
//! Shapes are those of the functions for the CPU in [`super::super`], which call these where their tensors are on a device
//! and nobody asks for gradients; the kernels' files say what each argument is.

use candle_core::{DType, Result, Tensor, bail};

use super::launch::{Launch, unwritten};
use super::{ATTENTION_CHUNK, LANES, THREADS};
use crate::numerics::attention::kernel::Heads;

/// Blocks that keep a large device busy: with fewer, long sequences are divided between blocks.
const FEW_BLOCKS: usize = 256;

/// A norm's kind, as `norm.cu` numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    Rms = 1,
    Layer = 2,
}

/// A norm as kernels that take it on their way are told of it.
#[derive(Debug, Clone, Copy)]
pub struct RowNorm<'n> {
    pub kind: NormKind,
    /// `[width]`, as the bias.
    pub gain: &'n Tensor,
    pub bias: Option<&'n Tensor>,
    pub epsilon: f32,
}

/// `x [rows, width] -> [rows, width]`, of each row the `k` largest in magnitude.
pub fn abs_top_k(x: &Tensor, k: usize) -> Result<Tensor> {
    let (rows, width) = rows_of(x)?;
    let x = x.contiguous()?;
    let y = unwritten(x.shape(), x.dtype(), x.device())?;
    Launch::new("abs_top_k", x.dtype(), [rows, 1, 1])?
        .shared(4 * (width + width.div_ceil(LANES as usize)))?
        .read(&x)?
        .written(&y)?
        .null()
        .null()
        .null()
        .null()
        .count(width)?
        .count(k)?
        .run(x.device())?;
    Ok(y)
}

/// `x [rows, width] -> [rows, width]`; `gain` and `bias` are `[width]`.
pub fn norm(
    x: &Tensor,
    gain: &Tensor,
    bias: Option<&Tensor>,
    epsilon: f32,
    kind: NormKind,
) -> Result<Tensor> {
    let (rows, width) = rows_of(x)?;
    let x = x.contiguous()?;
    let y = unwritten(x.shape(), x.dtype(), x.device())?;
    Launch::new("norm", x.dtype(), [rows, 1, 1])?
        .shared(4 * width)?
        .read(&x)?
        .read(gain)?
        .optional(bias)?
        .written(&y)?
        .count(width)?
        .count(width)?
        .float(epsilon)
        .count(kind as usize)?
        .run(x.device())?;
    Ok(y)
}

/// `x [rows, heads * d_head]` with the pairs of every head turned; `cosines` and `sines` are `[rows, pairs]`.
/// `neighbours` says that channel `2i` is turned with `2i + 1`, not `i` with `i + pairs`.
pub fn rotate(
    x: &Tensor,
    cosines: &Tensor,
    sines: &Tensor,
    d_head: usize,
    neighbours: bool,
) -> Result<Tensor> {
    let (rows, width) = rows_of(x)?;
    // The kernel turns in place.
    let y = x.contiguous()?.copy()?;
    Launch::new("rotary", y.dtype(), [rows, 1, 1])?
        .written(&y)?
        .read(cosines)?
        .read(sines)?
        .count(width)?
        .count(d_head)?
        .count(cosines.dim(1)?)?
        .count(usize::from(neighbours))?
        .count(0)?
        .run(y.device())?;
    Ok(y)
}

/// Where keys and values lie: a pool of blocks, and one layer's place in each of them.
#[derive(Debug, Clone, Copy)]
pub struct CachePlace<'p> {
    /// `[blocks, block stride]`.
    pub pool: &'p Tensor,
    /// Numbers before the layer's in a block.
    pub layer_offset: usize,
}

impl CachePlace<'_> {
    fn block_stride(&self) -> Result<usize> {
        self.pool.dim(1)
    }
}

/// Which row goes where in the cache, a number each: `[entries]`.
#[derive(Debug, Clone)]
pub struct CacheEntries {
    pub sources: Tensor,
    pub blocks: Tensor,
    pub places: Tensor,
}

/// Puts rows of `k` and `v [rows, kv heads * d_head]` into the cache.
pub fn cache_store(
    (k, v): (&Tensor, &Tensor),
    entries: &CacheEntries,
    cache: CachePlace,
    heads: Heads,
) -> Result<()> {
    let (k, v) = (k.contiguous()?, v.contiguous()?);
    Launch::new("cache_store", k.dtype(), [entries.sources.dim(0)?, 1, 1])?
        .read(&k)?
        .read(&v)?
        .written(cache.pool)?
        .read(&entries.sources)?
        .read(&entries.blocks)?
        .read(&entries.places)?
        .count(heads.kv_count)?
        .count(heads.d_head)?
        .long(cache.block_stride()?)
        .long(cache.layer_offset)
        .run(k.device())
}

/// Which blocks hold each row's sequence, and where in it the row stands.
#[derive(Debug, Clone)]
pub struct CachedRows {
    /// `[rows, blocks of the longest]`.
    pub table: Tensor,
    /// `[rows]`.
    pub positions: Tensor,
    /// The last of them.
    pub last_position: usize,
}

/// Attention of `q [rows, heads * d_head]` over the cache: `[rows, heads * d_head]`.
pub fn attention(
    q: &Tensor,
    rows: &CachedRows,
    sinks: &Tensor,
    cache: CachePlace,
    heads: Heads,
) -> Result<Tensor> {
    if heads.d_head > THREADS as usize {
        bail!(
            "heads of {} channels; on a device they have at most {THREADS}",
            heads.d_head
        )
    }
    let q = q.contiguous()?;
    let (count, _) = rows_of(&q)?;
    let y = unwritten(q.shape(), q.dtype(), q.device())?;
    let given = |launch: Launch| -> Result<Launch> {
        let scores = heads.scores;
        launch
            .count(heads.count)?
            .count(heads.kv_count)?
            .count(heads.d_head)?
            .float(scores.scale)
            .float(scores.soft_cap.unwrap_or(0.0))
            .count(scores.window.unwrap_or(0))?
            .long(cache.block_stride()?)
            .long(cache.layer_offset)
            .count(rows.table.dim(1)?)
    };
    let chunks = (rows.last_position + 1).div_ceil(ATTENTION_CHUNK as usize);
    if chunks == 1 || count * heads.count >= FEW_BLOCKS {
        let launch = Launch::new("attention", q.dtype(), [heads.count, count, 1])?
            .read(&q)?
            .read(cache.pool)?
            .read(&rows.table)?
            .read(&rows.positions)?
            .read(sinks)?
            .written(&y)?;
        given(launch)?.run(q.device())?;
        return Ok(y);
    }
    let shape = (count, heads.count, chunks, heads.d_head + 2);
    let parts = unwritten(shape, DType::F32, q.device())?;
    let launch = Launch::new("attention_chunk", q.dtype(), [heads.count, count, chunks])?
        .read(&q)?
        .read(cache.pool)?
        .read(&rows.table)?
        .read(&rows.positions)?
        .written(&parts)?;
    given(launch)?.run(q.device())?;
    Launch::new("attention_join", q.dtype(), [heads.count, count, 1])?
        .read(&parts)?
        .read(&rows.positions)?
        .read(sinks)?
        .written(&y)?
        .count(heads.count)?
        .count(heads.d_head)?
        .count(chunks)?
        .count(heads.scores.window.unwrap_or(0))?
        .run(q.device())?;
    Ok(y)
}

/// How a row's next token is found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenDraw {
    /// One over the temperature; 0 takes the largest logit.
    pub inverse_temperature: f32,
    /// Where in the sum of all weights the draw falls, in `0..1`.
    pub share: f64,
}

/// Weights of a vocabulary that are summed together.
const WEIGHTS_TOGETHER: usize = 64;

/// The next token of each row of `logits [rows, vocabulary]`; none where a logit is not a finite number.
pub fn draw(logits: &Tensor, draws: &[TokenDraw]) -> Result<Vec<Option<u32>>> {
    let (rows, vocabulary) = logits.dims2()?;
    if rows != draws.len() {
        bail!("{} draws from {rows} rows", draws.len())
    }
    let device = logits.device();
    let tokens = unwritten(rows, DType::I32, device)?;
    let inverses: Vec<f32> = draws.iter().map(|draw| draw.inverse_temperature).collect();
    let shares: Vec<f64> = draws.iter().map(|draw| draw.share).collect();
    Launch::new("draw", logits.dtype(), [rows, 1, 1])?
        .shared(4 * vocabulary.div_ceil(WEIGHTS_TOGETHER))?
        .read(&logits.contiguous()?)?
        .read(&Tensor::new(inverses, device)?)?
        .read(&Tensor::new(shares, device)?)?
        .written(&tokens)?
        .count(vocabulary)?
        .run(device)?;
    let tokens = tokens.to_vec1::<i32>()?;
    Ok(tokens
        .into_iter()
        .map(|token| token.try_into().ok())
        .collect())
}

/// Rows and width of a tensor whose last dimension is a row.
fn rows_of(x: &Tensor) -> Result<(usize, usize)> {
    let width = x.dim(candle_core::D::Minus1)?;
    Ok((x.elem_count() / width.max(1), width))
}
