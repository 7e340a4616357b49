//! Convolution over channels-first images: a product of the weights with patches of the image,
//! which are never laid out but for the panel that a thread works on (implicit GEMM).

use crate::linear::rows_of;
use crate::product::{DEPTH, Panels, Start, Strips, multiply, product, with_scratch};
use rayon::prelude::*;
use std::cell::Cell;
use std::ops::Range;
use std::sync::OnceLock;

/// Panels of output pixels that a thread works on at a time, at most: each such group reads all
/// weights once.
const MOST_PANELS: usize = 4;

thread_local! {
    static PATCHES: Cell<Panels> = Cell::default();
}

/// A weight (outputs x channels x kernel x kernel) as products read it.
#[derive(Debug)]
pub struct ConvolutionWeight {
    /// The left factor of all products.
    forward: Strips,
    /// That of the convolution that leads back, made when first needed.
    backward: OnceLock<Strips>,
}

impl ConvolutionWeight {
    /// Of that many outputs.
    #[must_use]
    pub fn new(weight: &[f32], outputs: usize) -> Self {
        let depth = weight.len().checked_div(outputs).unwrap_or(0);
        let forward =
            Strips::from_rows(outputs, depth, |output| &weight[output * depth..][..depth]);
        Self { forward, backward: OnceLock::new() }
    }

    /// The left factor of all products.
    #[must_use]
    pub fn forward(&self) -> &Strips {
        &self.forward
    }

    /// The elements of the weight, row-major.
    #[must_use]
    pub fn elements(&self) -> Vec<f32> {
        self.forward.to_rows()
    }
}

/// The shape of a square-kernel convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    #[must_use]
    pub fn depth(&self) -> usize {
        self.channels * self.kernel * self.kernel
    }

    fn output_area(&self) -> usize {
        let (height, width) = self.output_size();
        height * width
    }

    /// `y` (samples x outputs x height x width) = `x` (samples x channels x ...) convolved with
    /// `weight` (outputs x channels x kernel x kernel, [`ConvolutionWeight::forward`]), plus `bias`
    /// (outputs).
    pub fn run(&self, x: &[f32], weight: &Strips, bias: &[f32], y: &mut [f32]) {
        let (area, outputs) = (self.output_area(), bias.len());
        let image = self.channels * self.size.0 * self.size.1;
        if image == 0 || area == 0 || outputs == 0 {
            return;
        }
        // Wide groups of pixels read the weights less often; but the threads should end together.
        let panel = Panels::default().width();
        let panels = (x.len() / image * area).div_ceil(panel);
        let width = (panels / (4 * rayon::current_num_threads())).clamp(1, MOST_PANELS) * panel;
        let groups = area.div_ceil(width);
        let mut tasks: Vec<Vec<&mut [f32]>> = Vec::new();
        for y in y.chunks_exact_mut(outputs * area) {
            let first = tasks.len();
            tasks.resize_with(first + groups, || Vec::with_capacity(outputs));
            for plane in y.chunks_exact_mut(area) {
                plane
                    .chunks_mut(width)
                    .zip(&mut tasks[first..])
                    .for_each(|(piece, task)| task.push(piece));
            }
        }
        tasks.into_par_iter().enumerate().for_each(|(task, mut output)| {
            let (sample, first) = (task / groups, task % groups * width);
            let x = &x[sample * image..][..image];
            output.iter_mut().zip(bias).for_each(|(y, &b)| y.fill(b));
            with_scratch(&PATCHES, |patches| {
                self.patches_by(x, weight, first..(first + width).min(area), patches, &mut output);
            });
        });
    }

    /// Adds the products of some output pixels, a few channels of their patches at a time.
    fn patches_by(
        &self,
        x: &[f32],
        weight: &Strips,
        pixels: Range<usize>,
        patches: &mut Panels,
        output: &mut [&mut [f32]],
    ) {
        let (plane, taps) = (self.size.0 * self.size.1, self.kernel * self.kernel);
        let channels = (DEPTH / taps).clamp(1, self.channels);
        let panels: Vec<_> = (pixels.start..pixels.end)
            .step_by(patches.width())
            .map(|first| self.stretches(first..(first + patches.width()).min(pixels.end)))
            .collect();
        for (index, x) in x.chunks(channels * plane).enumerate() {
            let depth = x.len() / plane * taps;
            patches.set_by(depth, pixels.len(), |panel, tap, line| {
                self.read(&x[tap / taps * plane..][..plane], &panels[panel][tap % taps], line);
            });
            multiply(
                weight,
                index * channels * taps,
                patches,
                0..patches.count(),
                Start::Output,
                output,
            );
        }
    }

    /// Where each tap of a channel reads for some output pixels, which are counted from the first.
    fn stretches(&self, pixels: Range<usize>) -> Vec<Vec<Stretch>> {
        let taps = (0..self.kernel).flat_map(|ky| (0..self.kernel).map(move |kx| (ky, kx)));
        taps.map(|(ky, kx)| self.stretches_of(ky, kx, pixels.clone())).collect()
    }

    fn stretches_of(&self, ky: usize, kx: usize, pixels: Range<usize>) -> Vec<Stretch> {
        let (height, width) = self.size;
        let columns = self.output_size().1;
        // Output column o reads input column o * stride + kx - padding, which is inside the picture
        // for these.
        let inside = |o: usize| {
            (o * self.stride + kx).checked_sub(self.padding.0).is_some_and(|x| x < width)
        };
        let first = (0..columns).find(|&o| inside(o)).unwrap_or(columns);
        let end = (first..columns).rev().find(|&o| inside(o)).map_or(first, |last| last + 1);
        let rows = pixels.start / columns..pixels.end.div_ceil(columns);
        let mut stretches = Vec::with_capacity(rows.len());
        for row in rows {
            let y = (row * self.stride + ky).checked_sub(self.padding.0).filter(|&y| y < height);
            let start = (row * columns + first).max(pixels.start);
            let end = (row * columns + end).min(pixels.end);
            if let (Some(y), true) = (y, start < end) {
                let input = y * width + (start - row * columns) * self.stride + kx - self.padding.0;
                stretches.push(Stretch { pixel: start - pixels.start, input, count: end - start });
            }
        }
        stretches
    }

    /// What a tap reads of a channel; zero in the padding.
    fn read(&self, plane: &[f32], stretches: &[Stretch], line: &mut [f32]) {
        if stretches.iter().map(|stretch| stretch.count).sum::<usize>() < line.len() {
            line.fill(0.0);
        }
        for &Stretch { pixel, input, count } in stretches {
            let line = &mut line[pixel..pixel + count];
            if self.stride == 1 {
                line.copy_from_slice(&plane[input..input + count]);
            } else {
                line.iter_mut()
                    .zip(plane[input..].iter().step_by(self.stride))
                    .for_each(|(l, &x)| *l = x);
            }
        }
    }

    /// Adds `line` to where [`Convolution::read`] would have read it.
    fn add(&self, line: &[f32], stretches: &[Stretch], plane: &mut [f32]) {
        for &Stretch { pixel, input, count } in stretches {
            let line = &line[pixel..pixel + count];
            plane[input..].iter_mut().step_by(self.stride).zip(line).for_each(|(x, &g)| *x += g);
        }
    }

    /// The gradient of `x`, for the gradient `gy` of `y`.
    pub fn input_gradient(&self, gy: &[f32], weight: &ConvolutionWeight, gradient: &mut [f32]) {
        if gradient.is_empty() || self.output_area() == 0 {
            return;
        }
        let outputs = weight.forward.rows();
        match self.backward(outputs) {
            Some(backward) => {
                let turned = || self.turned(&weight.elements(), outputs);
                let strips = weight.backward.get_or_init(turned);
                backward.run(gy, strips, &vec![0.0; self.channels], gradient);
            }
            None => self.scatter(gy, &weight.elements(), outputs, gradient),
        }
    }

    /// The convolution that makes the gradient of `x` of that of `y`, where one does: with its
    /// kernel turned, and the channels in place of the outputs.
    fn backward(&self, outputs: usize) -> Option<Self> {
        let (before, after) = self.padding;
        let last = self.kernel - 1;
        let padding = (last.checked_sub(before)?, last.checked_sub(after)?);
        (self.stride == 1).then(|| Self {
            channels: outputs,
            size: self.output_size(),
            padding,
            ..*self
        })
    }

    /// The weight of [`Convolution::backward`].
    fn turned(&self, weight: &[f32], outputs: usize) -> Strips {
        let taps = self.kernel * self.kernel;
        let mut turned = vec![0f32; weight.len()];
        for (index, kernel) in weight.chunks_exact(taps).enumerate() {
            let (output, channel) = (index / self.channels, index % self.channels);
            let place = (channel * outputs + output) * taps;
            turned[place..place + taps]
                .iter_mut()
                .zip(kernel.iter().rev())
                .for_each(|(to, from)| *to = *from);
        }
        let depth = outputs * taps;
        Strips::from_rows(self.channels, depth, |channel| &turned[channel * depth..][..depth])
    }

    /// The gradient of `x` by adding to it what each tap of each output has read.
    fn scatter(&self, gy: &[f32], weight: &[f32], outputs: usize, gradient: &mut [f32]) {
        let (area, depth) = (self.output_area(), self.depth());
        let (plane, taps) = (self.size.0 * self.size.1, self.kernel * self.kernel);
        let stretches = self.stretches(0..area);
        for (gy, gradient) in
            gy.chunks_exact(outputs * area).zip(gradient.chunks_exact_mut(self.channels * plane))
        {
            let right = Panels::from_rows(outputs, area, |output| &gy[output * area..][..area]);
            gradient.par_chunks_exact_mut(plane).enumerate().for_each_init(
                || (Strips::default(), vec![0f32; taps * area]),
                |(left, patches), (channel, gradient)| {
                    left.set_columns(
                        taps,
                        outputs,
                        |output| &weight[output * depth + channel * taps..],
                        |_| 1.0,
                    );
                    let mut rows: Vec<&mut [f32]> = patches.chunks_exact_mut(area).collect();
                    multiply(left, 0, &right, 0..right.count(), Start::Zero, &mut rows);
                    for (patch, stretches) in rows.into_iter().zip(&stretches) {
                        self.add(patch, stretches, gradient);
                    }
                },
            );
        }
    }

    /// Adds the gradient of the weight to `gradient`, for the gradient `gy` of `y`.
    pub fn weight_gradient(&self, x: &[f32], gy: &[f32], gradient: &mut [f32]) {
        let (area, depth) = (self.output_area(), self.depth());
        let (plane, taps) = (self.size.0 * self.size.1, self.kernel * self.kernel);
        let image = self.channels * plane;
        if gradient.is_empty() || image == 0 || area == 0 {
            return;
        }
        let outputs = gradient.len() / depth;
        let stretches = self.stretches(0..area);
        for (x, gy) in x.chunks_exact(image).zip(gy.chunks_exact(outputs * area)) {
            let mut patches = vec![0f32; depth * area];
            patches.par_chunks_exact_mut(area).enumerate().for_each(|(tap, line)| {
                self.read(&x[tap / taps * plane..][..plane], &stretches[tap % taps], line);
            });
            let right = Panels::transposed(&patches, area);
            let rows = gradient.chunks_exact_mut(depth).collect();
            product(rows_of(gy, area), &right, Start::Output, rows, |_| ());
        }
    }
}

/// Output pixels in a row whose tap is inside the picture.
struct Stretch {
    /// The first of them.
    pixel: usize,
    /// The input pixel under the tap there; for the next ones it is a stride farther each.
    input: usize,
    count: usize,
}
