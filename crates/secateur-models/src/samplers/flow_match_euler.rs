//! FlowMatchEulerDiscrete: the sampler of SD3 and FLUX.

use crate::error::{Error, Result};
use crate::samplers::options::Options;
use crate::samplers::prediction::Prediction;
use crate::samplers::schedule::{Call, Run, Schedule, SchedulerConfig};
use crate::samplers::training::Level;
use candle_core::Tensor;
use serde::Deserialize;

/// Configuration of a `FlowMatchEulerDiscreteScheduler`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub(crate) struct FlowMatchEulerConfig {
    num_train_timesteps: usize,
    shift: f64,
    use_dynamic_shifting: bool,
    base_shift: f64,
    max_shift: f64,
    base_image_seq_len: f64,
    max_image_seq_len: f64,
    invert_sigmas: bool,
    shift_terminal: Option<f64>,
    use_karras_sigmas: bool,
    use_exponential_sigmas: bool,
    use_beta_sigmas: bool,
    time_shift_type: String,
    stochastic_sampling: bool,
}

impl Default for FlowMatchEulerConfig {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            shift: 1.0,
            use_dynamic_shifting: false,
            base_shift: 0.5,
            max_shift: 1.15,
            base_image_seq_len: 256.0,
            max_image_seq_len: 4096.0,
            invert_sigmas: false,
            shift_terminal: None,
            use_karras_sigmas: false,
            use_exponential_sigmas: false,
            use_beta_sigmas: false,
            time_shift_type: "exponential".into(),
            stochastic_sampling: false,
        }
    }
}

/// One run.
#[derive(Clone, Debug)]
struct FlowMatchEuler {
    /// Steps + 1 noise levels, from near 1 to 0.
    sigmas: Vec<f32>,
    calls: Vec<Call>,
}

impl FlowMatchEulerConfig {
    pub(crate) fn read(options: &Options) -> Result<Self> {
        let config: Self = options.all()?;
        let flags = [
            ("invert_sigmas", config.invert_sigmas),
            ("use_karras_sigmas", config.use_karras_sigmas),
            ("use_exponential_sigmas", config.use_exponential_sigmas),
            ("use_beta_sigmas", config.use_beta_sigmas),
            ("stochastic_sampling", config.stochastic_sampling),
        ];
        if let Some((name, _)) = flags.iter().find(|(_, on)| *on) {
            return Err(options.invalid(format!("{name} is not supported")));
        }
        if !matches!(config.time_shift_type.as_str(), "exponential" | "linear") {
            let problem = format!("time_shift_type {:?} is not supported", config.time_shift_type);
            return Err(options.invalid(problem));
        }
        if config.num_train_timesteps == 0 || !config.shift.is_finite() || config.shift <= 0.0 {
            return Err(options.invalid("num_train_timesteps and shift must be positive"));
        }
        let dynamic = config.use_dynamic_shifting;
        if (dynamic && config.max_image_seq_len <= config.base_image_seq_len)
            || config.shift_terminal == Some(1.0)
        {
            let problem = "max_image_seq_len must exceed base_image_seq_len, and shift_terminal be \
                less than 1";
            return Err(options.invalid(problem));
        }
        Ok(config)
    }

    fn run(&self, run: Run) -> Result<FlowMatchEuler> {
        let Run { steps, tokens, even_levels } = run;
        run.check()?;
        let total = self.num_train_timesteps as f64;
        let shift = |sigma: f64| self.shift * sigma / (1.0 + (self.shift - 1.0) * sigma);
        // diffusers shifts the smallest level once when it is made and once more here.
        let least = match (even_levels, self.use_dynamic_shifting) {
            (true, _) => 1.0 / steps as f64,
            (false, true) => 1.0 / total,
            (false, false) => shift(1.0 / total),
        };
        let spread = |i: usize| match steps {
            1 => 1.0,
            _ => 1.0 + (least - 1.0) * i as f64 / (steps - 1) as f64,
        };
        let mut sigmas: Vec<f64> = (0..steps).map(spread).collect();
        for sigma in &mut sigmas {
            *sigma = if self.use_dynamic_shifting {
                self.dynamic(*sigma, tokens)
            } else {
                shift(*sigma)
            };
        }
        if let (Some(terminal), Some(&last)) =
            (self.shift_terminal.filter(|t| *t != 0.0), sigmas.last())
        {
            let scale = (1.0 - last) / (1.0 - terminal);
            sigmas.iter_mut().for_each(|sigma| *sigma = 1.0 - (1.0 - *sigma) / scale);
        }
        if sigmas.iter().any(|sigma| !sigma.is_finite()) {
            let problem = "the scheduler's noise levels are not finite numbers: its shift, \
                base_shift, max_shift or \
                           shift_terminal does not go with so large a picture";
            return Err(Error::Request(problem.into()));
        }
        let mut sigmas: Vec<f32> = sigmas.into_iter().map(|sigma| sigma as f32).collect();
        let call = |(step, sigma): (usize, &f32)| Call { timestep: sigma * total as f32, step };
        let calls = sigmas.iter().enumerate().map(call).collect();
        sigmas.push(0.0);
        Ok(FlowMatchEuler { sigmas, calls })
    }

    /// Time shift that grows with the number of image tokens.
    fn dynamic(&self, sigma: f64, tokens: usize) -> f64 {
        let slope =
            (self.max_shift - self.base_shift) / (self.max_image_seq_len - self.base_image_seq_len);
        let mu = self.base_shift + slope * (tokens as f64 - self.base_image_seq_len);
        let mu = if self.time_shift_type == "linear" { mu } else { mu.exp() };
        mu / (mu + (1.0 / sigma - 1.0))
    }
}

impl SchedulerConfig for FlowMatchEulerConfig {
    fn schedule(&self, run: Run) -> Result<Box<dyn Schedule>> {
        Ok(Box::new(self.run(run)?))
    }

    fn trained(&self, timestep: f32) -> Result<(Prediction, Level)> {
        let sigma = f64::from(timestep) / self.num_train_timesteps as f64;
        Ok((Prediction::Flow, Level { alpha: 1.0 - sigma, sigma }))
    }
}

impl Schedule for FlowMatchEuler {
    fn calls(&self) -> &[Call] {
        &self.calls
    }

    /// One Euler step along the predicted velocity.
    fn step(
        &mut self,
        call: usize,
        latents: &Tensor,
        output: &Tensor,
        _: &mut dyn FnMut() -> Result<Tensor>,
    ) -> Result<Tensor> {
        let change = f64::from(self.sigmas[call + 1] - self.sigmas[call]);
        Ok((latents + output.affine(change, 0.0)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of diffusers 0.42.1, `set_timesteps(steps)`, with mu from 1024 tokens where shifting
    /// is dynamic.
    #[test]
    fn noise_levels_match_diffusers() {
        let cases: [(&str, &[f32]); 4] = [
            (r#"{"shift": 3.0}"#, &[1.0, 0.857_692_3, 0.602_150_56, 0.008_928_572, 0.0]),
            (
                r#"{"use_dynamic_shifting": true}"#,
                &[1.0, 0.789_953_9, 0.484_967_35, 0.001_875_964_3, 0.0],
            ),
            (r#"{"shift": 3.0}"#, &[1.0, 0.0]),
            (
                r#"{"use_dynamic_shifting": true, "time_shift_type": "linear",
                    "shift_terminal": 0.02}"#,
                &[1.0, 0.398_859, 0.02, 0.0],
            ),
        ];
        for (json, want) in cases {
            let config: FlowMatchEulerConfig = serde_json::from_str(json).unwrap();
            let got = config
                .run(Run { steps: want.len() - 1, tokens: 1024, even_levels: false })
                .unwrap()
                .sigmas;
            assert_eq!(got.len(), want.len());
            for (g, w) in got.iter().zip(want) {
                assert!((g - w).abs() < 1e-6, "{json}: {got:?} against {want:?}");
            }
        }
    }

    #[test]
    fn no_steps_is_an_error() {
        let config: FlowMatchEulerConfig = serde_json::from_str("{}").unwrap();
        assert!(config.run(Run { steps: 0, tokens: 16, even_levels: false }).is_err());
    }
}
