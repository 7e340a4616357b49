//! What is wrong on the command line.

use std::fmt;

/// The exit code, as clap's.
pub(crate) const CODE: u8 = 2;

/// What the user typed cannot be meant so.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Ends with a [`Usage`].
macro_rules! usage {
    ($($words:tt)*) => {
        return Err($crate::usage::Usage(format!($($words)*)).into())
    };
}
pub(crate) use usage;

/// The error of something that was given on the command line alone.
pub(crate) fn of_request(error: secateur_models::Error) -> anyhow::Error {
    match error {
        secateur_models::Error::Request(problem) => Usage(problem).into(),
        other => other.into(),
    }
}

/// Whether an error is of what the user typed: a value, or what was asked of a method.
pub(crate) fn is_usage(error: &anyhow::Error) -> bool {
    use secateur_prune::Error::Request;
    let is = |cause: &(dyn std::error::Error + 'static)| {
        cause.is::<Usage>() || matches!(cause.downcast_ref(), Some(Request(_)))
    };
    error.chain().any(is)
}
