//! Scaled dot-product attention without an n x n buffer for the whole batch.

use crate::simd::{dispatch, exp, sum};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

/// The shape of one attention call.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Samples.
    pub batch: usize,
    /// Heads.
    pub heads: usize,
    /// Query tokens.
    pub queries: usize,
    /// Key and value tokens.
    pub keys: usize,
    /// Width of a head.
    pub head_dim: usize,
}

/// Rows of scores held at a time by one thread.
const BLOCK: usize = 64;

/// softmax(scale * Q K^T) V for every head. `q` and `output` are batch x queries x (heads * head_dim), `k` and `v`
/// batch x keys x (heads * head_dim), row-major, as the projections leave them. With `causal`, token i sees the
/// keys 0..=i.
pub fn attention(q: &[f32], k: &[f32], v: &[f32], output: &mut [f32], shape: Shape, scale: f32, causal: bool) {
    let Shape { batch, heads, queries, keys, head_dim } = shape;
    let width = heads * head_dim;
    if output.is_empty() || keys == 0 {
        return;
    }
    let blocks = queries.div_ceil(BLOCK);
    // Every (sample, block of queries) owns successive rows of the output: threads share nothing.
    let mut parts: Vec<(usize, usize, &mut [f32])> = Vec::with_capacity(batch * blocks);
    for (sample, rows) in output.chunks_exact_mut(queries * width).enumerate() {
        for (block, rows) in rows.chunks_mut(BLOCK * width).enumerate() {
            parts.push((sample, block * BLOCK, rows));
        }
    }
    parts.into_par_iter().for_each_init(
        || vec![0f32; BLOCK * keys],
        |scores, (sample, first, output)| {
            let rows = output.len() / width;
            for head in 0..heads {
                let at = |data, tokens: usize, token: usize, count| {
                    let start = (sample * tokens + token) * width;
                    let data: &[f32] = data;
                    MatRef::from_row_major_slice_with_stride(&data[start..start + count * width], count, width, width)
                        .subcols(head * head_dim, head_dim)
                };
                let (q, k, v) = (at(q, queries, first, rows), at(k, keys, 0, keys), at(v, keys, 0, keys));
                let scores = &mut scores[..rows * keys];
                let matrix = MatMut::from_row_major_slice_mut(scores, rows, keys);
                matmul(matrix, Accum::Replace, q, k.transpose(), scale, Par::Seq);
                for (row, scores) in scores.chunks_exact_mut(keys).enumerate() {
                    softmax(scores, if causal { first + row + 1 } else { keys });
                }
                let output = MatMut::from_row_major_slice_mut(output, rows, width);
                let output = output.subcols_mut(head * head_dim, head_dim);
                let scores = MatRef::from_row_major_slice(scores, rows, keys);
                matmul(output, Accum::Replace, scores, v, 1.0, Par::Seq);
            }
        },
    );
}

/// Softmax of the first `visible` scores; the others become zero.
fn softmax(scores: &mut [f32], visible: usize) {
    let (scores, hidden) = scores.split_at_mut(visible.min(scores.len()));
    hidden.fill(0.0);
    dispatch(
        #[inline(always)]
        || {
            let mut peak = [f32::NEG_INFINITY; 16];
            for chunk in scores.chunks(16) {
                for (peak, &s) in peak.iter_mut().zip(chunk) {
                    *peak = if s > *peak { s } else { *peak };
                }
            }
            let peak = peak.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            for s in scores.iter_mut() {
                *s = exp(*s - peak);
            }
            let inverse = 1.0 / sum(scores, |s| s);
            for s in scores.iter_mut() {
                *s *= inverse;
            }
        },
    );
}
