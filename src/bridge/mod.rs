//! Bridges: an encoder and a decoder at every residual site of a sparse model, and the site of its dense partner that each
//! is joined to.
//!
//! At the sparse model's site `i`, encoder `f_i(h_d) = AbsTopK(W h_d + b)` takes the dense stream `[rows, D]` to the sparse one's
//! coordinates `[rows, S]`; decoder `g_i(h_s) = W' h_s + b'` takes it back. Applied to a *change* of the sparse
//! stream, the decoder's bias and its reconstruction error cancel. The dense stream is that at the site which `i` is joined
//! to ([`site_map`]): the one of the same name where both models have as many layers.
//! Source: Gao et al. 2025, arXiv 2511.13653, section 2 of its appendix on bridges.

pub mod fidelity;
pub mod least_squares;
pub mod pair;
pub mod record;
pub mod site_map;

use std::collections::BTreeMap;

use candle_core::{Device, Result, Tensor, bail};

use self::site_map::SiteMap;
use crate::models::layers::{Linear, Purpose, Weights};
use crate::models::location::Site;
use crate::numerics::abs_top_k::abs_top_k;
use crate::numerics::device;

/// The encoders and decoders of all sites of a sparse model; its methods take those sites.
#[derive(Debug, Clone)]
pub struct Bridge {
    pub d_dense: usize,
    pub d_sparse: usize,
    /// Which site of the dense model each of them is joined to.
    pub site_map: SiteMap,
    sites: Vec<SiteBridge>,
}

/// One site's pair of maps.
#[derive(Debug, Clone)]
struct SiteBridge {
    encoder: Linear,
    active: usize,
    decoder: Linear,
    /// `[D, S]`: column `c` is what sparse channel `c` is in the dense stream.
    decoder_weight: Tensor,
}

/// A bridge tensor's name: `site.{index}.encoder.weight [S, D]`, `.encoder.bias [S]`, `.decoder.weight [D, S]`,
/// `.decoder.bias [D]`.
pub fn tensor_name(site: usize, map: &str, part: &str) -> String {
    format!("site.{site}.{map}.{part}")
}

impl Bridge {
    /// From its tensors. `encoder_fraction` of the sparse channels stay active in an encoder's output.
    pub fn new(
        tensors: &BTreeMap<String, Tensor>,
        site_map: SiteMap,
        d_dense: usize,
        d_sparse: usize,
        encoder_fraction: f64,
        purpose: Purpose,
    ) -> Result<Self> {
        let weights = Weights::new(tensors, purpose);
        let active = (encoder_fraction * d_sparse as f64).floor() as usize;
        if active == 0 {
            bail!("an encoder fraction of {encoder_fraction} keeps none of {d_sparse} channels")
        }
        let sites = (0..site_map.n_sites())
            .map(|site| {
                let map = |map: &str, outputs: usize, inputs: usize| {
                    Linear::load(
                        &weights,
                        &format!("site.{site}.{map}"),
                        outputs,
                        inputs,
                        true,
                    )
                };
                Ok(SiteBridge {
                    encoder: map("encoder", d_sparse, d_dense)?,
                    active,
                    decoder: map("decoder", d_dense, d_sparse)?,
                    decoder_weight: weights.get(
                        &tensor_name(site, "decoder", "weight"),
                        &[d_dense, d_sparse],
                    )?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Bridge {
            d_dense,
            d_sparse,
            site_map,
            sites,
        })
    }

    /// The names and shapes of a bridge's tensors.
    pub fn tensor_shapes(
        n_sites: usize,
        d_dense: usize,
        d_sparse: usize,
    ) -> BTreeMap<String, Vec<usize>> {
        let mut shapes = BTreeMap::new();
        for site in 0..n_sites {
            for (map, outputs, inputs) in [
                ("encoder", d_sparse, d_dense),
                ("decoder", d_dense, d_sparse),
            ] {
                shapes.insert(tensor_name(site, map, "weight"), vec![outputs, inputs]);
                shapes.insert(tensor_name(site, map, "bias"), vec![outputs]);
            }
        }
        shapes
    }

    /// `f(h_d)`, of the dense stream where the site is joined: `[rows, D] -> [rows, S]`.
    pub fn encode(&self, site: Site, dense: &Tensor) -> Result<Tensor> {
        let bridge = &self.sites[site.index()];
        let dense = device::moved(dense, self.device())?;
        abs_top_k(&bridge.encoder.forward(&dense)?, bridge.active)
    }

    /// `g(h_s)`, the dense stream where the site is joined: `[rows, S] -> [rows, D]`.
    pub fn decode(&self, site: Site, sparse: &Tensor) -> Result<Tensor> {
        let sparse = device::moved(sparse, self.device())?;
        self.sites[site.index()].decoder.forward(&sparse)
    }

    /// What a change of the sparse stream is in the dense one: `[rows, S] -> [rows, D]`, linear, no bias.
    pub fn decode_change(&self, site: Site, change: &Tensor) -> Result<Tensor> {
        let change = device::moved(change, self.device())?;
        change.matmul(&self.sites[site.index()].decoder_weight.t()?)
    }

    /// Where the bridge is: what it is given may be elsewhere, as a pair's models may be.
    pub fn device(&self) -> &Device {
        let first = self.sites.first();
        first.map_or(&Device::Cpu, |site| site.decoder_weight.device())
    }

    /// The decoder's matrix at a site, `[D, S]`.
    pub fn decoder_weight(&self, site: Site) -> &Tensor {
        &self.sites[site.index()].decoder_weight
    }

    /// Column `channel` of the decoder at a site, `[D]`.
    pub fn decoder_column(&self, site: Site, channel: usize) -> Result<Vec<f32>> {
        self.decoder_weight(site)
            .narrow(1, channel, 1)?
            .flatten_all()?
            .to_vec1()
    }
}

/// Random maps to start training from: small enough that the first hybrids are near the mean activation.
pub fn initial_tensors(
    n_sites: usize,
    d_dense: usize,
    d_sparse: usize,
    mut draw: impl FnMut(&str, &[usize], f64) -> Result<Tensor>,
    device: &Device,
) -> Result<BTreeMap<String, Tensor>> {
    Bridge::tensor_shapes(n_sites, d_dense, d_sparse)
        .into_iter()
        .map(|(name, shape)| {
            let tensor = match shape.as_slice() {
                [_, inputs] => draw(&name, &shape, 0.1 / (*inputs as f64).sqrt())?,
                _ => Tensor::zeros(shape.as_slice(), candle_core::DType::F32, device)?,
            };
            Ok((name, tensor))
        })
        .collect()
}
