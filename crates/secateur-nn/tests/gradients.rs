//! Every op, and its gradient with respect to every input, against a plain f64 version and its
//! central differences, on every device: odd sizes, one row, no rows, several samples, views, and
//! inputs that no gradient is wanted of.

use candle_core::{D, DType, Device, Result, Tensor, Var};
use secateur_nn::ops::{self, Heads};
use secateur_nn::{Activation, devices, to_device};
use std::sync::Arc;

/// Greatest difference, relative to the largest element of the gradient, or to [`LEAST`] where that
/// is more.
const TOLERANCE: f64 = 1e-5;
/// What a gradient that all but cancels is measured by.
const LEAST: f64 = 0.1;
/// Half the distance of the two points of a difference.
const STEP: f64 = 1e-5;
/// Elements of an input that have a difference of their own; larger inputs also have one along a
/// random direction.
const ELEMENTS: usize = 600;
const EPS: f32 = 1e-5;
const KINDS: [Activation; 5] = [
    Activation::Silu,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::QuickGelu,
    Activation::Relu,
];

type Op = Box<dyn Fn(&[Tensor]) -> Result<Tensor>>;

/// Numbers of a normal-like spread, the same every time.
fn random(shape: &[usize], seed: u32) -> Tensor {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    let mut next = || {
        let mut sum = 0.0;
        for _ in 0..4 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            sum += (state >> 8) as f32 / (1 << 24) as f32 - 0.5;
        }
        sum * 1.7
    };
    let count = shape.iter().product::<usize>();
    Tensor::from_vec((0..count).map(|_| next()).collect::<Vec<f32>>(), shape, &Device::Cpu).unwrap()
}

fn randoms(shapes: &[&[usize]]) -> Vec<Tensor> {
    shapes.iter().zip(1..).map(|(shape, seed)| random(shape, seed)).collect()
}

fn wide(tensor: &Tensor) -> Vec<f64> {
    if tensor.elem_count() == 0 {
        return Vec::new();
    }
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn variables(inputs: &[Tensor]) -> Vec<Tensor> {
    inputs.iter().map(|input| Var::from_tensor(input).unwrap().into_inner()).collect()
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |largest, value| largest.max(value.abs()))
}

/// The cotangent that an output is multiplied with: the loss is the sum of the products.
fn cotangent(output: &Tensor) -> Tensor {
    random(output.dims(), 99).to_dtype(output.dtype()).unwrap().to_device(output.device()).unwrap()
}

/// The gradient of every one of `sources`, where it has one, for inputs that stem from them.
fn gradients(
    op: impl Fn(&[Tensor]) -> Result<Tensor>,
    inputs: &[Tensor],
    sources: &[Tensor],
) -> Result<Vec<Option<Tensor>>> {
    let output = op(inputs)?;
    let gradients = output.mul(&cotangent(&output))?.sum_all()?.backward()?;
    Ok(sources.iter().map(|source| gradients.get(source).cloned()).collect())
}

/// Checks output and gradients of `op` at random inputs of these shapes against `plain`, which is
/// the same in f64.
fn check(
    what: &str,
    shapes: &[&[usize]],
    op: impl Fn(&[Tensor]) -> Result<Tensor>,
    plain: impl Fn(&[Vec<f64>]) -> Vec<f64>,
) {
    check_at(&format!("{what} {shapes:?}"), &randoms(shapes), op, plain);
}

/// [`check`] at given inputs, on every device.
fn check_at(
    what: &str,
    inputs: &[Tensor],
    op: impl Fn(&[Tensor]) -> Result<Tensor>,
    plain: impl Fn(&[Vec<f64>]) -> Vec<f64>,
) {
    for device in devices() {
        let what = format!("{what} on {:?}", device.location());
        check_there(&what, &on(&device, inputs), &op, &plain);
    }
}

fn on(device: &Device, tensors: &[Tensor]) -> Vec<Tensor> {
    tensors.iter().map(|tensor| to_device(tensor, device).unwrap()).collect()
}

fn check_there(
    what: &str,
    inputs: &[Tensor],
    op: impl Fn(&[Tensor]) -> Result<Tensor>,
    plain: impl Fn(&[Vec<f64>]) -> Vec<f64>,
) {
    let points: Vec<Vec<f64>> = inputs.iter().map(wide).collect();
    let output = op(inputs).unwrap();
    let (got, want, cotangent) = (wide(&output), plain(&points), wide(&cotangent(&output)));
    assert_eq!(got.len(), want.len(), "{what}");
    let bound = TOLERANCE * largest(&want).max(1.0);
    for (i, (g, w)) in got.iter().zip(&want).enumerate() {
        assert!((g - w).abs() <= bound, "{what}, output[{i}]: {g} against {w}");
    }

    let variables = variables(inputs);
    let gradients = gradients(op, &variables, &variables).unwrap();
    for (index, (gradient, input)) in gradients.iter().zip(inputs).enumerate() {
        let Some(gradient) = gradient else { panic!("{what}: input {index} has no gradient") };
        assert_eq!(gradient.dims(), input.dims(), "{what}, input {index}");
        let gradient = wide(gradient);
        // Along the elements that `direction` lists with their share in it.
        let difference = |direction: &[(usize, f64)]| {
            let loss = |step: f64| -> f64 {
                let mut points = points.clone();
                direction.iter().for_each(|(i, share)| points[index][*i] += step * share);
                plain(&points).iter().zip(&cotangent).map(|(y, c)| y * c).sum()
            };
            (loss(STEP) - loss(-STEP)) / (2.0 * STEP)
        };
        let count = gradient.len();
        let bound = TOLERANCE * largest(&gradient).max(LEAST);
        for i in (0..count).step_by(count.div_ceil(ELEMENTS).max(1)) {
            let (got, want) = (gradient[i], difference(&[(i, 1.0)]));
            assert!(
                (got - want).abs() <= bound,
                "{what}, gradient of input {index}[{i}]: {got} against {want}"
            );
        }
        if count > ELEMENTS {
            let direction: Vec<(usize, f64)> =
                wide(&random(&[count], 77)).into_iter().enumerate().collect();
            let got: f64 = direction.iter().map(|(i, share)| gradient[*i] * share).sum();
            let (want, bound) = (difference(&direction), bound * (count as f64).sqrt());
            assert!(
                (got - want).abs() <= bound,
                "{what}, gradient of input {index}, summed: {got} against {want}"
            );
        }
    }
}

fn plain_linear(x: &[f64], weight: &[f64], bias: Option<&[f64]>, inputs: usize) -> Vec<f64> {
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

fn plain_activation(kind: Activation, x: f64) -> f64 {
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

fn activated(kind: Activation, x: &[f64]) -> Vec<f64> {
    x.iter().map(|&x| plain_activation(kind, x)).collect()
}

fn plain_geglu(x: &[f64], width: usize) -> Vec<f64> {
    let row = |row: &[f64]| -> Vec<f64> {
        let (values, gates) = row.split_at(width);
        values
            .iter()
            .zip(gates)
            .map(|(value, &gate)| value * plain_activation(Activation::Gelu, gate))
            .collect()
    };
    x.chunks(2 * width).flat_map(row).collect()
}

fn plain_softmax(x: &[f64]) -> Vec<f64> {
    let peak = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exponentials: Vec<f64> = x.iter().map(|x| (x - peak).exp()).collect();
    let total: f64 = exponentials.iter().sum();
    exponentials.iter().map(|x| x / total).collect()
}

/// (x - mean) / sqrt(variance + eps) of rows of `width`.
fn standardised(x: &[f64], width: usize) -> Vec<f64> {
    let row = |row: &[f64]| -> Vec<f64> {
        let mean = row.iter().sum::<f64>() / width as f64;
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
        row.iter().map(|x| (x - mean) / (variance + f64::from(EPS)).sqrt()).collect()
    };
    x.chunks(width).flat_map(row).collect()
}

fn plain_modulated(x: &[f64], scale: &[f64], shift: &[f64], rows: usize, width: usize) -> Vec<f64> {
    let at = |i: usize| i / (rows * width) * width + i % width;
    let normal = standardised(x, width).into_iter().enumerate();
    normal.map(|(i, y)| y * (1.0 + scale[at(i)]) + shift[at(i)]).collect()
}

fn plain_rms_norm(x: &[f64], weight: &[f64]) -> Vec<f64> {
    let row = |row: &[f64]| -> Vec<f64> {
        let square = row.iter().map(|x| x * x).sum::<f64>() / weight.len() as f64;
        row.iter().zip(weight).map(|(x, w)| x / (square + f64::from(EPS)).sqrt() * w).collect()
    };
    x.chunks(weight.len()).flat_map(row).collect()
}

fn plain_rope(x: &[f64], table: &[f64], heads: usize, width: usize) -> Vec<f64> {
    let turn = |(i, pair): (usize, &[f64])| {
        let at = i * 2 / (heads * width) * width % table.len() + i * 2 % width;
        let (cos, sin) = (table[at], table[at + 1]);
        [pair[0] * cos - pair[1] * sin, pair[0] * sin + pair[1] * cos]
    };
    x.chunks(2).enumerate().flat_map(turn).collect()
}

fn plain_group_norm(
    x: &[f64],
    weight: &[f64],
    bias: &[f64],
    groups: usize,
    area: usize,
) -> Vec<f64> {
    let channels = weight.len();
    let normal = standardised(x, channels / groups * area).into_iter().enumerate();
    normal.map(|(i, y)| y * weight[i / area % channels] + bias[i / area % channels]).collect()
}

fn plain_gated_add(x: &[f64], gate: &[f64], y: &[f64], rows: usize, width: usize) -> Vec<f64> {
    let at = |i: usize| i / (rows * width) * width + i % width;
    x.iter().zip(y).enumerate().map(|(i, (x, y))| x + gate[at(i)] * y).collect()
}

/// Samples, queries, keys, width and heads.
type Sizes = (usize, usize, usize, usize, usize);

fn plain_attention(
    [q, k, v]: [&[f64]; 3],
    sizes: Sizes,
    bias: Option<&[f32]>,
    causal: bool,
) -> Vec<f64> {
    let (samples, queries, keys, width, heads) = sizes;
    let (size, of_values) = (width / heads, v.len() / (samples * keys * heads));
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
            product / (size as f64).sqrt() + bias.map_or(0.0, |bias| f64::from(bias[key]))
        };
        let seen = if causal { keys.min(query + 1) } else { keys };
        let scores: Vec<f64> = (0..seen).map(score).collect();
        for (key, p) in plain_softmax(&scores).into_iter().enumerate() {
            output.iter_mut().zip(row(v, keys, key)).for_each(|(y, v)| *y += p * v);
        }
    }
    output
}

/// Stride, and padding before and after.
type Steps = (usize, (usize, usize));

fn plain_conv2d(
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

fn linear_op(t: &[Tensor]) -> Result<Tensor> {
    ops::linear(&t[0], &t[1].clone().into(), t.get(2), None)
}

fn linear_activated_op(kind: Activation, t: &[Tensor]) -> Result<Tensor> {
    ops::linear(&t[0], &t[1].clone().into(), t.get(2), Some(kind))
}

fn conv2d_op((stride, padding): Steps, t: &[Tensor]) -> Result<Tensor> {
    ops::conv2d(&t[0], &t[1].clone().into(), &t[2], stride, padding)
}

#[test]
fn linear() {
    for (samples, rows, inputs, outputs) in
        [(1, 1, 1, 1), (1, 1, 5, 3), (2, 3, 33, 17), (1, 5, 17, 33), (1, 131, 70, 65), (1, 0, 5, 4)]
    {
        let shapes: [&[usize]; 3] = [&[samples, rows, inputs], &[outputs, inputs], &[outputs]];
        check("linear", &shapes, linear_op, |p| plain_linear(&p[0], &p[1], Some(&p[2]), inputs));
        check("linear without bias", &shapes[..2], linear_op, |p| {
            plain_linear(&p[0], &p[1], None, inputs)
        });
    }
}

#[test]
fn linear_with_an_activation() {
    for kind in KINDS {
        for (rows, inputs, outputs) in [(1, 5, 3), (7, 17, 33)] {
            let shapes: [&[usize]; 3] = [&[rows, inputs], &[outputs, inputs], &[outputs]];
            let op = |t: &[Tensor]| linear_activated_op(kind, t);
            check(&format!("linear, {kind:?}"), &shapes, op, |p| {
                activated(kind, &plain_linear(&p[0], &p[1], Some(&p[2]), inputs))
            });
            check(&format!("linear without bias, {kind:?}"), &shapes[..2], op, |p| {
                activated(kind, &plain_linear(&p[0], &p[1], None, inputs))
            });
        }
    }
}

#[test]
fn conv2d() {
    for kernel in [1, 3] {
        for steps in [1, 2]
            .into_iter()
            .flat_map(|stride| [(0, 0), (1, 1), (0, 1)].map(|padding| (stride, padding)))
        {
            for (samples, channels, outputs, height, width) in
                [(1, 1, 1, 3, 3), (2, 3, 5, 7, 9), (1, 2, 17, 6, 5), (1, 9, 2, 4, 17)]
            {
                let (x, weight) =
                    ([samples, channels, height, width], [outputs, channels, kernel, kernel]);
                let op = |t: &[Tensor]| conv2d_op(steps, t);
                check(&format!("conv2d, {steps:?}"), &[&x, &weight, &[outputs]], op, |p| {
                    plain_conv2d(p, x, weight, steps)
                });
            }
        }
    }
}

#[test]
fn activation() {
    for kind in KINDS {
        let plain = |p: &[Vec<f64>]| activated(kind, &p[0]);
        for shape in [&[1][..], &[5], &[3, 17], &[2, 3, 33], &[4099]] {
            check(&format!("{kind:?}"), &[shape], |t| ops::activation(kind, &t[0]), plain);
        }
        let far: Vec<f32> = (-60..=60).map(|i| i as f32 * 0.5 + 0.03).collect();
        let far = Tensor::new(far, &Device::Cpu).unwrap();
        check_at(
            &format!("{kind:?} from -30 to 30"),
            &[far],
            |t| ops::activation(kind, &t[0]),
            plain,
        );

        let values = [-1e30f32, -1e10, -100.0, -30.0, 30.0, 100.0, 1e10, 1e30];
        let extreme = variables(&[Tensor::new(&values, &Device::Cpu).unwrap()]);
        let gradient = ops::activation(kind, &extreme[0]).unwrap().backward().unwrap();
        let gradient = wide(gradient.get(&extreme[0]).unwrap());
        for (x, gradient) in values.into_iter().zip(gradient) {
            let want = if x > 0.0 { 1.0 } else { 0.0 };
            assert!((gradient - want).abs() < 1e-6, "{kind:?}, gradient at {x}: {gradient}");
        }
    }
}

#[test]
fn geglu() {
    for (rows, width) in [(1, 1), (1, 5), (3, 17), (7, 33)] {
        check("geglu", &[&[rows, 2 * width]], |t| ops::geglu(&t[0]), |p| plain_geglu(&p[0], width));
    }
    let far: Vec<f32> = (0..34).map(|i| (i as f32 - 17.0) * 1.9).collect();
    let far = Tensor::from_vec(far, (1, 34), &Device::Cpu).unwrap();
    check_at("geglu from -30 to 30", &[far], |t| ops::geglu(&t[0]), |p| plain_geglu(&p[0], 17));
}

#[test]
fn softmax() {
    for (rows, width) in [(1, 1), (1, 5), (3, 17), (7, 33)] {
        let plain = |p: &[Vec<f64>]| p[0].chunks(width).flat_map(plain_softmax).collect();
        check("softmax", &[&[rows, width]], |t| ops::softmax(&t[0]), plain);
        let peaked = (random(&[rows, width], 1) * 10.0).unwrap();
        check_at("peaked softmax", &[peaked], |t| ops::softmax(&t[0]), plain);
    }
}

#[test]
fn upsample_nearest() {
    for [samples, channels, height, width] in [[1, 1, 1, 1], [2, 3, 5, 4], [1, 2, 3, 17]] {
        for factor in [2, 3] {
            let shape = [samples, channels, height, width];
            check(
                "upsampling",
                &[&shape],
                |t| ops::upsample_nearest(&t[0], factor),
                |p| {
                    let lines = p[0].chunks(width).flat_map(|line| vec![line; factor]);
                    lines.flat_map(|line| line.iter().flat_map(|&x| vec![x; factor])).collect()
                },
            );
        }
    }
}

#[test]
fn layer_norm_with_weights() {
    for (samples, rows, width) in
        [(1, 1, 1), (1, 1, 5), (2, 3, 17), (3, 5, 33), (1, 3, 0), (1, 0, 5)]
    {
        check(
            "layer norm",
            &[&[samples, rows, width], &[width], &[width]],
            |t| ops::layer_norm_affine(&t[0], &t[1], &t[2], EPS),
            |p| {
                let normal = standardised(&p[0], width.max(1)).into_iter().enumerate();
                normal.map(|(i, y)| y * p[1][i % width] + p[2][i % width]).collect()
            },
        );
    }
}

#[test]
fn layer_norm_modulated() {
    for (samples, rows, width) in [(1, 1, 1), (1, 1, 5), (2, 3, 17), (3, 5, 33), (2, 0, 5)] {
        check(
            "adaptive layer norm",
            &[&[samples, rows, width], &[samples, width], &[samples, width]],
            |t| ops::layer_norm_modulated(&t[0], &t[1], &t[2], EPS),
            |p| plain_modulated(&p[0], &p[1], &p[2], rows, width),
        );
    }
}

#[test]
fn rms_norm() {
    for (samples, rows, heads, width) in [
        (1, 1, 1, 1),
        (1, 1, 1, 5),
        (2, 3, 1, 17),
        (1, 5, 1, 33),
        (2, 3, 4, 5),
        (1, 1, 3, 17),
        (1, 0, 2, 5),
    ] {
        check(
            &format!("RMS norm of {heads} heads"),
            &[&[samples, rows, heads * width], &[width]],
            |t| ops::rms_norm(&t[0], &t[1], EPS),
            |p| plain_rms_norm(&p[0], &p[1]),
        );
    }
}

#[test]
fn rope() {
    for (samples, tokens, heads, width) in
        [(1, 1, 1, 2), (2, 3, 1, 6), (3, 5, 2, 4), (1, 7, 3, 34), (2, 0, 2, 4), (1, 4, 0, 2)]
    {
        check(
            &format!("rotary positions of {heads} heads"),
            &[&[samples, tokens, heads * width], &[tokens, width]],
            |t| ops::rope(&t[0], &t[1]),
            |p| plain_rope(&p[0], &p[1], heads, width),
        );
    }
}

#[test]
fn group_norm() {
    let cases: [(&[usize], usize); 6] = [
        (&[1, 1, 1, 5], 1),
        (&[1, 4, 3, 3], 2),
        (&[2, 6, 5, 3], 3),
        (&[3, 10, 1, 1], 2),
        (&[1, 6, 1, 1], 6),
        (&[2, 5, 17], 1),
    ];
    for (shape, groups) in cases {
        let (channels, area) = (shape[1], shape[2..].iter().product());
        let shapes: [&[usize]; 3] = [shape, &[channels], &[channels]];
        for silu in [false, true] {
            check(
                &format!("group norm, {groups} groups, SiLU {silu}"),
                &shapes,
                |t| ops::group_norm(&t[0], &t[1], &t[2], groups, EPS, silu),
                |p| {
                    let y = plain_group_norm(&p[0], &p[1], &p[2], groups, area);
                    if silu { activated(Activation::Silu, &y) } else { y }
                },
            );
        }
    }
}

#[test]
fn attention() {
    // Samples, queries, keys, heads, head width.
    let cases = [
        (1, 1, 1, 1, 1),
        (2, 5, 5, 3, 5),
        (1, 1, 7, 2, 17),
        (2, 9, 4, 2, 3),
        (1, 4, 33, 1, 5),
        (1, 35, 17, 2, 4),
        (1, 3, 530, 1, 2),
    ];
    for (samples, queries, keys, heads, head_dim) in cases {
        let width = heads * head_dim;
        let (q, k) = ([samples, queries, width], [samples, keys, width]);
        let mut hidden = random(&[keys], 9).to_vec1::<f32>().unwrap();
        if keys > 1 {
            hidden[keys / 2] = f32::NEG_INFINITY;
            hidden[keys - 1] = -1e4;
        }
        for bias in [None, Some(Arc::<[f32]>::from(hidden))] {
            for causal in [false, true] {
                check(
                    &format!(
                        "attention of {heads} heads, causal {causal}, bias {}",
                        bias.is_some()
                    ),
                    &[&q, &k, &k],
                    |t| {
                        ops::attention(
                            &t[0],
                            &t[1],
                            &t[2],
                            Heads::new(heads, head_dim),
                            bias.clone(),
                            causal,
                        )
                    },
                    |p| {
                        let sizes = (samples, queries, keys, width, heads);
                        plain_attention([&p[0], &p[1], &p[2]], sizes, bias.as_deref(), causal)
                    },
                );
            }
        }
    }
    // Heads of values that are of another width.
    for of_values in [1, 2, 7] {
        let v = [2, 4, 3 * of_values];
        check(
            &format!("attention to values of {of_values}"),
            &[&[2, 5, 12], &[2, 4, 12], &v],
            |t| ops::attention(&t[0], &t[1], &t[2], Heads::new(3, 4), None, false),
            |p| plain_attention([&p[0], &p[1], &p[2]], (2, 5, 4, 12, 3), None, false),
        );
    }
    // One tensor in all three places collects all three gradients.
    check(
        "self-attention",
        &[&[2, 5, 6]],
        |t| ops::attention(&t[0], &t[0], &t[0], Heads::new(2, 3), None, false),
        |p| plain_attention([&p[0]; 3], (2, 5, 5, 6, 2), None, false),
    );
}

#[test]
fn gated_add() {
    for (samples, rows, width) in [(1, 1, 1), (1, 1, 5), (2, 3, 17), (3, 5, 33), (2, 0, 5)] {
        check(
            "gated residual",
            &[&[samples, rows, width], &[samples, width], &[samples, rows, width]],
            |t| ops::gated_add(&t[0], &t[1], &t[2]),
            |p| plain_gated_add(&p[0], &p[1], &p[2], rows, width),
        );
    }
}

/// Every op once, with the shapes of its inputs.
fn every_op() -> Vec<(&'static str, Vec<Vec<usize>>, Op)> {
    fn op(f: impl Fn(&[Tensor]) -> Result<Tensor> + 'static) -> Op {
        Box::new(f)
    }
    let tokens = || vec![2, 3, 6];
    let image = || vec![2, 4, 5, 3];
    vec![
        ("linear", vec![tokens(), vec![5, 6], vec![5]], op(linear_op)),
        ("linear without bias", vec![tokens(), vec![5, 6]], op(linear_op)),
        (
            "linear with an activation",
            vec![tokens(), vec![5, 6], vec![5]],
            op(|t| linear_activated_op(Activation::Gelu, t)),
        ),
        ("conv2d", vec![image(), vec![3, 4, 3, 3], vec![3]], op(|t| conv2d_op((2, (1, 1)), t))),
        ("activation", vec![tokens()], op(|t| ops::activation(Activation::GeluTanh, &t[0]))),
        ("geglu", vec![tokens()], op(|t| ops::geglu(&t[0]))),
        ("softmax", vec![tokens()], op(|t| ops::softmax(&t[0]))),
        ("upsampling", vec![image()], op(|t| ops::upsample_nearest(&t[0], 2))),
        (
            "layer norm",
            vec![tokens(), vec![6], vec![6]],
            op(|t| ops::layer_norm_affine(&t[0], &t[1], &t[2], EPS)),
        ),
        (
            "adaptive layer norm",
            vec![tokens(), vec![2, 6], vec![2, 6]],
            op(|t| ops::layer_norm_modulated(&t[0], &t[1], &t[2], EPS)),
        ),
        ("RMS norm", vec![tokens(), vec![3]], op(|t| ops::rms_norm(&t[0], &t[1], EPS))),
        ("rotary positions", vec![tokens(), vec![3, 2]], op(|t| ops::rope(&t[0], &t[1]))),
        (
            "group norm",
            vec![image(), vec![4], vec![4]],
            op(|t| ops::group_norm(&t[0], &t[1], &t[2], 2, EPS, false)),
        ),
        (
            "group norm with SiLU",
            vec![image(), vec![4], vec![4]],
            op(|t| ops::group_norm(&t[0], &t[1], &t[2], 2, EPS, true)),
        ),
        (
            "group norm, channels last",
            vec![image(), vec![4], vec![4]],
            op(|t| ops::group_norm(&channels_last(&t[0])?, &t[1], &t[2], 2, EPS, true)),
        ),
        (
            "upsampling, channels last",
            vec![image()],
            op(|t| ops::upsample_nearest(&channels_last(&t[0])?, 2)),
        ),
        (
            "attention",
            vec![tokens(), vec![2, 4, 6], vec![2, 4, 6]],
            op(|t| ops::attention(&t[0], &t[1], &t[2], Heads::new(2, 3), None, false)),
        ),
        (
            "gated residual",
            vec![tokens(), vec![2, 6], tokens()],
            op(|t| ops::gated_add(&t[0], &t[1], &t[2])),
        ),
    ]
}

/// What is made of candle's operations, whatever the layout: these give gradients that nobody asks
/// for.
fn layouts() -> Vec<(&'static str, Vec<Vec<usize>>, Op)> {
    fn op(f: impl Fn(&[Tensor]) -> Result<Tensor> + 'static) -> Op {
        Box::new(f)
    }
    let image = || vec![2, 4, 5, 3];
    vec![
        ("sum", vec![image(), image()], op(|t| ops::add(&t[0], &t[1]))),
        (
            "sum, channels last",
            vec![image(), image()],
            op(|t| ops::add(&channels_last(&t[0])?, &channels_last(&t[1])?)),
        ),
        (
            "sum to channels, channels last",
            vec![image(), vec![2, 4]],
            op(|t| ops::add_to_channels(&channels_last(&t[0])?, &t[1])),
        ),
        ("sum to channels", vec![image(), vec![2, 4]], op(|t| ops::add_to_channels(&t[0], &t[1]))),
        (
            "channels of all, channels last",
            vec![image(), image()],
            op(|t| ops::cat_channels(&[channels_last(&t[0])?, channels_last(&t[1])?])),
        ),
        ("tokens", vec![image()], op(|t| ops::tokens(&channels_last(&t[0])?))),
        ("pixels", vec![vec![2, 3, 6]], op(|t| ops::pixels(&t[0], (1, 3)))),
    ]
}

/// The same picture with its channels together in memory.
fn channels_last(x: &Tensor) -> Result<Tensor> {
    x.permute((0, 2, 3, 1))?.contiguous()?.permute((0, 3, 1, 2))
}

fn inputs_of(shapes: &[Vec<usize>]) -> Vec<Tensor> {
    randoms(&shapes.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

/// Every op with the inputs that it takes, on every device.
fn every_op_and_device() -> Vec<(String, Vec<Tensor>, Op)> {
    let on_device = |device: Device| {
        every_op().into_iter().map(move |(what, shapes, op)| {
            let inputs = on(&device, &inputs_of(&shapes));
            (format!("{what} on {:?}", device.location()), inputs, op)
        })
    };
    devices().into_iter().flat_map(on_device).collect()
}

#[test]
fn inputs_that_are_not_tracked_get_no_gradient() {
    for (what, inputs, op) in every_op_and_device() {
        let tracked = variables(&inputs);
        let all = gradients(&op, &tracked, &tracked).unwrap();
        for which in 1..1 << inputs.len() {
            let is_tracked = |i: usize| (which >> i) & 1 == 1;
            let mixed: Vec<Tensor> = (0..inputs.len())
                .map(|i| if is_tracked(i) { tracked[i].clone() } else { inputs[i].clone() })
                .collect();
            for (i, gradient) in gradients(&op, &mixed, &mixed).unwrap().iter().enumerate() {
                assert_eq!(
                    gradient.is_some(),
                    is_tracked(i),
                    "{what}: input {i}, tracked {which:b}"
                );
                if let (Some(gradient), Some(want)) = (gradient, &all[i]) {
                    assert_eq!(wide(gradient), wide(want), "{what}: input {i}, tracked {which:b}");
                }
            }
        }
    }
}

#[test]
fn views_have_the_gradients_of_copies() {
    /// A view of the shape of what `spread` was given: every other element, dimensions in reverse.
    fn strided(source: &Tensor) -> Result<Tensor> {
        let view = source.narrow(D::Minus1, 1, 1)?.squeeze(D::Minus1)?;
        view.permute((0..view.rank()).rev().collect::<Vec<_>>())
    }
    /// A tensor that `strided` sees `values` in, and other numbers beside them.
    fn spread(values: &Tensor) -> Result<Tensor> {
        let reversed = values.permute((0..values.rank()).rev().collect::<Vec<_>>())?;
        let other = random(reversed.dims(), 55).to_device(values.device())?;
        Tensor::stack(&[&other, &reversed], D::Minus1)?.contiguous()
    }
    /// A contiguous view that starts behind the first element of the source.
    fn inner(source: &Tensor) -> Result<Tensor> {
        source.narrow(0, 1, source.dim(0)? - 2)
    }
    fn surrounded(values: &Tensor) -> Result<Tensor> {
        let edge = random(values.narrow(0, 0, 1)?.dims(), 55).to_device(values.device())?;
        Tensor::cat(&[&edge, values, &edge], 0)
    }
    type Change = fn(&Tensor) -> Result<Tensor>;
    let views: [(&str, Change, Change); 2] =
        [("strided", spread, strided), ("inner", surrounded, inner)];
    for (what, inputs, op) in every_op_and_device() {
        let copies = variables(&inputs);
        let want = gradients(&op, &copies, &copies).unwrap();
        for (name, source, view) in views {
            let sources =
                variables(&inputs.iter().map(|input| source(input).unwrap()).collect::<Vec<_>>());
            let views: Vec<Tensor> = sources.iter().map(|source| view(source).unwrap()).collect();
            assert!(name == "inner" || views.iter().all(|view| !view.is_contiguous()));
            for (i, gradient) in gradients(&op, &views, &sources).unwrap().iter().enumerate() {
                let (gradient, want) = (gradient.as_ref().unwrap(), want[i].as_ref().unwrap());
                assert_eq!(wide(&view(gradient).unwrap()), wide(want), "{what}: input {i}, {name}");
                // What the view leaves out has none.
                let total = |t: &Tensor| wide(t).iter().map(|g| g.abs()).sum::<f64>();
                let (sum, want) = (total(gradient), total(want));
                assert!(
                    (sum - want).abs() <= 1e-9 * want,
                    "{what}: input {i}, {name}: {sum} against {want}"
                );
            }
        }
    }
}

#[test]
fn gradients_of_the_output_may_have_any_layout() {
    for (what, inputs, op) in every_op_and_device() {
        let variables = variables(&inputs);
        let want = gradients(&op, &variables, &variables).unwrap();
        let turned = |t: &[Tensor]| op(t)?.transpose(0, 1);
        let output = op(&variables).unwrap();
        let cotangent = cotangent(&output).transpose(0, 1).unwrap();
        let loss = turned(&variables).unwrap().mul(&cotangent).unwrap().sum_all().unwrap();
        let got = loss.backward().unwrap();
        for (i, (variable, want)) in variables.iter().zip(&want).enumerate() {
            assert_eq!(
                wide(got.get(variable).unwrap()),
                wide(want.as_ref().unwrap()),
                "{what}: input {i}"
            );
        }
    }
}

/// Pictures of either layout have the same sums, channels and tokens.
#[test]
fn layouts_do_not_matter() {
    type Plain = fn(&[Tensor]) -> Result<Tensor>;
    let plain: [Plain; 7] = [
        |t| &t[0] + &t[1],
        |t| &t[0] + &t[1],
        |t| t[0].broadcast_add(&t[1].reshape((2, 4, 1, 1))?),
        |t| t[0].broadcast_add(&t[1].reshape((2, 4, 1, 1))?),
        |t| Tensor::cat(t, 1),
        |t| t[0].flatten_from(2)?.transpose(1, 2),
        |t| t[0].transpose(1, 2)?.reshape((2, 6, 1, 3)),
    ];
    for device in devices() {
        assert_eq!(layouts().len(), plain.len());
        for ((what, shapes, op), plain) in layouts().into_iter().zip(plain) {
            let inputs = inputs_of(&shapes);
            let (want, got) = (plain(&inputs).unwrap(), op(&on(&device, &inputs)).unwrap());
            assert_eq!(got.dims(), want.dims(), "{what}");
            assert_eq!(wide(&got), wide(&want), "{what} on {:?}", device.location());
        }
    }
}

#[test]
fn chain() {
    // An image through a convolution and group norm to tokens, adaptive norm, attention, a gated
    // residual and a gated layer.
    let (x, filter) = ([2, 3, 5, 4], [6, 3, 3, 3]);
    let (rows, width, heads) = (20, 6, 2);
    let shapes: [&[usize]; 14] = [
        &x,
        &filter,
        &[6],
        &[6],
        &[6],
        &[2, 6],
        &[2, 6],
        &[6, 6],
        &[6],
        &[3],
        &[2, 6],
        &[10, 6],
        &[10],
        &[5, 5],
    ];
    let steps = (1, (1, 1));
    check(
        "chain",
        &shapes,
        |t| {
            let image = conv2d_op(steps, &t[..3])?;
            let image = ops::group_norm(&image, &t[3], &t[4], 3, EPS, true)?;
            let tokens = image.flatten_from(2)?.transpose(1, 2)?;
            let normal = ops::layer_norm_modulated(&tokens, &t[5], &t[6], EPS)?;
            let q = linear_op(&[normal.clone(), t[7].clone(), t[8].clone()])?;
            let q = ops::rms_norm(&q, &t[9], EPS)?;
            let mixed = ops::attention(&q, &normal, &normal, Heads::new(heads, 3), None, false)?;
            let sum = ops::gated_add(&tokens, &t[10], &mixed)?;
            let hidden =
                linear_activated_op(Activation::GeluTanh, &[sum, t[11].clone(), t[12].clone()])?;
            linear_op(&[ops::softmax(&ops::geglu(&hidden)?)?, t[13].clone()])
        },
        |p| {
            let image = plain_conv2d(&p[..3], x, filter, steps);
            let image =
                activated(Activation::Silu, &plain_group_norm(&image, &p[3], &p[4], 3, rows));
            let turned = |i: usize| {
                image[i / (rows * width) * rows * width + i % width * rows + i / width % rows]
            };
            let tokens: Vec<f64> = (0..image.len()).map(turned).collect();
            let normal = plain_modulated(&tokens, &p[5], &p[6], rows, width);
            let q = plain_rms_norm(&plain_linear(&normal, &p[7], Some(&p[8]), width), &p[9]);
            let mixed =
                plain_attention([&q, &normal, &normal], (2, rows, rows, width, heads), None, false);
            let sum = plain_gated_add(&tokens, &p[10], &mixed, rows, width);
            let hidden =
                activated(Activation::GeluTanh, &plain_linear(&sum, &p[11], Some(&p[12]), width));
            let gated = plain_geglu(&hidden, 5);
            let shares: Vec<f64> = gated.chunks(5).flat_map(plain_softmax).collect();
            plain_linear(&shares, &p[13], None, 5)
        },
    );
}

/// In 16 bits, on the devices that compute so: against `f32` on the CPU, with the same inputs.
/// Gradients may differ by twice as much.
#[test]
fn half_precision() {
    let compare = |what: &str, want: &Tensor, got: &Tensor, tolerance: f64| {
        let (want, got) = (wide(want), wide(got));
        let scale = largest(&want).max(LEAST);
        for (i, (g, w)) in got.iter().zip(&want).enumerate() {
            let error = (g - w).abs() / scale;
            assert!(error <= tolerance, "{what}, [{i}]: {g} against {w}, largest {scale}");
        }
    };
    for device in devices().into_iter().filter(|device| !device.is_cpu()) {
        for (dtype, tolerance) in [(DType::BF16, 2e-2), (DType::F16, 3e-3)] {
            let ops = every_op().into_iter().chain(larger_ops()).chain(layouts());
            for (what, shapes, op) in ops {
                let what = format!("{what} of {shapes:?} in {dtype:?}");
                let halves: Vec<Tensor> =
                    inputs_of(&shapes).iter().map(|input| input.to_dtype(dtype).unwrap()).collect();
                let whole: Vec<Tensor> =
                    halves.iter().map(|input| input.to_dtype(DType::F32).unwrap()).collect();
                let there = on(&device, &halves);
                let (want, got) = (op(&whole).unwrap(), op(&there).unwrap());
                assert_eq!((got.dtype(), got.dims()), (dtype, want.dims()), "{what}");
                compare(&what, &want, &got, tolerance);
                let (whole, there) = (variables(&whole), variables(&there));
                compare(&format!("{what}, tracked"), &want, &op(&there).unwrap(), tolerance);
                let want = gradients(&op, &whole, &whole).unwrap();
                let got = gradients(&op, &there, &there).unwrap();
                for (i, (want, got)) in want.into_iter().zip(got).enumerate() {
                    let (want, got) = (want.unwrap(), got.unwrap());
                    compare(&format!("{what}, gradient {i}"), &want, &got, 2.0 * tolerance);
                }
            }
        }
    }
}

/// Ops of sizes that whole accesses divide, and of rows that a block holds in several.
fn larger_ops() -> Vec<(&'static str, Vec<Vec<usize>>, Op)> {
    fn op(f: impl Fn(&[Tensor]) -> Result<Tensor> + 'static) -> Op {
        Box::new(f)
    }
    let mut ops = Vec::new();
    for width in [64, 72, 320, 2432, 20_000] {
        let tokens = || vec![2, 3, width];
        ops.push((
            "layer norm",
            vec![tokens(), vec![width], vec![width]],
            op(|t| ops::layer_norm_affine(&t[0], &t[1], &t[2], EPS)),
        ));
        ops.push((
            "adaptive layer norm",
            vec![tokens(), vec![2, width], vec![2, width]],
            op(|t| ops::layer_norm_modulated(&t[0], &t[1], &t[2], EPS)),
        ));
        ops.push((
            "RMS norm",
            vec![tokens(), vec![width]],
            op(|t| ops::rms_norm(&t[0], &t[1], EPS)),
        ));
        ops.push(("softmax", vec![tokens()], op(|t| ops::softmax(&t[0]))));
        ops.push(("geglu", vec![tokens()], op(|t| ops::geglu(&t[0]))));
        ops.push((
            "gated residual",
            vec![tokens(), vec![2, width], tokens()],
            op(|t| ops::gated_add(&t[0], &t[1], &t[2])),
        ));
        ops.push((
            "linear with an activation",
            vec![tokens(), vec![40, width], vec![40]],
            op(|t| linear_activated_op(Activation::GeluTanh, t)),
        ));
    }
    ops.push((
        "rotary positions",
        vec![vec![2, 48, 256], vec![48, 64]],
        op(|t| ops::rope(&t[0], &t[1])),
    ));
    for (channels, groups) in [(64, 32), (320, 32), (2560, 32), (36, 4)] {
        for silu in [false, true] {
            let shapes = || vec![vec![2, channels, 33, 16], vec![channels], vec![channels]];
            ops.push((
                "group norm",
                shapes(),
                op(move |t| ops::group_norm(&t[0], &t[1], &t[2], groups, EPS, silu)),
            ));
            ops.push((
                "group norm, channels last",
                shapes(),
                op(move |t| {
                    ops::group_norm(&channels_last(&t[0])?, &t[1], &t[2], groups, EPS, silu)
                }),
            ));
        }
    }
    ops.push((
        "upsampling, channels last",
        vec![vec![2, 64, 5, 7]],
        op(|t| ops::upsample_nearest(&channels_last(&t[0])?, 2)),
    ));
    // Parts of what another operation made, as they lie.
    for (width, parts) in [(64, 6), (36, 3)] {
        ops.push((
            "adaptive layer norm by parts",
            vec![vec![2, 3, width], vec![2, parts, width]],
            op(move |t| {
                let part = |index| t[1].narrow(1, index, 1)?.squeeze(1);
                let y = ops::layer_norm_modulated(&t[0], &part(0)?, &part(2)?, EPS)?;
                ops::gated_add(&t[0], &part(1)?, &y)
            }),
        ));
        ops.push((
            "linear of a part",
            vec![vec![2, 9, width], vec![40, width], vec![40]],
            op(|t| linear_op(&[t[0].narrow(1, 2, 5)?, t[1].clone(), t[2].clone()])),
        ));
        for dim in 0..3 {
            ops.push((
                "joined",
                vec![vec![2, 3, width], vec![2, 3, width]],
                op(move |t| ops::cat(&[&t[0], &t[1], &t[0]], dim)),
            ));
        }
    }
    for steps in [(1, (1, 1)), (2, (1, 1)), (2, (0, 1)), (1, (0, 0))] {
        ops.push((
            "conv2d",
            vec![vec![2, 24, 13, 10], vec![40, 24, 3, 3], vec![40]],
            op(move |t| conv2d_op(steps, t)),
        ));
    }
    ops.push((
        "conv2d of few channels",
        vec![vec![1, 4, 16, 16], vec![3, 4, 3, 3], vec![3]],
        op(|t| conv2d_op((1, (1, 1)), t)),
    ));
    ops.push((
        "conv2d",
        vec![vec![2, 32, 16, 16], vec![40, 32, 3, 3], vec![40]],
        op(|t| conv2d_op((1, (1, 1)), t)),
    ));
    for width in [8, 40, 64, 72, 80, 96, 128, 160, 256] {
        ops.push((
            "attention",
            vec![vec![2, 70, 2 * width], vec![2, 130, 2 * width], vec![2, 130, 2 * width]],
            op(move |t| ops::attention(&t[0], &t[1], &t[2], Heads::new(2, width), None, false)),
        ));
    }
    // Heads of any width, of values too; keys that are hidden or weigh more; as many tokens as
    // there are in a tile, one more, and one.
    for (queries, keys, width, of_values) in
        [(70, 130, 5, 8), (64, 64, 37, 21), (65, 65, 64, 72), (1, 129, 33, 33), (300, 1, 80, 16)]
    {
        let shapes = || {
            let (queries, keys) = (vec![2, queries, 3 * width], vec![2, keys, 3 * width]);
            let values = vec![2, keys[1], 3 * of_values];
            vec![queries, keys, values]
        };
        let biases: Arc<[f32]> = (0..2 * keys)
            .map(|key| if key % 5 == 1 { -1e4 } else { (key % 7) as f32 / 3.0 })
            .collect();
        for bias in [None, Some(biases)] {
            for causal in [false, true] {
                let (bias, heads) = (bias.clone(), Heads::new(3, width));
                ops.push((
                    "attention of any width",
                    shapes(),
                    op(move |t| ops::attention(&t[0], &t[1], &t[2], heads, bias.clone(), causal)),
                ));
            }
        }
    }
    ops
}
