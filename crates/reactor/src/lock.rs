//! A lock whose poison means nothing: nothing is left half done under the locks of these crates, so a
//! panic elsewhere does not spoil what they guard.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Lock, also after a thread has panicked with the lock in its hands.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
