//! The amount of heads, neurons, and dimensions of heads to remove.

use crate::error::{Error, Result};
use crate::plan::pattern::percent;
use secateur_models::{DimensionGroup, Group, Pair};

/// The amount of heads, neurons, and dimensions of heads to remove.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Portion {
    /// The share of each group that is removed.
    pub sparsity: f64,
    /// Whether attention heads are removed.
    pub heads: bool,
    /// Whether neurons of feed-forwards are removed.
    pub neurons: bool,
    /// Whether the dimensions that queries and keys share are removed.
    pub query_key: bool,
    /// Whether the dimensions that values and outputs share are removed.
    pub value_output: bool,
    /// Number of blocks with heads or neurons that are left whole at either end, as in OBS-Diff's
    /// experiments.
    pub keep_ends: usize,
    /// If the number of neurons of a feed-forward is a multiple of this, so is the number that is
    /// left. The same holds for the dimensions of a head, with a smaller power of two if the head
    /// has fewer than eight such multiples. So products are fast, and N:M patterns fit. 1 gives the
    /// exact share.
    pub multiple: usize,
}

impl Portion {
    /// Creates a portion of heads and neurons, without the first and the last block. The number of
    /// neurons that are left is a multiple of 8.
    ///
    /// # Errors
    /// If the sparsity is not in (0, 1).
    pub fn new(sparsity: f64) -> Result<Self> {
        if sparsity > 0.0 && sparsity < 1.0 {
            let (heads, neurons, query_key, value_output) = (true, true, false, false);
            return Ok(Self {
                sparsity,
                heads,
                neurons,
                query_key,
                value_output,
                keep_ends: 1,
                multiple: 8,
            });
        }
        Err(Error::Request(format!(
            "sparsity {sparsity} is not in (0, 1): give the share of heads and neurons to remove{}",
            percent(sparsity)
        )))
    }

    /// Creates the portion of SlimDiff: dimensions of all heads, and neurons, of all blocks. The
    /// number of each that is left is a multiple of 8.
    ///
    /// # Errors
    /// As [`Portion::new`].
    pub fn slim(sparsity: f64) -> Result<Self> {
        Ok(Self {
            heads: false,
            query_key: true,
            value_output: true,
            keep_ends: 0,
            ..Self::new(sparsity)?
        })
    }

    /// Returns how many parts of a group are removed: its share, rounded half to even as in the
    /// reference. At least one part stays.
    #[must_use]
    pub fn count(&self, group: &Group) -> usize {
        let (count, multiple) = (group.count(), self.multiple.max(1));
        let (wanted, multiple) = match group {
            Group::Heads(_) => (self.heads, 1),
            Group::Neurons(_) => (self.neurons, multiple),
            Group::Dimensions(DimensionGroup { pair, .. }) => {
                let wanted = match pair {
                    Pair::QueryKey => self.query_key,
                    Pair::ValueOutput => self.value_output,
                };
                (wanted, multiple.min((count / 8).max(1).next_power_of_two()))
            }
        };
        if !wanted || count == 0 {
            return 0;
        }
        let removed = (count as f64 * self.sparsity).round_ties_even() as usize;
        let left = match count.is_multiple_of(multiple) {
            true => ((count - removed + multiple / 2) / multiple * multiple).max(multiple),
            false => (count - removed).max(1),
        };
        count - left
    }
}

#[cfg(test)]
mod tests {
    use super::Portion;
    use secateur_models::{Group, NeuronGroup, Slice};

    #[test]
    fn a_multiple_of_the_neurons_is_left() {
        let left = |count: usize, sparsity: f64, multiple: usize| {
            let down = Slice { layer: "down".into(), start: 0 };
            let group =
                Group::Neurons(NeuronGroup { name: "ff".into(), count, up: Vec::new(), down });
            count - Portion { multiple, ..Portion::new(sparsity).unwrap() }.count(&group)
        };
        assert_eq!(left(1024, 0.3, 8), 720);
        assert_eq!(left(1024, 0.3, 1), 717);
        assert_eq!((left(256, 0.8, 128), left(1024, 0.8, 512)), (128, 512), "and some are");
        assert_eq!((left(1024, 0.01, 512), left(4, 0.99, 1)), (1024, 1));
        assert_eq!(left(717, 0.3, 8), 502, "of no multiple none is made");
    }
}
