//! Checkpoints of whole pipelines in one file, under the names of the original code, as ComfyUI and A1111 read them.
//!
//! What a component asks for follows from its configuration, and each name that it asks for says where its numbers are
//! in such a file: a [`Source`], as in `loaders/single_file_utils.py` of diffusers 0.42.1. From these follow the names
//! and shapes that the file must have, so that what does not fit is known before any weight is read.

mod clip;
mod flux;
mod kind;
mod mmdit;
mod open_clip;
mod source;
mod unet;
mod vae;

use crate::checkpoint::{TensorFile, TensorInfo, variants};
use crate::error::{Error, Result};
use crate::folder::{class_of, read_index};
use crate::pipeline::Observer;
use crate::pipeline::class::Component;
use crate::save::{copy_model, new_file};
use kind::Kind;
use safetensors::tensor::Metadata;
use secateur_nn::{Mismatch, Wanted};
use source::{Part, Source};
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The parameters of a component, under diffusers' names.
type Parameters = BTreeMap<String, Wanted>;

/// A checkpoint in one file, of a kind that is known.
#[derive(Debug)]
pub struct SingleFile {
    file: TensorFile,
    kind: &'static Kind,
}

impl SingleFile {
    /// Opens a file: reads its header.
    ///
    /// # Errors
    /// If it is no safetensors file, is damaged, or is of no kind that is known.
    pub fn open(path: &Path) -> Result<Self> {
        let file = TensorFile::open(path)?;
        match Kind::of(&file) {
            Some(kind) => Ok(Self { file, kind }),
            None => {
                let some: Vec<&str> = file.tensors.keys().take(3).map(String::as_str).collect();
                let (count, some, known) = (file.tensors.len(), some.join(", "), Kind::names().join(", "));
                let problem =
                    format!("{count} tensors ({some}, ...), not a checkpoint of a kind that is known: {known}");
                Err(Error::invalid(path, problem))
            }
        }
    }

    /// The kind of model.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.kind.name
    }

    /// Plans a model folder of this file's weights, with what the file lacks from the folder `like`: a diffusers folder of
    /// the same kind of model, which needs no weights of the components that the file holds.
    ///
    /// # Errors
    /// If the folder cannot be read, or is of another kind of model; if the file's tensors are not those that the folder's
    /// configurations ask for, or of a type that is not supported; if both lack the weights of a component.
    pub fn with(self, like: &Path) -> Result<Conversion> {
        let Self { file, kind } = self;
        let (class, index) = read_index(like)?;
        if class.name != kind.pipeline {
            let (name, wanted, found) = (kind.name, kind.pipeline, class.name);
            let problem = format!("a {found}, and {} is {name}: give a folder of {wanted}", file.path.display());
            return Err(Error::invalid(like, problem));
        }
        let mut expected: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        let (mut unread, mut plan) = (Vec::new(), Vec::new());
        for piece in kind.pieces_of(&file) {
            let Some(component) = class.components.iter().find(|component| component.name == piece.component) else {
                continue;
            };
            if class_of(&index, component.name).is_none() {
                let (name, holds) = (component.name, file.path.display());
                let problem = format!("has no {name}, and {holds} holds the weights of one ({}*)", piece.prefix);
                return Err(Error::invalid(like, problem));
            }
            let parameters = piece.naming.parameters(&like.join(component.name))?;
            unread.extend(piece.unread(&parameters));
            let mut sources = Vec::with_capacity(parameters.len());
            for (name, wanted) in &parameters {
                let source = piece.source(name, &parameters, &file);
                source.expect(&wanted.shape, &mut expected);
                sources.push((name.clone(), wanted.shape.clone(), source));
            }
            plan.push((component, sources));
        }
        for (name, info) in file.tensors.iter().filter(|(name, _)| expected.contains_key(*name)) {
            file.weight_type(name, info)?;
        }
        let found = file.tensors.iter().map(|(name, info)| {
            let shape = expected.get(name).filter(|wanted| same_numbers(wanted, &info.shape));
            (name, shape.unwrap_or(&info.shape).as_slice())
        });
        let ignored = |name: &str| kind::is_no_weight(name) || unread.iter().any(|start| name.starts_with(start));
        let origin = format!("{}, for the configurations of {}", file.path.display(), like.display());
        Mismatch::new(&expected, found, ignored).check(origin)?;

        let converted = plan.into_iter().map(|(component, sources)| Converted::new(component, sources, &file));
        let converted: Vec<Converted> = converted.collect();
        let mut copied = Vec::new();
        for component in class.components.iter().filter(|component| component.has_weights()) {
            let Component { name, .. } = component;
            if class_of(&index, name).is_none() || converted.iter().any(|converted| converted.component == *name) {
                continue;
            }
            if variants(&like.join(name), component.stem())?.is_empty() {
                let stem = component.stem();
                let problem = format!("no {stem}.safetensors here, and {} holds no {name}", file.path.display());
                return Err(Error::invalid(like.join(name), problem));
            }
            copied.push(*name);
        }
        Ok(Conversion { file, like: like.to_owned(), converted, copied })
    }
}

/// Whether two shapes differ at most by 1s at their ends: a 1x1 convolution holds the numbers of a linear.
fn same_numbers(a: &[usize], b: &[usize]) -> bool {
    let trimmed = |shape: &[usize]| shape.iter().rposition(|&n| n != 1).map_or(0, |last| last + 1);
    a[..trimmed(a)] == b[..trimmed(b)]
}

/// A model folder to be: configurations of one folder, weights of a single file where it has them.
#[derive(Debug)]
pub struct Conversion {
    file: TensorFile,
    like: PathBuf,
    converted: Vec<Converted>,
    copied: Vec<&'static str>,
}

impl Conversion {
    /// The components whose weights come from the file.
    pub fn converted(&self) -> impl Iterator<Item = &'static str> {
        self.converted.iter().map(|converted| converted.component)
    }

    /// The components whose weights come from the folder.
    #[must_use]
    pub fn copied(&self) -> &[&'static str] {
        &self.copied
    }

    /// Tensors to be converted.
    #[must_use]
    pub fn tensors(&self) -> usize {
        self.converted.iter().map(|converted| converted.tensors.len()).sum()
    }

    /// Writes the whole model folder into the existing folder `destination`. Tensors keep their types, and one at a time
    /// is in memory. The observer is advanced by every converted tensor.
    ///
    /// # Errors
    /// If something cannot be read or written, or the observer interrupts.
    pub fn write(&self, destination: &Path, observer: &dyn Observer) -> Result<()> {
        let components: Vec<&str> = self.converted().collect();
        copy_model(&self.like, destination, &components)?;
        for converted in &self.converted {
            let path = destination.join(converted.component).join(format!("{}.safetensors", converted.stem));
            converted.write(&path, &self.file, observer)?;
        }
        Ok(())
    }
}

/// A component whose weights come from the file.
#[derive(Debug)]
struct Converted {
    component: &'static str,
    /// The name of its weight file without the ending.
    stem: &'static str,
    tensors: Vec<ConvertedTensor>,
}

#[derive(Debug)]
struct ConvertedTensor {
    name: String,
    shape: Vec<usize>,
    part: Part,
    /// The tensor of the file that it is a part of.
    info: TensorInfo,
}

impl Converted {
    /// All sources must be in the file.
    fn new(component: &Component, sources: Vec<(String, Vec<usize>, Source)>, file: &TensorFile) -> Self {
        let tensor = |(name, shape, source): (String, Vec<usize>, Source)| {
            let info = file.tensors.get(&source.name)?.clone();
            Some(ConvertedTensor { name, shape, part: source.part, info })
        };
        let mut tensors: Vec<ConvertedTensor> = sources.into_iter().filter_map(tensor).collect();
        // As the safetensors library does, which keeps wide types aligned.
        tensors.sort_by(|a, b| (Reverse(a.info.dtype), &a.name).cmp(&(Reverse(b.info.dtype), &b.name)));
        Self { component: component.name, stem: component.stem(), tensors }
    }

    fn write(&self, path: &Path, file: &TensorFile, observer: &dyn Observer) -> Result<()> {
        let header = self.header().map_err(|problem| Error::invalid(path, problem))?;
        new_file(path, |output| {
            output.write_all(&(header.len() as u64).to_le_bytes()).map_err(Error::io(path))?;
            output.write_all(&header).map_err(Error::io(path))?;
            for tensor in &self.tensors {
                observer.advance(1)?;
                let bytes = tensor.part.read(file, &tensor.info, &tensor.shape)?;
                output.write_all(&bytes).map_err(Error::io(path))?;
            }
            Ok(())
        })
    }

    fn header(&self) -> std::result::Result<Vec<u8>, String> {
        let mut end = 0;
        let info = |tensor: &ConvertedTensor| {
            let (dtype, shape, start) = (tensor.info.dtype, tensor.shape.clone(), end);
            end += shape.iter().product::<usize>() * dtype.bitsize() / 8;
            (tensor.name.clone(), safetensors::tensor::TensorInfo { dtype, shape, data_offsets: (start, end) })
        };
        let tensors = self.tensors.iter().map(info).collect();
        // transformers reads no file that does not say so.
        let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let metadata = Metadata::new(Some(format), tensors).map_err(|error| error.to_string())?;
        let mut header = serde_json::to_vec(&metadata).map_err(|error| error.to_string())?;
        header.resize(header.len().next_multiple_of(8), b' ');
        Ok(header)
    }
}
