//! Structural similarity: Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment: from error
//! visibility to structural similarity", IEEE Transactions on Image Processing 13(4), 2004.

use crate::error::{Error, Result};
use crate::picture::{Picture, check_same_size};
/// Side of the window in pixels.
const WINDOW: usize = 11;
/// Standard deviation of the Gaussian window in pixels.
const SIGMA: f64 = 1.5;
/// Stabilises the luminance term: `(K1 L)^2` with `K1 = 0.01` and a dynamic range `L = 1`.
const C1: f64 = 0.01 * 0.01;
/// Stabilises the contrast and structure term: `(K2 L)^2` with `K2 = 0.03` and a dynamic range `L =
/// 1`.
const C2: f64 = 0.03 * 0.03;

/// Computes the structural similarity of two pictures, in \[-1, 1\]. It is 1 if they are equal.
///
/// This is equation 13 of Wang et al. 2004 under a Gaussian window (11 x 11, sigma 1.5). It is
/// averaged over the windows that lie wholly inside the picture, for each colour channel, and then
/// over the channels. torchmetrics and pytorch-msssim compute the same with `data_range=1`.
///
/// # Errors
/// The pictures have different sizes, or a side is shorter than 11 pixels.
pub fn ssim(a: &Picture, b: &Picture) -> Result<f64> {
    check_same_size(a, b)?;
    let (width, height) = (a.width(), a.height());
    if width < WINDOW || height < WINDOW {
        return Err(Error::SmallerThanWindow { width, height, window: WINDOW });
    }
    let window = gaussian_window();
    let channels = (0..3).map(|channel| {
        let (a, b) = (plane(a, channel), plane(b, channel));
        let moment = |of: fn(f64, f64) -> f64| {
            let values: Vec<f64> = a.iter().zip(&b).map(|(&a, &b)| of(a, b)).collect();
            weighted_means(&values, width, &window)
        };
        let (mean_a, mean_b) = (moment(|a, _| a), moment(|_, b| b));
        let (square_a, square_b, product) =
            (moment(|a, _| a * a), moment(|_, b| b * b), moment(|a, b| a * b));
        let sum: f64 = (0..mean_a.len())
            .map(|i| {
                let (mu_a, mu_b) = (mean_a[i], mean_b[i]);
                let (variance_a, variance_b) =
                    (square_a[i] - mu_a * mu_a, square_b[i] - mu_b * mu_b);
                let covariance = product[i] - mu_a * mu_b;
                (2.0 * mu_a * mu_b + C1) * (2.0 * covariance + C2)
                    / ((mu_a * mu_a + mu_b * mu_b + C1) * (variance_a + variance_b + C2))
            })
            .sum();
        sum / mean_a.len() as f64
    });
    Ok(channels.sum::<f64>() / 3.0)
}

/// Returns the Gaussian weights along one side of the window. They sum to 1.
fn gaussian_window() -> [f64; WINDOW] {
    let centre = (WINDOW / 2) as f64;
    let mut window =
        std::array::from_fn(|i| (-(i as f64 - centre).powi(2) / (2.0 * SIGMA * SIGMA)).exp());
    let total: f64 = window.iter().sum();
    window.iter_mut().for_each(|weight| *weight /= total);
    window
}

/// Returns one colour channel (height x width, row by row).
fn plane(picture: &Picture, channel: usize) -> Vec<f64> {
    picture.pixels().iter().skip(channel).step_by(3).map(|&value| f64::from(value)).collect()
}

/// Returns the weighted mean of `values` (height x width) under the window at each of its (height -
/// 10) x (width - 10) positions. As the Gaussian is separable, rows are filtered first and then
/// columns.
fn weighted_means(values: &[f64], width: usize, window: &[f64; WINDOW]) -> Vec<f64> {
    let valid_width = width - WINDOW + 1;
    let rows: Vec<f64> = values
        .chunks_exact(width)
        .flat_map(|row| {
            row.windows(WINDOW)
                .map(|part| part.iter().zip(window).map(|(value, weight)| value * weight).sum())
        })
        .collect();
    let valid_height = values.len() / width - WINDOW + 1;
    let mut means = vec![0.0; valid_height * valid_width];
    for (y, mean_row) in means.chunks_exact_mut(valid_width).enumerate() {
        for (tap, weight) in window.iter().enumerate() {
            let row = &rows[(y + tap) * valid_width..][..valid_width];
            mean_row.iter_mut().zip(row).for_each(|(mean, value)| *mean += weight * value);
        }
    }
    means
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A picture with smooth structure and some noise, from a formula that other languages can
    /// repeat.
    fn pattern(width: usize, height: usize, phase: f64, noise: f64) -> Picture {
        let mut pixels = Vec::new();
        for y in 0..height {
            for x in 0..width {
                for c in 0..3 {
                    let wave = (0.31 * x as f64 + 0.17 * y as f64 + c as f64 + phase).sin();
                    let hash = ((x * 7 + y * 13 + c * 5) % 11) as f64 / 10.0 - 0.5;
                    pixels.push((0.5 + 0.35 * wave + noise * hash) as f32);
                }
            }
        }
        Picture::new(width, height, pixels).unwrap()
    }

    /// Computes SSIM by its definition, term by term, with a two-dimensional window at every
    /// position and central moments. It shares no code with [`ssim`].
    fn direct(a: &Picture, b: &Picture) -> f64 {
        let at = |p: &Picture, x: usize, y: usize, c: usize| {
            f64::from(p.pixels()[(y * p.width() + x) * 3 + c])
        };
        let mut weights = [[0.0; 11]; 11];
        let mut total = 0.0;
        for (v, row) in weights.iter_mut().enumerate() {
            for (u, weight) in row.iter_mut().enumerate() {
                let squared = (u as f64 - 5.0).powi(2) + (v as f64 - 5.0).powi(2);
                *weight = (-squared / 4.5).exp();
                total += *weight;
            }
        }
        let (mut sum, mut count) = (0.0, 0.0);
        for c in 0..3 {
            for y in 0..=a.height() - 11 {
                for x in 0..=a.width() - 11 {
                    let mean = |of: &dyn Fn(f64, f64) -> f64| {
                        let mut mean = 0.0;
                        for (v, row) in weights.iter().enumerate() {
                            for (u, weight) in row.iter().enumerate() {
                                mean += weight / total
                                    * of(at(a, x + u, y + v, c), at(b, x + u, y + v, c));
                            }
                        }
                        mean
                    };
                    let (ma, mb) = (mean(&|p, _| p), mean(&|_, q| q));
                    let (va, vb) =
                        (mean(&|p, _| (p - ma) * (p - ma)), mean(&|_, q| (q - mb) * (q - mb)));
                    let cov = mean(&|p, q| (p - ma) * (q - mb));
                    sum += (2.0 * ma * mb + 1e-4) * (2.0 * cov + 9e-4)
                        / ((ma * ma + mb * mb + 1e-4) * (va + vb + 9e-4));
                    count += 1.0;
                }
            }
        }
        sum / count
    }

    #[test]
    fn agrees_with_the_definition() {
        for (width, height) in [(11, 11), (17, 12), (12, 23)] {
            let (a, b) = (pattern(width, height, 0.0, 0.1), pattern(width, height, 0.7, 0.3));
            let (fast, slow) = (ssim(&a, &b).unwrap(), direct(&a, &b));
            assert!((fast - slow).abs() < 1e-12, "{width} x {height}: {fast} and {slow}");
        }
    }

    #[test]
    fn agrees_with_scikit_image() {
        // scikit-image 0.26.0: structural_similarity(a, b, gaussian_weights=True, sigma=1.5,
        // use_sample_covariance=False, data_range=1.0, channel_axis=2) of the same two patterns,
        // and peak_signal_noise_ratio(a, b, data_range=1.0). The sines may differ in the last bit
        // of an f32.
        let (a, b) = (pattern(24, 19, 0.0, 0.1), pattern(24, 19, 0.7, 0.3));
        let (similarity, noise) = (ssim(&a, &b).unwrap(), crate::psnr(&a, &b).unwrap());
        assert!((similarity - 0.624_956_021_575_155).abs() < 1e-6, "{similarity}");
        assert!((noise - 14.844_788_820_352_841).abs() < 1e-5, "{noise}");
    }

    #[test]
    fn equal_pictures_have_one_and_order_does_not_matter() {
        let (a, b) = (pattern(20, 15, 0.0, 0.2), pattern(20, 15, 1.0, 0.1));
        assert!((ssim(&a, &a).unwrap() - 1.0).abs() < 1e-15);
        assert_eq!(ssim(&a, &b).unwrap(), ssim(&b, &a).unwrap());
    }

    #[test]
    fn constant_pictures_leave_only_the_luminance_term() {
        let grey = |value| Picture::new(16, 16, vec![value; 16 * 16 * 3]).unwrap();
        // (2 * 0.25 * 0.75 + 1e-4) / (0.25^2 + 0.75^2 + 1e-4); the second factor is C2 / C2.
        let value = ssim(&grey(0.25), &grey(0.75)).unwrap();
        assert!((value - 0.3751 / 0.6251).abs() < 1e-9, "{value}");
    }

    #[test]
    fn opposite_structure_is_negative() {
        let a = pattern(32, 32, 0.0, 0.0);
        let inverted =
            Picture::new(32, 32, a.pixels().iter().map(|value| 1.0 - value).collect()).unwrap();
        assert!(ssim(&a, &inverted).unwrap() < -0.5);
    }

    #[test]
    fn small_or_different_pictures_are_refused() {
        let small = pattern(11, 10, 0.0, 0.0);
        let error = ssim(&small, &small).unwrap_err().to_string();
        assert!(error.contains("11 x 10"), "{error}");
        assert!(matches!(
            ssim(&pattern(12, 11, 0.0, 0.0), &pattern(11, 12, 0.0, 0.0)),
            Err(Error::PictureSizes { .. })
        ));
    }
}
