//! Debug mode (PYTHONASYNCIODEBUG): wrong threads, wrong callbacks, slow callbacks, origins.

use pyo3::exceptions::{PyRuntimeError, PyTypeError};
use pyo3::intern;
use pyo3::prelude::*;
use rondel_reactor::clock;

use super::{Loop, State, nesting};
use crate::ffi::handle::HandleRef;
use crate::imports;

/// asyncio.constants.DEBUG_STACK_DEPTH
const STACK_DEPTH: i32 = 10;

/// `threading.get_ident()` of the calling thread.
pub fn thread_ident() -> u64 {
    crate::ffi::thread_ident()
}

/// Checks a scheduling call: its thread, unless any may call, and its callback.
pub fn check_call(
    event_loop: &Bound<'_, Loop>,
    callback: &Bound<'_, PyAny>,
    method: &str,
    check_thread: bool,
) -> PyResult<()> {
    let py = event_loop.py();
    if check_thread
        && let Some(owner) = event_loop.get().state(py).thread_id.get()
        && owner != thread_ident()
    {
        return Err(PyRuntimeError::new_err(
            "Non-thread-safe operation invoked on an event loop other than the current one",
        ));
    }
    if imports::iscoroutine(py)?.call1((callback,))?.is_truthy()?
        || imports::iscoroutinefunction(py)?.call1((callback,))?.is_truthy()?
    {
        return Err(PyTypeError::new_err(format!("coroutines cannot be used with {method}()")));
    }
    if !callback.is_callable() {
        return Err(PyTypeError::new_err(format!(
            "a callable object was expected by {method}(), got {}",
            callback.repr()?
        )));
    }
    Ok(())
}

/// Notes the Python stack at which a handle was made.
pub fn note_origin(py: Python<'_>, handle: &HandleRef) -> PyResult<()> {
    // Without a Python frame below (a program that embeds Python) there is no origin.
    if let Ok(frame) = imports::getframe(py)?.call1((0,)) {
        handle.set_source_traceback(imports::extract_stack(py)?.call1((frame,))?);
    }
    Ok(())
}

/// `loop.set_debug(enabled)`.
pub fn set(event_loop: &Bound<'_, Loop>, enabled: bool) -> PyResult<()> {
    let py = event_loop.py();
    let state = event_loop.get().state(py);
    state.debug.set(enabled);
    if state.thread_id.get().is_some() {
        // The interpreter's setting belongs to the loop's thread.
        event_loop.call_method1(
            intern!(py, "call_soon_threadsafe"),
            (event_loop.getattr(intern!(py, "_set_coroutine_origin_tracking"))?, enabled),
        )?;
    }
    Ok(())
}

/// Makes coroutines remember where they were created, or restores what was set before.
pub fn track_origins(py: Python<'_>, state: &State, enabled: bool) -> PyResult<()> {
    match (enabled, state.saved_origin_depth.get()) {
        (true, None) => {
            let depth = imports::get_origin_depth(py)?.call0()?.extract()?;
            imports::set_origin_depth(py)?.call1((STACK_DEPTH,))?;
            state.saved_origin_depth.set(Some(depth));
        }
        (false, Some(depth)) => {
            imports::set_origin_depth(py)?.call1((depth,))?;
            state.saved_origin_depth.set(None);
        }
        _ => {}
    }
    Ok(())
}

/// Runs a callback in debug mode: notes it as the current one and logs it when it is slow.
#[cold]
pub fn timed(
    event_loop: &Bound<'_, Loop>,
    handle: &HandleRef,
    run: impl FnOnce() -> PyResult<()>,
) -> PyResult<()> {
    let py = event_loop.py();
    let state = event_loop.get().state(py);
    nesting::noted(state, handle.clone_ref(py), || {
        let start = state.own_ns();
        let result = run();
        result.and(log_if_slow(event_loop, &handle.bind(py), start))
    })
}

/// The same for native code, which has no handle.
#[cold]
pub fn timed_native(
    event_loop: &Bound<'_, Loop>,
    target: &Bound<'_, PyAny>,
    run: impl FnOnce() -> PyResult<()>,
) -> PyResult<()> {
    let state = event_loop.get().state(event_loop.py());
    let start = state.own_ns();
    let result = run();
    result.and(log_if_slow(event_loop, target, start))
}

fn log_if_slow(event_loop: &Bound<'_, Loop>, what: &Bound<'_, PyAny>, start: u64) -> PyResult<()> {
    let py = event_loop.py();
    let state = event_loop.get().state(py);
    let seconds = clock::to_seconds(state.own_ns() - start);
    if seconds >= state.slow_callback_duration.get() {
        event_loop.call_method1(intern!(py, "_log_slow_callback"), (what, seconds))?;
    }
    Ok(())
}
