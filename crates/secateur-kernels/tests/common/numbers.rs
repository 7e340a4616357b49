//! Numbers to test with.

use candle_core::{DType, Device, Tensor};

/// Numbers of a normal-like spread, the same every time.
pub(crate) fn random(shape: &[usize], seed: u32) -> Tensor {
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

pub(crate) fn wide(tensor: &Tensor) -> Vec<f64> {
    if tensor.elem_count() == 0 {
        return Vec::new();
    }
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Checks that numbers differ by no more than `tolerance` times the largest, or 1.
pub(crate) fn within(tolerance: f64, what: &str, got: &Tensor, want: &[f64]) {
    let got = wide(got);
    assert_eq!(got.len(), want.len(), "{what}");
    let scale = want.iter().fold(1.0f64, |scale, w| scale.max(w.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= tolerance * scale, "{what}[{i}]: {g} against {w}");
    }
}
