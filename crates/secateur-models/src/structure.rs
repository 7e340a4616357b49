//! What a family tells the methods about itself.

use crate::edits::{Cuts, Removals};
use crate::error::Result;
use crate::reuse::Kind;
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
    /// Whether each unit gives tensors of its inputs' shapes, so that what it adds to them can be told.
    pub residual: bool,
    /// The most numbers of one sample that are alive at once in a call, beside the weights.
    pub activations: usize,
}

/// Bytes that a call of a denoiser takes, in f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
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

/// The heads of one attention. Head h is made of the `query_key` rows from `start + h * query_key` of each query and key, of
/// the `value` rows from `start + h * value` of each value, and of as many columns of each output: they stand or fall
/// together, over all streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadGroup {
    /// The module's name.
    pub name: LayerName,
    /// Number of heads.
    pub count: usize,
    /// Width of a head of queries and keys.
    pub query_key: usize,
    /// Width of a head of values.
    pub value: usize,
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

/// What can be removed of one module, one by one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Group {
    /// The heads of an attention.
    Heads(HeadGroup),
    /// The neurons of a feed-forward.
    Neurons(NeuronGroup),
    /// Dimensions of all heads of an attention.
    Dimensions(DimensionGroup),
}

/// Dimensions of two projections of an attention, which have a product: the one of number i is row (or column) i of each
/// head of both. In another basis the last of them can be done without: this is how low rank is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DimensionGroup {
    /// The module's name, and which projections.
    pub name: LayerName,
    /// Which projections.
    pub pair: Pair,
    /// The heads.
    pub heads: HeadGroup,
}

/// Projections of an attention with a product in which their dimensions are summed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pair {
    /// Q K^T.
    QueryKey,
    /// V W_o.
    ValueOutput,
}

impl Pair {
    /// What the group's name has behind the module's.
    #[must_use]
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Self::QueryKey => "query_key",
            Self::ValueOutput => "value_output",
        }
    }

    /// The name of the group of dimensions of a module.
    #[must_use]
    pub fn group_name(self, module: &LayerName) -> LayerName {
        format!("{module}.{}", self.suffix()).into()
    }
}

impl HeadGroup {
    /// Why queries and keys have no low rank together, if so.
    #[must_use]
    pub fn barred(&self) -> Option<&'static str> {
        match self.between {
            Between { norm: true, .. } => Some("a norm stands between them"),
            Between { rotary: true, .. } => Some("rotary positions stand between them"),
            _ => None,
        }
    }

    /// The dimensions of its heads that low rank can take: those of values and outputs, and of queries and keys where nothing
    /// stands between them.
    fn dimensions(&self) -> impl Iterator<Item = DimensionGroup> + use<> {
        let pairs = match self.barred() {
            Some(_) => &[Pair::ValueOutput][..],
            None => &[Pair::QueryKey, Pair::ValueOutput],
        };
        let heads = self.clone();
        pairs.iter().map(move |&pair| {
            let name = pair.group_name(&heads.name);
            DimensionGroup { name, pair, heads: heads.clone() }
        })
    }
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
        saturating_sum(self.layers.iter().map(|layer| layer.operation.macs()))
    }

    /// Numbers of one sample that it hands on: what its feed-forwards give, one a stream, or else its last layer.
    fn outputs(&self) -> usize {
        let downs: BTreeSet<&LayerName> = self.neurons.iter().map(|neurons| &neurons.down.layer).collect();
        let layers = || self.layers.iter().filter(|layer| layer.operation.rows() > 1);
        let of_downs: usize =
            layers().filter(|layer| downs.contains(&layer.name)).map(|layer| layer.operation.outputs()).sum();
        if of_downs > 0 { of_downs } else { layers().next_back().map_or(0, |layer| layer.operation.outputs()) }
    }

    /// Its heads, the dimensions of these, and its neurons.
    pub fn groups(&self) -> impl Iterator<Item = Group> {
        let heads = self.heads.iter().cloned().map(Group::Heads);
        let dimensions = self.heads.iter().flat_map(HeadGroup::dimensions).map(Group::Dimensions);
        heads.chain(dimensions).chain(self.neurons.iter().cloned().map(Group::Neurons))
    }
}

impl Group {
    /// The module's name; with that of the projections, where it is of dimensions.
    #[must_use]
    pub fn name(&self) -> &LayerName {
        match self {
            Self::Heads(group) => &group.name,
            Self::Neurons(group) => &group.name,
            Self::Dimensions(group) => &group.name,
        }
    }

    /// Number of heads, neurons, or dimensions of each head.
    #[must_use]
    pub fn count(&self) -> usize {
        match self {
            Self::Heads(group) => group.count,
            Self::Neurons(group) => group.count,
            Self::Dimensions(DimensionGroup { pair: Pair::QueryKey, heads, .. }) => heads.query_key,
            Self::Dimensions(DimensionGroup { pair: Pair::ValueOutput, heads, .. }) => heads.value,
        }
    }

    /// What they are.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Heads(_) => "heads",
            Self::Neurons(_) => "neurons",
            Self::Dimensions(DimensionGroup { pair: Pair::QueryKey, .. }) => "query-key dimensions",
            Self::Dimensions(DimensionGroup { pair: Pair::ValueOutput, .. }) => "value-output dimensions",
        }
    }

    /// The layers whose rows feed them.
    pub fn inputs(&self) -> impl Iterator<Item = LayerName> + use<> {
        self.layers(Axis::Rows)
    }

    /// The layers whose columns read them; queries and keys are read by no layer.
    pub fn outputs(&self) -> impl Iterator<Item = LayerName> + use<> {
        self.layers(Axis::Columns)
    }

    fn layers(&self, axis: Axis) -> impl Iterator<Item = LayerName> + use<> {
        self.parts(&[]).into_iter().filter(move |part| part.axis == axis).map(|part| part.layer)
    }

    /// All rows and columns of those heads, neurons or dimensions.
    #[must_use]
    pub fn parts(&self, which: &[usize]) -> Vec<Part> {
        let part = |slice: &Slice, axis, indices: &dyn Fn(usize) -> Vec<usize>| Part {
            layer: slice.layer.clone(),
            axis,
            indices: which.iter().flat_map(|&one| indices(one)).map(|index| slice.start + index).collect(),
        };
        match self {
            Self::Heads(HeadGroup { query_key, value, streams, .. }) => {
                let successive = |width: usize| move |head: usize| (head * width..(head + 1) * width).collect();
                let (query_key, value) = (successive(*query_key), successive(*value));
                let of_stream = |HeadStream { query, key, value: values, output }: &HeadStream| {
                    let rows = [
                        part(query, Axis::Rows, &query_key),
                        part(key, Axis::Rows, &query_key),
                        part(values, Axis::Rows, &value),
                    ];
                    let columns = output.as_ref().map(|output| part(output, Axis::Columns, &value));
                    rows.into_iter().chain(columns)
                };
                streams.iter().flat_map(of_stream).collect()
            }
            Self::Neurons(NeuronGroup { up, down, .. }) => {
                let one = |neuron: usize| vec![neuron];
                let rows = up.iter().map(|slice| part(slice, Axis::Rows, &one));
                rows.chain([part(down, Axis::Columns, &one)]).collect()
            }
            Self::Dimensions(DimensionGroup { pair, heads, .. }) => {
                let width = self.count();
                let of_heads = |dimension: usize| (0..heads.count).map(|head| head * width + dimension).collect();
                let of_stream = |HeadStream { query, key, value, output }: &HeadStream| match pair {
                    Pair::QueryKey => vec![part(query, Axis::Rows, &of_heads), part(key, Axis::Rows, &of_heads)],
                    Pair::ValueOutput => {
                        let columns = output.as_ref().map(|output| part(output, Axis::Columns, &of_heads));
                        std::iter::once(part(value, Axis::Rows, &of_heads)).chain(columns).collect()
                    }
                };
                heads.streams.iter().flat_map(of_stream).collect()
            }
        }
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
            Self::Linear { outputs, .. } | Self::Convolution { outputs, .. } => self.rows() * outputs,
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

    /// Bytes that one sample keeps for gradients: of a linear its input and output, of a convolution the output of the sum
    /// behind it too. What attention keeps is an input of the layers around it.
    pub(crate) fn graph_bytes(&self) -> u64 {
        let numbers = match self {
            Self::Linear { .. } => self.inputs() + self.outputs(),
            Self::Convolution { .. } => self.inputs() + 2 * self.outputs(),
            Self::Attention { .. } => 0,
        };
        (size_of::<f32>() * numbers) as u64
    }

    /// Bytes that are alive at once where one sample passes it: its input before and after a norm, and its output.
    pub(crate) fn alive_bytes(&self) -> u64 {
        (size_of::<f32>() * (2 * self.inputs() + self.outputs())) as u64
    }

    /// Multiply-accumulates for one sample.
    #[must_use]
    pub fn macs(&self) -> u64 {
        let product = match *self {
            Self::Linear { rows, inputs, outputs } => [rows, inputs, outputs, 1],
            Self::Convolution { pixels, inputs, outputs, kernel } => [pixels, inputs, outputs, kernel * kernel],
            Self::Attention { queries, keys, query_key, value } => [queries, keys, query_key + value, 1],
        };
        product.iter().fold(1, |product: u64, &n| product.saturating_mul(n as u64))
    }
}

/// The sum, or the largest number where it is larger: of pictures of any size.
fn saturating_sum(numbers: impl Iterator<Item = u64>) -> u64 {
    numbers.fold(0, u64::saturating_add)
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
        Self { branches: units.clone(), units, residual: true, blocks, activations }
    }

    /// All heads, their dimensions, and neurons.
    pub fn groups(&self) -> impl Iterator<Item = Group> {
        self.blocks.iter().flat_map(Block::groups)
    }

    /// The same without what is gone. The activations are told as before: blocks that are left whole
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
                let whole = group.clone();
                group.count = sizes.get(&group.name).copied().unwrap_or(group.count);
                for dimensions in whole.dimensions() {
                    let width = match dimensions.pair {
                        Pair::QueryKey => &mut group.query_key,
                        Pair::ValueOutput => &mut group.value,
                    };
                    *width = sizes.get(&dimensions.name).copied().unwrap_or(*width);
                }
                let products = block.layers.iter_mut().filter(|layer| layer.name == group.name);
                for layer in products {
                    if let Operation::Attention { query_key, value, .. } = &mut layer.operation {
                        (*query_key, *value) = (group.count * group.query_key, group.count * group.value);
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
        saturating_sum(self.blocks[unit.blocks.clone()].iter().map(Block::macs))
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
            activations: bytes.saturating_mul((self.activations as u64).saturating_mul(samples as u64)),
        }
    }

    /// Bytes that one sample's call keeps for gradients: the inputs and outputs of all layers, in f32.
    #[must_use]
    pub fn graph_bytes(&self) -> u64 {
        self.layers().map(|layer| layer.operation.graph_bytes()).sum()
    }

    /// Bytes of the weights that are packed once more when gradients go back through a call: those of all layers but the
    /// ones that read the time alone.
    #[must_use]
    pub fn backward_bytes(&self) -> u64 {
        let through = self.layers().filter(|layer| layer.operation.rows() > 1);
        size_of::<f32>() as u64 * through.map(|layer| layer.operation.weights()).sum::<u64>()
    }

    /// Bytes that the units of a kind hand on to later units in one sample's call, in f32.
    ///
    /// # Errors
    /// As [`Structure::units_of`].
    pub fn handed_on_bytes(&self, kind: Kind) -> Result<u64> {
        let is_read = |index: usize, unit: &Unit| {
            let mut others = self.blocks.iter().enumerate().filter(|(other, _)| !unit.blocks.contains(other));
            index + 1 == unit.blocks.end || others.any(|(_, other)| other.reads.contains(&index))
        };
        let of_unit = |unit: &Unit| {
            let read = unit.blocks.clone().filter(|&index| is_read(index, unit));
            read.map(|index| self.blocks[index].outputs()).sum::<usize>()
        };
        Ok((size_of::<f32>() * self.units_of(kind)?.iter().map(of_unit).sum::<usize>()) as u64)
    }

    /// Multiply-accumulates of one call for one sample, without the doubling of guidance: linears, convolutions and
    /// both attention products.
    #[must_use]
    pub fn macs(&self) -> u64 {
        saturating_sum(self.layers().map(|layer| layer.operation.macs()))
    }

    /// [`Structure::macs`] without the attention products.
    #[must_use]
    pub fn macs_without_attention(&self) -> u64 {
        let weighted = self.layers().filter(|layer| !matches!(layer.operation, Operation::Attention { .. }));
        saturating_sum(weighted.map(|layer| layer.operation.macs()))
    }
}
