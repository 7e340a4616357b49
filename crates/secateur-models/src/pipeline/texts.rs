//! Conditioning for prompts, each encoded once.

use crate::classes::{Components, Conditioner, Sampling};
use crate::conditioning::Conditioning;
use crate::error::Result;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

/// The key of an encoded prompt: everything that its encoding depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    /// `None` for the negative prompt.
    prompt: Option<String>,
    negative_prompt: String,
    /// Height and width in pixels.
    size: (usize, usize),
    max_sequence_length: usize,
    /// Its bits.
    guidance: u64,
}

impl Key {
    fn new(prompt: Option<&str>, size: (usize, usize), sampling: &Sampling) -> Self {
        Self {
            prompt: prompt.map(str::to_owned),
            negative_prompt: if prompt.is_none() {
                sampling.negative_prompt.clone()
            } else {
                String::new()
            },
            size,
            max_sequence_length: sampling.max_sequence_length,
            guidance: sampling.guidance.to_bits(),
        }
    }
}

/// Encoded prompts, and the encoders while they are needed.
pub(super) struct Texts {
    open: fn(&Components) -> Result<Box<dyn Conditioner>>,
    components: Components,
    /// `None` before the first prompt is encoded, and after the encoders were dropped.
    encoders: Mutex<Option<Arc<dyn Conditioner>>>,
    encoded: Mutex<HashMap<Key, Conditioning>>,
}

impl Texts {
    /// Starts without encoders. `open` makes them from `components`.
    pub(super) fn new(
        components: Components,
        open: fn(&Components) -> Result<Box<dyn Conditioner>>,
    ) -> Self {
        Self { open, components, encoders: Mutex::default(), encoded: Mutex::default() }
    }

    fn encoders(&self) -> Result<Arc<dyn Conditioner>> {
        let mut encoders = self.encoders.lock().unwrap_or_else(PoisonError::into_inner);
        match &*encoders {
            Some(encoders) => Ok(Arc::clone(encoders)),
            None => {
                let opened: Arc<dyn Conditioner> = (self.open)(&self.components)?.into();
                *encoders = Some(Arc::clone(&opened));
                Ok(opened)
            }
        }
    }

    /// Drops the encoders. A prompt that was not encoded yet opens them again.
    pub(super) fn let_go(&self) {
        *self.encoders.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Each of `prompts` as one sample, for pictures of `size` (height, width) in pixels.
    pub(super) fn positive(
        &self,
        prompts: &[String],
        size: (usize, usize),
        sampling: &Sampling,
    ) -> Result<Conditioning> {
        let key = |prompt: &str| Key::new(Some(prompt), size, sampling);
        let mut encoded = self.encoded.lock().unwrap_or_else(PoisonError::into_inner);
        let missing: BTreeSet<&String> =
            prompts.iter().filter(|prompt| !encoded.contains_key(&key(prompt))).collect();
        if !missing.is_empty() {
            let missing: Vec<String> = missing.into_iter().cloned().collect();
            let samples = self.encoders()?.positive(&missing, size, sampling)?;
            for (index, prompt) in missing.iter().enumerate() {
                encoded.insert(key(prompt), samples.sample(index)?);
            }
        }
        let samples: Vec<&Conditioning> =
            prompts.iter().filter_map(|prompt| encoded.get(&key(prompt))).collect();
        Conditioning::cat(&samples)
    }

    /// The conditioning of the negative prompt, as one sample.
    pub(super) fn negative(
        &self,
        size: (usize, usize),
        sampling: &Sampling,
    ) -> Result<Conditioning> {
        let key = Key::new(None, size, sampling);
        let mut encoded = self.encoded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = encoded.get(&key) {
            return Ok(found.clone());
        }
        let negative = self.encoders()?.negative(size, sampling)?;
        encoded.insert(key, negative.clone());
        Ok(negative)
    }
}
