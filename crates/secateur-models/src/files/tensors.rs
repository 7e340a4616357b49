//! Files of tensors: their headers, and files that a run writes for itself, identified by their
//! digest.

use crate::error::{Error, Result, invalid, refuse};
use crate::files::digest::{Hash, digest_of_file};
use crate::files::read::{Limit, open};
use crate::files::write::replace;
use crate::observer::Observer;
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::Metadata;
use safetensors::{Dtype, View};
use secateur_nn::Placement;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Writes tensors as a safetensors file, whole or not at all, and returns its digest. One tensor
/// at a time is copied in memory.
///
/// # Errors
/// If the file cannot be written. An old file is then still there.
pub fn write_tensors(path: &Path, tensors: &HashMap<String, Tensor>) -> Result<String> {
    let mut sorted: Vec<_> = tensors.iter().collect();
    sorted.sort_by_key(|(name, _)| *name);
    let described = sorted
        .iter()
        .map(|(name, tensor)| ((*name).clone(), View::dtype(*tensor), tensor.dims().to_vec()));
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
/// If the file cannot be read, does not have this digest, or the observer stops the work.
pub fn read_tensors(
    path: &Path,
    digest: &str,
    observer: &dyn Observer,
) -> Result<HashMap<String, Tensor>> {
    check_digest(path, digest, observer)?;
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
    let mut described: Vec<_> = header.tensors().into_iter().collect();
    described.sort_by_key(|(_, info)| info.data_offsets);
    let mut tensors = HashMap::new();
    for (name, info) in described {
        let dtype = candle_dtype(info.dtype)?;
        let bytes = next(info.data_offsets.1 - info.data_offsets.0)?;
        let tensor = Tensor::from_raw_buffer(&bytes, dtype, &info.shape, &Device::Cpu);
        tensors.insert(name, tensor.map_err(|error| invalid(error.to_string()))?);
    }
    Ok(tensors)
}

/// A file to which tensors are added one by one. A tensor can be read as soon as it is added. The
/// file has its name once all are in it; it says nothing of what they are.
#[derive(Debug)]
pub struct TensorLog {
    file: Arc<LogFile>,
    hash: Hash,
    bytes: u64,
}

/// The file of a [`TensorLog`], to read from.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: Mutex<File>,
}

/// A tensor in a [`LogFile`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logged {
    dtype: Dtype,
    shape: Vec<usize>,
    /// Bytes before it.
    offset: u64,
}

impl TensorLog {
    /// Begins a file that will be at `path`.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn create(path: &Path) -> Result<Self> {
        let temporary = temporary(path);
        // Of a run that was killed.
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(Error::io(path)(error));
            }
            _ => {}
        }
        let file = File::options().read(true).write(true).create_new(true).open(temporary);
        let file = Mutex::new(file.map_err(Error::io(path))?);
        let file = Arc::new(LogFile { path: path.to_owned(), file });
        Ok(Self { file, hash: Hash::default(), bytes: 0 })
    }

    /// Adds a tensor.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn add(&mut self, tensor: &Tensor) -> Result<Logged> {
        let tensor = tensor.to_device(&Device::Cpu)?;
        let bytes = tensor.data();
        let offset = self.bytes;
        self.file.at(offset, |file| file.write_all(&bytes))?;
        self.hash.add(&bytes);
        self.bytes += bytes.len() as u64;
        Ok(Logged { dtype: View::dtype(&tensor), shape: tensor.dims().to_vec(), offset })
    }

    /// The file, from which tensors that were added can be read.
    #[must_use]
    pub fn file(&self) -> &Arc<LogFile> {
        &self.file
    }

    /// Puts the file on the disk under its name, and returns its digest.
    ///
    /// # Errors
    /// If it cannot be.
    pub fn finish(mut self) -> Result<String> {
        let path = &self.file.path;
        self.file.at(self.bytes, |file| file.sync_all())?;
        std::fs::rename(temporary(path), path).map_err(Error::io(path))?;
        Ok(std::mem::take(&mut self.hash).finish())
    }
}

impl Drop for TensorLog {
    fn drop(&mut self) {
        // It has its name if it was finished.
        let _ = std::fs::remove_file(temporary(&self.file.path));
    }
}

/// The name of a file that is not finished.
fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    name.into()
}

impl LogFile {
    /// Opens a finished file.
    ///
    /// # Errors
    /// If it cannot be opened, has not this digest with the last of `tensors` at its end, or the
    /// observer stops the work.
    pub fn open<'a>(
        path: &Path,
        digest: &str,
        tensors: impl Iterator<Item = &'a Logged>,
        observer: &dyn Observer,
    ) -> Result<Self> {
        let file = open(path)?;
        let bytes = file.metadata().map_err(Error::io(path))?.len();
        let promised = tensors.map(Logged::end).max().unwrap_or(Some(0));
        // One that is much larger is not read to its end.
        if promised != Some(bytes) || digest_of_file(path, observer)? != digest {
            return Err(damaged(path));
        }
        Ok(Self { path: path.to_owned(), file: Mutex::new(file) })
    }

    /// Reads a tensor, in its own type.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read(&self, logged: &Logged) -> Result<Tensor> {
        let placement = Placement::new(Device::Cpu, candle_dtype(logged.dtype)?);
        self.read_to(logged, &placement)
    }

    /// Reads a tensor to `placement`.
    ///
    /// # Errors
    /// As [`LogFile::read`], or if there is no room.
    pub fn read_to(&self, logged: &Logged, placement: &Placement) -> Result<Tensor> {
        if logged.end().is_none() {
            invalid!(&self.path, "a tensor of {:?} is larger than any file", logged.shape)
        }
        placement.read(candle_dtype(logged.dtype)?, &logged.shape, |start, part| {
            self.at(logged.offset + start as u64, |file| file.read_exact(part))
        })
    }

    fn at(&self, offset: u64, work: impl FnOnce(&mut File) -> std::io::Result<()>) -> Result<()> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(offset))
            .and_then(|_| work(&mut file))
            .map_err(Error::io(&self.path))
    }
}

impl Logged {
    /// Dimensions.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Bytes of the file up to the end of the tensor; `None` if no file has as many.
    fn end(&self) -> Option<u64> {
        let elements = self.shape.iter().try_fold(1usize, |all, size| all.checked_mul(*size))?;
        self.offset.checked_add(elements.checked_mul(self.dtype.bitsize() / 8)? as u64)
    }
}

/// Checks that a file of tensors has this digest.
///
/// # Errors
/// If it has not, cannot be read, or the observer stops the work.
pub fn check_digest(path: &Path, digest: &str, observer: &dyn Observer) -> Result<()> {
    match has_its_length(path)? && digest_of_file(path, observer)? == digest {
        true => Ok(()),
        false => Err(damaged(path)),
    }
}

fn damaged(path: &Path) -> Error {
    Error::invalid(path, "is damaged, or another file in its place: its checksum is another")
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
