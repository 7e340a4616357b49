//! The ways back of the operations, in candle's own ones: sums in `f32`, gradients in the type of
//! what they are of.

use super::node::Backward;
use candle_core::{D, DType, Result, Tensor};

/// Of the inputs of an operation, in their order.
pub(super) type Gradients = Result<Vec<Option<Tensor>>>;

fn f32(x: &Tensor) -> Result<Tensor> {
    x.to_dtype(DType::F32)
}

/// Rows of the last dimension.
fn rows(x: &Tensor) -> Result<Tensor> {
    let width = x.dim(D::Minus1)?;
    x.reshape((x.elem_count() / width.max(1), width))
}

/// The sum of all rows, in the type of `like`.
fn sum_of_rows(x: &Tensor, like: &Tensor) -> Result<Tensor> {
    f32(x)?.sum(0)?.to_dtype(like.dtype())
}

/// y = x W^T + bias.
pub(super) fn linear(given: &Backward<'_>) -> Gradients {
    let (x, weight) = (&given.inputs[0], &given.inputs[1].contiguous()?);
    let gradient = &rows(given.gradient)?;
    Ok(vec![
        given.of(0, || match weight.elem_count() {
            0 => Ok(x.clone()),
            _ => gradient.matmul(weight)?.reshape(x.shape()),
        })?,
        given.of(1, || match weight.elem_count() {
            0 => Ok(weight.clone()),
            _ => gradient.t()?.matmul(&rows(&x.contiguous()?)?),
        })?,
        given.of(2, || sum_of_rows(gradient, &given.inputs[2]))?,
    ])
}

/// y = softmax(x): gx = y (gy - sum y gy).
pub(super) fn softmax(given: &Backward<'_>) -> Gradients {
    let (y, gradient) = (f32(given.output)?, f32(given.gradient)?);
    let weighted = (&y * gradient)?;
    let gx = (&weighted - y.broadcast_mul(&weighted.sum_keepdim(D::Minus1)?)?)?;
    Ok(vec![Some(gx.to_dtype(given.output.dtype())?)])
}

pub(super) fn upsample_nearest(given: &Backward<'_>, factor: usize) -> Gradients {
    let (samples, channels, height, width) = given.inputs[0].dims4()?;
    let planes = (samples * channels, height, factor, width, factor);
    let gradient = f32(given.gradient)?.reshape(planes)?.sum(4)?.sum(2)?;
    let gx = gradient.reshape((samples, channels, height, width))?;
    Ok(vec![Some(gx.to_dtype(given.inputs[0].dtype())?)])
}

/// Rows less their mean (unless `keeps_mean`), divided by the root of the mean square, and that
/// divisor's inverse.
fn normalised(x: &Tensor, eps: f32, keeps_mean: bool) -> Result<(Tensor, Tensor)> {
    let x = match keeps_mean {
        true => x.clone(),
        false => x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?,
    };
    let square = x.sqr()?.mean_keepdim(D::Minus1)?;
    let inverse = (square + f64::from(eps))?.sqrt()?.recip()?;
    Ok((x.broadcast_mul(&inverse)?, inverse))
}

/// The gradient of the rows that [`normalised`] was given.
fn through_norm(
    (normal, inverse): (&Tensor, &Tensor),
    gradient: &Tensor,
    keeps_mean: bool,
) -> Result<Tensor> {
    let along = (gradient * normal)?.mean_keepdim(D::Minus1)?;
    let gx = (gradient - normal.broadcast_mul(&along)?)?;
    let gx = match keeps_mean {
        true => gx,
        false => gx.broadcast_sub(&gradient.mean_keepdim(D::Minus1)?)?,
    };
    gx.broadcast_mul(inverse)
}

pub(super) fn layer_norm_affine(given: &Backward<'_>, eps: f32) -> Gradients {
    let [x, weight, bias] = given.inputs else { return Ok(Vec::new()) };
    let gradient = &f32(&rows(given.gradient)?)?;
    let (normal, inverse) = normalised(&f32(&rows(&x.contiguous()?)?)?, eps, false)?;
    Ok(vec![
        given.of(0, || {
            let scaled = gradient.broadcast_mul(&f32(weight)?)?;
            let gx = through_norm((&normal, &inverse), &scaled, false)?;
            gx.reshape(x.shape())?.to_dtype(x.dtype())
        })?,
        given.of(1, || sum_of_rows(&(gradient * &normal)?, weight))?,
        given.of(2, || sum_of_rows(gradient, bias))?,
    ])
}

/// y = normal (1 + scale) + shift, scale and shift of samples.
pub(super) fn layer_norm_modulated(given: &Backward<'_>, eps: f32) -> Gradients {
    let [x, scale, shift] = given.inputs else { return Ok(Vec::new()) };
    let gradient = &f32(given.gradient)?;
    let (normal, inverse) = normalised(&f32(x)?, eps, false)?;
    Ok(vec![
        given.of(0, || {
            let scaled = gradient.broadcast_mul(&(f32(scale)?.unsqueeze(1)? + 1.0)?)?;
            through_norm((&normal, &inverse), &scaled, false)?.to_dtype(x.dtype())
        })?,
        given.of(1, || (gradient * &normal)?.sum(1)?.to_dtype(scale.dtype()))?,
        given.of(2, || gradient.sum(1)?.to_dtype(shift.dtype()))?,
    ])
}

pub(super) fn rms_norm(given: &Backward<'_>, eps: f32) -> Gradients {
    let [x, weight] = given.inputs else { return Ok(Vec::new()) };
    let groups = (x.elem_count() / weight.elem_count(), weight.elem_count());
    let gradient = &f32(given.gradient)?.reshape(groups)?;
    let (normal, inverse) = normalised(&f32(x)?.contiguous()?.reshape(groups)?, eps, true)?;
    Ok(vec![
        given.of(0, || {
            let scaled = gradient.broadcast_mul(&f32(weight)?)?;
            let gx = through_norm((&normal, &inverse), &scaled, true)?;
            gx.reshape(x.shape())?.to_dtype(x.dtype())
        })?,
        given.of(1, || sum_of_rows(&(gradient * &normal)?, weight))?,
    ])
}

/// From the input of an activation and the gradient of its output to that of its input.
type Slope<'a> = &'a dyn Fn(&Tensor, &Tensor) -> Result<Tensor>;

/// `slope`: of the SiLU at the end, where there is one.
pub(super) fn group_norm(
    given: &Backward<'_>,
    groups: usize,
    eps: f32,
    slope: Option<Slope<'_>>,
) -> Gradients {
    let [x, weight, bias] = given.inputs else { return Ok(Vec::new()) };
    let (samples, channels) = (x.dim(0)?, x.dim(1)?);
    let size = x.elem_count() / (samples * groups);
    let by_channel = (samples, channels, x.elem_count() / (samples * channels));
    let of_channel = (1, channels, 1);
    let (normal, inverse) =
        normalised(&f32(x)?.contiguous()?.reshape((samples * groups, size))?, eps, false)?;
    let channel_normal = normal.reshape(by_channel)?;
    let scale = f32(weight)?.reshape(of_channel)?;
    let gradient = f32(given.gradient)?.reshape(by_channel)?;
    let gradient = match slope {
        Some(slope) => {
            let offset = f32(bias)?.reshape(of_channel)?;
            slope(&channel_normal.broadcast_mul(&scale)?.broadcast_add(&offset)?, &gradient)?
        }
        None => gradient,
    };
    let of_channels = |x: &Tensor| x.sum(2)?.sum(0)?.to_dtype(weight.dtype());
    Ok(vec![
        given.of(0, || {
            let scaled = gradient.broadcast_mul(&scale)?.reshape((samples * groups, size))?;
            let gx = through_norm((&normal, &inverse), &scaled, false)?;
            gx.reshape(x.shape())?.to_dtype(x.dtype())
        })?,
        given.of(1, || of_channels(&(&gradient * &channel_normal)?))?,
        given.of(2, || of_channels(&gradient))?,
    ])
}

/// x turned by the angles of a table: its gradient is turned back.
pub(super) fn rope(given: &Backward<'_>) -> Gradients {
    let [x, table] = given.inputs else { return Ok(Vec::new()) };
    let (samples, tokens, row) = x.dims3()?;
    let width = table.dim(1)?;
    let pairs = |x: &Tensor| {
        let pairs = f32(x)?.contiguous()?.reshape((samples, tokens, row / width, width / 2, 2))?;
        Ok::<_, candle_core::Error>((pairs.narrow(4, 0, 1)?, pairs.narrow(4, 1, 1)?))
    };
    let together = |a: Tensor, b: Tensor| Tensor::cat(&[a, b], 4);
    let ((x0, x1), (g0, g1)) = (pairs(x)?, pairs(given.gradient)?);
    Ok(vec![
        given.of(0, || {
            let angles = f32(table)?.contiguous()?.reshape((1, tokens, 1, width / 2, 2))?;
            let (cosine, sine) = (angles.narrow(4, 0, 1)?, angles.narrow(4, 1, 1)?);
            let first = (g0.broadcast_mul(&cosine)? + g1.broadcast_mul(&sine)?)?;
            let second = (g1.broadcast_mul(&cosine)? - g0.broadcast_mul(&sine)?)?;
            together(first, second)?.reshape(x.shape())?.to_dtype(x.dtype())
        })?,
        given.of(1, || {
            let of_cosine = ((&x0 * &g0)? + (&x1 * &g1)?)?;
            let of_sine = ((&x0 * &g1)? - (&x1 * &g0)?)?;
            let all = together(of_cosine, of_sine)?.sum(2)?.sum(0)?;
            all.reshape(table.shape())?.to_dtype(table.dtype())
        })?,
    ])
}

/// x + gate y.
pub(super) fn gated_add(given: &Backward<'_>) -> Gradients {
    let [_, gate, y] = given.inputs else { return Ok(Vec::new()) };
    let gradient = given.gradient;
    Ok(vec![
        given.of(0, || Ok(gradient.clone()))?,
        given.of(1, || (f32(gradient)? * f32(y)?)?.sum(1)?.to_dtype(gate.dtype()))?,
        given.of(2, || gradient.broadcast_mul(&gate.unsqueeze(1)?))?,
    ])
}
