//! From prompts to pictures.

pub(crate) mod class;
mod conditioner;
mod denoising;
mod dit;
mod flux;
mod pixart;
mod stable_diffusion;
mod stable_diffusion_3;
mod stable_diffusion_xl;
mod unconditional;

use crate::autoencoder::{Autoencoder, pictures};
use crate::conditioning::Conditioning;
use crate::edits::{Edits, Removals};
use crate::error::Result;
use crate::family::Denoiser;
use crate::folder::ModelFolder;
use crate::noise::noise;
use crate::observer::Observer;
use crate::reuse::ReuseSchedule;
use crate::scheduler::{Call, Sampler};
use crate::structure::Structure;
use candle_core::Tensor;
use conditioner::Conditioner;
pub use denoising::Denoising;
use secateur_nn::{Context, Parameters, Probe};
use std::ops::Range;
use std::sync::Arc;

/// How to sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Denoising steps.
    pub steps: usize,
    /// Height and width of the latents.
    pub latent: (usize, usize),
    /// Guidance scale; 1 or less switches guidance off.
    pub guidance: f64,
    /// What guidance leads away from.
    pub negative_prompt: String,
    /// Text tokens of T5, or that stand for them.
    pub max_sequence_length: usize,
    /// The model's own sampler, or another one.
    pub sampler: Sampler,
    /// Seed of the noise.
    pub seed: u64,
    /// Images at a time.
    pub batch: usize,
    /// What is not computed at every step.
    pub reuse: Option<Arc<ReuseSchedule>>,
}

impl Sampling {
    /// The images 0 to `count` in batches.
    pub fn batches(&self, count: usize) -> impl Iterator<Item = Range<usize>> + Clone + use<> {
        let batch = self.batch.max(1);
        (0..count).step_by(batch).map(move |start| start..(start + batch).min(count))
    }
}

/// A pipeline with its weights.
pub struct Pipeline {
    folder: ModelFolder,
    parameters: Parameters,
    removals: Removals,
    denoiser: Box<dyn Denoiser>,
    conditioner: Box<dyn Conditioner>,
    /// None where the denoiser works on pictures.
    vae: Option<Box<dyn Autoencoder>>,
}

impl Pipeline {
    /// Loads all components.
    ///
    /// # Errors
    /// If a component's files cannot be read or do not fit each other.
    pub fn open(folder: ModelFolder) -> Result<Self> {
        folder.check_whole()?;
        let removals = folder.removals().clone();
        let parameters = folder.load()?.with_sizes(removals.sizes());
        Ok(Self {
            denoiser: build(&folder, &parameters)?,
            conditioner: (folder.class().conditioner)(&folder)?,
            vae: folder.autoencoder()?,
            folder,
            parameters,
            removals,
        })
    }

    /// The folder it came from.
    #[must_use]
    pub fn folder(&self) -> &ModelFolder {
        &self.folder
    }

    /// The denoiser's weights.
    #[must_use]
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The denoiser.
    #[must_use]
    pub fn denoiser(&self) -> &dyn Denoiser {
        &*self.denoiser
    }

    /// What the denoiser makes of `input` (samples x channels x height x width), guided; `conditioning` is
    /// [`Pipeline::guided_conditioning`]'s.
    ///
    /// # Errors
    /// If a shape does not fit, or the context's probe or gates object.
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
        let output = self.denoiser.forward(&input, &vec![timestep; input.dim(0)?], conditioning, context)?;
        // More channels than the latents' are a variance, which no sampler here asks for.
        let output = output.narrow(1, 0, channels)?;
        if !guided {
            return Ok(output);
        }
        let (free, told) = (output.narrow(0, 0, samples)?, output.narrow(0, samples, samples)?);
        Ok((&free + ((told - &free)? * guidance)?)?)
    }

    /// Latents as the denoiser gives them to pictures in [0, 1], samples x height x width x channels.
    ///
    /// # Errors
    /// If the shape does not fit.
    pub fn pictures(&self, latents: &Tensor) -> Result<Tensor> {
        match &self.vae {
            Some(vae) => vae.pictures(latents, self.folder.class().shifts),
            None => pictures(latents),
        }
    }

    /// The heads and neurons that the denoiser lacks.
    #[must_use]
    pub fn removals(&self) -> &Removals {
        &self.removals
    }

    /// The denoiser's description of itself.
    #[must_use]
    pub fn structure(&self, sampling: &Sampling) -> Structure {
        self.folder.whole_structure(sampling).without(&self.removals)
    }

    /// Edits the denoiser, and builds it again.
    ///
    /// # Errors
    /// If a parameter is unknown or of a shape that does not fit.
    pub fn apply(&mut self, edits: &Edits) -> Result<()> {
        let mut parameters = self.parameters.clone().with_sizes(edits.removals.sizes());
        for (name, weight) in &edits.weights {
            parameters.replace(name, weight.clone())?;
        }
        self.denoiser = build(&self.folder, &parameters)?;
        self.parameters = parameters;
        self.removals = edits.removals.clone();
        Ok(())
    }

    /// What the denoiser is told for each prompt (a text, or a label's name or number), for latents of `size` (height,
    /// width).
    ///
    /// # Errors
    /// If a prompt cannot be tokenized, or is no label of the model.
    pub fn conditioning(&self, prompts: &[String], size: (usize, usize), sampling: &Sampling) -> Result<Conditioning> {
        self.conditioner.positive(prompts, self.pixels(size), sampling)
    }

    /// What the denoiser is told at every call of a run: [`Pipeline::conditioning`], behind as many samples of what guidance
    /// leads away from where guidance takes a second sample of every image.
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
        if self.folder.passes(sampling.guidance) == 1 {
            return Ok(conditioning);
        }
        let negative = self.conditioner.negative(self.pixels(size), sampling)?;
        negative.repeat(prompts.len())?.cat(&conditioning)
    }

    /// Height and width of pictures of latents of `size`.
    fn pixels(&self, (height, width): (usize, usize)) -> (usize, usize) {
        let factor = self.folder.factor();
        (height * factor, width * factor)
    }

    /// The noise that the images `images` of a run start from.
    ///
    /// # Errors
    /// If the tensor cannot be made.
    pub fn noise(&self, images: Range<usize>, sampling: &Sampling) -> Result<Tensor> {
        let (height, width) = sampling.latent;
        noise(sampling.seed, images, 0, &[self.folder.denoiser().latent_shape()[0], height, width])
    }

    /// Final latents of the images `images` of a run: image i is made of prompt i and of noise that depends on the
    /// seed and i alone. `observer` is advanced by the samples of a batch at every step.
    ///
    /// # Errors
    /// As [`Pipeline::guided_conditioning`] and [`Denoising`], or if `observer` ends the work.
    pub fn sample(
        &self,
        prompts: &[String],
        images: Range<usize>,
        sampling: &Sampling,
        probe: Option<&dyn Probe>,
        observer: &dyn Observer,
    ) -> Result<Tensor> {
        self.sample_with(prompts, images, sampling, probe, observer, |_, _, _| Ok(()))
    }

    /// As [`Pipeline::sample`], with what `change` makes of the denoiser's outputs: it gets the number of the call in the
    /// run, of which some samplers make several a step, the call, and the output, after guidance.
    ///
    /// # Errors
    /// As [`Pipeline::sample`], or if `change` fails.
    pub fn sample_with(
        &self,
        prompts: &[String],
        images: Range<usize>,
        sampling: &Sampling,
        probe: Option<&dyn Probe>,
        observer: &dyn Observer,
        mut change: impl FnMut(usize, Call, &mut Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let start = self.noise(images.clone(), sampling)?;
        let conditioning = self.guided_conditioning(&prompts[images.clone()], sampling.latent, sampling)?;
        let mut denoising = Denoising::new(self, &start, &conditioning, images.clone(), sampling, probe)?;
        while denoising.step_with(&mut change)? {
            observer.advance(images.len())?;
        }
        Ok(denoising.latents().clone())
    }
}

fn build(folder: &ModelFolder, parameters: &Parameters) -> Result<Box<dyn Denoiser>> {
    parameters.build(|scope| folder.denoiser().build(&scope))
}
