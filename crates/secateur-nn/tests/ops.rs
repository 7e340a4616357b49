//! Every kernel against a plain f64 version: odd sizes, one row, no rows, non-contiguous views,
//! NaN.

#[path = "../../secateur-kernels/tests/common/numbers.rs"]
mod numbers;
#[path = "common/plain.rs"]
mod plain;
#[path = "../../secateur-kernels/tests/common/vectors.rs"]
mod vectors;

use candle_core::{Device, Tensor};
use numbers::{random, wide, within};
use proptest::prelude::*;
use secateur_kernels::gram;
use secateur_nn::ops::{self, Heads};
use secateur_nn::{Activation, Weight};

fn close(what: &str, got: &Tensor, want: &[f64]) {
    within(3e-6, what, got, want);
}

fn linear_op(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> candle_core::Result<Tensor> {
    ops::linear(x, &Weight::from(w.clone()), b, None)
}

#[test]
fn linear() {
    for (rows, inputs, outputs) in [
        (1, 1, 1),
        (1, 7, 3),
        (5, 33, 17),
        (129, 64, 65),
        (0, 8, 4),
        (3, 5, 0),
        (33, 1, 5),
        (17, 2, 70),
        (9, 1100, 9),
    ] {
        let (x, w, b) =
            (random(&[rows, inputs], 1), random(&[outputs, inputs], 2), random(&[outputs], 3));
        let plain = |bias: Option<&[f64]>| plain::linear(&wide(&x), &wide(&w), bias, inputs);
        close("linear", &linear_op(&x, &w, Some(&b)).unwrap(), &plain(Some(&wide(&b))));
        close("linear without bias", &linear_op(&x, &w, None).unwrap(), &plain(None));
    }
    let (x, w) = (random(&[4, 6], 1), random(&[3, 5], 2));
    let error = linear_op(&x, &w, None).unwrap_err().to_string();
    assert!(error.contains("[4, 6]") && error.contains('5'), "{error}");
    let error = linear_op(&x, &random(&[3, 6], 2), Some(&random(&[2], 3))).unwrap_err().to_string();
    assert!(error.contains("bias of [2]"), "{error}");
}

#[test]
fn views_that_are_not_contiguous_give_the_same() {
    let x = random(&[6, 4, 9], 1);
    let view = x.transpose(0, 1).unwrap().narrow(2, 1, 7).unwrap();
    let copy = view.contiguous().unwrap();
    let w = random(&[7, 5], 2).t().unwrap();
    let same = |a: Tensor, b: Tensor| assert_eq!(wide(&a), wide(&b));
    same(
        linear_op(&view, &w, None).unwrap(),
        linear_op(&copy, &w.contiguous().unwrap(), None).unwrap(),
    );
    let (weight, bias) = (random(&[7], 4), random(&[7], 5));
    same(
        ops::layer_norm_affine(&view, &weight, &bias, 1e-5).unwrap(),
        ops::layer_norm_affine(&copy, &weight, &bias, 1e-5).unwrap(),
    );
    let (view_x, copy_x) =
        (view.narrow(2, 0, 6).unwrap(), copy.narrow(2, 0, 6).unwrap().contiguous().unwrap());
    let table = random(&[2, 6], 6).t().unwrap();
    same(
        ops::rope(&view_x, &table).unwrap(),
        ops::rope(&copy_x, &table.contiguous().unwrap()).unwrap(),
    );
    same(
        ops::activation(Activation::Gelu, &view).unwrap(),
        ops::activation(Activation::Gelu, &copy).unwrap(),
    );
    same(
        ops::attention(&view, &view, &view, Heads::new(1, 7), None, false).unwrap(),
        ops::attention(&copy, &copy, &copy, Heads::new(1, 7), None, false).unwrap(),
    );
}

#[test]
fn activations() {
    for kind in [
        Activation::Silu,
        Activation::QuickGelu,
        Activation::GeluTanh,
        Activation::Gelu,
        Activation::Relu,
    ] {
        for count in [0, 1, 63, 64, 65, 1000] {
            let x = (random(&[count], 5) * 1.2).unwrap();
            let want = plain::activated(kind, &wide(&x));
            close(&format!("{kind:?}"), &ops::activation(kind, &x).unwrap(), &want);
        }
        let extreme =
            Tensor::new(&[-1e30f32, -100.0, 100.0, 1e30, f32::NAN], &Device::Cpu).unwrap();
        let y = ops::activation(kind, &extreme).unwrap().to_vec1::<f32>().unwrap();
        assert!(y[0].abs() < 1e-6 && y[1].abs() < 1e-6, "{kind:?} of very negative values: {y:?}");
        assert!((y[2] - 100.0).abs() < 1e-4 && (y[3] / 1e30 - 1.0).abs() < 1e-6, "{kind:?}: {y:?}");
        assert!(y[4].is_nan(), "{kind:?} of NaN: {y:?}");
    }
}

#[test]
fn norms() {
    for (samples, rows, width) in [(1, 1, 1), (2, 3, 5), (3, 7, 64), (1, 300, 129), (2, 0, 8)] {
        let x = random(&[samples, rows, width], 1);
        let (scale, shift) = (random(&[samples, width], 2), random(&[samples, width], 3));
        let (weight, bias) = (random(&[width], 4), random(&[width], 5));
        let eps = 1e-6f32;
        let (wide_x, w, b) = (wide(&x), wide(&weight), wide(&bias));
        let normal = plain::standardised(&wide_x, width, eps).into_iter().enumerate();
        let affine: Vec<_> = normal.map(|(i, y)| y * w[i % width] + b[i % width]).collect();
        close("with weights", &ops::layer_norm_affine(&x, &weight, &bias, eps).unwrap(), &affine);
        let modulated =
            plain::modulated(&wide_x, [&wide(&scale), &wide(&shift)], (rows, width), eps);
        let got = ops::layer_norm_modulated(&x, &scale, &shift, eps).unwrap();
        close("modulated", &got, &modulated);
        let rms = plain::rms_norm(&wide_x, &w, eps);
        close("rms norm", &ops::rms_norm(&x, &weight, eps).unwrap(), &rms);
    }
    let x = Tensor::new(&[[1f32, f32::NAN, 2.0], [1.0, 2.0, 3.0]], &Device::Cpu).unwrap();
    let (one, zero) = (
        Tensor::new(&[1f32; 3], &Device::Cpu).unwrap(),
        Tensor::new(&[0f32; 3], &Device::Cpu).unwrap(),
    );
    let y = ops::layer_norm_affine(&x, &one, &zero, 1e-6).unwrap().to_vec2::<f32>().unwrap();
    assert!(y[0].iter().all(|y| y.is_nan()) && y[1].iter().all(|y| y.is_finite()), "{y:?}");
}

#[test]
fn rms_norm_goes_over_heads() {
    let (x, weight) = (random(&[2, 3, 12], 1), random(&[4], 2));
    let heads = ops::rms_norm(&x, &weight, 1e-6).unwrap();
    let apart = ops::rms_norm(&x.reshape((2, 3, 3, 4)).unwrap(), &weight, 1e-6).unwrap();
    assert_eq!(wide(&heads), wide(&apart));
    assert!(ops::rms_norm(&x, &random(&[5], 2), 1e-6).is_err());
}

#[test]
fn rope() {
    for (samples, tokens, heads, width) in [
        (1, 1, 1, 2),
        (2, 3, 2, 6),
        (1, 65, 3, 34),
        (3, 130, 1, 16),
        (2, 0, 2, 4),
        (0, 3, 2, 4),
        (1, 4, 0, 2),
    ] {
        let (x, table) =
            (random(&[samples, tokens, heads * width], 1), random(&[tokens, width], 2));
        let want = plain::rope(&wide(&x), &wide(&table), heads, width);
        close("rope", &ops::rope(&x, &table).unwrap(), &want);
    }
    let x = random(&[2, 3, 12], 1);
    for table in [[3, 5], [4, 6], [3, 3], [3, 0]] {
        let error = ops::rope(&x, &random(&table, 2)).unwrap_err().to_string();
        assert!(error.contains("[2, 3, 12]") && error.contains(&format!("{table:?}")), "{error}");
    }
}

#[test]
fn group_norm() {
    for (samples, channels, groups, side) in
        [(1, 4, 2, 3), (2, 6, 3, 5), (1, 32, 32, 1), (2, 16, 1, 17)]
    {
        let x = random(&[samples, channels, side, side], 1);
        let (weight, bias) = (random(&[channels], 2), random(&[channels], 3));
        let parameters = [&wide(&weight)[..], &wide(&bias)];
        let want = plain::group_norm(&wide(&x), parameters, (groups, side * side), 1e-5);
        let norm = |silu| ops::group_norm(&x, &weight, &bias, groups, 1e-5, silu).unwrap();
        close("group norm", &norm(false), &want);
        close("with SiLU", &norm(true), &plain::activated(Activation::Silu, &want));
    }
}

fn plain_attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: Heads, causal: bool) -> Vec<f64> {
    let tokens = (q.dim(0).unwrap(), q.dim(1).unwrap(), k.dim(1).unwrap());
    plain::attention([&wide(q), &wide(k), &wide(v)], tokens, heads, None, causal)
}

#[test]
fn attention() {
    // More than 512 keys come in several blocks.
    let cases = [
        (1, 1, 1, 1, 1),
        (2, 3, 5, 5, 7),
        (1, 2, 65, 33, 16),
        (2, 1, 130, 130, 40),
        (1, 4, 7, 200, 3),
        (1, 2, 33, 1100, 5),
        (1, 1, 600, 600, 8),
    ];
    for (batch, heads, queries, keys, head_dim) in cases {
        let width = heads * head_dim;
        let q = (random(&[batch, queries, width], 1) * 2.0).unwrap();
        let (k, v) = (random(&[batch, keys, width], 2), random(&[batch, keys, width], 3));
        let heads = Heads::new(heads, head_dim);
        let got = ops::attention(&q, &k, &v, heads, None, false).unwrap();
        close("attention", &got, &plain_attention(&q, &k, &v, heads, false));
        if queries == keys {
            let got = ops::attention(&q, &k, &v, heads, None, true).unwrap();
            close("causal attention", &got, &plain_attention(&q, &k, &v, heads, true));
        }
        // Heads that became narrower, and keep their scale.
        for (head_dim, value_dim) in
            [(1, head_dim), (head_dim, 1), (head_dim.div_ceil(2), 3), (2, 19)]
        {
            let [q, k] = [(queries, 4), (keys, 5)]
                .map(|(n, seed)| random(&[batch, n, heads.count * head_dim], seed));
            let v = random(&[batch, keys, heads.count * value_dim], 6);
            let got = ops::attention(&q, &k, &v, heads, None, false).unwrap();
            close("narrow attention", &got, &plain_attention(&q, &k, &v, heads, false));
        }
    }
    let (x, two) = (random(&[1, 4, 6], 1), Heads::new(2, 3));
    let large = (&x * 1e4).unwrap();
    assert!(
        wide(&ops::attention(&large, &large, &x, two, None, false).unwrap())
            .iter()
            .all(|y| y.is_finite())
    );
    let mut values = x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values[0] = f32::NAN;
    let bad = Tensor::from_vec(values, (1, 4, 6), &Device::Cpu).unwrap();
    assert!(wide(&ops::attention(&bad, &x, &x, two, None, false).unwrap())[0].is_nan());
    assert!(
        ops::attention(&x, &x, &x, Heads { count: 4, ..two }, None, false)
            .unwrap_err()
            .to_string()
            .contains("4 heads")
    );
}

/// A bias that hides what comes later, of one head alone, is that head's causal attention.
#[test]
fn attention_with_a_bias_of_heads() {
    let (tokens, heads) = (9, Heads::new(2, 3));
    let [q, k, v] = [1, 2, 3].map(|seed| random(&[2, tokens, 6], seed));
    let bias = (0..2 * tokens * tokens).map(|index| {
        let (head, query, key) = (index / tokens / tokens, index / tokens % tokens, index % tokens);
        if head == 1 && key > query { f32::NEG_INFINITY } else { 0.0 }
    });
    let bias = Tensor::from_iter(bias, &Device::Cpu).unwrap();
    let bias = bias.reshape((1, 2, tokens, tokens)).unwrap();
    let y = ops::biased_attention(&q, &k, &v, heads, &bias).unwrap();
    for (head, causal) in [(0, false), (1, true)] {
        let of_head = |y: &Tensor| y.narrow(2, 3 * head, 3).unwrap();
        let want = ops::attention(&q, &k, &v, heads, None, causal).unwrap();
        close("biased attention", &of_head(&y), &wide(&of_head(&want)));
    }
    let error = ops::biased_attention(&q, &k, &v, heads, &bias.narrow(2, 0, 4).unwrap());
    assert!(error.unwrap_err().to_string().contains("[1, 2, 4, 9]"));
}

#[test]
fn convolution() {
    // kernel, stride, padding before and after
    let cases = [(1, 1, (0, 0)), (3, 1, (1, 1)), (3, 2, (0, 1)), (3, 2, (1, 1)), (2, 2, (0, 0))];
    for (kernel, stride, padding) in cases {
        for (samples, inputs, outputs, height, width) in
            [(1, 1, 1, 4, 4), (2, 3, 5, 7, 9), (1, 4, 2, 6, 3)]
        {
            let shape = ([samples, inputs, height, width], [outputs, inputs, kernel, kernel]);
            let (x, weight, bias) =
                (random(&shape.0, 1), random(&shape.1, 2), random(&[outputs], 3));
            let values = [&x, &weight, &bias].map(wide);
            let want = plain::conv2d(&values, shape.0, shape.1, (stride, padding));
            let got = ops::conv2d(&x, &weight.into(), &bias, stride, padding).unwrap();
            close("conv2d", &got, &want);
        }
    }
    // Channels, a kernel that is not square, one that is larger than the padded picture, none, and
    // no stride.
    for (size, weight, stride) in [
        ([1, 3, 5, 5], [2, 4, 3, 3], 1),
        ([1, 3, 5, 5], [2, 3, 3, 2], 1),
        ([1, 3, 5, 1], [2, 3, 4, 4], 1),
        ([1, 3, 5, 5], [2, 3, 0, 0], 1),
        ([1, 3, 5, 5], [2, 3, 3, 3], 0),
    ] {
        let (x, shape, weight) = (random(&size, 1), weight, Weight::from(random(&weight, 2)));
        let error =
            ops::conv2d(&x, &weight, &random(&[2], 3), stride, (1, 1)).unwrap_err().to_string();
        assert!(error.contains(&format!("{shape:?}")) && error.contains("does not fit"), "{error}");
    }
}

#[test]
fn gated_residual() {
    let (x, y, gate) = (random(&[2, 3, 5], 1), random(&[2, 3, 5], 2), random(&[2, 5], 3));
    let want = plain::gated_add(&wide(&x), &wide(&gate), &wide(&y), 3, 5);
    close("gated", &ops::gated_add(&x, &gate, &y).unwrap(), &want);
}

#[test]
fn a_key_of_multiplicity_m_is_m_equal_keys() {
    let (q, k, v) = (random(&[1, 9, 12], 1), random(&[1, 4, 12], 2), random(&[1, 4, 12], 3));
    let times = [1u32, 5, 1, 700];
    let spelled_out: Vec<u32> =
        times.iter().zip(0..).flat_map(|(&m, key)| std::iter::repeat_n(key, m as usize)).collect();
    let index = Tensor::from_vec(spelled_out, 707, &Device::Cpu).unwrap();
    let (all_k, all_v) = (k.index_select(&index, 1).unwrap(), v.index_select(&index, 1).unwrap());
    let bias = Tensor::new(times.map(|m| (m as f32).ln()).as_slice(), &Device::Cpu).unwrap();
    let heads = Heads::new(3, 4);
    let folded = ops::attention(&q, &k, &v, heads, Some(&bias), false).unwrap();
    close("folded keys", &folded, &plain_attention(&q, &all_k, &all_v, heads, false));
    let short = bias.narrow(0, 0, 3).unwrap();
    assert!(
        ops::attention(&q, &k, &v, heads, Some(&short), false)
            .unwrap_err()
            .to_string()
            .contains("4 keys")
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn products_of_any_size(
        rows in 0usize..40,
        inputs in 1usize..300,
        outputs in 0usize..120,
        seed in 0u32..1000,
    ) {
        let (x, w) = (random(&[rows, inputs], seed), random(&[outputs, inputs], seed + 1));
        let want = plain::linear(&wide(&x), &wide(&w), None, inputs);
        close("linear", &linear_op(&x, &w, None).unwrap(), &want);
    }

    #[test]
    fn attention_is_an_average(
        tokens in 1usize..70,
        head_dim in 1usize..70,
        seed in 0u32..1000,
        constant in -5f32..5.0,
    ) {
        // Of equal values that value, and never beyond the greatest one.
        let (q, k) = (random(&[2, 3, head_dim], seed), random(&[2, tokens, head_dim], seed + 1));
        let v = Tensor::full(constant, (2, tokens, head_dim), &Device::Cpu).unwrap();
        let heads = Heads::new(1, head_dim);
        let y = ops::attention(&q, &k, &v, heads, None, false).unwrap();
        close("of equal values", &y, &vec![f64::from(constant); 2 * 3 * head_dim]);
        let v = random(&[2, tokens, head_dim], seed + 2);
        let most = wide(&v).into_iter().fold(f64::MIN, f64::max);
        let y = ops::attention(&q, &k, &v, heads, None, false).unwrap();
        prop_assert!(wide(&y).into_iter().all(|y| y <= most + 1e-5));
    }

    #[test]
    fn softmax_does_not_mind_an_offset(width in 1usize..100, seed in 0u32..1000,
        offset in -1e3f32..1e3) {
        let x = random(&[3, width], seed);
        let y = ops::softmax(&x).unwrap();
        for row in wide(&y).chunks(width) {
            prop_assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-5);
        }
        let moved = ops::softmax(&(x + f64::from(offset)).unwrap()).unwrap();
        for (a, b) in wide(&y).iter().zip(wide(&moved)) {
            prop_assert!((a - b).abs() < 2e-4, "{a} against {b}");
        }
    }

    #[test]
    fn upsampling_keeps_sums(height in 1usize..9, width in 1usize..20, factor in 1usize..4,
        seed in 0u32..1000) {
        let x = random(&[2, 3, height, width], seed);
        let y = ops::upsample_nearest(&x, factor).unwrap();
        prop_assert_eq!(y.dims(), [2, 3, height * factor, width * factor]);
        let total = |t: &Tensor| wide(t).into_iter().sum::<f64>();
        prop_assert!((total(&y) - total(&x) * (factor * factor) as f64).abs() < 1e-3);
    }
}

#[test]
fn geglu_and_softmax() {
    let x = random(&[5, 34], 4);
    close("geglu", &ops::geglu(&x).unwrap(), &plain::geglu(&wide(&x), 17));
    assert!(ops::geglu(&random(&[2, 3], 1)).is_err());
    let want: Vec<f64> = wide(&x).chunks(34).flat_map(plain::softmax).collect();
    close("softmax", &ops::softmax(&x).unwrap(), &want);
    let bad = Tensor::new(&[[0f32, f32::NAN, 1.0], [0.0, 1.0, 2.0]], &Device::Cpu).unwrap();
    let y = ops::softmax(&bad).unwrap().to_vec2::<f32>().unwrap();
    assert!(y[0].iter().all(|y| y.is_nan()) && y[1].iter().all(|y| y.is_finite()), "{y:?}");
}

#[test]
fn threads_do_not_change_results() {
    let (x, w) = (random(&[300, 96], 1), random(&[64, 96], 2));
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let y = linear_op(&x, &w, None).unwrap();
            let y =
                ops::activation(Activation::GeluTanh, &y).unwrap().reshape((2, 150, 64)).unwrap();
            let y = ops::attention(&y, &y, &y, Heads::new(4, 16), None, false).unwrap();
            let mut gram = vec![0f32; 64 * 64];
            let rows = y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            gram::add_gram(300, 64, |row| &rows[row * 64..][..64], |_| 1.0, &mut gram);
            (wide(&y), gram)
        })
    };
    let one = run(1);
    for threads in [2, 3, 5] {
        assert!(run(threads) == one, "{threads} threads");
    }
}

#[test]
fn a_weight_is_packed_for_one_kind_of_product() {
    let weight = Weight::from(random(&[3, 4, 1, 1], 1));
    ops::conv2d(&random(&[1, 4, 2, 2], 2), &weight, &random(&[3], 3), 1, (0, 0)).unwrap();
    let matrix = Weight::from(random(&[3, 4], 1));
    ops::linear(&random(&[2, 4], 2), &matrix, None, None).unwrap();
    // Neither has the shape of the other.
    assert!(ops::linear(&random(&[2, 4], 2), &weight, None, None).is_err());
    assert!(ops::conv2d(&random(&[1, 4, 2, 2], 2), &matrix, &random(&[3], 3), 1, (0, 0)).is_err());
}
