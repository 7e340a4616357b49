//! Running sums over the inputs of a layer during a calibration.

use crate::calibration::statistics::InputStatistics;
use candle_core::Tensor;
use secateur_kernels::gram;
use secateur_models::files::Values;

/// Running sums over one input during a calibration.
#[derive(Clone, Debug)]
pub(crate) struct Moments {
    gram: Vec<f32>,
    weighted_sums: Vec<f64>,
    sums: Vec<f64>,
    squares: Vec<f64>,
    /// Number of rows, weighted number of rows, and sum of the weights of the samples.
    totals: [f64; 3],
    /// One of every `stride` tokens is summed, and stands for all of them.
    stride: usize,
}

/// Returns the tokens that are summed at a step, each with the number of tokens that it stands for:
/// one of every `stride` successive ones. Which one is a hash of the step and the position
/// (SplitMix64). So all tokens are seen over the steps, in no regular grid, and independently of
/// the batch size.
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

impl Moments {
    pub(crate) fn new(width: usize, stride: usize) -> Self {
        let (gram, zeros) = (vec![0.0; width * width], vec![0.0; width]);
        let (weighted_sums, sums, squares) = (zeros.clone(), zeros.clone(), zeros);
        Self { gram, weighted_sums, sums, squares, totals: [0.0; 3], stride }
    }

    /// Adds the rows `x` of `samples` samples, computed at a step of weight `weight`. Each row
    /// counts `multiplicity` times (samples x tokens).
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
        let times = |index: usize| {
            multiplicity.map_or(1.0, |times| times[place(index)]) * taken[index % taken.len()].1
        };
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

    /// All sums by name. Moments with equal sums continue equally.
    pub(crate) fn arrays(&self) -> impl Iterator<Item = (&'static str, Values<'_>)> {
        let columns = [
            ("weighted_sums", &self.weighted_sums),
            ("sums", &self.sums),
            ("squares", &self.squares),
        ];
        let columns = columns.into_iter().map(|(name, column)| (name, Values::F64(column)));
        [("gram", Values::F32(&self.gram)), ("totals", Values::F64(&self.totals))]
            .into_iter()
            .chain(columns)
    }

    /// Sets one of [`Moments::arrays`], if name, type and length fit.
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

    /// Resets all sums to zero.
    pub(crate) fn clear(&mut self) {
        *self = Self::new(self.squares.len(), self.stride);
    }

    /// Whether all values that were added are finite.
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

#[cfg(test)]
mod tests {
    use super::taken;

    #[test]
    fn every_token_is_stood_for_at_every_step_and_taken_at_some() {
        for (tokens, stride) in [(1, 4), (3, 4), (4, 4), (33, 4), (77, 256), (5, 1)] {
            let mut seen = vec![false; tokens];
            for step in 0..64 * stride {
                let taken = taken(tokens, stride, step);
                assert_eq!(
                    taken.iter().map(|(_, stands_for)| stands_for).sum::<f32>(),
                    tokens as f32
                );
                taken.iter().for_each(|&(token, _)| seen[token] = true);
            }
            assert!(seen.iter().all(|seen| *seen), "{tokens} tokens, stride {stride}");
        }
    }
}
