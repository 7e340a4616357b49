//! The parts of Optimal Brain Surgeon on every device, against f64 and against the CPU.

#[path = "../../secateur-kernels/tests/common/numbers.rs"]
mod numbers;

use candle_core::{DType, Device, Tensor};
use numbers::{random, wide, within};
use secateur_kernels::obs::Choice;
use secateur_nn::{devices, ops, to_device};

/// X^T X of twice as many rows with correlated columns, and 0.01 of its mean on the diagonal.
fn hessian(columns: usize) -> (Tensor, Vec<f32>) {
    let x = random(&[2 * columns, columns], columns as u32);
    let mixed = (&x + x.narrow(1, 0, 1).unwrap().broadcast_as(x.shape()).unwrap()).unwrap();
    let h = mixed.t().unwrap().matmul(&mixed).unwrap();
    let rows: Vec<Vec<f32>> = h.to_vec2().unwrap();
    let mean = (0..columns).map(|j| rows[j][j]).sum::<f32>() / columns as f32;
    let diagonal = (0..columns).map(|j| rows[j][j] + 0.01 * mean).collect();
    (h, diagonal)
}

#[test]
fn the_factor_is_of_the_inverse() {
    for device in devices() {
        for columns in [1, 2, 63, 64, 65, 130, 300, 449] {
            let what = format!("{columns} columns on {:?}", device.location());
            let (h, diagonal) = hessian(columns);
            let there = to_device(&h, &device).unwrap();
            let u = ops::inverse_factor(&there, &diagonal).unwrap().unwrap();
            let u = wide(&u);
            let at = |i: usize, j: usize| u[i * columns + j];
            let mut a = wide(&h);
            (0..columns).for_each(|j| a[j * columns + j] = diagonal[j].into());
            // U A U^T = I: all numbers of U go into it.
            for i in 0..columns {
                let row: Vec<f64> = (0..columns)
                    .map(|k| (i..columns).map(|l| at(i, l) * a[l * columns + k]).sum())
                    .collect();
                for j in (i..columns).step_by(7) {
                    let got: f64 = (j..columns).map(|k| row[k] * at(j, k)).sum();
                    let want = f64::from(i == j);
                    assert!((got - want).abs() < 1e-3, "{what}: {i}, {j}: {got}");
                }
                assert!((0..i).all(|j| at(i, j) == 0.0), "{what}: below the diagonal");
            }
        }
        let zeros = to_device(&Tensor::zeros((0, 0), DType::F32, &Device::Cpu).unwrap(), &device);
        assert!(ops::inverse_factor(&zeros.unwrap(), &[]).unwrap().is_some());
        // Not positive definite, early and late, and not finite.
        for (columns, place, value) in [(5, 0, -1.0), (200, 0, -1.0), (200, 199, 0.0)]
            .into_iter()
            .chain([(5, 2, f32::NAN), (200, 100, f32::NAN)])
        {
            let (h, mut diagonal) = hessian(columns);
            diagonal[place] = value;
            let there = to_device(&h, &device).unwrap();
            let what = format!("{value} at {place} of {columns} on {:?}", device.location());
            assert!(ops::inverse_factor(&there, &diagonal).unwrap().is_none(), "{what}");
        }
        let there = to_device(&hessian(3).0, &device).unwrap();
        assert!(ops::inverse_factor(&there, &[1.0; 2]).is_err());
    }
}

/// The masks and the errors of the loop over columns are those of the CPU.
#[test]
fn what_goes_is_the_same_on_every_device() {
    let groups = |pruned, group| Choice::Groups { pruned, group };
    for (rows, columns, choice) in [
        (1, 1, Choice::Share(0.5)),
        (3, 5, Choice::Share(0.4)),
        (70, 129, Choice::Share(0.5)),
        (257, 400, Choice::Share(0.7)),
        (33, 640, Choice::Share(0.05)),
        (9, 256, Choice::Share(1.0)),
        (40, 256, groups(2, 4)),
        (31, 132, groups(2, 3)),
        (17, 250, groups(3, 5)),
        (5, 320, groups(16, 32)),
        (4, 330, groups(7, 33)),
        (0, 64, Choice::Share(0.5)),
    ] {
        let (h, diagonal) = hessian(columns);
        let factor = ops::inverse_factor(&h, &diagonal).unwrap().unwrap();
        let weight = random(&[rows, columns], 5);
        let want = wide(&ops::obs_solve(&weight, &factor, choice).unwrap());
        for device in devices() {
            let what = format!("{rows} x {columns}, {choice:?} on {:?}", device.location());
            let there = |x: &Tensor| to_device(x, &device).unwrap();
            let before = there(&weight);
            let got = ops::obs_solve(&before, &there(&factor), choice).unwrap();
            assert_eq!(wide(&before), wide(&weight), "{what}: the weight is as it was");
            let values = wide(&got);
            assert!(values.iter().all(|w| w.is_finite()), "{what}");
            let zeros = values.iter().zip(&want).map(|(a, b)| (*a == 0.0) == (*b == 0.0));
            let same = zeros.filter(|same| *same).count();
            assert!(same as f64 >= 0.999 * want.len() as f64, "{what}: {same} of {}", want.len());
            if same == want.len() {
                within(1e-4, &what, &got, &want);
            }
        }
    }
}

#[test]
fn sums_and_counts() {
    for device in devices() {
        let (x, y) = (random(&[37, 65], 1), random(&[37, 65], 2));
        let x = (x.ge(0f32).unwrap().to_dtype(DType::F32).unwrap() * &x).unwrap();
        let want: f64 = wide(&x).iter().zip(wide(&y)).map(|(a, b)| a * b).sum();
        let zeros = wide(&x).iter().filter(|x| **x == 0.0).count();
        let [x, y] = [x, y].map(|one| to_device(&one, &device).unwrap());
        let got = ops::inner_product(&x, &y).unwrap();
        assert!((got - want).abs() < 1e-4, "{got} against {want} on {:?}", device.location());
        assert_eq!(ops::zeros(&x).unwrap(), zeros);
        assert!(ops::is_finite(&x).unwrap());
        for bad in [f32::NAN, f32::INFINITY] {
            let bad = x.affine(f64::from(bad), 0.0).unwrap();
            assert!(!ops::is_finite(&bad).unwrap());
        }
        assert!(ops::inner_product(&x, &x.t().unwrap()).is_err());
        // Of columns that lie apart, and of none.
        for part in [x.clone(), x.narrow(1, 3, 17).unwrap(), x.narrow(0, 0, 0).unwrap()] {
            let want: Vec<f64> = match part.dim(0).unwrap() {
                0 => vec![0.0; 65],
                _ => (0..part.dim(1).unwrap())
                    .map(|j| wide(&part.narrow(1, j, 1).unwrap()).iter().map(|x| x * x).sum())
                    .collect(),
            };
            let got = ops::column_squares(&part).unwrap();
            assert_eq!(got.len(), want.len());
            for (got, want) in got.iter().zip(want) {
                assert!((got - want).abs() <= 1e-5 * want, "{got} against {want}");
            }
        }
    }
}

#[test]
fn a_gram_matrix_is_added_to_a_symmetric_one() {
    for device in devices() {
        for (rows, columns) in [(1, 1), (3, 5), (64, 200), (130, 33), (1, 1100), (0, 7)] {
            let what = format!("{rows} x {columns} on {:?}", device.location());
            let (h, _) = hessian(columns);
            let x = random(&[rows + 1, columns], 9).narrow(0, 0, rows).unwrap();
            let [there, x_there] = [&h, &x].map(|one| to_device(one, &device).unwrap());
            let got = ops::add_gram(&there, &x_there, -0.5).unwrap();
            let (h, rows_of_x) = (wide(&h), if rows == 0 { Vec::new() } else { wide(&x) });
            let mut want = h;
            for row in rows_of_x.chunks_exact(columns) {
                for (i, a) in row.iter().enumerate() {
                    for (j, b) in row.iter().enumerate() {
                        want[i * columns + j] -= 0.5 * a * b;
                    }
                }
            }
            within(1e-5, &what, &got, &want);
            // The matrix itself is as it was.
            assert_eq!(wide(&there), wide(&hessian(columns).0), "{what}");
        }
        let [matrix, x] =
            [random(&[3, 3], 1), random(&[4, 2], 2)].map(|one| to_device(&one, &device).unwrap());
        assert!(ops::add_gram(&matrix, &x, 1.0).is_err());
    }
}

#[test]
fn what_does_not_fit_the_solver_is_an_error() {
    for device in devices() {
        let [weight, factor] =
            [random(&[4, 6], 1), random(&[6, 6], 2)].map(|one| to_device(&one, &device).unwrap());
        let groups = |pruned, group| Choice::Groups { pruned, group };
        for choice in [groups(2, 4), groups(3, 2), groups(0, 0)] {
            assert!(ops::obs_solve(&weight, &factor, choice).is_err(), "{choice:?}");
        }
        let other = factor.to_dtype(DType::BF16).unwrap();
        assert!(ops::obs_solve(&weight, &other, groups(1, 2)).is_err());
        assert!(ops::obs_solve(&weight, &weight, groups(1, 2)).is_err());
        assert!(ops::obs_solve(&weight, &factor, groups(1, 2)).is_ok());
    }
}
