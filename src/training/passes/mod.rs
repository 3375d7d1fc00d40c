//! The forward and backward passes of training.
//!
//! A step runs its models several times: each whole, each from the middle on with the other's stream. On a CPU with
//! AVX-512 or AVX2 a sublayer is one operation here, channel by channel ([`crate::numerics::tiles`]), with a backward pass
//! written by hand: what it needs is kept for each sequence, weights are prepared once a step, and gradients of weights
//! are added up in place ([`gradients`]). Everywhere else, and for models with parts that are not known here, the passes
//! are those of [`Transformer`] and candle's, which are also the oracle of the tests.

pub mod attention;
pub mod gradients;
pub mod layer;
pub mod masked;
pub mod mlp;
pub mod node_masks;
pub mod sequences;
#[cfg(test)]
mod test_masked;
#[cfg(test)]
mod tests;
pub mod unembedding;

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use self::attention::AttentionWeights;
use self::gradients::WeightGradients;
use self::layer::{Context, LinearLayer, Reading, WeightValues};
use self::mlp::MlpWeights;
use self::sequences::Pass;
use self::unembedding::UnembeddingWeights;
use crate::models::config::{ActiveLocation, Norm, TransformerConfig};
use crate::models::layers::Purpose;
use crate::models::location::Site;
use crate::models::tap::Recorder;
use crate::models::token_rows::{Arrangement, TokenRows};
use crate::models::transformer::Transformer;
use crate::numerics::kernels;
use crate::numerics::tiles::processor::{Instructions, Processor};

/// A model as a training runs it.
pub struct Passes {
    pub transformer: Arc<Transformer>,
    fused: Option<Fused>,
}

/// The sublayers as operations of their own.
struct Fused {
    cpu: Processor,
    tensors: BTreeMap<String, Tensor>,
    /// None for a frozen model.
    gradients: Option<Arc<WeightGradients>>,
    weights: StepWeights,
}

/// What is multiplied by at one step.
struct StepWeights {
    layers: Vec<(Arc<AttentionWeights>, Arc<MlpWeights>)>,
    unembedding: Arc<UnembeddingWeights>,
}

impl Passes {
    /// From a checkpoint's tensors. Where they are trained, changes to them show from the next [`Passes::begin_step`] on.
    pub fn new(
        config: TransformerConfig,
        tensors: &BTreeMap<String, Tensor>,
        purpose: Purpose,
    ) -> Result<Self> {
        let host = |device: &Device| device.is_cpu() && !kernels::run_on(device);
        let on_cpu = tensors.values().all(|tensor| host(tensor.device()));
        let cpu = Processor::detect().filter(|_| on_cpu && layer::is_known(&config));
        Self::on(cpu, config, tensors, purpose)
    }

    /// The same with candle's own passes, whatever the processor.
    #[cfg(test)]
    fn composed(
        config: TransformerConfig,
        tensors: &BTreeMap<String, Tensor>,
        purpose: Purpose,
    ) -> Result<Self> {
        Self::on(None, config, tensors, purpose)
    }

    fn on(
        cpu: Option<Processor>,
        config: TransformerConfig,
        tensors: &BTreeMap<String, Tensor>,
        purpose: Purpose,
    ) -> Result<Self> {
        let kind = match cpu.map(Processor::instructions) {
            Some(Instructions::Avx512) => "AVX-512",
            Some(Instructions::Avx2) => "AVX2",
            None => "portable",
        };
        match purpose {
            Purpose::Training => tracing::info!(passes = kind, "a model is ready to be trained"),
            // Searches make many, one a change.
            _ => tracing::debug!(passes = kind, ?purpose, "a model is ready"),
        }
        let transformer = Transformer::new(config, tensors, purpose)?;
        let fused = match cpu {
            Some(cpu) => Some(Fused {
                cpu,
                weights: StepWeights::read(&transformer.config, tensors)?,
                gradients: (purpose == Purpose::Training).then(|| {
                    let fused = tensors.iter().filter(|(name, _)| is_fused(name));
                    Arc::new(WeightGradients::new(fused))
                }),
                tensors: tensors.clone(),
            }),
            None => None,
        };
        Ok(Passes {
            transformer: Arc::new(transformer),
            fused,
        })
    }

    /// Whether the passes are the transformer's own, so that a change of one layer makes everything anew.
    pub fn is_whole(&self) -> bool {
        self.fused.is_none()
    }

    /// A frozen model with one layer's weights changed to those of `tensors`, for masked passes alone: where the sublayers
    /// are operations of their own, its `transformer` stays what it was, and nothing of it is made anew but that layer.
    pub fn with_layer(&self, tensors: &BTreeMap<String, Tensor>, layer: usize) -> Result<Self> {
        let Some(fused) = &self.fused else {
            return Passes::new(self.config().clone(), tensors, Purpose::Frozen);
        };
        let named = Named {
            config: self.config(),
            tensors,
        };
        let mut layers = fused.weights.layers.clone();
        layers[layer] = named.transformer_layer(layer)?;
        Ok(Passes {
            transformer: self.transformer.clone(),
            fused: Some(Fused {
                cpu: fused.cpu,
                tensors: fused.tensors.clone(),
                gradients: None,
                weights: StepWeights {
                    layers,
                    unembedding: fused.weights.unembedding.clone(),
                },
            }),
        })
    }

    pub fn config(&self) -> &TransformerConfig {
        &self.transformer.config
    }

    /// Takes up the weights as they are now; gradients begin at zero.
    pub fn begin_step(&mut self) -> Result<()> {
        if let Some(fused) = &mut self.fused
            && let Some(gradients) = &fused.gradients
        {
            gradients.clear();
            fused.weights = StepWeights::read(&self.transformer.config, &fused.tensors)?;
        }
        Ok(())
    }

    /// The gradients that the backward passes since [`Passes::begin_step`] have added up here; those of other weights
    /// are candle's.
    pub fn gradients(&self) -> Option<&WeightGradients> {
        self.fused.as_ref()?.gradients.as_deref()
    }

    /// The logits and the stream at every site.
    pub fn forward(&self, rows: &mut TokenRows) -> Result<(Tensor, Vec<Tensor>)> {
        let n_layers = self.config().n_layers;
        if self.fused.is_none() {
            let mut recorder = Recorder::of_sites(n_layers);
            let logits = self.transformer.forward(rows, &mut recorder)?;
            return Ok((logits, recorder.into_sites()));
        }
        let mut sites = Vec::new();
        let stream = self.transformer.embed(rows)?;
        let first = Site::before_attention(0, n_layers);
        let logits = self.run(first, stream, rows, |stream| sites.push(stream.clone()))?;
        Ok((logits, sites))
    }

    /// The logits when the stream at `site` is `stream [rows, d_model]`.
    pub fn tail(&self, site: Site, stream: Tensor, rows: &mut TokenRows) -> Result<Tensor> {
        match self.fused {
            Some(_) => self.run(site, stream, rows, |_| ()),
            None => self.transformer.tail(site, stream, rows),
        }
    }

    fn run(
        &self,
        from: Site,
        stream: Tensor,
        rows: &mut TokenRows,
        mut see: impl FnMut(&Tensor),
    ) -> Result<Tensor> {
        let (Some(fused), Arrangement::Sequences { length }) = (&self.fused, &rows.arrangement)
        else {
            return self.transformer.tail(from, stream, rows);
        };
        let mut h = stream.contiguous()?;
        let context = |h: &Tensor| Context {
            cpu: fused.cpu,
            sink: fused.gradients.clone(),
            length: *length,
            keeps: h.track_op(),
            masks: None,
            restricted: Arc::default(),
            scales: None,
        };
        see(&h);
        for site in Site::all(self.config().n_layers).skip(from.index()) {
            let Some((attention, mlp)) = fused.weights.layers.get(site.index() / 2) else {
                break;
            };
            let context = context(&h);
            h = match site.index() % 2 {
                0 => h.apply_op1(Pass::new(context, attention.clone()))?,
                _ => h.apply_op1(Pass::new(context, mlp.clone()))?,
            };
            see(&h);
        }
        let head = Pass::new(context(&h), fused.weights.unembedding.clone());
        let logits = h.apply_op1(head)?;
        self.transformer.add_bigrams(logits, &rows.ids)
    }
}

/// Whether the gradient of a weight of that name is added up by the operations here.
fn is_fused(name: &str) -> bool {
    ![
        "transformer.wte.weight",
        "transformer.wpe.weight",
        "bigram_table",
    ]
    .contains(&name)
}

impl StepWeights {
    fn read(config: &TransformerConfig, tensors: &BTreeMap<String, Tensor>) -> Result<Self> {
        let named = Named { config, tensors };
        let layers = (0..config.n_layers).into_par_iter();
        let layers = layers.map(|layer| named.transformer_layer(layer));
        let bias = "final_logits_bias";
        Ok(StepWeights {
            layers: layers.collect::<Result<_>>()?,
            unembedding: Arc::new(UnembeddingWeights {
                reading: named.reading("transformer.ln_f", None)?,
                unembed: LinearLayer::read(
                    "lm_head.weight".to_owned(),
                    named.tensor("lm_head.weight")?,
                    tensors.get(bias).map(|tensor| (bias.to_owned(), tensor)),
                )?,
            }),
        })
    }
}

/// A model's tensors by name.
struct Named<'a> {
    config: &'a TransformerConfig,
    tensors: &'a BTreeMap<String, Tensor>,
}

impl<'a> Named<'a> {
    fn tensor(&self, name: &str) -> Result<&'a Tensor> {
        match self.tensors.get(name) {
            Some(tensor) => Ok(tensor),
            None => candle_core::bail!("the model has no tensor {name}"),
        }
    }

    /// The sublayers of a layer.
    fn transformer_layer(&self, layer: usize) -> Result<(Arc<AttentionWeights>, Arc<MlpWeights>)> {
        let config = self.config;
        let at = |name: &str| format!("transformer.h.{layer}.{name}");
        let count = |location, width| config.active_count(location, width);
        let (d_model, d_attention) = (config.d_model, config.d_attention());
        let attention = AttentionWeights {
            reading: self.reading(&at("ln_1"), count(ActiveLocation::AttnIn, d_model))?,
            joint: self.layer(&at("attn.c_attn"), config.bias)?,
            project: self.layer(&at("attn.c_proj"), config.bias)?,
            sinks: match config.attention_sinks {
                true => Some(self.values(at("attn.attn_imp.sink_logit"))?),
                false => None,
            },
            heads: config.n_heads,
            d_head: config.d_head,
            active: [
                count(ActiveLocation::AttnQ, d_attention),
                count(ActiveLocation::AttnK, d_attention),
                count(ActiveLocation::AttnV, d_attention),
                count(ActiveLocation::AttnOut, d_model),
            ],
        };
        let mlp = MlpWeights {
            reading: self.reading(&at("ln_2"), count(ActiveLocation::MlpIn, d_model))?,
            expand: self.layer(&at("mlp.c_fc"), config.bias)?,
            project: self.layer(&at("mlp.c_proj"), config.bias)?,
            active: [
                count(ActiveLocation::MlpNeuron, config.d_mlp),
                count(ActiveLocation::MlpOut, d_model),
            ],
        };
        Ok((Arc::new(attention), Arc::new(mlp)))
    }

    fn values(&self, name: String) -> Result<WeightValues> {
        let tensor = self.tensor(&name)?;
        WeightValues::read(name, tensor)
    }

    fn layer(&self, name: &str, has_bias: bool) -> Result<LinearLayer> {
        let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
        let bias = match has_bias {
            true => {
                let tensor = self.tensor(&bias)?;
                Some((bias, tensor))
            }
            false => None,
        };
        let tensor = self.tensor(&weight)?;
        LinearLayer::read(weight, tensor, bias)
    }

    fn reading(&self, name: &str, active: Option<usize>) -> Result<Reading> {
        Ok(Reading {
            kind: self.config.norm,
            gain: self.values(format!("{name}.weight"))?,
            bias: match self.config.norm {
                Norm::Layer => Some(self.values(format!("{name}.bias"))?),
                Norm::Rms | Norm::LayerNoBias => None,
            },
            active,
        })
    }
}
