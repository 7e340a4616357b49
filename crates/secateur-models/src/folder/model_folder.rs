//! A model folder in the diffusers layout, without its weights.

use crate::autoencoders::{Autoencoder, AutoencoderConfig};
use crate::classes::{
    Component, Components, INDEX, Labels, PipelineClass, SCHEDULER, Sampling, Subject, VAE,
};
use crate::encoders::{
    ClipTextConfig, ClipTextModel, ClipTokenizer, PROJECTED, T5Config, T5Encoder, T5Tokenizer,
    row_length, tokenizers,
};
use crate::error::{Error, Result, invalid, shown};
use crate::families::DenoiserConfig;
use crate::files::{Checkpoint, DIFFUSERS_STEM, Digests, Tree, tree, variants};
use crate::folder::index;
use crate::folder::index::{autoencoder_of, check_variant, denoiser_of, read_index};
use crate::folder::manifest::{MANIFEST, Manifest};
use crate::observer::Observer;
use crate::structure::{Description, Geometry, Removals, Structure};
use secateur_nn::{Fit, Kind, Parameters, Placement};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A model folder.
#[derive(Clone, Debug)]
pub struct ModelFolder {
    pub(super) components: Components,
    pub(super) class: &'static PipelineClass,
    pub(super) tree: Tree,
    pub(super) manifest: Manifest,
    /// CLIP's tokens, if the denoiser reads them.
    pub(super) clip_tokens: usize,
    /// `None` if the denoiser works on pictures, or if the autoencoder cannot be read, which
    /// [`ModelFolder::check`] reports.
    pub(super) vae: Option<Arc<dyn AutoencoderConfig>>,
    pub(super) checkpoint: Checkpoint,
    /// The denoiser's description by its configuration, and that without the removals.
    pub(super) whole: Arc<Description>,
    own: Arc<Description>,
    /// How the denoiser fits its checkpoint.
    pub(super) fit: Arc<Fit>,
    digests: Arc<Digests>,
    /// Bytes of the denoiser's weights that are kept in memory.
    pub(super) kept: u64,
}

impl ModelFolder {
    /// Opens a folder: reads the denoiser's configuration and the headers of its weights.
    /// [`ModelFolder::check`] checks all else that sampling needs.
    ///
    /// # Errors
    /// If it is not a diffusers folder, lacks a component, is of an unsupported class, or is
    /// damaged.
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
                row_length(&folder.join(tokenizers::CONFIG), &tokenizers::config(&folder)?)?
            }
            false => 0,
        };
        let component = path.join(class.denoiser);
        let denoiser = denoiser_of(class, path, &index)?;
        let checkpoint = Checkpoint::open(&component, DIFFUSERS_STEM, variant)?;
        let manifest_path = path.join(MANIFEST);
        let whole = denoiser.describe(&Removals::default())?;
        if let Some(problem) = manifest.removals().problem(whole.groups()) {
            return Err(Error::invalid(manifest_path, problem));
        }
        let own = denoiser.describe(manifest.removals())?;
        // What does not fit is known before anything is read.
        let sizes = manifest.removals().sizes();
        let fit = checkpoint
            .placeholders()?
            .with_sizes(sizes)
            .fit(|scope| denoiser.build(&scope.into()))?;
        Ok(Self {
            vae: autoencoder_of(class, path, &index).ok().flatten(),
            components: Components {
                path: path.to_owned(),
                variant: variant.map(str::to_owned),
                index,
                placement: Placement::cpu(),
                denoiser,
            },
            checkpoint,
            whole: Arc::new(whole),
            own: Arc::new(own),
            fit: Arc::new(fit),
            digests: Arc::default(),
            kept: u64::MAX,
            class,
            tree,
            clip_tokens,
            manifest,
        })
    }

    /// The path of the folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.components.path
    }

    /// The last part of the folder's path.
    #[must_use]
    pub fn name(&self) -> String {
        let path =
            self.components.path.canonicalize().unwrap_or_else(|_| self.components.path.clone());
        path.file_name().map_or_else(|| "model".into(), |name| shown(name.as_ref()).to_string())
    }

    /// The files of the folder, as they were when it was opened.
    pub(crate) fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Bytes of all files that are copied to a new model: all but the denoiser's weights.
    ///
    /// # Errors
    /// If a file cannot be copied. The error names it.
    pub fn copied_bytes(&self) -> Result<u64> {
        self.tree.check()?;
        let bytes =
            |file: &Path| self.components.path.join(file).metadata().map_or(0, |found| found.len());
        Ok(self.tree.without(&[self.class.denoiser]).map(bytes).sum())
    }

    /// Digest of all files that a new model is made from: the denoiser's opened weights, and the
    /// files that are copied.
    ///
    /// # Errors
    /// If a file cannot be read, or the observer stops the work.
    pub fn digest(&self, observer: &dyn Observer) -> Result<String> {
        let denoiser = Path::new(self.class.denoiser);
        let weights =
            self.checkpoint.paths().filter_map(Path::file_name).map(|name| denoiser.join(name));
        let files: Vec<_> =
            self.tree.without(&[self.class.denoiser]).map(Path::to_owned).chain(weights).collect();
        self.digest_of(&files, observer)
    }

    /// Digest of the names and contents of some files of the folder. Each is read once while this
    /// folder is open.
    ///
    /// # Errors
    /// If a file cannot be read, or the observer stops the work.
    pub fn digest_of(&self, files: &[PathBuf], observer: &dyn Observer) -> Result<String> {
        self.digests.of(&self.components.path, files, observer)
    }

    /// Links in the folder that are neither read nor copied. They lead outside the folder, nowhere,
    /// to a folder or to another link.
    pub fn links_left_out(&self) -> impl Iterator<Item = &Path> {
        self.tree.links.iter().map(PathBuf::as_path)
    }

    /// The requested variant of the weight files.
    #[must_use]
    pub fn variant(&self) -> Option<&str> {
        self.components.variant.as_deref()
    }

    /// The model's `secateur.json`.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The heads, dimensions and neurons that the denoiser lacks.
    #[must_use]
    pub fn removals(&self) -> &Removals {
        self.manifest.removals()
    }

    /// Height and width, in pixels, of the square that one latent becomes.
    #[must_use]
    pub fn factor(&self) -> usize {
        self.vae.as_ref().map_or(1, |vae| vae.factor())
    }

    /// The pipeline class in diffusers.
    #[must_use]
    pub fn class_name(&self) -> &'static str {
        self.class.name
    }

    /// Loads the autoencoder, if there is one.
    pub(crate) fn autoencoder(&self) -> Result<Option<Box<dyn Autoencoder>>> {
        let vae = autoencoder_of(self.class, &self.components.path, &self.components.index)?;
        let load = |vae: Arc<dyn AutoencoderConfig>| {
            let folder = self.components.path.join(VAE.name);
            let checkpoint = Checkpoint::open(&folder, DIFFUSERS_STEM, self.variant())?;
            vae.load(&checkpoint.at(&VAE.placement(self.placement())))
        };
        vae.map(load).transpose()
    }

    /// The kind of prompt that the model takes.
    #[must_use]
    pub fn subject(&self) -> Subject {
        self.class.subject
    }

    /// The folder, with its components loaded to `placement` from now on.
    #[must_use]
    pub fn at(mut self, placement: Placement) -> Self {
        self.components.placement = placement;
        self
    }

    /// The device and type that components are loaded to.
    #[must_use]
    pub fn placement(&self) -> &Placement {
        &self.components.placement
    }

    /// The folder, with as many of the denoiser's weights kept in memory from now on as fit into
    /// `bytes`. The others are read each time they are used.
    #[must_use]
    pub fn within(mut self, bytes: u64) -> Self {
        self.kept = bytes;
        self
    }

    /// The components, without their weights.
    pub(crate) fn components(&self) -> &Components {
        &self.components
    }

    /// The names of the model's classes.
    ///
    /// # Errors
    /// If `id2label` is not a table of numbers and names.
    pub fn labels(&self) -> Result<Labels> {
        self.components.labels()
    }

    pub(crate) fn class(&self) -> &'static PipelineClass {
        self.class
    }

    /// The configuration of the denoiser.
    #[must_use]
    pub fn denoiser(&self) -> &dyn DenoiserConfig {
        &*self.components.denoiser
    }

    /// The name of the denoiser's component folder.
    #[must_use]
    pub fn denoiser_component(&self) -> &'static str {
        self.class.denoiser
    }

    /// The denoiser's weight files.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Number of parameters of the denoiser without `removals`.
    ///
    /// # Errors
    /// If the configuration describes no model.
    pub fn parameters_without(&self, removals: &Removals) -> Result<u64> {
        let wanted = self.denoiser().parameters(removals)?;
        let learned = wanted.values().filter(|wanted| wanted.kind != Kind::Constant);
        Ok(learned.map(|wanted| wanted.shape.iter().product::<usize>() as u64).sum())
    }

    /// Whether a tensor of the denoiser's checkpoint is a parameter. Constants that are stored with
    /// the weights are not.
    #[must_use]
    pub fn is_parameter(&self, name: &str) -> bool {
        self.fit.wanted.get(name).is_some_and(|wanted| wanted.kind != Kind::Constant)
    }

    /// Reads the denoiser's weights: those that do not fit into the memory that it may take, each
    /// time they are used. Tensors that the model does not take are not read.
    pub(crate) fn load(&self) -> Result<Parameters> {
        let checkpoint = self.checkpoint.clone().at(self.placement()).passing(self.passing());
        checkpoint.load_where(|name| self.fit.wanted.contains_key(name))
    }

    /// Warnings for the user, one per line: an unknown training size, components that lack weights
    /// or a vocabulary, and tensors that no component reads.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.components.denoiser.is_of_unknown_size() {
            let [_, height, width] = self.components.denoiser.latent_shape();
            let path = self.components.path.join(self.class.denoiser).join("config.json");
            warnings.push(format!(
                "{}: no sample_size, so latents are {height} x {width}",
                shown(&path)
            ));
        }
        warnings
            .extend(self.lacking().map(|(_, problem)| format!("{problem}: nothing can be run")));
        for component in self.class.components.iter().filter(|component| component.has_weights()) {
            let unread = match component.name == self.class.denoiser {
                true => self.fit.unexpected.clone(),
                // One that cannot be read at all is reported where it is needed.
                false => self.unread_of(component).unwrap_or_default(),
            };
            warnings.extend(index::unread(
                &shown(&self.components.path.join(component.name)).to_string(),
                &unread,
            ));
        }
        warnings
    }

    /// Names of the tensors that a text encoder or the autoencoder does not take. Empty for an
    /// absent component.
    fn unread_of(&self, component: &Component) -> Result<Vec<String>> {
        let Some(class) = self.components.class_of(component.name) else { return Ok(Vec::new()) };
        let folder = self.components.path.join(component.name);
        let config = folder.join("config.json");
        let checkpoint = Checkpoint::open(&folder, component.stem(), self.variant())?;
        Ok(match (class, &self.vae) {
            ("T5EncoderModel", _) => {
                let config = T5Config::open(&config)?;
                checkpoint.fit(|scope| T5Encoder::new(&config, &scope))?
            }
            ("CLIPTextModel" | PROJECTED, _) => {
                let config = ClipTextConfig::open(&config)?;
                checkpoint
                    .fit(|scope| ClipTextModel::new(&config, class == PROJECTED, &scope.into()))?
            }
            (_, Some(vae)) => vae.fit(&checkpoint)?,
            (_, None) => return Ok(Vec::new()),
        }
        .unexpected)
    }

    /// Components with a configuration but without weights or a vocabulary, and the parts that they
    /// lack. Such a model can be planned for, but not run.
    fn lacking(&self) -> impl Iterator<Item = (&'static Component, String)> {
        self.class
            .components
            .iter()
            .filter(|component| self.components.has(component.name))
            .filter_map(|component| {
                let folder = self.components.path.join(component.name);
                let has = |names: &[&str]| names.iter().any(|name| folder.join(name).is_file());
                let lacks = match component.name {
                    name if name == SCHEDULER.name => false,
                    _ if component.has_weights() => {
                        variants(&folder, component.stem()).is_ok_and(|found| found.is_empty())
                    }
                    _ => !has(&["tokenizer.json", "vocab.json", "spiece.model"]),
                };
                let what =
                    if component.has_weights() { "weights (safetensors)" } else { "vocabulary" };
                lacks.then(|| (component, format!("{}: no {what} here", shown(&folder))))
            })
    }

    /// The same for the components besides the denoiser.
    pub(super) fn whole_components(&self) -> impl Iterator<Item = &'static Component> {
        let lacking: BTreeSet<&str> = self.lacking().map(|(component, _)| component.name).collect();
        let components =
            self.class.components.iter().filter(|component| self.components.has(component.name));
        components.filter(move |component| !lacking.contains(component.name))
    }

    /// Fails if weights or a vocabulary are missing, before any are read.
    ///
    /// # Errors
    /// If something is missing. The error names it.
    pub fn check_whole(&self) -> Result<()> {
        self.lacking().next().map_or(Ok(()), |(_, problem)| Err(Error::Folder(problem)))
    }

    /// Checks, before weights are read, that the other components can be used and fit the denoiser.
    pub(super) fn check_components(&self) -> Result<()> {
        let channels = self.components.denoiser.latent_shape()[0];
        if let Some(vae) =
            autoencoder_of(self.class, &self.components.path, &self.components.index)?
            && vae.channels() != channels
        {
            invalid!(
                self.components.path.join(self.class.denoiser).join("config.json"),
                "in_channels {channels}, and the latents of the vae have {}: models of other \
                 inputs, such as those that \
                 paint in, are not supported",
                vae.channels()
            );
        }
        for component in self.whole_components() {
            let folder = self.components.path.join(component.name);
            match self.components.class_of(component.name) {
                _ if component.name == self.class.denoiser => Ok(()),
                Some("CLIPTokenizer") => ClipTokenizer::open(&folder).map(drop),
                Some("T5Tokenizer") => T5Tokenizer::open(&folder).map(drop),
                _ if component.has_weights() => self.unread_of(component).map(drop),
                _ => Ok(()),
            }?;
        }
        Ok(())
    }

    /// Checks that the model's pictures can be drawn and compared.
    ///
    /// # Errors
    /// If the pictures do not have three channels.
    pub fn check_pictures(&self) -> Result<()> {
        match self.components.denoiser.latent_shape()[0] {
            channels if self.vae.is_none() && channels != 3 => {
                invalid!(
                    self.components.path.join(self.class.denoiser).join("config.json"),
                    "draws pictures of {channels} channel(s): those of 3 can be written and \
                     compared"
                )
            }
            _ => Ok(()),
        }
    }

    /// All files that the denoiser's activations depend on, relative to the folder: those that are
    /// read of all components but the autoencoder.
    ///
    /// # Errors
    /// If the weights of a text encoder cannot be opened.
    pub fn activation_files(&self) -> Result<Vec<PathBuf>> {
        // What was removed counts, too.
        let own = [INDEX, MANIFEST].map(PathBuf::from);
        let mut files: Vec<PathBuf> =
            own.into_iter().filter(|file| self.tree.files.contains(file)).collect();
        let components =
            self.class.components.iter().filter(|component| component.name != VAE.name);
        for component in components.filter(|component| self.components.has(component.name)) {
            let folder = Path::new(component.name);
            let own = self.tree.files.iter().filter(|file| file.parent() == Some(folder));
            files.extend(own.filter(|file| tree::is_description(file)).cloned());
            if component.has_weights() {
                let weights = Checkpoint::open(
                    &self.components.path.join(folder),
                    component.stem(),
                    self.variant(),
                )?;
                files.extend(
                    weights.paths().filter_map(Path::file_name).map(|name| folder.join(name)),
                );
            }
        }
        files.sort();
        Ok(files)
    }

    /// The sizes of latents and text in `sampling`.
    #[must_use]
    pub fn geometry(&self, sampling: &Sampling) -> Geometry {
        Geometry { latent: sampling.latent, text: self.clip_tokens + sampling.max_sequence_length }
    }

    /// As [`ModelFolder::structure`], without the text tokens that are equal to others and are not
    /// computed: see [`Conditioning::multiplicity`](crate::Conditioning).
    #[must_use]
    pub fn computed_structure(&self, sampling: &Sampling) -> Structure {
        self.own.at(&self.computed_geometry(sampling))
    }

    /// The sizes of latents and text, without the text tokens that are equal to others.
    pub(super) fn computed_geometry(&self, sampling: &Sampling) -> Geometry {
        let absent = |component: &&Component| {
            component.has_weights() && !self.components.has(component.name)
        };
        let idle = match self.class.components.iter().find(absent) {
            Some(_) => sampling.max_sequence_length.saturating_sub(1),
            None => 0,
        };
        let geometry = self.geometry(sampling);
        Geometry { text: geometry.text - idle, ..geometry }
    }

    /// The structure of the denoiser, for the sizes of `sampling`.
    #[must_use]
    pub fn structure(&self, sampling: &Sampling) -> Structure {
        self.own.at(&self.geometry(sampling))
    }

    /// The description of the configuration's model without `removals`.
    ///
    /// # Errors
    /// If the configuration does not describe a model.
    pub fn structure_without(&self, sampling: &Sampling, removals: &Removals) -> Result<Structure> {
        Ok(self.denoiser().describe(removals)?.at(&self.geometry(sampling)))
    }
}
