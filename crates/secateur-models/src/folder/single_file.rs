//! Checkpoints of whole pipelines in one file, under the names of the original code, as ComfyUI and
//! A1111 read them.
//!
//! A component's configuration gives the names and shapes of its parameters. For each name a
//! [`Source`] says where its elements are in the file, as `loaders/single_file_utils.py` of
//! diffusers 0.42.1 does. This gives the names and shapes that the file must have, so that a file
//! that does not fit is known before any weight is read.

mod clip;
mod flux;
mod mmdit;
mod naming;
mod open_clip;
mod source;
mod unet;
mod vae;

use crate::classes::{Component, class_of};
use crate::error::{Error, Result, invalid, shown};
use crate::files::{
    Limit, Marker, Piece, SingleFile, TensorFile, TensorInfo, Tree, header, new_file, read_text,
    tree, variants, write_atomically,
};
use crate::folder::index::{SCHEDULER_CONFIG, read_index, unread};
use crate::folder::manifest::Manifest;
use crate::folder::save::copy_model;
use crate::folder::single_file::source::Parameters;
use crate::observer::Observer;
use secateur_nn::Mismatch;
use serde_json::{Map, Value};
use source::{Excerpt, Source};
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The tensors that a file must hold.
#[derive(Default)]
struct Expected {
    shapes: BTreeMap<String, Vec<usize>>,
    /// Prefixes of the names of tensors that the file may hold, but that are not read.
    unread: Vec<String>,
}

/// A parameter's name, its shape, and its source.
type Sourced = (String, Vec<usize>, Source);

impl Expected {
    /// Adds the parameters of a component.
    fn add(&mut self, piece: &Piece, parameters: &Parameters, file: &TensorFile) -> Vec<Sourced> {
        self.unread.extend(piece.unread(parameters));
        let sourced = parameters.iter().map(|(name, wanted)| {
            let source = piece.source(name, parameters, file);
            source.expect(&wanted.shape, &mut self.shapes);
            (name.clone(), wanted.shape.clone(), source)
        });
        sourced.collect()
    }

    /// Checks that the file holds the tensors of `like`'s configurations, and returns the names of
    /// unknown tensors.
    fn check(&self, file: &TensorFile, like: &Path) -> Result<Vec<String>> {
        for (name, info) in file.tensors.iter().filter(|(name, _)| self.shapes.contains_key(*name))
        {
            file.weight_type(name, info)?;
        }
        let found = file.tensors.iter().map(|(name, info)| {
            let shape = self.shapes.get(name).filter(|wanted| same_numbers(wanted, &info.shape));
            (name, shape.unwrap_or(&info.shape).as_slice())
        });
        let ignored = |name: &str| {
            naming::is_no_weight(name) || self.unread.iter().any(|start| name.starts_with(start))
        };
        let origin =
            format!("{}, for the configurations of {}", file.path.display(), like.display());
        let mismatch = Mismatch::new(&self.shapes, found, ignored);
        mismatch.check(origin)?;
        Ok(mismatch.unexpected().to_vec())
    }
}

/// Whether two shapes differ at most by 1s at their ends: a 1x1 convolution holds the numbers of a
/// linear.
fn same_numbers(a: &[usize], b: &[usize]) -> bool {
    let trimmed = |shape: &[usize]| shape.iter().rposition(|&n| n != 1).map_or(0, |last| last + 1);
    a[..trimmed(a)] == b[..trimmed(b)]
}

/// A model folder to be: configurations of one folder, weights of a single file where it has them.
#[derive(Debug)]
pub struct Conversion {
    file: TensorFile,
    like: PathBuf,
    tree: Tree,
    converted: Vec<Converted>,
    copied: Vec<&'static str>,
    unread: Vec<String>,
    markers: Vec<&'static Marker>,
}

impl Conversion {
    /// Plans a model folder with the weights of a file. The rest comes from the folder `like`: a
    /// diffusers folder of the same kind of model. It needs no weights of the components that the
    /// file holds.
    ///
    /// # Errors
    /// If the folder cannot be read, or is of another kind of model; if the file's tensors are not
    /// those that the folder's configurations ask for, or of a type that is not supported; if both
    /// lack the weights of a component.
    pub fn plan(single: SingleFile, like: &Path) -> Result<Conversion> {
        let (class, index) = read_index(like)?;
        let (kind, path) = (single.kind, single.file.path.display());
        if class.name != kind.pipeline {
            let (found, wanted) = (class.name, kind.pipeline);
            invalid!(like, "a {found}, and {path} is {}: give a folder of {wanted}", kind.name);
        }
        if !Manifest::open(like)?.removals().is_empty() {
            invalid!(
                like,
                "lacks heads or neurons, which the file has: give the folder of the whole model"
            );
        }
        let with_weights = class.components.iter().filter(|component| component.has_weights());
        let (present, absent): (Vec<&Component>, Vec<_>) =
            with_weights.partition(|component| class_of(&index, component.name).is_some());

        let mut expected = Expected::default();
        let mut plan = Vec::new();
        for piece in kind.pieces_of(&single.file) {
            if absent.iter().any(|component| component.name == piece.component) {
                invalid!(
                    like,
                    "has no {}, and {path} holds one ({}*)",
                    piece.component,
                    piece.prefix
                );
            }
            let parameters = piece.naming.parameters(piece.component, like, (class, &index))?;
            plan.push((piece.component, expected.add(piece, &parameters, &single.file)));
        }
        let unread = expected.check(&single.file, like)?;

        let (mut converted, mut copied) = (Vec::new(), Vec::new());
        for component in present {
            let (name, stem) = (component.name, component.stem());
            if let Some((_, sourced)) = plan.iter().find(|(component, _)| *component == name) {
                converted.push(Converted::new(component, sourced, &single.file));
            } else if variants(&like.join(name), stem)?.is_empty() {
                invalid!(like.join(name), "no {stem}.safetensors here, and {path} holds no {name}");
            } else {
                copied.push(name);
            }
        }
        let tree = Tree::of(like, &tree::components(&index))?;
        tree.check()?;
        let markers = kind.markers(&single.file);
        Ok(Conversion {
            file: single.file,
            like: like.to_owned(),
            tree,
            converted,
            copied,
            unread,
            markers,
        })
    }

    /// Notes for the user: tensors that nothing reads, and options of the scheduler that the file
    /// sets.
    pub fn warnings(&self) -> impl Iterator<Item = String> {
        let file = shown(&self.file.path).to_string();
        let unread = unread(&file, &self.unread);
        let options = self.markers.iter().map(move |Marker { tensor, option, value }| {
            format!("{file}: {tensor} makes {option} of the scheduler {value}")
        });
        unread.into_iter().chain(options)
    }

    /// The components whose weights come from the file.
    pub fn converted(&self) -> impl Iterator<Item = &'static str> {
        self.converted.iter().map(|converted| converted.component)
    }

    /// The components whose weights come from the folder.
    #[must_use]
    pub fn copied(&self) -> &[&'static str] {
        &self.copied
    }

    /// Number of tensors to convert.
    #[must_use]
    pub fn tensors(&self) -> usize {
        self.converted.iter().map(|converted| converted.tensors.len()).sum()
    }

    /// Writes the whole model folder into the existing folder `destination`. Tensors keep their
    /// types, and one at a time is in memory. The observer advances by one for each converted
    /// tensor.
    ///
    /// # Errors
    /// If something cannot be read or written, or the observer interrupts.
    pub fn write(&self, destination: &Path, observer: &dyn Observer) -> Result<()> {
        let components: Vec<&str> = self.converted().collect();
        copy_model(&self.like, &self.tree, destination, &components, observer)?;
        self.write_scheduler(destination)?;
        for converted in &self.converted {
            let path = destination
                .join(converted.component)
                .join(format!("{}.safetensors", converted.stem));
            converted.write(&path, &self.file, observer)?;
        }
        Ok(())
    }
}

impl Conversion {
    /// Puts the options that the file tells into the scheduler's configuration.
    fn write_scheduler(&self, destination: &Path) -> Result<()> {
        if self.markers.is_empty() {
            return Ok(());
        }
        let path = destination.join(SCHEDULER_CONFIG);
        // Infinity is no JSON, and Python writes it.
        let text = read_text(&path, Limit::Config)?.replace("-Infinity", "\"-Infinity\"");
        let mut options: Map<String, Value> =
            serde_json::from_str(&text).map_err(|error| Error::invalid(&path, error))?;
        for Marker { option, value, .. } in &self.markers {
            let value =
                serde_json::from_str(value).map_err(|error| Error::invalid(&path, error))?;
            options.insert((*option).to_owned(), value);
        }
        let text =
            serde_json::to_string_pretty(&options).map_err(|error| Error::invalid(&path, error))?;
        write_atomically(&path, (text.replace("\"-Infinity\"", "-Infinity") + "\n").as_bytes())
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
    part: Excerpt,
    /// The tensor of the file that it is a part of.
    info: TensorInfo,
}

impl Converted {
    /// Plans the parameters of `sourced`, which must all be in the file.
    fn new(component: &Component, sourced: &[Sourced], file: &TensorFile) -> Self {
        let tensor = |(name, shape, source): &Sourced| {
            let info = file.tensors.get(&source.name)?.clone();
            Some(ConvertedTensor {
                name: name.clone(),
                shape: shape.clone(),
                part: source.part,
                info,
            })
        };
        let mut tensors: Vec<ConvertedTensor> = sourced.iter().filter_map(tensor).collect();
        // As the safetensors library does, which keeps wide types aligned.
        tensors.sort_by(|a, b| {
            (Reverse(a.info.dtype), &a.name).cmp(&(Reverse(b.info.dtype), &b.name))
        });
        Self { component: component.name, stem: component.stem(), tensors }
    }

    fn write(&self, path: &Path, file: &TensorFile, observer: &dyn Observer) -> Result<()> {
        // transformers reads no file that does not say so.
        let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let tensors = self
            .tensors
            .iter()
            .map(|tensor| (tensor.name.clone(), tensor.info.dtype, tensor.shape.clone()));
        let header =
            header(tensors, Some(format)).map_err(|problem| Error::invalid(path, problem))?;
        new_file(path, |output| {
            output.write_all(&header).map_err(Error::io(path))?;
            for tensor in &self.tensors {
                observer.advance(1)?;
                let bytes = tensor.part.read(file, &tensor.info, &tensor.shape)?;
                output.write_all(&bytes).map_err(Error::io(path))?;
            }
            Ok(())
        })
    }
}
