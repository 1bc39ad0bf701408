//! rondel's engine without Python: what an event loop needs to wait, to know what became ready, and
//! to keep time.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`poller`] | one epoll (kqueue) instance on mio, with edge- and level-triggered sources and a wake-up |
//! | [`slab`] | sources by index and generation, so that a late event cannot reach a successor |
//! | [`timers`] | a heap on (deadline, sequence): equal deadlines are FIFO |
//! | [`clock`] | nanoseconds of `CLOCK_MONOTONIC`, the clock of `time.monotonic()` |
//! | [`counting`] | numbers and histograms that one thread counts and others read |
//! | [`write_queue`] | chunks waiting to be sent, gathered into one `writev` |
//! | [`fork`] | whether this process is a forked copy of the one before |
//! | [`net`] | non-blocking socket calls on raw descriptors |
//! | [`datagrams`] | receiving many datagrams in one call |
//! | [`sendfile`] | sending a file by the kernel alone |
//! | [`disk`] | reading files without waiting for a disk, and what may wait for it |
//! | [`pipe`] | the same for pipes and character devices |
//! | [`lock`] | a lock that no panic spoils |
//! | [`child`] | the end of a child process as a descriptor to poll |
//!
//! Nothing here is thread-safe unless it says so: an engine belongs to the thread of its loop.
//! [`poller::Waker`] is what other threads use, and [`counting`] what they read.

pub mod child;
pub mod clock;
pub mod counting;
pub mod datagrams;
pub mod disk;
pub mod fork;
pub mod lock;
pub mod net;
pub mod pipe;
pub mod poller;
pub mod sendfile;
pub mod slab;
pub mod threads;
pub mod timers;
pub mod write_queue;
