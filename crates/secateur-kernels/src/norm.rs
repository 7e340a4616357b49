//! Layer, RMS and group normalisation.

use crate::simd::{dispatch, for_rows, sigmoid, sum};
use rayon::prelude::*;

/// What follows the normalisation of a row of `width` elements.
pub enum Affine<'a> {
    /// y * weight + bias, both of `width`.
    Elementwise(&'a [f32], &'a [f32]),
    /// y * (1 + scale) + shift, both samples x `width`; each sample covers `rows` successive rows (adaptive norm).
    Modulated {
        /// Samples x width.
        scale: &'a [f32],
        /// Samples x width.
        shift: &'a [f32],
        /// Rows (tokens) a sample.
        rows: usize,
    },
}

/// Layer norm of rows of `width` elements: (x - mean) / sqrt(variance + eps), then `affine`.
pub fn layer_norm(x: &[f32], y: &mut [f32], width: usize, eps: f32, affine: &Affine<'_>) {
    for_rows(
        x,
        y,
        width,
        #[inline(always)]
        |row, x, y| {
            let mean = sum(x, |x| x) / width as f32;
            let variance = sum(x, |x| (x - mean) * (x - mean)) / width as f32;
            let inverse = 1.0 / (variance + eps).sqrt();
            match affine {
                Affine::Elementwise(weight, bias) => {
                    for (((y, &x), &w), &b) in y.iter_mut().zip(x).zip(*weight).zip(*bias) {
                        *y = (x - mean) * inverse * w + b;
                    }
                }
                Affine::Modulated { scale, shift, rows } => {
                    let at = row / rows * width;
                    let (scale, shift) = (&scale[at..at + width], &shift[at..at + width]);
                    for (((y, &x), &s), &b) in y.iter_mut().zip(x).zip(scale).zip(shift) {
                        *y = (x - mean) * inverse * (1.0 + s) + b;
                    }
                }
            }
        },
    );
}

/// RMS norm of rows of `weight.len()` elements: x / sqrt(mean x^2 + eps) * weight.
pub fn rms_norm(x: &[f32], y: &mut [f32], weight: &[f32], eps: f32) {
    let width = weight.len();
    for_rows(
        x,
        y,
        width,
        #[inline(always)]
        |_, x, y| {
            let inverse = 1.0 / (sum(x, |x| x * x) / width as f32 + eps).sqrt();
            for ((y, &x), &w) in y.iter_mut().zip(x).zip(weight) {
                *y = x * inverse * w;
            }
        },
    );
}

/// Group norm of images of `weight.len()` channels x `area` pixels (channels first), `groups` groups, then SiLU if
/// `silu`.
pub fn group_norm(
    x: &[f32],
    y: &mut [f32],
    (weight, bias): (&[f32], &[f32]),
    (groups, area): (usize, usize),
    eps: f32,
    silu: bool,
) {
    let channels = weight.len();
    let per_group = channels / groups;
    let size = per_group * area;
    if size == 0 {
        return;
    }
    let run = |(index, (x, y)): (usize, (&[f32], &mut [f32]))| {
        dispatch(
            #[inline(always)]
            || {
                // Sums by channel, then over channels in f64: rows of 10^5 elements lose digits in one f32 sum.
                let total = |f: &dyn Fn(&[f32]) -> f32| -> f64 {
                    x.chunks_exact(area).map(|x| f64::from(f(x))).sum::<f64>() / size as f64
                };
                let mean = total(&|x| sum(x, |x| x)) as f32;
                let variance = total(&|x| sum(x, |x| (x - mean) * (x - mean)));
                let inverse = (1.0 / (variance + f64::from(eps)).sqrt()) as f32;
                let first = index % groups * per_group;
                for (c, (x, y)) in x.chunks_exact(area).zip(y.chunks_exact_mut(area)).enumerate() {
                    let scale = weight[first + c] * inverse;
                    let offset = bias[first + c];
                    for (y, &x) in y.iter_mut().zip(x) {
                        let value = (x - mean) * scale + offset;
                        *y = if silu { value * sigmoid(value) } else { value };
                    }
                }
            },
        );
    };
    x.par_chunks(size).zip(y.par_chunks_mut(size)).enumerate().for_each(run);
}

/// out = x + gate * y: `x`, `y` and `out` samples x `rows` x `width`, `gate` samples x `width`.
pub fn gated_add(x: &[f32], gate: &[f32], y: &[f32], out: &mut [f32], (rows, width): (usize, usize)) {
    for_rows(
        x,
        out,
        width,
        #[inline(always)]
        |row, x, out| {
            let gate = &gate[row / rows * width..][..width];
            let y = &y[row * width..][..width];
            for (((out, &x), &g), &y) in out.iter_mut().zip(x).zip(gate).zip(y) {
                *out = x + g * y;
            }
        },
    );
}
