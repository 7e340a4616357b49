//! Sums over the rows of a layer's inputs.

#[cfg(feature = "cuda")]
use super::cuda;
use super::host_sums::HostSums;
use super::{cpu, last_dim, no_kernel};
use candle_core::{Device, Result, Tensor};
use secateur_kernels::gram;
use std::borrow::Cow;

/// Rows of a tensor that are summed, prepared once for all tensors whose same rows are summed.
#[derive(Debug)]
pub struct Rows {
    places: Vec<usize>,
    times: Vec<f32>,
    #[cfg(feature = "cuda")]
    there: std::sync::OnceLock<cuda::Rows>,
}

impl Rows {
    /// The rows at `places`, which rise, with how often each counts: `times`, as many.
    #[must_use]
    pub fn new(places: Vec<usize>, times: Vec<f32>) -> Self {
        Self {
            places,
            times,
            #[cfg(feature = "cuda")]
            there: std::sync::OnceLock::new(),
        }
    }

    /// How many they count for.
    #[must_use]
    pub fn count(&self) -> f64 {
        self.times.iter().copied().map(f64::from).sum()
    }
}

/// Sums over rows x, which count n times each and have a weight a: of a n x^T x, of a n x, of n x
/// and of n x^2. They are kept where the rows are.
#[derive(Debug)]
pub struct RowSums {
    width: usize,
    host: HostSums,
    #[cfg(feature = "cuda")]
    there: Option<cuda::RowSums>,
}

impl RowSums {
    /// No rows yet, of `width` numbers each.
    #[must_use]
    pub fn new(width: usize) -> Self {
        Self {
            width,
            host: HostSums::default(),
            #[cfg(feature = "cuda")]
            there: None,
        }
    }

    /// The width of a row.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Adds rows of `x` (... x width) with the weight of all. Returns false if that is seen to make
    /// sums that are not finite: on the CPU always, elsewhere only [`RowSums::is_finite`] tells.
    ///
    /// # Errors
    /// If the width differs, or there is no memory.
    pub fn add(&mut self, x: &Tensor, rows: &Rows, weight: f64) -> Result<bool> {
        last_dim("row sums", x, self.width)?;
        match x.device() {
            Device::Cpu => {
                cpu::add_rows(self.host()?, x, (&rows.places, &rows.times), weight)?;
                self.is_finite()
            }
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => {
                let there = match &mut self.there {
                    Some(there) => there,
                    none => {
                        let there = cuda::RowSums::new(device, self.width, &self.host)?;
                        self.host = HostSums::default();
                        none.insert(there)
                    }
                };
                let rows_there = match rows.there.get() {
                    Some(known) => known,
                    None => {
                        let made = cuda::Rows::new(device, &rows.places, &rows.times)?;
                        rows.there.get_or_init(|| made)
                    }
                };
                there.add(x, rows_there, weight)?;
                Ok(true)
            }
            device => no_kernel("row sums", device),
        }
    }

    /// The sums in memory, where more can be added to them.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn host(&mut self) -> Result<&mut HostSums> {
        #[cfg(feature = "cuda")]
        if let Some(there) = &self.there {
            self.host = there.host()?;
            self.there = None;
        }
        if self.host.gram.is_empty() {
            self.host = HostSums::zeros(self.width);
        }
        Ok(&mut self.host)
    }

    /// Returns the whole Gram matrix times `factor` (width x width) where it was summed, and the
    /// other sums in memory: of a n x, of n x and of n x^2.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn finish(mut self, factor: f32) -> Result<(Tensor, [Vec<f64>; 3])> {
        #[cfg(feature = "cuda")]
        if let Some(there) = self.there {
            return there.finish(factor);
        }
        let width = self.width;
        let HostSums { mut gram, weighted_sums, sums, squares } = std::mem::take(self.host()?);
        gram::symmetrise(&mut gram, width);
        gram.iter_mut().for_each(|sum| *sum *= factor);
        let gram = Tensor::from_vec(gram, (width, width), &Device::Cpu)?;
        Ok((gram, [weighted_sums, sums, squares]))
    }

    /// The sums, or a copy of them in memory.
    ///
    /// # Errors
    /// As [`RowSums::host`].
    pub fn read(&self) -> Result<Cow<'_, HostSums>> {
        #[cfg(feature = "cuda")]
        if let Some(there) = &self.there {
            return Ok(Cow::Owned(there.host()?));
        }
        Ok(match self.host.gram.is_empty() {
            true => Cow::Owned(HostSums::zeros(self.width)),
            false => Cow::Borrowed(&self.host),
        })
    }

    /// Whether all rows that were added are finite.
    ///
    /// # Errors
    /// As [`RowSums::host`].
    pub fn is_finite(&self) -> Result<bool> {
        #[cfg(feature = "cuda")]
        if let Some(there) = &self.there {
            return there.is_finite();
        }
        Ok(self.host.squares.iter().all(|square| square.is_finite()))
    }
}
