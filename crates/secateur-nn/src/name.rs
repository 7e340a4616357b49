//! Names of layers.

use serde::{Deserialize, Serialize};
use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

/// The name of a layer in its checkpoint, such as `transformer_blocks.0.attn.to_q`; cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct LayerName(Arc<str>);

impl LayerName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of the layer's weight in the checkpoint.
    #[must_use]
    pub fn weight(&self) -> String {
        format!("{}.weight", self.0)
    }

    /// The name of the layer's bias, if it has one.
    #[must_use]
    pub fn bias(&self) -> String {
        format!("{}.bias", self.0)
    }
}

impl<T: Into<Arc<str>>> From<T> for LayerName {
    fn from(name: T) -> Self {
        Self(name.into())
    }
}

impl From<LayerName> for String {
    fn from(name: LayerName) -> Self {
        name.as_str().to_owned()
    }
}

impl Borrow<str> for LayerName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LayerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for LayerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
