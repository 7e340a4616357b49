//! Peak signal-to-noise ratio of pictures.

use crate::error::Result;
use crate::picture::{Picture, check_same_size};
/// The PSNR in dB of equal pictures, if an infinite value cannot be averaged or stored.
pub const PSNR_CAP: f64 = 100.0;

/// Peak signal-to-noise ratio in dB with a peak of 1: `-10 log10(mean((a - b)^2))` over all pixels
/// and channels. Infinite when the pictures are equal.
///
/// # Errors
/// The pictures have different sizes.
pub fn psnr(a: &Picture, b: &Picture) -> Result<f64> {
    check_same_size(a, b)?;
    let squares: f64 = a
        .pixels()
        .iter()
        .zip(b.pixels())
        .map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2))
        .sum();
    Ok(-10.0 * (squares / a.pixels().len() as f64).log10())
}

/// Computes [`psnr`], limited to [`PSNR_CAP`].
///
/// This is the value for reports. The PSNR of several pairs is the mean of the pairs' values in dB
/// (not the PSNR of the mean squared error). One pair of equal pictures would make it infinite.
///
/// # Errors
/// The pictures have different sizes.
pub fn psnr_capped(a: &Picture, b: &Picture) -> Result<f64> {
    psnr(a, b).map(|value| value.min(PSNR_CAP))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grey(width: usize, height: usize, value: f32) -> Picture {
        Picture::new(width, height, vec![value; width * height * 3]).unwrap()
    }

    #[test]
    fn psnr_of_a_constant_offset_is_known() {
        // An offset of 1/2 everywhere: -20 log10(1/2).
        let value = psnr(&grey(4, 3, 0.25), &grey(4, 3, 0.75)).unwrap();
        assert!((value - 6.020_599_913_279_624).abs() < 1e-12, "{value}");
        // Black against white is the largest possible difference.
        assert!(psnr(&grey(2, 2, 0.0), &grey(2, 2, 1.0)).unwrap().abs() < 1e-12);
    }

    #[test]
    fn psnr_weighs_every_value_alike() {
        let mut pixels = vec![0.5; 12];
        pixels[7] = 0.75;
        let changed = Picture::new(2, 2, pixels).unwrap();
        // mean squared error = (1/4)^2 / 12 = 1/192, so 10 log10(192).
        let value = psnr(&changed, &grey(2, 2, 0.5)).unwrap();
        assert!((value - 22.833_012_287_035_497).abs() < 1e-12, "{value}");
        assert_eq!(value, psnr(&grey(2, 2, 0.5), &changed).unwrap());
    }

    #[test]
    fn equal_pictures_are_infinite_and_reported_as_the_cap() {
        let picture = grey(5, 5, 0.3);
        assert_eq!(psnr(&picture, &picture).unwrap(), f64::INFINITY);
        assert_eq!(psnr_capped(&picture, &picture).unwrap(), PSNR_CAP);
        assert!(psnr_capped(&picture, &grey(5, 5, 0.8)).unwrap() < 7.0);
    }

    #[test]
    fn different_sizes_are_refused() {
        let error = psnr(&grey(4, 3, 0.0), &grey(3, 4, 0.0)).unwrap_err().to_string();
        assert!(error.contains("4 x 3") && error.contains("3 x 4"), "{error}");
    }
}
