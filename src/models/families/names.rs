//! Where a family's file has each of our tensors: a table, and its application.
//!
//! Ours are stacked (`c_attn` is q, k, v) and `[out, in]`; a family's may be apart, packed otherwise, or interleaved head by
//! head. Names come with and without the family's prefix.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor, bail};

use crate::models::config::TransformerConfig;
use crate::models::tensor_names::{FINAL_LOGITS_BIAS, UNEMBEDDING, tensor_shapes};
use crate::numerics::columns::StoredMatrix;

/// Where each tensor is, by its name here without `transformer.` and `h.LAYER.`, `weight` and `bias` left out.
#[derive(Debug)]
pub struct Names {
    /// What may stand before the names outside the unembedding.
    pub prefixes: &'static [&'static str],
    /// The unembedding's name.
    pub unembedding: &'static str,
    pub embedding: &'static str,
    pub final_norm: &'static str,
    /// What stands before a layer's number.
    pub layers: &'static str,
    pub layer: &'static [(&'static str, StoredAt)],
    /// Gains of norms are stored less one.
    pub gains_less_one: bool,
}

/// Where one tensor of a layer is.
#[derive(Debug, Clone, Copy)]
pub enum StoredAt {
    One(&'static str),
    /// One below the other.
    Stacked(&'static [&'static str]),
    /// The first or the second half of the rows.
    Half(&'static str, usize),
    /// Head by head q, k, v; here all heads' q, then all k, then all v.
    HeadByHead(&'static str),
}

impl Names {
    /// The tensors of a model of this configuration out of those of its file. What is left over is an error, as is what is
    /// missing; a bias that the family does not have is zero.
    pub fn translate(
        &self,
        config: &TransformerConfig,
        stored: BTreeMap<String, StoredMatrix>,
    ) -> Result<BTreeMap<String, StoredMatrix>> {
        let mut stored: BTreeMap<String, StoredMatrix> = stored
            .into_iter()
            .map(|(name, tensor)| (self.plain(&name).to_owned(), tensor))
            .collect();
        // A tensor without values may claim any size.
        let sizes = stored.values().map(StoredMatrix::widest);
        let widest = sizes.max().unwrap_or(0);
        let mut used = Vec::new();
        let mut tensors = BTreeMap::new();
        // A configuration may claim more layers than there are tensors.
        if config.n_layers > stored.len() {
            bail!(
                "it has {} tensors, too few for {} layers",
                stored.len(),
                config.n_layers
            )
        }
        for (name, shape) in tensor_shapes(config) {
            if name == FINAL_LOGITS_BIAS {
                continue;
            }
            let tensor = self.find(config, &name, &stored, &mut used)?;
            let tensor = match tensor {
                Some(tensor) => tensor,
                None if name.ends_with(".bias") => {
                    // The matrix that it goes with has as many rows, and is in the file.
                    if shape.iter().any(|&size| size > widest) {
                        bail!("{name} would be {shape:?}; no tensor of the file is so wide")
                    }
                    Tensor::zeros(shape, DType::F32, &Device::Cpu)?.into()
                }
                None => bail!("it has no tensor for {name}"),
            };
            let gain = name.contains("ln_") || name.contains("_norm");
            let tensor = match gain && self.gains_less_one && name.ends_with(".weight") {
                true => (tensor.to_float32()? + 1.0)?.into(),
                false => tensor,
            };
            tensors.insert(name, tensor);
        }
        for name in used {
            stored.remove(&name);
        }
        // A tied matrix may be there by both of its names; whoever reads the tensors compares the two.
        if let Some(unembedding) = stored.remove(self.unembedding) {
            tensors.insert(UNEMBEDDING.to_owned(), unembedding);
        }
        match stored.keys().next() {
            None => Ok(tensors),
            Some(name) => bail!("the tensor {name} is not part of a model of this configuration"),
        }
    }

    fn plain<'n>(&self, name: &'n str) -> &'n str {
        let prefixes = self.prefixes.iter();
        let stripped = prefixes.filter_map(|prefix| name.strip_prefix(prefix));
        stripped.min_by_key(|rest| rest.len()).unwrap_or(name)
    }

    fn find(
        &self,
        config: &TransformerConfig,
        name: &str,
        stored: &BTreeMap<String, StoredMatrix>,
        used: &mut Vec<String>,
    ) -> Result<Option<StoredMatrix>> {
        let mut take = |name: String| -> Option<StoredMatrix> {
            let tensor = stored.get(&name)?.clone();
            used.push(name);
            Some(tensor)
        };
        if name == UNEMBEDDING {
            return Ok(take(self.unembedding.to_owned()));
        }
        let name = name.strip_prefix("transformer.").unwrap_or(name);
        let Some((module, kind)) = name.rsplit_once('.') else {
            return Ok(None);
        };
        if module == "wte" {
            return Ok(take(format!("{}.{kind}", self.embedding)));
        }
        if module == "ln_f" {
            return Ok(take(format!("{}.{kind}", self.final_norm)));
        }
        let Some((layer, module)) = module
            .strip_prefix("h.")
            .and_then(|rest| rest.split_once('.'))
        else {
            return Ok(None);
        };
        let Some((_, place)) = self.layer.iter().find(|(ours, _)| *ours == module) else {
            return Ok(None);
        };
        let mut of_layer = |theirs: &str| take(format!("{}.{layer}.{theirs}.{kind}", self.layers));
        match place {
            StoredAt::One(theirs) => Ok(of_layer(theirs)),
            StoredAt::Stacked(all) => {
                let parts: Vec<Option<StoredMatrix>> =
                    all.iter().map(|theirs| of_layer(theirs)).collect();
                match parts.iter().all(Option::is_none) {
                    true => Ok(None),
                    false => {
                        let parts: Option<Vec<StoredMatrix>> = parts.into_iter().collect();
                        let Some(parts) = parts else {
                            bail!("layer {layer} has some of {} but not all", all.join(", "))
                        };
                        StoredMatrix::stacked(parts)?.kept().map(Some)
                    }
                }
            }
            StoredAt::Half(theirs, half) => match of_layer(theirs) {
                Some(StoredMatrix::Plain(both)) => {
                    let rows = both.dim(0)? / 2;
                    let half = both.narrow(0, half * rows, rows)?.contiguous()?;
                    Ok(Some(half.into()))
                }
                Some(both) => {
                    let rows = both.shape()?.0 / 2;
                    both.outputs(half * rows..(half + 1) * rows).map(Some)
                }
                None => Ok(None),
            },
            StoredAt::HeadByHead(theirs) => match of_layer(theirs) {
                Some(interleaved) => {
                    let interleaved = match interleaved {
                        StoredMatrix::Plain(interleaved) => interleaved,
                        quantised => quantised.to_float32()?,
                    };
                    let mut shape = vec![config.n_heads, 3, config.d_head];
                    let dims = interleaved.dims().to_vec();
                    shape.extend(&dims[1..]);
                    let apart = interleaved.reshape(shape)?.transpose(0, 1)?;
                    Ok(Some(apart.contiguous()?.reshape(dims)?.into()))
                }
                None => Ok(None),
            },
        }
    }
}
