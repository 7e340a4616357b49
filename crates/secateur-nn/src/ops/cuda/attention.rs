//! Softmax, and attention: by cuDNN where it can, otherwise in candle's operations, some queries at
//! a time.

use super::gradients;
#[cfg(feature = "cudnn")]
use super::launch::made_by_cudnn;
use super::launch::{Launch, Scalar, made, numbers_an_access, plain, threads_over};
use super::node::{Backward, Output};
use candle_core::{D, DType, Result, Tensor};
use secateur_kernels::attention::Shape;

/// The queries whose scores are in memory at once.
const QUERIES: usize = 1024;

/// How scores are made.
#[derive(Clone)]
struct Scores {
    shape: Shape,
    scale: f32,
    /// Samples (or one) x 1 x 1 x keys.
    bias: Option<Tensor>,
    causal: bool,
}

pub(in crate::ops) fn attention(
    inputs: [&Tensor; 3],
    shape: Shape,
    scale: f32,
    key_bias: Option<&[f32]>,
    causal: bool,
) -> Result<Tensor> {
    let tensors = plain(&inputs)?;
    let bias = match key_bias {
        Some(bias) if shape.keys > 0 => {
            let sizes = (bias.len() / shape.keys, 1, 1, shape.keys);
            Some(Tensor::from_slice(bias, sizes, inputs[0].device())?)
        }
        _ => None,
    };
    let scores = Scores { shape, scale, bias, causal };
    let of_backward = scores.clone();
    let backward = move |given: &Backward<'_>| of_backward.gradients(given);
    #[cfg(feature = "cudnn")]
    if scores.bias.is_none()
        && !causal
        && let Some(y) = by_cudnn(&tensors, shape, scale)?
    {
        return y.tracked("attention", &inputs, backward);
    }
    Output::of(scores.attention(&tensors)?, "attention", &inputs, backward)
}

/// None where cuDNN is not there, or has no way for numbers of that type or heads of that width.
#[cfg(feature = "cudnn")]
fn by_cudnn(tensors: &[Tensor], shape: Shape, scale: f32) -> Result<Option<Output>> {
    let dtype = tensors[0].dtype();
    let is_whole = |width: usize| width.is_multiple_of(8);
    let sizes = (shape.batch, shape.queries, shape.heads * shape.value_dim);
    if dtype == DType::F32 || !is_whole(shape.head_dim) || !is_whole(shape.value_dim) {
        return Ok(None);
    }
    made_by_cudnn(&tensors.iter().collect::<Vec<_>>(), sizes, |cudnn, addresses, y| {
        let &[q, k, v] = addresses else { return Ok(false) };
        cudnn.attention((dtype, shape, scale), [q, k, v, y])
    })
}

impl Scores {
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
        let Shape { batch, heads, queries, keys, head_dim, value_dim } = self.shape;
        if batch * heads * queries * value_dim == 0 || keys == 0 {
            return tensors[0].zeros_like();
        }
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
