//! What a run tells while it goes on.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::error::Error;

/// How a file ended well.
#[derive(Clone, Debug)]
pub struct Done {
    /// Where it is.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes that this run received for it.
    pub received: u64,
    /// Whether it was there already and no newer one was to be had or wanted.
    pub unchanged: bool,
    /// Whether a checksum was compared.
    pub verified: bool,
}

/// Something happened to a file; `index` is its place in the list, from 0.
#[derive(Clone, Debug)]
pub enum Event {
    /// Its bytes are coming.
    Started {
        /// Which file.
        index: usize,
        /// Where it will be.
        path: PathBuf,
        /// Its size in bytes, if the server says.
        size: Option<u64>,
        /// How many of them an earlier run, or attempt, left.
        resumed: u64,
    },
    /// An attempt failed, another one follows.
    Retrying {
        /// Which file.
        index: usize,
        /// What failed.
        error: Error,
        /// How long it waits.
        wait: Duration,
    },
    /// It ended.
    Finished {
        /// Which file.
        index: usize,
        /// How.
        result: Result<Done, Error>,
    },
}

/// Hears of events, on the run's thread; it should not take long.
pub trait Observer: Send + Sync {
    /// Something happened.
    fn event(&self, event: Event);
}

/// A file that is being worked on, as others may look at it at any time.
#[derive(Debug)]
pub struct Progress {
    /// Its place in the list, from 0.
    pub index: usize,
    /// Since when.
    pub started: Instant,
    present: AtomicU64,
    received: AtomicU64,
    size: AtomicU64,
}

impl Progress {
    /// Nothing yet.
    pub fn new(index: usize) -> Self {
        Self {
            index,
            started: Instant::now(),
            present: AtomicU64::new(0),
            received: AtomicU64::new(0),
            size: AtomicU64::new(u64::MAX),
        }
    }

    /// Bytes of the file that are there, with those of earlier runs.
    pub fn present(&self) -> u64 {
        self.present.load(Ordering::Relaxed)
    }

    /// Bytes that this run received for the file, lost ones included.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// The file's size, if it is known.
    pub fn size(&self) -> Option<u64> {
        Some(self.size.load(Ordering::Relaxed)).filter(|&size| size != u64::MAX)
    }

    pub(crate) fn begin(&self, present: u64, size: Option<u64>) {
        self.present.store(present, Ordering::Relaxed);
        self.size.store(size.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(crate) fn add(&self, bytes: u64) {
        self.present.fetch_add(bytes, Ordering::Relaxed);
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }
}
