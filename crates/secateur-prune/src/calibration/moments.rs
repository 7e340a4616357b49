//! Running sums over the inputs of a layer during a calibration.

use crate::calibration::statistics::{InputStatistics, PackedStatistics};
use crate::error::{Error, Result};
use candle_core::{Device, Tensor};
use secateur_kernels::gram::numbers_in_bands;
use secateur_nn::ops::{HostSums, RowSums, Rows};

/// Running sums over one input during a calibration.
#[derive(Debug)]
pub(crate) struct Moments {
    rows: RowSums,
    /// Number of rows, weighted number of rows, and sum of the weights of the samples.
    totals: [f64; 3],
}

/// Returns the rows of a tensor of samples x tokens rows that are summed at a step: one of every
/// `stride` tokens, or all of them if each counts `multiplicity` times (samples x tokens).
pub(crate) fn rows(
    (samples, tokens): (usize, usize),
    multiplicity: Option<&[f32]>,
    (stride, step): (usize, usize),
) -> Result<Rows> {
    if let Some(given) = multiplicity.map(<[f32]>::len).filter(|&given| given != samples * tokens) {
        let problem = format!("{given} multiplicities of {samples} x {tokens} tokens");
        return Err(Error::Request(problem));
    }
    // A token that stands for several weighs too much to be left to chance.
    let stride = if multiplicity.is_some() { 1 } else { stride };
    let (taken, times) = taken(tokens, stride, step);
    let (places, times) = (0..samples)
        .flat_map(|sample| taken.iter().map(move |token| sample * tokens + token))
        .map(|place| (place, multiplicity.map_or(1.0, |multiplicity| multiplicity[place]) * times))
        .unzip();
    Ok(Rows::new(places, times))
}

/// Returns the tokens that are summed at a step, one of every `stride` successive ones, and the
/// number of tokens that each stands for. Where `stride` does not divide the tokens, all parts of
/// them are shorter by the same fraction of a token, so that all rows count alike. Which token of a
/// part is taken is a hash of the step and the part (SplitMix64). So all tokens are seen over the
/// steps, in no regular grid, and independently of the batch size.
fn taken(tokens: usize, stride: usize, step: usize) -> (Vec<usize>, f32) {
    let parts = tokens.div_ceil(stride);
    let length = tokens as f64 / parts as f64;
    let pick = |part: usize| {
        let mut z = ((step as u64) << 32 | part as u64).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        // The whole part of a place within a full stride, and the rest, in [0, 1).
        let (whole, rest) = (z % stride as u64, (z >> 32) as f64 / 2f64.powi(32));
        let within = (whole as f64 + rest) / stride as f64;
        (((part as f64 + within) * length) as usize).min(tokens - 1)
    };
    ((0..parts).map(pick).collect(), length as f32)
}

impl Moments {
    pub(crate) fn new(width: usize) -> Self {
        Self { rows: RowSums::new(width), totals: [0.0; 3] }
    }

    /// The width of an input.
    pub(crate) fn width(&self) -> usize {
        self.rows.width()
    }

    /// The numbers of the Gram matrix that are summed.
    pub(crate) fn numbers(&self) -> usize {
        numbers_in_bands(self.width())
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

    /// All sums, as they are saved: the bands of the Gram matrix, and the others one after the
    /// other. Moments with equal sums continue equally.
    pub(crate) fn tensors(&self) -> Result<[Tensor; 2]> {
        let HostSums { gram, weighted_sums, sums, squares } = self.rows.read()?.into_owned();
        let others = [&self.totals[..], &weighted_sums, &sums, &squares].concat();
        Ok([
            Tensor::from_vec(gram, self.numbers(), &Device::Cpu)?,
            Tensor::from_vec(others, 3 + 3 * self.width(), &Device::Cpu)?,
        ])
    }

    /// Sets the sums to [`Moments::tensors`], if they have their lengths.
    pub(crate) fn set(&mut self, [gram, others]: &[Tensor; 2]) -> Result<bool> {
        let width = self.width();
        if (gram.dims(), others.dims()) != (&[self.numbers()][..], &[3 + 3 * width][..]) {
            return Ok(false);
        }
        let others = others.to_vec1::<f64>()?;
        let (totals, others) = others.split_at(3);
        self.totals.copy_from_slice(totals);
        let host = self.rows.host()?;
        host.gram = gram.to_vec1()?;
        let columns = [&mut host.weighted_sums, &mut host.sums, &mut host.squares];
        // Of no width there are no columns.
        columns
            .into_iter()
            .zip(others.chunks(width.max(1)))
            .for_each(|(column, values)| column.copy_from_slice(values));
        Ok(true)
    }

    /// Resets all sums to zero.
    pub(crate) fn clear(&mut self) {
        *self = Self::new(self.width());
    }

    /// Whether all values that were added are finite.
    pub(crate) fn is_finite(&self) -> Result<bool> {
        Ok(self.rows.is_finite()?)
    }

    pub(crate) fn finish(self) -> Result<PackedStatistics> {
        let [rows, weighted_rows, weight] = self.totals;
        let scale = if weight > 0.0 { 2.0 / weight } else { 0.0 };
        let (hessian, [weighted_sums, sums, squares]) = self.rows.finish(scale as f32)?;
        let rounded = |sums: Vec<f64>| sums.iter().map(|&sum| sum as f32).collect();
        Ok(PackedStatistics::new(InputStatistics {
            hessian,
            weighted_sums: weighted_sums.iter().map(|sum| (scale * sum) as f32).collect(),
            weighted_rows: scale * weighted_rows,
            sums: rounded(sums),
            squares: rounded(squares),
            rows: rows.round() as u64,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::taken;

    #[test]
    fn every_token_is_taken_as_often_as_the_others() {
        for (tokens, stride) in [(1, 4), (3, 4), (4, 4), (33, 4), (77, 256), (77, 4), (5, 1)] {
            let mut counts = vec![0.0; tokens];
            let steps = 4096;
            for step in 0..steps {
                let (taken, times) = taken(tokens, stride, step);
                assert!((taken.len() as f32 * times - tokens as f32).abs() < 1e-4);
                assert_eq!(taken.len(), tokens.div_ceil(stride));
                assert!(taken.is_sorted());
                taken.iter().for_each(|&token| counts[token] += f64::from(times));
            }
            // Of a binomial count: six standard deviations.
            let tolerance = 6.0 * (stride as f64 / steps as f64).sqrt();
            for (token, count) in counts.iter().enumerate() {
                let mean = count / steps as f64;
                assert!((mean - 1.0).abs() <= tolerance, "token {token} of {tokens}: {mean}");
            }
            if tokens % stride == 0 {
                let (taken, times) = taken(tokens, stride, 7);
                assert_eq!(times, stride as f32);
                let parts: Vec<usize> = taken.iter().map(|token| token / stride).collect();
                assert_eq!(parts, (0..tokens / stride).collect::<Vec<_>>());
            }
        }
    }
}
