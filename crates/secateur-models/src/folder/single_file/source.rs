//! The place of a parameter's elements in a file with other names.

use crate::error::Result;
use crate::files::{TensorFile, TensorInfo, encode};
use candle_core::{DType, Device, Tensor};
use secateur_nn::Wanted;
use std::collections::BTreeMap;

/// The parameters of a component, under diffusers' names.
pub(super) type Parameters = BTreeMap<String, Wanted>;

/// A tensor of the file, and the part of it that makes a parameter.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) name: String,
    pub(crate) part: Excerpt,
}

/// The part of a tensor that makes a parameter.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Excerpt {
    /// The whole tensor.
    Whole,
    /// Rows of a tensor that joins several parameters. The number is that of the parameters of the
    /// same size before this one.
    Rows(usize),
    /// The last rows of a tensor that joins several parameters.
    LastRows,
    /// The second half of the rows, then the first: the original has shift before scale
    /// (`swap_scale_shift`).
    Swapped,
    /// The whole tensor, transposed.
    Transposed,
    /// Nothing: the parameter is an identity of the tensor's type.
    Identity,
}

/// A line of a table: a layer or parameter of diffusers, the original one, and the part of it.
pub(crate) type Line = (&'static str, &'static str, Excerpt);

impl Source {
    /// The whole tensor `name`.
    pub(crate) fn whole(name: impl Into<String>) -> Self {
        Self { name: name.into(), part: Excerpt::Whole }
    }

    /// Looks up `name` in a table. A line holds for a layer and for all names below it.
    pub(crate) fn look_up(name: &str, table: &[Line]) -> Option<Self> {
        table.iter().find_map(|(ours, theirs, part)| {
            let rest =
                name.strip_prefix(ours).filter(|rest| rest.is_empty() || rest.starts_with('.'))?;
            Some(Self { name: format!("{theirs}{rest}"), part: *part })
        })
    }

    /// The same source below `prefix`.
    pub(crate) fn below(self, prefix: impl std::fmt::Display) -> Self {
        Self { name: format!("{prefix}{}", self.name), ..self }
    }

    /// Adds what a parameter of `shape` takes to the shapes that are expected of the file.
    pub(crate) fn expect(&self, shape: &[usize], expected: &mut BTreeMap<String, Vec<usize>>) {
        let shape: Vec<usize> = match self.part {
            Excerpt::Identity => return,
            Excerpt::Transposed => shape.iter().rev().copied().collect(),
            _ => shape.to_vec(),
        };
        match expected.get_mut(&self.name) {
            Some(sum) => sum.iter_mut().zip(shape).take(1).for_each(|(rows, more)| *rows += more),
            None => {
                expected.insert(self.name.clone(), shape);
            }
        }
    }
}

/// The number that a name begins with, and what follows its dot.
pub(crate) fn numbered(name: &str) -> Option<(usize, &str)> {
    let (number, rest) = name.split_once('.')?;
    Some((number.parse().ok()?, rest))
}

impl Excerpt {
    /// The bytes of a parameter of `shape`, which is part of a tensor of the file that has the
    /// shape expected.
    pub(crate) fn read(
        self,
        file: &TensorFile,
        info: &TensorInfo,
        shape: &[usize],
    ) -> Result<Vec<u8>> {
        let width = info.dtype.bitsize() / 8;
        let (bytes, all) = (shape.iter().product::<usize>() * width, info.elements() * width);
        match self {
            Self::Whole => file.raw(info),
            Self::Rows(before) => file.raw_part(info, before * bytes..(before + 1) * bytes),
            Self::LastRows => file.raw_part(info, all - bytes..all),
            Self::Swapped => {
                let mut swapped = file.raw(info)?;
                swapped.rotate_left(bytes / 2);
                Ok(swapped)
            }
            Self::Transposed => Ok(transposed(&file.raw(info)?, shape[0], width)),
            Self::Identity => encode(&Tensor::eye(shape[0], DType::F32, &Device::Cpu)?, info.dtype),
        }
    }
}

/// Rows as columns: `columns` elements of `width` bytes a row.
fn transposed(data: &[u8], columns: usize, width: usize) -> Vec<u8> {
    let column =
        |start: usize| data[start..].chunks(columns * width).flat_map(move |row| &row[..width]);
    (0..columns).flat_map(|index| column(index * width)).copied().collect()
}
