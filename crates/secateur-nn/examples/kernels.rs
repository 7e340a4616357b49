//! Times the kernels: `kernels [--only NAME] [--seconds S]` prints a line of JSON for each case,
//! with the best time in seconds and the operations or bytes that it cannot do without.

#![expect(clippy::print_stdout, reason = "a benchmark tells its figures")]

use candle_core::{Device, Result, Tensor};
use secateur_kernels::gram;
use secateur_nn::{Activation, Weight, ops};
use std::hint::black_box;
use std::time::Instant;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Normal numbers; which does not matter.
fn random(shape: &[usize]) -> Result<Tensor> {
    Tensor::randn(0f32, 1f32, shape, &Device::Cpu)
}

/// The best time of calls during some seconds, at least three.
fn time(seconds: f64, mut body: impl FnMut() -> Result<()>) -> Result<f64> {
    let (mut best, begun, mut calls) = (f64::INFINITY, Instant::now(), 0);
    while calls < 3 || begun.elapsed().as_secs_f64() < seconds {
        let start = Instant::now();
        body()?;
        best = best.min(start.elapsed().as_secs_f64());
        calls += 1;
    }
    Ok(best)
}

/// A case: its name, floating-point operations, bytes read and written, and itself.
type Case = (String, f64, f64, Box<dyn FnMut() -> Result<()>>);

fn linear(rows: usize, inputs: usize, outputs: usize) -> Result<Case> {
    let (x, weight, bias) =
        (random(&[rows, inputs])?, random(&[outputs, inputs])?, random(&[outputs])?);
    let weight = Weight::from(weight);
    let operations = 2 * rows * inputs * outputs;
    let bytes = 4 * (rows * inputs + inputs * outputs + rows * outputs);
    let body = move || ops::linear(&x, &weight, Some(&bias), None).map(|y| drop(black_box(y)));
    Ok((
        format!("linear {rows}x{inputs}x{outputs}"),
        operations as f64,
        bytes as f64,
        Box::new(body),
    ))
}

fn attention(batch: usize, heads: usize, tokens: usize, head_dim: usize) -> Result<Case> {
    let shape = [batch, tokens, heads * head_dim];
    let (q, k, v) = (random(&shape)?, random(&shape)?, random(&shape)?);
    let operations = 4 * batch * heads * tokens * tokens * head_dim;
    let bytes = 4 * 4 * batch * tokens * heads * head_dim;
    let name = format!("attention b{batch} h{heads} n{tokens} d{head_dim}");
    let body = move || {
        ops::attention(&q, &k, &v, ops::Heads::new(heads, head_dim), None, false)
            .map(|y| drop(black_box(y)))
    };
    Ok((name, operations as f64, bytes as f64, Box::new(body)))
}

fn convolution(kernel: usize, stride: usize) -> Result<Case> {
    let (samples, channels, side) = (2, 320, 64);
    let x = random(&[samples, channels, side, side])?;
    let (weight, bias) = (random(&[channels, channels, kernel, kernel])?, random(&[channels])?);
    let pixels = samples * (side / stride).pow(2);
    let operations = 2 * pixels * channels * channels * kernel * kernel;
    let bytes = 4 * channels * (samples * side * side + pixels + channels * kernel * kernel);
    let padding = (kernel / 2, kernel / 2);
    let weight = Weight::from(weight);
    let body = move || ops::conv2d(&x, &weight, &bias, stride, padding).map(|y| drop(black_box(y)));
    let name = format!("conv {kernel}x{kernel} stride {stride} 2x320x64x64");
    Ok((name, operations as f64, bytes as f64, Box::new(body)))
}

fn pointwise(
    name: &str,
    shape: &[usize],
    apply: impl Fn(&Tensor) -> Result<Tensor> + 'static,
) -> Result<Case> {
    let x = random(shape)?;
    let bytes = 8 * x.elem_count();
    Ok((
        name.to_owned(),
        0.0,
        bytes as f64,
        Box::new(move || apply(&x).map(|y| drop(black_box(y)))),
    ))
}

fn gram_case(rows: usize, columns: usize) -> Result<Case> {
    let x = random(&[rows, columns])?.flatten_all()?.to_vec1::<f32>()?;
    let mut gram = vec![0f32; columns * columns];
    let operations = rows * columns * columns;
    let body = move || {
        gram::add_gram(rows, columns, |row| &x[row * columns..][..columns], |_| 1.0, &mut gram);
        black_box(&mut gram);
        Ok(())
    };
    Ok((
        format!("gram {rows}x{columns}"),
        operations as f64,
        4.0 * (rows * columns) as f64,
        Box::new(body),
    ))
}

fn cases() -> Result<Vec<Case>> {
    let image = [2, 320, 64, 64];
    let (weight, bias) = (random(&[320])?, random(&[320])?);
    let angles = random(&[4608, 128])?;
    let (group_weight, group_bias) = (weight.clone(), bias.clone());
    Ok(vec![
        linear(2048, 2048, 2048)?,
        linear(1024, 256, 256)?,
        linear(1024, 256, 1024)?,
        linear(1024, 1024, 256)?,
        linear(128, 256, 1024)?,
        linear(2, 256, 1536)?,
        attention(2, 8, 4096, 40)?,
        attention(2, 16, 256, 72)?,
        attention(16, 8, 128, 32)?,
        convolution(3, 1)?,
        convolution(3, 2)?,
        convolution(1, 1)?,
        pointwise("group norm 2x320x64x64", &image, move |x| {
            ops::group_norm(x, &group_weight, &group_bias, 32, 1e-5, false)
        })?,
        pointwise("layer norm 8192x320", &[8192, 320], move |x| {
            ops::layer_norm_affine(x, &weight, &bias, 1e-5)
        })?,
        pointwise("rope 4608x3072", &[1, 4608, 3072], move |x| ops::rope(x, &angles))?,
        pointwise("gelu 2x4096x1280", &[2, 4096, 1280], |x| ops::activation(Activation::Gelu, x))?,
        pointwise("gelu tanh 2x4096x1280", &[2, 4096, 1280], |x| {
            ops::activation(Activation::GeluTanh, x)
        })?,
        pointwise("silu 2x320x64x64", &image, |x| ops::activation(Activation::Silu, x))?,
        pointwise("softmax 16384x512", &[16384, 512], ops::softmax)?,
        gram_case(8192, 1536)?,
        gram_case(1024, 192)?,
        gram_case(1024, 256)?,
        gram_case(1024, 1024)?,
    ])
}

fn main() -> Result<()> {
    let (mut only, mut seconds) = (None, 1.0);
    let mut arguments = std::env::args().skip(1);
    while let (Some(name), Some(value)) = (arguments.next(), arguments.next()) {
        match name.as_str() {
            "--only" => only = Some(value),
            "--seconds" => seconds = value.parse().unwrap_or(seconds),
            _ => candle_core::bail!("{name} is not an option"),
        }
    }
    for (name, operations, bytes, mut body) in cases()? {
        if only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
            continue;
        }
        let best = time(seconds, &mut body)?;
        let (gflops, bandwidth) = (operations / best / 1e9, bytes / best / 1e9);
        println!(
            "{{\"case\": \"{name}\", \"seconds\": {best:e}, \"gflops\": {gflops:.1}, \
             \"gigabytes_per_second\": {bandwidth:.1}}}"
        );
    }
    Ok(())
}
