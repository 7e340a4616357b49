//! What cuDNN computes, in 16 bits: attention without a bias or a mask, by its SDPA node, and
//! convolutions of pictures whose channels lie together.

use crate::devices::is_there;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaStream, DevicePtr};
use candle_core::{DType, Result};
use cudarc::cudnn::sys;
use secateur_kernels::attention::Shape;
use secateur_kernels::convolution::Convolution;
use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};
use sys::cudnnBackendAttributeName_t as Name;
use sys::cudnnBackendAttributeType_t as Type;
use sys::cudnnBackendDescriptorType_t as Kind;

/// The first that has the node.
const LEAST_VERSION: usize = 91_301;

/// The numbers by which the tensors of a graph are known: four that are given, and one inside of it
/// or on the host.
const TENSORS: [i64; 5] = [1, 2, 3, 4, 5];

/// What is computed, by which a plan is found.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Work {
    Attention(Shape),
    /// With the number of samples and of outputs.
    Convolution(Convolution, usize, usize),
}

/// cuDNN on a stream.
pub(super) struct Cudnn {
    handle: sys::cudnnHandle_t,
    stream: Arc<CudaStream>,
    /// None where cuDNN has no way.
    plans: Mutex<HashMap<(DType, Work), Option<Plan>>>,
}

// SAFETY: the handle and the plans are used behind a lock.
#[expect(unsafe_code, reason = "handles are pointers")]
unsafe impl Send for Cudnn {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "handles are pointers")]
unsafe impl Sync for Cudnn {}

/// How a work is computed. Kept as long as the program runs.
#[derive(Clone, Copy)]
struct Plan {
    plan: Descriptor,
    workspace: usize,
}

type Descriptor = sys::cudnnBackendDescriptor_t;

/// What cuDNN answered.
struct Refusal(String);

impl From<Refusal> for candle_core::Error {
    fn from(refusal: Refusal) -> Self {
        Self::Cuda(format!("cuDNN: {}", refusal.0).into())
    }
}

impl Cudnn {
    /// cuDNN, where it is there and new enough.
    pub(super) fn open(stream: Arc<CudaStream>) -> Option<Self> {
        if !is_there("cudnn") {
            return None;
        }
        let mut handle = ptr::null_mut();
        // SAFETY: the library is there; the handle is written before it is read.
        #[expect(unsafe_code, reason = "calls of the library")]
        let is_open = unsafe {
            sys::cudnnGetVersion() >= LEAST_VERSION
                && checked(sys::cudnnCreate(&raw mut handle)).is_ok()
                && checked(sys::cudnnSetStream(handle, stream.cu_stream().cast())).is_ok()
        };
        is_open.then(|| Self { handle, stream, plans: Mutex::default() })
    }

    /// Starts softmax(scale * Q K^T) V of tensors at the addresses of q, k, v and the result, or
    /// tells that cuDNN cannot.
    pub(super) fn attention(
        &self,
        (dtype, shape, mut scale): (DType, Shape, f32),
        [q, k, v, y]: [u64; 4],
    ) -> Result<bool> {
        let scale = ptr::from_mut(&mut scale) as u64;
        self.start(dtype, Work::Attention(shape), &[q, k, v, y, scale])
    }

    /// Starts a convolution of that many samples to that many outputs, with a bias, or tells that
    /// cuDNN cannot. The addresses are those of the pictures (samples x height x width x channels),
    /// the weights (outputs x kernel x kernel x channels), the bias, and the result, which lies as
    /// the pictures do.
    pub(super) fn convolution(
        &self,
        dtype: DType,
        (convolution, samples, outputs): (Convolution, usize, usize),
        tensors: [u64; 4],
    ) -> Result<bool> {
        self.start(dtype, Work::Convolution(convolution, samples, outputs), &tensors)
    }

    fn start(&self, dtype: DType, work: Work, tensors: &[u64]) -> Result<bool> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = plans.entry((dtype, work)).or_insert_with(|| {
            match work {
                Work::Attention(shape) => self.plan(dtype, shape),
                Work::Convolution(convolution, samples, outputs) => {
                    self.plan_of_convolution(dtype, convolution, (samples, outputs))
                }
            }
            .ok()
        });
        let Some(plan) = *plan else { return Ok(false) };
        // SAFETY: the work on it is ordered before its memory is used again.
        #[expect(unsafe_code, reason = "memory that is not cleared first")]
        let workspace = unsafe { self.stream.alloc::<u8>(plan.workspace.max(1)) }.w()?;
        let run = || {
            let pack = make(Kind::CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR)?;
            let ids = &TENSORS[..tensors.len()];
            set(pack, Name::CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, Type::CUDNN_TYPE_INT64, ids)?;
            let pointer = Type::CUDNN_TYPE_VOID_PTR;
            set(pack, Name::CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, pointer, tensors)?;
            let (address, _guard) = workspace.device_ptr(&self.stream);
            set(pack, Name::CUDNN_ATTR_VARIANT_PACK_WORKSPACE, pointer, &[address])?;
            finish(pack)?;
            // SAFETY: all descriptors are finished, and the tensors alive.
            #[expect(unsafe_code, reason = "calls of the library")]
            unsafe {
                checked(sys::cudnnBackendExecute(self.handle, plan.plan, pack))?;
                checked(sys::cudnnBackendDestroyDescriptor(pack))
            }
        };
        run()?;
        Ok(true)
    }

    /// The convolution, and the sum of its result in `f32` with the bias.
    fn plan_of_convolution(
        &self,
        dtype: DType,
        convolution: Convolution,
        (samples, outputs): (usize, usize),
    ) -> std::result::Result<Plan, Refusal> {
        let Convolution { channels, size, kernel, stride, padding } = convolution;
        let out_size = convolution.output_size();
        let (kind, float) = (half_type(dtype)?, sys::cudnnDataType_t::CUDNN_DATA_FLOAT);
        // Sizes with the channels second, in memory last.
        let tensor = |id: usize, sizes: [usize; 4], kind, place| {
            let [_, channels, height, width] = sizes;
            let strides = [height * width * channels, 1, width * channels, channels];
            let numbers = |sizes: [usize; 4]| sizes.map(|size| size as i64);
            described(TENSORS[id], kind, numbers(sizes), numbers(strides), place)
        };
        let x = tensor(0, [samples, channels, size.0, size.1], kind, Place::Device)?;
        let w = tensor(1, [outputs, channels, kernel, kernel], kind, Place::Device)?;
        let b = tensor(2, [1, outputs, 1, 1], kind, Place::Device)?;
        let result = [samples, outputs, out_size.0, out_size.1];
        let y = tensor(3, result, kind, Place::Device)?;
        let sum = tensor(4, result, float, Place::Inside)?;

        let (int, descriptor) = (Type::CUDNN_TYPE_INT64, Type::CUDNN_TYPE_BACKEND_DESCRIPTOR);
        let each = |size: usize| [size as i64; 2];
        let how = make(Kind::CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR)?;
        let data = Type::CUDNN_TYPE_DATA_TYPE;
        set(how, Name::CUDNN_ATTR_CONVOLUTION_COMP_TYPE, data, &[float])?;
        let mode = [sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION];
        set(how, Name::CUDNN_ATTR_CONVOLUTION_CONV_MODE, Type::CUDNN_TYPE_CONVOLUTION_MODE, &mode)?;
        set(how, Name::CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, int, &[2i64])?;
        set(how, Name::CUDNN_ATTR_CONVOLUTION_DILATIONS, int, &each(1))?;
        set(how, Name::CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, int, &each(stride))?;
        set(how, Name::CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, int, &each(padding.0))?;
        set(how, Name::CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, int, &each(padding.1))?;
        finish(how)?;
        let node = make(Kind::CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR)?;
        for (name, value) in [
            (Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, how),
            (Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, x),
            (Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, w),
            (Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, sum),
        ] {
            set(node, name, descriptor, &[value])?;
        }
        let number = Type::CUDNN_TYPE_FLOAT;
        set(node, Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, number, &[1f32])?;
        set(node, Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA, number, &[0f32])?;
        finish(node)?;

        let add = make(Kind::CUDNN_BACKEND_POINTWISE_DESCRIPTOR)?;
        let mode = [sys::cudnnPointwiseMode_t::CUDNN_POINTWISE_ADD];
        set(add, Name::CUDNN_ATTR_POINTWISE_MODE, Type::CUDNN_TYPE_POINTWISE_MODE, &mode)?;
        set(add, Name::CUDNN_ATTR_POINTWISE_MATH_PREC, data, &[float])?;
        finish(add)?;
        let with_bias = make(Kind::CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR)?;
        for (name, value) in [
            (Name::CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, add),
            (Name::CUDNN_ATTR_OPERATION_POINTWISE_XDESC, sum),
            (Name::CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b),
            (Name::CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y),
        ] {
            set(with_bias, name, descriptor, &[value])?;
        }
        finish(with_bias)?;
        self.plan_of(&[node, with_bias])
    }

    fn plan(&self, dtype: DType, shape: Shape) -> std::result::Result<Plan, Refusal> {
        let kind = half_type(dtype)?;
        let Shape { batch, heads, queries, keys, head_dim, value_dim } = shape;
        // Samples x tokens x heads x width of a head, in memory.
        let tensor = |id: usize, tokens: usize, width: usize| {
            let sizes = [batch, heads, tokens, width].map(|size| size as i64);
            let strides = [tokens * heads * width, width, heads * width, 1].map(|s| s as i64);
            described(TENSORS[id], kind, sizes, strides, Place::Device)
        };
        let float = sys::cudnnDataType_t::CUDNN_DATA_FLOAT;
        let node = make(Kind::CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR)?;
        for (name, tensor) in [
            (Name::CUDNN_ATTR_OPERATION_SDPA_FWD_QDESC, tensor(0, queries, head_dim)?),
            (Name::CUDNN_ATTR_OPERATION_SDPA_FWD_KDESC, tensor(1, keys, head_dim)?),
            (Name::CUDNN_ATTR_OPERATION_SDPA_FWD_VDESC, tensor(2, keys, value_dim)?),
            (Name::CUDNN_ATTR_OPERATION_SDPA_FWD_ODESC, tensor(3, queries, value_dim)?),
            (
                Name::CUDNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC,
                described(TENSORS[4], float, [1; 4], [1; 4], Place::Host)?,
            ),
        ] {
            set(node, name, Type::CUDNN_TYPE_BACKEND_DESCRIPTOR, &[tensor])?;
        }
        finish(node)?;
        self.plan_of(&[node])
    }

    /// The best way to compute these nodes together.
    fn plan_of(&self, nodes: &[Descriptor]) -> std::result::Result<Plan, Refusal> {
        let graph = make(Kind::CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR)?;
        let descriptor = Type::CUDNN_TYPE_BACKEND_DESCRIPTOR;
        set(graph, Name::CUDNN_ATTR_OPERATIONGRAPH_OPS, descriptor, nodes)?;
        let handle = [self.handle];
        set(graph, Name::CUDNN_ATTR_OPERATIONGRAPH_HANDLE, Type::CUDNN_TYPE_HANDLE, &handle)?;
        finish(graph)?;
        let heuristics = make(Kind::CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR)?;
        set(heuristics, Name::CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, descriptor, &[graph])?;
        let mode = [sys::cudnnBackendHeurMode_t::CUDNN_HEUR_MODE_A];
        set(heuristics, Name::CUDNN_ATTR_ENGINEHEUR_MODE, Type::CUDNN_TYPE_HEUR_MODE, &mode)?;
        finish(heuristics)?;
        let mut ways = Vec::new();
        for _ in 0..8 {
            ways.push(make(Kind::CUDNN_BACKEND_ENGINECFG_DESCRIPTOR)?);
        }
        let count = get(heuristics, Name::CUDNN_ATTR_ENGINEHEUR_RESULTS, descriptor, &mut ways)?;
        for way in &ways[..count] {
            let plan = make(Kind::CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR)?;
            set(plan, Name::CUDNN_ATTR_EXECUTION_PLAN_HANDLE, Type::CUDNN_TYPE_HANDLE, &handle)?;
            set(plan, Name::CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, descriptor, &[*way])?;
            if finish(plan).is_err() {
                continue;
            }
            let mut workspace = [0i64];
            let name = Name::CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE;
            get(plan, name, Type::CUDNN_TYPE_INT64, &mut workspace)?;
            return Ok(Plan { plan, workspace: workspace[0] as usize });
        }
        Err(Refusal(format!("none of its {count} ways works here")))
    }
}

fn half_type(dtype: DType) -> std::result::Result<sys::cudnnDataType_t, Refusal> {
    match dtype {
        DType::F16 => Ok(sys::cudnnDataType_t::CUDNN_DATA_HALF),
        DType::BF16 => Ok(sys::cudnnDataType_t::CUDNN_DATA_BFLOAT16),
        dtype => Err(Refusal(format!("{dtype:?} is left to others"))),
    }
}

/// Where a tensor of a graph lies.
#[derive(Clone, Copy)]
enum Place {
    Device,
    /// A number on the host.
    Host,
    /// Between two nodes, nowhere.
    Inside,
}

/// A tensor of four dimensions.
fn described(
    id: i64,
    kind: sys::cudnnDataType_t,
    sizes: [i64; 4],
    strides: [i64; 4],
    place: Place,
) -> std::result::Result<Descriptor, Refusal> {
    let tensor = make(Kind::CUDNN_BACKEND_TENSOR_DESCRIPTOR)?;
    let (int, boolean) = (Type::CUDNN_TYPE_INT64, Type::CUDNN_TYPE_BOOLEAN);
    set(tensor, Name::CUDNN_ATTR_TENSOR_DATA_TYPE, Type::CUDNN_TYPE_DATA_TYPE, &[kind])?;
    set(tensor, Name::CUDNN_ATTR_TENSOR_DIMENSIONS, int, &sizes)?;
    set(tensor, Name::CUDNN_ATTR_TENSOR_STRIDES, int, &strides)?;
    set(tensor, Name::CUDNN_ATTR_TENSOR_UNIQUE_ID, int, &[id])?;
    set(tensor, Name::CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, int, &[16i64])?;
    match place {
        Place::Device => {}
        Place::Host => set(tensor, Name::CUDNN_ATTR_TENSOR_IS_BY_VALUE, boolean, &[true])?,
        Place::Inside => set(tensor, Name::CUDNN_ATTR_TENSOR_IS_VIRTUAL, boolean, &[true])?,
    }
    finish(tensor)?;
    Ok(tensor)
}

fn make(kind: Kind) -> std::result::Result<Descriptor, Refusal> {
    let mut descriptor = ptr::null_mut();
    // SAFETY: it is written before it is read.
    #[expect(unsafe_code, reason = "a call of the library")]
    checked(unsafe { sys::cudnnBackendCreateDescriptor(kind, &raw mut descriptor) })?;
    Ok(descriptor)
}

/// `T` is what cuDNN takes as that type.
fn set<T>(
    descriptor: Descriptor,
    name: Name,
    kind: Type,
    values: &[T],
) -> std::result::Result<(), Refusal> {
    let count = values.len() as i64;
    // SAFETY: `count` values lie there.
    #[expect(unsafe_code, reason = "a call of the library")]
    checked(unsafe {
        sys::cudnnBackendSetAttribute(descriptor, name, kind, count, values.as_ptr().cast())
    })
}

/// Fills `values`, and tells how many there are.
fn get<T>(
    descriptor: Descriptor,
    name: Name,
    kind: Type,
    values: &mut [T],
) -> std::result::Result<usize, Refusal> {
    let mut count = 0i64;
    let room = values.len() as i64;
    let to = values.as_mut_ptr().cast::<c_void>();
    // SAFETY: there is room for as many values.
    #[expect(unsafe_code, reason = "a call of the library")]
    checked(unsafe {
        sys::cudnnBackendGetAttribute(descriptor, name, kind, room, &raw mut count, to)
    })?;
    Ok((count as usize).min(values.len()))
}

fn finish(descriptor: Descriptor) -> std::result::Result<(), Refusal> {
    // SAFETY: it was made by `make`.
    #[expect(unsafe_code, reason = "a call of the library")]
    checked(unsafe { sys::cudnnBackendFinalize(descriptor) })
}

fn checked(status: sys::cudnnStatus_t) -> std::result::Result<(), Refusal> {
    match status {
        sys::cudnnStatus_t::CUDNN_STATUS_SUCCESS => Ok(()),
        status => Err(Refusal(format!("{status:?}"))),
    }
}
