//! Layer, RMS and group normalisation.

use crate::activation::silu_derivative;
use crate::simd::{Row, Vector, dispatch, for_rows, map_with, sum};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// What follows the normalisation of a row of `width` elements.
#[derive(Clone, Copy)]
pub enum Affine<'a> {
    /// y * weight + bias, both of `width`.
    Elementwise(&'a [f32], &'a [f32]),
    /// y * (1 + scale) + shift, both samples x `width`; each sample covers `rows` successive rows
    /// (adaptive norm).
    Modulated {
        /// Samples x width.
        scale: &'a [f32],
        /// Samples x width.
        shift: &'a [f32],
        /// Rows (tokens) a sample.
        rows: usize,
    },
}

impl<'a> Affine<'a> {
    /// Offset, factors and terms of a row: y * (offset + factor) + term.
    #[inline(always)]
    fn of_row(self, row: usize, width: usize) -> (f32, &'a [f32], &'a [f32]) {
        match self {
            Self::Elementwise(weight, bias) => (0.0, weight, bias),
            Self::Modulated { scale, shift, rows } => {
                let at = row / rows * width;
                (1.0, &scale[at..at + width], &shift[at..at + width])
            }
        }
    }
}

/// Mean and 1 / sqrt(variance + eps) of a row.
#[inline(always)]
fn moments<S: Simd>(simd: S, x: &[f32], eps: f32) -> (f32, f32) {
    let count = x.len() as f32;
    let mean = sum!(simd, x, |x| x) / count;
    let variance = sum!(simd, x, |x| (x - mean) * (x - mean));
    (mean, 1.0 / (variance / count + eps).sqrt())
}

/// 1 / sqrt(mean x^2 + eps).
#[inline(always)]
fn inverse_root<S: Simd>(simd: S, x: &[f32], eps: f32) -> f32 {
    1.0 / (sum!(simd, x, |x| x * x) / x.len() as f32 + eps).sqrt()
}

/// y = (x - mean) * inverse * (offset + factor) + term.
#[inline(always)]
fn transform<S: Simd>(
    simd: S,
    (x, y): (&[f32], &mut [f32]),
    (mean, inverse): (f32, f32),
    (offset, factors, terms): (f32, &[f32], &[f32]),
) {
    let lanes = S::F32_LANES;
    let rows = x
        .chunks(lanes)
        .zip(y.chunks_mut(lanes))
        .zip(factors.chunks(lanes))
        .zip(terms.chunks(lanes));
    for (((x, y), factor), term) in rows {
        let normal = (Vector::load(simd, x) - mean) * inverse;
        normal.mul_add(Vector::load(simd, factor) + offset, Vector::load(simd, term)).store(y);
    }
}

struct LayerNorm<'a> {
    eps: f32,
    affine: Affine<'a>,
}

impl Row for LayerNorm<'_> {
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, row: usize, x: &[f32], y: &mut [f32]) {
        let moments = moments(simd, x, self.eps);
        transform(simd, (x, y), moments, self.affine.of_row(row, x.len()));
    }
}

/// Layer norm of rows of `width` elements: (x - mean) / sqrt(variance + eps), then `affine`.
pub fn layer_norm(x: &[f32], y: &mut [f32], width: usize, eps: f32, affine: Affine<'_>) {
    for_rows(x, y, width, &LayerNorm { eps, affine });
}

struct RmsNorm<'a> {
    weight: &'a [f32],
    eps: f32,
}

impl Row for RmsNorm<'_> {
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, _: usize, x: &[f32], y: &mut [f32]) {
        let inverse = inverse_root(simd, x, self.eps);
        let lanes = S::F32_LANES;
        for ((x, y), weight) in
            x.chunks(lanes).zip(y.chunks_mut(lanes)).zip(self.weight.chunks(lanes))
        {
            (Vector::load(simd, x) * inverse * Vector::load(simd, weight)).store(y);
        }
    }
}

/// RMS norm of rows of `weight.len()` elements: x / sqrt(mean x^2 + eps) * weight.
pub fn rms_norm(x: &[f32], y: &mut [f32], weight: &[f32], eps: f32) {
    for_rows(x, y, weight.len(), &RmsNorm { weight, eps });
}

/// One group of one image.
struct Group<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    area: usize,
    eps: f32,
    silu: bool,
}

/// Mean and 1 / sqrt(variance + eps) of planes of `area` pixels: sums by plane, then over planes in
/// f64, since rows of 10^5 elements lose digits in one f32 sum.
#[inline(always)]
fn group_moments<S: Simd>(simd: S, x: &[f32], area: usize, eps: f32) -> (f32, f32) {
    let size = x.len() as f64;
    let (mut mean, mut variance) = (0f64, 0f64);
    for plane in x.chunks_exact(area) {
        mean += f64::from(sum!(simd, plane, |x| x)) / size;
    }
    let mean = mean as f32;
    for plane in x.chunks_exact(area) {
        let squares = sum!(simd, plane, |x| (x - mean) * (x - mean));
        variance += f64::from(squares) / size;
    }
    (mean, (1.0 / (variance + f64::from(eps)).sqrt()) as f32)
}

impl WithSimd for Group<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { x, y, weight, bias, area, eps, silu } = self;
        let (mean, inverse) = group_moments(simd, x, area, eps);
        let planes = x.chunks_exact(area).zip(y.chunks_exact_mut(area));
        for (((x, y), &weight), &bias) in planes.zip(weight).zip(bias) {
            let scale = Vector::of(simd, weight * inverse);
            let bias = Vector::of(simd, bias);
            if silu {
                map_with!(simd, x, y, |x, _| {
                    let value = (x - mean).mul_add(scale, bias);
                    value * value.sigmoid()
                });
            } else {
                map_with!(simd, x, y, |x, _| (x - mean).mul_add(scale, bias));
            }
        }
    }
}

/// Group norm of images of `weight.len()` channels x `area` pixels (channels first), `groups`
/// groups, then SiLU if `silu`.
pub fn group_norm(
    x: &[f32],
    y: &mut [f32],
    (weight, bias): (&[f32], &[f32]),
    (groups, area): (usize, usize),
    eps: f32,
    silu: bool,
) {
    let per_group = weight.len() / groups;
    let size = per_group * area;
    if size == 0 {
        return;
    }
    x.par_chunks(size).zip(y.par_chunks_mut(size)).enumerate().for_each(|(index, (x, y))| {
        let first = index % groups * per_group;
        let (weight, bias) = (&weight[first..first + per_group], &bias[first..first + per_group]);
        dispatch(Group { x, y, weight, bias, area, eps, silu });
    });
}

struct GatedAdd<'a> {
    gate: &'a [f32],
    y: &'a [f32],
    rows: usize,
}

impl Row for GatedAdd<'_> {
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, row: usize, x: &[f32], out: &mut [f32]) {
        let (width, lanes) = (x.len(), S::F32_LANES);
        let gate = &self.gate[row / self.rows * width..][..width];
        let y = &self.y[row * width..][..width];
        let parts =
            x.chunks(lanes).zip(out.chunks_mut(lanes)).zip(gate.chunks(lanes)).zip(y.chunks(lanes));
        for (((x, out), gate), y) in parts {
            Vector::load(simd, gate)
                .mul_add(Vector::load(simd, y), Vector::load(simd, x))
                .store(out);
        }
    }
}

/// out = x + gate * y: `x`, `y` and `out` samples x `rows` x `width`, `gate` samples x `width`.
pub fn gated_add(
    x: &[f32],
    gate: &[f32],
    y: &[f32],
    out: &mut [f32],
    (rows, width): (usize, usize),
) {
    for_rows(x, out, width, &GatedAdd { gate, y, rows });
}

/// The gradient of a normalised row, in place of g = gy * factor: (g - mean g - xhat mean(g
/// xhat)) * inverse, xhat = (x - mean) * inverse; without the mean of g for a norm that subtracts
/// none.
#[inline(always)]
fn row_gradient<S: Simd>(
    simd: S,
    x: &[f32],
    g: &mut [f32],
    (mean, inverse): (f32, f32),
    centred: bool,
) {
    let count = x.len() as f32;
    let mean_g = if centred { sum!(simd, g, |g| g) / count } else { 0.0 };
    let mut slope = 0.0;
    for (x, g) in x.chunks(256).zip(g.chunks(256)) {
        slope += x.iter().zip(g).map(|(x, g)| g * (x - mean)).sum::<f32>();
    }
    let slope = slope * inverse * inverse / count;
    map_with!(simd, x, g, |x, g| (g - mean_g - (x - mean) * slope) * inverse);
}

struct LayerNormGradient<'a> {
    gy: &'a [f32],
    norm: LayerNorm<'a>,
}

impl Row for LayerNormGradient<'_> {
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, row: usize, x: &[f32], gx: &mut [f32]) {
        let width = x.len();
        let (offset, factors, _) = self.norm.affine.of_row(row, width);
        for ((gx, gy), factor) in gx.iter_mut().zip(&self.gy[row * width..]).zip(factors) {
            *gx = gy * (offset + factor);
        }
        row_gradient(simd, x, gx, moments(simd, x, self.norm.eps), true);
    }
}

/// The gradient of the input of [`layer_norm`].
pub fn layer_norm_gradient(
    x: &[f32],
    gy: &[f32],
    gx: &mut [f32],
    width: usize,
    eps: f32,
    affine: Affine<'_>,
) {
    for_rows(x, gx, width, &LayerNormGradient { gy, norm: LayerNorm { eps, affine } });
}

/// The row's moments, for gradients that have no other use for vectors.
struct Moments<'a>(&'a [f32], f32);

impl WithSimd for Moments<'_> {
    type Output = (f32, f32);

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> (f32, f32) {
        moments(simd, self.0, self.1)
    }
}

/// Adds the gradients of scale (or weight) and shift (or bias) of [`layer_norm`] over `rows`
/// successive rows for each of the samples that the gradients have room for: sums of gy * xhat, and
/// of gy.
pub fn layer_norm_affine_gradient(
    x: &[f32],
    gy: &[f32],
    (gscale, gshift): (&mut [f32], &mut [f32]),
    (rows, width): (usize, usize),
    eps: f32,
) {
    let size = (rows * width).max(1);
    let samples = x.par_chunks(size).zip(gy.par_chunks(size));
    let gradients = gscale.par_chunks_mut(width.max(1)).zip(gshift.par_chunks_mut(width.max(1)));
    samples.zip(gradients).for_each(|((x, gy), (gscale, gshift))| {
        for (x, gy) in x.chunks_exact(width).zip(gy.chunks_exact(width)) {
            let (mean, inverse) = dispatch(Moments(x, eps));
            for (((scale, shift), &x), &gy) in
                gscale.iter_mut().zip(gshift.iter_mut()).zip(x).zip(gy)
            {
                *scale += gy * (x - mean) * inverse;
                *shift += gy;
            }
        }
    });
}

struct RmsNormGradient<'a> {
    gy: &'a [f32],
    norm: RmsNorm<'a>,
}

impl Row for RmsNormGradient<'_> {
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, row: usize, x: &[f32], gx: &mut [f32]) {
        for ((gx, gy), weight) in gx.iter_mut().zip(&self.gy[row * x.len()..]).zip(self.norm.weight)
        {
            *gx = gy * weight;
        }
        row_gradient(simd, x, gx, (0.0, inverse_root(simd, x, self.norm.eps)), false);
    }
}

/// The gradient of the input of [`rms_norm`].
pub fn rms_norm_gradient(x: &[f32], gy: &[f32], gx: &mut [f32], weight: &[f32], eps: f32) {
    for_rows(x, gx, weight.len(), &RmsNormGradient { gy, norm: RmsNorm { weight, eps } });
}

/// Adds the gradient of the weight of [`rms_norm`].
pub fn rms_norm_weight_gradient(x: &[f32], gy: &[f32], gradient: &mut [f32], eps: f32) {
    let width = gradient.len().max(1);
    for (x, gy) in x.chunks_exact(width).zip(gy.chunks_exact(width)) {
        let inverse = 1.0 / (x.iter().map(|x| x * x).sum::<f32>() / width as f32 + eps).sqrt();
        for ((g, &x), &gy) in gradient.iter_mut().zip(x).zip(gy) {
            *g += gy * x * inverse;
        }
    }
}

/// The gradients of one group: of its weight and bias, and in `group.y` of its input.
struct GroupGradient<'a> {
    group: Group<'a>,
    gy: &'a [f32],
}

impl WithSimd for GroupGradient<'_> {
    type Output = Vec<(f32, f32)>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<(f32, f32)> {
        let Group { x, y: gx, weight, bias, area, eps, silu } = self.group;
        let (mean, inverse) = group_moments(simd, x, area, eps);
        let (mut mean_g, mut slope) = (0f64, 0f64);
        let mut affine = Vec::with_capacity(weight.len());
        for (c, (x, gx)) in x.chunks_exact(area).zip(gx.chunks_exact_mut(area)).enumerate() {
            gx.copy_from_slice(&self.gy[c * area..(c + 1) * area]);
            let (scale, shift) = (Vector::of(simd, weight[c] * inverse), Vector::of(simd, bias[c]));
            if silu {
                map_with!(simd, x, gx, |x, g| g * silu_derivative(
                    (x - mean).mul_add(scale, shift)
                ));
            }
            let total: f64 = gx.iter().map(|&g| f64::from(g)).sum();
            let product: f64 =
                gx.iter().zip(x).map(|(&g, &x)| f64::from(g * (x - mean) * inverse)).sum();
            affine.push((product as f32, total as f32));
            mean_g += f64::from(weight[c]) * total;
            slope += f64::from(weight[c]) * product;
        }
        let size = x.len() as f64;
        let (mean_g, slope) = ((mean_g / size) as f32, (slope / size) as f32 * inverse);
        for ((x, gx), &weight) in x.chunks_exact(area).zip(gx.chunks_exact_mut(area)).zip(weight) {
            map_with!(simd, x, gx, |x, g| (g * weight - mean_g - (x - mean) * slope) * inverse);
        }
        affine
    }
}

/// The gradient of the input of [`group_norm`], and those of weight and bias, which are added to.
#[expect(clippy::too_many_arguments, reason = "the arguments of the norm, and three gradients")]
pub fn group_norm_gradient(
    x: &[f32],
    gy: &[f32],
    gx: &mut [f32],
    (gweight, gbias): (&mut [f32], &mut [f32]),
    (weight, bias): (&[f32], &[f32]),
    (groups, area): (usize, usize),
    eps: f32,
    silu: bool,
) {
    let per_group = weight.len() / groups;
    let size = per_group * area;
    if size == 0 {
        return;
    }
    let inputs =
        x.par_chunks(size).zip(gy.par_chunks(size)).zip(gx.par_chunks_mut(size)).enumerate();
    let affine: Vec<Vec<(f32, f32)>> = inputs
        .map(|(index, ((x, gy), y))| {
            let first = index % groups * per_group;
            let (weight, bias) =
                (&weight[first..first + per_group], &bias[first..first + per_group]);
            dispatch(GroupGradient { group: Group { x, y, weight, bias, area, eps, silu }, gy })
        })
        .collect();
    for (index, affine) in affine.iter().enumerate() {
        for (c, (product, total)) in affine.iter().enumerate() {
            gweight[index % groups * per_group + c] += product;
            gbias[index % groups * per_group + c] += total;
        }
    }
}

/// The gradients of gate and y of [`gated_add`]; that of x is the output's own.
pub fn gated_add_gradient(
    (gate, y): (&[f32], &[f32]),
    gout: &[f32],
    (ggate, gy): (&mut [f32], &mut [f32]),
    (rows, width): (usize, usize),
) {
    let size = (rows * width).max(1);
    let samples = y.par_chunks(size).zip(gout.par_chunks(size)).zip(gy.par_chunks_mut(size));
    let gates = gate.par_chunks(width.max(1)).zip(ggate.par_chunks_mut(width.max(1)));
    samples.zip(gates).for_each(|(((y, gout), gy), (gate, ggate))| {
        let rows =
            y.chunks_exact(width).zip(gout.chunks_exact(width)).zip(gy.chunks_exact_mut(width));
        for ((y, gout), gy) in rows {
            for ((((ggate, &gate), &y), &gout), gy) in
                ggate.iter_mut().zip(gate).zip(y).zip(gout).zip(gy)
            {
                *ggate += gout * y;
                *gy = gout * gate;
            }
        }
    });
}
