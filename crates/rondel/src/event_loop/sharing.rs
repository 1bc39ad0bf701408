//! Sharing the GIL: when a loop that always has callbacks to run lets other threads have it.
//!
//! CPython's own rule is that a thread which waits for the GIL asks for it after the switch interval
//! (5 ms), and gets it at the next bytecode. Letting go of it for a moment, at each poll, does not
//! shorten that: the loop would take it back before the other thread is awake, whose wait would then
//! begin anew. So the loop really waits a moment, but only when another thread has just woken up:
//! the processor time of all other threads tells, at the price of two system calls per
//! [`LOOK_INTERVAL`], or at each poll while such threads come. A thread that then keeps the GIL computes rather than waits for something, and
//! has to ask like any other until the loop has had its share.

use std::cell::Cell;
use std::time::Duration;

use pyo3::prelude::*;
use rondel_reactor::clock;

/// Nanoseconds between two looks at the other threads.
const LOOK_INTERVAL: u64 = 250_000;
/// So many polls look after one that found another thread awake: it may wait for the GIL again soon.
const ATTENTIVE: u32 = 400;
/// Nanoseconds of processor time that say that another thread was awake. Waking up takes as long.
const AWAKE: u64 = 3_000;
/// How long the loop waits at a time for the other thread to wake up, and how often. The system
/// makes it some 70 us each.
const PAUSE: Duration = Duration::from_micros(20);
const PAUSES: u32 = 4;
/// Nanoseconds of waiting to have the GIL back after which a thread is taken for one that computes.
const COMPUTES: u64 = 2_000_000;
/// So many looks in a row that found somebody awake say the same: of a thread that does without the
/// GIL, too.
const AWAKE_IN_A_ROW: u32 = 4;
/// Switch intervals (`sys.getswitchinterval()`) that a loop is given beside threads that compute, and
/// after which it lets go of the GIL in any case: its callbacks may run no bytecode.
const SWITCHES: f64 = 4.0;

/// What a brief poll does with the GIL.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    /// Keeps it.
    Keep,
    /// Lets go of it, for threads that have asked.
    Release,
    /// Lets go of it and waits until another thread had a chance to take it.
    Pause,
}

/// The loop's memory of it. Times are in nanoseconds.
#[derive(Default)]
pub struct Sharing {
    /// How long the GIL is held beside threads that compute.
    hold: Cell<u64>,
    released: Cell<u64>,
    next_look: Cell<u64>,
    awake_in_a_row: Cell<u32>,
    /// How many polls are still to look.
    attentive: Cell<u32>,
    /// The processor time of the other threads at the last look; None when the loop has slept since.
    others: Cell<Option<u64>>,
}

impl Sharing {
    /// A run begins; `switch_interval` in seconds.
    pub fn begin(&self, switch_interval: f64) {
        self.hold.set(clock::from_seconds(switch_interval * SWITCHES));
    }

    /// What the poll at the time `now` is to do.
    pub fn offer(&self, py: Python<'_>, now: u64) -> Offer {
        if now.saturating_sub(self.released.get()) >= self.hold.get() {
            return Offer::Release;
        }
        if now < self.next_look.get() {
            return Offer::Keep;
        }
        let attentive = self.attentive.get();
        self.attentive.set(attentive.saturating_sub(1));
        self.next_look.set(now + if attentive > 0 { 0 } else { LOOK_INTERVAL });
        if crate::ffi::is_only_thread(py) {
            return Offer::Keep;
        }
        let time = clock::other_threads_ns();
        let before = self.others.get().unwrap_or(time);
        if time.saturating_sub(before) <= AWAKE {
            // Waking up may be half done: what it took so far counts at the next look.
            self.others.set(Some(before));
            self.awake_in_a_row.set(0);
            return Offer::Keep;
        }
        Offer::Pause
    }

    /// Waits until another thread has run, or will not. Called without the GIL.
    pub fn pause() {
        let before = clock::other_threads_ns();
        for _ in 0..PAUSES {
            std::thread::sleep(PAUSE);
            if clock::other_threads_ns().saturating_sub(before) > AWAKE {
                return;
            }
        }
    }

    /// The GIL is held again, and since when; the loop has wanted it since the time `from`.
    pub fn taken_back(&self, offer: Offer, from: u64) -> u64 {
        let now = clock::now_ns();
        self.released.set(now);
        let in_a_row = if offer == Offer::Pause { self.awake_in_a_row.get() + 1 } else { 0 };
        let computes = in_a_row >= AWAKE_IN_A_ROW
            || offer == Offer::Pause && now.saturating_sub(from) > COMPUTES;
        self.awake_in_a_row.set(if computes { 0 } else { in_a_row });
        if offer == Offer::Pause {
            self.attentive.set(if computes { 0 } else { ATTENTIVE });
        }
        let interval = if self.attentive.get() > 0 { 0 } else { LOOK_INTERVAL };
        self.next_look.set(now + if computes { self.hold.get() } else { interval });
        // What the other thread did meanwhile is no sign of another one that waits.
        self.others.set((offer == Offer::Pause).then(clock::other_threads_ns));
        now
    }
}
