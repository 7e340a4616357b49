//! Writing a model: whole or not at all.

use crate::error::{Error, Result, invalid};
use crate::files::{
    Checkpoint, Limit, TensorFile, TensorInfo, Tree, copy, copy_file, encode, header, new_file,
    open, read_json, write_atomically,
};
use crate::folder::manifest::{ChangedShape, MANIFEST, Manifest};
use crate::folder::model_folder::ModelFolder;
use crate::observer::Observer;
use crate::reuse::ReuseSchedule;
use crate::structure::{Cuts, Edits, Removals};
use candle_core::Tensor;
use secateur_nn::{Parameters, Wanted, Weight};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

/// The name of the file of a [`ReuseSchedule`].
const REUSE: &str = "reuse.json";

impl ModelFolder {
    /// Writes the whole pipeline into the existing folder `destination`, with the denoiser edited.
    /// Files, names and types stay the same. One tensor at a time is in memory. Other weight files
    /// than the opened ones are not copied. The observer advances by one for each tensor.
    ///
    /// # Errors
    /// If something cannot be read or written, a weight does not fit, or the observer interrupts.
    pub fn write(&self, destination: &Path, edits: &Edits, observer: &dyn Observer) -> Result<()> {
        if let Some(name) =
            edits.weights.keys().find(|name| self.checkpoint().tensor(name).is_none())
        {
            invalid!(self.checkpoint().folder(), "no tensor {name} to replace");
        }
        let shape = |(name, info): (&str, &TensorInfo)| {
            let new = edits.weights.get(name).map(|weight| weight.shape().dims().to_vec());
            (name.to_owned(), new.unwrap_or_else(|| info.shape.clone()))
        };
        let shapes = self.checkpoint().tensors().map(shape);
        let origin = self.checkpoint().folder().display().to_string();
        let edited = Parameters::placeholders(origin, shapes)?.with_sizes(edits.removals.sizes());
        let edited = edited.fit(|scope| self.denoiser().build(&scope.into()))?.wanted;
        let whole = self.denoiser().parameters(&Removals::default())?;
        let changed = |(name, is): (String, Wanted)| {
            let was = whole.get(&name).filter(|whole| whole.shape != is.shape)?.shape.clone();
            Some((name, ChangedShape { was, is: is.shape }))
        };
        let changed = edited.into_iter().filter_map(changed).collect();
        let manifest = Manifest::with_removals(self.path(), &edits.removals, changed)?;
        self.write_with(destination, manifest, &edits.weights, observer)
    }

    /// Writes the folder as a model of its configuration's size, which any tool loads: zeros
    /// replace the heads and neurons that the model lacks. Returns the number of tensors that
    /// became larger.
    ///
    /// # Errors
    /// As [`ModelFolder::write`], or if the model lacks nothing.
    pub fn densify(&self, destination: &Path, observer: &dyn Observer) -> Result<usize> {
        if self.removals().is_empty() {
            invalid!(self.path(), "nothing was removed from this model: it is dense as it is");
        }
        let cuts = self.removals().cuts(self.whole.groups());
        let restored =
            cuts.parameters().filter(|name| self.checkpoint().tensor(name).is_some()).count();
        let manifest = Manifest::with_removals(self.path(), &Removals::default(), BTreeMap::new())?;
        self.write_with(
            destination,
            manifest,
            &Densified { checkpoint: self.checkpoint(), cuts },
            observer,
        )?;
        Ok(restored)
    }

    /// Writes the folder as a model that skips units by `reuse`.
    ///
    /// # Errors
    /// As [`ModelFolder::write`].
    pub fn write_reuse(
        &self,
        destination: &Path,
        reuse: &ReuseSchedule,
        observer: &dyn Observer,
    ) -> Result<()> {
        let manifest = Manifest::with_reuse(self.path(), REUSE, reuse)?;
        self.write_with(destination, Some(manifest), &BTreeMap::<String, Weight>::new(), observer)?;
        let path = destination.join(REUSE);
        write_atomically(&path, reuse.to_json()?.as_bytes())
    }

    fn write_with(
        &self,
        destination: &Path,
        manifest: Option<String>,
        tensors: &dyn NewTensors,
        observer: &dyn Observer,
    ) -> Result<()> {
        copy_model(self.path(), self.tree(), destination, &[self.denoiser_component()], observer)?;
        if let Some(manifest) = manifest {
            write_atomically(&destination.join(MANIFEST), manifest.as_bytes())?;
        }
        self.checkpoint().write(&destination.join(self.denoiser_component()), tensors, observer)
    }
}

/// New tensors that replace some of a checkpoint's.
trait NewTensors {
    /// The shape of the tensor that replaces `name`, if there is one.
    fn shape(&self, name: &str, info: &TensorInfo) -> Option<Vec<usize>>;

    /// The tensor that replaces `name`, if there is one.
    fn tensor(&self, name: &str) -> Result<Option<Tensor>>;
}

impl NewTensors for BTreeMap<String, Weight> {
    fn shape(&self, name: &str, _: &TensorInfo) -> Option<Vec<usize>> {
        self.get(name).map(|weight| weight.shape().dims().to_vec())
    }

    fn tensor(&self, name: &str) -> Result<Option<Tensor>> {
        Ok(self.get(name).map(Weight::tensor).transpose()?)
    }
}

/// The tensors of a checkpoint, with zeros for the removed rows and columns.
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
    fn write(
        &self,
        destination: &Path,
        new: &dyn NewTensors,
        observer: &dyn Observer,
    ) -> Result<()> {
        let mut bytes = 0;
        for file in self.files.iter() {
            bytes += file.write(
                &destination.join(file.path.file_name().unwrap_or_default()),
                new,
                observer,
            )?;
        }
        let Some(index) = &self.index else { return Ok(()) };
        let mut map: Map<String, Value> = read_json(index, Limit::Config)?;
        if let Some(total) =
            map.get_mut("metadata").and_then(|metadata| metadata.get_mut("total_size"))
        {
            *total = bytes.into();
        }
        let path = destination.join(index.file_name().unwrap_or_default());
        let text =
            serde_json::to_string_pretty(&map).map_err(|error| Error::invalid(index, error))?;
        write_atomically(&path, (text + "\n").as_bytes())
    }
}

impl TensorFile {
    /// Writes the file with some tensors replaced, and returns the bytes of all tensors.
    fn write(
        &self,
        destination: &Path,
        new: &dyn NewTensors,
        observer: &dyn Observer,
    ) -> Result<u64> {
        let failed = || Error::io(destination);
        let mut input = open(&self.path)?;
        let mut tensors: Vec<_> = self.tensors.iter().collect();
        tensors.sort_by_key(|(_, info)| info.position());
        let shape = |name: &str, info| new.shape(name, info).unwrap_or_else(|| info.shape.clone());
        let header = match tensors.iter().all(|(name, info)| shape(name, info) == info.shape) {
            // The same to the byte.
            true => {
                let mut header = Vec::new();
                copy(
                    (&self.path, &mut input),
                    self.header_bytes,
                    (destination, &mut header),
                    observer,
                )?;
                header
            }
            false => {
                let tensors = tensors
                    .iter()
                    .map(|(name, info)| ((*name).clone(), info.dtype, shape(name, info)));
                header(tensors, self.metadata.clone())
                    .map_err(|problem| Error::invalid(destination, problem))?
            }
        };
        let mut bytes = 0;
        new_file(destination, |output| {
            output.write_all(&header).map_err(failed())?;
            for (name, info) in tensors {
                observer.advance(1)?;
                if let Some(tensor) = new.tensor(name)? {
                    let tensor = encode(&tensor, info.dtype);
                    let tensor =
                        tensor.map_err(|e| Error::invalid(destination, format!("{name}: {e}")))?;
                    output.write_all(&tensor).map_err(failed())?;
                    bytes += tensor.len() as u64;
                } else {
                    let (start, length) = info.position();
                    input.seek(SeekFrom::Start(start)).map_err(Error::io(&self.path))?;
                    copy((&self.path, &mut input), length, (destination, output), observer)?;
                    bytes += length;
                }
            }
            Ok(())
        })?;
        Ok(bytes)
    }
}

/// Copies the files of a model folder that stay as they are where `components` change. Links become
/// files.
pub(crate) fn copy_model(
    source: &Path,
    tree: &Tree,
    destination: &Path,
    components: &[&str],
    observer: &dyn Observer,
) -> Result<()> {
    for folder in &tree.folders {
        let target = destination.join(folder);
        std::fs::create_dir(&target).map_err(Error::io(&target))?;
    }
    tree.without(components)
        .try_for_each(|file| copy_file(&source.join(file), &destination.join(file), observer))
}
