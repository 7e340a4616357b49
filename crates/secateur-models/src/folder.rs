//! A model folder in the diffusers layout: what it holds, without loading weights.

use crate::autoencoder::{Autoencoder, AutoencoderConfig, autoencoder_config_of};
use crate::checkpoint::{Checkpoint, DIFFUSERS_STEM, variants};
use crate::clip::{ClipTextConfig, ClipTextModel, PROJECTED};
use crate::edits::Removals;
use crate::error::{Error, Result};
use crate::family::{DenoiserConfig, denoiser_config_of};
use crate::files::tree::{self, Tree};
use crate::files::{Limit, digest_of_files, read_json, shown};
use crate::manifest::{Generation, MANIFEST, Manifest, Prompts};
use crate::observer::Observer;
use crate::options::config_fields;
use crate::pipeline::Sampling;
use crate::pipeline::class::{CLASSES, Component, PipelineClass, SCHEDULER, Subject, VAE};
use crate::prompts::read_prompts;
use crate::reuse::ReuseSchedule;
use crate::scheduler::{Run, Sampler, Schedule, SchedulerConfig, scheduler_config};
use crate::single_file::SingleFile;
use crate::structure::{Geometry, Memory, Operation, Structure};
use crate::t5::{T5Config, T5Encoder};
use crate::tokenizer::{self, ClipTokenizer, T5Tokenizer, row_length};
use secateur_nn::{Fit, Parameters};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The classes that a model knows, from `id2label` of `model_index.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    names: BTreeMap<u32, String>,
    /// How many classes there are; not all may have names.
    classes: usize,
}

impl Labels {
    /// The number of a label, given by its number, its name, or one of several names that commas set apart.
    ///
    /// # Errors
    /// If no label is called so.
    pub fn find(&self, text: &str) -> Result<u32> {
        if let Ok(number) = text.parse::<u32>() {
            return match (number as usize) < self.classes {
                true => Ok(number),
                false => Err(Error::Request(format!("label {number}, and the model knows {} classes", self.classes))),
            };
        }
        let called = |name: &str| name == text || name.split(',').any(|one| one.trim() == text);
        let found: Vec<u32> = self.names.iter().filter(|(_, name)| called(name)).map(|(number, _)| *number).collect();
        match found[..] {
            [number] => Ok(number),
            [] if self.names.is_empty() => {
                Err(Error::Request(format!("{text:?} is not a number, and this model names no labels")))
            }
            [] => {
                let some: Vec<&str> = self.names.values().take(3).map(String::as_str).collect();
                let known = format!("it knows {} such as {}", self.names.len(), some.join(", "));
                Err(Error::Request(format!("{text:?} is not a label of this model: {known}")))
            }
            _ => Err(Error::Request(format!("{text:?} is the name of the labels {found:?}: give a number"))),
        }
    }

    /// Number and name of each.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &str)> {
        self.names.iter().map(|(number, name)| (*number, name.as_str()))
    }
}

/// Characters of a prompt that are shown where it is too long.
const LONGEST_SHOWN: usize = 60;

/// Where a model says what it is made of.
const INDEX: &str = "model_index.json";

/// Where a model's sampler is described.
pub(crate) const SCHEDULER_CONFIG: &str = "scheduler/scheduler_config.json";

/// A model folder.
#[derive(Clone, Debug)]
pub struct ModelFolder {
    path: PathBuf,
    variant: Option<String>,
    class: &'static PipelineClass,
    tree: Tree,
    index: Map<String, Value>,
    manifest: Manifest,
    denoiser: Arc<dyn DenoiserConfig>,
    /// CLIP's tokens, where the denoiser reads them.
    clip_tokens: usize,
    /// None where the denoiser works on pictures, or it cannot be read, which [`ModelFolder::check`] tells.
    vae: Option<Arc<dyn AutoencoderConfig>>,
    checkpoint: Checkpoint,
    /// How the denoiser fits its checkpoint.
    fit: Arc<Fit>,
}

impl ModelFolder {
    /// Opens a folder: reads the denoiser's configuration and the headers of its weights. What else sampling takes is
    /// checked by [`ModelFolder::check`].
    ///
    /// # Errors
    /// If it is not a diffusers folder, misses a component, is of a class that is not supported, or is damaged.
    pub fn open(path: &Path, variant: Option<&str>) -> Result<Self> {
        let (class, index) = read_index(path)?;
        let tree = Tree::of(path, &tree::components(&index))?;
        let manifest = Manifest::open(path)?;
        if let Some(variant) = variant {
            check_variant(class, path, variant)?;
        }
        let clip_tokens = match class.reads_clip_tokens {
            true => {
                let folder = path.join("tokenizer");
                row_length(&folder.join(tokenizer::CONFIG), &tokenizer::config(&folder)?)?
            }
            false => 0,
        };
        let component = path.join(class.denoiser);
        let denoiser = denoiser_of(class, path, &index)?;
        let checkpoint = Checkpoint::open(&component, DIFFUSERS_STEM, variant)?;
        let manifest_path = path.join(MANIFEST);
        let latent = denoiser.latent_shape();
        let whole = denoiser.structure(&Geometry { latent: (latent[1], latent[2]), text: 0 });
        if let Some(problem) = manifest.removals().problem(&whole) {
            return Err(Error::invalid(manifest_path, problem));
        }
        // What does not fit is known before anything is read.
        let sizes = manifest.removals().sizes();
        let fit = checkpoint.placeholders()?.with_sizes(sizes).fit(|scope| denoiser.build(&scope))?;
        Ok(Self {
            denoiser,
            checkpoint,
            fit: Arc::new(fit),
            path: path.to_owned(),
            variant: variant.map(str::to_owned),
            class,
            tree,
            clip_tokens,
            vae: autoencoder_of(class, path, &index).ok().flatten(),
            index,
            manifest,
        })
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The last part of its path.
    #[must_use]
    pub fn name(&self) -> String {
        let path = self.path.canonicalize().unwrap_or_else(|_| self.path.clone());
        path.file_name().map_or_else(|| "model".into(), |name| shown(name.as_ref()).to_string())
    }

    /// Its files, as they were when it was opened.
    pub(crate) fn tree(&self) -> &Tree {
        &self.tree
    }

    /// The bytes of all files but the denoiser's weights: a new model has copies of them.
    ///
    /// # Errors
    /// If one cannot be copied: the error names it.
    pub fn copied_bytes(&self) -> Result<u64> {
        self.tree.check()?;
        let bytes = |file: &Path| self.path.join(file).metadata().map_or(0, |found| found.len());
        Ok(self.tree.without(&[self.class.denoiser]).map(bytes).sum())
    }

    /// SHA-256 of all files that a new model is made of: the denoiser's weights as they were opened, and what is copied.
    ///
    /// # Errors
    /// If one cannot be read, or the observer interrupts.
    pub fn digest(&self, observer: &dyn Observer) -> Result<String> {
        let denoiser = Path::new(self.class.denoiser);
        let weights = self.checkpoint.paths().filter_map(Path::file_name).map(|name| denoiser.join(name));
        let files: Vec<_> = self.tree.without(&[self.class.denoiser]).map(Path::to_owned).chain(weights).collect();
        digest_of_files(&self.path, &files, observer)
    }

    /// Links in the folder that are neither read nor copied: they lead out of it, nowhere, to a folder or to another
    /// link.
    pub fn links_left_out(&self) -> impl Iterator<Item = &Path> {
        self.tree.links.iter().map(PathBuf::as_path)
    }

    /// The variant of weight files that was asked for.
    #[must_use]
    pub fn variant(&self) -> Option<&str> {
        self.variant.as_deref()
    }

    /// What the model says of itself.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The heads and neurons that its denoiser lacks.
    #[must_use]
    pub fn removals(&self) -> &Removals {
        self.manifest.removals()
    }

    /// How it wants to be sampled: at the size it was trained for, by [`ModelFolder::sampler`] or, where that is not
    /// supported, another one, with seed 0 and eight images at a time.
    #[must_use]
    pub fn sampling(&self) -> Sampling {
        let Generation { steps, guidance, max_sequence_length } = self.manifest.generation(self.class.generation);
        let [_, height, width] = self.denoiser.latent_shape();
        Sampling {
            steps,
            latent: (height, width),
            guidance,
            max_sequence_length,
            negative_prompt: String::new(),
            sampler: self.sampler().unwrap_or_else(|_| self.stand_in()),
            seed: 0,
            batch: 8,
            reuse: None,
        }
    }

    /// What it does not compute at every step of that run, if it was made to skip. For a sampler or a number of steps that this
    /// was not learned for it is an error, or with `adapt` [`ReuseSchedule::adapted`].
    ///
    /// # Errors
    /// If the file cannot be read or does not fit.
    pub fn reuse(&self, sampling: &Sampling, adapt: bool) -> Result<Option<Arc<ReuseSchedule>>> {
        let Some(file) = &self.manifest.reuse else { return Ok(None) };
        let reuse = ReuseSchedule::open(&tree::inside(&self.path, file)?, &self.structure(sampling))?;
        let calls = self.schedule(sampling.latent, sampling)?.calls().len();
        let found = reuse.check(sampling, calls);
        let fits = found.is_ok();
        let reuse = match adapt && !fits {
            true => reuse.adapted(self, sampling)?,
            false => found.map(|()| reuse)?,
        };
        Ok(Some(Arc::new(reuse)))
    }

    /// Pixels that a latent is high and wide.
    #[must_use]
    pub fn factor(&self) -> usize {
        self.vae.as_ref().map_or(1, |vae| vae.factor())
    }

    /// The pipeline class in diffusers.
    #[must_use]
    pub fn class_name(&self) -> &'static str {
        self.class.name
    }

    /// Loads its autoencoder, where it has one.
    pub(crate) fn autoencoder(&self) -> Result<Option<Box<dyn Autoencoder>>> {
        let vae = autoencoder_of(self.class, &self.path, &self.index)?;
        vae.map(|vae| vae.load(&self.path.join(VAE.name), self.variant())).transpose()
    }

    /// What it is told to draw.
    #[must_use]
    pub fn subject(&self) -> Subject {
        self.class.subject
    }

    /// The classes that it knows by name.
    ///
    /// # Errors
    /// If `id2label` is not a table of numbers and names.
    pub fn labels(&self) -> Result<Labels> {
        let classes = self.denoiser.classes();
        let Some(labels) = self.index("id2label") else { return Ok(Labels { names: BTreeMap::new(), classes }) };
        let label = |(number, name): (&String, &Value)| Some((number.parse().ok()?, name.as_str()?.to_owned()));
        match labels.as_object().and_then(|labels| labels.iter().map(label).collect()) {
            Some(names) => Ok(Labels { names, classes }),
            None => {
                let problem = "id2label is not an object of numbers and their names";
                Err(Error::invalid(self.path.join(INDEX), problem))
            }
        }
    }

    /// An entry of `model_index.json`.
    pub(crate) fn index(&self, key: &str) -> Option<&Value> {
        self.index.get(key)
    }

    /// Whether a component is there.
    pub(crate) fn has(&self, component: &str) -> bool {
        self.class_of(component).is_some()
    }

    /// The class of a component that is there.
    pub(crate) fn class_of(&self, component: &str) -> Option<&str> {
        class_of(&self.index, component)
    }

    pub(crate) fn class(&self) -> &'static PipelineClass {
        self.class
    }

    /// Configuration of the denoiser.
    #[must_use]
    pub fn denoiser(&self) -> &dyn DenoiserConfig {
        &*self.denoiser
    }

    /// Name of the denoiser's component folder.
    #[must_use]
    pub fn denoiser_component(&self) -> &'static str {
        self.class.denoiser
    }

    /// The denoiser's weight files.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// How many parameters the denoiser has without those heads, dimensions and neurons.
    ///
    /// # Errors
    /// If the configuration describes no model.
    pub fn parameters_without(&self, removals: &Removals) -> Result<u64> {
        let wanted = self.denoiser().parameters(removals)?;
        let learned = wanted.values().filter(|wanted| !wanted.constant);
        Ok(learned.map(|wanted| wanted.shape.iter().product::<usize>() as u64).sum())
    }

    /// Whether a tensor of the denoiser's checkpoint is one of its parameters, and not a constant stored with them.
    #[must_use]
    pub fn is_parameter(&self, name: &str) -> bool {
        self.fit.wanted.get(name).is_some_and(|wanted| !wanted.constant)
    }

    /// Reads the weights of the denoiser, and no tensors that it does not know.
    pub(crate) fn load(&self) -> Result<Parameters> {
        self.checkpoint.load_where(|name| self.fit.wanted.contains_key(name))
    }

    /// What a user should know: tensors that no component reads, in a line for each of them, and a size that is not
    /// given.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.denoiser.is_of_unknown_size() {
            let [_, height, width] = self.denoiser.latent_shape();
            let path = self.path.join(self.class.denoiser).join("config.json");
            warnings.push(format!("{}: no sample_size, so latents are {height} x {width}", shown(&path)));
        }
        warnings.extend(self.lacking().map(|(_, problem)| format!("{problem}: nothing can be run")));
        for component in self.class.components.iter().filter(|component| component.has_weights()) {
            let unread = match component.name == self.class.denoiser {
                true => self.fit.unexpected.clone(),
                // One that cannot be read at all is told where it is needed.
                false => self.unread_of(component).unwrap_or_default(),
            };
            warnings.extend(self::unread(&shown(&self.path.join(component.name)).to_string(), &unread));
        }
        warnings
    }

    /// The names of the tensors of a text encoder or an autoencoder that it does not know; none of what is not there.
    fn unread_of(&self, component: &Component) -> Result<Vec<String>> {
        let Some(class) = self.class_of(component.name) else { return Ok(Vec::new()) };
        let folder = self.path.join(component.name);
        let config = folder.join("config.json");
        let checkpoint = Checkpoint::open(&folder, component.stem(), self.variant())?;
        Ok(match (class, &self.vae) {
            ("T5EncoderModel", _) => {
                let config = T5Config::open(&config)?;
                checkpoint.fit(|scope| T5Encoder::new(&config, scope))?
            }
            ("CLIPTextModel" | PROJECTED, _) => {
                let config = ClipTextConfig::open(&config)?;
                checkpoint.fit(|scope| ClipTextModel::new(&config, class == PROJECTED, scope))?
            }
            (_, Some(vae)) => vae.fit(&checkpoint)?,
            (_, None) => return Ok(Vec::new()),
        }
        .unexpected)
    }

    /// Components of which there are configurations alone, without weights or vocabulary, and what they lack: such a model
    /// can be planned for.
    fn lacking(&self) -> impl Iterator<Item = (&'static Component, String)> {
        self.class.components.iter().filter(|component| self.has(component.name)).filter_map(|component| {
            let folder = self.path.join(component.name);
            let has = |names: &[&str]| names.iter().any(|name| folder.join(name).is_file());
            let lacks = match component.name {
                name if name == SCHEDULER.name => false,
                _ if component.has_weights() => variants(&folder, component.stem()).is_ok_and(|found| found.is_empty()),
                _ => !has(&["tokenizer.json", "vocab.json", "spiece.model"]),
            };
            let what = if component.has_weights() { "weights (safetensors)" } else { "vocabulary" };
            lacks.then(|| (component, format!("{}: no {what} here", shown(&folder))))
        })
    }

    /// Those of the others that are there.
    fn whole_components(&self) -> impl Iterator<Item = &'static Component> {
        let lacking: BTreeSet<&str> = self.lacking().map(|(component, _)| component.name).collect();
        let components = self.class.components.iter().filter(|component| self.has(component.name));
        components.filter(move |component| !lacking.contains(component.name))
    }

    /// Fails where weights or a vocabulary are missing, before any are read.
    ///
    /// # Errors
    /// As told.
    pub fn check_whole(&self) -> Result<()> {
        self.lacking().next().map_or(Ok(()), |(_, problem)| Err(Error::Request(problem)))
    }

    /// Whether the components beside the denoiser can be used, and fit it, before weights are read.
    fn check_components(&self) -> Result<()> {
        let channels = self.denoiser.latent_shape()[0];
        if let Some(vae) = autoencoder_of(self.class, &self.path, &self.index)?
            && vae.channels() != channels
        {
            let problem = format!(
                "in_channels {channels}, and the latents of the vae have {}: models of other inputs, such as those that \
                 paint in, are not supported",
                vae.channels()
            );
            return Err(Error::invalid(self.path.join(self.class.denoiser).join("config.json"), problem));
        }
        for component in self.whole_components() {
            let folder = self.path.join(component.name);
            match self.class_of(component.name) {
                _ if component.name == self.class.denoiser => Ok(()),
                Some("CLIPTokenizer") => ClipTokenizer::open(&folder).map(drop),
                Some("T5Tokenizer") => T5Tokenizer::open(&folder).map(drop),
                _ if component.has_weights() => self.unread_of(component).map(drop),
                _ => Ok(()),
            }?;
        }
        Ok(())
    }

    /// What text encoders do not read of prompts that are too long, in a line for each of them.
    ///
    /// # Errors
    /// If a tokenizer cannot be opened, or fails.
    pub fn cuts(&self, prompts: &[String], sampling: &Sampling) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        let length = sampling.max_sequence_length;
        for component in self.whole_components() {
            let folder = self.path.join(component.name);
            let (tokens, cut): (usize, Vec<Option<&str>>) = match self.class_of(component.name) {
                Some("CLIPTokenizer") => {
                    let tokenizer = ClipTokenizer::open(&folder)?;
                    (tokenizer.length(), prompts.iter().map(|prompt| tokenizer.cut(prompt)).collect::<Result<_>>()?)
                }
                Some("T5Tokenizer") if length > 0 => {
                    let tokenizer = T5Tokenizer::open(&folder)?;
                    (length, prompts.iter().map(|prompt| tokenizer.cut(prompt, length)).collect::<Result<_>>()?)
                }
                _ => continue,
            };
            let mut long = (1..).zip(cut).filter_map(|(number, cut)| Some((number, cut?)));
            if let Some((number, words)) = long.next() {
                let rest = if words.chars().nth(LONGEST_SHOWN).is_some() { "..." } else { "" };
                let words = words.chars().take(LONGEST_SHOWN).collect::<String>() + rest;
                let more = match long.count() {
                    0 => String::new(),
                    more => format!(", and {more} more are too long"),
                };
                lines.push(format!(
                    "of prompt {number} {words:?} is not read: it is beyond the {tokens} tokens of {}{more}",
                    component.name
                ));
            }
        }
        Ok(lines)
    }

    /// Whether its pictures can be drawn and compared.
    ///
    /// # Errors
    /// If they are not of three channels.
    pub fn check_pictures(&self) -> Result<()> {
        match self.denoiser.latent_shape()[0] {
            channels if self.vae.is_none() && channels != 3 => {
                let problem =
                    format!("draws pictures of {channels} channel(s): those of 3 can be written and compared");
                Err(Error::invalid(self.path.join(self.class.denoiser).join("config.json"), problem))
            }
            _ => Ok(()),
        }
    }

    /// The sampler that `secateur.json` names, or else the one of `model_index.json`.
    ///
    /// # Errors
    /// If that is not supported.
    pub fn sampler(&self) -> Result<Sampler> {
        let found = self.class_of(SCHEDULER.name).unwrap_or_default();
        let sampler = self.manifest.sampler().or_else(|| Sampler::of_class(found));
        sampler.ok_or_else(|| {
            let known = Sampler::known(self.is_of_flow()).join(", ");
            let problem = format!("scheduler {found} is not supported; the samplers {known} are, and can be asked for");
            Error::invalid(self.path.join(INDEX), problem)
        })
    }

    /// A sampler that goes with a model of one that is not supported.
    fn stand_in(&self) -> Sampler {
        match self.is_of_flow() {
            true => Sampler::FlowMatchEuler,
            false => Sampler::Ddim,
        }
    }

    /// Whether its own sampler follows the velocity of a flow.
    fn is_of_flow(&self) -> bool {
        self.class_of(SCHEDULER.name).is_some_and(|class| class.starts_with("FlowMatch"))
    }

    /// The sampler asked for, with the configuration of its own.
    ///
    /// # Errors
    /// See [`scheduler_config`].
    pub fn scheduler(&self, asked: Sampler) -> Result<Arc<dyn SchedulerConfig>> {
        if asked.is_of_flow() != self.is_of_flow() {
            let class = self.class_of(SCHEDULER.name).unwrap_or_default();
            let own = Sampler::of_class(class).map_or_else(|| class.to_owned(), |own| own.to_string());
            return Err(Error::Request(format!("sampler {asked} does not go with a model that is sampled by {own}")));
        }
        scheduler_config(&self.path.join(SCHEDULER_CONFIG), asked, self.class.scheduler_options)
    }

    /// A run of its sampler, or of the one asked for, for latents of `size` (height, width).
    ///
    /// # Errors
    /// See [`ModelFolder::scheduler`] and [`SchedulerConfig::schedule`](crate::SchedulerConfig::schedule).
    pub fn schedule(&self, size: (usize, usize), sampling: &Sampling) -> Result<Box<dyn Schedule>> {
        self.scheduler(sampling.sampler)?.schedule(Run {
            steps: sampling.steps,
            tokens: self.denoiser.image_tokens(size),
            even_levels: self.class.even_levels,
        })
    }

    /// Whether the model can be sampled so, before anything is loaded.
    ///
    /// # Errors
    /// If not: the error says why.
    pub fn check(&self, sampling: &Sampling) -> Result<()> {
        self.check_components()?;
        let (step, largest) = (self.factor() * self.denoiser.patch(), self.denoiser.largest_side());
        for (side, latents) in [("height", sampling.latent.0), ("width", sampling.latent.1)] {
            let pixels = latents.saturating_mul(self.factor());
            if latents == 0 || !pixels.is_multiple_of(step) {
                return Err(Error::Request(format!("a {side} of {pixels} pixels is not a multiple of {step}")));
            }
            if latents > largest {
                let most = largest * self.factor();
                return Err(Error::Request(format!(
                    "a {side} of {pixels} pixels, and this model draws at most {most}"
                )));
            }
        }
        if !sampling.negative_prompt.is_empty()
            && (self.passes(sampling.guidance) < 2 || self.subject() != Subject::Text)
        {
            let problem = "a negative prompt says nothing to this model, or without guidance above 1";
            return Err(Error::Request(problem.into()));
        }
        self.schedule(sampling.latent, sampling).map(|_| ())
    }

    /// Samples that the denoiser computes for one image at every call: two where guidance asks what it would draw without
    /// the prompt.
    #[must_use]
    pub fn passes(&self, guidance: f64) -> usize {
        if self.class.classifier_free && guidance > 1.0 { 2 } else { 1 }
    }

    /// Samples that the denoiser computes for one image in a whole run.
    ///
    /// # Errors
    /// As [`ModelFolder::schedule`].
    pub fn samples_of_run(&self, sampling: &Sampling) -> Result<usize> {
        Ok(self.passes(sampling.guidance) * self.schedule(sampling.latent, sampling)?.calls().len())
    }

    /// Every file that the denoiser's activations depend on, relative to the folder: of all components but the autoencoder
    /// those that are read.
    ///
    /// # Errors
    /// If the weights of a text encoder cannot be opened.
    pub fn activation_files(&self) -> Result<Vec<PathBuf>> {
        // What was removed counts, too.
        let own = [INDEX, MANIFEST].map(PathBuf::from);
        let mut files: Vec<PathBuf> = own.into_iter().filter(|file| self.tree.files.contains(file)).collect();
        let components = self.class.components.iter().filter(|component| component.name != VAE.name);
        for component in components.filter(|component| self.has(component.name)) {
            let folder = Path::new(component.name);
            let own = self.tree.files.iter().filter(|file| file.parent() == Some(folder));
            files.extend(own.filter(|file| tree::is_description(file)).cloned());
            if component.has_weights() {
                let weights = Checkpoint::open(&self.path.join(folder), component.stem(), self.variant())?;
                files.extend(weights.paths().filter_map(Path::file_name).map(|name| folder.join(name)));
            }
        }
        files.sort();
        Ok(files)
    }

    /// What is computed at a call.
    #[must_use]
    pub fn geometry(&self, sampling: &Sampling) -> Geometry {
        Geometry { latent: sampling.latent, text: self.clip_tokens + sampling.max_sequence_length }
    }

    /// What a call takes for `samples` samples.
    #[must_use]
    pub fn memory(&self, sampling: &Sampling, samples: usize) -> Memory {
        let parameters = self.checkpoint.tensors().map(|(_, info)| info.elements() as u64).sum();
        self.computed_structure(sampling).memory(parameters, samples)
    }

    /// [`ModelFolder::structure`] without the text tokens that are equal to others and not computed, see
    /// [`Conditioning::multiplicity`](crate::Conditioning).
    #[must_use]
    pub fn computed_structure(&self, sampling: &Sampling) -> Structure {
        let absent = |component: &&Component| component.has_weights() && !self.has(component.name);
        let idle = match self.class.components.iter().find(absent) {
            Some(_) => sampling.max_sequence_length.saturating_sub(1),
            None => 0,
        };
        let geometry = self.geometry(sampling);
        let geometry = Geometry { text: geometry.text - idle, ..geometry };
        self.denoiser.structure(&geometry).without(self.removals())
    }

    /// What the text encoders take as long as the pipeline is open. Those without files count as nothing; activations are
    /// not counted, as the denoiser's or the encoders' own weights are more.
    #[must_use]
    pub fn text_encoder_memory(&self) -> Memory {
        let is_encoder = |c: &&Component| c.has_weights() && ![self.class.denoiser, VAE.name].contains(&c.name);
        let mut memory = Memory::default();
        for checkpoint in self.class.components.iter().filter(is_encoder).filter_map(|c| self.component(c)) {
            for (name, info) in checkpoint.tensors() {
                let bytes = (size_of::<f32>() * info.elements()) as u64;
                memory.weights += bytes;
                let is_table = ["embed", "shared"].iter().any(|part| name.contains(part));
                if info.shape.len() > 1 && !is_table {
                    memory.packed_weights += bytes;
                }
            }
        }
        memory
    }

    /// What the autoencoder takes, which decodes one picture at a time; nothing where there is none.
    #[must_use]
    pub fn autoencoder_memory(&self, sampling: &Sampling) -> Memory {
        let Some(config) = &self.vae else { return Memory::default() };
        let elements = |c: Checkpoint| c.tensors().map(|(_, info)| info.elements()).sum::<usize>();
        let decoder = config.decoder(sampling.latent);
        let bytes = size_of::<f32>() as u64;
        Memory {
            weights: bytes * self.component(&VAE).map_or(0, elements) as u64,
            packed_weights: bytes * decoder.iter().map(Operation::weights).sum::<u64>(),
            activations: decoder.iter().map(Operation::alive_bytes).max().unwrap_or(0),
        }
    }

    /// Bytes that decoding one picture keeps for gradients.
    #[must_use]
    pub fn decoder_graph_bytes(&self, sampling: &Sampling) -> u64 {
        let decoder = self.vae.iter().flat_map(|config| config.decoder(sampling.latent));
        decoder.map(|operation| operation.graph_bytes()).sum()
    }

    /// The weight files of a component, where it has any.
    fn component(&self, component: &Component) -> Option<Checkpoint> {
        Checkpoint::open(&self.path.join(component.name), component.stem(), self.variant()).ok()
    }

    /// The denoiser's description of itself.
    #[must_use]
    pub fn structure(&self, sampling: &Sampling) -> Structure {
        self.whole_structure(sampling).without(self.removals())
    }

    /// The same of the model that its configuration describes, with all heads and neurons.
    #[must_use]
    pub fn whole_structure(&self, sampling: &Sampling) -> Structure {
        self.denoiser.structure(&self.geometry(sampling))
    }

    /// The prompts of a list that comes with the model.
    ///
    /// # Errors
    /// If the model has none, or the file cannot be read.
    pub fn prompts(&self, list: impl Fn(&Prompts) -> &PathBuf) -> Result<Option<Vec<String>>> {
        let own = self.manifest.prompts.as_ref().map(|prompts| tree::inside(&self.path, list(prompts)));
        own.transpose()?.map(|path| read_prompts(&path)).transpose()
    }

    /// Whether the model can be told these, before anything is loaded.
    ///
    /// # Errors
    /// If one is no label of a model that knows classes.
    pub fn check_prompts(&self, prompts: &[String]) -> Result<()> {
        if self.class.subject != Subject::Label {
            return Ok(());
        }
        let labels = self.labels()?;
        prompts.iter().try_for_each(|prompt| labels.find(prompt).map(drop))
    }

    /// What pictures of each of `prompts` are scored against, and all that there is to choose from: one caption a label
    /// for a model that knows classes, else the prompts themselves; nothing for a model that takes none or names no classes.
    ///
    /// # Errors
    /// If a prompt is no label, or the captions cannot be read or are not as many as the labels.
    pub fn captions(&self, prompts: &[String]) -> Result<Option<Captions>> {
        match self.class.subject {
            Subject::Nothing => Ok(None),
            Subject::Text => Ok(Some(Captions { choices: prompts.to_vec(), own: (0..prompts.len()).collect() })),
            Subject::Label => {
                let labels = self.labels()?;
                if labels.names.is_empty() { Ok(None) } else { self.captions_of(&labels, prompts).map(Some) }
            }
        }
    }

    fn captions_of(&self, labels: &Labels, prompts: &[String]) -> Result<Captions> {
        let mut choices: Vec<String> = labels.iter().map(|(_, name)| name.to_owned()).collect();
        if let Some(file) = &self.manifest.captions {
            let path = tree::inside(&self.path, file)?;
            let captions = read_prompts(&path)?;
            if captions.len() != choices.len() {
                let problem = format!("{} captions, and the model knows {} labels", captions.len(), choices.len());
                return Err(Error::invalid(path, problem));
            }
            choices = captions;
        }
        let place = |prompt: &String| {
            let label = labels.find(prompt)?;
            let place = labels.iter().position(|(number, _)| number == label);
            place.ok_or_else(|| Error::Request(format!("label {label} has no name to score its pictures against")))
        };
        Ok(Captions { own: prompts.iter().map(place).collect::<Result<_>>()?, choices })
    }
}

/// What pictures are scored against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captions {
    /// All texts.
    pub choices: Vec<String>,
    /// For each prompt, which of them is its own.
    pub own: Vec<usize>,
}

/// What a model folder is, and its `model_index.json`, whose components have been checked.
pub(crate) fn read_index(path: &Path) -> Result<(&'static PipelineClass, Map<String, Value>)> {
    if path.is_file() {
        let kind = SingleFile::open(path)?.kind();
        let problem = format!(
            "a {kind} checkpoint in one file, not a model folder: secateur convert FILE --like FOLDER --out DIR makes a \
             folder of it, with the configurations of FOLDER, a diffusers folder of the same kind of model"
        );
        return Err(Error::invalid(path, problem));
    }
    let index_path = path.join(INDEX);
    if !index_path.is_file() {
        let problem = match nearby(path) {
            _ if !path.exists() => "no such folder".into(),
            Some(other) => format!("not a model folder itself: give {}", shown(&other)),
            None => "not a model folder in the diffusers layout: no model_index.json".into(),
        };
        return Err(Error::invalid(path, problem));
    }
    let index: Map<String, Value> = read_json(&index_path, Limit::Config)?;
    let name = index.get("_class_name").and_then(Value::as_str).unwrap_or("(none)");
    let Some(class) = CLASSES.into_iter().find(|class| class.name == name) else {
        let supported: Vec<&str> = CLASSES.iter().map(|class| class.name).collect();
        let problem = format!("_class_name {name:?} is not supported; supported: {}", supported.join(", "));
        return Err(Error::invalid(&index_path, problem));
    };
    for component in class.components {
        check_component(component, path, &index)?;
    }
    Ok((class, index))
}

/// A model folder above a folder, or in it: as it stands there, or as the hub's cache keeps it.
fn nearby(folder: &Path) -> Option<PathBuf> {
    let inside = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut below: Vec<_> = inside(folder).chain(inside(&folder.join("snapshots"))).collect();
    below.sort();
    let above = folder.canonicalize().ok()?.parent().map(Path::to_owned);
    above.into_iter().chain(below).find(|folder| folder.join(INDEX).is_file())
}

/// The class of a component that is there.
pub(crate) fn class_of<'a>(index: &'a Map<String, Value>, component: &str) -> Option<&'a str> {
    let class = index.get(component)?.get(1)?.as_str()?;
    Some(class.strip_suffix("Fast").unwrap_or(class))
}

/// Whether a component is of a class that is supported, and its folder there.
fn check_component(component: &Component, path: &Path, index: &Map<String, Value>) -> Result<()> {
    let Component { name, classes, optional } = component;
    match class_of(index, name) {
        None if *optional => return Ok(()),
        Some(class) if classes.is_empty() || classes.contains(&class) => {}
        found => {
            let found = found.unwrap_or("nothing");
            let supported = if classes.is_empty() { "one" } else { &classes.join(" or ") };
            let problem = format!("component {name} is {found}; {supported} is supported");
            return Err(Error::invalid(path.join(INDEX), problem));
        }
    }
    if !path.join(name).is_dir() {
        let problem = format!("component {name} is listed in model_index.json, and its folder is missing");
        return Err(Error::invalid(path, problem));
    }
    Ok(())
}

/// What is said of tensors of a file or folder that nothing reads.
pub(crate) fn unread(origin: &str, names: &[String]) -> Option<String> {
    match names {
        [] => None,
        [name] => Some(format!("{origin}: tensor {name} is not read")),
        [first, ..] => Some(format!("{origin}: {} tensors are not read, the first of them {first}", names.len())),
    }
}

/// The denoiser's configuration in the model folder `path`. It is of the class that `model_index.json` lists, whatever
/// it says itself, and as the pipeline corrects it.
pub(crate) fn denoiser_of(
    class: &PipelineClass,
    path: &Path,
    index: &Map<String, Value>,
) -> Result<Arc<dyn DenoiserConfig>> {
    let path = path.join(class.denoiser).join("config.json");
    let mut fields = config_fields(&path)?;
    let listed = class_of(index, class.denoiser).unwrap_or_default();
    let own = fields.insert("_class_name".into(), listed.into());
    (class.repair)(&mut fields);
    denoiser_config_of(&path, &fields).map_err(listed_as(listed, own))
}

/// An error in a configuration that names another class than the one it is read as.
fn listed_as(listed: &str, own: Option<Value>) -> impl FnOnce(Error) -> Error {
    move |error| match (error, own.as_ref().and_then(Value::as_str).filter(|own| *own != listed)) {
        (Error::Invalid { path, problem }, Some(own)) => {
            Error::invalid(path, format!("{problem} (model_index.json lists a {listed}, and _class_name is {own})"))
        }
        (error, _) => error,
    }
}

/// The configuration of the autoencoder in the model folder `path`, where the class has one.
fn autoencoder_of(
    class: &PipelineClass,
    path: &Path,
    index: &Map<String, Value>,
) -> Result<Option<Arc<dyn AutoencoderConfig>>> {
    if !class.components.iter().any(|component| component.name == VAE.name) {
        return Ok(None);
    }
    let (listed, path) = (class_of(index, VAE.name).unwrap_or_default(), path.join(VAE.name).join("config.json"));
    let own = config_fields(&path)?.get("_class_name").cloned();
    autoencoder_config_of(&path, listed).map(Some).map_err(listed_as(listed, own))
}

/// Whether any component has weights of that variant.
fn check_variant(class: &PipelineClass, path: &Path, variant: &str) -> Result<()> {
    let mut found = BTreeSet::new();
    for component in class.components.iter().filter(|component| component.has_weights()) {
        let folder = path.join(component.name);
        if folder.is_dir() {
            found.extend(variants(&folder, component.stem())?);
        }
    }
    if found.contains(variant) {
        return Ok(());
    }
    let found: Vec<_> = found.iter().map(|v| if v.is_empty() { "(none)" } else { v }).collect();
    let problem = format!("no component has weights of variant {variant:?}; variants found: {}", found.join(", "));
    Err(Error::invalid(path, problem))
}
