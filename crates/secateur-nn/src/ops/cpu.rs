//! The CPU kernels as nodes of candle's graph (`f32`): inputs of any layout, contiguous outputs,
//! and gradients of all inputs.

use super::graph::{self, Node};
use super::host_sums::HostSums;
use crate::weights::{Packed, Weight};
use candle_core::{CpuStorage, D, Device, Layout, Result, Shape, Storage, Tensor, bail};
use rayon::prelude::*;
use secateur_kernels::activation::{self, Activation};
use secateur_kernels::attention::{self, KeysValues, Scores, Shape as AttentionShape};
use secateur_kernels::convolution::{Convolution, ConvolutionWeight};
use secateur_kernels::factor;
use secateur_kernels::gram;
use secateur_kernels::linear::{self, LinearWeight};
use secateur_kernels::norm::{self, Affine};
use secateur_kernels::obs::{self, Choice};
use secateur_kernels::rope;
use std::sync::Arc;

/// The arguments of a backward pass.
struct Backward<'a> {
    /// The inputs of the forward pass.
    inputs: &'a [&'a [f32]],
    /// Its output.
    output: &'a [f32],
    /// The gradient of the output.
    gy: &'a [f32],
    /// Which inputs need a gradient.
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
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("{name}: an input is not contiguous")
    };
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// Makes zeros, written by all threads: for a large output, one thread takes as long as a whole
/// kernel.
fn zeros(count: usize) -> Vec<f32> {
    const LARGE: usize = 64 * 1024;
    const PIECE: usize = 256;
    if count < LARGE {
        return vec![0.0; count];
    }
    let pieces: Vec<_> =
        rayon::iter::repeat_n([0f32; PIECE], count.div_ceil(PIECE)).with_min_len(64).collect();
    let mut zeros = pieces.into_flattened();
    zeros.truncate(count);
    zeros
}

impl<F, B> Node for Kernel<F, B>
where
    F: Fn(&[&[f32]], &mut [f32]),
    B: Fn(&Backward<'_>, &mut [Vec<f32>]),
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn on_cpu(&self, inputs: &[(&CpuStorage, &Layout)]) -> Result<(CpuStorage, Shape)> {
        let slices = inputs
            .iter()
            .map(|(storage, layout)| slice(self.name, storage, layout))
            .collect::<Result<Vec<_>>>()?;
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
        let gradient_of = |(input, &wanted): (&&Tensor, &bool)| {
            if wanted { zeros(input.elem_count()) } else { Vec::new() }
        };
        let mut gradients: Vec<Vec<f32>> = inputs.iter().zip(&wanted).map(gradient_of).collect();
        let gradient = gradient.contiguous()?;
        let mut tensors = inputs.to_vec();
        tensors.extend([output, &gradient]);
        with_slices(self.name, &tensors, |slices| {
            let (inputs, rest) = slices.split_at(N);
            let given = Backward { inputs, output: rest[0], gy: rest[1], wanted: &wanted };
            (self.backward)(&given, &mut gradients);
        })?;
        let mut results = [const { None }; N];
        for (((result, input), gradient), wanted) in
            results.iter_mut().zip(inputs).zip(gradients).zip(wanted)
        {
            if wanted {
                *result = Some(Tensor::from_vec(gradient, input.shape(), input.device())?);
            }
        }
        Ok(results)
    }
}

/// Puts a kernel of one to three inputs into the graph. `forward` fills a zeroed output of `shape`;
/// `backward` adds to zeroed gradients of the inputs; those that are not wanted are empty.
fn apply(
    name: &'static str,
    inputs: &[&Tensor],
    shape: impl Into<Shape>,
    forward: impl Fn(&[&[f32]], &mut [f32]) + Send + Sync + 'static,
    backward: impl Fn(&Backward<'_>, &mut [Vec<f32>]) + Send + Sync + 'static,
) -> Result<Tensor> {
    let kernel = Kernel { name, shape: shape.into(), forward, backward };
    let inputs = inputs.iter().map(|t| t.contiguous()).collect::<Result<Vec<_>>>()?;
    graph::apply(kernel, &inputs.iter().collect::<Vec<_>>())
}

/// The gradients of all inputs, also of those that are not wanted, for kernels that make them
/// together.
fn all<'a, const N: usize>(
    given: &Backward<'_>,
    gradients: &'a mut [Vec<f32>],
) -> [&'a mut Vec<f32>; N] {
    let mut gradients = gradients.iter_mut().zip(given.inputs);
    std::array::from_fn(|_| {
        let (gradient, input) = gradients.next().expect("a gradient for every input");
        gradient.resize(input.len(), 0.0);
        gradient
    })
}

/// The packed form of a linear's weight (outputs x inputs), made when first needed.
fn packed_linear(weight: &Weight) -> Result<Arc<LinearWeight>> {
    let packed = weight.packed(|tensor| {
        let (_, inputs) = tensor.dims2()?;
        let tensor = tensor.contiguous()?;
        with_slices("linear", &[&tensor], |data| {
            Packed::Linear(Arc::new(LinearWeight::new(data[0], inputs)))
        })
    })?;
    match packed {
        Packed::Linear(packed) => Ok(packed),
        _ => bail!("linear: the weight was packed for something else"),
    }
}

/// The packed form of a convolution's weight (outputs x channels x kernel x kernel), made when
/// first needed.
fn packed_convolution(weight: &Weight) -> Result<Arc<ConvolutionWeight>> {
    let packed = weight.packed(|tensor| {
        let (outputs, ..) = tensor.dims4()?;
        let tensor = tensor.contiguous()?;
        let pack = |data: &[&[f32]]| {
            Packed::Convolution(Arc::new(ConvolutionWeight::new(data[0], outputs)))
        };
        with_slices("conv2d", &[&tensor], pack)
    })?;
    match packed {
        Packed::Convolution(packed) => Ok(packed),
        _ => bail!("conv2d: the weight was packed for something else"),
    }
}

pub(super) fn linear(
    x: &Tensor,
    weight: &Weight,
    bias: Option<&Tensor>,
    kind: Option<Activation>,
) -> Result<Tensor> {
    let (outputs, inputs) = weight.shape().dims2()?;
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = outputs;
    }
    let packed = packed_linear(weight)?;
    let of_backward = Arc::clone(&packed);
    let tracked = weight.tracked();
    let tensors: Vec<&Tensor> = [Some(x), tracked.as_ref(), bias].into_iter().flatten().collect();
    let has_gradient = tracked.is_some();
    let of_bias = 1 + usize::from(has_gradient);
    let forward = move |data: &[&[f32]], y: &mut [f32]| {
        linear::linear(data[0], packed.forward(), data.get(of_bias).copied(), kind, y);
    };
    let backward = move |given: &Backward<'_>, gradients: &mut [Vec<f32>]| {
        if given.wanted[0] {
            linear::input_gradient(given.gy, &of_backward, &mut gradients[0]);
        }
        if has_gradient {
            linear::weight_gradient(
                given.inputs[0],
                given.gy,
                (inputs, outputs),
                &mut gradients[1],
            );
        }
        if let (Some(bias), Some(true)) = (gradients.get_mut(of_bias), given.wanted.get(of_bias)) {
            for row in given.gy.chunks_exact(outputs.max(1)) {
                bias.iter_mut().zip(row).for_each(|(b, g)| *b += g);
            }
        }
    };
    apply("linear", &tensors, shape, forward, backward)
}

pub(super) fn conv2d(
    x: &Tensor,
    weight: &Weight,
    bias: &Tensor,
    stride: usize,
    padding: (usize, usize),
) -> Result<Tensor> {
    let (samples, channels, height, width) = x.dims4()?;
    let (outputs, _, kernel, _) = weight.shape().dims4()?;
    let convolution = Convolution { channels, size: (height, width), kernel, stride, padding };
    let (height, width) = convolution.output_size();
    let packed = packed_convolution(weight)?;
    let of_backward = Arc::clone(&packed);
    let tracked = weight.tracked();
    let tensors: Vec<&Tensor> =
        [Some(x), tracked.as_ref(), Some(bias)].into_iter().flatten().collect();
    let has_gradient = tracked.is_some();
    let of_bias = 1 + usize::from(has_gradient);
    apply(
        "conv2d",
        &tensors,
        (samples, outputs, height, width),
        move |data, y| convolution.run(data[0], packed.forward(), data[of_bias], y),
        move |given, gradients| {
            if given.wanted[0] {
                convolution.input_gradient(given.gy, &of_backward, &mut gradients[0]);
            }
            if has_gradient {
                convolution.weight_gradient(given.inputs[0], given.gy, &mut gradients[1]);
            }
            if given.wanted[of_bias] {
                for (plane, gradient) in given.gy.chunks_exact((height * width).max(1)).enumerate()
                {
                    gradients[of_bias][plane % outputs] += gradient.iter().sum::<f32>();
                }
            }
        },
    )
}

pub(super) fn activation(kind: Activation, x: &Tensor) -> Result<Tensor> {
    apply(
        "activation",
        &[x],
        x.shape(),
        move |data, y| activation::activation(kind, data[0], y),
        move |given, gradients| {
            activation::activation_gradient(kind, given.inputs[0], given.gy, &mut gradients[0]);
        },
    )
}

/// `width`: of the result.
pub(super) fn geglu(x: &Tensor, width: usize) -> Result<Tensor> {
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = width;
    }
    apply(
        "geglu",
        &[x],
        shape,
        move |data, y| activation::geglu(data[0], y, width),
        move |given, gradients| {
            activation::geglu_gradient(given.inputs[0], given.gy, &mut gradients[0], width);
        },
    )
}

pub(super) fn softmax(x: &Tensor) -> Result<Tensor> {
    let width = x.dim(D::Minus1)?;
    apply(
        "softmax",
        &[x],
        x.shape(),
        move |data, y| activation::softmax(data[0], y, width),
        move |given, gradients| {
            activation::softmax_gradient(given.output, given.gy, &mut gradients[0], width);
        },
    )
}

pub(super) fn upsample_nearest(x: &Tensor, factor: usize) -> Result<Tensor> {
    let (samples, channels, height, width) = x.dims4()?;
    apply(
        "upsample_nearest",
        &[x],
        (samples, channels, height * factor, width * factor),
        move |data, y| activation::upsample_nearest(data[0], y, width, factor),
        move |given, gradients| {
            activation::upsample_nearest_gradient(given.gy, &mut gradients[0], width, factor);
        },
    )
}

pub(super) fn layer_norm_affine(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f32,
) -> Result<Tensor> {
    let width = weight.elem_count();
    let rows = x.elem_count() / width.max(1);
    apply(
        "layer_norm",
        &[x, weight, bias],
        x.shape(),
        move |data, y| {
            norm::layer_norm(data[0], y, width, eps, Affine::Elementwise(data[1], data[2]))
        },
        move |given, gradients| {
            let [gx, gweight, gbias] = all(given, gradients);
            let &[x, weight, bias] = given.inputs else { return };
            norm::layer_norm_gradient(
                x,
                given.gy,
                gx,
                width,
                eps,
                Affine::Elementwise(weight, bias),
            );
            if given.wanted[1] || given.wanted[2] {
                norm::layer_norm_affine_gradient(x, given.gy, (gweight, gbias), (rows, width), eps);
            }
        },
    )
}

pub(super) fn layer_norm_modulated(
    x: &Tensor,
    scale: &Tensor,
    shift: &Tensor,
    eps: f32,
) -> Result<Tensor> {
    let (_, rows, width) = x.dims3()?;
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
            norm::layer_norm_gradient(x, given.gy, gx, width, eps, modulation);
            if given.wanted[1] || given.wanted[2] {
                norm::layer_norm_affine_gradient(x, given.gy, (gscale, gshift), (rows, width), eps);
            }
        },
    )
}

pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    apply(
        "rms_norm",
        &[x, weight],
        x.shape(),
        move |data, y| norm::rms_norm(data[0], y, data[1], eps),
        move |given, gradients| {
            let [gx, gweight] = all(given, gradients);
            norm::rms_norm_gradient(given.inputs[0], given.gy, gx, given.inputs[1], eps);
            if given.wanted[1] {
                norm::rms_norm_weight_gradient(given.inputs[0], given.gy, gweight, eps);
            }
        },
    )
}

pub(super) fn group_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    eps: f32,
    silu: bool,
) -> Result<Tensor> {
    let area = x.dims().iter().skip(2).product();
    apply(
        "group_norm",
        &[x, weight, bias],
        x.shape(),
        move |data, y| norm::group_norm(data[0], y, (data[1], data[2]), (groups, area), eps, silu),
        move |given, gradients| {
            let [gx, gweight, gbias] = all(given, gradients);
            let &[x, weight, bias] = given.inputs else { return };
            let (affine, size) = ((weight, bias), (groups, area));
            norm::group_norm_gradient(x, given.gy, gx, (gweight, gbias), affine, size, eps, silu);
        },
    )
}

pub(super) fn rope(x: &Tensor, table: &Tensor) -> Result<Tensor> {
    let size = (x.dim(D::Minus1)?, table.dim(1)?);
    apply(
        "rope",
        &[x, table],
        x.shape(),
        move |data, y| rope::rope(data[0], y, data[1], size),
        move |given, gradients| {
            let [gx, gtable] = all(given, gradients);
            let &[x, table] = given.inputs else { return };
            rope::rope_gradient(given.gy, gx, table, size);
            if given.wanted[1] {
                rope::rope_table_gradient(x, given.gy, gtable, size);
            }
        },
    )
}

pub(super) fn attention(
    [q, k, v]: [&Tensor; 3],
    shape: AttentionShape,
    scale: f32,
    key_bias: Option<&Tensor>,
    causal: bool,
) -> Result<Tensor> {
    let key_bias: Option<Arc<[f32]>> = key_bias.map(numbers).transpose()?.map(Arc::from);
    let bias = key_bias.clone();
    apply(
        "attention",
        &[q, k, v],
        (shape.batch, shape.queries, v.dim(D::Minus1)?),
        move |data, y| {
            let scores = Scores { scale, key_bias: bias.as_deref(), causal };
            attention::attention(
                data[0],
                &[KeysValues { keys: data[1], values: data[2] }],
                y,
                shape,
                scores,
            );
        },
        move |given, gradients| {
            let [gq, gk, gv] = all(given, gradients);
            let &[q, k, v] = given.inputs else { return };
            let scores = Scores { scale, key_bias: key_bias.as_deref(), causal };
            attention::gradients([q, k, v], given.gy, shape, scores, [gq, gk, gv]);
        },
    )
}

/// By products with all scores in memory.
pub(super) fn biased_attention(
    [q, k, v]: [&Tensor; 3],
    shape: AttentionShape,
    scale: f32,
    bias: &Tensor,
) -> Result<Tensor> {
    let by_head = |x: &Tensor, tokens: usize| {
        x.reshape((shape.batch, tokens, shape.heads, ()))?.transpose(1, 2)?.contiguous()
    };
    let q = by_head(q, shape.queries)?;
    let q = if scale == 1.0 { q } else { (q * f64::from(scale))? };
    let scores = q.matmul(&by_head(k, shape.keys)?.t()?)?.broadcast_add(bias)?;
    let y = softmax(&scores)?.matmul(&by_head(v, shape.keys)?)?;
    y.transpose(1, 2)?.flatten_from(2)
}

/// Attention over several streams, without a gradient. `shape` has the keys of all streams; its
/// number of queries is not used.
pub(super) fn joint_attention(
    streams: &[[&Tensor; 3]],
    tokens: &[usize],
    shape: AttentionShape,
    scale: f32,
    key_bias: Option<&Tensor>,
) -> Result<Vec<Tensor>> {
    let key_bias = key_bias.map(numbers).transpose()?;
    let contiguous =
        streams.iter().flatten().map(|t| t.contiguous()).collect::<Result<Vec<_>>>()?;
    let tensors: Vec<&Tensor> = contiguous.iter().collect();
    let scores = Scores { scale, key_bias: key_bias.as_deref(), causal: false };
    let value_width = shape.heads * shape.value_dim;
    let outputs = with_slices("joint_attention", &tensors, |data| {
        let (streams, _) = data.as_chunks::<3>();
        let parts: Vec<_> =
            streams.iter().map(|&[_, keys, values]| KeysValues { keys, values }).collect();
        let run = |(&[q, ..], &queries): (&[&[f32]; 3], &usize)| {
            let mut output = zeros(shape.batch * queries * value_width);
            attention::attention(
                q,
                &parts,
                &mut output,
                AttentionShape { queries, ..shape },
                scores,
            );
            output
        };
        streams.iter().zip(tokens).map(run).collect::<Vec<_>>()
    })?;
    let tensor = |(output, &tokens)| {
        Tensor::from_vec(output, (shape.batch, tokens, value_width), &Device::Cpu)
    };
    outputs.into_iter().zip(tokens).map(tensor).collect()
}

pub(super) fn gated_add(x: &Tensor, gate: &Tensor, y: &Tensor) -> Result<Tensor> {
    let (_, rows, width) = x.dims3()?;
    apply(
        "gated_add",
        &[x, gate, y],
        x.shape(),
        move |data, out| norm::gated_add(data[0], data[1], data[2], out, (rows, width)),
        move |given, gradients| {
            let [gx, ggate, gy] = all(given, gradients);
            gx.copy_from_slice(given.gy);
            norm::gated_add_gradient(
                (given.inputs[1], given.inputs[2]),
                given.gy,
                (ggate, gy),
                (rows, width),
            );
        },
    )
}

fn numbers(x: &Tensor) -> Result<Vec<f32>> {
    x.flatten_all()?.to_vec1()
}

/// Runs `body` on the numbers of a tensor of any layout.
pub(super) fn with_values<R>(x: &Tensor, body: impl FnOnce(&[f32]) -> R) -> Result<R> {
    with_slices("reading", &[&x.contiguous()?], |slices| body(slices[0]))
}

/// Adds rows of `x` to the sums.
pub(super) fn add_rows(
    sums: &mut HostSums,
    x: &Tensor,
    (places, times): (&[usize], &[f32]),
    weight: f64,
) -> Result<()> {
    let width = sums.squares.len();
    with_values(x, |x| {
        let row = |index: usize| &x[places[index] * width..][..width];
        let times = |index: usize| times[index];
        let weigh = |index: usize| weight as f32 * times(index);
        gram::add_gram_to_bands(places.len(), width, row, weigh, &mut sums.gram);
        // The weight is the same for all of these rows.
        let mut new = vec![0f64; width];
        gram::add_column_moments(places.len(), row, times, &mut new, &mut sums.squares);
        for ((sum, weighted), new) in sums.sums.iter_mut().zip(&mut sums.weighted_sums).zip(new) {
            *sum += new;
            *weighted += weight * new;
        }
    })
}

pub(super) fn inverse_factor(matrix: &Tensor, diagonal: &[f32]) -> Result<Option<Tensor>> {
    let columns = diagonal.len();
    let mut values = with_values(matrix, <[f32]>::to_vec)?;
    for (j, &diagonal) in diagonal.iter().enumerate() {
        values[j * columns + j] = diagonal;
    }
    let is_whole = factor::inverse_factor(&mut values, columns).is_ok()
        && values.iter().all(|value| value.is_finite());
    is_whole.then(|| Tensor::from_vec(values, (columns, columns), &Device::Cpu)).transpose()
}

pub(super) fn add_gram(matrix: &Tensor, x: &Tensor, factor: f32) -> Result<Tensor> {
    let (rows, columns) = x.dims2()?;
    let mut sum = with_values(matrix, <[f32]>::to_vec)?;
    with_values(x, |x| {
        gram::add_gram(rows, columns, |i| &x[i * columns..][..columns], |_| factor, &mut sum);
    })?;
    gram::symmetrise(&mut sum, columns);
    Tensor::from_vec(sum, (columns, columns), &Device::Cpu)
}

pub(super) fn whole_gram(bands: &Tensor, width: usize) -> Result<Tensor> {
    let whole = with_values(bands, |bands| gram::whole(bands, width))?;
    Tensor::from_vec(whole, (width, width), &Device::Cpu)
}

pub(super) fn obs_solve(weight: &Tensor, factor: &Tensor, choice: Choice) -> Result<Tensor> {
    let mut values = with_values(weight, <[f32]>::to_vec)?;
    with_values(factor, |factor| obs::solve(&mut values, factor, choice))?;
    Tensor::from_vec(values, weight.shape(), &Device::Cpu)
}
