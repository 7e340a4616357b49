//! Attention of tokens to themselves, to others, and over all streams jointly.

use crate::conditioning::Multiplicity;
use crate::error::Result;
use crate::structure::{Between, HeadGroup, HeadStream, Pair, Role, Rows, Site, Slice};
use candle_core::Tensor;
use secateur_nn::{Context, Linear, Scope, ops};

/// The heads of an attention, after removals.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    count: usize,
    /// Width by the configuration: scores keep their scale when heads become narrower.
    head_dim: usize,
    query_key: usize,
    value: usize,
}

impl Heads {
    /// The heads of the module at `scope`, with `count` heads of `head_dim` by its configuration.
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

    /// Records the heads for the module at `site`, whose rows attend to `keys`.
    pub(crate) fn record(
        self,
        streams: Vec<HeadStream>,
        keys: Rows,
        between: Between,
        site: &Site<'_>,
    ) {
        let Self { count, query_key, value, .. } = self;
        let name = site.layer_name();
        site.heads(HeadGroup { name, count, query_key, value, streams, between }, keys);
    }

    /// The heads as [`ops::attention`] takes them.
    pub(crate) fn scaled(self) -> ops::Heads {
        ops::Heads::new(self.count, self.head_dim)
    }
}

/// The stream with these projections in the module at `site`.
pub(crate) fn stream(site: &Site<'_>, projections: [&str; 3], output: Option<&str>) -> HeadStream {
    let slice = |name: &str| Slice::whole(site.at(name).layer_name());
    let [query, key, value] = projections.map(slice);
    HeadStream { query, key, value, output: output.map(slice) }
}

/// Attention of tokens to themselves or to the text.
pub(crate) struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: Heads,
}

impl Attention {
    /// `width` is that of the queries and of the result. `text` is the width of the text states, if
    /// keys and values are projected from those. `bias` is for the projections of query, key and
    /// value.
    pub(crate) fn new(
        width: usize,
        text: Option<usize>,
        heads: usize,
        bias: bool,
        site: &Site<'_>,
    ) -> Result<Self> {
        let heads = Heads::new(heads, width / heads, site);
        let (query_key, value) = (heads.query_key_width(), heads.value_width());
        let linear = |site: Site<'_>, inputs, outputs| match bias {
            true => site.linear(inputs, outputs),
            false => site.linear_without_bias(inputs, outputs),
        };
        let queries = site.prunable(Role::QueryKeyValue);
        let (keys, inputs) = match text {
            Some(text) => (site.of_text(), text),
            None => (queries.clone(), width),
        };
        let to_q = linear(queries.at("to_q"), width, query_key)?;
        let to_k = linear(keys.at("to_k"), inputs, query_key)?;
        let to_v = linear(keys.at("to_v"), inputs, value)?;
        let streams = vec![stream(site, ["to_q", "to_k", "to_v"], Some("to_out.0"))];
        heads.record(streams, keys.rows(), Between::default(), site);
        site.alive(match text {
            // Tokens, query and result, key and value.
            Some(_) => [(site.rows(), 3 * width), (Rows::Text, 2 * width)],
            // Tokens and their norm, query and result, key and value.
            None => [(site.rows(), 4 * width), (site.rows(), 2 * width)],
        });
        let out = site.prunable(Role::AttentionOutput).at("to_out.0");
        Ok(Self { to_q, to_k, to_v, to_out: out.linear(value, width)?, heads })
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
            let of_others = Context { multiplicity: multiplicity.map(|m| &m.of_text), ..*context };
            let (k, v) =
                (self.to_k.forward(others, &of_others)?, self.to_v.forward(others, &of_others)?);
            let _span = tracing::trace_span!("attention").entered();
            ops::attention(
                &q,
                &k,
                &v,
                self.heads.scaled(),
                multiplicity.map(|m| &m.key_bias),
                false,
            )?
        };
        Ok(self.to_out.forward(&y, context)?)
    }
}
