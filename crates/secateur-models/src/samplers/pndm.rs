//! PNDM: Liu et al. 2022, <https://arxiv.org/abs/2202.09778>.

use crate::error::{Result, refuse};
use crate::samplers::options::Options;
use crate::samplers::prediction::{Mix, Prediction, combine};
use crate::samplers::schedule::{Call, Run, Schedule, SchedulerConfig};
use crate::samplers::spacing::{Spacing, Spread};
use crate::samplers::training::{Level, Training};
use candle_core::Tensor;

/// The first steps are made by the Runge-Kutta method, unless it is skipped.
const RUNGE_KUTTA_STEPS: usize = 3;
/// Weights of the outputs of a Runge-Kutta step.
const RUNGE_KUTTA: [f64; 4] = [1.0 / 6.0, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 6.0];
/// Adams-Bashforth weights of the last outputs, the last one first, by how many there are.
const MULTISTEP: [&[f64]; 4] = [
    &[1.0],
    &[3.0 / 2.0, -1.0 / 2.0],
    &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
    &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
];

/// Configuration of a `PNDMScheduler`.
#[derive(Clone, Debug)]
pub(crate) struct PndmConfig {
    training: Training,
    spacing: Spacing,
    prediction: Prediction,
    skip_runge_kutta: bool,
    /// alpha squared after the last step.
    last_square: f64,
}

/// One run.
#[derive(Clone, Debug)]
struct Pndm {
    calls: Vec<Call>,
    /// The latents that a call starts from, and the output that it steps along.
    moves: Vec<Mix>,
    runge_kutta_calls: usize,
    /// While the calls of a step last: the latents that it starts from and the outputs so far.
    open: Option<(Tensor, Vec<Tensor>)>,
    /// The outputs where the last steps started, the last one first.
    history: Vec<Tensor>,
}

/// A call: the timestep given to the model, and the timesteps that it steps from and to.
struct Plan {
    step: usize,
    told: usize,
    from: usize,
    to: Option<usize>,
}

impl PndmConfig {
    pub(crate) fn read(options: &Options) -> Result<Self> {
        let training = Training::read(options, (0.0001, 0.02), false)?;
        let to_one = options.flag("set_alpha_to_one", false)?;
        Ok(Self {
            spacing: Spacing::read(options, Spread::Leading)?,
            prediction: Prediction::read(options, &[Prediction::Noise, Prediction::Velocity])?,
            skip_runge_kutta: options.flag("skip_prk_steps", false)?,
            last_square: if to_one { 1.0 } else { training.square(0)? },
            training,
        })
    }

    /// Plans all calls: Runge-Kutta calls for the first steps, or two calls for the first step.
    fn plans(&self, steps: usize) -> Result<Vec<Plan>> {
        let trained = self.training.len();
        let timesteps = self.spacing.whole_timesteps(steps, trained);
        let stride = trained / steps;
        let multistep = |(step, &told): (usize, &usize)| Plan {
            step,
            told,
            from: told,
            to: told.checked_sub(stride),
        };
        let mut plans: Vec<Plan> = timesteps.iter().enumerate().map(multistep).collect();
        if self.skip_runge_kutta {
            // The first step is made twice, the second time from what the model says at its end.
            if let Some(&end) = timesteps.get(1) {
                plans.insert(1, Plan { step: 0, told: end, from: end + stride, to: Some(end) });
            }
        } else if steps <= RUNGE_KUTTA_STEPS {
            refuse!(
                "PNDM with Runge-Kutta steps (skip_prk_steps false) takes at least 4, not {steps}"
            );
        } else {
            let half = stride / 2;
            let stages = (0..RUNGE_KUTTA_STEPS).flat_map(|step| {
                let (from, end) = (timesteps[step], timesteps[step + 1]);
                let stages = [
                    (from, from.checked_sub(half)),
                    (end + half, Some(end + half)),
                    (end + half, Some(end)),
                    (end, Some(end)),
                ];
                stages.map(|(told, to)| Plan { step, told, from, to })
            });
            plans.splice(..RUNGE_KUTTA_STEPS, stages);
        }
        Ok(plans)
    }

    /// Equation 9: a step from one timestep to another, or to the end.
    fn transfer(&self, from: usize, to: Option<usize>) -> Result<Mix> {
        let (here, square) = (self.training.level(from)?, self.training.square(from)?);
        let square_to = to.map_or(Ok(self.last_square), |to| self.training.square(to))?;
        let there = Level::from_square(square_to);
        let divisor = here.alpha * (here.alpha * there.sigma + here.sigma * there.alpha);
        let change = (square - square_to) / divisor;
        let noise = self.prediction.noise(here);
        Ok(Mix {
            latents: there.alpha / here.alpha + change * noise.latents,
            output: change * noise.output,
        })
    }
}

impl SchedulerConfig for PndmConfig {
    fn schedule(&self, run: Run) -> Result<Box<dyn Schedule>> {
        let plans = self.plans(run.of_trained(self.training.len())?)?;
        Ok(Box::new(Pndm {
            calls: plans
                .iter()
                .map(|plan| Call { timestep: plan.told as f32, step: plan.step })
                .collect(),
            moves: plans
                .iter()
                .map(|plan| self.transfer(plan.from, plan.to))
                .collect::<Result<_>>()?,
            runge_kutta_calls: if self.skip_runge_kutta {
                0
            } else {
                RUNGE_KUTTA_STEPS * RUNGE_KUTTA.len()
            },
            open: None,
            history: Vec::new(),
        }))
    }

    fn trained(&self, timestep: f32) -> Result<(Prediction, Level)> {
        Ok((self.prediction, self.training.level(timestep.round() as usize)?))
    }
}

impl Pndm {
    /// The latents that a Runge-Kutta call starts from, and the output that it steps along.
    fn runge_kutta(&mut self, latents: &Tensor, output: &Tensor) -> Result<(Tensor, Tensor)> {
        let (start, mut outputs) =
            self.open.take().unwrap_or_else(|| (latents.clone(), Vec::new()));
        if outputs.is_empty() {
            self.history.insert(0, output.clone());
        }
        outputs.push(output.clone());
        if outputs.len() == RUNGE_KUTTA.len() {
            return Ok((start, weigh(&RUNGE_KUTTA, &outputs)?));
        }
        self.open = Some((start.clone(), outputs));
        Ok((start, output.clone()))
    }

    /// The same of a multistep call. The second call of all makes the first step anew, along the
    /// mean of the outputs at its two ends.
    fn multistep(&mut self, latents: &Tensor, output: &Tensor) -> Result<(Tensor, Tensor)> {
        if let Some((start, mut outputs)) = self.open.take() {
            outputs.push(output.clone());
            return Ok((start, weigh(&[0.5, 0.5], &outputs)?));
        }
        if self.history.is_empty() {
            self.open = Some((latents.clone(), vec![output.clone()]));
        }
        self.history.insert(0, output.clone());
        self.history.truncate(MULTISTEP.len());
        Ok((latents.clone(), weigh(MULTISTEP[self.history.len() - 1], &self.history)?))
    }
}

impl Schedule for Pndm {
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
        let (start, output) = if call < self.runge_kutta_calls {
            self.runge_kutta(latents, output)?
        } else {
            self.multistep(latents, output)?
        };
        self.moves[call].of(&start, &output)
    }

    fn memory(&self) -> Option<Vec<Tensor>> {
        self.open.is_none().then(|| self.history.clone())
    }

    fn remember(&mut self, memory: Vec<Tensor>) {
        self.history = memory;
    }
}

/// The sum of tensors times weights.
fn weigh(weights: &[f64], tensors: &[Tensor]) -> Result<Tensor> {
    let terms: Vec<(f64, &Tensor)> = weights.iter().copied().zip(tensors).collect();
    combine(terms[0], &terms[1..])
}
