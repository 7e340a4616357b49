//! Convolution over channels-first images: a product of the weights with patches of the image, which are never laid out
//! but for the panel that a thread works on (implicit GEMM).

use crate::linear::rows_of;
use crate::product::{Panels, Start, Strips, multiply, product, with_scratch};
use rayon::prelude::*;
use std::cell::Cell;
use std::ops::Range;

thread_local! {
    static PATCHES: Cell<Panels> = Cell::default();
}

/// The shape of a square-kernel convolution.
#[derive(Clone, Copy, Debug)]
pub struct Convolution {
    /// Channels in.
    pub channels: usize,
    /// Height and width in.
    pub size: (usize, usize),
    /// Side of the kernel.
    pub kernel: usize,
    /// Stride in both directions.
    pub stride: usize,
    /// Zero padding before (top, left) and after (bottom, right).
    pub padding: (usize, usize),
}

impl Convolution {
    /// Height and width out.
    #[must_use]
    pub fn output_size(&self) -> (usize, usize) {
        let side = |n: usize| (n + self.padding.0 + self.padding.1 - self.kernel) / self.stride + 1;
        (side(self.size.0), side(self.size.1))
    }

    /// Taps of one output: channels x kernel x kernel.
    fn depth(&self) -> usize {
        self.channels * self.kernel * self.kernel
    }

    fn output_area(&self) -> usize {
        let (height, width) = self.output_size();
        height * width
    }

    /// The left factor of all products with `weight`, of `outputs` rows.
    #[must_use]
    pub fn pack(weight: &[f32], outputs: usize) -> Strips {
        let depth = weight.len().checked_div(outputs).unwrap_or(0);
        Strips::from_rows(outputs, depth, |output| &weight[output * depth..][..depth])
    }

    /// `y` (samples x outputs x height x width) = `x` (samples x channels x ...) convolved with `weight` (outputs x
    /// channels x kernel x kernel, packed by [`Convolution::pack`]), plus `bias` (outputs).
    pub fn run(&self, x: &[f32], weight: &Strips, bias: &[f32], y: &mut [f32]) {
        let (area, depth, outputs) = (self.output_area(), self.depth(), bias.len());
        let image = self.channels * self.size.0 * self.size.1;
        if image == 0 || area == 0 || outputs == 0 {
            return;
        }
        let width = Panels::default().width();
        for (x, y) in x.chunks_exact(image).zip(y.chunks_exact_mut(outputs * area)) {
            let mut tasks: Vec<Vec<&mut [f32]>> =
                (0..area.div_ceil(width)).map(|_| Vec::with_capacity(outputs)).collect();
            for plane in y.chunks_exact_mut(area) {
                plane.chunks_mut(width).zip(&mut tasks).for_each(|(piece, task)| task.push(piece));
            }
            tasks.into_par_iter().enumerate().for_each(|(task, mut output)| {
                let first = task * width;
                let pixels = first..(first + width).min(area);
                let segments = self.segments(pixels.clone());
                output.iter_mut().zip(bias).for_each(|(y, &b)| y.fill(b));
                with_scratch(&PATCHES, |patches| {
                    patches.set_panel(depth, pixels.len(), |tap, line| self.tap(x, tap, &segments, line));
                    multiply(weight, patches, 0..1, Start::Output, &mut output);
                });
            });
        }
    }

    /// Output pixels as stretches of one output row each: row, first column, count.
    fn segments(&self, pixels: Range<usize>) -> Vec<(usize, usize, usize)> {
        let width = self.output_size().1;
        let mut segments = Vec::new();
        let mut pixel = pixels.start;
        while pixel < pixels.end {
            let (row, column) = (pixel / width, pixel % width);
            let count = (width - column).min(pixels.end - pixel);
            segments.push((row, column, count));
            pixel += count;
        }
        segments
    }

    /// The input pixels under tap (channel, ky, kx) of an image `x`, for output pixels in segments; zero in the
    /// padding.
    fn tap(&self, x: &[f32], tap: usize, segments: &[(usize, usize, usize)], mut line: &mut [f32]) {
        let (kernel, stride) = (self.kernel, self.stride);
        let (height, width) = self.size;
        let (channel, ky, kx) = (tap / (kernel * kernel), tap / kernel % kernel, tap % kernel);
        let plane = &x[channel * height * width..][..height * width];
        for &(row, column, count) in segments {
            let (segment, rest) = line.split_at_mut(count);
            line = rest;
            let y = (row * stride + ky).checked_sub(self.padding.0).filter(|&y| y < height);
            let inside = self.inside(kx, column..column + count);
            let Some(y) = y.filter(|_| !inside.is_empty()) else {
                segment.fill(0.0);
                continue;
            };
            let source = &plane[y * width..][..width];
            // Output column o reads input column o * stride + kx - padding.
            let from = inside.start * stride + kx - self.padding.0;
            let (before, segment) = segment.split_at_mut(inside.start - column);
            let (segment, after) = segment.split_at_mut(inside.len());
            before.fill(0.0);
            after.fill(0.0);
            if stride == 1 {
                segment.copy_from_slice(&source[from..from + segment.len()]);
            } else {
                segment.iter_mut().zip(source[from..].iter().step_by(stride)).for_each(|(s, &x)| *s = x);
            }
        }
    }

    /// Those of some output columns (or rows) whose tap `k` is inside the picture.
    fn inside(&self, k: usize, outputs: Range<usize>) -> Range<usize> {
        let first = self.padding.0.saturating_sub(k).div_ceil(self.stride);
        let end = (self.size.1 + self.padding.0).saturating_sub(k).div_ceil(self.stride);
        let start = outputs.start.max(first);
        start..outputs.end.min(end).max(start)
    }

    /// The gradient of `x`, for the gradient `gy` of `y`.
    pub(crate) fn input_gradient(&self, gy: &[f32], weight: &[f32], gradient: &mut [f32]) {
        let (area, depth) = (self.output_area(), self.depth());
        let (plane, taps) = (self.size.0 * self.size.1, self.kernel * self.kernel);
        if gradient.is_empty() || area == 0 {
            return;
        }
        let outputs = weight.len() / depth;
        let segments = self.segments(0..area);
        for (gy, gradient) in gy.chunks_exact(outputs * area).zip(gradient.chunks_exact_mut(self.channels * plane)) {
            let right = Panels::from_rows(outputs, area, |output| &gy[output * area..][..area]);
            gradient.par_chunks_exact_mut(plane).enumerate().for_each_init(
                || (Strips::default(), vec![0f32; taps * area]),
                |(left, patches), (channel, gradient)| {
                    left.set_columns(taps, outputs, |output| &weight[output * depth + channel * taps..], |_| 1.0);
                    let mut rows: Vec<&mut [f32]> = patches.chunks_exact_mut(area).collect();
                    multiply(left, &right, 0..right.count(), Start::Zero, &mut rows);
                    for (tap, patch) in rows.into_iter().enumerate() {
                        self.add_tap(patch, tap, &segments, gradient);
                    }
                },
            );
        }
    }

    /// Adds what [`Convolution::tap`] would have read to where it would have read it.
    fn add_tap(&self, mut patch: &[f32], tap: usize, segments: &[(usize, usize, usize)], plane: &mut [f32]) {
        let (height, width) = self.size;
        let (ky, kx) = (tap / self.kernel, tap % self.kernel);
        for &(row, column, count) in segments {
            let (segment, rest) = patch.split_at(count);
            patch = rest;
            let y = (row * self.stride + ky).checked_sub(self.padding.0).filter(|&y| y < height);
            let inside = self.inside(kx, column..column + count);
            let Some(y) = y.filter(|_| !inside.is_empty()) else { continue };
            let from = y * width + inside.start * self.stride + kx - self.padding.0;
            let segment = &segment[inside.start - column..inside.end - column];
            plane[from..].iter_mut().step_by(self.stride).zip(segment).for_each(|(x, &g)| *x += g);
        }
    }

    /// Adds the gradient of the weight to `gradient`, for the gradient `gy` of `y`.
    pub(crate) fn weight_gradient(&self, x: &[f32], gy: &[f32], gradient: &mut [f32]) {
        let (area, depth) = (self.output_area(), self.depth());
        let image = self.channels * self.size.0 * self.size.1;
        if gradient.is_empty() || image == 0 || area == 0 {
            return;
        }
        let outputs = gradient.len() / depth;
        let segments = self.segments(0..area);
        for (x, gy) in x.chunks_exact(image).zip(gy.chunks_exact(outputs * area)) {
            let mut patches = vec![0f32; depth * area];
            patches.par_chunks_exact_mut(area).enumerate().for_each(|(tap, line)| self.tap(x, tap, &segments, line));
            let right = Panels::transposed(&patches, area);
            let rows = gradient.chunks_exact_mut(depth).collect();
            product(rows_of(gy, area), &right, Start::Output, rows, |_| ());
        }
    }
}
