//! Pools as Python sees them: `concurrent.futures` executors over [`rondel_pool`].
//!
//! | module | what it is |
//! | --- | --- |
//! | [`threads`] | ThreadPool: its queue, its workers' loop, its end |
//! | [`thread_call`] | one call on its way: from the queue to a thread, and its outcome to who waits |

pub mod thread_call;
pub mod threads;
