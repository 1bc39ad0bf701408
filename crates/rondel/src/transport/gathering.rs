//! Writes that leave together, and calls to worker processes of which the workers hear together.
//!
//! On a busy loop a small write is not sent at once: it waits for the end of the turn's phase (its
//! callbacks, its events, its timers). What one connection wrote meanwhile then leaves in one system
//! call, and what many wrote leaves in one go. The former saves calls: HTTP servers write head and body apart. The
//! latter saves more: every packet on its own wakes a peer that has just gone to sleep, and on a busy
//! loop that costs the sender as much as the packet. (On Unix sockets that does not pay: only a connection
//! that writes several times in a callback is gathered there.)
//!
//! On a loop that has nothing else to do, nothing is gathered: a program (a test, usually) may write
//! and then block until the peer has answered, which asyncio allows.
//!
//! No write waits for long: at the end of each callback the list is looked at, and everything leaves
//! once the oldest entry is [`LONGEST`] old, or when there are [`MOST`] connections.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use pyo3::prelude::*;
use rondel_reactor::clock;

use super::socket::{Chunk, SocketTransport};
use super::writing;

/// Nanoseconds after which gathered writes leave at the end of the callback.
const LONGEST: u64 = 1_000_000;
/// Connections whose writes leave at the end of the callback, however young they are: more gain nothing, and
/// what a thousand of them have to send is memory that is touched for the first time.
const MOST: usize = 64;

/// Who has taken calls and is to tell the workers of them.
pub trait Announcer: Send + Sync {
    /// Tells them.
    fn announce(&self);
}

/// The transports that have something to send, and the pools that have calls.
#[derive(Default)]
pub struct Gathered {
    transports: RefCell<Vec<Py<SocketTransport>>>,
    pools: RefCell<Vec<Arc<dyn Announcer>>>,
    /// There are some: asked after each callback.
    waiting: Cell<bool>,
    /// When the first of them was noticed, in nanoseconds; 0 when that has not happened yet.
    since: Cell<u64>,
    /// Spare memory for the list.
    spare: RefCell<Vec<Py<SocketTransport>>>,
    /// Spare memory for chunks that were sent.
    sent: RefCell<Vec<Chunk>>,
}

impl Gathered {
    /// Puts a transport onto the list; it is told once to flush.
    pub fn add(&self, transport: &Bound<'_, SocketTransport>) {
        self.transports.borrow_mut().push(transport.clone().unbind());
        self.waiting.set(true);
    }

    /// Puts a pool onto the list, which has owed an announcement from now on.
    pub fn add_pool(&self, pool: Arc<dyn Announcer>) {
        self.pools.borrow_mut().push(pool);
        self.waiting.set(true);
    }

    fn announce(&self) {
        for pool in self.pools.take() {
            pool.announce();
        }
    }

    /// Whether nothing waits here.
    #[inline]
    pub fn is_empty(&self) -> bool {
        !self.waiting.get()
    }

    /// The end of a callback: sends what has waited long enough.
    #[inline]
    pub fn end_of_callback(&self, py: Python<'_>) {
        if !self.is_empty() {
            self.send_if_late(py);
        }
    }

    #[inline(never)]
    fn send_if_late(&self, py: Python<'_>) {
        if self.transports.borrow().len() >= MOST {
            return self.send_all(py);
        }
        let now = clock::now_ns();
        match self.since.get() {
            0 => self.since.set(now),
            since if now.saturating_sub(since) >= LONGEST => self.send_all(py),
            _ => {}
        }
    }

    /// Sends everything.
    #[inline]
    pub fn send(&self, py: Python<'_>) {
        if !self.is_empty() {
            self.send_all(py);
        }
    }

    #[inline(never)]
    fn send_all(&self, py: Python<'_>) {
        self.since.set(0);
        // A flush can make a protocol write again, to this transport or another.
        while self.waiting.replace(false) {
            self.announce();
            let mut round = self.transports.replace(self.spare.take());
            for transport in round.drain(..) {
                writing::flush_gathered(transport.bind(py));
            }
            self.spare.replace(round);
        }
    }

    /// Does something that lists the chunks it has sent, and drops these then: nothing is borrowed
    /// when a chunk's memory goes, which may run the program's code.
    pub fn drop_sent<R>(&self, f: impl FnOnce(&mut Vec<Chunk>) -> R) -> R {
        let mut sent = self.sent.take();
        let result = f(&mut sent);
        sent.clear();
        self.sent.replace(sent);
        result
    }

    /// Forgets everything: the loop is closed.
    pub fn clear(&self) {
        self.waiting.set(false);
        self.announce();
        drop(self.transports.take());
    }
}
