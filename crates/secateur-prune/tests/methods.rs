//! The methods on cases that no fixture has: against a plain f64 version, dead columns, Hessians
//! that are hard to factor.

#[path = "common/given.rs"]
mod given;
#[path = "common/pruning.rs"]
mod pruning;
#[path = "common/random.rs"]
mod random;
#[path = "common/statistics.rs"]
mod of_hessian;

use candle_core::{Device, Tensor};
use given::Given;
use of_hessian::{square, with_hessian};
use pruning::{numbers, prune_layers, weight};
use random::random;
use secateur_models::{
    Block, Conditioning, Edits, Geometry, Group, Layer, ModelFolder, NeuronGroup, Operation,
    Pipeline, Prunable, Removals, Role, Sampling, Slice, Structure, denoiser_config,
};
use secateur_nn::{Context, Kind, Probe, Step};
use secateur_prune::{
    Calibration, Calibrator, Dsnot, Factor, Fingerprint, InputStatistics, LayerWeight, Magnitude,
    Method, Obs, Packages, Pattern, Plan, PlannedGroup, Portion, SavedStatistics, Selection,
    Source, StructuredMethod, Task, Wanda, hessian_error, influence_pictures, prune,
};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

/// Half of the weights.
fn half(method: &dyn Method) -> Task<'_> {
    Task::Weights { method, pattern: Pattern::Unstructured(0.5) }
}

/// All layers in one package.
fn one_package(structure: &Structure) -> Plan {
    Plan::new(structure, &Selection::default(), Packages::Count(1), &half(&Obs)).unwrap()
}

/// The distance of `a` from `b` in the Frobenius norm, relative to that of `b`.
fn difference(a: &[f32], b: &[f32]) -> f64 {
    let squares =
        |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>();
    (squares(&mut a.iter().zip(b).map(|(a, b)| a - b)) / squares(&mut b.iter().copied())).sqrt()
}

/// H = X^T X of `rows` random rows with correlated columns.
fn hessian(rows: usize, columns: usize, seed: u64) -> Vec<f32> {
    let mut x = random(rows * columns, seed);
    for row in x.chunks_mut(columns) {
        for j in 1..columns {
            row[j] += 0.7 * row[j - 1];
        }
    }
    let mut h = vec![0f32; columns * columns];
    for row in x.chunks(columns) {
        for i in 0..columns {
            for j in 0..columns {
                h[i * columns + j] += row[i] * row[j];
            }
        }
    }
    h
}

fn statistics(hessian: Vec<f32>, rows: u64) -> InputStatistics {
    let columns = hessian.len().isqrt();
    let squares = (0..columns).map(|j| hessian[j * columns + j]).collect();
    InputStatistics { sums: vec![0.0; columns], squares, rows, ..with_hessian(&hessian) }
}

fn layer(rows: usize, columns: usize, seed: u64) -> LayerWeight {
    LayerWeight { layer: "layer".into(), rows, columns, values: random(rows * columns, seed) }
}

/// A model of one layer.
fn one_layer(columns: usize, tokens: usize) -> Structure {
    let linear = Layer {
        name: "layer".into(),
        operation: Operation::Linear { rows: tokens, inputs: columns, outputs: 1 },
        prunable: Some(Prunable { role: Role::FeedForwardDown, input: "layer".into() }),
    };
    let block = Block { name: "block".into(), layers: vec![linear], ..Block::default() };
    Structure { blocks: vec![block], ..Structure::default() }
}

/// The inverse of a matrix by Gauss-Jordan elimination.
fn inverse(a: &[f64]) -> Vec<f64> {
    let n = a.len().isqrt();
    let (mut a, mut b) = (a.to_vec(), vec![0.0; n * n]);
    (0..n).for_each(|i| b[i * n + i] = 1.0);
    for i in 0..n {
        let pivot = a[i * n + i];
        for j in 0..n {
            a[i * n + j] /= pivot;
            b[i * n + j] /= pivot;
        }
        for r in (0..n).filter(|&r| r != i) {
            let factor = a[r * n + i];
            for j in 0..n {
                a[r * n + j] -= factor * a[i * n + j];
                b[r * n + j] -= factor * b[i * n + j];
            }
        }
    }
    b
}

/// The algorithm as it is written down, in f64, with explicit inverses and without blocks of
/// updates: at column i the inverse Hessian of the columns that are left gives the score and the
/// compensation.
fn plain_obs(weight: &LayerWeight, hessian: &[f32], pattern: Pattern) -> Vec<f64> {
    let (rows, n) = (weight.rows, weight.columns);
    let mean = (0..n).map(|j| f64::from(hessian[j * n + j])).sum::<f64>() / n as f64;
    let mut h: Vec<f64> = hessian.iter().map(|&h| f64::from(h)).collect();
    (0..n).for_each(|j| h[j * n + j] += 0.01 * mean);
    // Row 0 of the inverse of H restricted to the columns i.. is, divided by the root of its first
    // element, row i of U.
    let u: Vec<Vec<f64>> = (0..n)
        .map(|i| {
            let m = n - i;
            let part: Vec<f64> = (i..n).flat_map(|r| h[r * n + i..(r + 1) * n].to_vec()).collect();
            let inverse = inverse(&part);
            inverse[..m].iter().map(|x| x / inverse[0].sqrt()).collect()
        })
        .collect();
    let mut w: Vec<f64> = weight.values.iter().map(|&w| f64::from(w)).collect();
    let score = |w: f64, i: usize| (w / u[i][0]).powi(2);
    let mut mask = vec![false; rows * n];
    for i in 0..n {
        match pattern {
            Pattern::Unstructured(sparsity) if i % 128 == 0 => {
                let columns = i..(i + 128).min(n);
                let scores = |r: usize| columns.clone().map(move |j| (r, j));
                let mut sorted: Vec<f64> =
                    (0..rows).flat_map(scores).map(|(r, j)| score(w[r * n + j], j)).collect();
                sorted.sort_by(f64::total_cmp);
                let threshold = sorted[(sorted.len() as f64 * sparsity) as usize];
                for (r, j) in (0..rows).flat_map(scores) {
                    mask[r * n + j] = score(w[r * n + j], j) <= threshold;
                }
            }
            Pattern::SemiStructured { pruned, group } if i % group == 0 => {
                for r in 0..rows {
                    let mut order: Vec<usize> = (i..i + group).collect();
                    order.sort_by(|&a, &b| {
                        score(w[r * n + a], a).total_cmp(&score(w[r * n + b], b))
                    });
                    order[..pruned].iter().for_each(|&j| mask[r * n + j] = true);
                }
            }
            _ => {}
        }
        for r in (0..rows).filter(|r| mask[r * n + i]) {
            let error = w[r * n + i] / u[i][0];
            for (j, u) in u[i].iter().enumerate() {
                w[r * n + i + j] -= error * u;
            }
            w[r * n + i] = 0.0;
        }
    }
    w
}

#[test]
fn obs_is_the_plain_algorithm() {
    let cases = [
        (7, 33, Pattern::Unstructured(0.5)),
        (3, 150, Pattern::Unstructured(0.3)),
        (1, 5, Pattern::Unstructured(0.8)),
        (6, 140, Pattern::SemiStructured { pruned: 2, group: 4 }),
        (4, 150, Pattern::SemiStructured { pruned: 3, group: 5 }),
        (5, 12, Pattern::SemiStructured { pruned: 1, group: 6 }),
    ];
    for (rows, columns, pattern) in cases {
        let hessian = hessian(2 * columns, columns, 3);
        let before = layer(rows, columns, 4);
        let want = plain_obs(&before, &hessian, pattern);
        let mut after = [before];
        prune_layers(&Obs, &mut after, &statistics(hessian, 1), pattern).unwrap();
        for (i, (got, want)) in after[0].values.iter().zip(&want).enumerate() {
            assert!(
                (f64::from(*got) - want).abs() < 1e-4,
                "{pattern} {rows} x {columns} [{i}]: {got} against {want}"
            );
        }
    }
}

#[test]
fn layers_of_one_input_are_solved_as_if_alone() {
    let statistics = statistics(hessian(100, 40, 1), 100);
    let (a, b) = (layer(9, 40, 2), layer(3, 40, 3));
    let mut both = [a.clone(), b.clone()];
    prune_layers(&Obs, &mut both, &statistics, Pattern::Unstructured(0.5)).unwrap();
    for (index, alone) in [a, b].into_iter().enumerate() {
        let mut alone = [alone];
        prune_layers(&Obs, &mut alone, &statistics, Pattern::Unstructured(0.5)).unwrap();
        assert_eq!(alone[0], both[index]);
    }
}

#[test]
fn nothing_to_remove_changes_nothing() {
    for method in [&Obs as &dyn Method, &Wanda, &Dsnot::Wanda, &Dsnot::Hessian, &Magnitude] {
        let mut layers = [layer(4, 16, 1)];
        prune_layers(
            method,
            &mut layers,
            &statistics(hessian(40, 16, 2), 40),
            Pattern::Unstructured(0.0),
        )
        .unwrap();
        assert_eq!(layers[0], layer(4, 16, 1), "{}", method.name());
    }
}

#[test]
fn columns_that_no_input_reaches_are_removed() {
    let (columns, dead) = (12, [0, 5, 11]);
    let mut h = hessian(50, columns, 1);
    for j in dead {
        for i in 0..columns {
            h[i * columns + j] = 0.0;
            h[j * columns + i] = 0.0;
        }
    }
    let factor = Factor::new(&square(&h), &"layer".into()).unwrap();
    assert_eq!(factor.dead, dead);
    let before = layer(6, columns, 2);
    for pattern in [Pattern::Unstructured(0.5), "2:4".parse().unwrap()] {
        let mut after = [before.clone()];
        prune_layers(&Obs, &mut after, &statistics(h.clone(), 50), pattern).unwrap();
        let error = hessian_error(&weight(&before), &weight(&after[0]), &square(&h)).unwrap();
        let after = &after[0].values;
        assert!(after.chunks(columns).all(|row| dead.iter().all(|&j| row[j] == 0.0)), "{pattern}");
        assert!(after.iter().all(|w| w.is_finite()));
        assert!(error < 0.5);
    }
    let all_dead = statistics(vec![0.0; columns * columns], 0);
    let mut after = [before];
    prune_layers(&Obs, &mut after, &all_dead, Pattern::Unstructured(0.5)).unwrap();
    assert!(after[0].values.iter().all(|w| *w == 0.0));
}

#[test]
fn damping_is_raised_until_the_hessian_is_positive_definite() {
    let columns = 8;
    let mut h = hessian(40, columns, 1);
    assert_eq!(Factor::new(&square(&h), &"layer".into()).unwrap().damping, 0.01);
    // Ones on the diagonal and -0.2 beside it: the least eigenvalue is 1 - 7 * 0.2 = -0.4, so that
    // 0.01 and 0.1 of the mean do not help, and 1 does.
    for i in 0..columns {
        for j in 0..columns {
            h[i * columns + j] = if i == j { 1.0 } else { -0.2 };
        }
    }
    let statistics = statistics(h.clone(), 40);
    let factor = Factor::new(&square(&h), &"layer".into()).unwrap();
    assert_eq!(factor.damping, 1.0);
    let mut layers = [layer(4, columns, 2)];
    let solved = prune_layers(&Obs, &mut layers, &statistics, Pattern::Unstructured(0.5)).unwrap();
    assert_eq!(solved.damping, factor.damping);
    assert!(layers[0].values.iter().all(|w| w.is_finite()));

    h[3] = f32::NAN;
    h[0] = f32::NAN;
    let error = Factor::new(&square(&h), &"blocks.1.to_q".into()).unwrap_err().to_string();
    assert!(error.contains("blocks.1.to_q") && error.contains("finite"), "{error}");
}

#[test]
fn the_factor_is_of_the_inverse() {
    let columns = 20;
    let h = hessian(60, columns, 9);
    let factor = Factor::new(&square(&h), &"layer".into()).unwrap();
    let mean = (0..columns).map(|j| f64::from(h[j * columns + j])).sum::<f64>() / columns as f64;
    let mut damped: Vec<f64> = h.iter().map(|&h| f64::from(h)).collect();
    (0..columns).for_each(|j| damped[j * columns + j] += 0.01 * mean);
    let want = inverse(&damped);
    let values = numbers(&factor.values);
    let u = |i: usize, j: usize| f64::from(values[i * columns + j]);
    for i in 0..columns {
        for j in 0..columns {
            let got: f64 = (0..columns).map(|k| u(k, i) * u(k, j)).sum();
            assert!(
                (got - want[i * columns + j]).abs() < 1e-5 * want[0].abs().max(1.0),
                "{i}, {j}"
            );
        }
    }
}

#[test]
fn baselines_choose_by_their_scores() {
    let weight = |values: &[f32]| LayerWeight {
        layer: "l".into(),
        rows: 2,
        columns: 4,
        values: values.to_vec(),
    };
    let w = [1.0, -2.0, 3.0, -4.0, 0.5, 0.6, 0.7, 0.8];
    let mut h = vec![0.0; 16];
    [100.0, 1.0, 1.0, 1.0].iter().enumerate().for_each(|(j, &s)| h[j * 5] = s);
    let statistics = statistics(h, 4);
    let run = |method: &dyn Method, pattern: Pattern| {
        let mut layers = [weight(&w)];
        prune_layers(method, &mut layers, &statistics, pattern).unwrap();
        let [layer] = layers;
        layer.values
    };
    let half = Pattern::Unstructured(0.5);
    assert_eq!(run(&Magnitude, half), [1.0, -2.0, 3.0, -4.0, 0.0, 0.0, 0.0, 0.0]);
    assert_eq!(run(&Wanda, half), [1.0, 0.0, 0.0, -4.0, 0.5, 0.0, 0.0, 0.8]);
    let pattern = "2:4".parse().unwrap();
    assert_eq!(run(&Magnitude, pattern), [0.0, 0.0, 3.0, -4.0, 0.0, 0.0, 0.7, 0.8]);
    assert_eq!(run(&Wanda, pattern), [1.0, 0.0, 0.0, -4.0, 0.5, 0.0, 0.0, 0.8]);
}

#[test]
fn obs_leaves_less_error_than_the_baselines() {
    let h = hessian(300, 96, 5);
    let before = layer(40, 96, 6);
    for pattern in [Pattern::Unstructured(0.5), Pattern::Unstructured(0.7), "2:4".parse().unwrap()]
    {
        let error = |method: &dyn Method| {
            let mut after = [before.clone()];
            prune_layers(method, &mut after, &statistics(h.clone(), 300), pattern).unwrap();
            hessian_error(&weight(&before), &weight(&after[0]), &square(&h)).unwrap()
        };
        let (obs, wanda, magnitude) = (error(&Obs), error(&Wanda), error(&Magnitude));
        assert!(
            obs < 0.8 * wanda && obs < 0.8 * magnitude,
            "{pattern}: {obs}, {wanda}, {magnitude}"
        );
    }
}

fn structure(pipeline: &Pipeline) -> Structure {
    pipeline.folder().structure(&pipeline.folder().sampling())
}

fn bundled() -> Pipeline {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/emoji-mmdit");
    Pipeline::open(ModelFolder::open(&path, None).unwrap()).unwrap()
}

fn calibration(samples: usize, batch: usize) -> Calibration {
    let prompts = (0..samples).map(|i| format!("picture {i}")).collect();
    let sampling = Sampling { steps: 2, batch, ..bundled().folder().sampling() };
    Calibration::new(prompts, sampling)
}

#[test]
fn activations_that_are_not_finite_name_layer_and_step() {
    let mut pipeline = bundled();
    let name = "transformer_blocks.1.ff.net.0.proj.weight";
    let huge = pipeline.parameter(name).unwrap().unwrap().affine(1e30, 0.0).unwrap();
    let weights = BTreeMap::from([(name.to_owned(), huge.into())]);
    pipeline.apply(&Edits { weights, ..Edits::default() }).unwrap();
    let plan = one_package(&structure(&pipeline));
    let calibration = calibration(1, 1);
    let step_weights = calibration.step_weights(&mut pipeline, &()).unwrap();
    let source = Source::Calibration(&calibration, &step_weights, None);
    let error =
        prune(&mut pipeline, &plan, &half(&Obs), &source, None, None, &()).unwrap_err().to_string();
    assert!(
        error.contains("transformer_blocks.1.ff.net.2") && error.contains("denoising step 1"),
        "{error}"
    );
}

#[test]
fn statistics_do_not_depend_on_the_batch() {
    let gather = |batch| {
        let mut pipeline = bundled();
        let selection = Selection::new(&["transformer_blocks.0.*".into()], &[]).unwrap();
        let plan =
            Plan::new(&structure(&pipeline), &selection, Packages::Count(1), &half(&Magnitude))
                .unwrap();
        let calibration = calibration(3, batch);
        let step_weights = calibration.step_weights(&mut pipeline, &()).unwrap();
        let source = Source::Calibration(&calibration, &step_weights, None);
        prune(&mut pipeline, &plan, &half(&Magnitude), &source, None, None, &()).unwrap().statistics
    };
    let (whole, apart) = (gather(3), gather(2));
    assert_eq!(whole.len(), 8, "one Hessian per distinct input");
    for (name, statistics) in &whole {
        let other = &apart[name];
        let (statistics, other) = (statistics.whole().unwrap(), other.whole().unwrap());
        assert_eq!(statistics.rows, other.rows);
        let hessians = [&statistics.hessian, &other.hessian].map(numbers);
        for (a, b) in [(&hessians[0], &hessians[1]), (&statistics.sums, &other.sums)] {
            assert!(difference(b, a) < 1e-5, "{name}: {}", difference(b, a));
        }
    }
}

#[test]
fn the_weight_follows_the_step_and_not_the_call() {
    let pipeline = bundled();
    let selection = Selection::new(&["transformer_blocks.0.attn.to_q".into()], &[]).unwrap();
    let plan = Plan::new(&structure(&pipeline), &selection, Packages::Count(1), &half(&Magnitude))
        .unwrap();
    let name = plan.layers().next().unwrap().name.clone();
    let x = |value: f32| Tensor::full(value, (1, 3, 256), &Device::Cpu).unwrap();
    // A sampler that calls the model twice in its first step.
    let calibrator = Calibrator::new(&plan.packages[0], vec![1.2, 0.8], 1);
    let at = |index, count| Context { step: Step { index, count }, ..Context::default() };
    for (index, value) in [(0, 1.0), (0, 2.0), (1, 4.0)] {
        calibrator.linear_input(&name, &x(value), &at(index, 2)).unwrap();
    }
    let statistics = calibrator.finish().unwrap().remove(&name).unwrap().whole().unwrap();
    let want = 2.0 / (1.2 + 1.2 + 0.8) * 3.0 * (1.2 + 1.2 * 4.0 + 0.8 * 16.0);
    let got = f64::from(numbers(&statistics.hessian)[5]);
    assert!((got - want).abs() < 1e-4 * want, "{got}, {want}");
    assert_eq!(
        (statistics.rows, statistics.sums[0], statistics.squares[0]),
        (9, 3.0 * 7.0, 3.0 * 21.0)
    );
    let calibrator = Calibrator::new(&plan.packages[0], vec![1.0], 1);
    calibrator.check().unwrap();
    let bad = calibrator.linear_input(&name, &x(f32::NAN), &at(0, 1));
    let error = bad.unwrap_err().to_string();
    assert!(error.contains("to_q") && error.contains("step 1"), "{error}");
    let error = calibrator.check().unwrap_err().to_string();
    assert!(error.contains("to_q") && error.contains("NaN"), "{error}");
}

#[test]
fn saved_statistics_serve_one_package() {
    let mut pipeline = bundled();
    let plan =
        Plan::new(&structure(&pipeline), &Selection::default(), Packages::Count(2), &half(&Obs))
            .unwrap();
    let calibration = calibration(1, 1);
    let fingerprint = Fingerprint::new(pipeline.folder(), &calibration, &()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    SavedStatistics::write(folder.path(), &BTreeMap::new(), &[1.0, 1.0], &fingerprint).unwrap();
    let saved = SavedStatistics::open(folder.path(), &fingerprint, &()).unwrap();
    let error = prune(&mut pipeline, &plan, &half(&Obs), &Source::Saved(&saved), None, None, &())
        .unwrap_err()
        .to_string();
    assert!(error.contains("one package"), "{error}");
}

#[test]
fn saved_statistics_are_read_as_they_were_and_not_in_another_format() {
    let fingerprint = Fingerprint::new(bundled().folder(), &calibration(1, 1), &()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let name = "layer".into();
    let mut input = statistics(hessian(20, 6, 1), 20);
    (input.sums, input.weighted_sums, input.weighted_rows) = (random(6, 2), random(6, 3), 3.5);
    SavedStatistics::write(
        folder.path(),
        &BTreeMap::from([("layer".into(), input.clone().packed().unwrap())]),
        &[1.0, 1.0],
        &fingerprint,
    )
    .unwrap();
    let saved = SavedStatistics::open(folder.path(), &fingerprint, &()).unwrap();
    let found = saved.input(&name, 6).unwrap();
    assert_eq!(numbers(&found.hessian), numbers(&input.hessian));
    let columns = |one: &InputStatistics| {
        [&one.weighted_sums, &one.sums, &one.squares].map(|column| column.clone())
    };
    assert_eq!(columns(&found), columns(&input));
    assert_eq!((found.weighted_rows, found.rows), (input.weighted_rows, input.rows));
    let error = saved.input(&name, 5).unwrap_err().to_string();
    assert!(error.contains("hessian of the input of layer") && error.contains("[36]"), "{error}");

    let path = folder.path().join("statistics.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let refused = |text: &str| {
        std::fs::write(&path, text).unwrap();
        SavedStatistics::open(folder.path(), &fingerprint, &()).unwrap_err().to_string()
    };
    // As they were written before there were checksums, and as a later version may write them.
    for text in [
        "{\"format_version\": 3, \"rows\": {}}",
        "{\"sha256\": \"0\", \"content\": {\"format_version\": 4}}",
        &text.replace("\"format_version\":6", "\"format_version\":7"),
    ] {
        let error = refused(text);
        assert!(error.contains("format_version") && error.contains("calibrate again"), "{error}");
    }
    let error = refused(&text.replace("\"rows\":{\"layer\":20}", "\"rows\":{\"layer\":21}"));
    assert!(error.contains("statistics.json: is damaged"), "{error}");
    std::fs::write(&path, &text).unwrap();
    SavedStatistics::open(folder.path(), &fingerprint, &()).unwrap();
    let tensors = folder.path().join("statistics.safetensors");
    let mut bytes = std::fs::read(&tensors).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&tensors, bytes).unwrap();
    let error = SavedStatistics::open(folder.path(), &fingerprint, &()).unwrap_err().to_string();
    assert!(error.contains("statistics.safetensors: is damaged"), "{error}");
}

#[test]
fn packages_follow_the_memory() {
    let structure = structure(&bundled());
    let plan = |packages| Plan::new(&structure, &Selection::default(), packages, &half(&Obs));
    let one = plan(Packages::Count(1)).unwrap();
    assert_eq!(one.layers().count(), 93);
    for (index, budget) in [(1, one.bytes(&half(&Obs))), (2, one.bytes(&half(&Obs)) - 1)] {
        let plan = plan(Packages::Memory(budget)).unwrap();
        assert_eq!(plan.packages.len(), index);
        assert!(plan.bytes(&half(&Obs)) <= budget);
        assert!(plan.layers().eq(one.layers()), "every layer once, in order");
    }
    let sizes: Vec<usize> =
        plan(Packages::Count(5)).unwrap().packages.iter().map(|p| p.inputs.len()).collect();
    assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 4, "{sizes:?}");
    assert_eq!(
        plan(Packages::Count(1000)).unwrap().packages.len(),
        32,
        "no more packages than units"
    );
    assert!(plan(Packages::Memory(1000)).unwrap_err().to_string().contains("at least"));
}

/// n (n + 1) / 2 of n columns for each token, once for all that read the same.
#[test]
fn the_work_of_hessians() {
    let structure = |tokens: usize| {
        let mut structure = one_layer(32, tokens);
        let mut second = structure.blocks[0].layers[0].clone();
        second.name = "second".into();
        let mut other = one_layer(5, 3).blocks.remove(0);
        other.layers[0].name = "other".into();
        other.layers[0].prunable =
            Some(Prunable { role: Role::FeedForwardDown, input: "other".into() });
        structure.blocks[0].layers.push(second);
        structure.blocks.push(other);
        structure
    };
    let plan = one_package(&structure(64));
    assert_eq!(plan.layers().count(), 3);
    // As many tokens as are asked about.
    for tokens in [64, 10] {
        assert_eq!(plan.hessian_macs(&structure(tokens)), tokens as u64 * 528 + 3 * 15, "{tokens}");
    }
}

#[test]
fn influence_is_measured_in_a_quarter_of_the_steps_and_at_least_four() {
    for (steps, fewer) in [(1, 1), (3, 3), (5, 4), (19, 4), (20, 5), (50, 12)] {
        let whole = calibration(1, 1);
        let sampling = Sampling { steps, ..whole.sampling.clone() };
        let (pictures, sampling) = influence_pictures(&Calibration { sampling, ..whole.clone() });
        assert_eq!(
            (pictures, sampling),
            (1, Sampling { steps: fewer, ..whole.sampling }),
            "{steps} steps"
        );
    }
}

#[test]
fn a_share_in_percent_is_told() {
    for (share, told) in
        [(-0.1, ""), (1.0, ""), (50.0, "; 50 % is 0.5"), (100.0, ""), (f64::NAN, "")]
    {
        let error = Pattern::unstructured(share).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("sparsity {share} is not in [0, 1): give the share of weights to remove{told}")
        );
    }
}

#[test]
fn equal_tokens_may_be_folded_into_one() {
    let pipeline = bundled();
    let plan = one_package(&structure(&pipeline));
    let prompts =
        ["red apple, noto style emoji".to_owned(), "cat face, twitter style emoji".to_owned()];
    let sampling = pipeline.folder().sampling();
    let folded = pipeline.conditioning(&prompts, sampling.latent, &sampling).unwrap();
    let spelled_out = folded.spelled_out().unwrap();
    assert_eq!(
        (folded.text().unwrap().dim(1).unwrap(), spelled_out.text().unwrap().dim(1).unwrap()),
        (33, 64)
    );
    let run = |conditioning: &Conditioning| {
        let latents =
            secateur_models::noise(7, 0..2, 0, &pipeline.folder().denoiser().latent_shape())
                .unwrap();
        let calibrator = Calibrator::new(&plan.packages[0], vec![1.0], 1);
        let context = Context {
            step: Step { index: 0, count: 1 },
            probe: Some(&calibrator),
            ..Context::default()
        };
        let times = Tensor::new(&[700.0f32; 2], &Device::Cpu).unwrap();
        let output = pipeline.denoiser().forward(&latents, &times, conditioning, &context).unwrap();
        (output.flatten_all().unwrap().to_vec1::<f32>().unwrap(), calibrator.finish().unwrap())
    };
    let ((output, statistics), (all_output, all_statistics)) = (run(&folded), run(&spelled_out));
    assert!(difference(&output, &all_output) < 1e-5, "{}", difference(&output, &all_output));
    for (name, input) in &statistics {
        let (input, all) = (input.whole().unwrap(), all_statistics[name].whole().unwrap());
        assert_eq!(input.rows, all.rows, "{name}");
        assert!(difference(&numbers(&input.hessian), &numbers(&all.hessian)) < 1e-5, "{name}");
        assert!(difference(&input.sums, &all.sums) < 1e-5, "{name}");
        assert!(difference(&input.squares, &all.squares) < 1e-5, "{name}");
    }
}

#[test]
fn a_stride_leaves_the_hessian_where_it_was() {
    let structure = one_layer(32, 64);
    let plan = one_package(&structure);
    let name = plan.layers().next().unwrap().name.clone();
    let steps = 40;
    // Correlated columns, and tokens of different size.
    let x = |step: usize| {
        let value = |i: usize| {
            let (token, column) = (i / 32 % 64, i % 32);
            let phase = (step * 977 + i / 32 * 131) as f32;
            (phase * 0.37).sin() * (1.0 + column as f32 / 32.0)
                + (phase * 1.7 + column as f32).cos()
                + token as f32 / 64.0
        };
        Tensor::from_vec(
            (0..3 * 64 * 32).map(value).collect::<Vec<f32>>(),
            (3, 64, 32),
            &Device::Cpu,
        )
        .unwrap()
    };
    let calibrate = |stride: usize, batch: usize| {
        let calibrator = Calibrator::new(&plan.packages[0], vec![1.0; steps], stride);
        for index in 0..steps {
            let context = Context { step: Step { index, count: steps }, ..Context::default() };
            for first in (0..3).step_by(batch) {
                let x = x(index).narrow(0, first, batch).unwrap();
                calibrator.linear_input(&name, &x, &context).unwrap();
            }
        }
        calibrator.finish().unwrap().remove(&name).unwrap().whole().unwrap()
    };
    let (all, some) = (calibrate(1, 3), calibrate(4, 3));
    assert_eq!((all.rows, some.rows), (3 * 64 * 40, 3 * 64 * 40));
    let error = difference(&numbers(&some.hessian), &numbers(&all.hessian));
    assert!(error < 0.03, "{error}");
    // Which tokens are taken does not depend on the batch.
    let error = difference(&numbers(&calibrate(4, 1).hessian), &numbers(&some.hessian));
    assert!(error < 1e-6, "{error}");
}

/// What the reference does, in f64: the Hessian of the columns that are left is inverted anew for
/// every chunk.
fn neurons_by_inverting_anew(weight: &mut [f64], hessian: &[f32], remove: usize) -> Vec<usize> {
    let columns = hessian.len().isqrt();
    let rows = weight.len() / columns;
    let damping = 0.01 * (0..columns).map(|j| f64::from(hessian[j * columns + j])).sum::<f64>()
        / columns as f64;
    let mut left: Vec<usize> = (0..columns).collect();
    let mut chunk = (remove as i64 - 512).div_euclid(2);
    let mut gone = Vec::new();
    while gone.len() < remove {
        let size = ((remove - gone.len()) as i64).min(chunk.max(64)).min(1024) as usize;
        chunk = (chunk - 512).div_euclid(2);
        let n = left.len();
        let mut h: Vec<f64> = left
            .iter()
            .flat_map(|&i| left.iter().map(move |&j| f64::from(hessian[i * columns + j])))
            .collect();
        (0..n).for_each(|i| h[i * n + i] += damping);
        let inverse = inverse(&h);
        let score = |place: usize| {
            let column = left[place];
            (0..rows).map(|r| weight[r * columns + column].powi(2)).sum::<f64>()
                / inverse[place * n + place]
        };
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&a, &b| score(a).total_cmp(&score(b)));
        let mut chosen = order[..size].to_vec();
        chosen.sort_unstable();
        // W -= W_S (H^-1_SS)^-1 H^-1_S,:
        let block: Vec<f64> = chosen
            .iter()
            .flat_map(|&i| chosen.iter().map(move |&j| (i, j)))
            .map(|(i, j)| inverse[i * n + j])
            .collect();
        let block = self::inverse(&block);
        for row in weight.chunks_exact_mut(columns) {
            let w: Vec<f64> = chosen.iter().map(|&place| row[left[place]]).collect();
            let owed: Vec<f64> =
                (0..size).map(|j| (0..size).map(|i| w[i] * block[i * size + j]).sum()).collect();
            for (place, &column) in left.iter().enumerate() {
                row[column] -= chosen
                    .iter()
                    .zip(&owed)
                    .map(|(&i, owed)| owed * inverse[i * n + place])
                    .sum::<f64>();
            }
            chosen.iter().for_each(|&place| row[left[place]] = 0.0);
        }
        gone.extend(chosen.iter().map(|&place| left[place]));
        left.retain(|column| !gone.contains(column));
    }
    gone.sort_unstable();
    gone
}

/// Chunks of 64, of 94 and then 64, and one: the down-dates of one factorisation against a new
/// inverse for each.
#[test]
fn removed_neurons_are_those_of_inverting_anew() {
    for (columns, remove, rows) in [(200, 130, 5), (760, 700, 3), (33, 1, 2)] {
        let hessian = hessian(2 * columns, columns, 11);
        let values = random(rows * columns, 12);
        let mut want: Vec<f64> = values.iter().map(|&w| f64::from(w)).collect();
        let gone = neurons_by_inverting_anew(&mut want, &hessian, remove);
        let statistics = statistics(hessian, 1);
        let slice = |layer: &str| Slice { layer: layer.into(), start: 0 };
        let group = NeuronGroup {
            name: "ff".into(),
            count: columns,
            up: vec![slice("up")],
            down: slice("down"),
        };
        let planned = [PlannedGroup { group: Group::Neurons(group), remove }];
        let weight = LayerWeight { layer: "down".into(), rows, columns, values };
        let removed = Obs.remove(&planned, &Given::new(vec![(weight, statistics)])).unwrap();
        assert_eq!(removed.positions, [gone], "{remove} of {columns}");
        let scale = want.iter().fold(0f64, |scale, w| scale.max(w.abs()));
        for (got, want) in removed.weights["down"].values.iter().zip(&want) {
            assert!(
                (f64::from(*got) - want).abs() < 1e-3 * scale,
                "{remove} of {columns}: {got} against {want}"
            );
        }
    }
}

/// OBS-Diff's structured experiments, by shapes: heads, neurons and parameters of SD3.5-large and
/// SD3-medium.
#[test]
fn as_many_heads_neurons_and_parameters_as_in_the_paper() {
    let large = (
        38,
        2432,
        38,
        [
            (0.15, 6, 1459, 7.28),
            (0.2, 8, 1946, 7.02),
            (0.25, 10, 2432, 6.76),
            (0.3, 11, 2918, 6.545),
        ],
    );
    let medium = (
        24,
        1536,
        24,
        [
            (0.1, 2, 614, 1.912),
            (0.15, 4, 922, 1.836),
            (0.2, 5, 1229, 1.777),
            (0.25, 6, 1536, 1.719),
        ],
    );
    for (layers, width, heads, cases) in [large, medium] {
        let config = json!({
            "_class_name": "SD3Transformer2DModel", "sample_size": 128, "patch_size": 2,
            "in_channels": 16,
            "num_layers": layers, "attention_head_dim": 64, "num_attention_heads": heads,
            "joint_attention_dim": 4096,
            "caption_projection_dim": width, "pooled_projection_dim": 2048, "out_channels": 16,
            "pos_embed_max_size": 192, "qk_norm": if layers == 38 { json!("rms_norm") } else {
            json!(null) },
        });
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, config.to_string()).unwrap();
        let config = denoiser_config(&path).unwrap();
        let structure = config.structure(&Geometry { latent: (128, 128), text: 154 }).unwrap();
        for (sparsity, heads, neurons, billions) in cases {
            let portion = Portion { multiple: 1, ..Portion::new(sparsity).unwrap() };
            let task = Task::Structured { method: &Obs, portion };
            let plan =
                Plan::new(&structure, &Selection::default(), Packages::Count(1), &task).unwrap();
            for planned in plan.groups() {
                let expected = if planned.group.kind() == "heads" { heads } else { neurons };
                assert_eq!(planned.remove, expected, "{} at {sparsity}", planned.group.name());
            }
            assert_eq!(plan.groups().count(), 3 * (layers - 2));
            let wanted = config.parameters(&plan.removals(&Removals::default())).unwrap();
            let learned = wanted.values().filter(|wanted| wanted.kind != Kind::Constant);
            let parameters: usize =
                learned.map(|wanted| wanted.shape.iter().product::<usize>()).sum();
            let found = parameters as f64 / 1e9;
            assert!(
                (found - billions).abs() < 0.006,
                "{found} at {sparsity}, the paper has {billions}"
            );
        }
    }
}
