//! The total to remove.

use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::run::setting::Amount;
use secateur_models::{ModelFolder, Removals, Sampling};

/// The largest share of a group that is removed.
pub(crate) const MOST_OF_GROUP: f64 = 0.8;

/// A number of parameters or multiply-accumulates to remove.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// The quantity that is counted.
    pub amount: Amount,
    /// How much to remove.
    pub total: f64,
    /// How much the denoiser has.
    pub whole: f64,
}

impl Target {
    /// Creates the target for the given `share` of the whole model of a folder.
    ///
    /// # Errors
    /// If the model's configuration does not describe a model.
    pub fn new(
        folder: &ModelFolder,
        sampling: &Sampling,
        amount: Amount,
        share: f64,
    ) -> Result<Self> {
        let whole = amount.of(folder, sampling, folder.removals())?;
        Ok(Self { amount, total: share * whole, whole })
    }

    /// Returns the least share, the same everywhere, that removes at least the target. `plan` makes
    /// a plan for a share.
    ///
    /// # Errors
    /// If no share does. The error says how much can be removed at most.
    pub fn uniform_share(
        &self,
        folder: &ModelFolder,
        sampling: &Sampling,
        plan: impl Fn(f64) -> Result<Plan>,
    ) -> Result<f64> {
        let removed = |share: f64| {
            let removals = plan(share)?.removals(folder.removals());
            Ok::<f64, Error>(self.whole - self.amount.of(folder, sampling, &removals)?)
        };
        let most = removed(MOST_OF_GROUP)?;
        if most < self.total {
            return Err(Error::Request(self.too_much(most)));
        }
        let (mut low, mut high) = (0.0, MOST_OF_GROUP);
        for _ in 0..20 {
            let middle = 0.5 * (low + high);
            // A share that is too small for a plan removes nothing.
            if removed(middle).unwrap_or(0.0) < self.total { low = middle } else { high = middle }
        }
        Ok(high)
    }

    fn too_much(&self, most: f64) -> String {
        let (asked, can) = (self.total / self.whole, most / self.whole);
        let of_what = 100.0 * MOST_OF_GROUP;
        match self.amount {
            Amount::Parameters => format!(
                "{:.1} % of the parameters cannot go: {of_what:.0} % of what can be made smaller, \
                 the most, is {:.1} % of all: `budget \
                 {:.3}` is the largest",
                100.0 * asked,
                100.0 * can,
                (1000.0 * can).floor() / 1000.0
            ),
            Amount::Macs => format!(
                "{:.2} times fewer multiply-accumulates cannot be had: {of_what:.0} % of what can \
                 be made smaller, the most, is \
                 {:.1} % of all: `speedup {:.2}` is the largest",
                1.0 / (1.0 - asked),
                100.0 * can,
                (100.0 / (1.0 - can)).floor() / 100.0
            ),
        }
    }
}

impl Amount {
    /// Returns the amount that a model has without `removals`.
    pub(crate) fn of(
        self,
        folder: &ModelFolder,
        sampling: &Sampling,
        removals: &Removals,
    ) -> Result<f64> {
        Ok(match self {
            Self::Parameters => folder.parameters_without(removals)? as f64,
            Self::Macs => folder.structure_without(sampling, removals)?.macs() as f64,
        })
    }
}
