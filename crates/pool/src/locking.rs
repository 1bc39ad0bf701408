//! Taking a lock that somebody may have panicked under.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// The lock's content, also after a panic in another thread: nothing in this crate can panic half-way
/// through a change.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
