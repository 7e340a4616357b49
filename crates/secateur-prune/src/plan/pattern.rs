use crate::error::Error;
use secateur_nn::LayerName;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Where the zeros of a layer's weight may be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Pattern {
    /// Anywhere. The number is their share of all weights.
    Unstructured(f64),
    /// `pruned` of every `group` successive weights of a row: 2:4, 4:8, and so on.
    SemiStructured {
        /// Weights that are pruned in a group.
        pruned: usize,
        /// Weights in a group.
        group: usize,
    },
}

/// Returns a hint for a share that may be meant in percent.
pub(crate) fn percent(share: f64) -> String {
    match share > 1.0 && share < 100.0 {
        true => format!("; {share} % is {}", share / 100.0),
        false => String::new(),
    }
}

impl Pattern {
    /// Creates a pattern of zeros anywhere, with the share `sparsity` of all weights.
    ///
    /// # Errors
    /// If the sparsity is not in [0, 1).
    pub fn unstructured(sparsity: f64) -> Result<Self, Error> {
        if (0.0..1.0).contains(&sparsity) {
            return Ok(Self::Unstructured(sparsity));
        }
        let meant = percent(sparsity);
        Err(Error::Request(format!(
            "sparsity {sparsity} is not in [0, 1): give the share of weights to remove{meant}"
        )))
    }

    /// The share of weights that is removed.
    #[must_use]
    pub fn sparsity(&self) -> f64 {
        match *self {
            Self::Unstructured(sparsity) => sparsity,
            Self::SemiStructured { pruned, group } => pruned as f64 / group as f64,
        }
    }

    /// Returns which of `count` weights the pattern prunes: the `int(count * sparsity)` with the
    /// lowest scores, or the lowest of every group. Of equal scores, the first go.
    pub(crate) fn lowest(&self, count: usize, score: impl Fn(usize) -> f32) -> Vec<u32> {
        let (group, pruned) = match *self {
            Self::Unstructured(sparsity) => (count, (count as f64 * sparsity + 1e-9) as usize),
            Self::SemiStructured { pruned, group } => (group, pruned),
        };
        if pruned == 0 {
            return Vec::new();
        }
        let order =
            |a: &u32, b: &u32| score(*a as usize).total_cmp(&score(*b as usize)).then(a.cmp(b));
        let mut all: Vec<u32> = (0..count as u32).collect();
        let lowest = all.chunks_exact_mut(group).flat_map(|group| {
            group.select_nth_unstable_by(pruned - 1, order);
            &group[..pruned]
        });
        lowest.copied().collect()
    }

    /// Returns a pattern of the same kind with about that share.
    #[must_use]
    pub(crate) fn near(self, share: f64) -> Self {
        match self {
            Self::Unstructured(_) => Self::Unstructured(share),
            Self::SemiStructured { group, .. } => {
                let pruned = (share * group as f64).round() as usize;
                Self::SemiStructured { pruned: pruned.clamp(1, group - 1), group }
            }
        }
    }

    /// Checks that the weight of a layer with that many columns can have this pattern.
    ///
    /// # Errors
    /// If the columns do not divide into groups.
    pub fn check(&self, layer: &LayerName, columns: usize) -> Result<(), Error> {
        match *self {
            Self::SemiStructured { group, .. } if !columns.is_multiple_of(group) => {
                let problem = format!("{columns} columns do not divide into groups of {group}");
                Err(Error::layer(layer, problem + ": exclude the layer, or choose another pattern"))
            }
            _ => Ok(()),
        }
    }
}

impl FromStr for Pattern {
    type Err = Error;

    /// Reads `N:M`: N of every M successive weights go.
    fn from_str(text: &str) -> Result<Self, Error> {
        let parts =
            text.split_once(':').and_then(|(n, m)| Some((n.parse().ok()?, m.parse().ok()?)));
        match parts {
            Some((pruned, group)) if 0 < pruned && pruned < group => {
                Ok(Self::SemiStructured { pruned, group })
            }
            Some(_) => Err(Error::Request(format!(
                "pattern {text}: of N:M, N must be at least 1 and less than M"
            ))),
            None => {
                Err(Error::Request(format!("pattern {text:?} is not of the form N:M, such as 2:4")))
            }
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unstructured(sparsity) => write!(f, "{} %", (sparsity * 1e6).round() / 1e4),
            Self::SemiStructured { pruned, group } => write!(f, "{pruned}:{group}"),
        }
    }
}
