use std::fmt;
use std::path::{Path, PathBuf};

/// An error in a model's files or configuration, or while the model runs.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("{}: {source}", shown(path))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// The content of a file cannot be used.
    #[error("{}: {problem}", shown(path))]
    Invalid {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A part of a model folder is missing or cannot be used. The error names the file.
    #[error("{0}")]
    Folder(String),
    /// The denoiser's output is not finite.
    #[error("the denoiser's output is not finite at denoising step {step}")]
    NotFinite {
        /// The denoising step, from 1.
        step: usize,
    },
    /// A request that the model cannot serve.
    #[error("{0}")]
    Request(String),
    /// The user stopped the work.
    #[error("interrupted")]
    Interrupted,
    /// A layer failed, or the weights do not fit the configuration.
    #[error(transparent)]
    Layer(#[from] secateur_nn::Error),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An [`Error::Invalid`].
    pub fn invalid(path: impl AsRef<Path>, problem: impl ToString) -> Self {
        Self::Invalid { path: path.as_ref().to_owned(), problem: problem.to_string() }
    }

    /// Wraps an error of the file system.
    pub fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { path: path.as_ref().to_owned(), source }
    }
}

/// Returns an [`Error::Request`] with a formatted text.
macro_rules! refuse {
    ($($words:tt)*) => { return Err($crate::error::Error::Request(format!($($words)*))) };
}
pub(crate) use refuse;

/// Returns an [`Error::Invalid`] of a path with a formatted text.
macro_rules! invalid {
    ($path:expr, $($words:tt)*) => {
        return Err($crate::error::Error::invalid($path, format!($($words)*)))
    };
}
pub(crate) use invalid;

/// Displays a path with control characters escaped, so that a file's name cannot steer a terminal
/// or end a line.
pub fn shown(path: &Path) -> impl fmt::Display + use<'_> {
    Shown(path)
}

struct Shown<'a>(&'a Path);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.to_string_lossy().chars() {
            if c.is_control() { write!(f, "{}", c.escape_default())? } else { write!(f, "{c}")? }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::shown;
    use std::path::Path;

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(shown(Path::new("a\x1b[31m/b\nc")).to_string(), "a\\u{1b}[31m/b\\nc");
    }
}
