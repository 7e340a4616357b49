//! What calibration leaves: plain data, in memory or on disk.

use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use crate::plan::{Package, Plan};
use candle_core::Tensor;
use secateur_kernels::gram;
use secateur_models::files::{Array, Limit, Values, check_digest, read_json, read_sealed, write_sealed, write_tensors};
use secateur_models::{Checkpoint, Observer};
use secateur_nn::LayerName;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// Statistics of one distinct layer input of width d.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InputStatistics {
    /// H = 2 / (sum of a_t) * sum of a_t X_t^T X_t, where a_t is the weight of the step and every sample counts once
    /// (OBS-Diff, eq. 5): d x d, symmetric, row-major.
    pub hessian: Vec<f32>,
    /// 2 / (sum of a_t) * sum of a_t X_t^T 1, H's last column if every row ended with a 1: d.
    pub weighted_sums: Vec<f32>,
    /// 2 / (sum of a_t) * sum of a_t n_t for the n_t rows of X_t: the end of that column.
    pub weighted_rows: f64,
    /// Sum of each column over all rows, unweighted: d.
    pub sums: Vec<f32>,
    /// Sum of squares of each column over all rows, unweighted: d.
    pub squares: Vec<f32>,
    /// Rows seen; those that were summed up stand for the others.
    pub rows: u64,
}

/// Sums while calibration runs.
#[derive(Clone, Debug)]
pub(crate) struct Accumulator {
    gram: Vec<f32>,
    weighted_sums: Vec<f64>,
    sums: Vec<f64>,
    squares: Vec<f64>,
    /// Rows, weighted rows, and the weights of the samples.
    totals: [f64; 3],
    /// One of so many tokens is summed up, for all of them.
    stride: usize,
}

/// The tokens that are summed up at a step, each with the number of those that it stands for: one of every `stride`
/// successive ones. Which one is mixed from the step and the place (SplitMix64), so that over the steps all are seen, on
/// no grid, and the same whatever the batch.
fn taken(tokens: usize, stride: usize, step: usize) -> Vec<(usize, f32)> {
    let pick = |block: usize| {
        let length = stride.min(tokens - block * stride);
        let mut z = ((step as u64) << 32 | block as u64).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (block * stride + ((z ^ (z >> 31)) % length as u64) as usize, length as f32)
    };
    (0..tokens.div_ceil(stride)).map(pick).collect()
}

impl Accumulator {
    pub(crate) fn new(width: usize, stride: usize) -> Self {
        let (gram, zeros) = (vec![0.0; width * width], vec![0.0; width]);
        let (weighted_sums, sums, squares) = (zeros.clone(), zeros.clone(), zeros);
        Self { gram, weighted_sums, sums, squares, totals: [0.0; 3], stride }
    }

    /// Adds the rows `x` of `samples` samples, computed at a step of weight `weight`; a row counts as often as
    /// `multiplicity` (samples x tokens) says.
    pub(crate) fn add(
        &mut self,
        x: &[f32],
        samples: usize,
        multiplicity: Option<&[f32]>,
        (step, weight): (usize, f64),
    ) {
        let (width, stride) = (self.squares.len(), self.stride);
        let tokens = x.len() / (width * samples).max(1);
        let taken = taken(tokens, stride, step);
        let place = |index: usize| index / taken.len() * tokens + taken[index % taken.len()].0;
        let row = |index: usize| &x[place(index) * width..][..width];
        let times = |index: usize| multiplicity.map_or(1.0, |times| times[place(index)]) * taken[index % taken.len()].1;
        let rows = samples * taken.len();
        gram::add_gram(rows, width, row, |index| weight as f32 * times(index), &mut self.gram);
        // The weight is the step's, and the same for all of these rows.
        let mut sums = vec![0f64; width];
        gram::add_column_moments(rows, row, times, &mut sums, &mut self.squares);
        for ((sum, weighted), new) in self.sums.iter_mut().zip(&mut self.weighted_sums).zip(sums) {
            *sum += new;
            *weighted += weight * new;
        }
        let rows = (0..rows).map(|index| f64::from(times(index))).sum::<f64>();
        let added = [rows, weight * rows, weight * samples as f64];
        self.totals.iter_mut().zip(added).for_each(|(total, new)| *total += new);
    }

    /// All that it holds, by name: equal sums go on equally.
    pub(crate) fn arrays(&self) -> impl Iterator<Item = (&'static str, Values<'_>)> {
        let columns = [("weighted_sums", &self.weighted_sums), ("sums", &self.sums), ("squares", &self.squares)];
        let columns = columns.into_iter().map(|(name, column)| (name, Values::F64(column)));
        [("gram", Values::F32(&self.gram)), ("totals", Values::F64(&self.totals))].into_iter().chain(columns)
    }

    /// Takes one of [`Accumulator::arrays`], if it is of that name, type and length.
    pub(crate) fn set(&mut self, name: &str, tensor: &Tensor) -> candle_core::Result<bool> {
        let column = match name {
            "gram" => {
                let values = tensor.flatten_all()?.to_vec1::<f32>()?;
                let fits = values.len() == self.gram.len();
                if fits {
                    self.gram = values;
                }
                return Ok(fits);
            }
            "totals" => self.totals.as_mut_slice(),
            "weighted_sums" => &mut self.weighted_sums,
            "sums" => &mut self.sums,
            "squares" => &mut self.squares,
            _ => return Ok(false),
        };
        let values = tensor.flatten_all()?.to_vec1::<f64>()?;
        let fits = values.len() == column.len();
        if fits {
            column.copy_from_slice(&values);
        }
        Ok(fits)
    }

    /// Forgets all.
    pub(crate) fn clear(&mut self) {
        *self = Self::new(self.squares.len(), self.stride);
    }

    /// Whether all that was added was finite.
    pub(crate) fn is_finite(&self) -> bool {
        self.squares.iter().all(|square| square.is_finite())
    }

    pub(crate) fn finish(mut self) -> InputStatistics {
        let width = self.squares.len();
        gram::symmetrise(&mut self.gram, width);
        let [rows, weighted_rows, weight] = self.totals;
        let scale = if weight > 0.0 { 2.0 / weight } else { 0.0 };
        self.gram.iter_mut().for_each(|h| *h *= scale as f32);
        let rounded = |sums: Vec<f64>| sums.iter().map(|&sum| sum as f32).collect();
        InputStatistics {
            hessian: self.gram,
            weighted_sums: self.weighted_sums.iter().map(|sum| (scale * sum) as f32).collect(),
            weighted_rows: scale * weighted_rows,
            sums: rounded(self.sums),
            squares: rounded(self.squares),
            rows: rows.round() as u64,
        }
    }
}

impl InputStatistics {
    /// Width of the input.
    #[must_use]
    pub fn width(&self) -> usize {
        self.squares.len()
    }

    /// The root of each column's mean square, by which Wanda measures weights.
    pub(crate) fn norms(&self) -> Vec<f32> {
        let rows = self.rows.max(1) as f32;
        self.squares.iter().map(|square| (square / rows).sqrt()).collect()
    }

    /// The mean of each column.
    pub(crate) fn means(&self) -> Vec<f64> {
        let rows = self.rows.max(1) as f64;
        self.sums.iter().map(|&sum| f64::from(sum) / rows).collect()
    }

    /// The variance of each column.
    pub(crate) fn variances(&self) -> Vec<f64> {
        let rows = self.rows.max(1) as f64;
        let variance = |(&square, mean): (&f32, f64)| (f64::from(square) / rows - mean * mean).max(0.0);
        self.squares.iter().zip(self.means()).map(variance).collect()
    }
}

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
    /// Of the file of tensors.
    sha256: String,
    fingerprint: Fingerprint,
    step_weights: Vec<f64>,
    rows: BTreeMap<String, u64>,
    weighted_rows: BTreeMap<String, f64>,
}

const FILE: &str = "statistics";

/// Version 1 had no column sums, version 2 no weighted ones, version 3 no checksums.
const FORMAT_VERSION: u32 = 4;

/// Where a file of any version says which it is of.
#[derive(serde::Deserialize)]
struct Version {
    format_version: Option<u32>,
    content: Option<Box<Version>>,
}

impl SavedStatistics {
    /// Writes statistics, and the weights that the steps had in them, into an existing folder.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(
        folder: &Path,
        statistics: &BTreeMap<LayerName, InputStatistics>,
        step_weights: &[f64],
        fingerprint: &Fingerprint,
    ) -> Result<()> {
        let mut tensors = HashMap::new();
        for (name, input) in statistics {
            let width = input.width();
            let array = |shape: &[usize], values| Array { shape: shape.to_vec(), values: Values::F32(values) };
            tensors.insert(format!("{name}.hessian"), array(&[width, width], &input.hessian));
            let columns = [("weighted_sums", &input.weighted_sums), ("sums", &input.sums), ("squares", &input.squares)];
            for (kind, values) in columns {
                tensors.insert(format!("{name}.{kind}"), array(&[width], values));
            }
        }
        let sha256 = write_tensors(&folder.join(format!("{FILE}.safetensors")), &tensors)?;
        let saved = Saved {
            format_version: FORMAT_VERSION,
            sha256,
            fingerprint: fingerprint.clone(),
            step_weights: step_weights.to_vec(),
            rows: statistics.iter().map(|(name, input)| (name.to_string(), input.rows)).collect(),
            weighted_rows: statistics.iter().map(|(name, input)| (name.to_string(), input.weighted_rows)).collect(),
        };
        Ok(write_sealed(&folder.join(format!("{FILE}.json")), &saved)?)
    }

    fn read(folder: &Path, observer: &dyn Observer) -> Result<Saved> {
        let path = folder.join(format!("{FILE}.json"));
        let version: Version = read_json(&path, Limit::Report)?;
        let found = version.format_version.or(version.content.and_then(|content| content.format_version));
        if found != Some(FORMAT_VERSION) {
            let found = found.map_or("none".into(), |version| version.to_string());
            let problem = format!("format_version {found}, and not {FORMAT_VERSION}: calibrate again");
            return Err(Error::statistics(&path, problem));
        }
        let saved: Saved = read_sealed(&path)?;
        check_digest(&folder.join(format!("{FILE}.safetensors")), &saved.sha256, observer)?;
        Ok(saved)
    }

    /// Opens a statistics folder made with the same model, prompts and settings.
    ///
    /// # Errors
    /// If it cannot be read, or something differs: the error says what; or the observer interrupts.
    pub fn open(folder: &Path, expected: &Fingerprint, observer: &dyn Observer) -> Result<Self> {
        let saved = Self::read(folder, observer)?;
        let differences = saved.fingerprint.differences(expected);
        if !differences.is_empty() {
            let problem = format!("made with other settings: {}", differences.join("; "));
            return Err(Error::statistics(folder, problem));
        }
        Ok(Self { folder: folder.to_owned(), checkpoint: Checkpoint::open(folder, FILE, None)?, saved })
    }

    /// SHA-256 of its tensors.
    #[must_use]
    pub fn sha256(&self) -> &str {
        &self.saved.sha256
    }

    /// The weights that the steps had.
    #[must_use]
    pub fn step_weights(&self) -> &[f64] {
        &self.saved.step_weights
    }

    /// Fails where they lack those of an input that a plan watches.
    ///
    /// # Errors
    /// As told.
    pub fn check(&self, plan: &Plan) -> Result<()> {
        let mut watched = plan.packages.iter().flat_map(Package::watched_inputs);
        let lacking = watched.find(|input| !self.saved.rows.contains_key(input.name.as_str()));
        lacking.map_or(Ok(()), |input| Err(self.no_such(&input.name)))
    }

    fn no_such(&self, input: &LayerName) -> Error {
        let problem =
            format!("no statistics of the input of {input}: they were gathered with another --include or --exclude");
        Error::statistics(&self.folder, problem)
    }

    /// The statistics of one input.
    ///
    /// # Errors
    /// If they are not there or damaged.
    pub fn input(&self, name: &LayerName, width: usize) -> Result<InputStatistics> {
        let Saved { rows, weighted_rows, .. } = &self.saved;
        let (Some(&rows), Some(&weighted_rows)) = (rows.get(name.as_str()), weighted_rows.get(name.as_str())) else {
            return Err(self.no_such(name));
        };
        let read = |kind: &str, shape: &[usize]| {
            let tensor = self.checkpoint.read(&format!("{name}.{kind}"))?;
            if tensor.dims() != shape {
                let problem = format!("{kind} of the input of {name} has shape {:?}, {shape:?} wanted", tensor.dims());
                return Err(Error::statistics(&self.folder, problem));
            }
            Ok(tensor.flatten_all()?.to_vec1()?)
        };
        Ok(InputStatistics {
            hessian: read("hessian", &[width, width])?,
            weighted_sums: read("weighted_sums", &[width])?,
            weighted_rows,
            sums: read("sums", &[width])?,
            squares: read("squares", &[width])?,
            rows,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::taken;

    #[test]
    fn every_token_is_stood_for_at_every_step_and_taken_at_some() {
        for (tokens, stride) in [(1, 4), (3, 4), (4, 4), (33, 4), (77, 256), (5, 1)] {
            let mut seen = vec![false; tokens];
            for step in 0..64 * stride {
                let taken = taken(tokens, stride, step);
                assert_eq!(taken.iter().map(|(_, stands_for)| stands_for).sum::<f32>(), tokens as f32);
                taken.iter().for_each(|&(token, _)| seen[token] = true);
            }
            assert!(seen.iter().all(|seen| *seen), "{tokens} tokens, stride {stride}");
        }
    }
}
