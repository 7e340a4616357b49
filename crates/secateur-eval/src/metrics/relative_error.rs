//! Relative error of latents.

use crate::error::{Error, Result};
/// Computes the Frobenius norm of `a - b` relative to that of `b`, the reference. The latents can
/// have any shape.
///
/// Zero when both are zero; infinite when only `b` is.
///
/// # Errors
/// The buffers have different lengths.
pub fn relative_error(a: &[f32], b: &[f32]) -> Result<f64> {
    if a.len() != b.len() {
        return Err(Error::Lengths { first: a.len(), second: b.len() });
    }
    let mut difference = 0.0;
    let mut reference = 0.0;
    for (&a, &b) in a.iter().zip(b) {
        difference += (f64::from(a) - f64::from(b)).powi(2);
        reference += f64::from(b).powi(2);
    }
    // 0 / 0 would be NaN, and equal buffers have no error.
    Ok(if difference == 0.0 { 0.0 } else { (difference / reference).sqrt() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_error_divides_by_the_second_argument() {
        // ||(3, 4) - (0, 8)|| = 5, ||(0, 8)|| = 8.
        assert_eq!(relative_error(&[3.0, 4.0], &[0.0, 8.0]).unwrap(), 0.625);
        assert_eq!(relative_error(&[0.0, 8.0], &[3.0, 4.0]).unwrap(), 1.0);
        assert_eq!(relative_error(&[0.0; 3], &[0.0; 3]).unwrap(), 0.0);
        assert_eq!(relative_error(&[1.0], &[0.0]).unwrap(), f64::INFINITY);
        assert!(matches!(relative_error(&[1.0], &[]), Err(Error::Lengths { first: 1, second: 0 })));
    }
}
