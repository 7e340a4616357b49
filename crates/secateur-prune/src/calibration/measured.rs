//! Measured weights of the denoising steps: each step's share in the error of the final latents.
//!
//! A Hessian minimises a sum over the steps, sum of a_t l_t, where l_t is the squared error of a
//! layer's output at step t. The quantity to minimise is the error D of the final latents. To first
//! order D is a sum too, D = sum of D_t, where D_t is the part of D that comes from the errors at
//! step t, and |D|^2 = sum of <D_t, D>. So a_t is chosen in proportion to <D_t, D>, under the
//! assumption that the layers' errors l_t are alike at all steps. If errors of different steps were
//! uncorrelated, that would be |D_t|^2. But the same wrong weights make similar errors at
//! successive steps, and these add up.
//!
//! D_t is measured with a little noise on all weights that can be pruned. First a few pictures are
//! denoised. Then the noisy model is called on the same latents, which gives the error of each
//! call. Then the unchanged model denoises the pictures again, once for each of a few groups of
//! successive steps, with the errors of the group added to its outputs. (White noise on the
//! denoiser's output cannot replace these errors: the next steps remove most of it, as they remove
//! any noise.)

use crate::calibration::settings::Calibration;
use crate::calibration::weighting::Weighting;
use crate::error::{Error, Result};
use candle_core::Tensor;
use secateur_models::{Call, Edits, Observer, Pipeline, Sampling, noise};
use std::collections::BTreeMap;
use std::ops::Range;

impl Calibration {
    /// Returns the weights of the steps, the noisiest step first. They are given by a formula, or
    /// measured on the model, which is unchanged afterwards.
    ///
    /// # Errors
    /// If the model fails or the observer interrupts.
    pub fn step_weights(
        &self,
        pipeline: &mut Pipeline,
        observer: &dyn Observer,
    ) -> Result<Vec<f64>> {
        match self.weighting.weights(self.sampling.steps) {
            Some(weights) => Ok(weights),
            None => measure(pipeline, self, observer),
        }
    }
}

impl Weighting {
    /// How many pictures are denoised to measure the weights, besides the calibration's own, for a
    /// calibration with `prompts` prompts. 0 if the weights are not measured.
    #[must_use]
    pub fn pictures(self, prompts: usize, steps: usize) -> usize {
        if self.weights(steps).is_some() { 0 } else { self::pictures(prompts, steps) }
    }
}

/// How the weights are measured.
struct Measurement {
    /// Number of pictures that are denoised, one for each of the first prompts.
    pictures: usize,
    /// Number of groups of successive steps that share a weight, if there are at least as many
    /// steps.
    groups: usize,
    /// Root mean square of the noise on a weight matrix, relative to that of the matrix. It is
    /// small enough that the errors grow linearly with it.
    noise: f64,
    /// Seed of that noise.
    seed: u64,
}

impl Measurement {
    const PICTURES: usize = 4;
    const GROUPS: usize = 4;
    const NOISE: f64 = 0.01;
    /// The least weight of a step, relative to the mean weight.
    const LEAST: f64 = 0.01;
}

/// Number of pictures that [`measure`] denoises.
pub(crate) fn pictures(prompts: usize, steps: usize) -> usize {
    prompts.min(Measurement::PICTURES) * (steps.min(Measurement::GROUPS) + 2)
}

/// Measures the weights of the steps, scaled to mean 1. The pipeline is unchanged afterwards.
pub(crate) fn measure(
    pipeline: &mut Pipeline,
    calibration: &Calibration,
    observer: &dyn Observer,
) -> Result<Vec<f64>> {
    let Calibration { prompts, sampling, .. } = calibration;
    observer.begin(
        "weigh",
        pictures(prompts.len(), sampling.steps) * sampling.steps,
        "image steps",
    );
    let measurement = Measurement {
        pictures: prompts.len().min(Measurement::PICTURES),
        groups: sampling.steps.min(Measurement::GROUPS),
        noise: Measurement::NOISE,
        // Not that of the pictures' noise.
        seed: !sampling.seed,
    };
    measurement.weights(pipeline, calibration, observer)
}

impl Measurement {
    fn weights(
        &self,
        pipeline: &mut Pipeline,
        calibration: &Calibration,
        observer: &dyn Observer,
    ) -> Result<Vec<f64>> {
        let Calibration { prompts, sampling, .. } = calibration;
        let group_of = |step: usize| step * self.groups / sampling.steps;
        let (kept, noisy) = self.noisy(pipeline, sampling)?;
        let (mut shares, mut calls) = (vec![0.0; self.groups], vec![0.0; self.groups]);
        for images in sampling.batches(self.pictures) {
            let run = Run { prompts, sampling, images, observer };
            let (mut outputs, mut errors) = (Vec::new(), Vec::new());
            let ends = run.denoise(pipeline, |_, call, output| {
                calls[group_of(call.step)] += 1.0;
                outputs.push(output.clone());
                Ok(())
            })?;
            pipeline.apply(&noisy)?;
            let told = run.denoise(pipeline, |index, _, output| {
                errors.push((&*output - &outputs[index])?);
                *output = outputs[index].clone();
                Ok(())
            });
            pipeline.apply(&kept)?;
            told?;
            let changes = (0..self.groups).map(|group| {
                let changed = run.denoise(pipeline, |index, call, output| {
                    if group_of(call.step) == group {
                        *output = (&*output + &errors[index])?;
                    }
                    Ok(())
                })?;
                Ok((changed - &ends)?)
            });
            // Groups x pictures x latents.
            let changes = Tensor::stack(&changes.collect::<Result<Vec<_>>>()?, 0)?;
            let products = changes.broadcast_mul(&changes.sum(0)?)?.sum(2)?;
            let of_groups = products.broadcast_div(&products.sum(0)?)?.sum(1)?.to_vec1::<f32>()?;
            shares
                .iter_mut()
                .zip(of_groups)
                .for_each(|(share, of_group)| *share += f64::from(of_group));
        }
        // A Hessian weighs every call.
        normalised(
            (0..sampling.steps).map(group_of).map(|group| shares[group] / calls[group]).collect(),
        )
    }

    /// Returns two edits of all weights that can be pruned: unchanged, and with noise.
    fn noisy(&self, pipeline: &Pipeline, sampling: &Sampling) -> Result<(Edits, Edits)> {
        let structure = pipeline.structure(sampling);
        let (mut weights, mut noisy) = (BTreeMap::new(), BTreeMap::new());
        for (index, layer) in
            structure.layers().filter(|layer| layer.prunable.is_some()).enumerate()
        {
            let name = layer.name.weight();
            let (Some(weight), Some(own)) = (pipeline.parameter(&name)?, pipeline.weight(&name)?)
            else {
                return Err(Error::layer(&layer.name, "no weight in the checkpoint"));
            };
            let square = f64::from(weight.sqr()?.mean_all()?.to_scalar::<f32>()?);
            let noise = noise(self.seed, index..index + 1, 0, weight.dims())?.squeeze(0)?;
            let noise = pipeline.folder().placement().in_f32().bring(&noise)?;
            let changed = (&weight + (noise * (self.noise * square.sqrt()))?)?;
            noisy.insert(name.clone(), changed.into());
            weights.insert(name, own);
        }
        Ok([weights, noisy]
            .map(|weights| Edits { weights, removals: pipeline.removals().clone() })
            .into())
    }
}

/// Pictures that are denoised several times.
struct Run<'a> {
    prompts: &'a [String],
    sampling: &'a Sampling,
    images: Range<usize>,
    observer: &'a dyn Observer,
}

impl Run<'_> {
    /// Returns the final latents, one row per picture. `change` is as for
    /// [`Pipeline::sample_with`].
    fn denoise(
        &self,
        pipeline: &Pipeline,
        change: impl FnMut(usize, Call, &mut Tensor) -> secateur_models::Result<()>,
    ) -> Result<Tensor> {
        let Self { prompts, sampling, images, observer } = self;
        let latents =
            pipeline.sample_with(prompts, images.clone(), sampling, None, *observer, change)?;
        Ok(latents.flatten_from(1)?)
    }
}

/// Raises weights that are negative or nearly zero, and scales all to mean 1.
fn normalised(mut weights: Vec<f64>) -> Result<Vec<f64>> {
    let mean = |weights: &[f64]| weights.iter().sum::<f64>() / weights.len() as f64;
    let least = Measurement::LEAST * mean(&weights);
    weights.iter_mut().for_each(|weight| *weight = weight.max(least));
    let mean = mean(&weights);
    if !mean.is_finite() || mean <= 0.0 {
        let problem = "the weights of the steps cannot be measured, as a little noise on the \
            model's weights does not \
            change its pictures, or without bounds: choose another weighting";
        return Err(Error::Request(problem.into()));
    }
    weights.iter_mut().for_each(|weight| *weight /= mean);
    Ok(weights)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibration::weighting::Weighting;
    use secateur_models::{ModelFolder, Sampler};
    use secateur_nn::Weight;
    use std::path::Path;

    fn bundled(name: &str, change: impl Fn(Sampling) -> Sampling) -> (Pipeline, Calibration) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models").join(name);
        let folder = ModelFolder::open(&path, None).unwrap();
        let sampling = change(Sampling { steps: 4, ..folder.sampling() });
        let prompts =
            folder.prompts(|prompts| &prompts.calibration).unwrap().unwrap()[..2].to_vec();
        let calibration =
            Calibration { prompts, sampling, weighting: Weighting::Measured, token_stride: 1 };
        (Pipeline::open(folder).unwrap(), calibration)
    }

    const MEASUREMENT: Measurement = Measurement { pictures: 2, groups: 4, noise: 0.01, seed: 1 };

    fn weights(
        measurement: &Measurement,
        (pipeline, calibration): &mut (Pipeline, Calibration),
    ) -> Vec<f64> {
        let weights = measurement.weights(pipeline, calibration, &()).unwrap();
        let mean = weights.iter().sum::<f64>() / weights.len() as f64;
        assert!(
            (mean - 1.0).abs() < 1e-12 && weights.iter().all(|weight| *weight > 0.0),
            "{weights:?}"
        );
        weights
    }

    fn assert_close(weights: &[f64], want: &[f64], tolerance: f64) {
        let close = |(weight, want): (&f64, &f64)| (weight - want).abs() < tolerance;
        assert!(weights.iter().zip(want).all(close), "{weights:?}, {want:?}");
    }

    /// With a flow's sampler, an error in one of the last outputs reaches the final latents
    /// multiplied by the change of the noise level, as few or no calls of the model follow.
    #[test]
    fn late_errors_grow_to_the_length_of_their_step() {
        let (pipeline, Calibration { prompts, sampling, .. }) =
            bundled("emoji-mmdit", |sampling| sampling);
        let run = Run { prompts: &prompts, sampling: &sampling, images: 0..2, observer: &() };
        let end = run.denoise(&pipeline, |_, _, _| Ok(())).unwrap();
        let error = noise(5, 0..2, 0, &pipeline.folder().denoiser().latent_shape()).unwrap();
        let error = (error * 0.01).unwrap();
        let norm = |tensor: &Tensor| {
            tensor.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt()
        };
        // Levels 1, 0.667, 0.334, 0.001 and 0.
        for (step, length) in [(2, 0.333), (3, 0.001)] {
            let changed = run.denoise(&pipeline, |_, call, output| {
                if call.step == step {
                    *output = (&*output + &error)?;
                }
                Ok(())
            });
            let grown = norm(&(changed.unwrap() - &end).unwrap()) / norm(&error);
            assert!((grown / length - 1.0).abs() < 0.01, "step {step}: {grown}, {length}");
        }
    }

    #[test]
    fn weights_depend_neither_on_the_batch_nor_on_the_size_of_the_noise() {
        let mut model = bundled("emoji-mmdit", |sampling| sampling);
        let before = model.0.parameters().clone();
        let want = weights(&MEASUREMENT, &mut model);
        assert_close(
            &weights(&Measurement { noise: 0.005, ..MEASUREMENT }, &mut model),
            &want,
            0.03,
        );
        model.1.sampling.batch = 1;
        assert_close(&weights(&MEASUREMENT, &mut model), &want, 1e-3);
        for ((name, weight), (_, old)) in model.0.parameters().iter().zip(before.iter()) {
            let values = |weight: &Weight| {
                weight.tensor().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
            };
            assert_eq!(values(weight), values(old), "{name}");
        }
    }

    #[test]
    fn steps_of_one_group_have_one_weight() {
        let mut model = bundled("emoji-mmdit", |sampling| Sampling { steps: 5, ..sampling });
        let weights = weights(&Measurement { groups: 2, ..MEASUREMENT }, &mut model);
        assert_eq!((weights[0], weights[3]), (weights[2], weights[4]));
        assert_ne!(weights[2], weights[3]);
    }

    #[test]
    fn samplers_with_a_past_and_several_calls_a_step() {
        let one = Measurement { pictures: 1, groups: 2, ..MEASUREMENT };
        for sampler in [Sampler::Heun, Sampler::Pndm, Sampler::EulerAncestral] {
            let mut model = bundled("emoji-unet", |sampling| Sampling { sampler, ..sampling });
            let found = weights(&one, &mut model);
            assert_close(&weights(&Measurement { noise: 0.005, ..one }, &mut model), &found, 0.1);
        }
    }
}
