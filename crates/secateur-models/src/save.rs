//! Writing a model: whole or not at all.

use crate::checkpoint::{Checkpoint, TensorFile, TensorInfo};
use crate::edits::{Cuts, Edits, Removals};
use crate::error::{Error, Result, read_json};
use crate::folder::ModelFolder;
use crate::manifest::{ChangedShape, MANIFEST, Manifest};
use crate::pipeline::Observer;
use crate::reuse::ReuseSchedule;
use candle_core::{DType, Tensor};
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use secateur_nn::{Parameters, Wanted};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A folder that appears under its name only when it is complete: it is made beside it and renamed.
pub struct OutputFolder {
    target: PathBuf,
    /// The folder that is filled, with the permissions that any new folder has; a [`TempDir`] is its owner's alone.
    content: PathBuf,
    /// Locked while this lives: a folder whose lock is free was left by a process that was killed.
    _lock: File,
    work: TempDir,
}

/// The name of the file of a [`ReuseSchedule`].
const REUSE: &str = "reuse.json";
const LOCK: &str = "lock";
const REPLACED: &str = "replaced";

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
        let (prefix, suffix) = (format!(".{}.", name.to_string_lossy()), ".partial");
        remove_abandoned(&parent, &prefix, suffix);
        let work = tempfile::Builder::new().prefix(&prefix).suffix(suffix).tempdir_in(&parent);
        let work = work.map_err(Error::io(&parent))?;
        let path = work.path().join(LOCK);
        let lock = File::create(&path).map_err(Error::io(&path))?;
        // Where a file system knows no locks, abandoned folders stay.
        let _ = lock.lock();
        let content = work.path().join("content");
        std::fs::create_dir(&content).map_err(Error::io(&content))?;
        Ok(Self { target, content, _lock: lock, work })
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
        let old = self.work.path().join(REPLACED);
        std::fs::rename(&self.target, &old).map_err(Error::io(&self.target))?;
        if let Err(error) = std::fs::rename(&self.content, &self.target) {
            if std::fs::rename(&old, &self.target).is_err() {
                let kept = self.work.keep();
                let problem = format!("{error}; what was there before is in {}", kept.join(REPLACED).display());
                return Err(Error::invalid(self.target, problem));
            }
            return Err(Error::io(&self.target)(error));
        }
        Ok(())
    }
}

/// Removes temporary folders that processes left which were killed, but for one that holds what could not be put back.
fn remove_abandoned(parent: &Path, prefix: &str, suffix: &str) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        let ours = name.to_str().is_some_and(|name| name.starts_with(prefix) && name.ends_with(suffix));
        let free = || File::open(path.join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok());
        if ours && !path.join(REPLACED).exists() && free() {
            // It is in nobody's way where that fails.
            let _ = std::fs::remove_dir_all(&path);
        }
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
    /// Writes the whole pipeline folder into the existing folder `destination`, with the denoiser edited: same files, names
    /// and types, tensor by tensor, so that one tensor at a time is in memory. Weight files other than those that were
    /// opened stay behind. The observer is advanced by every tensor.
    ///
    /// # Errors
    /// If something cannot be read or written, a weight does not fit, or the observer interrupts.
    pub fn write(&self, destination: &Path, edits: &Edits, observer: &dyn Observer) -> Result<()> {
        if let Some(name) = edits.weights.keys().find(|name| self.checkpoint().tensor(name).is_none()) {
            return Err(Error::invalid(self.checkpoint().folder(), format!("no tensor {name} to replace")));
        }
        let shape = |(name, info): (&str, &TensorInfo)| {
            let new = edits.weights.get(name).map(|tensor| tensor.dims().to_vec());
            (name.to_owned(), new.unwrap_or_else(|| info.shape.clone()))
        };
        let shapes = self.checkpoint().tensors().map(shape);
        let origin = self.checkpoint().folder().display().to_string();
        let edited = Parameters::placeholders(origin, shapes)?.with_sizes(edits.removals.sizes());
        let edited = edited.fit(|scope| self.denoiser().build(&scope))?;
        let whole = self.denoiser().parameters(&Removals::default())?;
        let changed = |(name, is): (String, Wanted)| {
            let was = whole.get(&name).filter(|whole| whole.shape != is.shape)?.shape.clone();
            Some((name, ChangedShape { was, is: is.shape }))
        };
        let changed = edited.into_iter().filter_map(changed).collect();
        let manifest = Manifest::with_removals(self.path(), &edits.removals, changed)?;
        self.write_with(destination, manifest, &edits.weights, observer)
    }

    /// Writes the folder as a model with all that its configuration describes, which any tool loads: with zeros in the
    /// place of the heads and neurons that it lacks. Gives the number of tensors that are larger now.
    ///
    /// # Errors
    /// As [`ModelFolder::write`]; if it lacks none.
    pub fn densify(&self, destination: &Path, observer: &dyn Observer) -> Result<usize> {
        if self.removals().is_empty() {
            let problem = "nothing was removed from this model: it is dense as it is";
            return Err(Error::invalid(self.path(), problem));
        }
        let cuts = self.removals().cuts(&self.whole_structure(&self.sampling()));
        let restored = cuts.parameters().filter(|name| self.checkpoint().tensor(name).is_some()).count();
        let manifest = Manifest::with_removals(self.path(), &Removals::default(), BTreeMap::new())?;
        self.write_with(destination, manifest, &Densified { checkpoint: self.checkpoint(), cuts }, observer)?;
        Ok(restored)
    }

    /// Writes the folder as a model that skips what `reuse` says.
    ///
    /// # Errors
    /// As [`ModelFolder::write`].
    pub fn write_reuse(&self, destination: &Path, reuse: &ReuseSchedule, observer: &dyn Observer) -> Result<()> {
        let manifest = Manifest::with_reuse(self.path(), REUSE, reuse)?;
        self.write_with(destination, Some(manifest), &BTreeMap::<String, Tensor>::new(), observer)?;
        let path = destination.join(REUSE);
        std::fs::write(&path, reuse.to_json()?).map_err(Error::io(&path))
    }

    fn write_with(
        &self,
        destination: &Path,
        manifest: Option<String>,
        tensors: &dyn NewTensors,
        observer: &dyn Observer,
    ) -> Result<()> {
        copy_model(self.path(), destination, &[self.denoiser_component()])?;
        if let Some(manifest) = manifest {
            let path = destination.join(MANIFEST);
            std::fs::write(&path, manifest).map_err(Error::io(&path))?;
        }
        self.checkpoint().write(&destination.join(self.denoiser_component()), tensors, observer)
    }
}

/// Tensors in the place of some of a checkpoint's.
trait NewTensors {
    /// The shape of the one in the place of that tensor, if there is one.
    fn shape(&self, name: &str, info: &TensorInfo) -> Option<Vec<usize>>;

    /// The one in the place of that tensor.
    fn tensor(&self, name: &str) -> Result<Option<Tensor>>;
}

impl NewTensors for BTreeMap<String, Tensor> {
    fn shape(&self, name: &str, _: &TensorInfo) -> Option<Vec<usize>> {
        self.get(name).map(|tensor| tensor.dims().to_vec())
    }

    fn tensor(&self, name: &str) -> Result<Option<Tensor>> {
        Ok(self.get(name).cloned())
    }
}

/// Those of a checkpoint, with zeros where something was removed.
struct Densified<'a> {
    checkpoint: &'a Checkpoint,
    cuts: Cuts,
}

impl NewTensors for Densified<'_> {
    fn shape(&self, name: &str, info: &TensorInfo) -> Option<Vec<usize>> {
        self.cuts.whole(name, &info.shape)
    }

    fn tensor(&self, name: &str) -> Result<Option<Tensor>> {
        match self.cuts.changes(name) {
            true => Ok(Some(self.cuts.put_back(name, &self.checkpoint.read(name)?)?)),
            false => Ok(None),
        }
    }
}

impl Checkpoint {
    fn write(&self, destination: &Path, new: &dyn NewTensors, observer: &dyn Observer) -> Result<()> {
        let mut bytes = 0;
        for file in &self.files {
            bytes += file.write(&destination.join(file.path.file_name().unwrap_or_default()), new, observer)?;
        }
        let Some(index) = &self.index else { return Ok(()) };
        let mut map: Map<String, Value> = read_json(index)?;
        if let Some(total) = map.get_mut("metadata").and_then(|metadata| metadata.get_mut("total_size")) {
            *total = bytes.into();
        }
        let path = destination.join(index.file_name().unwrap_or_default());
        let text = serde_json::to_string_pretty(&map).map_err(|error| Error::invalid(index, error))?;
        std::fs::write(&path, text + "\n").map_err(Error::io(&path))
    }
}

impl TensorFile {
    /// Writes the file with some tensors replaced, and tells the bytes of all.
    fn write(&self, destination: &Path, new: &dyn NewTensors, observer: &dyn Observer) -> Result<u64> {
        let failed = || Error::io(destination);
        let mut input = File::open(&self.path).map_err(Error::io(&self.path))?;
        let mut tensors: Vec<_> = self.tensors.iter().collect();
        tensors.sort_by_key(|(_, info)| info.position());
        let shape = |name: &str, info| new.shape(name, info).unwrap_or_else(|| info.shape.clone());
        let header = match tensors.iter().all(|(name, info)| shape(name, info) == info.shape) {
            // The same to the byte.
            true => {
                let mut header = Vec::new();
                let copied = Read::by_ref(&mut input).take(self.header_bytes).read_to_end(&mut header);
                copied.map_err(Error::io(&self.path))?;
                header
            }
            false => {
                let tensors = tensors.iter().map(|(name, info)| ((*name).clone(), info.dtype, shape(name, info)));
                header(tensors, self.metadata.clone()).map_err(|problem| Error::invalid(destination, problem))?
            }
        };
        let mut bytes = 0;
        new_file(destination, |output| {
            output.write_all(&header).map_err(failed())?;
            for (name, info) in tensors {
                observer.advance(1)?;
                if let Some(tensor) = new.tensor(name)? {
                    let tensor = encode(&tensor, info.dtype);
                    let tensor = tensor.map_err(|e| Error::invalid(destination, format!("{name}: {e}")))?;
                    output.write_all(&tensor).map_err(failed())?;
                    bytes += tensor.len() as u64;
                } else {
                    let (start, length) = info.position();
                    input.seek(SeekFrom::Start(start)).map_err(Error::io(&self.path))?;
                    let copied = std::io::copy(&mut Read::by_ref(&mut input).take(length), output);
                    bytes += copied.map_err(failed())?;
                }
            }
            Ok(())
        })?;
        Ok(bytes)
    }
}

/// What a safetensors file begins with: the length of its header, and that, for tensors that follow each other.
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
