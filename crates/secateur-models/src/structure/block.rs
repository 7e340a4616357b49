//! Blocks of a denoiser, their layers, and what these compute.

use super::group::{Group, HeadGroup, NeuronGroup};
use secateur_nn::LayerName;
use std::collections::BTreeSet;

/// Consecutive layers of a denoiser: a transformer block, or the layers before or after all blocks.
#[derive(Clone, Debug, Default)]
pub struct Block {
    /// The common prefix of the layers' names, such as `transformer_blocks.0`, or a description
    /// such as `embedders`.
    pub name: String,
    /// Layers in execution order.
    pub layers: Vec<Layer>,
    /// Indices of the blocks whose outputs it reads, besides the embedders'.
    pub reads: Vec<usize>,
    /// The heads of its attentions.
    pub heads: Vec<HeadGroup>,
    /// The neurons of its feed-forwards.
    pub neurons: Vec<NeuronGroup>,
}

/// A layer that multiplies: a linear, a convolution, or the products of an attention.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The layer's name in the checkpoint. For the products of an attention, the name of its
    /// module.
    pub name: LayerName,
    /// The computation for one sample.
    pub operation: Operation,
    /// How the methods may prune the weight; `None` if they may not.
    pub prunable: Option<Prunable>,
}

/// The computation of a layer for one sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A linear: `rows` tokens times a weight of outputs x inputs, plus a bias.
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
        /// Number of heads x width of a head of queries and keys.
        query_key: usize,
        /// Number of heads x width of a head of values.
        value: usize,
    },
}

/// How the methods prune a linear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prunable {
    /// The role in the block. Layers of one role are pruned together.
    pub role: Role,
    /// The first layer that reads the same input. Layers with one input share one Hessian.
    pub input: LayerName,
}

/// The role of a prunable layer in its block, in execution order.
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

/// The sizes of latents and text, which determine the number of multiplications.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Height and width of the latents.
    pub latent: (usize, usize),
    /// Number of text tokens.
    pub text: usize,
}

impl Block {
    /// Multiply-accumulates for one sample.
    #[must_use]
    pub fn macs(&self) -> u64 {
        saturating_sum(self.layers.iter().map(|layer| layer.operation.macs()))
    }

    /// Number of output elements for one sample: the outputs of its feed-forwards, one per stream,
    /// or those of its last layer if it has none.
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

    /// The groups of its heads, dimensions of heads, and neurons.
    pub fn groups(&self) -> impl Iterator<Item = Group> {
        let heads = self.heads.iter().cloned().map(Group::Heads);
        let dimensions = self.heads.iter().flat_map(HeadGroup::dimensions).map(Group::Dimensions);
        heads.chain(dimensions).chain(self.neurons.iter().cloned().map(Group::Neurons))
    }
}

impl Operation {
    /// Number of elements of the weight.
    #[must_use]
    pub fn weights(&self) -> u64 {
        let weights = match *self {
            Self::Linear { inputs, outputs, .. } => inputs * outputs,
            Self::Convolution { inputs, outputs, kernel, .. } => inputs * outputs * kernel * kernel,
            Self::Attention { .. } => 0,
        };
        weights as u64
    }

    /// The same operation with `rows` rows, pixels or queries, and `keys` keys.
    pub(crate) fn over(mut self, count: usize, of_keys: usize) -> Self {
        match &mut self {
            Self::Linear { rows, .. } => *rows = count,
            Self::Convolution { pixels, .. } => *pixels = count,
            Self::Attention { queries, keys, .. } => (*queries, *keys) = (count, of_keys),
        }
        self
    }

    /// Rows of the input of a linear, output pixels of a convolution, or queries of an attention.
    pub(crate) fn rows(&self) -> usize {
        match *self {
            Self::Linear { rows, .. } => rows,
            Self::Convolution { pixels, .. } => pixels,
            Self::Attention { queries, .. } => queries,
        }
    }

    /// Number of output elements for one sample.
    fn outputs(&self) -> usize {
        match *self {
            Self::Linear { outputs, .. } | Self::Convolution { outputs, .. } => {
                self.rows() * outputs
            }
            Self::Attention { value, .. } => self.rows() * value,
        }
    }

    /// Number of elements of a picture with the size of the output and the channels of the input.
    fn inputs(&self) -> usize {
        match *self {
            Self::Linear { inputs, .. } | Self::Convolution { inputs, .. } => self.rows() * inputs,
            Self::Attention { .. } => 0,
        }
    }

    /// Bytes kept for gradients for one sample. A linear keeps its input and output, and a
    /// convolution also the output of the sum that follows it. What attention keeps belongs to the
    /// layers around it.
    pub(crate) fn graph_bytes(&self) -> u64 {
        let numbers = match self {
            Self::Linear { .. } => self.inputs() + self.outputs(),
            Self::Convolution { .. } => self.inputs() + 2 * self.outputs(),
            Self::Attention { .. } => 0,
        };
        (size_of::<f32>() * numbers) as u64
    }

    /// Bytes alive at once while one sample passes the operation: its input before and after a
    /// norm, and its output.
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
