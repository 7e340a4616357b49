//! A model folder in the diffusers layout: what it holds, without loading weights.

use crate::autoencoders::{Autoencoder, AutoencoderConfig};
use crate::classes::{
    Component, Components, INDEX, Labels, PipelineClass, SCHEDULER, Sampling, Subject, VAE,
};
use crate::encoders::{
    ClipTextConfig, ClipTextModel, ClipTokenizer, PROJECTED, T5Config, T5Encoder, T5Tokenizer,
    row_length, tokenizers,
};
use crate::error::{Error, Result, shown};
use crate::families::DenoiserConfig;
use crate::files::{Checkpoint, DIFFUSERS_STEM, Tree, digest_of_files, tree, variants};
use crate::folder::index;
use crate::folder::index::{autoencoder_of, check_variant, denoiser_of, read_index};
use crate::folder::manifest::{MANIFEST, Manifest};
use crate::observer::Observer;
use crate::structure::{Description, Geometry, Removals, Structure};
use secateur_nn::{Fit, Parameters, Placement};
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
    /// CLIP's tokens, where the denoiser reads them.
    pub(super) clip_tokens: usize,
    /// None where the denoiser works on pictures, or it cannot be read, which
    /// [`ModelFolder::check`] tells.
    pub(super) vae: Option<Arc<dyn AutoencoderConfig>>,
    pub(super) checkpoint: Checkpoint,
    /// The denoiser as its configuration describes it, and without what was removed.
    pub(super) whole: Arc<Description>,
    own: Arc<Description>,
    /// How the denoiser fits its checkpoint.
    pub(super) fit: Arc<Fit>,
}

impl ModelFolder {
    /// Opens a folder: reads the denoiser's configuration and the headers of its weights. What else
    /// sampling takes is checked by [`ModelFolder::check`].
    ///
    /// # Errors
    /// If it is not a diffusers folder, misses a component, is of a class that is not supported, or
    /// is damaged.
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
            class,
            tree,
            clip_tokens,
            manifest,
        })
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.components.path
    }

    /// The last part of its path.
    #[must_use]
    pub fn name(&self) -> String {
        let path =
            self.components.path.canonicalize().unwrap_or_else(|_| self.components.path.clone());
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
        let bytes =
            |file: &Path| self.components.path.join(file).metadata().map_or(0, |found| found.len());
        Ok(self.tree.without(&[self.class.denoiser]).map(bytes).sum())
    }

    /// SHA-256 of all files that a new model is made of: the denoiser's weights as they were
    /// opened, and what is copied.
    ///
    /// # Errors
    /// If one cannot be read, or the observer interrupts.
    pub fn digest(&self, observer: &dyn Observer) -> Result<String> {
        let denoiser = Path::new(self.class.denoiser);
        let weights =
            self.checkpoint.paths().filter_map(Path::file_name).map(|name| denoiser.join(name));
        let files: Vec<_> =
            self.tree.without(&[self.class.denoiser]).map(Path::to_owned).chain(weights).collect();
        digest_of_files(&self.components.path, &files, observer)
    }

    /// Links in the folder that are neither read nor copied: they lead out of it, nowhere, to a
    /// folder or to another link.
    pub fn links_left_out(&self) -> impl Iterator<Item = &Path> {
        self.tree.links.iter().map(PathBuf::as_path)
    }

    /// The variant of weight files that was requested.
    #[must_use]
    pub fn variant(&self) -> Option<&str> {
        self.components.variant.as_deref()
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
        let vae = autoencoder_of(self.class, &self.components.path, &self.components.index)?;
        let load = |vae: Arc<dyn AutoencoderConfig>| {
            let folder = self.components.path.join(VAE.name);
            let checkpoint = Checkpoint::open(&folder, DIFFUSERS_STEM, self.variant())?;
            vae.load(&checkpoint.at(&self.placement().beyond_f16()))
        };
        vae.map(load).transpose()
    }

    /// What it draws.
    #[must_use]
    pub fn subject(&self) -> Subject {
        self.class.subject
    }

    /// The same folder, whose components are loaded to `placement`.
    #[must_use]
    pub fn at(mut self, placement: Placement) -> Self {
        self.components.placement = placement;
        self
    }

    /// Where its components are loaded.
    #[must_use]
    pub fn placement(&self) -> &Placement {
        &self.components.placement
    }

    /// Its components, without their weights.
    pub(crate) fn components(&self) -> &Components {
        &self.components
    }

    /// The classes that it knows by name.
    ///
    /// # Errors
    /// If `id2label` is not a table of numbers and names.
    pub fn labels(&self) -> Result<Labels> {
        self.components.labels()
    }

    pub(crate) fn class(&self) -> &'static PipelineClass {
        self.class
    }

    /// Configuration of the denoiser.
    #[must_use]
    pub fn denoiser(&self) -> &dyn DenoiserConfig {
        &*self.components.denoiser
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

    /// Whether a tensor of the denoiser's checkpoint is one of its parameters, and not a constant
    /// stored with them.
    #[must_use]
    pub fn is_parameter(&self, name: &str) -> bool {
        self.fit.wanted.get(name).is_some_and(|wanted| !wanted.constant)
    }

    /// Reads the weights of the denoiser, and no tensors that it does not know.
    pub(crate) fn load(&self) -> Result<Parameters> {
        let checkpoint = self.checkpoint.clone().at(self.placement());
        checkpoint.load_where(|name| self.fit.wanted.contains_key(name))
    }

    /// What a user should know: tensors that no component reads, in a line for each of them, and a
    /// size that is not given.
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

    /// The names of the tensors of a text encoder or an autoencoder that it does not know; none of
    /// what is not there.
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

    /// Components of which there are configurations alone, without weights or vocabulary, and what
    /// they lack: such a model can be planned for.
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

    /// Those of the others that are there.
    pub(super) fn whole_components(&self) -> impl Iterator<Item = &'static Component> {
        let lacking: BTreeSet<&str> = self.lacking().map(|(component, _)| component.name).collect();
        let components =
            self.class.components.iter().filter(|component| self.components.has(component.name));
        components.filter(move |component| !lacking.contains(component.name))
    }

    /// Fails where weights or a vocabulary are missing, before any are read.
    ///
    /// # Errors
    /// As told.
    pub fn check_whole(&self) -> Result<()> {
        self.lacking().next().map_or(Ok(()), |(_, problem)| Err(Error::Folder(problem)))
    }

    /// Whether the components beside the denoiser can be used, and fit it, before weights are read.
    pub(super) fn check_components(&self) -> Result<()> {
        let channels = self.components.denoiser.latent_shape()[0];
        if let Some(vae) =
            autoencoder_of(self.class, &self.components.path, &self.components.index)?
            && vae.channels() != channels
        {
            let problem = format!(
                "in_channels {channels}, and the latents of the vae have {}: models of other \
                 inputs, such as those that \
                 paint in, are not supported",
                vae.channels()
            );
            return Err(Error::invalid(
                self.components.path.join(self.class.denoiser).join("config.json"),
                problem,
            ));
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

    /// Whether its pictures can be drawn and compared.
    ///
    /// # Errors
    /// If they are not of three channels.
    pub fn check_pictures(&self) -> Result<()> {
        match self.components.denoiser.latent_shape()[0] {
            channels if self.vae.is_none() && channels != 3 => {
                let problem = format!(
                    "draws pictures of {channels} channel(s): those of 3 can be written and \
                     compared"
                );
                Err(Error::invalid(
                    self.components.path.join(self.class.denoiser).join("config.json"),
                    problem,
                ))
            }
            _ => Ok(()),
        }
    }

    /// Every file that the denoiser's activations depend on, relative to the folder: of all
    /// components but the autoencoder those that are read.
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

    /// What is computed at a call.
    #[must_use]
    pub fn geometry(&self, sampling: &Sampling) -> Geometry {
        Geometry { latent: sampling.latent, text: self.clip_tokens + sampling.max_sequence_length }
    }

    /// [`ModelFolder::structure`] without the text tokens that are equal to others and not
    /// computed, see [`Conditioning::multiplicity`](crate::Conditioning).
    #[must_use]
    pub fn computed_structure(&self, sampling: &Sampling) -> Structure {
        self.own.at(&self.computed_geometry(sampling))
    }

    /// [`ModelFolder::geometry`] without those text tokens.
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

    /// The denoiser's description of itself.
    #[must_use]
    pub fn structure(&self, sampling: &Sampling) -> Structure {
        self.own.at(&self.geometry(sampling))
    }

    /// The same of the model that its configuration describes without those heads, dimensions and
    /// neurons.
    ///
    /// # Errors
    /// If the configuration describes no model.
    pub fn structure_without(&self, sampling: &Sampling, removals: &Removals) -> Result<Structure> {
        Ok(self.denoiser().describe(removals)?.at(&self.geometry(sampling)))
    }
}
