//! From run to close.

use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::nesting::{self, is_done};
use super::{Loop, State, debug, turn};
use crate::imports;

/// `loop.run_forever()`.
pub fn run_forever(event_loop: &Bound<'_, Loop>) -> PyResult<()> {
    let py = event_loop.py();
    let state = event_loop.get().state(py);
    state.check_closed()?;
    state.check_process()?;
    match way_in(py, state)? {
        WayIn::Free => run_outermost(event_loop, state),
        WayIn::Guest => nesting::as_guest(py, || run_outermost(event_loop, state)),
        WayIn::Nested => nesting::run(event_loop, None, false),
    }
}

fn run_outermost(event_loop: &Bound<'_, Loop>, state: &State) -> PyResult<()> {
    set_up(event_loop, state)?;
    let result = turn::run(event_loop);
    let cleaned = clean_up(event_loop, state);
    // An exception that left the loop is the news; one from the clean-up only without it.
    result.and(cleaned)
}

/// How a run begins.
enum WayIn {
    /// No loop runs in this thread.
    Free,
    /// Another loop does.
    Guest,
    /// This loop does.
    Nested,
}

fn way_in(py: Python<'_>, state: &State) -> PyResult<WayIn> {
    if let Some(thread) = state.thread_id.get() {
        if state.nesting.get() && thread == debug::thread_ident() {
            state.check_process()?;
            return Ok(WayIn::Nested);
        }
        return Err(PyRuntimeError::new_err("This event loop is already running"));
    }
    if imports::get_running_loop(py)?.call0()?.is_none() {
        return Ok(WayIn::Free);
    }
    if state.nesting.get() {
        return Ok(WayIn::Guest);
    }
    Err(PyRuntimeError::new_err("Cannot run the event loop while another loop is running"))
}

fn set_up(event_loop: &Bound<'_, Loop>, state: &State) -> PyResult<()> {
    let py = event_loop.py();
    debug::track_origins(py, state, state.debug.get())?;
    let switch_interval: f64 = imports::getswitchinterval(py)?.call0()?.extract()?;
    state.sharing.begin(switch_interval);
    let hooks = imports::get_asyncgen_hooks(py)?.call0()?;
    state.saved_hooks.replace(Some(hooks.unbind()));
    state.thread_id.set(Some(debug::thread_ident()));
    state.meter.begin();
    if let Some(watching) = &*state.watching.borrow() {
        watching.enter();
    }
    let result = install_hooks(event_loop)
        .and_then(|()| imports::set_running_loop(py)?.call1((event_loop,)).map(drop));
    if result.is_err() {
        clean_up(event_loop, state)?;
    }
    result
}

/// Async generators tell the loop when they are first iterated and when they are abandoned (PEP 525).
fn install_hooks(event_loop: &Bound<'_, Loop>) -> PyResult<()> {
    let py = event_loop.py();
    let hooks = PyDict::new(py);
    hooks.set_item("firstiter", event_loop.getattr(intern!(py, "_asyncgen_firstiter_hook"))?)?;
    hooks.set_item("finalizer", event_loop.getattr(intern!(py, "_asyncgen_finalizer_hook"))?)?;
    imports::set_asyncgen_hooks(py)?.call((), Some(&hooks))?;
    Ok(())
}

fn clean_up(event_loop: &Bound<'_, Loop>, state: &State) -> PyResult<()> {
    let py = event_loop.py();
    state.stopping.set(false);
    state.thread_id.set(None);
    state.meter.end();
    state.gathered.send(py);
    imports::set_running_loop(py)?.call1((py.None(),))?;
    debug::track_origins(py, state, false)?;
    if let Some(hooks) = state.saved_hooks.take() {
        let hooks = hooks.into_bound(py).cast_into::<PyTuple>()?;
        imports::set_asyncgen_hooks(py)?.call1(hooks)?;
    }
    Ok(())
}

/// `loop.run_until_complete(future)`.
pub fn run_until_complete<'py>(
    event_loop: &Bound<'py, Loop>,
    future: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = event_loop.py();
    let state = event_loop.get().state(py);
    state.check_closed()?;
    let way_in = way_in(py, state)?;
    if matches!(way_in, WayIn::Nested) {
        // Before there is a task, which would stay.
        imports::check_room(py)?.call0()?;
    }
    let is_new = !imports::isfuture(py)?.call1((future,))?.is_truthy()?;
    let options = PyDict::new(py);
    options.set_item(intern!(py, "loop"), event_loop)?;
    let future = imports::ensure_future(py)?.call((future,), Some(&options))?;
    if is_new {
        // When it is not done at the end an exception says so; no need for a log line as well.
        future.setattr(intern!(py, "_log_destroy_pending"), false)?;
    }
    if matches!(way_in, WayIn::Nested) {
        let ran = nesting::run(event_loop, Some(&future), is_new);
        return outcome(&future, is_new, ran);
    }
    // asyncio's own: frameworks (anyio) know a program's main task by this callback.
    let stopper = imports::run_until_complete_callback(py)?;
    future.call_method1(intern!(py, "add_done_callback"), (stopper,))?;
    drop(state.awaited.replace(Some(future.clone().unbind())));
    // Through the attribute, since programs override run_forever().
    let ran = event_loop.call_method0(intern!(py, "run_forever"));
    drop(state.awaited.take());
    let removed = future.call_method1(intern!(py, "remove_done_callback"), (stopper,));
    outcome(&future, is_new, ran.and(removed).map(drop))
}

/// What run_until_complete() returns or raises.
fn outcome<'py>(
    future: &Bound<'py, PyAny>,
    is_new: bool,
    ran: PyResult<()>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = future.py();
    if let Err(error) = ran {
        if is_new
            && is_done(future)?
            && !future.call_method0(intern!(py, "cancelled"))?.is_truthy()?
        {
            // The caller has no access to the task: fetching its exception here keeps the task from
            // logging that nobody did.
            future.call_method0(intern!(py, "exception"))?;
        }
        return Err(error);
    }
    if !is_done(future)? {
        return Err(PyRuntimeError::new_err("Event loop stopped before Future completed."));
    }
    future.call_method0(intern!(py, "result"))
}

/// The native half of `loop.close()`.
pub fn close(event_loop: &Bound<'_, Loop>) -> PyResult<()> {
    let state = event_loop.get().state(event_loop.py());
    if state.thread_id.get().is_some() {
        return Err(PyRuntimeError::new_err("Cannot close a running event loop"));
    }
    if !state.closed.replace(true) {
        drop_work(state);
    }
    Ok(())
}

/// Drops all work and closes the poller. Each part is taken out before it is dropped, since dropping
/// runs arbitrary code.
pub fn drop_work(state: &State) {
    drop(state.ready.take());
    let timers = state.timers.borrow_mut().drain();
    for handle in &timers {
        handle.set_scheduled(false);
    }
    drop(timers);
    drop(state.due.take());
    drop(state.events.take());
    state.gathered.clear();
    state.spare_context.clear();
    drop(state.watched.take());
    drop(state.watching.take());
    drop(state.lasting.take());
    drop(state.registrar.take());
    drop(state.waker.take());
    drop(state.poller.take());
    drop(state.sources.take());
    drop(state.transports.take());
}
