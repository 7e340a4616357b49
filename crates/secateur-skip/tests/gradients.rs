//! The gradient of a loss of the final pictures with respect to every gate, through blocks, what is
//! taken over, samplers with and without a past, guidance and autoencoder, against finite
//! differences of a plain run whose gates are numbers.

#![cfg(unix)]

#[path = "../../secateur-models/tests/common/assemble.rs"]
mod assemble;

use candle_core::Tensor;
use secateur_models::{ModelFolder, Pipeline, ReuseSchedule, Sampler, Sampling, UnitKind};
use secateur_nn::{Context, Gates, Passage, Step};
use secateur_skip::{Loss, SuperNet};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::Path;

/// What units made, with the timesteps, the latest first.
type Nodes = Vec<(f64, Vec<Tensor>)>;

/// The polynomial through nodes, by Neville's scheme.
fn polynomial(nodes: &[(f64, Vec<Tensor>)], at: f64) -> Vec<Tensor> {
    let [(first, values), .., (last, _)] = nodes else { return nodes[0].1.clone() };
    let (without_last, without_first) =
        (polynomial(&nodes[..nodes.len() - 1], at), polynomial(&nodes[1..], at));
    let between = |index: usize| {
        let weight = (at - last) / (first - last);
        ((&without_last[index] * weight).unwrap()
            + (&without_first[index] * (1.0 - weight)).unwrap())
        .unwrap()
    };
    (0..values.len()).map(between).collect()
}

/// Nodes, of no more than so many timesteps, after another one.
fn with(node: (f64, Vec<Tensor>), nodes: &Nodes, most: usize) -> Nodes {
    let others = nodes.iter().filter(|other| other.0 != node.0).cloned();
    [node.clone()].into_iter().chain(others).take(most).collect()
}

/// What is known of a unit.
#[derive(Clone, Default)]
struct Known {
    nodes: Nodes,
    /// Since then: what it made between forecast and computed, as the gates say.
    since: Nodes,
}

/// Every unit makes gate * computed + (1 - gate) * forecast; forecasts go through it.
struct Soft<'a> {
    schedule: &'a ReuseSchedule,
    gates: &'a [Vec<f64>],
    call: Cell<usize>,
    timestep: Cell<f64>,
    known: RefCell<BTreeMap<String, Known>>,
}

impl Gates for Soft<'_> {
    fn enter(&self, _: &str, inputs: &[Tensor]) -> secateur_nn::Result<Passage> {
        Ok(Passage::Compute(inputs.to_vec()))
    }

    fn leave(
        &self,
        stretch: &str,
        inputs: &[Tensor],
        outputs: Vec<Tensor>,
    ) -> secateur_nn::Result<Vec<Tensor>> {
        let Some(unit) = self.schedule.units.iter().position(|unit| unit == stretch) else {
            return Ok(outputs);
        };
        let residual = self.schedule.kind == UnitKind::Residual;
        let (gate, most) = (self.gates[self.call.get()][unit], self.schedule.order + 1);
        let timestep = self.timestep.get();
        let mut known = self.known.borrow_mut();
        let known = known.entry(stretch.to_owned()).or_default();
        let change = |x: &Tensor, y: &Tensor| (x - y).unwrap();
        let now: Vec<Tensor> = match residual {
            true => outputs.iter().zip(inputs).map(|(y, x)| change(y, x)).collect(),
            false => outputs,
        };
        let mixed = if known.nodes.is_empty() {
            now
        } else {
            let forecast = polynomial(&known.nodes, timestep);
            let mix = |(now, forecast): (&Tensor, &Tensor)| {
                ((now * gate).unwrap() + (forecast * (1.0 - gate)).unwrap()).unwrap()
            };
            now.iter().zip(&forecast).map(mix).collect()
        };
        let mut made = mixed.clone();
        if self.schedule.computed[self.call.get()][unit] {
            *known =
                Known { nodes: with((timestep, mixed), &known.nodes, most), since: Vec::new() };
        } else {
            let forecast = polynomial(&known.nodes, timestep);
            for node in &known.since {
                let another = polynomial(&with(node.clone(), &known.nodes, most), timestep);
                for ((made, another), forecast) in made.iter_mut().zip(&another).zip(&forecast) {
                    *made = (&*made + change(another, forecast)).unwrap();
                }
            }
            known.since.push((timestep, mixed));
        }
        match residual {
            true => Ok(inputs.iter().zip(&made).map(|(x, y)| (x + y).unwrap()).collect()),
            false => Ok(made),
        }
    }
}

struct Case<'a> {
    pipeline: &'a Pipeline,
    sampling: Sampling,
    prompts: Vec<String>,
    schedule: ReuseSchedule,
    wanted: Tensor,
    loss: Loss,
}

impl Case<'_> {
    /// The loss of a run with gates that are numbers.
    fn soft(&self, gates: &[Vec<f64>]) -> f64 {
        let Self { pipeline, sampling, prompts, .. } = self;
        let images = 0..prompts.len();
        let conditioning =
            pipeline.guided_conditioning(prompts, sampling.latent, sampling).unwrap();
        let mut schedule = pipeline.folder().schedule(sampling.latent, sampling).unwrap();
        let mut latents = pipeline
            .noise(images.clone(), sampling)
            .unwrap()
            .affine(schedule.initial_scale(), 0.0)
            .unwrap();
        let soft = Soft {
            schedule: &self.schedule,
            gates,
            call: Cell::default(),
            timestep: Cell::default(),
            known: RefCell::default(),
        };
        let shape = latents.dims()[1..].to_vec();
        let mut draws = 0;
        for (index, call) in schedule.calls().to_vec().into_iter().enumerate() {
            soft.call.set(index);
            soft.timestep.set(call.timestep.into());
            let step = Step { index: call.step, count: sampling.steps };
            let context = Context { step, gates: Some(&soft), ..Context::default() };
            let input = schedule.scale_input(index, &latents).unwrap();
            let output = pipeline
                .predict(&input, call.timestep, &conditioning, sampling.guidance, &context)
                .unwrap();
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
        let schedule = &self.schedule;
        let images = 0..self.prompts.len();
        let conditioning = self
            .pipeline
            .guided_conditioning(&self.prompts, self.sampling.latent, &self.sampling)
            .unwrap();
        let net = SuperNet::new(self.pipeline, &self.sampling, schedule);
        let run = net.run(&conditioning, images, || Ok(())).unwrap();
        let loss =
            self.loss.of(&self.pipeline.pictures(run.latents()).unwrap(), &self.wanted).unwrap();
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
        assert!(
            found[0].iter().all(|&gradient| gradient == 0.0),
            "{what}: there is no choice at the first call"
        );

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
        let places: Vec<(usize, usize)> =
            places.step_by((found.len() * units).div_ceil(8)).collect();
        let wanted: Vec<f64> = places.iter().map(|&(call, unit)| difference(call, unit)).collect();
        let largest = wanted.iter().fold(0f64, |largest, d| largest.max(d.abs()));
        assert!(largest > 0.01 * hard, "{what}: no gate matters");
        for ((call, unit), wanted) in places.into_iter().zip(wanted) {
            let found = found[call][unit];
            assert!(
                (found - wanted).abs() < 0.03 * wanted.abs() + 0.01 * largest,
                "{what}, {} at call {call}: gradient {found}, finite difference {wanted}, the \
                 largest {largest}",
                schedule.units[unit]
            );
        }
    }
}

fn check(
    folder: &Path,
    prompts: &[&str],
    kinds: &[UnitKind],
    (sampler, order): (Option<Sampler>, usize),
    loss: Loss,
) {
    let folder = ModelFolder::open(folder, None).unwrap();
    let own = folder.sampling();
    let sampling = Sampling {
        steps: 4 + 2 * order,
        sampler: sampler.unwrap_or(own.sampler),
        latent: (own.latent.0.min(16), own.latent.1.min(16)),
        ..own
    };
    let prompts: Vec<String> = prompts.iter().map(|&prompt| prompt.to_owned()).collect();
    let pipeline = Pipeline::open(folder).unwrap();
    let latents = pipeline.sample(&prompts, 0..prompts.len(), &sampling, None, &()).unwrap();
    let wanted = pipeline.pictures(&latents).unwrap();
    for &kind in kinds {
        let whole = pipeline.folder().whole_reuse(&sampling, kind).unwrap();
        let mut schedule = ReuseSchedule { order, ..whole };
        for (call, row) in schedule.computed.iter_mut().enumerate().skip(1) {
            // Of each unit, with a forecast, also several calls in a row that do not compute it,
            // after several that do.
            let place = |unit: usize| {
                if order == 0 { (call * 3 + unit * 5) % 4 } else { (call + 2 * unit) % 5 / 2 }
            };
            row.iter_mut().enumerate().for_each(|(unit, computed)| *computed = place(unit) != 0);
        }
        let (sampling, prompts, wanted) = (sampling.clone(), prompts.clone(), wanted.clone());
        let what = format!(
            "{}, {kind}, order {order}, {}, {loss}",
            pipeline.folder().class_name(),
            sampling.sampler
        );
        Case { pipeline: &pipeline, sampling, prompts, schedule, wanted, loss }.check(&what);
    }
}

#[test]
fn every_family() {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens");
    for name in [
        "stable_diffusion_2",
        "stable_diffusion_xl",
        "stable_diffusion_3",
        "flux",
        "pixart",
        "ddpm",
    ] {
        let kinds: &[UnitKind] = match name {
            "stable_diffusion_3" | "flux" | "pixart" => &[UnitKind::Block, UnitKind::Residual],
            "stable_diffusion_2" => &[UnitKind::Block, UnitKind::Branch],
            _ => &[UnitKind::Block],
        };
        check(
            assemble::assemble(&goldens, name).path(),
            &["a red apple"],
            kinds,
            (None, 0),
            Loss::L2,
        );
    }
}

fn model(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models").join(name)
}

#[test]
fn samplers_with_a_past() {
    for sampler in [Sampler::Pndm, Sampler::DpmSolver, Sampler::Heun, Sampler::EulerAncestral] {
        check(
            &model("emoji-unet"),
            &["red apple, noto style emoji"],
            &[UnitKind::Block],
            (Some(sampler), 0),
            Loss::Ssim,
        );
    }
}

#[test]
fn losses() {
    for loss in [Loss::Ssim, Loss::L1, Loss::L2] {
        check(&model("emoji-dit"), &["1"], &[UnitKind::Residual], (None, 0), loss);
    }
}

#[test]
fn forecasts() {
    check(
        &model("emoji-dit"),
        &["1"],
        &[UnitKind::Block, UnitKind::Residual],
        (None, 1),
        Loss::Ssim,
    );
    check(&model("emoji-dit"), &["1"], &[UnitKind::Block], (None, 2), Loss::L2);
    for sampler in [Sampler::Pndm, Sampler::Heun] {
        check(
            &model("emoji-unet"),
            &["red apple, noto style emoji"],
            &[UnitKind::Block],
            (Some(sampler), 1),
            Loss::L2,
        );
    }
}
