//! How long work takes, before it begins.

use crate::machine::Product;
use indicatif::HumanDuration;
use serde::Serialize;
use std::time::Duration;

/// What work takes on this machine, by its products alone.
#[derive(Serialize)]
pub(crate) struct Time {
    seconds: f64,
    operations_per_second: f64,
}

impl Time {
    /// Times what its products take: work on the bundled models took 1.2 to 1.8 times.
    const OVERHEAD: f64 = 1.5;

    /// Of so many multiply-accumulates. Measures the machine, which takes some tens of milliseconds.
    pub(crate) fn of(macs: u64) -> Self {
        let mut product = Product::default();
        product.measure();
        let operations_per_second = product.rate().median;
        Self { seconds: Self::OVERHEAD * 2.0 * macs as f64 / operations_per_second, operations_per_second }
    }

    pub(crate) fn text(&self) -> String {
        let rate = self.operations_per_second / 1e9;
        match Duration::try_from_secs_f64(self.seconds) {
            Ok(time) if self.seconds >= 1.0 => {
                format!("time: about {} at the {rate:.0} G operations a second of this machine", HumanDuration(time))
            }
            Ok(_) => "time: about a second".into(),
            Err(_) => "time: more than can be counted".into(),
        }
    }
}
