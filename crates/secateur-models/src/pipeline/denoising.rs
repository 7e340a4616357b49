//! The denoising loop, from noise to latents.

use crate::classes::Sampling;
use crate::conditioning::Conditioning;
use crate::error::{Error, Result, refuse};
use crate::observer::Observer;
use crate::pipeline::model::Pipeline;
use crate::pipeline::noise::noise;
use crate::reuse::{Reuse, ReuseSchedule};
use crate::samplers::{Call, Schedule};
use candle_core::Tensor;
use secateur_nn::{Context, Gates, LayerName, Probe, Step, ops};
use std::ops::Range;
use std::sync::Arc;

/// A run in progress: the latents of some images, denoised step by step.
pub struct Denoising<'a> {
    pipeline: &'a Pipeline,
    conditioning: &'a Conditioning,
    images: Range<usize>,
    sampling: Sampling,
    probe: Option<&'a dyn Probe>,
    schedule: Box<dyn Schedule>,
    reuse: Option<Reuse>,
    latents: Tensor,
    /// Calls of the denoiser so far.
    calls: usize,
    /// Number of times that the sampler has drawn noise so far.
    draws: usize,
}

/// A run after some of its steps.
#[derive(Clone, Debug)]
pub struct Halfway {
    /// Calls of the denoiser so far.
    pub calls: usize,
    /// Number of times that the sampler has drawn noise so far.
    pub draws: usize,
    /// The latents: samples x channels x height x width.
    pub latents: Tensor,
    /// What the sampler remembers, of the same shape.
    pub memory: Vec<Tensor>,
}

impl<'a> Denoising<'a> {
    /// Starts the images `images` of a run with `noise` (samples x channels x height x width).
    /// `conditioning` comes from [`Pipeline::guided_conditioning`]. The noise that a sampler adds
    /// later depends only on the seed and on the image's number.
    ///
    /// # Errors
    /// If the pipeline cannot be sampled with these settings.
    pub fn new(
        pipeline: &'a Pipeline,
        noise: &Tensor,
        conditioning: &'a Conditioning,
        images: Range<usize>,
        sampling: &Sampling,
        probe: Option<&'a dyn Probe>,
    ) -> Result<Self> {
        let (_, _, height, width) = noise.dims4()?;
        let schedule = pipeline.folder().schedule((height, width), sampling)?;
        let latents = pipeline.latents(noise)?.affine(schedule.initial_scale(), 0.0)?;
        let reuse = match &sampling.reuse {
            Some(reuse) => {
                reuse.check(sampling.sampler, sampling.steps, schedule.calls().len())?;
                Some(Reuse::new(reuse.clone(), &pipeline.structure(sampling))?)
            }
            None => None,
        };
        let sampling = sampling.clone();
        Ok(Self {
            pipeline,
            conditioning,
            images,
            sampling,
            probe,
            schedule,
            reuse,
            latents,
            calls: 0,
            draws: 0,
        })
    }

    /// Copies the run at this moment, to go on with another reuse schedule. Both schedules must
    /// agree on the calls so far.
    ///
    /// # Errors
    /// If the pipeline cannot be sampled with this schedule.
    pub fn fork(&self, reuse: &Arc<ReuseSchedule>) -> Result<Self> {
        let sampling = Sampling { reuse: Some(reuse.clone()), ..self.sampling.clone() };
        reuse.check(sampling.sampler, sampling.steps, self.schedule.calls().len())?;
        let of_new = Reuse::new(reuse.clone(), &self.pipeline.structure(&sampling))?;
        let of_new = match &self.reuse {
            Some(own) => of_new.remembering(own),
            None => of_new,
        };
        Ok(Self {
            images: self.images.clone(),
            sampling,
            schedule: self.schedule.fork(),
            reuse: Some(of_new),
            latents: self.latents.clone(),
            ..*self
        })
    }

    /// What the run has come to, from which [`Denoising::go_on`] continues it. `None` if it reuses
    /// features, which are not part of that, or the sampler is amid calls that belong together.
    #[must_use]
    pub fn halfway(&self) -> Option<Halfway> {
        if self.reuse.is_some() {
            return None;
        }
        let (calls, draws, latents) = (self.calls, self.draws, self.latents.clone());
        Some(Halfway { calls, draws, latents, memory: self.schedule.memory()? })
    }

    /// Continues from where an equal run came to.
    ///
    /// # Errors
    /// If its tensors do not fit.
    pub fn go_on(&mut self, from: Halfway) -> Result<()> {
        let shape = self.latents.dims();
        let fits = |tensor: &Tensor| tensor.dims() == shape;
        if from.calls > self.schedule.calls().len()
            || !fits(&from.latents)
            || !from.memory.iter().all(fits)
        {
            refuse!("a run of {shape:?} cannot go on from another");
        }
        let here = |tensor: &Tensor| self.pipeline.latents(tensor);
        let memory = from.memory.iter().map(here).collect::<Result<_>>()?;
        self.latents = here(&from.latents)?;
        self.schedule.remember(memory);
        (self.calls, self.draws) = (from.calls, from.draws);
        Ok(())
    }

    /// The calls of the denoiser in the next step. Empty after the last step.
    #[must_use]
    pub fn next_calls(&self) -> Range<usize> {
        let calls = self.schedule.calls();
        let step = calls.get(self.calls).map(|call| call.step);
        let end = (self.calls..)
            .find(|&call| calls.get(call).map(|call| call.step) != step || step.is_none());
        self.calls..end.unwrap_or(self.calls)
    }

    /// The current latents: samples x channels x height x width.
    #[must_use]
    pub fn latents(&self) -> &Tensor {
        &self.latents
    }

    /// Takes the next step. Returns false if there is none.
    ///
    /// # Errors
    /// If a shape does not fit, the denoiser's output is not finite, or the probe fails.
    pub fn step(&mut self) -> Result<bool> {
        self.step_with(&mut |_, _, _| Ok(()))
    }

    /// Takes the next step, with `change` as in [`Pipeline::sample_with`].
    pub(crate) fn step_with(
        &mut self,
        change: &mut impl FnMut(usize, Call, &mut Tensor) -> Result<()>,
    ) -> Result<bool> {
        let Some(&Call { step, .. }) = self.schedule.calls().get(self.calls) else {
            return Ok(false);
        };
        while let Some(&call) =
            self.schedule.calls().get(self.calls).filter(|call| call.step == step)
        {
            let mut output = self.call(call)?;
            change(self.calls, call, &mut output)?;
            let (_, channels, height, width) = self.latents.dims4()?;
            let mut draw = || {
                self.draws += 1;
                let (images, shape) = (self.images.clone(), [channels, height, width]);
                self.pipeline.latents(&noise(self.sampling.seed, images, self.draws, &shape)?)
            };
            self.latents = self.schedule.step(self.calls, &self.latents, &output, &mut draw)?;
            self.calls += 1;
        }
        Ok(true)
    }

    /// The guided output of the denoiser at a call.
    fn call(&self, call: Call) -> Result<Tensor> {
        let step = Step { index: call.step, count: self.sampling.steps };
        let gates = self.reuse.as_ref().map(|reuse| {
            reuse.begin(self.calls, call.timestep);
            reuse as &dyn Gates
        });
        let context = Context { step, probe: self.probe, multiplicity: None, gates };
        let input = self.schedule.scale_input(self.calls, &self.latents)?;
        let guidance = self.sampling.guidance;
        let predict = |context: &_| {
            self.pipeline.predict(&input, call.timestep, self.conditioning, guidance, context)
        };
        let output = predict(&context)?;
        if !ops::is_finite(&output)? {
            predict(&Context { probe: Some(&FiniteProbe), ..context })?;
            return Err(Error::NotFinite { step: step.index + 1 });
        }
        Ok(output)
    }
}

/// Names the first linear layer or convolution whose input is not finite.
struct FiniteProbe;

impl Probe for FiniteProbe {
    fn linear_input(
        &self,
        layer: &LayerName,
        x: &Tensor,
        context: &Context<'_>,
    ) -> secateur_nn::Result<()> {
        self.convolution_input(layer, x, context)
    }

    fn convolution_input(
        &self,
        layer: &LayerName,
        x: &Tensor,
        context: &Context<'_>,
    ) -> secateur_nn::Result<()> {
        if ops::is_finite(x)? {
            return Ok(());
        }
        let problem = format!(
            "its input holds NaN or infinite values at denoising step {}",
            context.step.index + 1
        );
        Err(secateur_nn::Error::Layer { layer: layer.clone(), problem })
    }
}

impl Pipeline {
    /// Samples the images `images` of a run, and returns their final latents. Image i belongs to
    /// prompt i, and its noise depends only on the seed and on i. At every step `observer` advances
    /// by the number of images.
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

    /// As [`Pipeline::sample`], but lets `change` edit the denoiser's outputs. It gets the number
    /// of the call in the run, the call, and the guided output. Some samplers make several calls a
    /// step.
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
        self.begin(prompts, images.clone(), sampling, probe, |mut denoising| {
            while denoising.step_with(&mut change)? {
                observer.advance(images.len())?;
            }
            Ok(denoising.latents().clone())
        })
    }

    /// Begins the run that [`Pipeline::sample`] makes, and returns what `body` makes of it.
    ///
    /// # Errors
    /// As [`Pipeline::guided_conditioning`] and [`Denoising::new`], or those of `body`.
    pub fn begin<T, E: From<Error>>(
        &self,
        prompts: &[String],
        images: Range<usize>,
        sampling: &Sampling,
        probe: Option<&dyn Probe>,
        body: impl FnOnce(Denoising<'_>) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        let start = self.noise(images.clone(), sampling)?;
        let conditioning =
            self.guided_conditioning(&prompts[images.clone()], sampling.latent, sampling)?;
        body(Denoising::new(self, &start, &conditioning, images, sampling, probe)?)
    }
}
