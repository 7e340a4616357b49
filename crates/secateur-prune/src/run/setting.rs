//! How far each layer or group goes, and by which rule.

use crate::error::{Error, Result};
use crate::plan::{Pattern, Plan};
use secateur_nn::LayerName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// What is given to each layer or group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Allocation {
    /// The same share of all, as in OBS-Diff.
    #[default]
    Uniform,
    /// Shares of least error that remove as much in total.
    Greedy(Amount),
    /// MoDeGPT's rule: shares in proportion to exp(-s / mean of s) for the influences s, that
    /// remove as much in total.
    Softmax(Amount),
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Amount {
    /// Parameters of the denoiser.
    Parameters,
    /// Its multiply-accumulates.
    Macs,
}

/// What an allocation has to give.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Budget {
    /// To which layer or group.
    pub allocation: Allocation,
    /// How many parameters or multiply-accumulates of a call for one sample go; nothing for as many
    /// as the plan removes.
    pub total: Option<f64>,
}

impl From<Allocation> for Budget {
    fn from(allocation: Allocation) -> Self {
        Self { allocation, total: None }
    }
}

impl Allocation {
    /// What it counts, if it does.
    #[must_use]
    pub fn amount(self) -> Option<Amount> {
        match self {
            Self::Uniform => None,
            Self::Greedy(amount) | Self::Softmax(amount) => Some(amount),
        }
    }
}

impl Amount {
    /// In words.
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

/// How far a layer or group goes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Setting {
    /// Zeros.
    Pattern(Pattern),
    /// So many heads, neurons or dimensions.
    Remove(usize),
}

/// Settings by the name of the layer or group.
pub type Settings = BTreeMap<LayerName, Setting>;

impl Plan {
    /// Gives every layer or group of the plan its setting.
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
