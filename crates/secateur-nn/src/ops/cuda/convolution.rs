//! Convolutions: by cuDNN in 16 bits, otherwise as products of the columns of a picture.

#[cfg(feature = "cudnn")]
use super::launch::made_by_cudnn;
use super::launch::{Launch, Scalar, plain, run};
use super::node::Output;
#[cfg(feature = "cudnn")]
use crate::weights::Packed;
use crate::weights::Weight;
#[cfg(feature = "cudnn")]
use candle_core::bail;
use candle_core::{DType, Result, Tensor};
use secateur_kernels::convolution::Convolution;

/// The columns of a picture in memory at once have at most so many numbers.
const MOST_NUMBERS: usize = 1 << 28;

/// The sizes of a convolution, as the kernels take them.
fn window(convolution: Convolution) -> [Scalar; 6] {
    let Convolution { size: (height, width), kernel, stride, padding, .. } = convolution;
    [height, width, kernel, stride, padding.0, convolution.output_size().1]
        .map(|size| Scalar::Int(size as i32))
}

/// The columns of `pixels` pixels of the result from `first` on: depth x pixels.
fn columns(
    convolution: Convolution,
    picture: &Tensor,
    first: usize,
    pixels: usize,
) -> Result<Tensor> {
    let shape = (convolution.depth(), pixels);
    let count = convolution.depth() * pixels;
    let own = [Scalar::Size(count), Scalar::Int(first as i32), Scalar::Int(pixels as i32)];
    let scalars = [&own[..], &window(convolution)].concat();
    let launch =
        Launch { name: "columns", scalars: &scalars, ..Launch::over(picture.dtype(), count, 1) };
    Ok(run(&launch, &[picture], (picture.dtype(), shape))?.untracked())
}

/// The way back of [`columns`] of all pixels: sums of what was made of every number of the picture.
fn picture(convolution: Convolution, columns: &Tensor) -> Result<Tensor> {
    let Convolution { channels, size: (height, width), .. } = convolution;
    let count = channels * height * width;
    let own = [Scalar::Size(count), Scalar::Int(convolution.output_size().0 as i32)];
    let scalars = [&own[..], &window(convolution)].concat();
    let launch =
        Launch { name: "picture", scalars: &scalars, ..Launch::over(columns.dtype(), count, 1) };
    Ok(run(&launch, &[columns], (columns.dtype(), (channels, height, width)))?.untracked())
}

pub(in crate::ops) fn conv2d(
    x: &Tensor,
    kept: &Weight,
    bias: &Tensor,
    stride: usize,
    padding: (usize, usize),
) -> Result<Tensor> {
    let weight = &kept.tensor()?;
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
            (x.contiguous()?, weight.contiguous()?.reshape((outputs, convolution.depth()))?);
        let gradient = given.gradient.reshape((samples, outputs, pixels))?;
        Ok(vec![
            given.of(0, || {
                let of_sample = |sample: usize| {
                    picture(convolution, &matrix.t()?.matmul(&gradient.get(sample)?)?)
                };
                Tensor::stack(&(0..samples).map(of_sample).collect::<Result<Vec<_>>>()?, 0)
            })?,
            given.of(1, || {
                let of_sample = |sample: usize| {
                    let columns = columns(convolution, &x.get(sample)?, 0, pixels)?;
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
    let (samples, (outputs, ..)) = (x.dim(0)?, weight.shape().dims4()?);
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
    let shape = (samples, out_size.0, out_size.1, outputs);
    let y = made_by_cudnn(&[&x, &weight, &bias], shape, |cudnn, addresses, y| {
        let &[x, weight, bias] = addresses else { return Ok(false) };
        cudnn.convolution(dtype, (convolution, samples, outputs), [x, weight, bias, y])
    })?;
    y.map(|y| y.untracked().permute((0, 3, 1, 2))).transpose()
}

fn by_columns([x, weight, bias]: [&Tensor; 3], convolution: Convolution) -> Result<Tensor> {
    let (samples, outputs) = (x.dim(0)?, weight.dim(0)?);
    let (out_height, out_width) = convolution.output_size();
    let pixels = out_height * out_width;
    let plain = plain(&[x, weight, bias])?;
    let matrix = plain[1].reshape((outputs, convolution.depth()))?;
    let at_once = (MOST_NUMBERS / convolution.depth().max(1)).clamp(1, pixels.max(1));
    let of_sample = |sample: usize| {
        let picture = plain[0].get(sample)?;
        let part = |first: usize| {
            let columns = columns(convolution, &picture, first, at_once.min(pixels - first))?;
            matrix.matmul(&columns)
        };
        let parts = (0..pixels).step_by(at_once).map(part).collect::<Result<Vec<_>>>()?;
        Tensor::cat(&parts, 1)
    };
    let y = (0..samples).map(of_sample).collect::<Result<Vec<_>>>()?;
    let y = Tensor::stack(&y, 0)?.broadcast_add(&plain[2].reshape((outputs, 1))?)?;
    y.reshape((samples, outputs, out_height, out_width))
}
