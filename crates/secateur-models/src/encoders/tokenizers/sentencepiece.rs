//! `spiece.model`: the vocabulary of a unigram tokenizer as the sentencepiece library writes it, in
//! protocol buffers (`sentencepiece_model.proto`).

use crate::error::{Error, Result};
use crate::files::{Limit, read_bytes};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::path::Path;

/// One field of a message.
enum Field<'a> {
    Number(u64),
    /// A message, a text or bytes.
    Bytes(&'a [u8]),
    Float(f32),
}

/// The fields of a message, each with its number.
struct Message<'a>(&'a [u8]);

impl<'a> Message<'a> {
    /// The first `count` bytes.
    fn take(&mut self, count: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(count).ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    /// A number of seven bits a byte, the lowest first.
    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn field(&mut self) -> Option<(u64, Field<'a>)> {
        let key = self.number()?;
        let field = match key & 7 {
            0 => Field::Number(self.number()?),
            1 => Field::Bytes(self.take(8)?),
            2 => {
                let length = self.number()?;
                Field::Bytes(self.take(length)?)
            }
            5 => Field::Float(f32::from_le_bytes(self.take(4)?.try_into().ok()?)),
            _ => return None,
        };
        Some((key >> 3, field))
    }
}

impl<'a> Iterator for Message<'a> {
    /// None for what is no field.
    type Item = Option<(u64, Field<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field)
    }
}

/// The content of a `spiece.model`.
struct Model {
    /// Text and score of each piece.
    pieces: Vec<(String, f32)>,
    /// The numbers of those that stand for no text.
    special: Vec<usize>,
    /// UNIGRAM is 1.
    model_type: u64,
    unk_id: u64,
    byte_fallback: bool,
    /// The table that maps characters before the text is split.
    charsmap: Vec<u8>,
    add_dummy_prefix: bool,
    remove_extra_whitespaces: bool,
}

impl Model {
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut model = Self {
            pieces: Vec::new(),
            special: Vec::new(),
            model_type: 1,
            unk_id: 0,
            byte_fallback: false,
            charsmap: Vec::new(),
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
        };
        for field in Message(bytes) {
            match field? {
                (1, Field::Bytes(piece)) => model.read_piece(piece)?,
                (2, Field::Bytes(trainer)) => {
                    for field in Message(trainer) {
                        match field? {
                            (3, Field::Number(kind)) => model.model_type = kind,
                            (35, Field::Number(flag)) => model.byte_fallback = flag != 0,
                            (40, Field::Number(id)) => model.unk_id = id,
                            _ => {}
                        }
                    }
                }
                (3, Field::Bytes(normalizer)) => {
                    for field in Message(normalizer) {
                        match field? {
                            (2, Field::Bytes(table)) => model.charsmap = table.to_vec(),
                            (3, Field::Number(flag)) => model.add_dummy_prefix = flag != 0,
                            (4, Field::Number(flag)) => model.remove_extra_whitespaces = flag != 0,
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        (!model.pieces.is_empty()).then_some(model)
    }

    fn read_piece(&mut self, piece: &[u8]) -> Option<()> {
        const NORMAL: u64 = 1;
        let (mut text, mut score, mut kind) = (String::new(), 0.0, NORMAL);
        for field in Message(piece) {
            match field? {
                (1, Field::Bytes(bytes)) => text = String::from_utf8(bytes.to_vec()).ok()?,
                (2, Field::Float(float)) => score = float,
                (3, Field::Number(number)) => kind = number,
                _ => {}
            }
        }
        if kind != NORMAL {
            self.special.push(self.pieces.len());
        }
        self.pieces.push((text, score));
        Some(())
    }

    /// Describes an option that is not supported, if there is one.
    fn problem(&self) -> Option<String> {
        let flags = [
            ("add_dummy_prefix", self.add_dummy_prefix),
            ("remove_extra_whitespaces", self.remove_extra_whitespaces),
        ];
        match flags.iter().find(|(_, on)| !on) {
            _ if self.model_type != 1 => {
                Some(format!("model_type {} is not supported; 1, UNIGRAM, is", self.model_type))
            }
            Some((name, _)) => Some(format!("{name} false is not supported; true is")),
            None => None,
        }
    }
}

/// The definition that `tokenizer.json` would hold, as transformers makes it for T5. `extra_ids`
/// more tokens stand behind the others, the last of them first.
pub(crate) fn definition(path: &Path, extra_ids: usize) -> Result<Value> {
    let model = Model::read(&read_bytes(path, Limit::Vocabulary)?);
    let model =
        model.ok_or_else(|| Error::invalid(path, "is no model of sentencepiece, or damaged"))?;
    if let Some(problem) = model.problem() {
        return Err(Error::invalid(path, problem));
    }
    let extra = (0..extra_ids).rev().map(|number| (format!("<extra_id_{number}>"), 0.0));
    let count = model.pieces.len();
    let vocabulary: Vec<(String, f32)> = model.pieces.into_iter().chain(extra).collect();
    let added = model.special.into_iter().chain(count..vocabulary.len()).map(|id| {
        json!({
            "id": id, "content": vocabulary[id].0, "single_word": false, "lstrip": false,
            "rstrip": false,
            "normalized": false, "special": true,
        })
    });
    let normalizer = match model.charsmap.is_empty() {
        true => Value::Null,
        false => {
            json!({"type": "Precompiled", "precompiled_charsmap": STANDARD.encode(&model.charsmap)})
        }
    };
    Ok(json!({
        "version": "1.0",
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "WhitespaceSplit"},
            {"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always",
            "split": true},
        ]},
        "model": {
            "type": "Unigram", "unk_id": model.unk_id, "vocab": vocabulary,
            "byte_fallback": model.byte_fallback,
        },
    }))
}
