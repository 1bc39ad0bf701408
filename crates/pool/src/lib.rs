//! rondel's pools without Python: queues of work, and the workers that take from them.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`threads`] | a queue of calls and the threads that take them: whom to wake, when to have one more |

pub mod threads;
