//! Scaled dot-product attention in blocks of queries and keys, with the softmax kept up to date as
//! keys come along (FlashAttention, Dao et al. 2022): no queries x keys matrix.

use crate::product::{Panels, Start, Strips, multiply, with_scratch};
use crate::simd::{Vector, dispatch, map, map_with, maximum, sum};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::cell::Cell;

/// The shape of one attention call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Samples.
    pub batch: usize,
    /// Heads.
    pub heads: usize,
    /// Query tokens.
    pub queries: usize,
    /// Key and value tokens.
    pub keys: usize,
    /// Width of a head of queries and keys.
    pub head_dim: usize,
    /// Width of a head of values.
    pub value_dim: usize,
}

/// What is done to the scores before the softmax.
#[derive(Clone, Copy, Debug)]
pub struct Scores<'a> {
    /// Multiplies them.
    pub scale: f32,
    /// Added then: one for each key, the same in all samples; or one for each key of each sample.
    pub key_bias: Option<&'a [f32]>,
    /// Token i sees the keys 0..=i only.
    pub causal: bool,
}

impl<'a> Scores<'a> {
    /// Those of one sample.
    fn of_sample(self, sample: usize, keys: usize) -> Self {
        let one = |bias: &'a [f32]| {
            if bias.len() == keys { bias } else { &bias[sample * keys..][..keys] }
        };
        Self { key_bias: self.key_bias.map(one), ..self }
    }
}

/// Queries whose scores are held at a time by one thread.
const QUERIES: usize = 32;
/// Keys at a time.
const KEYS: usize = 512;

/// Keys and values of a part of the tokens: batch x tokens x (heads * head_dim) and (heads *
/// value_dim), as the projections leave them.
#[derive(Clone, Copy, Debug)]
pub struct KeysValues<'a> {
    /// K.
    pub keys: &'a [f32],
    /// V.
    pub values: &'a [f32],
}

/// softmax(scale * Q K^T + bias) V for every head. `q` is batch x queries x (heads * head_dim),
/// `output` batch x queries x (heads * value_dim), row-major; the keys and values are those of all
/// `parts`, one after another in each sample.
pub fn attention(
    q: &[f32],
    parts: &[KeysValues<'_>],
    output: &mut [f32],
    shape: Shape,
    scores: Scores<'_>,
) {
    let Shape { batch, heads, queries, keys, head_dim, value_dim } = shape;
    let (width, value_width) = (heads * head_dim, heads * value_dim);
    if output.is_empty() || keys == 0 {
        return;
    }
    let streams: Vec<(KeysValues<'_>, usize)> =
        parts.iter().map(|part| (*part, part.keys.len() / (batch * width))).collect();
    // A task is a stretch of the queries of one head: as few as keep all threads busy, since each
    // packs all keys.
    let parts =
        (4 * rayon::current_num_threads()).div_ceil(batch * heads).min(queries.div_ceil(QUERIES));
    let part = queries.div_ceil(parts).next_multiple_of(QUERIES);
    let parts = queries.div_ceil(part);
    let mut tasks: Vec<Vec<&mut [f32]>> =
        (0..batch * heads * parts).map(|_| Vec::with_capacity(part)).collect();
    for (token, row) in output.chunks_exact_mut(value_width).enumerate() {
        let (sample, query) = (token / queries, token % queries);
        for (head, piece) in row.chunks_exact_mut(value_dim).enumerate() {
            tasks[(sample * heads + head) * parts + query / part].push(piece);
        }
    }
    tasks.into_par_iter().enumerate().for_each(|(task, mut output)| {
        let (sample, head) = (task / parts / heads, task / parts % heads);
        let start = |tokens: usize| sample * tokens * width + head * head_dim;
        let first = task % parts * part;
        let scores = scores.of_sample(sample, keys);
        let q = Stream::new(q, start(queries) + first * width, width);
        let of_keys = |data, tokens: usize| Stream::new(data, start(tokens), width);
        let of_values = |data, tokens: usize| {
            Stream::new(data, sample * tokens * value_width + head * value_dim, value_width)
        };
        let streams = streams.iter().filter(|(_, tokens)| *tokens > 0);
        let keys: Vec<_> = streams
            .map(|&(part, n)| (of_keys(part.keys, n), of_values(part.values, n), n))
            .collect();
        with_scratch(&WORKSPACE, |workspace| {
            workspace.run(q, &keys, &mut output, shape, scores, first);
        });
    });
}

thread_local! {
    static WORKSPACE: Cell<Workspace> = Cell::default();
}

/// The rows of one head of one sample.
#[derive(Clone, Copy)]
struct Stream<'a> {
    data: &'a [f32],
    stride: usize,
}

impl<'a> Stream<'a> {
    fn new(data: &'a [f32], start: usize, stride: usize) -> Self {
        Self { data: &data[start..], stride }
    }

    fn row(self, index: usize) -> &'a [f32] {
        &self.data[index * self.stride..]
    }
}

/// What a thread needs.
#[derive(Default)]
struct Workspace {
    keys: Panels,
    values: Panels,
    left: Strips,
    scores: Vec<f32>,
    /// Greatest score and sum of exponentials so far, a query each.
    state: Vec<(f32, f32)>,
}

impl Workspace {
    /// Attention of the queries that `output` has rows for, `q` from the first of them on, whose
    /// number is `first`; `parts` are keys, values and their number.
    fn run(
        &mut self,
        q: Stream<'_>,
        parts: &[(Stream<'_>, Stream<'_>, usize)],
        output: &mut [&mut [f32]],
        shape: Shape,
        scores: Scores<'_>,
        first: usize,
    ) {
        let Shape { keys, head_dim, value_dim, .. } = shape;
        self.state.clear();
        self.state.resize(output.len(), (f32::NEG_INFINITY, 0.0));
        for start in (0..keys).step_by(KEYS) {
            let count = KEYS.min(keys - start);
            self.keys.set_columns(head_dim, count, |key| {
                let (part, row) = locate(parts, start + key);
                parts[part].0.row(row)
            });
            self.values.set_rows(count, value_dim, |key| {
                let (part, row) = locate(parts, start + key);
                parts[part].1.row(row)
            });
            for (block, output) in output.chunks_mut(QUERIES).enumerate() {
                let rows = output.len();
                let query = block * QUERIES;
                self.scores.resize(rows * count, 0.0);
                let mut lines: Vec<&mut [f32]> = self.scores.chunks_exact_mut(count).collect();
                self.left.set_rows(rows, head_dim, |row| &q.row(query + row)[..head_dim]);
                multiply(&self.left, 0, &self.keys, 0..self.keys.count(), Start::Zero, &mut lines);
                for (row, ((line, output), state)) in lines
                    .into_iter()
                    .zip(output.iter_mut())
                    .zip(&mut self.state[query..])
                    .enumerate()
                {
                    let visible = if scores.causal {
                        (first + query + row + 1).saturating_sub(start)
                    } else {
                        count
                    };
                    let bias = scores.key_bias.map(|bias| &bias[start..start + count]);
                    let kept = update(line, visible.min(count), scores.scale, bias, state);
                    if start > 0 && kept != 1.0 {
                        output.iter_mut().for_each(|y| *y *= kept);
                    }
                }
                self.left.set_rows(rows, count, |row| &self.scores[row * count..][..count]);
                let so_far = if start == 0 { Start::Zero } else { Start::Output };
                multiply(&self.left, 0, &self.values, 0..self.values.count(), so_far, output);
            }
        }
        for (output, (_, total)) in output.iter_mut().zip(&self.state) {
            let inverse = 1.0 / total;
            output.iter_mut().for_each(|y| *y *= inverse);
        }
    }
}

/// The part that a key is in, and its row there.
fn locate(parts: &[(Stream<'_>, Stream<'_>, usize)], key: usize) -> (usize, usize) {
    let (mut part, mut row) = (0, key);
    while row >= parts[part].2 {
        row -= parts[part].2;
        part += 1;
    }
    (part, row)
}

/// Turns a line of scores into exponentials relative to the greatest so far; those from `visible`
/// on become zero. Gives the factor that brings earlier sums to the new reference.
fn update(
    line: &mut [f32],
    visible: usize,
    scale: f32,
    bias: Option<&[f32]>,
    state: &mut (f32, f32),
) -> f32 {
    let (scores, hidden) = line.split_at_mut(visible);
    hidden.fill(0.0);
    let bias = bias.map(|bias| &bias[..visible]);
    if scores.is_empty() { 1.0 } else { dispatch(Update { scores, scale, bias, state }) }
}

struct Update<'a> {
    scores: &'a mut [f32],
    scale: f32,
    bias: Option<&'a [f32]>,
    state: &'a mut (f32, f32),
}

impl WithSimd for Update<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let Self { scores, mut scale, bias, state } = self;
        if let Some(bias) = bias {
            let factor = Vector::of(simd, scale);
            map_with!(simd, bias, scores, |bias, s| s.mul_add(factor, bias));
            scale = 1.0;
        }
        let (peak, total) = *state;
        let peak_now = (maximum(simd, scores) * scale).max(peak);
        if peak_now == f32::NEG_INFINITY {
            // A bias of -inf on all keys so far (NaN is not -inf): none of them has a say.
            scores.fill(0.0);
            return 1.0;
        }
        let (factor, offset) = (Vector::of(simd, scale), Vector::of(simd, -peak_now));
        map!(simd, scores, |s| s.mul_add(factor, offset).exp());
        let kept = if peak == peak_now { 1.0 } else { (peak - peak_now).exp() };
        *state = (peak_now, total * kept + sum!(simd, scores, |s| s));
        kept
    }
}

/// The gradients of q, k and v (in the layout of each), for the gradient `gy` of the output.
pub fn gradients(
    [q, k, v]: [&[f32]; 3],
    gy: &[f32],
    shape: Shape,
    scores: Scores<'_>,
    [gq, gk, gv]: [&mut [f32]; 3],
) {
    let Shape { heads, queries, keys, head_dim, value_dim, .. } = shape;
    let (width, value_width) = (heads * head_dim, heads * value_dim);
    if gq.is_empty() || gk.is_empty() {
        return;
    }
    /// The pieces of the rows that belong to each (sample, head).
    fn by_head(
        gradient: &mut [f32],
        tokens: usize,
        heads: usize,
        head_dim: usize,
    ) -> Vec<Vec<&mut [f32]>> {
        let samples = gradient.len() / (tokens * heads * head_dim);
        let mut pieces: Vec<Vec<&mut [f32]>> =
            (0..samples * heads).map(|_| Vec::with_capacity(tokens)).collect();
        for (token, row) in gradient.chunks_exact_mut(heads * head_dim).enumerate() {
            for (head, piece) in row.chunks_exact_mut(head_dim).enumerate() {
                pieces[token / tokens * heads + head].push(piece);
            }
        }
        pieces
    }
    let pieces = (by_head(gq, queries, heads, head_dim), by_head(gk, keys, heads, head_dim));
    let pieces = (pieces.0, pieces.1, by_head(gv, keys, heads, value_dim));
    pieces.into_par_iter().enumerate().for_each(|(task, (mut gq, mut gk, mut gv))| {
        let (sample, head) = (task / heads, task % heads);
        let scores = scores.of_sample(sample, keys);
        let stream = |data, tokens: usize| {
            Stream::new(data, sample * tokens * width + head * head_dim, width)
        };
        let of_values = |data, tokens: usize| {
            Stream::new(data, sample * tokens * value_width + head * value_dim, value_width)
        };
        let (q, k, v, gy) =
            (stream(q, queries), stream(k, keys), of_values(v, keys), of_values(gy, queries));
        let (mut left, mut right) = (Strips::default(), Panels::default());
        // P = softmax(scale Q K^T + bias)
        let mut p = vec![0f32; queries * keys];
        left.set_rows(queries, head_dim, |query| &q.row(query)[..head_dim]);
        right.set_columns(head_dim, keys, |key| k.row(key));
        multiply(&left, 0, &right, 0..right.count(), Start::Zero, &mut lines(&mut p, keys));
        for (query, line) in p.chunks_exact_mut(keys).enumerate() {
            let visible = if scores.causal { (query + 1).min(keys) } else { keys };
            let mut state = (f32::NEG_INFINITY, 0.0);
            update(line, visible, scores.scale, scores.key_bias, &mut state);
            line.iter_mut().for_each(|p| *p /= state.1);
        }
        // gV = P^T gY
        left.set_columns(keys, queries, |query| &p[query * keys..], |_| 1.0);
        right.set_rows(queries, value_dim, |query| gy.row(query));
        multiply(&left, 0, &right, 0..right.count(), Start::Zero, &mut gv);
        // gS = scale P * (gP - rows' sums of gP * P), gP = gY V^T
        let mut gs = vec![0f32; queries * keys];
        left.set_rows(queries, value_dim, |query| &gy.row(query)[..value_dim]);
        right.set_columns(value_dim, keys, |key| v.row(key));
        multiply(&left, 0, &right, 0..right.count(), Start::Zero, &mut lines(&mut gs, keys));
        for (g, p) in gs.chunks_exact_mut(keys).zip(p.chunks_exact(keys)) {
            let dot: f32 = g.iter().zip(p).map(|(g, p)| g * p).sum();
            g.iter_mut().zip(p).for_each(|(g, p)| *g = scores.scale * p * (*g - dot));
        }
        // gQ = gS K, gK = gS^T Q
        left.set_rows(queries, keys, |query| &gs[query * keys..][..keys]);
        right.set_rows(keys, head_dim, |key| k.row(key));
        multiply(&left, 0, &right, 0..right.count(), Start::Zero, &mut gq);
        left.set_columns(keys, queries, |query| &gs[query * keys..], |_| 1.0);
        right.set_rows(queries, head_dim, |query| q.row(query));
        multiply(&left, 0, &right, 0..right.count(), Start::Zero, &mut gk);
    });
}

fn lines(matrix: &mut [f32], columns: usize) -> Vec<&mut [f32]> {
    matrix.chunks_exact_mut(columns).collect()
}
