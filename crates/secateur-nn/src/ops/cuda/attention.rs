//! Softmax, and attention. In 16 bits attention is computed by cuDNN where nothing but the scale
//! changes the scores, or by the kernels of `attention.cuh`, which have a backward pass too. In 32
//! bits, or for wide heads, it is made of candle's operations, for some queries at a time.

use super::gradients;
#[cfg(feature = "cudnn")]
use super::launch::made_by_cudnn;
use super::launch::{
    self, Launch, Scalar, THREADS, filled, made, numbers_an_access, plain, threads_over,
    with_addresses,
};
use super::node::{Backward, Output, zeros_like};
use candle_core::{CudaDevice, D, DType, Result, Tensor, bail};
use secateur_kernels::attention::Shape;

/// The queries whose scores are in memory at once.
const QUERIES: usize = 1024;

/// The widths of heads that there are kernels for: narrower heads are padded to one of them.
const FORWARD: [usize; 8] = [32, 48, 64, 80, 96, 128, 160, 256];
const BACKWARD: [usize; 5] = [32, 48, 64, 80, 128];

/// The queries or keys of a block of the backward kernels; of the other side a block takes as many
/// at a time, as the forward kernels do of keys.
const TILE: usize = 64;

/// The second dimension of a grid of blocks: samples x heads.
const MOST_HEADS: usize = 65_535;

/// How scores are made.
struct Scores {
    shape: Shape,
    scale: f32,
    /// In `f32`: samples x heads x queries x keys; where it is the same for all samples, heads or
    /// queries, it has one.
    bias: Option<Tensor>,
    causal: bool,
}

/// `bias`: of [`Scores`], of any type.
pub(in crate::ops) fn attention(
    inputs: [&Tensor; 3],
    shape: Shape,
    scale: f32,
    bias: Option<&Tensor>,
    causal: bool,
) -> Result<Tensor> {
    let tensors = plain(&inputs)?;
    let (dtype, device) = (tensors[0].dtype(), inputs[0].device());
    if shape.keys == 0 || result_of(shape).elem_count() == 0 {
        let y = match result_of(shape).elem_count() {
            0 => filled(device.as_cuda_device()?, dtype, result_of(shape), |_| Ok(()))?.untracked(),
            _ => Tensor::zeros(result_of(shape), dtype, device)?,
        };
        return Output::of(y, "attention", &inputs, |given| {
            (0..3).map(|index| given.of(index, || zeros_like(&given.inputs[index]))).collect()
        });
    }
    let bias = bias.map(|bias| bias.detach().to_dtype(DType::F32)?.contiguous()).transpose()?;
    let scores = Scores { shape, scale, bias, causal };
    // cuDNN's forward pass leaves nothing that the kernels' backward pass could go on from.
    #[cfg(feature = "cudnn")]
    if scores.bias.is_none()
        && !causal
        && !inputs.iter().any(|input| input.track_op())
        && let Some(y) = by_cudnn(&tensors, shape, scale)?
    {
        return Ok(y.untracked());
    }
    if let Some(padded) = scores.padded(dtype, &FORWARD) {
        let (y, log_sums) = scores.by_kernel(&tensors, padded)?;
        let is_of_queries = scores.bias.as_ref().is_some_and(|bias| bias.dims()[2] > 1);
        let backward = scores.padded(dtype, &BACKWARD).filter(|_| !is_of_queries);
        return y.tracked("attention", &inputs, move |given| match backward {
            Some(padded) => scores.gradients_by_kernels(given, &log_sums, padded),
            None => scores.gradients(given),
        });
    }
    let y = scores.attention(&tensors)?;
    Output::of(y, "attention", &inputs, move |given| scores.gradients(given))
}

/// Samples x queries x (heads * value width).
fn result_of(shape: Shape) -> candle_core::Shape {
    (shape.batch, shape.queries, shape.heads * shape.value_dim).into()
}

/// None where cuDNN is not there, or has no way for numbers of that type or heads of that width.
#[cfg(feature = "cudnn")]
fn by_cudnn(tensors: &[Tensor], shape: Shape, scale: f32) -> Result<Option<Output>> {
    let dtype = tensors[0].dtype();
    let is_whole = |width: usize| width.is_multiple_of(8);
    if dtype == DType::F32 || !is_whole(shape.head_dim) || !is_whole(shape.value_dim) {
        return Ok(None);
    }
    made_by_cudnn(&tensors.iter().collect::<Vec<_>>(), result_of(shape), |cudnn, addresses, y| {
        let &[q, k, v] = addresses else { return Ok(false) };
        cudnn.attention((dtype, shape, scale), [q, k, v, y])
    })
}

impl Scores {
    /// The narrowest of `widths` that heads fit in; None if none does, or the kernels know no
    /// numbers of that type.
    fn padded(&self, dtype: DType, widths: &[usize]) -> Option<usize> {
        let width = self.shape.head_dim.max(self.shape.value_dim);
        let padded = widths.iter().copied().find(|&padded| padded >= width);
        let can_start = self.shape.batch * self.shape.heads <= MOST_HEADS && self.scale > 0.0;
        padded.filter(|_| dtype != DType::F32 && can_start)
    }

    /// A kernel of `attention.cuh`, whose blocks keep `rows` of `tokens` in shared memory and go
    /// over tiles of the others.
    fn start(
        &self,
        device: &CudaDevice,
        (name, dtype, padded): (&str, DType, usize),
        (tokens, rows, rows_held): (usize, usize, usize),
        (inputs, output): (&[u64], u64),
    ) -> Result<()> {
        let Shape { batch, heads, .. } = self.shape;
        let scalars = self.scalars();
        let launch = Launch {
            name: &format!("{name}_{padded}"),
            width: 1,
            blocks: (tokens.div_ceil(rows), batch * heads),
            threads: 128,
            shared: rows_held * (padded + 8) * dtype.size_in_bytes() / size_of::<f32>(),
            scalars: &scalars,
        };
        launch::start(&launch, device, dtype, inputs, output)
    }

    /// `Sizes` of `attention.cuh`.
    fn scalars(&self) -> [Scalar; 10] {
        let Shape { heads, queries, keys, head_dim, value_dim, .. } = self.shape;
        let int = |number: usize| Scalar::Int(number as i32);
        let stride = |dim: usize| match &self.bias {
            Some(bias) if bias.dims()[dim] > 1 => bias.stride()[dim],
            _ => 0,
        };
        [
            int(heads),
            int(queries),
            int(keys),
            int(head_dim),
            int(value_dim),
            Scalar::Float(self.scale),
            int(usize::from(self.causal)),
            Scalar::Size(stride(0)),
            Scalar::Size(stride(1)),
            Scalar::Size(stride(2)),
        ]
    }

    /// The address of the bias, or none.
    fn with_bias<R>(&self, body: impl FnOnce(u64) -> Result<R>) -> Result<R> {
        match &self.bias {
            Some(bias) => with_addresses(&[bias], |_, bias| body(bias[0])),
            None => body(0),
        }
    }

    /// The result, and log2 of the sums of exponentials (samples x heads x queries).
    fn by_kernel(&self, tensors: &[Tensor], padded: usize) -> Result<(Output, Tensor)> {
        let Shape { batch, heads, queries, .. } = self.shape;
        let dtype = tensors[0].dtype();
        let rows = if padded > 128 { TILE } else { 2 * TILE };
        let (name, rows) = match &self.bias {
            None => ("attention", rows),
            Some(bias) if bias.dim(2)? == 1 => ("attention_biased_by_key", rows),
            Some(_) => ("attention_biased", TILE),
        };
        let mut y = None;
        let log_sums = self.with_bias(|bias| {
            with_addresses(&tensors.iter().collect::<Vec<_>>(), |device, qkv| {
                filled(device, DType::F32, (batch, heads, queries), |log_sums| {
                    y = Some(filled(device, dtype, result_of(self.shape), |y| {
                        let inputs = [qkv[0], qkv[1], qkv[2], bias, log_sums];
                        let held = (queries, rows, rows + 2 * TILE);
                        self.start(device, (name, dtype, padded), held, (&inputs, y))
                    })?);
                    Ok(())
                })
            })
        })?;
        let Some(y) = y else { bail!("attention: nothing to compute") };
        Ok((y, log_sums.untracked()))
    }

    fn gradients_by_kernels(
        &self,
        given: &Backward<'_>,
        log_sums: &Tensor,
        padded: usize,
    ) -> gradients::Gradients {
        let Shape { batch, heads, queries, keys, head_dim, value_dim } = self.shape;
        let dtype = given.gradient.dtype();
        let scalars = self.scalars();
        let count = batch * heads * queries;
        let of_outputs = Launch {
            name: "attention_deltas",
            width: 1,
            blocks: (count.div_ceil(THREADS / 32), 1),
            threads: THREADS,
            shared: 0,
            scalars: &[&[Scalar::Size(count)], &scalars[..]].concat(),
        };
        let deltas = launch::run(
            &of_outputs,
            &[given.output, given.gradient],
            (DType::F32, (batch, heads, queries)),
        )?
        .untracked();
        let mut tensors = plain(&given.inputs.iter().collect::<Vec<_>>())?;
        tensors.extend([given.gradient.clone(), log_sums.clone(), deltas]);
        let (rows_held, wanted) = (4 * TILE, given.wanted);
        let width_of = |head: usize| heads * head;
        self.with_bias(|bias| {
            with_addresses(&tensors.iter().collect::<Vec<_>>(), |device, addresses| {
                let &[q, k, v, g, log_sums, deltas] = addresses else {
                    bail!("attention: {} tensors", addresses.len())
                };
                let inputs = [q, k, v, bias, g, log_sums, deltas];
                let of_queries = || {
                    filled(device, dtype, (batch, queries, width_of(head_dim)), |to| {
                        let name = ("attention_of_queries", dtype, padded);
                        self.start(device, name, (queries, TILE, rows_held), (&inputs, to))
                    })
                };
                let of_q = wanted[0].then(of_queries).transpose()?.map(Output::untracked);
                let (mut of_k, mut of_v) = (None, None);
                if wanted[1] || wanted[2] {
                    let keys_sizes = (batch, keys, width_of(head_dim));
                    of_k = Some(filled(device, dtype, keys_sizes, |to_keys| {
                        let sizes = (batch, keys, width_of(value_dim));
                        of_v = Some(filled(device, dtype, sizes, |to_values| {
                            let name = ("attention_of_keys", dtype, padded);
                            let inputs = [&inputs[..], &[to_keys]].concat();
                            let held = (keys, TILE, rows_held);
                            self.start(device, name, held, (&inputs, to_values))
                        })?);
                        Ok(())
                    })?);
                }
                let of_k = of_k.map(Output::untracked).filter(|_| wanted[1]);
                let of_v = of_v.map(Output::untracked).filter(|_| wanted[2]);
                Ok(vec![of_q, of_k, of_v])
            })
        })
    }

    /// Samples x heads x tokens x width.
    fn by_head(&self, x: &Tensor, tokens: usize, width: usize) -> Result<Tensor> {
        let Shape { batch, heads, .. } = self.shape;
        x.reshape((batch, tokens, heads, width))?.transpose(1, 2)?.contiguous()
    }

    /// The way back of [`Scores::by_head`].
    fn by_token(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, heads, tokens, width) = x.dims4()?;
        x.transpose(1, 2)?.contiguous()?.reshape((batch, tokens, heads * width))
    }

    /// The probabilities of all keys for `count` queries from `start` on, in `f32`; `q` and `k` by
    /// head.
    fn probabilities(&self, q: &Tensor, k: &Tensor, start: usize, count: usize) -> Result<Tensor> {
        let keys = self.shape.keys;
        let products = q.narrow(2, start, count)?.contiguous()?.matmul(&k.t()?)?;
        let scores = (products.to_dtype(DType::F32)? * f64::from(self.scale))?;
        let scores = match &self.bias {
            Some(bias) if bias.dim(2)? > 1 => {
                scores.broadcast_add(&bias.narrow(2, start, count)?)?
            }
            Some(bias) => scores.broadcast_add(bias)?,
            None => scores,
        };
        let scores = match self.causal {
            true => {
                let hidden = |(query, key)| if key > query { f32::NEG_INFINITY } else { 0.0 };
                let pairs = (start..start + count).flat_map(|q| (0..keys).map(move |k| (q, k)));
                let mask = Tensor::from_iter(pairs.map(hidden), q.device())?;
                scores.broadcast_add(&mask.reshape((1, 1, count, keys))?)?
            }
            false => scores,
        };
        softmax(&scores)
    }

    fn attention(&self, tensors: &[Tensor]) -> Result<Tensor> {
        let Shape { queries, keys, head_dim, value_dim, .. } = self.shape;
        let q = self.by_head(&tensors[0], queries, head_dim)?;
        let k = self.by_head(&tensors[1], keys, head_dim)?;
        let v = self.by_head(&tensors[2], keys, value_dim)?;
        let of_queries = |start: usize| {
            let p = self.probabilities(&q, &k, start, QUERIES.min(queries - start))?;
            p.to_dtype(v.dtype())?.matmul(&v)
        };
        let parts = (0..queries).step_by(QUERIES).map(of_queries).collect::<Result<Vec<_>>>()?;
        self.by_token(&Tensor::cat(&parts, 2)?)
    }

    /// With P = softmax(S): gV = P^T g, gP = g V^T, gS = P (gP - sum P gP), gQ = scale gS K, gK =
    /// scale gS^T Q.
    fn gradients(&self, given: &Backward<'_>) -> gradients::Gradients {
        let Shape { queries, keys, head_dim, value_dim, .. } = self.shape;
        let [q, k, v] = given.inputs else { return Ok(Vec::new()) };
        let q = self.by_head(&q.contiguous()?, queries, head_dim)?;
        let k = self.by_head(&k.contiguous()?, keys, head_dim)?;
        let v = self.by_head(&v.contiguous()?, keys, value_dim)?;
        let gradient = self.by_head(given.gradient, queries, value_dim)?;
        let mut of_q = Vec::new();
        let (mut of_k, mut of_v) = (k.zeros_like()?, v.zeros_like()?);
        for start in (0..queries).step_by(QUERIES) {
            let count = QUERIES.min(queries - start);
            let p = self.probabilities(&q, &k, start, count)?;
            let g = gradient.narrow(2, start, count)?.contiguous()?;
            of_v = (of_v + p.to_dtype(g.dtype())?.t()?.matmul(&g)?)?;
            let weighted = (&p * g.matmul(&v.t()?)?.to_dtype(DType::F32)?)?;
            let of_scores = (&weighted - p.broadcast_mul(&weighted.sum_keepdim(D::Minus1)?)?)?;
            let of_scores = (of_scores * f64::from(self.scale))?.to_dtype(q.dtype())?;
            of_q.push(of_scores.matmul(&k)?);
            of_k = (of_k + of_scores.t()?.matmul(&q.narrow(2, start, count)?.contiguous()?)?)?;
        }
        Ok(vec![
            given.of(0, || self.by_token(&Tensor::cat(&of_q, 2)?))?,
            given.of(1, || self.by_token(&of_k))?,
            given.of(2, || self.by_token(&of_v))?,
        ])
    }
}

pub(in crate::ops) fn softmax(x: &Tensor) -> Result<Tensor> {
    let width = x.dim(D::Minus1)?;
    let launch = Launch {
        name: "softmax",
        width,
        blocks: (x.elem_count() / width.max(1), 1),
        threads: threads_over(width, 2 * numbers_an_access(x.dtype())),
        shared: 0,
        scalars: &[Scalar::Int(width as i32)],
    };
    made(&launch, &[x], x.shape())?.tracked("softmax", &[x], gradients::softmax)
}
