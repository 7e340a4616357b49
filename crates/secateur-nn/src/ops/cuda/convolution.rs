//! Convolutions: by cuDNN in 16 bits, otherwise as products of the columns of a picture.

#[cfg(feature = "cudnn")]
use super::launch::{Gpu, filled, with_addresses};
use super::launch::{Launch, Scalar, THREADS, blocks_over, run};
use super::node::Output;
use super::plain;
#[cfg(feature = "cudnn")]
use crate::weights::Packed;
use crate::weights::Weight;
#[cfg(feature = "cudnn")]
use candle_core::bail;
use candle_core::{DType, Result, Tensor};

/// The columns of a picture in memory at once have at most so many numbers.
const MOST_NUMBERS: usize = 1 << 28;

/// A convolution of one picture.
#[derive(Clone, Copy)]
struct Convolution {
    channels: usize,
    size: (usize, usize),
    kernel: usize,
    stride: usize,
    padding: (usize, usize),
}

impl Convolution {
    /// Height and width of the result.
    fn output_size(self) -> (usize, usize) {
        let side =
            |side: usize| (side + self.padding.0 + self.padding.1 - self.kernel) / self.stride + 1;
        (side(self.size.0), side(self.size.1))
    }

    /// Numbers of a column.
    fn taps(self) -> usize {
        self.channels * self.kernel * self.kernel
    }

    /// What the kernels are told.
    fn window(self) -> [Scalar; 6] {
        let (height, width) = self.size;
        [height, width, self.kernel, self.stride, self.padding.0, self.output_size().1]
            .map(|size| Scalar::Int(size as i32))
    }

    /// The columns of `pixels` pixels of the result from `first` on: taps x pixels.
    fn columns(self, picture: &Tensor, first: usize, pixels: usize) -> Result<Tensor> {
        let count = self.taps() * pixels;
        let own = [Scalar::Size(count), Scalar::Int(first as i32), Scalar::Int(pixels as i32)];
        let scalars = [&own[..], &self.window()].concat();
        let launch = Launch {
            name: "columns",
            width: 1,
            blocks: blocks_over(count),
            threads: THREADS,
            shared: 0,
            scalars: &scalars,
        };
        Ok(run(&launch, &[picture], (picture.dtype(), (self.taps(), pixels)))?.untracked())
    }

    /// The sums of what was made of every number of the picture.
    fn picture(self, columns: &Tensor) -> Result<Tensor> {
        let (height, width) = self.size;
        let count = self.channels * height * width;
        let own = [Scalar::Size(count), Scalar::Int(self.output_size().0 as i32)];
        let scalars = [&own[..], &self.window()].concat();
        let launch = Launch {
            name: "picture",
            width: 1,
            blocks: blocks_over(count),
            threads: THREADS,
            shared: 0,
            scalars: &scalars,
        };
        Ok(run(&launch, &[columns], (columns.dtype(), (self.channels, height, width)))?.untracked())
    }
}

pub(in crate::ops) fn conv2d(
    x: &Tensor,
    kept: &Weight,
    bias: &Tensor,
    stride: usize,
    padding: (usize, usize),
) -> Result<Tensor> {
    let weight = kept.tensor();
    let (samples, channels, height, width) = x.dims4()?;
    let (outputs, _, kernel, _) = weight.dims4()?;
    let convolution = Convolution { channels, size: (height, width), kernel, stride, padding };
    let (out_height, out_width) = convolution.output_size();
    let pixels = out_height * out_width;
    #[cfg(feature = "cudnn")]
    let y = by_cudnn(x, kept, bias, convolution)?;
    #[cfg(not(feature = "cudnn"))]
    let y = None;
    let y = match y {
        Some(y) => y,
        None => by_columns([x, weight, bias], convolution)?,
    };
    Output::of(y, "conv2d", &[x, weight, bias], move |given| {
        let [x, weight, bias] = given.inputs else { return Ok(Vec::new()) };
        let (x, matrix) =
            (x.contiguous()?, weight.contiguous()?.reshape((outputs, convolution.taps()))?);
        let gradient = given.gradient.reshape((samples, outputs, pixels))?;
        Ok(vec![
            given.of(0, || {
                let of_sample = |sample: usize| {
                    convolution.picture(&matrix.t()?.matmul(&gradient.get(sample)?)?)
                };
                Tensor::stack(&(0..samples).map(of_sample).collect::<Result<Vec<_>>>()?, 0)
            })?,
            given.of(1, || {
                let of_sample = |sample: usize| {
                    let columns = convolution.columns(&x.get(sample)?, 0, pixels)?;
                    gradient.get(sample)?.matmul(&columns.t()?)
                };
                let all = (0..samples).map(of_sample).collect::<Result<Vec<_>>>()?;
                let sum = all.iter().skip(1).try_fold(all[0].clone(), |sum, one| sum + one)?;
                sum.reshape(weight.shape())
            })?,
            given.of(2, || {
                let sum = gradient.to_dtype(DType::F32)?.sum(2)?.sum(0)?;
                sum.to_dtype(bias.dtype())
            })?,
        ])
    })
}

/// None where cuDNN is not there, or has no way for numbers of that type. The result's channels lie
/// together in memory.
#[cfg(feature = "cudnn")]
fn by_cudnn(
    x: &Tensor,
    weight: &Weight,
    bias: &Tensor,
    convolution: Convolution,
) -> Result<Option<Tensor>> {
    let dtype = x.dtype();
    let (samples, (outputs, ..)) = (x.dim(0)?, weight.tensor().dims4()?);
    let out_size = convolution.output_size();
    if dtype == DType::F32 || samples * outputs * out_size.0 * out_size.1 == 0 {
        return Ok(None);
    }
    let weight = weight.packed(|weight| {
        Ok(Packed::ChannelsLast(weight.detach().permute((0, 2, 3, 1))?.contiguous()?))
    })?;
    let Packed::ChannelsLast(weight) = weight else {
        bail!("conv2d: the weight was packed for the CPU")
    };
    let x = x.detach().permute((0, 2, 3, 1))?.contiguous()?;
    let bias = bias.detach().contiguous()?;
    with_addresses(&[&x, weight, &bias], |device, addresses| {
        let gpu = Gpu::of(device)?;
        let &[x, w, b] = addresses else { return Ok(None) };
        let Some(cudnn) = gpu.cudnn.as_ref().filter(|_| (x | w | b) % 16 == 0) else {
            return Ok(None);
        };
        let Convolution { channels, size, kernel, stride, padding } = convolution;
        let work = super::cudnn::Convolution {
            samples,
            channels,
            size,
            outputs,
            out_size,
            kernel,
            stride,
            padding,
        };
        let mut is_done = false;
        let y = filled(device, dtype, (samples, out_size.0, out_size.1, outputs), |y| {
            is_done = cudnn.convolution(dtype, work, [x, w, b, y])?;
            Ok(())
        })?;
        is_done.then(|| y.untracked().permute((0, 3, 1, 2))).transpose()
    })
}

fn by_columns([x, weight, bias]: [&Tensor; 3], convolution: Convolution) -> Result<Tensor> {
    let (samples, outputs) = (x.dim(0)?, weight.dim(0)?);
    let (out_height, out_width) = convolution.output_size();
    let pixels = out_height * out_width;
    let plain = plain(&[x, weight, bias])?;
    let matrix = plain[1].reshape((outputs, convolution.taps()))?;
    let at_once = (MOST_NUMBERS / convolution.taps().max(1)).clamp(1, pixels.max(1));
    let of_sample = |sample: usize| {
        let picture = plain[0].get(sample)?;
        let part = |first: usize| {
            let columns = convolution.columns(&picture, first, at_once.min(pixels - first))?;
            matrix.matmul(&columns)
        };
        let parts = (0..pixels).step_by(at_once).map(part).collect::<Result<Vec<_>>>()?;
        Tensor::cat(&parts, 1)
    };
    let y = (0..samples).map(of_sample).collect::<Result<Vec<_>>>()?;
    let y = Tensor::stack(&y, 0)?.broadcast_add(&plain[2].reshape((outputs, 1))?)?;
    y.reshape((samples, outputs, out_height, out_width))
}
