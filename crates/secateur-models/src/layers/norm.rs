//! Group norms.

use crate::error::Result;
use secateur_nn::{GroupNorm, Scope};

/// The settings of group norms.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Norm {
    pub(crate) groups: usize,
    pub(crate) eps: f32,
}

impl Norm {
    pub(crate) fn over(self, channels: usize, scope: &Scope<'_>) -> Result<GroupNorm> {
        Ok(GroupNorm::new(self.groups, channels, self.eps, scope)?)
    }
}
