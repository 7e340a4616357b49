//! Pointwise activations, GEGLU, softmax, and nearest upsampling.

use crate::simd::{Row, Vector, dispatch, for_rows, map, map_with, maximum, sum};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::f32::consts::FRAC_1_SQRT_2;

/// A pointwise non-linearity, under the names that configurations use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x * sigmoid(x), also called swish.
    Silu,
    /// x * Phi(x), with the error function.
    Gelu,
    /// The tanh approximation of [`Activation::Gelu`] (`gelu-approximate`, `gelu_pytorch_tanh`).
    GeluTanh,
    /// x * sigmoid(1.702 x), CLIP's approximation.
    QuickGelu,
    /// The greater of x and 0.
    Relu,
}

const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;
const QUICK: f32 = 1.702;

/// Phi(x).
#[inline(always)]
fn normal_distribution<S: Simd>(x: Vector<S>) -> Vector<S> {
    ((x * FRAC_1_SQRT_2).erf() + 1.0) * 0.5
}

#[inline(always)]
fn gelu<S: Simd>(x: Vector<S>) -> Vector<S> {
    x * normal_distribution(x)
}

/// Phi(x) + x phi(x).
#[inline(always)]
fn gelu_derivative<S: Simd>(x: Vector<S>) -> Vector<S> {
    const INVERSE_SQRT_2_PI: f32 = 0.398_942_3;
    normal_distribution(x) + x * (x * x * -0.5).exp() * INVERSE_SQRT_2_PI
}

/// x sigmoid(2u) is 0.5 x (1 + tanh u), u = sqrt(2 / pi) (x + 0.044715 x^3).
#[inline(always)]
fn gelu_tanh<S: Simd>(x: Vector<S>) -> Vector<S> {
    let u = x * (x * x * (SQRT_2_OVER_PI * CUBIC) + SQRT_2_OVER_PI);
    x * (u + u).sigmoid()
}

#[inline(always)]
fn gelu_tanh_derivative<S: Simd>(x: Vector<S>) -> Vector<S> {
    // Farther out it is 0, while x^3 grows beyond what a float holds.
    let x = x.at_least(-1e3);
    let u = x * (x * x * (SQRT_2_OVER_PI * CUBIC) + SQRT_2_OVER_PI);
    let slope = x * x * (3.0 * SQRT_2_OVER_PI * CUBIC) + SQRT_2_OVER_PI;
    let s = (u + u).sigmoid();
    // Far out s (1 - s) is 0, whatever x^3 has grown to.
    let bend = s * (-s + 1.0);
    s + (x * slope * bend * 2.0).unless_zero(bend)
}

/// x sigmoid(c x).
#[inline(always)]
fn swish<S: Simd>(x: Vector<S>, c: f32) -> Vector<S> {
    x * (x * c).sigmoid()
}

#[inline(always)]
fn swish_derivative<S: Simd>(x: Vector<S>, c: f32) -> Vector<S> {
    let s = (x * c).sigmoid();
    let bend = s * (-s + 1.0);
    s + (x * bend * c).unless_zero(bend)
}

/// The derivative of SiLU: for the norms that end with it.
#[inline(always)]
pub(crate) fn silu_derivative<S: Simd>(x: Vector<S>) -> Vector<S> {
    swish_derivative(x, 1.0)
}

struct Activate<'a> {
    kind: Activation,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl WithSimd for Activate<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { kind, x, y } = self;
        match kind {
            Activation::Silu => map_with!(simd, x, y, |x, _| swish(x, 1.0)),
            Activation::Gelu => map_with!(simd, x, y, |x, _| gelu(x)),
            Activation::GeluTanh => map_with!(simd, x, y, |x, _| gelu_tanh(x)),
            Activation::QuickGelu => map_with!(simd, x, y, |x, _| swish(x, QUICK)),
            Activation::Relu => map_with!(simd, x, y, |x, _| x.at_least(0.0)),
        }
    }
}

/// y = f(y) for a slice, on this thread.
pub(crate) fn activate(kind: Activation, y: &mut [f32]) {
    // In pieces, through a copy that stays in the first-level cache.
    let mut copy = [0f32; 256];
    for y in y.chunks_mut(copy.len()) {
        let x = &mut copy[..y.len()];
        x.copy_from_slice(y);
        dispatch(Activate { kind, x, y });
    }
}

/// y = f(x), elementwise.
pub fn activation(kind: Activation, x: &[f32], y: &mut [f32]) {
    pointwise(x, y, |x, y| dispatch(Activate { kind, x, y }));
}

struct Gradient<'a> {
    kind: Activation,
    x: &'a [f32],
    g: &'a mut [f32],
}

impl WithSimd for Gradient<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let kind = self.kind;
        map_with!(simd, self.x, self.g, |x, g| {
            g * match kind {
                Activation::Silu => swish_derivative(x, 1.0),
                Activation::Gelu => gelu_derivative(x),
                Activation::GeluTanh => gelu_tanh_derivative(x),
                Activation::QuickGelu => swish_derivative(x, QUICK),
                Activation::Relu => Vector::of(simd, 1.0).unless_zero(x.at_least(0.0)),
            }
        });
    }
}

/// gx = gy f'(x).
pub fn activation_gradient(kind: Activation, x: &[f32], gy: &[f32], gx: &mut [f32]) {
    gx.copy_from_slice(gy);
    pointwise(x, gx, |x, g| dispatch(Gradient { kind, x, g }));
}

/// Pieces of `x` and `y` that fit the first-level cache, on all threads.
fn pointwise(x: &[f32], y: &mut [f32], body: impl Fn(&[f32], &mut [f32]) + Sync) {
    assert_eq!(x.len(), y.len());
    const PIECE: usize = 2048;
    x.par_chunks(PIECE).zip(y.par_chunks_mut(PIECE)).with_min_len(8).for_each(|(x, y)| body(x, y));
}

/// GEGLU: rows of 2 x `width` (values, then gates) to rows of `width`: y = value * gelu(gate).
pub fn geglu(x: &[f32], y: &mut [f32], width: usize) {
    if width == 0 {
        return;
    }
    x.par_chunks_exact(2 * width).zip(y.par_chunks_exact_mut(width)).with_min_len(4).for_each(
        |(x, y)| {
            let (values, gates) = x.split_at(width);
            dispatch(Activate { kind: Activation::Gelu, x: gates, y });
            y.iter_mut().zip(values).for_each(|(y, value)| *y *= value);
        },
    );
}

/// The gradient of x of [`geglu`].
pub fn geglu_gradient(x: &[f32], gy: &[f32], gx: &mut [f32], width: usize) {
    if width == 0 {
        return;
    }
    let inputs = x.par_chunks_exact(2 * width).zip(gy.par_chunks_exact(width));
    inputs.zip(gx.par_chunks_exact_mut(2 * width)).with_min_len(4).for_each(|((x, gy), gx)| {
        let (values, gates) = x.split_at(width);
        let (gradient_values, gradient_gates) = gx.split_at_mut(width);
        dispatch(Activate { kind: Activation::Gelu, x: gates, y: gradient_values });
        gradient_values.iter_mut().zip(gy).for_each(|(g, gy)| *g *= gy);
        gradient_gates.iter_mut().zip(gy).zip(values).for_each(|((g, gy), value)| *g = gy * value);
        dispatch(Gradient { kind: Activation::Gelu, x: gates, g: gradient_gates });
    });
}

struct Softmax;

impl Row for Softmax {
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, _: usize, x: &[f32], y: &mut [f32]) {
        let peak = maximum(simd, x);
        map_with!(simd, x, y, |x, _| (x - peak).exp());
        let inverse = 1.0 / sum!(simd, y, |y| y);
        map!(simd, y, |y| y * inverse);
    }
}

/// Softmax of rows of `width`.
pub fn softmax(x: &[f32], y: &mut [f32], width: usize) {
    for_rows(x, y, width, &Softmax);
}

/// The gradient of x of [`softmax`], from its result `y`: y * (gy - sum of gy * y).
pub fn softmax_gradient(y: &[f32], gy: &[f32], gx: &mut [f32], width: usize) {
    let rows = y.par_chunks_exact(width.max(1)).zip(gy.par_chunks_exact(width.max(1)));
    rows.zip(gx.par_chunks_exact_mut(width.max(1))).with_min_len(8).for_each(|((y, gy), gx)| {
        let dot: f32 = y.iter().zip(gy).map(|(y, g)| y * g).sum();
        for ((gx, &y), &gy) in gx.iter_mut().zip(y).zip(gy) {
            *gx = y * (gy - dot);
        }
    });
}

/// Every pixel of planes of height x width becomes `factor` x `factor` pixels.
pub fn upsample_nearest(x: &[f32], y: &mut [f32], width: usize, factor: usize) {
    if width == 0 || factor == 0 {
        return;
    }
    // Each input line becomes `factor` output lines, one after another: planes need no thought of
    // their own.
    let wide = width * factor;
    x.par_chunks_exact(width).zip(y.par_chunks_exact_mut(wide * factor)).with_min_len(8).for_each(
        |(x, y)| {
            let (first, rest) = y.split_at_mut(wide);
            for (pixels, &x) in first.chunks_exact_mut(factor).zip(x) {
                pixels.fill(x);
            }
            rest.chunks_exact_mut(wide).for_each(|line| line.copy_from_slice(first));
        },
    );
}

/// The gradient of x of [`upsample_nearest`]: sums over the pixels that each became.
pub fn upsample_nearest_gradient(gy: &[f32], gx: &mut [f32], width: usize, factor: usize) {
    if width == 0 || factor == 0 {
        return;
    }
    let wide = width * factor;
    gx.par_chunks_exact_mut(width)
        .zip(gy.par_chunks_exact(wide * factor))
        .with_min_len(8)
        .for_each(|(gx, gy)| {
            gx.fill(0.0);
            for line in gy.chunks_exact(wide) {
                for (gx, pixels) in gx.iter_mut().zip(line.chunks_exact(factor)) {
                    *gx += pixels.iter().sum::<f32>();
                }
            }
        });
}
