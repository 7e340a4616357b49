//! Samplers against diffusers 0.42.1: whole runs with a toy model, from
//! `tools/make_scheduler_fixtures.py`. Timesteps and the latents at the end are within 1e-5 of the
//! largest of them; what is left is the rounding of latents in f32.

#![expect(clippy::print_stdout, reason = "a test tells its figures")]

use candle_core::{Device, Tensor, Var};
use secateur_models::{Result, Run, Sampler, SchedulerConfig, scheduler_config};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const TOLERANCE: f32 = 1e-5;

const CLASSES: [&str; 7] = [
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "PNDMScheduler",
];

#[derive(Deserialize)]
struct Fixture {
    shape: Vec<usize>,
    start: Vec<f32>,
    noise: Vec<Vec<f32>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    config: String,
    steps: usize,
    timesteps: Vec<f32>,
    initial_scale: f64,
    latents: Vec<f32>,
}

fn read(config: &str) -> Result<Arc<dyn SchedulerConfig>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scheduler_config.json");
    std::fs::write(&path, config).unwrap();
    let class = config.split('"').nth(3).unwrap();
    scheduler_config(&path, Sampler::of_class(class).unwrap(), &[])
}

/// A configuration of a class and the options given as the inside of a JSON object.
fn config(class: &str, options: &str) -> String {
    let comma = if options.is_empty() { "" } else { ", " };
    format!(r#"{{"_class_name": "{class}"{comma}{options}}}"#)
}

fn run(steps: usize) -> Run {
    Run { steps, tokens: 64, even_levels: false }
}

fn model(x: &Tensor, timestep: f32) -> Tensor {
    let wave = x.affine(1.3, 0.002 * f64::from(timestep)).unwrap().sin().unwrap();
    ((wave * 0.8).unwrap() + (x * 0.1).unwrap()).unwrap()
}

fn sample(config: &dyn SchedulerConfig, steps: usize, start: &Tensor, noise: &[Tensor]) -> Tensor {
    let mut schedule = config.schedule(run(steps)).unwrap();
    let mut draws = noise.iter().cloned();
    let mut latents = start.affine(schedule.initial_scale(), 0.0).unwrap();
    for (index, call) in schedule.calls().to_vec().into_iter().enumerate() {
        let input = schedule.scale_input(index, &latents).unwrap();
        let output = model(&input, call.timestep);
        latents =
            schedule.step(index, &latents, &output, &mut || Ok(draws.next().unwrap())).unwrap();
    }
    latents
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// The largest difference, relative to the largest number.
fn error(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(f32::MIN_POSITIVE, |largest, w| largest.max(w.abs()));
    // Not `max`, which would pass over NaN.
    got.iter()
        .zip(want)
        .map(|(g, w)| (g - w).abs() / largest)
        .fold(0.0, |most, e| if e <= most { most } else { e })
}

/// A file of reference values; `None`, and a line that says so, where another folder lacks it.
fn golden(name: &str) -> Option<PathBuf> {
    let other = std::env::var_os("SECATEUR_GOLDENS").map(PathBuf::from);
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens");
    let path = other.clone().unwrap_or(project).join(name);
    if other.is_some() && !path.exists() {
        println!("skipped: {} is not there", path.display());
        return None;
    }
    Some(path)
}

#[test]
fn runs_match_diffusers() {
    let Some(path) = golden("schedulers.json") else { return };
    let fixture: Fixture = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let tensor = |values: &Vec<f32>| {
        Tensor::from_slice(values, fixture.shape.as_slice(), &Device::Cpu).unwrap()
    };
    let (start, noise) =
        (tensor(&fixture.start), fixture.noise.iter().map(tensor).collect::<Vec<_>>());
    let (mut failures, mut largest) = (Vec::new(), BTreeMap::new());
    for Case { config, steps, timesteps, initial_scale, latents } in &fixture.cases {
        let what = format!("{config}, {steps} steps");
        let scheduler = read(config).unwrap();
        let schedule = scheduler.schedule(run(*steps)).unwrap();
        let told: Vec<f32> = schedule.calls().iter().map(|call| call.timestep).collect();
        let times = error(&told, timesteps);
        let scale = ((schedule.initial_scale() - initial_scale) / initial_scale).abs() as f32;
        let result = error(&values(&sample(&*scheduler, *steps, &start, &noise)), latents);
        if ![times, scale, result].iter().all(|error| *error <= TOLERANCE) {
            failures.push(format!(
                "{what}: timesteps {times:.1e}, scale {scale:.1e}, latents {result:.1e}"
            ));
        }
        let class =
            CLASSES.into_iter().find(|class| config.contains(&format!("{class:?}"))).unwrap();
        let most = largest.entry(class).or_insert(0f32);
        *most = most.max(result);
    }
    println!("largest errors of {} cases: {largest:?}", fixture.cases.len());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert_eq!(largest.len(), CLASSES.len());
}

/// The scheduler of emoji-unet is DDIM; its configuration serves other classes too.
#[test]
fn the_timesteps_of_emoji_unet_match_diffusers() {
    let Some(cases) = golden("cases.json") else { return };
    let cases: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(cases).unwrap()).unwrap();
    let steps = cases["unet"]["scheduler_steps"].as_u64().unwrap() as usize;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/emoji-unet/scheduler");
    let ddim = std::fs::read_to_string(folder.join("scheduler_config.json")).unwrap();
    for (name, old, new) in [
        ("ddim_trailing", "leading", "trailing"),
        ("dpmpp_2m", "DDIM", "DPMSolverMultistep"),
        ("euler", "DDIM", "EulerDiscrete"),
        ("heun", "DDIM", "HeunDiscrete"),
        ("pndm", "DDIM", "PNDM"),
    ] {
        let Some(path) = golden(&format!("unet_sched_{name}.safetensors")) else { continue };
        let want =
            values(&candle_core::safetensors::load(path, &Device::Cpu).unwrap()["timesteps"]);
        let schedule = read(&ddim.replace(old, new)).unwrap().schedule(run(steps)).unwrap();
        let told: Vec<f32> = schedule.calls().iter().map(|call| call.timestep).collect();
        assert_eq!(told, want, "{name}");
    }
}

/// Step numbers rise one by one from 0 to the last, whatever the calls of each.
#[test]
fn calls_belong_to_steps() {
    for class in CLASSES {
        for steps in [4, 5, 20] {
            let schedule = read(&config(class, "")).unwrap().schedule(run(steps)).unwrap();
            let mut found: Vec<usize> = schedule.calls().iter().map(|call| call.step).collect();
            found.dedup();
            assert_eq!(found, (0..steps).collect::<Vec<_>>(), "{class}");
        }
    }
    let calls = |class, options, steps| {
        let schedule = read(&config(class, options)).unwrap().schedule(run(steps)).unwrap();
        schedule.calls().iter().map(|call| call.step).collect::<Vec<_>>()
    };
    assert_eq!(calls("HeunDiscreteScheduler", "", 3), [0, 0, 1, 1, 2]);
    assert_eq!(calls("PNDMScheduler", r#""skip_prk_steps": true"#, 4), [0, 0, 1, 2, 3]);
    assert_eq!(calls("PNDMScheduler", r#""skip_prk_steps": true"#, 1), [0]);
    assert_eq!(calls("PNDMScheduler", "", 4), [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3]);
}

/// For some numbers of steps diffusers has one trailing timestep too many, -1, by rounding: 1000 -
/// 61 * (1000 / 61) > 0.
#[test]
fn trailing_timesteps_are_as_many_as_steps() {
    for class in CLASSES {
        let scheduler =
            read(&config(class, r#""timestep_spacing": "trailing", "skip_prk_steps": true"#))
                .unwrap();
        let schedule = scheduler.schedule(run(61)).unwrap();
        let last = schedule.calls().last().unwrap();
        assert_eq!((last.timestep, last.step), (15.0, 60), "{class}");
    }
}

#[test]
fn what_is_not_supported_is_refused_by_name_and_value() {
    let exploding =
        ["EulerDiscreteScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler"];
    let mut cases: Vec<(&str, &str, &str)> = Vec::new();
    for class in CLASSES {
        cases.extend([
            (class, "prediction_type", r#""score""#),
            (class, "timestep_spacing", r#""random""#),
            (class, "beta_schedule", r#""sigmoid""#),
            (class, "beta_schedule", "null"),
            (class, "num_train_timesteps", "0"),
            (class, "num_train_timesteps", "1000000000000"),
            (class, "num_train_timesteps", "-1"),
            (class, "steps_offset", "-1"),
            (class, "beta_end", r#""high""#),
        ]);
    }
    for class in exploding {
        cases.extend([
            (class, "use_exponential_sigmas", "true"),
            (class, "use_beta_sigmas", "true"),
        ]);
    }
    for (class, name, value) in [
        ("DDIMScheduler", "clip_sample_range", "0"),
        ("DDPMScheduler", "variance_type", r#""learned_range""#),
        ("DDPMScheduler", "variance_type", r#""fixed_large_log""#),
        ("PNDMScheduler", "prediction_type", r#""sample""#),
        ("EulerAncestralDiscreteScheduler", "prediction_type", r#""sample""#),
        ("EulerDiscreteScheduler", "prediction_type", r#""flow_prediction""#),
        ("EulerDiscreteScheduler", "interpolation_type", r#""log_linear""#),
        ("EulerDiscreteScheduler", "timestep_type", r#""continuous""#),
        ("EulerDiscreteScheduler", "final_sigmas_type", r#""half""#),
        ("EulerDiscreteScheduler", "sigma_min", "-0.5"),
        ("DPMSolverMultistepScheduler", "algorithm_type", r#""sde-dpmsolver++""#),
        ("DPMSolverMultistepScheduler", "solver_type", r#""euler""#),
        ("DPMSolverMultistepScheduler", "solver_order", "4"),
        ("DPMSolverMultistepScheduler", "use_lu_lambdas", "true"),
        ("DPMSolverMultistepScheduler", "use_dynamic_shifting", "true"),
        ("DPMSolverMultistepScheduler", "lambda_min_clipped", "-5.1"),
        ("DPMSolverMultistepScheduler", "variance_type", r#""learned""#),
        ("DPMSolverMultistepScheduler", "flow_shift", "0.0"),
    ] {
        cases.push((class, name, value));
    }
    for (class, name, value) in cases {
        let error = read(&config(class, &format!("{name:?}: {value}"))).unwrap_err().to_string();
        assert!(
            error.contains(name) && error.contains(value.trim_matches('"')),
            "{class} with {value}: {error}"
        );
    }
}

#[test]
fn contradictions_are_errors() {
    for class in CLASSES {
        for options in [
            r#""beta_start": 0.0"#,
            r#""beta_start": -0.1, "beta_schedule": "scaled_linear""#,
            r#""beta_end": 1.5"#,
            r#""beta_end": 1e300"#,
            r#""beta_start": NaN"#,
            r#""trained_betas": [0.1, 0.2]"#,
            r#""num_train_timesteps": 2, "trained_betas": [0.1, 0.0]"#,
            r#""num_train_timesteps": 2, "trained_betas": [0.1, 1.0]"#,
        ] {
            assert!(read(&config(class, options)).is_err(), "{class} with {options}");
        }
        for (options, steps) in [("", 0), ("", 1001), (r#""num_train_timesteps": 5"#, 6)] {
            let scheduler = read(&config(class, options)).unwrap();
            assert!(
                scheduler.schedule(run(steps)).is_err(),
                "{class} with {options}, {steps} steps"
            );
        }
        let even = Run { even_levels: true, ..run(5) };
        assert!(read(&config(class, "")).unwrap().schedule(even).is_err(), "{class}");
    }
    let flow = r#""prediction_type": "flow_prediction""#;
    assert!(read(&config("DPMSolverMultistepScheduler", flow)).is_err());
    let both = r#""use_karras_sigmas": true, "use_flow_sigmas": true"#;
    assert!(read(&config("DPMSolverMultistepScheduler", both)).is_err());
    // Numbers beyond any model's are refused when the file is read, by name.
    for (class, name) in
        [("EulerDiscreteScheduler", "sigma_max"), ("DPMSolverMultistepScheduler", "flow_shift")]
    {
        let error = read(&config(class, &format!("{name:?}: 1e300"))).unwrap_err().to_string();
        assert!(error.contains("scheduler_config.json") && error.contains(name), "{error}");
    }
    for (class, options, steps) in [
        ("PNDMScheduler", "", 3),
        ("DDIMScheduler", r#""steps_offset": 600"#, 2),
        ("DDIMScheduler", r#""rescale_betas_zero_snr": true, "timestep_spacing": "trailing""#, 5),
        ("DDPMScheduler", r#""rescale_betas_zero_snr": true, "timestep_spacing": "linspace""#, 5),
        (
            "EulerDiscreteScheduler",
            r#""use_karras_sigmas": true, "sigma_min": 5.0, "sigma_max": 1.0"#,
            5,
        ),
        ("EulerDiscreteScheduler", r#""use_karras_sigmas": true, "sigma_min": 1e-300"#, 5),
        ("DPMSolverMultistepScheduler", r#""timestep_spacing": "leading""#, 1000),
        ("DPMSolverMultistepScheduler", "", 1000),
    ] {
        let scheduler = read(&config(class, options)).unwrap();
        assert!(scheduler.schedule(run(steps)).is_err(), "{class} with {options}, {steps} steps");
    }
}

/// Whatever number of steps a schedule takes, of few that there are, it gives numbers.
#[test]
fn every_schedule_that_is_made_gives_numbers() {
    let start = Tensor::new(&[[0.3f32, -1.2]], &Device::Cpu).unwrap();
    let noise = vec![start.clone(); 12];
    let options = [
        "",
        r#""use_karras_sigmas": true, "prediction_type": "v_prediction""#,
        r#""final_sigmas_type": "sigma_min", "solver_type": "heun", "skip_prk_steps": true"#,
        r#""use_karras_sigmas": true, "final_sigmas_type": "sigma_min", "solver_order": 3,
            "lower_order_final": false"#,
        r#""use_flow_sigmas": true, "final_sigmas_type": "sigma_min", "thresholding": true"#,
        r#""rescale_betas_zero_snr": true, "prediction_type": "v_prediction", "steps_offset": 1"#,
    ];
    for (class, options) in CLASSES.iter().flat_map(|class| options.map(|options| (class, options)))
    {
        for spacing in ["linspace", "leading", "trailing"] {
            let comma = if options.is_empty() { "" } else { ", " };
            let options = format!(
                r#""num_train_timesteps": 12, "timestep_spacing": "{spacing}"{comma}{options}"#
            );
            let scheduler = read(&config(class, &options)).unwrap();
            let made: Vec<usize> =
                (1..=12).filter(|steps| scheduler.schedule(run(*steps)).is_ok()).collect();
            assert!(made.len() >= 8, "{class} with {options}: only {made:?} steps");
            for steps in made {
                let end = values(&sample(&*scheduler, steps, &start, &noise));
                assert!(
                    end.iter().all(|value| value.is_finite()),
                    "{class} with {options}, {steps} steps: {end:?}"
                );
            }
        }
    }
}

/// The derivative of sum(latents at the end * waves) in the latents at the start, along a
/// direction, is the finite difference, in f64: no step drops a gradient.
#[test]
fn a_gradient_flows_through_every_step() {
    const STEP: f64 = 1e-6;
    let limits = r#""clip_sample": true, "clip_sample_range": 0.9"#;
    let threshold =
        r#""thresholding": true, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.5"#;
    let velocity = r#""prediction_type": "v_prediction", "clip_sample": false"#;
    let waves = |period: f64| {
        let values: Vec<f64> = (0..60).map(|i| (f64::from(i) * period).sin()).collect();
        Tensor::from_vec(values, (2, 3, 2, 5), &Device::Cpu).unwrap()
    };
    let (start, direction, cotangent) = (waves(0.7), waves(1.9), waves(1.37));
    let noise = [2.1, 3.1, 4.1, 5.1].map(waves);
    let sum = |x: &Tensor, y: &Tensor| (x * y).unwrap().sum_all().unwrap();
    for class in CLASSES {
        for options in [limits, threshold, velocity] {
            let scheduler = read(&config(class, options)).unwrap();
            let loss = |latents: &Tensor| sum(&sample(&*scheduler, 4, latents, &noise), &cotangent);
            let variable = Var::from_tensor(&start).unwrap();
            let gradients = loss(&variable).backward().unwrap();
            let gradient =
                sum(gradients.get(&variable).unwrap(), &direction).to_scalar::<f64>().unwrap();
            let at = |step: f64| {
                let latents = (&start + direction.affine(step, 0.0).unwrap()).unwrap();
                loss(&latents).to_scalar::<f64>().unwrap()
            };
            let difference = (at(STEP) - at(-STEP)) / (2.0 * STEP);
            let error = (gradient - difference).abs() / difference.abs();
            assert!(error < 1e-5, "{class} with {options}: {gradient} against {difference}");
        }
    }
}
