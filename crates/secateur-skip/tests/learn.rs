//! The pruner network, and runs that are stopped and go on.

use candle_core::{Device, Tensor};
use secateur_skip::Pruner;

/// Steps against a gradient make what it is negative for more probable, and the rest less.
#[test]
fn the_pruner_network_descends() {
    let mut pruner = Pruner::new(3, 2, 7).unwrap();
    let of_gates = [[-1f32, 1.0], [1.0, -1.0], [0.0, -0.5]];
    let of_gates = Tensor::new(&of_gates, &Device::Cpu).unwrap();
    let before = pruner.forward(false).unwrap().to_vec2::<f32>().unwrap();
    assert!(before.iter().flatten().all(|&p| (p - 0.731).abs() < 1e-3), "{before:?}");
    for _ in 0..30 {
        let loss = (pruner.forward(true).unwrap() * &of_gates).unwrap().sum_all().unwrap();
        pruner.step(&loss, 5e-3).unwrap();
    }
    let after = pruner.forward(false).unwrap().to_vec2::<f32>().unwrap();
    for (row, of_gates) in after.iter().zip(of_gates.to_vec2::<f32>().unwrap()) {
        for (p, of_gate) in row.iter().zip(of_gates) {
            match of_gate {
                g if g < 0.0 => assert!(*p > 0.75, "{after:?}"),
                g if g > 0.0 => assert!(*p < 0.7, "{after:?}"),
                _ => {}
            }
        }
    }
}
