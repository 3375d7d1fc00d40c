//! The layers every transformer here is made of: linear, norm, AbsTopK, and how their weights are held.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::quantized::QTensor;
use candle_core::{DType, Device, Result, Tensor, bail};

use super::config::{ActiveLocation, Norm, TransformerConfig};
use super::location::{Location, Node};
use super::tap::ResidualTap;
use super::variant::NormPlacement;
use crate::numerics::abs_top_k::abs_top_k;
use crate::numerics::columns::{Columns, StoredMatrix};
use crate::numerics::kernels::dense_matrix::DenseMatrix;
use crate::numerics::kernels::operations::{NormKind, RowNorm};
use crate::numerics::kernels::{self, sparse_matrix::SparseMatrix};
use crate::numerics::{linear, norm};

/// What a model's weights are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Gradients flow to the weights.
    Training,
    /// Gradients flow through the model, not to its weights.
    Frozen,
    /// Like `Frozen`; weights are stored for products alone: by columns on the CPU, and sparse where they are.
    Inference,
    /// Like `Inference`; on a device matrices are held in bfloat16, and so are the rows of products of many rows. Norms,
    /// sums, what is not a product, and the logits stay float32.
    InferenceInBf16,
}

impl Purpose {
    fn is_inference(self) -> bool {
        matches!(self, Purpose::Inference | Purpose::InferenceInBf16)
    }
}

/// The matrices of a checkpoint that are quantised, by name: each of parts one below the other.
pub type QuantisedMatrices = BTreeMap<String, Vec<Arc<QTensor>>>;

/// A checkpoint's tensors by name, handed out once each with their shapes checked.
pub struct Weights<'a> {
    tensors: &'a BTreeMap<String, Tensor>,
    quantised: &'a QuantisedMatrices,
    pub purpose: Purpose,
}

impl<'a> Weights<'a> {
    pub fn new(tensors: &'a BTreeMap<String, Tensor>, purpose: Purpose) -> Self {
        static NONE: QuantisedMatrices = QuantisedMatrices::new();
        Weights {
            tensors,
            quantised: &NONE,
            purpose,
        }
    }

    /// The same with further matrices, which are quantised.
    pub fn with_quantised(self, quantised: &'a QuantisedMatrices) -> Self {
        Weights { quantised, ..self }
    }

    /// Whether layers hold matrices as the file has them.
    fn keeps_precision(&self) -> bool {
        self.purpose.is_inference() && !kernels::run_on(self.device())
    }

    /// The matrix called `name`, as it is held for this purpose; it must have `shape`.
    pub fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<StoredMatrix> {
        let stored = match (self.quantised.get(name), self.tensors.get(name)) {
            (Some(parts), _) => StoredMatrix::Quantised(parts.clone()),
            (None, Some(tensor)) if tensor.dims() == shape && tensor.dtype() != DType::F32 => {
                StoredMatrix::Plain(tensor.detach())
            }
            _ => return self.get(name, &shape).map(StoredMatrix::Plain),
        };
        let (outputs, inputs) = stored.shape()?;
        if [outputs, inputs] != shape {
            bail!(
                "{name} has shape {:?}; expected {shape:?}",
                [outputs, inputs]
            )
        }
        match self.keeps_precision() {
            true => stored.kept(),
            false => stored
                .to_float32()?
                .to_device(self.device())
                .map(StoredMatrix::Plain),
        }
    }

    /// The tensor called `name` in float32; it must have `shape`.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let Some(tensor) = self.tensors.get(name) else {
            bail!("the checkpoint has no tensor {name}; expected one of shape {shape:?}")
        };
        if tensor.dims() != shape {
            bail!("{name} has shape {:?}; expected {shape:?}", tensor.dims())
        }
        if !tensor.dtype().is_float() {
            bail!(
                "{name} holds {:?}; expected floating-point numbers",
                tensor.dtype()
            )
        }
        match self.purpose {
            Purpose::Training => tensor.to_dtype(DType::F32),
            Purpose::Frozen | Purpose::Inference | Purpose::InferenceInBf16 => {
                tensor.detach().to_dtype(DType::F32)
            }
        }
    }

    /// Where the tensors are.
    pub fn device(&self) -> &'a Device {
        let first = self.tensors.values().next();
        first.map_or(&Device::Cpu, Tensor::device)
    }

    /// The same where the checkpoint may leave it out.
    pub fn optional(&self, name: &str, shape: &[usize]) -> Result<Option<Tensor>> {
        match self.tensors.contains_key(name) {
            true => self.get(name, shape).map(Some),
            false => Ok(None),
        }
    }
}

/// `y = W x + b`, rows in, rows out.
#[derive(Debug, Clone)]
pub enum Linear {
    /// Plain matrices: training.
    Matrix {
        weight: Tensor,
        bias: Option<Tensor>,
        frozen: bool,
    },
    /// Inference on the CPU.
    Columns(Arc<Columns>),
    /// Inference on a device.
    Dense(Arc<DenseMatrix>),
    /// Inference on a device, where most weights are zero. The host has them too, for who asks which they are.
    Sparse {
        on_device: Arc<SparseMatrix>,
        columns: Arc<Columns>,
    },
}

impl Linear {
    /// From `weight [out, in]` and `bias [out]`, held as `purpose` needs it.
    pub fn new(weight: StoredMatrix, bias: Option<Tensor>, purpose: Purpose) -> Result<Self> {
        let weight = match weight {
            StoredMatrix::Plain(weight)
                if !purpose.is_inference() || kernels::run_on(weight.device()) =>
            {
                weight
            }
            stored => {
                let columns = Columns::stored(&stored, bias.as_ref())?;
                return Ok(Linear::Columns(Arc::new(columns)));
            }
        };
        if purpose.is_inference() {
            if let Some(matrix) = SparseMatrix::of(&weight, bias.as_ref())? {
                let columns = Columns::new(&weight, bias.as_ref())?;
                return Ok(Linear::Sparse {
                    on_device: Arc::new(matrix),
                    columns: Arc::new(columns),
                });
            }
            let in_bf16 = purpose == Purpose::InferenceInBf16;
            let weight = match in_bf16 {
                true => weight.to_dtype(DType::BF16)?,
                false => weight,
            };
            let matrix = DenseMatrix::new(&weight, bias.as_ref(), in_bf16)?;
            return Ok(Linear::Dense(Arc::new(matrix)));
        }
        let frozen = purpose != Purpose::Training;
        Ok(Linear::Matrix {
            weight,
            bias,
            frozen,
        })
    }

    pub fn load(
        weights: &Weights,
        name: &str,
        outputs: usize,
        inputs: usize,
        bias: bool,
    ) -> Result<Self> {
        let weight = weights.matrix(&format!("{name}.weight"), [outputs, inputs])?;
        let bias = match bias {
            true => Some(weights.get(&format!("{name}.bias"), &[outputs])?),
            false => None,
        };
        Self::new(weight, bias, weights.purpose)
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Linear::Matrix {
                weight,
                bias,
                frozen,
            } => linear::linear(x, weight, bias.as_ref(), *frozen),
            Linear::Columns(columns) => columns.forward(x),
            Linear::Dense(matrix) => matrix.forward(x),
            Linear::Sparse { on_device, .. } if !x.track_op() => on_device.forward(x),
            Linear::Sparse { on_device, .. } => {
                let (outputs, inputs) = self.shape()?;
                let mut weight = vec![0f32; outputs * inputs];
                for (output, row) in weight.chunks_exact_mut(inputs).enumerate() {
                    for (input, value) in self.weights_of_output(output)? {
                        row[input] = value;
                    }
                }
                let weight = Tensor::from_vec(weight, (outputs, inputs), x.device())?;
                linear::linear(x, &weight, on_device.bias(), true)
            }
        }
    }

    /// The matrix that a device multiplies so many rows by while it norms them, where it is one of those.
    fn fused(&self, rows: usize) -> Option<&SparseMatrix> {
        match self {
            Linear::Sparse { on_device, .. } if SparseMatrix::norms(rows) => Some(on_device),
            _ => None,
        }
    }

    /// Outputs and inputs.
    pub fn shape(&self) -> Result<(usize, usize)> {
        match self {
            Linear::Columns(columns) | Linear::Sparse { columns, .. } => Ok(columns.shape()),
            Linear::Dense(matrix) => matrix.shape(),
            Linear::Matrix { weight, .. } => weight.dims2(),
        }
    }

    /// The weights of one input that are not zero, each with the output it adds to, in ascending order.
    pub fn weights_of_input(&self, input: usize) -> Result<Vec<(usize, f32)>> {
        match self {
            Linear::Columns(columns) | Linear::Sparse { columns, .. } => {
                Ok(columns.weights_of_input(input))
            }
            Linear::Dense(matrix) => nonzero(&matrix.of_input(input)?),
            Linear::Matrix { weight, .. } => nonzero(&weight.narrow(1, input, 1)?),
        }
    }

    /// The weights of one output that are not zero, each with the input it reads, in ascending order.
    pub fn weights_of_output(&self, output: usize) -> Result<Vec<(usize, f32)>> {
        match self {
            Linear::Columns(columns) | Linear::Sparse { columns, .. } => {
                Ok(columns.weights_of_output(output))
            }
            Linear::Dense(matrix) => nonzero(&matrix.of_output(output)?),
            Linear::Matrix { weight, .. } => nonzero(&weight.narrow(0, output, 1)?),
        }
    }

    /// The layer's columns, where it is held for inference.
    pub fn columns(&self) -> Option<&Columns> {
        match self {
            Linear::Columns(columns) | Linear::Sparse { columns, .. } => Some(columns),
            Linear::Dense(_) | Linear::Matrix { .. } => None,
        }
    }
}

/// A row's or a column's values that are not zero, with their places.
fn nonzero(values: &Tensor) -> Result<Vec<(usize, f32)>> {
    let values: Vec<f32> = values.flatten_all()?.to_vec1()?;
    let values = values.into_iter().enumerate();
    Ok(values.filter(|(_, weight)| *weight != 0.0).collect())
}

/// RMSNorm or LayerNorm with its weights, or nothing where a model has no norm.
#[derive(Debug, Clone)]
pub struct NormLayer {
    kind: Option<Norm>,
    epsilon: f32,
    /// `[channels]`; ones where there is no norm.
    pub gain: Tensor,
    bias: Option<Tensor>,
}

impl NormLayer {
    /// Of the model's kind, over `channels`.
    pub fn load(
        weights: &Weights,
        name: &str,
        config: &TransformerConfig,
        channels: usize,
    ) -> Result<Self> {
        let gain = weights.get(&format!("{name}.weight"), &[channels])?;
        let bias = match config.norm {
            Norm::Layer => Some(weights.get(&format!("{name}.bias"), &[channels])?),
            Norm::Rms | Norm::LayerNoBias => None,
        };
        Ok(NormLayer {
            kind: Some(config.norm),
            epsilon: config.norm_epsilon(),
            gain,
            bias,
        })
    }

    /// What goes in comes out.
    pub fn none(channels: usize, device: &Device) -> Result<Self> {
        Ok(NormLayer {
            kind: None,
            epsilon: 0.0,
            gain: Tensor::ones(channels, DType::F32, device)?,
            bias: None,
        })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self.kind {
            None => Ok(x.clone()),
            Some(Norm::Rms) => norm::rms_norm(x, &self.gain, self.epsilon),
            Some(Norm::Layer | Norm::LayerNoBias) => {
                norm::layer_norm(x, &self.gain, self.bias.as_ref(), self.epsilon)
            }
        }
    }

    /// The same as a kernel is told of it; none where there is no norm.
    fn of_kernel(&self) -> Option<RowNorm<'_>> {
        let kind = match self.kind? {
            Norm::Rms => NormKind::Rms,
            Norm::Layer | Norm::LayerNoBias => NormKind::Layer,
        };
        Some(RowNorm {
            kind,
            gain: &self.gain,
            bias: self.bias.as_ref(),
            epsilon: self.epsilon,
        })
    }

    /// What each row is multiplied by before the gain, `[rows, 1]`; ones where there is no norm.
    pub fn scale(&self, x: &Tensor) -> Result<Tensor> {
        let centred = match self.kind {
            None => return Tensor::ones((x.dim(0)?, 1), DType::F32, x.device()),
            Some(Norm::Rms) => x.clone(),
            Some(Norm::Layer | Norm::LayerNoBias) => x.broadcast_sub(&x.mean_keepdim(1)?)?,
        };
        let square = centred.sqr()?.mean_keepdim(1)?;
        (square + f64::from(self.epsilon))?.sqrt()?.recip()
    }

    /// The norm with `scale [rows, 1]` in place of what it would find; none is [`NormLayer::forward`].
    pub fn forward_scaled(&self, x: &Tensor, scale: Option<&Tensor>) -> Result<Tensor> {
        let (Some(kind), Some(scale)) = (self.kind, scale) else {
            return self.forward(x);
        };
        let centred = match kind {
            Norm::Rms => x.clone(),
            Norm::Layer | Norm::LayerNoBias => x.broadcast_sub(&x.mean_keepdim(1)?)?,
        };
        let scaled = centred.broadcast_mul(scale)?.broadcast_mul(&self.gain)?;
        match &self.bias {
            Some(bias) => scaled.broadcast_add(bias),
            None => Ok(scaled),
        }
    }

    /// The same over each of the parts of a row that are as wide as the gain.
    pub fn forward_parts(&self, x: &Tensor) -> Result<Tensor> {
        let part = self.gain.elem_count();
        self.forward(&x.reshape(((), part))?)?.reshape(x.shape())
    }
}

/// An AbsTopK at one location of a model, or nothing where the model has none.
#[derive(Debug, Clone, Copy)]
pub struct Active(Option<usize>);

impl Active {
    pub fn at(config: &TransformerConfig, location: ActiveLocation, width: usize) -> Self {
        Active(config.active_count(location, width))
    }

    pub fn forward(self, x: Tensor) -> Result<Tensor> {
        match self.0 {
            Some(k) => abs_top_k(&x, k),
            None => Ok(x),
        }
    }
}

/// How a sublayer reads the residual stream: norm, positional channels joined on, AbsTopK.
#[derive(Debug, Clone)]
pub struct SublayerInput {
    pub norm: NormLayer,
    positional_norm: Option<NormLayer>,
    active: Active,
}

impl SublayerInput {
    /// `names` are the norm's and the positional norm's, `channels` the positional channels (0: none).
    pub fn load(
        weights: &Weights,
        config: &TransformerConfig,
        names: (&str, &str),
        location: ActiveLocation,
    ) -> Result<Self> {
        let positional = config.d_read() - config.d_model;
        Ok(SublayerInput {
            norm: match config.variant.norm_placement {
                NormPlacement::After => NormLayer::none(config.d_model, weights.device())?,
                NormPlacement::Before | NormPlacement::Both => {
                    NormLayer::load(weights, names.0, config, config.d_model)?
                }
            },
            positional_norm: match positional {
                0 => None,
                channels => Some(NormLayer::load(weights, names.1, config, channels)?),
            },
            active: Active::at(config, location, config.d_read()),
        })
    }

    /// What `layers` make of the stream as this sublayer reads it, `[rows, outputs]` each. A device takes the norm, the
    /// AbsTopK and the product of a sparse layer in one launch, where nobody looks at what comes between.
    pub fn read_by<const N: usize>(
        &self,
        (h, positional): (&Tensor, Option<&Tensor>),
        input: Node,
        layers: [&Linear; N],
        tap: &mut dyn ResidualTap,
    ) -> Result<[Tensor; N]> {
        let scale = tap.norm_scale(input);
        let rows = h.dim(0)?;
        let is_plain = scale.is_none() && self.positional_norm.is_none() && !h.track_op();
        let fused = layers.iter().map(|layer| layer.fused(rows)).collect();
        let fused: Option<Vec<&SparseMatrix>> = fused;
        let read: Vec<Tensor> = match fused {
            Some(fused) if is_plain && !tap.looks_at(Location::Node(input)) => {
                let norm = self.norm.of_kernel();
                let product = |matrix: &&SparseMatrix| matrix.of_normed(h, norm, self.active.0);
                fused.iter().map(product).collect::<Result<_>>()?
            }
            _ => {
                let x = self.forward_scaled(h, positional, scale.as_ref())?;
                let x = tap.visit(Location::Node(input), x)?;
                let products = layers.iter().map(|layer| layer.forward(&x));
                products.collect::<Result<_>>()?
            }
        };
        read.try_into()
            .map_err(|_| candle_core::Error::msg("a product for each layer"))
    }

    /// `h [rows, d_model]`, `positional [rows, channels]` `-> [rows, d_read]`.
    pub fn forward(&self, h: &Tensor, positional: Option<&Tensor>) -> Result<Tensor> {
        self.forward_scaled(h, positional, None)
    }

    /// The same with `scale [rows, 1]` in place of what the norm of the stream would find.
    pub fn forward_scaled(
        &self,
        h: &Tensor,
        positional: Option<&Tensor>,
        scale: Option<&Tensor>,
    ) -> Result<Tensor> {
        let x = self.norm.forward_scaled(h, scale)?;
        let x = match (&self.positional_norm, positional) {
            (Some(norm), Some(p)) => Tensor::cat(&[&x, &norm.forward(p)?], 1)?,
            _ => x,
        };
        self.active.forward(x)
    }
}

/// The norm of what a sublayer adds, called `name`, where the model has one.
pub fn output_norm(
    weights: &Weights,
    config: &TransformerConfig,
    name: &str,
) -> Result<Option<NormLayer>> {
    match config.variant.norm_placement {
        NormPlacement::Before => Ok(None),
        NormPlacement::After | NormPlacement::Both => {
            NormLayer::load(weights, name, config, config.d_model).map(Some)
        }
    }
}

/// A head's sink logits `[heads]`; minus infinity where the model has none.
pub fn sinks(
    weights: &Weights,
    config: &TransformerConfig,
    name: &str,
    device: &Device,
) -> Result<Tensor> {
    match config.attention_sinks {
        true => weights.get(name, &[config.n_heads]),
        false => Tensor::full(f32::NEG_INFINITY, config.n_heads, device),
    }
}
