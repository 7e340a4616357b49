//! The memory that a model takes.

use crate::classes::{Component, Sampling, VAE};
use crate::files::{Checkpoint, TensorInfo};
use crate::folder::model_folder::ModelFolder;
use crate::structure::{Memory, Operation};
use secateur_nn::{Kind, Stream};
use std::collections::BTreeSet;

/// Bytes of a denoiser's weights in memory, where it is placed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WeightBytes {
    /// All of them.
    pub all: u64,
    /// Those that are always in memory: biases, norms and tables.
    pub fixed: u64,
    /// What passes through memory at once where others are read each time they are used.
    pub passing: u64,
}

impl ModelFolder {
    /// Memory of a call of the denoiser with `samples` samples, where the model is placed.
    #[must_use]
    pub fn memory(&self, sampling: &Sampling, samples: usize) -> Memory {
        let WeightBytes { all, fixed, passing } = self.weight_bytes();
        let parameters = self.checkpoint.tensors().map(|(_, info)| info.elements() as u64).sum();
        let memory = self.computed_structure(sampling).memory(parameters, samples);
        let memory = memory.at(self.placement());
        match self.kept < all {
            true => Memory { weights: self.kept.max(fixed) + passing, ..memory },
            false => memory,
        }
    }

    /// Bytes of the denoiser's weights, where it is placed.
    #[must_use]
    pub fn weight_bytes(&self) -> WeightBytes {
        let mut sizes = WeightBytes::default();
        for (name, info) in self.checkpoint.tensors() {
            let bytes = self.placed_bytes(info);
            sizes.all += bytes;
            if self.may_pass(name) {
                // In use: its numbers and their packed form. Read ahead: the numbers, and as they
                // are in the file.
                let copies = 2 + 2 * Stream::AHEAD as u64;
                sizes.passing = sizes.passing.max(copies * bytes);
            } else {
                sizes.fixed += bytes;
            }
        }
        sizes
    }

    /// Bytes of a tensor of the denoiser's checkpoint in memory, where it is placed.
    fn placed_bytes(&self, info: &TensorInfo) -> u64 {
        self.placement().bytes_of_a_number() * info.elements() as u64
    }

    /// Whether a tensor of the denoiser's checkpoint can be read each time it is used.
    fn may_pass(&self, name: &str) -> bool {
        self.fit.wanted.get(name).is_some_and(|wanted| wanted.kind == Kind::Weight)
    }

    /// Names of the weights that are read each time they are used. Those that are kept lie between
    /// them, so that there is always something to compute while another is read.
    pub(super) fn passing(&self) -> BTreeSet<String> {
        let WeightBytes { all, fixed, .. } = self.weight_bytes();
        let mut names = BTreeSet::new();
        if self.kept >= all {
            return names;
        }
        let room = u128::from(self.kept.saturating_sub(fixed));
        let (mut passed, mut kept) = (0u128, 0u128);
        for (name, info) in self.checkpoint.tensors().filter(|(name, _)| self.may_pass(name)) {
            let bytes = u128::from(self.placed_bytes(info));
            passed += bytes;
            if (kept + bytes) * u128::from(all - fixed) <= room * passed {
                kept += bytes;
            } else {
                names.insert(name.to_owned());
            }
        }
        names
    }

    /// Bytes of the conditioning of one prompt.
    #[must_use]
    pub fn encoded_bytes(&self, sampling: &Sampling) -> u64 {
        (size_of::<f32>() * self.computed_geometry(sampling).text * self.denoiser().text_width())
            as u64
    }

    /// Memory of the text encoders while prompts are encoded, where the model is placed. Encoders
    /// without files count as nothing. Activations are not counted: the weights of the denoiser or
    /// of the encoders are larger.
    #[must_use]
    pub fn text_encoder_memory(&self) -> Memory {
        let is_encoder =
            |c: &&Component| c.has_weights() && ![self.class.denoiser, VAE.name].contains(&c.name);
        let mut all = Memory::default();
        for component in self.class.components.iter().filter(is_encoder) {
            let Some(checkpoint) = self.component(component) else { continue };
            let elements: usize = checkpoint.tensors().map(|(_, info)| info.elements()).sum();
            let memory =
                Memory { weights: (size_of::<f32>() * elements) as u64, ..Memory::default() };
            all.weights += memory.at(&component.placement(self.placement())).weights;
        }
        all
    }

    /// Memory of the autoencoder, which decodes one picture at a time, where it is placed. Zero if
    /// there is no autoencoder.
    #[must_use]
    pub fn autoencoder_memory(&self, sampling: &Sampling) -> Memory {
        if self.vae.is_none() {
            return Memory::default();
        }
        let elements = |c: Checkpoint| c.tensors().map(|(_, info)| info.elements()).sum::<usize>();
        let decoder = self.decoder(sampling);
        let bytes = size_of::<f32>() as u64;
        let memory = Memory {
            weights: bytes * self.component(&VAE).map_or(0, elements) as u64,
            activations: decoder.iter().map(Operation::alive_bytes).max().unwrap_or(0),
        };
        memory.at(&VAE.placement(self.placement()))
    }

    /// Bytes kept for gradients while one picture is decoded.
    #[must_use]
    pub fn decoder_graph_bytes(&self, sampling: &Sampling) -> u64 {
        self.decoder(sampling).iter().map(Operation::graph_bytes).sum()
    }

    /// Bytes of the decoder's weights that are packed a second time when gradients go back through
    /// it.
    #[must_use]
    pub fn decoder_backward_bytes(&self, sampling: &Sampling) -> u64 {
        let weights: u64 = self.decoder(sampling).iter().map(Operation::weights).sum();
        size_of::<f32>() as u64 * weights
    }

    /// The operations that decode one picture. Empty if there is no autoencoder, or none that can
    /// be built, which [`ModelFolder::check`] reports.
    fn decoder(&self, sampling: &Sampling) -> Vec<Operation> {
        let decoder = self.vae.as_ref().and_then(|config| config.decoder(sampling.latent).ok());
        decoder.unwrap_or_default()
    }

    /// The weight files of a component, if it has any.
    fn component(&self, component: &Component) -> Option<Checkpoint> {
        Checkpoint::open(
            &self.components.path.join(component.name),
            component.stem(),
            self.variant(),
        )
        .ok()
    }
}
