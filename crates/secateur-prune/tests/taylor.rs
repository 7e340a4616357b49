//! Diff-Pruning's scores against finite differences of the loss that they are the slopes of.

#![cfg(unix)]

#[path = "common/given.rs"]
mod given;

#[path = "../../secateur-models/tests/common/assemble.rs"]
mod assemble;
#[path = "../../secateur-models/tests/common/cases.rs"]
#[macro_use]
mod cases;

use assemble::assemble;
use candle_core::{Device, Tensor};
use given::Given;
use secateur_models::{Axis, Edits, ModelFolder, Pipeline, Sampling, noise};
use secateur_nn::Context;
use secateur_prune::{
    Calibration, Packages, Plan, PlannedGroup, Portion, Selection, Source, StructuredMethod, Task,
    Taylor, prune,
};
use std::collections::BTreeMap;
use std::path::Path;

/// The loss at all timesteps from the least noisy one, as Diff-Pruning sums it up.
fn losses(
    pipeline: &Pipeline,
    clean: &Tensor,
    prompts: &[String],
    sampling: &Sampling,
) -> Vec<f64> {
    let folder = pipeline.folder();
    let mut timesteps: Vec<f32> = folder
        .schedule(sampling.latent, sampling)
        .unwrap()
        .calls()
        .iter()
        .map(|call| call.timestep)
        .collect();
    timesteps.sort_by(f32::total_cmp);
    timesteps.dedup();
    let loss = |(draws, timestep): (usize, &f32)| {
        let noise = noise(sampling.seed, 0..prompts.len(), draws + 1, &clean.dims()[1..]).unwrap();
        let scheduler = folder.scheduler(sampling.sampler).unwrap();
        let (latents, target) = scheduler.training_pair(*timestep, clean, &noise).unwrap();
        let told = pipeline.conditioning(prompts, sampling.latent, sampling).unwrap();
        let times = Tensor::full(*timestep, prompts.len(), &Device::Cpu).unwrap();
        let output =
            pipeline.denoiser().forward(&latents, &times, &told, &Context::default()).unwrap();
        let output = output.narrow(1, 0, clean.dim(1).unwrap()).unwrap();
        let error: Vec<f32> = (output - target).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        error.iter().map(|&e| f64::from(e).powi(2)).sum::<f64>() / error.len() as f64
    };
    timesteps.iter().enumerate().map(loss).collect()
}

fn scores_are_slopes(name: &str, latent: (usize, usize)) {
    let folder = assemble(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens"), name);
    let open = || ModelFolder::open(folder.path(), None).unwrap();
    let sampling = Sampling { steps: 3, batch: 2, latent, ..open().sampling() };
    let prompts = ["red apple, noto style emoji", "Spider"].map(str::to_owned).to_vec();
    let portion = Portion { keep_ends: 0, multiple: 1, ..Portion::new(0.5).unwrap() };
    let planned = Taylor::default();
    let task = Task::Structured { method: &planned, portion };
    let structure = open().structure(&sampling);
    let plan = Plan::new(&structure, &Selection::default(), Packages::Count(1), &task).unwrap();
    let mut pipeline = Pipeline::open(open()).unwrap();
    let calibration = Calibration::new(prompts.clone(), sampling.clone());
    let taylor = Taylor::measure(&pipeline, &plan, &calibration, &()).unwrap();
    // Batches change nothing but rounding.
    let alone = Sampling { batch: 1, ..sampling.clone() };
    let one_by_one = Calibration { sampling: alone, ..calibration.clone() };
    let one_by_one = Taylor::measure(&pipeline, &plan, &one_by_one, &()).unwrap();

    let clean = pipeline.sample(&prompts, 0..2, &sampling, None, &()).unwrap();
    let used = {
        let (losses, mut largest) = (losses(&pipeline, &clean, &prompts, &sampling), 0f64);
        let above = |loss: &&f64| {
            largest = largest.max(**loss);
            **loss >= Taylor::THRESHOLD * largest
        };
        losses.iter().take_while(above).count()
    };
    assert!(used > 0);
    let dense: BTreeMap<String, Tensor> = pipeline
        .parameters()
        .iter()
        .map(|(name, weight)| (name.to_owned(), weight.tensor().unwrap()))
        .collect();
    let edits = |weights: BTreeMap<String, Tensor>| {
        let weights = weights.into_iter().map(|(name, tensor)| (name, tensor.into())).collect();
        Edits { weights, ..Edits::default() }
    };
    for PlannedGroup { group, .. } in plan.groups() {
        let scores = taylor.scores(group.name()).unwrap();
        let largest = scores.iter().copied().fold(0.0, f64::max);
        for (a, b) in scores.iter().zip(one_by_one.scores(group.name()).unwrap()) {
            assert!(
                (a - b).abs() <= 1e-3 * largest,
                "{name}, {}: {a} in a batch, {b} alone",
                group.name()
            );
        }
        // The first, and the one in the middle.
        for one in [0, group.count() / 2] {
            let mut loss_at = |scale: f32| -> f64 {
                let mut weights = BTreeMap::<String, Tensor>::new();
                for part in group.parts(&[one]) {
                    let bias = (part.axis == Axis::Rows).then(|| part.layer.bias());
                    for name in std::iter::once(part.layer.weight()).chain(bias) {
                        let Some(tensor) = weights.get(&name).or_else(|| dense.get(&name)) else {
                            continue;
                        };
                        let axis = part.axis as usize;
                        let mut shape = vec![1; tensor.rank()];
                        shape[axis] = tensor.dim(axis).unwrap();
                        let mut factors = vec![1f32; shape[axis]];
                        part.indices.iter().for_each(|&index| factors[index] = scale);
                        let factors = Tensor::from_vec(factors, shape, tensor.device()).unwrap();
                        let scaled = tensor.broadcast_mul(&factors).unwrap();
                        weights.insert(name, scaled);
                    }
                }
                pipeline.apply(&edits(weights)).unwrap();
                let sum = losses(&pipeline, &clean, &prompts, &sampling)[..used].iter().sum();
                pipeline.apply(&edits(dense.clone())).unwrap();
                sum
            };
            const STEP: f32 = 0.02;
            let slope =
                ((loss_at(1.0 + STEP) - loss_at(1.0 - STEP)) / (2.0 * f64::from(STEP))).abs();
            let error = (slope - scores[one]).abs();
            assert!(
                error < 0.02 * slope + 0.01 * largest,
                "{name}, {} {one}: score {}, finite difference {slope}",
                group.name(),
                scores[one]
            );
        }
    }

    // Those of the lowest scores go.
    let task = Task::Structured { method: &taylor, portion };
    let step_weights = calibration.step_weights(&mut pipeline, &()).unwrap();
    let source = Source::Calibration(&calibration, &step_weights, None);
    let outcome = prune(&mut pipeline, &plan, &task, &source, None, None, &()).unwrap();
    for group in &outcome.groups {
        let scores = taylor.scores(&group.name).unwrap();
        let gone = group.removed.iter().map(|&one| scores[one]).fold(0.0, f64::max);
        let stays =
            (0..group.count).filter(|one| !group.removed.contains(one)).map(|one| scores[one]);
        assert!(stays.fold(f64::INFINITY, f64::min) >= gone, "{name}, {}", group.name);
    }
}

#[test]
fn without_scores_nothing_is_removed() {
    let group = secateur_models::Group::Neurons(secateur_models::NeuronGroup {
        name: "ff".into(),
        count: 2,
        up: Vec::new(),
        down: secateur_models::Slice { layer: "down".into(), start: 0 },
    });
    let error = Taylor::default()
        .remove(&[PlannedGroup { group, remove: 1 }], &Given::new(Vec::new()))
        .unwrap_err();
    assert!(error.to_string().contains("ff"), "{error}");
}

tests! {
    scores_are_slopes {
        of_a_flow_model("stable_diffusion_3", (16, 16));
        of_a_model_that_predicts_velocity("stable_diffusion_2", (16, 16));
        of_flux("flux", (16, 12));
    }
}
