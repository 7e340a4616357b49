//! Settings as text, in the form of the command line.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use serde_json::Value;
use std::fmt::Display;
use std::str::FromStr;

#[expect(clippy::ref_option, reason = "the shape that serde calls")]
pub(super) fn serialize<T: Display, S: Serializer>(
    value: &Option<T>,
    to: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => to.collect_str(value),
        None => to.serialize_none(),
    }
}

pub(super) fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<T>, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    text.map(|text| text.parse().map_err(D::Error::custom)).transpose()
}

/// Returns settings as options of a command line, such as `--steps=5`. Settings that are not given
/// are left out.
///
/// # Errors
/// If a path is not valid UTF-8.
pub fn options(settings: &impl Serialize) -> serde_json::Result<Vec<String>> {
    let Value::Object(settings) = serde_json::to_value(settings)? else { return Ok(Vec::new()) };
    let mut options = Vec::new();
    // The name of a method is that of its command.
    for (name, value) in settings.into_iter().filter(|(name, _)| name != "name") {
        let values = match value {
            Value::Array(values) => values,
            Value::Null | Value::Bool(false) => Vec::new(),
            value => vec![value],
        };
        options.extend(values.iter().map(|value| match value {
            Value::Bool(_) => format!("--{name}"),
            Value::String(text) => format!("--{name}={text}"),
            value => format!("--{name}={value}"),
        }));
    }
    Ok(options)
}
