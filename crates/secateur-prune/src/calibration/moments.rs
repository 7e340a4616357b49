//! Running sums over the inputs of a layer during a calibration.

use crate::calibration::statistics::InputStatistics;
use crate::error::{Error, Result};
use candle_core::Tensor;
use secateur_models::files::Values;
use secateur_nn::ops::{HostSums, RowSums, Rows};
use std::borrow::Cow;

/// Running sums over one input during a calibration.
#[derive(Debug)]
pub(crate) struct Moments {
    rows: RowSums,
    /// Number of rows, weighted number of rows, and sum of the weights of the samples.
    totals: [f64; 3],
}

/// Returns the rows of a tensor of samples x tokens rows that are summed at a step, where one of
/// every `stride` tokens is. Each counts `multiplicity` times (samples x tokens).
pub(crate) fn rows(
    (samples, tokens): (usize, usize),
    multiplicity: Option<&[f32]>,
    (stride, step): (usize, usize),
) -> Result<Rows> {
    if let Some(given) = multiplicity.map(<[f32]>::len).filter(|&given| given != samples * tokens) {
        let problem = format!("{given} multiplicities of {samples} x {tokens} tokens");
        return Err(Error::Request(problem));
    }
    let taken = taken(tokens, stride, step);
    let (places, times) = (0..samples)
        .flat_map(|sample| {
            taken.iter().map(move |&(token, times)| (sample * tokens + token, times))
        })
        .map(|(place, times)| {
            (place, multiplicity.map_or(1.0, |multiplicity| multiplicity[place]) * times)
        })
        .unzip();
    Ok(Rows::new(places, times))
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
    /// How many [`Moments::arrays`] there are.
    pub(crate) const ARRAYS: usize = 5;

    pub(crate) fn new(width: usize) -> Self {
        Self { rows: RowSums::new(width), totals: [0.0; 3] }
    }

    /// The width of an input.
    pub(crate) fn width(&self) -> usize {
        self.rows.width()
    }

    /// Adds rows of `x` (samples x ... x width), computed at a step of weight `weight`. Returns
    /// false if sums are seen not to be finite ([`RowSums::add`]).
    pub(crate) fn add(&mut self, x: &Tensor, rows: &Rows, weight: f64) -> Result<bool> {
        let is_finite = self.rows.add(x, rows, weight)?;
        let count = rows.count();
        let added = [count, weight * count, weight * x.dim(0)? as f64];
        self.totals.iter_mut().zip(added).for_each(|(total, new)| *total += new);
        Ok(is_finite)
    }

    /// The sums in memory.
    pub(crate) fn host(&self) -> Result<Cow<'_, HostSums>> {
        Ok(self.rows.read()?)
    }

    /// All sums by name; `host` is that of [`Moments::host`]. Moments with equal sums continue
    /// equally.
    pub(crate) fn arrays<'a>(
        &'a self,
        host: &'a HostSums,
    ) -> [(&'static str, Values<'a>); Self::ARRAYS] {
        let HostSums { gram, weighted_sums, sums, squares } = host;
        [
            ("gram", Values::F32(gram)),
            ("totals", Values::F64(&self.totals)),
            ("weighted_sums", Values::F64(weighted_sums)),
            ("sums", Values::F64(sums)),
            ("squares", Values::F64(squares)),
        ]
    }

    /// Sets one of [`Moments::arrays`], if name, type and length fit.
    pub(crate) fn set(&mut self, name: &str, tensor: &Tensor) -> Result<bool> {
        let host = self.rows.host()?;
        let column = match name {
            "gram" => {
                let values = tensor.flatten_all()?.to_vec1::<f32>()?;
                let fits = values.len() == host.gram.len();
                if fits {
                    host.gram = values;
                }
                return Ok(fits);
            }
            "totals" => self.totals.as_mut_slice(),
            "weighted_sums" => &mut host.weighted_sums,
            "sums" => &mut host.sums,
            "squares" => &mut host.squares,
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
        *self = Self::new(self.width());
    }

    /// Whether all values that were added are finite.
    pub(crate) fn is_finite(&self) -> Result<bool> {
        Ok(self.rows.is_finite()?)
    }

    pub(crate) fn finish(self) -> Result<InputStatistics> {
        let [rows, weighted_rows, weight] = self.totals;
        let scale = if weight > 0.0 { 2.0 / weight } else { 0.0 };
        let (hessian, [weighted_sums, sums, squares]) = self.rows.finish(scale as f32)?;
        let rounded = |sums: Vec<f64>| sums.iter().map(|&sum| sum as f32).collect();
        Ok(InputStatistics {
            hessian,
            weighted_sums: weighted_sums.iter().map(|sum| (scale * sum) as f32).collect(),
            weighted_rows: scale * weighted_rows,
            sums: rounded(sums),
            squares: rounded(squares),
            rows: rows.round() as u64,
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
