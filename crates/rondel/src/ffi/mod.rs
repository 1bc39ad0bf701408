//! Every unsafe call into CPython, and into the OpenSSL that it loads, each behind a safe face.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`confined`] | state that is only touched by a thread that is attached to the interpreter |
//! | [`handle`] | `Handle` and `TimerHandle` as raw objects with a free list and inline arguments |
//! | `handle_call` | calling what a handle holds, in its context |
//! | `handle_slots` | the tables through which CPython finds what handles do |
//! | [`handle_types`] | the types themselves |
//! | `types` | making such types: the entries of CPython's tables |
//! | `methods` | raw methods of native types, by CPython's own calling convention |
//! | [`queued_call`] | a callback that waits without a handle |
//! | [`scheduling`] | the loop's hot methods (`call_soon` and relatives) as raw vectorcall methods |
//! | `tasks` | create_task() likewise |
//! | [`transport`] | a stream transport's write() likewise |
//! | [`streams`] | the streams' read(), readline(), write() and drain() likewise |
//! | `huge_pages` | huge pages for large objects of a worker process |
//! | `stop_iteration` | raising StopIteration with a value |
//! | [`stepping`] | how an awaited object of ours hands its result to the interpreter |
//! | [`operation`] | what a stream's coroutine methods return, as a raw object with a free list |
//! | [`sleep`] | `asyncio.sleep` as such an operation where it only yields |
//! | [`lookup`] | which function a method call would reach |
//! | [`context`] | entering and leaving `contextvars.Context` |
//! | [`shared_context`] | one copy of a context for many handles |
//! | [`socket`] | the descriptor of a Python socket object, as it is now |
//! | [`openssl`] | OpenSSL behind an `ssl.SSLObject`, without Python between |
//! | [`audit`] | whether the program listens to audit events |
//! | [`buffer`] | views of bytes-like objects; receiving straight into new `bytes` |
//! | [`shared_buffer`] | memory that crosses between processes |
//!
//! The extension declares that it needs the GIL. "Attached" below means: holds it.

pub mod audit;
pub mod buffer;
pub mod confined;
pub mod context;
pub mod handle;
mod handle_call;
mod handle_slots;
pub mod handle_types;
#[cfg(target_os = "linux")]
pub mod huge_pages;
pub mod lookup;
mod methods;
pub mod openssl;
pub mod operation;
pub mod queued_call;
pub mod scheduling;
#[cfg(target_os = "linux")]
pub mod shared_buffer;
pub mod shared_context;
pub mod sleep;
pub mod socket;
pub mod stepping;
mod stop_iteration;
pub mod streams;
mod tasks;
pub mod transport;
mod types;

/// Lets PyO3 know that this thread is attached, for code that CPython calls directly.
///
/// PyO3's own way refuses once the interpreter is finalizing, when CPython still calls methods of
/// objects that go then.
///
/// # Safety
/// The calling thread is attached.
pub unsafe fn attached<R>(f: impl FnOnce(pyo3::Python<'_>) -> R) -> R {
    // SAFETY: by this function's contract; an attached thread may attach once more.
    unsafe { pyo3::Python::attach_unchecked(f) }
}

/// `threading.get_ident()` of the calling thread.
pub fn thread_ident() -> u64 {
    // SAFETY: the call has no precondition.
    unsafe { pyo3::ffi::PyThread_get_thread_ident() }
}

/// Whether this is the only thread that the interpreter knows of, so that nobody waits for the GIL.
pub fn is_only_thread(_py: pyo3::Python<'_>) -> bool {
    // SAFETY: attached, so there is a thread state, and it is alive. A new one is put before those
    // that there are, so only our own is looked into: another thread's may be freed at any time.
    unsafe {
        let mine = pyo3::ffi::PyThreadState_Get();
        let interpreter = pyo3::ffi::PyThreadState_GetInterpreter(mine);
        pyo3::ffi::PyInterpreterState_ThreadHead(interpreter) == mine
            && pyo3::ffi::PyThreadState_Next(mine).is_null()
    }
}

/// Whether nobody else has a reference to the object.
pub fn is_sole<T>(object: &pyo3::Py<T>, _py: pyo3::Python<'_>) -> bool {
    // SAFETY: attached, and the object is alive.
    unsafe { pyo3::ffi::Py_REFCNT(object.as_ptr()) == 1 }
}
