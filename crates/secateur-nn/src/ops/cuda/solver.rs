//! The OBS solver on a GPU, as `secateur-kernels` has it for the CPU: between products, kernels of
//! `solver.cuh`.

use super::launch::{self, Gpu, Launch, Scalar, THREADS, filled, with_addresses};
use super::products::{GramHeld, Operands, Product, Products};
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtr, sys};
use candle_core::{CudaDevice, DType, Result, Tensor};
use secateur_kernels::gram::rows_of_a_band;
use secateur_kernels::obs::Choice;
use std::sync::Arc;

/// Columns that a block of threads factors alone, in `f64`.
const BASE: usize = 64;
/// Floats of shared memory that this takes.
const SHARED: usize = 2 * BASE * BASE * size_of::<f64>() / size_of::<f32>();
/// Columns solved at a time; what they owe the columns behind them is paid in one product.
const BLOCK: usize = 128;
/// Rows that a block of threads solves.
const ROWS: usize = 32;
/// The most weights of a group: a warp has as many lanes.
const LARGEST_GROUP: usize = 32;
/// Bins of the scores' counts.
const BINS: usize = 2048;
/// Of the counts in turn: the lowest bit that they count by, and the lowest that is known before.
const PASSES: [(i32, i32); 3] = [(21, 32), (10, 21), (0, 10)];

/// A kernel on numbers of `f32`, one at a time.
fn start(
    name: &str,
    device: &CudaDevice,
    (blocks, threads, shared): ((usize, usize), usize, usize),
    scalars: &[Scalar],
    inputs: &[u64],
    output: u64,
) -> Result<()> {
    let launch = Launch { name, width: 1, blocks, threads, shared, scalars };
    launch::start(&launch, device, DType::F32, inputs, output)
}

/// Mirrors the upper triangle of the matrix at `gram` (width x width) into the lower one.
fn symmetrise(device: &CudaDevice, gram: u64, width: usize) -> Result<()> {
    let tiles = width.div_ceil(32);
    let scalars = [Scalar::Int(width as i32)];
    start("symmetrise", device, ((tiles, tiles), THREADS, 0), &scalars, &[], gram)
}

/// As [`super::super::whole_gram`], of at least one column.
pub(in crate::ops) fn whole_gram(bands: &Tensor, width: usize) -> Result<Tensor> {
    let bands = bands.detach().contiguous()?;
    let whole = with_addresses(&[&bands], |device, addresses| {
        filled(device, DType::F32, (width, width), |whole| {
            let scalars = [Scalar::Int(width as i32), Scalar::Int(rows_of_a_band(width) as i32)];
            let blocks = (width.div_ceil(THREADS), width);
            start("spread_bands", device, (blocks, THREADS, 0), &scalars, addresses, whole)?;
            symmetrise(device, whole, width)
        })
    })?;
    Ok(whole.untracked())
}

/// As [`super::super::add_gram`].
pub(in crate::ops) fn add_gram(matrix: &Tensor, x: &Tensor, factor: f32) -> Result<Tensor> {
    let (rows, columns) = x.dims2()?;
    let sum = matrix.detach().contiguous()?.copy()?;
    let x = x.detach().contiguous()?;
    with_addresses(&[&sum, &x], |device, addresses| {
        let [sum, x] = [addresses[0], addresses[1]];
        let (products, of_x) = (&Gpu::of(device)?.products, (rows, columns));
        products.add_gram(DType::F32, of_x, factor, x, sum, GramHeld::Whole)?;
        symmetrise(device, sum, columns)
    })?;
    Ok(sum)
}

/// As [`super::super::inverse_factor`].
pub(in crate::ops) fn inverse_factor(matrix: &Tensor, diagonal: &[f32]) -> Result<Option<Tensor>> {
    let columns = diagonal.len();
    if columns == 0 {
        return Ok(Some(matrix.clone()));
    }
    let factor = matrix.detach().contiguous()?.copy()?;
    let failed = with_addresses(&[&factor], |device, addresses| {
        let stream = device.cuda_stream();
        let diagonal = stream.clone_htod(diagonal).w()?;
        let failed = stream.alloc_zeros::<f32>(1).w()?;
        let blocks = (columns.div_ceil(THREADS), 1);
        let of_diagonal = diagonal.device_ptr(&stream).0;
        let scalars = [Scalar::Int(columns as i32)];
        let shape = (blocks, THREADS, 0);
        start("set_diagonal", device, shape, &scalars, &[of_diagonal], addresses[0])?;
        let gpu = Gpu::of(device)?;
        let factoring = Factoring {
            device,
            stream: stream.clone(),
            products: &gpu.products,
            stride: columns,
            failed: failed.device_ptr(&stream).0,
        };
        factoring.by_halves(addresses[0], columns)?;
        Ok(stream.clone_dtoh(&failed).w()? != [0.0])
    })?;
    let is_whole = !failed && factor.sum_all()?.to_scalar::<f32>()?.is_finite();
    Ok(is_whole.then_some(factor))
}

/// A matrix that is factored in place.
struct Factoring<'a> {
    device: &'a CudaDevice,
    stream: Arc<CudaStream>,
    products: &'a Products,
    /// Numbers from row to row.
    stride: usize,
    /// The address of what tells that it is not positive definite.
    failed: u64,
}

impl Factoring<'_> {
    /// The leading `columns` columns and rows at an address, as `factor.rs` of secateur-kernels
    /// does it.
    fn by_halves(&self, a: u64, columns: usize) -> Result<()> {
        let stride = self.stride;
        if columns <= BASE {
            let scalars = [Scalar::Int(columns as i32), Scalar::Size(stride)];
            let shape = ((1, 1), THREADS, SHARED);
            return start("inverse_factor", self.device, shape, &scalars, &[self.failed], a);
        }
        let first = (columns / 2).next_multiple_of(BASE).min(columns - 1);
        let second = columns - first;
        let at =
            |row: usize, column: usize| a + ((row * stride + column) * size_of::<f32>()) as u64;
        let (a12, u22) = (at(0, first), at(first, first));
        self.clear(at(first, 0), (second, first))?;
        self.by_halves(u22, second)?;

        // R12 = A12 U22^T, then A11 - R12 R12^T in place of A11.
        let r12 = self.temporary(first * second)?;
        let r12_at = r12.device_ptr(&self.stream).0;
        let product = |inputs: usize, outputs: usize, pitches: [usize; 3]| Product {
            pitches,
            ..Product::new(DType::F32, first, inputs, outputs)
        };
        let start = |product: Product, x: u64, weight: u64, y: u64, factors: (f32, f32)| {
            self.products.add(product, &Operands { x, weight, bias: None, y }, factors)
        };
        let of_r12 = product(second, second, [stride, stride, second]);
        start(of_r12, a12, u22, r12_at, (1.0, 0.0))?;
        let of_a11 = product(second, first, [second, second, stride]);
        start(of_a11, r12_at, r12_at, a, (-1.0, 1.0))?;
        self.by_halves(a, first)?;

        // U12 = -U11 R12 U22.
        let turned = self.temporary(first * second)?;
        let turned_at = turned.device_ptr(&self.stream).0;
        let transposed = [false, true];
        let of_turned = Product { transposed, ..product(first, second, [stride, second, second]) };
        start(of_turned, a, r12_at, turned_at, (1.0, 0.0))?;
        let of_u12 = Product { transposed, ..product(second, second, [second, stride, stride]) };
        start(of_u12, turned_at, u22, a12, (-1.0, 0.0))
    }

    fn temporary(&self, count: usize) -> Result<CudaSlice<f32>> {
        // SAFETY: a product writes every number before any is read.
        #[expect(unsafe_code, reason = "memory that is not cleared first")]
        unsafe { self.stream.alloc(count) }.w()
    }

    /// Sets rows x columns numbers to zero.
    fn clear(&self, at: u64, (rows, columns): (usize, usize)) -> Result<()> {
        let pitch = self.stride * size_of::<f32>();
        let stream = self.stream.cu_stream();
        // SAFETY: these are rows of the matrix.
        #[expect(unsafe_code, reason = "a call of the driver")]
        unsafe { sys::cuMemsetD2D32Async(at, pitch, 0, columns, rows, stream) }.result().w()
    }
}

/// As [`super::super::obs_solve`]. `None` if groups are too large for the kernel.
pub(in crate::ops) fn obs_solve(
    weight: &Tensor,
    factor: &Tensor,
    choice: Choice,
) -> Result<Option<Tensor>> {
    let (rows, columns) = weight.dims2()?;
    let (block, pruned, group) = match choice {
        Choice::Share(_) => (BLOCK, 0, 0),
        Choice::Groups { group, .. } if group > LARGEST_GROUP => return Ok(None),
        Choice::Groups { pruned, group } => (BLOCK - BLOCK % group, pruned, group),
    };
    if rows == 0 || columns == 0 {
        return Ok(Some(weight.clone()));
    }
    let solved = weight.detach().contiguous()?.copy()?;
    let factor = factor.detach().contiguous()?;
    with_addresses(&[&solved, &factor], |device, addresses| {
        let [weight, factor] = [addresses[0], addresses[1]];
        let stream = device.cuda_stream();
        let products = &Gpu::of(device)?.products;
        // The sought score with its place, counts, and the errors of a block.
        let sought = stream.alloc_zeros::<u32>(2).w()?;
        let counts = stream.alloc_zeros::<u32>(BINS).w()?;
        let errors = stream.alloc_zeros::<f32>(rows * block.min(columns)).w()?;
        let address = |slice: &CudaSlice<u32>| slice.device_ptr(&stream).0;
        let (sought, counts) = (address(&sought), address(&counts));
        let errors = errors.device_ptr(&stream).0;
        let int = |number: usize| Scalar::Int(number as i32);
        for start_column in (0..columns).step_by(block) {
            let width = block.min(columns - start_column);
            let end = start_column + width;
            let of_block = [int(rows), int(columns), int(start_column), int(width)];
            if let Choice::Share(share) = choice {
                let count = rows * width;
                let place = ((count as f64 * share) as usize).min(count - 1);
                let blocks = count.div_ceil(THREADS * 8).min(1024);
                for (shift, known) in PASSES {
                    let bits = [Scalar::Int(shift), Scalar::Int(known)];
                    let scalars = [&of_block[..], &bits].concat();
                    let inputs = [weight, factor, sought];
                    let shape = ((blocks, 1), THREADS, 0);
                    start("count_scores", device, shape, &scalars, &inputs, counts)?;
                    let first = if known == 32 { place as i32 } else { -1 };
                    let scalars = [Scalar::Int(shift), Scalar::Int(first)];
                    let shape = ((1, 1), BINS / 2, 0);
                    start("find_score", device, shape, &scalars, &[counts], sought)?;
                }
            }
            let scalars = [&of_block[..], &[int(pruned), int(group)]].concat();
            let shape = ((rows.div_ceil(ROWS), 1), THREADS, width * BLOCK);
            start("solve_block", device, shape, &scalars, &[factor, sought, weight], errors)?;
            if end < columns {
                // W[:, end..] -= E U[start..end, end..].
                let product = Product {
                    pitches: [width, columns, columns],
                    transposed: [false, true],
                    ..Product::new(DType::F32, rows, width, columns - end)
                };
                let at = |row: usize, column: usize| {
                    ((row * columns + column) * size_of::<f32>()) as u64
                };
                let behind = factor + at(start_column, end);
                let y = weight + at(0, end);
                let operands = Operands { x: errors, weight: behind, bias: None, y };
                products.add(product, &operands, (-1.0, 1.0))?;
            }
        }
        Ok(())
    })?;
    Ok(Some(solved))
}
