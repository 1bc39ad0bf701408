//! rondel's pools without Python: queues of work, and the workers that take from them.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`threads`] | a queue of calls and the threads that take them: whom to wake, when to have one more |
//! | [`processes`] | worker processes: the memory that they share with their parent, calls, life cycle |

// What it is made of (memfd, futex, pidfd) is Linux's.
#[cfg(target_os = "linux")]
pub mod processes;
pub mod threads;
