//! The kernels on candle tensors (`f32`, on the CPU): inputs of any layout, contiguous outputs.

use crate::activation::{self, Activation};
use crate::attention::{self, Shape as AttentionShape};
use crate::linear::{self, Convolution};
use crate::norm::{self, Affine};
use candle_core::{Result, Shape, Storage, Tensor, bail};

/// Runs `body` over the elements of `inputs` and a zeroed output of `shape`.
fn apply(
    name: &str,
    inputs: &[&Tensor],
    shape: impl Into<Shape>,
    body: impl FnOnce(&[&[f32]], &mut [f32]),
) -> Result<Tensor> {
    if inputs.iter().any(|t| t.track_op()) {
        bail!("{name}: this kernel has no backward, and a gradient is wanted through it");
    }
    let inputs = inputs.iter().map(|t| t.contiguous()).collect::<Result<Vec<_>>>()?;
    let guards: Vec<_> = inputs.iter().map(|t| t.storage_and_layout()).collect();
    let mut slices = Vec::with_capacity(guards.len());
    for (storage, layout) in &guards {
        match (&**storage, layout.contiguous_offsets()) {
            (Storage::Cpu(storage), Some((start, end))) => slices.push(&storage.as_slice::<f32>()?[start..end]),
            _ => bail!("{name}: this kernel runs on the CPU"),
        }
    }
    let shape = shape.into();
    let mut output = vec![0f32; shape.elem_count()];
    body(&slices, &mut output);
    Tensor::from_vec(output, shape, &candle_core::Device::Cpu)
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

/// x W^T + bias over the last dimension of `x`; `weight` is outputs x inputs, `bias` outputs.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    last_dim("linear", x, inputs)?;
    if let Some(bias) = bias {
        same_width("linear", bias, outputs)?;
    }
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = outputs;
    }
    let tensors: Vec<&Tensor> = [x, weight].into_iter().chain(bias).collect();
    apply("linear", &tensors, shape, |data, y| {
        linear::linear(data[0], data[1], data.get(2).copied(), y, inputs);
    })
}

/// Convolution of `x` (samples x channels x height x width) with `weight` (outputs x channels x kernel x kernel) and
/// `bias` (outputs); `padding` zeros before and after in both directions.
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: &Tensor, stride: usize, padding: (usize, usize)) -> Result<Tensor> {
    let (samples, channels, height, width) = x.dims4()?;
    let (outputs, inputs, kernel, other) = weight.dims4()?;
    let padded = height.min(width) + padding.0 + padding.1;
    if channels != inputs || kernel != other || padded < kernel {
        bail!("conv2d: input {:?} does not fit a weight of {:?}", x.dims(), weight.dims());
    }
    same_width("conv2d", bias, outputs)?;
    let convolution = Convolution { channels, size: (height, width), kernel, stride, padding };
    let (height, width) = convolution.output_size();
    apply("conv2d", &[x, weight, bias], (samples, outputs, height, width), |data, y| {
        convolution.run(data[0], data[1], data[2], y);
    })
}

/// A pointwise activation.
pub fn activation(kind: Activation, x: &Tensor) -> Result<Tensor> {
    apply("activation", &[x], x.shape(), |data, y| activation::activation(kind, data[0], y))
}

/// Layer norm over the last dimension, times `weight` plus `bias`.
pub fn layer_norm_affine(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    let width = weight.elem_count();
    last_dim("layer_norm", x, width)?;
    same_width("layer_norm", bias, width)?;
    apply("layer_norm", &[x, weight, bias], x.shape(), |data, y| {
        norm::layer_norm(data[0], y, width, eps, &Affine::Elementwise(data[1], data[2]));
    })
}

/// Adaptive layer norm of `x` (samples x tokens x width): layer norm, times 1 + `scale`, plus `shift` (samples x
/// width each).
pub fn layer_norm_modulated(x: &Tensor, scale: &Tensor, shift: &Tensor, eps: f32) -> Result<Tensor> {
    let (samples, rows, width) = x.dims3()?;
    if scale.dims() != [samples, width] || shift.dims() != [samples, width] {
        bail!("layer_norm: input {:?} does not fit a modulation of {:?}", x.dims(), scale.dims());
    }
    apply("layer_norm", &[x, scale, shift], x.shape(), |data, y| {
        let modulation = Affine::Modulated { scale: data[1], shift: data[2], rows };
        norm::layer_norm(data[0], y, width, eps, &modulation);
    })
}

/// RMS norm over groups of `weight.elem_count()` successive elements: the last dimension, or the heads in it.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let (width, last) = (weight.elem_count(), x.dim(candle_core::D::Minus1)?);
    if width == 0 || last % width != 0 {
        bail!("rms_norm: the last dimension of the input {:?} is not a multiple of {width}", x.dims());
    }
    apply("rms_norm", &[x, weight], x.shape(), |data, y| norm::rms_norm(data[0], y, data[1], eps))
}

/// Group norm of `x` (samples x channels x ...), then SiLU if `silu`.
pub fn group_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, groups: usize, eps: f32, silu: bool) -> Result<Tensor> {
    let (channels, area) = (weight.elem_count(), x.dims().iter().skip(2).product());
    if x.dims().get(1) != Some(&channels) || groups == 0 || channels % groups != 0 {
        bail!("group_norm: input {:?} does not fit {channels} channels in {groups} groups", x.dims());
    }
    same_width("group_norm", bias, channels)?;
    apply("group_norm", &[x, weight, bias], x.shape(), |data, y| {
        norm::group_norm(data[0], y, (data[1], data[2]), (groups, area), eps, silu);
    })
}

/// softmax(Q K^T / sqrt(head width)) V for every head: `q` samples x queries x (heads * head width), `k` and `v`
/// samples x keys x the same; with `causal`, token i sees the keys 0..=i.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, causal: bool) -> Result<Tensor> {
    let (batch, queries, width) = q.dims3()?;
    let keys = k.dim(1)?;
    if k.dims() != [batch, keys, width] || k.dims() != v.dims() || heads == 0 || width % heads != 0 {
        let (q, k, v) = (q.dims(), k.dims(), v.dims());
        bail!("attention: queries {q:?}, keys {k:?} and values {v:?} do not fit {heads} heads");
    }
    let head_dim = width / heads;
    let shape = AttentionShape { batch, heads, queries, keys, head_dim };
    let scale = 1.0 / (head_dim as f32).sqrt();
    apply("attention", &[q, k, v], q.shape(), |data, y| {
        attention::attention(data[0], data[1], data[2], y, shape, scale, causal);
    })
}

/// `x` + `gate` * `y`: `x` and `y` samples x tokens x width, `gate` samples x width (gated residual).
pub fn gated_add(x: &Tensor, gate: &Tensor, y: &Tensor) -> Result<Tensor> {
    let (samples, rows, width) = x.dims3()?;
    if y.dims() != x.dims() || gate.dims() != [samples, width] {
        bail!("gated_add: {:?} + {:?} * {:?} do not fit", x.dims(), gate.dims(), y.dims());
    }
    apply("gated_add", &[x, gate, y], x.shape(), |data, out| {
        norm::gated_add(data[0], data[1], data[2], out, (rows, width));
    })
}
