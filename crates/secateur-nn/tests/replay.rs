//! What is called again and again, on every device.

#[path = "../../secateur-kernels/tests/common/numbers.rs"]
mod numbers;

use candle_core::{Device, Tensor};
use numbers::{random, wide, within};
use secateur_nn::ops::{self, Replay};
use secateur_nn::{Activation, Weight, devices, to_device};

fn at(device: &Device, tensor: &Tensor) -> Tensor {
    to_device(tensor, device).unwrap()
}

/// Inputs of several shapes in turn; a GPU records a computation at its third call.
#[test]
fn what_is_replayed_is_what_is_computed() {
    for device in devices() {
        let replay = Replay::default();
        let weight = Weight::from(at(&device, &random(&[48, 16], 1)));
        // Small kernels, of strided tensors too, and constants of the host.
        let compute = |inputs: &[Tensor]| {
            let mut x = ops::linear(&inputs[0], &weight, None, Some(Activation::Silu))?;
            for _ in 0..20 {
                let halves = [x.narrow(2, 24, 24)?, x.narrow(2, 0, 24)?];
                x = ops::softmax(&Tensor::cat(&halves, 2)?.broadcast_mul(&inputs[1])?)?;
                let constants = Tensor::new(&[0.5f32; 48], &device)?;
                x = x.broadcast_add(&constants)?;
            }
            x.transpose(1, 2)
        };
        for call in 0..12 {
            let rows = [5, 7][call % 2];
            let inputs = [[2, rows, 16], [2, 1, 48]]
                .map(|shape| at(&device, &random(&shape, 2 + call as u32)));
            let got = replay.call::<candle_core::Error>(&inputs, compute).unwrap();
            let want = compute(&inputs).unwrap();
            let what = format!("call {call} on {:?}", device.location());
            within(0.0, &what, &got, &wide(&want));
        }
        let wrong = [at(&device, &random(&[2, 5, 3], 1))];
        for _ in 0..4 {
            let error = replay.call(&wrong, compute).unwrap_err().to_string();
            assert!(error.contains("should be 16"), "{error}");
        }
        let is_recorded = device.is_cuda();
        assert_eq!(replay.recordings(), if is_recorded { 2 } else { 0 });
        let none = [at(&device, &random(&[2, 0, 16], 1)), at(&device, &random(&[2, 1, 48], 2))];
        for _ in 0..4 {
            let doubled = replay.call::<candle_core::Error>(&none, |t| ops::add(&t[0], &t[0]));
            assert_eq!(doubled.unwrap().dims(), [2, 0, 16]);
        }
    }
}
