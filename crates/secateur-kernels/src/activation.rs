//! Pointwise activations.

use crate::simd::{erf, exp, for_rows, sigmoid, tanh};

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
}

/// y = f(x), elementwise.
pub fn activation(kind: Activation, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len());
    // A lane's worth of elements a row lets the compiler unroll; the tail is a row of its own.
    const WIDTH: usize = 64;
    let whole = x.len() - x.len() % WIDTH;
    let run = |x: &[f32], y: &mut [f32], width: usize| match kind {
        Activation::Silu => for_rows(
            x,
            y,
            width,
            #[inline(always)]
            |_, x, y| map(x, y, |x| x * sigmoid(x)),
        ),
        Activation::Gelu => for_rows(
            x,
            y,
            width,
            #[inline(always)]
            |_, x, y| {
                map(x, y, |x| 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)));
            },
        ),
        Activation::GeluTanh => for_rows(
            x,
            y,
            width,
            #[inline(always)]
            |_, x, y| {
                const SQRT_2_OVER_PI: f32 = 0.797_884_6;
                map(x, y, |x| 0.5 * x * (1.0 + tanh(SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x))));
            },
        ),
        Activation::QuickGelu => for_rows(
            x,
            y,
            width,
            #[inline(always)]
            |_, x, y| {
                map(x, y, |x| x / (1.0 + exp(-1.702 * x)));
            },
        ),
    };
    run(&x[..whole], &mut y[..whole], WIDTH);
    run(&x[whole..], &mut y[whole..], x.len() - whole);
}

#[inline(always)]
fn map(x: &[f32], y: &mut [f32], f: impl Fn(f32) -> f32) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = f(x);
    }
}
