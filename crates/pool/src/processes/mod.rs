//! Worker processes and the memory that they share with their parent.
//!
//! All of a pool lies in one memory file (memfd), which every worker inherits: at its start the
//! [`board`], behind it the [`arena`]s. A call is a slot of the board. The parent writes a message into
//! a free slot and publishes it; whichever worker is free claims it by one compare-and-swap on the
//! slot's word, answers into the same slot and sets its bit in the board's bitmap of finished calls.
//! Nobody holds a lock in shared memory, so a worker may be killed at any instruction: the word of the
//! slot says what it was doing, and the other calls never notice.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`memory`] | the memory file and its mappings |
//! | [`board`] | slots, claiming, finishing, who sleeps |
//! | [`bell`] | waking: futexes for workers, eventfds for the parent |
//! | [`arena`] | blocks of the memory file for what does not fit into a slot |
//! | [`frame`] | messages: how a pickle and the places of its buffers are laid out |
//! | [`ledger`] | who uses which block, in the parent |
//! | [`parent`] | the parent's side: the queue, finished calls, dead workers, time limits |
//! | [`worker`] | a worker's side |
//! | [`process`] | the end of a process, and ending it, by pidfd |
//!
//! What goes where: a message of up to [`board::INLINE`] bytes travels inside its slot. A longer one is
//! written into a block. Large buffers (NumPy arrays by pickle's protocol 5) get a block each, and the
//! receiver sees them there: they are copied once, and not at all when they lie in a block already.

pub mod arena;
pub mod bell;
pub mod board;
pub mod frame;
pub mod ledger;
pub mod memory;
pub mod parent;
pub mod process;
pub mod worker;
