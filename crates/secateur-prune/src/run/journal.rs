//! The finished packages of a run on disk, from which a stopped run continues.

use crate::calibration::{Fingerprint, Keeper, SavedStatistics, Sums, sums};
use crate::error::{Error, Result};
use crate::methods::Task;
use crate::plan::{Package, Plan};
use crate::run::outcome::{GroupOutcome, LayerOutcome, Outcome};
use crate::run::setting::{Budget, Settings};
use secateur_models::files::{LogFile, Logged, TensorLog, digest, read_sealed, write_sealed};
use secateur_models::{Edits, Observer, Pipeline, Removals};
use secateur_nn::{LayerName, Weight};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A folder with one file that identifies the run, a pair of files for each finished package, and
/// the sums of an unfinished calibration. The first file of a pair has the tensors, the second
/// the results for the layers. The second is written last, so a package is stored whole or
/// not at all. It has the digest of the first, and says its package and its run. Files that are
/// damaged are not used, and their package is pruned again.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
    /// Digest of the run's identity.
    run: String,
}

/// Everything that the result of a run depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    format_version: u32,
    fingerprint: Fingerprint,
    /// Images at a time, which change rounding.
    batch: usize,
    method: String,
    removed: String,
    budget: Budget,
    /// Digest of the saved statistics that replace a calibration.
    #[serde(default)]
    statistics: Option<String>,
    /// The GPU with the type of numbers, which change rounding; `None` on the CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    /// Digest of the plan before any allocation: layers, patterns, heads and neurons, packages.
    plan: String,
}

/// A finished package, without its tensors.
#[derive(Serialize, Deserialize)]
struct Finished {
    /// Digest of the identity of its run.
    run: String,
    /// Its number.
    package: usize,
    /// Digest of the file of tensors.
    digest: String,
    /// The tensors in it.
    tensors: BTreeMap<String, Logged>,
    removals: Removals,
    layers: Vec<LayerOutcome>,
    groups: Vec<GroupOutcome>,
}

/// A package that is being solved. Its tensors are written as they are found.
pub(crate) struct Unfinished<'a> {
    journal: &'a Journal,
    package: usize,
    log: TensorLog,
    tensors: BTreeMap<String, Logged>,
}

/// The settings of the layers, with the run that they belong to.
#[derive(Serialize, Deserialize)]
struct Found {
    run: String,
    settings: Settings,
}

const RUN: &str = "run.json";
const SETTINGS: &str = "settings.json";

impl Identity {
    /// Creates the identity of a run of `plan`, as it is before any allocation. The fingerprint is
    /// that of the calibration, which makes `batch` images at a time on `device`, if that is a GPU.
    ///
    /// # Errors
    /// If a number of the plan cannot be written as JSON.
    pub fn new(
        fingerprint: &Fingerprint,
        batch: usize,
        plan: &Plan,
        task: &Task<'_>,
        budget: Budget,
        statistics: Option<&SavedStatistics>,
        device: Option<String>,
    ) -> Result<Self> {
        Ok(Self {
            format_version: 3,
            fingerprint: fingerprint.clone(),
            batch,
            method: task.method().to_owned(),
            removed: task.to_string(),
            budget,
            statistics: statistics.map(|saved| saved.digest().to_owned()),
            device,
            plan: digest([json(plan)?]),
        })
    }

    /// Computes the identity's digest.
    ///
    /// # Errors
    /// If a number of the identity cannot be written as JSON.
    pub fn digest(&self) -> Result<String> {
        Ok(digest([json(self)?]))
    }

    /// Lists the differences from `expected`, in words.
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
        if self.device != expected.device {
            let told = |identity: &Self| identity.device.clone().unwrap_or_else(|| "CPU".into());
            differences.push(format!("device {}, now {}", told(self), told(expected)));
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
    /// Starts a journal in an empty folder.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn create(folder: &Path, run: &Identity) -> Result<Self> {
        write_sealed(&folder.join(RUN), run)?;
        Ok(Self { folder: folder.to_owned(), run: run.digest()? })
    }

    /// Opens the journal of a stopped run. If the file that identifies the run is missing or
    /// damaged, it is written again, as every finished package names its run.
    ///
    /// # Errors
    /// If the journal is of a run other than `run`. The error lists the differences.
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

    /// Whether `name` is that of a file of a journal.
    #[must_use]
    pub fn is_own(name: &str) -> bool {
        [RUN, SETTINGS].contains(&name) || name.starts_with("package-") || sums::is_own(name)
    }

    /// Returns how many packages of the run are finished, from the first on, and how many images
    /// the sums of a stopped calibration contain.
    #[must_use]
    pub fn finished(&self) -> (usize, usize) {
        let packages =
            (0..).take_while(|&package| self.folder.join(json_name(package)).exists()).count();
        (packages, sums::images(&self.folder))
    }

    /// Returns the sums of the calibration for a package, on the model with `done` packages pruned.
    pub(crate) fn sums(&self, done: usize, package: usize) -> Sums<'_> {
        Sums { folder: &self.folder, run: &self.run, done, package, interval: Keeper::INTERVAL }
    }

    /// Returns the saved settings of the layers, or `None` if there are none.
    pub fn settings(&self, observer: &dyn Observer) -> Option<Settings> {
        let path = self.folder.join(SETTINGS);
        let found = path.exists().then(|| read_sealed::<Found>(&path).map_err(Error::from))?;
        let own = found.and_then(|found| match found.run == self.run {
            true => Ok(found.settings),
            false => Err(Error::statistics(&path, "is of another run")),
        });
        own.map_err(|error| observer.warn(&format!("{error}: they are found again"))).ok()
    }

    /// Saves the settings of the layers, for a plan of that many packages.
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

    /// Loads a package, if it is finished and undamaged. If it is damaged, it says so to the
    /// observer.
    pub(crate) fn load(
        &self,
        package: usize,
        planned: &Package,
        pipeline: &Pipeline,
        observer: &dyn Observer,
    ) -> Option<Outcome> {
        self.folder.join(json_name(package)).exists().then_some(())?;
        match self.read(package, planned, pipeline, observer) {
            Ok(outcome) => Some(outcome),
            // Whoever interrupts does so again.
            Err(_) if observer.advance(0).is_err() => None,
            Err(error) => {
                observer.warn(&format!("{error}: package {} is done again", package + 1));
                None
            }
        }
    }

    fn read(
        &self,
        package: usize,
        planned: &Package,
        pipeline: &Pipeline,
        observer: &dyn Observer,
    ) -> Result<Outcome> {
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
        let (path, tensors) = (self.folder.join(tensors_name(package)), finished.tensors.values());
        let file = Arc::new(LogFile::open(&path, &finished.digest, tensors, observer)?);
        let mut outcome =
            Outcome { layers: finished.layers, groups: finished.groups, ..Outcome::default() };
        for (name, logged) in finished.tensors {
            let weight = match stored(pipeline, &name, &logged, &file) {
                Some(weight) => weight,
                None => file.read(&logged)?.into(),
            };
            outcome.edits.weights.insert(name, weight);
        }
        outcome.edits.removals = finished.removals;
        Ok(outcome)
    }

    /// Begins to save a package.
    pub(crate) fn begin(&self, package: usize) -> Result<Unfinished<'_>> {
        let log = TensorLog::create(&self.folder.join(tensors_name(package)))?;
        Ok(Unfinished { journal: self, package, log, tensors: BTreeMap::new() })
    }
}

impl Unfinished<'_> {
    /// Writes weights that were found. Those that `pipeline` reads each time they are used are read
    /// from here from now on, and are no longer in memory.
    pub(crate) fn add(&mut self, pipeline: &Pipeline, edits: &mut Edits) -> Result<()> {
        for (name, weight) in &mut edits.weights {
            let logged = self.log.add(&weight.tensor()?)?;
            if let Some(stored) = stored(pipeline, name, &logged, self.log.file()) {
                *weight = stored;
            }
            self.tensors.insert(name.clone(), logged);
        }
        Ok(())
    }

    /// Saves the package, whose weights are all written.
    pub(crate) fn finish(self, outcome: &Outcome) -> Result<()> {
        let Self { journal, package, log, tensors } = self;
        let finished = Finished {
            run: journal.run.clone(),
            package,
            digest: log.finish()?,
            tensors,
            removals: outcome.edits.removals.clone(),
            layers: outcome.layers.clone(),
            groups: outcome.groups.clone(),
        };
        write_sealed(&journal.folder.join(json_name(package)), &finished)?;
        journal.sums(package, package).remove();
        Ok(())
    }
}

/// The weight that is read from a file of the journal, if `pipeline` reads it each time it is used.
fn stored(pipeline: &Pipeline, name: &str, logged: &Logged, file: &Arc<LogFile>) -> Option<Weight> {
    let (own, file) = (logged.clone(), Arc::clone(file));
    let placement = pipeline.folder().placement().clone();
    pipeline.passing(name, logged.shape(), move || file.read_to(&own, &placement))
}

fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| Error::statistics(Path::new(RUN), error))
}

fn json_name(package: usize) -> String {
    format!("package-{package:04}.json")
}

fn tensors_name(package: usize) -> String {
    format!("package-{package:04}.tensors")
}
