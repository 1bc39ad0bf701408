//! State confined to threads that hold the GIL.

use pyo3::PyVisit;
use pyo3::prelude::*;

/// A value that may only be reached with proof that the GIL is held.
///
/// This is what lets a `frozen` Python class have plain `Cell`s and `RefCell`s inside: no lock, no
/// atomic operation, and still no data race, because two threads never hold the GIL at once. Values
/// are dropped when their Python object is deallocated, which happens with the GIL held too.
pub struct Confined<T> {
    value: T,
    /// [`INITIALISED`], unless the object around is only allocated yet.
    mark: u64,
}

/// Says that the memory is no longer the zeros that an object is allocated with.
const INITIALISED: u64 = 0x726f_6e64_656c_2121;

// SAFETY: the only ways to the value are `get` and `in_traverse`, whose arguments prove that the
// calling thread holds the GIL, so accesses from different threads are ordered by it.
unsafe impl<T> Sync for Confined<T> {}
// SAFETY: as above; the thread that the value was made on has no part in it.
unsafe impl<T> Send for Confined<T> {}

impl<T> Confined<T> {
    /// Wraps a value.
    pub const fn new(value: T) -> Self {
        Confined { value, mark: INITIALISED }
    }

    /// The value, for as long as the thread stays attached.
    #[inline]
    pub fn get<'a>(&'a self, _py: Python<'a>) -> &'a T {
        &self.value
    }

    /// The value during garbage collection, which runs with the GIL held but must not use it.
    ///
    /// None when there is no value yet: CPython 3.11 allocates an object, tracks it, and then makes
    /// its `__dict__`, which can start a collection, before the class's own part is filled in.
    pub fn in_traverse(&self, _visit: &PyVisit<'_>) -> Option<&T> {
        (self.mark == INITIALISED).then_some(&self.value)
    }

    /// The value when nobody else can have a reference to it.
    pub fn get_mut(&mut self) -> &mut T {
        &mut self.value
    }
}
