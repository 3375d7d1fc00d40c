//! How faithful a bridge is: NMSE of its maps and KL of the hybrids, per site, on given text.

use candle_core::{Device, Result, Tensor};

use super::Bridge;
use super::record::SiteRecord;
use crate::models::location::Site;
use crate::models::tap::Recorder;
use crate::models::token_rows::TokenRows;
use crate::models::transformer::Transformer;
use crate::numerics::loss::{cross_entropy, kl_divergence, mean, normalised_mean_squared_error};
use crate::numerics::norm::root_mean_square;
use crate::numerics::rows;

/// What held-out text says of a pair.
#[derive(Debug, Clone)]
pub struct Fidelity {
    /// Cross-entropy in nats a token.
    pub dense_loss: f64,
    pub sparse_loss: f64,
    /// KL(dense || sparse) in nats a token.
    pub distillation: f64,
    pub sites: Vec<SiteRecord>,
}

/// Sequences of `length` tokens; `targets` are the tokens after `inputs`.
#[derive(Debug, Clone, Copy)]
pub struct Sequences<'a> {
    pub inputs: &'a [u32],
    pub targets: &'a [u32],
    pub length: usize,
}

/// Measures a pair, and its bridge at the sites `at` of the sparse model.
pub fn measure(
    dense: &Transformer,
    sparse: &Transformer,
    bridge: &Bridge,
    text: Sequences,
    device: &Device,
    at: impl IntoIterator<Item = Site>,
) -> Result<Fidelity> {
    let Sequences {
        inputs,
        targets,
        length,
    } = text;
    let run = |model: &Transformer| -> Result<(Tensor, Vec<Tensor>)> {
        let mut recorder = Recorder::of_sites(model.config.n_layers);
        let mut rows = TokenRows::sequences(inputs, length, device)?;
        let logits = model.forward(&mut rows, &mut recorder)?.detach();
        Ok((
            logits,
            recorder.into_sites().iter().map(Tensor::detach).collect(),
        ))
    };
    let (dense_logits, dense_sites) = run(dense)?;
    let (sparse_logits, sparse_sites) = run(sparse)?;
    let scalar = |t: Tensor| -> Result<f64> { Ok(f64::from(t.to_scalar::<f32>()?)) };
    let targets = Tensor::new(targets, device)?;
    let mut sites = Vec::new();
    for site in at {
        let dense_site = bridge.site_map.dense_of(site);
        let (h_d, h_s) = (
            &dense_sites[dense_site.index()],
            &sparse_sites[site.index()],
        );
        let (encoded, decoded) = (bridge.encode(site, h_d)?, bridge.decode(site, h_s)?);
        let mut rows = TokenRows::sequences(inputs, length, device)?;
        let through_sparse = sparse.tail(site, encoded.clone(), &mut rows)?;
        let through_dense = dense.tail(dense_site, decoded.clone(), &mut rows)?;
        sites.push(SiteRecord {
            site: site.to_string(),
            dense_rms: mean_rms(h_d)?,
            sparse_rms: mean_rms(h_s)?,
            encoder_nmse: scalar(normalised_mean_squared_error(&encoded, h_s)?)?,
            decoder_nmse: scalar(normalised_mean_squared_error(&decoded, h_d)?)?,
            dense_to_sparse_kl: scalar(mean(&kl_divergence(&dense_logits, &through_sparse)?)?)?,
            sparse_to_dense_kl: scalar(mean(&kl_divergence(&dense_logits, &through_dense)?)?)?,
        });
    }
    Ok(Fidelity {
        dense_loss: scalar(mean(&cross_entropy(&dense_logits, &targets)?)?)?,
        sparse_loss: scalar(mean(&cross_entropy(&sparse_logits, &targets)?)?)?,
        distillation: scalar(mean(&kl_divergence(&dense_logits, &sparse_logits)?)?)?,
        sites,
    })
}

/// The mean over rows of the root mean square.
pub fn mean_rms(stream: &Tensor) -> Result<f64> {
    let width = stream.dim(1)?;
    rows::with_values(stream, |values| {
        let each = values
            .chunks_exact(width)
            .map(|row| f64::from(root_mean_square(row, 0.0)));
        each.sum::<f64>() / (values.len() / width) as f64
    })
}
