use secateur_models::files::shown;
use secateur_nn::LayerName;
use std::path::{Path, PathBuf};

/// What can go wrong while compressing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request cannot be served. The text says what to change.
    #[error("{0}")]
    Request(String),
    /// A layer cannot be pruned as requested.
    #[error("layer {layer}: {problem}")]
    Layer {
        /// The layer's checkpoint name.
        layer: LayerName,
        /// What is wrong.
        problem: String,
    },
    /// A statistics folder cannot be used.
    #[error("{}: {problem}", shown(path))]
    Statistics {
        /// The folder or file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The model failed.
    #[error(transparent)]
    Model(#[from] secateur_models::Error),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn layer(layer: &LayerName, problem: impl ToString) -> Self {
        Self::Layer { layer: layer.clone(), problem: problem.to_string() }
    }

    pub(crate) fn statistics(path: &Path, problem: impl ToString) -> Self {
        Self::Statistics { path: path.to_owned(), problem: problem.to_string() }
    }
}

impl From<secateur_nn::Error> for Error {
    fn from(error: secateur_nn::Error) -> Self {
        Self::Model(error.into())
    }
}
