//! DiP-GO's optimisation: gates from the pruner network, a run with them, and gradients back to the
//! network.

use crate::error::{Error, Result};
use crate::progress::{INTERVAL, LEARNED, PRUNER, Progress, Quiet, problem};
use crate::pruner::Pruner;
use crate::scores::{Scores, Selection, cascades, kept};
use crate::settings::Learning;
use crate::supernet::SuperNet;
use candle_core::{Device, Tensor};
use secateur_models::{Error as ModelError, Observer, Pipeline, ReuseSchedule, Structure};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::PathBuf;
use std::time::Instant;

/// The figures of one iteration of the optimisation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// The loss of the pictures.
    pub loss: f64,
    /// The share of the multiply-accumulates that the gates keep.
    pub kept: f64,
}

/// The result of learning.
#[derive(Clone, Debug, PartialEq)]
pub struct Learned {
    /// P(computed) of each unit at each call; 1 at the first call.
    pub scores: Scores,
    /// One point per iteration.
    pub history: Vec<Point>,
    /// Whether it was stopped before it ended.
    pub stopped: bool,
}

#[derive(Serialize, Deserialize)]
struct State {
    history: Vec<Point>,
    settled: Settled,
    /// Digest of the network's file. The file's name has the number of iterations, and the file is
    /// kept until that of a later save is complete.
    pruner: String,
}

/// The most iterations in which the learning rate rises.
const WARM_UP: usize = 10;

/// The highest learning rate times the number of iterations.
const RATE: f64 = 0.6;

/// Number of iterations over which the reported progress is averaged.
const RECENT: usize = 8;

/// Learning ends after this many iterations without change, or after a fifth of all iterations, if
/// that is more.
const PATIENCE: usize = 20;

/// The share of the iterations in which the share that is computed falls to the requested one.
const DESCENT: f64 = 0.3;

/// The share at which it starts. From a whole run there would be nothing to learn.
const MOST: f64 = 0.95;

/// Learns which units to compute at which calls. `whole` computes everything, and its order is the
/// order of the forecasts.
///
/// # Errors
/// If the model fails, or there are no prompts. An observer that interrupts ends learning early,
/// without an error.
pub fn learn(
    pipeline: &Pipeline,
    whole: &ReuseSchedule,
    learning: &Learning,
    progress: Option<&Progress>,
    observer: &dyn Observer,
) -> Result<Learned> {
    let mut optimisation = Optimisation::new(pipeline, whole, learning, progress, observer)?;
    let result = optimisation.run(progress, observer);
    let stopped = match result {
        Ok(()) => false,
        Err(Error::Model(ModelError::Interrupted)) => true,
        Err(error) => return Err(error),
    };
    if let Some(progress) = progress {
        optimisation.save(progress)?;
    }
    Ok(Learned { scores: optimisation.scores()?, history: optimisation.history, stopped })
}

/// Returns the values that replace the gradients of the gates, with the sign of a gradient, so that
/// a descent step goes against them. Each is the logarithm of the gate's gain over a price, clamped
/// to [-1, 1], as a few calls gain a hundred times as much as the rest, and the rest must be told
/// apart. The price is the gain that the share `keep` of all gates with a gain exceeds.
fn priced(gains: &[Vec<Option<f64>>], keep: f64) -> Vec<Vec<f64>> {
    let mut sorted: Vec<f64> = gains.iter().flatten().flatten().copied().collect();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let above = (keep * sorted.len() as f64) as usize;
    let price = sorted.get(above).map_or(0.0, |price| price.max(f64::MIN_POSITIVE));
    let moved = |gain: &Option<f64>| {
        gain.map_or(0.0, |gain| -(gain / price).max(0.0).ln().clamp(-1.0, 1.0))
    };
    gains.iter().map(|row| row.iter().map(moved).collect()).collect()
}

/// Returns a number in [0, 1). Any few successive ones are spread evenly (van der Corput's
/// sequence).
fn evenness(number: usize) -> f64 {
    (number as u64).reverse_bits() as f64 / 2f64.powi(64)
}

/// What would be computed, and the iteration since which it is the same.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Settled {
    since: usize,
    computed: Vec<Vec<bool>>,
}

struct Optimisation<'a> {
    pipeline: &'a Pipeline,
    whole: &'a ReuseSchedule,
    learning: &'a Learning,
    pruner: Pruner,
    /// gamma of each unit: see [`cascades`](crate::scores::cascades).
    cascades: Vec<f64>,
    history: Vec<Point>,
    settled: Settled,
}

impl<'a> Optimisation<'a> {
    fn new(
        pipeline: &'a Pipeline,
        whole: &'a ReuseSchedule,
        learning: &'a Learning,
        progress: Option<&Progress>,
        observer: &dyn Observer,
    ) -> Result<Self> {
        if learning.prompts.is_empty() {
            return Err(Error::Request("there are no prompts to learn from".into()));
        }
        let (calls, units, seed) =
            (whole.computed.len(), whole.units.len(), learning.sampling.seed);
        if calls < 2 {
            return Err(Error::Request(
                "a run of one call has nothing to take over: give more `steps`".into(),
            ));
        }
        let state: Option<State> =
            progress.map(|progress| progress.read(LEARNED, observer)).transpose()?.flatten();
        let opened = state.zip(progress).map(|(state, progress)| {
            let steps = state.history.len();
            let path = progress.folder.join(pruner_name(steps));
            Pruner::open(&path, &state.pruner, calls - 1, units, seed, steps)
                .map(|pruner| (pruner, state))
        });
        let (pruner, history, settled) = match opened {
            Some(Ok((pruner, state))) => (pruner, state.history, state.settled),
            Some(Err(error)) => {
                observer.warn(&format!("{error}: what it holds is learned again"));
                (Pruner::new(calls - 1, units, seed)?, Vec::new(), Settled::default())
            }
            _ => (Pruner::new(calls - 1, units, seed)?, Vec::new(), Settled::default()),
        };
        let cascades = cascades(whole, &pipeline.structure(&learning.sampling))?;
        Ok(Self { pipeline, whole, learning, pruner, cascades, history, settled })
    }

    /// Returns P(computed) of each unit at each call; 1 at the first call.
    fn scores(&self) -> Result<Scores> {
        let probabilities = self.pruner.forward(false)?.to_vec2::<f32>()?;
        let rows = probabilities.into_iter().map(|row| row.into_iter().map(f64::from).collect());
        Ok(Scores([vec![1.0; self.whole.units.len()]].into_iter().chain(rows).collect()))
    }

    fn run(&mut self, progress: Option<&Progress>, observer: &dyn Observer) -> Result<()> {
        let Learning { prompts, sampling, iterations, .. } = self.learning;
        let batches: Vec<Range<usize>> = sampling.batches(prompts.len()).collect();
        // As they should be, each batch drawn when it is first met.
        let mut wanted: Vec<Option<Tensor>> = vec![None; batches.len()];
        observer.begin("learn", *iterations, "iterations");
        observer.advance(self.history.len())?;
        let mut saved = Instant::now();
        // It may have been stopped after it was done.
        if self.history.len().checked_sub(1).is_some_and(|last| self.rests(last)) {
            return Ok(());
        }
        for iteration in self.history.len()..*iterations {
            let batch = iteration % batches.len();
            let images = batches[batch].clone();
            let pictures = match &wanted[batch] {
                Some(pictures) => pictures.clone(),
                None => {
                    let latents = self.pipeline.sample(
                        prompts,
                        images.clone(),
                        sampling,
                        None,
                        &Quiet(observer),
                    )?;
                    wanted[batch].insert(self.pipeline.pictures(&latents)?).clone()
                }
            };
            let point = self.iterate(iteration, images, &pictures, observer)?;
            self.history.push(point);
            let settled = self.is_settled(iteration)?;
            let (loss, kept) = self.recent();
            observer.tell(&format!("loss {loss:.3}, {:.0} % kept", 100.0 * kept));
            if let Some(progress) = progress.filter(|_| saved.elapsed() > INTERVAL) {
                self.save(progress)?;
                saved = Instant::now();
            }
            observer.advance(1)?;
            if settled {
                break;
            }
        }
        Ok(())
    }

    /// Returns whether what would be computed has been the same for many iterations.
    fn is_settled(&mut self, iteration: usize) -> Result<bool> {
        let structure = self.pipeline.structure(&self.learning.sampling);
        let now = self.scores()?.select(
            Selection::Bisection,
            self.whole,
            &structure,
            self.learning.keep,
        )?;
        if self.settled.computed != now.computed {
            self.settled = Settled { since: iteration, computed: now.computed };
        }
        Ok(self.rests(iteration))
    }

    /// Returns whether the last change was many iterations ago.
    fn rests(&self, iteration: usize) -> bool {
        let patience = PATIENCE.max(self.learning.iterations / 5);
        let descent = (DESCENT * self.learning.iterations as f64) as usize;
        iteration >= self.settled.since.max(descent) + patience
    }

    /// Returns the means of loss and share over the last iterations.
    fn recent(&self) -> (f64, f64) {
        let recent = &self.history[self.history.len().saturating_sub(RECENT)..];
        let mean =
            |of: fn(&Point) -> f64| recent.iter().map(of).sum::<f64>() / recent.len().max(1) as f64;
        (mean(|point| point.loss), mean(|point| point.kept))
    }

    fn iterate(
        &mut self,
        iteration: usize,
        images: Range<usize>,
        wanted: &Tensor,
        observer: &dyn Observer,
    ) -> Result<Point> {
        let Learning { prompts, sampling, .. } = self.learning;
        let structure = self.pipeline.structure(sampling);
        let probabilities = self.pruner.forward(true)?;
        let hard = probabilities.detach().to_vec2::<f32>()?;
        let schedule = self.schedule(&hard, iteration, &structure)?;

        let conditioning = self.pipeline.guided_conditioning(
            &prompts[images.clone()],
            sampling.latent,
            sampling,
        )?;
        let net = SuperNet::new(self.pipeline, sampling, &schedule);
        let run = net.run(&conditioning, images, || Ok(observer.advance(0)?))?;
        // What the autoencoder keeps for its gradients is gone before the denoiser keeps more.
        let (loss, of_latents) = {
            let loss = self.learning.loss.of(&self.pipeline.pictures(run.latents())?, wanted)?;
            (f64::from(loss.to_scalar::<f32>()?), loss.backward()?.remove(run.latents()))
        };
        let point = Point { loss, kept: kept(&schedule, &structure)? };
        let mut of_gates = match &of_latents {
            Some(gradient) => run.gradients(gradient, || Ok(observer.advance(0)?))?,
            None => vec![vec![0.0; schedule.units.len()]; schedule.computed.len()],
        };
        of_gates.remove(0);
        let moves = priced(&self.gains(&schedule, &structure, &of_gates)?, self.learning.keep);
        // The gates are hard, their gradients those of the probabilities (straight through).
        let of_gates: Vec<f32> =
            moves.into_iter().flatten().map(|gradient| gradient as f32).collect();
        let of_gates = Tensor::from_vec(of_gates, probabilities.shape(), &Device::Cpu)?;
        self.pruner.step(&(probabilities * of_gates)?.sum_all()?, self.rate(iteration))?;
        Ok(point)
    }

    /// Returns what computing each unit at each call but the first gains, per work that depends on
    /// it, given the gradients `of_gates` of a loss. A gate has no gain (`None`) if no computed
    /// unit reads its unit.
    fn gains(
        &self,
        schedule: &ReuseSchedule,
        structure: &Structure,
        of_gates: &[Vec<f64>],
    ) -> Result<Vec<Vec<Option<f64>>>> {
        let row = |(row, computed): (&Vec<f64>, &Vec<bool>)| {
            let gain = |(unit, (gradient, gamma)): (usize, (&f64, &f64))| {
                let mut with = computed.clone();
                with[unit] = true;
                let is_read = structure.live(schedule.kind, &with)?[unit];
                Ok(is_read.then(|| -gradient / gamma))
            };
            row.iter().zip(&self.cascades).enumerate().map(gain).collect::<Result<Vec<_>>>()
        };
        of_gates.iter().zip(schedule.computed.iter().skip(1)).map(row).collect()
    }

    /// Returns the schedule of an iteration: the units with the highest P(computed), up to a share
    /// of the multiply-accumulates, which falls to the requested one over the first iterations. Of
    /// equal probabilities, calls that are spread evenly go first.
    fn schedule(
        &self,
        probabilities: &[Vec<f32>],
        iteration: usize,
        structure: &Structure,
    ) -> Result<ReuseSchedule> {
        let place = iteration as f64 / (DESCENT * self.learning.iterations as f64);
        let share = self.learning.keep + (1.0 - self.learning.keep) * (1.0 - place).max(0.0);
        let row = |(call, row): (usize, &Vec<f32>)| {
            let first = 1e-3 * evenness(call);
            row.iter().map(|&p| f64::from(p) + first).collect()
        };
        let first = vec![2.0; self.whole.units.len()];
        let scores =
            Scores([first].into_iter().chain(probabilities.iter().enumerate().map(row)).collect());
        scores.select(
            Selection::Bisection,
            self.whole,
            structure,
            share.min(self.learning.keep.max(MOST)),
        )
    }

    /// Returns the learning rate, which rises over the first iterations and then falls like a
    /// cosine.
    fn rate(&self, iteration: usize) -> f64 {
        let iterations = self.learning.iterations;
        let rate = RATE / iterations as f64;
        let warm_up = WARM_UP.min(iterations / 10);
        if iteration < warm_up {
            return rate * (iteration + 1) as f64 / warm_up as f64;
        }
        let place = (iteration - warm_up) as f64 / (iterations - warm_up).max(1) as f64;
        0.5 * rate * (1.0 + (std::f64::consts::PI * place).cos())
    }

    fn save(&self, progress: &Progress) -> Result<()> {
        let (folder, name) = (&progress.folder, pruner_name(self.history.len()));
        let pruner = self.pruner.save(&folder.join(&name))?;
        let (history, settled) = (self.history.clone(), self.settled.clone());
        progress.write(LEARNED, State { history, settled, pruner })?;
        let all = std::fs::read_dir(folder).map_err(|error| problem(folder, &error))?.flatten();
        let is_old = |path: &PathBuf| {
            let found = path.file_name().and_then(|found| found.to_str());
            found.is_some_and(|found| {
                found != name && found.starts_with(PRUNER) && found.ends_with(".safetensors")
            })
        };
        all.map(|entry| entry.path()).filter(is_old).try_for_each(|path| {
            std::fs::remove_file(&path).map_err(|error| problem(&path, &error))
        })
    }
}

/// The name of the network's file after `steps` iterations.
fn pruner_name(steps: usize) -> String {
    format!("{PRUNER}{steps}.safetensors")
}

#[cfg(test)]
mod tests {
    use super::{Learning, Optimisation, priced};
    use crate::loss::Loss;
    use secateur_models::{ModelFolder, Pipeline, ReuseSchedule, Sampling, UnitKind};
    use std::path::Path;

    /// A model of two steps, with its schedule that computes all.
    fn model() -> (Pipeline, ReuseSchedule, Sampling) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/emoji-dit");
        let folder = ModelFolder::open(&folder, None).unwrap();
        let sampling = Sampling { steps: 2, ..folder.sampling() };
        let whole = folder.whole_reuse(&sampling, UnitKind::Residual).unwrap();
        (Pipeline::open(folder).unwrap(), whole, sampling)
    }

    /// The rate rises over a tenth of the iterations, ten at most, and is highest for two of them.
    /// Nothing is at rest before a schedule is known, and then only after a fifth of the
    /// iterations, twenty at least.
    #[test]
    fn rates_and_rest_go_by_the_number_of_iterations() {
        let (pipeline, whole, sampling) = model();
        // Iterations: the first that rests, and where the last change is at 80; rates times the
        // number of iterations.
        let cases = [
            (50, [35, 100], vec![(0, 0.12), (4, 0.6), (5, 0.6), (20, 0.45), (35, 0.15)]),
            (200, [100, 120], vec![(0, 0.06), (9, 0.6), (10, 0.6), (105, 0.3), (200, 0.0)]),
        ];
        for (iterations, rests, rates) in cases {
            let (prompts, loss) = (vec!["1".to_owned()], Loss::L2);
            let learning =
                Learning { prompts, sampling: sampling.clone(), loss, iterations, keep: 0.5 };
            let mut optimisation =
                Optimisation::new(&pipeline, &whole, &learning, None, &()).unwrap();
            for (iteration, expected) in rates {
                let rate = optimisation.rate(iteration) * iterations as f64;
                assert!((rate - expected).abs() < 1e-12, "{rate} at {iteration} of {iterations}");
            }
            for (since, first) in [0, 80].into_iter().zip(rests) {
                optimisation.settled.since = since;
                assert!(
                    !optimisation.rests(first - 1) && optimisation.rests(first),
                    "{since} of {iterations}"
                );
            }
        }
    }

    #[test]
    fn gates_go_by_their_gain_over_the_price() {
        let e = std::f64::consts::E;
        let gains =
            [vec![Some(9.0), None, Some(2.0)], vec![Some(2.0 * e.sqrt()), Some(-1.0), Some(1e-3)]];
        // Of the five with a gain two are above the third, which is the price.
        let moved = priced(&gains, 0.5);
        let expected = [[-1.0, 0.0, 0.0], [-0.5, 1.0, 1.0]];
        for (moved, expected) in moved.iter().flatten().zip(expected.iter().flatten()) {
            assert!((moved - expected).abs() < 1e-12, "{moved} for {expected}");
        }
        // Nothing is worth anything: nothing is pushed up.
        assert!(
            priced(&[vec![Some(0.0), Some(-2.0)]], 0.5).iter().flatten().all(|&moved| moved == 1.0)
        );
        assert_eq!(priced(&[vec![None, None]], 0.5), [[0.0, 0.0]]);
    }
    /// The last change is the last time that a different schedule would be computed.
    #[test]
    fn what_does_not_change_settles() {
        let (pipeline, whole, sampling) = model();
        let learning = Learning {
            prompts: vec!["1".to_owned()],
            sampling,
            loss: Loss::L2,
            iterations: 50,
            keep: 0.5,
        };
        let mut optimisation = Optimisation::new(&pipeline, &whole, &learning, None, &()).unwrap();
        for (iteration, rests, since) in [(30, false, 30), (49, false, 30), (50, true, 30)] {
            assert_eq!(optimisation.is_settled(iteration).unwrap(), rests, "{iteration}");
            assert_eq!(optimisation.settled.since, since, "{iteration}");
        }
        optimisation.settled.computed[1][0] ^= true;
        assert!(!optimisation.is_settled(60).unwrap() && optimisation.settled.since == 60);
    }
}
