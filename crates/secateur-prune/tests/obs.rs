//! The solver against the reference implementation's (`tests/goldens/README.md`).

#![expect(clippy::print_stdout, reason = "a test tells its figures")]

#[path = "common/given.rs"]
mod given;
#[path = "common/pruning.rs"]
mod pruning;

#[path = "../../secateur-models/tests/common/cases.rs"]
#[macro_use]
mod cases;

use candle_core::{Device, Tensor};
use given::Given;
use pruning::{prune_layers, weight};
use secateur_models::{
    Between, Block, Group, HeadGroup, HeadStream, Layer, NeuronGroup, Operation, Prunable, Role,
    Slice, Structure,
};
use secateur_nn::{Context, LayerName, Probe, Step, devices, to_device};
use secateur_prune::{
    Calibrator, InputStatistics, LayerWeight, Layers, Obs, Packages, Pattern, Plan, PlannedGroup,
    Selection, StructuredMethod, Task, hessian_error,
};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

fn fixture() -> Option<HashMap<String, Tensor>> {
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens");
    let folder = std::env::var_os("SECATEUR_GOLDENS").map_or_else(own, PathBuf::from);
    let path = folder.join("obs/obs.safetensors");
    // A folder without it compares nothing here, and that is an error (obs_something_is_compared).
    if !path.exists() {
        println!("skipped: {} is not there", path.display());
        return None;
    }
    Some(candle_core::safetensors::load(path, &Device::Cpu).unwrap())
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn layer(weight: &Tensor) -> LayerWeight {
    let (rows, columns) = weight.dims2().unwrap();
    LayerWeight { layer: "layer".into(), rows, columns, values: values(weight) }
}

/// Statistics that the calibrator gathers from `x` (steps x rows x columns), one batch of one
/// sample a step.
fn calibrated(x: &Tensor, weights: &[f32]) -> InputStatistics {
    let (steps, rows, columns) = x.dims3().unwrap();
    let name: LayerName = "layer".into();
    let linear = Layer {
        name: name.clone(),
        operation: Operation::Linear { rows, inputs: columns, outputs: 1 },
        prunable: Some(Prunable { role: Role::FeedForwardDown, input: name.clone() }),
    };
    let block = Block { name: "block".into(), layers: vec![linear], ..Block::default() };
    let structure = Structure { blocks: vec![block], ..Structure::default() };
    let task = Task::Weights { method: &Obs, pattern: Pattern::Unstructured(0.5) };
    let plan = Plan::new(&structure, &Selection::default(), Packages::Count(1), &task).unwrap();
    let calibrator =
        Calibrator::new(&plan.packages[0], weights.iter().map(|&w| f64::from(w)).collect(), 1);
    for index in 0..steps {
        let step = Context { step: Step { index, count: steps }, ..Context::default() };
        calibrator.linear_input(&name, &x.narrow(0, index, 1).unwrap(), &step).unwrap();
    }
    calibrator.finish().unwrap().remove(&name).unwrap().whole().unwrap()
}

#[test]
fn obs_something_is_compared() {
    let golden = fixture().expect("the folder of fixtures holds no obs/obs.safetensors");
    let cases = [
        "hessian",
        "unstructured_50",
        "unstructured_70",
        "nm_2_4",
        "nm_4_8",
        "neurons_30",
        "neurons_many",
        "heads_33",
        "joint_heads_33",
    ];
    assert!(
        cases.iter().any(|case| golden.contains_key(*case)),
        "obs.safetensors holds no case that is known"
    );
}

#[test]
fn obs_hessian_is_the_references() {
    let Some(golden) = fixture() else { return };
    let want = values(&golden["hessian"]);
    let norm = |values: &[f32]| values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    for device in devices() {
        let x = to_device(&golden["x"], &device).unwrap();
        let hessian = values(&calibrated(&x, &values(&golden["timestep_weights"])).hessian);
        let difference: Vec<f32> = hessian.iter().zip(&want).map(|(a, b)| a - b).collect();
        let error = norm(&difference) / norm(&want);
        println!("relative error {error:.2e} on {:?}", device.location());
        assert!(error < 1e-4, "relative error {error:.2e} on {:?}", device.location());
    }
}

fn solved_as_reference(case: &str, pattern: Pattern) {
    let Some(golden) = fixture() else { return };
    let Some(want) = golden.get(case) else {
        println!("skipped: obs.safetensors has no {case}");
        return;
    };
    for device in devices() {
        let what = format!("{case} on {:?}", device.location());
        let x = to_device(&golden["x"], &device).unwrap();
        let statistics = calibrated(&x, &values(&golden["timestep_weights"]));
        let mut after = [layer(&golden["weight"])];
        let solved = prune_layers(&Obs, &mut after, &statistics, pattern).unwrap();
        assert_eq!(solved.damping, 0.01);
        let ([after], want) = (after, values(want));

        let zeros = after.values.iter().zip(&want).map(|(a, b)| (*a == 0.0) == (*b == 0.0));
        let agreement = zeros.filter(|same| *same).count() as f64 / want.len() as f64;
        let error =
            |pruned: &Tensor| hessian_error(&golden["weight"], pruned, &golden["hessian"]).unwrap();
        let (ours, theirs) = (error(&weight(&after)), error(&golden[case]));
        let scale = want.iter().fold(0f32, |scale, w| scale.max(w.abs()));
        let furthest = after.values.iter().zip(&want).fold(0f32, |d, (a, b)| d.max((a - b).abs()));
        println!(
            "{what}: masks agree on {:.3} %, error {ours:.6} against {theirs:.6}",
            100.0 * agreement
        );
        assert!(agreement >= 0.999, "{what}: masks agree on {agreement}");
        assert!(ours <= theirs * 1.001, "{what}: error {ours} against {theirs}");
        if agreement == 1.0 {
            assert!(
                furthest <= 1e-4 * scale,
                "{what}: weights differ by {furthest}, the largest is {scale}"
            );
        }
    }
}

/// The neurons of a feed-forward, whose down projection is `layer`.
fn neurons(count: usize) -> Group {
    let up = vec![Slice { layer: "up".into(), start: 0 }];
    Group::Neurons(NeuronGroup {
        name: "ff".into(),
        count,
        up,
        down: Slice { layer: "layer".into(), start: 0 },
    })
}

/// Columns of a head: no shape among the fixtures tells it.
const HEAD: usize = 16;

/// The heads that `outputs`, of so many columns, read.
fn heads(columns: usize, outputs: &[&str]) -> Group {
    let slice = |layer: &str| Slice { layer: layer.into(), start: 0 };
    let stream = |output: &&str| HeadStream {
        query: slice("q"),
        key: slice("k"),
        value: slice("v"),
        output: Some(slice(output)),
    };
    let (streams, between) = (outputs.iter().map(stream).collect(), Between::default());
    let (count, query_key, value) = (columns / HEAD, HEAD, HEAD);
    Group::Heads(HeadGroup { name: "attn".into(), count, query_key, value, streams, between })
}

/// A layer that reads a group; its weight before, its inputs, and its weight after, by their names
/// among the fixtures.
struct Case {
    layer: &'static str,
    weight: &'static str,
    x: &'static str,
    after: &'static str,
}

/// Removes of the group that is made for so many columns what the reference removed, and compares
/// sets and weights.
fn removed_as_reference(group: impl Fn(usize) -> Group, cases: &[Case]) {
    let Some(golden) = fixture() else { return };
    if let Some(missing) = cases.iter().find(|case| !golden.contains_key(case.after)) {
        println!("skipped: obs.safetensors has no {}", missing.after);
        return;
    }
    let weights = values(&golden["timestep_weights"]);
    let given_weight =
        |case: &Case| LayerWeight { layer: case.layer.into(), ..layer(&golden[case.weight]) };
    let columns = given_weight(&cases[0]).columns;
    let group = group(columns);
    let gone = |values: &[f32]| -> Vec<usize> {
        (0..columns)
            .filter(|&j| values.iter().skip(j).step_by(columns).all(|&w| w == 0.0))
            .collect()
    };
    let want_gone = gone(&values(&golden[cases[0].after]));
    let width = group.parts(&[0])[0].indices.len();
    let remove = want_gone.len() / width;
    let planned = [PlannedGroup { group, remove }];
    for device in devices() {
        let statistics = cases
            .iter()
            .map(|case| calibrated(&to_device(&golden[case.x], &device).unwrap(), &weights));
        let given = Given::new(cases.iter().map(given_weight).zip(statistics).collect());
        let removed = Obs.remove(&planned, &given).unwrap();
        assert_eq!(removed.positions[0].len(), remove);
        // The errors of several numbers, which come out one after the other.
        let errors =
            |counts: &[usize]| Obs.errors(&planned[0].group, counts, &given).unwrap().unwrap();
        let error = |case: &Case| {
            let after = &removed.weights[case.layer];
            let hessian = &given.statistics(&case.layer.into()).unwrap().hessian;
            let after = to_device(&weight(after), &device).unwrap();
            let before = to_device(&golden[case.weight], &device).unwrap();
            hessian_error(&before, &after, hessian).unwrap()
        };
        let want: f64 = cases.iter().map(error).sum();
        let told = errors(&[remove])[0];
        assert!((told / want - 1.0).abs() < 1e-6, "{told} told, {want} of remove");
        // Neurons are scored again at each number.
        let told = errors(&[1, remove / 2, remove]);
        assert!((told[2] / want - 1.0).abs() < 0.05, "{told:?}, {want} of remove");
        assert!(told[0] > 0.0 && told.is_sorted(), "{told:?}");
        for Case { layer: name, after, .. } in cases {
            let what = format!("{after} on {:?}", device.location());
            let weight = &removed.weights[*name];
            let want = values(&golden[*after]);
            assert_eq!(gone(&weight.values), gone(&want), "{what}: columns removed of {name}");
            let scale = want.iter().fold(0f32, |scale, w| scale.max(w.abs()));
            let furthest =
                weight.values.iter().zip(&want).fold(0f32, |d, (a, b)| d.max((a - b).abs()));
            println!(
                "{what}: {} columns of {columns} as the reference, weights within {:.1e}",
                want_gone.len(),
                furthest / scale
            );
            assert!(
                furthest <= 1e-3 * scale,
                "{what}: weights differ by {furthest}, the largest is {scale}"
            );
        }
    }
}

#[test]
fn obs_neurons_30_percent() {
    removed_as_reference(
        neurons,
        &[Case { layer: "layer", weight: "weight", x: "x", after: "neurons_30" }],
    );
}

#[test]
fn obs_a_third_of_the_heads() {
    removed_as_reference(
        |columns| heads(columns, &["layer"]),
        &[Case { layer: "layer", weight: "weight", x: "x", after: "heads_33" }],
    );
}

#[test]
fn obs_a_third_of_the_heads_of_two_streams() {
    let cases = [
        Case { layer: "layer", weight: "weight", x: "x", after: "joint_heads_33" },
        Case {
            layer: "context",
            weight: "joint_weight_context",
            x: "joint_x_context",
            after: "joint_heads_33_context",
        },
    ];
    removed_as_reference(|columns| heads(columns, &["layer", "context"]), &cases);
}

tests! {
    solved_as_reference {
        obs_50_percent("unstructured_50", Pattern::Unstructured(0.5));
        obs_70_percent("unstructured_70", Pattern::Unstructured(0.7));
        obs_2_4("nm_2_4", "2:4".parse().unwrap());
        obs_4_8("nm_4_8", "4:8".parse().unwrap());
    }
}
