//! OBS-Diff (Zhu et al. 2025, arXiv 2510.06751): Optimal Brain Surgeon, for single weights and for
//! heads and neurons.

pub(super) mod structured;
mod weights;

/// Removes the weights whose removal adds the least error, and updates the others to correct for
/// them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Obs;
