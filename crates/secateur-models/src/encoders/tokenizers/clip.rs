//! CLIP's byte-pair tokenizer.

use crate::encoders::tokenizers::{CONFIG, Vocabulary, row_length};
use crate::error::{Result, invalid};
use crate::files::{Limit, read_json, read_text};
use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use std::path::Path;

/// Turns prompts into rows of token numbers of one length: the start, the text cut to fit, the end,
/// and padding.
#[derive(Clone, Debug)]
pub struct ClipTokenizer {
    vocabulary: Vocabulary,
    start: u32,
    end: u32,
    padding: u32,
    length: usize,
}

/// How CLIP splits text into words before the byte-pair merges.
const WORDS: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

impl ClipTokenizer {
    /// Opens a tokenizer folder: `tokenizer.json`, or `vocab.json` and `merges.txt`, with
    /// `tokenizer_config.json`.
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
        let length = row_length(&folder.join(CONFIG), &vocabulary.config)?;
        Ok(Self { vocabulary, start, end, padding, length })
    }

    /// Number of tokens in a row.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// The end of a text that is cut because it is too long. `None` if it fits.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn cut<'a>(&self, text: &'a str) -> Result<Option<&'a str>> {
        self.vocabulary.cut(text, self.length - 2)
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
    let merges = read_text(&path, Limit::Config)?;
    let merges: Vec<&str> =
        merges.lines().filter(|l| !l.starts_with("#version") && !l.is_empty()).collect();
    // Others are added with those of the other files.
    let tokens = ["<|startoftext|>", "<|endoftext|>"];
    if let Some(token) = tokens.iter().find(|token| vocab.get(**token).is_none()) {
        invalid!(folder.join("vocab.json"), "lacks the token {token}");
    }
    let special = |token: &str| {
        json!({
            "id": vocab.get(token), "content": token, "single_word": false, "lstrip": false,
            "rstrip": false,
            "normalized": false, "special": true,
        })
    };
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
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": true},
        ]},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<|endoftext|>",
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>", "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": false,
            "vocab": vocab, "merges": merges,
        },
    }))
}
