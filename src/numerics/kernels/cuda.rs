//! Kernels on a CUDA device: compiled by NVRTC when first launched, kept by the hash of their source, and put on the
//! device's stream.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::driver::{CudaView, LaunchConfig, PushKernelArg, sys};
use candle_core::cuda_backend::cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
use candle_core::cuda_backend::{CudaStorageSlice, WrapErr};
use candle_core::{CudaDevice, Result, Storage, Tensor, bail};

use super::argument::Argument;
use super::{COMPILER_OPTIONS, SOURCES, THREADS};

/// What a block may have of dynamic shared memory without asking for more.
const SHARED_UNASKED: u32 = 48 << 10;

/// PTX by the hashes of sources.
static COMPILED: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());

/// The source that has this kernel, by its hash, and its PTX.
fn compiled(kernel: &str) -> Result<(String, String)> {
    let Some(source) = SOURCES
        .iter()
        .find(|source| source.kernels.contains(&kernel))
    else {
        bail!("there is no kernel {kernel}")
    };
    let hash = source.hash();
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(ptx) = compiled.get(&hash) {
        return Ok((hash, ptx.clone()));
    }
    let options = CompileOptions {
        options: COMPILER_OPTIONS.map(str::to_owned).to_vec(),
        // PTX of the oldest device that has bfloat16; the driver makes the device's own code of it.
        arch: Some("compute_80"),
        name: Some(format!("{}.cu", source.name)),
        ..CompileOptions::default()
    };
    let ptx = compile_ptx_with_opts(source.text(), options).map_err(candle_core::Error::wrap)?;
    let ptx = ptx.to_src();
    compiled.insert(hash.clone(), ptx.clone());
    Ok((hash, ptx))
}

/// Gives the memory back that the device's pool keeps unused, after everything on its stream is done.
pub(in crate::numerics) fn trim(device: &CudaDevice) -> Result<()> {
    let stream = device.cuda_stream();
    stream.synchronize().w()?;
    let mut pool = std::ptr::null_mut();
    // SAFETY: the pool is the device's own for as long as its context lives, which the stream keeps alive.
    unsafe {
        sys::cuDeviceGetDefaultMemPool(&mut pool, stream.context().cu_device())
            .result()
            .w()?;
        sys::cuMemPoolTrimTo(pool, 0).result().w()
    }
}

/// A tensor's numbers from where it begins, as a kernel is given them.
enum Numbers<'t> {
    F32(CudaView<'t, f32>),
    Bf16(CudaView<'t, half::bf16>),
    U32(CudaView<'t, u32>),
    I32(CudaView<'t, i32>),
    I16(CudaView<'t, i16>),
}

/// Puts a launch on the device's stream. What it writes is read by whatever is put there after it.
pub(super) fn launch(
    device: &CudaDevice,
    kernel: &str,
    grid: [u32; 3],
    shared: u32,
    arguments: &[Argument],
) -> Result<()> {
    let (hash, ptx) = compiled(kernel)?;
    let function = device.get_or_load_custom_func(kernel, &hash, &ptx)?;
    if shared > SHARED_UNASKED {
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.set_attribute(attribute, shared as i32).w()?;
    }
    let tensors: Vec<&Tensor> = arguments
        .iter()
        .filter_map(|argument| match argument {
            Argument::Read(tensor) | Argument::Written(tensor) => Some(tensor),
            _ => None,
        })
        .collect();
    let held: Vec<_> = tensors
        .iter()
        .map(|tensor| tensor.storage_and_layout())
        .collect();
    let mut numbers = held.iter().map(|(storage, layout)| {
        let Storage::Cuda(storage) = &**storage else {
            bail!("{kernel} is given a tensor that is not on its device")
        };
        let first = layout.start_offset();
        Ok(match &storage.slice {
            CudaStorageSlice::F32(slice) => Numbers::F32(slice.slice(first..)),
            CudaStorageSlice::BF16(slice) => Numbers::Bf16(slice.slice(first..)),
            CudaStorageSlice::U32(slice) => Numbers::U32(slice.slice(first..)),
            CudaStorageSlice::I32(slice) => Numbers::I32(slice.slice(first..)),
            CudaStorageSlice::I16(slice) => Numbers::I16(slice.slice(first..)),
            _ => bail!("{kernel} is given numbers of a type that no kernel takes"),
        })
    });
    let numbers: Vec<Numbers> = numbers.by_ref().collect::<Result<_>>()?;
    let (none, mut next) = (0u64, numbers.iter());
    let mut builder = function.builder();
    for argument in arguments {
        match argument {
            Argument::Read(_) | Argument::Written(_) => match next.next() {
                Some(Numbers::F32(view)) => builder.arg(view),
                Some(Numbers::Bf16(view)) => builder.arg(view),
                Some(Numbers::U32(view)) => builder.arg(view),
                Some(Numbers::I32(view)) => builder.arg(view),
                Some(Numbers::I16(view)) => builder.arg(view),
                None => bail!("{kernel} lacks a tensor"),
            },
            Argument::Null => builder.arg(&none),
            Argument::Count(value) => builder.arg(value),
            Argument::Long(value) => builder.arg(value),
            Argument::Float(value) => builder.arg(value),
        };
    }
    let config = LaunchConfig {
        grid_dim: (grid[0], grid[1], grid[2]),
        block_dim: (THREADS, 1, 1),
        shared_mem_bytes: shared,
    };
    // SAFETY: the arguments are those of the kernel's declaration in their order, as the functions of `operations` put them
    // down and as the kernels' tests hold them against the same text; tensors are contiguous and on this device, and what
    // is written is named by nobody else while the stream works on it.
    unsafe { builder.launch(config) }.w()?;
    Ok(())
}
