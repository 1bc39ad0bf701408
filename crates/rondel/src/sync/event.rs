//! `Event`: a flag that can be waited for.

use std::cell::Cell;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyTuple};
use pyo3::{PyTraverseError, PyVisit};

use super::{is_done, new_deque, new_waiter, outcome};
use crate::ffi::confined::Confined;
use crate::ffi::operation::Operation;
use crate::streams::Attribute;
use crate::streams::operation::{Kind, Step};

const CLASS: &str = "Event";

/// The native part of `rondel.Event`.
#[pyclass(frozen, subclass, dict, weakref, module = "rondel._rondel", name = "Event")]
pub struct Event {
    state: Confined<State>,
}

#[derive(Default)]
struct State {
    is_set: Cell<bool>,
    waiters: Attribute,
    event_loop: Attribute,
}

fn yes(py: Python<'_>) -> Step<'_> {
    Step::Done(PyBool::new(py, true).to_owned().into_any())
}

/// `wait()`, from its start or after the wait.
pub fn wait<'py>(
    owner: &Bound<'py, PyAny>,
    waited: Option<Bound<'py, PyAny>>,
    answer: PyResult<()>,
) -> PyResult<Step<'py>> {
    let py = owner.py();
    let event = owner.cast::<Event>()?;
    let state = event.get().state.get(py);
    let Some(waited) = waited else {
        if state.is_set.get() {
            return Ok(yes(py));
        }
        return new_waiter(owner, &state.event_loop, &event.get().waiters(py)?);
    };
    let outcome = outcome(&waited, answer);
    event.get().waiters(py)?.call_method1(intern!(py, "remove"), (waited,))?;
    outcome.map(|()| yes(py))
}

#[pymethods]
impl Event {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Event { state: Confined::new(State::default()) }
    }

    /// What `__init__` does.
    fn _start(&self, py: Python<'_>) -> PyResult<()> {
        let state = self.state.get(py);
        state.is_set.set(false);
        state.waiters.set(new_deque(py)?);
        Ok(())
    }

    /// Whether the flag is set.
    fn is_set(&self, py: Python<'_>) -> bool {
        self.state.get(py).is_set.get()
    }

    /// Set the flag; all who wait go on.
    fn set(&self, py: Python<'_>) -> PyResult<()> {
        if self.state.get(py).is_set.replace(true) {
            return Ok(());
        }
        let waiters = self.waiters(py)?;
        if waiters.len()? == 0 {
            return Ok(());
        }
        for waiter in waiters.try_iter()? {
            let waiter = waiter?;
            if !is_done(&waiter)? {
                waiter.call_method1(intern!(py, "set_result"), (true,))?;
            }
        }
        Ok(())
    }

    /// Take the flag back.
    fn clear(&self, py: Python<'_>) {
        self.state.get(py).is_set.set(false);
    }

    /// Wait until the flag is set; True.
    fn wait<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        Operation::create(Kind::Sync(super::Kind::Wait), slf, None, 0)
    }

    // ---- private attributes, for programs and for asyncio's own code

    #[getter(_value)]
    fn value(&self, py: Python<'_>) -> bool {
        self.is_set(py)
    }

    #[setter(_value)]
    fn set_value(&self, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let is_set = value.is_truthy()?;
        self.state.get(value.py()).is_set.set(is_set);
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
