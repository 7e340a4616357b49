//! Run-time dispatch to the widest vector unit, and elementary functions that the compiler can vectorise.

use pulp::Arch;
use rayon::prelude::*;
use std::sync::OnceLock;

/// Runs `body` compiled for the vector unit of this machine (or for the baseline where there is nothing better).
#[inline(always)]
pub(crate) fn dispatch<R>(body: impl FnOnce() -> R) -> R {
    static ARCH: OnceLock<Arch> = OnceLock::new();
    ARCH.get_or_init(Arch::new).dispatch(body)
}

/// Elements a task should have before it is worth a thread.
pub(crate) const GRAIN: usize = 16 * 1024;

/// Applies `body` to `output` and `input` in equal rows of `width`, rows spread over the threads.
pub(crate) fn for_rows(
    input: &[f32],
    output: &mut [f32],
    width: usize,
    body: impl Fn(usize, &[f32], &mut [f32]) + Sync,
) {
    if width == 0 || input.is_empty() {
        return;
    }
    let rows = (GRAIN / width).max(1);
    input.par_chunks(rows * width).zip(output.par_chunks_mut(rows * width)).enumerate().for_each(
        |(chunk, (input, output))| {
            dispatch(
                #[inline(always)]
                || {
                    let lines = input.chunks_exact(width).zip(output.chunks_exact_mut(width));
                    for (row, (x, y)) in lines.enumerate() {
                        body(chunk * rows + row, x, y);
                    }
                },
            );
        },
    );
}

/// e^x to about one unit in the last place over the whole range: 2^n times a polynomial (Cephes `expf`), without a
/// branch. NaN in gives NaN out; below -87.3 the result is the smallest normal number, near zero.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits
    let clamped = if x > 88.3 { 88.3 } else { x };
    let clamped = if clamped < -87.3 { -87.3 } else { clamped };
    let shifted = clamped * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = clamped - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let value = p * r * r + r + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(MAGIC.to_bits()).wrapping_add(127) << 23;
    value * f32::from_bits(exponent)
}

/// tanh x = 1 - 2 / (e^2x + 1), to 1e-7 of 1 (not of tanh x, near zero): what 1 + tanh x needs.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// erf x to 1.2e-7 (Numerical Recipes, `erfcc`).
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    let z = x.abs();
    let t = 1.0 / (1.0 + 0.5 * z);
    let p = 0.170_872_77;
    let p = p * t - 0.822_152_23;
    let p = p * t + 1.488_515_9;
    let p = p * t - 1.135_204;
    let p = p * t + 0.278_868_07;
    let p = p * t - 0.186_288_06;
    let p = p * t + 0.096_784_18;
    let p = p * t + 0.374_091_96;
    let p = p * t + 1.000_023_7;
    let complement = t * exp(-z * z - 1.265_512_2 + t * p);
    let erf = 1.0 - complement;
    if x < 0.0 { -erf } else { erf }
}

/// Sum of f(x) over a slice in 16 interleaved partial sums: vectorises, and is more accurate than one running sum.
#[inline(always)]
pub(crate) fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut partial = [0f32; 16];
    let mut chunks = x.chunks_exact(16);
    for chunk in &mut chunks {
        for (p, &x) in partial.iter_mut().zip(chunk) {
            *p += f(x);
        }
    }
    let tail: f32 = chunks.remainder().iter().map(|&x| f(x)).sum();
    partial.iter().sum::<f32>() + tail
}

#[cfg(test)]
mod tests {
    #[test]
    fn elementary_functions_match_f64() {
        for i in -2000..2000 {
            let x = i as f32 * 0.01;
            let wide = f64::from(x);
            let close = |got: f32, want: f64, scale: f64, what: &str| {
                let error = (f64::from(got) - want).abs() / scale;
                assert!(error < 3e-7, "{what}({x}): {got} against {want}, error {error:e}");
            };
            close(super::exp(x), wide.exp(), wide.exp(), "exp");
            close(super::tanh(x), wide.tanh(), 1.0, "tanh");
            let sigmoid = 1.0 / (1.0 + (-wide).exp());
            close(super::sigmoid(x), sigmoid, sigmoid, "sigmoid");
        }
        assert!(super::exp(f32::NAN).is_nan());
        assert!(super::exp(-1000.0) < 1e-37);
        assert!((super::erf(0.5) - 0.520_499_9).abs() < 3e-7);
        assert!((super::erf(-1.5) + 0.966_105_1).abs() < 3e-7);
    }
}
