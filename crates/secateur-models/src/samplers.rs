//! Samplers: the noise levels at which the model is called, and the updates of the latents.

mod ddim;
mod ddpm;
mod dpm_solver;
mod euler;
mod exploding;
mod flow_match_euler;
mod heun;
mod options;
mod pndm;
mod prediction;
mod sampler;
mod schedule;
mod sigmas;
mod spacing;
mod training;

use crate::error::Result;
pub use options::Instead;
use options::Options;
pub use sampler::Sampler;
pub(crate) use schedule::MOST_STEPS;
pub use schedule::{Call, Run, Schedule, SchedulerConfig};
use std::path::Path;
use std::sync::Arc;

/// Reads a `scheduler_config.json` for a sampler, which takes the options that it knows. The
/// options of `instead` have their values whatever the file says.
///
/// # Errors
/// If it cannot be read, contradicts itself, or asks for something that is not supported.
pub fn scheduler_config(
    path: &Path,
    sampler: Sampler,
    instead: &[Instead],
) -> Result<Arc<dyn SchedulerConfig>> {
    let options = Options::open(path, sampler, instead)?;
    Ok(match sampler {
        Sampler::Ddim => Arc::new(ddim::DdimConfig::read(&options)?),
        Sampler::Ddpm => Arc::new(ddpm::DdpmConfig::read(&options)?),
        Sampler::Pndm => Arc::new(pndm::PndmConfig::read(&options)?),
        Sampler::Euler => Arc::new(euler::EulerConfig::read(&options)?),
        Sampler::EulerAncestral => Arc::new(euler::EulerConfig::read_ancestral(&options)?),
        Sampler::Heun => Arc::new(heun::HeunConfig::read(&options)?),
        Sampler::DpmSolver => Arc::new(dpm_solver::DpmSolverConfig::read(&options)?),
        Sampler::FlowMatchEuler => {
            Arc::new(flow_match_euler::FlowMatchEulerConfig::read(&options)?)
        }
    })
}
