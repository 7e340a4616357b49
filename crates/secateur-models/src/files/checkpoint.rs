//! The safetensors files of one component: finding and checking them, and reading them tensor by
//! tensor.

use crate::error::{Error, Result, invalid, shown};
use crate::files::read::{Limit, Unique, lfs_pointer, open, read_json};
use candle_core::{DType, Tensor};
use safetensors::Dtype;
use safetensors::tensor::{self, Metadata};
use secateur_nn::{Fit, Parameters, Placement, Scope, Stream, Weight, ops};
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Headers above this are refused.
const LARGEST_HEADER: u64 = 32 << 20;
/// The most tensors of a file.
const MOST_TENSORS: usize = 1 << 17;
/// The most dimensions of a tensor.
const MOST_DIMENSIONS: usize = 16;

/// The stem of diffusers' weight files.
pub(crate) const DIFFUSERS_STEM: &str = "diffusion_pytorch_model";
/// The stem of transformers' weight files.
pub(crate) const TRANSFORMERS_STEM: &str = "model";

/// The type, shape and place of a tensor in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Type of the elements in the file.
    pub dtype: Dtype,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Offset of the first byte from the start of the file.
    offset: u64,
    /// Length in bytes.
    length: usize,
}

impl TensorInfo {
    /// Offset of the first byte, and length in bytes.
    pub(crate) fn position(&self) -> (u64, u64) {
        (self.offset, self.length as u64)
    }

    /// Bytes of an element in the file.
    #[must_use]
    pub fn bytes_each(&self) -> usize {
        self.dtype.bitsize() / 8
    }

    /// Number of elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// One safetensors file: its header, checked against the file's size.
#[derive(Clone, Debug)]
pub(crate) struct TensorFile {
    pub(crate) path: PathBuf,
    pub(crate) tensors: BTreeMap<String, TensorInfo>,
    /// Bytes before the data.
    pub(crate) header_bytes: u64,
    /// The metadata of the header besides the tensors.
    pub(crate) metadata: Option<HashMap<String, String>>,
    pub(crate) bytes: u64,
}

/// A header as it is in the file, each name in it once.
#[derive(Default)]
struct Header {
    metadata: Option<HashMap<String, String>>,
    tensors: Vec<(String, tensor::TensorInfo)>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<Header, A::Error> {
                let (mut header, mut names) = (Header::default(), HashSet::new());
                while let Some(name) = map.next_key::<String>()? {
                    if names.len() > MOST_TENSORS {
                        return Err(A::Error::custom(format!("more than {MOST_TENSORS} tensors")));
                    }
                    let named = |error| A::Error::custom(format!("{name}: {error}"));
                    if name == "__metadata__" {
                        let entries: Option<Unique<String>> = map.next_value().map_err(named)?;
                        header.metadata =
                            entries.map(|Unique(entries)| entries.into_iter().collect());
                    } else {
                        let info = map.next_value().map_err(named)?;
                        header.tensors.push((name.clone(), info));
                    }
                    if let Some(name) = names.replace(name) {
                        return Err(A::Error::custom(format!("{name} stands there twice")));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

impl Header {
    /// The header with tensors in the order of the file, whose shapes and places fit each other.
    fn checked(mut self) -> std::result::Result<Metadata, String> {
        for (name, info) in &self.tensors {
            let elements = info
                .shape
                .iter()
                .try_fold(1usize, |product, &size| product.checked_mul(size.max(1)));
            if elements.is_none() || info.shape.len() > MOST_DIMENSIONS {
                let dimensions = info.shape.len();
                return Err(format!(
                    "the shape of {name}, of {dimensions} dimensions, is larger than any tensor's"
                ));
            }
        }
        self.tensors.sort_by_key(|(_, info)| info.data_offsets);
        Metadata::new(self.metadata, self.tensors).map_err(|error| error.to_string())
    }
}

impl TensorFile {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let mut file = open(path)?;
        let bytes = file.metadata().map_err(Error::io(path))?.len();
        let mut first = [0u8; 8];
        if bytes < 8 {
            invalid!(path, "only {bytes} bytes: not a safetensors file, or cut short");
        }
        file.read_exact(&mut first).map_err(Error::io(path))?;
        if first == *b"version " {
            let mut start = first.to_vec();
            Read::by_ref(&mut file).take(64).read_to_end(&mut start).map_err(Error::io(path))?;
            if let Some(problem) = lfs_pointer(&start) {
                return Err(Error::invalid(path, problem));
            }
        }
        // A safetensors file begins with the length of its header, whose first byte may be any.
        if first.starts_with(b"PK\x03\x04") || (first[0] == 0x80 && first[4..] != [0; 4]) {
            invalid!(
                path,
                "this is a pickle, which can run code when opened: convert it to safetensors first"
            );
        }
        if first.starts_with(b"GGUF") {
            invalid!(path, "this is GGUF, whose weights are quantised: safetensors are read");
        }
        let length = u64::from_le_bytes(first);
        if length > LARGEST_HEADER {
            invalid!(path, "a header of {length} bytes: not a safetensors file");
        }
        if length > bytes - 8 {
            invalid!(path, "cut short: {bytes} bytes, and a header of {length} promised");
        }
        let mut header = vec![0u8; length as usize];
        file.read_exact(&mut header).map_err(Error::io(path))?;
        let header: Header = serde_json::from_slice(&header)
            .map_err(|error| Error::invalid(path, format!("bad header: {error}")))?;
        let header = header
            .checked()
            .map_err(|problem| Error::invalid(path, format!("bad header: {problem}")))?;
        let header_bytes = 8 + length;
        let Some(promised) = header_bytes.checked_add(header.data_len() as u64) else {
            invalid!(path, "cut short: its header promises more than any file can hold");
        };
        if promised != bytes {
            let state = if promised > bytes { "cut short" } else { "oversized" };
            invalid!(path, "{state}: {bytes} bytes, its header promises {promised}");
        }
        let info = |info: &safetensors::tensor::TensorInfo| TensorInfo {
            dtype: info.dtype,
            shape: info.shape.clone(),
            offset: header_bytes + info.data_offsets.0 as u64,
            length: info.data_offsets.1 - info.data_offsets.0,
        };
        let tensors = header.tensors().into_iter().map(|(name, i)| (name, info(i))).collect();
        let metadata = header.metadata().clone();
        Ok(Self { path: path.to_owned(), tensors, header_bytes, metadata, bytes })
    }

    /// The bytes of a tensor as they are in the file.
    pub(crate) fn raw(&self, info: &TensorInfo) -> Result<Vec<u8>> {
        self.raw_part(info, 0..info.length)
    }

    /// Those of a tensor's bytes.
    pub(crate) fn raw_part(&self, info: &TensorInfo, part: Range<usize>) -> Result<Vec<u8>> {
        let mut data = vec![0u8; part.len()];
        self.fill(info, part.start, &mut data)?;
        Ok(data)
    }

    /// Reads a tensor's bytes from the one at `start` on.
    fn fill(&self, info: &TensorInfo, start: usize, bytes: &mut [u8]) -> Result<()> {
        let mut file = open(&self.path)?;
        file.seek(SeekFrom::Start(info.offset + start as u64))
            .and_then(|_| file.read_exact(bytes))
            .map_err(Error::io(&self.path))
    }

    /// The type of a tensor of weights.
    pub(crate) fn weight_type(&self, name: &str, info: &TensorInfo) -> Result<DType> {
        match info.dtype {
            Dtype::F32 => Ok(DType::F32),
            Dtype::F16 => Ok(DType::F16),
            Dtype::BF16 => Ok(DType::BF16),
            other => {
                invalid!(
                    &self.path,
                    "tensor {name} is {other:?}; weights of F32, F16 and BF16 are supported"
                )
            }
        }
    }

    /// A tensor at `placement`; integers keep their type.
    fn read(&self, name: &str, info: &TensorInfo, placement: &Placement) -> Result<Tensor> {
        let tensor = self.read_unchecked(name, info, placement)?;
        if tensor.dtype().is_float() && !ops::is_finite(&tensor)? {
            invalid!(
                &self.path,
                "tensor {name} holds NaN or infinite values: the checkpoint is damaged"
            );
        }
        Ok(tensor)
    }

    /// The same, whose values may be infinite or no numbers.
    fn read_unchecked(
        &self,
        name: &str,
        info: &TensorInfo,
        placement: &Placement,
    ) -> Result<Tensor> {
        let dtype = match info.dtype {
            Dtype::I64 => DType::I64,
            _ => self.weight_type(name, info)?,
        };
        placement.read(dtype, &info.shape, |start, part| self.fill(info, start, part))
    }
}

/// The weight files of one component.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    /// The index file of a sharded checkpoint.
    pub(crate) index: Option<PathBuf>,
    pub(crate) files: Arc<[TensorFile]>,
    placement: Placement,
    /// Names of the weights that are read each time they are used.
    passing: Arc<BTreeSet<String>>,
    stream: Stream,
}

#[derive(Deserialize)]
struct Index {
    weight_map: Unique<String>,
}

impl Checkpoint {
    /// Finds and checks the files of a component, without reading weights. `stem` is
    /// `diffusion_pytorch_model` or `model`. `variant` is the part of the file name between the
    /// stem and the ending, such as `fp16`. If that variant does not exist or none is given, the
    /// plain files are taken, or else those of the only variant.
    ///
    /// # Errors
    /// If there are no such files, several variants to choose from, or damaged files.
    pub fn open(folder: &Path, stem: &str, variant: Option<&str>) -> Result<Self> {
        let variants = variants(folder, stem)?;
        let chosen = match variant {
            Some(variant) if variants.contains(variant) => variant.to_owned(),
            // Not every component of a folder has every variant.
            _ if variants.contains("") => String::new(),
            None if variants.len() == 1 => variants.into_iter().next().unwrap_or_default(),
            _ => {
                let found: Vec<_> =
                    variants.iter().map(|v| if v.is_empty() { "(none)" } else { v }).collect();
                let wanted = variant.map_or_else(String::new, |v| format!(" of variant {v:?}"));
                let problem = if found.is_empty() {
                    format!("no {stem}.safetensors here (pickles such as .bin are not read)")
                } else {
                    format!(
                        "no single {stem}.safetensors{wanted} here; variants found: {}",
                        found.join(", ")
                    )
                };
                return Err(Error::invalid(folder, problem));
            }
        };
        let dotted = if chosen.is_empty() { String::new() } else { format!(".{chosen}") };
        let single = folder.join(format!("{stem}{dotted}.safetensors"));
        // The second is how diffusers called it at first.
        let indices = [
            format!("{stem}.safetensors.index{dotted}.json"),
            format!("{stem}.safetensors{dotted}.index.json"),
        ];
        let index = indices.map(|name| folder.join(name)).into_iter().find(|index| index.is_file());
        // Where both are there, transformers reads the single file, and diffusers the shards.
        let Some(index) = index.filter(|_| stem != TRANSFORMERS_STEM || !single.is_file()) else {
            return Ok(Self::new(folder, None, vec![TensorFile::open(&single)?]));
        };
        let Unique(map) = read_json::<Index>(&index, Limit::Config)?.weight_map;
        let mut names: Vec<&String> = map.iter().map(|(_, name)| name).collect();
        names.sort();
        names.dedup();
        let mut files = Vec::with_capacity(names.len());
        for name in names {
            if Path::new(name).components().count() != 1
                || name.contains("..")
                || name.contains('\\')
            {
                invalid!(&index, "points outside its folder: {name}");
            }
            files.push(TensorFile::open(&folder.join(name))?);
        }
        let mut holders: HashMap<&str, &Path> = HashMap::new();
        for file in &files {
            for tensor in file.tensors.keys() {
                if let Some(other) = holders.insert(tensor, &file.path) {
                    invalid!(&file.path, "holds {tensor}, and so does {}", shown(other));
                }
            }
        }
        for (tensor, name) in &map {
            let shard = files.iter().find(|file| file.path.ends_with(name));
            if !shard.is_some_and(|file| file.tensors.contains_key(tensor)) {
                invalid!(&index, "lists {tensor} in {name}, which does not hold it");
            }
        }
        Ok(Self::new(folder, Some(index), files))
    }

    fn new(folder: &Path, index: Option<PathBuf>, files: Vec<TensorFile>) -> Self {
        let (passing, stream) = (Arc::default(), Stream::default());
        let (folder, placement) = (folder.to_owned(), Placement::cpu());
        Self { folder, index, files: files.into(), placement, passing, stream }
    }

    /// The component's folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Name, type, shape and place of every tensor.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.files
            .iter()
            .flat_map(|file| file.tensors.iter().map(|(name, info)| (name.as_str(), info)))
    }

    /// The tensor `name`, if there is one.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        Some(self.place(name)?.1)
    }

    /// The paths of the weight files.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }

    /// Size of all files in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// Makes parameters of the shapes in the files, without their values.
    ///
    /// # Errors
    /// If a placeholder cannot be made.
    pub fn placeholders(&self) -> Result<Parameters> {
        let shapes = self.tensors().map(|(name, info)| (name.to_owned(), info.shape.clone()));
        Ok(Parameters::placeholders(self.folder.display().to_string(), shapes)?)
    }

    /// The type of most elements.
    #[must_use]
    pub fn dtype(&self) -> DType {
        let bytes = |dtype: Dtype| -> usize {
            let of_type = |(_, info): &(&str, &TensorInfo)| info.dtype == dtype;
            self.tensors().filter(of_type).map(|(_, info)| info.length).sum()
        };
        let types =
            [(Dtype::F32, DType::F32), (Dtype::F16, DType::F16), (Dtype::BF16, DType::BF16)];
        let most = types.into_iter().max_by_key(|(dtype, _)| bytes(*dtype));
        most.map_or(DType::F32, |(_, dtype)| dtype)
    }

    /// The checkpoint, with its tensors read to `placement` from now on.
    #[must_use]
    pub fn at(self, placement: &Placement) -> Self {
        Self { placement: placement.clone(), ..self }
    }

    /// The checkpoint, with these weights read each time they are used.
    #[must_use]
    pub(crate) fn passing(self, names: BTreeSet<String>) -> Self {
        Self { passing: names.into(), ..self }
    }

    /// The stream of the weights that are read each time they are used.
    pub(crate) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Reads one tensor.
    ///
    /// # Errors
    /// If it cannot be read, or holds values that are not finite.
    pub fn read(&self, name: &str) -> Result<Tensor> {
        match self.place(name) {
            Some((file, info)) => file.read(name, info, &self.placement),
            None => invalid!(&self.folder, "no tensor {name}"),
        }
    }

    /// A tensor, and the file that holds it.
    fn place(&self, name: &str) -> Option<(&TensorFile, &TensorInfo)> {
        self.files.iter().find_map(|file| Some((file, file.tensors.get(name)?)))
    }

    /// A weight of the file of that index that is read each time it is used, and checked the first
    /// time.
    fn stored(&self, file: usize, name: &str, info: &TensorInfo) -> Weight {
        let (files, placement) = (Arc::clone(&self.files), self.placement.clone());
        let (name, of_file, was_checked) = (name.to_owned(), info.clone(), AtomicBool::new(false));
        let read = move || {
            let file = &files[file];
            if was_checked.load(Ordering::Relaxed) {
                return file.read_unchecked(&name, &of_file, &placement);
            }
            let tensor = file.read(&name, &of_file, &placement)?;
            was_checked.store(true, Ordering::Relaxed);
            Ok(tensor)
        };
        let read = move || read().map_err(candle_core::Error::wrap);
        Weight::stored(info.shape.as_slice(), &self.stream, read)
    }

    /// Checks how the model of `construct` fits the files, without reading weights.
    ///
    /// # Errors
    /// If something is missing or of another shape.
    pub(crate) fn fit<T>(&self, construct: impl Fn(Scope<'_>) -> Result<T>) -> Result<Fit> {
        self.placeholders()?.fit(construct)
    }

    /// Builds the model of `construct`. Tensors that it does not take are not read.
    ///
    /// # Errors
    /// As [`Checkpoint::fit`] and [`Checkpoint::load`].
    pub(crate) fn build<T>(&self, construct: impl Fn(Scope<'_>) -> Result<T>) -> Result<T> {
        let Fit { wanted, .. } = self.fit(&construct)?;
        self.load_where(|name| wanted.contains_key(name))?.build(construct)
    }

    /// Reads all weights.
    ///
    /// # Errors
    /// If a tensor cannot be read, is of a type that is not supported, or holds values that are not
    /// finite.
    pub fn load(&self) -> Result<Parameters> {
        self.load_where(|_| true)
    }

    /// Reads the weights whose names `wanted` accepts.
    ///
    /// # Errors
    /// As [`Checkpoint::load`].
    pub(crate) fn load_where(&self, wanted: impl Fn(&str) -> bool) -> Result<Parameters> {
        let mut weights = BTreeMap::new();
        for (index, file) in self.files.iter().enumerate() {
            for (name, info) in file.tensors.iter().filter(|(name, _)| wanted(name)) {
                let weight = match self.passing.contains(name) {
                    true => self.stored(index, name, info),
                    false => file.read(name, info, &self.placement)?.into(),
                };
                weights.insert(name.clone(), weight);
            }
        }
        let origin = self.folder.display().to_string();
        Ok(Parameters::new(origin, weights).at(self.placement.clone()))
    }
}

/// The variants of a component's weights. "" is none.
pub(crate) fn variants(folder: &Path, stem: &str) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let name = entry.map_err(Error::io(folder))?.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(stem)) else { continue };
        let variant = if let Some(rest) = rest.strip_prefix(".safetensors.index") {
            rest.strip_suffix(".json")
        } else if let Some(rest) = rest.strip_prefix(".safetensors") {
            rest.strip_suffix(".index.json").or(rest.is_empty().then_some(rest))
        } else {
            rest.strip_suffix(".safetensors").filter(|rest| !rest.contains("-of-"))
        };
        match variant.map(|variant| (variant, variant.strip_prefix('.'))) {
            Some(("", _)) => found.insert(String::new()),
            Some((_, Some(variant))) => found.insert(variant.to_owned()),
            _ => false,
        };
    }
    Ok(found)
}
