//! The memory that a model takes.

use crate::classes::{Component, Sampling, VAE};
use crate::files::Checkpoint;
use crate::folder::model_folder::ModelFolder;
use crate::structure::{Memory, Operation};

impl ModelFolder {
    /// Memory of a call of the denoiser with `samples` samples, where the model is placed.
    #[must_use]
    pub fn memory(&self, sampling: &Sampling, samples: usize) -> Memory {
        let parameters = self.checkpoint.tensors().map(|(_, info)| info.elements() as u64).sum();
        self.computed_structure(sampling).memory(parameters, samples).at(self.placement())
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
