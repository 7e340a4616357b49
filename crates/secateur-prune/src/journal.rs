//! The finished packages of a run, on disk: what it takes to go on after it was stopped.

use crate::allocation::{Budget, Settings};
use crate::driver::{GroupOutcome, LayerOutcome, Outcome};
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use crate::plan::Plan;
use crate::task::Task;
use candle_core::{Device, safetensors};
use secateur_models::Removals;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A folder with a file that says what run it is of, and a pair of files a finished package: its tensors (f32), and what
/// became of its layers. The second is written last and renamed, so a package is there whole or not at all.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
}

/// What the result of a run depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    format_version: u32,
    fingerprint: Fingerprint,
    /// Images at a time: they change rounding.
    batch: usize,
    method: String,
    removed: String,
    budget: Budget,
    /// SHA-256 of the plan before any allocation: layers, patterns, heads and neurons, packages.
    plan: String,
}

/// A finished package, but for its tensors.
#[derive(Serialize, Deserialize)]
struct Finished {
    removals: Removals,
    layers: Vec<LayerOutcome>,
    groups: Vec<GroupOutcome>,
}

const RUN: &str = "run.json";
const SETTINGS: &str = "settings.json";

impl Run {
    /// Of what `plan` chose, before any allocation; the calibration has that fingerprint and makes `batch` images at a time.
    #[must_use]
    pub fn new(fingerprint: &Fingerprint, batch: usize, plan: &Plan, task: &Task<'_>, budget: Budget) -> Self {
        let digest = Sha256::digest(format!("{plan:?}"));
        Self {
            format_version: 1,
            fingerprint: fingerprint.clone(),
            batch,
            method: task.method().to_owned(),
            removed: task.to_string(),
            budget,
            plan: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }

    /// What differs, in words.
    fn differences(&self, expected: &Self) -> Vec<String> {
        let mut differences = self.fingerprint.differences(&expected.fingerprint);
        let texts = [("method", &self.method, &expected.method), ("removed", &self.removed, &expected.removed)];
        let differing = texts.into_iter().filter(|(_, found, expected)| found != expected);
        differences.extend(differing.map(|(name, found, expected)| format!("{name} {found}, now {expected}")));
        if self.budget.allocation != expected.budget.allocation {
            let (found, expected) = (self.budget.allocation, expected.budget.allocation);
            differences.push(format!("allocation {found}, now {expected}"));
        } else if self.budget != expected.budget {
            differences.push("the budget".into());
        }
        if self.batch != expected.batch {
            differences.push(format!("batch {}, now {}", self.batch, expected.batch));
        }
        if differences.is_empty() && self.plan != expected.plan {
            differences.push("the plan: layers, shares or packages".into());
        }
        differences
    }
}

impl Journal {
    /// Starts one in a folder that does not exist yet.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn create(folder: &Path, run: &Run) -> Result<Self> {
        std::fs::create_dir(folder).map_err(|error| Error::statistics(folder, error))?;
        let journal = Self { folder: folder.to_owned() };
        journal.write_json(RUN, run)?;
        Ok(journal)
    }

    /// Opens the one of a run that was stopped.
    ///
    /// # Errors
    /// If it cannot be read, or it was another run than `run`: the error says what differs.
    pub fn open(folder: &Path, run: &Run) -> Result<Self> {
        let journal = Self { folder: folder.to_owned() };
        let found: Run = journal.read_json(RUN)?;
        let differences = found.differences(run);
        match differences.is_empty() {
            true => Ok(journal),
            false => {
                let problem = format!("the unfinished run had other settings: {}", differences.join("; "));
                Err(Error::statistics(folder, problem))
            }
        }
    }

    /// How many packages of the run in that folder are finished: the first ones.
    #[must_use]
    pub fn finished(folder: &Path) -> usize {
        (0..).take_while(|&package| folder.join(json_name(package)).exists()).count()
    }

    /// Whether that folder holds anything to go on with: packages, or the settings of the layers.
    #[must_use]
    pub fn has_progress(folder: &Path) -> bool {
        Self::finished(folder) > 0 || folder.join(SETTINGS).exists()
    }

    /// The settings of the layers, if they were found.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn settings(&self) -> Result<Option<Settings>> {
        self.folder.join(SETTINGS).exists().then(|| self.read_json(SETTINGS)).transpose()
    }

    /// Keeps the settings of the layers.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn set_settings(&self, settings: &Settings) -> Result<()> {
        self.write_json(SETTINGS, settings)
    }

    /// A package, if it is finished.
    pub(crate) fn load(&self, package: usize) -> Result<Option<Outcome>> {
        if !self.folder.join(json_name(package)).exists() {
            return Ok(None);
        }
        let Finished { removals, layers, groups } = self.read_json(&json_name(package))?;
        let path = self.folder.join(tensors_name(package));
        let weights = safetensors::load(&path, &Device::Cpu).map_err(|error| Error::statistics(&path, error))?;
        let mut outcome = Outcome { layers, groups, ..Outcome::default() };
        outcome.edits.weights = weights.into_iter().collect();
        outcome.edits.removals = removals;
        Ok(Some(outcome))
    }

    /// Keeps a finished package.
    pub(crate) fn save(&self, package: usize, outcome: &Outcome) -> Result<()> {
        let path = self.folder.join(tensors_name(package));
        let weights = outcome.edits.weights.iter().map(|(name, tensor)| (name.clone(), tensor.clone())).collect();
        safetensors::save(&weights, &path).map_err(|error| Error::statistics(&path, error))?;
        let written = File::open(&path).and_then(|file| file.sync_all());
        written.map_err(|error| Error::statistics(&path, error))?;
        let (layers, groups) = (outcome.layers.clone(), outcome.groups.clone());
        self.write_json(&json_name(package), &Finished { removals: outcome.edits.removals.clone(), layers, groups })
    }

    fn read_json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T> {
        let path = self.folder.join(name);
        let text = std::fs::read_to_string(&path).map_err(|error| Error::statistics(&path, error))?;
        serde_json::from_str(&text).map_err(|error| Error::statistics(&path, error))
    }

    fn write_json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        let path = self.folder.join(name);
        let partial = self.folder.join(format!("{name}.partial"));
        let failed = |error: std::io::Error| Error::statistics(&path, error);
        let json = serde_json::to_string_pretty(value).map_err(|error| Error::statistics(&path, error))?;
        let mut file = File::create(&partial).map_err(failed)?;
        file.write_all(json.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
        std::fs::rename(&partial, &path).map_err(failed)
    }
}

fn json_name(package: usize) -> String {
    format!("package-{package:04}.json")
}

fn tensors_name(package: usize) -> String {
    format!("package-{package:04}.safetensors")
}
