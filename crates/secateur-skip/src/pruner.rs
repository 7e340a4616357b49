//! DiP-GO's pruner network. It maps learned queries, one for each unit at each call, to the
//! probability that the unit is computed.

use crate::error::{Error, Result};
use candle_core::{CpuStorage, D, Device, InplaceOp2, InplaceOp3, Layout, Tensor, Var};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use rayon::prelude::*;
use secateur_models::files::{read_tensors, write_tensors};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

/// Width of a learned query, of the attention's queries and keys, and of the hidden layers.
const WIDTH: usize = 512;
const QUERY_KEY: usize = 128;
const HIDDEN: usize = 128;
/// Dropout of the attention's output during learning.
const DROPOUT: f64 = 0.1;
/// Momentum of stochastic gradient descent.
const MOMENTUM: f32 = 0.9;
const WEIGHT_DECAY: f32 = 1e-4;
const EPS: f64 = 1e-5;
/// Updates a velocity: v = momentum * v + gradient + decay * parameter.
struct Accelerate;

impl InplaceOp3 for Accelerate {
    fn name(&self) -> &'static str {
        "accelerate"
    }

    fn cpu_fwd(
        &self,
        velocity: &mut CpuStorage,
        of_velocity: &Layout,
        parameter: &CpuStorage,
        of_parameter: &Layout,
        gradient: &CpuStorage,
        of_gradient: &Layout,
    ) -> candle_core::Result<()> {
        let (parameter, gradient) =
            (slice(parameter, of_parameter)?, slice(gradient, of_gradient)?);
        let velocity = slice_mut(velocity, of_velocity)?;
        let others = parameter.par_chunks(CHUNK).zip(gradient.par_chunks(CHUNK));
        velocity.par_chunks_mut(CHUNK).zip(others).for_each(|(velocity, (parameter, gradient))| {
            for (v, (w, g)) in velocity.iter_mut().zip(parameter.iter().zip(gradient)) {
                *v = MOMENTUM * *v + g + WEIGHT_DECAY * w;
            }
        });
        Ok(())
    }
}

/// Updates a parameter: parameter -= rate * v.
struct Descend {
    rate: f32,
}

impl InplaceOp2 for Descend {
    fn name(&self) -> &'static str {
        "descend"
    }

    fn cpu_fwd(
        &self,
        parameter: &mut CpuStorage,
        of_parameter: &Layout,
        velocity: &CpuStorage,
        of_velocity: &Layout,
    ) -> candle_core::Result<()> {
        let velocity = slice(velocity, of_velocity)?;
        let parameter = slice_mut(parameter, of_parameter)?;
        parameter.par_chunks_mut(CHUNK).zip(velocity.par_chunks(CHUNK)).for_each(
            |(parameter, velocity)| {
                parameter.iter_mut().zip(velocity).for_each(|(w, v)| *w -= self.rate * v);
            },
        );
        Ok(())
    }
}

/// Numbers that a thread takes at a time, at most.
const CHUNK: usize = 1 << 15;

fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => candle_core::bail!("parameters have to be contiguous"),
    }
}

fn slice_mut<'a>(
    storage: &'a mut CpuStorage,
    layout: &Layout,
) -> candle_core::Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&mut values[start..end]),
        _ => candle_core::bail!("parameters have to be contiguous f32"),
    }
}

/// The prefix of the names of velocities in a file.
const VELOCITY: &str = "velocity.";

/// The network, with the state of its optimiser. It has a layer of self-attention over the units of
/// a call, a feed-forward, and a head of three linears for each query. The last linear starts with
/// weights of 0 and biases of 0 and 1, so every unit is first computed with probability 0.731.
pub struct Pruner {
    calls: usize,
    units: usize,
    parameters: BTreeMap<String, Var>,
    velocities: BTreeMap<String, Tensor>,
    random: RefCell<ChaCha8Rng>,
}

impl Pruner {
    /// Creates the network for that many calls and units. Its weights depend only on the seed.
    ///
    /// # Errors
    /// If a tensor cannot be made.
    pub fn new(calls: usize, units: usize, seed: u64) -> Result<Self> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut parameters = BTreeMap::new();
        let mut put = |name: &str, shape: &[usize], values: Vec<f32>| -> Result<()> {
            parameters.insert(name.to_owned(), Var::from_vec(values, shape, &Device::Cpu)?);
            Ok(())
        };
        let count = calls * units;
        let queries = (0..count * WIDTH).map(|_| random.sample::<f32, _>(StandardNormal)).collect();
        put("queries", &[calls, units, WIDTH], queries)?;
        for (name, inputs, outputs) in [
            ("to_q", WIDTH, QUERY_KEY),
            ("to_k", WIDTH, QUERY_KEY),
            ("to_v", WIDTH, WIDTH),
            ("up", WIDTH, HIDDEN),
            ("down", HIDDEN, WIDTH),
        ] {
            // As PyTorch's linears start.
            let bound = 1.0 / (inputs as f32).sqrt();
            let mut uniform = |count: usize| {
                (0..count).map(|_| random.random_range(-bound..bound)).collect::<Vec<_>>()
            };
            put(&format!("{name}.weight"), &[inputs, outputs], uniform(inputs * outputs))?;
            put(&format!("{name}.bias"), &[outputs], uniform(outputs))?;
        }
        put("norm.weight", &[WIDTH], vec![1.0; WIDTH])?;
        put("norm.bias", &[WIDTH], vec![0.0; WIDTH])?;
        for (name, inputs) in [("head.0", WIDTH), ("head.1", HIDDEN)] {
            let bound = 1.0 / (inputs as f32).sqrt();
            let mut uniform = |size: usize| {
                (0..count * size).map(|_| random.random_range(-bound..bound)).collect::<Vec<_>>()
            };
            put(&format!("{name}.weight"), &[count, inputs, HIDDEN], uniform(inputs * HIDDEN))?;
            put(&format!("{name}.bias"), &[count, 1, HIDDEN], uniform(HIDDEN))?;
        }
        put("head.2.weight", &[count, HIDDEN, 2], vec![0.0; count * HIDDEN * 2])?;
        put("head.2.bias", &[count, 1, 2], [0.0, 1.0].repeat(count))?;
        Ok(Self { calls, units, parameters, velocities: BTreeMap::new(), random: random.into() })
    }

    /// Bytes of a network for that many calls and units, with its velocities and gradients.
    #[must_use]
    pub fn bytes(calls: usize, units: usize) -> u64 {
        let of_head = WIDTH * HIDDEN + HIDDEN * HIDDEN + 2 * HIDDEN;
        (3 * calls * units * (WIDTH + of_head) * size_of::<f32>()) as u64
    }

    fn get(&self, name: &str) -> Result<&Tensor> {
        let parameter = self.parameters.get(name);
        parameter
            .map(Var::as_tensor)
            .ok_or_else(|| Error::Request(format!("the pruner network has no {name}")))
    }

    fn linear(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        let (calls, units, width) = x.dims3()?;
        let x = x.reshape((calls * units, width))?.matmul(self.get(&format!("{name}.weight"))?)?;
        Ok(x.broadcast_add(self.get(&format!("{name}.bias"))?)?.reshape((calls, units, ()))?)
    }

    /// Returns P(computed) of each unit at each call: calls x units. `learns` switches dropout on.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn forward(&self, learns: bool) -> Result<Tensor> {
        let queries = self.get("queries")?;
        let (q, k, v) = (
            self.linear("to_q", queries)?,
            self.linear("to_k", queries)?,
            self.linear("to_v", queries)?,
        );
        let scores =
            (q.matmul(&k.transpose(1, 2)?.contiguous()?)? * (1.0 / (QUERY_KEY as f64).sqrt()))?;
        let scores = scores.broadcast_sub(&scores.detach().max_keepdim(D::Minus1)?)?.exp()?;
        let attention = scores.broadcast_div(&scores.sum_keepdim(D::Minus1)?)?.matmul(&v)?;
        let attention = if learns { (attention * self.dropout()?)? } else { attention };
        let x = self.norm(&(queries + attention)?)?;
        let x = self.linear("down", &self.linear("up", &x)?.relu()?)?;

        let count = self.calls * self.units;
        let mut x = x.reshape((count, 1, WIDTH))?;
        for layer in 0..3 {
            let (weight, bias) = (format!("head.{layer}.weight"), format!("head.{layer}.bias"));
            x = (x.matmul(self.get(&weight)?)? + self.get(&bias)?)?;
            x = if layer < 2 { x.relu()? } else { x };
        }
        // The softmax over both.
        let x = x.reshape((count, 2))?;
        let odds = (x.narrow(1, 0, 1)? - x.narrow(1, 1, 1)?)?.exp()?;
        Ok((odds + 1.0)?.recip()?.reshape((self.calls, self.units))?)
    }

    fn dropout(&self) -> Result<Tensor> {
        let mut random = self.random.borrow_mut();
        let keep = (1.0 / (1.0 - DROPOUT)) as f32;
        let mask = (0..self.calls * self.units * WIDTH)
            .map(|_| if random.random_bool(DROPOUT) { 0.0 } else { keep });
        Ok(Tensor::from_iter(mask, &Device::Cpu)?.reshape((self.calls, self.units, WIDTH))?)
    }

    fn norm(&self, x: &Tensor) -> Result<Tensor> {
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let deviation = (centred.sqr()?.mean_keepdim(D::Minus1)? + EPS)?.sqrt()?;
        let x = centred.broadcast_div(&deviation)?;
        Ok(x.broadcast_mul(self.get("norm.weight")?)?.broadcast_add(self.get("norm.bias")?)?)
    }

    /// Makes a step of gradient descent with momentum and weight decay. The loss must be computed
    /// from the result of [`Pruner::forward`].
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn step(&mut self, loss: &Tensor, learning_rate: f64) -> Result<()> {
        let gradients = loss.backward()?;
        for (name, parameter) in &self.parameters {
            let Some(gradient) = gradients.get(parameter) else { continue };
            if !self.velocities.contains_key(name) {
                self.velocities.insert(name.clone(), parameter.zeros_like()?);
            }
            let Some(velocity) = self.velocities.get(name) else { continue };
            let gradient = gradient.contiguous()?;
            velocity.inplace_op3(parameter.as_tensor(), &gradient, &Accelerate)?;
            parameter.as_tensor().inplace_op2(velocity, &Descend { rate: learning_rate as f32 })?;
        }
        Ok(())
    }

    /// Writes all state that [`Pruner::open`] needs to continue, and returns the file's digest.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<String> {
        let parameters =
            self.parameters.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone()));
        let velocities = self
            .velocities
            .iter()
            .map(|(name, tensor)| (format!("{VELOCITY}{name}"), tensor.clone()));
        Ok(write_tensors(path, &parameters.chain(velocities).collect())?)
    }

    /// Reads the file that [`Pruner::save`] wrote after `steps` steps, of a network for that many
    /// calls and units and that seed. The network then continues exactly as it would have.
    ///
    /// # Errors
    /// If the file cannot be read, has a different digest, or is of another network.
    pub fn open(
        path: &Path,
        digest: &str,
        calls: usize,
        units: usize,
        seed: u64,
        steps: usize,
    ) -> Result<Self> {
        let mut pruner = Self::new(calls, units, seed)?;
        let mut tensors = read_tensors(path, digest, &())?;
        let problem = |problem: String| Error::Progress { path: path.to_owned(), problem };
        for (name, parameter) in &pruner.parameters {
            let tensor = tensors.remove(name).filter(|tensor| tensor.shape() == parameter.shape());
            parameter.set(
                &tensor.ok_or_else(|| problem(format!("{name} is missing or of another shape")))?,
            )?;
            if let Some(velocity) = tensors.remove(&format!("{VELOCITY}{name}")) {
                pruner.velocities.insert(name.clone(), velocity);
            }
        }
        for _ in 0..steps {
            pruner.dropout()?;
        }
        Ok(pruner)
    }
}
