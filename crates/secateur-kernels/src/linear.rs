//! Products of row-major matrices, and convolution as such a product.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

/// The parallelism of the current rayon pool.
#[must_use]
pub fn parallelism() -> Par {
    match rayon::current_num_threads() {
        0 | 1 => Par::Seq,
        threads => Par::rayon(threads),
    }
}

/// y = x W^T + bias: `x` rows x `inputs`, `weight` outputs x `inputs`, `y` rows x outputs, all row-major.
pub fn linear(x: &[f32], weight: &[f32], bias: Option<&[f32]>, y: &mut [f32], inputs: usize) {
    if inputs == 0 || y.is_empty() {
        return;
    }
    let (rows, outputs) = (x.len() / inputs, weight.len() / inputs);
    let accumulate = match bias {
        Some(bias) => {
            y.par_chunks_mut(outputs).with_min_len(64).for_each(|y| y.copy_from_slice(bias));
            Accum::Add
        }
        None => Accum::Replace,
    };
    // Row-major y = x W^T is column-major y^T = W x^T.
    let y = MatMut::from_column_major_slice_mut(y, outputs, rows);
    let x = MatRef::from_column_major_slice(x, inputs, rows);
    let weight = MatRef::from_row_major_slice(weight, outputs, inputs);
    matmul(y, accumulate, weight, x, 1.0, parallelism());
}

/// Patch elements that a convolution holds at a time.
const BAND: usize = 4 << 20;

/// The shape of a square-kernel convolution over channels-first images.
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

    /// `y` = `x` convolved with `weight` (outputs x channels x kernel x kernel) + `bias`, one image after another;
    /// each as patches (im2col) times the weights.
    pub fn run(&self, x: &[f32], weight: &[f32], bias: &[f32], y: &mut [f32]) {
        let (height, width) = self.output_size();
        let (area, depth) = (height * width, self.channels * self.kernel * self.kernel);
        let outputs = bias.len();
        let image = self.channels * self.size.0 * self.size.1;
        if image == 0 || area == 0 || outputs == 0 {
            return;
        }
        // Patches of a band of output rows at a time: all of them would be kernel^2 times the picture.
        let band = (BAND / (depth * width)).clamp(1, height);
        let mut patches = vec![0f32; depth * band * width];
        for (x, y) in x.chunks_exact(image).zip(y.chunks_exact_mut(outputs * area)) {
            y.par_chunks_mut(area).zip(bias).for_each(|(y, &b)| y.fill(b));
            for first in (0..height).step_by(band) {
                let rows = band.min(height - first);
                let pixels = rows * width;
                let patches = &mut patches[..depth * pixels];
                self.patches(x, first, patches);
                let y = MatMut::from_row_major_slice_mut(&mut *y, outputs, area).subcols_mut(first * width, pixels);
                let weight = MatRef::from_row_major_slice(weight, outputs, depth);
                let patches = MatRef::from_row_major_slice(patches, depth, pixels);
                matmul(y, Accum::Add, weight, patches, 1.0, parallelism());
            }
        }
    }

    /// Row (c, ky, kx) of `patches` holds, for every output pixel from output row `first` on, the input pixel under that
    /// tap.
    fn patches(&self, x: &[f32], first: usize, patches: &mut [f32]) {
        let (kernel, stride, before) = (self.kernel, self.stride, self.padding.0);
        let (in_height, in_width) = self.size;
        let width = self.output_size().1;
        let depth = self.channels * kernel * kernel;
        let pixels = patches.len() / depth;
        patches.par_chunks_mut(pixels).enumerate().for_each(|(row, patch)| {
            let (channel, ky, kx) = (row / (kernel * kernel), row / kernel % kernel, row % kernel);
            let plane = &x[channel * in_height * in_width..][..in_height * in_width];
            for (oy, line) in patch.chunks_exact_mut(width).enumerate() {
                let iy = ((first + oy) * stride + ky).wrapping_sub(before);
                if iy >= in_height {
                    line.fill(0.0);
                    continue;
                }
                let source = &plane[iy * in_width..][..in_width];
                for (ox, value) in line.iter_mut().enumerate() {
                    let ix = (ox * stride + kx).wrapping_sub(before);
                    *value = source.get(ix).copied().unwrap_or(0.0);
                }
            }
        });
    }
}
