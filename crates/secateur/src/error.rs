//! What can go wrong in a job.

use std::path::{Path, PathBuf};

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in a job.
///
/// Messages name a setting in backquotes, such as `` `report-samples 0` ``. The command line prints
/// it as an option, and a recipe uses the same name.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request cannot be served on any machine. The text says what to change.
    #[error("{0}")]
    Request(String),
    /// A part of the job failed.
    #[error("{part}")]
    Part {
        /// Which part: a file, a method, or both.
        part: String,
        /// The error of the part.
        source: Box<Error>,
    },
    /// A file could not be written or removed.
    #[error("{}", secateur_models::files::shown(path))]
    File {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// Another process failed, or gave an unexpected answer.
    #[error("{0}")]
    Process(String),
    /// A model or a file failed.
    #[error(transparent)]
    Model(#[from] secateur_models::Error),
    /// A method failed.
    #[error(transparent)]
    Prune(#[from] secateur_prune::Error),
    /// Skipping failed.
    #[error(transparent)]
    Skip(#[from] secateur_skip::Error),
    /// Pictures could not be compared, or a report could not be written.
    #[error(transparent)]
    Eval(#[from] secateur_eval::Error),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// A value could not be written as JSON.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

impl Error {
    /// Returns whether the request is invalid, as opposed to a failure of the work.
    #[must_use]
    pub fn is_request(&self) -> bool {
        use secateur_models::Error::Request as Model;
        use secateur_prune::Error as Prune;
        use secateur_skip::Error as Skip;
        match self {
            Self::Request(_)
            | Self::Model(Model(_))
            | Self::Prune(Prune::Request(_) | Prune::Model(Model(_)))
            | Self::Skip(Skip::Request(_) | Skip::Model(Model(_)))
            | Self::Eval(secateur_eval::Error::Model(Model(_))) => true,
            Self::Part { source, .. } => source.is_request(),
            _ => false,
        }
    }

    /// Returns whether the user stopped the work.
    #[must_use]
    pub fn is_interruption(&self) -> bool {
        use secateur_models::Error::Interrupted;
        match self {
            Self::Model(Interrupted)
            | Self::Prune(secateur_prune::Error::Model(Interrupted))
            | Self::Skip(secateur_skip::Error::Model(Interrupted))
            | Self::Skip(secateur_skip::Error::Eval(secateur_eval::Error::Model(Interrupted)))
            | Self::Eval(secateur_eval::Error::Model(Interrupted)) => true,
            Self::Part { source, .. } => source.is_interruption(),
            _ => false,
        }
    }

    /// Wraps the error with the name of a part of the job.
    pub(crate) fn of(self, part: impl ToString) -> Self {
        Self::Part { part: part.to_string(), source: Box::new(self) }
    }

    /// Wraps an error of the file system.
    pub(crate) fn file(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { path, source }
    }
}

/// Returns an [`Error::Request`] with a formatted text.
macro_rules! refuse {
    ($($words:tt)*) => {
        return Err($crate::error::Error::Request(format!($($words)*)))
    };
}
pub(crate) use refuse;
