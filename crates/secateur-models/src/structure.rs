//! What a family tells the methods about itself.

use crate::edits::{Cuts, Removals};
use secateur_nn::LayerName;
use std::collections::BTreeSet;
use std::ops::Range;

/// The blocks of a denoiser in execution order, with every layer that multiplies.
#[derive(Clone, Debug, Default)]
pub struct Structure {
    /// Embedders first, output last.
    pub blocks: Vec<Block>,
    /// The stretches of blocks that a denoising step may take over from the step before (DiP-GO's blocks), in execution
    /// order.
    pub units: Vec<Unit>,
    /// The same in finer parts (DiP-GO's branches), where a family has any.
    pub branches: Vec<Unit>,
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
#[derive(Clone, Debug, Default)]
pub struct Block {
    /// The common prefix of the layers' names, such as `transformer_blocks.0`; a description where there is none.
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

/// A stretch of blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// The common prefix of their names.
    pub name: String,
    /// Where they stand among the structure's blocks.
    pub blocks: Range<usize>,
}

/// What reads a unit's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reader {
    /// Another unit.
    Unit(usize),
    /// The layers behind all units.
    Output,
}

/// Successive rows of a layer's weight, with the entries of its bias; or successive columns of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The layer.
    pub layer: LayerName,
    /// The first row or column.
    pub start: usize,
}

/// The heads of one attention. Head h is made of the `head_dim` rows from `start + h * head_dim` of each query, key and
/// value, and of as many columns of each output: they stand or fall together, over all streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadGroup {
    /// The module's name.
    pub name: LayerName,
    /// Number of heads.
    pub count: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// One; two where text and image attend jointly.
    pub streams: Vec<HeadStream>,
    /// What stands between the projections of query and key and their product.
    pub between: Between,
}

/// The projections of one stream of an attention.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadStream {
    /// Rows.
    pub query: Slice,
    /// Rows.
    pub key: Slice,
    /// Rows.
    pub value: Slice,
    /// Columns; none where nothing reads the stream after its attention.
    pub output: Option<Slice>,
}

/// What stands between the projections of query and key and their product. Without any, Q K^T is a product of the
/// projections, and low rank can be had for both together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Between {
    /// A norm over each head.
    pub norm: bool,
    /// Rotary positions, which turn pairs of columns.
    pub rotary: bool,
}

/// The hidden neurons of one feed-forward: neuron i is row `start + i` of each part of its up projection and column
/// `start + i` of its down projection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeuronGroup {
    /// The module's name.
    pub name: LayerName,
    /// Number of neurons.
    pub count: usize,
    /// Rows: of one part, or of two that are multiplied (GEGLU).
    pub up: Vec<Slice>,
    /// Columns.
    pub down: Slice,
}

/// Heads or neurons of one module, which can be removed one by one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Group {
    /// Of an attention.
    Heads(HeadGroup),
    /// Of a feed-forward.
    Neurons(NeuronGroup),
}

/// Rows or columns of a layer's weight; rows with the entries of its bias.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The layer.
    pub layer: LayerName,
    /// Rows or columns.
    pub axis: Axis,
    /// Which ones.
    pub indices: Vec<usize>,
}

/// Of a weight, outputs x inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// Outputs.
    Rows,
    /// Inputs.
    Columns,
}

/// Projections that may be put in low rank together (SlimDiff's groups).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LowRankGroup {
    /// The module's name.
    pub name: LayerName,
    /// Which ones.
    pub kind: LowRankKind,
    /// The width that can shrink: of a head, or the number of neurons.
    pub rank: usize,
    /// Why it must stay as it is, where it must.
    pub barred: Option<&'static str>,
}

/// The kinds of [`LowRankGroup`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LowRankKind {
    /// Query and key of every head.
    QueryKey,
    /// Value and output of every head.
    ValueOutput,
    /// Up and down projection.
    FeedForward,
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

impl Block {
    /// One that reads the outputs of the blocks `reads`.
    pub(crate) fn new(name: impl Into<String>, reads: &[usize]) -> Self {
        Self { name: name.into(), reads: reads.to_vec(), ..Self::default() }
    }

    /// The same with `layers` behind its own.
    pub(crate) fn with(mut self, layers: impl IntoIterator<Item = Layer>) -> Self {
        self.layers.extend(layers);
        self
    }

    /// Multiply-accumulates for one sample.
    #[must_use]
    pub fn macs(&self) -> u64 {
        self.layers.iter().map(|layer| layer.operation.macs()).sum()
    }

    /// Its heads and neurons.
    pub fn groups(&self) -> impl Iterator<Item = Group> {
        let heads = self.heads.iter().cloned().map(Group::Heads);
        heads.chain(self.neurons.iter().cloned().map(Group::Neurons))
    }

    /// What may be put in low rank together.
    pub fn low_rank_groups(&self) -> impl Iterator<Item = LowRankGroup> {
        let of_heads = self.heads.iter().flat_map(|heads| {
            let group = |kind, barred| LowRankGroup { name: heads.name.clone(), kind, rank: heads.head_dim, barred };
            let barred = match heads.between {
                Between { norm: true, .. } => Some("a norm stands between them"),
                Between { rotary: true, .. } => Some("rotary positions stand between them"),
                _ => None,
            };
            [group(LowRankKind::QueryKey, barred), group(LowRankKind::ValueOutput, None)]
        });
        let of_neurons = self.neurons.iter().map(|neurons| LowRankGroup {
            name: neurons.name.clone(),
            kind: LowRankKind::FeedForward,
            rank: neurons.count,
            barred: None,
        });
        of_heads.chain(of_neurons)
    }
}

impl Group {
    /// The module's name.
    #[must_use]
    pub fn name(&self) -> &LayerName {
        match self {
            Self::Heads(group) => &group.name,
            Self::Neurons(group) => &group.name,
        }
    }

    /// Number of heads or neurons.
    #[must_use]
    pub fn count(&self) -> usize {
        match self {
            Self::Heads(group) => group.count,
            Self::Neurons(group) => group.count,
        }
    }

    /// What they are.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Heads(_) => "heads",
            Self::Neurons(_) => "neurons",
        }
    }

    /// Rows or columns that each of them has in every slice.
    #[must_use]
    pub fn width(&self) -> usize {
        match self {
            Self::Heads(group) => group.head_dim,
            Self::Neurons(_) => 1,
        }
    }

    /// The rows that feed them.
    #[must_use]
    pub fn inputs(&self) -> Vec<&Slice> {
        match self {
            Self::Heads(group) => group.streams.iter().flat_map(|s| [&s.query, &s.key, &s.value]).collect(),
            Self::Neurons(group) => group.up.iter().collect(),
        }
    }

    /// The columns that read them.
    #[must_use]
    pub fn outputs(&self) -> Vec<&Slice> {
        match self {
            Self::Heads(group) => group.streams.iter().filter_map(|stream| stream.output.as_ref()).collect(),
            Self::Neurons(group) => vec![&group.down],
        }
    }

    /// All rows and columns of those heads or neurons.
    #[must_use]
    pub fn parts(&self, which: &[usize]) -> Vec<Part> {
        let part = |slice: &Slice, axis| Part {
            layer: slice.layer.clone(),
            axis,
            indices: which.iter().flat_map(|&one| slice.indices(one, self.width())).collect(),
        };
        let inputs = self.inputs().into_iter().map(|slice| part(slice, Axis::Rows));
        let outputs = self.outputs().into_iter().map(|slice| part(slice, Axis::Columns));
        inputs.chain(outputs).collect()
    }
}

impl Slice {
    /// The rows or columns of its head or neuron `index`, of `width` each.
    #[must_use]
    pub fn indices(&self, index: usize, width: usize) -> Range<usize> {
        let start = self.start + index * width;
        start..start + width
    }

    /// From the first row or column on.
    pub(crate) fn whole(layer: impl Into<LayerName>) -> Self {
        Self { layer: layer.into(), start: 0 }
    }

    /// Where it starts once the rows or columns before it are fewer.
    fn moved(&mut self, cuts: &Cuts, axis: Axis) {
        self.start -= cuts.count(&self.layer, axis, self.start);
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
    /// A chain of blocks, each of which reads the one before it, between embedders and output; each can be skipped.
    pub(crate) fn chain(embedders: Block, blocks: Vec<Block>, output: Block, activations: usize) -> Self {
        let count = blocks.len();
        let mut blocks: Vec<Block> = std::iter::once(embedders).chain(blocks).chain([output]).collect();
        for (index, block) in blocks.iter_mut().enumerate().skip(1) {
            block.reads = vec![index - 1];
        }
        let unit = |index: usize| Unit { name: blocks[index].name.clone(), blocks: index..index + 1 };
        let units: Vec<Unit> = (1..=count).map(unit).collect();
        Self { branches: units.clone(), units, blocks, activations }
    }

    /// All heads and neurons.
    pub fn groups(&self) -> impl Iterator<Item = Group> {
        self.blocks.iter().flat_map(Block::groups)
    }

    /// The same without the heads and neurons that are gone. The activations are told as before: blocks that are left whole
    /// set them.
    #[must_use]
    pub fn without(mut self, removals: &Removals) -> Self {
        if removals.is_empty() {
            return self;
        }
        let (cuts, sizes) = (removals.cuts(&self), removals.sizes());
        for block in &mut self.blocks {
            for layer in &mut block.layers {
                if let Operation::Linear { inputs, outputs, .. } = &mut layer.operation {
                    *inputs -= cuts.count(&layer.name, Axis::Columns, *inputs);
                    *outputs -= cuts.count(&layer.name, Axis::Rows, *outputs);
                }
            }
            for group in &mut block.heads {
                group.count = sizes.get(&group.name).copied().unwrap_or(group.count);
                let products = block.layers.iter_mut().filter(|layer| layer.name == group.name);
                for layer in products {
                    if let Operation::Attention { width, .. } = &mut layer.operation {
                        *width = group.count * group.head_dim;
                    }
                }
                for stream in &mut group.streams {
                    for slice in [&mut stream.query, &mut stream.key, &mut stream.value] {
                        slice.moved(&cuts, Axis::Rows);
                    }
                    stream.output.iter_mut().for_each(|slice| slice.moved(&cuts, Axis::Columns));
                }
            }
            for group in &mut block.neurons {
                group.count = sizes.get(&group.name).copied().unwrap_or(group.count);
                group.up.iter_mut().for_each(|slice| slice.moved(&cuts, Axis::Rows));
                group.down.moved(&cuts, Axis::Columns);
            }
        }
        self
    }

    /// What reads the output of each of `units`, which stand in execution order.
    #[must_use]
    pub fn readers(&self, units: &[Unit]) -> Vec<BTreeSet<Reader>> {
        let unit_of = |block: usize| units.iter().position(|unit| unit.blocks.contains(&block));
        let mut readers = vec![BTreeSet::new(); units.len()];
        for (index, block) in self.blocks.iter().enumerate() {
            let reader = unit_of(index);
            for from in block.reads.iter().filter_map(|&read| unit_of(read)).filter(|&from| Some(from) != reader) {
                readers[from].insert(reader.map_or(Reader::Output, Reader::Unit));
            }
        }
        readers
    }

    /// Multiply-accumulates of a unit for one sample.
    #[must_use]
    pub fn unit_macs(&self, unit: &Unit) -> u64 {
        self.blocks[unit.blocks.clone()].iter().map(Block::macs).sum()
    }

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
