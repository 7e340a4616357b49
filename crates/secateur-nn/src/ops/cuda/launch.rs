//! Kernels of `kernels.cu` on a GPU.

#[cfg(feature = "cudnn")]
use super::cudnn::Cudnn;
use super::node::Output;
use super::products::Products;
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::sys::CUfunction_attribute;
use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaModule, DevicePtr, LaunchConfig, PushKernelArg,
};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::cuda_backend::{CudaStorageSlice, DeviceId, WrapErr};
use candle_core::{CudaDevice, CudaStorage, DType, Layout, Result, Shape, Storage, Tensor, bail};
use half::{bf16, f16};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

/// `kernels.cu`, compiled.
static KERNELS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));

/// What is kept of a GPU: the kernels, and the handle of its products.
pub(super) struct Gpu {
    module: Arc<CudaModule>,
    functions: Mutex<HashMap<String, CudaFunction>>,
    pub(super) products: Products,
    #[cfg(feature = "cudnn")]
    pub(super) cudnn: Option<Cudnn>,
}

impl Gpu {
    /// What was kept of that device, or is made now.
    pub(super) fn of(device: &CudaDevice) -> Result<Arc<Self>> {
        static GPUS: LazyLock<Mutex<HashMap<DeviceId, Arc<Gpu>>>> = LazyLock::new(Mutex::default);
        let mut gpus = GPUS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gpu) = gpus.get(&device.id()) {
            return Ok(Arc::clone(gpu));
        }
        let stream = device.cuda_stream();
        let gpu = Arc::new(Self {
            module: stream.context().load_module(Ptx::from_binary(KERNELS.to_vec())).w()?,
            functions: Mutex::default(),
            #[cfg(feature = "cudnn")]
            cudnn: Cudnn::open(stream.clone()),
            products: Products::new(stream)?,
        });
        gpus.insert(device.id(), Arc::clone(&gpu));
        Ok(gpu)
    }

    fn function(&self, name: String) -> Result<CudaFunction> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(&name) {
            return Ok(function.clone());
        }
        let function = self.module.load_function(&name).w()?;
        functions.insert(name, function.clone());
        Ok(function)
    }
}

/// An argument of a kernel that is not a tensor.
#[derive(Clone, Copy)]
pub(super) enum Scalar {
    Int(i32),
    Size(usize),
    Float(f32),
    Double(f64),
}

/// How a kernel is started. Its arguments are the inputs, the output, and the scalars.
pub(super) struct Launch<'a> {
    pub(super) name: &'a str,
    /// Of the numbers that follow each other: an access moves 16 bytes where that divides.
    pub(super) width: usize,
    pub(super) blocks: (usize, usize),
    pub(super) threads: usize,
    /// Floats of shared memory, beside what the kernel declares.
    pub(super) shared: usize,
    pub(super) scalars: &'a [Scalar],
}

impl Launch<'_> {
    /// For a kernel, to be named, that goes over `count` numbers of that type, as many at a time as
    /// an access moves.
    pub(super) fn over(dtype: DType, count: usize, width: usize) -> Self {
        let accesses = if width == 1 { count } else { count / numbers_an_access(dtype) };
        let blocks = (accesses.div_ceil(THREADS).clamp(1, MOST_BLOCKS), 1);
        Self { name: "", width, blocks, threads: THREADS, shared: 0, scalars: &[] }
    }
}

pub(super) const THREADS: usize = 256;

/// Bytes of shared memory that a block has without asking for more.
const SHARED_UNASKED: u32 = 48 << 10;

/// More wait for others to end.
const MOST_BLOCKS: usize = 1 << 16;

/// As many threads as a row of that width needs at `each` numbers a thread, in whole warps.
pub(super) fn threads_over(width: usize, each: usize) -> usize {
    width.div_ceil(each).next_multiple_of(32).clamp(32, 1024)
}

/// How many numbers of that type an access of 16 bytes moves.
pub(super) fn numbers_an_access(dtype: DType) -> usize {
    16 / dtype.size_in_bytes()
}

/// The address of the first number of a tensor.
pub(super) fn address(storage: &CudaStorage, layout: &Layout) -> Result<u64> {
    let stream = storage.device.cuda_stream();
    let base = match &storage.slice {
        CudaStorageSlice::F32(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::F16(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::BF16(slice) => slice.device_ptr(&stream).0,
        _ => bail!("there is no kernel for numbers of type {:?}", storage.dtype()),
    };
    Ok(base + (layout.start_offset() * storage.dtype().size_in_bytes()) as u64)
}

/// Runs `body` with the addresses of tensors, whose device is `device`.
pub(super) fn with_addresses<R>(
    tensors: &[&Tensor],
    body: impl FnOnce(&CudaDevice, &[u64]) -> Result<R>,
) -> Result<R> {
    let guards: Vec<_> = tensors.iter().map(|tensor| tensor.storage_and_layout()).collect();
    let mut addresses = Vec::with_capacity(guards.len());
    let mut device = None;
    for (storage, layout) in &guards {
        let Storage::Cuda(storage) = &**storage else { bail!("tensors of several devices") };
        device.get_or_insert(&storage.device);
        addresses.push(address(storage, layout)?);
    }
    let Some(device) = device else { bail!("a kernel without tensors") };
    body(device, &addresses)
}

/// What `fill` writes at an address.
pub(super) fn filled(
    device: &CudaDevice,
    dtype: DType,
    shape: impl Into<Shape>,
    fill: impl FnOnce(u64) -> Result<()>,
) -> Result<Output> {
    let shape = shape.into();
    let stream = device.cuda_stream();
    macro_rules! storage {
        ($type:ty) => {{
            let slice = match shape.elem_count() {
                0 => stream.null::<$type>().w()?,
                // SAFETY: `fill` writes every number before any is read.
                #[expect(unsafe_code, reason = "memory that is not cleared first")]
                count => unsafe { device.alloc::<$type>(count) }?,
            };
            let address = slice.device_ptr(&stream).0;
            (CudaStorage::wrap_cuda_slice(slice, device.clone()), address)
        }};
    }
    let (storage, address) = match dtype {
        DType::F32 => storage!(f32),
        DType::F16 => storage!(f16),
        DType::BF16 => storage!(bf16),
        dtype => bail!("there is no kernel for numbers of type {dtype:?}"),
    };
    if shape.elem_count() > 0 {
        fill(address)?;
    }
    Ok(Output { storage, shape })
}

/// What a kernel makes of `inputs`, which lie as it expects them, all of the first one's type
/// unless the kernel says otherwise: numbers of `dtype` in `shape`.
pub(super) fn run(
    launch: &Launch<'_>,
    inputs: &[&Tensor],
    (dtype, shape): (DType, impl Into<Shape>),
) -> Result<Output> {
    let Some(first) = inputs.first() else { bail!("{}: no inputs", launch.name) };
    with_addresses(inputs, |device, addresses| {
        filled(device, dtype, shape, |output| {
            start(launch, device, first.dtype(), addresses, output)
        })
    })
}

/// How samples lie that are apart, as parts of a joint attention's result, so that their rows of
/// `width` numbers can be used where they are: samples, rows of a sample, and numbers from one
/// sample to the next.
pub(super) fn apart(x: &Tensor, width: usize) -> Option<(usize, usize, usize)> {
    match (x.dims(), x.stride()) {
        (&[samples, rows, _], &[stride, row, 1]) if row == width && !x.is_contiguous() => {
            Some((samples, rows, stride))
        }
        _ => None,
    }
}

/// The same tensors outside of the graph, contiguous.
pub(super) fn plain(inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
    inputs.iter().map(|input| input.detach().contiguous()).collect()
}

/// `launch` of `inputs` to numbers of the first one's type.
pub(super) fn made(
    launch: &Launch<'_>,
    inputs: &[&Tensor],
    shape: impl Into<Shape>,
) -> Result<Output> {
    let inputs = plain(inputs)?;
    run(launch, &inputs.iter().collect::<Vec<_>>(), (inputs[0].dtype(), shape))
}

/// Starts a kernel on numbers of `dtype` at the addresses of its inputs and its output.
pub(super) fn start(
    launch: &Launch<'_>,
    device: &CudaDevice,
    dtype: DType,
    inputs: &[u64],
    output: u64,
) -> Result<()> {
    let of_type = match dtype {
        DType::F32 => "f32",
        DType::F16 => "f16",
        DType::BF16 => "bf16",
        other => bail!("{}: there is no kernel for {other:?}", launch.name),
    };
    let whole = numbers_an_access(dtype);
    let aligned = inputs.iter().chain([&output]).all(|address| address % 16 == 0);
    let numbers = if aligned && launch.width.is_multiple_of(whole) { whole } else { 1 };
    let function = Gpu::of(device)?.function(format!("{}_{of_type}_{numbers}", launch.name))?;
    let stream = device.cuda_stream();
    let mut builder = stream.launch_builder(&function);
    for address in inputs {
        builder.arg(address);
    }
    builder.arg(&output);
    for scalar in launch.scalars {
        match scalar {
            Scalar::Int(value) => builder.arg(value),
            Scalar::Size(value) => builder.arg(value),
            Scalar::Float(value) => builder.arg(value),
            Scalar::Double(value) => builder.arg(value),
        };
    }
    let shared = (launch.shared * size_of::<f32>()) as u32;
    if shared > SHARED_UNASKED {
        let most = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.set_attribute(most, shared as i32).w()?;
    }
    let config = LaunchConfig {
        grid_dim: (launch.blocks.0 as u32, launch.blocks.1 as u32, 1),
        block_dim: (launch.threads as u32, 1, 1),
        shared_mem_bytes: shared,
    };
    // SAFETY: the addresses are those of live tensors, the shapes were checked by the operation,
    // and the kernel's parameters are in this order.
    #[expect(unsafe_code, reason = "the one place that starts our kernels")]
    unsafe { builder.launch(config) }.w()?;
    Ok(())
}

/// What `start` makes of `tensors`, contiguous, at their addresses and that of the result: numbers
/// of the first one's type. None where cuDNN is not there, an address is no multiple of 16, or
/// `start` tells that cuDNN cannot.
#[cfg(feature = "cudnn")]
pub(super) fn made_by_cudnn(
    tensors: &[&Tensor],
    shape: impl Into<Shape>,
    start: impl FnOnce(&Cudnn, &[u64], u64) -> Result<bool>,
) -> Result<Option<Output>> {
    with_addresses(tensors, |device, addresses| {
        let gpu = Gpu::of(device)?;
        let is_whole = addresses.iter().all(|address| address % 16 == 0);
        let Some(cudnn) = gpu.cudnn.as_ref().filter(|_| is_whole) else { return Ok(None) };
        let mut is_done = false;
        let y = filled(device, tensors[0].dtype(), shape, |y| {
            is_done = start(cudnn, addresses, y)?;
            Ok(())
        })?;
        Ok(is_done.then_some(y))
    })
}
