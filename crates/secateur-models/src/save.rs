//! Writing a model: whole or not at all.

use crate::checkpoint::{Checkpoint, TensorFile};
use crate::error::{Error, Result};
use crate::folder::ModelFolder;
use crate::pipeline::Observer;
use candle_core::{DType, Tensor};
use safetensors::Dtype;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A folder that appears under its name only when it is complete: it is made beside it and renamed.
pub struct OutputFolder {
    target: PathBuf,
    /// The folder that is filled, with the permissions that any new folder has; a [`TempDir`] is its owner's alone.
    content: PathBuf,
    work: TempDir,
}

impl OutputFolder {
    /// Prepares `target`. One that exists is an error unless `replace`; it is then replaced at the end. `inputs` are
    /// folders that must not be written to.
    ///
    /// # Errors
    /// If the folder exists, holds or lies in an input, or cannot be written.
    pub fn create(target: &Path, replace: bool, inputs: &[&Path]) -> Result<Self> {
        let name = target.file_name().ok_or_else(|| Error::invalid(target, "not the name of a folder"))?;
        let parent = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::create_dir_all(parent).map_err(Error::io(parent))?;
        let parent = parent.canonicalize().map_err(Error::io(parent))?;
        let target = parent.join(name);
        for input in inputs {
            let input = input.canonicalize().unwrap_or_else(|_| input.to_path_buf());
            if target.starts_with(&input) || input.starts_with(&target) {
                let problem = format!("the output folder and {} overlap", input.display());
                return Err(Error::invalid(target, problem));
            }
        }
        if target.symlink_metadata().is_ok() {
            if !replace {
                return Err(Error::invalid(target, "exists already: choose another name, or --force to replace it"));
            }
            if !target.is_dir() {
                return Err(Error::invalid(target, "exists and is not a folder"));
            }
        }
        let prefix = format!(".{}.", name.to_string_lossy());
        let work = tempfile::Builder::new().prefix(&prefix).suffix(".partial").tempdir_in(&parent);
        let work = work.map_err(Error::io(&parent))?;
        let content = work.path().join("content");
        std::fs::create_dir(&content).map_err(Error::io(&content))?;
        Ok(Self { target, content, work })
    }

    /// Where to write.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.content
    }

    /// The folder that will appear.
    #[must_use]
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Lets the folder appear under its name.
    ///
    /// # Errors
    /// If it cannot be renamed; the folder that was there before, if any, is then still there.
    pub fn finish(self) -> Result<()> {
        if self.target.symlink_metadata().is_err() {
            return std::fs::rename(&self.content, &self.target).map_err(Error::io(&self.target));
        }
        // The old folder goes into the temporary one, and with it when that is dropped.
        let old = self.work.path().join("replaced");
        std::fs::rename(&self.target, &old).map_err(Error::io(&self.target))?;
        if let Err(error) = std::fs::rename(&self.content, &self.target) {
            if std::fs::rename(&old, &self.target).is_err() {
                let kept = self.work.keep();
                let problem = format!("{error}; what was there before is in {}", kept.join("replaced").display());
                return Err(Error::invalid(self.target, problem));
            }
            return Err(Error::io(&self.target)(error));
        }
        Ok(())
    }
}

/// A tensor with its values rounded to `dtype` (F32, F16 or BF16), in f32: what comes back after saving.
///
/// A value out of the range of `dtype` becomes infinite.
///
/// # Errors
/// If `dtype` is none of these.
pub fn cast(tensor: &Tensor, dtype: Dtype) -> Result<Tensor> {
    Ok(tensor.to_dtype(candle_dtype(dtype)?)?.to_dtype(DType::F32)?)
}

fn candle_dtype(dtype: Dtype) -> Result<DType> {
    match dtype {
        Dtype::F32 => Ok(DType::F32),
        Dtype::F16 => Ok(DType::F16),
        Dtype::BF16 => Ok(DType::BF16),
        other => Err(Error::Request(format!("weights cannot be written as {other:?}"))),
    }
}

impl ModelFolder {
    /// Writes the whole pipeline folder into the existing folder `destination`, with `weights` (by parameter name, in
    /// the shapes of the checkpoint) in the place of the denoiser's: same files, names, shapes and types, tensor by
    /// tensor, so that one tensor at a time is in memory. Weight files other than those that were opened stay behind.
    /// The observer is advanced by every tensor.
    ///
    /// # Errors
    /// If something cannot be read or written, a weight does not fit, or the observer interrupts.
    pub fn write(&self, destination: &Path, weights: &BTreeMap<String, Tensor>, observer: &dyn Observer) -> Result<()> {
        copy_model(self.path(), destination, &[self.denoiser_component()])?;
        self.checkpoint().write(&destination.join(self.denoiser_component()), weights, observer)
    }
}

impl Checkpoint {
    fn write(&self, destination: &Path, weights: &BTreeMap<String, Tensor>, observer: &dyn Observer) -> Result<()> {
        for name in weights.keys() {
            if self.tensor(name).is_none() {
                return Err(Error::invalid(self.folder(), format!("no tensor {name} to replace")));
            }
        }
        if let Some(index) = &self.index {
            copy_file(index, &destination.join(index.file_name().unwrap_or_default()))?;
        }
        for file in &self.files {
            file.write(&destination.join(file.path.file_name().unwrap_or_default()), weights, observer)?;
        }
        Ok(())
    }
}

impl TensorFile {
    fn write(&self, destination: &Path, weights: &BTreeMap<String, Tensor>, observer: &dyn Observer) -> Result<()> {
        let failed = || Error::io(destination);
        let mut input = File::open(&self.path).map_err(Error::io(&self.path))?;
        let mut tensors: Vec<_> = self.tensors.iter().collect();
        tensors.sort_by_key(|(_, info)| info.position());
        new_file(destination, |output| {
            // Types and shapes stay, so the header is the same to the byte.
            let copied = std::io::copy(&mut Read::by_ref(&mut input).take(self.header_bytes), output);
            copied.map_err(failed())?;
            for (name, info) in tensors {
                observer.advance(1)?;
                match weights.get(name) {
                    Some(weight) if weight.dims() == info.shape => {
                        let bytes = encode(weight, info.dtype)
                            .map_err(|e| Error::invalid(destination, format!("{name}: {e}")))?;
                        output.write_all(&bytes).map_err(failed())?;
                    }
                    Some(weight) => {
                        let (new, old) = (weight.dims(), &info.shape);
                        return Err(Error::invalid(destination, format!("{name}: {new:?} does not fit {old:?}")));
                    }
                    None => {
                        let (start, length) = info.position();
                        input.seek(SeekFrom::Start(start)).map_err(Error::io(&self.path))?;
                        let copied = std::io::copy(&mut Read::by_ref(&mut input).take(length), output);
                        copied.map_err(failed())?;
                    }
                }
            }
            Ok(())
        })
    }
}

/// Makes a file, which is on the disk when this returns.
pub(crate) fn new_file(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let mut output = BufWriter::new(File::create_new(path).map_err(Error::io(path))?);
    fill(&mut output)?;
    let output = output.into_inner().map_err(|error| Error::io(path)(error.into_error()))?;
    output.sync_all().map_err(Error::io(path))
}

/// The bytes of a tensor in a file of that type.
pub(crate) fn encode(tensor: &Tensor, dtype: Dtype) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let tensor = tensor.to_dtype(candle_dtype(dtype)?)?;
    tensor.write_bytes(&mut bytes)?;
    Ok(bytes)
}

fn is_weights(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let ending = name.rsplit('.').next().unwrap_or_default();
    let weights = ["safetensors", "bin", "ckpt", "pt", "pth", "msgpack", "onnx", "onnx_data", "gguf", "h5"];
    weights.contains(&ending) || (name.contains(".index") && ending == "json")
}

/// Copies a model folder without the weights of `components`, and without checkpoints of the whole pipeline in one file:
/// both, in whatever variant, would still be the model as it was.
pub(crate) fn copy_model(source: &Path, destination: &Path, components: &[&str]) -> Result<()> {
    let without: Vec<PathBuf> = components.iter().map(|component| source.join(component)).collect();
    copy_folder(source, destination, &|path: &Path| {
        let old = path.parent() == Some(source) || without.iter().any(|folder| path.starts_with(folder));
        !(old && is_weights(path))
    })
}

/// Copies a folder without hidden entries; links are followed, as model caches are made of them.
fn copy_folder(source: &Path, destination: &Path, wanted: &dyn Fn(&Path) -> bool) -> Result<()> {
    for entry in std::fs::read_dir(source).map_err(Error::io(source))? {
        let entry = entry.map_err(Error::io(source))?;
        let (path, target) = (entry.path(), destination.join(entry.file_name()));
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        if path.is_dir() {
            std::fs::create_dir(&target).map_err(Error::io(&target))?;
            copy_folder(&path, &target, wanted)?;
        } else if wanted(&path) {
            copy_file(&path, &target)?;
        }
    }
    Ok(())
}

fn copy_file(source: &Path, destination: &Path) -> Result<()> {
    let mut input = File::open(source).map_err(Error::io(source))?;
    new_file(destination, |output| std::io::copy(&mut input, output).map(|_| ()).map_err(Error::io(destination)))
}
