//! Tokenizers, from prompts to token numbers: CLIP's byte pairs and T5's unigrams.

mod clip;
mod sentencepiece;
mod t5;

use crate::error::{Error, Result, invalid};
use crate::files::options::names;
use crate::files::{LARGEST, Limit, Options, read_json};
pub use clip::ClipTokenizer;
pub use t5::T5Tokenizer;

use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tokenizers::{AddedToken, Tokenizer};

/// The content of a tokenizer folder: its configuration, and the tokenizer, which here neither cuts
/// nor pads.
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
        let config = checked_config(folder)?;
        let invalid = |error| Error::invalid(&path, error);
        let mut tokenizer: Tokenizer = definition.to_string().parse().map_err(invalid)?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(invalid)?;
        for Added { file, number, token } in added_tokens(folder, &config)? {
            let content = token.content.clone();
            let problem = |problem: String| {
                Error::invalid(folder.join(file), format!("token {content:?} {problem}"))
            };
            if number.is_none() && tokenizer.token_to_id(&content).is_none() {
                return Err(problem("is not in the vocabulary".into()));
            }
            tokenizer.add_tokens([token]).map_err(|error| problem(error.to_string()))?;
            let found = tokenizer.token_to_id(&content);
            if number.is_some_and(|number| found.map(u64::from) != Some(number)) {
                let found = found.map_or("none".into(), |found| found.to_string());
                return Err(problem(format!(
                    "has number {}, and {found} by the vocabulary",
                    number.unwrap_or(0)
                )));
            }
        }
        Ok(Self { tokenizer, config, path })
    }

    /// The number of the special token that the configuration names under `key`.
    fn special(&self, key: &str, default: &str) -> Result<u32> {
        let token = self.config.get(key).and_then(content).unwrap_or(default);
        let missing =
            || Error::invalid(&self.path, format!("{key} {token:?} is not in the vocabulary"));
        self.tokenizer.token_to_id(token).ok_or_else(missing)
    }

    /// The end of a text of more than `room` tokens, from the first that has no room.
    fn cut<'a>(&self, text: &'a str, room: usize) -> Result<Option<&'a str>> {
        let encoding = self.tokenizer.encode(text, false);
        let encoding =
            encoding.map_err(|e| Error::Request(format!("cannot tokenize {text:?}: {e}")))?;
        let first = encoding.get_offsets().get(room).map(|(start, _)| *start);
        Ok(first.map(|start| text.get(start..).unwrap_or(text).trim()))
    }

    /// Token numbers of a text, without those that begin and end it.
    fn ids(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, false);
        let encoding =
            encoding.map_err(|e| Error::Request(format!("cannot tokenize {text:?}: {e}")))?;
        Ok(encoding.get_ids().to_vec())
    }
}

/// The configuration of a tokenizer; a folder need not have one.
pub(crate) const CONFIG: &str = "tokenizer_config.json";
/// Where older folders say which tokens are special.
const SPECIAL: &str = "special_tokens_map.json";
/// And which tokens were added to the vocabulary.
const ADDED: &str = "added_tokens.json";

/// `tokenizer_config.json`, with what older folders say of special tokens in
/// `special_tokens_map.json`, as transformers reads them.
pub(crate) fn config(folder: &Path) -> Result<Value> {
    let read = |name: &str| {
        let path = folder.join(name);
        let there = path.exists().then(|| read_json::<Map<String, Value>>(&path, Limit::Config));
        Ok::<_, Error>(there.transpose()?.unwrap_or_default())
    };
    let mut config = read(CONFIG)?;
    if !config.contains_key("added_tokens_decoder") {
        config.extend(read(SPECIAL)?);
    }
    Ok(config.into())
}

/// [`config`], whose options are all known.
///
/// # Errors
/// If one is not supported.
pub(crate) fn checked_config(folder: &Path) -> Result<Value> {
    let config = config(folder)?;
    if let Value::Object(fields) = &config {
        Options::new(&folder.join(CONFIG), fields)
            .finish(&supported(), &[&NAMED[..], &UNREAD].concat())?;
    }
    Ok(config)
}

/// The special tokens that a configuration may name.
const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Options with a single supported value, which is also their default.
fn supported() -> [(&'static str, Value); 8] {
    [
        ("add_bos_token", json!(true)),
        ("add_eos_token", json!(true)),
        ("from_slow", json!(false)),
        ("padding_side", json!("right")),
        ("sp_model_kwargs", json!({})),
        ("split_special_tokens", json!(false)),
        ("truncation_side", json!("right")),
        ("pad_to_multiple_of", Value::Null),
    ]
}

/// Options that are read elsewhere, or change nothing here: what wrote the file, how a row is
/// filled that is not asked to be, and how texts are made of tokens.
const UNREAD: [&str; 33] = names! {
    add_prefix_space added_tokens_decoder additional_special_tokens backend chat_template
    clean_up_tokenization_spaces do_lower_case errors extra_ids extra_special_tokens fix_text
    init_inputs is_local legacy local_files_only max_length model_input_names model_max_length
    name_or_path pad_token_type_id padding processor_class return_tensors special_tokens_map_file
    stride token_type_ids_pattern tokenizer_class tokenizer_file tokenizer_object truncation
    truncation_strategy use_fast vocab_file
};

/// A token that is one wherever it stands in a text, whatever the file that says so.
struct Added {
    file: &'static str,
    /// Its number, where that is given; else it has to be in the vocabulary.
    number: Option<u64>,
    token: AddedToken,
}

/// The tokens that a folder adds, by number, and its special ones: as transformers, which takes
/// them from all of these files for tokenizers of both kinds. Those that `tokenizer.json` has as
/// well change nothing.
fn added_tokens(folder: &Path, config: &Value) -> Result<Vec<Added>> {
    let mut added = BTreeMap::new();
    let path = folder.join(ADDED);
    match config.get("added_tokens_decoder").and_then(Value::as_object) {
        Some(tokens) => {
            for (number, token) in tokens {
                let fields = number.parse::<u64>().ok().zip(content(token));
                let problem =
                    || format!("added_tokens_decoder: {number:?} is not the number of a token");
                let (number, text) =
                    fields.ok_or_else(|| Error::invalid(folder.join(CONFIG), problem()))?;
                added.insert(number, (CONFIG, added_token(text, token)));
            }
        }
        None if path.exists() => {
            for (text, number) in read_json::<BTreeMap<String, u64>>(&path, Limit::Vocabulary)? {
                added.insert(number, (ADDED, AddedToken::from(text, false)));
            }
        }
        None => {}
    }
    let added = added.into_iter().map(|(number, (file, token))| Added {
        file,
        number: Some(number),
        token,
    });
    let more = ["additional_special_tokens", "extra_special_tokens"]
        .map(|key| config.get(key).and_then(Value::as_array));
    let special =
        NAMED.iter().filter_map(|key| config.get(*key)).chain(more.into_iter().flatten().flatten());
    let special = special.filter_map(|token| content(token).map(|text| (text, token)));
    // The file that names them is one of two.
    let special = special.map(|(text, token)| Added {
        file: CONFIG,
        number: None,
        token: AddedToken { special: true, ..added_token(text, token) },
    });
    Ok(added.chain(special).collect())
}

fn added_token(text: &str, options: &Value) -> AddedToken {
    let option = |name: &str| options.get(name).and_then(Value::as_bool).unwrap_or(false);
    AddedToken {
        content: text.to_owned(),
        single_word: option("single_word"),
        lstrip: option("lstrip"),
        rstrip: option("rstrip"),
        normalized: option("normalized"),
        special: option("special"),
    }
}

/// The text of a token, which a configuration gives as it is or with its options.
fn content(token: &Value) -> Option<&str> {
    token.get("content").unwrap_or(token).as_str()
}

/// Number of tokens in a row of CLIP: `model_max_length` of the configuration, which was read from
/// `path`, or else 77.
///
/// # Errors
/// If it is a number that cannot be used.
pub(crate) fn row_length(path: &Path, config: &Value) -> Result<usize> {
    const DEFAULT: usize = 77;
    const LARGEST_ROW: u64 = LARGEST as u64;
    /// What transformers writes where there is no limit is 1e30, and this the least that it takes
    /// for such a number.
    const NO_LIMIT: f64 = 1e20;
    let Some(length) = config.get("model_max_length").filter(|length| !length.is_null()) else {
        return Ok(DEFAULT);
    };
    match (length.as_u64(), length.as_f64()) {
        (Some(length @ 2..=LARGEST_ROW), _) => Ok(length as usize),
        (_, Some(length)) if length >= NO_LIMIT => Ok(DEFAULT),
        _ => invalid!(path, "model_max_length {length} is not a number of 2 to {LARGEST} tokens"),
    }
}

#[cfg(test)]
mod tests {
    use super::ClipTokenizer;
    use serde_json::{Value, json};
    use std::path::Path;

    /// The bundled tokenizer with `files` changed: of vocabulary and merges where `slow`, else of
    /// `tokenizer.json`.
    fn open(slow: bool, files: &[(&str, Value)]) -> Result<ClipTokenizer, String> {
        let folder = tempfile::tempdir().unwrap();
        let source =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/emoji-unet/tokenizer");
        for entry in std::fs::read_dir(source).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
        if slow {
            std::fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
        }
        for (name, change) in files {
            let path = folder.path().join(name);
            let mut json: Value = std::fs::read_to_string(&path)
                .map_or(json!({}), |text| serde_json::from_str(&text).unwrap());
            match (change, json.as_object_mut()) {
                (Value::Null, _) => std::fs::remove_file(&path).unwrap(),
                (change, Some(fields)) => {
                    fields.extend(change.as_object().unwrap().clone());
                    std::fs::write(&path, json.to_string()).unwrap();
                }
                _ => panic!("{name} is no object"),
            }
        }
        ClipTokenizer::open(folder.path()).map_err(|error| error.to_string())
    }

    /// Numbers without those that begin, end and fill a row.
    fn ids(tokenizer: &ClipTokenizer, text: &str) -> Vec<u32> {
        let row = tokenizer.encode(text).unwrap();
        // The end token fills the row too, but where another one is named for that.
        let end = row.iter().position(|id| *id == 2013).unwrap();
        row[1..end].to_vec()
    }

    /// A token is the same whichever file adds it, as in transformers: number 2014 in `a <cat-toy>
    /// apple`.
    #[test]
    fn an_added_token_of_any_file() {
        let options = |content: &str, special: bool| {
            json!({"content": content,
            "normalized": !special, "special": special})
        };
        let decoder = json!({"added_tokens_decoder": {
            "2012": options("<|startoftext|>", true), "2013": options("<|endoftext|>", true),
            "2014": options("<cat-toy>", false),
        }});
        let plain = open(false, &[]).unwrap();
        let (a, apple) = (ids(&plain, "a"), ids(&plain, "apple"));
        let expected = [a, vec![2014], apple].concat();
        for slow in [false, true] {
            for (name, change) in [
                ("tokenizer_config.json", decoder.clone()),
                ("added_tokens.json", json!({"<cat-toy>": 2014})),
            ] {
                let tokenizer = open(slow, &[(name, change)]).unwrap();
                assert_eq!(ids(&tokenizer, "a <cat-toy> apple"), expected, "{name}, slow {slow}");
                assert_eq!(
                    ids(&tokenizer, "a red apple"),
                    ids(&plain, "a red apple"),
                    "{name}, slow {slow}"
                );
            }
            let error =
                open(slow, &[("added_tokens.json", json!({"<cat-toy>": 2500}))]).unwrap_err();
            assert!(
                error.contains("added_tokens.json: token \"<cat-toy>\" has number 2500"),
                "{error}"
            );
        }
    }

    /// SDXL's padding "!" is token 0 wherever it stands in a text.
    #[test]
    fn a_special_token_in_a_text() {
        let pad = || json!({"pad_token": "!"});
        let slow =
            open(true, &[("special_tokens_map.json", pad()), ("tokenizer_config.json", pad())])
                .unwrap();
        let fast =
            open(false, &[("special_tokens_map.json", pad()), ("tokenizer_config.json", pad())])
                .unwrap();
        let of_both = [&slow, &fast].map(|tokenizer| ids(tokenizer, "red apple! wow"));
        assert_eq!(of_both[0], of_both[1]);
        assert!(of_both[0].contains(&0), "{of_both:?}");
        assert!(!ids(&open(false, &[]).unwrap(), "red apple! wow").contains(&0));
        let error = open(false, &[("special_tokens_map.json", json!({"pad_token": "<no such>"}))])
            .unwrap_err();
        assert!(error.contains("token \"<no such>\" is not in the vocabulary"), "{error}");
    }

    #[test]
    fn a_folder_without_a_configuration() {
        let without = open(false, &[("tokenizer_config.json", Value::Null)]).unwrap();
        assert_eq!(ids(&without, "a red apple"), ids(&open(false, &[]).unwrap(), "a red apple"));
        assert_eq!(without.length(), 77);
    }
}
