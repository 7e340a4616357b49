//! DPMSolverMultistep: DPM-Solver++, Lu et al. 2022, <https://arxiv.org/abs/2211.01095>.

use crate::error::{Result, refuse};
use crate::samplers::options::Options;
use crate::samplers::prediction::{Limit, Mix, Prediction, combine};
use crate::samplers::schedule::{Call, Run, Schedule, SchedulerConfig, one_call_a_step};
use crate::samplers::sigmas::{Final, Sigmas, karras};
use crate::samplers::spacing::{Spacing, Spread};
use crate::samplers::training::Level;
use candle_core::Tensor;
use serde::Deserialize;

/// Runs of fewer steps than this end in lower orders (`lower_order_final`).
const FEW_STEPS: usize = 15;

/// How a second-order step weighs the slope of the predicted images. Names of other samplers'
/// solvers stand for the first, as in diffusers.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Solver {
    #[serde(alias = "logrho", alias = "bh1", alias = "bh2")]
    Midpoint,
    Heun,
}

/// Where noise levels come from.
#[derive(Clone, Copy, Debug)]
enum Source {
    /// They are those of spaced timesteps.
    Spacing(Spacing),
    /// Karras levels. The model gets whole timesteps for them: rounded, or cut for the squared
    /// cosine.
    Karras { round: bool },
    /// Evenly spread and then shifted, with alpha = 1 - sigma.
    Flow { shift: f64 },
}

impl Source {
    fn read(options: &Options, flow: bool) -> Result<Self> {
        let spacing = Spacing::read(options, Spread::Linspace)?;
        let shift = options.positive("flow_shift", 1.0)?;
        let round = options.get("beta_schedule", String::new())? != "squaredcos_cap_v2";
        match (options.flag("use_karras_sigmas", false)?, flow) {
            (true, true) => {
                Err(options.invalid("use_karras_sigmas and use_flow_sigmas exclude each other"))
            }
            (true, false) => Ok(Self::Karras { round }),
            (false, true) => Ok(Self::Flow { shift }),
            (false, false) => Ok(Self::Spacing(spacing)),
        }
    }

    /// The noise levels of a run and its timesteps. Operations are in NumPy's order, since what
    /// they give is cut.
    fn sigmas(self, steps: usize, trained: &Sigmas) -> (Vec<f64>, Vec<f64>) {
        match self {
            Self::Spacing(spacing) => {
                let points = if spacing.spread == Spread::Trailing { steps } else { steps + 1 };
                let timesteps = spacing.timesteps(points, trained.len()).into_iter().take(steps);
                timesteps
                    .map(f64::round_ties_even)
                    .map(|timestep| (trained.at(timestep), timestep))
                    .unzip()
            }
            Self::Karras { round } => {
                let whole = |timestep: f64| {
                    if round { timestep.round_ties_even() } else { timestep.trunc() }
                };
                let sigmas = karras(steps, trained.first(), trained.last());
                sigmas.into_iter().map(|sigma| (sigma, whole(trained.timestep(sigma)))).unzip()
            }
            Self::Flow { shift } => {
                let count = trained.len() as f64;
                let step = (1.0 / count - 1.0) / steps as f64;
                let alpha = |i: usize| if i == steps { 1.0 / count } else { 1.0 + i as f64 * step };
                let even = (1..=steps).rev().map(|i| 1.0 - alpha(i));
                let sigmas = even.map(|sigma| shift * sigma / (1.0 + (shift - 1.0) * sigma));
                sigmas.map(|sigma| (sigma, (sigma * count).trunc())).unzip()
            }
        }
    }

    fn level(self, sigma: f64) -> Level {
        match self {
            Self::Flow { .. } => Level { alpha: 1.0 - sigma, sigma },
            _ => Level::from_ratio(sigma),
        }
    }
}

/// Configuration of a `DPMSolverMultistepScheduler`.
#[derive(Clone, Debug)]
pub(crate) struct DpmSolverConfig {
    sigmas: Sigmas,
    source: Source,
    last: Final,
    prediction: Prediction,
    limit: Limit,
    order: usize,
    solver: Solver,
    lower_order_final: bool,
    euler_at_final: bool,
}

/// One run.
#[derive(Clone, Debug)]
struct DpmSolver {
    calls: Vec<Call>,
    moves: Vec<Move>,
    limit: Limit,
    order: usize,
    /// The images predicted in the last steps, the last one first.
    images: Vec<Tensor>,
}

/// The coefficients of a step.
#[derive(Clone, Debug)]
struct Move {
    /// The predicted image.
    predicted: Mix,
    /// Factor of the latents.
    latents: f64,
    /// Factors of the predicted images, the last one first.
    images: Vec<f64>,
}

impl DpmSolverConfig {
    pub(crate) fn read(options: &Options) -> Result<Self> {
        options.off(&[
            "use_exponential_sigmas",
            "use_beta_sigmas",
            "use_lu_lambdas",
            "use_dynamic_shifting",
        ])?;
        options.only("algorithm_type", "dpmsolver++")?;
        if options.get::<Option<f64>>("lambda_min_clipped", None)?.is_some() {
            return Err(options.refuse("lambda_min_clipped", "null"));
        }
        if options.get::<Option<String>>("variance_type", None)?.is_some() {
            return Err(options.refuse("variance_type", "null"));
        }
        let order = options.get("solver_order", 2)?;
        if !(1..=3).contains(&order) {
            return Err(options.refuse("solver_order", "1, 2 or 3"));
        }
        let flow = options.flag("use_flow_sigmas", false)?;
        let prediction = match options.get("prediction_type", Prediction::Noise)? {
            Prediction::Flow if !flow => {
                return Err(
                    options.invalid("prediction_type \"flow_prediction\" needs use_flow_sigmas")
                );
            }
            prediction => prediction,
        };
        let zero_snr = options.flag("rescale_betas_zero_snr", false)?;
        Ok(Self {
            sigmas: Sigmas::read(options, (0.0001, 0.02), zero_snr)?,
            source: Source::read(options, flow)?,
            last: options.get("final_sigmas_type", Final::Zero)?,
            prediction,
            limit: Limit::None.or_quantile(options)?,
            order,
            solver: options.get("solver_type", Solver::Midpoint)?,
            lower_order_final: options.flag("lower_order_final", true)?,
            euler_at_final: options.flag("euler_at_final", false)?,
        })
    }

    /// Noise levels of a run and one after its end, and the timestep of each.
    fn levels(&self, steps: usize) -> Result<(Vec<Level>, Vec<f64>)> {
        let (mut sigmas, timesteps) = self.source.sigmas(steps, &self.sigmas);
        sigmas.push(self.sigmas.end(self.last));
        let level = |sigma: f64| self.source.level(f64::from(sigma as f32));
        let levels: Vec<Level> = sigmas.into_iter().map(level).collect();
        let falling = levels[..steps].windows(2).all(|pair| pair[0].sigma > pair[1].sigma);
        if falling && levels[steps - 1].sigma > 0.0 && levels.iter().all(|level| level.alpha > 0.0)
        {
            return Ok((levels, timesteps));
        }
        refuse!("the noise levels of {steps} steps do not fall at every step: take fewer")
    }

    /// The order of a step, lower at the start for lack of earlier ones, and at the end.
    fn order_at(&self, step: usize, steps: usize) -> usize {
        let few = self.lower_order_final && steps < FEW_STEPS;
        let most = match steps - step {
            1 if few || self.euler_at_final || self.last == Final::Zero => 1,
            2 if few => 2,
            _ => self.order,
        };
        most.min(self.order).min(step + 1)
    }

    /// A step from the level `past[0]`, before which there were the others. Names are the paper's.
    fn plan(&self, to: Level, past: &[Level]) -> Result<Move> {
        let lambda = |level: Level| (level.alpha / level.sigma).ln();
        let from = past[0];
        let h = lambda(to) - lambda(from);
        // A step to the same level changes nothing, whatever its order.
        let past = if h == 0.0 { &past[..1] } else { past };
        let r: Vec<f64> =
            past.windows(2).map(|pair| (lambda(pair[0]) - lambda(pair[1])) / h).collect();
        let decay = (-h).exp_m1();
        let value = -to.alpha * decay;
        let slope = to.alpha * (decay / h + 1.0);
        let curvature = to.alpha * (0.5 - (decay + h) / (h * h));
        let images = match (r.as_slice(), self.solver) {
            ([], _) => vec![value],
            ([r0], Solver::Midpoint) => vec![value + value / (2.0 * r0), -value / (2.0 * r0)],
            ([r0], Solver::Heun) => vec![value + slope / r0, -slope / r0],
            ([r0, r1, ..], _) => {
                let older = (slope * r0 + curvature) / (r0 + r1);
                let newer = slope + older;
                vec![value + newer / r0, -newer / r0 - older / r1, older / r1]
            }
        };
        Ok(Move { predicted: self.prediction.image(from)?, latents: to.sigma / from.sigma, images })
    }
}

impl SchedulerConfig for DpmSolverConfig {
    fn schedule(&self, run: Run) -> Result<Box<dyn Schedule>> {
        let steps = run.of_trained(self.sigmas.len())?;
        let (levels, timesteps) = self.levels(steps)?;
        let plan = |step: usize| {
            let past: Vec<Level> =
                levels[..=step].iter().rev().take(self.order_at(step, steps)).copied().collect();
            self.plan(levels[step + 1], &past)
        };
        Ok(Box::new(DpmSolver {
            calls: one_call_a_step(timesteps.into_iter().map(|timestep| timestep as f32)),
            moves: (0..steps).map(plan).collect::<Result<_>>()?,
            limit: self.limit,
            order: self.order,
            images: Vec::new(),
        }))
    }

    fn trained(&self, timestep: f32) -> Result<(Prediction, Level)> {
        let timestep = f64::from(timestep);
        let sigma = match self.source {
            Source::Flow { .. } => timestep / self.sigmas.len() as f64,
            _ => self.sigmas.at(timestep),
        };
        Ok((self.prediction, self.source.level(sigma)))
    }
}

impl Schedule for DpmSolver {
    fn calls(&self) -> &[Call] {
        &self.calls
    }

    fn step(
        &mut self,
        call: usize,
        latents: &Tensor,
        output: &Tensor,
        _: &mut dyn FnMut() -> Result<Tensor>,
    ) -> Result<Tensor> {
        let plan = &self.moves[call];
        self.images.insert(0, self.limit.of(plan.predicted.of(latents, output)?)?);
        self.images.truncate(self.order);
        let images: Vec<(f64, &Tensor)> = plan.images.iter().copied().zip(&self.images).collect();
        combine((plan.latents, latents), &images)
    }

    fn memory(&self) -> Option<Vec<Tensor>> {
        Some(self.images.clone())
    }

    fn remember(&mut self, memory: Vec<Tensor>) {
        self.images = memory;
    }
}
