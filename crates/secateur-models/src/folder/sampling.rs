//! The sampling of a model: its settings, its sampler and its schedule.

use crate::classes::{Generation, INDEX, SCHEDULER, Sampling, Subject};
use crate::error::{Error, Result, refuse};
use crate::files::tree;
use crate::folder::index::SCHEDULER_CONFIG;
use crate::folder::model_folder::ModelFolder;
use crate::reuse::ReuseSchedule;
use crate::samplers::{Run, Sampler, Schedule, SchedulerConfig, scheduler_config};
use crate::structure::UnitKind;
use std::sync::Arc;

impl ModelFolder {
    /// The model's default settings: its training size, its sampler ([`ModelFolder::sampler`], or
    /// another one if that is not supported), seed 0, and batches of eight images.
    #[must_use]
    pub fn sampling(&self) -> Sampling {
        let Generation { steps, guidance, max_sequence_length } =
            self.manifest.generation(self.class.generation);
        let [_, height, width] = self.components.denoiser.latent_shape();
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

    /// The model's reuse schedule, if it has one. It is learned for one sampler and number of
    /// steps. With other ones it is an error, or, with `adapt`, adapted by
    /// [`ReuseSchedule::adapted`].
    ///
    /// # Errors
    /// If the file cannot be read or does not fit.
    pub fn reuse(&self, sampling: &Sampling, adapt: bool) -> Result<Option<Arc<ReuseSchedule>>> {
        let Some(file) = &self.manifest.reuse else { return Ok(None) };
        let reuse = ReuseSchedule::open(
            &tree::inside(&self.components.path, file)?,
            &self.structure(sampling),
        )?;
        let calls = self.schedule(sampling.latent, sampling)?.calls().len();
        let found = reuse.check(sampling.sampler, sampling.steps, calls);
        let fits = found.is_ok();
        let reuse = match adapt && !fits {
            true => reuse.adapted(sampling.sampler, sampling.steps, calls),
            false => found.map(|()| reuse)?,
        };
        Ok(Some(Arc::new(reuse)))
    }

    /// The sampler of `secateur.json`, or else that of `model_index.json`.
    ///
    /// # Errors
    /// If the sampler is not supported.
    pub fn sampler(&self) -> Result<Sampler> {
        let found = self.components.class_of(SCHEDULER.name).unwrap_or_default();
        let sampler = self.manifest.sampler().or_else(|| Sampler::of_class(found));
        sampler.ok_or_else(|| {
            let known = Sampler::known(self.is_of_flow()).join(", ");
            let problem = format!(
                "scheduler {found} is not supported; the samplers {known} are, and can be asked for"
            );
            Error::invalid(self.components.path.join(INDEX), problem)
        })
    }

    /// A supported sampler for a model whose own sampler is not supported.
    fn stand_in(&self) -> Sampler {
        match self.is_of_flow() {
            true => Sampler::FlowMatchEuler,
            false => Sampler::Ddim,
        }
    }

    /// Whether the model's own sampler is one of flow models.
    fn is_of_flow(&self) -> bool {
        self.components.class_of(SCHEDULER.name).is_some_and(|class| class.starts_with("FlowMatch"))
    }

    /// The configuration of the sampler `asked`, from the model's scheduler file.
    ///
    /// # Errors
    /// See [`scheduler_config`].
    pub fn scheduler(&self, asked: Sampler) -> Result<Arc<dyn SchedulerConfig>> {
        if asked.is_of_flow() != self.is_of_flow() {
            let class = self.components.class_of(SCHEDULER.name).unwrap_or_default();
            let own =
                Sampler::of_class(class).map_or_else(|| class.to_owned(), |own| own.to_string());
            refuse!("sampler {asked} does not go with a model that is sampled by {own}");
        }
        scheduler_config(
            &self.components.path.join(SCHEDULER_CONFIG),
            asked,
            self.class.scheduler_options,
        )
    }

    /// Plans a run for latents of `size` (height, width).
    ///
    /// # Errors
    /// See [`ModelFolder::scheduler`] and
    /// [`SchedulerConfig::schedule`](crate::SchedulerConfig::schedule).
    pub fn schedule(&self, size: (usize, usize), sampling: &Sampling) -> Result<Box<dyn Schedule>> {
        self.scheduler(sampling.sampler)?.schedule(Run {
            steps: sampling.steps,
            tokens: self.components.denoiser.image_tokens(size),
            even_levels: self.class.even_levels,
        })
    }

    /// Checks that the model can be sampled with these settings, before anything is loaded.
    ///
    /// # Errors
    /// If it cannot. The error says why.
    pub fn check(&self, sampling: &Sampling) -> Result<()> {
        self.check_components()?;
        let (step, largest) = (
            self.factor() * self.components.denoiser.patch(),
            self.components.denoiser.largest_side(),
        );
        for (side, latents) in [("height", sampling.latent.0), ("width", sampling.latent.1)] {
            let pixels = latents.saturating_mul(self.factor());
            if latents == 0 || !pixels.is_multiple_of(step) {
                refuse!("a {side} of {pixels} pixels is not a multiple of {step}");
            }
            if latents > largest {
                let most = largest * self.factor();
                refuse!("a {side} of {pixels} pixels, and this model draws at most {most}");
            }
        }
        if !sampling.negative_prompt.is_empty()
            && (self.passes(sampling.guidance) < 2 || self.subject() != Subject::Text)
        {
            let problem =
                "a negative prompt says nothing to this model, or without guidance above 1";
            return Err(Error::Request(problem.into()));
        }
        self.schedule(sampling.latent, sampling).map(|_| ())
    }

    /// Number of samples that the denoiser computes for one image at every call: two with
    /// classifier-free guidance, else one.
    #[must_use]
    pub fn passes(&self, guidance: f64) -> usize {
        if self.class.classifier_free && guidance > 1.0 { 2 } else { 1 }
    }

    /// The reuse schedule of a run in which every unit of `kind` runs at every call.
    ///
    /// # Errors
    /// If the model has no such units, or the sampler cannot make that many steps.
    pub fn whole_reuse(&self, sampling: &Sampling, kind: UnitKind) -> Result<ReuseSchedule> {
        let calls = self.schedule(sampling.latent, sampling)?.calls().len();
        ReuseSchedule::whole(
            &self.structure(sampling),
            kind,
            sampling.sampler,
            sampling.steps,
            calls,
        )
    }

    /// Number of samples that the denoiser computes for one image in a whole run.
    ///
    /// # Errors
    /// As [`ModelFolder::schedule`].
    pub fn samples_of_run(&self, sampling: &Sampling) -> Result<usize> {
        Ok(self.passes(sampling.guidance) * self.schedule(sampling.latent, sampling)?.calls().len())
    }
}
