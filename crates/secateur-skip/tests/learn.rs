//! The pruner network, and runs that are stopped and go on.

use candle_core::{Device, Tensor};
use secateur_models::{
    Edits, Error, ModelFolder, Observer, Pipeline, ReuseSchedule, Sampling, UnitKind,
};
use secateur_skip::{Learning, Loss, Progress, Pruner, Selection, learn, random};
use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;

/// Steps against a gradient make what it is negative for more probable, and the rest less.
#[test]
fn the_pruner_network_descends() {
    let mut pruner = Pruner::new(3, 2, 7).unwrap();
    let of_gates = [[-1f32, 1.0], [1.0, -1.0], [0.0, -0.5]];
    let of_gates = Tensor::new(&of_gates, &Device::Cpu).unwrap();
    let before = pruner.forward(false).unwrap().to_vec2::<f32>().unwrap();
    assert!(before.iter().flatten().all(|&p| (p - 0.731).abs() < 1e-3), "{before:?}");
    for _ in 0..30 {
        let loss = (pruner.forward(true).unwrap() * &of_gates).unwrap().sum_all().unwrap();
        pruner.step(&loss, 5e-3).unwrap();
    }
    let after = pruner.forward(false).unwrap().to_vec2::<f32>().unwrap();
    for (row, of_gates) in after.iter().zip(of_gates.to_vec2::<f32>().unwrap()) {
        for (p, of_gate) in row.iter().zip(of_gates) {
            match of_gate {
                g if g < 0.0 => assert!(*p > 0.75, "{after:?}"),
                g if g > 0.0 => assert!(*p < 0.7, "{after:?}"),
                _ => {}
            }
        }
    }
}

/// A query, and a head of 512 x 128, 128 x 128 and 128 x 2, for every unit at every call: each
/// number with its velocity and its gradient.
#[test]
fn the_memory_of_the_pruner_network() {
    for (calls, units) in [(1, 1), (49, 28)] {
        assert_eq!(
            Pruner::bytes(calls, units),
            4 * 3 * (calls * units * (512 + 65_536 + 16_384 + 256)) as u64
        );
    }
}

/// emoji-dit, where only the blocks `live` do anything, with what is to be learned for it.
fn model(live: &[usize], iterations: usize, keep: f64) -> (Pipeline, ReuseSchedule, Learning) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/emoji-dit");
    let folder = ModelFolder::open(&folder, None).unwrap();
    let sampling = Sampling { steps: 6, batch: 1, seed: 3, ..folder.sampling() };
    let whole = folder.whole_reuse(&sampling, UnitKind::Residual).unwrap();
    let mut pipeline = Pipeline::open(folder).unwrap();
    let mut edits = Edits::default();
    for block in (0..whole.units.len()).filter(|block| !live.contains(block)) {
        for parameter in
            ["attn1.to_out.0.weight", "attn1.to_out.0.bias", "ff.net.2.weight", "ff.net.2.bias"]
        {
            let name = format!("transformer_blocks.{block}.{parameter}");
            let zeros = pipeline.parameter(&name).unwrap().unwrap().zeros_like().unwrap();
            edits.weights.insert(name, zeros.into());
        }
    }
    pipeline.apply(&edits).unwrap();
    let prompts = ["1", "2"].map(str::to_owned).into();
    (pipeline, whole, Learning { prompts, sampling, loss: Loss::L2, iterations, keep })
}

/// PSNR in dB to the pictures of the whole run, of another seed.
fn closeness(pipeline: &Pipeline, learning: &Learning, schedule: ReuseSchedule) -> f64 {
    let sampling = |reuse| Sampling { seed: 100, reuse, ..learning.sampling.clone() };
    let draw = |sampling: &Sampling| {
        pipeline
            .pictures(&pipeline.sample(&learning.prompts, 0..2, sampling, None, &()).unwrap())
            .unwrap()
    };
    let loss =
        Loss::L2.of(&draw(&sampling(Some(Arc::new(schedule)))), &draw(&sampling(None))).unwrap();
    -10.0 * f64::from(loss.to_scalar::<f32>().unwrap()).max(1e-12).log10()
}

/// What is learned is closer than the mean of eight schedules by chance, of the same share, by so
/// many dB.
fn beats_chance(live: &[usize], iterations: usize, margin: f64) {
    let (pipeline, whole, learning) = model(live, iterations, 0.4);
    let learned = learn(&pipeline, &whole, &learning, None, &()).unwrap();
    let structure = pipeline.structure(&learning.sampling);
    if let [live] = live {
        for (call, row) in learned.scores.0.iter().enumerate().skip(1) {
            let others =
                row.iter().enumerate().filter(|(unit, _)| unit != live).map(|(_, score)| *score);
            assert!(row[*live] > others.fold(0.0, f64::max), "call {call}: {row:?}");
        }
    }
    let schedule =
        learned.scores.select(Selection::Bisection, &whole, &structure, learning.keep).unwrap();
    let ours = closeness(&pipeline, &learning, schedule);
    let by_chance = |seed: u64| {
        closeness(&pipeline, &learning, random(&whole, &structure, learning.keep, seed).unwrap())
    };
    let chance = (0..8).map(by_chance).sum::<f64>() / 8.0;
    assert!(ours > chance + margin, "{ours:.1} dB learned, {chance:.1} dB by chance");
}

#[test]
fn the_only_block_that_matters_is_found() {
    beats_chance(&[4], 20, 20.0);
}

#[test]
fn what_is_learned_is_better_than_chance() {
    beats_chance(&[0, 1, 2, 3, 4, 5, 6, 7], 30, 2.0);
}

/// Interrupts once so many iterations are done.
struct After(Cell<usize>);

impl Observer for After {
    fn advance(&self, amount: usize) -> Result<(), Error> {
        self.0.set(self.0.get().saturating_sub(amount));
        if self.0.get() == 0 { Err(Error::Interrupted) } else { Ok(()) }
    }
}

/// The folder keeps the last network alone, and what is not of the learning.
#[test]
fn a_learning_that_was_stopped_goes_on() {
    let (pipeline, whole, learning) = model(&[4], 3, 0.4);
    let at_once = learn(&pipeline, &whole, &learning, None, &()).unwrap();
    assert!(!at_once.stopped && at_once.history.len() == 3);
    let temporary = tempfile::tempdir().unwrap();
    for name in ["other.safetensors", "pruner-notes.txt"] {
        std::fs::write(temporary.path().join(name), "mine").unwrap();
    }
    let names = || {
        let entries = std::fs::read_dir(temporary.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let progress = Progress { folder: temporary.path().to_owned(), request: "this".into() };
    let first = learn(&pipeline, &whole, &learning, Some(&progress), &After(Cell::new(2))).unwrap();
    assert!(first.stopped && first.history == at_once.history[..2]);
    assert_eq!(
        names(),
        ["learned.json", "other.safetensors", "pruner-2.safetensors", "pruner-notes.txt"]
    );
    let then = learn(&pipeline, &whole, &learning, Some(&progress), &()).unwrap();
    assert!(!then.stopped);
    assert_eq!(
        names(),
        ["learned.json", "other.safetensors", "pruner-3.safetensors", "pruner-notes.txt"]
    );
    assert_eq!((then.history, then.scores), (at_once.history, at_once.scores));
}
