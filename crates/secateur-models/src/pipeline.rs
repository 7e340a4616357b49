//! From prompts to pictures.

use crate::autoencoder::{Autoencoder, autoencoder};
use crate::checkpoint::is_finite;
use crate::clip::ClipTextModel;
use crate::conditioning::Conditioning;
use crate::error::{Error, Result};
use crate::family::{Denoiser, DenoiserConfig};
use crate::folder::ModelFolder;
use crate::mmdit::Mmdit;
use crate::noise::noise;
use crate::scheduler::{Run, SchedulerConfig, scheduler_config};
use crate::structure::Structure;
use crate::tokenizer::ClipTokenizer;
use candle_core::{DType, Device, Tensor};
use secateur_nn::{Context, LayerName, Parameters, Probe, Step};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// Told about progress; may end the work.
pub trait Observer {
    /// A stage of `total` units begins.
    fn begin(&self, stage: &str, total: usize, unit: &str) {
        let _ = (stage, total, unit);
    }

    /// `amount` more units are done.
    ///
    /// # Errors
    /// [`Error::Interrupted`] to stop.
    fn advance(&self, amount: usize) -> Result<()> {
        let _ = amount;
        Ok(())
    }
}

/// Nobody is interested.
impl Observer for () {}

/// How to sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Denoising steps.
    pub steps: usize,
    /// Guidance scale; 1 or less switches guidance off.
    pub guidance: f64,
    /// What guidance leads away from.
    pub negative_prompt: String,
    /// Text tokens that stand for T5's.
    pub max_sequence_length: usize,
    /// Seed of the noise.
    pub seed: u64,
    /// Images at a time.
    pub batch: usize,
}

/// A text-to-image pipeline with its weights.
pub struct Pipeline {
    folder: ModelFolder,
    parameters: Parameters,
    denoiser: Mmdit,
    scheduler: Arc<dyn SchedulerConfig>,
    encoders: Vec<(ClipTokenizer, ClipTextModel)>,
    vae: Box<dyn Autoencoder>,
}

impl Pipeline {
    /// Loads all components.
    ///
    /// # Errors
    /// If a component's files cannot be read or do not fit each other.
    pub fn open(folder: ModelFolder) -> Result<Self> {
        let (path, variant) = (folder.path().to_owned(), folder.variant().map(str::to_owned));
        let parameters = folder.checkpoint().load()?;
        let denoiser = build(&folder, &parameters)?;
        let mut encoders = Vec::new();
        for (tokenizer, encoder) in [("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")] {
            let tokenizer = ClipTokenizer::open(&path.join(tokenizer))?;
            encoders.push((tokenizer, ClipTextModel::open(&path.join(encoder), variant.as_deref())?));
        }
        Ok(Self {
            scheduler: scheduler_config(&path.join("scheduler/scheduler_config.json"))?,
            vae: autoencoder(&path.join("vae"), variant.as_deref())?,
            folder,
            parameters,
            denoiser,
            encoders,
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
        &self.denoiser
    }

    /// The autoencoder.
    #[must_use]
    pub fn vae(&self) -> &dyn Autoencoder {
        &*self.vae
    }

    /// The denoiser's description of itself.
    #[must_use]
    pub fn structure(&self) -> Structure {
        self.folder.structure()
    }

    /// Sets denoiser weights, by parameter name, and builds the denoiser again from them.
    ///
    /// # Errors
    /// If a name is unknown or a shape differs.
    pub fn replace(&mut self, weights: &BTreeMap<String, Tensor>) -> Result<()> {
        for (name, weight) in weights {
            self.parameters.replace(name, weight.clone())?;
        }
        self.denoiser = build(&self.folder, &self.parameters)?;
        Ok(())
    }

    /// Text states and pooled text of prompts: both CLIP encoders side by side in width, padded with zeros to the
    /// denoiser's, followed by zeros in the place of T5's `max_sequence_length` tokens. The zeros are equal and stay so,
    /// as the text has no positions: one token stands for all of them.
    ///
    /// # Errors
    /// If a prompt cannot be tokenized.
    pub fn encode_prompts(&self, prompts: &[String], max_sequence_length: usize) -> Result<Conditioning> {
        let (mut states, mut pooled) = (Vec::new(), Vec::new());
        for (tokenizer, encoder) in &self.encoders {
            let output = encoder.forward(&tokenizer.encode_batch(prompts)?)?;
            states.push(output.penultimate);
            pooled.push(output.pooled);
        }
        let clip = Tensor::cat(&states, 2)?;
        let (samples, _, width) = clip.dims3()?;
        let joint = self.folder.denoiser().joint_attention_dim;
        if width > joint {
            let problem = format!("CLIP states of width {width} do not fit a joint_attention_dim of {joint}");
            return Err(Error::Request(problem));
        }
        let clip = clip.pad_with_zeros(2, 0, joint - width)?;
        let pooled = Tensor::cat(&pooled, 1)?;
        if max_sequence_length == 0 {
            return Ok(Conditioning { text: Some(clip), pooled: Some(pooled), ..Conditioning::default() });
        }
        let absent = Tensor::zeros((samples, 1, joint), DType::F32, &Device::Cpu)?;
        let ones = Tensor::ones((samples, clip.dim(1)?), DType::F32, &Device::Cpu)?;
        let times = Tensor::full(max_sequence_length as f32, (samples, 1), &Device::Cpu)?;
        let multiplicity = Tensor::cat(&[&ones, &times], 1)?;
        let text = Tensor::cat(&[&clip, &absent], 1)?;
        Ok(Conditioning {
            text: Some(text),
            pooled: Some(pooled),
            multiplicity: Some(multiplicity),
            ..Conditioning::default()
        })
    }

    /// Shape of one image's latents: channels x height x width.
    #[must_use]
    pub fn latent_shape(&self) -> [usize; 3] {
        let (height, width) = self.folder.geometry().latent;
        [self.folder.denoiser().in_channels, height, width]
    }

    /// Denoises `noise` (samples x channels x height x width), the start of the images `images` of a run, step by step;
    /// `after` sees the latents after each step. Image i is made of prompt i; what noise a sampler adds on its way depends
    /// on the seed and i alone.
    ///
    /// # Errors
    /// If a shape does not fit, or the probe or `after` objects.
    pub fn denoise(
        &self,
        noise: &Tensor,
        prompts: &[String],
        images: Range<usize>,
        sampling: &Sampling,
        probe: Option<&dyn Probe>,
        mut after: impl FnMut(Step, &Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let (samples, channels, height, width) = noise.dims4()?;
        let tokens = self.folder.denoiser().image_tokens((height, width));
        let mut schedule = self.scheduler.schedule(Run { steps: sampling.steps, tokens, even_levels: false })?;
        let guided = sampling.guidance > 1.0;
        let encode = |prompts: &[String]| self.encode_prompts(prompts, sampling.max_sequence_length);
        let mut conditioning = encode(&prompts[images.clone()])?;
        if guided {
            let negative = encode(std::slice::from_ref(&sampling.negative_prompt))?.repeat(samples)?;
            conditioning = negative.cat(&conditioning)?;
        }
        let mut draws = 0;
        let mut draw = || {
            draws += 1;
            crate::noise::noise(sampling.seed, images.clone(), draws, &[channels, height, width])
        };
        let mut latents = noise.affine(schedule.initial_scale(), 0.0)?;
        let calls = schedule.calls().to_vec();
        for (index, call) in calls.iter().enumerate() {
            let step = Step { index: call.step, count: sampling.steps };
            let context = Context { step, probe, multiplicity: None };
            let input = schedule.scale_input(index, &latents)?;
            let input = if guided { Tensor::cat(&[&input, &input], 0)? } else { input };
            let timesteps = vec![call.timestep; input.dim(0)?];
            let output = self.denoiser.forward(&input, &timesteps, &conditioning, &context)?;
            if !is_finite(&output)? {
                let context = Context { probe: Some(&FiniteProbe), ..context };
                self.denoiser.forward(&input, &timesteps, &conditioning, &context)?;
                let problem = format!("the denoiser's output is not finite at denoising step {}", step.index + 1);
                return Err(Error::Request(problem));
            }
            // More channels than the latents' are a variance, which no sampler here asks for.
            let output = output.narrow(1, 0, channels)?;
            let output = if guided {
                let (free, told) = (output.narrow(0, 0, samples)?, output.narrow(0, samples, samples)?);
                (&free + ((told - &free)? * sampling.guidance)?)?
            } else {
                output
            };
            latents = schedule.step(index, &latents, &output, &mut draw)?;
            if calls.get(index + 1).is_none_or(|next| next.step != call.step) {
                after(step, &latents)?;
            }
        }
        Ok(latents)
    }

    /// Final latents of the images `images` of a run: image i is made of prompt i and of noise that depends on the
    /// seed and i alone. `observer` is advanced by the samples of a batch at every step.
    ///
    /// # Errors
    /// As [`Pipeline::denoise`].
    pub fn sample(
        &self,
        prompts: &[String],
        images: Range<usize>,
        sampling: &Sampling,
        probe: Option<&dyn Probe>,
        observer: &dyn Observer,
    ) -> Result<Tensor> {
        let start = noise(sampling.seed, images.clone(), 0, &self.latent_shape())?;
        self.denoise(&start, prompts, images.clone(), sampling, probe, |_, _| observer.advance(images.len()))
    }
}

/// Names the first layer whose input is not finite.
struct FiniteProbe;

impl Probe for FiniteProbe {
    fn linear_input(&self, layer: &LayerName, x: &Tensor, context: &Context<'_>) -> secateur_nn::Result<()> {
        if is_finite(x)? {
            return Ok(());
        }
        let problem = format!("its input holds NaN or infinite values at denoising step {}", context.step.index + 1);
        Err(secateur_nn::Error::Layer { layer: layer.clone(), problem })
    }
}

fn build(folder: &ModelFolder, parameters: &Parameters) -> Result<Mmdit> {
    parameters.build(|scope| Mmdit::new(folder.denoiser(), &scope))
}
