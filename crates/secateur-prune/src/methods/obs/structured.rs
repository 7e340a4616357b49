//! OBS-Diff's structured removal. Heads and neurons are scored by the inverse Hessian of the input
//! of the layers that read them, and the columns that are left are corrected exactly.

use crate::calibration::Factor;
use crate::error::{Error, Result};
use crate::methods::method::LayerWeight;
use crate::methods::obs::Obs;
use crate::methods::structured::{Layers, Removed, StructuredMethod, lowest};
use crate::plan::{PlannedGroup, outputs};
use candle_core::Tensor;
use secateur_kernels::Panels;
use secateur_kernels::factor::{inverse_factor, inverse_factor_scratch};
use secateur_kernels::gram::{add_gram, add_gram_scratch, symmetrise};
use secateur_kernels::linear::linear;
use secateur_models::{Group, HeadGroup, Slice};
use secateur_nn::{LayerName, ops};
use std::collections::BTreeMap;
use std::ops::Range;

/// The most neurons that are removed at a time, before the others are scored again.
const MOST: usize = 1024;
/// The fewest neurons that are removed at a time.
const FEWEST: usize = 64;
/// The constant of reciprocal rank fusion.
const RANKS: f64 = 60.0;

impl StructuredMethod for Obs {
    fn name(&self) -> &'static str {
        "obs"
    }

    fn remove(&self, groups: &[PlannedGroup], layers: &dyn Layers) -> Result<Removed> {
        let mut damping = 0f64;
        let mut surgeons = BTreeMap::new();
        for layer in outputs(groups) {
            let factor = Factor::new(&layers.statistics(&layer)?.hessian, &layer)?;
            damping = damping.max(factor.damping);
            surgeons.insert(layer.clone(), Surgeon::new(layers.weight(&layer)?, &factor)?);
        }
        let mut positions = Vec::with_capacity(groups.len());
        for planned in groups {
            let mut removed = match &planned.group {
                Group::Neurons(neurons) => match surgeons.get_mut(&neurons.down.layer) {
                    Some(surgeon) => {
                        remove_neurons(surgeon, neurons.down.start, neurons.count, planned.remove)?
                    }
                    None => Vec::new(),
                },
                Group::Heads(heads) => remove_heads(&mut surgeons, heads, planned.remove)?,
                Group::Dimensions(_) => {
                    return Err(Error::layer(
                        planned.group.name(),
                        "OBS removes whole heads and neurons",
                    ));
                }
            };
            removed.sort_unstable();
            positions.push(removed);
        }
        let weights =
            surgeons.into_iter().map(|(layer, surgeon)| (layer, surgeon.weight)).collect();
        Ok(Removed {
            positions,
            weights,
            errors: vec![None; groups.len()],
            damping,
            ..Removed::default()
        })
    }

    fn scratch(&self, rows: usize, columns: usize) -> u64 {
        // The inverse beside its factor at first; then the inverse, and what goes with what it does
        // to the others.
        let square = (columns * columns * size_of::<f32>()) as u64;
        let chunk = size_of_chunk(halved(columns as i64)).min(columns);
        let portion =
            (chunk * (chunk + 2 * columns + 2 * rows) + rows * columns) * size_of::<f32>();
        let factor = Factor::scratch(columns).max(square + add_gram_scratch(columns));
        square
            + factor.max(portion as u64 + inverse_factor_scratch(chunk) + add_gram_scratch(columns))
    }
}

/// Returns the columns of a weight with the least scores under the Hessian of its input, in the
/// order of their removal.
pub(crate) fn least_columns(
    weight: LayerWeight,
    hessian: &Tensor,
    remove: usize,
) -> Result<Vec<usize>> {
    let columns = weight.columns;
    let factor = Factor::new(hessian, &weight.layer)?;
    let mut surgeon = Surgeon::new(weight, &factor)?;
    drop(factor);
    remove_neurons(&mut surgeon, 0, columns, remove)
}

/// Removes neurons, which are the columns from `start` on, in chunks by the reference's schedule.
/// Each chunk has, of the neurons that are left, those with the least sum_rows W_q^2 / (H^-1)_qq.
fn remove_neurons(
    surgeon: &mut Surgeon,
    start: usize,
    count: usize,
    remove: usize,
) -> Result<Vec<usize>> {
    let mut left: Vec<usize> = (0..count).collect();
    let mut removed: Vec<usize> = Vec::with_capacity(remove);
    let mut chunk = halved(remove as i64);
    while removed.len() < remove {
        let size = size_of_chunk(chunk).min(remove - removed.len());
        chunk = halved(chunk);
        let scores = surgeon.scores(left.iter().map(|&neuron| start + neuron));
        let gone: Vec<usize> = lowest(&scores, size).into_iter().map(|place| left[place]).collect();
        surgeon.remove(gone.iter().map(|&neuron| start + neuron).collect())?;
        left.retain(|neuron| !gone.contains(neuron));
        removed.extend(gone);
    }
    Ok(removed)
}

/// Returns the next number of the schedule: half of the excess of `chunk` over 512.
/// [`size_of_chunk`] bounds it.
fn halved(chunk: i64) -> i64 {
    (chunk - 512).div_euclid(2)
}

fn size_of_chunk(chunk: i64) -> usize {
    usize::try_from(chunk).unwrap_or(0).clamp(FEWEST, MOST)
}

/// Removes heads one at a time, and scores the others again after each. If several streams read the
/// heads, each stream ranks them by its own Hessian, and reciprocal rank fusion merges the
/// rankings.
fn remove_heads(
    surgeons: &mut BTreeMap<LayerName, Surgeon>,
    heads: &HeadGroup,
    remove: usize,
) -> Result<Vec<usize>> {
    let outputs: Vec<&Slice> =
        heads.streams.iter().filter_map(|stream| stream.output.as_ref()).collect();
    let mut left: Vec<usize> = (0..heads.count).collect();
    let mut removed = Vec::with_capacity(remove);
    while removed.len() < remove {
        let mut fused = vec![0f64; left.len()];
        for output in
            outputs.iter().filter_map(|output| Some((output, surgeons.get(&output.layer)?)))
        {
            let (slice, surgeon) = output;
            let scores: Vec<f64> = left
                .iter()
                .map(|&head| surgeon.block_score(slice.indices(head, heads.value)))
                .collect();
            for (rank, place) in lowest(&scores, scores.len()).into_iter().enumerate() {
                fused[place] += 1.0 / (RANKS + rank as f64 + 1.0);
            }
        }
        let best = fused.iter().copied().fold(0.0, f64::max);
        let place = fused.iter().position(|&score| score == best).unwrap_or(0);
        let head = left.remove(place);
        for output in &outputs {
            if let Some(surgeon) = surgeons.get_mut(&output.layer) {
                surgeon.remove(output.indices(head, heads.value).collect())?;
            }
        }
        removed.push(head);
    }
    Ok(removed)
}

/// A weight, and the inverse of the Hessian of the columns that are left of it.
struct Surgeon {
    weight: LayerWeight,
    /// The inverse, left x left, symmetric.
    inverse: Vec<f32>,
    /// The columns that are left, ascending.
    left: Vec<usize>,
}

impl Surgeon {
    fn new(mut weight: LayerWeight, factor: &Factor) -> Result<Self> {
        let columns = weight.columns;
        for row in weight.values.chunks_exact_mut(columns.max(1)) {
            factor.dead.iter().for_each(|&j| row[j] = 0.0);
        }
        // H^-1 = U^T U.
        let mut inverse = vec![0f32; columns * columns];
        ops::with_values(&factor.values, |values| {
            let row = |i: usize| &values[i * columns..][..columns];
            add_gram(columns, columns, row, |_| 1.0, &mut inverse);
        })?;
        symmetrise(&mut inverse, columns);
        Ok(Self { weight, inverse, left: (0..columns).collect() })
    }

    /// Returns the index of a column among those that are left.
    fn place(&self, column: usize) -> usize {
        self.left.partition_point(|&left| left < column)
    }

    /// Returns the sum over rows of W_q^2 for each column q.
    fn squares(&self) -> Vec<f64> {
        let mut squares = vec![0f64; self.weight.columns];
        for row in self.weight.values.chunks_exact(self.weight.columns.max(1)) {
            squares.iter_mut().zip(row).for_each(|(sum, &w)| *sum += f64::from(w).powi(2));
        }
        squares
    }

    /// Returns the sum over rows of W_q^2 / (H^-1)_qq for each of these columns.
    fn scores(&self, columns: impl Iterator<Item = usize>) -> Vec<f64> {
        let (squares, count) = (self.squares(), self.left.len());
        let score = |column: usize| {
            let place = self.place(column);
            squares[column] / f64::from(self.inverse[place * count + place])
        };
        columns.map(score).collect()
    }

    /// Returns the score of a block of columns together: sum over k of W_k^2 / L_kk^2, where L is
    /// the Cholesky factor of the block of H^-1.
    fn block_score(&self, columns: Range<usize>) -> f64 {
        let (n, count) = (columns.len(), self.left.len());
        let first = self.place(columns.start);
        let mut l = vec![0f64; n * n];
        let mut score = 0.0;
        for k in 0..n {
            for i in k..n {
                let sum: f64 = (0..k).map(|p| l[i * n + p] * l[k * n + p]).sum();
                let rest = f64::from(self.inverse[(first + i) * count + first + k]) - sum;
                l[i * n + k] =
                    if i == k { rest.max(f64::MIN_POSITIVE).sqrt() } else { rest / l[k * n + k] };
            }
            let column = columns.start + k;
            let rows = self.weight.values.iter().skip(column).step_by(self.weight.columns);
            score += rows.map(|&w| f64::from(w).powi(2)).sum::<f64>() / l[k * n + k].powi(2);
        }
        score
    }

    /// Removes the columns S, and corrects the others, K: W_K -= W_S (H^-1_SS)^-1 H^-1_SK. The
    /// inverse Hessian of what is left becomes H^-1_KK - H^-1_KS (H^-1_SS)^-1 H^-1_SK. With
    /// (H^-1_SS)^-1 = V^T V, both are products with V H^-1_SK.
    fn remove(&mut self, mut columns: Vec<usize>) -> Result<()> {
        columns.sort_unstable();
        let (count, gone) = (self.left.len(), columns.len());
        let places: Vec<usize> = columns.iter().map(|&column| self.place(column)).collect();
        let mut is_gone = vec![false; count];
        places.iter().for_each(|&place| is_gone[place] = true);
        let kept: Vec<usize> = (0..count).filter(|&place| !is_gone[place]).collect();
        let row = |place: usize| &self.inverse[place * count..][..count];
        let pick = |from: &[usize], to: &[usize]| -> Vec<f32> {
            from.iter().flat_map(|&place| to.iter().map(move |&other| row(place)[other])).collect()
        };
        let (mut v, between) = (pick(&places, &places), pick(&places, &kept));
        inverse_factor(&mut v, gone).map_err(|error| Error::layer(&self.weight.layer, error))?;
        let mut g = vec![0f32; gone * kept.len()];
        linear(
            &v,
            &Panels::from_rows(gone, kept.len(), |i| &between[i * kept.len()..]),
            None,
            None,
            &mut g,
        );
        drop(between);

        let (rows, width) = (self.weight.rows, self.weight.columns);
        let w_s: Vec<f32> = self
            .weight
            .values
            .chunks_exact(width)
            .flat_map(|w| columns.iter().map(|&j| w[j]))
            .collect();
        let mut owed = vec![0f32; rows * gone];
        linear(&w_s, &Panels::transposed(&v, gone), None, None, &mut owed);
        let mut change = vec![0f32; rows * kept.len()];
        linear(
            &owed,
            &Panels::from_rows(gone, kept.len(), |i| &g[i * kept.len()..]),
            None,
            None,
            &mut change,
        );
        for (w, change) in
            self.weight.values.chunks_exact_mut(width).zip(change.chunks_exact(kept.len().max(1)))
        {
            kept.iter().zip(change).for_each(|(&place, change)| w[self.left[place]] -= change);
            columns.iter().for_each(|&j| w[j] = 0.0);
        }

        for (new, &old) in kept.iter().enumerate() {
            for (column, &place) in kept.iter().enumerate() {
                self.inverse[new * kept.len() + column] = self.inverse[old * count + place];
            }
        }
        self.inverse.truncate(kept.len() * kept.len());
        add_gram(
            gone,
            kept.len(),
            |i| &g[i * kept.len()..][..kept.len()],
            |_| -1.0,
            &mut self.inverse,
        );
        symmetrise(&mut self.inverse, kept.len());
        self.left = kept.into_iter().map(|place| self.left[place]).collect();
        Ok(())
    }
}
