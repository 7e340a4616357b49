//! Gram matrices, factors and the solver against plain f64 versions: odd sizes, one row, no rows.

#[path = "common/numbers.rs"]
mod numbers;
#[path = "common/vectors.rs"]
mod vectors;

use candle_core::{Device, Tensor};
use numbers::{random, wide, within};
use secateur_kernels::{ConvolutionWeight, LinearWeight, gram, obs};

fn close(what: &str, got: &Tensor, want: &[f64]) {
    within(3e-6, what, got, want);
}

#[test]
fn gram_matrices() {
    for (rows, columns) in [(1, 1), (1, 9), (7, 5), (300, 70), (0, 4), (64, 200)] {
        let x = random(&[rows, columns], 1);
        let (values, a) = (x.flatten_all().unwrap().to_vec1::<f32>().unwrap(), wide(&x));
        let mut got = vec![0f32; columns * columns];
        let row = |row: usize| &values[row * columns..][..columns];
        gram::add_gram(rows, columns, row, |_| 0.5, &mut got);
        gram::add_gram(rows, columns, row, |row| if row % 2 == 0 { 1.0 } else { 0.25 }, &mut got);
        gram::symmetrise(&mut got, columns);
        let mut want = vec![0.0; columns * columns];
        for (index, row) in a.chunks(columns).enumerate() {
            let weight = 0.5 + if index % 2 == 0 { 1.0 } else { 0.25 };
            for i in 0..columns {
                for j in 0..columns {
                    want[i * columns + j] += weight * row[i] * row[j];
                }
            }
        }
        close("gram", &Tensor::from_vec(got, (columns, columns), &Device::Cpu).unwrap(), &want);
        let (mut sums, mut squares) = (vec![1.0; columns], vec![1.0; columns]);
        gram::add_column_moments(rows, row, |row| (row % 3) as f32, &mut sums, &mut squares);
        let weighted = |f: &dyn Fn(&[f64]) -> f64| {
            1.0 + a.chunks(columns).enumerate().map(|(row, x)| (row % 3) as f64 * f(x)).sum::<f64>()
        };
        for j in 0..columns {
            let (sum, size, square) =
                (weighted(&|x| x[j]), weighted(&|x| x[j].abs()), weighted(&|x| x[j] * x[j]));
            assert!((sums[j] - sum).abs() < 1e-5 * size, "column {j}: {} against {sum}", sums[j]);
            assert!(
                (squares[j] - square).abs() < 1e-5 * square,
                "column {j}: {} against {square}",
                squares[j]
            );
        }
    }
}

/// In bands the sums are the same, to the bit.
#[test]
fn gram_matrices_in_bands() {
    // No, one and several bands, the last of one row, and of whole panels.
    for columns in [0, 1, 70, 1537, 2305, 3100] {
        let rows = 5;
        let x = random(&[rows, columns], 2).flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let row = |row: usize| &x[row * columns..][..columns];
        let (mut whole, mut bands) =
            (vec![0f32; columns * columns], vec![0f32; gram::numbers_in_bands(columns)]);
        for weight in [0.5, 1.25] {
            gram::add_gram(rows, columns, row, |_| weight, &mut whole);
            gram::add_gram_to_bands(rows, columns, row, |_| weight, &mut bands);
        }
        gram::symmetrise(&mut whole, columns);
        assert!(gram::whole(&bands, columns) == whole, "{columns} columns");
        let all: Vec<usize> = gram::bands(columns).flatten().collect();
        assert_eq!(all, (0..columns).collect::<Vec<_>>());
    }
    // Little more than half.
    assert!(gram::numbers_in_bands(9728) * 100 < 59 * 9728 * 9728);
}

#[test]
fn a_gram_of_many_rows_stays_accurate() {
    // A million rows, in calls as a calibration makes them; in f64 beside it.
    let (columns, rows, calls) = (3, 4096, 245);
    let (mut gram, mut want) = (vec![0f32; columns * columns], vec![0f64; columns * columns]);
    for call in 0..calls {
        let x = (random(&[rows, columns], call) + 0.3)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap();
        gram::add_gram(rows, columns, |row| &x[row * columns..][..columns], |_| 1.0, &mut gram);
        for row in x.chunks(columns) {
            for i in 0..columns {
                for j in 0..columns {
                    want[i * columns + j] += f64::from(row[i]) * f64::from(row[j]);
                }
            }
        }
    }
    gram::symmetrise(&mut gram, columns);
    for (g, w) in gram.iter().zip(&want) {
        assert!((f64::from(*g) - w).abs() < 1e-5 * w.abs(), "{g} against {w}");
    }
}

/// A A^T / n + `ridge`, symmetric positive definite.
fn definite(n: usize, ridge: f32, seed: u32) -> Vec<f32> {
    let a = random(&[n, n], seed);
    let square = (a.matmul(&a.t().unwrap()).unwrap() / n as f64).unwrap().flatten_all().unwrap();
    let mut square = square.to_vec1::<f32>().unwrap();
    (0..n).for_each(|i| square[i * n + i] += ridge);
    square
}

#[test]
fn the_factor_of_the_inverse() {
    for n in [0, 1, 2, 63, 64, 65, 100, 129, 200, 300] {
        let matrix = definite(n, 0.05, 7);
        let mut u = matrix.clone();
        secateur_kernels::factor::inverse_factor(&mut u, n).unwrap();
        // U A U^T = 1, in f64.
        let wide = |values: &[f32]| -> Vec<f64> { values.iter().map(|&x| f64::from(x)).collect() };
        let (a, u) = (wide(&matrix), wide(&u));
        for i in 0..n {
            assert!(
                u[i * n..i * n + i].iter().all(|&x| x == 0.0),
                "{n}: below the diagonal of row {i}"
            );
            let row: Vec<f64> =
                (0..n).map(|j| (0..n).map(|k| u[i * n + k] * a[k * n + j]).sum()).collect();
            for j in 0..n {
                let one: f64 = (0..n).map(|k| row[k] * u[j * n + k]).sum();
                let want = if i == j { 1.0 } else { 0.0 };
                assert!((one - want).abs() < 2e-4, "{n}: element {i}, {j} of U A U^T is {one}");
            }
        }
    }
    let mut indefinite = definite(100, 0.05, 7);
    indefinite[50 * 100 + 50] = -1.0;
    assert!(secateur_kernels::factor::inverse_factor(&mut indefinite, 100).is_err());
    assert!(secateur_kernels::factor::inverse_factor(&mut [f32::NAN], 1).is_err());
}

/// The solver's loop as it is written down, in f64: one column after another, with every column
/// behind it updated at once.
fn plain_solve(
    weight: &[f32],
    factor: &[f32],
    columns: usize,
    pruned: usize,
    group: usize,
) -> Vec<f64> {
    let u: Vec<f64> = factor.iter().map(|&x| f64::from(x)).collect();
    let mut weight: Vec<f64> = weight.iter().map(|&x| f64::from(x)).collect();
    for row in weight.chunks_mut(columns) {
        let mut goes = vec![false; columns];
        for i in 0..columns {
            if i % group == 0 {
                let mut order: Vec<usize> = (i..i + group).collect();
                order.sort_by(|&a, &b| {
                    (row[a] / u[a * columns + a])
                        .abs()
                        .total_cmp(&(row[b] / u[b * columns + b]).abs())
                });
                order[..pruned].iter().for_each(|&j| goes[j] = true);
            }
            if goes[i] {
                let error = row[i] / u[i * columns + i];
                for j in i..columns {
                    row[j] -= error * u[i * columns + j];
                }
                row[i] = 0.0;
            }
        }
    }
    weight
}

#[test]
fn solving_in_blocks_is_solving_column_by_column() {
    for (rows, columns, pruned, group) in
        [(1, 4, 2, 4), (70, 300, 2, 4), (17, 264, 5, 8), (3, 260, 1, 2), (5, 390, 2, 3)]
    {
        let mut factor = definite(columns, 0.3, 3);
        secateur_kernels::factor::inverse_factor(&mut factor, columns).unwrap();
        let weight = random(&[rows, columns], 5).flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let mut solved = weight.clone();
        obs::solve(&mut solved, &factor, obs::Choice::Groups { pruned, group });
        let want = plain_solve(&weight, &factor, columns, pruned, group);
        close("solved", &Tensor::from_vec(solved, (rows, columns), &Device::Cpu).unwrap(), &want);
    }
}

/// With U diagonal nothing is made up for: of every 128 columns exactly the int(n share) + 1
/// weights of least |w| / U_jj go.
#[test]
fn a_share_goes_by_the_least_scores_of_a_block() {
    for (rows, columns, share) in
        [(1, 7, 0.0), (3, 40, 0.3), (70, 128, 0.5), (9, 300, 0.62), (4, 130, 0.999)]
    {
        let mut factor = vec![0f32; columns * columns];
        (0..columns).for_each(|j| factor[j * columns + j] = 0.2 + (j * 7 % 11) as f32);
        let weight = random(&[rows, columns], 8).flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let mut solved = weight.clone();
        obs::solve(&mut solved, &factor, obs::Choice::Share(share));
        let score =
            |place: &usize| (weight[*place] / factor[place % columns * (columns + 1)]).abs();
        for start in (0..columns).step_by(128) {
            let in_block = |place: &usize| (start..start + 128).contains(&(place % columns));
            let mut places: Vec<usize> = (0..rows * columns).filter(in_block).collect();
            places.sort_by(|a, b| score(a).total_cmp(&score(b)));
            let goes = (places.len() as f64 * share) as usize + 1;
            for (rank, &place) in places.iter().enumerate() {
                let want = if rank < goes { 0.0 } else { weight[place] };
                assert_eq!(
                    solved[place], want,
                    "{rows} x {columns}, {share}: weight {place} of rank {rank}"
                );
            }
        }
    }
}

/// In numbers of four bytes, on the widest vectors, of 16: what is there once, and what for every
/// thread. That no more is held is in memory.rs.
#[test]
fn the_memory_that_kernels_say() {
    use secateur_kernels::factor::inverse_factor_scratch;
    let groups = |pruned, group| obs::Choice::Groups { pruned, group };
    let share = obs::Choice::Share(0.5);
    let solve = |rows, columns, choice| move || obs::solve_scratch(rows, columns, choice);
    type Said = Box<dyn Fn() -> u64 + Sync>;
    let cases: [(&str, Said, u64, u64); 8] = [
        // The factor behind a block and in it, the scores; errors of 64 rows twice, and two vectors
        // a column.
        (
            "solve",
            Box::new(solve(1000, 300, share)),
            128 * 304 + 128 * 128 + 1000 * 128,
            128 * (64 + 64 + 16 + 16),
        ),
        (
            "solve in groups",
            Box::new(solve(1000, 300, groups(2, 4))),
            128 * 304 + 128 * 128,
            128 * 160,
        ),
        (
            "solve in a large group",
            Box::new(solve(7, 300, groups(3, 200))),
            200 * 304 + 200 * 200,
            200 * 160,
        ),
        ("solve few columns", Box::new(solve(5, 40, share)), 40 * 48 + 40 * 40 + 5 * 40, 40 * 160),
        // 1024 rows; two panels of three vectors.
        ("gram", Box::new(|| gram::add_gram_scratch(300)), 1024 * 304, 1024 * 2 * 3 * 16),
        // Half of the columns in whole blocks of 64; 128 Ki elements, of at most 512 columns in
        // whole rows, and a Gram's.
        ("factor", Box::new(|| inverse_factor_scratch(1300)), 704 * 704, (256 + 96) * 704),
        ("factor of a block", Box::new(|| inverse_factor_scratch(40)), 40 * 48, (3276 + 96) * 40),
        ("factor of nothing", Box::new(|| inverse_factor_scratch(0)), 0, 0),
    ];
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        for (what, said, once, each) in &cases {
            assert_eq!(
                pool.install(said),
                4 * (once + threads as u64 * each),
                "{what}, {threads} threads"
            );
        }
    }
}

#[test]
fn solving_removes_and_compensates() {
    // U with a unit diagonal and one entry beside it: removing column 0 moves half of it to column
    // 1.
    let factor = [1.0, 0.5, 0.0, 1.0];
    let mut weight = [1.0, 4.0, 3.0, 1.0];
    obs::solve(&mut weight, &factor, obs::Choice::Groups { pruned: 1, group: 2 });
    assert_eq!(weight, [0.0, 3.5, 3.0, 0.0]);
    // Scores 1, 1, 9, 16: element 1 of them is the threshold.
    let mut weight = [1.0, 4.0, 3.0, 1.0];
    obs::solve(&mut weight, &factor, obs::Choice::Share(0.25));
    assert_eq!(weight, [0.0, 3.5, 3.0, 0.0]);
}

#[test]
fn a_packed_weight_gives_its_elements_back() {
    for (outputs, inputs) in [(1, 1), (1, 300), (7, 5), (8, 8), (47, 33), (48, 512), (97, 513)] {
        let mut weight =
            random(&[outputs, inputs], 3).flatten_all().unwrap().to_vec1::<f32>().unwrap();
        (weight[0], weight[outputs * inputs / 2]) = (-0.0, f32::INFINITY);
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let linear = LinearWeight::new(&weight, inputs).elements();
        assert_eq!(bits(&linear), bits(&weight), "linear of {outputs} x {inputs}");
        let convolution = ConvolutionWeight::new(&weight, outputs).elements();
        assert_eq!(bits(&convolution), bits(&weight), "convolution of {outputs} x {inputs}");
    }
    assert!(LinearWeight::new(&[], 4).elements().is_empty());
    assert!(LinearWeight::new(&[], 0).elements().is_empty());
    assert!(ConvolutionWeight::new(&[], 4).elements().is_empty());
    assert!(ConvolutionWeight::new(&[], 0).elements().is_empty());
}
