//! Groups of heads, of neurons, and of dimensions of heads. Each member is kept or removed as a
//! whole.

use secateur_nn::LayerName;
use serde::Serialize;
use std::ops::Range;

/// Successive rows of a layer's weight with the entries of its bias, or successive columns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Slice {
    /// The layer.
    pub layer: LayerName,
    /// The first row or column.
    pub start: usize,
}

/// The heads of one attention. Head h consists of the `query_key` rows from `start + h * query_key`
/// of each query and key, of the `value` rows from `start + h * value` of each value, and of as
/// many columns of each output. It is kept or removed over all streams together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HeadGroup {
    /// Name of the module.
    pub name: LayerName,
    /// Number of heads.
    pub count: usize,
    /// Width of a head of queries and keys.
    pub query_key: usize,
    /// Width of a head of values.
    pub value: usize,
    /// The streams: one, or two if text and image attend jointly.
    pub streams: Vec<HeadStream>,
    /// The operations between the projections of query and key, and their product.
    pub between: Between,
}

/// The projections of one stream of an attention.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HeadStream {
    /// Query projection (rows).
    pub query: Slice,
    /// Key projection (rows).
    pub key: Slice,
    /// Value projection (rows).
    pub value: Slice,
    /// Output projection (columns). `None` if nothing reads the stream after this attention.
    pub output: Option<Slice>,
}

/// The operations between the projections of query and key, and their product. Without any, Q K^T
/// is a product of the projections, and both can be replaced by one low-rank product.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Between {
    /// Whether there is a norm over each head.
    pub norm: bool,
    /// Whether there are rotary positions, which turn pairs of columns.
    pub rotary: bool,
}

/// The hidden neurons of one feed-forward: neuron i is row `start + i` of each part of its up
/// projection and column `start + i` of its down projection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NeuronGroup {
    /// Name of the module.
    pub name: LayerName,
    /// Number of neurons.
    pub count: usize,
    /// Up projections (rows): one, or two that are multiplied (GEGLU).
    pub up: Vec<Slice>,
    /// Down projection (columns).
    pub down: Slice,
}

/// The parts of one module that can be removed one by one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Group {
    /// The heads of an attention.
    Heads(HeadGroup),
    /// The neurons of a feed-forward.
    Neurons(NeuronGroup),
    /// Dimensions of all heads of an attention.
    Dimensions(DimensionGroup),
}

/// The dimensions that two projections of an attention share in their product. Dimension i is row
/// (or column) i of each head of both projections. Low rank is stored by a change of basis, after
/// which the last dimensions can be removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DimensionGroup {
    /// Name of the module, with a suffix for the two projections.
    pub name: LayerName,
    /// Which projections.
    pub pair: Pair,
    /// The heads.
    pub heads: HeadGroup,
}

/// Two projections of an attention whose product sums over their dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Pair {
    /// Q K^T: query and key.
    QueryKey,
    /// V W_o: value and output.
    ValueOutput,
}

impl Pair {
    /// The suffix of the group's name after the module's.
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
    /// The reason why queries and keys have no common low rank, if so.
    #[must_use]
    pub fn barred(&self) -> Option<&'static str> {
        match self.between {
            Between { norm: true, .. } => Some("a norm stands between them"),
            Between { rotary: true, .. } => Some("rotary positions stand between them"),
            _ => None,
        }
    }

    /// The groups of dimensions that low rank can remove: those of values and outputs, and those of
    /// queries and keys if nothing is between them.
    pub(crate) fn dimensions(&self) -> impl Iterator<Item = DimensionGroup> + use<> {
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

/// Rows of a layer's weight with the entries of its bias, or columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The layer.
    pub layer: LayerName,
    /// Rows or columns.
    pub axis: Axis,
    /// Indices of the rows or columns.
    pub indices: Vec<usize>,
}

/// A dimension of a weight, which is outputs x inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// Outputs.
    Rows,
    /// Inputs.
    Columns,
}

impl Group {
    /// The module's name. For a group of dimensions, with the suffix of the two projections.
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

    /// The kind of its members: heads, neurons or dimensions.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Heads(_) => "heads",
            Self::Neurons(_) => "neurons",
            Self::Dimensions(DimensionGroup { pair: Pair::QueryKey, .. }) => "query-key dimensions",
            Self::Dimensions(DimensionGroup { pair: Pair::ValueOutput, .. }) => {
                "value-output dimensions"
            }
        }
    }

    /// The parts of weights whose rows produce the members.
    pub fn inputs(&self) -> impl Iterator<Item = LayerName> + use<> {
        self.layers(Axis::Rows)
    }

    /// The parts of weights whose columns read the members. No layer reads queries and keys.
    pub fn outputs(&self) -> impl Iterator<Item = LayerName> + use<> {
        self.layers(Axis::Columns)
    }

    fn layers(&self, axis: Axis) -> impl Iterator<Item = LayerName> + use<> {
        self.parts(&[]).into_iter().filter(move |part| part.axis == axis).map(|part| part.layer)
    }

    /// All rows and columns of the heads, neurons or dimensions at those indices.
    #[must_use]
    pub fn parts(&self, which: &[usize]) -> Vec<Part> {
        let part = |slice: &Slice, axis, indices: &dyn Fn(usize) -> Vec<usize>| Part {
            layer: slice.layer.clone(),
            axis,
            indices: which
                .iter()
                .flat_map(|&one| indices(one))
                .map(|index| slice.start + index)
                .collect(),
        };
        match self {
            Self::Heads(HeadGroup { query_key, value, streams, .. }) => {
                let successive =
                    |width: usize| move |head: usize| (head * width..(head + 1) * width).collect();
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
                let of_heads = |dimension: usize| {
                    (0..heads.count).map(|head| head * width + dimension).collect()
                };
                let of_stream = |HeadStream { query, key, value, output }: &HeadStream| match pair {
                    Pair::QueryKey => {
                        vec![part(query, Axis::Rows, &of_heads), part(key, Axis::Rows, &of_heads)]
                    }
                    Pair::ValueOutput => {
                        let columns =
                            output.as_ref().map(|output| part(output, Axis::Columns, &of_heads));
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

    /// The slice of `layer` that begins with the first row or column.
    pub(crate) fn whole(layer: impl Into<LayerName>) -> Self {
        Self { layer: layer.into(), start: 0 }
    }
}
