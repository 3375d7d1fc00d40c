//! Where a model computes: on the CPU, or on a CUDA device.
//!
//! A [`DeviceChoice`] is what settings and command lines say: `auto`, `cpu`, `cuda:N`. Opening one gives candle's device; each
//! CUDA device is opened once in a process, so that whatever is put on it can be used together. A build without the
//! feature `cuda` knows the CPU alone, and says how a build with it is made.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use candle_core::{Device, DeviceLocation, Tensor};
use serde::{Deserialize, Serialize};

/// What to compute on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// The first CUDA device where there is one that works, else the CPU.
    #[default]
    Auto,
    Cpu,
    /// A CUDA device, by its number.
    Cuda(usize),
}

/// What a device holds dense matrices in, and multiplies many rows with them in. Everything else is float32 either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MatrixType {
    #[default]
    Float32,
    Bfloat16,
}

impl fmt::Display for MatrixType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MatrixType::Float32 => "float32",
            MatrixType::Bfloat16 => "bfloat16",
        })
    }
}

/// A text that names no such type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no type of matrices; use float32 or bfloat16")]
pub struct UnknownMatrixType(String);

impl FromStr for MatrixType {
    type Err = UnknownMatrixType;

    fn from_str(text: &str) -> Result<Self, UnknownMatrixType> {
        match text {
            "float32" => Ok(MatrixType::Float32),
            "bfloat16" => Ok(MatrixType::Bfloat16),
            _ => Err(UnknownMatrixType(text.to_owned())),
        }
    }
}

/// Where the two models of a pair are, and what their matrices are there. A model on its own goes where its kind would.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    pub dense: DeviceChoice,
    pub sparse: DeviceChoice,
    pub matrices: MatrixType,
}

impl Placement {
    pub const CPU: Self = Placement::both(DeviceChoice::Cpu);

    /// The same with what `auto` means on this machine; an error where a device that is named cannot be used.
    pub fn opened(self) -> Result<Self, DeviceError> {
        let definite = |choice: DeviceChoice| {
            Ok(match choice.open()?.location() {
                DeviceLocation::Cuda { gpu_id } => DeviceChoice::Cuda(gpu_id),
                DeviceLocation::Cpu | DeviceLocation::Metal { .. } => DeviceChoice::Cpu,
            })
        };
        let (dense, sparse) = (definite(self.dense)?, definite(self.sparse)?);
        Ok(Placement {
            dense,
            sparse,
            // The CPU has its own ways with what a file has in sixteen bits.
            matrices: match (dense, sparse) {
                (DeviceChoice::Cpu, DeviceChoice::Cpu) => MatrixType::Float32,
                _ => self.matrices,
            },
        })
    }

    /// What matrices are on one of its devices: the CPU has its own ways with what a file has in sixteen bits.
    pub fn matrices_on(self, device: DeviceChoice) -> MatrixType {
        match device {
            DeviceChoice::Cpu => MatrixType::Float32,
            DeviceChoice::Auto | DeviceChoice::Cuda(_) => self.matrices,
        }
    }

    /// Both on one device.
    pub const fn both(device: DeviceChoice) -> Self {
        Placement {
            dense: device,
            sparse: device,
            matrices: MatrixType::Float32,
        }
    }
}

/// A choice that need not be made, written as an empty text where it is not.
pub mod or_empty {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::DeviceChoice;

    pub fn serialize<S: Serializer>(
        choice: &Option<DeviceChoice>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let text = choice.map(String::from);
        serializer.serialize_str(&text.unwrap_or_default())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<DeviceChoice>, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.is_empty() {
            true => Ok(None),
            false => text.parse().map(Some).map_err(D::Error::custom),
        }
    }
}

/// Why there is no such device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    #[error("{0:?} is no device; use auto, cpu, or cuda:N with the number of a CUDA device")]
    Unknown(String),
    #[error(
        "cuda:{0}: this program was built without CUDA; docker/cuda_build.sh builds one with it, or use cpu"
    )]
    NotBuilt(usize),
    #[error("cuda:{number} cannot be used: {problem}")]
    Unusable { number: usize, problem: String },
}

/// What a device's failure means for what comes after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceFailure {
    /// There was no room: what needs less can be done.
    NoMemory,
    /// Nothing can be done on the device any more in this process.
    Lost,
}

/// The driver's names for failures after which a context is of no use, whichever call they are told by.
const LOST: [&str; 12] = [
    "CUDA_ERROR_ILLEGAL_ADDRESS",
    "CUDA_ERROR_ILLEGAL_INSTRUCTION",
    "CUDA_ERROR_MISALIGNED_ADDRESS",
    "CUDA_ERROR_INVALID_ADDRESS_SPACE",
    "CUDA_ERROR_INVALID_PC",
    "CUDA_ERROR_HARDWARE_STACK_ERROR",
    "CUDA_ERROR_LAUNCH_FAILED",
    "CUDA_ERROR_LAUNCH_TIMEOUT",
    "CUDA_ERROR_ASSERT",
    "CUDA_ERROR_ECC_UNCORRECTABLE",
    "CUDA_ERROR_CONTEXT_IS_DESTROYED",
    "CUDA_ERROR_DEVICE_UNAVAILABLE",
];

impl DeviceFailure {
    /// What an error that came from a device says by its text: there is nothing else that it has in common whoever tells
    /// it.
    pub fn of(error: &str) -> Option<Self> {
        if LOST.iter().any(|name| error.contains(name)) {
            return Some(DeviceFailure::Lost);
        }
        let no_memory = ["CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED"];
        let no_memory = no_memory.iter().any(|name| error.contains(name));
        no_memory.then_some(DeviceFailure::NoMemory)
    }
}

/// A process whose device is lost ends with this, and is to be started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the device has failed and can do nothing more in this process")]
pub struct DeviceLost;

impl DeviceLost {
    /// What the process exits with: that of a failure of input or output.
    pub const EXIT_CODE: u8 = 74;
}

/// Gives memory back that devices keep for what comes next: after something has found no room.
pub fn trim() {
    #[cfg(feature = "cuda")]
    for device in OPENED
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .values()
    {
        if let Device::Cuda(device) = device
            && let Err(error) = super::kernels::trim(device)
        {
            tracing::warn!(%error, "a device's memory could not be trimmed");
        }
    }
}

/// What a device's memory holds, and how busy the device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceUse {
    /// Bytes, of every process.
    pub used: u64,
    /// Bytes that there are.
    pub memory: u64,
}

/// The use of a CUDA device; none for the CPU, or where the driver does not tell.
pub fn usage(device: &Device) -> Option<DeviceUse> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => super::kernels::free_and_all(device)
            .inspect_err(|error| tracing::debug!(%error, "a device does not tell its memory"))
            .ok()
            .map(|(free, all)| DeviceUse {
                used: all.saturating_sub(free) as u64,
                memory: all as u64,
            }),
        _ => None,
    }
}

/// In percent, how much of the last second or less a CUDA device computed something; none for the CPU, or where the
/// driver's `nvidia-smi` does not tell.
pub fn busy(device: &Device) -> Option<u32> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => super::kernels::busy(device),
        _ => None,
    }
}

/// The CUDA devices that were opened, by their names.
pub fn opened() -> Vec<(String, Device)> {
    let opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    let devices = opened.values();
    devices
        .map(|device| (name(device), device.clone()))
        .collect()
}

/// What was opened, by number.
static OPENED: Mutex<BTreeMap<usize, Device>> = Mutex::new(BTreeMap::new());

impl DeviceChoice {
    /// The device itself.
    pub fn open(self) -> Result<Device, DeviceError> {
        match self {
            DeviceChoice::Cpu => Ok(Device::Cpu),
            DeviceChoice::Cuda(number) => cuda(number),
            DeviceChoice::Auto => match cuda(0) {
                Ok(device) => Ok(device),
                Err(DeviceError::NotBuilt(_)) => Ok(Device::Cpu),
                Err(error) => {
                    tracing::warn!(%error, "computing on the CPU");
                    Ok(Device::Cpu)
                }
            },
        }
    }
}

fn cuda(number: usize) -> Result<Device, DeviceError> {
    if !cfg!(feature = "cuda") {
        return Err(DeviceError::NotBuilt(number));
    }
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(device) = opened.get(&number) {
        return Ok(device.clone());
    }
    // A stream of its own: work on the default one waits for everybody else's.
    let device = Device::new_cuda_with_stream(number).map_err(|error| {
        // Behind the first line comes where it was met.
        let told = error.to_string();
        let problem = told.lines().next().unwrap_or_default().to_owned();
        DeviceError::Unusable { number, problem }
    })?;
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = &device {
        // SAFETY: whatever is put on this device goes through its one stream, which does things in their order, and
        // what goes to another device is waited for (`moved`): nothing has to wait by an event. Nothing is there yet.
        unsafe { device.disable_event_tracking() }
        if let Err(error) = super::kernels::keep_freed(device) {
            tracing::warn!(%error, "a device gives freed memory back at once");
        }
    }
    opened.insert(number, device.clone());
    Ok(device)
}

/// A tensor on another device. Between two CUDA devices the copy is waited for: the first one's memory may go to the next tensor
/// there as soon as this one is dropped, and its stream knows nothing of the copy.
pub fn moved(tensor: &Tensor, device: &Device) -> candle_core::Result<Tensor> {
    let moved = tensor.to_device(device)?;
    let between = !tensor.device().is_cpu() && !device.is_cpu();
    if between && !tensor.device().same_device(device) {
        device.synchronize()?;
    }
    Ok(moved)
}

/// What a device is called: `cpu` or `cuda:N`.
pub fn name(device: &Device) -> String {
    match device.location() {
        DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        DeviceLocation::Cpu | DeviceLocation::Metal { .. } => "cpu".to_owned(),
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let number = |text: &str| {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|_| digits)
        };
        match text {
            "auto" => Ok(DeviceChoice::Auto),
            "cpu" => Ok(DeviceChoice::Cpu),
            "cuda" => Ok(DeviceChoice::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(number)
                .map(DeviceChoice::Cuda)
                .ok_or_else(|| DeviceError::Unknown(text.to_owned())),
        }
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = DeviceError;

    fn try_from(text: String) -> Result<Self, DeviceError> {
        text.parse()
    }
}

impl From<DeviceChoice> for String {
    fn from(device: DeviceChoice) -> String {
        device.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_written_as_they_are_read() {
        for text in ["auto", "cpu", "cuda:0", "cuda:11"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        for text in [
            "",
            "gpu",
            "cuda:",
            "cuda:-1",
            "cuda:+1",
            "cuda:x",
            "CPU",
            "cuda:99999999999999999999",
        ] {
            let error = text.parse::<DeviceChoice>().unwrap_err();
            assert_eq!(error, DeviceError::Unknown(text.to_owned()));
        }
    }

    #[test]
    fn failures_are_told_apart() {
        let told = |name: &str| DeviceFailure::of(&format!("DriverError({name}, \"...\")"));
        assert_eq!(
            told("CUDA_ERROR_OUT_OF_MEMORY"),
            Some(DeviceFailure::NoMemory)
        );
        assert_eq!(
            told("CUDA_ERROR_ILLEGAL_ADDRESS"),
            Some(DeviceFailure::Lost)
        );
        assert_eq!(told("CUDA_ERROR_INVALID_VALUE"), None);
        assert_eq!(DeviceFailure::of("shapes differ"), None);
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_cuda_says_how_to_get_one() {
        assert!(DeviceChoice::Auto.open().unwrap().is_cpu());
        let error = DeviceChoice::Cuda(1).open().unwrap_err().to_string();
        assert!(
            error.contains("cuda:1") && error.contains("docker/cuda_build.sh"),
            "{error}"
        );
    }
}
