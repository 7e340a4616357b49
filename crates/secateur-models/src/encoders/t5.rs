//! T5: the text encoder whose states SD3, FLUX and PixArt read.

use crate::error::{Error, Result, invalid};
use crate::files::{
    ACTIVATIONS, Checkpoint, OF_TRANSFORMERS, TRANSFORMERS_STEM, activation, check_eps,
    check_heads, options::number, read_config,
};
use candle_core::{DType, Tensor};
use secateur_nn::{
    Activation, Context, Embedding, Linear, Parameters, Placement, RmsNorm, Scope, Wanted, ops,
};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

/// Configuration of a `T5EncoderModel`.
#[derive(Clone, Debug, Deserialize)]
pub struct T5Config {
    vocab_size: usize,
    d_model: usize,
    d_kv: usize,
    d_ff: usize,
    num_layers: usize,
    num_heads: usize,
    #[serde(default = "number::<32>")]
    relative_attention_num_buckets: usize,
    #[serde(default = "number::<128>")]
    relative_attention_max_distance: usize,
    #[serde(default = "default_eps")]
    layer_norm_epsilon: f32,
    #[serde(default = "relu")]
    feed_forward_proj: String,
    /// These two follow from the one before where they are absent.
    dense_act_fn: Option<String>,
    is_gated_act: Option<bool>,
}

fn relu() -> String {
    "relu".into()
}

fn default_eps() -> f32 {
    1e-6
}

impl T5Config {
    /// Reads a component's `config.json`.
    ///
    /// # Errors
    /// If it cannot be read, contradicts itself, or asks for something that is not supported.
    pub fn open(path: &Path) -> Result<Self> {
        const OF_THE_DECODER: [&str; 4] =
            ["dropout_rate", "is_encoder_decoder", "num_decoder_layers", "scale_decoder_outputs"];
        let unread = [&OF_TRANSFORMERS[..], &OF_THE_DECODER].concat();
        let config: Self = read_config(path, &[("scalable_attention", json!(false))], &unread)?;
        config.feed_forward().map_err(|problem| Error::invalid(path, problem))?;
        if config.num_heads == 0 || config.d_kv == 0 {
            invalid!(path, "num_heads and d_kv must be at least 1");
        }
        check_heads(("num_heads", config.num_heads), ("d_kv", config.d_kv))
            .and_then(|()| check_eps("layer_norm_epsilon", config.layer_norm_epsilon.into()))
            .map_err(|problem| Error::invalid(path, problem))?;
        let (buckets, distance) =
            (config.relative_attention_num_buckets, config.relative_attention_max_distance);
        if buckets < 4 || distance <= buckets / 4 {
            invalid!(
                path,
                "{buckets} buckets of relative positions do not fit a maximal distance of \
                 {distance}"
            );
        }
        Ok(config)
    }

    /// The activation of the feed-forward, and whether its result is multiplied by another linear's
    /// output.
    fn feed_forward(&self) -> std::result::Result<(Activation, bool), String> {
        let (name, gated) = match self.feed_forward_proj.strip_prefix("gated-") {
            // By tanh, for all its name.
            Some("gelu") => ("gelu_new", true),
            Some(name) => (name, true),
            None => (self.feed_forward_proj.as_str(), false),
        };
        let (field, name) = match &self.dense_act_fn {
            Some(name) => ("dense_act_fn", name.as_str()),
            None => ("feed_forward_proj", name),
        };
        let problem = || {
            format!(
                "{field} {name:?} is not supported; {ACTIVATIONS} are, for feed_forward_proj \
                 behind gated- too"
            )
        };
        Ok((activation(name).ok_or_else(problem)?, self.is_gated_act.unwrap_or(gated)))
    }

    /// The parameters that the model takes from a checkpoint, by name.
    ///
    /// # Errors
    /// If a placeholder cannot be made.
    pub fn parameters(&self) -> Result<BTreeMap<String, Wanted>> {
        Parameters::wanted(Default::default(), |scope| T5Encoder::new(self, &scope))
    }

    /// The bucket of a key's position relative to a query's
    /// (`T5Attention._relative_position_bucket`): half of them for keys after the query; in each
    /// half one a position for the nearest, then ever wider ones up to the maximal distance.
    fn bucket(&self, query: usize, key: usize) -> u32 {
        let half = self.relative_attention_num_buckets / 2;
        let exact = half / 2;
        let distance = query.abs_diff(key);
        let bucket = if distance < exact {
            distance
        } else {
            let widest = (self.relative_attention_max_distance as f64 / exact as f64).ln() as f32;
            let wide = (distance as f32 / exact as f32).ln() / widest * (half - exact) as f32;
            (exact + wide as usize).min(half - 1)
        };
        (if key > query { half + bucket } else { bucket }) as u32
    }
}

/// Self-attention, whose scores are not scaled.
struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    heads: usize,
}

impl Attention {
    fn new(config: &T5Config, scope: &Scope<'_>) -> Result<Self> {
        let (width, inner) = (config.d_model, config.num_heads * config.d_kv);
        Ok(Self {
            q: Linear::without_bias(width, inner, &scope.at("q"))?,
            k: Linear::without_bias(width, inner, &scope.at("k"))?,
            v: Linear::without_bias(width, inner, &scope.at("v"))?,
            o: Linear::without_bias(inner, width, &scope.at("o"))?,
            heads: config.num_heads,
        })
    }

    /// `bias` (samples or 1 x heads x tokens x tokens) is added to the scores.
    fn forward(&self, x: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let context = Context::default();
        let of = |linear: &Linear| linear.forward(x, &context);
        let heads = ops::Heads { count: self.heads, scale: 1.0 };
        let y = ops::biased_attention(&of(&self.q)?, &of(&self.k)?, &of(&self.v)?, heads, bias)?;
        Ok(self.o.forward(&y, &context)?)
    }
}

/// `T5DenseActDense` and `T5DenseGatedActDense`.
struct FeedForward {
    /// `wi` or `wi_0`.
    wi: Linear,
    wi_1: Option<Linear>,
    wo: Linear,
    activation: Activation,
}

impl FeedForward {
    fn new(config: &T5Config, scope: &Scope<'_>) -> Result<Self> {
        let (width, inner) = (config.d_model, config.d_ff);
        let first = |name: &str| Linear::without_bias(width, inner, &scope.at(name));
        let (activation, gated) = config.feed_forward().map_err(Error::Request)?;
        let (wi, wi_1) = match gated {
            false => (first("wi")?, None),
            true => (first("wi_0")?, Some(first("wi_1")?)),
        };
        Ok(Self { wi, wi_1, wo: Linear::without_bias(inner, width, &scope.at("wo"))?, activation })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let context = Context::default();
        let mut y = self.wi.forward_activated(x, self.activation, &context)?;
        if let Some(wi_1) = &self.wi_1 {
            y = ops::multiply(&y, &wi_1.forward(x, &context)?)?;
        }
        Ok(self.wo.forward(&y, &context)?)
    }
}

struct Block {
    attention_norm: RmsNorm,
    attention: Attention,
    feed_forward_norm: RmsNorm,
    feed_forward: FeedForward,
}

impl Block {
    fn new(config: &T5Config, scope: &Scope<'_>) -> Result<Self> {
        let norm =
            |name: &str| RmsNorm::new(config.d_model, config.layer_norm_epsilon, &scope.at(name));
        Ok(Self {
            attention_norm: norm("layer.0.layer_norm")?,
            attention: Attention::new(config, &scope.at("layer.0.SelfAttention"))?,
            feed_forward_norm: norm("layer.1.layer_norm")?,
            feed_forward: FeedForward::new(config, &scope.at("layer.1.DenseReluDense"))?,
        })
    }

    fn forward(&self, mut x: Tensor, bias: &Tensor) -> Result<Tensor> {
        x = {
            let y = self.attention.forward(&self.attention_norm.forward(&x)?, bias)?;
            ops::add(&x, &y)?
        };
        let y = self.feed_forward.forward(&self.feed_forward_norm.forward(&x)?)?;
        Ok(ops::add(&x, &y)?)
    }
}

/// `T5EncoderModel`, of T5 v1.0 and v1.1.
pub struct T5Encoder {
    placement: Placement,
    shared: Embedding,
    /// The first layer's, which all layers add: buckets x heads.
    relative_attention_bias: Embedding,
    blocks: Vec<Block>,
    final_layer_norm: RmsNorm,
    config: T5Config,
}

impl T5Encoder {
    /// Opens a component folder.
    ///
    /// # Errors
    /// If its files cannot be read or do not fit each other.
    pub fn open(folder: &Path, variant: Option<&str>, placement: &Placement) -> Result<Self> {
        let config = T5Config::open(&folder.join("config.json"))?;
        Checkpoint::open(folder, TRANSFORMERS_STEM, variant)?
            .at(placement)
            .build(|scope| Self::new(&config, &scope))
    }

    /// Builds the model.
    ///
    /// # Errors
    /// If a placeholder cannot be made.
    pub fn new(config: &T5Config, scope: &Scope<'_>) -> Result<Self> {
        let encoder = scope.at("encoder");
        // The same table: a file has it under one of the names, or both.
        let (shared, tied) = (scope.at("shared"), encoder.at("embed_tokens"));
        tied.ignore("weight");
        let table =
            if tied.contains("weight") && !shared.contains("weight") { tied } else { shared };
        let blocks = (0..config.num_layers)
            .map(|index| Block::new(config, &encoder.at(format!("block.{index}"))));
        Ok(Self {
            placement: scope.placement().clone(),
            shared: Embedding::new(config.vocab_size, config.d_model, &table)?,
            relative_attention_bias: Embedding::new(
                config.relative_attention_num_buckets,
                config.num_heads,
                &encoder.at("block.0.layer.0.SelfAttention.relative_attention_bias"),
            )?,
            blocks: blocks.collect::<Result<_>>()?,
            final_layer_norm: RmsNorm::new(
                config.d_model,
                config.layer_norm_epsilon,
                &encoder.at("final_layer_norm"),
            )?,
            config: config.clone(),
        })
    }

    /// Encodes `ids` (samples x tokens, u32): samples x tokens x width. `mask`, of the shape of
    /// `ids`, is 0 for tokens that no other token reads, else 1.
    ///
    /// # Errors
    /// If a token number is out of range, or the mask has another shape.
    pub fn forward(&self, ids: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let (samples, tokens) = ids.dims2()?;
        let mut bias = self.position_bias(tokens)?;
        if let Some(mask) = mask {
            const HIDDEN: f64 = f32::MIN as f64;
            let keys = self.placement.in_f32().bring(
                &mask
                    .to_dtype(DType::F32)?
                    .reshape((samples, 1, 1, tokens))?
                    .affine(-HIDDEN, HIDDEN)?,
            )?;
            bias = bias.broadcast_add(&keys)?;
        }
        let mut x = self.shared.forward(&self.placement.bring(ids)?)?;
        for block in &self.blocks {
            x = block.forward(x, &bias)?;
        }
        Ok(self.final_layer_norm.forward(&x)?)
    }

    /// Score bias of the relative positions, in f32: 1 x heads x tokens x tokens.
    fn position_bias(&self, tokens: usize) -> Result<Tensor> {
        // Those of keys from `tokens - 1` before a query to as many after it.
        let last = tokens.saturating_sub(1);
        let distances: Vec<u32> =
            (0..tokens + last).map(|key| self.config.bucket(last, key)).collect();
        let of_query = |query: usize| &distances[last - query..][..tokens];
        let pairs = (0..tokens).flat_map(of_query).copied().collect();
        let buckets = self.placement.tensor::<u32>(pairs, (tokens, tokens))?;
        Ok(self
            .relative_attention_bias
            .forward(&buckets)?
            .to_dtype(DType::F32)?
            .permute((2, 0, 1))?
            .unsqueeze(0)?
            .contiguous()?)
    }
}
