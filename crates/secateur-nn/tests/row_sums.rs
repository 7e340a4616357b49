//! Sums over rows on every device, against f64.

#[path = "../../secateur-kernels/tests/common/numbers.rs"]
mod numbers;

use candle_core::{DType, Device, Tensor};
use numbers::{random, wide, within};
use secateur_kernels::gram;
use secateur_nn::ops::{HostSums, RowSums, Rows, bands_of_gram, whole_gram};
use secateur_nn::{devices, to_device};

/// Sums of rows (places, how often each counts) of several inputs, with their weights.
type Added<'a> = [(&'a Tensor, Vec<usize>, Vec<f32>, f64)];

/// All four sums, the whole Gram matrix.
fn plain(width: usize, added: &Added<'_>) -> [Vec<f64>; 4] {
    let zeros = vec![0.0; width];
    let [mut weighted, mut sums, mut squares] = [zeros.clone(), zeros.clone(), zeros];
    let mut gram = vec![0.0; width * width];
    for (x, places, times, weight) in added {
        let x = wide(x);
        for (&place, &times) in places.iter().zip(times) {
            let row = &x[place * width..][..width];
            for (i, &a) in row.iter().enumerate() {
                let a_times = f64::from(times) * a;
                weighted[i] += weight * a_times;
                sums[i] += a_times;
                squares[i] += a_times * a;
                for (j, &b) in row.iter().enumerate() {
                    gram[i * width + j] += weight * a_times * b;
                }
            }
        }
    }
    [gram, weighted, sums, squares]
}

fn check(what: &str, host: &HostSums, want: &[Vec<f64>; 4], width: usize, tolerance: f64) {
    let upper = |all: &[f64]| -> Vec<f64> {
        (0..width).flat_map(|row| all[row * width + row..(row + 1) * width].to_vec()).collect()
    };
    let gram: Vec<f64> = gram::whole(&host.gram, width).into_iter().map(f64::from).collect();
    let tensor = |values: &[f64]| Tensor::from_slice(values, values.len(), &Device::Cpu).unwrap();
    within(tolerance, &format!("{what}: Gram"), &tensor(&upper(&gram)), &upper(&want[0]));
    let columns = [&host.weighted_sums, &host.sums, &host.squares];
    for ((name, got), want) in
        ["weighted sums", "sums", "squares"].iter().zip(columns).zip(&want[1..])
    {
        within(tolerance, &format!("{what}: {name}"), &tensor(got), want);
    }
}

#[test]
fn sums_on_every_device_are_those_of_f64() {
    for device in devices() {
        let dtypes: &[DType] = match device.is_cpu() {
            true => &[DType::F32],
            false => &[DType::F32, DType::F16, DType::BF16],
        };
        // Wider than a tile of the Gram matrix, and neither of whole accesses nor of whole warps.
        for width in [1, 3, 24, 72, 513, 1030, 1600] {
            for &dtype in dtypes {
                let what = format!("{width} x {dtype:?} on {:?}", device.location());
                let inputs = [[2, 37, width], [1, 300, width]]
                    .map(|shape| random(&shape, width as u32).to_dtype(dtype).unwrap());
                let every = |count: usize| (0..count).collect::<Vec<usize>>();
                // Samples that lie apart, as parts of a joined tensor.
                let joined = random(&[2, 50, width], 1 + width as u32).to_dtype(dtype).unwrap();
                let part = joined.narrow(1, 9, 21).unwrap();
                // All rows alike; some rows, which count 0 times or several; no rows.
                let some: Vec<usize> = every(300).into_iter().step_by(7).collect();
                let times = (0..some.len()).map(|index| [1.0, 4.0, 0.0, 1.0][index % 4]).collect();
                let added = [
                    (&inputs[0], every(74), vec![1.0; 74], 0.75),
                    (&inputs[1], some, times, 1.5),
                    (&inputs[1], Vec::new(), Vec::new(), 1.0),
                    (&part, every(42), vec![2.0; 42], 0.5),
                    (&part, vec![0, 20, 21, 40], vec![1.0; 4], 0.25),
                ];
                let want = plain(width, &added);
                let mut sums = RowSums::new(width);
                let add = |sums: &mut RowSums, one: &Added<'_>| {
                    for (x, places, times, weight) in one {
                        let rows = Rows::new(places.clone(), times.clone());
                        let x = match x.is_contiguous() {
                            true => to_device(x, &device).unwrap(),
                            false => to_device(&joined, &device).unwrap().narrow(1, 9, 21).unwrap(),
                        };
                        sums.add(&x, &rows, *weight).unwrap();
                    }
                };
                add(&mut sums, &added);
                check(&what, &sums.read().unwrap(), &want, width, 1e-5);
                assert!(sums.is_finite().unwrap(), "{what}");
                // From memory they go on to the device.
                sums.host().unwrap();
                add(&mut sums, &added[..1]);
                let again = [&added[..], &added[..1]].concat();
                let want = plain(width, &again);
                check(&what, sums.host().unwrap(), &want, width, 1e-5);
                // No rows: the sums are on the device again.
                let none = (&inputs[1], Vec::new(), Vec::new(), 1.0);
                add(&mut sums, &[none]);
                let (bands, _) = sums.finish(0.5).unwrap();
                assert!(bands.device().same_device(&device), "{what}");
                let whole = whole_gram(&bands, width).unwrap();
                let half: Vec<f64> = want[0].iter().map(|sum| 0.5 * sum).collect();
                within(1e-5, &format!("{what}: whole"), &whole, &half);
                let again = bands_of_gram(&whole).unwrap();
                assert_eq!(wide(&whole_gram(&again, width).unwrap()), wide(&whole), "{what}");
            }
        }
        let mut sums = RowSums::new(2);
        assert!(sums.is_finite().unwrap() && sums.read().unwrap().gram == [0.0; 4]);
        let bad = Tensor::new(&[[1f32, f32::NAN]], &device).unwrap();
        let first = Rows::new(vec![0], vec![1.0]);
        let is_finite = sums.add(&bad, &first, 1.0).unwrap();
        assert_eq!(is_finite, !device.is_cpu());
        assert!(!sums.is_finite().unwrap());
        let error = RowSums::new(3).add(&bad, &first, 1.0).unwrap_err().to_string();
        assert!(error.contains("should be 3"), "{error}");
    }
}
