//! Options of a configuration, and the bounds of their numbers.

use crate::error::{self, Error};
use crate::files::{Limit, read_json};
use serde::de::value::{BorrowedStrDeserializer, MapAccessDeserializer};
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::{Map, Value};
use std::fmt;
use std::marker::PhantomData;
use std::path::Path;

/// No size of a model is larger.
pub(crate) const LARGEST: usize = 65535;
/// No stack of layers is higher, all levels of a model together.
pub(crate) const MOST_LAYERS: usize = 1024;
/// No latents, pictures or tables of positions are higher or wider.
const LARGEST_SIDE: usize = 4096;
/// No square that becomes a token has longer sides.
const LARGEST_PATCH: usize = 256;
/// No vocabulary is larger.
const LARGEST_VOCABULARY: usize = 1 << 20;
/// No list of a configuration is longer.
const LONGEST_LIST: usize = 4096;

/// Refuses an option whose value is not the one of `supported`, which is also what it is where it is absent.
///
/// # Errors
/// If there is one, with its name and value.
pub(crate) fn only(options: &Map<String, Value>, supported: &[(&str, Value)]) -> Result<(), String> {
    let same = |found: &Value, value: &Value| found == value || (value.is_number() && found.as_f64() == value.as_f64());
    for (name, value) in supported {
        if let Some(found) = options.get(*name).filter(|found| !same(found, value)) {
            return Err(format!("{name} {found} is not supported; {value} is"));
        }
    }
    Ok(())
}

/// Reads a configuration.
///
/// # Errors
/// If it cannot be read, a number in it is larger than any model's, or a field is not of its type.
pub(crate) fn read_config<T: DeserializeOwned>(path: &Path) -> error::Result<T> {
    read_fields(path, &config_fields(path)?)
}

/// The fields of a configuration.
///
/// # Errors
/// If it cannot be read, or a number in it is larger than any model's: sizes made of such ones would overflow, and as
/// many layers not fit the memory.
pub(crate) fn config_fields(path: &Path) -> error::Result<Map<String, Value>> {
    let fields: Map<String, Value> = read_json(path, Limit::Config)?;
    check_numbers(&fields, most).map_err(|problem| Error::invalid(path, problem))?;
    Ok(fields)
}

/// A configuration of its fields.
///
/// # Errors
/// If one is not of its type.
pub(crate) fn read_fields<T: DeserializeOwned>(path: &Path, fields: &Map<String, Value>) -> error::Result<T> {
    let fields = Fields { left: fields.iter(), next: None };
    T::deserialize(MapAccessDeserializer::new(fields)).map_err(|error| Error::invalid(path, error))
}

/// Refuses numbers above what `most` says of a field, wherever they stand in `fields`, their negatives, and long lists.
///
/// # Errors
/// If there is one, with its name and value.
pub(crate) fn check_numbers(fields: &Map<String, Value>, most: fn(&str) -> f64) -> Result<(), String> {
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
pub(crate) fn check_layers(fields: &str, layers: impl IntoIterator<Item = usize>) -> Result<(), String> {
    let count = layers.into_iter().fold(0, usize::saturating_add);
    match count > MOST_LAYERS {
        true => Err(format!("{fields} make {count} layers, and no model has more than {MOST_LAYERS}")),
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
        None => Err(format!("{} {} x {} {} is wider than any model, {LARGEST}", heads.0, heads.1, size.0, size.1)),
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

/// An object with its entries in their order, each name of which stands there once.
pub(crate) struct Unique<V>(pub(crate) Vec<(String, V)>);

impl<'de, V: serde::Deserialize<'de>> serde::Deserialize<'de> for Unique<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Entries<V>(PhantomData<V>);
        impl<'de, V: serde::Deserialize<'de>> Visitor<'de> for Entries<V> {
            type Value = Unique<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
                let (mut entries, mut names) = (Vec::new(), std::collections::HashSet::new());
                while let Some(name) = map.next_key::<String>()? {
                    if !names.insert(name.clone()) {
                        return Err(A::Error::custom(format!("{name} stands there twice")));
                    }
                    let value = map.next_value().map_err(|error| A::Error::custom(format!("{name}: {error}")))?;
                    entries.push((name, value));
                }
                Ok(Unique(entries))
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

/// Fields on their way into a structure; an error names the field.
struct Fields<'a> {
    left: serde_json::map::Iter<'a>,
    next: Option<(&'a String, &'a Value)>,
}

impl<'de> MapAccess<'de> for Fields<'de> {
    type Error = serde_json::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> serde_json::Result<Option<K::Value>> {
        self.next = self.left.next();
        self.next.map(|(name, _)| seed.deserialize(BorrowedStrDeserializer::new(name))).transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> serde_json::Result<V::Value> {
        let Some((name, value)) = self.next.take() else { return Err(Self::Error::custom("a value without a name")) };
        seed.deserialize(value).map_err(|error| Self::Error::custom(format!("{name}: {error}")))
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
            "d_ff": 10240, "vocab_size": 262_208, "eos_token_id": [49407, 151_643], "image_size": 1024, "num_layers": 48,
            "initializer_factor": 1.0, "logit_scale_init_value": 2.6592, "freq_shift": -1, "axes_dims_rope": [16, 56, 56],
        });
        checked(fields).unwrap();
    }

    #[test]
    fn a_number_beyond_any_model_is_refused_wherever_it_stands() {
        for (value, words) in [
            (json!({"in_channels": u64::MAX}), "in_channels 18446744073709551615"),
            (json!({"text_config": {"num_hidden_layers": 1025}}), "text_config.num_hidden_layers 1025"),
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
        let error = read_fields::<Config>(Path::new("config.json"), fields.as_object().unwrap()).unwrap_err();
        assert!(error.to_string().starts_with("config.json: layers: "), "{error}");
    }

    #[test]
    fn a_name_that_stands_there_twice_is_refused() {
        let error = serde_json::from_str::<Unique<u32>>(r#"{"a": 1, "b": 2, "a": 3}"#).err().unwrap();
        assert!(error.to_string().contains("a stands there twice"), "{error}");
    }
}
