//! Attention by cuDNN's SDPA node, in 16 bits, without a bias or a mask.

use crate::devices::is_there;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaStream, DevicePtr};
use candle_core::{DType, Result};
use cudarc::cudnn::sys;
use secateur_kernels::attention::Shape;
use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};
use sys::cudnnBackendAttributeName_t as Name;
use sys::cudnnBackendAttributeType_t as Type;
use sys::cudnnBackendDescriptorType_t as Kind;

/// The first that has the node.
const LEAST_VERSION: usize = 91_301;

/// The numbers by which the node's tensors are known.
const TENSORS: [i64; 5] = [1, 2, 3, 4, 5];

/// cuDNN on a stream.
pub(super) struct Cudnn {
    handle: sys::cudnnHandle_t,
    stream: Arc<CudaStream>,
    /// None where cuDNN has no way.
    plans: Mutex<HashMap<(DType, Shape), Option<Plan>>>,
}

// SAFETY: the handle and the plans are used behind a lock.
#[expect(unsafe_code, reason = "handles are pointers")]
unsafe impl Send for Cudnn {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "handles are pointers")]
unsafe impl Sync for Cudnn {}

/// How an attention of a shape is computed. Kept as long as the program runs.
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
        tensors: [u64; 4],
    ) -> Result<bool> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = plans.entry((dtype, shape)).or_insert_with(|| self.plan(dtype, shape).ok());
        let Some(plan) = *plan else { return Ok(false) };
        // SAFETY: the work on it is ordered before its memory is used again.
        #[expect(unsafe_code, reason = "memory that is not cleared first")]
        let workspace = unsafe { self.stream.alloc::<u8>(plan.workspace.max(1)) }.w()?;
        let scale = ptr::from_mut(&mut scale) as u64;
        let [q, k, v, y] = tensors;
        let run = || {
            let pack = make(Kind::CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR)?;
            set(pack, Name::CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, Type::CUDNN_TYPE_INT64, &TENSORS)?;
            set(
                pack,
                Name::CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS,
                Type::CUDNN_TYPE_VOID_PTR,
                &[q, k, v, y, scale],
            )?;
            let (address, _guard) = workspace.device_ptr(&self.stream);
            set(
                pack,
                Name::CUDNN_ATTR_VARIANT_PACK_WORKSPACE,
                Type::CUDNN_TYPE_VOID_PTR,
                &[address],
            )?;
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

    fn plan(&self, dtype: DType, shape: Shape) -> std::result::Result<Plan, Refusal> {
        let kind = match dtype {
            DType::F16 => sys::cudnnDataType_t::CUDNN_DATA_HALF,
            DType::BF16 => sys::cudnnDataType_t::CUDNN_DATA_BFLOAT16,
            dtype => return Err(Refusal(format!("no attention in {dtype:?}"))),
        };
        let Shape { batch, heads, queries, keys, head_dim, value_dim } = shape;
        // Samples x tokens x heads x width of a head, in memory.
        let tensor = |id: usize, tokens: usize, width: usize| {
            let sizes = [batch, heads, tokens, width].map(|size| size as i64);
            let strides = [tokens * heads * width, width, heads * width, 1].map(|s| s as i64);
            described(TENSORS[id], kind, sizes, strides, false)
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
                described(TENSORS[4], float, [1; 4], [1; 4], true)?,
            ),
        ] {
            set(node, name, Type::CUDNN_TYPE_BACKEND_DESCRIPTOR, &[tensor])?;
        }
        finish(node)?;
        let graph = make(Kind::CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR)?;
        let descriptor = Type::CUDNN_TYPE_BACKEND_DESCRIPTOR;
        set(graph, Name::CUDNN_ATTR_OPERATIONGRAPH_OPS, descriptor, &[node])?;
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
        Err(Refusal(format!("none of its {count} ways of an attention works here")))
    }
}

/// A tensor of four dimensions; `by_value`: a number that lies on the host.
fn described(
    id: i64,
    kind: sys::cudnnDataType_t,
    sizes: [i64; 4],
    strides: [i64; 4],
    by_value: bool,
) -> std::result::Result<Descriptor, Refusal> {
    let tensor = make(Kind::CUDNN_BACKEND_TENSOR_DESCRIPTOR)?;
    let int = Type::CUDNN_TYPE_INT64;
    set(tensor, Name::CUDNN_ATTR_TENSOR_DATA_TYPE, Type::CUDNN_TYPE_DATA_TYPE, &[kind])?;
    set(tensor, Name::CUDNN_ATTR_TENSOR_DIMENSIONS, int, &sizes)?;
    set(tensor, Name::CUDNN_ATTR_TENSOR_STRIDES, int, &strides)?;
    set(tensor, Name::CUDNN_ATTR_TENSOR_UNIQUE_ID, int, &[id])?;
    set(tensor, Name::CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, int, &[16i64])?;
    if by_value {
        let name = Name::CUDNN_ATTR_TENSOR_IS_BY_VALUE;
        set(tensor, name, Type::CUDNN_TYPE_BOOLEAN, &[true])?;
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
