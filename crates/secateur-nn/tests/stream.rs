//! Weights that are not held: they are read when they are used, and ahead of that in the order of
//! the last time.

use candle_core::{DType, Device, Tensor};
use secateur_nn::{Error, Placement, Stream, Weight, devices, ops};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A weight of one row that counts how often it was read, and fails from the `last` time on.
fn counted(stream: &Stream, value: f32, last: usize) -> (Weight, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let read = Arc::clone(&count);
    let weight = Weight::stored((1, 2), stream, move || {
        if read.fetch_add(1, Ordering::SeqCst) >= last {
            candle_core::bail!("the file of {value} is gone")
        }
        Tensor::new(&[[value, 1.0]], &Device::Cpu)
    });
    (weight, count)
}

fn wait_for(count: &AtomicUsize, wanted: usize) {
    let begun = Instant::now();
    while count.load(Ordering::SeqCst) < wanted {
        assert!(begun.elapsed() < Duration::from_secs(10), "it was not read");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn product(weight: &Weight) -> candle_core::Result<f32> {
    let x = Tensor::new(&[[1f32, 0.5]], &Device::Cpu)?;
    Ok(ops::linear(&x, weight, None, None)?.to_vec2::<f32>()?[0][0])
}

#[test]
fn what_was_used_next_the_last_time_is_read_ahead() {
    let stream = Stream::default();
    let (weights, counts): (Vec<_>, Vec<_>) =
        (0..6).map(|value| counted(&stream, value as f32, usize::MAX)).unzip();
    let counts = || counts.iter().map(|count| count.load(Ordering::SeqCst)).collect::<Vec<_>>();
    for weight in &weights {
        assert!(weight.is_stored());
    }
    // The order is not known yet: nothing is read that is not used.
    for (value, weight) in weights.iter().enumerate() {
        assert_eq!(product(weight).unwrap(), value as f32 + 0.5);
    }
    assert_eq!(counts(), [1; 6]);
    // Now it is: each is read once a round, ahead of its use, also from the last to the first.
    for round in 2..5 {
        for (value, weight) in weights.iter().enumerate() {
            assert_eq!(product(weight).unwrap(), value as f32 + 0.5, "round {round}");
        }
    }
    drop(weights);
    let ahead: usize = counts().iter().map(|count| count - 4).sum();
    assert!(ahead <= Stream::AHEAD, "{:?}", counts());
}

#[test]
fn another_order_gives_the_same_numbers() {
    let stream = Stream::default();
    let (weights, counts): (Vec<_>, Vec<_>) =
        (0..5).map(|value| counted(&stream, value as f32, usize::MAX)).unzip();
    for order in [[0, 1, 2, 3, 4], [4, 2, 0, 1, 3], [3, 3, 3, 0, 0], [0, 1, 2, 3, 4]] {
        for place in order {
            assert_eq!(product(&weights[place]).unwrap(), place as f32 + 0.5, "{order:?}");
            assert_eq!(
                weights[place].tensor().unwrap().to_vec2::<f32>().unwrap(),
                [[place as f32, 1.0]]
            );
        }
    }
    drop(counts);
}

/// An error is that of the weight that is used, when it is used.
#[test]
fn what_cannot_be_read_is_an_error_of_its_own_use() {
    let stream = Stream::default();
    let (first, _) = counted(&stream, 1.0, usize::MAX);
    let (second, count) = counted(&stream, 2.0, 1);
    product(&first).unwrap();
    product(&second).unwrap();
    product(&first).unwrap();
    wait_for(&count, 2);
    let error = product(&second).unwrap_err().to_string();
    assert!(error.contains("the file of 2 is gone"), "{error}");
    assert_eq!(product(&first).unwrap(), 1.5);
}

/// Gradients go back to the input as those of a weight that is held.
#[test]
fn gradients_of_the_input() {
    let numbers = Tensor::new(&[[2f32, -3.0], [0.5, 4.0]], &Device::Cpu).unwrap();
    let own = numbers.clone();
    let stored = Weight::stored((2, 2), &Stream::default(), move || Ok(own.clone()));
    let gradient = |weight: &Weight| {
        let x = candle_core::Var::new(&[[1f32, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap();
        let loss = ops::linear(&x, weight, None, None).unwrap().sqr().unwrap().sum_all().unwrap();
        loss.backward().unwrap().get(&x).unwrap().to_vec2::<f32>().unwrap()
    };
    assert_eq!(gradient(&stored), gradient(&numbers.into()));
}

/// Bytes come to a device part by part, from several threads, while it computes with others.
#[test]
fn tensors_are_read_to_every_device() {
    // More than a part, of an odd length; one number; none.
    let shapes: [&[usize]; 3] = [&[3, 1_500_001], &[1], &[0, 4]];
    let byte = |seed: usize, place: usize| match place % 4 {
        // The upper byte of a float of about 1.
        3 => 0x3f,
        _ => (place.wrapping_mul(2_654_435_761) >> 7) as u8 ^ seed as u8,
    };
    let read = |placement: &Placement, shape: &[usize], seed: usize| {
        placement.read::<Error>(DType::F32, shape, |start, part| {
            (start..).zip(part).for_each(|(place, own)| *own = byte(seed, place));
            Ok(())
        })
    };
    let bits = |tensor: &Tensor| {
        let numbers = Placement::cpu().bring(tensor).unwrap().flatten_all().unwrap();
        numbers.to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    for device in devices() {
        let placement = Placement::new(device.clone(), DType::F32);
        for shape in shapes {
            let tensor = read(&placement, shape, 5).unwrap();
            assert_eq!(tensor.dims(), shape);
            let number = |index: usize| {
                u32::from_le_bytes([0, 1, 2, 3].map(|place| byte(5, 4 * index + place)))
            };
            let want: Vec<u32> = (0..shape.iter().product()).map(number).collect();
            assert!(bits(&tensor) == want, "{shape:?} on {:?}", device.location());
        }
        // Tensors come and go meanwhile: none is read to memory that is still in use.
        let want: Vec<_> =
            (0..4).map(|seed| bits(&read(&placement, shapes[0], seed).unwrap())).collect();
        std::thread::scope(|scope| {
            for (seed, want) in want.iter().enumerate() {
                let placement = placement.clone();
                scope.spawn(move || {
                    for _ in 0..4 {
                        assert!(bits(&read(&placement, shapes[0], seed).unwrap()) == *want);
                    }
                });
            }
            let ones = Tensor::ones((512, 512), DType::F32, &device).unwrap();
            let weight = Weight::from(ones.clone());
            for _ in 0..50 {
                let sums = ops::linear(&ones, &weight, None, None).unwrap();
                let all = sums.sum_all().unwrap().to_scalar::<f32>().unwrap();
                assert_eq!(all, 512.0 * 512.0 * 512.0);
            }
        });
        let failed = placement.read::<Error>(DType::F32, &[2], |_, _| {
            Err(candle_core::Error::Msg("the file is gone".into()).into())
        });
        assert!(failed.unwrap_err().to_string().contains("the file is gone"));
    }
}
