//! Every unsafe call into CPython, each behind a safe face.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`confined`] | state that is only touched by a thread that is attached to the interpreter |
//! | [`handle`] | `Handle` and `TimerHandle` as raw objects with a free list and inline arguments |
//! | [`scheduling`] | the loop's hot methods (`call_soon` and relatives) as raw vectorcall methods |
//! | [`context`] | entering and leaving `contextvars.Context` |
//! | [`buffer`] | views of bytes-like objects; receiving straight into new `bytes` |
//!
//! The extension declares that it needs the GIL. "Attached" below means: holds it.

pub mod buffer;
pub mod confined;
pub mod context;
pub mod handle;
pub mod scheduling;

/// `threading.get_ident()` of the calling thread.
pub fn thread_ident() -> u64 {
    // SAFETY: the call has no precondition.
    unsafe { pyo3::ffi::PyThread_get_thread_ident() }
}
