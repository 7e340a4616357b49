//! Every op, and its gradient with respect to every input, against a plain f64 version and its
//! central differences, on every device: odd sizes, one row, no rows, several samples, views, and
//! inputs that no gradient is wanted of.

#[path = "../../secateur-kernels/tests/common/numbers.rs"]
mod numbers;
#[path = "common/plain.rs"]
mod plain;

use candle_core::{D, DType, Device, Result, Tensor, Var};
use numbers::{random, wide, within};
use plain::Steps;
use secateur_nn::ops::{self, Heads};
use secateur_nn::{Activation, devices, to_device};

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

fn randoms(shapes: &[&[usize]]) -> Vec<Tensor> {
    shapes.iter().zip(1..).map(|(shape, seed)| random(shape, seed)).collect()
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
    within(TOLERANCE, &format!("{what}, output"), &output, &plain(&points));
    let cotangent = wide(&cotangent(&output));

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
        check("linear", &shapes, linear_op, |p| plain::linear(&p[0], &p[1], Some(&p[2]), inputs));
        check("linear without bias", &shapes[..2], linear_op, |p| {
            plain::linear(&p[0], &p[1], None, inputs)
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
                plain::activated(kind, &plain::linear(&p[0], &p[1], Some(&p[2]), inputs))
            });
            check(&format!("linear without bias, {kind:?}"), &shapes[..2], op, |p| {
                plain::activated(kind, &plain::linear(&p[0], &p[1], None, inputs))
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
                    plain::conv2d(p, x, weight, steps)
                });
            }
        }
    }
}

#[test]
fn activation() {
    for kind in KINDS {
        let plain = |p: &[Vec<f64>]| plain::activated(kind, &p[0]);
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
        check(
            "geglu",
            &[&[rows, 2 * width]],
            |t| ops::geglu(&t[0]),
            |p| plain::geglu(&p[0], width),
        );
    }
    let far: Vec<f32> = (0..34).map(|i| (i as f32 - 17.0) * 1.9).collect();
    let far = Tensor::from_vec(far, (1, 34), &Device::Cpu).unwrap();
    check_at("geglu from -30 to 30", &[far], |t| ops::geglu(&t[0]), |p| plain::geglu(&p[0], 17));
}

#[test]
fn softmax() {
    for (rows, width) in [(1, 1), (1, 5), (3, 17), (7, 33)] {
        let plain = |p: &[Vec<f64>]| p[0].chunks(width).flat_map(plain::softmax).collect();
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
                let normal = plain::standardised(&p[0], width.max(1), EPS).into_iter().enumerate();
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
            |p| plain::modulated(&p[0], [&p[1], &p[2]], (rows, width), EPS),
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
            |p| plain::rms_norm(&p[0], &p[1], EPS),
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
            |p| plain::rope(&p[0], &p[1], heads, width),
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
                    let y = plain::group_norm(&p[0], [&p[1], &p[2]], (groups, area), EPS);
                    if silu { plain::activated(Activation::Silu, &y) } else { y }
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
        let (width, sized) = (heads * head_dim, Heads::new(heads, head_dim));
        let (q, k) = ([samples, queries, width], [samples, keys, width]);
        let mut hidden = random(&[keys], 9).to_vec1::<f32>().unwrap();
        if keys > 1 {
            hidden[keys / 2] = f32::NEG_INFINITY;
            hidden[keys - 1] = -1e4;
        }
        for bias in [None, Some(&hidden)] {
            for causal in [false, true] {
                check(
                    &format!(
                        "attention of {heads} heads, causal {causal}, bias {}",
                        bias.is_some()
                    ),
                    &[&q, &k, &k],
                    |t| {
                        let bias = bias.map(|bias| Tensor::new(&bias[..], t[0].device()));
                        let bias = bias.transpose()?;
                        ops::attention(&t[0], &t[1], &t[2], sized, bias.as_ref(), causal)
                    },
                    |p| {
                        let tokens = (samples, queries, keys);
                        let [q, k, v] = [&p[0][..], &p[1], &p[2]];
                        plain::attention([q, k, v], tokens, sized, bias.map(|b| &b[..]), causal)
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
            |p| plain::attention([&p[0], &p[1], &p[2]], (2, 5, 4), Heads::new(3, 4), None, false),
        );
    }
    // One tensor in all three places collects all three gradients.
    check(
        "self-attention",
        &[&[2, 5, 6]],
        |t| ops::attention(&t[0], &t[0], &t[0], Heads::new(2, 3), None, false),
        |p| plain::attention([&p[0]; 3], (2, 5, 5), Heads::new(2, 3), None, false),
    );
}

#[test]
fn gated_add() {
    for (samples, rows, width) in [(1, 1, 1), (1, 1, 5), (2, 3, 17), (3, 5, 33), (2, 0, 5)] {
        check(
            "gated residual",
            &[&[samples, rows, width], &[samples, width], &[samples, rows, width]],
            |t| ops::gated_add(&t[0], &t[1], &t[2]),
            |p| plain::gated_add(&p[0], &p[1], &p[2], rows, width),
        );
    }
}

/// An op with the shapes of its inputs.
type Case = (&'static str, Vec<Vec<usize>>, Op);

fn case(
    what: &'static str,
    shapes: &[&[usize]],
    op: impl Fn(&[Tensor]) -> Result<Tensor> + 'static,
) -> Case {
    (what, shapes.iter().map(|shape| shape.to_vec()).collect(), Box::new(op))
}

/// Every op once.
fn every_op() -> Vec<Case> {
    let (tokens, image): (&[_], &[_]) = (&[2, 3, 6], &[2, 4, 5, 3]);
    vec![
        case("linear", &[tokens, &[5, 6], &[5]], linear_op),
        case("linear without bias", &[tokens, &[5, 6]], linear_op),
        case("linear with an activation", &[tokens, &[5, 6], &[5]], |t| {
            linear_activated_op(Activation::Gelu, t)
        }),
        case("conv2d", &[image, &[3, 4, 3, 3], &[3]], |t| conv2d_op((2, (1, 1)), t)),
        case("activation", &[tokens], |t| ops::activation(Activation::GeluTanh, &t[0])),
        case("geglu", &[tokens], |t| ops::geglu(&t[0])),
        case("softmax", &[tokens], |t| ops::softmax(&t[0])),
        case("upsampling", &[image], |t| ops::upsample_nearest(&t[0], 2)),
        case("layer norm", &[tokens, &[6], &[6]], |t| {
            ops::layer_norm_affine(&t[0], &t[1], &t[2], EPS)
        }),
        case("adaptive layer norm", &[tokens, &[2, 6], &[2, 6]], |t| {
            ops::layer_norm_modulated(&t[0], &t[1], &t[2], EPS)
        }),
        case("RMS norm", &[tokens, &[3]], |t| ops::rms_norm(&t[0], &t[1], EPS)),
        case("rotary positions", &[tokens, &[3, 2]], |t| ops::rope(&t[0], &t[1])),
        case("group norm", &[image, &[4], &[4]], |t| {
            ops::group_norm(&t[0], &t[1], &t[2], 2, EPS, false)
        }),
        case("group norm with SiLU", &[image, &[4], &[4]], |t| {
            ops::group_norm(&t[0], &t[1], &t[2], 2, EPS, true)
        }),
        case("group norm, channels last", &[image, &[4], &[4]], |t| {
            ops::group_norm(&channels_last(&t[0])?, &t[1], &t[2], 2, EPS, true)
        }),
        case("upsampling, channels last", &[image], |t| {
            ops::upsample_nearest(&channels_last(&t[0])?, 2)
        }),
        case("attention", &[tokens, &[2, 4, 6], &[2, 4, 6]], |t| {
            ops::attention(&t[0], &t[1], &t[2], Heads::new(2, 3), None, false)
        }),
        case("gated residual", &[tokens, &[2, 6], tokens], |t| ops::gated_add(&t[0], &t[1], &t[2])),
    ]
}

/// What is made of candle's operations, whatever the layout: these give gradients that nobody asks
/// for.
fn layouts() -> Vec<Case> {
    let image: &[_] = &[2, 4, 5, 3];
    vec![
        case("sum", &[image, image], |t| ops::add(&t[0], &t[1])),
        case("sum, channels last", &[image, image], |t| {
            ops::add(&channels_last(&t[0])?, &channels_last(&t[1])?)
        }),
        case("sum to channels, channels last", &[image, &[2, 4]], |t| {
            ops::add_to_channels(&channels_last(&t[0])?, &t[1])
        }),
        case("sum to channels", &[image, &[2, 4]], |t| ops::add_to_channels(&t[0], &t[1])),
        case("channels of all, channels last", &[image, image], |t| {
            ops::cat_channels(&[channels_last(&t[0])?, channels_last(&t[1])?])
        }),
        case("tokens", &[image], |t| ops::tokens(&channels_last(&t[0])?)),
        case("pixels", &[&[2, 3, 6]], |t| ops::pixels(&t[0], (1, 3))),
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
            let image = plain::conv2d(&p[..3], x, filter, steps);
            let image = plain::activated(
                Activation::Silu,
                &plain::group_norm(&image, [&p[3], &p[4]], (3, rows), EPS),
            );
            let turned = |i: usize| {
                image[i / (rows * width) * rows * width + i % width * rows + i / width % rows]
            };
            let tokens: Vec<f64> = (0..image.len()).map(turned).collect();
            let normal = plain::modulated(&tokens, [&p[5], &p[6]], (rows, width), EPS);
            let q = plain::rms_norm(&plain::linear(&normal, &p[7], Some(&p[8]), width), &p[9], EPS);
            let mixed = plain::attention(
                [&q, &normal, &normal],
                (2, rows, rows),
                Heads::new(heads, 3),
                None,
                false,
            );
            let sum = plain::gated_add(&tokens, &p[10], &mixed, rows, width);
            let hidden = plain::activated(
                Activation::GeluTanh,
                &plain::linear(&sum, &p[11], Some(&p[12]), width),
            );
            let gated = plain::geglu(&hidden, 5);
            let shares: Vec<f64> = gated.chunks(5).flat_map(plain::softmax).collect();
            plain::linear(&shares, &p[13], None, 5)
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
fn larger_ops() -> Vec<Case> {
    let mut ops = Vec::new();
    for width in [64, 72, 320, 2432, 20_000] {
        let tokens: &[_] = &[2, 3, width];
        ops.push(case("layer norm", &[tokens, &[width], &[width]], |t| {
            ops::layer_norm_affine(&t[0], &t[1], &t[2], EPS)
        }));
        ops.push(case("adaptive layer norm", &[tokens, &[2, width], &[2, width]], |t| {
            ops::layer_norm_modulated(&t[0], &t[1], &t[2], EPS)
        }));
        ops.push(case("RMS norm", &[tokens, &[width]], |t| ops::rms_norm(&t[0], &t[1], EPS)));
        ops.push(case("softmax", &[tokens], |t| ops::softmax(&t[0])));
        ops.push(case("geglu", &[tokens], |t| ops::geglu(&t[0])));
        ops.push(case("product of pairs", &[tokens, tokens], |t| ops::multiply(&t[0], &t[1])));
        ops.push(case("gated residual", &[tokens, &[2, width], tokens], |t| {
            ops::gated_add(&t[0], &t[1], &t[2])
        }));
        ops.push(case("linear with an activation", &[tokens, &[40, width], &[40]], |t| {
            linear_activated_op(Activation::GeluTanh, t)
        }));
    }
    ops.push(case("rotary positions", &[&[2, 48, 256], &[48, 64]], |t| ops::rope(&t[0], &t[1])));
    for (channels, groups) in [(64, 32), (320, 32), (2560, 32), (36, 4)] {
        for silu in [false, true] {
            let shapes: [&[_]; 3] = [&[2, channels, 33, 16], &[channels], &[channels]];
            ops.push(case("group norm", &shapes, move |t| {
                ops::group_norm(&t[0], &t[1], &t[2], groups, EPS, silu)
            }));
            ops.push(case("group norm, channels last", &shapes, move |t| {
                ops::group_norm(&channels_last(&t[0])?, &t[1], &t[2], groups, EPS, silu)
            }));
        }
    }
    ops.push(case("upsampling, channels last", &[&[2, 64, 5, 7]], |t| {
        ops::upsample_nearest(&channels_last(&t[0])?, 2)
    }));
    // Parts of what another operation made, as they lie.
    for (width, parts) in [(64, 6), (36, 3)] {
        ops.push(case(
            "adaptive layer norm by parts",
            &[&[2, 3, width], &[2, parts, width]],
            move |t| {
                let part = |index| t[1].narrow(1, index, 1)?.squeeze(1);
                let y = ops::layer_norm_modulated(&t[0], &part(0)?, &part(2)?, EPS)?;
                ops::gated_add(&t[0], &part(1)?, &y)
            },
        ));
        ops.push(case("linear of a part", &[&[2, 9, width], &[40, width], &[40]], |t| {
            linear_op(&[t[0].narrow(1, 2, 5)?, t[1].clone(), t[2].clone()])
        }));
        for dim in 0..3 {
            ops.push(case("joined", &[&[2, 3, width], &[2, 3, width]], move |t| {
                ops::cat(&[&t[0], &t[1], &t[0]], dim)
            }));
        }
    }
    for steps in [(1, (1, 1)), (2, (1, 1)), (2, (0, 1)), (1, (0, 0))] {
        ops.push(case("conv2d", &[&[2, 24, 13, 10], &[40, 24, 3, 3], &[40]], move |t| {
            conv2d_op(steps, t)
        }));
    }
    ops.push(case("conv2d of few channels", &[&[1, 4, 16, 16], &[3, 4, 3, 3], &[3]], |t| {
        conv2d_op((1, (1, 1)), t)
    }));
    ops.push(case("conv2d", &[&[2, 32, 16, 16], &[40, 32, 3, 3], &[40]], |t| {
        conv2d_op((1, (1, 1)), t)
    }));
    for width in [8, 40, 64, 72, 80, 96, 128, 160, 256] {
        ops.push(case(
            "attention",
            &[&[2, 70, 2 * width], &[2, 130, 2 * width], &[2, 130, 2 * width]],
            move |t| ops::attention(&t[0], &t[1], &t[2], Heads::new(2, width), None, false),
        ));
    }
    // Heads of any width, of values too; keys that weigh more, or that are hidden beside others (of
    // a score of 1e4, f32 keeps 1e-3, which would show in gradients where all keys are hidden); as
    // many tokens as there are in a tile, one more, and one.
    for (queries, keys, width, of_values) in
        [(70, 130, 5, 8), (64, 64, 37, 21), (65, 65, 64, 72), (1, 129, 33, 33), (300, 1, 80, 16)]
    {
        let shapes: [&[usize]; 3] =
            [&[2, queries, 3 * width], &[2, keys, 3 * width], &[2, keys, 3 * of_values]];
        let biases: Vec<f32> = (0..2 * keys)
            .map(|key| if key % 5 == 1 && keys > 1 { -1e4 } else { (key % 7) as f32 / 3.0 })
            .collect();
        let biases = Tensor::from_vec(biases, (2, keys), &Device::Cpu).unwrap();
        for bias in [None, Some(biases)] {
            for causal in [false, true] {
                let (bias, heads) = (bias.clone(), Heads::new(3, width));
                ops.push(case("attention of any width", &shapes, move |t| {
                    let bias = bias.as_ref().map(|bias| to_device(bias, t[0].device()));
                    let bias = bias.transpose()?;
                    ops::attention(&t[0], &t[1], &t[2], heads, bias.as_ref(), causal)
                }));
            }
        }
        // The first half of the keys hidden, all of a tile and more; or all but the last one, from
        // every other query.
        for hidden in [f32::NEG_INFINITY, f32::MIN, -1e12] {
            let half: Vec<f32> =
                (0..keys).map(|key| if key < keys / 2 { hidden } else { 0.0 }).collect();
            ops.push(case("attention of hidden keys", &shapes, move |t| {
                let heads = Heads::new(3, width);
                let half = Tensor::new(half.as_slice(), t[0].device())?;
                ops::attention(&t[0], &t[1], &t[2], heads, Some(&half), false)
            }));
        }
        let hides = move |index| index / keys % 2 == 1 && index % keys < keys - 1;
        ops.push(case("attention of hidden keys, by query", &shapes, move |t| {
            let bias = (0..queries * keys)
                .map(|index| if hides(index) { f32::NEG_INFINITY } else { 0.0 })
                .collect::<Vec<f32>>();
            let bias = Tensor::from_vec(bias, (1, 1, queries, keys), t[0].device())?;
            ops::biased_attention(&t[0], &t[1], &t[2], Heads::new(3, width), &bias)
        }));
        for sizes in [[2, 3, queries, keys], [1, 3, queries, keys], [2, 1, 1, keys]] {
            ops.push(case("attention with a bias", &shapes, move |t| {
                let bias = to_device(&random(&sizes, 17), t[0].device())?;
                ops::biased_attention(&t[0], &t[1], &t[2], Heads::new(3, width), &bias)
            }));
        }
    }
    ops
}
