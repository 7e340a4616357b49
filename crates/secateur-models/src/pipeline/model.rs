//! A pipeline with its weights.

use crate::autoencoders::{Autoencoder, pictures};
use crate::classes::{Sampling, Subject};
use crate::conditioning::Conditioning;
use crate::error::{Result, refuse};
use crate::families::Denoiser;
use crate::files::candle_dtype;
use crate::folder::ModelFolder;
use crate::observer::Observer;
use crate::pipeline::noise::noise;
use crate::pipeline::texts::Texts;
use crate::structure::{Description, Edits, Removals, Site, Structure};
use candle_core::{DType, Tensor};
use secateur_nn::ops::Replay;
use secateur_nn::{Context, Parameters, Placement, Weight};
use std::collections::BTreeMap;
use std::ops::Range;

/// A pipeline with its weights.
pub struct Pipeline {
    folder: ModelFolder,
    parameters: Parameters,
    /// The weights that were edited, as they were given.
    edited: BTreeMap<String, Weight>,
    removals: Removals,
    denoiser: Box<dyn Denoiser>,
    /// Of the calls of the denoiser that are neither watched nor gated. `None` if weights pass: a
    /// recorded call would read them where they no longer are.
    replay: Option<Replay>,
    description: Description,
    texts: Texts,
    /// `None` if the denoiser works on pictures.
    vae: Option<Box<dyn Autoencoder>>,
}

impl Pipeline {
    /// Loads the denoiser and the autoencoder. The text encoders are loaded when a prompt is first
    /// encoded.
    ///
    /// # Errors
    /// If a component's files cannot be read or do not fit each other.
    pub fn open(folder: ModelFolder) -> Result<Self> {
        folder.check_whole()?;
        let texts = Texts::new(folder.components().clone(), folder.class().conditioner);
        Self::with(folder, texts)
    }

    /// Encodes the prompts of a job, drops the text encoders, and then loads the denoiser and the
    /// autoencoder: they are never in memory together. A prompt that was not encoded here is
    /// encoded on first use. `observer` gets both stages.
    ///
    /// # Errors
    /// As [`Pipeline::open`] and [`Pipeline::guided_conditioning`], or if `observer` ends the work.
    pub fn encoded(
        folder: ModelFolder,
        prompts: &[String],
        sampling: &Sampling,
        observer: &dyn Observer,
    ) -> Result<Self> {
        folder.check_whole()?;
        let texts = Texts::new(folder.components().clone(), folder.class().conditioner);
        if folder.subject() == Subject::Text && !prompts.is_empty() {
            observer.begin("encode", prompts.len(), "prompts");
            let size = pixels(&folder, sampling.latent);
            for batch in prompts.chunks(sampling.batch.max(1)) {
                texts.positive(batch, size, sampling)?;
                observer.advance(batch.len())?;
            }
            if folder.passes(sampling.guidance) == 2 {
                texts.negative(size, sampling)?;
            }
            texts.let_go();
        }
        observer.begin("load", 0, "");
        Self::with(folder, texts)
    }

    fn with(folder: ModelFolder, texts: Texts) -> Result<Self> {
        let removals = folder.removals().clone();
        let parameters = folder.load()?.with_sizes(removals.sizes());
        let (denoiser, description) = build(&folder, &parameters)?;
        Ok(Self {
            denoiser,
            replay: replay(&parameters),
            description,
            texts,
            vae: folder.autoencoder()?,
            folder,
            parameters,
            edited: BTreeMap::new(),
            removals,
        })
    }

    /// The folder that the pipeline was opened from.
    #[must_use]
    pub fn folder(&self) -> &ModelFolder {
        &self.folder
    }

    /// The denoiser's weights.
    #[must_use]
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// A parameter of the denoiser as it was last edited, or as the checkpoint has it: where the
    /// denoiser is, in `f32`, whatever it computes in. `None` if there is none of that name.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn parameter(&self, name: &str) -> Result<Option<Tensor>> {
        let exact = self.folder.placement().in_f32();
        if let Some(edited) = self.edited.get(name) {
            return Ok(Some(exact.bring(&edited.tensor()?)?));
        }
        let Some(weight) = self.parameters.get(name) else { return Ok(None) };
        let (checkpoint, placement) = (self.folder.checkpoint(), self.folder.placement());
        let stored = checkpoint.tensor(name).and_then(|info| candle_dtype(info.dtype).ok());
        Ok(Some(match stored.is_some_and(|dtype| placement.keeps(dtype)) {
            true => exact.bring(&weight.tensor()?)?,
            false => checkpoint.clone().at(&exact).read(name)?,
        }))
    }

    /// A parameter in the form in which edits have it. `None` if there is none of that name.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn weight(&self, name: &str) -> Result<Option<Weight>> {
        let own = self.edited.get(name);
        let is_exact = self.folder.placement().is_exact();
        let own = own.or_else(|| self.parameters.get(name).filter(|_| is_exact));
        match own {
            Some(weight) => Ok(Some(weight.clone())),
            None => self
                .parameter(name)?
                .map(|tensor| Ok(self.as_stored(name, &tensor)?.into()))
                .transpose(),
        }
    }

    /// New values of a parameter, rounded to the checkpoint's type: in `f32` where the denoiser
    /// computes in that in memory, and otherwise in that type, to take less memory. A value outside
    /// its range becomes infinite.
    ///
    /// # Errors
    /// If the checkpoint has no such parameter, or of a type that is not written.
    pub fn as_stored(&self, name: &str, tensor: &Tensor) -> Result<Tensor> {
        let Some(info) = self.folder.checkpoint().tensor(name) else {
            refuse!("{name} is not in the checkpoint")
        };
        let rounded = tensor.to_dtype(candle_dtype(info.dtype)?)?;
        let is_exact = self.folder.placement().is_exact();
        Ok(if is_exact { rounded.to_dtype(DType::F32)? } else { rounded })
    }

    /// A weight that is read each time it is used, if the parameter `name` is one now.
    #[must_use]
    pub fn passing(
        &self,
        name: &str,
        shape: &[usize],
        read: impl Fn() -> Result<Tensor> + Send + Sync + 'static,
    ) -> Option<Weight> {
        let passes = self.parameters.get(name).is_some_and(Weight::is_stored);
        let read = move || read().map_err(candle_core::Error::wrap);
        passes.then(|| Weight::stored(shape, self.folder.checkpoint().stream(), read))
    }

    /// The denoiser.
    #[must_use]
    pub fn denoiser(&self) -> &dyn Denoiser {
        &*self.denoiser
    }

    /// The guided output of the denoiser for `input` (samples x channels x height x width).
    /// `conditioning` comes from [`Pipeline::guided_conditioning`].
    ///
    /// # Errors
    /// If a shape does not fit, or the probe or the gates of the context fail.
    pub fn predict(
        &self,
        input: &Tensor,
        timestep: f32,
        conditioning: &Conditioning,
        guidance: f64,
        context: &Context<'_>,
    ) -> Result<Tensor> {
        let (samples, channels, _, _) = input.dims4()?;
        let guided = self.folder.passes(guidance) == 2;
        let input = if guided { Tensor::cat(&[input, input], 0)? } else { input.clone() };
        let (placement, count) = (self.folder.placement(), input.dim(0)?);
        let times = placement.in_f32().tensor(vec![timestep; count], count)?;
        let input = placement.bring(&input)?;
        let output = match (context.probe, context.gates, &self.replay) {
            (None, None, Some(replay)) => {
                let inputs = [vec![input, times], conditioning.tensors()].concat();
                replay.call(&inputs, |inputs| {
                    let [input, times, tensors @ ..] = inputs else {
                        refuse!("a denoiser's call without latents and times")
                    };
                    let conditioning = conditioning.with_tensors(tensors)?;
                    self.denoiser.forward(input, times, &conditioning, context)
                })?
            }
            _ => self.denoiser.forward(&input, &times, conditioning, context)?,
        };
        let output = placement.in_f32().bring(&output)?;
        // More channels than the latents' are a variance, which no sampler here asks for.
        let output = output.narrow(1, 0, channels)?;
        if !guided {
            return Ok(output);
        }
        let (free, told) = (output.narrow(0, 0, samples)?, output.narrow(0, samples, samples)?);
        Ok((&free + ((told - &free)? * guidance)?)?)
    }

    /// Turns latents of the denoiser into pictures in [0, 1] on the CPU, samples x height x width x
    /// channels.
    ///
    /// # Errors
    /// If the shape does not fit.
    pub fn pictures(&self, latents: &Tensor) -> Result<Tensor> {
        let pictures = match &self.vae {
            Some(vae) => {
                let latents = self.folder.placement().beyond_f16().bring(latents)?;
                if let Some(replay) = &self.replay {
                    replay.let_go_of_memory();
                }
                vae.pictures(&latents, self.folder.class().shifts)?
            }
            None => pictures(latents)?,
        };
        Ok(Placement::cpu().bring(&pictures)?)
    }

    /// The heads, dimensions and neurons that the denoiser lacks.
    #[must_use]
    pub fn removals(&self) -> &Removals {
        &self.removals
    }

    /// The denoiser's structure, for the sizes of `sampling`.
    #[must_use]
    pub fn structure(&self, sampling: &Sampling) -> Structure {
        self.description.at(&self.folder.geometry(sampling))
    }

    /// Applies edits to the denoiser's weights, and builds it again.
    ///
    /// # Errors
    /// If a parameter is unknown or of a shape that does not fit.
    pub fn apply(&mut self, edits: &Edits) -> Result<()> {
        let mut parameters = self.parameters.clone().with_sizes(edits.removals.sizes());
        for (name, weight) in &edits.weights {
            parameters.replace(name, weight.clone())?;
        }
        (self.denoiser, self.description) = build(&self.folder, &parameters)?;
        self.replay = replay(&parameters);
        self.parameters = parameters;
        self.edited.extend(edits.weights.clone());
        self.removals = edits.removals.clone();
        Ok(())
    }

    /// The conditioning for each prompt (a text, or the name or number of a label), for latents of
    /// `size` (height, width).
    ///
    /// # Errors
    /// If a prompt cannot be tokenized, or is no label of the model.
    pub fn conditioning(
        &self,
        prompts: &[String],
        size: (usize, usize),
        sampling: &Sampling,
    ) -> Result<Conditioning> {
        self.texts.positive(prompts, pixels(&self.folder, size), sampling)
    }

    /// The conditioning of all calls of a run. With classifier-free guidance, as many samples of
    /// the negative prompt come before those of [`Pipeline::conditioning`].
    ///
    /// # Errors
    /// As [`Pipeline::conditioning`].
    pub fn guided_conditioning(
        &self,
        prompts: &[String],
        size: (usize, usize),
        sampling: &Sampling,
    ) -> Result<Conditioning> {
        let conditioning = self.conditioning(prompts, size, sampling)?;
        let conditioning = match self.folder.passes(sampling.guidance) {
            1 => conditioning,
            _ => {
                let negative = self.texts.negative(pixels(&self.folder, size), sampling)?;
                Conditioning::cat(&[&negative.repeat(prompts.len())?, &conditioning])?
            }
        };
        conditioning.at(self.folder.placement())
    }

    /// The initial noise of the images `images` of a run: images x channels x height x width.
    ///
    /// # Errors
    /// If the tensor cannot be made.
    pub fn noise(&self, images: Range<usize>, sampling: &Sampling) -> Result<Tensor> {
        let (height, width) = sampling.latent;
        let shape = [self.folder.denoiser().latent_shape()[0], height, width];
        self.latents(&noise(sampling.seed, images, 0, &shape)?)
    }

    /// Moves numbers to the denoiser's device in `f32`, in which samplers compute.
    pub(crate) fn latents(&self, numbers: &Tensor) -> Result<Tensor> {
        Ok(self.folder.placement().in_f32().bring(numbers)?)
    }
}

fn replay(parameters: &Parameters) -> Option<Replay> {
    let passes = parameters.iter().any(|(_, weight)| weight.is_stored());
    (!passes).then(Replay::default)
}

/// Height and width of pictures of latents of that size.
fn pixels(folder: &ModelFolder, (height, width): (usize, usize)) -> (usize, usize) {
    let factor = folder.factor();
    (height * factor, width * factor)
}

fn build(
    folder: &ModelFolder,
    parameters: &Parameters,
) -> Result<(Box<dyn Denoiser>, Description)> {
    parameters.build(|scope| {
        let site = Site::from(scope);
        let denoiser = folder.denoiser().build(&site)?;
        Ok((denoiser, site.description()))
    })
}
