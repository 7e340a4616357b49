//! `FeedForward`.

use crate::error::Result;
use crate::structure::{Block, Layer, NeuronGroup, Role, Slice};
use candle_core::Tensor;
use secateur_nn::{Activation, Context, LayerName, Linear, Scope, ops};
use serde::Deserialize;

/// What a feed-forward does between its linears.
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
    /// Outputs of the first linear a hidden neuron.
    pub(crate) fn parts(self) -> usize {
        match self {
            Self::Gelu | Self::GeluTanh => 1,
            Self::Geglu => 2,
        }
    }

    /// Numbers of the hidden layer alive at once, a number of the input.
    pub(crate) fn alive(self) -> usize {
        match self {
            Self::Gelu | Self::GeluTanh => 4,
            Self::Geglu => 8 + 4,
        }
    }
}

/// By the name that configurations give it, `activation_fn`.
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

/// `FeedForward`: four times as wide between its linears, unless neurons were removed.
pub(crate) struct FeedForward {
    proj: Linear,
    out: Linear,
    gate: Gate,
}

impl FeedForward {
    pub(crate) fn new(width: usize, gate: Gate, scope: &Scope<'_>) -> Result<Self> {
        let hidden = scope.size(4 * width);
        Ok(Self {
            proj: Linear::new(width, gate.parts() * hidden, &scope.at("net.0.proj"))?,
            out: Linear::new(hidden, width, &scope.at("net.2"))?,
            gate,
        })
    }

    /// The input is dropped as soon as it is projected.
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

impl Block {
    /// The layers of [`FeedForward`] over `rows` tokens.
    pub(crate) fn feed_forward(&mut self, module: &str, rows: usize, width: usize, gate: Gate) {
        let [up, down] =
            ["net.0.proj", "net.2"].map(|layer| LayerName::from(format!("{module}.{layer}")));
        let hidden = 4 * width;
        self.layers.extend([
            Layer::linear(up.clone(), rows, width, gate.parts() * hidden)
                .prunable(Role::FeedForwardUp, &up),
            Layer::linear(down.clone(), rows, hidden, width).prunable(Role::FeedForwardDown, &down),
        ]);
        self.neurons.push(NeuronGroup {
            name: module.into(),
            count: hidden,
            up: (0..gate.parts())
                .map(|part| Slice { layer: up.clone(), start: part * hidden })
                .collect(),
            down: Slice::whole(down),
        });
    }
}
