//! Estimates of the time of work, before it begins.

use crate::error::Result;
use crate::machine::Product;
use indicatif::HumanDuration;
use secateur_nn::Placement;
use serde::Serialize;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The estimated time of work on a device, from its matrix products.
#[derive(Clone, Serialize)]
pub(crate) struct Time {
    pub(crate) seconds: f64,
    operations_per_second: f64,
    /// The stages, in their order.
    pub(crate) stages: Vec<Expected>,
}

/// A stage of the work, with its expected time.
#[derive(Clone, Serialize)]
pub(crate) struct Expected {
    /// The first word of the stage's name.
    pub(crate) name: &'static str,
    pub(crate) seconds: f64,
}

impl Time {
    /// Ratio of actual time to the time of the products. On the bundled models it was 1.2 to 1.8.
    const OVERHEAD: f64 = 1.5;

    /// Adds up stages, each given by its name and its multiply-accumulates. The first call for a
    /// device measures it, which takes some tens of milliseconds.
    pub(crate) fn of(placement: &Placement, stages: &[(&'static str, f64)]) -> Result<Self> {
        static RATES: Mutex<BTreeMap<Option<String>, f64>> = Mutex::new(BTreeMap::new());
        let mut rates = RATES.lock().unwrap_or_else(PoisonError::into_inner);
        let operations_per_second = match rates.entry(placement.description()) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(place) => {
                let mut product = Product::new(placement)?;
                product.measure()?;
                *place.insert(product.rate().median)
            }
        };
        let seconds = |macs: f64| Self::OVERHEAD * 2.0 * macs / operations_per_second;
        let stages = stages.iter().filter(|(_, macs)| *macs > 0.0);
        let stages: Vec<_> =
            stages.map(|&(name, macs)| Expected { name, seconds: seconds(macs) }).collect();
        let seconds = stages.iter().map(|stage| stage.seconds).sum();
        Ok(Self { seconds, operations_per_second, stages })
    }

    /// Bytes a second that are read with their digest, or written.
    const BYTES_PER_SECOND: f64 = 1e9;

    /// Adds the reading of so many bytes at the beginning, and the writing of so many at the end.
    /// Reading is no stage, as how long it took says nothing of how long products will take.
    pub(crate) fn with_files(mut self, read: u64, written: u64) -> Self {
        let seconds = |bytes: u64| bytes as f64 / Self::BYTES_PER_SECOND;
        self.seconds += seconds(read) + seconds(written);
        self.stages.push(Expected { name: "save", seconds: seconds(written) });
        self
    }

    pub(crate) fn text(&self) -> String {
        let rate = self.operations_per_second / 1e9;
        match Duration::try_from_secs_f64(self.seconds) {
            Ok(time) if self.seconds >= 1.0 => {
                format!(
                    "time: about {} at the {rate:.0} G operations a second that were measured",
                    HumanDuration(time)
                )
            }
            Ok(_) => "time: about a second".into(),
            Err(_) => "time: more than can be counted".into(),
        }
    }
}
