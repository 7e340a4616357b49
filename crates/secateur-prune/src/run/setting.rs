//! The setting of each layer or group, and the rule that finds it.

use crate::error::{Error, Result};
use crate::plan::{Pattern, Plan};
use secateur_nn::LayerName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// How shares are allocated to layers or groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Allocation {
    /// The same share for all, as in OBS-Diff.
    #[default]
    Uniform,
    /// The shares of least error that remove the same total.
    Greedy(Amount),
    /// MoDeGPT's rule: shares in proportion to exp(-s / mean of s) for the influences s, which
    /// remove the same total.
    Softmax(Amount),
}

/// The quantity that a total counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Amount {
    /// Parameters of the denoiser.
    Parameters,
    /// Multiply-accumulates of the denoiser.
    Macs,
}

/// A rule of allocation, and the total.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Budget {
    /// The rule.
    pub allocation: Allocation,
    /// How many parameters, or multiply-accumulates of a call for one sample, are removed. `None`
    /// stands for as many as the plan removes.
    pub total: Option<f64>,
}

impl From<Allocation> for Budget {
    fn from(allocation: Allocation) -> Self {
        Self { allocation, total: None }
    }
}

impl Allocation {
    /// Returns the quantity that the rule counts, if any.
    #[must_use]
    pub fn amount(self) -> Option<Amount> {
        match self {
            Self::Uniform => None,
            Self::Greedy(amount) | Self::Softmax(amount) => Some(amount),
        }
    }
}

impl Amount {
    /// Names the quantity in words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Parameters => "parameters",
            Self::Macs => "multiply-accumulates",
        }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Parameters => "parameters",
            Self::Macs => "macs",
        })
    }
}

impl fmt::Display for Allocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uniform => f.write_str("uniform"),
            Self::Greedy(amount) => amount.fmt(f),
            Self::Softmax(amount) => write!(f, "softmax-{amount}"),
        }
    }
}

impl FromStr for Allocation {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let all = [Self::Uniform, Self::Greedy(Amount::Parameters), Self::Greedy(Amount::Macs)];
        let found = all.into_iter().find(|allocation| allocation.to_string() == text);
        found.ok_or_else(|| {
            Error::Request(format!(
                "allocation {text:?} is unknown; there are uniform, parameters, macs"
            ))
        })
    }
}

/// How much is removed from a layer or group.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Setting {
    /// The pattern of zeros.
    Pattern(Pattern),
    /// The number of heads, neurons or dimensions that are removed.
    Remove(usize),
}

/// Settings by the name of the layer or group.
pub type Settings = BTreeMap<LayerName, Setting>;

impl Plan {
    /// Sets the setting of every layer or group of the plan.
    pub fn set(&mut self, settings: &Settings) {
        for package in &mut self.packages {
            for layer in package.inputs.iter_mut().flat_map(|input| &mut input.layers) {
                if let Some(Setting::Pattern(pattern)) = settings.get(&layer.name) {
                    layer.pattern = Some(*pattern);
                }
            }
            for planned in package.coupled.iter_mut().flatten() {
                if let Some(Setting::Remove(remove)) = settings.get(planned.group.name()) {
                    planned.remove = *remove;
                }
            }
        }
    }
}
