//! Products by cuBLASLt, with a bias and an activation in the same pass.

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::cublaslt::{result, sys};
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use candle_core::{DType, Result, bail};
use secateur_kernels::gram::bands;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

/// More makes no product faster.
const WORKSPACE: usize = 32 << 20;

/// y (rows x outputs) = x (rows x inputs) W^T + bias, W outputs x inputs.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Product {
    /// Of x, W and bias.
    pub(super) dtype: DType,
    pub(super) dtype_of_y: DType,
    /// Of each sample.
    pub(super) rows: usize,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    /// Numbers from one row to the next in memory: of x, W and y.
    pub(super) pitches: [usize; 3],
    /// Whether x^T and W^T lie in memory, and not x and W.
    pub(super) transposed: [bool; 2],
    pub(super) samples: usize,
    /// Numbers from one sample to the next: of x and y.
    pub(super) strides: [usize; 2],
    pub(super) bias: bool,
    /// Ends with GELU's tanh approximation.
    pub(super) gelu_tanh: bool,
}

impl Product {
    /// Of contiguous tensors of one type, without bias and activation.
    pub(super) fn new(dtype: DType, rows: usize, inputs: usize, outputs: usize) -> Self {
        Self {
            dtype,
            dtype_of_y: dtype,
            rows,
            inputs,
            outputs,
            pitches: [inputs, inputs, outputs],
            transposed: [false; 2],
            samples: 1,
            strides: [0; 2],
            bias: false,
            gelu_tanh: false,
        }
    }
}

/// The addresses of a product's tensors.
pub(super) struct Operands {
    pub(super) x: u64,
    pub(super) weight: u64,
    pub(super) bias: Option<u64>,
    pub(super) y: u64,
}

impl Operands {
    /// The greatest power of two, up to 256, that divides all addresses.
    fn alignment(&self) -> u32 {
        let all = self.x | self.weight | self.y | self.bias.unwrap_or(0) | 256;
        1 << all.trailing_zeros()
    }
}

/// The handle of a stream's products, and how they are best computed.
pub(super) struct Products {
    handle: sys::cublasLtHandle_t,
    workspace: CudaSlice<u8>,
    stream: Arc<CudaStream>,
    plans: Mutex<HashMap<(Product, u32), Plan>>,
}

// SAFETY: the library's handles may be used by any thread; plans are behind a lock.
#[expect(unsafe_code, reason = "handles are pointers")]
unsafe impl Send for Products {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "handles are pointers")]
unsafe impl Sync for Products {}

/// Kept as long as the program runs.
struct Plan {
    description: sys::cublasLtMatmulDesc_t,
    weight: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    y: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// How a Gram matrix lies in memory.
#[derive(Clone, Copy)]
pub(super) enum GramHeld {
    Whole,
    /// Only its [`bands`].
    Bands,
}

impl Products {
    pub(super) fn new(stream: Arc<CudaStream>) -> Result<Self> {
        Ok(Self {
            handle: result::create_handle().map_err(told)?,
            workspace: stream.alloc_zeros(WORKSPACE).w()?,
            stream,
            plans: Mutex::default(),
        })
    }

    /// Adds factor * x^T x to the upper triangle (row <= column) of a Gram matrix (width x width,
    /// `f32`), for x (rows x width); below it, only within bands.
    pub(super) fn add_gram(
        &self,
        dtype: DType,
        (rows, width): (usize, usize),
        factor: f32,
        x: u64,
        gram: u64,
        held: GramHeld,
    ) -> Result<()> {
        let mut before = 0;
        for band in bands(width) {
            let columns = width - band.start;
            let (pitch, begin) = match held {
                GramHeld::Whole => (width, band.start * width + band.start),
                GramHeld::Bands => (columns, before),
            };
            before += band.len() * columns;
            // x^T of the columns of these rows times x of these and the columns behind them.
            let product = Product {
                dtype_of_y: DType::F32,
                pitches: [width, width, pitch],
                transposed: [true; 2],
                ..Product::new(dtype, band.len(), rows, columns)
            };
            let x = x + (band.start * dtype.size_in_bytes()) as u64;
            let y = gram + (begin * size_of::<f32>()) as u64;
            self.add(product, &Operands { x, weight: x, bias: None, y }, (factor, 1.0))?;
        }
        Ok(())
    }

    /// Starts a product of at least one row, input and output.
    pub(super) fn start(&self, product: Product, operands: &Operands) -> Result<()> {
        self.add(product, operands, (1.0, 0.0))
    }

    /// Starts y = factors.0 * (the product) + factors.1 * y.
    pub(super) fn add(
        &self,
        product: Product,
        operands: &Operands,
        factors: (f32, f32),
    ) -> Result<()> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = match plans.entry((product, operands.alignment())) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(self.plan(product, operands)?),
        };
        if let Some(bias) = operands.bias {
            plan.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        }
        let (workspace, _guard) = self.workspace.device_ptr(&self.stream);
        // SAFETY: the descriptors are alive, and the addresses those of live tensors of the shapes
        // that they describe.
        #[expect(unsafe_code, reason = "a call of the library")]
        unsafe {
            result::matmul(
                self.handle,
                plan.description,
                (&raw const factors.0).cast(),
                (&raw const factors.1).cast(),
                operands.weight as *const c_void,
                plan.weight,
                operands.x as *const c_void,
                plan.x,
                operands.y as *const c_void,
                plan.y,
                operands.y as *mut c_void,
                plan.y,
                &raw const plan.algorithm,
                workspace as *mut c_void,
                WORKSPACE,
                self.stream.cu_stream().cast(),
            )
        }
        .map_err(told)
    }

    /// The library's matrices lie column by column: of ours it sees the transposes, y^T = W x^T.
    fn plan(&self, product: Product, operands: &Operands) -> Result<Plan> {
        let Product { rows, inputs, outputs, pitches, transposed, strides, .. } = product;
        let dtype = type_of(product.dtype)?;
        let of = |rows: usize, columns: usize, pitch: usize, transposed: bool| match transposed {
            true => matrix(dtype, columns, rows, pitch),
            false => matrix(dtype, rows, columns, pitch),
        };
        let x = of(inputs, rows, pitches[0], transposed[0])?;
        let weight = of(inputs, outputs, pitches[1], transposed[1])?;
        let y = matrix(type_of(product.dtype_of_y)?, outputs, rows, pitches[2])?;
        if product.samples > 1 {
            for (layout, stride) in [(weight, 0), (x, strides[0]), (y, strides[1])] {
                let (samples, stride) = (product.samples as i32, stride as i64);
                set(layout, Layout::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &samples)?;
                set(layout, Layout::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride)?;
            }
        }
        let mut plan = Plan::new(weight, x, y)?;
        plan.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &i32::from(!transposed[1]))?;
        plan.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, &i32::from(transposed[0]))?;
        let epilogue = match (product.bias, product.gelu_tanh) {
            (false, false) => sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_DEFAULT,
            (false, true) => sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_GELU,
            (true, false) => sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS,
            (true, true) => sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_GELU_BIAS,
        };
        plan.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &(epilogue as u32))?;
        if let Some(bias) = operands.bias {
            plan.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        }
        self.choose(&mut plan, operands.alignment())?;
        Ok(plan)
    }

    /// Sets the algorithm that the library takes for the fastest, for addresses of that alignment.
    fn choose(&self, plan: &mut Plan, alignment: u32) -> Result<()> {
        let preference = result::create_matmul_pref().map_err(told)?;
        let mut preferences = vec![(
            Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
            (&raw const WORKSPACE_BYTES).cast::<c_void>(),
            size_of::<usize>(),
        )];
        for name in [
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            preferences.push((name, (&raw const alignment).cast(), size_of::<u32>()));
        }
        for (name, value, size) in preferences {
            // SAFETY: the value is alive and of the size that the library expects of that name.
            #[expect(unsafe_code, reason = "a call of the library")]
            unsafe { result::set_matmul_pref_attribute(preference, name, value, size) }
                .map_err(told)?;
        }
        // SAFETY: the plan's descriptors are alive.
        #[expect(unsafe_code, reason = "a call of the library")]
        let best = unsafe {
            result::get_matmul_algo_heuristic(
                self.handle,
                plan.description,
                plan.weight,
                plan.x,
                plan.y,
                plan.y,
                preference,
            )
        }
        .map_err(told)?;
        plan.algorithm = best.algo;
        // SAFETY: it is not used any more.
        #[expect(unsafe_code, reason = "a call of the library")]
        unsafe { result::destroy_matmul_pref(preference) }.map_err(told)
    }
}

fn type_of(dtype: DType) -> Result<sys::cudaDataType_t> {
    Ok(match dtype {
        DType::F32 => sys::cudaDataType_t::CUDA_R_32F,
        DType::F16 => sys::cudaDataType_t::CUDA_R_16F,
        DType::BF16 => sys::cudaDataType_t::CUDA_R_16BF,
        dtype => bail!("there is no product of numbers of type {dtype:?}"),
    })
}

/// Of the library's order; `pitch` numbers from column to column.
fn matrix(
    dtype: sys::cudaDataType_t,
    rows: usize,
    columns: usize,
    pitch: usize,
) -> Result<sys::cublasLtMatrixLayout_t> {
    result::create_matrix_layout(dtype, rows as u64, columns as u64, pitch as i64).map_err(told)
}

static WORKSPACE_BYTES: usize = WORKSPACE;

use sys::cublasLtMatmulDescAttributes_t as Attribute;
use sys::cublasLtMatmulPreferenceAttributes_t as Preference;
use sys::cublasLtMatrixLayoutAttribute_t as Layout;

/// `T` is the type that the library expects of that attribute.
fn set<T>(layout: sys::cublasLtMatrixLayout_t, attribute: Layout, value: &T) -> Result<()> {
    // SAFETY: the value is alive and as large as said.
    #[expect(unsafe_code, reason = "a call of the library")]
    unsafe {
        result::set_matrix_layout_attribute(
            layout,
            attribute,
            (&raw const *value).cast(),
            size_of::<T>(),
        )
    }
    .map_err(told)
}

impl Plan {
    fn new(
        weight: sys::cublasLtMatrixLayout_t,
        x: sys::cublasLtMatrixLayout_t,
        y: sys::cublasLtMatrixLayout_t,
    ) -> Result<Self> {
        // Without TF32, which keeps 10 bits of 23.
        let precision = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let description =
            result::create_matmul_desc(precision, sys::cudaDataType_t::CUDA_R_32F).map_err(told)?;
        let algorithm = sys::cublasLtMatmulAlgo_t { data: [0; 8] };
        Ok(Self { description, weight, x, y, algorithm })
    }

    /// `T` is the type that the library expects of that attribute.
    fn set<T>(&self, attribute: Attribute, value: &T) -> Result<()> {
        // SAFETY: the value is alive and as large as said.
        #[expect(unsafe_code, reason = "a call of the library")]
        unsafe {
            result::set_matmul_desc_attribute(
                self.description,
                attribute,
                (&raw const *value).cast(),
                size_of::<T>(),
            )
        }
        .map_err(told)
    }
}

fn told(error: result::CublasError) -> candle_core::Error {
    candle_core::Error::Cuda(format!("cuBLASLt: {:?}", error.0).into())
}
