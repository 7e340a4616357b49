//! Attention of tokens to themselves, to others, and over all streams jointly.

use crate::conditioning::Multiplicity;
use crate::error::Result;
use crate::structure::{
    Between, Block, HeadGroup, HeadStream, Layer, Operation, Pair, Role, Slice,
};
use candle_core::Tensor;
use secateur_nn::{Context, LayerName, Linear, Scope, ops};
use std::sync::Arc;

/// The heads of an attention, as they are left of what its configuration says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    count: usize,
    /// By the configuration: scores keep their scale when heads become narrower.
    head_dim: usize,
    query_key: usize,
    value: usize,
}

impl Heads {
    /// Of the module at `scope`, with `count` heads of `head_dim` by its configuration.
    pub(crate) fn new(count: usize, head_dim: usize, scope: &Scope<'_>) -> Self {
        let dimensions = |pair: Pair| scope.at(pair.suffix()).size(head_dim);
        let (query_key, value) = (dimensions(Pair::QueryKey), dimensions(Pair::ValueOutput));
        Self { count: scope.size(count), head_dim, query_key, value }
    }

    /// Rows of the projections of queries and keys.
    pub(crate) fn query_key_width(self) -> usize {
        self.count * self.query_key
    }

    /// Rows of the projection of values, columns of the output's.
    pub(crate) fn value_width(self) -> usize {
        self.count * self.value
    }

    /// As attention sees them.
    pub(crate) fn scaled(self) -> ops::Heads {
        ops::Heads::new(self.count, self.head_dim)
    }
}

/// Attention of tokens to themselves or to others.
pub(crate) struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: Heads,
}

impl Attention {
    /// Queries and result of `width`, keys and values of inputs of `others`; `bias`: of the first
    /// three linears.
    pub(crate) fn new(
        width: usize,
        others: usize,
        heads: usize,
        bias: bool,
        scope: &Scope<'_>,
    ) -> Result<Self> {
        let heads = Heads::new(heads, width / heads, scope);
        let linear = |inputs: usize, outputs: usize, name: &str| match bias {
            true => Linear::new(inputs, outputs, &scope.at(name)),
            false => Linear::without_bias(inputs, outputs, &scope.at(name)),
        };
        Ok(Self {
            to_q: linear(width, heads.query_key_width(), "to_q")?,
            to_k: linear(others, heads.query_key_width(), "to_k")?,
            to_v: linear(others, heads.value_width(), "to_v")?,
            to_out: Linear::new(heads.value_width(), width, &scope.at("to_out.0"))?,
            heads,
        })
    }

    /// `multiplicity`: of the `others`.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        others: &Tensor,
        multiplicity: Option<&Multiplicity>,
        context: &Context<'_>,
    ) -> Result<Tensor> {
        let y = {
            let q = self.to_q.forward(x, context)?;
            let of_others = Context { multiplicity: multiplicity.map(|m| &*m.of_text), ..*context };
            let (k, v) =
                (self.to_k.forward(others, &of_others)?, self.to_v.forward(others, &of_others)?);
            let _span = tracing::trace_span!("attention").entered();
            ops::attention(
                &q,
                &k,
                &v,
                self.heads.scaled(),
                multiplicity.map(|m| Arc::clone(&m.key_bias)),
                false,
            )?
        };
        Ok(self.to_out.forward(&y, context)?)
    }
}

/// One stream of a joint attention.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StreamLayers<'a> {
    pub(crate) tokens: usize,
    /// Names of query, key and value.
    pub(crate) projections: [&'a str; 3],
    /// Name of the output; none where nothing reads the stream afterwards.
    pub(crate) output: Option<&'a str>,
}

impl Block {
    /// The layers of [`Attention`] of `rows` tokens of `width` to `others` (tokens, width).
    /// `shared` stands for the input of keys and values where it is not that of the queries.
    pub(crate) fn attention(
        &mut self,
        module: &str,
        rows: usize,
        others: (usize, usize),
        (heads, width): (usize, usize),
        shared: Option<&LayerName>,
    ) {
        use Role::{AttentionOutput, QueryKeyValue};
        let name = |layer: &str| LayerName::from(format!("{module}.{layer}"));
        let [q, k, v, out] = ["to_q", "to_k", "to_v", "to_out.0"].map(name);
        let shared = shared.unwrap_or(&q);
        let (keys, inputs) = others;
        let products = Operation::Attention { queries: rows, keys, query_key: width, value: width };
        self.layers.extend([
            Layer::linear(q.clone(), rows, width, width).prunable(QueryKeyValue, &q),
            Layer::linear(k.clone(), keys, inputs, width).prunable(QueryKeyValue, shared),
            Layer::linear(v.clone(), keys, inputs, width).prunable(QueryKeyValue, shared),
            Layer { name: module.into(), operation: products, prunable: None },
            Layer::linear(out.clone(), rows, width, width).prunable(AttentionOutput, &out),
        ]);
        let [query, key, value, output] = [q, k, v, out].map(Slice::whole);
        self.heads.push(HeadGroup {
            name: module.into(),
            count: heads,
            query_key: width / heads,
            value: width / heads,
            streams: vec![HeadStream { query, key, value, output: Some(output) }],
            between: Between::default(),
        });
    }

    /// The layers of attention of the tokens of all `streams` to each other; `heads` counts them
    /// and gives their width.
    pub(crate) fn joint_attention(
        &mut self,
        module: &str,
        streams: &[StreamLayers<'_>],
        (count, head_dim): (usize, usize),
        between: Between,
    ) {
        use Role::{AttentionOutput, QueryKeyValue};
        let width = count * head_dim;
        let name = |layer: &str| LayerName::from(format!("{module}.{layer}"));
        for stream in streams {
            let input = name(stream.projections[0]);
            let linear = |layer: &str| Layer::linear(name(layer), stream.tokens, width, width);
            self.layers.extend(
                stream.projections.map(|layer| linear(layer).prunable(QueryKeyValue, &input)),
            );
        }
        let tokens = streams.iter().map(|stream| stream.tokens).sum();
        let products =
            Operation::Attention { queries: tokens, keys: tokens, query_key: width, value: width };
        self.layers.push(Layer { name: module.into(), operation: products, prunable: None });
        for stream in streams {
            let output =
                stream.output.map(|layer| Layer::linear(name(layer), stream.tokens, width, width));
            self.layers
                .extend(output.map(|layer| layer.clone().prunable(AttentionOutput, &layer.name)));
        }
        let described = |stream: &StreamLayers<'_>| {
            let [query, key, value] = stream.projections.map(|layer| Slice::whole(name(layer)));
            HeadStream {
                query,
                key,
                value,
                output: stream.output.map(|layer| Slice::whole(name(layer))),
            }
        };
        let streams = streams.iter().map(described).collect();
        let (query_key, value) = (head_dim, head_dim);
        self.heads.push(HeadGroup {
            name: module.into(),
            count,
            query_key,
            value,
            streams,
            between,
        });
    }
}
