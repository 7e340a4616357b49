use crate::name::LayerName;

/// The errors of layers, and of building them.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The tensors of a component are not those of its configuration.
    #[error("{origin}: the weights do not fit the configuration: {problems}")]
    Parameters {
        /// The component's folder or file.
        origin: String,
        /// Missing, unexpected and misshapen parameters, at most ten of each, with counts.
        problems: String,
    },
    /// A layer's input or parameter cannot be used.
    #[error("layer {layer}: {problem}")]
    Layer {
        /// The layer's checkpoint name.
        layer: LayerName,
        /// What is wrong.
        problem: String,
    },
    /// The requested device cannot be used.
    #[error("{device} cannot be used: {missing}")]
    Device {
        /// Name of the device.
        device: String,
        /// What is missing.
        missing: String,
    },
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;
