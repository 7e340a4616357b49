//! A model with a gate before every unit at every call: the unit is computed, or replaced by a
//! forecast from its earlier outputs. Runs are made without a graph. The backward pass computes one
//! call at a time again, with a graph. So the memory is that of one call and of the units' outputs.

use crate::error::Result;
use candle_core::{DType, Tensor, Var};
use secateur_models::{
    Call, Conditioning, Made, Past, Pipeline, Reuse, ReuseSchedule, Sampling, noise,
};
use secateur_nn::{Context, Gates, Passage, Step};
use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

/// A pipeline's denoiser with gates.
pub struct SuperNet<'a> {
    pipeline: &'a Pipeline,
    sampling: &'a Sampling,
    schedule: &'a ReuseSchedule,
}

/// A run from noise to latents, with all that the backward pass needs.
pub struct Run<'a> {
    net: &'a SuperNet<'a>,
    conditioning: &'a Conditioning,
    calls: Vec<Recorded>,
    /// The earlier outputs of units, after the last call.
    past: Vec<Past>,
    /// The final latents.
    latents: Var,
}

/// A call of the denoiser in a run.
struct Recorded {
    call: Call,
    /// The earlier outputs of units, before the call.
    past: Vec<Past>,
    /// The latents before the call.
    latents: Var,
    /// The input of the denoiser, which the sampler makes from the latents.
    input: Tensor,
    /// The output of the denoiser.
    output: Var,
    /// The latents after the call, which the sampler makes from latents and outputs.
    after: Tensor,
}

impl<'a> SuperNet<'a> {
    /// Creates a model with the gates of a schedule.
    #[must_use]
    pub fn new(
        pipeline: &'a Pipeline,
        sampling: &'a Sampling,
        schedule: &'a ReuseSchedule,
    ) -> Self {
        Self { pipeline, sampling, schedule }
    }

    /// Draws the images `images` of a run. `advance` is called after every call of the denoiser.
    ///
    /// # Errors
    /// If the model fails, or `advance` does.
    pub fn run<'b>(
        &'b self,
        conditioning: &'b Conditioning,
        images: Range<usize>,
        mut advance: impl FnMut() -> Result<()>,
    ) -> Result<Run<'b>> {
        let reuse =
            Reuse::new(Arc::new(self.schedule.clone()), &self.pipeline.structure(self.sampling))?;
        let mut schedule = self.pipeline.folder().schedule(self.sampling.latent, self.sampling)?;
        let start = self.pipeline.noise(images.clone(), self.sampling)?;
        let mut latents = start.affine(schedule.initial_scale(), 0.0)?;
        let shape = latents.dims()[1..].to_vec();
        let mut draws = 0;
        let mut calls = Vec::new();
        for (index, call) in schedule.calls().to_vec().into_iter().enumerate() {
            let before = Var::from_tensor(&latents)?;
            let input = schedule.scale_input(index, &before)?;
            let past = reuse.past();
            reuse.begin(index, call.timestep);
            let output = self.predict(&input.detach(), call, conditioning, &reuse)?;
            let output = Var::from_tensor(&output)?;
            let mut draw = || {
                draws += 1;
                let drawn = noise(self.sampling.seed, images.clone(), draws, &shape)?;
                Ok(self.pipeline.folder().placement().in_f32().bring(&drawn)?)
            };
            let after = schedule.step(index, &before, &output, &mut draw)?;
            latents = after.detach();
            calls.push(Recorded { call, past, latents: before, input, output, after });
            advance()?;
        }
        Ok(Run {
            net: self,
            conditioning,
            calls,
            past: reuse.past(),
            latents: Var::from_tensor(&latents)?,
        })
    }

    /// Returns the most bytes of the units' outputs in a run of `images` pictures: those of a first
    /// call for one picture of a prompt, times calls and pictures.
    ///
    /// # Errors
    /// If the model fails.
    pub fn bytes(&self, prompt: &str, images: usize) -> Result<u64> {
        let schedule = self.pipeline.folder().schedule(self.sampling.latent, self.sampling)?;
        let Some(&call) = schedule.calls().first() else { return Ok(0) };
        let conditioning = self.pipeline.guided_conditioning(
            &[prompt.to_owned()],
            self.sampling.latent,
            self.sampling,
        )?;
        let latents =
            self.pipeline.noise(0..1, self.sampling)?.affine(schedule.initial_scale(), 0.0)?;
        let reuse =
            Reuse::new(Arc::new(self.schedule.clone()), &self.pipeline.structure(self.sampling))?;
        reuse.begin(0, call.timestep);
        self.predict(&schedule.scale_input(0, &latents)?, call, &conditioning, &reuse)?;
        let past = reuse.past();
        let tensors = past.iter().flat_map(Past::made).flat_map(|made| &made.tensors);
        let elements: usize = tensors.map(Tensor::elem_count).sum();
        Ok((elements * size_of::<f32>() * images * schedule.calls().len()) as u64)
    }

    fn predict(
        &self,
        input: &Tensor,
        call: Call,
        conditioning: &Conditioning,
        gates: &dyn Gates,
    ) -> Result<Tensor> {
        let step = Step { index: call.step, count: self.sampling.steps };
        let context = Context { step, gates: Some(gates), ..Context::default() };
        let guidance = self.sampling.guidance;
        Ok(self.pipeline.predict(input, call.timestep, conditioning, guidance, &context)?)
    }
}

impl Run<'_> {
    /// Returns the final latents. A loss must be computed from this variable.
    #[must_use]
    pub fn latents(&self) -> &Var {
        &self.latents
    }

    /// Returns the relative difference between a unit's outputs at calls a and b, at `[a][b]`: the
    /// mean over all tensors of mean |b - a| / mean |a|. It is 0 if b is not later than a. The unit
    /// must be computed at every call.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn changes(&self, unit: usize) -> Result<Vec<Vec<f64>>> {
        let pasts = self.calls.iter().skip(1).map(|call| &call.past).chain([&self.past]);
        let made: Vec<&Vec<Tensor>> =
            pasts.filter_map(|past| past[unit].made().first()).map(|made| &made.tensors).collect();
        let size = |x: &Tensor| {
            let mean = x.to_dtype(DType::F32)?.abs()?.mean_all()?;
            Ok::<_, candle_core::Error>(f64::from(mean.to_scalar::<f32>()?))
        };
        let row = |(call, from): (usize, &&Vec<Tensor>)| {
            let sizes = from.iter().map(size).collect::<candle_core::Result<Vec<_>>>()?;
            let change = |to: &&Vec<Tensor>| {
                let changes = from.iter().zip(*to).zip(&sizes);
                let changes = changes
                    .map(|((a, b), of_a)| Ok(size(&(b - a)?)? / of_a.max(f64::MIN_POSITIVE)));
                let changes = changes.collect::<Result<Vec<f64>>>()?;
                Ok(changes.iter().sum::<f64>() / changes.len().max(1) as f64)
            };
            let later = made[call + 1..].iter().map(change).collect::<Result<Vec<f64>>>()?;
            Ok([vec![0.0; call + 1], later].concat())
        };
        made.iter().enumerate().map(row).collect()
    }

    /// Returns the gradients of a loss with respect to the gates (calls x units), given its
    /// gradient `of_final` with respect to the final latents. A gate is 1 if the unit is computed
    /// and 0 if not, with `out = gate * computed + (1 - gate) * forecast`. If the unit is computed,
    /// forecasts of later calls use `out` in the computed output's place. If not, forecasts until
    /// the unit is computed again do. The first call has no gates, and its gradients are zero.
    /// `advance` is called after every call.
    ///
    /// # Errors
    /// If the model fails, or `advance` does.
    pub fn gradients(
        &self,
        of_final: &Tensor,
        mut advance: impl FnMut() -> Result<()>,
    ) -> Result<Vec<Vec<f64>>> {
        let ReuseSchedule { order, computed, units, .. } = self.net.schedule;
        let units = units.len();
        let mut of_gates = vec![vec![0.0; units]; self.calls.len()];
        let mut of_latents: Vec<Option<Tensor>> = vec![None; self.calls.len()];
        let mut of_outputs: Vec<Option<Tensor>> = vec![None; self.calls.len()];
        // Of what units made, by call; and of what was forecast since the call in question, until
        // the unit is computed again.
        let mut of_made: Vec<Vec<Option<Vec<Tensor>>>> = vec![vec![None; units]; self.calls.len()];
        let mut of_forecasts: Vec<Vec<(f64, Vec<Tensor>)>> = vec![Vec::new(); units];
        let mut of_after = Some(of_final.clone());
        for (index, recorded) in self.calls.iter().enumerate().skip(1).rev() {
            // Through the sampler, which may remember earlier calls.
            if let Some(gradient) = of_after {
                let gradients = (&recorded.after * gradient)?.sum_all()?.backward()?;
                for (earlier, other) in self.calls[..=index].iter().enumerate() {
                    add(&mut of_latents[earlier], gradients.get(&other.latents))?;
                    add(&mut of_outputs[earlier], gradients.get(&other.output))?;
                }
            }
            // Through the denoiser.
            let input = Var::from_tensor(&recorded.input.detach())?;
            let computed = &computed[index];
            let mixing = Mixing::new(self.net.schedule, computed, recorded)?;
            let output = self.net.predict(&input, recorded.call, self.conditioning, &mixing)?;
            let mut surrogate = Tensor::zeros((), DType::F32, output.device())?;
            if let Some(gradient) = &of_outputs[index] {
                surrogate = (surrogate + product(&output, gradient)?)?;
            }
            for (unit, made) in mixing.made.take().into_iter().enumerate() {
                let gradient = match computed[unit] {
                    true => of_made[index][unit].take(),
                    false => recorded.of_another(*order, unit, &of_forecasts[unit])?,
                };
                for (made, gradient) in made.iter().flatten().zip(gradient.iter().flatten()) {
                    surrogate = (surrogate + product(made, gradient)?)?;
                }
            }
            let gradients = surrogate.backward()?;
            for (unit, gate) in mixing.gates.iter().enumerate() {
                if let Some(gradient) = gradients.get(gate) {
                    of_gates[index][unit] = f64::from(gradient.to_scalar::<f32>()?);
                }
            }
            for (unit, forecast) in mixing.forecasts.iter().enumerate() {
                if computed[unit] {
                    of_forecasts[unit].clear();
                    continue;
                }
                let gradient = |tensor: &Var| match gradients.get(tensor) {
                    Some(gradient) => gradient.to_dtype(DType::F32),
                    None => Tensor::zeros(tensor.shape(), DType::F32, tensor.device()),
                };
                let gradient =
                    forecast.iter().map(gradient).collect::<candle_core::Result<Vec<_>>>()?;
                let past = &recorded.past[unit];
                for (made, weight) in past.made().iter().zip(past.weights(recorded.timestep())) {
                    add_times(&mut of_made[made.call][unit], &gradient, weight)?;
                }
                of_forecasts[unit].push((recorded.timestep(), gradient));
            }
            if let Some(gradient) = gradients.get(&input) {
                let gradients = (&recorded.input * gradient)?.sum_all()?.backward()?;
                add(&mut of_latents[index], gradients.get(&recorded.latents))?;
            }
            of_after = of_latents[index].take();
            of_outputs[index] = None;
            advance()?;
        }
        Ok(of_gates)
    }
}

impl Recorded {
    fn timestep(&self) -> f64 {
        self.call.timestep.into()
    }

    /// Returns the gradients that forecasts with these timesteps and gradients pass to the unit's
    /// output at this call, as if it had been computed.
    fn of_another(
        &self,
        order: usize,
        unit: usize,
        of_forecasts: &[(f64, Vec<Tensor>)],
    ) -> candle_core::Result<Option<Vec<Tensor>>> {
        let mut past = self.past[unit].clone();
        past.push(Made { call: 0, timestep: self.timestep(), tensors: Vec::new() }, order);
        let mut sum = None;
        for (timestep, gradient) in of_forecasts {
            let weight = past.weights(*timestep).first().copied().unwrap_or(0.0);
            add_times(&mut sum, gradient, weight)?;
        }
        Ok(sum)
    }
}

/// The sum of x times the gradient with respect to it, in `f32`.
fn product(x: &Tensor, gradient: &Tensor) -> candle_core::Result<Tensor> {
    (x.to_dtype(DType::F32)? * gradient.to_dtype(DType::F32)?)?.sum_all()
}

fn add_times(
    sum: &mut Option<Vec<Tensor>>,
    tensors: &[Tensor],
    weight: f64,
) -> candle_core::Result<()> {
    let terms = tensors.iter().map(|tensor| tensor.affine(weight, 0.0));
    let terms = match sum.take() {
        Some(sum) => {
            sum.iter().zip(terms).map(|(sum, term)| sum + term?).collect::<candle_core::Result<_>>()
        }
        None => terms.collect(),
    };
    *sum = Some(terms?);
    Ok(())
}

fn add(sum: &mut Option<Tensor>, gradient: Option<&Tensor>) -> Result<()> {
    *sum = match (sum.take(), gradient) {
        (Some(sum), Some(gradient)) => Some((sum + gradient)?),
        (sum, gradient) => sum.or_else(|| gradient.cloned()),
    };
    Ok(())
}

/// Gates of one call: computes all units, and passes on the outputs of the run, as a function of
/// the gates.
struct Mixing<'a> {
    schedule: &'a ReuseSchedule,
    /// Which units the run computes at this call.
    computed: &'a [bool],
    /// The gate of each unit, 1 or 0.
    gates: Vec<Var>,
    /// The forecasts of the units' outputs.
    forecasts: Vec<Vec<Var>>,
    /// For units that are computed, the outputs that later calls use. For others, the gate times
    /// the difference of computed and forecast outputs.
    made: RefCell<Vec<Option<Vec<Tensor>>>>,
}

impl<'a> Mixing<'a> {
    fn new(schedule: &'a ReuseSchedule, computed: &'a [bool], recorded: &Recorded) -> Result<Self> {
        let device = recorded.input.device();
        let gate = |&computed: &bool| Var::new(if computed { 1f32 } else { 0.0 }, device);
        let forecast = |past: &Past| {
            past.forecast(recorded.timestep())?.iter().map(Var::from_tensor).collect()
        };
        Ok(Self {
            schedule,
            computed,
            gates: computed.iter().map(gate).collect::<candle_core::Result<_>>()?,
            forecasts: recorded.past.iter().map(forecast).collect::<candle_core::Result<_>>()?,
            made: vec![None; computed.len()].into(),
        })
    }

    fn unit(&self, stretch: &str) -> Option<usize> {
        self.schedule.units.iter().position(|unit| unit == stretch)
    }
}

impl Gates for Mixing<'_> {
    fn enter(&self, stretch: &str, inputs: &[Tensor]) -> secateur_nn::Result<Passage> {
        // Nothing goes back through what does not go on.
        Ok(Passage::Compute(match self.unit(stretch) {
            Some(unit) if !self.computed[unit] => inputs.iter().map(Tensor::detach).collect(),
            _ => inputs.to_vec(),
        }))
    }

    fn leave(
        &self,
        stretch: &str,
        inputs: &[Tensor],
        outputs: Vec<Tensor>,
    ) -> secateur_nn::Result<Vec<Tensor>> {
        let Some(unit) = self.unit(stretch) else { return Ok(outputs) };
        let (kind, computed, forecasts) =
            (self.schedule.kind, self.computed[unit], &self.forecasts[unit]);
        if forecasts.is_empty() {
            return Ok(outputs);
        }
        let now = match computed {
            true => kind.kept(inputs, &outputs)?,
            // Of inputs without a graph.
            false => kind.kept(&inputs.iter().map(Tensor::detach).collect::<Vec<_>>(), &outputs)?,
        };
        // (gate - its value) (computed - forecast): 0, with the gradient of the gate, which is a
        // sum over all numbers.
        let gate = self.gates[unit].affine(1.0, if computed { -1.0 } else { 0.0 })?;
        let moved = now.iter().zip(forecasts);
        let moved = moved.map(|(now, forecast)| {
            let difference = (now.detach() - forecast.detach())?.to_dtype(DType::F32)?;
            difference.broadcast_mul(&gate)?.to_dtype(now.dtype())
        });
        let moved = moved.collect::<candle_core::Result<Vec<_>>>()?;
        let base = match computed {
            true => now,
            false => forecasts.iter().map(|forecast| forecast.as_tensor().clone()).collect(),
        };
        let mixed = base.iter().zip(&moved).map(|(base, moved)| base + moved);
        let mixed = mixed.collect::<candle_core::Result<Vec<_>>>()?;
        let made = if computed { mixed.clone() } else { moved };
        self.made.borrow_mut()[unit] = Some(made);
        Ok(kind.outputs(inputs, mixed)?)
    }
}
