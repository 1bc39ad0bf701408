//! asyncio's synchronisation, native: queues and locks.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`queue`] | `Queue`, and what differs in `PriorityQueue` and `LifoQueue` |
//! | [`lock`] | `Lock` |
//!
//! As with [`crate::streams`], each class here is the first base of one in `rondel.sync`, and asyncio's
//! class of the same name is the second. What happens often is native, everything else is asyncio's
//! own code, which finds the private attributes that it looks for: waiters are asyncio futures in a
//! `collections.deque` here, too. An object is "plain" if it is of rondel's own class, with nothing put
//! onto it by the program; for others asyncio's methods run, which call what was overridden.
//!
//! The others were tried and left to asyncio, as measured on 3.14 (time over that of asyncio's): a semaphore
//! that is free took 0.5, and one to wait for 1.6; an event 1.0; a timeout 0.9 to 1.0, of which the timer
//! and what `await` costs are most.

pub mod lock;
pub mod queue;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyModule;

use crate::ffi::lookup;
use crate::ffi::operation::Operation;
use crate::imports;
use crate::streams::Attribute;
use crate::streams::operation::Step;

/// The coroutine methods.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Put,
    Get,
    Acquire,
    EnterLock,
    ExitLock,
}

impl Kind {
    /// The method's name.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Put => "put",
            Kind::Get => "get",
            Kind::Acquire => "acquire",
            Kind::EnterLock => "__aenter__",
            Kind::ExitLock => "__aexit__",
        }
    }

    /// The class in which asyncio has it.
    pub const fn class(self) -> &'static str {
        match self {
            Kind::Put | Kind::Get => "Queue",
            Kind::Acquire => "Lock",
            Kind::EnterLock | Kind::ExitLock => "_ContextManagerMixin",
        }
    }
}

/// Goes on with an operation; as in [`crate::streams::operation::step`].
///
/// # Errors
/// Those of the method.
#[inline]
pub fn step<'py>(
    kind: Kind,
    owner: &Bound<'py, PyAny>,
    operation: Operation<'_>,
    waited: Option<Bound<'py, PyAny>>,
    answer: PyResult<()>,
) -> PyResult<Step<'py>> {
    match kind {
        Kind::Put => queue::put(owner, operation, waited, answer),
        Kind::Get => queue::get(owner, waited, answer),
        Kind::Acquire | Kind::EnterLock => {
            lock::acquire(owner, waited, answer, kind == Kind::EnterLock)
        }
        Kind::ExitLock => lock::exit(owner),
    }
}

/// Puts the classes into the module.
///
/// # Errors
/// `MemoryError` only.
pub fn install(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<queue::Queue>()?;
    module.add_class::<lock::Lock>()
}

/// asyncio's own coroutine does the rest.
fn stock<'py>(
    class: &Bound<'py, PyAny>,
    method: &str,
    args: impl pyo3::call::PyCallArgs<'py>,
) -> PyResult<Step<'py>> {
    Ok(Step::Delegate(class.call_method1(method, args)?, Ok(())))
}

fn none<'py>(py: Python<'py>) -> Step<'py> {
    Step::Done(py.None().into_bound(py))
}

fn new_deque(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    imports::deque(py)?.call0()
}

/// A future for the operation to wait for, appended to a deque of waiters; of the loop that the object
/// is bound to, which is the first one that it was waited for on.
///
/// # Errors
/// `RuntimeError` on another loop.
fn new_waiter<'py>(
    owner: &Bound<'py, PyAny>,
    event_loop: &Attribute,
    waiters: &Bound<'py, PyAny>,
) -> PyResult<Step<'py>> {
    let py = owner.py();
    let name = intern!(py, "_get_loop");
    let bound_to = if lookup::calls(owner, name, imports::get_bound_loop(py)?) {
        get_loop(owner, event_loop)?
    } else {
        owner.call_method0(name)?
    };
    let future = bound_to.call_method0(intern!(py, "create_future"))?;
    waiters.call_method1(intern!(py, "append"), (&future,))?;
    future.setattr(intern!(py, "_asyncio_future_blocking"), true)?;
    Ok(Step::Wait(future))
}

/// What `_get_loop()` does.
fn get_loop<'py>(owner: &Bound<'py, PyAny>, event_loop: &Attribute) -> PyResult<Bound<'py, PyAny>> {
    let running = imports::get_running_loop(owner.py())?.call0()?;
    match event_loop.value(owner.py()) {
        None => event_loop.set(running.clone()),
        Some(bound_to) if bound_to.is(&running) => {}
        Some(_) => {
            let message = format!("{} is bound to a different event loop", owner.repr()?);
            return Err(PyRuntimeError::new_err(message));
        }
    }
    Ok(running)
}

/// How a wait for a future ended: what `await future` leads to when it goes on.
fn outcome(future: &Bound<'_, PyAny>, answer: PyResult<()>) -> PyResult<()> {
    let py = future.py();
    answer?;
    if !is_done(future)? {
        return Err(PyRuntimeError::new_err("await wasn't used with future"));
    }
    future.call_method0(intern!(py, "result")).map(drop)
}

fn is_done(future: &Bound<'_, PyAny>) -> PyResult<bool> {
    future.call_method0(intern!(future.py(), "done"))?.is_truthy()
}

fn is_cancelled(future: &Bound<'_, PyAny>) -> PyResult<bool> {
    future.call_method0(intern!(future.py(), "cancelled"))?.is_truthy()
}

/// `waiters.remove(future)`; false if it was not among them.
fn remove(waiters: &Bound<'_, PyAny>, future: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = waiters.py();
    match waiters.call_method1(intern!(py, "remove"), (future,)) {
        Ok(_) => Ok(true),
        Err(error) if error.is_instance_of::<PyValueError>(py) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether all of these waiters have been cancelled.
fn all_cancelled(waiters: &Bound<'_, PyAny>) -> PyResult<bool> {
    if waiters.len()? == 0 {
        return Ok(true);
    }
    for waiter in waiters.try_iter()? {
        if !is_cancelled(&waiter?)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether the program has put nothing onto an object of a class of ours.
#[inline]
fn is_plain(owner: &Bound<'_, PyAny>, ours: &std::cell::Cell<bool>) -> bool {
    ours.get() && !lookup::has_attributes(owner)
}
