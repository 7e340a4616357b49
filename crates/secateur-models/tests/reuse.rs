//! What is taken over from earlier calls, against a plain run that computes everything and then
//! replaces what should not have been, on every family.

#![cfg(unix)]

#[path = "common/assemble.rs"]
mod assemble;

use candle_core::{Device, Tensor};
use secateur_models::{
    Denoising, Error, Halfway, LayerName, ModelFolder, Pipeline, ReuseSchedule, Sampler, Sampling,
    UnitKind,
};
use secateur_nn::{Context, Gates, Passage, Probe, Step};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

/// Computes all, and replaces what is not to be computed.
struct Plain<'a> {
    schedule: &'a ReuseSchedule,
    call: Cell<usize>,
    timestep: Cell<f64>,
    /// The latest last.
    made: RefCell<BTreeMap<String, Vec<Made>>>,
}

/// What a unit made at a timestep.
type Made = (f64, Vec<Tensor>);

/// The value at `place` of the polynomial through some points, by Neville's scheme.
fn neville(points: &[(f64, &Tensor)], place: f64) -> Tensor {
    match points {
        [] => panic!("no points"),
        [(_, only)] => (*only).clone(),
        [first, .., last] => {
            let (without_last, without_first) = (&points[..points.len() - 1], &points[1..]);
            let share = (place - first.0) / (last.0 - first.0);
            let [a, b] = [(without_first, share), (without_last, 1.0 - share)];
            ((neville(a.0, place) * a.1).unwrap() + (neville(b.0, place) * b.1).unwrap()).unwrap()
        }
    }
}

impl Gates for Plain<'_> {
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
        let mut made = self.made.borrow_mut();
        if self.schedule.computed[self.call.get()][unit] {
            let kept = match residual {
                true => outputs.iter().zip(inputs).map(|(y, x)| (y - x).unwrap()).collect(),
                false => outputs.clone(),
            };
            let made = made.entry(stretch.to_owned()).or_default();
            // Two calls at a timestep have one point.
            made.retain(|(timestep, _)| *timestep != self.timestep.get());
            made.push((self.timestep.get(), kept));
            return Ok(outputs);
        }
        let last = &made[stretch][made[stretch].len().saturating_sub(self.schedule.order + 1)..];
        let kept: Vec<Tensor> = (0..last[0].1.len())
            .map(|tensor| {
                let points: Vec<(f64, &Tensor)> =
                    last.iter().map(|(place, made)| (*place, &made[tensor])).collect();
                neville(&points, self.timestep.get())
            })
            .collect();
        Ok(match residual {
            true => inputs.iter().zip(&kept).map(|(x, y)| (x + y).unwrap()).collect(),
            false => kept,
        })
    }
}

fn plain(
    pipeline: &Pipeline,
    prompts: &[String],
    sampling: &Sampling,
    reuse: &ReuseSchedule,
) -> Result<Tensor, Error> {
    let images = 0..prompts.len();
    let conditioning = pipeline.guided_conditioning(prompts, sampling.latent, sampling)?;
    let mut schedule = pipeline.folder().schedule(sampling.latent, sampling)?;
    let mut latents =
        pipeline.noise(images.clone(), sampling)?.affine(schedule.initial_scale(), 0.0)?;
    let gates = Plain {
        schedule: reuse,
        call: Cell::default(),
        timestep: Cell::default(),
        made: RefCell::default(),
    };
    let guided = pipeline.folder().passes(sampling.guidance) == 2;
    let mut draws = 0;
    for (index, call) in schedule.calls().to_vec().into_iter().enumerate() {
        gates.call.set(index);
        gates.timestep.set(call.timestep.into());
        let step = Step { index: call.step, count: sampling.steps };
        let context = Context { step, gates: Some(&gates), ..Context::default() };
        let input = schedule.scale_input(index, &latents)?;
        let input = if guided { Tensor::cat(&[&input, &input], 0)? } else { input };
        let timesteps = Tensor::full(call.timestep, input.dim(0)?, &Device::Cpu)?;
        let output = pipeline.denoiser().forward(&input, &timesteps, &conditioning, &context)?;
        let output = output.narrow(1, 0, latents.dim(1)?)?;
        let output = match guided {
            true => {
                let (free, told) = (
                    output.narrow(0, 0, images.len())?,
                    output.narrow(0, images.len(), images.len())?,
                );
                (&free + ((told - &free)? * sampling.guidance)?)?
            }
            false => output,
        };
        let shape = latents.dims()[1..].to_vec();
        let mut noise = || {
            draws += 1;
            secateur_models::noise(sampling.seed, images.clone(), draws, &shape)
        };
        latents = schedule.step(index, &latents, &output, &mut noise)?;
    }
    Ok(latents)
}

/// The layers that were called at each step.
#[derive(Default)]
struct Called(RefCell<BTreeSet<(usize, LayerName)>>);

impl Probe for Called {
    fn linear_input(
        &self,
        layer: &LayerName,
        _: &Tensor,
        context: &Context<'_>,
    ) -> secateur_nn::Result<()> {
        self.0.borrow_mut().insert((context.step.index, layer.clone()));
        Ok(())
    }
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
}

/// Every second unit or so, another choice at each call.
fn some(schedule: &mut ReuseSchedule) {
    for (call, row) in schedule.computed.iter_mut().enumerate().skip(1) {
        row.iter_mut()
            .enumerate()
            .for_each(|(unit, computed)| *computed = (call * 7 + unit * 5) % 3 == 0);
    }
}

fn check(folder: &Path, prompts: &[&str], kinds: &[UnitKind], sampler: Option<Sampler>) {
    let folder = ModelFolder::open(folder, None).unwrap();
    let prompts: Vec<String> = prompts.iter().map(|&prompt| prompt.to_owned()).collect();
    let own = folder.sampling();
    let sampling = Sampling {
        steps: 5,
        sampler: sampler.unwrap_or(own.sampler),
        latent: (own.latent.0.min(16), own.latent.1.min(16)),
        ..own
    };
    let structure = folder.structure(&sampling);
    let pipeline = Pipeline::open(folder).unwrap();
    let draw = |reuse: Option<&ReuseSchedule>, probe: Option<&dyn Probe>| {
        let sampling = Sampling { reuse: reuse.cloned().map(Arc::new), ..sampling.clone() };
        pipeline.sample(&prompts, 0..prompts.len(), &sampling, probe, &()).unwrap()
    };
    let full = draw(None, None);
    for kind in [UnitKind::Block, UnitKind::Branch, UnitKind::Residual] {
        let what = format!("{}, {kind}", pipeline.folder().class_name());
        let Ok(whole) = pipeline.folder().whole_reuse(&sampling, kind) else {
            assert!(!kinds.contains(&kind), "{what}: no units");
            continue;
        };
        assert!(kinds.contains(&kind), "{what}: units");
        let calls = whole.computed.len() as u64;
        assert_eq!(
            largest_difference(&full, &draw(Some(&whole), None)),
            0.0,
            "{what}: all computed"
        );
        assert_eq!(whole.macs(&structure).unwrap(), calls * structure.macs(), "{what}");

        let mut mixed = whole.clone();
        some(&mut mixed);
        let called = Called::default();
        let drawn = draw(Some(&mixed), Some(&called));
        assert!(largest_difference(&drawn, &full) > 1e-4, "{what}: nothing was taken over");
        for order in 0..3 {
            let of_order = ReuseSchedule { order, ..mixed.clone() };
            let plain = plain(&pipeline, &prompts, &sampling, &of_order).unwrap();
            let scale =
                plain.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap().max(1.0);
            let of_order = draw(Some(&of_order), None);
            let difference = largest_difference(&of_order, &plain);
            assert!(
                difference < 1e-5 * scale,
                "{what}, order {order}: {difference} from a plain run"
            );
            assert_eq!(
                order > 0,
                largest_difference(&of_order, &drawn) > 1e-4,
                "{what}: order {order}"
            );
        }
        // No layer of a unit that is taken over was called.
        if calls == sampling.steps as u64 {
            let linear = |layer: &&secateur_models::Layer| {
                matches!(layer.operation, secateur_models::Operation::Linear { .. })
            };
            for (call, row) in mixed.computed.iter().enumerate() {
                for (unit, computed) in structure.units_of(kind).unwrap().iter().zip(row) {
                    let layers = structure.blocks[unit.blocks.clone()]
                        .iter()
                        .flat_map(|block| &block.layers);
                    for layer in layers.filter(linear) {
                        let was = called.0.borrow().contains(&(call, layer.name.clone()));
                        assert_eq!(was, *computed, "{what}: {} at call {call}", layer.name);
                    }
                }
            }
        }

        // What feeds only what is taken over changes nothing.
        let mut once = whole.clone();
        once.computed[2]
            .iter_mut()
            .enumerate()
            .for_each(|(unit, computed)| *computed = unit % 3 != 1);
        let live = once.clone().live(&structure).unwrap();
        assert_eq!(
            largest_difference(&draw(Some(&once), None), &draw(Some(&live), None)),
            0.0,
            "{what}: liveness"
        );
        let fewer = live.macs(&structure).unwrap() < once.macs(&structure).unwrap();
        assert_eq!(fewer, kind != UnitKind::Residual, "{what}: something is dead");
    }
}

const OF_UNETS: [UnitKind; 2] = [UnitKind::Block, UnitKind::Branch];
const OF_CHAINS: [UnitKind; 3] = [UnitKind::Block, UnitKind::Branch, UnitKind::Residual];

#[test]
fn small_pipelines() {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens");
    for name in [
        "stable_diffusion_2",
        "stable_diffusion_xl",
        "stable_diffusion_3",
        "flux",
        "pixart",
        "ddpm",
    ] {
        let kinds = if name.starts_with("stable_diffusion_3") || ["flux", "pixart"].contains(&name)
        {
            &OF_CHAINS[..]
        } else {
            &OF_UNETS
        };
        check(assemble::assemble(&goldens, name).path(), &["a red apple", "dog"], kinds, None);
    }
}

fn model(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models").join(name)
}

#[test]
fn bundled_models() {
    check(&model("emoji-unet"), &["red apple, noto style emoji"], &OF_UNETS, None);
    check(&model("emoji-unet"), &["red apple, noto style emoji"], &OF_UNETS, Some(Sampler::Pndm));
    check(&model("emoji-dit"), &["1", "2"], &OF_CHAINS, None);
    check(&model("emoji-mmdit"), &["red apple, noto style emoji"], &OF_CHAINS, None);
}

/// A run that forks goes on as if it had been the other one from the start, and the first one as if
/// nothing had been.
#[test]
fn forks() {
    let folder = ModelFolder::open(&model("emoji-dit"), None).unwrap();
    let pipeline = Pipeline::open(folder.clone()).unwrap();
    let prompts = ["1", "2"].map(str::to_owned);
    for sampler in [Sampler::Ddim, Sampler::Ddpm, Sampler::Pndm, Sampler::Heun, Sampler::DpmSolver]
    {
        let sampling = Sampling { steps: 6, sampler, ..folder.sampling() };
        let mut one = folder.whole_reuse(&sampling, UnitKind::Block).unwrap();
        one.order = 1;
        some(&mut one);
        let mut other = one.clone();
        let steps_of_fork = 3;
        let reusing = |schedule: &ReuseSchedule| Sampling {
            reuse: Some(Arc::new(schedule.clone())),
            ..sampling.clone()
        };
        let noise = pipeline.noise(0..2, &sampling).unwrap();
        let conditioning =
            pipeline.guided_conditioning(&prompts, sampling.latent, &sampling).unwrap();
        let begin = |sampling: &Sampling| {
            Denoising::new(&pipeline, &noise, &conditioning, 0..2, sampling, None).unwrap()
        };
        let finish = |mut run: Denoising<'_>| {
            while run.step().unwrap() {}
            assert_eq!(run.next_calls().len(), 0);
            run.latents().clone()
        };
        let mut first = begin(&reusing(&one));
        let mut calls = 0;
        for _ in 0..steps_of_fork {
            assert_eq!(first.next_calls().start, calls, "{sampler}");
            calls = first.next_calls().end;
            assert!(first.step().unwrap());
        }
        other.computed[calls..].iter_mut().flatten().for_each(|computed| *computed = !*computed);
        let forked = finish(first.fork(&Arc::new(other.clone())).unwrap());
        assert_eq!(largest_difference(&forked, &finish(begin(&reusing(&other)))), 0.0, "{sampler}");
        let first = finish(first);
        assert_eq!(largest_difference(&first, &finish(begin(&reusing(&one)))), 0.0, "{sampler}");
        assert!(largest_difference(&first, &forked) > 0.0, "{sampler}");
    }
}

/// A run that goes on from what an equal one had come to ends with the same numbers, for samplers
/// that remember calls or draw noise too. One that reuses features cannot.
#[test]
fn a_run_goes_on_from_halfway() {
    let folder = ModelFolder::open(&model("emoji-dit"), None).unwrap();
    let pipeline = Pipeline::open(folder.clone()).unwrap();
    let prompts = ["1", "2"].map(str::to_owned);
    for sampler in [Sampler::Ddim, Sampler::Ddpm, Sampler::Pndm, Sampler::Heun, Sampler::DpmSolver]
    {
        let sampling = Sampling { steps: 6, sampler, ..folder.sampling() };
        let noise = pipeline.noise(0..2, &sampling).unwrap();
        let conditioning =
            pipeline.guided_conditioning(&prompts, sampling.latent, &sampling).unwrap();
        let begin = |sampling: &Sampling| {
            Denoising::new(&pipeline, &noise, &conditioning, 0..2, sampling, None).unwrap()
        };
        let (mut whole, mut halves) = (begin(&sampling), Vec::new());
        while whole.step().unwrap() {
            halves.extend(whole.halfway());
        }
        // PNDM starts with two calls for one step.
        assert!(halves.len() + 1 >= sampling.steps, "{sampler}: {}", halves.len());
        let other = halves[0].clone();
        for halfway in halves {
            let mut rest = begin(&sampling);
            rest.go_on(halfway).unwrap();
            while rest.step().unwrap() {}
            assert_eq!(largest_difference(rest.latents(), whole.latents()), 0.0, "{sampler}");
        }
        let mut foreign = begin(&sampling);
        let latents = other.latents.narrow(0, 0, 1).unwrap();
        assert!(foreign.go_on(Halfway { latents, ..other }).is_err(), "of one image, not two");
        let reuse = Some(Arc::new(folder.whole_reuse(&sampling, UnitKind::Block).unwrap()));
        assert!(begin(&Sampling { reuse, ..sampling.clone() }).halfway().is_none());
    }
}

/// Sampled in another way, it is refused, or each call is like the nearest.
#[test]
fn another_number_of_steps() {
    let folder = ModelFolder::open(&model("emoji-dit"), None).unwrap();
    let sampling = |steps| Sampling { steps, ..folder.sampling() };
    let mut schedule = folder.whole_reuse(&sampling(5), UnitKind::Block).unwrap();
    schedule.order = 1;
    for (call, row) in schedule.computed.iter_mut().enumerate() {
        row.iter_mut().for_each(|computed| *computed = call % 2 == 0);
    }
    let calls = |steps| {
        let adapted = schedule.adapted(Sampler::Ddim, steps, steps);
        assert_eq!((adapted.steps, adapted.computed.len(), adapted.order), (steps, steps, 1));
        adapted.computed.iter().map(|row| row[0]).collect::<Vec<_>>()
    };
    assert_eq!(calls(5), [true, false, true, false, true]);
    assert_eq!(calls(9), [true, true, false, false, true, true, false, false, true]);
    assert_eq!(
        (calls(1), calls(2), calls(3)),
        (vec![true], vec![true, true], vec![true, true, true])
    );

    let temporary = tempfile::tempdir().unwrap();
    let out = temporary.path().join("skipping");
    folder.write_reuse(&out, &schedule, &()).unwrap_err();
    std::fs::create_dir(&out).unwrap();
    folder.write_reuse(&out, &schedule, &()).unwrap();
    let skipping = ModelFolder::open(&out, None).unwrap();
    assert_eq!(skipping.sampling().steps, 5, "it is sampled as it was learned");
    assert_eq!(*skipping.reuse(&skipping.sampling(), false).unwrap().unwrap(), schedule);
    let error = skipping.reuse(&sampling(7), false).unwrap_err().to_string();
    assert!(
        error.contains("with 5 steps") && error.contains("with 7") && error.contains("`adapt`"),
        "{error}"
    );
    assert_eq!(skipping.reuse(&sampling(7), true).unwrap().unwrap().steps, 7);

    let path = out.join("reuse.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let [none, all] = ["0", "1"].map(|digit| digit.repeat(schedule.units.len()));
    let (fewer, spoiled) = (none[1..].to_owned(), all.replacen('1', "0", 1));
    for (from, to, words) in [
        ("transformer_blocks.1", "blocks.1", "units are not those of the model"),
        (&all, &spoiled, "the first call must compute all units"),
        (&none, &fewer, "calls[1]"),
        ("\"format_version\": 2", "\"format_version\": 9", "newer"),
        ("\"order\": 1", "\"order\": 7", "order 7 is more than 3"),
        ("\"ddim\"", "\"dim\"", "no sampler \"dim\""),
    ] {
        assert!(text.contains(from), "{from} is in {text}");
        std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
        let error = skipping.reuse(&sampling(5), false).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("reuse.json"), "{words}: {error}");
    }
}
