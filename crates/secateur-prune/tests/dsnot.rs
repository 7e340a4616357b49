//! DSnoT against a plain version in f64, against its own code told again in PyTorch
//! (`tests/goldens/README.md`), and what must hold of any mask that it makes.

#![expect(clippy::print_stdout, reason = "a test tells its figures")]

#[path = "common/pruning.rs"]
mod pruning;
#[path = "common/random.rs"]
mod random;
#[path = "common/statistics.rs"]
mod of_hessian;

use candle_core::Device;
use of_hessian::with_hessian;
use pruning::{numbers, prune_layers};
use random::random;
use rayon::ThreadPoolBuilder;
use secateur_prune::{Dsnot, Factor, InputStatistics, LayerWeight, Method, Pattern, Wanda};
use std::path::{Path, PathBuf};

const STARTS: [Dsnot; 2] = [Dsnot::Wanda, Dsnot::Hessian];

/// Of twice as many rows as columns, that are random around means up to `offset` from 0.
fn statistics(columns: usize, offset: f32, seed: u64) -> InputStatistics {
    let (means, sizes) = (random(columns, seed + 1), random(columns, seed + 2));
    let rows = 2 * columns;
    let mut x = random(rows * columns, seed);
    for row in x.chunks_mut(columns) {
        for j in 1..columns {
            row[j] += 0.3 * row[j - 1];
        }
        for j in 0..columns {
            row[j] = row[j] * (0.2 + sizes[j].abs()) + offset * means[j];
        }
    }
    of_rows(&x, columns)
}

fn of_rows(x: &[f32], columns: usize) -> InputStatistics {
    let (mut hessian, mut sums) = (vec![0f32; columns * columns], vec![0f32; columns]);
    for row in x.chunks(columns) {
        for (x, (sum, hessian)) in row.iter().zip(sums.iter_mut().zip(hessian.chunks_mut(columns)))
        {
            *sum += x;
            hessian.iter_mut().zip(row).for_each(|(h, y)| *h += x * y);
        }
    }
    let squares = (0..columns).map(|j| hessian[j * columns + j]).collect();
    let rows = (x.len() / columns) as u64;
    InputStatistics { sums, squares, rows, ..with_hessian(&hessian) }
}

fn layer(rows: usize, columns: usize, scale: f32) -> LayerWeight {
    let values = random(rows * columns, 7).iter().map(|w| w * scale).collect();
    LayerWeight { layer: "layer".into(), rows, columns, values }
}

fn pruned(
    method: &dyn Method,
    layer: &LayerWeight,
    statistics: &InputStatistics,
    pattern: Pattern,
) -> Vec<f32> {
    let mut layers = [layer.clone()];
    prune_layers(method, &mut layers, statistics, pattern).unwrap();
    let [layer] = layers;
    layer.values
}

fn pattern(text: &str) -> Pattern {
    if text.contains(':') { text.parse() } else { Pattern::unstructured(text.parse().unwrap()) }
        .unwrap()
}

/// Mean and variance of column j.
fn moments(statistics: &InputStatistics, j: usize) -> (f64, f64) {
    let rows = statistics.rows as f64;
    let mean = f64::from(statistics.sums[j]) / rows;
    (mean, f64::from(statistics.squares[j]) / rows - mean * mean)
}

/// What the weights that `after` lacks added to each row's expected output.
fn errors(layer: &LayerWeight, after: &[f32], statistics: &InputStatistics) -> Vec<f64> {
    let lost = |(i, (w, after)): (usize, (&f32, &f32))| {
        f64::from(w - after) * moments(statistics, i % layer.columns).0
    };
    let lost: Vec<f64> = layer.values.iter().zip(after).enumerate().map(lost).collect();
    lost.chunks(layer.columns).map(|row| row.iter().sum()).collect()
}

/// The place that `better` prefers to all before it.
fn best(
    places: impl Iterator<Item = usize>,
    better: impl Fn(usize, usize) -> bool,
) -> Option<usize> {
    places
        .fold(None, |best, j| if best.is_none_or(|best| better(j, best)) { Some(j) } else { best })
}

/// One row as the method is described: every choice is a search through all weights. Returns the
/// places of zeros and the number of swaps. `u` is the diagonal of the Hessian's factor if that is
/// the start.
fn plain(
    row: &[f32],
    statistics: &InputStatistics,
    u: Option<&[f64]>,
    pattern: Pattern,
) -> (Vec<bool>, usize) {
    let columns = row.len();
    let m = |j: usize| f64::from(row[j]) * moments(statistics, j).0;
    let norm = |j: usize| (f64::from(statistics.squares[j]) / statistics.rows as f64).sqrt();
    let wanda: Vec<f64> = (0..columns).map(|j| f64::from(row[j].abs()) * norm(j)).collect();
    let start = match u {
        Some(u) => row.iter().zip(u).map(|(&w, u)| (f64::from(w) / u).powi(2)).collect(),
        None => wanda.clone(),
    };
    let (group, count) = match pattern {
        Pattern::Unstructured(share) => (columns, (columns as f64 * share) as usize),
        Pattern::SemiStructured { pruned, group } => (group, pruned),
    };
    let mut zero = vec![false; columns];
    for first in (0..columns).step_by(group) {
        for _ in 0..count {
            let left = (first..first + group).filter(|&j| !zero[j]);
            let least = best(left, |a, b| start[a] < start[b]).unwrap();
            zero[least] = true;
        }
    }
    let mut moved = vec![false; columns];
    let mut swaps = 0;
    for _ in 0..50 {
        let error: f64 = (0..columns).filter(|&j| zero[j]).map(m).sum();
        if error.abs() <= 0.1 {
            break;
        }
        let reach = |j: usize| m(j).abs() / moments(statistics, j).1;
        let back = (0..columns).filter(|&j| zero[j] && !moved[j] && m(j) * error > 0.0);
        let Some(back) = best(back, |a, b| reach(a) > reach(b)) else { break };
        let left = (0..columns).filter(|&j| !zero[j] && !moved[j]);
        let gone = if group == columns {
            best(left.filter(|&j| m(j) * error < 0.0), |a, b| wanda[a] < wanda[b])
        } else {
            best(left.filter(|&j| j / group == back / group), |a, b| start[a] < start[b])
        };
        moved[back] = true;
        let Some(gone) = gone else { continue };
        if group != columns && (error - m(back) + m(gone)) * error <= 0.0 {
            break;
        }
        moved[gone] = true;
        (zero[back], zero[gone]) = (false, true);
        swaps += 1;
    }
    (zero, swaps)
}

#[test]
fn dsnot_is_the_plain_algorithm() {
    let cases = [
        (7, 33, "0.5", 1.0),
        (1, 5, "0.8", 3.0),
        (30, 131, "0.3", 0.5),
        (20, 257, "0.6", 1.0),
        // Many swaps, past 0 and back.
        (8, 700, "0.75", 4.0),
        (16, 64, "2:4", 1.0),
        (9, 120, "4:8", 1.0),
        (6, 35, "2:5", 1.0),
        // A group has less to give than it may want.
        (12, 36, "3:4", 2.0),
        (3, 512, "2:4", 2.0),
    ];
    for (index, (rows, columns, text, scale)) in cases.into_iter().enumerate() {
        let (layer, statistics) =
            (layer(rows, columns, scale), statistics(columns, 1.0, 20 + index as u64));
        let factor = Factor::new(&statistics.hessian, &"layer".into()).unwrap();
        let values = numbers(&factor.values);
        let u: Vec<f64> = values.iter().step_by(columns + 1).map(|&u| u.into()).collect();
        for (method, u) in [(Dsnot::Wanda, None), (Dsnot::Hessian, Some(&*u))] {
            let got = pruned(&method, &layer, &statistics, pattern(text));
            let mut all = 0;
            for (i, (row, got)) in layer.values.chunks(columns).zip(got.chunks(columns)).enumerate()
            {
                let (zero, swaps) = plain(row, &statistics, u, pattern(text));
                let want: Vec<f32> =
                    row.iter().zip(&zero).map(|(&w, &zero)| if zero { 0.0 } else { w }).collect();
                assert_eq!(got, want, "{} {text} {rows} x {columns}, row {i}", method.name());
                all += swaps;
            }
            println!(
                "{} {text} {rows} x {columns}: {:.1} swaps a row",
                method.name(),
                all as f64 / rows as f64
            );
            assert!(all > 0, "{} {text} {rows} x {columns}: nothing was swapped", method.name());
        }
    }
}

#[test]
fn dsnot_masks_are_those_of_its_own_code() {
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens");
    let path = std::env::var_os("SECATEUR_GOLDENS")
        .map_or_else(own, PathBuf::from)
        .join("obs/dsnot.safetensors");
    if !path.exists() {
        println!("skipped: {} is not there", path.display());
        return;
    }
    let golden = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let values = |name: &str| golden[name].flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (rows, columns) = golden["weight"].dims2().unwrap();
    let layer = LayerWeight { layer: "layer".into(), rows, columns, values: values("weight") };
    let statistics = InputStatistics {
        sums: values("sums"),
        squares: values("squares"),
        rows: u64::from(golden["rows"].to_scalar::<u32>().unwrap()),
        ..with_hessian(&values("hessian"))
    };
    for (name, method) in [("wanda", Dsnot::Wanda), ("hessian", Dsnot::Hessian)] {
        for (case, text) in [("50", "0.5"), ("70", "0.7"), ("2_4", "2:4"), ("4_8", "4:8")] {
            let mask =
                golden[&format!("{name}_{case}")].flatten_all().unwrap().to_vec1::<u8>().unwrap();
            let want: Vec<f32> = layer
                .values
                .iter()
                .zip(mask)
                .map(|(&w, zero)| if zero == 1 { 0.0 } else { w })
                .collect();
            assert_eq!(pruned(&method, &layer, &statistics, pattern(text)), want, "{name} {text}");
        }
    }
}

/// Where weights add less than the threshold, a swap cannot go further past 0 than the error was
/// from it. N:M prunes what its group values least, whatever that adds, so that the error of a
/// single row may grow; but it keeps its sign.
#[test]
fn swaps_keep_the_zeros_and_lessen_the_error() {
    let (columns, statistics) = (480, statistics(480, 2.0, 3));
    let layer = layer(50, columns, 0.07);
    for text in ["0.5", "0.7", "2:4", "4:8", "3:5"] {
        let pattern = pattern(text);
        let before = pruned(&Wanda, &layer, &statistics, pattern);
        let after = pruned(&Dsnot::Wanda, &layer, &statistics, pattern);
        assert_ne!(before, after, "{text}");
        assert!(
            after.iter().zip(&layer.values).all(|(&a, &w)| a == 0.0 || a == w),
            "{text}: a weight has changed"
        );
        let group =
            if let Pattern::SemiStructured { group, .. } = pattern { group } else { columns };
        let zeros = |values: &[f32]| -> Vec<usize> {
            values.chunks(group).map(|group| group.iter().filter(|w| **w == 0.0).count()).collect()
        };
        assert_eq!(zeros(&before), zeros(&after), "{text}");
        let (before, after) =
            (errors(&layer, &before, &statistics), errors(&layer, &after, &statistics));
        for (i, (before, after)) in before.iter().zip(&after).enumerate() {
            let kept =
                if group == columns { after.abs() <= before.abs() } else { after * before > 0.0 };
            assert!(kept, "{text}, row {i}: from {before} to {after}");
        }
        let total = |errors: &[f64]| errors.iter().map(|error| error.abs()).sum::<f64>();
        assert!(
            total(&after) < 0.8 * total(&before),
            "{text}: from {} to {}",
            total(&before),
            total(&after)
        );
    }
}

#[test]
fn rows_whose_error_is_small_are_left_as_they_start() {
    // Means of 0.
    let columns = 40;
    let x = random(100 * columns, 1);
    let x: Vec<f32> = x
        .chunks(columns)
        .flat_map(|row| row.iter().copied().chain(row.iter().map(|x| -x)))
        .collect();
    let (layer, statistics) = (layer(6, columns, 5.0), of_rows(&x, columns));
    for text in ["0.5", "2:4"] {
        let pattern = pattern(text);
        let want = pruned(&Wanda, &layer, &statistics, pattern);
        assert_eq!(pruned(&Dsnot::Wanda, &layer, &statistics, pattern), want, "{text}");
    }
}

#[test]
fn nothing_to_prune_and_nothing_to_go_by() {
    let (layer, statistics) = (layer(5, 24, 4.0), statistics(24, 1.0, 1));
    let empty = InputStatistics { sums: vec![0.0; 24], ..with_hessian(&[0.0; 576]) };
    for method in STARTS {
        assert_eq!(pruned(&method, &layer, &statistics, pattern("0")), layer.values);
        // 1 of 24 goes, or 23.
        for (text, count) in [("0.05", 1), ("0.97", 23)] {
            let after = pruned(&method, &layer, &statistics, pattern(text));
            assert!(
                after.chunks(24).all(|row| row.iter().filter(|w| **w == 0.0).count() == count),
                "{text}"
            );
        }
        let after = pruned(&method, &layer, &empty, pattern("0.5"));
        assert!(after.chunks(24).all(|row| row.iter().filter(|w| **w == 0.0).count() == 12));
        method.prune(&mut [], &statistics).unwrap();
        let odd = LayerWeight { columns: 6, values: vec![1.0; 6], rows: 1, layer: "odd".into() };
        let statistics = self::statistics(6, 1.0, 1);
        let error = prune_layers(&method, &mut [odd], &statistics, pattern("2:4"));
        let error = error.unwrap_err().to_string();
        assert!(error.contains("odd") && error.contains("6 columns"), "{error}");
    }
}

/// Columns that no input reaches go first and do not come back; a column whose input never
/// changes comes back first.
#[test]
fn columns_without_variance() {
    let (columns, dead, constant) = (32, [3, 20], 9);
    let mut x: Vec<f32> = random(64 * columns, 5).iter().map(|x| x + 0.5).collect();
    for row in x.chunks_mut(columns) {
        dead.iter().for_each(|&j| row[j] = 0.0);
        row[constant] = 0.5;
    }
    let statistics = of_rows(&x, columns);
    let mut layer = layer(40, columns, 2.0);
    layer.values.chunks_mut(columns).for_each(|row| row[constant] *= 0.01);
    for text in ["0.6", "2:4"] {
        for method in STARTS {
            let after = pruned(&method, &layer, &statistics, pattern(text));
            assert!(
                after.chunks(columns).all(|row| dead.iter().all(|&j| row[j] == 0.0)),
                "{} {text}",
                method.name()
            );
        }
    }
    let errors = errors(&layer, &pruned(&Wanda, &layer, &statistics, pattern("0.6")), &statistics);
    let after = pruned(&Dsnot::Wanda, &layer, &statistics, pattern("0.6"));
    let rows = layer.values.chunks(columns).zip(after.chunks(columns)).zip(errors);
    let wanted: Vec<bool> = rows
        .filter(|((row, _), error)| error.abs() > 0.1 && error * f64::from(row[constant]) > 0.0)
        .map(|((_, after), _)| after[constant] != 0.0)
        .collect();
    assert!(wanted.len() > 5 && wanted.iter().all(|&back| back), "{wanted:?}");
}

#[test]
fn threads_do_not_change_the_mask() {
    let (layer, statistics) = (layer(37, 96, 2.0), statistics(96, 1.0, 2));
    for method in STARTS {
        for text in ["0.5", "2:4"] {
            let by = |threads| {
                let pool = ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| pruned(&method, &layer, &statistics, pattern(text)))
            };
            let one = by(1);
            assert!(
                [2, 5].into_iter().all(|threads| by(threads) == one),
                "{} {text}",
                method.name()
            );
        }
    }
}
