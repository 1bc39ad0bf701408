//! What `Handle` and `TimerHandle` mean to Python: asyncio's methods, attributes, repr and ordering.
//!
//! Their memory is managed in [`crate::ffi::handle`], and CPython finds this through the tables in
//! [`crate::ffi::handle_slots`].

use std::ffi::CStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};

use pyo3::prelude::*;
use pyo3::pyclass::CompareOp;
use pyo3::types::{PyDict, PyFloat, PyString};
use rondel_reactor::lock::lock;

use crate::event_loop::{State, exceptions};
use crate::ffi::handle::HandleRef;
use crate::imports;

/// Docstring of `Handle`.
pub const HANDLE_DOC: &CStr =
    c"A callback that waits for its turn, as loop.call_soon() returns it (see asyncio.Handle).";
/// Docstring of `TimerHandle`.
pub const TIMER_HANDLE_DOC: &CStr =
    c"A callback that waits for its time, as loop.call_later() returns it (see asyncio.TimerHandle).";

/// Cancels a handle; a timer's loop is told, so that the heap can be compacted.
pub fn cancel(py: Python<'_>, handle: &HandleRef) -> PyResult<()> {
    if handle.is_cancelled() {
        return Ok(());
    }
    let event_loop = handle.event_loop(py);
    let state = event_loop.get().state(py);
    if state.debug.get() {
        // For messages about the handle after its callback is gone.
        let text = describe(py, handle, true)?;
        handle.save_repr(PyString::new(py, &text).into_any());
    }
    mark(state, handle);
    Ok(())
}

#[inline]
fn mark(state: &State, handle: &HandleRef) {
    handle.mark_cancelled();
    if handle.is_scheduled() {
        state.timer_cancelled(handle);
    }
}

/// The same, if nothing about it can fail or has to wait: whether it was done.
#[inline]
pub fn cancel_plainly(py: Python<'_>, handle: &HandleRef) -> bool {
    let event_loop = handle.event_loop(py);
    let state = event_loop.get().state(py);
    if handle.is_threadsafe() || state.debug.get() {
        return false;
    }
    if !handle.is_cancelled() {
        mark(state, handle);
    }
    true
}

/// `handle.cancel()`: of a callback that is being called, only once it has ended.
pub fn cancel_from_python(py: Python<'_>, handle: &HandleRef) -> PyResult<()> {
    wait_for_end(py, handle);
    cancel(py, handle)
}

/// Counts calls of thread-safe handles that somebody waited for.
static ENDED_CALLS: (Mutex<u64>, Condvar) = (Mutex::new(0), Condvar::new());
static WAITING_THREADS: AtomicUsize = AtomicUsize::new(0);

/// Another thread that asks about a thread-safe handle, or cancels it, gets its answer when a call
/// that is under way has ended. (asyncio holds the handle's lock during the call.)
pub fn wait_for_end(py: Python<'_>, handle: &HandleRef) {
    let state_thread = handle.event_loop(py).get().state(py).thread_id.get();
    if !handle.is_threadsafe() || state_thread == Some(crate::ffi::thread_ident()) {
        return;
    }
    while handle.is_running() {
        // Counted and read with the GIL held, which the end of the call needs too: no end is missed.
        WAITING_THREADS.fetch_add(1, Ordering::Relaxed);
        let (ended, condition) = &ENDED_CALLS;
        let before = *lock(ended);
        py.detach(|| {
            let guard = lock(ended);
            drop(condition.wait_while(guard, |ended| *ended == before));
        });
        WAITING_THREADS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Wakes whoever waits for the end of a thread-safe handle's call.
#[inline]
pub fn call_ended(handle: &HandleRef) {
    if handle.is_threadsafe() && WAITING_THREADS.load(Ordering::Relaxed) > 0 {
        let (ended, condition) = &ENDED_CALLS;
        *lock(ended) += 1;
        condition.notify_all();
    }
}

/// Calls the callback in its context and reports what it raises, as asyncio's `Handle._run` does.
pub fn run(py: Python<'_>, handle: &HandleRef) -> PyResult<()> {
    match handle.call_in_context(py) {
        Ok(()) => Ok(()),
        Err(error) => report(py, handle, error),
    }
}

/// Reports a callback's exception; gives it back when it must leave the loop.
#[cold]
pub fn report(py: Python<'_>, handle: &HandleRef, error: PyErr) -> PyResult<()> {
    if exceptions::must_propagate(py, &error) {
        return Err(error);
    }
    let event_loop = handle.event_loop(py);
    let callback = callback_source(py, handle)?;
    let context = PyDict::new(py);
    context.set_item("message", format!("Exception in callback {callback}"))?;
    context.set_item("exception", crate::errors::exception(py, &error))?;
    context.set_item("handle", handle.bind(py))?;
    if let Some(stack) = handle.source_traceback(py) {
        context.set_item("source_traceback", stack)?;
    }
    exceptions::call_handler(&event_loop, &context)
}

/// asyncio's description of the callback. Newer Pythons show arguments in debug mode only, which
/// they ask about by a keyword.
fn callback_source(py: Python<'_>, handle: &HandleRef) -> PyResult<String> {
    let format = imports::format_callback_source(py)?;
    let arguments = (handle.callback(py), handle.args(py)?);
    let keywords = format.getattr("__kwdefaults__")?;
    if keywords.is_none() {
        return format.call1(arguments)?.extract();
    }
    let debug = handle.event_loop(py).get().state(py).debug.get();
    let options = PyDict::new(py);
    options.set_item("debug", debug)?;
    format.call(arguments, Some(&options))?.extract()
}

/// `repr(handle)`
pub fn repr(py: Python<'_>, handle: &HandleRef) -> PyResult<String> {
    match handle.saved_repr(py) {
        Some(saved) => saved.extract(),
        None => describe(py, handle, handle.is_cancelled()),
    }
}

fn describe(py: Python<'_>, handle: &HandleRef, cancelled: bool) -> PyResult<String> {
    let object = handle.bind(py);
    let mut parts = vec![object.get_type().name()?.to_string()];
    if cancelled {
        parts.push("cancelled".into());
    }
    if is_timer(&object) {
        parts.push(format!("when={}", PyFloat::new(py, handle.when()).repr()?));
    }
    if handle.callback(py).is_some() {
        parts.push(callback_source(py, handle)?);
    }
    if let Some(stack) = handle.source_traceback(py)
        && stack.len()? > 0
    {
        let frame = stack.get_item(-1)?;
        parts.push(format!("created at {}:{}", frame.get_item(0)?, frame.get_item(1)?));
    }
    Ok(format!("<{}>", parts.join(" ")))
}

/// Whether a handle is a TimerHandle.
pub fn is_timer(object: &Bound<'_, PyAny>) -> bool {
    object.get_type().name().is_ok_and(|name| name == "TimerHandle")
}

/// The class of asyncio that a handle passes for.
pub fn class<'py>(py: Python<'py>, handle: &HandleRef) -> PyResult<&'py Bound<'py, PyAny>> {
    if is_timer(&handle.bind(py)) {
        imports::timer_handle_type(py)
    } else if handle.is_threadsafe() {
        imports::threadsafe_handle_type(py)
    } else {
        imports::handle_type(py)
    }
}

/// A value as Python has it when there may be none.
pub fn or_none(py: Python<'_>, value: Option<Bound<'_, PyAny>>) -> Py<PyAny> {
    value.map_or_else(|| py.None(), Bound::unbind)
}

/// Compares two timers by their time, as asyncio does; None when the other is no timer.
pub fn compare(
    py: Python<'_>,
    handle: &HandleRef,
    other: &Bound<'_, PyAny>,
    operation: CompareOp,
) -> PyResult<Option<bool>> {
    if !is_timer(other) {
        return Ok(None);
    }
    let Some(other) = HandleRef::from_object(other) else { return Ok(None) };
    let (a, b) = (handle.when(), other.when());
    let answer = match operation {
        CompareOp::Lt => a < b,
        CompareOp::Gt => a > b,
        CompareOp::Le => a < b || equal(py, handle, &other)?,
        CompareOp::Ge => a > b || equal(py, handle, &other)?,
        CompareOp::Eq => equal(py, handle, &other)?,
        CompareOp::Ne => !equal(py, handle, &other)?,
    };
    Ok(Some(answer))
}

#[allow(clippy::float_cmp)] // asyncio compares the times exactly
fn equal(py: Python<'_>, a: &HandleRef, b: &HandleRef) -> PyResult<bool> {
    let same_call = |py| {
        PyResult::Ok(
            or_none(py, a.callback(py)).bind(py).eq(or_none(py, b.callback(py)))?
                && or_none(py, a.args(py)?.map(Bound::into_any))
                    .bind(py)
                    .eq(or_none(py, b.args(py)?.map(Bound::into_any)))?,
        )
    };
    Ok(a.when() == b.when() && a.is_cancelled() == b.is_cancelled() && same_call(py)?)
}
