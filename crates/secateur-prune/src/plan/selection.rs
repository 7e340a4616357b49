//! Choosing layers and groups by name.

use crate::error::{Error, Result};
use globset::{Glob, GlobSet, GlobSetBuilder};
use secateur_models::Group;
use secateur_nn::LayerName;

/// A choice of layers by name: all that the family allows, or those that match `include` and not
/// `exclude`.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    include: GlobSet,
    exclude: GlobSet,
}

impl Selection {
    /// Parses globs over layer names, such as `transformer_blocks.0.*` or `*.to_{q,k}`. An empty
    /// `include` means all layers.
    ///
    /// # Errors
    /// If a glob cannot be parsed.
    pub fn new(include: &[String], exclude: &[String]) -> Result<Self> {
        let set = |globs: &[String]| {
            let mut builder = GlobSetBuilder::new();
            for glob in globs {
                builder.add(
                    Glob::new(glob)
                        .map_err(|e| Error::Request(format!("bad glob {glob:?}: {e}")))?,
                );
            }
            builder.build().map_err(|e| Error::Request(e.to_string()))
        };
        Ok(Self { include: set(include)?, exclude: set(exclude)? })
    }

    /// Returns whether a group is chosen, by its own name and the names of its layers. One name
    /// that is included suffices to choose it, and one that is excluded to leave it out.
    pub(super) fn takes_group(&self, group: &Group) -> bool {
        let names: Vec<LayerName> = [group.name().clone()]
            .into_iter()
            .chain(group.inputs())
            .chain(group.outputs())
            .collect();
        let any = |set: &GlobSet| names.iter().any(|name| set.is_match(name.as_str()));
        (self.include.is_empty() || any(&self.include)) && !any(&self.exclude)
    }

    pub(super) fn takes(&self, name: &LayerName) -> bool {
        let name = name.as_str();
        (self.include.is_empty() || self.include.is_match(name)) && !self.exclude.is_match(name)
    }
}
