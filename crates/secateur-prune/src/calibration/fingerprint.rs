use crate::calibration::settings::Calibration;
use secateur_models::files::digest_of_texts;
use secateur_models::{ModelFolder, Observer, Result};
use serde::{Deserialize, Serialize};

/// Everything that statistics depend on. Batch size and number of threads are left out, as they
/// change only rounding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Digest of all files that the activations depend on: the denoiser, text encoders, tokenizers
    /// and scheduler.
    pub model: String,
    /// Digest of the prompts.
    pub prompts: String,
    /// Number of prompts.
    pub samples: usize,
    /// Denoising steps.
    pub steps: usize,
    /// Height and width of the latents.
    pub latent: (usize, usize),
    /// Name of the sampler.
    pub sampler: String,
    /// Guidance scale.
    pub guidance: f64,
    /// The negative prompt of guidance.
    pub negative_prompt: String,
    /// Number of text tokens for T5, including those that are zeros if there is no T5.
    pub max_sequence_length: usize,
    /// Seed of the noise.
    pub seed: u64,
    /// Name of the timestep weighting.
    pub weighting: String,
    /// One of every `token_stride` tokens was summed.
    pub token_stride: usize,
}

impl Fingerprint {
    /// Computes the fingerprint of a calibration of that model.
    ///
    /// # Errors
    /// If the files cannot be read, or the observer interrupts.
    pub fn new(
        folder: &ModelFolder,
        calibration: &Calibration,
        observer: &dyn Observer,
    ) -> Result<Self> {
        Ok(Self {
            model: folder.digest_of(&folder.activation_files()?, observer)?,
            prompts: digest_of_texts(&calibration.prompts),
            samples: calibration.prompts.len(),
            steps: calibration.sampling.steps,
            latent: calibration.sampling.latent,
            sampler: calibration.sampling.sampler.to_string(),
            guidance: calibration.sampling.guidance,
            negative_prompt: calibration.sampling.negative_prompt.clone(),
            max_sequence_length: calibration.sampling.max_sequence_length,
            seed: calibration.sampling.seed,
            weighting: calibration.weighting.to_string(),
            token_stride: calibration.token_stride,
        })
    }

    /// Lists the differences from `expected`, in words. Empty if there are none.
    #[must_use]
    pub fn differences(&self, expected: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        let mut compare = |name: &str, found: String, expected: String| {
            if found != expected {
                differences.push(format!("{name} {found}, now {expected}"));
            }
        };
        let short = |digest: &str| digest.get(..12).unwrap_or(digest).to_owned();
        compare("model", short(&self.model), short(&expected.model));
        compare("prompts", short(&self.prompts), short(&expected.prompts));
        compare("samples", self.samples.to_string(), expected.samples.to_string());
        compare("steps", self.steps.to_string(), expected.steps.to_string());
        let size = |(height, width): (usize, usize)| format!("{height} x {width}");
        compare("latents", size(self.latent), size(expected.latent));
        compare("sampler", self.sampler.clone(), expected.sampler.clone());
        compare("guidance", self.guidance.to_string(), expected.guidance.to_string());
        compare("negative prompt", self.negative_prompt.clone(), expected.negative_prompt.clone());
        let (found, now) =
            (self.max_sequence_length.to_string(), expected.max_sequence_length.to_string());
        compare("max_sequence_length", found, now);
        compare("seed", self.seed.to_string(), expected.seed.to_string());
        compare("weighting", self.weighting.clone(), expected.weighting.clone());
        compare("token stride", self.token_stride.to_string(), expected.token_stride.to_string());
        differences
    }
}
