//! Each operation's share of the time, measured by the spans that the layers open.

use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tracing::span::{Attributes, Id};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

/// Total time in spans, by name.
#[derive(Clone, Default)]
pub(crate) struct Profile(Arc<Mutex<BTreeMap<&'static str, Duration>>>);

/// The share of one operation.
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct Share {
    /// The operation's name.
    pub operation: &'static str,
    /// Seconds of all its calls.
    pub seconds: f64,
    /// Share of the total time, in [0, 1].
    pub share: f64,
}

impl Profile {
    /// Starts recording, for the rest of the process.
    pub(crate) fn start() -> Self {
        let profile = Self::default();
        let _ = tracing::subscriber::set_global_default(
            tracing_subscriber::registry().with(profile.clone()),
        );
        profile
    }

    /// Returns the shares of `total`, largest first. Time outside spans is "other".
    pub(crate) fn shares(&self, total: Duration) -> Vec<Share> {
        let sums = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let known: Duration = sums.values().sum();
        let other = total.saturating_sub(known);
        let parts = sums.iter().map(|(name, time)| (*name, *time)).chain([("other", other)]);
        let share = |(operation, time): (&'static str, Duration)| Share {
            operation,
            seconds: time.as_secs_f64(),
            share: time.as_secs_f64() / total.as_secs_f64().max(1e-9),
        };
        let mut shares: Vec<Share> = parts.map(share).collect();
        shares.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        shares
    }
}

struct Entered(Instant);

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Profile {
    fn on_new_span(&self, _: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(Entered(Instant::now()));
        }
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            span.extensions_mut().replace(Entered(Instant::now()));
        }
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(Entered(start)) = span.extensions().get::<Entered>() {
            let mut sums = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            *sums.entry(span.name()).or_default() += start.elapsed();
        }
    }
}
