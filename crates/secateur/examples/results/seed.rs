//! All that is done for one seed.

use anyhow::{Context as _, Result, bail};
use candle_core::Tensor;
use secateur_eval::Samples;
use secateur_models::{
    ClipModel, ModelFolder, OutputFolder, OutputOptions, Pipeline, Sampling, Subject, TensorInfo,
};
use secateur_nn::{Context, LayerName, Probe};
use secateur_prune::{
    Calibration, Calibrator, Fingerprint, L1, Magnitude, Outcome, Packages, Pattern, Plan, Portion,
    SavedStatistics, Selection, Source, Statistics, Task, Taylor, Weighting, prune,
};
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::Path;

const CALIBRATION: usize = 100;
const JUDGED: usize = 64;

/// One seed: its calibration, and what its pictures are made of.
pub(crate) struct Seed<'a> {
    model: &'a Path,
    pub(crate) out: &'a Path,
    pub(crate) seed: u64,
    clip: ClipModel,
    prompts: Vec<String>,
    calibration: Calibration,
    /// See [`Seed::weighted_statistics`].
    weighted: OnceCell<BTreeMap<String, Statistics>>,
    /// See [`Seed::taylor`].
    taylor: OnceCell<Taylor>,
}

/// Gathers Hessians of several weightings at once.
struct Calibrators(Vec<(String, Calibrator)>);

impl Probe for Calibrators {
    fn linear_input(
        &self,
        layer: &LayerName,
        x: &Tensor,
        context: &Context<'_>,
    ) -> secateur_nn::Result<()> {
        self.0.iter().try_for_each(|(_, calibrator)| calibrator.linear_input(layer, x, context))
    }
}

impl<'a> Seed<'a> {
    pub(crate) fn new(
        model: &'a Path,
        out: &'a Path,
        seed: u64,
        token_stride: usize,
    ) -> Result<Self> {
        let folder = ModelFolder::open(model, None)?;
        let manifest = folder.manifest();
        let clip = ClipModel::open(
            &model.join(manifest.clip.as_ref().context("the model names no CLIP")?),
            folder.placement(),
        )?;
        let list =
            folder.prompts(|prompts| &prompts.calibration)?.context("no calibration prompts")?;
        let held_out =
            folder.prompts(|prompts| &prompts.held_out)?.context("no held-out prompts")?;
        // A label may come again, with other noise; a text may not.
        let times = if folder.subject() == Subject::Label { usize::MAX } else { 1 };
        let some = |list: Vec<String>, first: usize, count: usize| {
            let all = std::iter::repeat_n(list, times).flatten();
            all.skip(first).take(count).collect::<Vec<_>>()
        };
        let chosen = some(list, seed as usize * CALIBRATION, CALIBRATION);
        if chosen.len() < CALIBRATION {
            bail!("too few calibration prompts for seed {seed}");
        }
        let sampling = Sampling { seed, ..folder.sampling() };
        let calibration = Calibration { token_stride, ..Calibration::new(chosen, sampling) };
        let prompts = some(held_out, 0, JUDGED);
        Ok(Self {
            model,
            out,
            seed,
            clip,
            prompts,
            calibration,
            weighted: OnceCell::new(),
            taylor: OnceCell::new(),
        })
    }

    /// With the default weighting.
    pub(crate) fn calibration(&self) -> &Calibration {
        &self.calibration
    }

    pub(crate) fn pipeline(&self) -> Result<Pipeline> {
        Ok(Pipeline::open(ModelFolder::open(self.model, None)?)?)
    }

    /// All that the task can prune, in one package.
    pub(crate) fn plan(
        &self,
        pipeline: &Pipeline,
        task: &Task<'_>,
    ) -> secateur_prune::Result<Plan> {
        let structure = pipeline.folder().structure(&self.calibration.sampling);
        Plan::new(&structure, &Selection::default(), Packages::Count(1), task)
    }

    /// Prunes all that the task can.
    pub(crate) fn prune(
        &self,
        pipeline: &mut Pipeline,
        task: &Task<'_>,
        source: &Source<'_>,
    ) -> Result<Outcome> {
        let plan = self.plan(pipeline, task)?;
        Ok(prune(pipeline, &plan, task, source, None, None, &())?)
    }

    /// Prunes all that the task can, by the statistics of the dense model.
    pub(crate) fn prune_saved(&self, pipeline: &mut Pipeline, task: &Task<'_>) -> Result<Outcome> {
        self.prune(pipeline, task, &Source::Saved(&self.statistics()?))
    }

    /// The statistics of the dense model, gathered where that was not done yet.
    pub(crate) fn statistics(&self) -> Result<SavedStatistics> {
        let mut pipeline = self.pipeline()?;
        let fingerprint = Fingerprint::new(pipeline.folder(), &self.calibration, &())?;
        let path = self.out.join(format!("seed{}-statistics", self.seed));
        if !path.exists() {
            println!("seed {}: calibrate", self.seed);
            let step_weights = self.calibration.step_weights(&mut pipeline, &())?;
            let source = Source::Calibration(&self.calibration, &step_weights, None);
            let task = Task::Weights { method: &Magnitude, pattern: Pattern::unstructured(0.5)? };
            let outcome = self.prune(&mut pipeline, &task, &source)?;
            let output = OutputFolder::create(&path, OutputOptions::default(), &[])?;
            SavedStatistics::write(
                &output.path(),
                &outcome.statistics,
                &step_weights,
                &fingerprint,
            )?;
            output.finish()?;
        }
        Ok(SavedStatistics::open(&path, &fingerprint, &())?)
    }

    /// Statistics of the dense model under every weighting, by its name: of one calibration, as the
    /// activations are the same.
    pub(crate) fn weighted_statistics(
        &self,
        pipeline: &mut Pipeline,
        task: &Task<'_>,
    ) -> Result<&BTreeMap<String, Statistics>> {
        if let Some(weighted) = self.weighted.get() {
            return Ok(weighted);
        }
        println!("seed {}: calibrate", self.seed);
        let Calibration { prompts, sampling, token_stride, .. } = &self.calibration;
        let plan = self.plan(pipeline, task)?;
        let mut calibrators = Vec::new();
        for weighting in Weighting::ALL {
            let calibration = Calibration { weighting, ..self.calibration.clone() };
            let step_weights = calibration.step_weights(pipeline, &())?;
            println!("seed {}: {weighting}: {step_weights:.3?}", self.seed);
            let calibrator =
                |package| Calibrator::new(package, step_weights.clone(), *token_stride);
            calibrators.extend(
                plan.packages.iter().map(|package| (weighting.to_string(), calibrator(package))),
            );
        }
        let calibrators = Calibrators(calibrators);
        for images in sampling.batches(prompts.len()) {
            pipeline.sample(prompts, images, sampling, Some(&calibrators), &())?;
        }
        let weighted = calibrators
            .0
            .into_iter()
            .map(|(name, calibrator)| Ok((name, calibrator.finish()?)))
            .collect::<Result<_>>()?;
        Ok(self.weighted.get_or_init(|| weighted))
    }

    /// The scores of the dense model's heads and neurons, which do not depend on how many go.
    pub(crate) fn taylor(&self, pipeline: &Pipeline) -> Result<&Taylor> {
        if let Some(taylor) = self.taylor.get() {
            return Ok(taylor);
        }
        // Of every group some go.
        let plan =
            self.plan(pipeline, &Task::Structured { method: &L1, portion: Portion::new(0.5)? })?;
        let taylor = Taylor::measure(pipeline, &plan, &self.calibration, &())?;
        Ok(self.taylor.get_or_init(|| taylor))
    }

    pub(crate) fn samples(&self, pipeline: &Pipeline, name: &str) -> Result<Samples> {
        let sampling = Sampling { seed: self.seed + 1000, ..self.calibration.sampling.clone() };
        Ok(Samples::generate(pipeline, name, &self.prompts, &sampling, Some(&self.clip), &())?)
    }

    pub(crate) fn removed(&self, pipeline: &Pipeline) -> Result<[f64; 2]> {
        let folder = pipeline.folder();
        let (mut stay, mut all) = (0, 0);
        for (name, weight) in
            pipeline.parameters().iter().filter(|(name, _)| folder.is_parameter(name))
        {
            stay += weight
                .tensor()?
                .flatten_all()?
                .to_vec1::<f32>()?
                .iter()
                .filter(|value| **value != 0.0)
                .count();
            all += folder.checkpoint().tensor(name).map_or(0, TensorInfo::elements);
        }
        let sampling = &self.calibration.sampling;
        let macs =
            pipeline.structure(sampling).macs() as f64 / folder.structure(sampling).macs() as f64;
        Ok([1.0 - stay as f64 / all as f64, 1.0 - macs])
    }
}
