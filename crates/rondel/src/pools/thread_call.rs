//! One call in a thread pool: what is to be called, and who waits for the outcome.
//!
//! A call is queued, taken by a worker, called, and then delivered:
//!
//! * to an asyncio future **on the loop's thread**: the worker leaves the outcome in the call and puts
//!   the call onto the loop's ready queue, as a step of native code. There is no
//!   `concurrent.futures.Future` in between, and the loop is woken once for as many calls as end before
//!   it runs.
//! * to a `concurrent.futures.Future` **on the worker's thread**, as its users expect.
//!
//! The call is the done callback of its future too, by which it hears of a cancellation and leaves the
//! queue. What it holds is hidden from the garbage collector, which is no loss: a call lets go of
//! everything when it has been delivered, has been cancelled, or has found its loop closed.

use std::cell::RefCell;
use std::sync::Arc;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyContext, PyDict, PyString, PyTuple};
use rondel_pool::threads::Ticket;
use rondel_reactor::poller::Waker;

use super::threads::Shared;
use crate::errors::exception;
use crate::event_loop::Loop;
use crate::ffi::confined::Confined;
use crate::ffi::context;
use crate::imports;

/// Names that workers use, made before there is a worker: a thread that makes one of them at the
/// moment of a fork() would leave it locked for ever in the child.
struct Names {
    cancelled: Py<PyString>,
    set_running: Py<PyString>,
    set_result: Py<PyString>,
    set_exception: Py<PyString>,
}

fn names(py: Python<'_>) -> &Names {
    static NAMES: PyOnceLock<Names> = PyOnceLock::new();
    NAMES.get_or_init(py, || Names {
        cancelled: PyString::intern(py, "cancelled").unbind(),
        set_running: PyString::intern(py, "set_running_or_notify_cancel").unbind(),
        set_result: PyString::intern(py, "set_result").unbind(),
        set_exception: PyString::intern(py, "set_exception").unbind(),
    })
}

/// To be called when the module is made.
pub fn prepare(py: Python<'_>) {
    names(py);
}

/// What is to be called.
pub struct Work {
    pub function: Py<PyAny>,
    pub args: Py<PyTuple>,
    pub kwargs: Option<Py<PyDict>>,
    /// The context to call in; without one it is the thread's own.
    pub context: Option<Py<PyContext>>,
}

impl Work {
    fn call(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let call = || {
            let kwargs = self.kwargs.as_ref().map(|kwargs| kwargs.bind(py));
            self.function.call(py, self.args.bind(py), kwargs)
        };
        match &self.context {
            Some(context) => context::run_in(context.bind(py), call),
            None => call(),
        }
    }
}

/// Who waits for the outcome.
pub enum Target {
    /// A future of a loop of ours.
    Loop(Py<Loop>, Py<PyAny>),
    /// A `concurrent.futures.Future`.
    Concurrent(Py<PyAny>),
}

/// A call in a thread pool; see the module's documentation.
#[pyclass(frozen, module = "rondel._rondel", name = "ThreadCall")]
pub struct Call {
    state: Confined<State>,
}

struct State {
    work: RefCell<Option<Work>>,
    target: RefCell<Option<Target>>,
    /// Between the call and its delivery on the loop's thread.
    outcome: RefCell<Option<PyResult<Py<PyAny>>>>,
    /// Where the call waits for a worker.
    place: RefCell<Option<(Arc<Shared>, Ticket)>>,
}

impl Call {
    pub fn new(work: Work, target: Target) -> Self {
        Call {
            state: Confined::new(State {
                work: RefCell::new(Some(work)),
                target: RefCell::new(Some(target)),
                outcome: RefCell::default(),
                place: RefCell::default(),
            }),
        }
    }

    /// Remembers where the call is queued.
    pub fn set_place(&self, py: Python<'_>, pool: Arc<Shared>, ticket: Ticket) {
        let state = self.state.get(py);
        // A thread that was started meanwhile may have taken the call already.
        if state.work.borrow().is_some() {
            state.place.replace(Some((pool, ticket)));
        }
    }

    /// Forgets what was to be called; returns who waits for it.
    fn clear(&self, py: Python<'_>) -> Option<Target> {
        let state = self.state.get(py);
        drop(state.place.take());
        drop(state.work.take());
        state.target.take()
    }
}

#[pymethods]
impl Call {
    /// The future's done callback: a cancelled call leaves the queue.
    fn __call__(slf: &Bound<'_, Self>, future: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = slf.py();
        let this = slf.get();
        let Some((pool, ticket)) = this.state.get(py).place.take() else { return Ok(()) };
        if !future.call_method0(&names(py).cancelled)?.is_truthy()? {
            return Ok(());
        }
        let Some(taken_back) = pool.crew.take_back(ticket) else { return Ok(()) };
        let target = this.clear(py);
        drop(taken_back);
        match target {
            Some(Target::Concurrent(_)) => notify_cancelled(future),
            _ => Ok(()),
        }
    }
}

/// No worker will come to a cancelled future any more: tells those who wait for it.
fn notify_cancelled(future: &Bound<'_, PyAny>) -> PyResult<()> {
    future.call_method0(&names(future.py()).set_running).map(drop)
}

/// Calls, on a worker's thread, and sends the outcome on its way. Returns whom to wake for it.
pub fn run(py: Python<'_>, call: &Bound<'_, Call>) -> Option<Waker> {
    let state = call.get().state.get(py);
    drop(state.place.take());
    let work = state.work.take()?;
    let target = state.target.take()?;
    let result = match target {
        Target::Loop(event_loop, future) => {
            return run_for_loop(py, call, work, (event_loop, future));
        }
        Target::Concurrent(future) => run_concurrent(future.bind(py), work),
    };
    if let Err(error) = result {
        // Somebody else has set the future's result: the worker is not to die of that.
        error.write_unraisable(py, Some(call));
    }
    None
}

fn run_for_loop(
    py: Python<'_>,
    call: &Bound<'_, Call>,
    work: Work,
    (event_loop, future): (Py<Loop>, Py<PyAny>),
) -> Option<Waker> {
    let is_cancelled = || {
        future
            .call_method0(py, &names(py).cancelled)
            .and_then(|answer| answer.is_truthy(py))
            .unwrap_or(false)
    };
    if is_cancelled() {
        return None;
    }
    let outcome = work.call(py);
    // Here, before anybody hears of the end: what the call held goes on the thread that it ran on.
    drop(work);
    let loop_state = event_loop.get().state(py);
    if loop_state.closed.get() || !loop_state.is_own_process() {
        return None;
    }
    let state = call.get().state.get(py);
    state.outcome.replace(Some(outcome));
    state.target.replace(Some(Target::Loop(event_loop.clone_ref(py), future)));
    loop_state.push_step(call.clone().into_any().unbind(), deliver);
    loop_state.wake_later()
}

fn run_concurrent(future: &Bound<'_, PyAny>, work: Work) -> PyResult<()> {
    let py = future.py();
    let may_run = future.call_method0(&names(py).set_running)?;
    if !may_run.is_truthy()? {
        return Ok(());
    }
    let outcome = work.call(py);
    match outcome {
        Ok(result) => future.call_method1(&names(py).set_result, (result,)),
        Err(error) => future.call_method1(&names(py).set_exception, (exception(py, &error),)),
    }
    .map(drop)
}

/// Sets the future, on its loop's thread.
fn deliver(target: &Bound<'_, PyAny>) -> PyResult<()> {
    let call = target.cast::<Call>()?;
    let py = call.py();
    let state = call.get().state.get(py);
    let (Some(outcome), Some(Target::Loop(_, future))) =
        (state.outcome.take(), state.target.take())
    else {
        return Ok(());
    };
    let future = future.bind(py);
    if future.call_method0(intern!(py, "done"))?.is_truthy()? {
        // Cancelled while it ran.
        return Ok(());
    }
    future.call_method1(intern!(py, "remove_done_callback"), (call,))?;
    match outcome {
        Ok(result) => future.call_method1(&names(py).set_result, (result,)).map(drop),
        Err(error) => set_exception(future, &error),
    }
}

/// Sets an exception as asyncio does for an executor's.
fn set_exception(future: &Bound<'_, PyAny>, error: &PyErr) -> PyResult<()> {
    let py = future.py();
    let raised = imports::convert_future_exception(py)?.call1((exception(py, error),))?;
    let set = |raised| future.call_method1(&names(py).set_exception, (raised,)).map(drop);
    // Up to 3.11 a future refuses StopIteration, and asyncio's would stay pending for ever.
    set(raised).or_else(|refusal| set(exception(py, &refusal)))
}

/// Cancels a call that was taken out of the queue: shutdown(cancel_futures=True).
pub fn cancel(py: Python<'_>, call: &Bound<'_, Call>) -> PyResult<()> {
    match call.get().clear(py) {
        Some(Target::Loop(event_loop, future)) => {
            event_loop.get().state(py).send_step(future, cancel_unless_done);
            Ok(())
        }
        Some(Target::Concurrent(future)) => {
            let future = future.bind(py);
            if future.call_method0(intern!(py, "cancel"))?.is_truthy()? {
                notify_cancelled(future)?;
            }
            Ok(())
        }
        None => Ok(()),
    }
}

fn cancel_unless_done(future: &Bound<'_, PyAny>) -> PyResult<()> {
    future.call_method0(intern!(future.py(), "cancel")).map(drop)
}

/// Gives a call that was taken out of the queue an error.
pub fn fail(py: Python<'_>, call: &Bound<'_, Call>, error: PyErr) -> PyResult<()> {
    match call.get().clear(py) {
        Some(Target::Loop(event_loop, future)) => {
            let loop_state = event_loop.get().state(py);
            if !loop_state.closed.get() {
                let state = call.get().state.get(py);
                state.outcome.replace(Some(Err(error)));
                state.target.replace(Some(Target::Loop(event_loop.clone_ref(py), future)));
                loop_state.send_step(call.clone().into_any().unbind(), deliver);
            }
            Ok(())
        }
        Some(Target::Concurrent(future)) => {
            future.call_method1(py, &names(py).set_exception, (exception(py, &error),)).map(drop)
        }
        None => Ok(()),
    }
}
