//! CLIP's byte-pair tokenizer.

use crate::error::{Error, Result, read_json};
use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use std::path::Path;
use tokenizers::Tokenizer;

/// Turns prompts into rows of token numbers of one length: start, text cut to fit, end, padding.
#[derive(Clone, Debug)]
pub struct ClipTokenizer {
    tokenizer: Tokenizer,
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
        let config_path = folder.join("tokenizer_config.json");
        let config: Value = read_json(&config_path)?;
        let path = folder.join("tokenizer.json");
        let (path, definition) = if path.is_file() {
            let definition = read_json(&path)?;
            (path, definition)
        } else {
            (folder.join("vocab.json"), definition(folder)?)
        };
        let invalid = |problem: String| Error::invalid(&path, problem);
        let mut tokenizer: Tokenizer = definition.to_string().parse().map_err(|e| invalid(format!("{e}")))?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| invalid(format!("{e}")))?;
        let special = |key: &str, default: &str| {
            let value = config.get(key).map(|v| v.get("content").unwrap_or(v));
            let token = value.and_then(Value::as_str).unwrap_or(default);
            tokenizer.token_to_id(token).ok_or_else(|| invalid(format!("{key} {token:?} is not in the vocabulary")))
        };
        let end = special("eos_token", "<|endoftext|>")?;
        let (start, padding) = (special("bos_token", "<|startoftext|>")?, special("pad_token", "<|endoftext|>")?);
        let length = config.get("model_max_length").and_then(Value::as_u64).unwrap_or(77) as usize;
        if !(2..=1 << 20).contains(&length) {
            return Err(Error::invalid(config_path, format!("model_max_length {length} cannot be used")));
        }
        Ok(Self { tokenizer, start, end, padding, length })
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
        let encoding = self.tokenizer.encode_fast(text, false);
        let encoding = encoding.map_err(|e| Error::Request(format!("cannot tokenize {text:?}: {e}")))?;
        let mut ids = vec![self.start];
        ids.extend(encoding.get_ids().iter().take(self.length - 2));
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
    let vocab: Value = read_json(&folder.join("vocab.json"))?;
    let path = folder.join("merges.txt");
    let merges = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    let merges: Vec<&str> = merges.lines().filter(|l| !l.starts_with("#version") && !l.is_empty()).collect();
    let special = |token: &str| {
        json!({
            "id": vocab.get(token), "content": token, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        })
    };
    let tokens = ["<|startoftext|>", "<|endoftext|>"];
    if let Some(token) = tokens.iter().find(|token| vocab.get(**token).is_none()) {
        return Err(Error::invalid(folder.join("vocab.json"), format!("lacks the token {token}")));
    }
    Ok(json!({
        "version": "1.0",
        "added_tokens": tokens.map(special),
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

pub struct T5Tokenizer;
impl T5Tokenizer {
    pub fn open(_: &Path) -> Result<Self> {
        Ok(Self)
    }
    pub fn encode_batch(&self, _: &[String], _: usize) -> Result<(Tensor, Tensor)> {
        Err(Error::Request(String::new()))
    }
}
