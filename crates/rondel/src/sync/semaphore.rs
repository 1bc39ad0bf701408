//! `Semaphore` and `BoundedSemaphore`: taking and giving back at once is native; waiting, in which
//! Python's releases differ, is asyncio's.

use std::cell::Cell;

use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyInt, PyTuple};
use pyo3::{PyTraverseError, PyVisit};

use super::{all_cancelled, exit_arguments, is_plain, none, stock};
use crate::ffi::confined::Confined;
use crate::ffi::operation::Operation;
use crate::imports;
use crate::streams::Attribute;
use crate::streams::operation::{Kind, Step};

const CLASS: &str = "Semaphore";

/// The native part of `rondel.Semaphore` and `rondel.BoundedSemaphore`.
#[pyclass(frozen, subclass, dict, weakref, module = "rondel._rondel", name = "Semaphore")]
pub struct Semaphore {
    state: Confined<State>,
}

#[derive(Default)]
struct State {
    value: Attribute,
    /// None, or a deque once somebody has waited.
    waiters: Attribute,
    event_loop: Attribute,
    /// What a bounded one began with.
    bound: Attribute,
    /// It is of a class of rondel's, not of a subclass.
    ours: Cell<bool>,
}

impl State {
    /// The value, if it is a plain number.
    #[inline]
    fn number(&self, py: Python<'_>) -> Option<i64> {
        self.value.value(py)?.cast_exact::<PyInt>().ok()?.extract().ok()
    }

    fn held(&self) -> [&Attribute; 4] {
        [&self.value, &self.waiters, &self.event_loop, &self.bound]
    }
}

/// Takes one if that is possible without waiting.
fn take(py: Python<'_>, state: &State) -> PyResult<bool> {
    let Some(value) = state.number(py).filter(|value| *value != 0) else { return Ok(false) };
    if let Some(waiters) = state.waiters.value(py)
        && !all_cancelled(&waiters)?
    {
        return Ok(false);
    }
    state.value.set(PyInt::new(py, value - 1).into_any());
    Ok(true)
}

/// `acquire()` or `__aenter__()`.
pub fn acquire<'py>(owner: &Bound<'py, PyAny>, entering: bool) -> PyResult<Step<'py>> {
    let py = owner.py();
    let state = owner.cast::<Semaphore>()?.get().state.get(py);
    if is_plain(owner, &state.ours) && take(py, state)? {
        return Ok(if entering {
            none(py)
        } else {
            Step::Done(PyBool::new(py, true).to_owned().into_any())
        });
    }
    let method = if entering { "__aenter__" } else { "acquire" };
    stock(imports::stock_semaphore(py)?, method, (owner,))
}

/// `__aexit__()`.
pub fn exit<'py>(owner: &Bound<'py, PyAny>) -> PyResult<Step<'py>> {
    let py = owner.py();
    let semaphore = owner.cast::<Semaphore>()?;
    if is_plain(owner, &semaphore.get().state.get(py).ours) {
        Semaphore::release(semaphore)?;
    } else {
        owner.call_method0(intern!(py, "release"))?;
    }
    Ok(none(py))
}

#[pymethods]
impl Semaphore {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Semaphore { state: Confined::new(State::default()) }
    }

    /// What `__init__` does, but for checking the value; `ours` says that the object is not of a
    /// subclass.
    fn _start(&self, value: Bound<'_, PyAny>, ours: bool) {
        let py = value.py();
        let state = self.state.get(py);
        state.value.set(value.clone());
        state.waiters.set(py.None().into_bound(py));
        state.ours.set(ours);
    }

    /// Take one; wait while there is none.
    fn acquire<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        Operation::create(Kind::Sync(super::Kind::AcquireSemaphore), slf, None, 0)
    }

    /// Give one back.
    fn release(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let state = slf.get().state.get(py);
        if let Some(bound) = state.bound.value(py)
            && state.value.get(py, CLASS, "_value")?.ge(bound)?
        {
            return Err(PyValueError::new_err("BoundedSemaphore released too many times"));
        }
        let value = match state.number(py) {
            Some(value) => PyInt::new(py, value + 1).into_any(),
            None => state.value.get(py, CLASS, "_value")?.add(1)?,
        };
        state.value.set(value);
        match state.waiters.value(py) {
            Some(waiters) if waiters.len()? > 0 => {
                slf.call_method0(intern!(py, "_wake_up_next")).map(drop)
            }
            _ => Ok(()),
        }
    }

    fn __aenter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        Operation::create(Kind::Sync(super::Kind::EnterSemaphore), slf, None, 0)
    }

    #[pyo3(signature = (*args))]
    fn __aexit__<'py>(
        slf: &Bound<'py, Self>,
        args: &Bound<'py, PyTuple>,
    ) -> PyResult<Bound<'py, PyAny>> {
        exit_arguments(args)?;
        Operation::create(Kind::Sync(super::Kind::ExitSemaphore), slf, None, 0)
    }

    // ---- private attributes, for programs and for asyncio's own code

    #[getter(_value)]
    fn value<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.state.get(py).value.get(py, CLASS, "_value")
    }

    #[setter(_value)]
    fn set_value(&self, value: Bound<'_, PyAny>) {
        self.state.get(value.py()).value.set(value.clone());
    }

    #[getter(_bound_value)]
    fn bound_value<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.state.get(py).bound.get(py, CLASS, "_bound_value")
    }

    #[setter(_bound_value)]
    fn set_bound_value(&self, value: Bound<'_, PyAny>) {
        self.state.get(value.py()).bound.set(value.clone());
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
        state.held().into_iter().try_for_each(|field| field.traverse(&visit))
    }

    fn __clear__(slf: &Bound<'_, Self>) {
        slf.get().state.get(slf.py()).held().into_iter().for_each(Attribute::clear);
    }
}
