//! From prompts to token numbers: CLIP's byte pairs and T5's unigrams.

mod clip;
mod t5;

pub use clip::ClipTokenizer;
pub use t5::T5Tokenizer;

use crate::error::{Error, Result};
use crate::files::{Limit, read_json};
use crate::options::LARGEST;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use tokenizers::Tokenizer;

/// What a tokenizer folder says: the tokenizer itself, which here neither cuts nor pads, and its configuration.
#[derive(Clone, Debug)]
struct Vocabulary {
    tokenizer: Tokenizer,
    config: Value,
    /// The file that defines it.
    path: PathBuf,
}

impl Vocabulary {
    /// Of the `definition` in the file `path` of `folder`.
    fn new(folder: &Path, path: PathBuf, definition: &Value) -> Result<Self> {
        let config = config(folder)?;
        let invalid = |error| Error::invalid(&path, error);
        let mut tokenizer: Tokenizer = definition.to_string().parse().map_err(invalid)?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(invalid)?;
        Ok(Self { tokenizer, config, path })
    }

    /// The number of the special token that the configuration names under `key`.
    fn special(&self, key: &str, default: &str) -> Result<u32> {
        let token = self.config.get(key).and_then(content).unwrap_or(default);
        let missing = || Error::invalid(&self.path, format!("{key} {token:?} is not in the vocabulary"));
        self.tokenizer.token_to_id(token).ok_or_else(missing)
    }

    /// Token numbers of a text, without those that begin and end it.
    fn ids(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, false);
        let encoding = encoding.map_err(|e| Error::Request(format!("cannot tokenize {text:?}: {e}")))?;
        Ok(encoding.get_ids().to_vec())
    }
}

/// `tokenizer_config.json`, with what older folders say of special tokens in `special_tokens_map.json`, as transformers
/// reads them.
fn config(folder: &Path) -> Result<Value> {
    let mut config: Map<String, Value> = read_json(&folder.join("tokenizer_config.json"), Limit::Config)?;
    let map = folder.join("special_tokens_map.json");
    if map.is_file() && !config.contains_key("added_tokens_decoder") {
        config.extend(read_json::<Map<String, Value>>(&map, Limit::Config)?);
    }
    Ok(config.into())
}

/// The text of a token, which a configuration gives as it is or with its options.
fn content(token: &Value) -> Option<&str> {
    token.get("content").unwrap_or(token).as_str()
}

/// Tokens of a row of CLIP, by `model_max_length` in the configuration that `path` holds; 77 where it does not say.
///
/// # Errors
/// If it is a number that cannot be used.
pub(crate) fn row_length(path: &Path, config: &Value) -> Result<usize> {
    const DEFAULT: usize = 77;
    const LARGEST_ROW: u64 = LARGEST as u64;
    /// What transformers writes where there is no limit is 1e30, and this the least that it takes for such a number.
    const NO_LIMIT: f64 = 1e20;
    let Some(length) = config.get("model_max_length").filter(|length| !length.is_null()) else { return Ok(DEFAULT) };
    match (length.as_u64(), length.as_f64()) {
        (Some(length @ 2..=LARGEST_ROW), _) => Ok(length as usize),
        (_, Some(length)) if length >= NO_LIMIT => Ok(DEFAULT),
        _ => Err(Error::invalid(path, format!("model_max_length {length} is not a number of 2 to {LARGEST} tokens"))),
    }
}
