//! The finished packages of a run, on disk: what it takes to go on after it was stopped.

use crate::calibration::{Fingerprint, Keeper, SavedStatistics, Sums, sums};
use crate::error::{Error, Result};
use crate::methods::Task;
use crate::plan::{Package, Plan};
use crate::run::outcome::{GroupOutcome, LayerOutcome, Outcome};
use crate::run::setting::{Budget, Settings};
use secateur_models::files::{digest, read_sealed, read_tensors, write_sealed, write_tensors};
use secateur_models::{Observer, Removals};
use secateur_nn::LayerName;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A folder with a file that says which run it is of, a pair of files a finished package: its
/// tensors (f32), and what became of its layers; and the sums of a calibration that is not
/// finished. Of a pair the second is written last, so a package is there whole or not at all; it
/// has the SHA-256 of the first, and says its package and its run. What is not as it was
/// written is not used, and done again.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
    /// SHA-256 of the run.
    run: String,
}

/// What the result of a run depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    format_version: u32,
    fingerprint: Fingerprint,
    /// Images at a time: they change rounding.
    batch: usize,
    method: String,
    removed: String,
    budget: Budget,
    /// SHA-256 of the saved statistics that stand for a calibration.
    #[serde(default)]
    statistics: Option<String>,
    /// SHA-256 of the plan before any allocation: layers, patterns, heads and neurons, packages.
    plan: String,
}

/// A finished package, but for its tensors.
#[derive(Serialize, Deserialize)]
struct Finished {
    /// SHA-256 of the run that it is of.
    run: String,
    /// Its number.
    package: usize,
    /// SHA-256 of the file of tensors.
    sha256: String,
    /// The shape of each tensor.
    shapes: BTreeMap<String, Vec<usize>>,
    removals: Removals,
    layers: Vec<LayerOutcome>,
    groups: Vec<GroupOutcome>,
}

/// The settings of the layers, and the run that they are of.
#[derive(Serialize, Deserialize)]
struct Found {
    run: String,
    settings: Settings,
}

const RUN: &str = "run.json";
const SETTINGS: &str = "settings.json";

impl Identity {
    /// Of what `plan` chose, before any allocation; the calibration has that fingerprint and makes
    /// `batch` images at a time.
    ///
    /// # Errors
    /// If a number of the plan is none of JSON.
    pub fn new(
        fingerprint: &Fingerprint,
        batch: usize,
        plan: &Plan,
        task: &Task<'_>,
        budget: Budget,
        statistics: Option<&SavedStatistics>,
    ) -> Result<Self> {
        Ok(Self {
            format_version: 2,
            fingerprint: fingerprint.clone(),
            batch,
            method: task.method().to_owned(),
            removed: task.to_string(),
            budget,
            statistics: statistics.map(|saved| saved.sha256().to_owned()),
            plan: digest([json(plan)?]),
        })
    }

    /// SHA-256 of it.
    ///
    /// # Errors
    /// If a number of it is none of JSON.
    pub fn sha256(&self) -> Result<String> {
        Ok(digest([json(self)?]))
    }

    /// What differs, in words.
    fn differences(&self, expected: &Self) -> Vec<String> {
        let mut differences = self.fingerprint.differences(&expected.fingerprint);
        let texts = [
            ("method", &self.method, &expected.method),
            ("removed", &self.removed, &expected.removed),
        ];
        let differing = texts.into_iter().filter(|(_, found, expected)| found != expected);
        differences.extend(
            differing.map(|(name, found, expected)| format!("{name} {found}, now {expected}")),
        );
        if self.budget.allocation != expected.budget.allocation {
            let (found, expected) = (self.budget.allocation, expected.budget.allocation);
            differences.push(format!("allocation {found}, now {expected}"));
        } else if self.budget != expected.budget {
            differences.push("the budget".into());
        }
        if self.statistics != expected.statistics {
            differences.push("the saved statistics".into());
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
    /// Starts one in an empty folder.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn create(folder: &Path, run: &Identity) -> Result<Self> {
        write_sealed(&folder.join(RUN), run)?;
        Ok(Self { folder: folder.to_owned(), run: run.sha256()? })
    }

    /// Opens the one of a run that was stopped. Where what it was of is not there or damaged, it is
    /// written again: every finished package names its run.
    ///
    /// # Errors
    /// If it was another run than `run`: the error says what differs.
    pub fn open(folder: &Path, run: &Identity, observer: &dyn Observer) -> Result<Self> {
        let path = folder.join(RUN);
        match read_sealed::<Identity>(&path) {
            Ok(found) => {
                let differences = found.differences(run);
                if !differences.is_empty() {
                    let problem = format!(
                        "the unfinished run had other settings: {}",
                        differences.join("; ")
                    );
                    return Err(Error::statistics(folder, problem));
                }
            }
            Err(error) if path.exists() => observer.warn(&format!("{error}: it is written again")),
            Err(_) => {}
        }
        Self::create(folder, run)
    }

    /// Whether files in its folder are called so.
    #[must_use]
    pub fn is_own(name: &str) -> bool {
        [RUN, SETTINGS].contains(&name) || name.starts_with("package-") || sums::is_own(name)
    }

    /// How many packages of the run are there: the first ones; and how many images of a calibration
    /// that was stopped are summed up.
    #[must_use]
    pub fn finished(&self) -> (usize, usize) {
        let packages =
            (0..).take_while(|&package| self.folder.join(json_name(package)).exists()).count();
        (packages, sums::images(&self.folder))
    }

    /// The sums of the calibration for a package, on the model that `done` packages were done to.
    pub(crate) fn sums(&self, done: usize, package: usize) -> Sums<'_> {
        Sums { folder: &self.folder, run: &self.run, done, package, interval: Keeper::INTERVAL }
    }

    /// The settings of the layers, if they were found.
    pub fn settings(&self, observer: &dyn Observer) -> Option<Settings> {
        let path = self.folder.join(SETTINGS);
        let found = path.exists().then(|| read_sealed::<Found>(&path).map_err(Error::from))?;
        let own = found.and_then(|found| match found.run == self.run {
            true => Ok(found.settings),
            false => Err(Error::statistics(&path, "is of another run")),
        });
        own.map_err(|error| observer.warn(&format!("{error}: they are found again"))).ok()
    }

    /// Keeps the settings of the layers of that many packages.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn set_settings(&self, settings: &Settings, packages: usize) -> Result<()> {
        let found = Found { run: self.run.clone(), settings: settings.clone() };
        write_sealed(&self.folder.join(SETTINGS), &found)?;
        // The first package's are those that it is solved with, too.
        (1..packages).for_each(|package| self.sums(0, package).remove());
        Ok(())
    }

    /// A package, if it is finished and as it was written; where it is not, the observer hears why.
    pub(crate) fn load(
        &self,
        package: usize,
        planned: &Package,
        observer: &dyn Observer,
    ) -> Option<Outcome> {
        self.folder.join(json_name(package)).exists().then_some(())?;
        match self.read(package, planned, observer) {
            Ok(outcome) => Some(outcome),
            // Whoever interrupts does so again.
            Err(_) if observer.advance(0).is_err() => None,
            Err(error) => {
                observer.warn(&format!("{error}: package {} is done again", package + 1));
                None
            }
        }
    }

    fn read(&self, package: usize, planned: &Package, observer: &dyn Observer) -> Result<Outcome> {
        let path = self.folder.join(json_name(package));
        let finished: Finished = read_sealed(&path)?;
        let wrong = |problem: &str| Err(Error::statistics(&path, problem));
        if finished.run != self.run || finished.package != package {
            return wrong("is of another run or package");
        }
        let same = |found: &mut dyn Iterator<Item = &LayerName>,
                    planned: &mut dyn Iterator<Item = &LayerName>| {
            found.collect::<BTreeSet<_>>() == planned.collect()
        };
        let removed = planned.coupled.iter().flatten().filter(|planned| planned.remove > 0);
        let groups = same(
            &mut finished.groups.iter().map(|g| &g.name),
            &mut removed.map(|planned| planned.group.name()),
        );
        let layers = same(
            &mut finished.layers.iter().map(|l| &l.name),
            &mut planned.layers().map(|layer| &layer.name),
        );
        if !groups || (planned.coupled.is_empty() && !layers) {
            return wrong("has other layers than the plan");
        }
        let weights =
            read_tensors(&self.folder.join(tensors_name(package)), &finished.sha256, observer)?;
        let shapes = weights
            .iter()
            .map(|(name, tensor)| (name.clone(), tensor.dims().to_vec()))
            .collect::<BTreeMap<_, _>>();
        if shapes != finished.shapes {
            return wrong("has other tensors than its file");
        }
        let mut outcome =
            Outcome { layers: finished.layers, groups: finished.groups, ..Outcome::default() };
        outcome.edits.weights = weights.into_iter().collect();
        outcome.edits.removals = finished.removals;
        Ok(outcome)
    }

    /// Keeps a finished package.
    pub(crate) fn save(&self, package: usize, outcome: &Outcome) -> Result<()> {
        let weights = &outcome.edits.weights;
        let tensors = weights.iter().map(|(name, tensor)| (name.clone(), tensor.clone())).collect();
        let sha256 = write_tensors(&self.folder.join(tensors_name(package)), &tensors)?;
        let finished = Finished {
            run: self.run.clone(),
            package,
            sha256,
            shapes: weights
                .iter()
                .map(|(name, tensor)| (name.clone(), tensor.dims().to_vec()))
                .collect(),
            removals: outcome.edits.removals.clone(),
            layers: outcome.layers.clone(),
            groups: outcome.groups.clone(),
        };
        write_sealed(&self.folder.join(json_name(package)), &finished)?;
        self.sums(package, package).remove();
        Ok(())
    }
}

fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| Error::statistics(Path::new(RUN), error))
}

fn json_name(package: usize) -> String {
    format!("package-{package:04}.json")
}

fn tensors_name(package: usize) -> String {
    format!("package-{package:04}.safetensors")
}
