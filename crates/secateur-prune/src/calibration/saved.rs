//! Statistics of a whole model on disk.

use crate::calibration::fingerprint::Fingerprint;
use crate::calibration::statistics::{InputStatistics, PackedStatistics};
use crate::error::{Error, Result};
use crate::plan::{Package, Plan};
use candle_core::{Device, Tensor};
use secateur_kernels::gram::numbers_in_bands;
use secateur_models::files::{
    Limit, check_digest, read_json, read_sealed, write_sealed, write_tensors,
};
use secateur_models::{Checkpoint, Observer};
use secateur_nn::LayerName;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// Statistics of a whole model on disk: a folder with `statistics.json`, the fingerprint, and
/// `statistics.safetensors`.
#[derive(Debug)]
pub struct SavedStatistics {
    folder: PathBuf,
    checkpoint: Checkpoint,
    saved: Saved,
}

#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Saved {
    format_version: u32,
    /// Digest of the file of tensors.
    digest: String,
    fingerprint: Fingerprint,
    step_weights: Vec<f64>,
    rows: BTreeMap<String, u64>,
    weighted_rows: BTreeMap<String, f64>,
}

const FILE: &str = "statistics";

/// Version 1 had no column sums, version 2 no weighted ones, version 3 no checksums, version 4
/// those of SHA-256, version 5 whole Hessians.
const FORMAT_VERSION: u32 = 6;

/// The field with the version, which files of all versions have.
#[derive(serde::Deserialize)]
struct Version {
    format_version: Option<u32>,
    content: Option<Box<Version>>,
}

impl SavedStatistics {
    /// Writes statistics, and the weights of the denoising steps in them, into an existing folder.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write(
        folder: &Path,
        statistics: &BTreeMap<LayerName, PackedStatistics>,
        step_weights: &[f64],
        fingerprint: &Fingerprint,
    ) -> Result<()> {
        let mut tensors = HashMap::new();
        for (name, packed) in statistics {
            let input = packed.columns();
            let width = input.width();
            tensors.insert(format!("{name}.hessian"), packed.bands().clone());
            let columns = [
                ("weighted_sums", &input.weighted_sums),
                ("sums", &input.sums),
                ("squares", &input.squares),
            ];
            for (kind, values) in columns {
                let values = Tensor::from_slice(values, width, &Device::Cpu)?;
                tensors.insert(format!("{name}.{kind}"), values);
            }
        }
        let digest = write_tensors(&folder.join(format!("{FILE}.safetensors")), &tensors)?;
        let saved = Saved {
            format_version: FORMAT_VERSION,
            digest,
            fingerprint: fingerprint.clone(),
            step_weights: step_weights.to_vec(),
            rows: statistics
                .iter()
                .map(|(name, input)| (name.to_string(), input.columns().rows))
                .collect(),
            weighted_rows: statistics
                .iter()
                .map(|(name, input)| (name.to_string(), input.columns().weighted_rows))
                .collect(),
        };
        Ok(write_sealed(&folder.join(format!("{FILE}.json")), &saved)?)
    }

    fn read(folder: &Path, observer: &dyn Observer) -> Result<Saved> {
        let path = folder.join(format!("{FILE}.json"));
        let version: Version = read_json(&path, Limit::Report)?;
        let found =
            version.format_version.or(version.content.and_then(|content| content.format_version));
        if found != Some(FORMAT_VERSION) {
            let found = found.map_or("none".into(), |version| version.to_string());
            let problem =
                format!("format_version {found}, and not {FORMAT_VERSION}: calibrate again");
            return Err(Error::statistics(&path, problem));
        }
        let saved: Saved = read_sealed(&path)?;
        check_digest(&folder.join(format!("{FILE}.safetensors")), &saved.digest, observer)?;
        Ok(saved)
    }

    /// Opens a statistics folder, which must be of the same model, prompts and settings.
    ///
    /// # Errors
    /// If it cannot be read, if its fingerprint differs from `expected` (the error lists the
    /// differences), or if the observer interrupts.
    pub fn open(folder: &Path, expected: &Fingerprint, observer: &dyn Observer) -> Result<Self> {
        let saved = Self::read(folder, observer)?;
        let differences = saved.fingerprint.differences(expected);
        if !differences.is_empty() {
            let problem = format!("made with other settings: {}", differences.join("; "));
            return Err(Error::statistics(folder, problem));
        }
        Ok(Self {
            folder: folder.to_owned(),
            checkpoint: Checkpoint::open(folder, FILE, None)?,
            saved,
        })
    }

    /// Digest of the file of tensors.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.saved.digest
    }

    /// The weights of the denoising steps in the statistics.
    #[must_use]
    pub fn step_weights(&self) -> &[f64] {
        &self.saved.step_weights
    }

    /// Checks that there are statistics of every input that a plan watches.
    ///
    /// # Errors
    /// If those of an input are missing.
    pub fn check(&self, plan: &Plan) -> Result<()> {
        let mut watched = plan.packages.iter().flat_map(Package::watched_inputs);
        let lacking = watched.find(|input| !self.saved.rows.contains_key(input.name.as_str()));
        lacking.map_or(Ok(()), |input| Err(self.no_such(&input.name)))
    }

    fn no_such(&self, input: &LayerName) -> Error {
        let problem = format!(
            "no statistics of the input of {input}: they were gathered with another `include` or \
             `exclude`"
        );
        Error::statistics(&self.folder, problem)
    }

    /// Reads the statistics of one input of that width.
    ///
    /// # Errors
    /// If they are missing or damaged.
    pub fn input(&self, name: &LayerName, width: usize) -> Result<InputStatistics> {
        let Saved { rows, weighted_rows, .. } = &self.saved;
        let (Some(&rows), Some(&weighted_rows)) =
            (rows.get(name.as_str()), weighted_rows.get(name.as_str()))
        else {
            return Err(self.no_such(name));
        };
        let read = |kind: &str, shape: &[usize]| {
            let tensor = self.checkpoint.read(&format!("{name}.{kind}"))?;
            if tensor.dims() != shape {
                let problem = format!(
                    "{kind} of the input of {name} has shape {:?}, {shape:?} wanted",
                    tensor.dims()
                );
                return Err(Error::statistics(&self.folder, problem));
            }
            Ok(tensor)
        };
        let columns = |kind| Ok::<Vec<f32>, Error>(read(kind, &[width])?.to_vec1()?);
        let packed = PackedStatistics::new(InputStatistics {
            hessian: read("hessian", &[numbers_in_bands(width)])?,
            weighted_sums: columns("weighted_sums")?,
            weighted_rows,
            sums: columns("sums")?,
            squares: columns("squares")?,
            rows,
        });
        packed.whole()
    }
}
