//! What a family tells the methods about itself.

use secateur_nn::LayerName;

/// The blocks of a denoiser in execution order, with every layer that multiplies.
#[derive(Clone, Debug, Default)]
pub struct Structure {
    /// Embedders first, transformer blocks, output last.
    pub blocks: Vec<Block>,
    /// The most numbers of one sample that are alive at once in a call, beside the weights.
    pub activations: usize,
}

/// Bytes that a call of a denoiser takes, in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Memory {
    /// The parameters.
    pub weights: u64,
    /// The weights of linears and convolutions once more, as products read them.
    pub packed_weights: u64,
    /// What is computed, at its most.
    pub activations: u64,
}

impl Memory {
    /// All of it.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.weights + self.packed_weights + self.activations
    }
}

/// A stretch of layers that stand together: a transformer block, or the layers before or after all of them.
#[derive(Clone, Debug)]
pub struct Block {
    /// The common prefix of the layers' names, such as `transformer_blocks.0`; a description where there is none.
    pub name: String,
    /// In execution order.
    pub layers: Vec<Layer>,
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
        /// Heads x width of a head.
        width: usize,
    },
}

/// How the methods see a prunable linear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prunable {
    /// Its place in the block: layers of one kind are pruned together (OBS-Diff's units).
    pub unit: UnitKind,
    /// The first layer that reads the same input: layers of one input share one Hessian.
    pub input: LayerName,
}

/// The units of a block, in execution order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum UnitKind {
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

impl Layer {
    /// A linear that is not pruned.
    pub(crate) fn linear(name: impl Into<LayerName>, rows: usize, inputs: usize, outputs: usize) -> Self {
        Self { name: name.into(), operation: Operation::Linear { rows, inputs, outputs }, prunable: None }
    }

    /// A convolution to `size` (height, width), of so many channels in and out.
    pub(crate) fn convolution(name: &str, size: (usize, usize), channels: (usize, usize), kernel: usize) -> Self {
        let (inputs, outputs) = channels;
        let operation = Operation::Convolution { pixels: size.0 * size.1, inputs, outputs, kernel };
        Self { name: name.into(), operation, prunable: None }
    }

    /// The same, of a unit, for whose input `input` stands.
    pub(crate) fn prunable(self, unit: UnitKind, input: &LayerName) -> Self {
        Self { prunable: Some(Prunable { unit, input: input.clone() }), ..self }
    }
}

impl Operation {
    /// Numbers of its weight.
    fn weights(&self) -> u64 {
        let weights = match *self {
            Self::Linear { inputs, outputs, .. } => inputs * outputs,
            Self::Convolution { inputs, outputs, kernel, .. } => inputs * outputs * kernel * kernel,
            Self::Attention { .. } => 0,
        };
        weights as u64
    }

    /// Multiply-accumulates for one sample.
    #[must_use]
    pub fn macs(&self) -> u64 {
        let product = match *self {
            Self::Linear { rows, inputs, outputs } => [rows, inputs, outputs, 1],
            Self::Convolution { pixels, inputs, outputs, kernel } => [pixels, inputs, outputs, kernel * kernel],
            Self::Attention { queries, keys, width } => [2, queries, keys, width],
        };
        product.iter().map(|&n| n as u64).product()
    }
}

impl Structure {
    /// All layers in execution order.
    pub fn layers(&self) -> impl Iterator<Item = &Layer> {
        self.blocks.iter().flat_map(|block| &block.layers)
    }

    /// Memory of a call for `samples` samples, of a model of `parameters` parameters.
    #[must_use]
    pub fn memory(&self, parameters: u64, samples: usize) -> Memory {
        let packed: u64 = self.layers().map(|layer| layer.operation.weights()).sum();
        let bytes = size_of::<f32>() as u64;
        Memory {
            weights: bytes * parameters,
            packed_weights: bytes * packed,
            activations: bytes * (self.activations * samples) as u64,
        }
    }

    /// Multiply-accumulates of one call for one sample, without the doubling of guidance: linears, convolutions and
    /// both attention products.
    #[must_use]
    pub fn macs(&self) -> u64 {
        self.layers().map(|layer| layer.operation.macs()).sum()
    }

    /// [`Structure::macs`] without the attention products.
    #[must_use]
    pub fn macs_without_attention(&self) -> u64 {
        let weighted = self.layers().filter(|layer| !matches!(layer.operation, Operation::Attention { .. }));
        weighted.map(|layer| layer.operation.macs()).sum()
    }
}
