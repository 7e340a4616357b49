//! FlowMatchEulerDiscrete: the sampler of SD3 and FLUX.

use crate::error::{Error, Result, read_json};
use candle_core::Tensor;
use serde::Deserialize;
use std::path::Path;

/// Configuration of a `FlowMatchEulerDiscreteScheduler`.
#[derive(Clone, Debug, Deserialize)]
pub struct FlowMatchEulerConfig {
    #[serde(default = "thousand")]
    num_train_timesteps: usize,
    #[serde(default = "one")]
    shift: f64,
    #[serde(default)]
    use_dynamic_shifting: bool,
    #[serde(default = "base_shift")]
    base_shift: f64,
    #[serde(default = "max_shift")]
    max_shift: f64,
    #[serde(default = "base_image_seq_len")]
    base_image_seq_len: f64,
    #[serde(default = "max_image_seq_len")]
    max_image_seq_len: f64,
    #[serde(default)]
    invert_sigmas: bool,
    #[serde(default)]
    shift_terminal: Option<f64>,
    #[serde(default)]
    use_karras_sigmas: bool,
    #[serde(default)]
    use_exponential_sigmas: bool,
    #[serde(default)]
    use_beta_sigmas: bool,
    #[serde(default = "exponential")]
    time_shift_type: String,
    #[serde(default)]
    stochastic_sampling: bool,
}

fn thousand() -> usize {
    1000
}
fn one() -> f64 {
    1.0
}
fn base_shift() -> f64 {
    0.5
}
fn max_shift() -> f64 {
    1.15
}
fn base_image_seq_len() -> f64 {
    256.0
}
fn max_image_seq_len() -> f64 {
    4096.0
}
fn exponential() -> String {
    "exponential".into()
}

/// The noise levels of one run.
#[derive(Clone, Debug)]
pub struct FlowMatchEuler {
    /// Steps + 1 noise levels, from near 1 to 0.
    sigmas: Vec<f32>,
    /// What the model is told at each step.
    timesteps: Vec<f32>,
}

impl FlowMatchEulerConfig {
    /// Reads `scheduler_config.json`.
    ///
    /// # Errors
    /// If it cannot be read, or asks for something that is not supported.
    pub fn open(path: &Path) -> Result<Self> {
        let config: Self = read_json(path)?;
        let options = [
            ("invert_sigmas", config.invert_sigmas),
            ("use_karras_sigmas", config.use_karras_sigmas),
            ("use_exponential_sigmas", config.use_exponential_sigmas),
            ("use_beta_sigmas", config.use_beta_sigmas),
            ("stochastic_sampling", config.stochastic_sampling),
        ];
        if let Some((name, _)) = options.iter().find(|(_, on)| *on) {
            return Err(Error::invalid(path, format!("{name} is not supported")));
        }
        if !matches!(config.time_shift_type.as_str(), "exponential" | "linear") {
            let problem = format!("time_shift_type {:?} is not supported", config.time_shift_type);
            return Err(Error::invalid(path, problem));
        }
        if config.num_train_timesteps == 0 || !config.shift.is_finite() || config.shift <= 0.0 {
            return Err(Error::invalid(path, "num_train_timesteps and shift must be positive"));
        }
        let dynamic = config.use_dynamic_shifting;
        if (dynamic && config.max_image_seq_len <= config.base_image_seq_len) || config.shift_terminal == Some(1.0) {
            let problem = "max_image_seq_len must exceed base_image_seq_len, and shift_terminal be less than 1";
            return Err(Error::invalid(path, problem));
        }
        Ok(config)
    }

    /// The noise levels of `steps` steps over an image of `tokens` tokens (which sets a dynamic shift).
    ///
    /// # Errors
    /// If `steps` is 0.
    pub fn schedule(&self, steps: usize, tokens: usize) -> Result<FlowMatchEuler> {
        if steps == 0 {
            return Err(Error::Request("the number of steps must be at least 1".into()));
        }
        let total = self.num_train_timesteps as f64;
        let shift = |sigma: f64| self.shift * sigma / (1.0 + (self.shift - 1.0) * sigma);
        // diffusers shifts the smallest level once when it is made and once more here.
        let least = if self.use_dynamic_shifting { 1.0 / total } else { shift(1.0 / total) };
        let spread = |i: usize| match steps {
            1 => 1.0,
            _ => 1.0 + (least - 1.0) * i as f64 / (steps - 1) as f64,
        };
        let mut sigmas: Vec<f64> = (0..steps).map(spread).collect();
        for sigma in &mut sigmas {
            *sigma = if self.use_dynamic_shifting { self.dynamic(*sigma, tokens) } else { shift(*sigma) };
        }
        if let (Some(terminal), Some(&last)) = (self.shift_terminal.filter(|t| *t != 0.0), sigmas.last()) {
            let scale = (1.0 - last) / (1.0 - terminal);
            sigmas.iter_mut().for_each(|sigma| *sigma = 1.0 - (1.0 - *sigma) / scale);
        }
        let mut sigmas: Vec<f32> = sigmas.into_iter().map(|sigma| sigma as f32).collect();
        let timesteps = sigmas.iter().map(|sigma| sigma * total as f32).collect();
        sigmas.push(0.0);
        Ok(FlowMatchEuler { sigmas, timesteps })
    }

    /// Time shift that grows with the number of image tokens.
    fn dynamic(&self, sigma: f64, tokens: usize) -> f64 {
        let slope = (self.max_shift - self.base_shift) / (self.max_image_seq_len - self.base_image_seq_len);
        let mu = self.base_shift + slope * (tokens as f64 - self.base_image_seq_len);
        let mu = if self.time_shift_type == "linear" { mu } else { mu.exp() };
        mu / (mu + (1.0 / sigma - 1.0))
    }
}

impl FlowMatchEuler {
    /// What the model is told at each step.
    #[must_use]
    pub fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    /// One Euler step along the predicted velocity.
    ///
    /// # Errors
    /// If the shapes differ.
    pub fn step(&self, index: usize, latents: &Tensor, velocity: &Tensor) -> Result<Tensor> {
        let change = f64::from(self.sigmas[index + 1] - self.sigmas[index]);
        Ok((latents + velocity.affine(change, 0.0)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of diffusers 0.42.1, `set_timesteps(steps)`, with mu from 1024 tokens where shifting is dynamic.
    #[test]
    fn noise_levels_match_diffusers() {
        let cases: [(&str, &[f32]); 4] = [
            (r#"{"shift": 3.0}"#, &[1.0, 0.857_692_3, 0.602_150_56, 0.008_928_572, 0.0]),
            (r#"{"use_dynamic_shifting": true}"#, &[1.0, 0.789_953_9, 0.484_967_35, 0.001_875_964_3, 0.0]),
            (r#"{"shift": 3.0}"#, &[1.0, 0.0]),
            (
                r#"{"use_dynamic_shifting": true, "time_shift_type": "linear", "shift_terminal": 0.02}"#,
                &[1.0, 0.398_859, 0.02, 0.0],
            ),
        ];
        for (json, want) in cases {
            let config: FlowMatchEulerConfig = serde_json::from_str(json).unwrap();
            let got = config.schedule(want.len() - 1, 1024).unwrap().sigmas;
            assert_eq!(got.len(), want.len());
            for (g, w) in got.iter().zip(want) {
                assert!((g - w).abs() < 1e-6, "{json}: {got:?} against {want:?}");
            }
        }
    }

    #[test]
    fn no_steps_is_an_error() {
        let config: FlowMatchEulerConfig = serde_json::from_str("{}").unwrap();
        assert!(config.schedule(0, 16).is_err());
    }
}
