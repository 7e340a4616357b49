//! Where a model lives, and in which numbers it computes.

use crate::devices::{DeviceMemory, description, memory, to_device};
use crate::error::{Error, Result};
use candle_core::{DType, Device, Shape, Tensor, WithDType};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::{self, ThreadId};

/// A device, and the type of the numbers that are computed there.
#[derive(Clone, Debug)]
pub struct Placement {
    device: Device,
    dtype: DType,
    /// Of a GPU; shared by all that were made of one.
    _use: Option<Arc<()>>,
}

/// The placements on GPUs that are in use, and the threads that made them.
static USES: Mutex<Vec<(ThreadId, Weak<()>)>> = Mutex::new(Vec::new());

/// Runs `body` if no other thread has a placement on a GPU, and lets none make one meanwhile; else
/// None.
#[cfg(feature = "cuda")]
pub(crate) fn while_alone<R>(body: impl FnOnce() -> R) -> Option<R> {
    let uses = USES.lock().unwrap_or_else(PoisonError::into_inner);
    let own = thread::current().id();
    uses.iter().all(|(thread, one)| *thread == own || one.strong_count() == 0).then(body)
}

impl Placement {
    /// On `device`, in `dtype` (`F32`, `F16` or `BF16`; on the CPU, `F32`).
    #[must_use]
    pub fn new(device: Device, dtype: DType) -> Self {
        let _use = device.is_cuda().then(|| {
            let own = Arc::new(());
            let mut uses = USES.lock().unwrap_or_else(PoisonError::into_inner);
            uses.retain(|(_, one)| one.strong_count() > 0);
            uses.push((thread::current().id(), Arc::downgrade(&own)));
            own
        });
        Self { device, dtype, _use }
    }

    /// The CPU, in `f32`.
    #[must_use]
    pub fn cpu() -> Self {
        Self::new(Device::Cpu, DType::F32)
    }

    /// The type of numbers, and name, memory and libraries of the GPU; None on the CPU.
    #[must_use]
    pub fn description(&self) -> Option<String> {
        Some(format!("{} on {}", self.dtype.as_str(), description(&self.device)?))
    }

    /// The memory of the GPU; None on the CPU.
    #[must_use]
    pub fn memory(&self) -> Option<DeviceMemory> {
        memory(&self.device)
    }

    /// Whether that is a GPU.
    #[must_use]
    pub fn is_on_gpu(&self) -> bool {
        !self.device.is_cpu()
    }

    /// The bytes of a number that is computed with.
    #[must_use]
    pub fn bytes_of_a_number(&self) -> u64 {
        self.dtype.size_in_bytes() as u64
    }

    /// Whether numbers of that type stay as they are.
    #[must_use]
    pub fn keeps(&self, dtype: DType) -> bool {
        let narrower = [DType::F16, DType::BF16].contains(&dtype);
        self.dtype == dtype || (self.dtype == DType::F32 && narrower)
    }

    /// Whether numbers of `f32` stay as they are, in memory.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        self.device.is_cpu() && self.dtype == DType::F32
    }

    /// The same device in `f32`.
    #[must_use]
    pub fn in_f32(&self) -> Self {
        Self { dtype: DType::F32, ..self.clone() }
    }

    /// The same device in `f32` where it is `f16`, of numbers that may be larger than that holds.
    #[must_use]
    pub fn beyond_f16(&self) -> Self {
        if self.dtype == DType::F16 { self.in_f32() } else { self.clone() }
    }

    /// A tensor there: of `f32` values in the type that is computed in, of others in their own.
    ///
    /// # Errors
    /// If the shape does not fit the values, or the device has no room.
    pub fn tensor<T: WithDType>(&self, values: Vec<T>, shape: impl Into<Shape>) -> Result<Tensor> {
        self.bring(&Tensor::from_vec(values, shape.into(), &Device::Cpu)?)
    }

    /// A tensor of that type and shape there, its floating point numbers in the type that is
    /// computed in. `read` fills buffers with its bytes, in the order of its elements, from the one
    /// that it is given on. A GPU goes on computing meanwhile.
    ///
    /// # Errors
    /// As [`Placement::tensor`], or if `read` fails.
    pub fn read<E: From<Error>>(
        &self,
        dtype: DType,
        shape: &[usize],
        mut read: impl FnMut(usize, &mut [u8]) -> std::result::Result<(), E>,
    ) -> std::result::Result<Tensor, E> {
        let own = |tensor: candle_core::Result<Tensor>| tensor.map_err(Error::from);
        if shape.contains(&0) {
            return Ok(self.bring(&own(Tensor::zeros(shape, dtype, &Device::Cpu))?)?);
        }
        // Converted there: that takes the fewest bytes across.
        let tensor = match &self.device {
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => crate::upload::upload(device, dtype, &shape.into(), read)?,
            device => {
                let mut bytes = vec![0; shape.iter().product::<usize>() * dtype.size_in_bytes()];
                read(0, &mut bytes)?;
                own(Tensor::from_raw_buffer(&bytes, dtype, shape, device))?
            }
        };
        if !dtype.is_float() {
            return Ok(tensor);
        }
        let tensor = own(tensor.to_dtype(self.dtype))?;
        // cuDNN's convolutions read weights whose channels lie together: no second copy is made.
        let is_read_so = cfg!(feature = "cudnn")
            && shape.len() == 4
            && self.device.is_cuda()
            && self.dtype != DType::F32;
        Ok(if is_read_so { own(channels_last(&tensor))? } else { tensor })
    }

    /// The same tensor there, its floating point numbers in the type that is computed in.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn bring(&self, tensor: &Tensor) -> Result<Tensor> {
        let tensor = match tensor.dtype().is_float() {
            // On a GPU, converting no number is an error.
            true if tensor.elem_count() == 0 && tensor.dtype() != self.dtype => {
                Tensor::zeros(tensor.shape(), self.dtype, &Device::Cpu)?
            }
            true => tensor.to_dtype(self.dtype)?,
            false => tensor.clone(),
        };
        Ok(to_device(&tensor, &self.device)?)
    }
}

/// The same tensor with its channels (the second dimension of four) last in memory.
fn channels_last(x: &Tensor) -> candle_core::Result<Tensor> {
    x.permute((0, 2, 3, 1))?.contiguous()?.permute((0, 3, 1, 2))
}
