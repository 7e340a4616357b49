//! The prompts of a model: its prompt lists, the texts that its encoders cut, and the captions for
//! scores.

use crate::classes::{Labels, Sampling, Subject};
use crate::encoders::{ClipTokenizer, T5Tokenizer};
use crate::error::{Error, Result, invalid};
use crate::files::{read_prompts, tree};
use crate::folder::manifest::Prompts;
use crate::folder::model_folder::ModelFolder;
use std::path::PathBuf;

/// Characters of a prompt that are shown where it is too long.
const LONGEST_SHOWN: usize = 60;

/// The texts that pictures are scored against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captions {
    /// All texts.
    pub choices: Vec<String>,
    /// For each prompt, the index of its own text.
    pub own: Vec<usize>,
}

impl ModelFolder {
    /// Describes, in a line per prompt, the end of each prompt that is too long for the text
    /// encoders.
    ///
    /// # Errors
    /// If a tokenizer cannot be opened, or fails.
    pub fn cuts(&self, prompts: &[String], sampling: &Sampling) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        let length = sampling.max_sequence_length;
        for component in self.whole_components() {
            let folder = self.components.path.join(component.name);
            let (tokens, cut): (usize, Vec<Option<&str>>) =
                match self.components.class_of(component.name) {
                    Some("CLIPTokenizer") => {
                        let tokenizer = ClipTokenizer::open(&folder)?;
                        (
                            tokenizer.length(),
                            prompts
                                .iter()
                                .map(|prompt| tokenizer.cut(prompt))
                                .collect::<Result<_>>()?,
                        )
                    }
                    Some("T5Tokenizer") if length > 0 => {
                        let tokenizer = T5Tokenizer::open(&folder)?;
                        (
                            length,
                            prompts
                                .iter()
                                .map(|prompt| tokenizer.cut(prompt, length))
                                .collect::<Result<_>>()?,
                        )
                    }
                    _ => continue,
                };
            let mut long = (1..).zip(cut).filter_map(|(number, cut)| Some((number, cut?)));
            if let Some((number, words)) = long.next() {
                let rest = if words.chars().nth(LONGEST_SHOWN).is_some() { "..." } else { "" };
                let words = words.chars().take(LONGEST_SHOWN).collect::<String>() + rest;
                let more = match long.count() {
                    0 => String::new(),
                    more => format!(", and {more} more are too long"),
                };
                lines.push(format!(
                    "of prompt {number} {words:?} is not read: it is beyond the {tokens} tokens of \
                     {}{more}",
                    component.name
                ));
            }
        }
        Ok(lines)
    }

    /// Reads a prompt list that comes with the model.
    ///
    /// # Errors
    /// If the model has none, or the file cannot be read.
    pub fn prompts(&self, list: impl Fn(&Prompts) -> &PathBuf) -> Result<Option<Vec<String>>> {
        let own = self
            .manifest
            .prompts
            .as_ref()
            .map(|prompts| tree::inside(&self.components.path, list(prompts)));
        own.transpose()?.map(|path| read_prompts(&path)).transpose()
    }

    /// Checks that the model takes these prompts, before anything is loaded.
    ///
    /// # Errors
    /// If the model has classes, and a prompt is no label.
    pub fn check_prompts(&self, prompts: &[String]) -> Result<()> {
        if self.class.subject != Subject::Label {
            return Ok(());
        }
        let labels = self.components.labels()?;
        prompts.iter().try_for_each(|prompt| labels.find(prompt).map(drop))
    }

    /// The texts that pictures of `prompts` are scored against. For a model with classes they are
    /// one caption per label, else the prompts themselves. `None` for an unconditional model, or
    /// for classes without names.
    ///
    /// # Errors
    /// If a prompt is no label, or if the captions cannot be read or differ in number from the
    /// labels.
    pub fn captions(&self, prompts: &[String]) -> Result<Option<Captions>> {
        match self.class.subject {
            Subject::Nothing => Ok(None),
            Subject::Text => {
                Ok(Some(Captions { choices: prompts.to_vec(), own: (0..prompts.len()).collect() }))
            }
            Subject::Label => {
                let labels = self.components.labels()?;
                if labels.is_empty() {
                    Ok(None)
                } else {
                    self.captions_of(&labels, prompts).map(Some)
                }
            }
        }
    }

    fn captions_of(&self, labels: &Labels, prompts: &[String]) -> Result<Captions> {
        let mut choices: Vec<String> = labels.iter().map(|(_, name)| name.to_owned()).collect();
        if let Some(file) = &self.manifest.captions {
            let path = tree::inside(&self.components.path, file)?;
            let captions = read_prompts(&path)?;
            if captions.len() != choices.len() {
                invalid!(
                    path,
                    "{} captions, and the model knows {} labels",
                    captions.len(),
                    choices.len()
                );
            }
            choices = captions;
        }
        let place = |prompt: &String| {
            let label = labels.find(prompt)?;
            let place = labels.iter().position(|(number, _)| number == label);
            place.ok_or_else(|| {
                Error::Request(format!("label {label} has no name to score its pictures against"))
            })
        };
        Ok(Captions { own: prompts.iter().map(place).collect::<Result<_>>()?, choices })
    }
}
