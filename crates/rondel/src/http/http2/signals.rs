//! How the protocol says what has news: its wakers note the stream, and nothing else.
//!
//! A waker may be sent to any thread by its type; these never leave the loop's, so the lock is free.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Wake, Waker};

use rondel_reactor::lock::lock;

/// What has news.
#[derive(Default)]
pub struct Signals {
    connection: AtomicBool,
    streams: Mutex<Vec<u64>>,
}

impl Signals {
    /// The connection has something to do.
    pub fn raise(&self) {
        self.connection.store(true, Ordering::Relaxed);
    }

    /// The connection is about to do it.
    pub fn settle(&self) {
        self.connection.store(false, Ordering::Relaxed);
    }

    /// Whether anything has something to do.
    pub fn are_raised(&self) -> bool {
        self.connection.load(Ordering::Relaxed) || !self.streams().is_empty()
    }

    /// The streams that have had news since the last call.
    pub fn take_streams(&self) -> Vec<u64> {
        std::mem::take(&mut *self.streams())
    }

    fn streams(&self) -> MutexGuard<'_, Vec<u64>> {
        lock(&self.streams)
    }

    fn add(&self, stream: u64) {
        let mut streams = self.streams();
        if streams.last() != Some(&stream) {
            streams.push(stream);
        }
    }
}

impl Wake for Signals {
    fn wake(self: Arc<Self>) {
        self.raise();
    }
}

struct OfStream {
    number: u64,
    signals: Arc<Signals>,
}

impl Wake for OfStream {
    fn wake(self: Arc<Self>) {
        self.signals.add(self.number);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.signals.add(self.number);
    }
}

/// The waker of a stream.
pub fn waker(number: u64, signals: &Arc<Signals>) -> Waker {
    Waker::from(Arc::new(OfStream { number, signals: Arc::clone(signals) }))
}
