//! Diff-Pruning's criterion (Fang et al. 2023, arXiv 2305.10924), which scores heads and neurons by
//! the change of the training loss without them, to first order.

use crate::calibration::Calibration;
use crate::error::{Error, Result};
use crate::methods::structured::{Layers, Removed, StructuredMethod, remove_lowest};
use crate::plan::{Plan, PlannedGroup};
use candle_core::{DType, Tensor, Var};
use secateur_models::{Axis, Observer, Pipeline, noise};
use secateur_nn::{Context, LayerName};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

/// Removes the heads or neurons with the least |sum of w dL/dw| over all their weights, without
/// correcting the weights that are left.
///
/// The gradients are summed over the sampler's timesteps, from the least noisy one on, as long as
/// the loss is more than [`Taylor::THRESHOLD`] of the largest one so far. Diff-Pruning uses
/// training images. Here the model's own pictures of the calibration prompts replace them.
#[derive(Clone, Debug, Default)]
pub struct Taylor {
    /// Scores by group.
    scores: OnceLock<BTreeMap<LayerName, Vec<f64>>>,
}

impl Taylor {
    /// Timesteps whose loss is below this share of the largest one are left out (as in the
    /// reference).
    pub const THRESHOLD: f64 = 0.05;
    /// The most calibration prompts that are used. One picture is drawn for each.
    pub const IMAGES: usize = 32;

    /// Measures the scores of the heads and neurons of `plan`.
    ///
    /// # Errors
    /// If the model fails, or the observer interrupts.
    pub fn measure(
        pipeline: &Pipeline,
        plan: &Plan,
        calibration: &Calibration,
        observer: &dyn Observer,
    ) -> Result<Self> {
        let sampling = &calibration.sampling;
        let prompts = &calibration.prompts[..calibration.prompts.len().min(Self::IMAGES)];
        let batches = sampling.batches(prompts.len());
        observer.begin("draw", prompts.len() * sampling.steps, "image steps");
        let draw = |images| Ok(pipeline.sample(prompts, images, sampling, None, observer)?);
        let clean = batches.clone().map(draw).collect::<Result<Vec<_>>>()?;

        let mut learner = Learner::new(pipeline, plan)?;
        let folder = pipeline.folder();
        let scheduler = folder.scheduler(sampling.sampler)?;
        let calls = folder.schedule(sampling.latent, sampling)?.calls().to_vec();
        let mut timesteps: Vec<f32> = calls.iter().map(|call| call.timestep).collect();
        timesteps.sort_by(f32::total_cmp);
        timesteps.dedup();
        observer.begin("gradients", prompts.len() * timesteps.len(), "image steps");
        let mut largest = 0f64;
        for (draws, &timestep) in (1..).zip(&timesteps) {
            let mut loss = 0.0;
            let mut products = Products::default();
            for (images, clean) in batches.clone().zip(&clean) {
                let noise = noise(sampling.seed, images.clone(), draws, &clean.dims()[1..])?;
                let noise = folder.placement().in_f32().bring(&noise)?;
                let (latents, target) = scheduler.training_pair(timestep, clean, &noise)?;
                let conditioning =
                    pipeline.conditioning(&prompts[images.clone()], sampling.latent, sampling)?;
                let placement = folder.placement();
                let times = vec![timestep; images.len()];
                let times = placement.in_f32().tensor(times, images.len())?;
                let output = learner.denoiser.forward(
                    &placement.bring(&latents)?,
                    &times,
                    &conditioning.at(placement)?,
                    &Context::default(),
                )?;
                let output = placement.in_f32().bring(&output)?;
                let error = (output.narrow(1, 0, clean.dim(1)?)? - target)?;
                // The mean over all pictures, whatever the batch.
                let share = images.len() as f64 / prompts.len() as f64;
                let mean = (error.sqr()?.mean_all()? * share)?;
                loss += f64::from(mean.to_scalar::<f32>()?);
                learner.add(&mean, &mut products)?;
                observer.advance(images.len())?;
            }
            largest = largest.max(loss);
            if loss < Self::THRESHOLD * largest {
                break;
            }
            learner.sums.extend(products);
        }
        Ok(Self {
            scores: plan
                .groups()
                .map(|planned| learner.score(planned))
                .collect::<BTreeMap<_, _>>()
                .into(),
        })
    }

    /// Returns |sum of w dL/dw| of each head or neuron of a group, or `None` if they were not
    /// measured.
    #[must_use]
    pub fn scores(&self, group: &LayerName) -> Option<&[f64]> {
        self.scores.get()?.get(group).map(Vec::as_slice)
    }
}

impl StructuredMethod for Taylor {
    fn name(&self) -> &'static str {
        "taylor"
    }

    fn prepare(
        &self,
        pipeline: &Pipeline,
        plan: &Plan,
        calibration: &Calibration,
        observer: &dyn Observer,
    ) -> Result<()> {
        let Self { scores } = Self::measure(pipeline, plan, calibration, observer)?;
        if let Some(scores) = scores.into_inner() {
            self.scores.get_or_init(|| scores);
        }
        Ok(())
    }

    fn preparation(&self, calibration: &Calibration) -> (usize, usize) {
        let drawn = Self::IMAGES.min(calibration.prompts.len());
        // Every timestep at most.
        (drawn, drawn * calibration.sampling.steps)
    }

    fn remove(&self, groups: &[PlannedGroup], layers: &dyn Layers) -> Result<Removed> {
        let scores = |planned: &PlannedGroup| {
            let name = planned.group.name();
            let scores = self.scores(name).map(<[f64]>::to_vec);
            scores.ok_or_else(|| Error::layer(name, "the training loss was not measured"))
        };
        let scores = groups.iter().map(scores).collect::<Result<Vec<_>>>()?;
        remove_lowest(groups, &scores, layers)
    }

    fn scratch(&self, _: usize, _: usize) -> u64 {
        0
    }
}

/// The sums of w dL/dw over the rows and over the columns of each parameter.
#[derive(Default)]
struct Products(BTreeMap<String, [Vec<f64>; 2]>);

impl Products {
    fn add(&mut self, parameter: &str, product: &Tensor) -> Result<()> {
        let (rows, columns) = product.dims2()?;
        let [of_rows, of_columns] = self
            .0
            .entry(parameter.to_owned())
            .or_insert_with(|| [vec![0.0; rows], vec![0.0; columns]]);
        let product = product.to_dtype(DType::F64)?;
        for (sums, dim) in [(of_rows, 1), (of_columns, 0)] {
            let added = product.sum(dim)?.to_vec1::<f64>()?;
            sums.iter_mut().zip(added).for_each(|(sum, added)| *sum += added);
        }
        Ok(())
    }

    fn extend(&mut self, others: Self) {
        for (parameter, sums) in others.0 {
            match self.0.get_mut(&parameter) {
                Some(own) => own.iter_mut().zip(sums).for_each(|(own, sums)| {
                    own.iter_mut().zip(sums).for_each(|(own, sum)| *own += sum);
                }),
                None => drop(self.0.insert(parameter, sums)),
            }
        }
    }
}

/// A denoiser with gradients to the weights of heads and neurons.
struct Learner {
    variables: BTreeMap<String, Var>,
    denoiser: Box<dyn secateur_models::Denoiser>,
    sums: Products,
}

impl Learner {
    fn new(pipeline: &Pipeline, plan: &Plan) -> Result<Self> {
        let mut parameters = pipeline.parameters().clone();
        let mut variables = BTreeMap::new();
        let layers =
            plan.groups().flat_map(|planned| planned.group.inputs().chain(planned.group.outputs()));
        for layer in layers.collect::<BTreeSet<LayerName>>() {
            for name in [layer.weight(), layer.bias()] {
                if let Some(weight) = parameters.get(&name) {
                    let variable = Var::from_tensor(&weight.tensor()?)?;
                    parameters.replace(&name, variable.as_tensor().clone())?;
                    variables.insert(name, variable);
                }
            }
        }
        let denoiser =
            parameters.build(|scope| pipeline.folder().denoiser().build(&scope.into()))?;
        Ok(Self { variables, denoiser, sums: Products::default() })
    }

    /// Adds w dL/dw for that loss.
    fn add(&self, loss: &Tensor, products: &mut Products) -> Result<()> {
        let gradients = loss.backward()?;
        for (name, variable) in &self.variables {
            let Some(gradient) = gradients.get(variable) else { continue };
            let [weight, gradient] =
                [variable.as_tensor(), gradient].map(|tensor| tensor.to_dtype(DType::F32));
            let product = (weight? * gradient?)?;
            products.add(name, &product.reshape((product.dim(0)?, ()))?)?;
        }
        Ok(())
    }

    /// Returns the scores of a group's heads or neurons, summed over the rows that feed them, with
    /// their biases, and over the columns that read them.
    fn score(&self, planned: &PlannedGroup) -> (LayerName, Vec<f64>) {
        let group = &planned.group;
        let sum = |parameter: &str, axis: Axis, indices: &[usize]| {
            let sums = self.sums.0.get(parameter).map(|sums| &sums[axis as usize]);
            sums.map_or(0.0, |sums| indices.iter().map(|&index| sums[index]).sum::<f64>())
        };
        let score = |one: usize| {
            let parts = group.parts(&[one]);
            let part = |part: &secateur_models::Part| {
                let bias = match part.axis {
                    Axis::Rows => sum(&part.layer.bias(), Axis::Rows, &part.indices),
                    Axis::Columns => 0.0,
                };
                bias + sum(&part.layer.weight(), part.axis, &part.indices)
            };
            parts.iter().map(part).sum::<f64>().abs()
        };
        (group.name().clone(), (0..group.count()).map(score).collect())
    }
}
