//! The plan of a run, for people and machines.

use crate::error::Result;
use crate::estimate::Time;
use crate::footprint::Footprint;
use crate::format::{bytes, count, spelled, table};
use secateur_models::ModelFolder;
use secateur_prune::{
    Allocation, Calibration, Package, Plan, PlannedGroup, PlannedLayer, Task, influence_pictures,
    tries,
};
use serde::Serialize;

/// How many times longer a product of the solver, in `f32`, takes on a GPU than one in 16 bits.
const IN_F32: f64 = 16.0;

/// The plan of a run.
#[derive(Serialize)]
pub(super) struct DryRun {
    model: String,
    method: &'static str,
    removed: String,
    layers: usize,
    weights: u64,
    weights_removed: u64,
    groups: Vec<GroupRow>,
    parameters: u64,
    parameters_after: u64,
    macs: u64,
    /// With equal shares for all layers.
    macs_after: u64,
    #[serde(skip)]
    equal_shares: bool,
    calibration_samples: usize,
    calibration_steps: usize,
    weighting: String,
    /// `None` if the weights will be measured.
    step_weights: Option<Vec<f64>>,
    forward_macs: u64,
    weighting_macs: u64,
    hessian_macs: u64,
    preparation_macs: u64,
    allocation_macs: u64,
    report_macs: u64,
    solver_macs: u64,
    pub(super) time: Time,
    memory: Footprint,
    packages: Vec<PackageRow>,
    /// Remarks for the reader.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) notes: Vec<String>,
}

/// A group that loses heads or neurons.
#[derive(Serialize)]
struct GroupRow {
    name: String,
    kind: &'static str,
    count: usize,
    removed: usize,
}

#[derive(Serialize)]
struct PackageRow {
    first: String,
    last: String,
    layers: usize,
    inputs: usize,
    statistics_bytes: u64,
    memory_bytes: u64,
}

impl DryRun {
    pub(super) fn new(
        folder: &ModelFolder,
        (plan, task, removed): (&Plan, &Task<'_>, &str),
        calibration: &Calibration,
        judged: usize,
        (allocation, saved_before): (Allocation, bool),
        (memory, reading, copied): (Footprint, f64, u64),
    ) -> Result<Self> {
        let sampling = &calibration.sampling;
        let samples = folder.samples_of_run(sampling)?;
        let images = |images: usize| (images * samples) as u64;
        let (structure, computed) =
            (folder.structure(sampling), folder.computed_structure(sampling));
        let macs = computed.macs();
        let report_macs = images(2 * judged).saturating_mul(macs);
        let calls = images(calibration.prompts.len());
        // An allocation leaves the statistics of one package for the pruning, and of several none.
        let times = match (saved_before, allocation) {
            (true, _) => 0,
            (false, Allocation::Uniform) => 1,
            (false, _) => plan.packages.len().min(2) as u64,
        };
        let weights: u64 = plan.layers().map(|layer| (layer.rows * layer.columns) as u64).sum();
        let zeros = |layer: &PlannedLayer| {
            (layer.rows * layer.columns) as f64
                * layer.pattern.map_or(0.0, |pattern| pattern.sparsity())
        };
        let modules = match plan.groups().count() {
            0 => plan.layers().count(),
            groups => groups,
        };
        let (pictures, trial) = influence_pictures(calibration);
        let allocation_macs = match allocation {
            Allocation::Uniform => 0,
            _ => {
                ((modules * pictures * folder.samples_of_run(&trial)?) as u64).saturating_mul(macs)
            }
        };
        let preparation_macs = match task {
            Task::Weights { .. } => 0,
            Task::Structured { method, .. } => {
                let (drawn, learned) = method.preparation(calibration);
                // A gradient is a pass forward and twice as much backward, without guidance.
                (images(drawn) + 3 * learned as u64).saturating_mul(macs)
            }
        };
        let to_weigh = match saved_before {
            true => 0,
            false => calibration.weighting.pictures(calibration.prompts.len(), sampling.steps),
        };
        let removals = plan.removals(folder.removals());
        let group = |planned: &PlannedGroup| GroupRow {
            name: planned.group.name().to_string(),
            kind: planned.group.kind(),
            count: planned.group.count(),
            removed: planned.remove,
        };
        let row = |package: &Package| PackageRow {
            first: package.layers().next().map_or_else(String::new, |layer| layer.name.to_string()),
            last: package.layers().last().map_or_else(String::new, |layer| layer.name.to_string()),
            layers: package.layers().count(),
            inputs: package.inputs.len(),
            statistics_bytes: package.statistics_bytes(),
            memory_bytes: package.bytes(task),
        };
        // Each share that is tried is solved for.
        let tried = if allocation == Allocation::Uniform { 0 } else { tries(task) as u64 };
        let once = plan.solver_macs();
        let to_try = once.saturating_mul(tried);
        let solver_macs = once.saturating_add(to_try);
        let weighting_macs = images(to_weigh).saturating_mul(macs);
        let forward_macs = (calls * times * plan.packages.len() as u64).saturating_mul(macs);
        let hessian_macs = (calls * times).saturating_mul(plan.hessian_macs(&computed))
            / calibration.token_stride as u64;
        // Each package in turn, and before that each for the allocation.
        let rounds = if allocation == Allocation::Uniform { 1 } else { 2 };
        let packages = plan.packages.len();
        let calibrations = (packages as u64 * times).max(1) as f64;
        let of_calibrations = forward_macs.saturating_add(hessian_macs) as f64 * (1.0 + reading);
        let calibrate = ("calibrate", of_calibrations / calibrations);
        let bytes_of_a_number = folder.placement().bytes_of_a_number();
        let of_solver = |macs: u64| macs as f64 * if bytes_of_a_number == 2 { IN_F32 } else { 1.0 };
        let solve = ("solve", of_solver(once) / packages as f64);
        let attempt = ("try", (allocation_macs as f64 + of_solver(to_try)) / packages as f64);
        let report = ("evaluate", report_macs as f64 / 2.0);
        let mut stages =
            vec![("gradients", preparation_macs as f64), report, ("weigh", weighting_macs as f64)];
        for round in 0..rounds {
            let gathered = round == 0 || times > 1;
            let last = if round + 1 == rounds { solve } else { attempt };
            stages.extend(
                (0..packages)
                    .flat_map(|_| [calibrate, last])
                    .filter(|(name, _)| gathered || *name == last.0),
            );
        }
        stages.push(report);
        // The new weights are written twice: as they are found, and in the model.
        let model = copied + folder.weight_bytes().all;
        let new = weights * bytes_of_a_number;
        let time = Time::of(folder.placement(), &stages)?.with_files(model, model + new);
        Ok(Self {
            notes: Vec::new(),
            model: folder.name(),
            method: task.method(),
            removed: removed.to_owned(),
            layers: plan.layers().count(),
            weights,
            weights_removed: plan.layers().map(zeros).sum::<f64>() as u64,
            groups: plan.groups().map(group).collect(),
            parameters: folder.parameters_without(folder.removals())?,
            parameters_after: folder.parameters_without(&removals)?,
            equal_shares: allocation == Allocation::Uniform,
            macs: structure.macs(),
            macs_after: folder.structure_without(sampling, &removals)?.macs(),
            calibration_samples: calibration.prompts.len(),
            calibration_steps: sampling.steps,
            weighting: calibration.weighting.to_string(),
            step_weights: calibration.weighting.weights(sampling.steps),
            weighting_macs,
            forward_macs,
            hessian_macs,
            preparation_macs,
            allocation_macs,
            report_macs,
            solver_macs,
            time,
            memory,
            packages: plan.packages.iter().map(row).collect(),
        })
    }

    /// Returns the seconds that the products of a calibration take on a machine with that many
    /// operations per second.
    pub(super) fn calibration_floor(&self, operations_per_second: f64) -> f64 {
        2.0 * self.forward_macs.saturating_add(self.hessian_macs) as f64 / operations_per_second
    }

    pub(super) fn summary(&self) -> String {
        let what = match self.groups.as_slice() {
            [] => format!(
                "{} of {} weights in {} layers, {}",
                count(self.weights_removed),
                count(self.weights),
                self.layers,
                self.removed
            ),
            groups => {
                let (before, after) = (count(self.macs), count(self.macs_after));
                let macs = match self.equal_shares {
                    true => format!("{after} of {before} MACs"),
                    // They follow from the shares, which are not known yet.
                    false => format!("{after} of {before} MACs if all shares were equal"),
                };
                format!(
                    "{} in {} modules: {} of {} parameters stay, and {macs},",
                    self.removed,
                    groups.len(),
                    count(self.parameters_after),
                    count(self.parameters),
                )
            }
        };
        format!(
            "{}: {what} by {}\n{}\n{}",
            self.model,
            self.method,
            self.memory.text(),
            self.time.text()
        )
    }

    /// Formats the multiply-accumulates, one row per kind of work.
    fn work(&self) -> String {
        let prompts = format!(
            "calibration, {} prompts x {} steps",
            self.calibration_samples, self.calibration_steps
        );
        let rows = [
            ("training loss, at most", self.preparation_macs),
            ("weights of the steps, measured", self.weighting_macs),
            (&prompts, self.forward_macs),
            ("Hessians", self.hessian_macs),
            ("influences of the allocation", self.allocation_macs),
            ("solver", self.solver_macs),
            ("pictures of the report", self.report_macs),
        ];
        let rows: Vec<_> = rows
            .iter()
            .filter(|(_, macs)| *macs > 0)
            .map(|(what, macs)| vec![(*what).to_owned(), count(*macs)])
            .collect();
        table(&["work", "MACs"], &rows)
    }

    pub(super) fn text(&self) -> String {
        let row = |(index, package): (usize, &PackageRow)| {
            vec![
                (index + 1).to_string(),
                package.layers.to_string(),
                package.inputs.to_string(),
                bytes(package.statistics_bytes),
                bytes(package.memory_bytes),
                format!("{} ... {}", package.first, package.last),
            ]
        };
        let rows: Vec<_> = self.packages.iter().enumerate().map(row).collect();
        let header = ["package", "layers", "Hessians", "statistics", "with solver", "from ... to"];
        let weights =
            self.step_weights.as_ref().map_or("to be measured".into(), |weights| spelled(weights));
        let notes: String = self.notes.iter().map(|note| format!("\n{note}")).collect();
        let [work, memory] = [self.work(), self.memory.table()];
        let packages = table(&header, &rows);
        format!(
            "{}{notes}\nweights of the steps: {weights}\n\n{work}\n\n{memory}\n\n{packages}",
            self.summary()
        )
    }
}
