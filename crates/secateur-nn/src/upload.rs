//! Bytes on their way to a GPU, through page-locked memory and on a stream of their own: they
//! arrive while the device computes.

use crate::error::Error;
use candle_core::cuda_backend::cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, PinnedHostSlice, result,
};
use candle_core::cuda_backend::{CudaDType, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DType, Shape, Storage, Tensor};
use half::{bf16, f16};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes that are read and copied at a time.
const PART: usize = 16 << 20;

/// Page-locked memory of a part, and the stream of its copies. One thread at a time uses it.
struct Staging {
    buffer: PinnedHostSlice<u8>,
    stream: Arc<CudaStream>,
}

/// Those that no thread uses now: page-locked memory takes long to make.
static IDLE: Mutex<Vec<Staging>> = Mutex::new(Vec::new());

impl Staging {
    fn take(context: &Arc<CudaContext>) -> candle_core::Result<Self> {
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        let own = idle.iter().position(|one| Arc::ptr_eq(one.buffer.context(), context));
        if let Some(own) = own {
            return Ok(idle.swap_remove(own));
        }
        drop(idle);
        // SAFETY: it is written before it is read.
        #[expect(unsafe_code, reason = "memory that is not set")]
        let buffer = unsafe { context.alloc_pinned(PART) }.w()?;
        Ok(Self { buffer, stream: context.new_stream().w()? })
    }

    fn give_back(self) {
        IDLE.lock().unwrap_or_else(PoisonError::into_inner).push(self);
    }
}

/// As [`crate::Placement::read`], of the type that the bytes have.
pub(crate) fn upload<E: From<Error>>(
    device: &CudaDevice,
    dtype: DType,
    shape: &Shape,
    read: impl FnMut(usize, &mut [u8]) -> Result<(), E>,
) -> Result<Tensor, E> {
    let count = shape.elem_count();
    let storage = match dtype {
        DType::F32 => storage::<f32, E>(device, count, read)?,
        DType::F16 => storage::<f16, E>(device, count, read)?,
        DType::BF16 => storage::<bf16, E>(device, count, read)?,
        DType::I64 => storage::<i64, E>(device, count, read)?,
        dtype => {
            let problem = candle_core::Error::Msg(format!("no tensors of type {dtype:?}"));
            return Err(Error::from(problem).into());
        }
    };
    Ok(Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false))
}

fn own<T, E: From<Error>>(result: candle_core::Result<T>) -> Result<T, E> {
    result.map_err(|error| E::from(error.into()))
}

fn storage<T: CudaDType, E: From<Error>>(
    device: &CudaDevice,
    count: usize,
    mut read: impl FnMut(usize, &mut [u8]) -> Result<(), E>,
) -> Result<CudaStorage, E> {
    let work = device.cuda_stream();
    let bytes = count * size_of::<T>();
    let mut staging = own(Staging::take(work.context()))?;
    let copies = Arc::clone(&staging.stream);
    // SAFETY: it is taken in the order of the copies, which do not wait for the work before them,
    // and given back in the order of the work, which reads it after this returns.
    #[expect(unsafe_code, reason = "memory of one stream that another frees")]
    let (address, slice): (_, CudaSlice<T>) = unsafe {
        own(work.context().bind_to_thread().w())?;
        let address = own(result::malloc_async(copies.cu_stream(), bytes).w())?;
        (address, work.upgrade_device_ptr(address, count))
    };
    for start in (0..bytes).step_by(PART) {
        let buffer = own(staging.buffer.as_mut_slice().w())?;
        let part = &mut buffer[..PART.min(bytes - start)];
        read(start, part)?;
        // SAFETY: the part lies within the memory, and is not written before it is copied.
        #[expect(unsafe_code, reason = "a copy to a part of the memory")]
        let copied =
            unsafe { result::memcpy_htod_async(address + start as u64, part, copies.cu_stream()) };
        own(copied.and_then(|()| copies.synchronize()).w())?;
    }
    staging.give_back();
    Ok(CudaStorage::wrap_cuda_slice(slice, device.clone()))
}
