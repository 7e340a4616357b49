//! The options of a configuration: their meaning, the supported ones, and the bounds of their
//! numbers.

use crate::error;
use crate::error::Error;
use crate::files::read::{Limit, read_json};
use secateur_nn::Activation;
use serde::de::value::{BorrowedStrDeserializer, MapAccessDeserializer};
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::path::Path;

/// The largest size in a model.
pub(crate) const LARGEST: usize = 65535;

/// The most layers of a model, all levels together.
pub(crate) const MOST_LAYERS: usize = 1024;

/// The largest height and width of latents, pictures and tables of positions.
const LARGEST_SIDE: usize = 4096;

/// The largest side of a square that becomes a token.
const LARGEST_PATCH: usize = 256;

/// The largest vocabulary.
const LARGEST_VOCABULARY: usize = 1 << 20;

/// The longest list in a configuration.
const LONGEST_LIST: usize = 4096;

/// A configuration on its way into the structures of a component.
pub(crate) struct Options<'a> {
    path: &'a Path,
    fields: &'a Map<String, Value>,
    /// The fields that no structure had.
    others: BTreeSet<&'a str>,
}

impl<'a> Options<'a> {
    /// Of the `fields` of the file `path`. Those that begin with an underscore are notes of the
    /// program that wrote it.
    pub(crate) fn new(path: &'a Path, fields: &'a Map<String, Value>) -> Self {
        Self {
            path,
            fields,
            others: fields
                .keys()
                .map(String::as_str)
                .filter(|name| !name.starts_with('_'))
                .collect(),
        }
    }

    /// The fields that `T` has; null stands for the default of one that has no null.
    ///
    /// # Errors
    /// If one is not of its type.
    pub(crate) fn read<T: DeserializeOwned>(&mut self) -> error::Result<T> {
        let mut absent = BTreeSet::new();
        loop {
            let left = self.fields.iter().filter(|(name, _)| !absent.contains(name));
            let mut fields = Fields { left, next: None, ignored: BTreeSet::new(), null: None };
            let read = T::deserialize(MapAccessDeserializer::new(&mut fields));
            let Fields { ignored, null, .. } = fields;
            match (read, null) {
                (Err(_), Some(name)) => _ = absent.insert(name),
                (read, _) => {
                    self.others.retain(|name| ignored.contains(name));
                    return read.map_err(|error| self.invalid(error));
                }
            }
        }
    }

    /// Refuses the fields that no structure had: other values of options with a single `supported`
    /// one, which is also their default, and options that are not known, except those that change
    /// nothing here (`unread`) and those that are off.
    ///
    /// # Errors
    /// If there is one, with its name and value.
    pub(crate) fn finish(self, supported: &[(&str, Value)], unread: &[&str]) -> error::Result<()> {
        for name in self.others.iter().filter(|name| !unread.contains(name)) {
            let found = &self.fields[*name];
            match supported.iter().find(|(supported, _)| supported == name) {
                Some((_, value)) if same(name, found, value) => {}
                Some((_, value)) => {
                    return Err(self.invalid(format!(
                        "{name} {found} is not supported; {value} \
                        is"
                    )));
                }
                None if is_off(found) => {}
                None => {
                    let problem = "is not known here, and may change what the model computes: \
                        without it the model opens";
                    return Err(self.invalid(format!("{name} {found} {problem}")));
                }
            }
        }
        Ok(())
    }

    /// An error in the file.
    pub(crate) fn invalid(&self, problem: impl ToString) -> Error {
        Error::invalid(self.path, problem)
    }
}

/// Whether two values of an option mean the same to diffusers.
fn same(name: &str, found: &Value, value: &Value) -> bool {
    match (found, value) {
        (Value::Number(found), Value::Number(value)) => {
            let (found, value) =
                (found.as_f64().unwrap_or(f64::NAN), value.as_f64().unwrap_or(f64::NAN));
            (found - value).abs() <= 1e-9 * value.abs()
        }
        (Value::String(found), Value::String(value)) if name.ends_with("act_fn") => {
            activation(found) == activation(value)
        }
        (Value::Array(all), _) if !all.is_empty() => {
            all.iter().all(|found| same(name, found, value))
        }
        _ => found == value || (is_off(found) && is_off(value)),
    }
}

/// Whether a value is what Python takes for false.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(values) => values.iter().all(is_off),
        Value::Object(values) => values.is_empty(),
        _ => false,
    }
}

/// Names of options as strings.
macro_rules! names {
    ($($name:ident)* $(, $other:literal)*) => { [$(stringify!($name),)* $($other),*] };
}
pub(crate) use names;

/// The names that [`activation`] knows.
pub(crate) const ACTIVATIONS: &str = "silu, relu, gelu, gelu_new and quick_gelu";

/// Options of any model of transformers that change nothing here: what it is for and was trained
/// with, how its outputs are given, and how texts are generated.
pub(crate) const OF_TRANSFORMERS: [&str; 71] = names! {
    architectures attention_dropout bad_words_ids begin_suppress_tokens bos_token_id
    chunk_size_feed_forward classifier_dropout cross_attention_hidden_size decoder_start_token_id
    diversity_penalty do_sample dropout dtype early_stopping encoder_no_repeat_ngram_size
    eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id
    forced_eos_token_id gradient_checkpointing id2label initializer_factor initializer_range
    keys_to_ignore_at_inference label2id length_penalty logit_scale_init_value max_length min_length
    model_type n_positions no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
    output_attentions output_hidden_states output_past output_scores pad_token_id prefix
    problem_type projection_dim remove_invalid_values repetition_penalty return_dict
    return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature
    tf_legacy_loss tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p torch_dtype
    torchscript transformers_version transformers_weights typical_p use_bfloat16 use_cache
    vision_config text_config vision_config_dict text_config_dict vocab_size,
    "transformers.js_config"
};

/// An activation by any of its names in diffusers and transformers.
pub(crate) fn activation(name: &str) -> Option<Activation> {
    match name.to_lowercase().as_str() {
        "silu" | "swish" => Some(Activation::Silu),
        "relu" => Some(Activation::Relu),
        "gelu" | "gelu_python" => Some(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_python_tanh" | "gelu_fast" => {
            Some(Activation::GeluTanh)
        }
        "quick_gelu" => Some(Activation::QuickGelu),
        _ => None,
    }
}

/// A number for all levels, or one for each; for the two sides of a picture, or for height and
/// width.
#[derive(Clone, Debug)]
pub(crate) enum Numbers {
    All(usize),
    Each(Vec<usize>),
}

impl Numbers {
    pub(crate) fn at(&self, index: usize) -> Option<usize> {
        match self {
            Self::All(value) => Some(*value),
            Self::Each(values) => values.get(index).copied(),
        }
    }

    /// Whether there is one for each of `count`.
    pub(crate) fn fits(&self, count: usize) -> bool {
        !matches!(self, Self::Each(values) if values.len() != count)
    }
}

impl<'de> serde::Deserialize<'de> for Numbers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let number = |value: &Value| value.as_u64().map(|number| number as usize);
        match (number(&value), value.as_array()) {
            (Some(number), _) => Some(Self::All(number)),
            (_, Some(values)) => values.iter().map(number).collect::<Option<_>>().map(Self::Each),
            _ => None,
        }
        .ok_or_else(|| {
            D::Error::custom(format!("{value} is neither a whole number nor a list of such"))
        })
    }
}

/// Reads a configuration whose fields are all that is known: see [`Options::finish`].
///
/// # Errors
/// If it cannot be read, a number in it is larger than any model's, a field is not of its type, or
/// an option is not supported.
pub(crate) fn read_config<T: DeserializeOwned>(
    path: &Path,
    supported: &[(&str, Value)],
    unread: &[&str],
) -> error::Result<T> {
    let fields = config_fields(path)?;
    let mut options = Options::new(path, &fields);
    let config = options.read()?;
    options.finish(supported, unread)?;
    Ok(config)
}

/// The fields of a configuration.
///
/// # Errors
/// If it cannot be read, or a number in it is larger than any model's: sizes made of such ones
/// would overflow, and as many layers not fit the memory.
pub(crate) fn config_fields(path: &Path) -> error::Result<Map<String, Value>> {
    let fields: Map<String, Value> = read_json(path, Limit::Config)?;
    check_numbers(&fields, most).map_err(|problem| Error::invalid(path, problem))?;
    Ok(fields)
}

/// A number as the default of a field.
pub(crate) fn number<const N: usize>() -> usize {
    N
}

/// The fields of an object that `T` has.
///
/// # Errors
/// If one is not of its type.
pub(crate) fn read_fields<T: DeserializeOwned>(
    path: &Path,
    fields: &Map<String, Value>,
) -> error::Result<T> {
    Options::new(path, fields).read()
}

/// Refuses numbers above what `most` says of a field, wherever they stand in `fields`, their
/// negatives, and long lists.
///
/// # Errors
/// If there is one, with its name and value.
pub(crate) fn check_numbers(
    fields: &Map<String, Value>,
    most: fn(&str) -> f64,
) -> Result<(), String> {
    fields.iter().try_for_each(|(name, value)| check_value(name, value, most))
}

fn check_value(name: &str, value: &Value, most: fn(&str) -> f64) -> Result<(), String> {
    match value {
        Value::Number(number) => {
            let most = most(name);
            match number.as_f64() {
                Some(number) if number.abs() <= most => Ok(()),
                _ => Err(format!("{name} {number} is beyond any model's, which is at most {most}")),
            }
        }
        Value::Array(values) if values.len() > LONGEST_LIST => {
            Err(format!("{name} has {} entries, and at most {LONGEST_LIST} are read", values.len()))
        }
        Value::Array(values) => values.iter().try_for_each(|value| check_value(name, value, most)),
        Value::Object(fields) => {
            let inside = check_numbers(fields, most);
            inside.map_err(|problem| format!("{name}.{problem}"))
        }
        _ => Ok(()),
    }
}

/// The largest number that a field of a component's configuration may hold.
fn most(field: &str) -> f64 {
    let most = match field {
        "layers_per_block"
        | "num_decoder_blocks"
        | "num_decoder_layers"
        | "num_encoder_blocks"
        | "num_hidden_layers"
        | "num_layers"
        | "num_single_layers"
        | "transformer_layers_per_block" => MOST_LAYERS,
        "image_size" | "pos_embed_max_size" | "sample_size" => LARGEST_SIDE,
        "crop_size" | "height" | "shortest_edge" | "size" | "width" => LARGEST_SIDE,
        "patch_size" => LARGEST_PATCH,
        "vocab_size" => LARGEST_VOCABULARY,
        _ if field.ends_with("token_id") || field.ends_with("token_ids") => LARGEST_VOCABULARY,
        _ => LARGEST,
    };
    most as f64
}

/// Refuses more layers than any model has, all levels together.
///
/// # Errors
/// If there are, with the names of the fields that tell their number.
pub(crate) fn check_layers(
    fields: &str,
    layers: impl IntoIterator<Item = usize>,
) -> Result<(), String> {
    let count = layers.into_iter().fold(0, usize::saturating_add);
    match count > MOST_LAYERS {
        true => {
            Err(format!("{fields} make {count} layers, and no model has more than {MOST_LAYERS}"))
        }
        false => Ok(()),
    }
}

/// Refuses heads that together are wider than any model.
///
/// # Errors
/// If they are, with the names of the fields.
pub(crate) fn check_heads(heads: (&str, usize), size: (&str, usize)) -> Result<(), String> {
    match heads.1.checked_mul(size.1).filter(|width| *width <= LARGEST) {
        Some(_) => Ok(()),
        None => Err(format!(
            "{} {} x {} {} is wider than any model, {LARGEST}",
            heads.0, heads.1, size.0, size.1
        )),
    }
}

/// Refuses an epsilon that is not in [0, 1].
///
/// # Errors
/// If it is not, with the name of the field.
pub(crate) fn check_eps(field: &str, eps: f64) -> Result<(), String> {
    match (0.0..=1.0).contains(&eps) {
        true => Ok(()),
        false => Err(format!("{field} {eps} is not in [0, 1]")),
    }
}

/// Fields on their way into a structure; an error names the field.
struct Fields<'a, I> {
    left: I,
    next: Option<(&'a String, &'a Value)>,
    /// Those that the structure does not have.
    ignored: BTreeSet<&'a str>,
    /// The one that cannot be null, and is.
    null: Option<&'a String>,
}

impl<'de, I: Iterator<Item = (&'de String, &'de Value)>> MapAccess<'de> for &mut Fields<'de, I> {
    type Error = serde_json::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> serde_json::Result<Option<K::Value>> {
        self.next = self.left.next();
        self.next.map(|(name, _)| seed.deserialize(BorrowedStrDeserializer::new(name))).transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(
        &mut self,
        seed: V,
    ) -> serde_json::Result<V::Value> {
        let Some((name, value)) = self.next.take() else {
            return Err(Self::Error::custom("a value without a name"));
        };
        let mut ignored = false;
        let read = seed.deserialize(Meant { value, ignored: &mut ignored });
        if ignored {
            self.ignored.insert(name);
        }
        if read.is_err() && value.is_null() {
            self.null = Some(name);
        }
        read.map_err(|error| Self::Error::custom(format!("{name}: {error}")))
    }
}

/// A value as Python takes it: null where a flag is wanted is false, and a list of equal values
/// stands for one.
struct Meant<'a, 'i> {
    value: &'a Value,
    ignored: &'i mut bool,
}

impl<'a> Meant<'a, '_> {
    /// The value of a list of equal ones.
    fn one(&self) -> &'a Value {
        match self.value.as_array().map(Vec::as_slice) {
            Some([first, rest @ ..]) if rest.iter().all(|value| value == first) => first,
            _ => self.value,
        }
    }
}

macro_rules! one {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> serde_json::Result<V::Value> {
            self.one().$method(visitor)
        })*
    };
}

impl<'de> Deserializer<'de> for Meant<'de, '_> {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> serde_json::Result<V::Value> {
        self.value.deserialize_any(visitor)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> serde_json::Result<V::Value> {
        match self.one() {
            value if is_off(value) => visitor.visit_bool(false),
            value => value.deserialize_bool(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> serde_json::Result<V::Value> {
        match self.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> serde_json::Result<V::Value> {
        self.value.deserialize_enum(name, variants, visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> serde_json::Result<V::Value> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> serde_json::Result<V::Value> {
        *self.ignored = true;
        visitor.visit_unit()
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> serde_json::Result<V::Value> {
        let whole = |x: &f64| x.fract() == 0.0 && (0.0..=LARGEST as f64).contains(x);
        match (self.one(), self.one().as_f64().filter(whole)) {
            // 2.0 is 2.
            (value, Some(whole)) if value.is_f64() => visitor.visit_u64(whole as u64),
            (value, _) => value.deserialize_u64(visitor),
        }
    }

    one! { deserialize_u32 deserialize_f32 deserialize_f64 }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 u8 u16 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct
        map struct
        identifier
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use serde_json::json;

    fn checked(value: Value) -> Result<(), String> {
        check_value("config", &value, most)
    }

    #[test]
    fn numbers_of_real_models_pass() {
        let fields = json!({
            "d_ff": 10240, "vocab_size": 262_208, "eos_token_id": [49407, 151_643],
            "image_size": 1024, "num_layers": 48,
            "initializer_factor": 1.0, "logit_scale_init_value": 2.6592, "freq_shift": -1,
            "axes_dims_rope": [16, 56, 56],
        });
        checked(fields).unwrap();
    }

    #[test]
    fn a_number_beyond_any_model_is_refused_wherever_it_stands() {
        for (value, words) in [
            (json!({"in_channels": u64::MAX}), "in_channels 18446744073709551615"),
            (
                json!({"text_config": {"num_hidden_layers": 1025}}),
                "text_config.num_hidden_layers 1025",
            ),
            (json!({"channels": [320, 65536]}), "channels 65536"),
            (json!({"shift_factor": -1e30}), "shift_factor -1e+30"),
            (json!({"channels": vec![1; 5000]}), "channels has 5000 entries"),
        ] {
            let problem = checked(value).unwrap_err();
            assert!(problem.contains(words), "{problem}");
        }
        assert!(check_layers("layers", [usize::MAX, 2]).is_err());
        assert!(check_heads(("heads", 1 << 40), ("size", 1 << 40)).is_err());
    }

    #[test]
    fn an_error_names_the_field() {
        #[derive(Debug, Deserialize)]
        struct Config {
            #[expect(dead_code, reason = "only read")]
            layers: usize,
        }
        let fields = json!({"layers": 0.5});
        let error = read_fields::<Config>(Path::new("config.json"), fields.as_object().unwrap())
            .unwrap_err();
        assert!(error.to_string().starts_with("config.json: layers: "), "{error}");
    }

    #[test]
    fn a_name_that_stands_there_twice_is_refused() {
        let error =
            serde_json::from_str::<crate::files::read::Unique<u32>>(r#"{"a": 1, "b": 2, "a": 3}"#)
                .err()
                .unwrap();
        assert!(error.to_string().contains("a stands there twice"), "{error}");
    }
}
