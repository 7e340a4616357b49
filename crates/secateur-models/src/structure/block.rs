//! Blocks of a denoiser, their layers, and what these compute.

use super::group::{Group, HeadGroup, NeuronGroup};
use secateur_nn::LayerName;
use std::collections::BTreeSet;

/// A stretch of layers that stand together: a transformer block, or the layers before or after all
/// of them.
#[derive(Clone, Debug, Default)]
pub struct Block {
    /// The common prefix of the layers' names, such as `transformer_blocks.0`; a description where
    /// there is none.
    pub name: String,
    /// In execution order.
    pub layers: Vec<Layer>,
    /// The blocks whose outputs it reads, beside the embedders'.
    pub reads: Vec<usize>,
    /// The heads of its attentions.
    pub heads: Vec<HeadGroup>,
    /// The neurons of its feed-forwards.
    pub neurons: Vec<NeuronGroup>,
}

/// A layer that multiplies.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Its checkpoint name; for an attention product the name of its module.
    pub name: LayerName,
    /// What it computes, for one sample.
    pub operation: Operation,
    /// Present where the methods may prune its weight.
    pub prunable: Option<Prunable>,
}

/// A computation for one sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `rows` (tokens) times a weight of outputs x inputs, plus bias.
    Linear {
        /// Rows of the input.
        rows: usize,
        /// Columns of the weight.
        inputs: usize,
        /// Rows of the weight.
        outputs: usize,
    },
    /// A convolution to `pixels` output pixels.
    Convolution {
        /// Output pixels.
        pixels: usize,
        /// Input channels.
        inputs: usize,
        /// Output channels.
        outputs: usize,
        /// Side of the kernel.
        kernel: usize,
    },
    /// Both products of attention, Q K^T and A V.
    Attention {
        /// Query tokens.
        queries: usize,
        /// Key tokens.
        keys: usize,
        /// Heads x width of a head of queries and keys.
        query_key: usize,
        /// Heads x width of a head of values.
        value: usize,
    },
}

/// How the methods see a prunable linear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prunable {
    /// Its role in the block: layers of one role are pruned together.
    pub role: Role,
    /// The first layer that reads the same input: layers of one input share one Hessian.
    pub input: LayerName,
}

/// What a prunable layer does in its block, in execution order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Query, key and value projections of all streams.
    QueryKeyValue,
    /// Output projections of attention.
    AttentionOutput,
    /// Up projections of feed-forwards.
    FeedForwardUp,
    /// Down projections of feed-forwards.
    FeedForwardDown,
}

/// The size of what is generated, on which the number of multiplications depends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Height and width of the latents.
    pub latent: (usize, usize),
    /// Text tokens.
    pub text: usize,
}

impl Block {
    /// Multiply-accumulates for one sample.
    #[must_use]
    pub fn macs(&self) -> u64 {
        saturating_sum(self.layers.iter().map(|layer| layer.operation.macs()))
    }

    /// Numbers of one sample that it hands on: what its feed-forwards give, one a stream, or else
    /// its last layer.
    pub(crate) fn outputs(&self) -> usize {
        let downs: BTreeSet<&LayerName> =
            self.neurons.iter().map(|neurons| &neurons.down.layer).collect();
        let layers = || self.layers.iter().filter(|layer| layer.operation.rows() > 1);
        let of_downs: usize = layers()
            .filter(|layer| downs.contains(&layer.name))
            .map(|layer| layer.operation.outputs())
            .sum();
        if of_downs > 0 {
            of_downs
        } else {
            layers().next_back().map_or(0, |layer| layer.operation.outputs())
        }
    }

    /// Its heads, the dimensions of these, and its neurons.
    pub fn groups(&self) -> impl Iterator<Item = Group> {
        let heads = self.heads.iter().cloned().map(Group::Heads);
        let dimensions = self.heads.iter().flat_map(HeadGroup::dimensions).map(Group::Dimensions);
        heads.chain(dimensions).chain(self.neurons.iter().cloned().map(Group::Neurons))
    }
}

impl Operation {
    /// Numbers of its weight.
    #[must_use]
    pub fn weights(&self) -> u64 {
        let weights = match *self {
            Self::Linear { inputs, outputs, .. } => inputs * outputs,
            Self::Convolution { inputs, outputs, kernel, .. } => inputs * outputs * kernel * kernel,
            Self::Attention { .. } => 0,
        };
        weights as u64
    }

    /// The same of so many rows, pixels or queries, and so many keys.
    pub(crate) fn over(mut self, count: usize, of_keys: usize) -> Self {
        match &mut self {
            Self::Linear { rows, .. } => *rows = count,
            Self::Convolution { pixels, .. } => *pixels = count,
            Self::Attention { queries, keys, .. } => (*queries, *keys) = (count, of_keys),
        }
        self
    }

    /// Rows of the input, or pixels of the output.
    pub(crate) fn rows(&self) -> usize {
        match *self {
            Self::Linear { rows, .. } => rows,
            Self::Convolution { pixels, .. } => pixels,
            Self::Attention { queries, .. } => queries,
        }
    }

    /// Numbers of the output for one sample.
    fn outputs(&self) -> usize {
        match *self {
            Self::Linear { outputs, .. } | Self::Convolution { outputs, .. } => {
                self.rows() * outputs
            }
            Self::Attention { value, .. } => self.rows() * value,
        }
    }

    /// Numbers of a picture of the output's size with the channels of the input.
    fn inputs(&self) -> usize {
        match *self {
            Self::Linear { inputs, .. } | Self::Convolution { inputs, .. } => self.rows() * inputs,
            Self::Attention { .. } => 0,
        }
    }

    /// Bytes that one sample keeps for gradients: of a linear its input and output, of a
    /// convolution the output of the sum behind it too. What attention keeps is an input of the
    /// layers around it.
    pub(crate) fn graph_bytes(&self) -> u64 {
        let numbers = match self {
            Self::Linear { .. } => self.inputs() + self.outputs(),
            Self::Convolution { .. } => self.inputs() + 2 * self.outputs(),
            Self::Attention { .. } => 0,
        };
        (size_of::<f32>() * numbers) as u64
    }

    /// Bytes that are alive at once where one sample passes it: its input before and after a norm,
    /// and its output.
    pub(crate) fn alive_bytes(&self) -> u64 {
        (size_of::<f32>() * (2 * self.inputs() + self.outputs())) as u64
    }

    /// Multiply-accumulates for one sample.
    #[must_use]
    pub fn macs(&self) -> u64 {
        let product = match *self {
            Self::Linear { rows, inputs, outputs } => [rows, inputs, outputs, 1],
            Self::Convolution { pixels, inputs, outputs, kernel } => {
                [pixels, inputs, outputs, kernel * kernel]
            }
            Self::Attention { queries, keys, query_key, value } => {
                [queries, keys, query_key + value, 1]
            }
        };
        product.iter().fold(1, |product: u64, &n| product.saturating_mul(n as u64))
    }
}

/// The sum, or the largest number where it is larger: of pictures of any size.
pub(crate) fn saturating_sum(numbers: impl Iterator<Item = u64>) -> u64 {
    numbers.fold(0, u64::saturating_add)
}
