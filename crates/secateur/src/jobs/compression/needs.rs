//! The memory of a run, and the packages that fit into a limit.

use crate::error::{Result, refuse};
use crate::footprint::{ALLOCATOR_SHARE, Footprint, Model};
use crate::format::bytes;
use crate::settings::{CalibrationSettings, Positive, ScoreSettings};
use secateur_models::{ModelFolder, Operation, Sampling, Structure, WeightBytes};
use secateur_prune::{
    Allocation, Calibration, Package, Packages, Plan, PlannedLayer, Selection, Task, Weighting,
    influence_pictures,
};
use std::collections::BTreeSet;

/// The default memory for statistics and solver, in bytes, besides that of the model.
pub(crate) const STATISTICS: u64 = 4 << 30;

/// Everything that the memory of a run depends on, except its plan.
pub(super) struct Needs<'a> {
    pub(super) settings: &'a CalibrationSettings,
    pub(super) score: &'a ScoreSettings,
    pub(super) folder: &'a ModelFolder,
    pub(super) calibration: &'a Calibration,
    pub(super) task: &'a Task<'a>,
    pub(super) allocation: Allocation,
    /// Number of pictures of the report.
    pub(super) judged: usize,
}

/// How a run keeps to its memory.
pub(super) struct Fitted {
    pub(super) plan: Plan,
    pub(super) footprint: Footprint,
    /// Bytes of the denoiser's weights that stay in memory: see [`ModelFolder::within`].
    pub(super) kept: u64,
    /// How much longer a calibration takes than its products, for reading the others.
    pub(super) reading: f64,
}

impl Needs<'_> {
    /// Makes the plan that the settings request: that many packages, or of those that fit into the
    /// memory the one that takes the least time. On a GPU the memory is no more than 15/16 of its
    /// own.
    pub(super) fn plan(&self) -> Result<Fitted> {
        let Self { settings, folder, .. } = self;
        // Saved statistics are read one input at a time; those to carry are of one package.
        let one = settings.statistics.is_some() || settings.carry_statistics.is_some();
        let asked = settings.memory.map(|memory| memory.as_u64());
        let packages = settings.packages.map(Positive::get);
        // Of a GPU it is a share of all, not what is free now: a run that goes on later has to make
        // the same plan.
        let gpu = folder.placement().memory().filter(|_| packages.is_none());
        let of_gpu = gpu.map(|gpu| gpu.total / 16 * 15);
        let limit = match asked.into_iter().chain(of_gpu).min() {
            Some(limit) => limit,
            None => {
                let packages = match packages {
                    Some(count) => Packages::Count(count),
                    None if one => Packages::Count(1),
                    None => Packages::Memory(STATISTICS),
                };
                let plan = self.plan_of(packages)?;
                let footprint = self.footprint(&plan, folder)?;
                return Ok(Fitted { plan, footprint, kept: u64::MAX, reading: 0.0 });
            }
        };
        let mut least: Option<Footprint> = None;
        let mut best: Option<(f64, Fitted)> = None;
        for count in 1.. {
            let plan = self.plan_of(Packages::Count(count))?;
            // There are no more units, or only one package is of use, or more would take longer.
            let is_last = one || plan.packages.len() < count;
            let whole = self.footprint(&plan, folder)?;
            let (kept, footprint) = self.kept(&plan, whole, limit)?;
            if footprint.total() > limit {
                if least.as_ref().is_none_or(|least| footprint.total() < least.total()) {
                    least = Some(footprint);
                }
            } else {
                let reading = self.time_of_reading(kept);
                let time = count as f64 * (1.0 + reading);
                if best.as_ref().is_none_or(|(least, _)| time < *least) {
                    best = Some((time, Fitted { plan, footprint, kept, reading }));
                }
            }
            if is_last || best.as_ref().is_some_and(|(least, _)| *least <= (count + 1) as f64) {
                break;
            }
        }
        if let Some((_, fitted)) = best {
            let total = fitted.footprint.total();
            if let Some(gpu) = gpu.filter(|gpu| total > gpu.free) {
                refuse!(
                    "this run needs about {} of the GPU's memory, and {} of {} are free: end what \
                     takes the rest, or give a smaller `memory`",
                    bytes(total),
                    bytes(gpu.free),
                    bytes(gpu.total)
                )
            }
            return Ok(fitted);
        }
        let mebibytes = |bytes: u64| bytes.div_ceil(1 << 20);
        let least = least.unwrap_or_else(|| Footprint::new(folder.placement()));
        let (memory_of, needed) = (mebibytes(limit), mebibytes(least.total()));
        let limit = match asked == Some(limit) {
            true => format!("`memory {memory_of} MiB` does not hold this run"),
            false => format!("the GPU's memory, {memory_of} MiB, does not hold this run"),
        };
        refuse!(
            "{limit}: at least {needed} MiB are needed; a smaller `batch` needs less\n{}",
            least.table()
        )
    }

    fn plan_of(&self, packages: Packages) -> Result<Plan> {
        let Self { settings, folder, calibration, task, .. } = self;
        let mut plan = plan(settings, folder, &calibration.sampling, task, packages)?;
        if settings.carry_statistics.is_some() {
            plan.carry(&folder.structure(&calibration.sampling))?;
        }
        Ok(plan)
    }

    /// Returns the bytes of the denoiser's weights that can stay in memory where a run of `whole`
    /// is limited to `limit`, and the memory that it then takes: more than the limit if no weights
    /// could be left out, or not enough.
    fn kept(&self, plan: &Plan, whole: Footprint, limit: u64) -> Result<(u64, Footprint)> {
        let over = whole.total().saturating_sub(limit);
        // Gradients go back through all weights; without a journal, new ones stay in memory.
        let has_gradients = match self.task {
            Task::Weights { .. } => false,
            Task::Structured { method, .. } => method.preparation(self.calibration).0 > 0,
        };
        if over == 0 || has_gradients || self.settings.carry_statistics.is_some() {
            return Ok((u64::MAX, whole));
        }
        let WeightBytes { all, fixed, passing } = self.folder.weight_bytes();
        let mut kept = all.saturating_sub(over.saturating_add(passing)).max(fixed);
        let with = |kept| self.footprint(plan, &self.folder.clone().within(kept));
        // The allocator's share went with the weights.
        kept += limit.saturating_sub(with(kept)?.total()) * ALLOCATOR_SHARE / (ALLOCATOR_SHARE + 1);
        let footprint = with(kept)?;
        Ok(if footprint.total() < whole.total() { (kept, footprint) } else { (u64::MAX, whole) })
    }

    /// Returns the time that a calibration is held up by reading weights, relative to that of its
    /// products.
    fn time_of_reading(&self, kept: u64) -> f64 {
        /// Operations that are computed while a byte is read: at 50 G operations and 1 GB a second,
        /// and on a GPU at 400 T and 20 GB. They are not measured, so that a run that goes on later
        /// makes the same plan.
        const ON_CPU: f64 = 50.0;
        const ON_GPU: f64 = 20_000.0;
        /// What the products lose to reading at the same time.
        const BESIDE: f64 = 0.1;
        let Self { folder, calibration, .. } = self;
        let WeightBytes { all, .. } = folder.weight_bytes();
        if kept >= all {
            return 0.0;
        }
        let sampling = &calibration.sampling;
        let samples =
            folder.passes(sampling.guidance) * sampling.batch.min(calibration.prompts.len());
        let operations =
            2.0 * folder.computed_structure(sampling).macs() as f64 * samples.max(1) as f64;
        let of_a_byte = if folder.placement().is_on_gpu() { ON_GPU } else { ON_CPU };
        let passing = (all - kept) as f64 / all as f64;
        let reading = passing * folder.checkpoint().bytes() as f64 * of_a_byte / operations;
        BESIDE * passing + (reading - 1.0).max(0.0)
    }

    /// Estimates the memory of the run, stage by stage.
    fn footprint(&self, plan: &Plan, folder: &ModelFolder) -> Result<Footprint> {
        let Self { settings, score, calibration, task, allocation, judged, .. } = self;
        let (sampling, placement) = (&calibration.sampling, folder.placement());
        let scorer = score.path(folder);
        let model =
            Model::new(folder, sampling, (calibration.prompts.len(), *judged), scorer.as_deref())?;
        let structure = folder.structure(sampling);
        let saved = settings.statistics.is_some();
        // What was changed stays, also if it was changed back.
        let beside = ("new weights as stored", self.stored_beside(plan, &structure));
        let mut footprint = Footprint::new(placement);

        footprint.add("encode", model.encoding());
        if let Task::Structured { method, .. } = task
            && let (drawn, 1..) = method.preparation(calibration)
        {
            let learned = group_bytes(plan, &structure);
            let graph = structure.graph_bytes() * sampling.batch.min(drawn) as u64;
            let own = [
                ("what is learned, and its gradients", 2 * learned),
                ("packed for gradients", learned + structure.backward_bytes()),
                ("kept for gradients", graph),
            ];
            footprint.add("gradients", model.loaded().into_iter().chain(own));
        }
        if calibration.weighting == Weighting::Measured && !saved {
            let prunable = structure.layers().filter(|layer| layer.prunable.is_some());
            let second = 4 * prunable.map(|layer| layer.operation.weights()).sum::<u64>();
            let own = [("second copy of weights", second), beside];
            footprint.add("weigh", model.calls().chain(own));
        }

        let largest =
            |of: &dyn Fn(&Package) -> u64| plan.packages.iter().map(of).max().unwrap_or(0);
        let statistics = |package: &Package| match saved {
            true => package.largest_statistics_bytes(),
            false => package.statistics_bytes(),
        };
        let held = largest(&statistics);
        if !saved {
            let gram = largest(&Package::gram_bytes);
            // A GPU gathers the rows that are summed.
            let samples = folder.passes(sampling.guidance) * sampling.batch;
            let numbers = |layer: &PlannedLayer| {
                samples * layer.tokens.div_ceil(calibration.token_stride) * layer.columns
            };
            let rows = match placement.is_on_gpu() {
                true => plan.layers().map(numbers).max().unwrap_or(0) as u64,
                false => 0,
            } * placement.bytes_of_a_number();
            let is_first = calibration.weighting != Weighting::Measured
                && *allocation == Allocation::Uniform
                && plan.packages.len() == 1;
            let own = [("statistics", held), ("Gram products", gram), ("rows of an input", rows)];
            let beside = Some(beside).filter(|_| !is_first);
            footprint.add("calibrate", model.calls().chain(own).chain(beside));
        }
        let solver = largest(&|package| package.solver_bytes(*task));
        if *allocation != Allocation::Uniform {
            let activations = model.activations(influence_pictures(calibration).0);
            let own = [
                ("statistics", held),
                ("solver, or activations", solver.max(activations)),
                ("weights of a try", largest_weights(plan, &structure)),
                beside,
            ];
            footprint.add("try", model.loaded().into_iter().chain(own));
        }
        // Of weights that get smaller the pages stay with the allocator: the new ones are of
        // another size.
        let replaced = match task {
            Task::Structured { .. } if !placement.is_on_gpu() => group_bytes(plan, &structure),
            Task::Weights { .. } | Task::Structured { .. } => 0,
        };
        let own = [
            ("statistics", held),
            ("pages of replaced weights", replaced),
            beside,
            ("solver", solver),
        ];
        footprint.add("solve", model.loaded().into_iter().chain(own));
        let kept = kept_to_the_end(settings) * held;
        if *judged > 0 {
            let own = [("statistics", kept), beside];
            footprint.add("evaluate", model.evaluation(2).chain(own));
        }
        if kept > 0 {
            let own = [("statistics as they are written", kept + held)];
            footprint.add("save", model.loaded().into_iter().chain(own));
        }
        Ok(footprint)
    }

    /// Bytes of the new weights in the checkpoint's type, if a GPU computes in another.
    fn stored_beside(&self, plan: &Plan, structure: &Structure) -> u64 {
        let (placement, dtype) = (self.folder.placement(), self.folder.checkpoint().dtype());
        let each = dtype.size_in_bytes() as u64;
        if !placement.is_on_gpu()
            || (placement.keeps(dtype) && placement.bytes_of_a_number() == each)
        {
            return 0;
        }
        each * match self.task {
            Task::Weights { .. } => {
                plan.layers().map(|layer| (layer.rows * layer.columns) as u64).sum::<u64>()
            }
            Task::Structured { .. } => group_bytes(plan, structure) / size_of::<f32>() as u64,
        }
    }
}

/// Returns how many copies of the statistics are held while pictures of the new model are drawn:
/// the gathered ones, and those that are carried over.
fn kept_to_the_end(settings: &CalibrationSettings) -> u64 {
    u64::from(settings.save_statistics.is_some() || settings.carry_statistics.is_some())
        + u64::from(settings.carry_statistics.is_some())
}

/// Returns the bytes of the weights that feed or read the groups of the plan.
fn group_bytes(plan: &Plan, structure: &Structure) -> u64 {
    let layers =
        plan.groups().flat_map(|planned| planned.group.inputs().chain(planned.group.outputs()));
    let layers: BTreeSet<_> = layers.collect();
    let of_groups = structure.layers().filter(|layer| layers.contains(&layer.name));
    4 * of_groups.map(|layer| Operation::weights(&layer.operation)).sum::<u64>()
}

/// Returns the bytes of the most weights that change at once: those of one input, or of groups that
/// are read together.
fn largest_weights(plan: &Plan, structure: &Structure) -> u64 {
    let of_input = plan.packages.iter().flat_map(|package| &package.inputs).map(|input| {
        input
            .layers
            .iter()
            .map(|layer| (size_of::<f32>() * layer.rows * layer.columns) as u64)
            .sum::<u64>()
    });
    match plan.groups().next() {
        None => of_input.max().unwrap_or(0),
        Some(_) => {
            let groups = plan.groups().map(|planned| {
                let layers: BTreeSet<_> =
                    planned.group.inputs().chain(planned.group.outputs()).collect();
                let layers = structure.layers().filter(|layer| layers.contains(&layer.name));
                4 * layers.map(|layer| layer.operation.weights()).sum::<u64>()
            });
            groups.max().unwrap_or(0)
        }
    }
}

/// Plans the changes of the task to the chosen layers.
pub(crate) fn plan(
    settings: &CalibrationSettings,
    folder: &ModelFolder,
    sampling: &Sampling,
    task: &Task<'_>,
    packages: Packages,
) -> secateur_prune::Result<Plan> {
    let selection = Selection::new(&settings.include, &settings.exclude)?;
    Plan::new(&folder.structure(sampling), &selection, packages, task)
}
