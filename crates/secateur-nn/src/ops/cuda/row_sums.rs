//! Sums over rows, by products and sums of columns.

use super::launch::{
    self, Gpu, Launch, Scalar, THREADS, filled, numbers_an_access, with_addresses,
};
use super::node::Output;
use super::products::GramHeld;
use crate::ops::host_sums::HostSums;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DevicePtr};
use candle_core::{CudaDevice, CudaStorage, DType, Result, Tensor};
use secateur_kernels::gram::numbers_in_bands;

/// The sums of [`HostSums`], on a GPU.
#[derive(Debug)]
pub(in crate::ops) struct RowSums {
    device: CudaDevice,
    width: usize,
    /// As [`HostSums`] has it.
    gram: CudaSlice<f32>,
    /// Weighted sums, sums and squares: 3 x width.
    columns: CudaSlice<f64>,
}

/// Rows that are summed. Those that count alike are one product, whose factor weighs them: numbers
/// of 16 bits are multiplied as they are, without rounding.
#[derive(Debug)]
pub(in crate::ops) struct Rows(Vec<Alike>);

#[derive(Debug)]
struct Alike {
    times: f32,
    count: usize,
    /// On the device.
    places: CudaSlice<u32>,
}

impl Rows {
    pub(in crate::ops) fn new(
        device: &CudaDevice,
        places: &[usize],
        times: &[f32],
    ) -> Result<Self> {
        let mut all = Vec::new();
        let mut left: Vec<usize> = (0..places.len()).filter(|&index| times[index] != 0.0).collect();
        while let Some(&first) = left.first() {
            let (alike, others): (Vec<_>, Vec<_>) = left
                .into_iter()
                .partition(|&index| times[index].to_bits() == times[first].to_bits());
            let count = alike.len();
            let alike: Vec<u32> = alike.iter().map(|&index| places[index] as u32).collect();
            let places = device.cuda_stream().clone_htod(&alike).w()?;
            all.push(Alike { times: times[first], count, places });
            left = others;
        }
        Ok(Self(all))
    }
}

/// Threads of a warp, which have columns that follow each other, and warps of a block.
const WARP: usize = 32;
const WARPS: usize = THREADS / WARP;
/// Rows that a thread adds up in `f32`, about.
const ROWS: usize = 8;

impl RowSums {
    /// Goes on from `host`, if that has sums.
    pub(in crate::ops) fn new(device: &CudaDevice, width: usize, host: &HostSums) -> Result<Self> {
        let stream = device.cuda_stream();
        let (gram, columns) = if host.gram.is_empty() {
            (stream.alloc_zeros(numbers_in_bands(width)).w()?, stream.alloc_zeros(3 * width).w()?)
        } else {
            let columns = [&host.weighted_sums[..], &host.sums, &host.squares].concat();
            (stream.clone_htod(&host.gram).w()?, stream.clone_htod(&columns).w()?)
        };
        Ok(Self { device: device.clone(), width, gram, columns })
    }

    /// As [`super::super::RowSums::add`].
    pub(in crate::ops) fn add(&mut self, x: &Tensor, rows: &Rows, weight: f64) -> Result<()> {
        let width = self.width;
        let x = x.detach();
        let apart = launch::apart(&x, width).filter(|(.., sample)| sample.is_multiple_of(width));
        let apart = apart.map(|(_, tokens, sample)| (tokens, sample / width));
        let x = if apart.is_some() { x } else { x.contiguous()? };
        rows.0.iter().try_for_each(|alike| self.add_alike(&x, apart, alike, weight))
    }

    /// Adds some rows of `x` (... x width). `apart`: the tokens of a sample, and the rows from one
    /// sample to the next, if those are more.
    fn add_alike(
        &mut self,
        x: &Tensor,
        apart: Option<(usize, usize)>,
        alike: &Alike,
        weight: f64,
    ) -> Result<()> {
        let (width, dtype) = (self.width, x.dtype());
        let &Alike { times, count, ref places } = alike;
        if count == 0 || width == 0 {
            return Ok(());
        }
        let rows = x.elem_count() / width;
        let all = count == rows && apart.is_none();
        let (tokens, pitch) = apart.unwrap_or((rows, rows));
        let gpu = Gpu::of(&self.device)?;
        let stream = self.device.cuda_stream();
        let parts = count.div_ceil(WARPS * ROWS).min(256);
        let accesses = width.div_ceil(numbers_an_access(dtype));
        let of_parts = Launch {
            name: "column_sums",
            width,
            blocks: (accesses.div_ceil(WARP), parts),
            threads: THREADS,
            shared: 0,
            scalars: &[
                Scalar::Size(count),
                Scalar::Int(width as i32),
                Scalar::Int(tokens as i32),
                Scalar::Int(pitch as i32),
            ],
        };
        let gram = self.gram.device_ptr(&stream).0;
        let factor = (weight * f64::from(times)) as f32;
        let sums = with_addresses(&[x], |device, addresses| {
            let x = addresses[0];
            let add_gram = |x| {
                let of_x = (count, width);
                gpu.products.add_gram(dtype, of_x, factor, x, gram, GramHeld::Bands)
            };
            filled(device, DType::F32, (parts, 2, width), |sums| {
                let sum = |places: u64, taken: u64| {
                    launch::start(&of_parts, device, dtype, &[x, places, taken], sums)
                };
                if all {
                    sum(0, 0)?;
                    return add_gram(x);
                }
                filled(device, dtype, (count, width), |taken| {
                    sum(places.device_ptr(&stream).0, taken)?;
                    add_gram(taken)
                })?;
                Ok(())
            })
        })?;
        let of_all = Launch {
            name: "add_column_sums",
            width: 1,
            blocks: (width.div_ceil(WARP), 1),
            threads: THREADS,
            shared: 0,
            scalars: &[
                Scalar::Int(parts as i32),
                Scalar::Int(width as i32),
                Scalar::Double(times.into()),
                Scalar::Double(weight),
            ],
        };
        let columns = self.columns.device_ptr(&stream).0;
        with_addresses(&[&sums.untracked()], |device, addresses| {
            launch::start(&of_all, device, DType::F32, addresses, columns)
        })
    }

    pub(in crate::ops) fn host(&self) -> Result<HostSums> {
        let stream = self.device.cuda_stream();
        let columns = stream.clone_dtoh(&self.columns).w()?;
        let part = |index: usize| columns[index * self.width..][..self.width].to_vec();
        let gram = stream.clone_dtoh(&self.gram).w()?;
        Ok(HostSums { gram, weighted_sums: part(0), sums: part(1), squares: part(2) })
    }

    /// As [`super::super::RowSums::finish`].
    pub(in crate::ops) fn finish(self, factor: f32) -> Result<(Tensor, [Vec<f64>; 3])> {
        let Self { device, width, gram, columns } = self;
        let columns = device.cuda_stream().clone_dtoh(&columns).w()?;
        let part = |index: usize| columns[index * width..][..width].to_vec();
        let gram = CudaStorage::wrap_cuda_slice(gram, device.clone());
        let gram = Output { storage: gram, shape: numbers_in_bands(width).into() }.untracked();
        Ok((gram.affine(f64::from(factor), 0.0)?, [part(0), part(1), part(2)]))
    }

    pub(in crate::ops) fn is_finite(&self) -> Result<bool> {
        let columns = self.device.cuda_stream().clone_dtoh(&self.columns).w()?;
        Ok(columns[2 * self.width..].iter().all(|square| square.is_finite()))
    }
}
