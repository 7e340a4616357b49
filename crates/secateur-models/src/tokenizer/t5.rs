//! T5's unigram tokenizer.

use super::Vocabulary;
use crate::error::{Error, Result};
use crate::files::{Limit, read_json};
use candle_core::{Device, Tensor};
use std::path::Path;

/// Turns prompts into rows of token numbers of one length: text cut to fit, end, padding.
#[derive(Clone, Debug)]
pub struct T5Tokenizer {
    vocabulary: Vocabulary,
    end: u32,
    padding: u32,
}

impl T5Tokenizer {
    /// Opens a tokenizer folder: `tokenizer.json` with `tokenizer_config.json`.
    ///
    /// # Errors
    /// If a file is missing or damaged, or a special token is not in the vocabulary.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        if !path.is_file() && folder.join("spiece.model").is_file() {
            let problem = "spiece.model cannot be read, and there is no tokenizer.json. This Python writes one: \
                           folder = \"...\"; transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)";
            return Err(Error::invalid(folder, problem));
        }
        let definition = read_json(&path, Limit::Vocabulary)?;
        let vocabulary = Vocabulary::new(folder, path, &definition)?;
        let (end, padding) = (vocabulary.special("eos_token", "</s>")?, vocabulary.special("pad_token", "<pad>")?);
        Ok(Self { vocabulary, end, padding })
    }

    /// Token numbers of several texts (u32), and 1 for each that is not padding, else 0 (f32): texts x `length` both.
    ///
    /// # Errors
    /// If there is no room for the end token, or the tokenizer fails.
    pub fn encode_batch(&self, texts: &[String], length: usize) -> Result<(Tensor, Tensor)> {
        let Some(room) = length.checked_sub(1) else {
            return Err(Error::Request("a row of T5 tokens must hold at least 1".into()));
        };
        let (mut ids, mut mask) = (Vec::new(), Vec::new());
        for text in texts {
            let mut row = self.vocabulary.ids(text)?;
            row.truncate(room);
            row.push(self.end);
            mask.extend((0..length).map(|place| if place < row.len() { 1f32 } else { 0.0 }));
            row.resize(length, self.padding);
            ids.extend(row);
        }
        let shape = (texts.len(), length);
        Ok((Tensor::from_vec(ids, shape, &Device::Cpu)?, Tensor::from_vec(mask, shape, &Device::Cpu)?))
    }
}
