//! Samplers: at which noise levels the model is called, and what becomes of the latents.

mod ddim;
mod ddpm;
mod dpm_solver;
mod euler;
mod euler_ancestral;
mod exploding;
mod flow_match_euler;
mod heun;
mod options;
mod pndm;
mod prediction;
mod sigmas;
mod spacing;
mod training;

use crate::error::{Error, Result};
use candle_core::Tensor;
pub use options::Instead;
use options::Options;
use std::fmt::{self, Debug};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

/// One call of the model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Call {
    /// What the model is told.
    pub timestep: f32,
    /// The step of the sampler that it belongs to; some samplers call the model more than once a step.
    pub step: usize,
}

/// What is asked of a sampler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Denoising steps.
    pub steps: usize,
    /// Image tokens of the denoiser, on which FLUX's shift of the noise levels depends.
    pub tokens: usize,
    /// Noise levels evenly spread from 1 to 1 / steps before any shift, as FLUX's pipeline wants them, in place of the
    /// scheduler's own spread. Only for samplers of flow models.
    pub even_levels: bool,
}

/// No sampler takes more steps.
pub(crate) const MOST_STEPS: usize = 1_000_000;

impl Run {
    fn check(self) -> Result<()> {
        match self.steps {
            0 => Err(Error::Request("the number of steps must be at least 1".into())),
            1..=MOST_STEPS => Ok(()),
            steps => Err(Error::Request(format!("{steps} steps are more than any model wants, {MOST_STEPS}"))),
        }
    }

    /// The number of steps for a model that was trained at `trained` timesteps.
    fn of_trained(self, trained: usize) -> Result<usize> {
        self.check()?;
        if self.even_levels {
            return Err(Error::Request("evenly spread noise levels are for samplers of flow models only".into()));
        }
        if self.steps > trained {
            let problem = format!("{} steps are more than the {trained} timesteps of the training", self.steps);
            return Err(Error::Request(problem));
        }
        Ok(self.steps)
    }
}

/// The configuration of a sampler.
pub trait SchedulerConfig: Debug + Send + Sync {
    /// One run.
    ///
    /// # Errors
    /// If it cannot make so many steps.
    fn schedule(&self, run: Run) -> Result<Box<dyn Schedule>>;

    /// What the model was trained on at `timestep`: the latents `clean` with so much of the standard normal `noise`, and what
    /// the model should give for them.
    ///
    /// # Errors
    /// If the timestep is beyond the training, or the shapes differ.
    fn training_pair(&self, timestep: f32, clean: &Tensor, noise: &Tensor) -> Result<(Tensor, Tensor)>;
}

/// What can go on twice from the same moment.
pub trait Fork {
    /// Another one that remembers the same.
    fn fork(&self) -> Box<dyn Schedule>;
}

impl<S: Schedule + Clone + 'static> Fork for S {
    fn fork(&self) -> Box<dyn Schedule> {
        Box::new(self.clone())
    }
}

/// One run of a sampler, with what it remembers of earlier calls. All that is done to latents is differentiable.
pub trait Schedule: Fork {
    /// The calls of the model, in order.
    fn calls(&self) -> &[Call];

    /// What standard normal noise is multiplied by to start with (diffusers' `init_noise_sigma`).
    fn initial_scale(&self) -> f64 {
        1.0
    }

    /// What the model is given in place of the latents at a call (diffusers' `scale_model_input`).
    ///
    /// # Errors
    /// If a tensor operation fails.
    fn scale_input(&self, call: usize, latents: &Tensor) -> Result<Tensor> {
        let _ = call;
        Ok(latents.clone())
    }

    /// The latents after a call, from those before it and what the model gave. `noise` draws standard normal noise in
    /// the latents' shape, anew each time it is called.
    ///
    /// # Errors
    /// If the shapes differ.
    fn step(
        &mut self,
        call: usize,
        latents: &Tensor,
        output: &Tensor,
        noise: &mut dyn FnMut() -> Result<Tensor>,
    ) -> Result<Tensor>;
}

/// The samplers that are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampler {
    /// `DDIMScheduler`, without added noise.
    Ddim,
    /// `DDPMScheduler`.
    Ddpm,
    /// `PNDMScheduler`.
    Pndm,
    /// `EulerDiscreteScheduler`.
    Euler,
    /// `EulerAncestralDiscreteScheduler`.
    EulerAncestral,
    /// `HeunDiscreteScheduler`.
    Heun,
    /// `DPMSolverMultistepScheduler`: DPM-Solver++.
    DpmSolver,
    /// `FlowMatchEulerDiscreteScheduler`.
    FlowMatchEuler,
}

/// All samplers, with their names here and in diffusers.
const SAMPLERS: [(Sampler, &str, &str); 8] = [
    (Sampler::Ddim, "ddim", "DDIMScheduler"),
    (Sampler::Ddpm, "ddpm", "DDPMScheduler"),
    (Sampler::Pndm, "pndm", "PNDMScheduler"),
    (Sampler::Euler, "euler", "EulerDiscreteScheduler"),
    (Sampler::EulerAncestral, "euler-ancestral", "EulerAncestralDiscreteScheduler"),
    (Sampler::Heun, "heun", "HeunDiscreteScheduler"),
    (Sampler::DpmSolver, "dpm-solver", "DPMSolverMultistepScheduler"),
    (Sampler::FlowMatchEuler, "flow-match-euler", "FlowMatchEulerDiscreteScheduler"),
];

impl Sampler {
    /// Whether it follows the velocity of a flow, and not a noise that was added.
    pub(crate) fn is_of_flow(self) -> bool {
        self == Self::FlowMatchEuler
    }

    /// All that follow the flow, or do not, each with its class in diffusers.
    pub(crate) fn known(of_flow: bool) -> Vec<String> {
        let known = SAMPLERS.iter().filter(|(sampler, ..)| sampler.is_of_flow() == of_flow);
        known.map(|(_, name, class)| format!("{name} ({class})")).collect()
    }

    /// The one of that class of diffusers.
    #[must_use]
    pub fn of_class(class: &str) -> Option<Self> {
        SAMPLERS.into_iter().find(|(.., name)| *name == class).map(|(sampler, ..)| sampler)
    }
}

impl fmt::Display for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = SAMPLERS.iter().find(|(sampler, ..)| sampler == self).map_or("", |(_, name, _)| name);
        f.write_str(name)
    }
}

impl FromStr for Sampler {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = SAMPLERS.into_iter().find(|(_, known, _)| *known == name).map(|(sampler, ..)| sampler);
        found.ok_or_else(|| {
            let known: Vec<&str> = SAMPLERS.iter().map(|(_, name, _)| *name).collect();
            Error::Request(format!("there is no sampler {name:?}; known are {}", known.join(", ")))
        })
    }
}

/// Reads a `scheduler_config.json` for a sampler, which takes from it what it knows. `instead`: options that have these
/// values, whatever the file says.
///
/// # Errors
/// If it cannot be read, contradicts itself, or asks for something that is not supported.
pub fn scheduler_config(path: &Path, sampler: Sampler, instead: &[Instead]) -> Result<Arc<dyn SchedulerConfig>> {
    let options = Options::open(path, sampler, instead)?;
    Ok(match sampler {
        Sampler::Ddim => Arc::new(ddim::DdimConfig::read(&options)?),
        Sampler::Ddpm => Arc::new(ddpm::DdpmConfig::read(&options)?),
        Sampler::Pndm => Arc::new(pndm::PndmConfig::read(&options)?),
        Sampler::Euler => Arc::new(euler::EulerConfig::read(&options)?),
        Sampler::EulerAncestral => Arc::new(euler_ancestral::EulerAncestralConfig::read(&options)?),
        Sampler::Heun => Arc::new(heun::HeunConfig::read(&options)?),
        Sampler::DpmSolver => Arc::new(dpm_solver::DpmSolverConfig::read(&options)?),
        Sampler::FlowMatchEuler => Arc::new(flow_match_euler::FlowMatchEulerConfig::read(&options)?),
    })
}

/// The calls of a sampler that calls the model once a step.
fn one_call_a_step(timesteps: impl IntoIterator<Item = f32>) -> Vec<Call> {
    timesteps.into_iter().enumerate().map(|(step, timestep)| Call { timestep, step }).collect()
}
