//! Every method prunes every family: small pipelines of random weights and the bundled models.

#![cfg(unix)]

#[path = "../../secateur-models/tests/common/assemble.rs"]
mod assemble;
#[path = "../../secateur-models/tests/common/cases.rs"]
#[macro_use]
mod cases;

use assemble::assemble;
use candle_core::Tensor;
use secateur_models::{Edits, Group, ModelFolder, Pipeline, Sampler, Sampling};
use secateur_prune::{
    Calibration, Dsnot, L1, Magnitude, Method, Neurons, Obs, Packages, Pattern, Plan, Portion,
    Rows, Selection, Slim, Source, StructuredMethod, Task, Wanda, Weighting, prune,
};
use std::path::{Path, PathBuf};

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Calibrates with two pictures over three steps, and prunes half of all weights by each method,
/// anywhere and as 2:4: OBS, which makes up for what it removes, leaves the least error in the
/// layers' outputs. Weights of the steps can be measured.
fn every_method(folder: &Path, prompts: [&str; 2], change: impl Fn(Sampling) -> Sampling) {
    let open = || ModelFolder::open(folder, None).unwrap();
    let sampling = change(Sampling { steps: 3, batch: 2, ..open().sampling() });
    let prompts = prompts.map(str::to_owned).to_vec();
    let structure = open().structure(&sampling);
    let calibration = Calibration::new(prompts.clone(), sampling.clone());
    let pictures = |pipeline: &Pipeline| -> Tensor {
        let latents = pipeline.sample(&prompts, 0..2, &sampling, None, &()).unwrap();
        pipeline.pictures(&latents).unwrap()
    };
    let mut pipeline = Pipeline::open(open()).unwrap();
    let dense = pictures(&pipeline);
    let measured = Calibration { weighting: Weighting::Measured, ..calibration.clone() };
    let weights = measured.step_weights(&mut pipeline, &()).unwrap();
    let mean = weights.iter().sum::<f64>() / weights.len() as f64;
    assert!(
        (mean - 1.0).abs() < 1e-12 && weights.iter().all(|weight| *weight > 0.0),
        "{weights:?}"
    );
    let methods: [&dyn Method; 5] = [&Obs, &Wanda, &Dsnot::Wanda, &Dsnot::Hessian, &Magnitude];
    for pattern in [Pattern::unstructured(0.5).unwrap(), "2:4".parse().unwrap()] {
        let mut errors = Vec::new();
        for method in methods {
            let what = format!("{}, {} to {pattern}", folder.display(), method.name());
            let mut pipeline = Pipeline::open(open()).unwrap();
            let task = Task::Weights { method, pattern };
            let plan =
                Plan::new(&structure, &Selection::default(), Packages::Count(1), &task).unwrap();
            let step_weights = calibration.step_weights(&mut pipeline, &()).unwrap();
            let source = Source::Calibration(&calibration, &step_weights, None);
            let outcome = prune(&mut pipeline, &plan, &task, &source, None, None, &()).unwrap();
            let prunable = structure.layers().filter(|layer| layer.prunable.is_some()).count();
            assert_eq!(
                (outcome.layers.len(), outcome.edits.weights.len()),
                (prunable, prunable),
                "{what}"
            );
            for layer in &outcome.layers {
                let share = layer.zeros as f64 / (layer.rows * layer.columns) as f64;
                assert!((0.49..0.53).contains(&share), "{what}, {}: {share}", layer.name);
                assert!(
                    (0.0..=1.0).contains(&layer.error),
                    "{what}, {}: {}",
                    layer.name,
                    layer.error
                );
            }
            errors.push(
                outcome.layers.iter().map(|layer| layer.error).sum::<f64>() / prunable as f64,
            );
            let change = (pictures(&pipeline) - &dense).unwrap().abs().unwrap().mean_all().unwrap();
            let change = change.to_scalar::<f32>().unwrap();
            assert!(change.is_finite() && change > 0.0, "{what}: pictures changed by {change}");
        }
        let best = errors[1..].iter().all(|error| errors[0] < *error);
        assert!(
            best,
            "{}, {pattern}: layer errors of OBS and the others {errors:?}",
            folder.display()
        );
    }
}

/// Removes half of all heads and neurons by each method. The model that is saved is smaller and
/// draws what the pruned one in memory draws; so does the one with zeros put back, which asks for
/// no manifest; and it can be pruned again, by weights and by heads and neurons.
fn every_structured_method(
    folder: &Path,
    prompts: [&str; 2],
    change: impl Fn(Sampling) -> Sampling,
) {
    let open = |path: &Path| ModelFolder::open(path, None).unwrap();
    let sampling = change(Sampling { steps: 3, batch: 2, ..open(folder).sampling() });
    let prompts = prompts.map(str::to_owned).to_vec();
    let calibration = Calibration::new(prompts.clone(), sampling.clone());
    let step_weights =
        calibration.step_weights(&mut Pipeline::open(open(folder)).unwrap(), &()).unwrap();
    let source = Source::Calibration(&calibration, &step_weights, None);
    let latents =
        |pipeline: &Pipeline| pipeline.sample(&prompts, 0..2, &sampling, None, &()).unwrap();
    let plan = |folder: &Path, task: &Task<'_>| {
        Plan::new(
            &open(folder).structure(&sampling),
            &Selection::default(),
            Packages::Count(2),
            task,
        )
        .unwrap()
    };
    let apart = |a: &Tensor, b: &Tensor| {
        let scale = a.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap() / scale
    };
    let temporary = tempfile::tempdir().unwrap();
    let whole = Portion { keep_ends: 0, multiple: 1, ..Portion::new(0.5).unwrap() };
    let low_rank = Portion { multiple: 1, ..Portion::slim(0.5).unwrap() };
    let methods: [(&str, &dyn StructuredMethod, Portion); 4] = [
        ("obs", &Obs, whole),
        ("l1", &L1, whole),
        ("slim", &Slim { rows: Rows::Values, neurons: Neurons::Obs }, low_rank),
        (
            "slim by attention and leverage",
            &Slim { rows: Rows::Attention, neurons: Neurons::Leverage },
            low_rank,
        ),
    ];
    let mut errors = Vec::new();
    for (name, method, portion) in methods {
        let what = format!("{}, {name}", folder.display());
        let task = Task::Structured { method, portion };
        let structure = open(folder).structure(&sampling);
        let smaller: Vec<Group> =
            structure.groups().filter(|group| portion.count(group) > 0).collect();
        if smaller.is_empty() {
            // Attentions of one head each, which has to stay.
            assert!(
                Plan::new(&structure, &Selection::default(), Packages::Count(2), &task).is_err()
            );
            continue;
        }
        let mut pipeline = Pipeline::open(open(folder)).unwrap();
        let outcome =
            prune(&mut pipeline, &plan(folder, &task), &task, &source, None, None, &()).unwrap();
        assert_eq!(outcome.groups.len(), smaller.len(), "{what}");
        for group in &outcome.groups {
            assert_eq!(
                group.removed.len(),
                (group.count as f64 / 2.0).round_ties_even() as usize,
                "{what}, {}",
                group.name
            );
        }
        let of_layers = outcome.layers.iter().map(|layer| layer.error);
        let all: Vec<f64> =
            of_layers.chain(outcome.groups.iter().filter_map(|group| group.error)).collect();
        assert!(all.iter().all(|error| (0.0..=1.0).contains(error)), "{what}: {all:?}");
        errors.push(all.iter().sum::<f64>() / all.len() as f64);

        let small = temporary.path().join(name);
        let write = |folder: &Path, path: &Path, edits: &Edits| {
            std::fs::create_dir(path).unwrap();
            open(folder).write(path, edits, &()).unwrap();
        };
        write(folder, &small, &outcome.edits);
        assert!(open(&small).checkpoint().bytes() < open(folder).checkpoint().bytes(), "{what}");
        assert!(
            open(&small).structure(&sampling).macs() < open(folder).structure(&sampling).macs(),
            "{what}"
        );
        let pruned = latents(&pipeline);
        assert_eq!(
            apart(&pruned, &latents(&Pipeline::open(open(&small)).unwrap())),
            0.0,
            "{what}: saved"
        );
        let parameters = |path: &Path| -> usize {
            open(path)
                .denoiser()
                .parameters(open(path).removals())
                .unwrap()
                .values()
                .map(|w| w.shape.iter().product::<usize>())
                .sum()
        };
        let in_file: usize =
            open(&small).checkpoint().tensors().map(|(_, info)| info.elements()).sum();
        assert!(in_file >= parameters(&small) && parameters(&small) < parameters(folder), "{what}");

        let dense = temporary.path().join(format!("{name}-dense"));
        std::fs::create_dir(&dense).unwrap();
        open(&small).densify(&dense, &()).unwrap();
        let shapes = |path: &Path| -> Vec<_> {
            open(path)
                .checkpoint()
                .tensors()
                .map(|(name, info)| (name.to_owned(), info.shape.clone()))
                .collect()
        };
        assert_eq!(shapes(&dense), shapes(folder), "{what}");
        let error = apart(&pruned, &latents(&Pipeline::open(open(&dense)).unwrap()));
        assert!(error < 1e-4, "{what}: with zeros put back, {error}");

        // Again, and then weights anywhere.
        let mut pipeline = Pipeline::open(open(&small)).unwrap();
        let again =
            prune(&mut pipeline, &plan(&small, &task), &task, &source, None, None, &()).unwrap();
        let smaller = temporary.path().join(format!("{name}-again"));
        write(&small, &smaller, &again.edits);
        assert!(parameters(&smaller) < parameters(&small), "{what}");
        let removed = |path: &Path| {
            open(path).removals().iter().map(|(_, portion)| portion.removed.len()).sum::<usize>()
        };
        assert!(removed(&smaller) > removed(&small), "{what}");
        let task = Task::Weights { method: &Obs, pattern: Pattern::Unstructured(0.5) };
        let mut pipeline = Pipeline::open(open(&smaller)).unwrap();
        let zeros =
            prune(&mut pipeline, &plan(&smaller, &task), &task, &source, None, None, &()).unwrap();
        assert_eq!(zeros.edits.removals, *open(&smaller).removals(), "{what}");
        assert!(
            latents(&pipeline)
                .sqr()
                .unwrap()
                .sum_all()
                .unwrap()
                .to_scalar::<f32>()
                .unwrap()
                .is_finite(),
            "{what}"
        );
    }
    assert!(
        errors.len() < 4 || errors[0] < errors[1],
        "{}: layer errors of OBS and L1 {errors:?}",
        folder.display()
    );
}

fn small(name: &str, latent: (usize, usize)) {
    let folder = assemble(&project().join("tests/goldens"), name);
    let prompts = ["red apple, noto style emoji", "Spider"];
    every_method(folder.path(), prompts, |sampling| Sampling { latent, ..sampling });
    every_structured_method(folder.path(), prompts, |sampling| Sampling { latent, ..sampling });
}

#[test]
fn emoji_dit() {
    let folder = project().join("models/emoji-dit");
    every_method(&folder, ["food/noto", "3"], |sampling| sampling);
    every_structured_method(&folder, ["food/noto", "3"], |sampling| sampling);
}

/// The weight of a calibration follows the denoising step, however often a sampler calls the model
/// in it.
#[test]
fn samplers_that_call_the_model_more_than_once_a_step() {
    let folder = assemble(&project().join("tests/goldens"), "stable_diffusion_2");
    let prompts = ["red apple, noto style emoji", "Spider"];
    for (sampler, steps) in [(Sampler::Heun, 2), (Sampler::Pndm, 4)] {
        every_method(folder.path(), prompts, |sampling| Sampling {
            sampler,
            steps,
            latent: (16, 16),
            ..sampling
        });
    }
}

tests! {
    small {
        stable_diffusion_2("stable_diffusion_2", (16, 16));
        stable_diffusion_xl("stable_diffusion_xl", (16, 24));
        stable_diffusion_3("stable_diffusion_3", (16, 16));
        flux("flux", (16, 12));
        pixart("pixart", (16, 12));
        ddpm("ddpm", (16, 16));
    }
}
