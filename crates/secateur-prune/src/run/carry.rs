//! Statistics for a following method: those of the model before pruning, adapted to the columns of
//! the new model.

use crate::calibration::InputStatistics;
use crate::error::Result;
use crate::methods::{Turn, turn};
use crate::plan::{Package, Plan, SharedInput};
use crate::run::outcome::{Outcome, Statistics};
use crate::run::source::Source;
use candle_core::{Device, Tensor};
use secateur_models::{Axis, Part};
use secateur_nn::{LayerName, ops};
use std::collections::{BTreeMap, BTreeSet};

impl Source<'_> {
    /// Approximates the statistics that a calibration of the new model would gather, as if the
    /// layers before an input still made the same outputs. One package makes the same approximation
    /// for all of its layers. The result is for the inputs that `plan` watches and carries; the
    /// plan must have one package. `outcome` is the result of pruning by it.
    ///
    /// # Errors
    /// If statistics of an input are missing.
    pub fn carried(&self, plan: &Plan, outcome: &Outcome) -> Result<Statistics> {
        let package = plan.packages.first();
        let inputs = package.into_iter().flat_map(Package::watched_inputs);
        let columns = gone(plan, outcome);
        let carried = |input: &SharedInput| {
            let mut statistics = self.statistics(input, &outcome.statistics)?;
            let readers: BTreeSet<&LayerName> =
                input.layers.iter().map(|layer| &layer.name).collect();
            let turns = outcome.turns.iter().filter(|turn| readers.contains(&turn.layer));
            for turn in turns {
                statistics.turn(turn)?;
            }
            // Those that read the same columns lose the same.
            let gone = readers.iter().find_map(|reader| columns.get(*reader));
            if let Some(gone) = gone {
                statistics = statistics.without(gone)?;
            }
            Ok((input.name.clone(), statistics.packed()?))
        };
        inputs.map(carried).collect()
    }
}

/// Returns the columns that weights lost, by layer.
fn gone(plan: &Plan, outcome: &Outcome) -> BTreeMap<LayerName, BTreeSet<usize>> {
    let mut columns = BTreeMap::<_, BTreeSet<usize>>::new();
    for done in &outcome.groups {
        let mut groups = plan.groups().map(|planned| &planned.group);
        let group = groups.find(|group| *group.name() == done.name && group.kind() == done.kind);
        let parts = group.map_or_else(Vec::new, |group| group.parts(&done.removed));
        for Part { layer, indices, .. } in
            parts.into_iter().filter(|part| part.axis == Axis::Columns)
        {
            columns.entry(layer).or_default().extend(indices);
        }
    }
    columns
}

impl InputStatistics {
    /// Multiplies columns by their new basis.
    fn turn(&mut self, Turn { start, offset, bases, rank, .. }: &Turn) -> Result<()> {
        let width = self.width();
        let mut hessian = ops::with_values(&self.hessian, <[f32]>::to_vec)?;
        if let Some(offset) = offset {
            self.take_off(&mut hessian, *start, offset);
        }
        turn(&mut hessian[start * width..], width, bases, *rank, |basis| &basis.left);
        for row in hessian.chunks_exact_mut(width.max(1)) {
            turn(&mut row[*start..], 1, bases, *rank, |basis| &basis.left);
        }
        turn(&mut self.weighted_sums[*start..], 1, bases, *rank, |basis| &basis.left);
        turn(&mut self.sums[*start..], 1, bases, *rank, |basis| &basis.left);
        // Of products of columns there are only the weighted sums.
        let unweighted = self.rows as f64 / self.weighted_rows.max(f64::MIN_POSITIVE);
        let turned: usize = bases.iter().map(|basis| basis.left.nrows()).sum();
        for column in *start..start + turned {
            self.squares[column] =
                (f64::from(hessian[column * width + column]) * unweighted).max(0.0) as f32;
        }
        self.hessian = Tensor::from_vec(hessian, (width, width), &Device::Cpu)?;
        Ok(())
    }

    /// Subtracts a constant from columns: with m the sums and n the rows, H - m b^T - b m^T + n b
    /// b^T. The squares are left out. They follow from the Hessian once the columns are in their
    /// basis.
    fn take_off(&mut self, hessian: &mut [f32], start: usize, offset: &[f32]) {
        let width = self.width();
        let b = |column: usize| {
            let place = column.checked_sub(start).and_then(|place| offset.get(place));
            place.map_or(0.0, |&b| f64::from(b))
        };
        let m = |column: usize| f64::from(self.weighted_sums[column]);
        for (i, row) in hessian.chunks_exact_mut(width.max(1)).enumerate() {
            for (j, h) in row.iter_mut().enumerate() {
                let change = self.weighted_rows * b(i) * b(j) - m(i) * b(j) - b(i) * m(j);
                *h = (f64::from(*h) + change) as f32;
            }
        }
        let rows = self.rows as f64;
        for column in start..start + offset.len() {
            let (b, sum) = (b(column), f64::from(self.sums[column]));
            self.sums[column] = (sum - rows * b) as f32;
            self.weighted_sums[column] =
                (f64::from(self.weighted_sums[column]) - self.weighted_rows * b) as f32;
        }
    }

    /// Returns the statistics without the columns `gone`.
    fn without(&self, gone: &BTreeSet<usize>) -> Result<Self> {
        let kept: Vec<usize> = (0..self.width()).filter(|column| !gone.contains(column)).collect();
        let of = |values: &[f32]| kept.iter().map(|&column| values[column]).collect::<Vec<f32>>();
        let hessian: Vec<f32> = ops::with_values(&self.hessian, |hessian| {
            let rows = kept.iter().map(|row| &hessian[row * self.width()..][..self.width()]);
            rows.flat_map(of).collect()
        })?;
        Ok(Self {
            hessian: Tensor::from_vec(hessian, (kept.len(), kept.len()), &Device::Cpu)?,
            weighted_sums: of(&self.weighted_sums),
            weighted_rows: self.weighted_rows,
            sums: of(&self.sums),
            squares: of(&self.squares),
            rows: self.rows,
        })
    }
}
