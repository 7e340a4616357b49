use secateur_models::files::shown;
use std::path::PathBuf;

/// What can go wrong while learning or comparing schedules.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request cannot be served. The text says what to change.
    #[error("{0}")]
    Request(String),
    /// A file of a stopped run cannot be used.
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
