//! A loop under test: time that passes only when nothing else can happen, and an order of callbacks that
//! somebody else chooses. `rondel.testing` is what programs see of it.
//!
//! The loop has a director then, an instance of a Python subclass of [`Rehearsal`], which is asked twice
//! in each turn: what to do before it (`before`), and in which order to call what is ready (`order`).
//! To know what may change places the director is told each callback's origin: the lane of who scheduled
//! it. That is found out by looking at the ready queue before and after each callback, so that scheduling
//! costs nothing more, here or on any other loop.
//!
//! An ordinary loop has one comparison for all this, at the beginning of each run.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};
use rondel_reactor::clock;

use super::{Loop, Ready, State, turn};
use crate::ffi::confined::Confined;

/// The lane of what was scheduled from outside of the loop's callbacks.
const OUTSIDE: u64 = 0;

/// The native half of a director: the virtual clock and the lanes.
#[pyclass(subclass, frozen, module = "rondel._rondel", name = "Rehearsal")]
pub struct Rehearsal {
    inner: Confined<Inner>,
}

#[derive(Default)]
struct Inner {
    /// The virtual time, in seconds: exactly the time of the last timer.
    now: Cell<f64>,
    /// For each callback in the ready queue the lane of who scheduled it.
    lanes: RefCell<VecDeque<u64>>,
}

#[pymethods]
impl Rehearsal {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Rehearsal { inner: Confined::new(Inner::default()) }
    }

    /// The virtual time in seconds.
    #[getter]
    fn now(&self, py: Python<'_>) -> f64 {
        self.inner.get(py).now.get()
    }
}

/// Runs turns until stop() was called.
#[cold]
#[inline(never)]
pub fn run(event_loop: &Bound<'_, Loop>, director: &Bound<'_, Rehearsal>) -> PyResult<()> {
    let state = event_loop.get().state(event_loop.py());
    loop {
        before(state, director)?;
        let timers = state.ready.borrow().len();
        collect_due(state, director);
        order(state, director, timers)?;
        let result = run_ordered(event_loop, state, director);
        state.spare_context.clear();
        state.left.set(0);
        result?;
        if state.stopping.get() {
            return Ok(());
        }
    }
}

/// Asks the director what comes before the turn, and lets time pass when nothing else is to do.
///
/// `director.before(busy, deadline)` gets whether callbacks are ready and when the next timer is due
/// (None: never). It returns whether to wait until another thread has scheduled something; otherwise
/// time goes on to that timer, unless callbacks are ready.
fn before(state: &State, director: &Bound<'_, Rehearsal>) -> PyResult<()> {
    let py = director.py();
    turn::drop_cancelled_timers(state);
    let deadline = state.timers.borrow().peek().map(crate::ffi::handle::HandleRef::when);
    // Infinity never comes.
    let deadline = deadline.filter(|when| *when < f64::INFINITY || when.is_nan());
    let ready_before = state.ready.borrow().len();
    let waits: bool = director
        .call_method1(intern!(py, "before"), (turn::is_busy(state), deadline))?
        .extract()?;
    // From here until the loop counts as sleeping no Python code runs, as in an ordinary turn.
    let arrived = state.ready.borrow().len() > ready_before;
    let timeout = if waits && !arrived { None } else { Some(Duration::ZERO) };
    turn::wait(py, state, timeout, clock::now_ns())?;
    if !waits
        && !turn::is_busy(state)
        && let Some(when) = deadline
    {
        let now = &director.get().inner.get(py).now;
        now.set(now.get().max(when));
    }
    Ok(())
}

/// Queues the timers that are due behind the callbacks that are ready.
fn collect_due(state: &State, director: &Bound<'_, Rehearsal>) {
    let now = &director.get().inner.get(director.py()).now;
    let mut ready = state.ready.borrow_mut();
    let mut cancelled = 0;
    state.timers.borrow_mut().pop_due(clock::from_seconds(now.get()), |handle| {
        handle.set_scheduled(false);
        cancelled += usize::from(handle.is_cancelled());
        // Times that fall into the same nanosecond come together; none comes before its time.
        now.set(now.get().max(handle.when()));
        ready.push_back(Ready::Handle(handle));
    });
    state.timers.borrow_mut().note_popped_cancelled(cancelled);
}

/// Has the director order what is ready. `director.order(callbacks, origins, timers)` gets the handles (or
/// native objects), the lane of who scheduled each, and how many come before the first timer; it returns
/// pairs of an index and the lane to call it in.
fn order(state: &State, director: &Bound<'_, Rehearsal>, timers: usize) -> PyResult<()> {
    let py = director.py();
    let lanes = &director.get().inner.get(py).lanes;
    let callbacks: Vec<Py<PyAny>> = state
        .ready
        .borrow()
        .iter()
        .map(|ready| match ready {
            Ready::Handle(handle) => handle.bind(py).unbind(),
            Ready::Call(call) => call.callback(py),
            Ready::Step(target, _) => target.clone_ref(py),
        })
        .collect();
    let count = callbacks.len();
    lanes.borrow_mut().resize(count, OUTSIDE);
    state.left.set(count);
    if count == 0 {
        return Ok(());
    }
    let origins: Vec<u64> = lanes.borrow().iter().copied().collect();
    let arguments = (PyList::new(py, callbacks)?, PyList::new(py, origins)?, timers);
    let chosen: Vec<(usize, u64)> =
        director.call_method1(intern!(py, "order"), arguments)?.extract()?;
    let mut ready = state.ready.borrow_mut();
    let mut seen = vec![false; count];
    for (index, _) in &chosen {
        if *index >= count || std::mem::replace(&mut seen[*index], true) {
            return Err(PyValueError::new_err("order() must return each index once"));
        }
    }
    if chosen.len() != count || ready.len() < count {
        return Err(PyValueError::new_err("order() must return each index once"));
    }
    // What other threads have scheduled meanwhile stays behind.
    let later = ready.split_off(count);
    let mut batch: Vec<Option<Ready>> = ready.drain(..).map(Some).collect();
    ready.extend(chosen.iter().filter_map(|(index, _)| batch[*index].take()));
    ready.extend(later);
    lanes.replace(chosen.into_iter().map(|(_, lane)| lane).collect());
    Ok(())
}

/// Runs what the director has ordered, and then the events of descriptors (those of signals).
fn run_ordered(
    event_loop: &Bound<'_, Loop>,
    state: &State,
    director: &Bound<'_, Rehearsal>,
) -> PyResult<()> {
    let py = event_loop.py();
    let lanes = &director.get().inner.get(py).lanes;
    while state.left.get() > 0 {
        // Not pop_front(): as long as the ordinary turn is its only caller it is inlined there.
        let Some(ready) = state.ready.borrow_mut().remove(0) else { break };
        state.left.set(state.left.get() - 1);
        let lane = lanes.borrow_mut().pop_front().unwrap_or(OUTSIDE);
        // What came meanwhile is nobody's; what comes now is this callback's.
        lanes.borrow_mut().resize(state.ready.borrow().len(), OUTSIDE);
        let result = turn::run_ready(event_loop, state, ready);
        lanes.borrow_mut().resize(state.ready.borrow().len(), lane);
        result?;
    }
    state.gathered.send(py);
    turn::run_events(event_loop, state, &|| Ok(false)).map(drop)
}
