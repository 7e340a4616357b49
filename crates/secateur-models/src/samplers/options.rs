//! The options of a scheduler's configuration.

use crate::error::{Error, Result};
use crate::files::{Limit, check_numbers, parse_json, read_text};
use crate::samplers::sampler::Sampler;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::fmt::Display;
use std::path::{Path, PathBuf};

/// No option is a larger number.
const LARGEST: f64 = 1e6;

/// The options of a `scheduler_config.json`. Missing ones have the defaults of the class in
/// diffusers. Unknown ones are ignored, as in diffusers, since files often hold the options of
/// several classes.
pub(crate) struct Options {
    path: PathBuf,
    sampler: Sampler,
    values: Map<String, Value>,
}

/// An option that a pipeline class sets, whatever the file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instead {
    /// A number.
    Number(&'static str, u32),
    /// On or off.
    Flag(&'static str, bool),
}

impl Instead {
    fn entry(self) -> (String, Value) {
        match self {
            Self::Number(name, value) => (name.to_owned(), value.into()),
            Self::Flag(name, value) => (name.to_owned(), value.into()),
        }
    }
}

impl Options {
    /// Reads the file. Python writes infinite numbers, which JSON does not have: DPM-Solver's
    /// `lambda_min_clipped` is minus infinity where nothing is clipped, and taken as absent.
    pub(crate) fn open(path: &Path, sampler: Sampler, instead: &[Instead]) -> Result<Self> {
        let text = read_text(path, Limit::Config)?.replace("-Infinity", "null");
        let mut values: Map<String, Value> =
            parse_json(text.as_bytes()).map_err(|error| Error::invalid(path, error))?;
        check_numbers(&values, |_| LARGEST).map_err(|problem| Error::invalid(path, problem))?;
        values.extend(instead.iter().map(|instead| instead.entry()));
        Ok(Self { path: path.to_owned(), sampler, values })
    }

    /// An option of any type.
    pub(crate) fn get<T: DeserializeOwned>(&self, name: &str, default: T) -> Result<T> {
        match self.values.get(name) {
            None => Ok(default),
            Some(value) => {
                T::deserialize(value).map_err(|error| self.invalid(format!("{name}: {error}")))
            }
        }
    }

    /// All options that a class knows.
    pub(crate) fn all<T: DeserializeOwned>(&self) -> Result<T> {
        T::deserialize(Value::Object(self.values.clone())).map_err(|error| self.invalid(error))
    }

    /// An option that is on or off; null is off, as in Python.
    pub(crate) fn flag(&self, name: &str, default: bool) -> Result<bool> {
        Ok(self.get(name, Some(default))?.unwrap_or(false))
    }

    /// A positive number.
    pub(crate) fn positive(&self, name: &str, default: f64) -> Result<f64> {
        let number = self.get(name, default)?;
        if number > 0.0 && number.is_finite() {
            Ok(number)
        } else {
            Err(self.refuse(name, "a positive number"))
        }
    }

    /// Refuses any value of an option but one.
    pub(crate) fn only(&self, name: &str, value: &str) -> Result<()> {
        match self.values.get(name) {
            Some(other) if other != value => Err(self.refuse(name, format!("{value:?}"))),
            _ => Ok(()),
        }
    }

    /// Refuses options that are on.
    pub(crate) fn off(&self, names: &[&str]) -> Result<()> {
        for name in names {
            if self.flag(name, false)? {
                return Err(self.refuse(name, "false"));
            }
        }
        Ok(())
    }

    /// Refuses an option for its value, where others are supported.
    pub(crate) fn refuse(&self, name: &str, supported: impl Display) -> Error {
        let value = self.values.get(name).unwrap_or(&Value::Null);
        self.invalid(format!(
            "{name} {value} is not supported for sampler {}; {supported} is",
            self.sampler
        ))
    }

    /// An error in the file.
    pub(crate) fn invalid(&self, problem: impl ToString) -> Error {
        Error::invalid(&self.path, problem)
    }
}
