//! Computations recorded as CUDA graphs.

use crate::devices::let_go_of_freed_memory;
use crate::placement::while_alone;
use candle_core::backend::BackendDevice;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::CudaGraph;
use candle_core::cuda_backend::cudarc::driver::sys::{
    CUgraphInstantiate_flags as Flags, CUstreamCaptureMode as Mode,
};
use candle_core::{CudaDevice, DType, Result, Tensor};
use std::collections::HashMap;
use std::fmt::Display;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The recordings of a computation, for each list of inputs.
#[derive(Default)]
pub(in crate::ops) struct Recordings(Mutex<HashMap<Inputs, Stage>>);

/// Shapes and types.
type Inputs = Vec<(Vec<usize>, DType)>;

/// How far a computation has come with inputs of certain shapes.
enum Stage {
    /// It has run: kernels are loaded, algorithms chosen, parameters on the device.
    Warm,
    /// It took so long.
    Timed(Duration),
    Recorded(Recording),
    /// It runs as it is: starting its kernels takes less time than they do, or it cannot be
    /// recorded.
    Plain,
}

/// Where starting the kernels takes less than this share of the time, a recording gains nothing.
const LEAST_SHARE: f64 = 0.2;

/// A recording that takes more than this share of the time is not kept.
const WORTH: f64 = 0.97;

/// What `compute` returns, and how long it takes on the device.
fn timed<T, E: From<candle_core::Error>>(
    device: &CudaDevice,
    compute: impl FnOnce() -> std::result::Result<T, E>,
) -> std::result::Result<(Duration, T), E> {
    device.synchronize()?;
    let start = Instant::now();
    let made = compute()?;
    device.synchronize()?;
    Ok((start.elapsed(), made))
}

struct Recording {
    graph: CudaGraph,
    /// What the graph reads and writes.
    inputs: Vec<Tensor>,
    output: Tensor,
}

// SAFETY: graphs are used behind a lock.
#[expect(unsafe_code, reason = "handles are pointers")]
unsafe impl Send for Recording {}

impl Recordings {
    pub(in crate::ops) fn count(&self) -> usize {
        let stages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        stages.values().filter(|stage| matches!(stage, Stage::Recorded(_))).count()
    }

    pub(in crate::ops) fn call<E: From<candle_core::Error> + Display>(
        &self,
        device: &CudaDevice,
        inputs: &[Tensor],
        compute: impl Fn(&[Tensor]) -> std::result::Result<Tensor, E>,
    ) -> std::result::Result<Tensor, E> {
        // candle keeps what kernels of strided tensors read of the host, for the recording.
        let prepared = || {
            let _kept = device.enable_cuda_graph_htod_cache();
            Ok::<_, E>(compute(inputs)?.detach())
        };
        let key = inputs.iter().map(|input| (input.dims().to_vec(), input.dtype())).collect();
        let mut stages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match stages.get(&key) {
            None => {
                let is_whole = inputs.iter().all(|input| input.elem_count() > 0);
                let output = prepared()?;
                stages.insert(key, if is_whole { Stage::Warm } else { Stage::Plain });
                Ok(output)
            }
            Some(Stage::Warm) => {
                let (time, output) = timed(device, prepared)?;
                stages.insert(key, Stage::Timed(time));
                Ok(output)
            }
            Some(&Stage::Timed(before)) => {
                let (time, output) = timed(device, prepared)?;
                let time = time.min(before);
                let record = || Recording::of(device, inputs, &output, time, &compute);
                let stage = match while_alone(record) {
                    Some(Ok(Some(recording))) => Stage::Recorded(recording),
                    Some(Ok(None)) => Stage::Plain,
                    // Tried again when it is alone.
                    None => Stage::Timed(time),
                    Some(Err(error)) => {
                        tracing::debug!("not recorded as a CUDA graph: {error}");
                        Stage::Plain
                    }
                };
                stages.insert(key, stage);
                Ok(output)
            }
            Some(Stage::Recorded(recording)) => Ok(recording.call(inputs)?),
            Some(Stage::Plain) => Ok(compute(inputs)?.detach()),
        }
    }
}

impl Recording {
    /// The recording of `compute`, whose results are like `output`; None if it takes about as long
    /// as `time`, which a call takes.
    fn of<E: Display>(
        device: &CudaDevice,
        inputs: &[Tensor],
        output: &Tensor,
        time: Duration,
        compute: impl Fn(&[Tensor]) -> std::result::Result<Tensor, E>,
    ) -> Result<Option<Self>> {
        let (stream, _kept) = (device.cuda_stream(), device.enable_cuda_graph_htod_cache());
        let inputs = inputs.iter().map(Tensor::force_contiguous).collect::<Result<Vec<_>>>()?;
        // Also prepares the same copy of what is recorded.
        let output = output.force_contiguous()?;
        stream.begin_capture(Mode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).w()?;
        let start = Instant::now();
        let is_done = compute(&inputs)
            .map_err(candle_core::Error::msg)
            .and_then(|made| output.slice_set(&made.detach().contiguous()?, 0, 0));
        let starting = start.elapsed();
        let graph = stream.end_capture(Flags(0));
        // What failed while it was recorded is no error of what comes after.
        let freed = stream.context().check_err();
        is_done?;
        let graph = graph.w()?;
        freed.w()?;
        let Some(graph) = graph.filter(|_| starting > time.mul_f64(LEAST_SHARE)) else {
            return Ok(None);
        };
        // A graph has memory of its own.
        device.synchronize()?;
        let_go_of_freed_memory(device).w()?;
        // The first launch takes that memory.
        graph.launch().w()?;
        let (recorded, ()) = timed(device, || graph.launch().w())?;
        tracing::debug!("a call takes {time:.1?}, and {recorded:.1?} recorded as a CUDA graph");
        if recorded > time.mul_f64(WORTH) {
            drop(graph);
            let_go_of_freed_memory(device).w()?;
            return Ok(None);
        }
        Ok(Some(Self { graph, inputs, output }))
    }

    fn call(&self, inputs: &[Tensor]) -> Result<Tensor> {
        for (own, given) in self.inputs.iter().zip(inputs) {
            own.slice_set(&given.contiguous()?, 0, 0)?;
        }
        self.graph.launch().w()?;
        self.output.force_contiguous()
    }
}
