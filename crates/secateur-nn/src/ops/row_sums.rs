//! Sums over the rows of a layer's inputs.

#[cfg(feature = "cuda")]
use super::cuda;
use super::host_sums::HostSums;
use super::{cpu, last_dim, no_kernel};
use candle_core::{DType, Device, Result, Tensor, bail};
use secateur_kernels::gram;
use std::borrow::Cow;

/// Returns the whole symmetric matrix (width x width) of its [bands](gram::bands).
///
/// # Errors
/// If there are more or fewer of them, or there is no memory.
pub fn whole_gram(bands: &Tensor, width: usize) -> Result<Tensor> {
    let numbers = gram::numbers_in_bands(width);
    if bands.elem_count() != numbers {
        bail!("Gram matrix: {:?} are no bands of {width} columns", bands.dims())
    }
    match bands.device() {
        _ if width == 0 => Tensor::zeros((0, 0), DType::F32, &Device::Cpu),
        Device::Cpu => cpu::whole_gram(bands, width),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::whole_gram(bands, width),
        device => no_kernel("Gram matrix", device),
    }
}

/// Returns the [bands](gram::bands) of a symmetric matrix, for [`whole_gram`].
///
/// # Errors
/// If it is not square, or there is no memory.
pub fn bands_of_gram(matrix: &Tensor) -> Result<Tensor> {
    let (rows, width) = matrix.dims2()?;
    if rows != width {
        bail!("Gram matrix: {:?} is not square", matrix.dims())
    }
    let of_band = |band: std::ops::Range<usize>| {
        let rows = matrix.narrow(0, band.start, band.len())?;
        rows.narrow(1, band.start, width - band.start)?.contiguous()?.flatten_all()
    };
    match gram::bands(width).map(of_band).collect::<Result<Vec<_>>>()?.as_slice() {
        [] => Tensor::zeros(0, DType::F32, &Device::Cpu),
        [one] => Ok(one.clone()),
        bands => Tensor::cat(bands, 0),
    }
}

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

    /// Returns the [bands](gram::bands) of the Gram matrix times `factor` where it was summed, see
    /// [`whole_gram`], and the other sums in memory: of a n x, of n x and of n x^2.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn finish(mut self, factor: f32) -> Result<(Tensor, [Vec<f64>; 3])> {
        #[cfg(feature = "cuda")]
        if let Some(there) = self.there {
            return there.finish(factor);
        }
        let HostSums { mut gram, weighted_sums, sums, squares } = std::mem::take(self.host()?);
        gram.iter_mut().for_each(|sum| *sum *= factor);
        let gram = Tensor::from_vec(gram, gram::numbers_in_bands(self.width), &Device::Cpu)?;
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
