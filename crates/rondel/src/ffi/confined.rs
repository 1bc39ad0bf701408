//! State confined to threads that hold the GIL.

use pyo3::PyVisit;
use pyo3::prelude::*;

/// A value that may only be reached with proof that the GIL is held.
///
/// This is what lets a `frozen` Python class have plain `Cell`s and `RefCell`s inside: no lock, no
/// atomic operation, and still no data race, because two threads never hold the GIL at once. Values
/// are dropped when their Python object is deallocated, which happens with the GIL held too.
pub struct Confined<T>(T);

// SAFETY: the only ways to the value are `get` and `in_traverse`, whose arguments prove that the
// calling thread holds the GIL, so accesses from different threads are ordered by it.
unsafe impl<T> Sync for Confined<T> {}
// SAFETY: as above; the thread that the value was made on has no part in it.
unsafe impl<T> Send for Confined<T> {}

impl<T> Confined<T> {
    /// Wraps a value.
    pub const fn new(value: T) -> Self {
        Confined(value)
    }

    /// The value, for as long as the thread stays attached.
    #[inline]
    pub fn get<'a>(&'a self, _py: Python<'a>) -> &'a T {
        &self.0
    }

    /// The value during garbage collection, which runs with the GIL held but must not use it.
    pub fn in_traverse(&self, _visit: &PyVisit<'_>) -> &T {
        &self.0
    }

    /// The value when nobody else can have a reference to it.
    pub fn get_mut(&mut self) -> &mut T {
        &mut self.0
    }
}
