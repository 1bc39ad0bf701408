//! What a loop counts while it runs: turns, callbacks, polls, how long it waited, and how late it was.
//!
//! Only the loop's thread writes; other threads can read without the GIL, which blocked code may hold.
//! The clock is read where the loop reads it anyway, at its polls, and once more at the beginning and
//! the end of a run. So the times are as fine as the polls are: everything between two of them counts
//! as running.

use std::sync::{Arc, Mutex};

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyWeakrefMethods};
use rondel_reactor::clock;
use rondel_reactor::counting::{Counter, Histogram};

use super::{Source, State, Watcher};
use crate::watch::Stamp;

/// The numbers of one loop. Times are in nanoseconds.
#[derive(Default)]
pub struct Meter {
    turns: Counter,
    /// Callbacks, steps and events of native code that have run. Transports tell by it, too, whether
    /// two writes come from the same one.
    pub callbacks: Counter,
    polls: Counter,
    events: Counter,
    most_ready: Counter,
    /// In runs that have ended.
    ran: Counter,
    /// When the run that goes on has begun; 0 between runs.
    began: Counter,
    idle: Counter,
    polling: Counter,
    gil: Counter,
    /// Since when the loop waits; 0 when it does not.
    asleep: Counter,
    /// When it last came back from its poller.
    back: Counter,
    /// How long it was away from its poller, each time: what an event had to wait at most.
    away: Histogram,
    /// How late the first timer was of those that a poll found due.
    late: Histogram,
    /// The watchdog's, while there is one.
    pub stamp: Mutex<Option<Arc<Stamp>>>,
}

impl Meter {
    /// A run begins.
    pub fn begin(&self) {
        let now = clock::now_ns();
        self.began.set(now);
        self.back.set(now);
    }

    /// A run has ended.
    pub fn end(&self) {
        self.ran.add(clock::now_ns().saturating_sub(self.began.get()));
        self.began.set(0);
    }

    /// A turn begins with so many callbacks.
    #[inline]
    pub fn turn(&self, ready: usize) {
        self.turns.add(1);
        self.most_ready.raise(ready as u64);
    }

    /// A callback has run.
    #[inline]
    pub fn callback(&self) {
        self.callbacks.add(1);
    }

    /// The loop goes to its poller, and to sleep there unless something is to do.
    pub fn goes(&self, now: u64, brief: bool) {
        self.polls.add(1);
        self.away.note(now.saturating_sub(self.back.get()));
        if !brief {
            self.asleep.set(now);
        }
    }

    /// It has waited without the GIL from `from` to `to`, and had the GIL back at `back`.
    pub fn waited(&self, brief: bool, from: u64, to: u64, back: u64) {
        self.asleep.set(0);
        let waited = if brief { &self.polling } else { &self.idle };
        waited.add(to.saturating_sub(from));
        self.gil.add(back.saturating_sub(to));
        self.back.set(back);
    }

    /// It has polled without letting go of the GIL.
    pub fn looked(&self, from: u64, to: u64) {
        self.polling.add(to.saturating_sub(from));
        self.back.set(to);
    }

    /// A poll has brought so many events.
    pub fn brought(&self, events: usize) {
        self.events.add(events as u64);
    }

    /// A poll has found timers due, the first of them since so long.
    pub fn overdue(&self, ns: u64) {
        self.late.note(ns);
    }

    /// The numbers by name; times in seconds. Needs no GIL.
    pub fn numbers(&self) -> Numbers {
        let now = clock::now_ns();
        let asleep = since(self.asleep.get(), now);
        let idle = self.idle.get() + asleep;
        let total = self.ran.get() + since(self.began.get(), now);
        let (polling, gil) = (self.polling.get(), self.gil.get());
        let running = total.saturating_sub(idle + polling + gil);
        Numbers {
            counts: [
                ("turns", self.turns.get()),
                ("callbacks", self.callbacks.get()),
                ("polls", self.polls.get()),
                ("events", self.events.get()),
                ("most_ready", self.most_ready.get()),
            ],
            seconds: [
                ("total", total),
                ("running", running),
                ("idle", idle),
                ("polling", polling),
                ("gil", gil),
            ]
            .map(|(name, ns)| (name, clock::to_seconds(ns))),
        }
    }
}

/// What a meter says at one time.
pub struct Numbers {
    pub counts: [(&'static str, u64); 5],
    pub seconds: [(&'static str, f64); 5],
}

fn since(start: u64, now: u64) -> u64 {
    if start == 0 { 0 } else { now.saturating_sub(start) }
}

/// `loop._metrics()`: the numbers, and what is there now.
pub fn metrics<'py>(py: Python<'py>, state: &State) -> PyResult<Bound<'py, PyDict>> {
    let all = PyDict::new(py);
    let numbers = state.meter.numbers();
    for (name, count) in numbers.counts {
        all.set_item(name, count)?;
    }
    for (name, seconds) in numbers.seconds {
        all.set_item(name, seconds)?;
    }
    all.set_item("ready", state.ready.borrow().len())?;
    all.set_item("timers", state.timers.borrow().alive())?;
    all.set_item("transports", open_transports(py, state))?;
    for (name, histogram) in [("lag", &state.meter.away), ("lateness", &state.meter.late)] {
        let total = clock::to_seconds(histogram.total());
        all.set_item(name, (histogram.counts(), total, clock::to_seconds(histogram.longest())))?;
    }
    Ok(all)
}

/// Sockets that transports use, and pipes that are read or written.
fn open_transports(py: Python<'_>, state: &State) -> usize {
    let sockets = state.transports.borrow();
    let sockets = sockets.values().filter(|weak| weak.bind(py).upgrade().is_some()).count();
    let sources = state.sources.borrow();
    let pipes: usize = sources.iter().map(|(_, source)| pipes_of(source)).sum();
    sockets + pipes
}

/// A terminal's one descriptor can have a transport for each direction.
fn pipes_of(source: &Source) -> usize {
    let Source::Watched { reader, writer, .. } = source else { return 0 };
    let native = |side: &&Option<Watcher>| matches!(side, Some(Watcher::Native(..)));
    [reader, writer].iter().copied().filter(native).count()
}
