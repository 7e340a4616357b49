//! Estimates of a process's memory, stage by stage, from configurations and headers alone.

use crate::error::Result;
use crate::format::{bytes, table};
use secateur_models::{ClipModel, Memory, ModelFolder, Sampling, Subject};
use secateur_nn::Placement;
use serde::Serialize;
use std::path::Path;

/// Bytes of the program and of the libraries that it is linked with.
const BINARY: u64 = 16 << 20;
/// Bytes of pages that the allocator holds without live values: a constant for the process, a
/// constant for each thread, and a sixth of the live bytes, as blocks come in a few sizes. Measured
/// with 1 to 8 threads on 63 to 810 MiB of values (docs/memory.md).
const ALLOCATOR: u64 = 48 << 20;
const ALLOCATOR_OF_A_THREAD: u64 = 8 << 20;
pub(crate) const ALLOCATOR_SHARE: u64 = 6;

/// Bytes that CUDA's libraries take for themselves on a GPU.
const LIBRARIES: u64 = 512 << 20;

/// The peak memory of a process, or on a GPU of its tensors there, with the stages that it was
/// computed from.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Footprint {
    /// Bytes of the largest stage.
    total: u64,
    /// Whether it is the memory of a GPU.
    on_gpu: bool,
    stages: Vec<Stage>,
}

/// A stage of the work, with the parts of memory that are live at once.
#[derive(Clone, Debug, Serialize)]
struct Stage {
    name: &'static str,
    bytes: u64,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, Serialize)]
struct Part {
    name: &'static str,
    bytes: u64,
}

impl Footprint {
    /// Creates a footprint without stages, of work at that place.
    pub(crate) fn new(placement: &Placement) -> Self {
        Self { total: 0, on_gpu: placement.is_on_gpu(), stages: Vec::new() }
    }

    /// Adds a stage in which these parts are live at once. Parts of 0 bytes are left out.
    pub(crate) fn add(
        &mut self,
        name: &'static str,
        parts: impl IntoIterator<Item = (&'static str, u64)>,
    ) {
        let parts = parts.into_iter().filter(|(_, bytes)| *bytes > 0);
        let mut parts: Vec<Part> = parts.map(|(name, bytes)| Part { name, bytes }).collect();
        let sum = |parts: &[Part]| parts.iter().map(|part| part.bytes).fold(0, u64::saturating_add);
        let alive = sum(&parts);
        if self.on_gpu {
            parts.push(Part { name: "libraries", bytes: LIBRARIES });
        } else {
            let of_threads = ALLOCATOR_OF_A_THREAD * rayon::current_num_threads() as u64;
            let bytes = ALLOCATOR + of_threads + alive / ALLOCATOR_SHARE;
            parts.push(Part { name: "allocator", bytes });
            parts.push(Part { name: "program", bytes: BINARY });
        }
        let bytes = sum(&parts);
        self.total = self.total.max(bytes);
        self.stages.push(Stage { name, bytes, parts });
    }

    /// Returns the peak memory in bytes.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    fn largest(&self) -> Option<&Stage> {
        self.stages.iter().max_by_key(|stage| stage.bytes)
    }

    /// Formats the total, and the name of the largest stage.
    pub(crate) fn text(&self) -> String {
        let largest = self.largest().map_or("none", |stage| stage.name);
        let memory = if self.on_gpu { "memory of the GPU" } else { "memory" };
        format!("{memory}: about {} at most, in stage {largest}", bytes(self.total))
    }

    /// Formats the parts of the largest stage, one row each.
    pub(crate) fn table(&self) -> String {
        let parts = self.largest().map_or(&[][..], |stage| &stage.parts);
        let rows: Vec<_> =
            parts.iter().map(|part| vec![part.name.to_owned(), bytes(part.bytes)]).collect();
        table(&["held at most", "memory"], &rows)
    }
}

/// Memory of a model, of its sampling, and of the scoring model.
pub(crate) struct Model {
    denoiser: Memory,
    text_encoders: Memory,
    /// Bytes of all encoded prompts.
    encoded: u64,
    autoencoder: Memory,
    scorer: Memory,
    /// Bytes of a picture of the report with its latents.
    picture: u64,
    /// Images that are drawn at a time.
    batch: usize,
    /// Images of the report that are drawn at a time.
    judged: usize,
    /// Bytes of activations while pictures of the report are drawn.
    evaluated: u64,
    /// Number of pictures of the report.
    pictures: usize,
}

impl Model {
    /// Computes the memory of a run that draws `drawn` pictures, and then `pictures` for its
    /// report, scored by the model in the folder `scorer`.
    pub(crate) fn new(
        folder: &ModelFolder,
        sampling: &Sampling,
        (drawn, pictures): (usize, usize),
        scorer: Option<&Path>,
    ) -> Result<Self> {
        let (batch, judged) = (sampling.batch.min(drawn), sampling.batch.min(pictures));
        let denoiser = |batch| folder.memory(sampling, folder.passes(sampling.guidance) * batch);
        let texts = if folder.subject() == Subject::Label {
            folder.labels()?.iter().count()
        } else {
            pictures
        };
        let memory =
            |path: &Path| ClipModel::memory(path, judged, if pictures > 0 { texts } else { 0 });
        let (height, width) = sampling.latent;
        let pixels = height * width * folder.factor() * folder.factor();
        let latents = folder.denoiser().latent_shape()[0] * height * width;
        Ok(Self {
            denoiser: denoiser(batch),
            evaluated: denoiser(judged).activations,
            text_encoders: folder.text_encoder_memory(),
            // Those of the run, those of the report, and what guidance leads away from.
            encoded: folder.encoded_bytes(sampling) * (drawn + pictures + 1) as u64,
            autoencoder: folder.autoencoder_memory(sampling),
            scorer: scorer.map(memory).transpose()?.unwrap_or_default(),
            picture: (size_of::<f32>() * (3 * pixels + latents)) as u64,
            batch,
            judged,
            pictures,
        })
    }

    /// Returns the parts in memory while the prompts are encoded. The text encoders are freed
    /// before the denoiser and the autoencoder are loaded.
    pub(crate) fn encoding(&self) -> [(&'static str, u64); 3] {
        [
            ("text encoders", self.text_encoders.weights),
            ("encoded prompts", self.encoded),
            ("scorer", self.scorer.weights),
        ]
    }

    /// Returns the parts in memory after that.
    pub(crate) fn loaded(&self) -> [(&'static str, u64); 4] {
        [
            ("denoiser", self.denoiser.weights),
            ("autoencoder", self.autoencoder.weights),
            ("encoded prompts", self.encoded),
            ("scorer", self.scorer.weights),
        ]
    }

    /// Returns all parts in memory while the denoiser is called for a batch.
    pub(crate) fn calls(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        self.loaded().into_iter().chain([("activations", self.denoiser.activations)])
    }

    /// Returns the bytes of calls of the denoiser, besides the weights, for a batch of at most that
    /// many images.
    pub(crate) fn activations(&self, images: usize) -> u64 {
        self.denoiser.activations * images.min(self.batch) as u64 / self.batch.max(1) as u64
    }

    /// Returns all parts in memory while pictures of the report are drawn, with the pictures of
    /// `models` models.
    pub(crate) fn evaluation(
        &self,
        models: usize,
    ) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        let decoding = self.autoencoder.activations + 2 * self.judged as u64 * self.picture;
        let alive = self.evaluated.max(decoding).max(self.scorer.activations);
        let pictures = (models * self.pictures) as u64 * self.picture;
        self.loaded().into_iter().chain([("activations", alive), ("pictures", pictures)])
    }
}
