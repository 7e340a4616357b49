//! The devices of this machine.

use crate::error::{Error, Result};
use candle_core::{Device, Tensor};
use std::fmt;
use std::str::FromStr;

/// Which device computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU that can be used, or else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The NVIDIA GPU of that number.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let wrong = || format!("{text:?} is no device: auto, cpu, cuda or cuda:NUMBER");
        match text.split_once(':') {
            None if text == "auto" => Ok(Self::Auto),
            None if text == "cpu" => Ok(Self::Cpu),
            None if text == "cuda" => Ok(Self::Cuda(0)),
            Some(("cuda", number)) => number.parse().map(Self::Cuda).map_err(|_| wrong()),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl DeviceChoice {
    /// The device.
    ///
    /// # Errors
    /// If a GPU is asked for and cannot be used: [`Error::Device`] tells what is missing.
    pub fn open(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Auto => Ok(gpu(0).unwrap_or(Device::Cpu)),
            Self::Cuda(number) => {
                gpu(number).map_err(|missing| Error::Device { device: self.to_string(), missing })
            }
        }
    }
}

/// All devices that can be used: the CPU, and the first GPU where there is one.
#[must_use]
pub fn devices() -> Vec<Device> {
    [Device::Cpu].into_iter().chain(gpu(0)).collect()
}

/// Why the first NVIDIA GPU of this machine cannot be used; None if it can, or there is none, or
/// this program was built without CUDA.
#[must_use]
pub fn unusable_gpu() -> Option<String> {
    #[cfg(feature = "cuda")]
    if cuda::is_any() {
        return gpu(0).err();
    }
    None
}

/// Name, memory and libraries of a GPU; None of the CPU.
#[must_use]
pub fn description(device: &Device) -> Option<String> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => Some(cuda::description(device)),
        _ => None,
    }
}

/// The memory of a GPU, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// All of it.
    pub total: u64,
    /// What this program can still take.
    pub free: u64,
    /// The most that this program's tensors have taken at a time.
    pub peak: u64,
}

/// The memory of a GPU; None of the CPU, or if the driver does not tell.
pub(crate) fn memory(device: &Device) -> Option<DeviceMemory> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => cuda::memory(device).ok(),
        _ => None,
    }
}

/// The same tensor on `device`.
///
/// # Errors
/// If there is no room.
pub fn to_device(tensor: &Tensor, device: &Device) -> candle_core::Result<Tensor> {
    match device {
        // candle makes no empty tensors there.
        #[cfg(feature = "cuda")]
        Device::Cuda(device) if tensor.elem_count() == 0 => cuda::empty(device, tensor),
        device => tensor.to_device(device),
    }
}

#[cfg(not(feature = "cuda"))]
fn gpu(_: usize) -> std::result::Result<Device, String> {
    Err("this program was built without CUDA (docs/gpu.md)".to_owned())
}

/// The NVIDIA GPU of that number, or what is missing. It is opened once: tensors of two handles do
/// not mix.
#[cfg(feature = "cuda")]
fn gpu(number: usize) -> std::result::Result<Device, String> {
    use std::collections::HashMap;
    use std::sync::{LazyLock, Mutex, PoisonError};
    static OPENED: LazyLock<Mutex<HashMap<usize, std::result::Result<Device, String>>>> =
        LazyLock::new(Mutex::default);
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    opened.entry(number).or_insert_with(|| cuda::open(number)).clone()
}

#[cfg(feature = "cudnn")]
pub(crate) use cuda::is_there;
#[cfg(feature = "cuda")]
pub(crate) use cuda::let_go_of_freed_memory;

#[cfg(feature = "cuda")]
mod cuda {
    use super::DeviceMemory;
    use candle_core::cuda_backend::cudarc::driver::result::DriverError;
    use candle_core::cuda_backend::cudarc::driver::{CudaContext, sys};
    use candle_core::cuda_backend::{CudaDType, WrapErr};
    use candle_core::op::BackpropOp;
    use candle_core::{CudaDevice, CudaStorage, DType, Device, Storage, Tensor, bail};
    use half::{bf16, f16};

    /// Older ones compute no bf16.
    const LEAST_CAPABILITY: i32 = 8;

    /// Libraries that are opened with a device; the first comes with the driver.
    const NEEDED: [&str; 4] = ["cuda", "cublas", "cublasLt", "curand"];

    /// The endings of libraries that cudarc looks for, where it opens them.
    const VERSIONS: [&str; 7] = ["", ".13", ".12", ".11", ".10", ".9", ".1"];

    /// Whether a library of CUDA can be opened.
    pub(crate) fn is_there(library: &str) -> bool {
        VERSIONS.iter().any(|version| {
            // SAFETY: these are NVIDIA's libraries, which do nothing when they are loaded.
            #[expect(unsafe_code, reason = "opening a library runs its code")]
            unsafe { libloading::Library::new(format!("lib{library}.so{version}")) }.is_ok()
        })
    }

    /// Whether there is a driver, and it does not say that there is no GPU.
    pub(super) fn is_any() -> bool {
        is_there(NEEDED[0])
            && match CudaContext::device_count() {
                Ok(count) => count > 0,
                Err(DriverError(error)) => error != sys::CUresult::CUDA_ERROR_NO_DEVICE,
            }
    }

    pub(super) fn open(number: usize) -> Result<Device, String> {
        if let Some(missing) = NEEDED.iter().find(|library| !is_there(library)) {
            return Err(match *missing {
                "cuda" => "there is no NVIDIA driver (libcuda.so)".to_owned(),
                missing => format!("lib{missing}.so is not found (LD_LIBRARY_PATH)"),
            });
        }
        let told = |error: &dyn std::fmt::Display| error.to_string();
        let count = CudaContext::device_count().map_err(|error| told(&error))?;
        if number as i32 >= count {
            return Err(format!("GPUs are numbered from 0, and this machine has {count}"));
        }
        // Not the stream of a thread: tensors go from one to another.
        let device = Device::new_cuda_with_stream(number).map_err(|error| told(&error))?;
        let cuda = device.as_cuda_device().map_err(|error| told(&error))?;
        let stream = cuda.cuda_stream();
        let context = stream.context();
        let (major, minor) = context.compute_capability().map_err(|error| told(&error))?;
        if major < LEAST_CAPABILITY {
            return Err(format!(
                "its compute capability is {major}.{minor}, and {LEAST_CAPABILITY}.0 the least"
            ));
        }
        // SAFETY: all work is on one stream, in whose order memory is freed.
        #[expect(unsafe_code, reason = "events of every tensor take longer than small kernels")]
        unsafe {
            cuda.disable_event_tracking();
        }
        keep_freed_memory(context.cu_device()).map_err(|error| told(&error))?;
        Ok(device)
    }

    pub(super) fn description(device: &CudaDevice) -> String {
        let stream = device.cuda_stream();
        let context = stream.context();
        let name = context.name().unwrap_or_else(|_| "an NVIDIA GPU".to_owned());
        let memory = context.total_mem().unwrap_or_default() as f64 / f64::from(1 << 30);
        format!("{name} ({memory:.0} GiB), {}", libraries())
    }

    fn libraries() -> String {
        #[cfg(feature = "cudnn")]
        if is_there("cudnn") {
            // SAFETY: the library is there.
            #[expect(unsafe_code, reason = "a call of the library")]
            let version = unsafe { cudarc::cudnn::sys::cudnnGetVersion() };
            return format!("cuDNN {}.{}.{}", version / 10_000, version / 100 % 100, version % 100);
        }
        "without cuDNN".to_owned()
    }

    /// A tensor without elements, of the type and shape of `tensor`.
    pub(super) fn empty(device: &CudaDevice, tensor: &Tensor) -> candle_core::Result<Tensor> {
        fn storage<T: CudaDType>(device: &CudaDevice) -> candle_core::Result<CudaStorage> {
            let slice = device.cuda_stream().null::<T>().w()?;
            Ok(CudaStorage::wrap_cuda_slice(slice, device.clone()))
        }
        let storage = match tensor.dtype() {
            DType::F32 => storage::<f32>(device)?,
            DType::F16 => storage::<f16>(device)?,
            DType::BF16 => storage::<bf16>(device)?,
            DType::U32 => storage::<u32>(device)?,
            DType::I64 => storage::<i64>(device)?,
            dtype => bail!("no empty tensor of type {dtype:?}"),
        };
        let storage = Storage::Cuda(storage);
        Ok(Tensor::from_storage(storage, tensor.shape(), BackpropOp::none(), false))
    }

    use sys::CUgraphMem_attribute as OfGraphs;
    use sys::CUmemPool_attribute as Attribute;

    /// The pool that all tensors are taken from.
    fn pool(device: sys::CUdevice) -> Result<sys::CUmemoryPool, DriverError> {
        let mut pool = std::ptr::null_mut();
        // SAFETY: the device is open.
        #[expect(unsafe_code, reason = "a call of the driver")]
        unsafe { sys::cuDeviceGetDefaultMemPool(&raw mut pool, device) }.result()?;
        Ok(pool)
    }

    /// Memory that is freed stays with the program, for the next tensor.
    fn keep_freed_memory(device: sys::CUdevice) -> Result<(), DriverError> {
        let (pool, mut all) = (pool(device)?, u64::MAX);
        let name = Attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        // SAFETY: the attribute's value is a u64.
        #[expect(unsafe_code, reason = "a call of the driver")]
        unsafe { sys::cuMemPoolSetAttribute(pool, name, (&raw mut all).cast()) }.result()
    }

    /// Gives freed memory back to the driver, also that of CUDA graphs.
    pub(crate) fn let_go_of_freed_memory(device: &CudaDevice) -> Result<(), DriverError> {
        let device = device.cuda_stream().context().cu_device();
        // SAFETY: what is in use stays.
        #[expect(unsafe_code, reason = "calls of the driver")]
        unsafe {
            sys::cuMemPoolTrimTo(pool(device)?, 0).result()?;
            sys::cuDeviceGraphMemTrim(device).result()
        }
    }

    pub(super) fn memory(device: &CudaDevice) -> Result<DeviceMemory, DriverError> {
        let stream = device.cuda_stream();
        let context = stream.context();
        let pool = pool(context.cu_device())?;
        let attribute = |name| {
            let mut bytes = 0u64;
            // SAFETY: the attributes' values are u64.
            #[expect(unsafe_code, reason = "a call of the driver")]
            unsafe { sys::cuMemPoolGetAttribute(pool, name, (&raw mut bytes).cast()) }.result()?;
            Ok::<_, DriverError>(bytes)
        };
        // CUDA graphs have memory of their own.
        let of_graphs = |name| {
            let mut bytes = 0u64;
            // SAFETY: the attributes' values are u64.
            #[expect(unsafe_code, reason = "a call of the driver")]
            unsafe {
                let value = (&raw mut bytes).cast();
                sys::cuDeviceGetGraphMemAttribute(context.cu_device(), name, value)
            }
            .result()?;
            Ok::<_, DriverError>(bytes)
        };
        let (free, total) = context.mem_get_info()?;
        let used = attribute(Attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
        let kept = attribute(Attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?.saturating_sub(used);
        let kept_of_graphs = of_graphs(OfGraphs::CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT)?
            .saturating_sub(of_graphs(OfGraphs::CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT)?);
        let peak = attribute(Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)?
            .max(used + of_graphs(OfGraphs::CU_GRAPH_MEM_ATTR_USED_MEM_HIGH)?);
        Ok(DeviceMemory { total: total as u64, free: free as u64 + kept + kept_of_graphs, peak })
    }
}

#[cfg(test)]
mod tests {
    use super::DeviceChoice;

    #[test]
    fn names_of_devices() {
        for (text, choice) in [
            ("auto", DeviceChoice::Auto),
            ("cpu", DeviceChoice::Cpu),
            ("cuda:3", DeviceChoice::Cuda(3)),
        ] {
            assert_eq!(text.parse(), Ok(choice));
            assert_eq!(choice.to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        for wrong in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "CUDA"] {
            assert!(wrong.parse::<DeviceChoice>().is_err(), "{wrong}");
        }
    }
}
