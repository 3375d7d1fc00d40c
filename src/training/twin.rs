//! The twin term: a bridge on which few channels carry a concept, not only all of them together.
//!
//! A decoder fitted for reconstruction spreads a concept of the dense model over every sparse channel that goes
//! with it. So, at a drawn site, a few channels change places between two sequences: once natively in the sparse
//! model, and once, as a decoded change, in the dense model. With `y` each model's logits and `y'` those after the
//! exchange, three things are asked, each with its weight:
//!
//! ```text
//! bridged         KL(y_d + (y'_s - y_s) || y'_d)    the dense model follows what the exchange did natively
//! native          KL(other's y_s || y'_s)           the few channels suffice inside the sparse model
//! counterfactual  KL(other's y_d || y'_d)           and through the bridge
//! ```
//!
//! The bridged part compares what the exchange *did*, not its outcomes: those differ as far as the two models
//! differ anyway, which no edit should make up for. The first logits of each are constants. The last two parts
//! want sequences that differ in one fact, and take the task pairs only.
//!
//! In the dense model, all of it happens at the site that the drawn one is joined to.
//!
//! Shapes: `streams [sequences * length, S or D]`, sequences `2p` and `2p + 1` are a pair.

use candle_core::{Device, Result, Tensor};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::passes::Passes;
use super::recipe::Twin;
use crate::bridge::Bridge;
use crate::models::location::Site;
use crate::models::token_rows::TokenRows;
use crate::numerics::loss::kl_divergence;
use crate::numerics::rows;

/// The sequences among which values change places, as both models see them.
pub struct TwinBatch<'a> {
    pub ids: &'a [u32],
    pub targets: &'a [u32],
    pub length: usize,
    /// The last so many sequences are minimal pairs of a task.
    pub task_sequences: usize,
    /// The streams of all sites of either model, `[rows, D]` constant and `[rows, S]` in the graph.
    pub dense_sites: &'a [Tensor],
    pub sparse_sites: &'a [Tensor],
    /// The models' own logits, `[rows, V]`.
    pub dense_logits: &'a Tensor,
    pub sparse_logits: &'a Tensor,
}

/// The parts of the term, none where they do not apply.
pub struct TwinLoss {
    pub bridged: Option<Tensor>,
    pub native: Option<Tensor>,
    pub counterfactual: Option<Tensor>,
}

/// The term at one site of the sparse model.
pub fn twin_loss(
    dense: &Passes,
    sparse: &Passes,
    bridge: &Bridge,
    recipe: &Twin,
    batch: &TwinBatch,
    site: Site,
    rng: &mut ChaCha8Rng,
) -> Result<TwinLoss> {
    let device = batch.sparse_logits.device();
    let n_rows = batch.ids.len();
    let stream = &batch.sparse_sites[site.index()];
    let partner_rows = partner_rows(n_rows, batch.length);
    let partners = Tensor::new(partner_rows.as_slice(), device)?;
    let difference = (stream.index_select(&partners, 0)? - stream)?;
    let chosen = choose_channels(
        &difference,
        bridge,
        site,
        recipe.channels,
        batch.length,
        rng,
    )?;
    let change = (difference * chosen)?;

    let mut token_rows = TokenRows::sequences(batch.ids, batch.length, device)?;
    let native_outcome = sparse.tail(site, (stream + &change)?, &mut token_rows)?;
    let decoded = bridge.decode_change(site, &change)?;
    let joined = bridge.site_map.dense_of(site);
    let edited = (&batch.dense_sites[joined.index()] + decoded)?;
    let bridged_outcome = dense.tail(joined, edited, &mut token_rows)?;

    let weights = row_weights(batch, &partner_rows, recipe.decisive_weight);
    let bridged = match recipe.weight > 0.0 {
        true => {
            let done = (&native_outcome - batch.sparse_logits)?;
            let per_row = kl_divergence(&(batch.dense_logits + done)?, &bridged_outcome)?;
            Some(weighted_mean(&per_row, &weights, device)?)
        }
        false => None,
    };
    let rows = batch.task_sequences * batch.length;
    let first = n_rows - rows;
    let as_the_other = |weight: f32, own: &Tensor, outcome: &Tensor| -> Result<Option<Tensor>> {
        if weight == 0.0 || rows == 0 {
            return Ok(None);
        }
        let others = own.detach().index_select(&partners, 0)?;
        let per_row = kl_divergence(&others, outcome)?.narrow(0, first, rows)?;
        weighted_mean(&per_row, &weights[first..], device).map(Some)
    };
    Ok(TwinLoss {
        bridged,
        native: as_the_other(recipe.native_weight, batch.sparse_logits, &native_outcome)?,
        counterfactual: as_the_other(
            recipe.counterfactual_weight,
            batch.dense_logits,
            &bridged_outcome,
        )?,
    })
}

/// For each row the row at the same place in the pair's other sequence.
fn partner_rows(n_rows: usize, length: usize) -> Vec<u32> {
    (0..n_rows)
        .map(|row| (((row / length) ^ 1) * length + row % length) as u32)
        .collect()
}

/// A mask `[rows, S]`: for each pair of sequences up to `most` channels, drawn by the energy that their change
/// carries into the dense stream.
fn choose_channels(
    difference: &Tensor,
    bridge: &Bridge,
    site: Site,
    most: usize,
    length: usize,
    rng: &mut ChaCha8Rng,
) -> Result<Tensor> {
    let (n_rows, width) = difference.dims2()?;
    let reach: Vec<f32> = bridge
        .decoder_weight(site)
        .detach()
        .sqr()?
        .sum(0)?
        .to_vec1()?;
    let changes = rows::to_vec(&difference.detach())?;
    let mut mask = vec![0f32; n_rows * width];
    for pair in 0..n_rows / (2 * length) {
        let first = pair * 2 * length * width;
        let mut energy = vec![0f32; width];
        // The second sequence's change is the first's, negated.
        for row in changes[first..][..length * width].chunks_exact(width) {
            for (energy, change) in energy.iter_mut().zip(row) {
                *energy += change * change;
            }
        }
        for (energy, reach) in energy.iter_mut().zip(&reach) {
            *energy *= reach;
        }
        for channel in draw_by_weight(&energy, draw_count(most, rng), rng) {
            for row in mask[first..][..2 * length * width].chunks_exact_mut(width) {
                row[channel] = 1.0;
            }
        }
    }
    Tensor::from_vec(mask, (n_rows, width), difference.device())
}

/// Between 1 and `most`, small counts as likely as large ones by order of magnitude.
fn draw_count(most: usize, rng: &mut ChaCha8Rng) -> usize {
    let exponent = rng.random_range(0.0..(most as f64 + 1.0).ln());
    (exponent.exp().floor() as usize).clamp(1, most)
}

/// `count` indices without repetition, the largest weights likeliest: half the time simply the largest, else
/// drawn in proportion (the largest of `log weight + Gumbel noise`).
fn draw_by_weight(weights: &[f32], count: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
    let noisy: bool = rng.random();
    let mut keyed: Vec<(f64, usize)> = weights
        .iter()
        .enumerate()
        .filter(|(_, weight)| **weight > 0.0)
        .map(|(index, &weight)| {
            let uniform: f64 = rng.random_range(f64::MIN_POSITIVE..1.0);
            let noise = if noisy { -(-uniform.ln()).ln() } else { 0.0 };
            (f64::from(weight).ln() + noise, index)
        })
        .collect();
    keyed.sort_by(|a, b| b.0.total_cmp(&a.0));
    keyed
        .into_iter()
        .take(count)
        .map(|(_, index)| index)
        .collect()
}

/// One for a row whose successor is the same in both sequences, `decisive` for the others.
fn row_weights(batch: &TwinBatch, partners: &[u32], decisive: f32) -> Vec<f32> {
    let targets = batch.targets;
    let differs = |row: usize| targets[row] != targets[partners[row] as usize];
    (0..targets.len())
        .map(|row| if differs(row) { decisive } else { 1.0 })
        .collect()
}

fn weighted_mean(per_row: &Tensor, weights: &[f32], device: &Device) -> Result<Tensor> {
    let total: f32 = weights.iter().sum();
    (per_row * Tensor::new(weights, device)?)?.sum_all()? / f64::from(total)
}
