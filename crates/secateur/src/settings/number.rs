//! Bounded whole numbers in settings.

use crate::error::{Error, refuse};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// No number of images, steps, prompts, layers or pixels is larger.
const LARGEST: usize = 1_000_000;

/// A number that is at least `LEAST` and at most a million.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "usize", into = "usize")]
pub struct Number<const LEAST: usize>(usize);

/// A number of things, which may be none.
pub type Count = Number<0>;
/// A number of things, at least one.
pub type Positive = Number<1>;

impl<const LEAST: usize> Number<LEAST> {
    /// The number.
    #[must_use]
    pub fn get(self) -> usize {
        self.0
    }
}

impl<const LEAST: usize> TryFrom<usize> for Number<LEAST> {
    type Error = Error;

    fn try_from(number: usize) -> Result<Self, Error> {
        if number < LEAST {
            refuse!("must be at least {LEAST}");
        }
        if number > LARGEST {
            refuse!("must be at most {LARGEST}");
        }
        Ok(Self(number))
    }
}

impl<const LEAST: usize> From<Number<LEAST>> for usize {
    fn from(number: Number<LEAST>) -> Self {
        number.0
    }
}

impl<const LEAST: usize> FromStr for Number<LEAST> {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let number: Result<usize, _> = text.parse();
        number.map_err(|error| Error::Request(error.to_string()))?.try_into()
    }
}

impl<const LEAST: usize> fmt::Display for Number<LEAST> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::{Count, Positive};

    #[test]
    fn numbers_are_bounded_in_text_and_in_data() {
        for (text, least, word) in [("0", 0, ""), ("1000000", 0, ""), ("1000001", 0, "at most")] {
            let found = text.parse::<Count>().map(|number| number.get());
            assert!(match &found {
                Ok(number) => word.is_empty() && number.to_string() == text && *number >= least,
                Err(error) => !word.is_empty() && error.to_string().contains(word),
            });
        }
        assert!("0".parse::<Positive>().unwrap_err().to_string().contains("at least 1"));
        assert!("-1".parse::<Count>().unwrap_err().to_string().contains("invalid digit"));
        assert!(serde_json::from_str::<Positive>("0").is_err());
        assert_eq!(serde_json::from_str::<Positive>("3").unwrap(), 3.try_into().unwrap());
    }
}
