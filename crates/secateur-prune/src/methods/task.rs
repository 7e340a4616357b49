//! A method with its amount.

use crate::methods::method::Method;
use crate::methods::structured::StructuredMethod;
use crate::plan::{Change, Demand, Pattern, Portion};
use secateur_models::Group;
use secateur_nn::LayerName;
use std::fmt;

/// A method, and how much it removes.
#[derive(Clone, Copy)]
pub enum Task<'a> {
    /// Sets weights to zero.
    Weights {
        /// The method that chooses them, and may update the others.
        method: &'a dyn Method,
        /// How many zeros there are, and where.
        pattern: Pattern,
    },
    /// Removes heads and neurons, so that layers get smaller.
    Structured {
        /// The method that chooses them, and may correct the weights that are left.
        method: &'a dyn StructuredMethod,
        /// How much is removed, and from what groups.
        portion: Portion,
    },
}

impl Task<'_> {
    /// The method's name.
    #[must_use]
    pub fn method(&self) -> &'static str {
        match self {
            Self::Weights { method, .. } => method.name(),
            Self::Structured { method, .. } => method.name(),
        }
    }
}

impl Demand for Task<'_> {
    fn change(&self) -> Change {
        match self {
            Self::Weights { pattern, .. } => Change::Weights(*pattern),
            Self::Structured { portion, .. } => Change::Groups(*portion),
        }
    }

    fn watched(&self, group: &Group) -> Vec<LayerName> {
        match self {
            Self::Weights { .. } => Vec::new(),
            Self::Structured { method, .. } => method.watched(group),
        }
    }

    fn scratch(&self, rows: usize, columns: usize) -> u64 {
        match self {
            Self::Weights { method, .. } => method.scratch(rows, columns),
            Self::Structured { method, .. } => method.scratch(rows, columns),
        }
    }
}

/// Writes the amount in words: `50 %`, `2:4`, `30 % of heads and neurons`.
impl fmt::Display for Task<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Weights { pattern, .. } => pattern.fmt(f),
            Self::Structured { portion, .. } => {
                let kinds = [
                    ("heads", portion.heads),
                    ("query-key", portion.query_key),
                    ("value-output", portion.value_output),
                    ("neurons", portion.neurons),
                ];
                let kinds: Vec<&str> =
                    kinds.into_iter().filter_map(|(kind, wanted)| wanted.then_some(kind)).collect();
                let what = match kinds.as_slice() {
                    [first @ .., last] if !first.is_empty() => {
                        format!("{} and {last}", first.join(", "))
                    }
                    kinds => kinds.concat(),
                };
                write!(f, "{} of {what}", Pattern::Unstructured(portion.sparsity))
            }
        }
    }
}
