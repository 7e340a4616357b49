//! CLIP's byte-pair tokenizer.

use super::{Vocabulary, content, row_length};
use crate::error::{Error, Result};
use crate::files::{Limit, read_json, read_text};
use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Turns prompts into rows of token numbers of one length: start, text cut to fit, end, padding.
#[derive(Clone, Debug)]
pub struct ClipTokenizer {
    vocabulary: Vocabulary,
    start: u32,
    end: u32,
    padding: u32,
    length: usize,
}

/// How CLIP splits text into words before the byte-pair merges.
const WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

impl ClipTokenizer {
    /// Opens a tokenizer folder: `tokenizer.json`, or `vocab.json` and `merges.txt`, with `tokenizer_config.json`.
    ///
    /// # Errors
    /// If a file is missing or damaged, or a special token is not in the vocabulary.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let (path, definition) = if path.is_file() {
            let definition = read_json(&path, Limit::Vocabulary)?;
            (path, definition)
        } else {
            (folder.join("vocab.json"), definition(folder)?)
        };
        let vocabulary = Vocabulary::new(folder, path, &definition)?;
        let start = vocabulary.special("bos_token", "<|startoftext|>")?;
        let end = vocabulary.special("eos_token", "<|endoftext|>")?;
        let padding = vocabulary.special("pad_token", "<|endoftext|>")?;
        let length = row_length(&folder.join("tokenizer_config.json"), &vocabulary.config)?;
        Ok(Self { vocabulary, start, end, padding, length })
    }

    /// Tokens a row.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// Token numbers of one text.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = vec![self.start];
        ids.extend(self.vocabulary.ids(text)?.into_iter().take(self.length - 2));
        ids.push(self.end);
        ids.resize(self.length, self.padding);
        Ok(ids)
    }

    /// Token numbers of several texts: texts x [`ClipTokenizer::length`], u32.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn encode_batch(&self, texts: &[String]) -> Result<Tensor> {
        let mut ids = Vec::with_capacity(texts.len() * self.length);
        for text in texts {
            ids.extend(self.encode(text)?);
        }
        Ok(Tensor::from_vec(ids, (texts.len(), self.length), &Device::Cpu)?)
    }
}

/// The definition that `tokenizer.json` would hold, from the two older files.
fn definition(folder: &Path) -> Result<Value> {
    let vocab: Value = read_json(&folder.join("vocab.json"), Limit::Vocabulary)?;
    let path = folder.join("merges.txt");
    let merges = read_text(&path, Limit::Vocabulary)?;
    let merges: Vec<&str> = merges.lines().filter(|l| !l.starts_with("#version") && !l.is_empty()).collect();
    let special = |token: &str, options: &Value| {
        let option = |name: &str| options.get(name).and_then(Value::as_bool).unwrap_or(false);
        json!({
            "id": vocab.get(token), "content": token, "single_word": option("single_word"), "lstrip": option("lstrip"),
            "rstrip": option("rstrip"), "normalized": option("normalized"), "special": true,
        })
    };
    let config = super::config(folder)?;
    let mut tokens: BTreeMap<&str, Value> =
        ["<|startoftext|>", "<|endoftext|>"].into_iter().map(|token| (token, special(token, &Value::Null))).collect();
    // A token with a meaning of its own, such as SDXL's padding "!", is one wherever it stands in a text.
    let named = ["bos_token", "eos_token", "unk_token", "pad_token"].iter().filter_map(|key| config.get(*key));
    let added = config.get("added_tokens_decoder").and_then(Value::as_object);
    for token in named.chain(added.into_iter().flat_map(|added| added.values())) {
        if let Some(text) = content(token) {
            tokens.insert(text, special(text, token));
        }
    }
    if let Some(token) = tokens.keys().find(|token| vocab.get(**token).is_none()) {
        return Err(Error::invalid(folder.join("vocab.json"), format!("lacks the token {token}")));
    }
    Ok(json!({
        "version": "1.0",
        "added_tokens": tokens.values().collect::<Vec<_>>(),
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
            {"type": "Lowercase"},
        ]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Removed", "invert": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        ]},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<|endoftext|>", "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": merges,
        },
    }))
}
