//! Layers under their checkpoint names.

use crate::context::Context;
use crate::error::{Error, Result};
use crate::name::LayerName;
use crate::ops;
use crate::weights::{Scope, Weight};
use candle_core::Tensor;
use secateur_kernels::Activation;
use tracing::trace_span;

/// A linear layer: y = x W^T + b, with a weight of outputs x inputs.
#[derive(Clone, Debug)]
pub struct Linear {
    name: LayerName,
    weight: Weight,
    bias: Option<Tensor>,
}

impl Linear {
    /// Takes `weight` (outputs x inputs) and `bias` (outputs) from `scope`.
    ///
    /// # Errors
    /// See [`Scope::get`].
    pub fn new(inputs: usize, outputs: usize, scope: &Scope<'_>) -> Result<Self> {
        Ok(Self {
            bias: Some(scope.get("bias", outputs)?),
            ..Self::without_bias(inputs, outputs, scope)?
        })
    }

    /// Takes `weight` (outputs x inputs) from `scope`. The layer has no bias.
    ///
    /// # Errors
    /// See [`Scope::get`].
    pub fn without_bias(inputs: usize, outputs: usize, scope: &Scope<'_>) -> Result<Self> {
        Ok(Self {
            name: scope.layer_name(),
            weight: scope.weight("weight", (outputs, inputs))?,
            bias: None,
        })
    }

    /// Maps `x` (... x inputs) to ... x outputs.
    ///
    /// # Errors
    /// If the shape does not fit, or the probe objects.
    pub fn forward(&self, x: &Tensor, context: &Context<'_>) -> Result<Tensor> {
        self.watch(x, context)?;
        let _span = trace_span!("linear").entered();
        Ok(ops::linear(x, &self.weight, self.bias.as_ref(), None)?)
    }

    /// Computes [`Linear::forward`], then applies `activation`.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn forward_activated(
        &self,
        x: &Tensor,
        activation: Activation,
        context: &Context<'_>,
    ) -> Result<Tensor> {
        self.watch(x, context)?;
        let _span = trace_span!("linear").entered();
        Ok(ops::linear(x, &self.weight, self.bias.as_ref(), Some(activation))?)
    }

    fn watch(&self, x: &Tensor, context: &Context<'_>) -> Result<()> {
        let Some(probe) = context.probe else { return Ok(()) };
        let inputs = self.weight.shape().dims()[1];
        if x.dims().last() != Some(&inputs) {
            let problem = format!("an input of {:?}, and {inputs} columns in its weight", x.dims());
            return Err(Error::Layer { layer: self.name.clone(), problem });
        }
        probe.linear_input(&self.name, x, context)
    }
}

/// A convolution with a square kernel: a weight of outputs x inputs x kernel x kernel, and a bias.
#[derive(Clone, Debug)]
pub struct Conv2d {
    name: LayerName,
    weight: Weight,
    bias: Tensor,
    stride: usize,
    padding: (usize, usize),
}

impl Conv2d {
    /// Takes `weight` and `bias` (outputs) from `scope`. `padding` is the number of zeros, in
    /// pixels, before (top and left) and after (bottom and right) the input.
    ///
    /// # Errors
    /// See [`Scope::get`].
    pub fn new(
        (inputs, outputs): (usize, usize),
        kernel: usize,
        stride: usize,
        padding: (usize, usize),
        scope: &Scope<'_>,
    ) -> Result<Self> {
        let bias = scope.get("bias", outputs)?;
        Ok(Self { bias, ..Self::without_bias((inputs, outputs), kernel, stride, padding, scope)? })
    }

    /// As [`Conv2d::new`], for a checkpoint without a bias.
    ///
    /// # Errors
    /// See [`Scope::get`].
    pub fn without_bias(
        (inputs, outputs): (usize, usize),
        kernel: usize,
        stride: usize,
        padding: (usize, usize),
        scope: &Scope<'_>,
    ) -> Result<Self> {
        let weight = scope.weight("weight", (outputs, inputs, kernel, kernel))?;
        let bias = scope.placement().tensor(vec![0f32; outputs], outputs)?;
        Ok(Self { name: scope.layer_name(), weight, bias, stride, padding })
    }

    /// Maps `x` (samples x inputs x height x width) to samples x outputs x height' x width'. A side
    /// of n pixels becomes one of (n + padding - kernel) / stride + 1.
    ///
    /// # Errors
    /// If the shape does not fit, or the probe objects.
    pub fn forward(&self, x: &Tensor, context: &Context<'_>) -> Result<Tensor> {
        self.watch(x, context)?;
        let _span = trace_span!("convolution").entered();
        Ok(ops::conv2d(x, &self.weight, &self.bias, self.stride, self.padding)?)
    }

    fn watch(&self, x: &Tensor, context: &Context<'_>) -> Result<()> {
        let Some(probe) = context.probe else { return Ok(()) };
        let inputs = self.weight.shape().dims()[1];
        if x.rank() != 4 || x.dim(1)? != inputs {
            let problem =
                format!("an input of {:?}, and {inputs} channels in its weight", x.dims());
            return Err(Error::Layer { layer: self.name.clone(), problem });
        }
        probe.convolution_input(&self.name, x, context)
    }
}

/// Layer norm with weight and bias.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

impl LayerNorm {
    /// Takes `weight` and `bias` (`width` each) from `scope`. The norm is over the last dimension,
    /// of `width` elements.
    ///
    /// # Errors
    /// See [`Scope::get`].
    pub fn new(width: usize, eps: f32, scope: &Scope<'_>) -> Result<Self> {
        Ok(Self { weight: scope.get("weight", width)?, bias: scope.get("bias", width)?, eps })
    }

    /// Normalises `x` (... x width). The shape stays.
    ///
    /// # Errors
    /// If the shape does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let _span = trace_span!("norm").entered();
        Ok(ops::layer_norm_affine(x, &self.weight, &self.bias, self.eps)?)
    }
}

/// RMS norm with weight, over successive groups of as many elements as the weight has. In a qk-norm
/// each group is one head.
#[derive(Clone, Debug)]
pub struct RmsNorm {
    weight: Tensor,
    eps: f32,
}

impl RmsNorm {
    /// Takes `weight` (`width`) from `scope`. Each group has `width` elements.
    ///
    /// # Errors
    /// See [`Scope::get`].
    pub fn new(width: usize, eps: f32, scope: &Scope<'_>) -> Result<Self> {
        Ok(Self { weight: scope.get("weight", width)?, eps })
    }

    /// Normalises `x`, whose last dimension is a multiple of `width`. The shape stays.
    ///
    /// # Errors
    /// If the shape does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let _span = trace_span!("norm").entered();
        Ok(ops::rms_norm(x, &self.weight, self.eps)?)
    }
}

/// Group norm with weight and bias, over channels-first images.
#[derive(Clone, Debug)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
    eps: f32,
}

impl GroupNorm {
    /// Takes `weight` and `bias` (`channels` each) from `scope`. The channels are normalised in
    /// `groups` groups.
    ///
    /// # Errors
    /// See [`Scope::get`].
    pub fn new(groups: usize, channels: usize, eps: f32, scope: &Scope<'_>) -> Result<Self> {
        Ok(Self {
            weight: scope.get("weight", channels)?,
            bias: scope.get("bias", channels)?,
            groups,
            eps,
        })
    }

    /// Normalises `x` (samples x channels x height x width). The shape stays.
    ///
    /// # Errors
    /// If the shape does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, false)
    }

    /// Computes [`GroupNorm::forward`], then applies SiLU.
    ///
    /// # Errors
    /// If the shape does not fit.
    pub fn forward_silu(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, true)
    }

    fn run(&self, x: &Tensor, silu: bool) -> Result<Tensor> {
        let _span = trace_span!("norm").entered();
        Ok(ops::group_norm(x, &self.weight, &self.bias, self.groups, self.eps, silu)?)
    }
}

/// A table of vectors, looked up by index.
#[derive(Clone, Debug)]
pub struct Embedding {
    weight: Tensor,
}

impl Embedding {
    /// Takes `weight` (`count` x `width`) from `scope`.
    ///
    /// # Errors
    /// See [`Scope::get`].
    pub fn new(count: usize, width: usize, scope: &Scope<'_>) -> Result<Self> {
        Ok(Self { weight: scope.get("weight", (count, width))? })
    }

    /// Looks up the vectors of `ids` (samples x tokens, u32): samples x tokens x width.
    ///
    /// # Errors
    /// If an index is out of range.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let (samples, tokens) = ids.dims2()?;
        let rows = self.weight.index_select(&ids.flatten_all()?, 0)?;
        Ok(rows.reshape((samples, tokens, self.weight.dim(1)?))?)
    }
}
