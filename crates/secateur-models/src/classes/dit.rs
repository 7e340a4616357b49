//! `DiTPipeline`.

use super::components::Labels;
use crate::classes::class::{Component, Generation, PipelineClass, SCHEDULER, Subject, VAE};
use crate::classes::conditioner::Conditioner;
use crate::classes::sampling::Sampling;
use crate::conditioning::Conditioning;
use crate::error::Result;
use candle_core::{Device, Tensor};

pub(crate) const CLASS: PipelineClass = PipelineClass {
    name: "DiTPipeline",
    denoiser: "transformer",
    components: &[
        Component::new("transformer", &["DiTTransformer2DModel", "Transformer2DModel"]),
        VAE,
        SCHEDULER,
    ],
    generation: Generation { steps: 50, guidance: 4.0, max_sequence_length: 0 },
    subject: Subject::Label,
    reads_clip_tokens: false,
    classifier_free: true,
    scheduler_options: &[],
    even_levels: false,
    shifts: false,
    repair: |_| (),
    conditioner: |folder| {
        Ok(Box::new(Dit { labels: folder.labels()?, classes: folder.denoiser.classes() }))
    },
};

/// Conditioning: class labels. The negative prompt is the label behind the last class.
struct Dit {
    labels: Labels,
    classes: usize,
}

impl Dit {
    fn conditioning(&self, labels: Vec<u32>) -> Result<Conditioning> {
        let labels = Tensor::new(labels, &Device::Cpu)?;
        Ok(Conditioning { labels: Some(labels), ..Conditioning::default() })
    }
}

impl Conditioner for Dit {
    fn positive(
        &self,
        prompts: &[String],
        _: (usize, usize),
        _: &Sampling,
    ) -> Result<Conditioning> {
        let labels =
            prompts.iter().map(|prompt| self.labels.find(prompt)).collect::<Result<Vec<_>>>()?;
        self.conditioning(labels)
    }

    fn negative(&self, _: (usize, usize), _: &Sampling) -> Result<Conditioning> {
        self.conditioning(vec![self.classes as u32])
    }
}
