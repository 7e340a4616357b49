//! A model with a choice before every unit at every call: to compute it, or to take over what it made before. Runs are made
//! without a graph; the way back goes call by call, each computed once more with one, so that memory is that of a call, and of
//! what units made.

use crate::error::Result;
use candle_core::{Tensor, Var};
use secateur_models::{Call, Conditioning, Kind, Pipeline, ReuseSchedule, Sampling, noise};
use secateur_nn::{Context, Gates, Passage, Step};
use std::cell::RefCell;
use std::ops::Range;

/// Of each unit, what it made when it was last computed; nothing before the first call.
type Features = Vec<Option<Vec<Tensor>>>;

/// A pipeline's denoiser between gates.
pub struct SuperNet<'a> {
    pipeline: &'a Pipeline,
    sampling: &'a Sampling,
    kind: Kind,
    units: Vec<String>,
}

/// Pictures on their way from noise to latents, with all that the way back needs.
pub struct Run<'a> {
    net: &'a SuperNet<'a>,
    conditioning: &'a Conditioning,
    calls: Vec<Recorded>,
    /// The final latents.
    latents: Var,
}

/// A call that was made.
struct Recorded {
    call: Call,
    computed: Vec<bool>,
    /// What units had made before it.
    features: Features,
    /// The latents before it.
    latents: Var,
    /// What the sampler gives the denoiser of them.
    input: Tensor,
    /// What the denoiser gave.
    output: Var,
    /// What the sampler makes of latents and outputs so far.
    after: Tensor,
}

impl<'a> SuperNet<'a> {
    /// With the units of a schedule.
    #[must_use]
    pub fn new(pipeline: &'a Pipeline, sampling: &'a Sampling, schedule: &ReuseSchedule) -> Self {
        Self { pipeline, sampling, kind: schedule.kind, units: schedule.units.clone() }
    }

    /// Draws the images `images` of a run, computing of each call what `computed` says (calls x units).
    ///
    /// # Errors
    /// If the model fails.
    pub fn run<'b>(
        &'b self,
        conditioning: &'b Conditioning,
        images: Range<usize>,
        computed: &[Vec<bool>],
    ) -> Result<Run<'b>> {
        let mut schedule = self.pipeline.folder().schedule(self.sampling.latent, self.sampling)?;
        let start = self.pipeline.noise(images.clone(), self.sampling)?;
        let mut latents = start.affine(schedule.initial_scale(), 0.0)?;
        let shape = latents.dims()[1..].to_vec();
        let mut draws = 0;
        let mut features: Features = vec![None; self.units.len()];
        let mut calls = Vec::new();
        for (index, call) in schedule.calls().to_vec().into_iter().enumerate() {
            let before = Var::from_tensor(&latents)?;
            let input = schedule.scale_input(index, &before)?;
            let gates = Hard { net: self, computed: &computed[index], features: features.clone().into() };
            let output = self.predict(&input.detach(), call, conditioning, &gates)?;
            let output = Var::from_tensor(&output)?;
            let mut draw = || {
                draws += 1;
                noise(self.sampling.seed, images.clone(), draws, &shape)
            };
            let after = schedule.step(index, &before, &output, &mut draw)?;
            latents = after.detach();
            let after_features = gates.features.into_inner();
            calls.push(Recorded {
                call,
                computed: computed[index].clone(),
                features: std::mem::replace(&mut features, after_features),
                latents: before,
                input,
                output,
                after,
            });
        }
        Ok(Run { net: self, conditioning, calls, latents: Var::from_tensor(&latents)? })
    }

    /// Bytes of what units make in a run of `images` pictures, at most: of a first call for the picture of one prompt, times calls and
    /// pictures.
    ///
    /// # Errors
    /// If the model fails.
    pub fn bytes(&self, prompt: &str, images: usize) -> Result<u64> {
        let schedule = self.pipeline.folder().schedule(self.sampling.latent, self.sampling)?;
        let Some(&call) = schedule.calls().first() else { return Ok(0) };
        let conditioning =
            self.pipeline.guided_conditioning(&[prompt.to_owned()], self.sampling.latent, self.sampling)?;
        let latents = self.pipeline.noise(0..1, self.sampling)?.affine(schedule.initial_scale(), 0.0)?;
        let computed = vec![true; self.units.len()];
        let gates = Hard { net: self, computed: &computed, features: vec![None; self.units.len()].into() };
        self.predict(&schedule.scale_input(0, &latents)?, call, &conditioning, &gates)?;
        let features = gates.features.into_inner();
        let elements: usize = features.iter().flatten().flatten().map(Tensor::elem_count).sum();
        Ok((elements * size_of::<f32>() * images * schedule.calls().len()) as u64)
    }

    fn predict(&self, input: &Tensor, call: Call, conditioning: &Conditioning, gates: &dyn Gates) -> Result<Tensor> {
        let step = Step { index: call.step, count: self.sampling.steps };
        let context = Context { step, gates: Some(gates), ..Context::default() };
        let guidance = self.sampling.guidance;
        Ok(self.pipeline.predict(input, call.timestep, conditioning, guidance, &context)?)
    }

    fn unit(&self, stretch: &str) -> Option<usize> {
        self.units.iter().position(|unit| unit == stretch)
    }

    /// What of a unit is taken over.
    fn kept(&self, inputs: &[Tensor], outputs: &[Tensor]) -> candle_core::Result<Vec<Tensor>> {
        match self.kind {
            Kind::Residual => outputs.iter().zip(inputs).map(|(y, x)| y - x).collect(),
            Kind::Block | Kind::Branch => Ok(outputs.to_vec()),
        }
    }

    /// The outputs of which that was kept.
    fn of_kept(&self, inputs: &[Tensor], kept: &[Tensor]) -> candle_core::Result<Vec<Tensor>> {
        match self.kind {
            Kind::Residual => inputs.iter().zip(kept).map(|(x, y)| x + y).collect(),
            Kind::Block | Kind::Branch => Ok(kept.to_vec()),
        }
    }
}

impl Run<'_> {
    /// The final latents. A loss of them is made of this variable.
    #[must_use]
    pub fn latents(&self) -> &Var {
        &self.latents
    }

    /// The change of what a unit made from each call to the next, relative to its size: the mean of |b - a| / |a| over all
    /// tensors, where it was computed every time.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn changes(&self, unit: usize) -> Result<Vec<f64>> {
        let made: Vec<&Vec<Tensor>> = self.calls.iter().filter_map(|call| call.features[unit].as_ref()).collect();
        let norm = |x: &Tensor| Ok::<_, candle_core::Error>(f64::from(x.sqr()?.sum_all()?.to_scalar::<f32>()?).sqrt());
        let change = |pair: &[&Vec<Tensor>]| {
            let changes =
                pair[0].iter().zip(pair[1]).map(|(a, b)| Ok(norm(&(b - a)?)? / norm(a)?.max(f64::MIN_POSITIVE)));
            let changes = changes.collect::<Result<Vec<_>>>()?;
            Ok(changes.iter().sum::<f64>() / changes.len().max(1) as f64)
        };
        made.windows(2).map(change).collect()
    }

    /// What a loss with the gradient `of_final` with respect to the final latents has for each gate (calls x units): the change
    /// per unit of a gate that is 1 where the unit is computed and 0 where not, with
    /// `out = gate * computed + (1 - gate) * taken over`, which is also what later calls take over. There is no choice at the
    /// first call: it has zeros. `advance` is told after every call.
    ///
    /// # Errors
    /// If the model fails, or `advance` does.
    pub fn gradients(&self, of_final: &Tensor, mut advance: impl FnMut() -> Result<()>) -> Result<Vec<Vec<f64>>> {
        let units = self.net.units.len();
        let mut of_gates = vec![vec![0.0; units]; self.calls.len()];
        let mut of_latents: Vec<Option<Tensor>> = vec![None; self.calls.len()];
        let mut of_outputs: Vec<Option<Tensor>> = vec![None; self.calls.len()];
        let mut of_features: Features = vec![None; units];
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
            let mixing = Mixing::new(self.net, recorded)?;
            let output = self.net.predict(&input, recorded.call, self.conditioning, &mixing)?;
            let mut surrogate = Tensor::zeros((), output.dtype(), output.device())?;
            if let Some(gradient) = &of_outputs[index] {
                surrogate = (surrogate + (output * gradient)?.sum_all()?)?;
            }
            let made = mixing.made.into_inner();
            for (features, gradient) in made.iter().zip(&of_features) {
                for (feature, gradient) in features.iter().flatten().zip(gradient.iter().flatten()) {
                    surrogate = (surrogate + (feature * gradient)?.sum_all()?)?;
                }
            }
            let gradients = surrogate.backward()?;
            for (unit, gate) in mixing.gates.iter().enumerate() {
                if let Some(gradient) = gradients.get(gate) {
                    of_gates[index][unit] = f64::from(gradient.to_scalar::<f32>()?);
                }
            }
            for (before, gradient) in mixing.before.iter().zip(&mut of_features) {
                let of_before = |feature: &Var| match gradients.get(feature) {
                    Some(gradient) => Ok(gradient.clone()),
                    None => feature.zeros_like(),
                };
                let features = before.iter().map(of_before).collect::<candle_core::Result<Vec<_>>>()?;
                *gradient = (!features.is_empty()).then_some(features);
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

fn add(sum: &mut Option<Tensor>, gradient: Option<&Tensor>) -> Result<()> {
    *sum = match (sum.take(), gradient) {
        (Some(sum), Some(gradient)) => Some((sum + gradient)?),
        (sum, gradient) => sum.or_else(|| gradient.cloned()),
    };
    Ok(())
}

/// Computes what is to be computed.
struct Hard<'a> {
    net: &'a SuperNet<'a>,
    computed: &'a [bool],
    features: RefCell<Features>,
}

impl Gates for Hard<'_> {
    fn enter(&self, stretch: &str, inputs: &[Tensor]) -> secateur_nn::Result<Passage> {
        let compute = || Passage::Compute(inputs.to_vec());
        let Some(unit) = self.net.unit(stretch) else { return Ok(compute()) };
        Ok(match &self.features.borrow()[unit] {
            Some(kept) if !self.computed[unit] => Passage::Instead(self.net.of_kept(inputs, kept)?),
            _ => compute(),
        })
    }

    fn leave(&self, stretch: &str, inputs: &[Tensor], outputs: Vec<Tensor>) -> secateur_nn::Result<Vec<Tensor>> {
        if let Some(unit) = self.net.unit(stretch) {
            self.features.borrow_mut()[unit] = Some(self.net.kept(inputs, &outputs)?);
        }
        Ok(outputs)
    }
}

/// Computes all units of a call, and lets go on what went on, as a function of gates.
struct Mixing<'a> {
    net: &'a SuperNet<'a>,
    recorded: &'a Recorded,
    /// 1 or 0 for each unit.
    gates: Vec<Var>,
    /// What was taken over, of units that were not computed.
    before: Vec<Vec<Var>>,
    /// What later calls take over.
    made: RefCell<Features>,
}

impl<'a> Mixing<'a> {
    fn new(net: &'a SuperNet<'a>, recorded: &'a Recorded) -> Result<Self> {
        let device = recorded.input.device();
        let gate = |&computed: &bool| Var::new(if computed { 1f32 } else { 0.0 }, device);
        let before = |(features, &computed): (&Option<Vec<Tensor>>, &bool)| {
            let taken_over = features.iter().flatten().filter(|_| !computed);
            taken_over.map(Var::from_tensor).collect::<candle_core::Result<Vec<_>>>()
        };
        Ok(Self {
            net,
            recorded,
            gates: recorded.computed.iter().map(gate).collect::<candle_core::Result<_>>()?,
            before: recorded.features.iter().zip(&recorded.computed).map(before).collect::<candle_core::Result<_>>()?,
            made: vec![None; net.units.len()].into(),
        })
    }
}

impl Gates for Mixing<'_> {
    fn enter(&self, stretch: &str, inputs: &[Tensor]) -> secateur_nn::Result<Passage> {
        // Nothing goes back through what does not go on.
        let through = |unit: usize| self.recorded.computed[unit];
        Ok(Passage::Compute(match self.net.unit(stretch) {
            Some(unit) if !through(unit) => inputs.iter().map(Tensor::detach).collect(),
            _ => inputs.to_vec(),
        }))
    }

    fn leave(&self, stretch: &str, inputs: &[Tensor], outputs: Vec<Tensor>) -> secateur_nn::Result<Vec<Tensor>> {
        let Some(unit) = self.net.unit(stretch) else { return Ok(outputs) };
        let computed = self.recorded.computed[unit];
        let now = match computed {
            true => self.net.kept(inputs, &outputs)?,
            // Of inputs without a graph.
            false => self.net.kept(&inputs.iter().map(Tensor::detach).collect::<Vec<_>>(), &outputs)?,
        };
        let Some(before) = &self.recorded.features[unit] else { return Ok(outputs) };
        // gate - its value: 0, with the gradient of the gate.
        let gate = self.gates[unit].affine(1.0, if computed { -1.0 } else { 0.0 })?;
        let taken_over = self.before[unit].iter().map(|feature| feature.as_tensor().clone());
        let base: Vec<Tensor> = if computed { now.clone() } else { taken_over.collect() };
        let mixed = base.iter().zip(now.iter().zip(before)).map(|(base, (now, before))| {
            let change = (now.detach() - before)?;
            base + change.broadcast_mul(&gate)?
        });
        let mixed = mixed.collect::<candle_core::Result<Vec<_>>>()?;
        let outputs = self.net.of_kept(inputs, &mixed)?;
        self.made.borrow_mut()[unit] = Some(mixed);
        Ok(outputs)
    }
}
