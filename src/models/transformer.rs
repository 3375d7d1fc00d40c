//! The transformer: embedding, layers of attention and MLP, unembedding.
//!
//! `ids [rows] -> logits [rows, vocabulary]`. Dense and sparse models are this one type; they differ by their
//! configuration and by how linear layers hold their weights. A pass can start in the middle ([`Transformer::tail`]),
//! which is what bridges need, and every value on its way goes past a [`ResidualTap`].

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

use super::attention::Attention;
use super::config::{ActiveLocation, Positions, ResidualActivation, TransformerConfig};
use super::layers::{
    Active, Linear, NormLayer, Purpose, QuantisedMatrices, SublayerInput, Weights,
};
use super::location::{Location, Site};
use super::mlp::Mlp;
use super::rotary::RotaryTable;
use super::tap::{NoTap, ResidualTap};
use super::tensor_names::{EMBEDDING, UNEMBEDDING};
use super::token_rows::TokenRows;
use crate::numerics::activation::relu;
use crate::numerics::columns::{Columns, StoredMatrix};
use crate::numerics::{device, kernels};

/// A transformer with its weights.
#[derive(Debug, Clone)]
pub struct Transformer {
    pub config: TransformerConfig,
    embedding: Embedding,
    /// `[context, d_model]` or `[context, positional channels]`.
    positions: Option<Tensor>,
    layers: Vec<Layer>,
    final_norm: NormLayer,
    unembedding: Linear,
    /// `[vocabulary]`, part of the unembedding.
    logits_bias: Option<Tensor>,
    /// `[vocabulary, vocabulary]`.
    bigram_table: Option<Tensor>,
    rotary: Option<RotaryTable>,
}

/// The stream that a token begins with, `[vocabulary, d_model]`.
#[derive(Debug, Clone)]
enum Embedding {
    Table(Tensor),
    /// The outputs of a layer held for inference: the unembedding, where the two are tied, or one that its file has in
    /// fewer bits.
    Outputs(Arc<Columns>),
}

impl Embedding {
    /// `ids [rows] -> [rows, d_model]`.
    fn rows(&self, ids: &Tensor) -> Result<Tensor> {
        match self {
            Embedding::Table(table) => table.index_select(ids, 0)?.to_dtype(DType::F32),
            Embedding::Outputs(columns) => columns.select_outputs(ids),
        }
    }
}

#[derive(Debug, Clone)]
struct Layer {
    attention: Attention,
    mlp: Mlp,
    /// AbsTopK of the stream after the attention and after the MLP.
    active: [Active; 2],
}

impl Transformer {
    /// From a checkpoint's tensors, whose names are the released checkpoints' own.
    pub fn new(
        config: TransformerConfig,
        tensors: &BTreeMap<String, Tensor>,
        purpose: Purpose,
    ) -> Result<Self> {
        Self::stored(config, tensors, &QuantisedMatrices::new(), purpose)
    }

    /// The same of a checkpoint some of whose matrices are quantised.
    pub fn stored(
        config: TransformerConfig,
        tensors: &BTreeMap<String, Tensor>,
        quantised: &QuantisedMatrices,
        purpose: Purpose,
    ) -> Result<Self> {
        config.validate().map_err(candle_core::Error::wrap)?;
        let weights = Weights::new(tensors, purpose).with_quantised(quantised);
        let (vocabulary, d_model) = (config.vocab_size, config.d_model);
        let embedding = weights.matrix(EMBEDDING, [vocabulary, d_model])?;
        let positions = match config.positions {
            Positions::None => None,
            Positions::Added => {
                Some(weights.get("transformer.wpe.weight", &[config.context_length, d_model])?)
            }
            Positions::Concatenated { channels } => {
                Some(weights.get("transformer.wpe.weight", &[config.context_length, channels])?)
            }
        };
        let layers = (0..config.n_layers)
            .map(|layer| {
                Ok(Layer {
                    attention: Attention::load(&weights, &config, layer)?,
                    mlp: Mlp::load(&weights, &config, layer)?,
                    active: [
                        Active::at(&config, ActiveLocation::ResidPostAttn, d_model),
                        Active::at(&config, ActiveLocation::ResidPostMlp, d_model),
                    ],
                })
            })
            .collect::<Result<_>>()?;
        let logits_bias = weights.optional("final_logits_bias", &[vocabulary])?;
        let bigram_table = match config.bigram_table {
            true => Some(weights.get("bigram_table", &[vocabulary, vocabulary])?),
            false => None,
        };
        let unembedding = match config.tied_unembedding {
            true => embedding.clone(),
            false => weights.matrix(UNEMBEDDING, [vocabulary, d_model])?,
        };
        let unembedding = Linear::new(unembedding, logits_bias.clone(), purpose)?;
        let embedding = match (embedding, &unembedding) {
            (_, Linear::Columns(columns)) if config.tied_unembedding && !columns.is_sparse() => {
                Embedding::Outputs(columns.clone())
            }
            (StoredMatrix::Plain(table), _) if kernels::run_on(table.device()) => {
                Embedding::Table(match purpose {
                    Purpose::InferenceInBf16 => table.to_dtype(DType::BF16)?,
                    _ => table,
                })
            }
            (StoredMatrix::Plain(table), _) if table.dtype() == DType::F32 => {
                Embedding::Table(table)
            }
            (stored, _) => Embedding::Outputs(Arc::new(Columns::stored(&stored, None)?)),
        };
        Ok(Transformer {
            final_norm: NormLayer::load(&weights, "transformer.ln_f", &config, d_model)?,
            rotary: config.variant.rotary.as_ref().map(RotaryTable::new),
            unembedding,
            logits_bias,
            embedding,
            positions,
            layers,
            bigram_table,
            config,
        })
    }

    /// `rows -> logits [rows, vocabulary]`.
    pub fn forward(&self, rows: &mut TokenRows, tap: &mut dyn ResidualTap) -> Result<Tensor> {
        let stream = self.embed(rows)?;
        let ids = rows.ids.clone();
        let first = Site::before_attention(0, self.config.n_layers);
        let last = self.run(first, stream, rows, tap)?;
        self.unembed(&last, &ids)
    }

    /// The logits when the stream at `site` is `stream [rows, d_model]`.
    pub fn tail(&self, site: Site, stream: Tensor, rows: &mut TokenRows) -> Result<Tensor> {
        let ids = rows.ids.clone();
        let last = self.run(site, stream, rows, &mut NoTap)?;
        self.unembed(&last, &ids)
    }

    /// The stream at site 0, `[rows, d_model]`.
    pub fn embed(&self, rows: &TokenRows) -> Result<Tensor> {
        let tokens = self.embedding.rows(&rows.ids)?;
        let tokens = match self.config.variant.embedding_scale {
            Some(scale) => (tokens * f64::from(scale))?,
            None => tokens,
        };
        match (&self.positions, self.config.positions) {
            (Some(positions), Positions::Added) => {
                tokens + positions.index_select(&rows.positions, 0)?
            }
            _ => Ok(tokens),
        }
    }

    /// The positional channels `[rows, channels]` that sublayers read beside the stream, where there are any.
    pub fn positional_channels(&self, positions: &Tensor) -> Result<Option<Tensor>> {
        match (&self.positions, self.config.positions) {
            (Some(table), Positions::Concatenated { .. }) => {
                table.index_select(positions, 0).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// From the stream at `from` to the stream at the last site.
    pub fn run(
        &self,
        from: Site,
        stream: Tensor,
        rows: &mut TokenRows,
        tap: &mut dyn ResidualTap,
    ) -> Result<Tensor> {
        self.run_until(None, from, stream, rows, tap)
    }

    /// The same up to the stream at `until`, before anyone has looked at it there.
    pub fn run_until(
        &self,
        until: Option<Site>,
        from: Site,
        stream: Tensor,
        rows: &mut TokenRows,
        tap: &mut dyn ResidualTap,
    ) -> Result<Tensor> {
        let positional = self.positional_channels(&rows.positions)?;
        let turns = self.rotary.as_ref();
        let turns = turns
            .map(|rotary| rotary.turns(&rows.positions))
            .transpose()?;
        let parallel = self.config.variant.parallel_sublayers;
        if parallel && from.index() % 2 == 1 {
            candle_core::bail!(
                "a pass cannot begin at {from}: attention and MLP of this model's layers read the same stream, the one \
                 before both"
            )
        }
        // It may come over a bridge, from a model on another device.
        let mut h = device::moved(&stream, self.device())?;
        // What the MLP of a layer of parallel sublayers reads.
        let mut before_layer = None;
        let sites = Site::all(self.config.n_layers).skip(from.index());
        for site in sites.take_while(|site| Some(*site) != until) {
            h = tap.visit(Location::Site(site), h)?;
            let Some(layer) = self.layers.get(site.index() / 2) else {
                break;
            };
            let (delta, active) = match site.index() % 2 {
                0 => {
                    before_layer = parallel.then(|| h.clone());
                    let (positional, turns) = (positional.as_ref(), turns.as_ref());
                    let delta = layer.attention.forward(&h, positional, turns, rows, tap)?;
                    (delta, layer.active[0])
                }
                _ => {
                    let read = before_layer.as_ref().unwrap_or(&h);
                    let delta = layer.mlp.forward(read, positional.as_ref(), tap)?;
                    (delta, layer.active[1])
                }
            };
            h = (h + delta)?;
            if self.config.residual_activation == ResidualActivation::Relu {
                h = relu(&h)?;
            }
            h = active.forward(h)?;
        }
        Ok(h)
    }

    /// The last site's stream `[rows, d_model]` and the rows' own ids `-> logits [rows, vocabulary]`.
    pub fn unembed(&self, stream: &Tensor, ids: &Tensor) -> Result<Tensor> {
        self.unembed_scaled(stream, ids, None)
    }

    /// The same with `scale [rows, 1]` in place of what the last norm would find.
    pub fn unembed_scaled(
        &self,
        stream: &Tensor,
        ids: &Tensor,
        scale: Option<&Tensor>,
    ) -> Result<Tensor> {
        let normed = self.final_norm.forward_scaled(stream, scale)?;
        let logits = self.unembedding.forward(&normed)?;
        let logits = match self.config.variant.logit_soft_cap.map(f64::from) {
            Some(cap) => ((logits / cap)?.tanh()? * cap)?,
            None => logits,
        };
        self.add_bigrams(logits, ids)
    }

    /// Adds the bigram table's rows of the tokens to their logits, where there is a table.
    pub fn add_bigrams(&self, logits: Tensor, ids: &Tensor) -> Result<Tensor> {
        match &self.bigram_table {
            Some(table) => logits + table.index_select(ids, 0)?,
            None => Ok(logits),
        }
    }

    /// What the last norm multiplies each row of the last site's stream by, `[rows, 1]`.
    pub fn final_norm_scale(&self, stream: &Tensor) -> Result<Tensor> {
        self.final_norm.scale(stream)
    }

    /// Where the model is.
    pub fn device(&self) -> &Device {
        self.final_norm.gain.device()
    }

    /// What a small step along `direction [rows, d_model]` of the last site adds to the logits, per unit of the
    /// norm's divisor, the norm's own change left out: `[rows, vocabulary]`.
    pub fn direct_effect(&self, direction: &Tensor) -> Result<Tensor> {
        let effect = self
            .unembedding
            .forward(&direction.broadcast_mul(&self.final_norm.gain)?)?;
        // The bias is there with and without the step.
        match &self.logits_bias {
            Some(bias) => effect.broadcast_sub(bias),
            None => Ok(effect),
        }
    }

    /// How the sublayer after `site` reads the stream; none at the last site.
    pub fn sublayer_input(&self, site: Site) -> Option<&SublayerInput> {
        let layer = self.layers.get(site.index() / 2)?;
        match site.index() % 2 {
            0 => Some(&layer.attention.input),
            _ => Some(&layer.mlp.input),
        }
    }

    /// The attention probabilities of some heads of one layer within a sequence that begins at position 0, each
    /// `[tokens, tokens]`: a row says how much of each token's values its token takes. `q` and `k` are what stands at
    /// `attn.q` and `attn.k` of all tokens.
    pub fn attention_patterns(
        &self,
        layer: usize,
        heads: &[usize],
        q: &Tensor,
        k: &Tensor,
    ) -> Result<Vec<Vec<f32>>> {
        let Some(found) = self.layers.get(layer) else {
            candle_core::bail!("the model has no layer {layer}")
        };
        if let Some(head) = heads.iter().find(|head| **head >= self.config.n_heads) {
            candle_core::bail!(
                "layer {layer} has {} heads, no head {head}",
                self.config.n_heads
            )
        }
        let tokens = u32::try_from(q.dim(0)?).map_err(candle_core::Error::wrap)?;
        let positions = Tensor::arange(0, tokens, self.device())?;
        let turns = self.rotary.as_ref();
        let turns = turns.map(|rotary| rotary.turns(&positions)).transpose()?;
        found.attention.patterns(q, k, turns.as_ref(), heads)
    }

    /// The linear layers of one layer in the order they are applied: its attention's and its MLP's.
    pub fn layer_linears(&self, layer: usize) -> Option<([&Linear; 4], [&Linear; 2])> {
        let layer = self.layers.get(layer)?;
        Some((layer.attention.linears(), layer.mlp.linears()))
    }

    /// Every linear layer, unembedding included.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.layers
            .iter()
            .flat_map(|layer| {
                layer
                    .attention
                    .linears()
                    .into_iter()
                    .chain(layer.mlp.linears())
                    .chain(layer.mlp.gate())
            })
            .chain([&self.unembedding])
    }
}
