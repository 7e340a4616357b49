//! CLIP: the text encoder of most pipelines, and the whole model that scores pictures against
//! texts.

use crate::encoders::image_processor::ClipImageProcessor;
use crate::encoders::tokenizers::ClipTokenizer;
use crate::error::{Error, Result, invalid, refuse};
use crate::files::{
    ACTIVATIONS, Checkpoint, OF_TRANSFORMERS, Options, TRANSFORMERS_STEM, activation, check_eps,
    config_fields, digest_of_files, options::number, tree,
};
use crate::observer::Observer;
use crate::structure::{Description, Geometry, Memory, Rows, Site};
use candle_core::{D, IndexOp, Tensor};
use secateur_nn::{
    Activation, Context, Conv2d, Embedding, LayerNorm, Linear, Parameters, Placement, Wanted, ops,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The transformer that text and vision share.
#[derive(Clone, Debug, Default, Deserialize)]
struct EncoderConfig {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    #[serde(default = "quick_gelu")]
    hidden_act: String,
    #[serde(default = "default_eps")]
    layer_norm_eps: f64,
}

fn quick_gelu() -> String {
    "quick_gelu".into()
}

fn default_eps() -> f64 {
    1e-5
}

struct EncoderLayer {
    layer_norm1: LayerNorm,
    layer_norm2: LayerNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    fc1: Linear,
    fc2: Linear,
}

/// The stack of layers below `encoder.layers`.
struct Encoder {
    layers: Vec<EncoderLayer>,
    heads: ops::Heads,
    activation: Activation,
    causal: bool,
}

impl EncoderConfig {
    /// Checks that the configuration does not contradict itself, and that it is supported.
    fn check(&self) -> std::result::Result<(), String> {
        let (width, heads) = (self.hidden_size, self.num_attention_heads);
        if width == 0 || heads == 0 || width % heads != 0 {
            return Err(format!(
                "hidden_size {width} does not divide into num_attention_heads {heads}"
            ));
        }
        if self.intermediate_size == 0 {
            return Err("intermediate_size is 0".into());
        }
        check_eps("layer_norm_eps", self.layer_norm_eps)?;
        self.activation().map(|_| ())
    }

    fn activation(&self) -> std::result::Result<Activation, String> {
        let problem =
            || format!("hidden_act {:?} is not supported; {ACTIVATIONS} are", self.hidden_act);
        activation(&self.hidden_act).ok_or_else(problem)
    }
}

impl Encoder {
    /// `site`: for the tokens.
    fn new(config: &EncoderConfig, causal: bool, site: &Site<'_>) -> Result<Self> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        config.check().map_err(Error::Request)?;
        let activation = config.activation().map_err(Error::Request)?;
        let layers = (0..config.num_hidden_layers).map(|index| {
            let site = site.at("encoder.layers").at(index);
            let attention = site.at("self_attn");
            // Tokens and their norm, query, key and value; the hidden layer.
            site.alive([(site.rows(), 5 * width + inner)]);
            let eps = config.layer_norm_eps as f32;
            Ok(EncoderLayer {
                layer_norm1: LayerNorm::new(width, eps, &site.at("layer_norm1"))?,
                layer_norm2: LayerNorm::new(width, eps, &site.at("layer_norm2"))?,
                q_proj: attention.at("q_proj").linear(width, width)?,
                k_proj: attention.at("k_proj").linear(width, width)?,
                v_proj: attention.at("v_proj").linear(width, width)?,
                out_proj: attention.at("out_proj").linear(width, width)?,
                fc1: site.at("mlp.fc1").linear(width, inner)?,
                fc2: site.at("mlp.fc2").linear(inner, width)?,
            })
        });
        let layers = layers.collect::<Result<_>>()?;
        let heads = ops::Heads::new(config.num_attention_heads, width / config.num_attention_heads);
        Ok(Self { layers, heads, activation, causal })
    }

    /// The last two hidden states: input of the last layer, and its output.
    fn forward(&self, mut x: Tensor) -> Result<(Tensor, Tensor)> {
        let context = Context::default();
        let mut penultimate = x.clone();
        for layer in &self.layers {
            penultimate = x.clone();
            let y = layer.layer_norm1.forward(&x)?;
            let (q, k) = (layer.q_proj.forward(&y, &context)?, layer.k_proj.forward(&y, &context)?);
            let v = layer.v_proj.forward(&y, &context)?;
            let y = ops::attention(&q, &k, &v, self.heads, None, self.causal)?;
            x = ops::add(&x, &layer.out_proj.forward(&y, &context)?)?;
            let y = layer.fc1.forward_activated(
                &layer.layer_norm2.forward(&x)?,
                self.activation,
                &context,
            )?;
            x = ops::add(&x, &layer.fc2.forward(&y, &context)?)?;
        }
        Ok((penultimate, x))
    }
}

/// Configuration of a CLIP text encoder.
#[derive(Clone, Debug, Deserialize)]
pub struct ClipTextConfig {
    #[serde(skip)]
    encoder: EncoderConfig,
    vocab_size: usize,
    max_position_embeddings: usize,
    eos_token_id: u32,
    projection_dim: usize,
}

/// The class of text encoders whose `text_projection` stands beside the encoder.
pub(crate) const PROJECTED: &str = "CLIPTextModelWithProjection";

/// What transformers leaves out of a text configuration when it has these values.
fn text_defaults() -> Value {
    json!({
        "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "vocab_size": 49408, "max_position_embeddings": 77, "projection_dim": 512,
        "eos_token_id": 49407,
    })
}

/// The same for a vision configuration.
fn vision_defaults() -> Value {
    json!({
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224, "patch_size": 32, "num_channels": 3,
    })
}

/// A configuration over its defaults, with the encoder's part.
fn complete<T: DeserializeOwned>(
    path: &Path,
    mut defaults: Value,
    config: &Map<String, Value>,
) -> Result<(T, EncoderConfig)> {
    let Value::Object(all) = &mut defaults else {
        invalid!(path, "not an object");
    };
    all.extend(config.iter().map(|(key, value)| (key.clone(), value.clone())));
    let mut options = Options::new(path, all);
    let (config, encoder): (T, EncoderConfig) = (options.read()?, options.read()?);
    encoder.check().map_err(|problem| options.invalid(problem))?;
    let supported = [("use_attention_mask", json!(false))];
    options.finish(&supported, &[&OF_TRANSFORMERS[..], &["projection_dim"]].concat())?;
    Ok((config, encoder))
}

/// The part `name` of the configuration of a whole CLIP. An older `name`_dict goes before it.
fn part(name: &str, config: &Map<String, Value>) -> Map<String, Value> {
    let parts = [name.to_owned(), format!("{name}_dict")]
        .map(|name| config.get(&name).and_then(Value::as_object));
    parts.into_iter().flatten().flatten().map(|(key, value)| (key.clone(), value.clone())).collect()
}

impl ClipTextConfig {
    /// Reads a component's `config.json`. From that of a whole CLIP, it takes the text's part.
    ///
    /// # Errors
    /// If it cannot be read, or is not that of a text encoder.
    pub fn open(path: &Path) -> Result<Self> {
        let config = config_fields(path)?;
        match config.get("model_type").and_then(Value::as_str) {
            Some("clip") if config.contains_key("text_config") => {
                Self::read(path, &part("text_config", &config))
            }
            _ => Self::read(path, &config),
        }
    }

    fn read(path: &Path, fields: &Map<String, Value>) -> Result<Self> {
        let (config, encoder) = complete::<Self>(path, text_defaults(), fields)?;
        Ok(Self { encoder, ..config })
    }

    /// The parameters that the model takes from a checkpoint, under the names that every version of
    /// transformers reads.
    pub(crate) fn parameters(&self, projected: bool) -> Result<BTreeMap<String, Wanted>> {
        Parameters::wanted(Default::default(), |scope| {
            let scope = if projected { scope } else { scope.at("text_model") };
            ClipTextModel::new(self, projected, &scope.into())
        })
    }
}

/// The result of a text encoder.
#[derive(Debug)]
pub struct ClipTextOutput {
    /// Hidden states before the last layer: samples x tokens x width.
    pub penultimate: Tensor,
    /// Hidden states after the final norm: samples x tokens x width.
    pub last: Tensor,
    /// The final state at the end token, projected if the model has a projection: samples x width.
    pub pooled: Tensor,
}

/// `CLIPTextModel` and `CLIPTextModelWithProjection`.
pub struct ClipTextModel {
    placement: Placement,
    token_embedding: Embedding,
    position_embedding: Tensor,
    encoder: Encoder,
    final_layer_norm: LayerNorm,
    text_projection: Option<Linear>,
    eos_token_id: u32,
}

impl ClipTextModel {
    /// Opens a component folder. `projected` says whether `text_projection` is beside the encoder.
    ///
    /// # Errors
    /// If its files cannot be read or do not fit each other.
    pub fn open(
        folder: &Path,
        projected: bool,
        variant: Option<&str>,
        placement: &Placement,
    ) -> Result<Self> {
        let config = ClipTextConfig::open(&folder.join("config.json"))?;
        Checkpoint::open(folder, TRANSFORMERS_STEM, variant)?
            .at(placement)
            .build(|scope| Self::new(&config, projected, &scope.into()))
    }

    /// Builds the model. `projected` says whether `text_projection` is beside the encoder.
    ///
    /// # Errors
    /// If the configuration contradicts itself.
    pub fn new(config: &ClipTextConfig, projected: bool, site: &Site<'_>) -> Result<Self> {
        let width = config.encoder.hidden_size;
        let text_projection = match projected {
            true => Some(Linear::without_bias(
                width,
                config.projection_dim,
                &site.at("text_projection"),
            )?),
            false => None,
        };
        // transformers 5 writes a bare CLIPTextModel without the prefix.
        let named = site.at("text_model");
        let is_named = projected || named.contains("final_layer_norm.weight");
        let site = if is_named { named } else { site.clone() };
        let tokens = Rows::Fixed(config.max_position_embeddings);
        let embeddings = site.at("embeddings");
        embeddings.ignore("position_ids");
        let positions = embeddings.at("position_embedding");
        Ok(Self {
            placement: site.placement().clone(),
            token_embedding: Embedding::new(
                config.vocab_size,
                width,
                &embeddings.at("token_embedding"),
            )?,
            position_embedding: positions.get("weight", (config.max_position_embeddings, width))?,
            encoder: Encoder::new(&config.encoder, true, &site.over(tokens))?,
            final_layer_norm: LayerNorm::new(
                width,
                config.encoder.layer_norm_eps as f32,
                &site.at("final_layer_norm"),
            )?,
            text_projection,
            eos_token_id: config.eos_token_id,
        })
    }

    /// Number of tokens that the model has positions for.
    pub(crate) fn positions(&self) -> usize {
        self.position_embedding.dims()[0]
    }

    /// Encodes `ids` (samples x tokens, u32).
    ///
    /// # Errors
    /// If there are more tokens than positions, or a token number is out of range.
    pub fn forward(&self, ids: &Tensor) -> Result<ClipTextOutput> {
        let (samples, tokens) = ids.dims2()?;
        let positions = self.position_embedding.dim(0)?;
        if tokens > positions {
            refuse!("{tokens} tokens, and the text encoder has {positions} positions");
        }
        let x = self.token_embedding.forward(&self.placement.bring(ids)?)?;
        let x = x.broadcast_add(&self.position_embedding.narrow(0, 0, tokens)?)?;
        let (penultimate, last) = self.encoder.forward(x)?;
        let last = self.final_layer_norm.forward(&last)?;
        let mut ends = Vec::with_capacity(samples);
        for (sample, row) in ids.to_vec2::<u32>()?.iter().enumerate() {
            let end = if self.eos_token_id == 2 {
                let highest = row.iter().max();
                row.iter().position(|id| Some(id) == highest)
            } else {
                row.iter().position(|&id| id == self.eos_token_id)
            };
            ends.push(last.i((sample, end.unwrap_or(0)))?);
        }
        let pooled = Tensor::stack(&ends, 0)?;
        let pooled = match &self.text_projection {
            Some(projection) => projection.forward(&pooled, &Context::default())?,
            None => pooled,
        };
        Ok(ClipTextOutput { penultimate, last, pooled })
    }
}

#[derive(Clone, Debug, Deserialize)]
struct VisionConfig {
    #[serde(skip)]
    encoder: EncoderConfig,
    image_size: usize,
    patch_size: usize,
    num_channels: usize,
}

impl VisionConfig {
    fn read(path: &Path, fields: &Map<String, Value>) -> Result<Self> {
        let (config, encoder) = complete::<Self>(path, vision_defaults(), fields)?;
        let config = Self { encoder, ..config };
        config.check().map_err(|problem| Error::invalid(path, problem))?;
        Ok(config)
    }

    /// Checks that the configuration does not contradict itself.
    fn check(&self) -> std::result::Result<(), String> {
        let (size, patch) = (self.image_size, self.patch_size);
        if patch == 0 || size == 0 || !size.is_multiple_of(patch) {
            return Err(format!("image_size {size} is not a multiple of patch_size {patch}"));
        }
        Ok(())
    }
}

/// Texts that are embedded at a time: a thousand classes would take a gigabyte.
const TEXTS: usize = 64;

struct VisionModel {
    patch_embedding: Conv2d,
    class_embedding: Tensor,
    position_embedding: Tensor,
    pre_layrnorm: LayerNorm,
    encoder: Encoder,
    post_layernorm: LayerNorm,
    config: VisionConfig,
}

impl VisionModel {
    fn new(config: &VisionConfig, site: &Site<'_>) -> Result<Self> {
        let (width, patch, eps) =
            (config.encoder.hidden_size, config.patch_size, config.encoder.layer_norm_eps as f32);
        config.check().map_err(Error::Request)?;
        let tokens = (config.image_size / patch).pow(2) + 1;
        let embeddings = site.at("embeddings");
        embeddings.ignore("position_ids");
        Ok(Self {
            patch_embedding: Conv2d::without_bias(
                (config.num_channels, width),
                patch,
                patch,
                (0, 0),
                &embeddings.at("patch_embedding"),
            )?,
            class_embedding: embeddings.get("class_embedding", width)?,
            position_embedding: embeddings
                .at("position_embedding")
                .get("weight", (tokens, width))?,
            pre_layrnorm: LayerNorm::new(width, eps, &site.at("pre_layrnorm"))?,
            encoder: Encoder::new(&config.encoder, false, &site.over(Rows::Fixed(tokens)))?,
            post_layernorm: LayerNorm::new(width, eps, &site.at("post_layernorm"))?,
            config: config.clone(),
        })
    }

    /// Encodes `pixels` (samples x channels x size x size): samples x width.
    fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let samples = pixels.dim(0)?;
        let width = self.config.encoder.hidden_size;
        let patches = self.patch_embedding.forward(pixels, &Context::default())?;
        let patches = patches.flatten_from(2)?.transpose(1, 2)?;
        let class =
            self.class_embedding.reshape((1, 1, width))?.broadcast_as((samples, 1, width))?;
        let x = Tensor::cat(&[&class, &patches], 1)?.broadcast_add(&self.position_embedding)?;
        let (_, last) = self.encoder.forward(self.pre_layrnorm.forward(&x)?)?;
        Ok(self.post_layernorm.forward(&last.i((.., 0))?.contiguous()?)?)
    }
}

/// The configuration of a whole CLIP.
struct ClipConfig {
    text: ClipTextConfig,
    vision: VisionConfig,
    projection_dim: usize,
}

impl ClipConfig {
    fn open(path: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct Whole {
            #[serde(default = "number::<512>")]
            projection_dim: usize,
        }
        let fields = config_fields(path)?;
        let mut options = Options::new(path, &fields);
        let Whole { projection_dim } = options.read()?;
        let parts = ["text_config", "vision_config", "text_config_dict", "vision_config_dict"];
        options.finish(&[], &[&OF_TRANSFORMERS[..], &parts].concat())?;
        let text = ClipTextConfig::read(path, &part("text_config", &fields))?;
        let vision = VisionConfig::read(path, &part("vision_config", &fields))?;
        Ok(Self { text: ClipTextConfig { projection_dim, ..text }, vision, projection_dim })
    }
}

/// `CLIPModel`: embeds texts and pictures in one space, where the cosine measures how well they
/// fit.
pub struct ClipModel {
    text: ClipTextModel,
    vision: VisionModel,
    visual_projection: Linear,
    /// ln of the factor from cosines to logits.
    logit_scale: Tensor,
    tokenizer: ClipTokenizer,
    processor: ClipImageProcessor,
    name: String,
}

impl ClipModel {
    /// Opens a folder in the transformers layout: configuration, weights, tokenizer, preprocessor.
    /// It is computed on the device of `placement`, in `f32` always: a score does not depend on the
    /// numbers that the pictures were drawn with. Embeddings are given on the CPU.
    ///
    /// # Errors
    /// If its files cannot be read or do not fit each other.
    pub fn open(folder: &Path, placement: &Placement) -> Result<Self> {
        let path = folder.join("config.json");
        let ClipConfig { text, vision, projection_dim } = ClipConfig::open(&path)?;
        let tokenizer = ClipTokenizer::open(folder)?;
        let processor = ClipImageProcessor::open(&folder.join("preprocessor_config.json"))?;
        let name = folder.canonicalize().map_err(Error::io(folder))?;
        let name =
            name.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let checkpoint = Checkpoint::open(folder, TRANSFORMERS_STEM, None)?;
        checkpoint.at(&placement.in_f32()).build(|scope| {
            let width = vision.encoder.hidden_size;
            let site = Site::from(scope);
            let projection = site.at("visual_projection");
            Ok(Self {
                text: ClipTextModel::new(&text, true, &site)?,
                vision: VisionModel::new(&vision, &site.at("vision_model"))?,
                visual_projection: Linear::without_bias(width, projection_dim, &projection)?,
                logit_scale: Placement::cpu().bring(&site.get("logit_scale", ())?)?,
                tokenizer: tokenizer.clone(),
                processor: processor.clone(),
                name: name.clone(),
            })
        })
    }

    /// Digest of all files that the model is opened from.
    ///
    /// # Errors
    /// If a file cannot be read, or the observer interrupts.
    pub fn digest(folder: &Path, observer: &dyn Observer) -> Result<String> {
        let mut files: Vec<PathBuf> =
            tree::all(folder)?.into_iter().map(|entry| entry.path).collect();
        files.retain(|file| file.components().count() == 1 && tree::is_description(file));
        let checkpoint = Checkpoint::open(folder, TRANSFORMERS_STEM, None)?;
        files.extend(checkpoint.paths().filter_map(Path::file_name).map(PathBuf::from));
        files.sort();
        digest_of_files(folder, &files, observer)
    }

    /// Memory of the model of a folder, loaded as by [`ClipModel::open`], that scores `pictures`
    /// pictures at a time against `texts` texts in all.
    ///
    /// # Errors
    /// If its configuration or the headers of its weights cannot be read.
    pub fn memory(folder: &Path, pictures: usize, texts: usize) -> Result<Memory> {
        let path = folder.join("config.json");
        let ClipConfig { text, vision, .. } = ClipConfig::open(&path)?;
        let checkpoint = Checkpoint::open(folder, TRANSFORMERS_STEM, None)?;
        let parameters = checkpoint.tensors().map(|(_, info)| info.elements() as u64).sum();
        let text = Description::of(BTreeMap::new(), |site| ClipTextModel::new(&text, true, site))?;
        let vision = Description::of(BTreeMap::new(), |site| VisionModel::new(&vision, site))?;
        // Both read as many tokens for every geometry.
        let geometry = Geometry { latent: (0, 0), text: 0 };
        let of_text = text.at(&geometry).memory(parameters, texts.min(TEXTS));
        let of_pictures = vision.at(&geometry).memory(0, pictures);
        Ok(Memory { activations: of_text.activations.max(of_pictures.activations), ..of_text })
    }

    /// The name of the folder.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Embeds rows of tokens (samples x tokens, u32) as unit vectors: samples x projection.
    ///
    /// # Errors
    /// See [`ClipTextModel::forward`].
    pub fn embed_ids(&self, ids: &Tensor) -> Result<Tensor> {
        unit(&self.text.forward(ids)?.pooled)
    }

    /// Embeds texts as unit vectors: texts x projection.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn embed_texts(&self, texts: &[String]) -> Result<Tensor> {
        let some = |texts: &[String]| self.embed_ids(&self.tokenizer.encode_batch(texts)?);
        Ok(Tensor::cat(&texts.chunks(TEXTS).map(some).collect::<Result<Vec<_>>>()?, 0)?)
    }

    /// Embeds prepared pixels (samples x channels x size x size) as unit vectors: samples x
    /// projection.
    ///
    /// # Errors
    /// If the size is not the model's.
    pub fn embed_pixels(&self, pixels: &Tensor) -> Result<Tensor> {
        let encoded = self.vision.forward(&self.text.placement.bring(pixels)?)?;
        unit(&self.visual_projection.forward(&encoded, &Context::default())?)
    }

    /// Embeds pictures in [0, 1] (samples x height x width x 3) as unit vectors: samples x
    /// projection. The pictures are resized and normalised first.
    ///
    /// # Errors
    /// If the pictures are not RGB.
    pub fn embed_pictures(&self, pictures: &Tensor) -> Result<Tensor> {
        self.embed_pixels(&self.processor.prepare(pictures)?)
    }

    /// Logits of every text for every picture: texts x pictures. `texts` and `pictures` are unit
    /// vectors.
    ///
    /// # Errors
    /// If the widths differ.
    pub fn logits(&self, texts: &Tensor, pictures: &Tensor) -> Result<Tensor> {
        Ok(texts.matmul(&pictures.t()?)?.broadcast_mul(&self.logit_scale.exp()?)?)
    }
}

/// Returns the rows of `x` at length 1, on the CPU.
fn unit(x: &Tensor) -> Result<Tensor> {
    let x = Placement::cpu().bring(x)?;
    Ok(x.broadcast_div(&x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?)?)
}
