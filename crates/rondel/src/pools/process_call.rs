//! One call on its way to a worker process: who waits for it, and how it is delivered.
//!
//! The call is known to the parent's tables ([`rondel_pool::processes::parent`]) until it is answered,
//! withdrawn or lost; then it is delivered here:
//!
//! * to an asyncio future on the loop's thread: directly when the loop itself has collected the answer,
//!   else as a step on the loop's ready queue;
//! * to a `concurrent.futures.Future` wherever the answer was collected.
//!
//! For an asyncio future the call is its done callback too, by which it hears of a cancellation; the
//! pool's own `concurrent.futures.Future`s ask it to withdraw or to kill.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use pyo3::intern;
use pyo3::prelude::*;
use rondel_pool::processes::frame::Kind;
use rondel_pool::processes::parent::{Answer, Cause, Finished};

use super::process_pickle;
use super::processes::Core;
use crate::errors::{exception, os_error};
use crate::event_loop::Loop;
use crate::ffi::confined::Confined;
use crate::imports;

/// Who waits for a call.
pub enum Target {
    /// A future of a loop of ours.
    Loop(Py<Loop>, Py<PyAny>),
    /// A `concurrent.futures.Future`.
    Concurrent(Py<PyAny>),
}

/// A call; see the module's documentation.
#[pyclass(frozen, module = "rondel._rondel", name = "ProcessCall")]
pub struct Call {
    state: Confined<State>,
}

struct State {
    target: RefCell<Option<Target>>,
    outcome: RefCell<Option<PyResult<Py<PyAny>>>>,
    /// The pool and the call's number in it, until its end.
    place: RefCell<Option<(Arc<Core>, u64)>>,
    /// Whether cancelling its future kills the worker that runs it.
    kills: Cell<bool>,
}

impl Call {
    pub fn new(target: Target, kills: bool) -> Self {
        Call {
            state: Confined::new(State {
                target: RefCell::new(Some(target)),
                outcome: RefCell::default(),
                place: RefCell::default(),
                kills: Cell::new(kills),
            }),
        }
    }

    /// Remembers where the call is; it may have ended meanwhile.
    pub fn set_place(&self, py: Python<'_>, core: &Arc<Core>, id: u64) {
        let state = self.state.get(py);
        if state.target.borrow().is_some() {
            state.place.replace(Some((core.clone(), id)));
        }
    }

    fn place(&self, py: Python<'_>) -> Option<(Arc<Core>, u64)> {
        self.state.get(py).place.borrow().clone()
    }

    /// Ends the call from outside. Whether it will not be delivered any more.
    fn abandon(&self, py: Python<'_>, kill: bool) -> bool {
        let Some((core, id)) = self.place(py) else { return false };
        if !core.is_own_process() {
            return false;
        }
        if let Some(withdrawn) = core.parent.withdraw(id) {
            self.forget(py);
            drop(withdrawn);
            return true;
        }
        kill && core.parent.kill(id, Cause::Killed)
    }

    fn forget(&self, py: Python<'_>) {
        let state = self.state.get(py);
        drop(state.place.take());
        drop(state.target.take());
    }
}

#[pymethods]
impl Call {
    /// The done callback of an asyncio future: a cancelled call is withdrawn.
    fn __call__(&self, py: Python<'_>, future: &Bound<'_, PyAny>) -> PyResult<()> {
        let kills = self.state.get(py).kills.get();
        if self.place(py).is_some() && future.call_method0(intern!(py, "cancelled"))?.is_truthy()? {
            self.abandon(py, kills);
        }
        Ok(())
    }

    /// Whether a worker runs the call.
    fn running(&self, py: Python<'_>) -> bool {
        self.place(py).is_some_and(|(core, id)| core.is_own_process() && core.parent.is_running(id))
    }

    /// Take the call back; false when it has begun. With `kill` the worker that runs it is killed.
    fn withdraw(&self, py: Python<'_>, kill: bool) -> bool {
        self.abandon(py, kill)
    }

    /// Whether cancel() is to kill the worker.
    #[getter]
    fn kills(&self, py: Python<'_>) -> bool {
        self.state.get(py).kills.get()
    }
}

/// Delivers what was collected. `here` is the loop whose thread this is, if it is one's.
pub fn deliver_all(
    py: Python<'_>,
    finished: Vec<Finished<Py<Call>>>,
    here: Option<&Bound<'_, Loop>>,
) {
    for Finished { target: call, answer } in finished {
        let outcome = match answer {
            Ok(answer) => open(py, answer),
            Err(error) => Err(os_error(py, &error)),
        };
        deliver(call.bind(py), outcome, here);
    }
}

/// The result of an answer, or the exception that it brings.
fn open(py: Python<'_>, answer: Answer) -> PyResult<Py<PyAny>> {
    if answer.kind == Kind::Nothing {
        return Ok(py.None());
    }
    let object = process_pickle::unpickle(py, answer.pickle, answer.buffers)?;
    if answer.kind == Kind::Exception {
        return Err(PyErr::from_value(object));
    }
    Ok(object.unbind())
}

/// Gives a call its end.
pub fn deliver(
    call: &Bound<'_, Call>,
    outcome: PyResult<Py<PyAny>>,
    here: Option<&Bound<'_, Loop>>,
) {
    let py = call.py();
    let state = call.get().state.get(py);
    drop(state.place.take());
    let result = match state.target.take() {
        None => Ok(()),
        Some(Target::Concurrent(future)) => set_concurrent(future.bind(py), outcome),
        Some(Target::Loop(event_loop, future)) => {
            let loop_state = event_loop.get().state(py);
            if loop_state.closed.get() || !loop_state.is_own_process() {
                return;
            }
            if here.is_some_and(|here| here.is(&event_loop)) {
                set_future(call, future.bind(py), outcome)
            } else {
                state.outcome.replace(Some(outcome));
                state.target.replace(Some(Target::Loop(event_loop.clone_ref(py), future)));
                loop_state.send_step(call.clone().into_any().unbind(), on_loop);
                Ok(())
            }
        }
    };
    if let Err(error) = result {
        // Somebody else has set the future's result: the others are not to suffer.
        error.write_unraisable(py, Some(call));
    }
}

/// Sets an asyncio future, on its loop's thread.
fn on_loop(target: &Bound<'_, PyAny>) -> PyResult<()> {
    let call = target.cast::<Call>()?;
    let state = call.get().state.get(call.py());
    if let (Some(outcome), Some(Target::Loop(_, future))) =
        (state.outcome.take(), state.target.take())
    {
        return set_future(call, future.bind(call.py()), outcome);
    }
    Ok(())
}

fn set_future(
    call: &Bound<'_, Call>,
    future: &Bound<'_, PyAny>,
    outcome: PyResult<Py<PyAny>>,
) -> PyResult<()> {
    let py = future.py();
    if future.call_method0(intern!(py, "done"))?.is_truthy()? {
        // Cancelled while it ran.
        return Ok(());
    }
    future.call_method1(intern!(py, "remove_done_callback"), (call,))?;
    match outcome {
        Ok(result) => future.call_method1(intern!(py, "set_result"), (result,)).map(drop),
        Err(error) => {
            let raised = imports::convert_future_exception(py)?.call1((exception(py, &error),))?;
            let set =
                |raised| future.call_method1(intern!(py, "set_exception"), (raised,)).map(drop);
            // Up to 3.11 a future refuses StopIteration, and asyncio's would stay pending for ever.
            set(raised).or_else(|refusal| set(exception(py, &refusal)))
        }
    }
}

fn set_concurrent(future: &Bound<'_, PyAny>, outcome: PyResult<Py<PyAny>>) -> PyResult<()> {
    let py = future.py();
    if future.call_method0(intern!(py, "cancelled"))?.is_truthy()? {
        // By kill(): the worker's death is what was wanted.
        return Ok(());
    }
    match outcome {
        Ok(result) => future.call_method1(intern!(py, "set_result"), (result,)),
        Err(error) => future.call_method1(intern!(py, "set_exception"), (exception(py, &error),)),
    }
    .map(drop)
}

/// Cancels a call that was withdrawn: shutdown(cancel_futures=True).
pub fn cancel(call: &Bound<'_, Call>) -> PyResult<()> {
    let py = call.py();
    let target = call.get().state.get(py).target.take();
    call.get().forget(py);
    match target {
        Some(Target::Loop(event_loop, future)) => {
            event_loop.get().state(py).send_step(future, |future| {
                future.call_method0(intern!(future.py(), "cancel")).map(drop)
            });
            Ok(())
        }
        Some(Target::Concurrent(future)) => {
            future.bind(py).call_method0(intern!(py, "_cancelled_by_pool")).map(drop)
        }
        None => Ok(()),
    }
}
