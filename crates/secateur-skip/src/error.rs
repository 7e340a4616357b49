use secateur_models::files::shown;
use std::path::PathBuf;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request cannot be served; says what to change.
    #[error("{0}")]
    Request(String),
    /// What a stopped run left cannot be used.
    #[error("{}: {problem}", shown(path))]
    Progress {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The model failed.
    #[error(transparent)]
    Model(#[from] secateur_models::Error),
    /// Pictures could not be compared.
    #[error(transparent)]
    Eval(#[from] secateur_eval::Error),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;
