//! Computations recorded as CUDA graphs.

use crate::devices::let_go_of_freed_memory;
use crate::placement::while_alone;
use candle_core::backend::BackendDevice;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::sys::{
    CUgraphInstantiate_flags as Flags, CUstreamCaptureMode as Mode,
};
use candle_core::cuda_backend::cudarc::driver::{CudaGraph, CudaStream, DriverError};
use candle_core::{CudaDevice, DType, Result, Tensor};
use std::collections::HashMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, ThreadId};
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
    device: CudaDevice,
    /// The thread that recorded it: candle keeps what a graph reads of the host for each thread.
    thread: ThreadId,
    /// None only while it is dropped.
    graph: Option<CudaGraph>,
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

    pub(in crate::ops) fn let_go_of_memory(&self) {
        let stages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let recorded = stages.values().find_map(|stage| match stage {
            Stage::Recorded(recording) => Some(recording),
            _ => None,
        });
        // Where it cannot be given back it is there for the next call.
        let _ = recorded.map(|recording| let_go_of_freed_memory(&recording.device));
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
            compute(inputs)
        };
        let key = inputs.iter().map(|input| (input.dims().to_vec(), input.dtype())).collect();
        let mut stages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match stages.get(&key) {
            None => {
                let output = prepared()?;
                let is_whole = inputs.iter().all(|input| input.elem_count() > 0);
                let is_plain = output.track_op() || !is_whole;
                stages.insert(key, if is_plain { Stage::Plain } else { Stage::Warm });
                Ok(output)
            }
            // Others would be timed, and recorded, too.
            Some(Stage::Warm | Stage::Timed(_)) if while_alone(|| ()).is_none() => {
                Ok(compute(inputs)?)
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
                    None => Stage::Timed(time),
                    Some(Err(error)) => {
                        tracing::debug!("not recorded as a CUDA graph: {error}");
                        Stage::Plain
                    }
                };
                stages.insert(key, stage);
                Ok(output)
            }
            Some(Stage::Recorded(recording)) if recording.thread == thread::current().id() => {
                Ok(recording.call(inputs)?)
            }
            Some(Stage::Recorded(_) | Stage::Plain) => compute(inputs),
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
        let capture = Capture::begin(&stream)?;
        let start = Instant::now();
        compute(&inputs)
            .map_err(candle_core::Error::msg)
            .and_then(|made| output.slice_set(&made.contiguous()?, 0, 0))?;
        let starting = start.elapsed();
        let Some(graph) = capture.end()?.filter(|_| starting > time.mul_f64(LEAST_SHARE)) else {
            return Ok(None);
        };
        // A graph has memory of its own.
        device.synchronize()?;
        let_go_of_freed_memory(device).w()?;
        // The first launch takes that memory.
        graph.launch().w()?;
        let (recorded, ()) = timed(device, || graph.launch().w())?;
        tracing::debug!("a call takes {time:.1?}, and {recorded:.1?} recorded as a CUDA graph");
        let (device, thread) = (device.clone(), thread::current().id());
        let recording = Self { device, thread, graph: Some(graph), inputs, output };
        Ok((recorded <= time.mul_f64(WORTH)).then_some(recording))
    }

    fn call(&self, inputs: &[Tensor]) -> Result<Tensor> {
        for (own, given) in self.inputs.iter().zip(inputs) {
            own.slice_set(&given.contiguous()?, 0, 0)?;
        }
        if let Some(graph) = &self.graph {
            graph.launch().w()?;
        }
        self.output.force_contiguous()
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        drop(self.graph.take());
        // Another program could have it; if not, nothing is lost.
        let _ = let_go_of_freed_memory(&self.device);
    }
}

/// A stream whose work is recorded in place of being done, until this ends.
struct Capture<'a> {
    stream: &'a Arc<CudaStream>,
    is_open: bool,
}

impl<'a> Capture<'a> {
    fn begin(stream: &'a Arc<CudaStream>) -> Result<Self> {
        stream.begin_capture(Mode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).w()?;
        Ok(Self { stream, is_open: true })
    }

    fn end(mut self) -> Result<Option<CudaGraph>> {
        self.close().w()
    }

    fn close(&mut self) -> std::result::Result<Option<CudaGraph>, DriverError> {
        self.is_open = false;
        // What failed meanwhile, or while it ends, is no error of what comes after.
        let failed = self.stream.context().check_err();
        let graph = self.stream.end_capture(Flags(0));
        failed.and(self.stream.context().check_err()).and(graph)
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if self.is_open {
            // Whoever left it open has an error of his own.
            let _ = self.close();
        }
    }
}
