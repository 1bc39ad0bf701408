//! How much a transport asks the system for at once.

use std::cell::Cell;

use super::reading::{MAX_READ, SCRATCH};

/// Learns from each read what the next one should take. What a turn has brought in several pieces counts
/// as one message: otherwise one that once came in halves would be read in halves for ever.
#[derive(Default)]
pub struct ReadSize {
    next: Cell<usize>,
    in_turn: Cell<usize>,
}

impl ReadSize {
    /// Bytes to take at once; at most [`SCRATCH`] means a scratch full.
    #[inline]
    pub fn get(&self) -> usize {
        self.next.get()
    }

    /// What is read from now on is not what was read before.
    #[inline]
    pub fn begin_turn(&self) {
        self.in_turn.set(0);
    }

    /// A read brought `received` out of `capacity` bytes.
    pub fn learn(&self, received: usize, capacity: usize) {
        let message = self.in_turn.get() + received;
        self.in_turn.set(message);
        self.next.set(if received == capacity {
            (capacity * 2).min(MAX_READ)
        } else if message < SCRATCH / 2 {
            0
        } else {
            // As much again and some more, so that an equal message comes back short.
            (message + message / 4).clamp(SCRATCH, MAX_READ)
        });
    }
}
