//! `DDPMPipeline`.

use crate::classes::class::{Component, Generation, PipelineClass, SCHEDULER, Subject};
use crate::classes::conditioner::Conditioner;
use crate::classes::sampling::Sampling;
use crate::conditioning::Conditioning;
use crate::error::Result;
pub(crate) const CLASS: PipelineClass = PipelineClass {
    name: "DDPMPipeline",
    denoiser: "unet",
    components: &[Component::new("unet", &["UNet2DModel"]), SCHEDULER],
    generation: Generation { steps: 1000, guidance: 1.0, max_sequence_length: 0 },
    subject: Subject::Nothing,
    reads_clip_tokens: false,
    classifier_free: false,
    scheduler_options: &[],
    even_levels: false,
    shifts: false,
    repair: |_| (),
    conditioner: |_| Ok(Box::new(Unconditional)),
};

/// Conditioning: nothing.
struct Unconditional;

impl Conditioner for Unconditional {
    fn positive(&self, _: &[String], _: (usize, usize), _: &Sampling) -> Result<Conditioning> {
        Ok(Conditioning::default())
    }
}
