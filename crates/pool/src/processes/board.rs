//! The board: the part of the memory file where calls are put up, taken and answered.
//!
//! A call's slot goes through these states, all in one word together with the call's ticket:
//!
//! ```text
//! FREE -> READY -> CLAIMED(worker) -> DONE(worker) -> FREE
//!           |         \-> DOOMED(worker) -> FREE
//!           \-> WITHDRAWN -> FREE
//! ```
//!
//! Only the parent publishes, withdraws, dooms and frees; only workers claim and finish. A worker whose
//! call is doomed cannot finish it, so the parent never kills a worker for a call that it has just left. Tickets count up and
//! are the positions in the queue, so a worker that looks at a slot too late sees another ticket and
//! claims nothing. Every step is one atomic operation: there is no moment at which the death of a
//! worker leaves anything half done.

use std::io;
use std::ptr::{self, NonNull};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU32, AtomicU64};

use super::bell::{self, Bell};
use super::memory::{Mapping, MemoryFile};

/// Calls that can be on the board at once; others wait in the parent.
pub const SLOTS: usize = 1024;
/// Bytes of a message that fit into a slot.
pub const INLINE: usize = 960;
/// Worker processes that a pool can have.
pub const BERTHS: usize = 256;
/// Blocks that a worker can be told of at once that they are its own again.
const MAILBOX: u32 = 64;

/// How long a woken worker may take to look around before another one is woken, in nanoseconds.
const PATIENCE: u64 = 200_000;

const FREE: u64 = 0;
const READY: u64 = 1;
const CLAIMED: u64 = 2;
const DONE: u64 = 3;
const WITHDRAWN: u64 = 4;
const DOOMED: u64 = 5;

/// The word of a slot: ticket, worker, state.
fn word(ticket: u64, berth: usize, state: u64) -> u64 {
    ticket << 16 | (berth as u64) << 4 | state
}

/// Where a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nowhere.
    Free,
    /// On the board, for whoever claims it.
    Ready,
    /// The worker in this berth runs it.
    Claimed(usize),
    /// The worker in this berth has answered.
    Done(usize),
    /// Taken back before anybody claimed it.
    Withdrawn,
}

fn state_of(word: u64) -> State {
    let berth = (word >> 4 & 0xfff) as usize;
    match word & 0xf {
        READY => State::Ready,
        CLAIMED | DOOMED => State::Claimed(berth),
        DONE => State::Done(berth),
        WITHDRAWN => State::Withdrawn,
        _ => State::Free,
    }
}

/// What a worker tells of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stage {
    /// It is being started.
    Starting = 0,
    /// It takes calls.
    Working = 1,
    /// It has done its number of calls, or was told to stop, and ends.
    Leaving = 2,
    /// Its initializer raised an exception.
    Unable = 3,
}

/// Which of the parent's bells to ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Listener {
    /// The pool's own thread.
    Thread = 0,
    /// An event loop.
    Loop = 1,
}

// All of the memory file's first part. Zeros are its initial state.
#[repr(C)]
struct Layout {
    /// The next ticket to be claimed.
    head: Line<AtomicU64>,
    /// The next ticket to be published.
    tail: Line<AtomicU64>,
    /// Workers leave when there is nothing to claim.
    stop: AtomicU32,
    /// Who is rung for, a [`Listener`].
    listener: AtomicU32,
    /// Whether a bell was rung and nobody has looked since.
    rung: [AtomicU32; 2],
    /// When a worker was woken that has not looked around yet, or 0.
    woken: Line<AtomicU64>,
    /// A bit for each slot that is DONE and not collected.
    done: Line<[AtomicU64; SLOTS / 64]>,
    queue: [AtomicU32; SLOTS],
    slots: [Slot; SLOTS],
    berths: [Berth; BERTHS],
}

/// On cache lines of its own.
#[repr(C, align(64))]
struct Line<T>(T);

#[repr(C, align(64))]
struct Slot {
    word: AtomicU64,
    /// When it was claimed, in nanoseconds of CLOCK_MONOTONIC.
    since: AtomicU64,
    /// The block of the message, or 0: it is in the slot.
    block: AtomicU64,
    /// The message's length.
    len: AtomicU64,
    message: [u8; INLINE],
}

#[repr(C, align(64))]
struct Berth {
    /// 1 while the worker sleeps, or is about to.
    asleep: AtomicU32,
    stage: AtomicU32,
    /// Blocks of the worker's that nobody uses any more: a ring that the parent fills.
    freed_head: AtomicU32,
    freed_tail: AtomicU32,
    freed: [AtomicU64; MAILBOX as usize],
}

/// How much of the memory file the board takes.
pub const SIZE: usize = size_of::<Layout>();

/// Where a message is.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The block that it is in; 0 for the slot itself.
    pub block: u64,
    /// Its length.
    pub len: usize,
}

/// One process's view of the board.
#[derive(Debug)]
pub struct Board {
    mapping: Mapping,
    bells: [Bell; 2],
}

impl Board {
    /// Maps the board.
    ///
    /// # Errors
    /// The operating system's.
    pub fn map(file: &MemoryFile, bells: [Bell; 2]) -> io::Result<Board> {
        Ok(Board { mapping: file.map(0, SIZE)?, bells })
    }

    fn layout(&self) -> &Layout {
        // SAFETY: the mapping is page-aligned, SIZE long and lives as long as `self`; zeros are a
        // value of every field; all fields that are shared are atomics, but for the messages, which are
        // only reached by pointer and by whoever the slot's state gives them to.
        unsafe { self.mapping.address().cast::<Layout>().as_ref() }
    }

    fn slot(&self, slot: usize) -> &Slot {
        &self.layout().slots[slot % SLOTS]
    }

    fn berth(&self, berth: usize) -> &Berth {
        &self.layout().berths[berth % BERTHS]
    }

    /// The bell of a listener.
    #[must_use]
    pub fn bell(&self, listener: Listener) -> &Bell {
        &self.bells[listener as usize]
    }

    /// The memory for a slot's message. It belongs to the parent while the slot is FREE or DONE, and to
    /// the worker while it is CLAIMED.
    fn message(&self, slot: usize) -> NonNull<u8> {
        let start = std::mem::offset_of!(Layout, slots)
            + slot % SLOTS * size_of::<Slot>()
            + std::mem::offset_of!(Slot, message);
        // SAFETY: inside of the mapping.
        unsafe { self.mapping.address().add(start) }
    }

    /// A copy of the message in a slot.
    #[must_use]
    pub fn read_inline(&self, slot: usize, len: usize) -> Vec<u8> {
        let len = len.min(INLINE);
        let mut copy = Vec::with_capacity(len);
        // SAFETY: `len` bytes of the slot are there to read, and as many to write.
        unsafe {
            ptr::copy_nonoverlapping(self.message(slot).as_ptr(), copy.as_mut_ptr(), len);
            copy.set_len(len);
        }
        copy
    }

    /// Puts a message into a slot.
    pub fn write_inline(&self, slot: usize, message: &[u8]) {
        debug_assert!(message.len() <= INLINE);
        let len = message.len().min(INLINE);
        // SAFETY: `len` bytes are there to read, and as many of the slot to write.
        unsafe { ptr::copy_nonoverlapping(message.as_ptr(), self.message(slot).as_ptr(), len) };
    }

    /// Tells where a slot's message is. Before publishing or finishing.
    pub fn set_place(&self, slot: usize, place: Place) {
        self.slot(slot).block.store(place.block, Relaxed);
        self.slot(slot).len.store(place.len as u64, Relaxed);
    }

    /// Where a slot's message is.
    #[must_use]
    pub fn place(&self, slot: usize) -> Place {
        #[allow(clippy::cast_possible_truncation)] // only 64-bit systems map that much
        let len = self.slot(slot).len.load(Relaxed) as usize;
        Place { block: self.slot(slot).block.load(Relaxed), len }
    }

    /// Where a slot's call is.
    #[must_use]
    pub fn state(&self, slot: usize) -> State {
        state_of(self.slot(slot).word.load(Acquire))
    }

    /// When a slot's call was claimed; 0 when that was just now.
    #[must_use]
    pub fn since(&self, slot: usize) -> u64 {
        self.slot(slot).since.load(Relaxed)
    }

    // ---- the parent's part

    /// Whether another call can be published.
    #[must_use]
    pub fn has_room(&self) -> bool {
        let layout = self.layout();
        self.pass_claimed();
        layout.tail.0.load(Relaxed) - layout.head.0.load(Acquire) < SLOTS as u64
    }

    /// Puts up the call of a FREE slot, whose message is written. Needs [`Board::has_room`].
    pub fn publish(&self, slot: usize) {
        let layout = self.layout();
        let ticket = layout.tail.0.load(Relaxed);
        #[allow(clippy::cast_possible_truncation)]
        let (position, number) = (ticket as usize % SLOTS, slot as u32);
        layout.queue[position].store(number, Relaxed);
        self.slot(slot).since.store(0, Relaxed);
        self.slot(slot).word.store(word(ticket, 0, READY), Release);
        // In one order with the sleeping flags: see `sleep`.
        layout.tail.0.store(ticket + 1, SeqCst);
    }

    /// Sees to it that somebody looks at what was published: wakes a worker that sleeps, the first of
    /// these berths for which it is so, unless one that was woken is just about to look. That one
    /// wakes another when it finds more than it takes ([`Board::pass_on`]). For one thread of the
    /// parent at a time, which has published before.
    pub fn wake_one(&self, berths: impl Iterator<Item = usize>) -> bool {
        let woken = &self.layout().woken.0;
        let since = woken.load(SeqCst);
        let now = now();
        if since != 0 && now.saturating_sub(since) < PATIENCE {
            return false;
        }
        woken.store(now, SeqCst);
        for berth in berths {
            if self.wake(berth) {
                return true;
            }
        }
        woken.store(0, SeqCst);
        false
    }

    /// A worker has died, perhaps one that was woken and did not come to look around.
    pub fn forget_sleeper(&self, berth: usize) {
        self.berth(berth).asleep.store(0, SeqCst);
        self.layout().woken.0.store(0, SeqCst);
    }

    /// Wakes a worker if it sleeps.
    pub fn wake(&self, berth: usize) -> bool {
        let asleep = &self.berth(berth).asleep;
        let slept = asleep.load(SeqCst) == 1 && asleep.swap(0, SeqCst) == 1;
        if slept {
            bell::wake(asleep);
        }
        slept
    }

    /// Takes a call back, unless a worker has claimed it. The slot is free then.
    #[must_use]
    pub fn withdraw(&self, slot: usize) -> bool {
        let cell = &self.slot(slot).word;
        let seen = cell.load(Acquire);
        let taken = seen & !0xf | WITHDRAWN;
        seen & 0xf == READY && cell.compare_exchange(seen, taken, AcqRel, Acquire).is_ok()
    }

    /// Keeps a worker from finishing a call that it runs; the caller must kill it then. Returns the
    /// worker's berth, or None when nobody runs the call, or it is doomed already.
    #[must_use]
    pub fn doom(&self, slot: usize) -> Option<usize> {
        let cell = &self.slot(slot).word;
        let seen = cell.load(Acquire);
        if seen & 0xf != CLAIMED {
            return None;
        }
        let State::Claimed(berth) = state_of(seen) else { return None };
        let doomed = seen & !0xf | DOOMED;
        cell.compare_exchange(seen, doomed, AcqRel, Acquire).is_ok().then_some(berth)
    }

    /// Makes a slot free: its answer is collected, or its worker is dead.
    pub fn free(&self, slot: usize) {
        self.slot(slot).word.store(FREE, Release);
        self.layout().done.0[slot % SLOTS / 64].fetch_and(!(1 << (slot % 64)), SeqCst);
    }

    /// The slots whose calls have been answered since the last time.
    pub fn collect(&self, listener: Listener, into: &mut Vec<usize>) {
        let layout = self.layout();
        // Before looking, so that what is finished while we look rings again.
        layout.rung[listener as usize].store(0, SeqCst);
        for (index, bits) in layout.done.0.iter().enumerate() {
            if bits.load(SeqCst) == 0 {
                continue;
            }
            let mut bits = bits.swap(0, SeqCst);
            while bits != 0 {
                into.push(index * 64 + bits.trailing_zeros() as usize);
                bits &= bits - 1;
            }
        }
    }

    /// Chooses whom workers ring for.
    pub fn set_listener(&self, listener: Listener) {
        self.layout().listener.store(listener as u32, SeqCst);
    }

    /// Tells the workers to leave when there is nothing to claim.
    pub fn stop(&self, berths: impl Iterator<Item = usize>) {
        self.layout().stop.store(1, SeqCst);
        for berth in berths {
            self.wake(berth);
        }
    }

    /// Prepares a berth for a new worker.
    pub fn clear_berth(&self, berth: usize) {
        let berth = self.berth(berth);
        for word in [&berth.asleep, &berth.stage, &berth.freed_head, &berth.freed_tail] {
            word.store(0, SeqCst);
        }
    }

    /// What a worker tells of itself.
    #[must_use]
    pub fn stage(&self, berth: usize) -> Stage {
        match self.berth(berth).stage.load(Acquire) {
            1 => Stage::Working,
            2 => Stage::Leaving,
            3 => Stage::Unable,
            _ => Stage::Starting,
        }
    }

    /// Tells a worker that a block is its own again; false when it has to be told later.
    #[must_use]
    pub fn give_back(&self, berth: usize, block: u64) -> bool {
        let berth = self.berth(berth);
        let tail = berth.freed_tail.load(Relaxed);
        if tail.wrapping_sub(berth.freed_head.load(Acquire)) >= MAILBOX {
            return false;
        }
        berth.freed[(tail % MAILBOX) as usize].store(block, Relaxed);
        berth.freed_tail.store(tail.wrapping_add(1), Release);
        true
    }

    // ---- a worker's part

    /// Whether there is something that could be claimed.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.pass_claimed();
        let layout = self.layout();
        layout.head.0.load(SeqCst) < layout.tail.0.load(SeqCst)
    }

    /// Moves the head over calls that are claimed or withdrawn. Anybody may do this.
    fn pass_claimed(&self) {
        let layout = self.layout();
        loop {
            let head = layout.head.0.load(Acquire);
            if head >= layout.tail.0.load(SeqCst) {
                return;
            }
            let slot = self.queued(head);
            if self.slot(slot).word.load(Acquire) == word(head, 0, READY) {
                return;
            }
            // Failing means that somebody else has moved it.
            let _ = layout.head.0.compare_exchange(head, head + 1, AcqRel, Acquire);
        }
    }

    #[allow(clippy::cast_possible_truncation)]
    fn queued(&self, ticket: u64) -> usize {
        self.layout().queue[ticket as usize % SLOTS].load(Relaxed) as usize
    }

    /// Claims the first call there is.
    #[must_use]
    pub fn claim(&self, berth: usize, now: u64) -> Option<usize> {
        let layout = self.layout();
        loop {
            let head = layout.head.0.load(Acquire);
            if head >= layout.tail.0.load(Acquire) {
                return None;
            }
            let slot = self.queued(head);
            let claimed = self.slot(slot).word.compare_exchange(
                word(head, 0, READY),
                word(head, berth, CLAIMED),
                AcqRel,
                Acquire,
            );
            let _ = layout.head.0.compare_exchange(head, head + 1, AcqRel, Acquire);
            if claimed.is_ok() {
                self.slot(slot).since.store(now, Relaxed);
                return Some(slot);
            }
        }
    }

    /// The call of a slot is answered. Rings for the parent unless it was rung for already. False when
    /// the parent is about to kill this worker.
    #[must_use]
    pub fn finish(&self, slot: usize) -> bool {
        let layout = self.layout();
        let cell = &self.slot(slot).word;
        let seen = cell.load(Relaxed);
        let done = seen & !0xf | DONE;
        if seen & 0xf != CLAIMED || cell.compare_exchange(seen, done, AcqRel, Acquire).is_err() {
            return false;
        }
        layout.done.0[slot % SLOTS / 64].fetch_or(1 << (slot % 64), SeqCst);
        let listener = layout.listener.load(SeqCst).min(1) as usize;
        if layout.rung[listener].swap(1, SeqCst) == 0 {
            self.bells[listener].ring();
        }
        true
    }

    /// Whether the workers shall leave.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.layout().stop.load(SeqCst) != 0
    }

    /// Sleeps until there may be something to claim, or a reason to leave.
    ///
    /// # Errors
    /// `Interrupted` when a signal arrived.
    pub fn sleep(&self, berth: usize) -> io::Result<()> {
        let asleep = &self.berth(berth).asleep;
        asleep.store(1, SeqCst);
        // The parent publishes and then looks who sleeps; this says that it sleeps and then looks what
        // was published. All four in one order: one of the two sees the other.
        let result = if self.has_work() || self.is_stopping() {
            Ok(())
        } else {
            bell::sleep_while(asleep, 1)
        };
        asleep.store(0, SeqCst);
        // From here on this one counts as awake; what was published before is seen by what it does next.
        self.layout().woken.0.store(0, SeqCst);
        result
    }

    /// For a worker that has slept and found a call: wakes another if there is more.
    pub fn pass_on(&self, berth: usize) {
        // Without a note in `woken`, which is for the parent to set: at worst one is woken too many.
        if self.has_work() {
            let _ = (0..BERTHS).any(|other| other != berth && self.wake(other));
        }
    }

    /// Tells the parent how far this worker is.
    pub fn set_stage(&self, berth: usize, stage: Stage) {
        self.berth(berth).stage.store(stage as u32, Release);
    }

    /// The next of the worker's blocks that nobody uses any more.
    #[must_use]
    pub fn take_back(&self, berth: usize) -> Option<u64> {
        let berth = self.berth(berth);
        let head = berth.freed_head.load(Relaxed);
        if head == berth.freed_tail.load(Acquire) {
            return None;
        }
        let block = berth.freed[(head % MAILBOX) as usize].load(Relaxed);
        berth.freed_head.store(head.wrapping_add(1), Release);
        Some(block)
    }
}

/// The time of CLOCK_MONOTONIC, which is the same for all processes, in nanoseconds.
#[must_use]
pub fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: fills in a timespec on the stack; this clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

#[cfg(test)]
mod tests;
