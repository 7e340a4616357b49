//! Weights that are not held in memory, and what is read ahead of their use.

use candle_core::{Result, Tensor};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::{self, JoinHandle};

/// Weights that pass through memory: each is read when it is used and let go after that. Those that
/// were used next the last time are meanwhile read ahead, each by a thread of its own. A model uses
/// its weights in the same order at every call, so that from the second call on the right ones are.
#[derive(Clone, Debug, Default)]
pub struct Stream(Arc<Mutex<Order>>);

#[derive(Debug, Default)]
struct Order {
    /// The weight that was used after each, the last time.
    next: HashMap<u64, Weak<Stored>>,
    last: Option<u64>,
    /// What is being read, in the order of use.
    ahead: VecDeque<(u64, JoinHandle<Result<Tensor>>)>,
}

impl Stream {
    /// The most weights that are read ahead. Those of an attention are small and are used one right
    /// after the other; with three they are there when it is done.
    pub const AHEAD: usize = 3;

    pub(super) fn add(
        &self,
        read: impl Fn() -> Result<Tensor> + Send + Sync + 'static,
    ) -> Arc<Stored> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        Arc::new(Stored { number, stream: self.clone(), read: Box::new(read) })
    }
}

/// A weight that can be read again.
pub(super) struct Stored {
    number: u64,
    stream: Stream,
    read: Box<dyn Fn() -> Result<Tensor> + Send + Sync>,
}

impl Stored {
    pub(super) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Its numbers, read now.
    pub(super) fn now(&self) -> Result<Tensor> {
        (self.read)()
    }

    /// Its numbers, and begins to read what is used next.
    pub(super) fn read(self: &Arc<Self>) -> Result<Tensor> {
        let own = self.pass();
        // A thread that panicked has told so.
        own.and_then(|own| own.join().ok()).unwrap_or_else(|| self.now())
    }

    /// Passes on to this weight: returns the thread that reads it already.
    fn pass(self: &Arc<Self>) -> Option<JoinHandle<Result<Tensor>>> {
        let mut order = self.stream.0.lock().unwrap_or_else(PoisonError::into_inner);
        let order = &mut *order;
        if let Some(last) = order.last.replace(self.number) {
            order.next.insert(last, Arc::downgrade(self));
        }
        let place = order.ahead.iter().position(|(number, _)| *number == self.number);
        let mut passed = order.ahead.drain(..place.map_or(order.ahead.len(), |place| place + 1));
        let own = passed.next_back().filter(|_| place.is_some()).map(|(_, thread)| thread);
        drop(passed);
        let mut from = order.ahead.back().map_or(self.number, |(number, _)| *number);
        while order.ahead.len() < Stream::AHEAD {
            let Some(next) = order.next.get(&from).and_then(Weak::upgrade) else { break };
            let known = |(number, _): &(u64, _)| *number == next.number;
            if next.number == self.number || order.ahead.iter().any(known) {
                break;
            }
            from = next.number;
            // Where there is no thread to be had, it is read when it is used.
            let Ok(thread) = thread::Builder::new().spawn(move || next.now()) else { break };
            order.ahead.push_back((from, thread));
        }
        own
    }
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stored weight {}", self.number)
    }
}
