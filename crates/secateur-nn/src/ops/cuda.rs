//! The operations on NVIDIA GPUs as nodes of candle's graph, in `f32`, `f16` or `bf16` with sums in
//! `f32`: inputs of any layout, contiguous outputs, and gradients of all inputs.

mod attention;
mod convolution;
#[cfg(feature = "cudnn")]
mod cudnn;
mod gradients;
mod launch;
mod node;
mod products;
mod recordings;
mod row_sums;
mod solver;

pub(super) use attention::{attention, softmax};
pub(super) use convolution::conv2d;
pub(super) use recordings::Recordings;
pub(super) use row_sums::{RowSums, Rows};
pub(super) use solver::{add_gram, inverse_factor, obs_solve, whole_gram};

use crate::weights::Weight;
use candle_core::{D, DType, Result, Shape, Tensor, bail};
use launch::{
    Launch, Scalar, THREADS, made, numbers_an_access, plain, run, threads_over, with_addresses,
};
use node::Output;
use products::{Operands, Product};
use secateur_kernels::Activation;

/// Samples x width outside of the graph, whose rows may lie apart, and how many numbers apart.
fn rows_apart(x: &Tensor) -> Result<(Tensor, usize)> {
    let x = x.detach();
    match x.stride() {
        &[stride, 1] => Ok((x, stride)),
        _ => Ok((x.contiguous()?, x.dim(1)?)),
    }
}

/// What an access may not cross, where rows of `width` lie `strides` apart: see [`Launch::width`].
fn common_width(dtype: DType, width: usize, strides: &[usize]) -> usize {
    let numbers = numbers_an_access(dtype);
    if strides.iter().all(|stride| stride.is_multiple_of(numbers)) { width } else { 1 }
}

/// The shape of `x` with another last dimension.
fn with_last(x: &Tensor, last: usize) -> Shape {
    let mut shape = x.dims().to_vec();
    shape.pop();
    shape.push(last);
    shape.into()
}

pub(super) fn linear(
    x: &Tensor,
    weight: &Weight,
    bias: Option<&Tensor>,
    kind: Option<Activation>,
) -> Result<Tensor> {
    let weight = &weight.tensor()?;
    let (outputs, inputs) = weight.dims2()?;
    let shape = with_last(x, outputs);
    let tensors: Vec<&Tensor> = [x, weight].into_iter().chain(bias).collect();
    if inputs == 0 && shape.elem_count() > 0 {
        // Nothing but the bias.
        let zeros = Tensor::zeros(shape, x.dtype(), x.device())?;
        let y = bias.map_or(Ok(zeros.clone()), |bias| zeros.broadcast_add(bias))?;
        return kind.map_or(Ok(y.clone()), |kind| activation(kind, &y));
    }
    let fused = kind == Some(Activation::GeluTanh);
    let apart = launch::apart(x, inputs);
    let rows = x.elem_count() / inputs.max(1);
    let (samples, rows, stride) = apart.unwrap_or((1, rows, rows * inputs));
    let product = Product {
        samples,
        strides: [stride, rows * outputs],
        bias: bias.is_some(),
        gelu_tanh: fused,
        ..Product::new(x.dtype(), rows, inputs, outputs)
    };
    let mut plain = plain(&tensors[1..])?;
    plain.insert(0, if apart.is_some() { x.detach() } else { x.detach().contiguous()? });
    let y = with_addresses(&plain.iter().collect::<Vec<_>>(), |device, addresses| {
        launch::filled(device, x.dtype(), shape, |y| {
            let (x, weight, bias) = (addresses[0], addresses[1], addresses.get(2).copied());
            launch::Gpu::of(device)?.products.start(product, &Operands { x, weight, bias, y })
        })
    })?;
    let y = y.tracked("linear", &tensors, gradients::linear)?;
    match kind {
        Some(kind) if !fused => activation(kind, &y),
        _ => Ok(y),
    }
}

/// Tensors of one shape. Channels that lie together in both do so in the sum.
pub(super) fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if let (Some(x), Some(y)) = (channels_last(x), channels_last(y)) {
        return add(&x, &y)?.permute((0, 3, 1, 2));
    }
    if x.track_op() || y.track_op() { x + y } else { of_pairs("add", x, y) }
}

/// Tensors of one shape.
pub(super) fn multiply(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if x.track_op() || y.track_op() { x * y } else { of_pairs("multiply", x, y) }
}

fn of_pairs(name: &str, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let count = x.elem_count();
    let launch =
        Launch { name, scalars: &[Scalar::Size(count)], ..Launch::over(x.dtype(), count, count) };
    Ok(made(&launch, &[x, y], x.shape())?.untracked())
}

/// `y` (samples x channels) added to every pixel of `x`.
pub(super) fn add_to_channels(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let (samples, channels) = y.dims2()?;
    match channels_last(x) {
        Some(x) if !x.track_op() && !y.track_op() => {
            let count = x.elem_count();
            let rows = count / (samples * channels).max(1);
            let launch = Launch {
                name: "add_to_rows",
                scalars: &[
                    Scalar::Size(count),
                    Scalar::Int(rows as i32),
                    Scalar::Int(channels as i32),
                ],
                ..Launch::over(x.dtype(), count, channels)
            };
            made(&launch, &[&x, y], x.shape())?.untracked().permute((0, 3, 1, 2))
        }
        _ => x.broadcast_add(&y.reshape((samples, channels, 1, 1))?),
    }
}

/// Tensors one after another along a dimension.
pub(super) fn cat(tensors: &[&Tensor], dim: usize) -> Result<Tensor> {
    let [first, ..] = tensors else { return Tensor::cat(tensors, dim) };
    if tensors.iter().any(|tensor| tensor.track_op()) || !first.dtype().is_float() {
        return Tensor::cat(tensors, dim);
    }
    let plain = plain(tensors)?;
    let mut shape = first.dims().to_vec();
    shape[dim] = plain.iter().map(|tensor| tensor.dims()[dim]).sum();
    let run_of = |dims: &[usize]| dims[dim..].iter().product::<usize>();
    let pitch = run_of(&shape);
    let y = with_addresses(&plain.iter().collect::<Vec<_>>(), |device, addresses| {
        launch::filled(device, first.dtype(), shape, |y| {
            let mut offset = 0;
            for (tensor, address) in plain.iter().zip(addresses) {
                let (count, run) = (tensor.elem_count(), run_of(tensor.dims()));
                let scalars = [count, run, pitch, offset].map(Scalar::Size);
                let launch = Launch {
                    name: "copy_runs",
                    scalars: &scalars,
                    ..Launch::over(
                        first.dtype(),
                        count,
                        common_width(first.dtype(), run, &[pitch, offset]),
                    )
                };
                if count > 0 {
                    launch::start(&launch, device, first.dtype(), &[*address], y)?;
                }
                offset += run;
            }
            Ok(())
        })
    })?;
    Ok(y.untracked())
}

/// Pictures of one size with the channels of all.
pub(super) fn cat_channels(pictures: &[Tensor]) -> Result<Tensor> {
    match pictures.iter().map(channels_last).collect::<Option<Vec<_>>>() {
        Some(last) => cat(&last.iter().collect::<Vec<_>>(), 3)?.permute((0, 3, 1, 2)),
        None => cat(&pictures.iter().collect::<Vec<_>>(), 1),
    }
}

/// Tokens (samples x pixels x channels) as pictures, whose channels lie together.
pub(super) fn pixels(tokens: &Tensor, (height, width): (usize, usize)) -> Result<Tensor> {
    let (samples, _, channels) = tokens.dims3()?;
    tokens.reshape((samples, height, width, channels))?.permute((0, 3, 1, 2))
}

pub(super) fn activation(kind: Activation, x: &Tensor) -> Result<Tensor> {
    if let Some(last) = channels_last(x) {
        return activation(kind, &last)?.permute((0, 3, 1, 2));
    }
    let count = x.elem_count();
    let launch = Launch {
        name: "activation",
        scalars: &[Scalar::Size(count), Scalar::Int(kind as i32)],
        ..Launch::over(x.dtype(), count, count)
    };
    made(&launch, &[x], x.shape())?.tracked("activation", &[x], move |given| {
        Ok(vec![Some(activation_gradient(kind, &given.inputs[0], given.gradient)?)])
    })
}

/// The gradient of the input `x` of an activation.
fn activation_gradient(kind: Activation, x: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    let count = x.elem_count();
    let launch = Launch {
        name: "activation_gradient",
        scalars: &[Scalar::Size(count), Scalar::Int(kind as i32)],
        ..Launch::over(x.dtype(), count, count)
    };
    Ok(made(&launch, &[x, gradient], x.shape())?.untracked())
}

/// `width`: of the result.
pub(super) fn geglu(x: &Tensor, width: usize) -> Result<Tensor> {
    let count = x.elem_count() / 2;
    let launch = Launch {
        name: "geglu",
        scalars: &[Scalar::Size(count / width.max(1)), Scalar::Int(width as i32)],
        ..Launch::over(x.dtype(), count, width)
    };
    made(&launch, &[x], with_last(x, width))?.tracked("geglu", &[x], move |given| {
        let [x] = given.inputs else { return Ok(Vec::new()) };
        let gate = x.narrow(D::Minus1, width, width)?.contiguous()?;
        let of_x = (given.gradient * activation(Activation::Gelu, &gate)?)?;
        let of_gate = (given.gradient * x.narrow(D::Minus1, 0, width)?)?;
        let of_gate = activation_gradient(Activation::Gelu, &gate, &of_gate)?;
        Ok(vec![Some(Tensor::cat(&[of_x, of_gate], D::Minus1)?)])
    })
}

/// The tensor of samples x height x width x channels that a picture lies in memory as, if it is not
/// channels first.
fn channels_last(x: &Tensor) -> Option<Tensor> {
    let view = x.permute((0, 2, 3, 1)).ok()?;
    (view.is_contiguous() && !x.is_contiguous()).then_some(view)
}

pub(super) fn upsample_nearest(x: &Tensor, factor: usize) -> Result<Tensor> {
    let (samples, channels, height, width) = x.dims4()?;
    let (high, wide) = (height * factor, width * factor);
    let count = samples * channels * high * wide;
    let sizes = [height, width, channels, factor].map(|size| Scalar::Int(size as i32));
    let [of_height, of_width, of_channels, times] = sizes;
    let backward = move |given: &node::Backward<'_>| gradients::upsample_nearest(given, factor);
    if let Some(last) = channels_last(x) {
        let launch = Launch {
            name: "upsample_last",
            scalars: &[Scalar::Size(count), of_height, of_width, of_channels, times],
            ..Launch::over(x.dtype(), count, channels)
        };
        let y = made(&launch, &[&last], (samples, high, wide, channels))?.untracked();
        return Output::of(y.permute((0, 3, 1, 2))?, "upsample_nearest", &[x], backward);
    }
    let launch = Launch {
        name: "upsample",
        scalars: &[Scalar::Size(count), of_width, times],
        ..Launch::over(x.dtype(), count, 1)
    };
    let y = made(&launch, &[x], (samples, channels, high, wide))?;
    y.tracked("upsample_nearest", &[x], backward)
}

/// Each by a warp.
const ROWS_OF_A_BLOCK: usize = 4;

/// `rows`: successive rows of one scale and shift; 0 if they are all rows', and the scale is the
/// weight itself.
fn layer_norm(
    x: &Tensor,
    (scale, scale_stride): (&Tensor, usize),
    (shift, shift_stride): (&Tensor, usize),
    (width, rows): (usize, usize),
    eps: f32,
) -> Result<Output> {
    let all = x.elem_count() / width.max(1);
    let launch = Launch {
        name: "layer_norm",
        width: common_width(x.dtype(), width, &[scale_stride, shift_stride]),
        blocks: (all.div_ceil(ROWS_OF_A_BLOCK), 1),
        threads: 32 * ROWS_OF_A_BLOCK,
        shared: 0,
        scalars: &[
            Scalar::Size(all),
            Scalar::Int(width as i32),
            Scalar::Int(rows as i32),
            Scalar::Int(scale_stride as i32),
            Scalar::Int(shift_stride as i32),
            Scalar::Float(eps),
        ],
    };
    run(&launch, &[&x.detach().contiguous()?, scale, shift], (x.dtype(), x.shape()))
}

pub(super) fn layer_norm_affine(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f32,
) -> Result<Tensor> {
    let affine = plain(&[weight, bias])?;
    layer_norm(x, (&affine[0], 0), (&affine[1], 0), (weight.elem_count(), 0), eps)?.tracked(
        "layer_norm",
        &[x, weight, bias],
        move |given| gradients::layer_norm_affine(given, eps),
    )
}

pub(super) fn layer_norm_modulated(
    x: &Tensor,
    scale: &Tensor,
    shift: &Tensor,
    eps: f32,
) -> Result<Tensor> {
    let (_, rows, width) = x.dims3()?;
    let ((a, a_stride), (b, b_stride)) = (rows_apart(scale)?, rows_apart(shift)?);
    layer_norm(x, (&a, a_stride), (&b, b_stride), (width, rows), eps)?.tracked(
        "layer_norm",
        &[x, scale, shift],
        move |given| gradients::layer_norm_modulated(given, eps),
    )
}

pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    /// A warp has several rows under way where they have at most so many accesses.
    const MOST_ACCESSES: usize = 128;
    let width = weight.elem_count();
    let rows = x.elem_count() / width;
    let accesses = width / numbers_an_access(x.dtype());
    let (name, blocks, threads) = if accesses > MOST_ACCESSES {
        ("rms_norm_of_wide_rows", rows.div_ceil(ROWS_OF_A_BLOCK), 32 * ROWS_OF_A_BLOCK)
    } else {
        // As the kernel divides a warp: any number of blocks gives the same.
        let lanes = accesses.next_power_of_two().min(32);
        ("rms_norm", (rows * lanes).div_ceil(4 * THREADS), THREADS)
    };
    let launch = Launch {
        name,
        width,
        blocks: (blocks, 1),
        threads,
        shared: 0,
        scalars: &[Scalar::Size(rows), Scalar::Int(width as i32), Scalar::Float(eps)],
    };
    made(&launch, &[x, weight], x.shape())?
        .tracked("rms_norm", &[x, weight], move |given| gradients::rms_norm(given, eps))
}

/// A piece of a group that a block sums up has about so many numbers.
const PIECE: usize = 8192;

pub(super) fn group_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    eps: f32,
    silu: bool,
) -> Result<Tensor> {
    let backward = move |given: &node::Backward<'_>| {
        let slope = |x: &Tensor, gradient: &Tensor| {
            activation_gradient(Activation::Silu, x, &gradient.contiguous()?)
        };
        gradients::group_norm(given, groups, eps, silu.then_some(&slope))
    };
    if let Some(last) = channels_last(x).filter(|x| x.elem_count() > 0) {
        let y = group_norm_last(&last, weight, bias, groups, eps, silu)?;
        let y = y.permute((0, 3, 1, 2))?;
        return Output::of(y, "group_norm", &[x, weight, bias], backward);
    }
    let (samples, channels) = (x.dim(0)?, x.dim(1)?);
    let area: usize = x.dims().iter().skip(2).product();
    let size = channels / groups * area;
    let pieces = size.div_ceil(PIECE).clamp(1, 64);
    let of_groups = Launch {
        name: "group_moments",
        width: size,
        blocks: (samples * groups, pieces),
        threads: THREADS,
        shared: 0,
        scalars: &[Scalar::Size(size)],
    };
    let plain = plain(&[x, weight, bias])?;
    let shape = match x.elem_count() {
        0 => (0, 0, 0),
        _ => (samples * groups, pieces, 3),
    };
    let moments = run(&of_groups, &[&plain[0]], (DType::F32, shape))?.untracked();
    let of_channels = Launch {
        name: "group_norm",
        width: area,
        blocks: (samples * channels, area.div_ceil(8 * PIECE).clamp(1, 64)),
        threads: threads_over(area, 2 * numbers_an_access(x.dtype())).min(THREADS),
        shared: 0,
        scalars: &[
            Scalar::Int(area as i32),
            Scalar::Int(channels as i32),
            Scalar::Int(groups as i32),
            Scalar::Int(pieces as i32),
            Scalar::Float(eps),
            Scalar::Int(i32::from(silu)),
        ],
    };
    let inputs = [&plain[0], &plain[1], &plain[2], &moments];
    let y = run(&of_channels, &inputs, (x.dtype(), x.shape()))?;
    y.tracked("group_norm", &[x, weight, bias], backward)
}

/// Of pictures whose channels lie together: samples x height x width x channels.
fn group_norm_last(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    eps: f32,
    silu: bool,
) -> Result<Tensor> {
    /// Pixels that a thread sums up.
    const PIXELS: usize = 16;
    let (samples, height, width, channels) = x.dims4()?;
    let area = height * width;
    let numbers = numbers_an_access(x.dtype());
    let vectors = if channels.is_multiple_of(numbers) { channels / numbers } else { channels };
    let across = vectors.clamp(1, THREADS);
    let rows = (THREADS / across).max(1);
    let pieces = area.div_ceil(rows * PIXELS).clamp(1, 256);
    let of_channels = Launch {
        name: "channel_moments",
        width: channels,
        blocks: (samples, pieces),
        threads: across * rows,
        shared: 2 * across * rows * numbers,
        scalars: &[
            Scalar::Int(area as i32),
            Scalar::Int(channels as i32),
            Scalar::Int(across as i32),
        ],
    };
    let plain = plain(&[x, weight, bias])?;
    let shape = (samples, pieces, channels, 2);
    let moments = run(&of_channels, &[&plain[0]], (DType::F32, shape))?.untracked();
    let of_groups = Launch {
        name: "moments_of_groups",
        width: 1,
        blocks: (samples * groups, 1),
        threads: THREADS,
        shared: 0,
        scalars: &[
            Scalar::Int(area as i32),
            Scalar::Int(channels as i32),
            Scalar::Int(groups as i32),
            Scalar::Int(pieces as i32),
        ],
    };
    let moments = run(&of_groups, &[&moments], (DType::F32, (samples * groups, 3)))?.untracked();
    let count = x.elem_count();
    let apply = Launch {
        name: "group_norm_last",
        scalars: &[
            Scalar::Size(count),
            Scalar::Int(area as i32),
            Scalar::Int(channels as i32),
            Scalar::Int(groups as i32),
            Scalar::Float(eps),
            Scalar::Int(i32::from(silu)),
        ],
        ..Launch::over(x.dtype(), count, channels)
    };
    let inputs = [&plain[0], &plain[1], &plain[2], &moments];
    Ok(run(&apply, &inputs, (x.dtype(), x.shape()))?.untracked())
}

pub(super) fn rope(x: &Tensor, table: &Tensor) -> Result<Tensor> {
    let (_, tokens, row) = x.dims3()?;
    let (count, width) = (x.elem_count(), table.dim(1)?);
    if count >= 1 << 32 {
        bail!("rope: {:?} are more than the kernel counts", x.dims());
    }
    let launch = Launch {
        name: "rope",
        scalars: &[
            Scalar::Size(count),
            Scalar::Int(row as i32),
            Scalar::Int(width as i32),
            Scalar::Int(tokens as i32),
        ],
        ..Launch::over(x.dtype(), count, width)
    };
    let angles = table.to_dtype(DType::F32)?;
    made(&launch, &[x, &angles], x.shape())?.tracked("rope", &[x, table], gradients::rope)
}

pub(super) fn gated_add(x: &Tensor, gate: &Tensor, y: &Tensor) -> Result<Tensor> {
    let (_, rows, width) = x.dims3()?;
    let count = x.elem_count();
    let (gates, stride) = rows_apart(gate)?;
    let launch = Launch {
        name: "gated_add",
        scalars: &[
            Scalar::Size(count),
            Scalar::Int(rows as i32),
            Scalar::Int(width as i32),
            Scalar::Int(stride as i32),
        ],
        ..Launch::over(x.dtype(), count, common_width(x.dtype(), width, &[stride]))
    };
    let inputs = plain(&[x, y])?;
    let made = run(&launch, &[&inputs[0], &gates, &inputs[1]], (x.dtype(), x.shape()))?;
    made.tracked("gated_add", &[x, gate, y], gradients::gated_add)
}
