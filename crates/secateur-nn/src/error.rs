use crate::name::LayerName;

/// What can go wrong in a layer or while building one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The tensors of a component are not those its configuration asks for.
    #[error("{origin}: the weights do not fit the configuration: {problems}")]
    Parameters {
        /// The component's folder or file.
        origin: String,
        /// Missing, unexpected and misshapen parameters, at most ten of each, with counts.
        problems: String,
    },
    /// A layer met something it cannot work with.
    #[error("layer {layer}: {problem}")]
    Layer {
        /// The layer's checkpoint name.
        layer: LayerName,
        /// What is wrong.
        problem: String,
    },
    /// A device was asked for that cannot be used.
    #[error("{device} cannot be used: {missing}")]
    Device {
        /// Its name.
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
