//! The losses against the report's measures, which are in f64.

use candle_core::{Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use secateur_eval::{Picture, psnr, split, ssim};
use secateur_skip::Loss;

/// Two pictures of each kind, the second ones like the first.
fn pictures(height: usize, width: usize) -> (Tensor, Tensor) {
    let mut random = ChaCha8Rng::seed_from_u64(height as u64);
    let shape = (2, height, width, 3);
    let count = 2 * height * width * 3;
    let values: Vec<f32> = (0..count).map(|_| random.random()).collect();
    let near = values
        .iter()
        .map(|value| (value + random.random_range(-0.3..0.3)).clamp(0.0, 1.0))
        .collect();
    let tensor = |values: Vec<f32>| Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
    (tensor(values), tensor(near))
}

#[test]
fn as_measured() {
    for (height, width) in [(11, 11), (13, 18), (32, 23)] {
        let (a, b) = pictures(height, width);
        let loss = |loss: Loss| f64::from(loss.of(&a, &b).unwrap().to_scalar::<f32>().unwrap());
        let pairs: Vec<(Picture, Picture)> =
            split(&a).unwrap().into_iter().zip(split(&b).unwrap()).collect();
        let mean =
            |of: &dyn Fn(&(Picture, Picture)) -> f64| pairs.iter().map(of).sum::<f64>() / 2.0;
        let close = |ours: f64, theirs: f64, what: &str| {
            assert!(
                (ours - theirs).abs() < 1e-5,
                "{what}, {height} x {width}: {ours}, not {theirs}"
            );
        };
        close(loss(Loss::Ssim), 1.0 - mean(&|(a, b)| ssim(a, b).unwrap()), "SSIM");
        close(loss(Loss::L2), mean(&|(a, b)| 10f64.powf(-psnr(a, b).unwrap() / 10.0)), "L2");
        let differences = |(a, b): &(Picture, Picture)| {
            let sum: f64 =
                a.pixels().iter().zip(b.pixels()).map(|(a, b)| f64::from((a - b).abs())).sum();
            sum / a.pixels().len() as f64
        };
        close(loss(Loss::L1), mean(&differences), "L1");
        assert!(loss(Loss::Ssim) > 0.05);
    }
}

#[test]
fn equal_and_too_small() {
    let (a, _) = pictures(12, 12);
    for loss in [Loss::Ssim, Loss::L1, Loss::L2] {
        assert!(loss.of(&a, &a).unwrap().to_scalar::<f32>().unwrap().abs() < 1e-6, "{loss}");
    }
    let (a, b) = pictures(10, 12);
    let error = Loss::Ssim.of(&a, &b).unwrap_err().to_string();
    assert!(error.contains("12 x 10") && error.contains("`loss l1`"), "{error}");
}
