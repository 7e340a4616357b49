//! Plain f64 versions of the operations.

use secateur_nn::Activation;
use secateur_nn::ops::Heads;

pub(crate) fn linear(x: &[f64], weight: &[f64], bias: Option<&[f64]>, inputs: usize) -> Vec<f64> {
    let product = |x: &[f64], weight: &[f64]| x.iter().zip(weight).map(|(x, w)| x * w).sum::<f64>();
    let row = |x: &[f64]| -> Vec<f64> {
        let outputs = weight.chunks(inputs).enumerate();
        outputs.map(|(o, weight)| product(x, weight) + bias.map_or(0.0, |bias| bias[o])).collect()
    };
    x.chunks(inputs).flat_map(row).collect()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The error function, by a series of terms of one sign.
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= 2.0 * x * x / f64::from(2 * n + 1);
        sum += term;
    }
    2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
}

pub(crate) fn activation(kind: Activation, x: f64) -> f64 {
    match kind {
        Activation::Silu => x * sigmoid(x),
        Activation::QuickGelu => x * sigmoid(1.702 * x),
        Activation::GeluTanh => {
            0.5 * x
                * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
        Activation::Gelu => 0.5 * x * (1.0 + erf(x / 2f64.sqrt())),
        Activation::Relu => x.max(0.0),
    }
}

pub(crate) fn activated(kind: Activation, x: &[f64]) -> Vec<f64> {
    x.iter().map(|&x| activation(kind, x)).collect()
}

pub(crate) fn geglu(x: &[f64], width: usize) -> Vec<f64> {
    let row = |row: &[f64]| -> Vec<f64> {
        let (values, gates) = row.split_at(width);
        values
            .iter()
            .zip(gates)
            .map(|(value, &gate)| value * activation(Activation::Gelu, gate))
            .collect()
    };
    x.chunks(2 * width).flat_map(row).collect()
}

pub(crate) fn softmax(x: &[f64]) -> Vec<f64> {
    let peak = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exponentials: Vec<f64> = x.iter().map(|x| (x - peak).exp()).collect();
    let total: f64 = exponentials.iter().sum();
    exponentials.iter().map(|x| x / total).collect()
}

/// (x - mean) / sqrt(variance + eps) of rows of `width`.
pub(crate) fn standardised(x: &[f64], width: usize, eps: f32) -> Vec<f64> {
    let row = |row: &[f64]| -> Vec<f64> {
        let mean = row.iter().sum::<f64>() / width as f64;
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
        row.iter().map(|x| (x - mean) / (variance + f64::from(eps)).sqrt()).collect()
    };
    x.chunks(width).flat_map(row).collect()
}

pub(crate) fn modulated(
    x: &[f64],
    [scale, shift]: [&[f64]; 2],
    (rows, width): (usize, usize),
    eps: f32,
) -> Vec<f64> {
    let at = |i: usize| i / (rows * width) * width + i % width;
    let normal = standardised(x, width, eps).into_iter().enumerate();
    normal.map(|(i, y)| y * (1.0 + scale[at(i)]) + shift[at(i)]).collect()
}

pub(crate) fn rms_norm(x: &[f64], weight: &[f64], eps: f32) -> Vec<f64> {
    let row = |row: &[f64]| -> Vec<f64> {
        let square = row.iter().map(|x| x * x).sum::<f64>() / weight.len() as f64;
        row.iter().zip(weight).map(|(x, w)| x / (square + f64::from(eps)).sqrt() * w).collect()
    };
    x.chunks(weight.len()).flat_map(row).collect()
}

pub(crate) fn rope(x: &[f64], table: &[f64], heads: usize, width: usize) -> Vec<f64> {
    let turn = |(i, pair): (usize, &[f64])| {
        let at = i * 2 / (heads * width) * width % table.len() + i * 2 % width;
        let (cos, sin) = (table[at], table[at + 1]);
        [pair[0] * cos - pair[1] * sin, pair[0] * sin + pair[1] * cos]
    };
    x.chunks(2).enumerate().flat_map(turn).collect()
}

pub(crate) fn group_norm(
    x: &[f64],
    [weight, bias]: [&[f64]; 2],
    (groups, area): (usize, usize),
    eps: f32,
) -> Vec<f64> {
    let channels = weight.len();
    let normal = standardised(x, channels / groups * area, eps).into_iter().enumerate();
    normal.map(|(i, y)| y * weight[i / area % channels] + bias[i / area % channels]).collect()
}

pub(crate) fn gated_add(x: &[f64], gate: &[f64], y: &[f64], rows: usize, width: usize) -> Vec<f64> {
    let at = |i: usize| i / (rows * width) * width + i % width;
    x.iter().zip(y).enumerate().map(|(i, (x, y))| x + gate[at(i)] * y).collect()
}

pub(crate) fn attention(
    [q, k, v]: [&[f64]; 3],
    (samples, queries, keys): (usize, usize, usize),
    Heads { count: heads, scale }: Heads,
    bias: Option<&[f32]>,
    causal: bool,
) -> Vec<f64> {
    let of_values = v.len() / (samples * keys * heads);
    let mut output = vec![0.0; samples * queries * heads * of_values];
    for (at, output) in output.chunks_mut(of_values).enumerate() {
        let (sample, query, head) = (at / heads / queries, at / heads % queries, at % heads);
        let row = |data: &[f64], tokens: usize, token: usize| -> Vec<f64> {
            let size = data.len() / (samples * tokens * heads);
            data[((sample * tokens + token) * heads + head) * size..][..size].to_vec()
        };
        let q = row(q, queries, query);
        let score = |key: usize| {
            let product: f64 = q.iter().zip(row(k, keys, key)).map(|(q, k)| q * k).sum();
            product * f64::from(scale) + bias.map_or(0.0, |bias| f64::from(bias[key]))
        };
        let seen = if causal { keys.min(query + 1) } else { keys };
        let scores: Vec<f64> = (0..seen).map(score).collect();
        for (key, p) in softmax(&scores).into_iter().enumerate() {
            output.iter_mut().zip(row(v, keys, key)).for_each(|(y, v)| *y += p * v);
        }
    }
    output
}

/// Stride, and padding before and after.
pub(crate) type Steps = (usize, (usize, usize));

pub(crate) fn conv2d(
    inputs: &[Vec<f64>],
    x_dims: [usize; 4],
    weight_dims: [usize; 4],
    steps: Steps,
) -> Vec<f64> {
    let ([samples, channels, height, width], [outputs, _, kernel, _]) = (x_dims, weight_dims);
    let [x, weight, bias] = inputs else { panic!("three inputs") };
    let (stride, (before, after)) = steps;
    let side = |n: usize| (n + before + after - kernel) / stride + 1;
    let mut y = Vec::new();
    for (n, o) in (0..samples).flat_map(|n| (0..outputs).map(move |o| (n, o))) {
        for (row, column) in
            (0..side(height)).flat_map(|row| (0..side(width)).map(move |column| (row, column)))
        {
            let mut sum = bias[o];
            for tap in 0..channels * kernel * kernel {
                let (c, ky, kx) = (tap / (kernel * kernel), tap / kernel % kernel, tap % kernel);
                let from = (
                    (row * stride + ky).wrapping_sub(before),
                    (column * stride + kx).wrapping_sub(before),
                );
                if from.0 < height && from.1 < width {
                    let pixel = x[((n * channels + c) * height + from.0) * width + from.1];
                    sum += pixel * weight[o * channels * kernel * kernel + tap];
                }
            }
            y.push(sum);
        }
    }
    y
}
