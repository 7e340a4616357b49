//! The operations of all models on tensors, each with gradients of its inputs.
//!
//! An operation checks the shapes, then picks the kernel for the tensors' device. No code above
//! this module depends on the device.

mod graph;
mod host_sums;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod reductions;
mod replay;
mod row_sums;
mod solver;

pub use host_sums::HostSums;
pub use reductions::{column_squares, inner_product, is_finite, zeros};
pub use replay::Replay;
pub use row_sums::{RowSums, Rows, bands_of_gram, whole_gram};
pub use solver::{add_gram, inverse_factor, obs_solve};

use crate::weights::Weight;
use candle_core::{D, DType, Device, Result, Tensor, bail};
use secateur_kernels::Activation;
use secateur_kernels::attention::Shape as AttentionShape;

fn no_kernel<T>(name: &str, device: &Device) -> Result<T> {
    bail!("{name}: there is no kernel for {:?}", device.location())
}

fn last_dim(name: &str, x: &Tensor, width: usize) -> Result<()> {
    if x.dims().last() == Some(&width) {
        return Ok(());
    }
    bail!("{name}: the last dimension of the input {:?} should be {width}", x.dims())
}

fn same_width(name: &str, bias: &Tensor, width: usize) -> Result<()> {
    if bias.dims() == [width] {
        return Ok(());
    }
    bail!("{name}: a bias of {:?} does not fit {width} outputs", bias.dims())
}

/// Linear layer over the last dimension of `x`: x W^T + bias, then an activation. `weight` is
/// outputs x inputs, `bias` is outputs.
pub fn linear(
    x: &Tensor,
    weight: &Weight,
    bias: Option<&Tensor>,
    kind: Option<Activation>,
) -> Result<Tensor> {
    let (outputs, inputs) = weight.shape().dims2()?;
    last_dim("linear", x, inputs)?;
    if let Some(bias) = bias {
        same_width("linear", bias, outputs)?;
    }
    // The gradient of an activation needs its input, which the fused form does not keep.
    let is_tracked =
        weight.tracked().is_some() || x.track_op() || bias.is_some_and(Tensor::track_op);
    let (fused, after) = if is_tracked { (None, kind) } else { (kind, None) };
    let y = match x.device() {
        Device::Cpu => cpu::linear(x, weight, bias, fused),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::linear(x, weight, bias, fused),
        device => no_kernel("linear", device),
    }?;
    after.map_or(Ok(y.clone()), |kind| activation(kind, &y))
}

/// Convolution of `x` (samples x channels x height x width) with `weight` (outputs x channels x
/// kernel x kernel) and `bias` (outputs). `padding` is the number of zeros before and after, in
/// both directions.
pub fn conv2d(
    x: &Tensor,
    weight: &Weight,
    bias: &Tensor,
    stride: usize,
    padding: (usize, usize),
) -> Result<Tensor> {
    let (_, channels, height, width) = x.dims4()?;
    let (outputs, inputs, kernel, other) = weight.shape().dims4()?;
    let padded = height.min(width) + padding.0 + padding.1;
    if channels != inputs || kernel != other || padded < kernel || kernel == 0 || stride == 0 {
        let weight = weight.shape().dims();
        bail!(
            "conv2d: input {:?} does not fit a weight of {weight:?} with stride {stride}",
            x.dims()
        );
    }
    same_width("conv2d", bias, outputs)?;
    match x.device() {
        Device::Cpu => cpu::conv2d(x, weight, bias, stride, padding),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::conv2d(x, weight, bias, stride, padding),
        device => no_kernel("conv2d", device),
    }
}

/// A pointwise activation.
pub fn activation(kind: Activation, x: &Tensor) -> Result<Tensor> {
    match x.device() {
        Device::Cpu => cpu::activation(kind, x),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::activation(kind, x),
        device => no_kernel("activation", device),
    }
}

/// GEGLU over the last dimension: the first half, times GELU (with the error function) of the
/// second half.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    let Some(width) = x.dims().last().filter(|last| **last % 2 == 0).map(|last| last / 2) else {
        bail!("geglu: the last dimension of the input {:?} should be even", x.dims());
    };
    match x.device() {
        Device::Cpu => cpu::geglu(x, width),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::geglu(x, width),
        device => no_kernel("geglu", device),
    }
}

/// Softmax over the last dimension.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    match x.device() {
        Device::Cpu => cpu::softmax(x),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::softmax(x),
        device => no_kernel("softmax", device),
    }
}

/// Enlarges `x` (samples x channels x height x width): every pixel becomes `factor` x `factor`
/// pixels.
pub fn upsample_nearest(x: &Tensor, factor: usize) -> Result<Tensor> {
    match x.device() {
        Device::Cpu => cpu::upsample_nearest(x, factor),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::upsample_nearest(x, factor),
        device => no_kernel("upsample_nearest", device),
    }
}

fn of_one_kind(name: &str, x: &Tensor, y: &Tensor) -> Result<()> {
    if (x.dims(), x.dtype()) == (y.dims(), y.dtype()) {
        return Ok(());
    }
    let [x, y] = [x, y].map(|tensor| (tensor.dims(), tensor.dtype()));
    bail!("{name}: {x:?} and {y:?} are not of one shape and type")
}

/// Adds tensors of one shape.
pub fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    of_one_kind("add", x, y)?;
    match x.device() {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::add(x, y),
        _ => x + y,
    }
}

/// Multiplies tensors of one shape, number by number.
pub fn multiply(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    of_one_kind("multiply", x, y)?;
    match x.device() {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::multiply(x, y),
        _ => x * y,
    }
}

/// Adds `y` (samples x channels) to every pixel of `x` (samples x channels x height x width).
pub fn add_to_channels(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    match x.device() {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::add_to_channels(x, y),
        _ => x.broadcast_add(&y.unsqueeze(2)?.unsqueeze(3)?),
    }
}

/// Joins tensors along the dimension `dim`.
pub fn cat(tensors: &[&Tensor], dim: usize) -> Result<Tensor> {
    match tensors.first().map(|tensor| tensor.device()) {
        #[cfg(feature = "cuda")]
        Some(Device::Cuda(_)) => cuda::cat(tensors, dim),
        _ => Tensor::cat(tensors, dim),
    }
}

/// Joins `pictures` (samples x channels x height x width) along their channels.
pub fn cat_channels(pictures: &[Tensor]) -> Result<Tensor> {
    match pictures.first().map(Tensor::device) {
        #[cfg(feature = "cuda")]
        Some(Device::Cuda(_)) => cuda::cat_channels(pictures),
        _ => Tensor::cat(pictures, 1),
    }
}

/// Turns pictures (samples x channels x height x width) into tokens (samples x pixels x channels).
pub fn tokens(pictures: &Tensor) -> Result<Tensor> {
    let (samples, channels, height, width) = pictures.dims4()?;
    pictures.permute((0, 2, 3, 1))?.reshape((samples, height * width, channels))
}

/// Turns tokens (samples x pixels x channels) into pictures (samples x channels x height x width).
pub fn pixels(tokens: &Tensor, size: (usize, usize)) -> Result<Tensor> {
    let (samples, pixels, channels) = tokens.dims3()?;
    if pixels != size.0 * size.1 {
        bail!("pixels: {pixels} tokens are no picture of {size:?}");
    }
    match tokens.device() {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::pixels(tokens, size),
        _ => tokens.transpose(1, 2)?.contiguous()?.reshape((samples, channels, size.0, size.1)),
    }
}

/// Layer norm over the last dimension, times `weight` plus `bias`.
pub fn layer_norm_affine(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    let width = weight.elem_count();
    last_dim("layer_norm", x, width)?;
    same_width("layer_norm", bias, width)?;
    match x.device() {
        Device::Cpu => cpu::layer_norm_affine(x, weight, bias, eps),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::layer_norm_affine(x, weight, bias, eps),
        device => no_kernel("layer_norm", device),
    }
}

/// Adaptive layer norm of `x` (samples x tokens x width): layer norm, times 1 + `scale`, plus
/// `shift` (samples x width each).
pub fn layer_norm_modulated(
    x: &Tensor,
    scale: &Tensor,
    shift: &Tensor,
    eps: f32,
) -> Result<Tensor> {
    let (samples, _, width) = x.dims3()?;
    if scale.dims() != [samples, width] || shift.dims() != [samples, width] {
        bail!("layer_norm: input {:?} does not fit a modulation of {:?}", x.dims(), scale.dims());
    }
    match x.device() {
        Device::Cpu => cpu::layer_norm_modulated(x, scale, shift, eps),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::layer_norm_modulated(x, scale, shift, eps),
        device => no_kernel("layer_norm", device),
    }
}

/// RMS norm over groups of `weight.elem_count()` successive elements: the last dimension, or the
/// heads in it.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let (width, last) = (weight.elem_count(), x.dim(D::Minus1)?);
    if width == 0 || last % width != 0 {
        bail!(
            "rms_norm: the last dimension of the input {:?} is not a multiple of {width}",
            x.dims()
        );
    }
    match x.device() {
        Device::Cpu => cpu::rms_norm(x, weight, eps),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::rms_norm(x, weight, eps),
        device => no_kernel("rms_norm", device),
    }
}

/// Group norm of `x` (samples x channels x ...), then SiLU if `silu`.
pub fn group_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    eps: f32,
    silu: bool,
) -> Result<Tensor> {
    let channels = weight.elem_count();
    if x.dims().get(1) != Some(&channels) || groups == 0 || !channels.is_multiple_of(groups) {
        bail!(
            "group_norm: input {:?} does not fit {channels} channels in {groups} groups",
            x.dims()
        );
    }
    same_width("group_norm", bias, channels)?;
    match x.device() {
        Device::Cpu => cpu::group_norm(x, weight, bias, groups, eps, silu),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::group_norm(x, weight, bias, groups, eps, silu),
        device => no_kernel("group_norm", device),
    }
}

/// Rotary positions. In every head of `x` (samples x tokens x (heads * head width)) the elements 2i
/// and 2i + 1 are a point, which is turned about the origin. `table` (tokens x head width) holds
/// the cosine of the pair's angle at 2i, and its sine at 2i + 1.
pub fn rope(x: &Tensor, table: &Tensor) -> Result<Tensor> {
    let (_, tokens, row) = x.dims3()?;
    let (places, width) = table.dims2()?;
    if places != tokens || width == 0 || width % 2 != 0 || row % width != 0 {
        bail!("rope: input {:?} does not fit a table of {:?}", x.dims(), table.dims());
    }
    match x.device() {
        Device::Cpu => cpu::rope(x, table),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::rope(x, table),
        device => no_kernel("rope", device),
    }
}

/// The heads of an attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heads {
    /// Number of heads.
    pub count: usize,
    /// Factor of the scores Q K^T.
    pub scale: f32,
}

impl Heads {
    /// `count` heads with the scale 1 / sqrt(`head_dim`). For heads that became narrower,
    /// `head_dim` is the width with which they were trained.
    #[must_use]
    pub fn new(count: usize, head_dim: usize) -> Self {
        Self { count, scale: 1.0 / (head_dim as f32).sqrt() }
    }

    /// Width of a head, if rows of `row` elements divide into the heads.
    fn width(self, row: usize) -> Option<usize> {
        (self.count > 0 && row.is_multiple_of(self.count)).then(|| row / self.count)
    }
}

/// Attention, softmax(scale * Q K^T + bias) V, for every head.
///
/// `q` is samples x queries x (heads * head width), `k` is samples x keys x (heads * head width),
/// and `v` is samples x keys x (heads * value width). The result is samples x queries x (heads *
/// value width). `key_bias` (keys, or samples x keys; `f32`, without a gradient) is added to the
/// scores of a key. With `causal`, token i sees the keys 0..=i only.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: Heads,
    key_bias: Option<&Tensor>,
    causal: bool,
) -> Result<Tensor> {
    let shape = attention_shape("attention", [q, k, v], heads)?;
    check_key_bias("attention", key_bias, shape.batch, shape.keys)?;
    match q.device() {
        Device::Cpu => cpu::attention([q, k, v], shape, heads.scale, key_bias, causal),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => {
            let bias = key_bias.filter(|_| shape.keys > 0);
            let bias = bias.map(|bias| bias.reshape(((), 1, 1, shape.keys))).transpose()?;
            cuda::attention([q, k, v], shape, heads.scale, bias.as_ref(), causal)
        }
        device => no_kernel("attention", device),
    }
}

/// [`attention()`] with a bias for each sample (or all), head (or all), query (or all) and key:
/// `bias` has four dimensions. On a GPU it gets no gradient.
pub fn biased_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: Heads,
    bias: &Tensor,
) -> Result<Tensor> {
    let shape = attention_shape("biased_attention", [q, k, v], heads)?;
    let AttentionShape { batch, queries, keys, .. } = shape;
    let all = [batch, heads.count, queries];
    let fits = |(size, all): (&usize, usize)| *size == 1 || *size == all;
    if bias.rank() != 4 || bias.dims()[3] != keys || !bias.dims().iter().zip(all).all(fits) {
        bail!("biased_attention: a bias of {:?} does not fit {shape:?}", bias.dims());
    }
    match q.device() {
        Device::Cpu => cpu::biased_attention([q, k, v], shape, heads.scale, bias),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::attention([q, k, v], shape, heads.scale, Some(bias), false),
        device => no_kernel("biased_attention", device),
    }
}

fn attention_shape(name: &str, [q, k, v]: [&Tensor; 3], heads: Heads) -> Result<AttentionShape> {
    let (batch, queries, width) = q.dims3()?;
    let (_, keys, value_width) = v.dims3()?;
    let fit = k.dims() == [batch, keys, width] && v.dim(0)? == batch;
    let (Some(head_dim), Some(value_dim), true) =
        (heads.width(width), heads.width(value_width), fit)
    else {
        let (q, k, v, heads) = (q.dims(), k.dims(), v.dims(), heads.count);
        bail!("{name}: queries {q:?}, keys {k:?} and values {v:?} do not fit {heads} heads");
    };
    if head_dim == 0 {
        bail!("{name}: heads of queries {:?} have no width", q.dims());
    }
    Ok(AttentionShape { batch, heads: heads.count, queries, keys, head_dim, value_dim })
}

/// Refuses a key bias that is neither of one sample nor of all.
fn check_key_bias(name: &str, key_bias: Option<&Tensor>, batch: usize, keys: usize) -> Result<()> {
    match key_bias.map(Tensor::dims) {
        Some(dims) if dims != [keys] && dims != [batch, keys] => {
            bail!("{name}: a bias of {dims:?} does not fit {keys} keys of {batch} samples")
        }
        _ => Ok(()),
    }
}

/// Self-attention over the tokens of several streams together: [`attention()`] of the joined
/// streams, without joining them. Each stream has its own query, key and value (samples x tokens x
/// (heads * head width)). The result has one tensor for each stream.
pub fn joint_attention(
    streams: &[[&Tensor; 3]],
    heads: Heads,
    key_bias: Option<&Tensor>,
) -> Result<Vec<Tensor>> {
    let tokens = streams.iter().map(|[q, ..]| q.dim(1)).collect::<Result<Vec<_>>>()?;
    let Some([first, _, value]) = streams.first() else { return Ok(Vec::new()) };
    let ((batch, _, width), value_width) = (first.dims3()?, value.dim(D::Minus1)?);
    let keys = tokens.iter().sum();
    let (Some(head_dim), Some(value_dim)) = (heads.width(width), heads.width(value_width)) else {
        bail!("joint_attention: widths {width} and {value_width} do not fit {} heads", heads.count);
    };
    for (stream, &tokens) in streams.iter().zip(&tokens) {
        let wanted = [width, width, value_width].map(|width| [batch, tokens, width]);
        if stream.iter().zip(&wanted).any(|(tensor, wanted)| tensor.dims() != wanted) {
            bail!(
                "joint_attention: {:?} are not {wanted:?}, as the first stream's are",
                stream.map(Tensor::dims)
            );
        }
    }
    check_key_bias("joint_attention", key_bias, batch, keys)?;
    // A node of the graph takes three inputs.
    let is_tracked = streams.iter().flatten().any(|tensor| tensor.track_op());
    match first.device() {
        Device::Cpu if !is_tracked => {
            let shape =
                AttentionShape { batch, heads: heads.count, queries: 0, keys, head_dim, value_dim };
            cpu::joint_attention(streams, &tokens, shape, heads.scale, key_bias)
        }
        _ => {
            let all = |index: usize| streams.iter().map(|stream| stream[index]).collect::<Vec<_>>();
            let join = |index| cat(&all(index), 1);
            let joined = attention(&join(0)?, &join(1)?, &join(2)?, heads, key_bias, false)?;
            let start = |stream: usize| tokens[..stream].iter().sum();
            let part = |stream| joined.narrow(1, start(stream), tokens[stream]);
            (0..streams.len()).map(part).collect()
        }
    }
}

/// Gated residual, `x` + `gate` * `y`. `x` and `y` are samples x tokens x width, `gate` is samples
/// x width.
pub fn gated_add(x: &Tensor, gate: &Tensor, y: &Tensor) -> Result<Tensor> {
    let (samples, _, width) = x.dims3()?;
    if y.dims() != x.dims() || gate.dims() != [samples, width] {
        bail!("gated_add: {:?} + {:?} * {:?} do not fit", x.dims(), gate.dims(), y.dims());
    }
    match x.device() {
        Device::Cpu => cpu::gated_add(x, gate, y),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::gated_add(x, gate, y),
        device => no_kernel("gated_add", device),
    }
}

/// Runs `body` on the numbers of a tensor, in the order of its elements.
pub fn with_values<R>(x: &Tensor, body: impl FnOnce(&[f32]) -> R) -> Result<R> {
    match x.device() {
        Device::Cpu => cpu::with_values(x, body),
        _ if x.elem_count() == 0 => Ok(body(&[])),
        _ => Ok(body(&x.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?)),
    }
}
