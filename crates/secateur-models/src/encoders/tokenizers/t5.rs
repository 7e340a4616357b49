//! T5's unigram tokenizer.

use crate::encoders::tokenizers::{CONFIG, Vocabulary, config, sentencepiece};
use crate::error::{Error, Result};
use crate::files::{Limit, read_json};
use candle_core::{Device, Tensor};
use serde_json::Value;
use std::path::Path;

/// The most tokens that stand for gaps in a text.
const MOST_EXTRA_IDS: u64 = 1000;

/// Turns prompts into rows of token numbers of one length: the text cut to fit, the end, and
/// padding.
#[derive(Clone, Debug)]
pub struct T5Tokenizer {
    vocabulary: Vocabulary,
    end: u32,
    padding: u32,
}

impl T5Tokenizer {
    /// Opens a tokenizer folder: `tokenizer.json` or `spiece.model`, with `tokenizer_config.json`.
    ///
    /// # Errors
    /// If a file is missing or damaged, or a special token is not in the vocabulary.
    pub fn open(folder: &Path) -> Result<Self> {
        let (path, pieces) = (folder.join("tokenizer.json"), folder.join("spiece.model"));
        let (path, definition) = match !path.is_file() && pieces.is_file() {
            true => {
                let definition = sentencepiece::definition(&pieces, extra_ids(folder)?)?;
                (pieces, definition)
            }
            false => {
                let definition = read_json(&path, Limit::Vocabulary)?;
                (path, definition)
            }
        };
        let vocabulary = Vocabulary::new(folder, path, &definition)?;
        let (end, padding) =
            (vocabulary.special("eos_token", "</s>")?, vocabulary.special("pad_token", "<pad>")?);
        Ok(Self { vocabulary, end, padding })
    }

    /// The end of a text that is cut because it is too long for `length` tokens. `None` if it fits.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn cut<'a>(&self, text: &'a str, length: usize) -> Result<Option<&'a str>> {
        self.vocabulary.cut(text, length.saturating_sub(1))
    }

    /// Token numbers of several texts (u32), and their mask (f32): 1 for a token that is not
    /// padding, else 0. Both are texts x `length`.
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
        Ok((
            Tensor::from_vec(ids, shape, &Device::Cpu)?,
            Tensor::from_vec(mask, shape, &Device::Cpu)?,
        ))
    }
}

/// How many tokens for gaps in a text a `spiece.model` lacks: those of the configuration, which may
/// list them itself.
fn extra_ids(folder: &Path) -> Result<usize> {
    const DEFAULT: u64 = 100;
    let config = config(folder)?;
    match config.get("extra_ids") {
        _ if config.get("added_tokens_decoder").is_some() => Ok(0),
        None | Some(Value::Null) => Ok(DEFAULT as usize),
        Some(count) => match count.as_u64().filter(|count| *count <= MOST_EXTRA_IDS) {
            Some(count) => Ok(count as usize),
            None => {
                let problem = format!("extra_ids {count} is not a number of 0 to {MOST_EXTRA_IDS}");
                Err(Error::invalid(folder.join(CONFIG), problem))
            }
        },
    }
}
