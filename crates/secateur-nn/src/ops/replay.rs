//! Computations that are called again and again.

#[cfg(feature = "cuda")]
use super::cuda::Recordings;
use candle_core::Tensor;
use std::fmt::Display;

/// A computation that is called again and again. On a GPU it is recorded as a CUDA graph where that
/// takes less time: a call then starts all of its kernels at once.
/// That takes in whatever is started on the device meanwhile: nothing is recorded while
/// there is a [`Placement`](crate::Placement) of another thread, and threads that share one must
/// not compute while another calls this.
#[derive(Default)]
pub struct Replay {
    #[cfg(feature = "cuda")]
    recordings: Recordings,
}

impl Replay {
    /// What `compute` makes of `inputs`. It may depend on nothing but their numbers, shapes and
    /// types, and on tensors that live as long as this. What is tracked is not recorded.
    ///
    /// # Errors
    /// Those of `compute`, or if there is no memory.
    pub fn call<E: From<candle_core::Error> + Display>(
        &self,
        inputs: &[Tensor],
        compute: impl Fn(&[Tensor]) -> Result<Tensor, E>,
    ) -> Result<Tensor, E> {
        #[cfg(feature = "cuda")]
        if let Some(candle_core::Device::Cuda(device)) = inputs.first().map(Tensor::device) {
            return self.recordings.call(device, inputs, compute);
        }
        compute(inputs)
    }

    /// Gives the memory of recordings back to the driver; their next calls take it again.
    pub fn let_go_of_memory(&self) {
        #[cfg(feature = "cuda")]
        self.recordings.let_go_of_memory();
    }

    /// How many computations are recorded as CUDA graphs.
    #[must_use]
    pub fn recordings(&self) -> usize {
        #[cfg(feature = "cuda")]
        return self.recordings.count();
        #[cfg(not(feature = "cuda"))]
        0
    }
}
