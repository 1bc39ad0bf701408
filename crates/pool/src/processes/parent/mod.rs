//! The parent's side: which calls wait, which are on the board, what became of them.
//!
//! [`Parent`] is used from several threads: those that submit calls, the pool's own thread, which waits
//! in [`Parent::wait`], and the thread of an event loop that collects answers itself. One lock guards
//! the tables; it is held for moments only, never while anything large is copied and never across a call
//! into code that this crate does not know.
//!
//! | module | what it is |
//! | --- | --- |
//! | here | the tables; submitting; starting workers; shared memory |
//! | [`answers`] | waiting for answers, and reading them |
//! | [`ending`] | workers that die, calls that are withdrawn, killed or run for too long |
//!
//! A call waits in the parent only while the board is full or it is large: whoever submits a small call
//! puts it onto the board itself and wakes a worker, and the pool's thread is not involved. Large ones
//! are copied by the pool's thread, so that submitting them takes no time.

mod answers;
mod ending;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex};

use rondel_reactor::lock::lock;
use rondel_reactor::poller::{Poller, Registrar, Watch};
use rondel_reactor::slab::{Key, Slab};

use super::arena::{self, View, range_of};
use super::bell::Bell;
use super::board::{self, Board, Listener, SLOTS, Stage};
use super::frame::{self, Kind, Lease, Lender, Message, Pickle, Reference, Sent, Store};
use super::ledger::Accounts;
use super::memory::MemoryFile;
use super::process::Process;

/// Messages with more bytes to copy than this are placed by the pool's thread.
const LIGHT: usize = 64 << 10;

/// So many calls are put onto the board at most before a worker is woken for them.
const MOST_UNANNOUNCED: u32 = 64;

/// A call to submit.
#[derive(Debug)]
pub struct Call<T, B> {
    /// Who is to be told of its end.
    pub target: T,
    /// The function and its arguments.
    pub message: Message<B>,
    /// How long it may run, in nanoseconds, before its worker is killed.
    pub limit: Option<u64>,
    /// Whether an event loop collects its answer rather than the pool's thread.
    pub by_loop: bool,
    /// Whether whoever submits it calls [`Parent::announce`] in a moment, when told to: if there are
    /// more calls than workers anyway, no worker is woken for it before. Waking one for each of many
    /// short calls costs more than the calls.
    pub gathers: bool,
}

/// Why a call has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its worker died.
    Died,
    /// It ran for too long, and its worker was killed.
    Limit,
    /// It was to be killed.
    Killed,
}

/// The answer to a call.
pub struct Answer {
    /// A result or an exception.
    pub kind: Kind,
    /// Its pickle.
    pub pickle: Pickle,
    /// The pickle's buffers.
    pub buffers: Vec<Lease>,
}

/// A call that was answered.
pub struct Finished<T> {
    /// Who is to be told.
    pub target: T,
    /// The answer, or why it cannot be read.
    pub answer: io::Result<Answer>,
}

/// A worker that has ended.
pub struct Lost<T> {
    /// The call that it ran, if any, and why it ended.
    pub failed: Option<(T, Cause)>,
    /// How far it had come.
    pub stage: Stage,
}

/// What happened while the pool's thread waited.
pub struct News<T, B> {
    /// Calls that were answered.
    pub finished: Vec<Finished<T>>,
    /// Calls that could not be put onto the board.
    pub refused: Vec<(T, io::Error)>,
    /// Berths whose workers have ended; see [`Parent::lost`].
    pub ended: Vec<usize>,
    /// Workers to start.
    pub missing: usize,
    /// The pool is to close, and nothing is under way any more.
    pub is_over: bool,
    /// Messages that are not needed any more.
    pub spent: Vec<Message<B>>,
}

impl<T, B> Default for News<T, B> {
    fn default() -> Self {
        News {
            finished: Vec::new(),
            refused: Vec::new(),
            ended: Vec::new(),
            missing: 0,
            is_over: false,
            spent: Vec::new(),
        }
    }
}

impl<T, B> News<T, B> {
    fn is_empty(&self) -> bool {
        self.finished.is_empty()
            && self.refused.is_empty()
            && self.ended.is_empty()
            && self.spent.is_empty()
            && self.missing == 0
            && !self.is_over
    }
}

/// A call on the board.
struct InFlight<T> {
    id: u64,
    target: T,
    limit: Option<u64>,
    by_loop: bool,
    sent: Sent,
    cause: Cause,
}

enum Occupant {
    /// Is being started.
    Starting,
    Present {
        process: Process,
        key: Key,
    },
    /// Its end was reported, and is being looked at.
    Ended,
}

struct State<T, B> {
    next_id: u64,
    free: Vec<usize>,
    slots: Vec<Option<InFlight<T>>>,
    pending: BTreeMap<u64, Call<T, B>>,
    berths: Vec<Option<Occupant>>,
    /// As many workers as there were at once.
    level: usize,
    /// Calls that are not at their end: those that a loop collects, and the others.
    by_loop: usize,
    by_thread: usize,
    /// Calls on the board that have a limit.
    limited: usize,
    /// When the pool's thread will look at the limits.
    alarm: Option<u64>,
    closing: bool,
    stopped: bool,
    /// What is put onto the board now is announced later; calls of which that is true.
    quiet: bool,
    unannounced: u32,
}

impl<T, B> State<T, B> {
    fn outstanding(&self) -> usize {
        self.by_loop + self.by_thread
    }

    fn ends(&mut self, by_loop: bool) {
        let count = if by_loop { &mut self.by_loop } else { &mut self.by_thread };
        *count = count.saturating_sub(1);
    }
}

/// What the poller's events mean.
enum Source {
    Bell,
    Berth(usize),
}

/// A pool of worker processes, in the process that made it.
pub struct Parent<T, B> {
    accounts: Arc<Accounts>,
    state: Mutex<State<T, B>>,
    poller: Mutex<Poller>,
    registrar: Registrar,
    sources: Mutex<Slab<Source>>,
}

impl<T: Send, B: AsRef<[u8]> + Send> Parent<T, B> {
    /// A pool without workers.
    ///
    /// # Errors
    /// The operating system's, usually that there are too many open files.
    pub fn new(max_workers: usize) -> io::Result<Parent<T, B>> {
        let file = MemoryFile::new(arena::FILE_SIZE)?;
        let board = Board::map(&file, [Bell::new()?, Bell::new()?])?;
        let (poller, registrar, _) = Poller::new()?;
        let mut sources = Slab::default();
        let key = sources.insert(Source::Bell);
        registrar.add_edge(board.bell(Listener::Thread).fd(), key)?;
        let max_workers = max_workers.clamp(1, board::BERTHS);
        Ok(Parent {
            accounts: Arc::new(Accounts::new(Store::new(file, range_of(None)), board)),
            state: Mutex::new(State {
                next_id: 1,
                free: (0..SLOTS).rev().collect(),
                slots: (0..SLOTS).map(|_| None).collect(),
                pending: BTreeMap::new(),
                berths: (0..max_workers).map(|_| None).collect(),
                level: 0,
                by_loop: 0,
                by_thread: 0,
                limited: 0,
                alarm: None,
                closing: false,
                stopped: false,
                quiet: false,
                unannounced: 0,
            }),
            poller: Mutex::new(poller),
            registrar,
            sources: Mutex::new(sources),
        })
    }

    fn board(&self) -> &Board {
        &self.accounts.board
    }

    /// The descriptors that a worker inherits: the memory file, the thread's bell, the loop's bell.
    #[must_use]
    pub fn descriptors(&self) -> [RawFd; 3] {
        let board = self.board();
        let file = self.accounts.store.file().fd();
        [file, board.bell(Listener::Thread).fd(), board.bell(Listener::Loop).fd()]
    }

    /// Makes [`Parent::wait`] look around.
    pub fn ring(&self) {
        self.board().bell(Listener::Thread).ring();
    }

    /// Submits a call: returns its number, its message when it is not needed any more, and whether
    /// [`Parent::announce`] is to be called, which it is not for each call of many.
    pub fn submit(&self, call: Call<T, B>) -> (u64, Option<Message<B>>, bool) {
        let mut state = lock(&self.state);
        let id = state.next_id;
        state.next_id += 1;
        if call.by_loop {
            state.by_loop += 1;
        } else {
            state.by_thread += 1;
        }
        let loops = state.by_thread == 0 && !state.closing;
        self.board().set_listener(if loops { Listener::Loop } else { Listener::Thread });
        // Such a call must find the pool's thread waiting for no longer than its limit.
        let hurry = call.limit.is_some_and(|limit| {
            state.alarm.is_none_or(|alarm| alarm > board::now().saturating_add(limit))
        });
        for reference in placed(&call.message) {
            self.accounts.ledger().hold(reference.block);
        }
        let mut spent = Vec::new();
        let mut refused = Vec::new();
        let direct = state.pending.is_empty() && call.message.weight() <= LIGHT;
        let alive = state.berths.iter().flatten().count();
        let before = state.unannounced;
        state.quiet =
            call.gathers && before < MOST_UNANNOUNCED && state.outstanding() > state.berths.len();
        state.pending.insert(id, call);
        if direct {
            self.publish_light(&mut state, &mut spent, &mut refused);
        }
        state.quiet = false;
        let is_owed = before == 0 && state.unannounced > 0;
        let short = alive < state.berths.len() && alive < state.outstanding();
        let wants_thread = hurry || short || !state.pending.is_empty() || !refused.is_empty();
        // What could not be placed just now goes back; the pool's thread reports it.
        for (id, call, _) in refused {
            state.pending.insert(id, call);
        }
        drop(state);
        if wants_thread {
            self.ring();
        }
        (id, spent.pop(), is_owed)
    }

    /// Has a worker look at what was submitted without waking one.
    pub fn announce(&self) {
        let mut state = lock(&self.state);
        if state.unannounced > 0 {
            self.wake_worker(&mut state);
        }
    }

    /// Puts waiting calls onto the board until it is full or a large one comes.
    fn publish_light(
        &self,
        state: &mut State<T, B>,
        spent: &mut Vec<Message<B>>,
        refused: &mut Vec<(u64, Call<T, B>, io::Error)>,
    ) {
        loop {
            let Some(first) = state.pending.first_entry() else { return };
            if first.get().message.weight() > LIGHT || state.free.is_empty() {
                return;
            }
            if !self.board().has_room() {
                return;
            }
            let (id, call) = first.remove_entry();
            let Some(slot) = state.free.pop() else { return };
            match self.accounts.store.send(self.board(), slot, &call.message, &[]) {
                Ok(sent) => spent.push(self.put_up(state, slot, id, call, sent)),
                Err(error) => {
                    state.free.push(slot);
                    refused.push((id, call, error));
                }
            }
        }
    }

    /// Publishes a call whose message is placed.
    fn put_up(
        &self,
        state: &mut State<T, B>,
        slot: usize,
        id: u64,
        call: Call<T, B>,
        sent: Sent,
    ) -> Message<B> {
        for (buffer, block) in call.message.buffers.iter().zip(&sent.buffers) {
            if matches!(buffer, frame::Buffer::Copy(_)) {
                self.accounts.ledger().hold(*block);
            }
        }
        let Call { target, message, limit, by_loop, gathers: _ } = call;
        state.limited += usize::from(limit.is_some());
        state.slots[slot] = Some(InFlight { id, target, limit, by_loop, sent, cause: Cause::Died });
        self.board().publish(slot);
        if state.quiet {
            state.unannounced += 1;
        } else {
            self.wake_worker(state);
        }
        message
    }

    /// Sees to it that a worker looks at what was published. With the lock held.
    fn wake_worker(&self, state: &mut State<T, B>) {
        state.unannounced = 0;
        let present =
            |berth: &usize| matches!(state.berths[*berth], Some(Occupant::Present { .. }));
        self.board().wake_one((0..state.berths.len()).filter(present));
    }

    /// Copies large messages, without the lock, and puts them up.
    fn publish_heavy(&self, news: &mut News<T, B>) {
        loop {
            let mut state = lock(&self.state);
            let mut refused = Vec::new();
            self.publish_light(&mut state, &mut news.spent, &mut refused);
            for (_, call, error) in refused {
                news.spent.push(self.give_up(&mut state, call, error, &mut news.refused));
            }
            if state.free.is_empty() || !self.board().has_room() {
                return;
            }
            let Some((id, call)) = state.pending.pop_first() else { return };
            let Some(slot) = state.free.pop() else { return };
            drop(state);
            let sent = self.accounts.store.send(self.board(), slot, &call.message, &[]);
            let mut state = lock(&self.state);
            match sent {
                Ok(sent) => news.spent.push(self.put_up(&mut state, slot, id, call, sent)),
                Err(error) => {
                    state.free.push(slot);
                    news.spent.push(self.give_up(&mut state, call, error, &mut news.refused));
                }
            }
        }
    }

    /// A call that was on the board is at its end: its slot is free, and so is its message.
    fn leave(&self, state: &mut State<T, B>, slot: usize, call: &InFlight<T>) {
        if let Some(frame) = call.sent.frame {
            self.accounts.store.release(frame);
        }
        self.board().free(slot);
        state.free.push(slot);
        state.limited -= usize::from(call.limit.is_some());
        state.ends(call.by_loop);
    }

    fn give_up(
        &self,
        state: &mut State<T, B>,
        call: Call<T, B>,
        error: io::Error,
        refused: &mut Vec<(T, io::Error)>,
    ) -> Message<B> {
        state.ends(call.by_loop);
        for reference in placed(&call.message) {
            self.accounts.drop_use(reference.block);
        }
        refused.push((call.target, error));
        call.message
    }

    // ---- workers

    /// A berth for a worker that is about to be started, and where its allocations begin; None when
    /// there is no berth free.
    pub fn reserve(&self) -> Option<(usize, u64)> {
        let mut state = lock(&self.state);
        let berth = state.berths.iter().position(Option::is_none)?;
        state.berths[berth] = Some(Occupant::Starting);
        self.board().clear_berth(berth);
        state.level = state.level.max(state.berths.iter().flatten().count());
        Some((berth, self.accounts.first_free(berth)))
    }

    /// The worker of a berth has been started.
    ///
    /// # Errors
    /// The operating system's: `ESRCH` when it has ended already, which nobody else will report.
    pub fn started(&self, berth: usize, pid: i32) -> io::Result<()> {
        let process = Process::open(pid)?;
        let mut state = lock(&self.state);
        let key = lock(&self.sources).insert(Source::Berth(berth));
        let watch = Watch { read: true, write: false };
        if let Err(error) = self.registrar.add_level(process.fd(), key, watch) {
            lock(&self.sources).remove(key);
            return Err(error);
        }
        // It may have claimed a call already, and the call may have been killed.
        let is_doomed = state.slots.iter().enumerate().any(|(slot, call)| {
            call.as_ref().is_some_and(|call| call.cause != Cause::Died)
                && self.board().state(slot) == board::State::Claimed(berth)
        });
        if is_doomed {
            process.signal(libc::SIGKILL);
        }
        state.berths[berth] = Some(Occupant::Present { process, key });
        Ok(())
    }

    /// The worker of a berth could not be started, or its end has been dealt with.
    pub fn vacate(&self, berth: usize) {
        lock(&self.state).berths[berth] = None;
    }

    /// Fewer workers are enough from now on: none is started that no call waits for.
    pub fn lower(&self) {
        lock(&self.state).level = 0;
    }

    // ---- the pool

    /// Takes no more workers than calls need, and ends when no call is left.
    pub fn close(&self) {
        let mut state = lock(&self.state);
        state.closing = true;
        self.board().set_listener(Listener::Thread);
        drop(state);
        self.announce();
        self.ring();
    }

    /// Calls that are not at their end.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        lock(&self.state).outstanding()
    }

    /// Blocks of shared memory that are in use.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.accounts.ledger().len()
    }

    // ---- shared memory

    /// A block of shared memory of the parent's own.
    ///
    /// # Errors
    /// `OutOfMemory`, or the operating system's.
    pub fn allocate(&self, len: usize) -> io::Result<Lease> {
        let (block, view): (_, View) = self.accounts.store.allocate(len)?;
        self.accounts.ledger().hold(block);
        let reference = Reference { block, delta: 0, len: len as u64 };
        let lender: Arc<dyn Lender> = self.accounts.clone();
        Ok(Lease::new(view, reference, lender))
    }

    /// The memory of a block in use.
    ///
    /// # Errors
    /// The operating system's, when it cannot be mapped.
    pub fn view(&self, reference: &Reference) -> io::Result<View> {
        self.accounts.store.view(reference)
    }

    /// Where memory of this process lies in the pool's file, when it is a part of a block in use.
    #[must_use]
    pub fn locate(&self, bytes: &[u8]) -> Option<Reference> {
        let place = self.accounts.store.find(bytes)?;
        let len = bytes.len() as u64;
        let block = self.accounts.ledger().find(place, len)?;
        Some(Reference { block, delta: place - block.start(), len })
    }
}

fn placed<B>(message: &Message<B>) -> impl Iterator<Item = &Reference> {
    message.buffers.iter().filter_map(|buffer| match buffer {
        frame::Buffer::Placed(reference) => Some(reference),
        frame::Buffer::Copy(_) => None,
    })
}
