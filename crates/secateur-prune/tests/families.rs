//! Every method prunes every family: small pipelines of random weights and the bundled models.

#![cfg(unix)]

#[path = "../../secateur-models/tests/common/assemble.rs"]
mod assemble;

use assemble::assemble;
use candle_core::Tensor;
use secateur_models::{ModelFolder, Pipeline, Sampler, Sampling};
use secateur_prune::{
    Calibration, Dsnot, Magnitude, Method, Obs, Packages, Pattern, Plan, Selection, Source, Wanda, Weighting, prune,
};
use std::path::{Path, PathBuf};

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Calibrates with two pictures over three steps, and prunes half of all weights by each method, anywhere and as 2:4:
/// OBS, which makes up for what it removes, leaves the least error in the layers' outputs.
fn every_method(folder: &Path, prompts: [&str; 2], change: impl Fn(Sampling) -> Sampling) {
    let open = || ModelFolder::open(folder, None).unwrap();
    let sampling = change(Sampling { steps: 3, batch: 2, ..open().sampling() });
    let prompts = prompts.map(str::to_owned).to_vec();
    let structure = open().structure(&sampling);
    let calibration = Calibration {
        prompts: prompts.clone(),
        sampling: sampling.clone(),
        weighting: Weighting::default(),
        token_stride: 1,
    };
    let pictures = |pipeline: &Pipeline| -> Tensor {
        let latents = pipeline.sample(&prompts, 0..2, &sampling, None, &()).unwrap();
        pipeline.pictures(&latents).unwrap()
    };
    let dense = pictures(&Pipeline::open(open()).unwrap());
    let methods: [&dyn Method; 5] = [&Obs, &Wanda, &Dsnot::Wanda, &Dsnot::Hessian, &Magnitude];
    for pattern in [Pattern::unstructured(0.5).unwrap(), "2:4".parse().unwrap()] {
        let mut errors = Vec::new();
        for method in methods {
            let what = format!("{}, {} to {pattern}", folder.display(), method.name());
            let mut pipeline = Pipeline::open(open()).unwrap();
            let plan = Plan::new(&structure, &Selection::default(), Packages::Count(1), method).unwrap();
            let source = Source::Calibration(&calibration);
            let outcome = prune(&mut pipeline, &plan, method, pattern, &source, &()).unwrap();
            let prunable = structure.layers().filter(|layer| layer.prunable.is_some()).count();
            assert_eq!((outcome.layers.len(), outcome.weights.len()), (prunable, prunable), "{what}");
            for layer in &outcome.layers {
                let share = layer.zeros as f64 / (layer.rows * layer.columns) as f64;
                assert!((0.49..0.53).contains(&share), "{what}, {}: {share}", layer.name);
                assert!((0.0..=1.0).contains(&layer.error), "{what}, {}: {}", layer.name, layer.error);
            }
            errors.push(outcome.layers.iter().map(|layer| layer.error).sum::<f64>() / prunable as f64);
            let change = (pictures(&pipeline) - &dense).unwrap().abs().unwrap().mean_all().unwrap();
            let change = change.to_scalar::<f32>().unwrap();
            assert!(change.is_finite() && change > 0.0, "{what}: pictures changed by {change}");
        }
        let best = errors[1..].iter().all(|error| errors[0] < *error);
        assert!(best, "{}, {pattern}: layer errors of OBS and the others {errors:?}", folder.display());
    }
}

fn small(name: &str, latent: (usize, usize)) {
    let folder = assemble(&project().join("tests/goldens"), name);
    let prompts = ["red apple, noto style emoji", "Spider"];
    every_method(folder.path(), prompts, |sampling| Sampling { latent, ..sampling });
}

#[test]
fn stable_diffusion_2() {
    small("stable_diffusion_2", (16, 16));
}

#[test]
fn stable_diffusion_xl() {
    small("stable_diffusion_xl", (16, 24));
}

#[test]
fn stable_diffusion_3() {
    small("stable_diffusion_3", (16, 16));
}

#[test]
fn flux() {
    small("flux", (16, 12));
}

#[test]
fn pixart() {
    small("pixart", (16, 12));
}

#[test]
fn ddpm() {
    small("ddpm", (16, 16));
}

#[test]
fn emoji_dit() {
    every_method(&project().join("models/emoji-dit"), ["food/noto", "3"], |sampling| sampling);
}

/// The weight of a calibration follows the denoising step, however often a sampler calls the model in it.
#[test]
fn emoji_unet_by_samplers_that_call_it_more_than_once_a_step() {
    let folder = project().join("models/emoji-unet");
    let prompts = ["red apple, noto style emoji", "spider, fluent 3d style emoji"];
    for (sampler, steps) in [(Sampler::Heun, 2), (Sampler::Pndm, 4)] {
        every_method(&folder, prompts, |sampling| Sampling { sampler, steps, ..sampling });
    }
}
