//! A worker's side: claim, answer, sleep.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use rondel_reactor::lock::lock;

use super::arena::{Block, range_of};
use super::bell::Bell;
use super::board::{self, Board, Stage};
use super::frame::{self, Lease, Lender, Message, Received, Reference, Store};
use super::memory::MemoryFile;

/// The blocks that this worker has received: how often each is in use, and those it has done with.
#[derive(Default)]
struct Borrowed(Mutex<(HashMap<Block, u32>, Vec<Block>)>);

impl Borrowed {
    fn lock(&self) -> MutexGuard<'_, (HashMap<Block, u32>, Vec<Block>)> {
        lock(&self.0)
    }
}

impl Lender for Borrowed {
    fn done_with(&self, block: Block) {
        let mut inner = self.lock();
        if let Some(count) = inner.0.get_mut(&block) {
            *count -= 1;
            if *count == 0 {
                inner.0.remove(&block);
            }
            inner.1.push(block);
        }
    }
}

/// A worker, in its own process.
pub struct Worker {
    board: Board,
    store: Store,
    berth: usize,
    borrowed: Arc<Borrowed>,
    /// Since it last claimed a call.
    has_slept: AtomicBool,
}

/// A call that this worker has claimed.
pub struct Request {
    /// Its slot.
    pub slot: usize,
    /// The message.
    pub message: Received,
    /// Its buffers.
    pub buffers: Vec<Lease>,
}

impl Worker {
    /// Joins a pool by the descriptors that the parent has passed on: the memory file and the bells of
    /// the pool's thread and of its loop. `first` is where this worker's allocations begin.
    ///
    /// # Errors
    /// The operating system's.
    pub fn join(
        file: OwnedFd,
        bells: [OwnedFd; 2],
        berth: usize,
        first: u64,
    ) -> io::Result<Worker> {
        let file = MemoryFile::inherited(file);
        let board = Board::map(&file, bells.map(Bell::inherited))?;
        let range = range_of(Some(berth));
        let store = Store::new(file, Range { start: first.max(range.start), end: range.end });
        Ok(Worker {
            board,
            store,
            berth,
            borrowed: Arc::default(),
            has_slept: AtomicBool::new(false),
        })
    }

    /// Tells the parent how far this worker is.
    pub fn set_stage(&self, stage: Stage) {
        self.board.set_stage(self.berth, stage);
    }

    /// Claims a call, if there is one.
    #[must_use]
    pub fn claim(&self) -> Option<usize> {
        let slot = self.board.claim(self.berth, board::now());
        if slot.is_some() && self.has_slept.swap(false, Ordering::Relaxed) {
            self.board.pass_on(self.berth);
        }
        slot
    }

    /// Reads the message of a claimed call.
    ///
    /// # Errors
    /// `InvalidData`, or the operating system's when a block cannot be mapped.
    pub fn read(&self, slot: usize) -> io::Result<Request> {
        let (mut message, _) = frame::receive(&self.store, &self.board, slot)?;
        let mut buffers = Vec::with_capacity(message.references.len());
        // Each counts as received from here on, whatever happens: the parent hands all of them over.
        let lender: Arc<dyn Lender> = self.borrowed.clone();
        let mut failure = None;
        for reference in message.references.drain(..) {
            *self.borrowed.lock().0.entry(reference.block).or_default() += 1;
            match self.store.view(&reference) {
                Ok(view) => buffers.push(Lease::new(view, reference, lender.clone())),
                Err(error) => {
                    self.borrowed.done_with(reference.block);
                    failure = Some(error);
                }
            }
        }
        failure.map_or(Ok(Request { slot, message, buffers }), Err)
    }

    /// Sleeps until there may be something to do; false when it is time to leave.
    ///
    /// # Errors
    /// `Interrupted` when a signal arrived.
    pub fn sleep(&self) -> io::Result<bool> {
        if self.board.is_stopping() && !self.board.has_work() {
            return Ok(false);
        }
        self.has_slept.store(true, Ordering::Relaxed);
        self.board.sleep(self.berth)?;
        Ok(!self.board.is_stopping() || self.board.has_work())
    }

    /// Answers a call. False when the parent is about to kill this worker, which must not go on.
    ///
    /// # Errors
    /// `OutOfMemory`, or the operating system's; the call is not answered then.
    pub fn answer<B: AsRef<[u8]>>(&self, slot: usize, message: &Message<B>) -> io::Result<bool> {
        while let Some(block) = self.board.take_back(self.berth) {
            if let Some(block) = Block::from_number(block) {
                self.store.release(block);
            }
        }
        let releases = std::mem::take(&mut self.borrowed.lock().1);
        match self.store.send(&self.board, slot, message, &releases) {
            Ok(_) => Ok(self.board.finish(slot)),
            Err(error) => {
                self.borrowed.lock().1.extend(releases);
                Err(error)
            }
        }
    }

    /// Where memory of this process lies in the pool's file, when it is a part of a block that this
    /// worker has received and still uses.
    #[must_use]
    pub fn locate(&self, bytes: &[u8]) -> Option<Reference> {
        let place = self.store.find(bytes)?;
        let len = bytes.len() as u64;
        let inner = self.borrowed.lock();
        let block = inner.0.keys().copied().find(|block| {
            block.start() <= place && place + len <= block.start() + block.capacity()
        })?;
        Some(Reference { block, delta: place - block.start(), len })
    }
}
