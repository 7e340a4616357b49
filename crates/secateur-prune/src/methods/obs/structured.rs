//! OBS-Diff's structured removal. Heads and neurons are scored by the inverse Hessian of the input
//! of the layers that read them, and the columns that are left are corrected exactly.

use crate::calibration::{Factor, diagonal, hessian_error, indices, without};
use crate::error::{Error, Result};
use crate::methods::method::LayerWeight;
use crate::methods::obs::Obs;
use crate::methods::structured::{Layers, Removed, StructuredMethod, lowest};
use crate::plan::{PlannedGroup, outputs};
use candle_core::Tensor;
use secateur_kernels::factor::inverse_factor_scratch;
use secateur_kernels::gram::add_gram_scratch;
use secateur_models::{Group, HeadGroup, NeuronGroup, Slice};
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
        let Surgeons { mut of_layers, damping } = Surgeons::new(outputs(groups), layers)?;
        let positions = groups
            .iter()
            .map(|planned| {
                let PlannedGroup { group, remove } = planned;
                let mut removal = Removal::new(group.count(), *remove);
                removal.up_to(*remove, group, &mut of_layers)?;
                removal.removed.sort_unstable();
                Ok(removal.removed)
            })
            .collect::<Result<Vec<_>>>()?;
        let weights = of_layers
            .into_iter()
            .map(|(layer, surgeon)| {
                let weight = LayerWeight::read(&layer, &surgeon.weight)?;
                Ok((layer, weight))
            })
            .collect::<Result<_>>()?;
        Ok(Removed {
            positions,
            weights,
            errors: vec![None; groups.len()],
            damping,
            ..Removed::default()
        })
    }

    fn errors(
        &self,
        group: &Group,
        counts: &[usize],
        layers: &dyn Layers,
    ) -> Result<Option<Vec<f64>>> {
        let Surgeons { mut of_layers, .. } = Surgeons::new(group.outputs(), layers)?;
        let weights = of_layers
            .keys()
            .map(|layer| {
                let hessian = &layers.statistics(layer)?.hessian;
                Ok((layers.weight(layer)?.tensor(hessian.device())?, hessian))
            })
            .collect::<Result<Vec<_>>>()?;
        let mut removal = Removal::new(group.count(), counts.last().copied().unwrap_or(0));
        let mut error = |&count: &usize| {
            removal.up_to(count, group, &mut of_layers)?;
            let after = of_layers.values().map(|surgeon| &surgeon.weight);
            let errors = weights.iter().zip(after);
            errors.map(|((before, hessian), after)| hessian_error(before, after, hessian)).sum()
        };
        Ok(Some(counts.iter().map(&mut error).collect::<Result<_>>()?))
    }

    fn scratch(&self, rows: usize, columns: usize) -> u64 {
        let of = |numbers: usize| (numbers * size_of::<f32>()) as u64;
        let square = columns * columns;
        // The factor, beside the inverse and what it is added to.
        let at_first = of(2 * square) + add_gram_scratch(columns);
        // The inverse before and after, the weight before and after, and what goes.
        let chunk = size_of_chunk(halved(columns as i64)).min(columns);
        let portion = chunk * (2 * chunk + 4 * columns + 2 * rows) + 4 * rows * columns;
        let removing =
            of(2 * square + portion) + inverse_factor_scratch(chunk).max(add_gram_scratch(columns));
        Factor::scratch(columns).max(at_first).max(removing)
    }
}

/// Surgeons of the layers that read groups.
struct Surgeons {
    of_layers: BTreeMap<LayerName, Surgeon>,
    /// The most that was added to one of their Hessians.
    damping: f64,
}

impl Surgeons {
    fn new(outputs: impl IntoIterator<Item = LayerName>, layers: &dyn Layers) -> Result<Self> {
        let (mut of_layers, mut damping) = (BTreeMap::new(), 0f64);
        for layer in outputs {
            let factor = Factor::new(&layers.statistics(&layer)?.hessian, &layer)?;
            damping = damping.max(factor.damping);
            of_layers.insert(layer.clone(), Surgeon::new(layers.weight(&layer)?, &factor)?);
        }
        Ok(Self { of_layers, damping })
    }
}

/// Returns the columns of a weight in the order of their removal, as many as the last of `counts`,
/// which rise. They go by their scores under the Hessian of its input, as neurons do.
pub(crate) fn least_columns(
    weight: LayerWeight,
    hessian: &Tensor,
    counts: &[usize],
) -> Result<Vec<usize>> {
    let factor = Factor::new(hessian, &weight.layer)?;
    let mut removal = Removal::new(weight.columns, counts.last().copied().unwrap_or(0));
    let mut surgeon = Surgeon::new(weight, &factor)?;
    counts.iter().try_for_each(|&count| removal.neurons(count, &mut surgeon, 0))?;
    Ok(removal.removed)
}

/// The heads or neurons of a group while some are removed.
struct Removal {
    left: Vec<usize>,
    /// In the order of their removal.
    removed: Vec<usize>,
    /// The next number of neurons, see [`halved`].
    chunk: i64,
}

impl Removal {
    /// Of `count` heads or neurons, `most` are to be removed in the end.
    fn new(count: usize, most: usize) -> Self {
        let chunk = halved(most as i64);
        Self { left: (0..count).collect(), removed: Vec::with_capacity(most), chunk }
    }

    /// Removes more, until so many are removed.
    fn up_to(
        &mut self,
        count: usize,
        group: &Group,
        surgeons: &mut BTreeMap<LayerName, Surgeon>,
    ) -> Result<()> {
        match group {
            Group::Neurons(NeuronGroup { down, .. }) => match surgeons.get_mut(&down.layer) {
                Some(surgeon) => self.neurons(count, surgeon, down.start),
                None => Ok(()),
            },
            Group::Heads(heads) => self.heads(count, surgeons, heads),
            Group::Dimensions(_) => {
                Err(Error::layer(group.name(), "OBS removes whole heads and neurons"))
            }
        }
    }

    /// Removes neurons, which are the columns from `start` on, in chunks by the reference's
    /// schedule. Each chunk has, of the neurons that are left, those with the least sum_rows W_q^2
    /// / (H^-1)_qq.
    fn neurons(&mut self, count: usize, surgeon: &mut Surgeon, start: usize) -> Result<()> {
        while self.removed.len() < count {
            let size = size_of_chunk(self.chunk).min(count - self.removed.len());
            self.chunk = halved(self.chunk);
            let all = surgeon.scores()?;
            let scores: Vec<f64> = self.left.iter().map(|&neuron| all[start + neuron]).collect();
            let gone = lowest(&scores, size);
            let gone: Vec<usize> = gone.into_iter().map(|place| self.left[place]).collect();
            surgeon.remove(&gone.iter().map(|&neuron| start + neuron).collect::<Vec<_>>())?;
            self.left.retain(|neuron| !gone.contains(neuron));
            self.removed.extend(gone);
        }
        Ok(())
    }

    /// Removes heads one at a time, and scores the others again after each. If several streams read
    /// the heads, each stream ranks them by its own Hessian, and reciprocal rank fusion merges the
    /// rankings.
    fn heads(
        &mut self,
        count: usize,
        surgeons: &mut BTreeMap<LayerName, Surgeon>,
        heads: &HeadGroup,
    ) -> Result<()> {
        let outputs: Vec<&Slice> =
            heads.streams.iter().filter_map(|stream| stream.output.as_ref()).collect();
        while self.removed.len() < count {
            let mut fused = vec![0f64; self.left.len()];
            for output in
                outputs.iter().filter_map(|output| Some((output, surgeons.get(&output.layer)?)))
            {
                let (slice, surgeon) = output;
                let blocks = self.left.iter().map(|&head| slice.indices(head, heads.value));
                let scores = surgeon.block_scores(blocks)?;
                for (rank, place) in lowest(&scores, scores.len()).into_iter().enumerate() {
                    fused[place] += 1.0 / (RANKS + rank as f64 + 1.0);
                }
            }
            let best = fused.iter().copied().fold(0.0, f64::max);
            let place = fused.iter().position(|&score| score == best).unwrap_or(0);
            let head = self.left.remove(place);
            for output in &outputs {
                if let Some(surgeon) = surgeons.get_mut(&output.layer) {
                    surgeon.remove(&output.indices(head, heads.value).collect::<Vec<_>>())?;
                }
            }
            self.removed.push(head);
        }
        Ok(())
    }
}

/// Returns the next number of the schedule: half of the excess of `chunk` over 512.
/// [`size_of_chunk`] bounds it.
fn halved(chunk: i64) -> i64 {
    (chunk - 512).div_euclid(2)
}

fn size_of_chunk(chunk: i64) -> usize {
    usize::try_from(chunk).unwrap_or(0).clamp(FEWEST, MOST)
}

/// A weight, and the inverse of the Hessian of the columns that are left of it.
struct Surgeon {
    layer: LayerName,
    /// Rows x columns, in `f32`, where the Hessian is; zero in the columns that were removed.
    weight: Tensor,
    /// Columns x columns, symmetric, in `f32`; of no use for columns that were removed.
    inverse: Tensor,
    /// The columns that were removed.
    removed: Vec<usize>,
}

impl Surgeon {
    fn new(weight: LayerWeight, factor: &Factor) -> Result<Self> {
        // H^-1 = U^T U.
        let inverse = ops::add_gram(&factor.values.zeros_like()?, &factor.values, 1.0)?;
        let dense = weight.tensor(factor.values.device())?;
        let dense = factor.without_dead(&dense)?;
        Ok(Self { layer: weight.layer, weight: dense, inverse, removed: Vec::new() })
    }

    /// Returns the sum over rows of W_q^2 / (H^-1)_qq for each column q.
    fn scores(&self) -> Result<Vec<f64>> {
        let (squares, inverse) = (ops::column_squares(&self.weight)?, diagonal(&self.inverse)?);
        Ok(squares.into_iter().zip(inverse).map(|(square, inverse)| square / inverse).collect())
    }

    /// Returns the score of each block of columns that follow each other: sum over its columns k of
    /// W_k^2 / L_kk^2, where L is the Cholesky factor of the block of H^-1.
    fn block_scores(&self, blocks: impl Iterator<Item = Range<usize>>) -> Result<Vec<f64>> {
        let squares = ops::column_squares(&self.weight)?;
        let score = |columns: Range<usize>| {
            let (first, n) = (columns.start, columns.len());
            let block = self.inverse.narrow(0, first, n)?.narrow(1, first, n)?.contiguous()?;
            let block = ops::with_values(&block, <[f32]>::to_vec)?;
            let mut l = vec![0f64; n * n];
            let mut score = 0.0;
            for k in 0..n {
                for i in k..n {
                    let sum: f64 = (0..k).map(|p| l[i * n + p] * l[k * n + p]).sum();
                    let rest = f64::from(block[i * n + k]) - sum;
                    l[i * n + k] = if i == k {
                        rest.max(f64::MIN_POSITIVE).sqrt()
                    } else {
                        rest / l[k * n + k]
                    };
                }
                score += squares[first + k] / l[k * n + k].powi(2);
            }
            Ok(score)
        };
        blocks.map(score).collect()
    }

    /// Removes the columns S, and corrects the others: W -= W_S (H^-1_SS)^-1 H^-1_S. The inverse
    /// Hessian of what is left is H^-1 - H^-1_S^T (H^-1_SS)^-1 H^-1_S without the rows and columns
    /// S. With (H^-1_SS)^-1 = V^T V, both are products with G = V H^-1_S.
    fn remove(&mut self, columns: &[usize]) -> Result<()> {
        let gone = indices(columns, self.weight.device())?;
        let between = self.inverse.index_select(&gone, 1)?;
        let of_gone = between.index_select(&gone, 0)?;
        let of_diagonal: Vec<f32> = diagonal(&of_gone)?.iter().map(|&h| h as f32).collect();
        let v = ops::inverse_factor(&of_gone, &of_diagonal)?.ok_or_else(|| {
            let problem =
                "what is left of the inverse Hessian of its input is not positive definite";
            Error::layer(&self.layer, problem)
        })?;
        let g = ops::linear(&v, &between.into(), None, None)?;
        if self.weight.elem_count() > 0 {
            let owed = self.weight.index_select(&gone, 1)?;
            let owed = ops::linear(&owed, &v.into(), None, None)?;
            let change = ops::linear(&owed, &g.t()?.contiguous()?.into(), None, None)?;
            self.removed.extend(columns);
            self.weight = without(&(&self.weight - change)?, &self.removed)?;
        }
        self.inverse = ops::add_gram(&self.inverse, &g, -1.0)?;
        Ok(())
    }
}
