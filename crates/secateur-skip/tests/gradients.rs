//! The gradient of a loss of the final pictures with respect to every gate, through blocks, what is taken over, samplers with
//! and without a past, guidance and autoencoder, against finite differences of a plain run whose gates are numbers.

#![cfg(unix)]

#[path = "../../secateur-models/tests/common/assemble.rs"]
mod assemble;

use candle_core::Tensor;
use secateur_models::{Kind, ModelFolder, Pipeline, ReuseSchedule, Sampler, Sampling};
use secateur_nn::{Context, Gates, Passage, Step};
use secateur_skip::{Loss, SuperNet};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::Path;

/// Every unit makes gate * computed + (1 - gate) * what it made before.
struct Soft<'a> {
    schedule: &'a ReuseSchedule,
    gates: &'a [Vec<f64>],
    call: Cell<usize>,
    made: RefCell<BTreeMap<String, Vec<Tensor>>>,
}

impl Gates for Soft<'_> {
    fn enter(&self, _: &str, inputs: &[Tensor]) -> secateur_nn::Result<Passage> {
        Ok(Passage::Compute(inputs.to_vec()))
    }

    fn leave(&self, stretch: &str, inputs: &[Tensor], outputs: Vec<Tensor>) -> secateur_nn::Result<Vec<Tensor>> {
        let Some(unit) = self.schedule.units.iter().position(|unit| unit == stretch) else { return Ok(outputs) };
        let residual = self.schedule.kind == Kind::Residual;
        let gate = self.gates[self.call.get()][unit];
        let mut made = self.made.borrow_mut();
        let mut mixed = Vec::new();
        for (index, output) in outputs.iter().enumerate() {
            let now = if residual { (output - &inputs[index])? } else { output.clone() };
            mixed.push(match made.get(stretch) {
                Some(before) => ((now * gate)? + (&before[index] * (1.0 - gate))?)?,
                None => now,
            });
        }
        made.insert(stretch.to_owned(), mixed.clone());
        match residual {
            true => Ok(inputs.iter().zip(&mixed).map(|(x, y)| (x + y).unwrap()).collect()),
            false => Ok(mixed),
        }
    }
}

struct Case<'a> {
    pipeline: &'a Pipeline,
    sampling: Sampling,
    prompts: Vec<String>,
    whole: ReuseSchedule,
    wanted: Tensor,
    loss: Loss,
}

impl Case<'_> {
    /// The loss of a run with gates that are numbers.
    fn soft(&self, gates: &[Vec<f64>]) -> f64 {
        let Self { pipeline, sampling, prompts, .. } = self;
        let images = 0..prompts.len();
        let conditioning = pipeline.guided_conditioning(prompts, sampling.latent, sampling).unwrap();
        let mut schedule = pipeline.folder().schedule(sampling.latent, sampling).unwrap();
        let mut latents =
            pipeline.noise(images.clone(), sampling).unwrap().affine(schedule.initial_scale(), 0.0).unwrap();
        let soft = Soft { schedule: &self.whole, gates, call: Cell::default(), made: RefCell::default() };
        let shape = latents.dims()[1..].to_vec();
        let mut draws = 0;
        for (index, call) in schedule.calls().to_vec().into_iter().enumerate() {
            soft.call.set(index);
            let step = Step { index: call.step, count: sampling.steps };
            let context = Context { step, gates: Some(&soft), ..Context::default() };
            let input = schedule.scale_input(index, &latents).unwrap();
            let output = pipeline.predict(&input, call.timestep, &conditioning, sampling.guidance, &context).unwrap();
            let mut noise = || {
                draws += 1;
                secateur_models::noise(sampling.seed, images.clone(), draws, &shape)
            };
            latents = schedule.step(index, &latents, &output, &mut noise).unwrap();
        }
        let loss = self.loss.of(&pipeline.pictures(&latents).unwrap(), &self.wanted).unwrap();
        f64::from(loss.to_scalar::<f32>().unwrap())
    }

    fn check(&self, what: &str) {
        let mut schedule = self.whole.clone();
        for (call, row) in schedule.computed.iter_mut().enumerate().skip(1) {
            row.iter_mut().enumerate().for_each(|(unit, computed)| *computed = (call * 3 + unit * 5) % 4 != 0);
        }
        let images = 0..self.prompts.len();
        let conditioning =
            self.pipeline.guided_conditioning(&self.prompts, self.sampling.latent, &self.sampling).unwrap();
        let net = SuperNet::new(self.pipeline, &self.sampling, &schedule);
        let run = net.run(&conditioning, images, &schedule.computed).unwrap();
        let loss = self.loss.of(&self.pipeline.pictures(run.latents()).unwrap(), &self.wanted).unwrap();
        let gates: Vec<Vec<f64>> = schedule
            .computed
            .iter()
            .map(|row| row.iter().map(|&computed| f64::from(u8::from(computed))).collect())
            .collect();
        let hard = f64::from(loss.to_scalar::<f32>().unwrap());
        assert!(
            (hard / self.soft(&gates) - 1.0).abs() < 1e-3,
            "{what}: the loss is {hard}, {} plainly",
            self.soft(&gates)
        );
        let gradients = loss.backward().unwrap();
        let mut calls = 0;
        let found = run
            .gradients(gradients.get(run.latents()).unwrap(), || {
                calls += 1;
                Ok(())
            })
            .unwrap();
        assert_eq!(calls + 1, schedule.computed.len(), "{what}");
        assert!(found[0].iter().all(|&gradient| gradient == 0.0), "{what}: there is no choice at the first call");

        const STEP: f64 = 0.005;
        let difference = |call: usize, unit: usize| {
            let at = |change: f64| {
                let mut gates = gates.clone();
                gates[call][unit] += change;
                self.soft(&gates)
            };
            (at(STEP) - at(-STEP)) / (2.0 * STEP)
        };
        let units = found[0].len();
        let places = (1..found.len()).flat_map(|call| (0..units).map(move |unit| (call, unit)));
        // Some of many.
        let places: Vec<(usize, usize)> = places.step_by((found.len() * units).div_ceil(8)).collect();
        let wanted: Vec<f64> = places.iter().map(|&(call, unit)| difference(call, unit)).collect();
        let largest = wanted.iter().fold(0f64, |largest, d| largest.max(d.abs()));
        assert!(largest > 0.01 * hard, "{what}: no gate matters");
        for ((call, unit), wanted) in places.into_iter().zip(wanted) {
            let found = found[call][unit];
            assert!(
                (found - wanted).abs() < 0.03 * wanted.abs() + 0.01 * largest,
                "{what}, {} at call {call}: gradient {found}, finite difference {wanted}, the largest {largest}",
                self.whole.units[unit]
            );
        }
    }
}

fn check(folder: &Path, prompts: &[&str], kinds: &[Kind], sampler: Option<Sampler>, loss: Loss) {
    let folder = ModelFolder::open(folder, None).unwrap();
    let own = folder.sampling();
    let sampling = Sampling { steps: 4, sampler: sampler.unwrap_or(own.sampler), ..own };
    let prompts: Vec<String> = prompts.iter().map(|&prompt| prompt.to_owned()).collect();
    let pipeline = Pipeline::open(folder).unwrap();
    let latents = pipeline.sample(&prompts, 0..prompts.len(), &sampling, None, &()).unwrap();
    let wanted = pipeline.pictures(&latents).unwrap();
    for &kind in kinds {
        let whole = ReuseSchedule::whole(pipeline.folder(), &sampling, kind).unwrap();
        let (sampling, prompts, wanted) = (sampling.clone(), prompts.clone(), wanted.clone());
        let what = format!("{}, {kind}, {}, {loss}", pipeline.folder().class_name(), sampling.sampler);
        Case { pipeline: &pipeline, sampling, prompts, whole, wanted, loss }.check(&what);
    }
}

#[test]
fn every_family() {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens");
    for name in ["stable_diffusion_2", "stable_diffusion_xl", "stable_diffusion_3", "flux", "pixart", "ddpm"] {
        let kinds: &[Kind] = match name {
            "stable_diffusion_3" | "flux" | "pixart" => &[Kind::Block, Kind::Residual],
            "stable_diffusion_2" => &[Kind::Block, Kind::Branch],
            _ => &[Kind::Block],
        };
        check(assemble::assemble(&goldens, name).path(), &["a red apple"], kinds, None, Loss::L2);
    }
}

fn model(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models").join(name)
}

#[test]
fn samplers_with_a_past() {
    for sampler in [Sampler::Pndm, Sampler::DpmSolver, Sampler::Heun, Sampler::EulerAncestral] {
        check(&model("emoji-unet"), &["red apple, noto style emoji"], &[Kind::Block], Some(sampler), Loss::Ssim);
    }
}

#[test]
fn losses() {
    for loss in [Loss::Ssim, Loss::L1, Loss::L2] {
        check(&model("emoji-dit"), &["1"], &[Kind::Residual], None, loss);
    }
}
