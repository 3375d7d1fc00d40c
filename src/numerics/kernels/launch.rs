//! Launching a kernel: what it is given, as tensors and numbers in its order, and who carries it out.
//!
//! On a CUDA device a launch compiles the kernel at first use and goes to the device's stream. Tensors on the CPU never come
//! here, unless somebody has put [`HostKernels`] in the place of a device ([`stand_in`]): then whatever a device does, the
//! host does by the kernels' own text, and all that surrounds the kernels is run and tested without a device.

use std::sync::RwLock;

use super::argument::Argument;
pub use super::argument::{HostArgument, HostLaunch};
use candle_core::{
    CpuStorage, DType, Device, InplaceOp1, Layout, Result, Shape, Storage, Tensor, bail,
};

/// Carries launches out on the host.
pub trait HostKernels: Send + Sync {
    /// The new bytes of everything that the kernel may write, in its order.
    fn run(&self, launch: &HostLaunch) -> Result<Vec<Vec<u8>>>;
}

static STAND_IN: RwLock<Option<Box<dyn HostKernels>>> = RwLock::new(None);

/// Carries a launch out on a CUDA device, whose buffers are made for it: for tests of the kernels themselves.
pub fn run_bytes(device: &Device, launch: &HostLaunch) -> Result<Vec<Vec<u8>>> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => super::cuda::run_bytes(device, launch),
        _ => bail!("{} cannot be run on {device:?}", launch.kernel),
    }
}

/// Lets the host do what a device would, with tensors on the CPU; `None` ends it. For tests.
pub fn stand_in(kernels: Option<Box<dyn HostKernels>>) {
    *STAND_IN.write().unwrap_or_else(|held| held.into_inner()) = kernels;
}

/// A tensor all of which a launch is to write: on a device it holds whatever was there before.
pub(super) fn unwritten(
    shape: impl Into<Shape>,
    numbers: DType,
    device: &Device,
) -> Result<Tensor> {
    match device.is_cpu() {
        true => Tensor::zeros(shape, numbers, device),
        // SAFETY: the launch that it is made for writes every number that is read afterwards. The tests of kernels fill such
        // buffers with different patterns and expect one result.
        false => unsafe { Tensor::empty(shape, numbers, device) },
    }
}

/// Whether work on this device is done by kernels, not by the functions for the CPU.
pub fn run_on(device: &Device) -> bool {
    match device.is_cpu() {
        true => STAND_IN
            .read()
            .unwrap_or_else(|held| held.into_inner())
            .is_some(),
        false => cfg!(feature = "cuda"),
    }
}

/// One launch of one kernel.
pub struct Launch {
    kernel: String,
    grid: [u32; 3],
    shared: u32,
    arguments: Vec<Argument>,
}

impl Launch {
    /// Of the kernel called `name` for numbers of this type, in so many blocks.
    pub fn new(name: &str, numbers: DType, grid: [usize; 3]) -> Result<Self> {
        let suffix = match numbers {
            DType::F32 => "f32",
            DType::BF16 => "bf16",
            other => bail!("there is no {name} for {other:?}; f32 and bf16 have one"),
        };
        Self::of(&format!("{name}_{suffix}"), grid)
    }

    /// Of the kernel with this whole name.
    pub fn of(kernel: &str, grid: [usize; 3]) -> Result<Self> {
        let mut blocks = [0; 3];
        for (blocks, wanted) in blocks.iter_mut().zip(grid) {
            *blocks = count_of(wanted)?;
        }
        Ok(Launch {
            kernel: kernel.to_owned(),
            grid: blocks,
            shared: 0,
            arguments: Vec::new(),
        })
    }

    /// Bytes of dynamic shared memory.
    pub fn shared(self, bytes: usize) -> Result<Self> {
        Ok(Launch {
            shared: count_of(bytes)?,
            ..self
        })
    }

    fn with(mut self, argument: Argument) -> Self {
        self.arguments.push(argument);
        self
    }

    pub fn read(self, tensor: &Tensor) -> Result<Self> {
        whole(tensor)?;
        Ok(self.with(Argument::Read(tensor.clone())))
    }

    pub fn optional(self, tensor: Option<&Tensor>) -> Result<Self> {
        match tensor {
            Some(tensor) => self.read(tensor),
            None => Ok(self.null()),
        }
    }

    /// A tensor that the kernel changes where it stands: nothing else may read it meanwhile.
    pub fn written(self, tensor: &Tensor) -> Result<Self> {
        whole(tensor)?;
        Ok(self.with(Argument::Written(tensor.clone())))
    }

    /// The same where there may be none.
    pub fn changed(self, tensor: Option<&Tensor>) -> Result<Self> {
        match tensor {
            Some(tensor) => self.written(tensor),
            None => Ok(self.null()),
        }
    }

    pub fn null(self) -> Self {
        self.with(Argument::Null)
    }

    pub fn count(self, value: usize) -> Result<Self> {
        let value = count_of(value)?;
        Ok(self.with(Argument::Count(value)))
    }

    pub fn long(self, value: usize) -> Self {
        self.with(Argument::Long(value as u64))
    }

    pub fn float(self, value: f32) -> Self {
        self.with(Argument::Float(value))
    }

    pub fn double(self, value: f64) -> Self {
        self.with(Argument::Double(value))
    }

    /// Carries it out on the device where its tensors are. A grid without blocks does nothing.
    pub fn run(self, device: &Device) -> Result<()> {
        if self.grid.contains(&0) {
            return Ok(());
        }
        match device {
            Device::Cpu => self.run_on_host(),
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => super::cuda::launch(
                device,
                &self.kernel,
                self.grid,
                self.shared,
                &self.arguments,
            ),
            _ => bail!("{} cannot be run on {device:?}", self.kernel),
        }
    }

    fn run_on_host(self) -> Result<()> {
        let held = STAND_IN.read().unwrap_or_else(|held| held.into_inner());
        let Some(kernels) = &*held else {
            bail!(
                "{} is a kernel for devices, and its tensors are on the CPU",
                self.kernel
            )
        };
        let (mut arguments, mut written) = (Vec::new(), Vec::new());
        for argument in &self.arguments {
            arguments.push(match argument {
                Argument::Read(tensor) => HostArgument::Read(bytes_of(tensor)?),
                Argument::Written(tensor) => {
                    written.push(tensor);
                    HostArgument::Written(bytes_of(tensor)?)
                }
                Argument::Null => HostArgument::Null,
                Argument::Count(value) => HostArgument::Number(value.to_le_bytes().to_vec()),
                Argument::Long(value) => HostArgument::Number(value.to_le_bytes().to_vec()),
                Argument::Float(value) => HostArgument::Number(value.to_le_bytes().to_vec()),
                Argument::Double(value) => HostArgument::Number(value.to_le_bytes().to_vec()),
            });
        }
        let left = kernels.run(&HostLaunch {
            kernel: self.kernel,
            grid: self.grid,
            shared: self.shared,
            arguments,
        })?;
        for (tensor, bytes) in written.into_iter().zip(&left) {
            tensor.inplace_op1(&Filled(bytes))?;
        }
        Ok(())
    }
}

fn count_of(value: usize) -> Result<u32> {
    u32::try_from(value).map_err(candle_core::Error::wrap)
}

/// Kernels are given where a tensor begins and what stands behind it.
fn whole(tensor: &Tensor) -> Result<()> {
    match tensor.is_contiguous() {
        true => Ok(()),
        false => bail!(
            "a kernel is given a tensor that is not contiguous: {:?}",
            tensor.layout()
        ),
    }
}

/// A tensor's numbers where they stand.
fn bytes_of(tensor: &Tensor) -> Result<Vec<u8>> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        bail!("expected a tensor on the CPU")
    };
    let range = layout.start_offset()..layout.start_offset() + tensor.elem_count();
    Ok(match storage {
        CpuStorage::F32(values) => bytemuck::cast_slice(&values[range]).to_vec(),
        CpuStorage::F64(values) => bytemuck::cast_slice(&values[range]).to_vec(),
        CpuStorage::U32(values) => bytemuck::cast_slice(&values[range]).to_vec(),
        CpuStorage::I32(values) => bytemuck::cast_slice(&values[range]).to_vec(),
        CpuStorage::I16(values) => bytemuck::cast_slice(&values[range]).to_vec(),
        CpuStorage::BF16(values) => {
            let bits = values[range].iter().map(|value| value.to_bits());
            bits.flat_map(u16::to_le_bytes).collect()
        }
        _ => bail!("kernels on the host are given {:?}", tensor.dtype()),
    })
}

/// New numbers in a tensor's place.
struct Filled<'b>(&'b [u8]);

impl InplaceOp1 for Filled<'_> {
    fn name(&self) -> &'static str {
        "filled-by-a-kernel"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let first = layout.start_offset();
        let range = first..first + layout.shape().elem_count();
        let place: &mut [u8] = match storage {
            CpuStorage::F32(values) => bytemuck::cast_slice_mut(&mut values[range]),
            CpuStorage::F64(values) => bytemuck::cast_slice_mut(&mut values[range]),
            CpuStorage::U32(values) => bytemuck::cast_slice_mut(&mut values[range]),
            CpuStorage::I32(values) => bytemuck::cast_slice_mut(&mut values[range]),
            other => bail!("kernels on the host write no {:?}", other),
        };
        if place.len() != self.0.len() {
            bail!("a kernel left {} bytes for {}", self.0.len(), place.len())
        }
        place.copy_from_slice(self.0);
        Ok(())
    }
}
