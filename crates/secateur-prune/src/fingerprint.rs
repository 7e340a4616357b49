use crate::calibrate::Calibration;
use secateur_models::{Error, ModelFolder, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

/// What statistics depend on. Batch size and threads are not in it: they change rounding alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// SHA-256 of the denoiser's names, shapes and types and of the first 64 KiB of each weight file and every MiB
    /// after it.
    pub model: String,
    /// SHA-256 of the prompts.
    pub prompts: String,
    /// Number of prompts.
    pub samples: usize,
    /// Denoising steps.
    pub steps: usize,
    /// Guidance scale.
    pub guidance: f64,
    /// Seed of the noise.
    pub seed: u64,
    /// Name of the timestep weighting.
    pub weighting: String,
}

impl Fingerprint {
    /// The fingerprint of a calibration of that model.
    ///
    /// # Errors
    /// If the weight files cannot be read.
    pub fn new(folder: &ModelFolder, calibration: &Calibration) -> Result<Self> {
        Ok(Self {
            model: model(folder)?,
            prompts: digest(calibration.prompts.iter().map(|prompt| format!("{prompt}\n"))),
            samples: calibration.prompts.len(),
            steps: calibration.sampling.steps,
            guidance: calibration.sampling.guidance,
            seed: calibration.sampling.seed,
            weighting: calibration.weighting.to_string(),
        })
    }

    /// What differs, in words.
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
        compare("guidance", self.guidance.to_string(), expected.guidance.to_string());
        compare("seed", self.seed.to_string(), expected.seed.to_string());
        compare("weighting", self.weighting.clone(), expected.weighting.clone());
        differences
    }
}

fn digest(parts: impl Iterator<Item = impl AsRef<[u8]>>) -> String {
    let mut hash = Sha256::new();
    parts.for_each(|part| hash.update(part));
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reading all of a large model only to recognise it would cost minutes.
fn model(folder: &ModelFolder) -> Result<String> {
    const SAMPLE: u64 = 64 * 1024;
    const STRIDE: u64 = 1024 * 1024;
    let mut parts = Vec::new();
    for (name, info) in folder.checkpoint().tensors() {
        parts.push(format!("{name} {:?} {:?}\n", info.dtype, info.shape).into_bytes());
    }
    for path in folder.checkpoint().paths() {
        let mut file = File::open(path).map_err(Error::io(path))?;
        let bytes = file.metadata().map_err(Error::io(path))?.len();
        for start in (0..bytes).step_by(STRIDE as usize) {
            let mut sample = Vec::new();
            file.seek(SeekFrom::Start(start)).map_err(Error::io(path))?;
            Read::by_ref(&mut file).take(SAMPLE).read_to_end(&mut sample).map_err(Error::io(path))?;
            parts.push(sample);
        }
    }
    Ok(digest(parts.into_iter()))
}
