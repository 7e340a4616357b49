//! The memory that drawing takes, and errors where there is too little.

use crate::error::{Error, Result, refuse};
use crate::format::bytes;
use crate::memory;
use secateur_models::{Memory, ModelFolder, Sampling};
use secateur_nn::{DeviceMemory, Placement};

/// The memory that drawing takes where a model is placed.
pub(crate) struct MemoryNeeds {
    placement: Placement,
    /// Images at a time, and their sides in pixels.
    images: usize,
    pixels: (usize, usize),
    /// Bytes of the weights of the denoiser and the autoencoder.
    weights: u64,
    /// Bytes of the weights of the text encoders, which are dropped before the denoiser is loaded.
    encoders: u64,
    /// Peak bytes of the activations of a call of the denoiser, and of one decoded picture.
    calls: u64,
    decoding: u64,
}

impl MemoryNeeds {
    /// Computes the memory for `images` images at a time.
    pub(crate) fn of(folder: &ModelFolder, sampling: &Sampling, images: usize) -> Self {
        let denoiser = folder.memory(sampling, folder.passes(sampling.guidance) * images);
        let autoencoder = folder.autoencoder_memory(sampling);
        Self {
            placement: folder.placement().clone(),
            images,
            pixels: (sampling.latent.0 * folder.factor(), sampling.latent.1 * folder.factor()),
            weights: denoiser.weights + autoencoder.weights,
            encoders: folder.text_encoder_memory().weights,
            calls: denoiser.activations,
            decoding: autoencoder.activations,
        }
    }

    /// Returns the memory with text encoders that stay.
    pub(crate) fn with_encoders(self) -> Self {
        Self { weights: self.weights + self.encoders, encoders: 0, ..self }
    }

    /// Returns the memory with a model that scores the pictures.
    pub(crate) fn scored_by(self, scorer: Memory) -> Self {
        let decoding = self.decoding.max(scorer.activations);
        Self { weights: self.weights + scorer.weights, decoding, ..self }
    }

    /// Returns the memory of two models that are loaded together and called by turns.
    pub(crate) fn beside(self, other: Self) -> Self {
        Self {
            weights: self.weights + other.weights,
            encoders: self.encoders + other.encoders,
            calls: self.calls.max(other.calls),
            decoding: self.decoding.max(other.decoding),
            ..self
        }
    }

    /// Fails if the GPU cannot hold all, or, without one, this machine cannot hold the activations
    /// of the denoiser.
    pub(crate) fn check(&self) -> Result<()> {
        if let Some(gpu) = self.placement.memory() {
            let drawing = self.weights.saturating_add(self.calls.max(self.decoding));
            if drawing.max(self.encoders) > gpu.free {
                refuse!(
                    "{}, and {} are free: {}",
                    self.on_gpu(gpu),
                    bytes(gpu.free),
                    self.advice()
                );
            }
        } else if let Some(all) = memory::of_machine().filter(|all| self.calls > *all) {
            refuse!(
                "{} take {} of activations, and this machine has {} of memory: give a smaller \
                 `height`, `width` or `batch`",
                self.pictures(),
                bytes(self.calls),
                bytes(all)
            );
        }
        Ok(())
    }

    fn pictures(&self) -> String {
        let (height, width) = self.pixels;
        format!("{} image(s) at a time of {height} x {width} pixels", self.images)
    }

    fn on_gpu(&self, gpu: DeviceMemory) -> String {
        let encoders = match self.encoders {
            0 => String::new(),
            encoders => format!("; before that, the text encoders take {}", bytes(encoders)),
        };
        format!(
            "{} take about {} of the GPU's memory, and the weights {} more{encoders}; it has {}",
            self.pictures(),
            bytes(self.calls.max(self.decoding)),
            bytes(self.weights),
            bytes(gpu.total)
        )
    }

    fn advice(&self) -> &'static str {
        match self.placement.bytes_of_a_number() {
            4 => "give a smaller `batch`, `height` or `width`, `dtype bf16`, or `device cpu`",
            _ => "give a smaller `batch`, `height` or `width`, or `device cpu`",
        }
    }

    /// Returns the error of drawing, with what was needed if the GPU's memory was full.
    pub(crate) fn explain(&self, error: impl Into<Error>) -> Error {
        let error = error.into();
        let text = error.to_string();
        let of_memory = ["OUT_OF_MEMORY", "ALLOC_FAILED", "ALLOCATION_FAILED"];
        match self.placement.memory() {
            Some(gpu) if of_memory.iter().any(|name| text.contains(name)) => {
                let (needed, advice) = (self.on_gpu(gpu), self.advice());
                Error::Process(format!("the GPU's memory is full: {needed}: {advice} ({text})"))
            }
            _ => error,
        }
    }
}
