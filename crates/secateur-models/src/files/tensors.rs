//! Files of tensors: their header, and those that a run writes for itself, known by their SHA-256.

use super::digest::{Hash, digest_of_file};
use super::write::replace;
use super::{Limit, open};
use crate::error::{Error, Result};
use crate::observer::Observer;
use candle_core::{DType, Device, Tensor};
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::path::Path;

/// Writes f32 tensors as a safetensors file, whole or not at all, and returns its SHA-256.
///
/// # Errors
/// The file cannot be written; what was there before is then still there.
pub fn write_tensors(path: &Path, tensors: &HashMap<String, Tensor>) -> Result<String> {
    let mut sorted: Vec<_> = tensors.iter().collect();
    sorted.sort_by_key(|(name, _)| *name);
    let described = sorted.iter().map(|(name, tensor)| ((*name).clone(), Dtype::F32, tensor.dims().to_vec()));
    let header = header(described, None).map_err(|problem| Error::invalid(path, problem))?;
    let mut hash = Hash::default();
    replace(path, |file| {
        let mut write = |bytes: &[u8]| {
            hash.add(bytes);
            file.write_all(bytes).map_err(Error::io(path))
        };
        write(&header)?;
        sorted.iter().try_for_each(|(_, tensor)| write(&encode(tensor, Dtype::F32)?))
    })?;
    Ok(hash.finish())
}

/// Reads what [`write_tensors`] wrote.
///
/// # Errors
/// The file cannot be read, or is not the one with that SHA-256, or the observer interrupts.
pub fn read_tensors(path: &Path, sha256: &str, observer: &dyn Observer) -> Result<HashMap<String, Tensor>> {
    check_digest(path, sha256, observer)?;
    candle_core::safetensors::load(path, &Device::Cpu).map_err(|error| Error::invalid(path, error))
}

/// Fails if a file of tensors is not the one with that SHA-256.
///
/// # Errors
/// As told, or the file cannot be read, or the observer interrupts.
pub fn check_digest(path: &Path, sha256: &str, observer: &dyn Observer) -> Result<()> {
    match has_its_length(path)? && digest_of_file(path, observer)? == sha256 {
        true => Ok(()),
        false => Err(Error::invalid(path, "is damaged, or another file in its place: its checksum is another")),
    }
}

/// Whether a file has as many bytes as its header says: one that is much larger is not read to its
/// end.
fn has_its_length(path: &Path) -> Result<bool> {
    let mut file = open(path)?;
    let bytes = file.metadata().map_err(Error::io(path))?.len();
    let mut start = |length: u64| {
        let mut start = Vec::new();
        Read::by_ref(&mut file).take(length).read_to_end(&mut start).map_err(Error::io(path))?;
        Ok::<_, Error>(start)
    };
    let Ok(length) = start(8)?.try_into().map(u64::from_le_bytes) else { return Ok(false) };
    let header = start(length.min(Limit::Report.bytes()))?;
    let promised = serde_json::from_slice::<Metadata>(&header).map(|header| header.data_len() as u64);
    Ok(promised.is_ok_and(|promised| Some(bytes) == promised.checked_add(length).and_then(|end| end.checked_add(8))))
}

/// What a safetensors file begins with: the length of its header, and that, for tensors that follow
/// each other.
pub(crate) fn header(
    tensors: impl Iterator<Item = (String, Dtype, Vec<usize>)>,
    metadata: Option<HashMap<String, String>>,
) -> std::result::Result<Vec<u8>, String> {
    let mut end = 0;
    let info = |(name, dtype, shape): (String, Dtype, Vec<usize>)| {
        let start = end;
        end += shape.iter().product::<usize>() * dtype.bitsize() / 8;
        (name, safetensors::tensor::TensorInfo { dtype, shape, data_offsets: (start, end) })
    };
    let metadata = Metadata::new(metadata, tensors.map(info).collect()).map_err(|error| error.to_string())?;
    let mut header = serde_json::to_vec(&metadata).map_err(|error| error.to_string())?;
    // The data begin at a multiple of 8.
    header.resize(header.len().next_multiple_of(8), b' ');
    let length = (header.len() as u64).to_le_bytes();
    Ok([length.as_slice(), &header].concat())
}

/// The bytes of a tensor in a file of that type.
pub(crate) fn encode(tensor: &Tensor, dtype: Dtype) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let tensor = tensor.to_dtype(candle_dtype(dtype)?)?;
    tensor.write_bytes(&mut bytes)?;
    Ok(bytes)
}

/// The type of tensors that are written so.
pub(crate) fn candle_dtype(dtype: Dtype) -> Result<DType> {
    match dtype {
        Dtype::F32 => Ok(DType::F32),
        Dtype::F16 => Ok(DType::F16),
        Dtype::BF16 => Ok(DType::BF16),
        other => Err(Error::Request(format!("weights cannot be written as {other:?}"))),
    }
}
