//! Files of tensors: their headers, and files that a run writes for itself, identified by their
//! SHA-256.

use crate::error::{Error, Result, refuse};
use crate::files::digest::{Hash, digest_of_file};
use crate::files::read::{Limit, open};
use crate::files::write::replace;
use crate::observer::Observer;
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::Metadata;
use safetensors::{Dtype, View};
use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::path::Path;

/// An array in memory that can be written as a tensor.
pub struct Array<'a> {
    /// The shape of the tensor.
    pub shape: Vec<usize>,
    /// The elements, row-major.
    pub values: Values<'a>,
}

/// The elements of a tensor.
pub enum Values<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Double precision.
    F64(&'a [f64]),
}

impl View for Array<'_> {
    fn dtype(&self) -> Dtype {
        match self.values {
            Values::F32(_) => Dtype::F32,
            Values::F64(_) => Dtype::F64,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self.values {
            Values::F32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Values::F64(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        }
    }

    fn data_len(&self) -> usize {
        match self.values {
            Values::F32(values) => size_of_val(values),
            Values::F64(values) => size_of_val(values),
        }
    }
}

/// Writes tensors as a safetensors file, whole or not at all, and returns its SHA-256. One tensor
/// at a time is copied in memory.
///
/// # Errors
/// If the file cannot be written. An old file is then still there.
pub fn write_tensors<T: View>(path: &Path, tensors: &HashMap<String, T>) -> Result<String> {
    let mut sorted: Vec<_> = tensors.iter().collect();
    sorted.sort_by_key(|(name, _)| *name);
    let described = sorted
        .iter()
        .map(|(name, tensor)| ((*name).clone(), tensor.dtype(), tensor.shape().to_vec()));
    let header = header(described, None).map_err(|problem| Error::invalid(path, problem))?;
    let mut hash = Hash::default();
    replace(path, |file| {
        let mut write = |bytes: &[u8]| {
            hash.add(bytes);
            file.write_all(bytes).map_err(Error::io(path))
        };
        write(&header)?;
        sorted.iter().try_for_each(|(_, tensor)| write(&tensor.data()))
    })?;
    Ok(hash.finish())
}

/// Reads a file of [`write_tensors`].
///
/// # Errors
/// If the file cannot be read, does not have this SHA-256, or the observer stops the work.
pub fn read_tensors(
    path: &Path,
    sha256: &str,
    observer: &dyn Observer,
) -> Result<HashMap<String, Tensor>> {
    let mut tensors = HashMap::new();
    read_each_tensor(path, sha256, observer, |name, tensor| {
        tensors.insert(name, tensor);
        Ok::<_, Error>(())
    })?;
    Ok(tensors)
}

/// Reads a file of [`write_tensors`], one tensor after the other.
///
/// # Errors
/// As [`read_tensors`], or if `take` fails.
pub fn read_each_tensor<E: From<Error>>(
    path: &Path,
    sha256: &str,
    observer: &dyn Observer,
    mut take: impl FnMut(String, Tensor) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    check_digest(path, sha256, observer)?;
    let invalid = |problem: String| Error::invalid(path, problem);
    let mut file = open(path)?;
    let mut next = |bytes: usize| {
        let mut read = vec![0; bytes];
        file.read_exact(&mut read).map_err(Error::io(path))?;
        Ok::<_, Error>(read)
    };
    let length = u64::from_le_bytes(next(8)?.try_into().unwrap_or_default());
    // The checksum is that of a header that was written here.
    let header: Metadata = serde_json::from_slice(&next(length as usize)?)
        .map_err(|error| invalid(error.to_string()))?;
    let mut tensors: Vec<_> = header.tensors().into_iter().collect();
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    for (name, info) in tensors {
        let dtype = candle_dtype(info.dtype)?;
        let bytes = next(info.data_offsets.1 - info.data_offsets.0)?;
        let tensor = Tensor::from_raw_buffer(&bytes, dtype, &info.shape, &Device::Cpu);
        take(name, tensor.map_err(|error| invalid(error.to_string()))?)?;
    }
    Ok(())
}

/// Checks that a file of tensors has this SHA-256.
///
/// # Errors
/// If it has not, cannot be read, or the observer stops the work.
pub fn check_digest(path: &Path, sha256: &str, observer: &dyn Observer) -> Result<()> {
    match has_its_length(path)? && digest_of_file(path, observer)? == sha256 {
        true => Ok(()),
        false => Err(Error::invalid(
            path,
            "is damaged, or another file in its place: its checksum is another",
        )),
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
    let promised =
        serde_json::from_slice::<Metadata>(&header).map(|header| header.data_len() as u64);
    Ok(promised.is_ok_and(|promised| {
        Some(bytes) == promised.checked_add(length).and_then(|end| end.checked_add(8))
    }))
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
    let metadata =
        Metadata::new(metadata, tensors.map(info).collect()).map_err(|error| error.to_string())?;
    let mut header = serde_json::to_vec(&metadata).map_err(|error| error.to_string())?;
    // The data begin at a multiple of 8.
    header.resize(header.len().next_multiple_of(8), b' ');
    let length = (header.len() as u64).to_le_bytes();
    Ok([length.as_slice(), &header].concat())
}

/// The bytes of a tensor in a file of that type.
pub(crate) fn encode(tensor: &Tensor, dtype: Dtype) -> Result<Vec<u8>> {
    let tensor = tensor.to_dtype(candle_dtype(dtype)?)?.to_device(&Device::Cpu)?;
    Ok(tensor.data().into_owned())
}

/// The type of tensors that are written so.
pub(crate) fn candle_dtype(dtype: Dtype) -> Result<DType> {
    match dtype {
        Dtype::F32 => Ok(DType::F32),
        Dtype::F64 => Ok(DType::F64),
        Dtype::F16 => Ok(DType::F16),
        Dtype::BF16 => Ok(DType::BF16),
        other => refuse!("weights cannot be written as {other:?}"),
    }
}
