//! Times single operations on a GPU in `bf16`: `operations [PART OF A NAME]` prints a line of CSV
//! for each case: its name, milliseconds, TFLOP/s and GB/s. `bench/gpu/operations.py` does the same
//! in PyTorch, by the same names.

#![expect(clippy::print_stdout, reason = "a benchmark tells its figures")]

use candle_core::{DType, Device, Result, Tensor, Var, bail};
use secateur_nn::ops::{self, Heads, RowSums, Rows};
use secateur_nn::{Activation, Weight};
use std::cell::RefCell;
use std::time::Instant;

/// A case: its name, floating-point operations, bytes read and written, and itself.
struct Case {
    name: String,
    operations: usize,
    bytes: usize,
    body: Box<dyn Fn() -> Result<Tensor>>,
}

impl Case {
    fn new(
        name: String,
        (operations, bytes): (usize, usize),
        body: impl Fn() -> Result<Tensor> + 'static,
    ) -> Self {
        Self { name, operations, bytes, body: Box::new(body) }
    }
}

/// Makes tensors of normal numbers on a GPU.
struct Gpu(Device);

impl Gpu {
    fn random(&self, shape: &[usize]) -> Result<Tensor> {
        Tensor::randn(0f32, 1f32, shape, &self.0)?.to_dtype(DType::BF16)
    }

    /// A picture whose channels lie together.
    fn picture(&self, samples: usize, channels: usize, side: usize) -> Result<Tensor> {
        self.random(&[samples, side, side, channels])?.permute((0, 3, 1, 2))
    }

    fn linear(&self, rows: usize, inputs: usize, outputs: usize, gelu: bool) -> Result<Case> {
        let (x, bias) = (self.random(&[rows, inputs])?, self.random(&[outputs])?);
        let weight = Weight::from(self.random(&[outputs, inputs])?);
        let kind = gelu.then_some(Activation::GeluTanh);
        Ok(Case::new(
            format!("linear{} {rows}x{inputs}x{outputs}", if gelu { " gelu" } else { "" }),
            (2 * rows * inputs * outputs, 2 * (rows * inputs + inputs * outputs + rows * outputs)),
            move || ops::linear(&x, &weight, Some(&bias), kind),
        ))
    }

    fn attention(
        &self,
        (samples, heads, queries, keys, width): (usize, usize, usize, usize, usize),
        kind: Attention,
    ) -> Result<Case> {
        let tokens = |tokens| self.random(&[samples, tokens, heads * width]);
        let (q, k, v) = (tokens(queries)?, tokens(keys)?, tokens(keys)?);
        // What is tracked is computed by our own kernels.
        let tracked = Var::from_tensor(&q)?;
        let all = Heads::new(heads, width);
        let products = samples * heads * queries * keys * width;
        let (name, operations) = match kind {
            Attention::Forward => ("attention", 4 * products),
            Attention::Own => ("own attention", 4 * products),
            Attention::Backward => ("attention with gradients", 14 * products),
        };
        Ok(Case::new(
            format!("{name} {samples}x{heads}x{queries}x{keys}x{width}"),
            (operations, 4 * samples * heads * (queries + keys) * width),
            move || match kind {
                Attention::Forward => ops::attention(&q, &k, &v, all, None, false),
                Attention::Own => ops::attention(&tracked, &k, &v, all, None, false),
                Attention::Backward => {
                    let (k, v) = (Var::from_tensor(&k)?, Var::from_tensor(&v)?);
                    let y = ops::attention(&tracked, &k, &v, all, None, false)?;
                    let gradients = y.backward()?;
                    gradients.get(&tracked).map_or_else(|| bail!("no gradient"), |g| Ok(g.clone()))
                }
            },
        ))
    }

    fn convolution(&self, samples: usize, channels: usize, side: usize) -> Result<Case> {
        let x = self.picture(samples, channels, side)?;
        let weight = Weight::from(self.random(&[channels, channels, 3, 3])?);
        let bias = self.random(&[channels])?;
        Ok(Case::new(
            format!("convolution {samples}x{channels}x{side}"),
            (
                2 * 9 * samples * side * side * channels * channels,
                4 * samples * side * side * channels,
            ),
            move || ops::conv2d(&x, &weight, &bias, 1, (1, 1)),
        ))
    }

    /// The sums of a calibration over `taken` of `rows` rows.
    fn row_sums(&self, rows: usize, taken: usize, width: usize) -> Result<Case> {
        let x = self.random(&[rows, width])?;
        let places = (0..taken).map(|row| row * rows / taken).collect();
        let (rows_of_x, sums) = (Rows::new(places, vec![1.0; taken]), RowSums::new(width));
        let sums = RefCell::new(sums);
        Ok(Case::new(
            format!("row sums {taken} of {rows}x{width}"),
            (taken * width * (width + 1), 2 * taken * width + 4 * width * (width + 1)),
            move || {
                sums.borrow_mut().add(&x, &rows_of_x, 1.0)?;
                Ok(x.clone())
            },
        ))
    }

    /// An operation whose time is that of reading `x` and writing a result of `result` numbers.
    fn pass(
        name: &str,
        x: Tensor,
        result: usize,
        apply: impl Fn(&Tensor) -> Result<Tensor> + 'static,
    ) -> Case {
        let bytes = 2 * (x.elem_count() + result);
        Case::new(name.to_owned(), (0, bytes), move || apply(&x))
    }

    fn passes(&self) -> Result<Vec<Case>> {
        let (rows, width) = (8858, 2432);
        let (weight, bias) = (self.random(&[width])?, self.random(&[width])?);
        let (scale, shift) = (self.random(&[2, width])?, self.random(&[2, width])?);
        let (gate, other) = (scale.clone(), self.random(&[2, rows / 2, width])?);
        let tokens = || self.random(&[2, rows / 2, width]);
        let count = rows * width;
        let of_head = self.random(&[64])?;
        let table = Tensor::randn(0f32, 1f32, (4608, 128), &self.0)?;
        let (group_weight, group_bias) = (self.random(&[320])?, self.random(&[320])?);
        Ok(vec![
            Self::pass("layer norm 8858x2432", tokens()?, count, move |x| {
                ops::layer_norm_affine(x, &weight, &bias, 1e-5)
            }),
            Self::pass("layer norm modulated 8858x2432", tokens()?, count, move |x| {
                ops::layer_norm_modulated(x, &scale, &shift, 1e-6)
            }),
            Self::pass("gated add 8858x2432", tokens()?, 2 * count, move |x| {
                ops::gated_add(x, &gate, &other)
            }),
            Self::pass("rms norm 8858x38x64", self.random(&[rows * 38, 64])?, count, move |x| {
                ops::rms_norm(x, &of_head, 1e-6)
            }),
            Self::pass("gelu tanh 8858x9728", self.random(&[rows, 9728])?, 4 * count, |x| {
                ops::activation(Activation::GeluTanh, x)
            }),
            Self::pass("geglu 8192x2560", self.random(&[8192, 5120])?, 8192 * 2560, |x| {
                ops::geglu(x)
            }),
            Self::pass("rope 4608x24x128", self.random(&[1, 4608, 3072])?, 4608 * 3072, move |x| {
                ops::rope(x, &table)
            }),
            Self::pass("softmax 16384x512", self.random(&[16384, 512])?, 16384 * 512, |x| {
                ops::softmax(x)
            }),
            Self::pass(
                "group norm silu 2x320x128",
                self.picture(2, 320, 128)?,
                2 * 320 * 128 * 128,
                move |x| ops::group_norm(x, &group_weight, &group_bias, 32, 1e-5, true),
            ),
            Self::pass("upsample 2x640x64", self.picture(2, 640, 64)?, 8 * 640 * 64 * 64, |x| {
                ops::upsample_nearest(x, 2)
            }),
        ])
    }
}

/// Which attention is timed.
#[derive(Clone, Copy)]
enum Attention {
    /// What a model's forward pass takes.
    Forward,
    /// The project's own kernel.
    Own,
    /// With the gradients of all three inputs.
    Backward,
}

fn cases(gpu: &Gpu) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for (rows, inputs, outputs) in [
        (8858, 2432, 2432),
        (8858, 2432, 9728),
        (8858, 9728, 2432),
        (4608, 3072, 12288),
        (4608, 15360, 3072),
    ] {
        cases.push(gpu.linear(rows, inputs, outputs, false)?);
    }
    cases.push(gpu.linear(8858, 2432, 9728, true)?);
    let shapes = [
        (2, 38, 4429, 4429, 64),
        (2, 24, 4429, 4429, 64),
        (1, 24, 4608, 4608, 128),
        (2, 10, 4096, 4096, 64),
        (2, 8, 4096, 4096, 40),
        (2, 8, 4096, 77, 40),
        (2, 20, 1024, 1024, 64),
    ];
    for kind in [Attention::Forward, Attention::Own] {
        for shape in shapes {
            cases.push(gpu.attention(shape, kind)?);
        }
    }
    for shape in [shapes[1], shapes[2]] {
        cases.push(gpu.attention(shape, Attention::Backward)?);
    }
    for (samples, channels, side) in
        [(2, 320, 128), (2, 640, 64), (2, 1280, 32), (1, 512, 512), (2, 320, 64)]
    {
        cases.push(gpu.convolution(samples, channels, side)?);
    }
    for (rows, taken, width) in [
        (16384, 16384, 1536),
        (16384, 16384, 6144),
        (16384, 4096, 1536),
        (16384, 4096, 6144),
        (1232, 320, 1536),
        (1232, 320, 6144),
    ] {
        cases.push(gpu.row_sums(rows, taken, width)?);
    }
    cases.extend(gpu.passes()?);
    Ok(cases)
}

fn main() -> Result<()> {
    let part = std::env::args().nth(1).unwrap_or_default();
    let Some(device) = secateur_nn::devices().into_iter().find(Device::is_cuda) else {
        bail!("there is no GPU")
    };
    println!("operation,milliseconds,tflops,gigabytes_per_second");
    for case in cases(&Gpu(device.clone()))?.iter().filter(|case| case.name.contains(&part)) {
        let Case { name, operations, bytes, body } = case;
        let time = |calls: u32| -> Result<f64> {
            device.synchronize()?;
            let start = Instant::now();
            for _ in 0..calls {
                body()?;
            }
            device.synchronize()?;
            Ok(start.elapsed().as_secs_f64() / f64::from(calls))
        };
        time(3)?;
        let calls = (0.02 / time(5)?).clamp(5.0, 200.0) as u32;
        let mut seconds = (0..5).map(|_| time(calls)).collect::<Result<Vec<_>>>()?;
        seconds.sort_by(f64::total_cmp);
        let median = seconds[2];
        let (tflops, bandwidth) =
            (*operations as f64 / median / 1e12, *bytes as f64 / median / 1e9);
        println!("{name},{:.4},{tflops:.0},{bandwidth:.0}", median * 1e3);
    }
    Ok(())
}
