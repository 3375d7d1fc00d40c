//! Kernels on a CUDA device: compiled by NVRTC when first launched, loaded once, and put on the device's stream.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaView, LaunchConfig, PushKernelArg, sys,
};
use candle_core::cuda_backend::cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
use candle_core::cuda_backend::{CudaStorageSlice, WrapErr};
use candle_core::{CudaDevice, Result, Storage, Tensor, bail};

use super::argument::{Argument, HostArgument, HostLaunch};
use super::{COMPILER_OPTIONS, SOURCES, THREADS};

/// What a block may have of dynamic shared memory without asking for more: 48 KiB less what kernels have of their own.
const SHARED_UNASKED: u32 = 47 << 10;

/// A kernel on its device, and how much dynamic shared memory it may have.
#[derive(Clone)]
struct Loaded {
    function: CudaFunction,
    shared: Arc<Mutex<u32>>,
}

/// By the device's number and the kernel's name.
static LOADED: RwLock<BTreeMap<usize, BTreeMap<String, Loaded>>> = RwLock::new(BTreeMap::new());
/// PTX by the names of sources, each compiled once.
static COMPILED: Mutex<BTreeMap<&str, String>> = Mutex::new(BTreeMap::new());

/// The kernel, with so much dynamic shared memory; compiled and loaded where nobody has asked for it before.
fn loaded(device: &CudaDevice, kernel: &str, shared: u32) -> Result<CudaFunction> {
    let stream = device.cuda_stream();
    let number = stream.context().ordinal();
    let known = {
        let all = LOADED.read().unwrap_or_else(PoisonError::into_inner);
        all.get(&number).and_then(|all| all.get(kernel)).cloned()
    };
    let loaded = match known {
        Some(known) => known,
        None => {
            let loaded = Loaded {
                function: load(device, kernel)?,
                shared: Arc::new(Mutex::new(SHARED_UNASKED)),
            };
            let mut all = LOADED.write().unwrap_or_else(PoisonError::into_inner);
            let of_device = all.entry(number).or_default();
            of_device.insert(kernel.to_owned(), loaded.clone());
            loaded
        }
    };
    let mut most = loaded.shared.lock().unwrap_or_else(PoisonError::into_inner);
    if shared > *most {
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        loaded
            .function
            .set_attribute(attribute, shared as i32)
            .w()?;
        *most = shared;
    }
    drop(most);
    Ok(loaded.function)
}

fn load(device: &CudaDevice, kernel: &str) -> Result<CudaFunction> {
    let Some(source) = SOURCES
        .iter()
        .find(|source| source.kernels.contains(&kernel))
    else {
        bail!("there is no kernel {kernel}")
    };
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    let ptx = match compiled.get(source.name) {
        Some(ptx) => ptx.clone(),
        None => {
            let options = CompileOptions {
                options: COMPILER_OPTIONS.map(str::to_owned).to_vec(),
                // PTX of the oldest device that has bfloat16; the driver makes the device's own code of it.
                arch: Some("compute_80"),
                name: Some(format!("{}.cu", source.name)),
                ..CompileOptions::default()
            };
            let ptx = compile_ptx_with_opts(source.text(), options);
            let ptx = ptx.map_err(candle_core::Error::wrap)?.to_src();
            compiled.insert(source.name, ptx.clone());
            ptx
        }
    };
    drop(compiled);
    let function = device.get_or_load_custom_func(kernel, &source.hash(), &ptx)?;
    Ok(function.into_cuda_function())
}

/// Lets the device's pool keep what is freed for what comes next. Otherwise it gives memory back whenever the host waits for
/// the device, and asks for it again in the next step.
pub(in crate::numerics) fn keep_freed(device: &CudaDevice) -> Result<()> {
    let pool = memory_pool(device)?;
    let mut threshold = u64::MAX;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the pool lives as long as the device's context, and this attribute is a number of 64 bits.
    unsafe {
        sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut threshold).cast())
            .result()
            .w()
    }
}

/// Gives the memory back that the device's pool keeps unused, after everything on its stream is done.
pub(in crate::numerics) fn trim(device: &CudaDevice) -> Result<()> {
    device.cuda_stream().synchronize().w()?;
    // SAFETY: the pool lives as long as the device's context.
    unsafe { sys::cuMemPoolTrimTo(memory_pool(device)?, 0).result().w() }
}

fn memory_pool(device: &CudaDevice) -> Result<sys::CUmemoryPool> {
    let stream = device.cuda_stream();
    let mut pool = std::ptr::null_mut();
    // SAFETY: the stream keeps the device's context alive, and the pool is written to a place of its type.
    unsafe {
        sys::cuDeviceGetDefaultMemPool(&mut pool, stream.context().cu_device())
            .result()
            .w()?;
    }
    Ok(pool)
}

/// Bytes of the device's memory that are free, and all of them.
pub(in crate::numerics) fn free_and_all(device: &CudaDevice) -> Result<(usize, usize)> {
    device.cuda_stream().context().mem_get_info().w()
}

/// How busy the device is, in percent, as the driver's own program tells it.
pub(in crate::numerics) fn busy(device: &CudaDevice) -> Option<u32> {
    let uuid = device.cuda_stream().context().uuid().ok()?;
    let digits: String = uuid
        .bytes
        .iter()
        .map(|byte| format!("{:02x}", *byte as u8))
        .collect();
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &digits[part]);
    let told = Command::new("nvidia-smi")
        .arg(format!("--id=GPU-{}", parts.join("-")))
        .args([
            "--query-gpu=utilization.gpu",
            "--format=csv,noheader,nounits",
        ])
        .output()
        .ok()?;
    String::from_utf8(told.stdout).ok()?.trim().parse().ok()
}

/// A launch whose arguments are bytes: what everything that it may write holds afterwards, in its order.
pub(super) fn run_bytes(device: &CudaDevice, launch: &HostLaunch) -> Result<Vec<Vec<u8>>> {
    let function = loaded(device, &launch.kernel, launch.shared)?;
    let stream = device.cuda_stream();
    let buffers = launch.arguments.iter().map(|argument| match argument {
        HostArgument::Read(bytes) | HostArgument::Written(bytes) => {
            stream.clone_htod(bytes).map(Some).w()
        }
        HostArgument::Number(_) | HostArgument::Null => Ok(None),
    });
    let buffers = buffers.collect::<Result<Vec<_>>>()?;
    let numbers = launch.arguments.iter().map(|argument| match argument {
        HostArgument::Number(bytes) => {
            let mut wide = [0u8; 8];
            wide[..bytes.len()].copy_from_slice(bytes);
            u64::from_le_bytes(wide)
        }
        _ => 0,
    });
    let numbers: Vec<u64> = numbers.collect();
    let narrow: Vec<u32> = numbers.iter().map(|&number| number as u32).collect();
    let stream = device.cuda_stream();
    let mut builder = stream.launch_builder(&function);
    for (place, argument) in launch.arguments.iter().enumerate() {
        match (argument, &buffers[place]) {
            (_, Some(buffer)) => builder.arg(buffer),
            (HostArgument::Number(bytes), None) if bytes.len() == 4 => builder.arg(&narrow[place]),
            (_, None) => builder.arg(&numbers[place]),
        };
    }
    // SAFETY: the arguments are those that the kernel's test gives the same text on the host, where each access is checked.
    unsafe { builder.launch(config(launch.grid, launch.shared)) }.w()?;
    let written = launch.arguments.iter().zip(&buffers);
    let written = written.filter(|(argument, _)| matches!(argument, HostArgument::Written(_)));
    written
        .filter_map(|(_, buffer)| buffer.as_ref())
        .map(|buffer| stream.clone_dtoh(buffer).w())
        .collect()
}

fn config(grid: [u32; 3], shared: u32) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (grid[0], grid[1], grid[2]),
        block_dim: (THREADS, 1, 1),
        shared_mem_bytes: shared,
    }
}

/// A tensor's numbers from where it begins, as a kernel is given them.
enum Numbers<'t> {
    F32(CudaView<'t, f32>),
    F64(CudaView<'t, f64>),
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
    let function = loaded(device, kernel, shared)?;
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
            CudaStorageSlice::F64(slice) => Numbers::F64(slice.slice(first..)),
            CudaStorageSlice::BF16(slice) => Numbers::Bf16(slice.slice(first..)),
            CudaStorageSlice::U32(slice) => Numbers::U32(slice.slice(first..)),
            CudaStorageSlice::I32(slice) => Numbers::I32(slice.slice(first..)),
            CudaStorageSlice::I16(slice) => Numbers::I16(slice.slice(first..)),
            _ => bail!("{kernel} is given numbers of a type that no kernel takes"),
        })
    });
    let numbers: Vec<Numbers> = numbers.by_ref().collect::<Result<_>>()?;
    let (none, mut next) = (0u64, numbers.iter());
    let stream = device.cuda_stream();
    let mut builder = stream.launch_builder(&function);
    for argument in arguments {
        match argument {
            Argument::Read(_) | Argument::Written(_) => match next.next() {
                Some(Numbers::F32(view)) => builder.arg(view),
                Some(Numbers::F64(view)) => builder.arg(view),
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
            Argument::Double(value) => builder.arg(value),
        };
    }
    // SAFETY: the arguments are those of the kernel's declaration in their order, as the functions of `operations` put them
    // down and as the kernels' tests hold them against the same text; tensors are contiguous and on this device, and what
    // is written is named by nobody else while the stream works on it.
    unsafe { builder.launch(config(grid, shared)) }.w()?;
    Ok(())
}
