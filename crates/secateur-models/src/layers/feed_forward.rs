//! `FeedForward`.

use crate::error::Result;
use crate::structure::{NeuronGroup, Role, Site, Slice};
use candle_core::Tensor;
use secateur_nn::{Activation, Context, Linear, ops};
use serde::Deserialize;

/// The operation between the linears of a feed-forward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) enum Gate {
    /// GELU.
    #[default]
    Gelu,
    /// GELU by tanh.
    GeluTanh,
    /// Half of the first linear's outputs times GELU of the other half.
    Geglu,
}

impl Gate {
    /// Outputs of the first linear for each hidden neuron.
    pub(crate) fn parts(self) -> usize {
        match self {
            Self::Gelu | Self::GeluTanh => 1,
            Self::Geglu => 2,
        }
    }

    /// Activations that are alive at once for each hidden neuron.
    fn alive(self) -> usize {
        match self {
            Self::Gelu | Self::GeluTanh => 1,
            Self::Geglu => 2 + 1,
        }
    }
}

/// Parses `activation_fn` of a configuration.
impl TryFrom<String> for Gate {
    type Error = String;

    fn try_from(name: String) -> std::result::Result<Self, String> {
        match name.as_str() {
            "gelu" => Ok(Self::Gelu),
            "gelu-approximate" => Ok(Self::GeluTanh),
            "geglu" => Ok(Self::Geglu),
            _ => Err(format!(
                "activation_fn {name:?} is not supported; gelu, gelu-approximate and geglu are"
            )),
        }
    }
}

/// `FeedForward`: two linears with a gate between them.
pub(crate) struct FeedForward {
    proj: Linear,
    out: Linear,
    gate: Gate,
}

impl FeedForward {
    /// Over tokens of `width` numbers, with `inner` hidden neurons unless some were removed.
    pub(crate) fn new(width: usize, inner: usize, gate: Gate, site: &Site<'_>) -> Result<Self> {
        let count = site.size(inner);
        let up = site.prunable(Role::FeedForwardUp).at("net.0.proj");
        let down = site.prunable(Role::FeedForwardDown).at("net.2");
        let part = |part| Slice { layer: up.layer_name(), start: part * count };
        site.neurons(NeuronGroup {
            name: site.layer_name(),
            count,
            up: (0..gate.parts()).map(part).collect(),
            down: Slice::whole(down.layer_name()),
        });
        // Its tokens, and their norm or what is added to them.
        site.alive([(site.rows(), 2 * width + gate.alive() * inner)]);
        let proj = up.linear(width, gate.parts() * count)?;
        Ok(Self { proj, out: down.linear(count, width)?, gate })
    }

    /// Computes the feed-forward. The input is dropped as soon as it is projected.
    pub(crate) fn forward(&self, x: Tensor, context: &Context<'_>) -> Result<Tensor> {
        let hidden = match self.gate {
            Gate::Gelu => self.proj.forward_activated(&x, Activation::Gelu, context)?,
            Gate::GeluTanh => self.proj.forward_activated(&x, Activation::GeluTanh, context)?,
            Gate::Geglu => ops::geglu(&self.proj.forward(&x, context)?)?,
        };
        drop(x);
        Ok(self.out.forward(&hidden, context)?)
    }
}
