//! `Lock`: one holder at a time, the others in the order in which they came.

use std::cell::Cell;

use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyTuple};
use pyo3::{PyTraverseError, PyVisit};

use super::{all_cancelled, is_done, is_plain, new_deque, new_waiter, none, outcome};
use crate::ffi::confined::Confined;
use crate::ffi::operation::Operation;
use crate::imports;
use crate::streams::Attribute;
use crate::streams::operation::{Kind, Step};

const CLASS: &str = "Lock";

/// The native part of `rondel.Lock`.
#[pyclass(frozen, subclass, dict, weakref, module = "rondel._rondel", name = "Lock")]
pub struct Lock {
    state: Confined<State>,
}

#[derive(Default)]
struct State {
    locked: Cell<bool>,
    /// None, or a deque once somebody has waited.
    waiters: Attribute,
    event_loop: Attribute,
    /// It is of rondel's class, not of a subclass.
    ours: Cell<bool>,
}

impl State {
    /// What `_wake_up_first()` does.
    fn wake_first(&self, py: Python<'_>) -> PyResult<()> {
        let Some(waiters) = self.waiters.value(py) else { return Ok(()) };
        if waiters.len()? == 0 {
            return Ok(());
        }
        let first = waiters.get_item(0)?;
        if !is_done(&first)? {
            first.call_method1(intern!(py, "set_result"), (true,))?;
        }
        Ok(())
    }

    fn is_free(&self, py: Python<'_>) -> PyResult<bool> {
        if self.locked.get() {
            return Ok(false);
        }
        self.waiters.value(py).map_or(Ok(true), |waiters| all_cancelled(&waiters))
    }

    fn acquired<'py>(&self, py: Python<'py>, entering: bool) -> Step<'py> {
        self.locked.set(true);
        if entering { none(py) } else { Step::Done(PyBool::new(py, true).to_owned().into_any()) }
    }
}

/// `acquire()`, or `__aenter__()`, from its start or after the wait.
pub fn acquire<'py>(
    owner: &Bound<'py, PyAny>,
    waited: Option<Bound<'py, PyAny>>,
    answer: PyResult<()>,
    entering: bool,
) -> PyResult<Step<'py>> {
    let py = owner.py();
    let lock = owner.cast::<Lock>()?;
    let state = lock.get().state.get(py);
    let Some(waited) = waited else {
        if entering && !is_plain(owner, &state.ours) {
            return super::stock(imports::stock_lock(py)?, "__aenter__", (owner,));
        }
        if state.is_free(py)? {
            return Ok(state.acquired(py, entering));
        }
        if !state.waiters.is_some(py) {
            state.waiters.set(new_deque(py)?);
        }
        return new_waiter(owner, &state.event_loop, &lock.get().waiters(py)?);
    };
    let outcome = outcome(&waited, answer);
    lock.get().waiters(py)?.call_method1(intern!(py, "remove"), (waited,))?;
    match outcome {
        Ok(()) => Ok(state.acquired(py, entering)),
        Err(error) => {
            // The lock may have been given to this one, which does not take it.
            let cancelled = error.matches(py, imports::cancelled_error(py)?)?;
            if cancelled && !state.locked.get() {
                state.wake_first(py)?;
            }
            Err(error)
        }
    }
}

/// `__aexit__()`.
pub fn exit<'py>(owner: &Bound<'py, PyAny>) -> PyResult<Step<'py>> {
    let py = owner.py();
    let lock = owner.cast::<Lock>()?;
    if is_plain(owner, &lock.get().state.get(py).ours) {
        lock.get().release(py)?;
    } else {
        owner.call_method0(intern!(py, "release"))?;
    }
    Ok(none(py))
}

#[pymethods]
impl Lock {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Lock { state: Confined::new(State::default()) }
    }

    /// What `__init__` does; `ours` says that the object is not of a subclass.
    fn _start(&self, py: Python<'_>, ours: bool) {
        let state = self.state.get(py);
        state.locked.set(false);
        state.waiters.set(py.None().into_bound(py));
        state.ours.set(ours);
    }

    /// Whether somebody holds the lock.
    fn locked(&self, py: Python<'_>) -> bool {
        self.state.get(py).locked.get()
    }

    /// Wait until nobody holds the lock, and take it; True.
    fn acquire<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        Operation::create(Kind::Sync(super::Kind::Acquire), slf, None, 0)
    }

    /// Give the lock to who waits first, if anybody does.
    fn release(&self, py: Python<'_>) -> PyResult<()> {
        let state = self.state.get(py);
        if !state.locked.replace(false) {
            return Err(PyRuntimeError::new_err("Lock is not acquired."));
        }
        state.wake_first(py)
    }

    fn __aenter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        Operation::create(Kind::Sync(super::Kind::EnterLock), slf, None, 0)
    }

    #[pyo3(signature = (_exc_type, _exc, _tb))]
    fn __aexit__<'py>(
        slf: &Bound<'py, Self>,
        _exc_type: &Bound<'py, PyAny>,
        _exc: &Bound<'py, PyAny>,
        _tb: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        Operation::create(Kind::Sync(super::Kind::ExitLock), slf, None, 0)
    }

    // ---- private attributes, for programs and for asyncio's own code

    #[getter(_locked)]
    fn private_locked(&self, py: Python<'_>) -> bool {
        self.locked(py)
    }

    #[setter(_locked)]
    fn set_locked(&self, locked: &Bound<'_, PyAny>) -> PyResult<()> {
        let is_locked = locked.is_truthy()?;
        self.state.get(locked.py()).locked.set(is_locked);
        Ok(())
    }

    #[getter(_waiters)]
    fn waiters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.state.get(py).waiters.get(py, CLASS, "_waiters")
    }

    #[setter(_waiters)]
    fn set_waiters(&self, waiters: Bound<'_, PyAny>) {
        self.state.get(waiters.py()).waiters.set(waiters.clone());
    }

    #[getter(_loop)]
    fn event_loop<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.state.get(py).event_loop.value(py)
    }

    #[setter(_loop)]
    fn set_event_loop(&self, event_loop: Bound<'_, PyAny>) {
        self.state.get(event_loop.py()).event_loop.set(event_loop.clone());
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let Some(state) = self.state.in_traverse(&visit) else { return Ok(()) };
        state.waiters.traverse(&visit)?;
        state.event_loop.traverse(&visit)
    }

    fn __clear__(slf: &Bound<'_, Self>) {
        let state = slf.get().state.get(slf.py());
        state.waiters.clear();
        state.event_loop.clear();
    }
}
