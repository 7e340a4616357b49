//! The kernels on candle tensors (`f32`, on the CPU): inputs of any layout, contiguous outputs, and gradients of all
//! inputs through candle's graph.

use crate::activation::{self, Activation};
use crate::attention::{self, KeysValues, Scores, Shape as AttentionShape};
use crate::convolution::{Convolution, ConvolutionWeight};
use crate::linear::{self, LinearWeight};
use crate::norm::{self, Affine};
use crate::rope;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor, bail};
use rayon::prelude::*;
use std::sync::Arc;

/// What a backward pass is given.
struct Backward<'a> {
    /// The inputs of the forward pass.
    inputs: &'a [&'a [f32]],
    /// Its output.
    output: &'a [f32],
    /// The gradient of the output.
    gradient: &'a [f32],
    /// Which inputs a gradient is wanted of.
    wanted: &'a [bool],
}

/// A kernel as a node of candle's graph.
struct Kernel<F, B> {
    name: &'static str,
    shape: Shape,
    forward: F,
    backward: B,
}

/// Runs `body` on the elements of contiguous tensors.
fn with_slices<R>(name: &str, tensors: &[&Tensor], body: impl FnOnce(&[&[f32]]) -> R) -> Result<R> {
    let guards: Vec<_> = tensors.iter().map(|t| t.storage_and_layout()).collect();
    let mut slices = Vec::with_capacity(guards.len());
    for (storage, layout) in &guards {
        match &**storage {
            Storage::Cpu(storage) => slices.push(slice(name, storage, layout)?),
            _ => bail!("{name}: this kernel runs on the CPU"),
        }
    }
    Ok(body(&slices))
}

fn slice<'a>(name: &str, storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("{name}: an input is not contiguous") };
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// Zeros, written by all threads: for a large output that takes as long as many a kernel.
fn zeros(count: usize) -> Vec<f32> {
    const LARGE: usize = 64 * 1024;
    const PIECE: usize = 256;
    if count < LARGE {
        return vec![0.0; count];
    }
    let pieces: Vec<_> = rayon::iter::repeat_n([0f32; PIECE], count.div_ceil(PIECE)).with_min_len(64).collect();
    let mut zeros = pieces.into_flattened();
    zeros.truncate(count);
    zeros
}

impl<F, B> Kernel<F, B>
where
    F: Fn(&[&[f32]], &mut [f32]),
    B: Fn(&Backward<'_>, &mut [Vec<f32>]),
{
    fn forward(&self, inputs: &[(&CpuStorage, &Layout)]) -> Result<(CpuStorage, Shape)> {
        let slices =
            inputs.iter().map(|(storage, layout)| slice(self.name, storage, layout)).collect::<Result<Vec<_>>>()?;
        let mut output = zeros(self.shape.elem_count());
        (self.forward)(&slices, &mut output);
        Ok((CpuStorage::F32(output), self.shape.clone()))
    }

    fn backward<const N: usize>(
        &self,
        inputs: [&Tensor; N],
        output: &Tensor,
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; N]> {
        let wanted = inputs.map(Tensor::track_op);
        let gradient_of =
            |(input, &wanted): (&&Tensor, &bool)| if wanted { zeros(input.elem_count()) } else { Vec::new() };
        let mut gradients: Vec<Vec<f32>> = inputs.iter().zip(&wanted).map(gradient_of).collect();
        let gradient = gradient.contiguous()?;
        let mut tensors = inputs.to_vec();
        tensors.extend([output, &gradient]);
        with_slices(self.name, &tensors, |slices| {
            let (inputs, rest) = slices.split_at(N);
            let given = Backward { inputs, output: rest[0], gradient: rest[1], wanted: &wanted };
            (self.backward)(&given, &mut gradients);
        })?;
        let mut results = [const { None }; N];
        for (((result, input), gradient), wanted) in results.iter_mut().zip(inputs).zip(gradients).zip(wanted) {
            if wanted {
                *result = Some(Tensor::from_vec(gradient, input.shape(), input.device())?);
            }
        }
        Ok(results)
    }
}

impl<F, B> CustomOp1 for Kernel<F, B>
where
    F: Fn(&[&[f32]], &mut [f32]),
    B: Fn(&Backward<'_>, &mut [Vec<f32>]),
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(&[(storage, layout)])
    }

    fn bwd(&self, x: &Tensor, output: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let [x] = self.backward([x], output, gradient)?;
        Ok(x)
    }
}

impl<F, B> CustomOp2 for Kernel<F, B>
where
    F: Fn(&[&[f32]], &mut [f32]),
    B: Fn(&Backward<'_>, &mut [Vec<f32>]),
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(&[(s1, l1), (s2, l2)])
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, out: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok(self.backward([x, y], out, gradient)?.into())
    }
}

impl<F, B> CustomOp3 for Kernel<F, B>
where
    F: Fn(&[&[f32]], &mut [f32]),
    B: Fn(&Backward<'_>, &mut [Vec<f32>]),
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward(&[(s1, l1), (s2, l2), (s3, l3)])
    }

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        z: &Tensor,
        out: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        Ok(self.backward([x, y, z], out, gradient)?.into())
    }
}

/// Puts a kernel of one to three inputs into the graph. `forward` fills a zeroed output of `shape`; `backward` adds to
/// zeroed gradients of the inputs; those that are not wanted are empty.
fn apply(
    name: &'static str,
    inputs: &[&Tensor],
    shape: impl Into<Shape>,
    forward: impl Fn(&[&[f32]], &mut [f32]) + Send + Sync + 'static,
    backward: impl Fn(&Backward<'_>, &mut [Vec<f32>]) + Send + Sync + 'static,
) -> Result<Tensor> {
    let kernel = Kernel { name, shape: shape.into(), forward, backward };
    let inputs = inputs.iter().map(|t| t.contiguous()).collect::<Result<Vec<_>>>()?;
    match inputs.as_slice() {
        [x] => x.apply_op1(kernel),
        [x, y] => x.apply_op2(y, kernel),
        [x, y, z] => x.apply_op3(y, z, kernel),
        _ => bail!("{name}: {} inputs", inputs.len()),
    }
}

/// The gradients of all inputs, also of those that are not wanted, for kernels that make them together.
fn all<'a, const N: usize>(given: &Backward<'_>, gradients: &'a mut [Vec<f32>]) -> [&'a mut Vec<f32>; N] {
    let mut gradients = gradients.iter_mut().zip(given.inputs);
    std::array::from_fn(|_| {
        let (gradient, input) = gradients.next().expect("a gradient for every input");
        gradient.resize(input.len(), 0.0);
        gradient
    })
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

/// Packs a weight (outputs x inputs) for [`linear()`]. As much memory again as the weight, and once more where a gradient goes
/// back through it.
pub fn pack(weight: &Tensor) -> Result<Arc<LinearWeight>> {
    let (_, inputs) = weight.dims2()?;
    let weight = weight.contiguous()?;
    with_slices("linear", &[&weight], |data| Arc::new(LinearWeight::new(data[0], inputs)))
}

/// x W^T + bias over the last dimension of `x`; `weight` is outputs x inputs, `packed` what [`pack`] made of it, `bias`
/// outputs.
pub fn linear(x: &Tensor, weight: &Tensor, packed: &Arc<LinearWeight>, bias: Option<&Tensor>) -> Result<Tensor> {
    linear_then(x, weight, packed, bias, None)
}

/// [`linear()`], then a pointwise activation while the result is in the cache.
pub fn linear_activated(
    x: &Tensor,
    weight: &Tensor,
    packed: &Arc<LinearWeight>,
    bias: Option<&Tensor>,
    kind: Activation,
) -> Result<Tensor> {
    // The activation's gradient needs its input, which the fused form does not keep.
    if [Some(x), Some(weight), bias].into_iter().flatten().any(Tensor::track_op) {
        return activation(kind, &linear(x, weight, packed, bias)?);
    }
    linear_then(x, weight, packed, bias, Some(kind))
}

fn linear_then(
    x: &Tensor,
    weight: &Tensor,
    packed: &Arc<LinearWeight>,
    bias: Option<&Tensor>,
    kind: Option<Activation>,
) -> Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    last_dim("linear", x, inputs)?;
    if let Some(bias) = bias {
        same_width("linear", bias, outputs)?;
    }
    if packed.size() != (inputs, outputs) && weight.elem_count() > 0 {
        let (of_inputs, of_outputs) = packed.size();
        bail!("linear: a packed weight of {of_outputs} x {of_inputs} is not that of {outputs} x {inputs}");
    }
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = outputs;
    }
    let (packed, of_backward) = (Arc::clone(packed), Arc::clone(packed));
    let tensors: Vec<&Tensor> = [x, weight].into_iter().chain(bias).collect();
    let forward = move |data: &[&[f32]], y: &mut [f32]| {
        linear::linear(data[0], packed.forward(), data.get(2).copied(), kind, y);
    };
    let backward = move |given: &Backward<'_>, gradients: &mut [Vec<f32>]| {
        if given.wanted[0] {
            linear::input_gradient(given.gradient, given.inputs[1], &of_backward, &mut gradients[0]);
        }
        if given.wanted[1] {
            linear::weight_gradient(given.inputs[0], given.gradient, (inputs, outputs), &mut gradients[1]);
        }
        if let (Some(bias), Some(true)) = (gradients.get_mut(2), given.wanted.get(2)) {
            for row in given.gradient.chunks_exact(outputs.max(1)) {
                bias.iter_mut().zip(row).for_each(|(b, g)| *b += g);
            }
        }
    };
    apply("linear", &tensors, shape, forward, backward)
}

/// Packs a weight (outputs x channels x kernel x kernel) for [`conv2d`]. As much memory again as the weight, and once more where
/// a gradient goes back through it.
pub fn pack_convolution(weight: &Tensor) -> Result<Arc<ConvolutionWeight>> {
    let (outputs, ..) = weight.dims4()?;
    let weight = weight.contiguous()?;
    with_slices("conv2d", &[&weight], |data| Arc::new(ConvolutionWeight::new(data[0], outputs)))
}

/// Convolution of `x` (samples x channels x height x width) with `weight` (outputs x channels x kernel x kernel; `packed`
/// is what [`pack_convolution`] made of it) and `bias` (outputs); `padding` zeros before and after in both directions.
pub fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    packed: &Arc<ConvolutionWeight>,
    bias: &Tensor,
    stride: usize,
    padding: (usize, usize),
) -> Result<Tensor> {
    let (samples, channels, height, width) = x.dims4()?;
    let (outputs, inputs, kernel, other) = weight.dims4()?;
    let padded = height.min(width) + padding.0 + padding.1;
    if channels != inputs || kernel != other || padded < kernel || kernel == 0 || stride == 0 {
        bail!("conv2d: input {:?} does not fit a weight of {:?} with stride {stride}", x.dims(), weight.dims());
    }
    same_width("conv2d", bias, outputs)?;
    let convolution = Convolution { channels, size: (height, width), kernel, stride, padding };
    let (height, width) = convolution.output_size();
    let (of_forward, packed) = (Arc::clone(packed), Arc::clone(packed));
    apply(
        "conv2d",
        &[x, weight, bias],
        (samples, outputs, height, width),
        move |data, y| convolution.run(data[0], of_forward.forward(), data[2], y),
        move |given, gradients| {
            if given.wanted[0] {
                convolution.input_gradient(given.gradient, given.inputs[1], &packed, &mut gradients[0]);
            }
            if given.wanted[1] {
                convolution.weight_gradient(given.inputs[0], given.gradient, &mut gradients[1]);
            }
            if given.wanted[2] {
                for (plane, gradient) in given.gradient.chunks_exact((height * width).max(1)).enumerate() {
                    gradients[2][plane % outputs] += gradient.iter().sum::<f32>();
                }
            }
        },
    )
}

/// A pointwise activation.
pub fn activation(kind: Activation, x: &Tensor) -> Result<Tensor> {
    apply(
        "activation",
        &[x],
        x.shape(),
        move |data, y| activation::activation(kind, data[0], y),
        move |given, gradients| {
            activation::activation_gradient(kind, given.inputs[0], given.gradient, &mut gradients[0]);
        },
    )
}

/// GEGLU over the last dimension: its first half times GELU (with the error function) of its second.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    let mut shape = x.dims().to_vec();
    let Some(last) = shape.last_mut().filter(|last| **last % 2 == 0) else {
        bail!("geglu: the last dimension of the input {:?} should be even", x.dims());
    };
    *last /= 2;
    let width = *last;
    apply(
        "geglu",
        &[x],
        shape,
        move |data, y| activation::geglu(data[0], y, width),
        move |given, gradients| {
            activation::geglu_gradient(given.inputs[0], given.gradient, &mut gradients[0], width);
        },
    )
}

/// Softmax over the last dimension.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    let width = x.dim(candle_core::D::Minus1)?;
    apply(
        "softmax",
        &[x],
        x.shape(),
        move |data, y| activation::softmax(data[0], y, width),
        move |given, gradients| {
            activation::softmax_gradient(given.output, given.gradient, &mut gradients[0], width);
        },
    )
}

/// `x` (samples x channels x height x width) with every pixel `factor` x `factor` times.
pub fn upsample_nearest(x: &Tensor, factor: usize) -> Result<Tensor> {
    let (samples, channels, height, width) = x.dims4()?;
    apply(
        "upsample_nearest",
        &[x],
        (samples, channels, height * factor, width * factor),
        move |data, y| activation::upsample_nearest(data[0], y, width, factor),
        move |given, gradients| {
            activation::upsample_nearest_gradient(given.gradient, &mut gradients[0], width, factor);
        },
    )
}

/// Layer norm over the last dimension, times `weight` plus `bias`.
pub fn layer_norm_affine(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    let width = weight.elem_count();
    last_dim("layer_norm", x, width)?;
    same_width("layer_norm", bias, width)?;
    let rows = x.elem_count() / width.max(1);
    apply(
        "layer_norm",
        &[x, weight, bias],
        x.shape(),
        move |data, y| norm::layer_norm(data[0], y, width, eps, Affine::Elementwise(data[1], data[2])),
        move |given, gradients| {
            let [gx, gweight, gbias] = all(given, gradients);
            let &[x, weight, bias] = given.inputs else { return };
            norm::layer_norm_gradient(x, given.gradient, gx, width, eps, Affine::Elementwise(weight, bias));
            if given.wanted[1] || given.wanted[2] {
                norm::layer_norm_affine_gradient(x, given.gradient, (gweight, gbias), (rows, width), eps);
            }
        },
    )
}

/// Adaptive layer norm of `x` (samples x tokens x width): layer norm, times 1 + `scale`, plus `shift` (samples x
/// width each).
pub fn layer_norm_modulated(x: &Tensor, scale: &Tensor, shift: &Tensor, eps: f32) -> Result<Tensor> {
    let (samples, rows, width) = x.dims3()?;
    if scale.dims() != [samples, width] || shift.dims() != [samples, width] {
        bail!("layer_norm: input {:?} does not fit a modulation of {:?}", x.dims(), scale.dims());
    }
    apply(
        "layer_norm",
        &[x, scale, shift],
        x.shape(),
        move |data, y| {
            let modulation = Affine::Modulated { scale: data[1], shift: data[2], rows };
            norm::layer_norm(data[0], y, width, eps, modulation);
        },
        move |given, gradients| {
            let [gx, gscale, gshift] = all(given, gradients);
            let &[x, scale, shift] = given.inputs else { return };
            let modulation = Affine::Modulated { scale, shift, rows };
            norm::layer_norm_gradient(x, given.gradient, gx, width, eps, modulation);
            if given.wanted[1] || given.wanted[2] {
                norm::layer_norm_affine_gradient(x, given.gradient, (gscale, gshift), (rows, width), eps);
            }
        },
    )
}

/// RMS norm over groups of `weight.elem_count()` successive elements: the last dimension, or the heads in it.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let (width, last) = (weight.elem_count(), x.dim(candle_core::D::Minus1)?);
    if width == 0 || last % width != 0 {
        bail!("rms_norm: the last dimension of the input {:?} is not a multiple of {width}", x.dims());
    }
    apply(
        "rms_norm",
        &[x, weight],
        x.shape(),
        move |data, y| norm::rms_norm(data[0], y, data[1], eps),
        move |given, gradients| {
            let [gx, gweight] = all(given, gradients);
            norm::rms_norm_gradient(given.inputs[0], given.gradient, gx, given.inputs[1], eps);
            if given.wanted[1] {
                norm::rms_norm_weight_gradient(given.inputs[0], given.gradient, gweight, eps);
            }
        },
    )
}

/// Group norm of `x` (samples x channels x ...), then SiLU if `silu`.
pub fn group_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, groups: usize, eps: f32, silu: bool) -> Result<Tensor> {
    let (channels, area) = (weight.elem_count(), x.dims().iter().skip(2).product());
    if x.dims().get(1) != Some(&channels) || groups == 0 || channels % groups != 0 {
        bail!("group_norm: input {:?} does not fit {channels} channels in {groups} groups", x.dims());
    }
    same_width("group_norm", bias, channels)?;
    apply(
        "group_norm",
        &[x, weight, bias],
        x.shape(),
        move |data, y| norm::group_norm(data[0], y, (data[1], data[2]), (groups, area), eps, silu),
        move |given, gradients| {
            let [gx, gweight, gbias] = all(given, gradients);
            let &[x, weight, bias] = given.inputs else { return };
            let (affine, size) = ((weight, bias), (groups, area));
            norm::group_norm_gradient(x, given.gradient, gx, (gweight, gbias), affine, size, eps, silu);
        },
    )
}

/// Rotary positions: `x` (samples x tokens x heads' width) with the elements 2i and 2i + 1 of every head as a point that is
/// turned. `table` (tokens x width of a head) holds the cosine of the pair's angle in the place of the one, its sine in
/// that of the other.
pub fn rope(x: &Tensor, table: &Tensor) -> Result<Tensor> {
    let (_, tokens, row) = x.dims3()?;
    let (places, width) = table.dims2()?;
    if places != tokens || width == 0 || width % 2 != 0 || row % width != 0 {
        bail!("rope: input {:?} does not fit a table of {:?}", x.dims(), table.dims());
    }
    let size = (row, width);
    apply(
        "rope",
        &[x, table],
        x.shape(),
        move |data, y| rope::rope(data[0], y, data[1], size),
        move |given, gradients| {
            let [gx, gtable] = all(given, gradients);
            let &[x, table] = given.inputs else { return };
            rope::rope_gradient(given.gradient, gx, table, size);
            if given.wanted[1] {
                rope::rope_table_gradient(x, given.gradient, gtable, size);
            }
        },
    )
}

/// The heads of an attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heads {
    /// How many there are.
    pub count: usize,
    /// What their scores are multiplied by.
    pub scale: f32,
}

impl Heads {
    /// Heads that are, or were when they were trained, `head_dim` wide: the scale is 1 / sqrt(head_dim).
    #[must_use]
    pub fn new(count: usize, head_dim: usize) -> Self {
        Self { count, scale: 1.0 / (head_dim as f32).sqrt() }
    }

    /// Width of a head in rows of that width, if they divide.
    fn width(self, row: usize) -> Option<usize> {
        (self.count > 0 && row.is_multiple_of(self.count)).then(|| row / self.count)
    }
}

/// softmax(scale * Q K^T + bias) V for every head: `q` samples x queries x (heads * head width), `k` samples x keys x the
/// same, `v` samples x keys x (heads * width of a head of values), as the result is; `key_bias`, where given, has one number a
/// key, or one a key of each sample; with `causal`, token i sees the keys 0..=i.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: Heads,
    key_bias: Option<Arc<[f32]>>,
    causal: bool,
) -> Result<Tensor> {
    let (batch, queries, width) = q.dims3()?;
    let (_, keys, value_width) = v.dims3()?;
    let fit = k.dims() == [batch, keys, width] && v.dim(0)? == batch;
    let (Some(head_dim), Some(value_dim), true) = (heads.width(width), heads.width(value_width), fit) else {
        let (q, k, v, heads) = (q.dims(), k.dims(), v.dims(), heads.count);
        bail!("attention: queries {q:?}, keys {k:?} and values {v:?} do not fit {heads} heads");
    };
    fits("attention", key_bias.as_deref(), batch, keys)?;
    let Heads { count, scale } = heads;
    let shape = AttentionShape { batch, heads: count, queries, keys, head_dim, value_dim };
    let bias = key_bias.clone();
    apply(
        "attention",
        &[q, k, v],
        (batch, queries, value_width),
        move |data, y| {
            let scores = Scores { scale, key_bias: bias.as_deref(), causal };
            attention::attention(data[0], &[KeysValues { keys: data[1], values: data[2] }], y, shape, scores);
        },
        move |given, gradients| {
            let [gq, gk, gv] = all(given, gradients);
            let &[q, k, v] = given.inputs else { return };
            let scores = Scores { scale, key_bias: key_bias.as_deref(), causal };
            attention::gradients([q, k, v], given.gradient, shape, scores, [gq, gk, gv]);
        },
    )
}

/// Whether a key bias is of one sample or of all.
fn fits(name: &str, key_bias: Option<&[f32]>, batch: usize, keys: usize) -> Result<()> {
    match key_bias.map(<[f32]>::len) {
        Some(length) if length != keys && length != batch * keys => {
            bail!("{name}: a bias of {length} does not fit {keys} keys of {batch} samples")
        }
        _ => Ok(()),
    }
}

/// Self-attention over the tokens of several streams together, each with its own query, key and value (samples x tokens x
/// (heads * head width)): the result for the tokens of each. As [`attention()`] of the streams joined, without joining them.
pub fn joint_attention(streams: &[[&Tensor; 3]], heads: Heads, key_bias: Option<Arc<[f32]>>) -> Result<Vec<Tensor>> {
    let tokens = streams.iter().map(|[q, ..]| q.dim(1)).collect::<Result<Vec<_>>>()?;
    let all = |index: usize| streams.iter().map(|stream| stream[index]).collect::<Vec<_>>();
    if streams.iter().flatten().any(|tensor| tensor.track_op()) {
        // Through the graph, whose nodes take three inputs.
        let join = |index| Tensor::cat(&all(index), 1);
        let joined = attention(&join(0)?, &join(1)?, &join(2)?, heads, key_bias, false)?;
        let start = |stream: usize| tokens[..stream].iter().sum();
        return (0..streams.len()).map(|stream| joined.narrow(1, start(stream), tokens[stream])).collect();
    }
    let Some([first, _, value]) = streams.first() else { return Ok(Vec::new()) };
    let ((batch, _, width), value_width) = (first.dims3()?, value.dim(candle_core::D::Minus1)?);
    let keys = tokens.iter().sum();
    let (Some(head_dim), Some(value_dim)) = (heads.width(width), heads.width(value_width)) else {
        bail!("joint_attention: widths {width} and {value_width} do not fit {} heads", heads.count);
    };
    for (stream, &tokens) in streams.iter().zip(&tokens) {
        let wanted = [width, width, value_width].map(|width| [batch, tokens, width]);
        if stream.iter().zip(&wanted).any(|(tensor, wanted)| tensor.dims() != wanted) {
            bail!("joint_attention: {:?} are not {wanted:?}, as the first stream's are", stream.map(Tensor::dims));
        }
    }
    fits("joint_attention", key_bias.as_deref(), batch, keys)?;
    let contiguous = streams.iter().flatten().map(|t| t.contiguous()).collect::<Result<Vec<_>>>()?;
    let tensors: Vec<&Tensor> = contiguous.iter().collect();
    let scores = Scores { scale: heads.scale, key_bias: key_bias.as_deref(), causal: false };
    let outputs = with_slices("joint_attention", &tensors, |data| {
        let (streams, _) = data.as_chunks::<3>();
        let parts: Vec<_> = streams.iter().map(|&[_, keys, values]| KeysValues { keys, values }).collect();
        let run = |(&[q, ..], &queries): (&[&[f32]; 3], &usize)| {
            let mut output = zeros(batch * queries * value_width);
            let shape = AttentionShape { batch, heads: heads.count, queries, keys, head_dim, value_dim };
            attention::attention(q, &parts, &mut output, shape, scores);
            output
        };
        streams.iter().zip(&tokens).map(run).collect::<Vec<_>>()
    })?;
    let tensor = |(output, &tokens)| Tensor::from_vec(output, (batch, tokens, value_width), first.device());
    outputs.into_iter().zip(&tokens).map(tensor).collect()
}

/// `x` + `gate` * `y`: `x` and `y` samples x tokens x width, `gate` samples x width (gated residual).
pub fn gated_add(x: &Tensor, gate: &Tensor, y: &Tensor) -> Result<Tensor> {
    let (samples, rows, width) = x.dims3()?;
    if y.dims() != x.dims() || gate.dims() != [samples, width] {
        bail!("gated_add: {:?} + {:?} * {:?} do not fit", x.dims(), gate.dims(), y.dims());
    }
    apply(
        "gated_add",
        &[x, gate, y],
        x.shape(),
        move |data, out| norm::gated_add(data[0], data[1], data[2], out, (rows, width)),
        move |given, gradients| {
            let [gx, ggate, gy] = all(given, gradients);
            gx.copy_from_slice(given.gradient);
            norm::gated_add_gradient((given.inputs[1], given.inputs[2]), given.gradient, (ggate, gy), (rows, width));
        },
    )
}
