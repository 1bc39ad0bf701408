//! Running the loop where one runs already (`Loop.nesting`).
//!
//! A loop that runs may be run again by one of its own callbacks: the callback is suspended, and turns
//! go on above it on the stack until the future that it waits for is done. A turn takes its callbacks,
//! events and timers out of the loop's queues one at a time, so what the interrupted turn had not come
//! to is still there: the nested run does it first, and what it leaves goes on with the turn below.
//!
//! A loop that does not run may be run inside a callback of another loop, which stands still meanwhile.
//!
//! Either way the thread's running loop, current task and SIGINT handler are put aside, and back
//! afterwards, by `rondel.nesting`.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyContext;
use rondel_reactor::clock;

use super::{Loop, State, turn};
use crate::ffi::context::Suspended;
use crate::ffi::handle::HandleRef;
use crate::imports;

/// `loop.nesting = allowed`.
pub fn allow(state: &State, allowed: bool) {
    state.nesting.set(allowed);
    state.observed.set(allowed || state.watching.borrow().is_some());
}

/// `loop.stop()`: ends the innermost run, unless it comes from the end of what the outermost waits for.
pub fn stop(py: Python<'_>, state: &State) -> PyResult<()> {
    if state.nested_runs.get() > 0 && !state.stopping_outermost.get() {
        let awaited = state.awaited.borrow().as_ref().map(|future| future.clone_ref(py));
        if let Some(future) = awaited
            && is_done(future.bind(py))?
        {
            state.stopping_outermost.set(true);
            return Ok(());
        }
    }
    state.stopping.set(true);
    Ok(())
}

/// Whether a future is done.
pub fn is_done(future: &Bound<'_, PyAny>) -> PyResult<bool> {
    future.call_method0(intern!(future.py(), "done"))?.is_truthy()
}

/// Runs a callback, which is the current one meanwhile.
pub fn noted<R>(state: &State, handle: HandleRef, run: impl FnOnce() -> R) -> R {
    let before = state.current_handle.replace(Some(handle));
    let result = run();
    // The borrow has ended when the handle goes.
    let ended = state.current_handle.replace(before);
    drop(ended);
    result
}

/// Does something while another loop's callback, which is what runs in this thread, is put aside.
pub fn as_guest<R>(py: Python<'_>, run: impl FnOnce() -> PyResult<R>) -> PyResult<R> {
    let aside = imports::put_aside(py)?.call0()?;
    let result = run();
    let restored = aside.call_method0(intern!(py, "restore"));
    result.and_then(|result| restored.map(|_| result))
}

/// Runs the running loop until the future is done; without one, until stop() is called. `is_own` says
/// that nobody else has the future.
///
/// # Errors
/// What leaves the loop. `RuntimeError` when the future can only be done by what is suspended.
pub fn run(
    event_loop: &Bound<'_, Loop>,
    future: Option<&Bound<'_, PyAny>>,
    is_own: bool,
) -> PyResult<()> {
    let py = event_loop.py();
    let state = event_loop.get().state(py);
    // What the callback has written leaves before the loop waits for the answer to it.
    state.gathered.send(py);
    let nested = imports::nested_run(py)?.call1((event_loop, future, is_own))?;
    let result = suspended(py, state, &nested, || turns(event_loop, state, future, &nested));
    let ended = nested.call_method0(intern!(py, "restore"));
    result.and(ended.map(drop))
}

/// Does something while the callback that runs is suspended.
fn suspended(
    py: Python<'_>,
    state: &State,
    nested: &Bound<'_, PyAny>,
    run: impl FnOnce() -> PyResult<()>,
) -> PyResult<()> {
    let stopping = state.stopping.replace(false);
    let since = clock::now_ns();
    let time_nested = state.time_nested.get();
    state.nested_runs.set(state.nested_runs.get() + 1);
    watch_pauses(state, None);
    let contexts = contexts(py, state, nested);
    let result = contexts.and_then(|contexts| {
        let _left = Suspended::leave(contexts);
        run()
    });
    state.gathered.send(py);
    // The turn below goes on with what is ready now.
    state.left.set(state.ready.borrow().len());
    let now = clock::now_ns();
    watch_pauses(state, Some(now));
    state.time_nested.set(time_nested + now.saturating_sub(since));
    state.nested_runs.set(state.nested_runs.get() - 1);
    let outermost = state.nested_runs.get() == 0 && state.stopping_outermost.take();
    state.stopping.set(stopping || outermost);
    result
}

fn watch_pauses(state: &State, since: Option<u64>) {
    if let Some(watching) = &*state.watching.borrow() {
        watching.suspended(since);
    }
}

/// The contexts that the suspended callback runs in, as far as they are known: its task's, and the one
/// that the loop has entered for it.
fn contexts<'py>(
    py: Python<'py>,
    state: &State,
    nested: &Bound<'py, PyAny>,
) -> PyResult<Vec<Bound<'py, PyContext>>> {
    let task = nested.getattr(intern!(py, "context"))?;
    let mut contexts: Vec<_> = task.cast_into().ok().into_iter().collect();
    contexts.extend(state.current_handle.borrow().as_ref().and_then(|handle| handle.context(py)));
    Ok(contexts)
}

fn turns(
    event_loop: &Bound<'_, Loop>,
    state: &State,
    future: Option<&Bound<'_, PyAny>>,
    nested: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let py = event_loop.py();
    let ended = || future.map_or(Ok(false), is_done);
    if ended()? {
        return Ok(());
    }
    // No poll before the events of the last one are dealt with: it would report them again.
    turn::without_poll(event_loop, state, &ended)?;
    while !ended()? && !state.stopping.get() {
        if !turn::is_busy(state) {
            check_hope(py, state, nested)?;
        }
        turn::run_once(event_loop, state, &ended)?;
    }
    Ok(())
}

/// Before the loop waits: can what it waits for ever come?
fn check_hope(py: Python<'_>, state: &State, nested: &Bound<'_, PyAny>) -> PyResult<()> {
    let idle = state.timers.borrow().is_empty() && state.sources.borrow().is_empty();
    if nested.call_method1(intern!(py, "is_stuck"), (idle,))?.is_truthy()? {
        let timers: Vec<_> = state.timers.borrow().iter().map(|handle| handle.bind(py)).collect();
        nested.call_method1(intern!(py, "check_rescue"), (timers,))?;
    }
    Ok(())
}

impl State {
    /// The clock, but for the time that callbacks have been suspended by nested runs.
    #[inline]
    pub fn own_ns(&self) -> u64 {
        clock::now_ns() - self.time_nested.get()
    }
}
