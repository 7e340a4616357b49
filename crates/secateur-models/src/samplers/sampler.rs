//! The supported samplers, by name.

use crate::error::{Error, Result};
use std::fmt::{self, Debug};
use std::str::FromStr;

/// The supported samplers.
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
    /// Whether it samples flow models, which predict a velocity, and not models that predict noise.
    pub(crate) fn is_of_flow(self) -> bool {
        self == Self::FlowMatchEuler
    }

    /// The names of all samplers of flow models, or of all others, each with its class in
    /// diffusers.
    pub(crate) fn known(of_flow: bool) -> Vec<String> {
        let known = SAMPLERS.iter().filter(|(sampler, ..)| sampler.is_of_flow() == of_flow);
        known.map(|(_, name, class)| format!("{name} ({class})")).collect()
    }

    /// The sampler of a class in diffusers.
    #[must_use]
    pub fn of_class(class: &str) -> Option<Self> {
        SAMPLERS.into_iter().find(|(.., name)| *name == class).map(|(sampler, ..)| sampler)
    }
}

impl fmt::Display for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name =
            SAMPLERS.iter().find(|(sampler, ..)| sampler == self).map_or("", |(_, name, _)| name);
        f.write_str(name)
    }
}

impl FromStr for Sampler {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found =
            SAMPLERS.into_iter().find(|(_, known, _)| *known == name).map(|(sampler, ..)| sampler);
        found.ok_or_else(|| {
            let known: Vec<&str> = SAMPLERS.iter().map(|(_, name, _)| *name).collect();
            Error::Request(format!("there is no sampler {name:?}; known are {}", known.join(", ")))
        })
    }
}
