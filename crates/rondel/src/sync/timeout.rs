//! `Timeout`: entering and leaving one that does not expire; all else is asyncio's.
//!
//! Unlike the other classes this one has no counterpart in Python: one is made for every use, which
//! has to be cheap. The functions of asyncio's class are called with objects of this one, which says
//! that it is of that class.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyString, PyTuple};
use pyo3::{PyTraverseError, PyVisit};

use super::{none, stock};
use crate::ffi::confined::Confined;
use crate::ffi::lookup;
use crate::ffi::operation::Operation;
use crate::imports;
use crate::streams::Attribute;
use crate::streams::operation::{Kind, Step};

const CLASS: &str = "Timeout";

/// The native part of `rondel.Timeout`.
#[pyclass(frozen, dict, weakref, module = "rondel._rondel", name = "Timeout")]
pub struct Timeout {
    state: Confined<State>,
}

#[derive(Default)]
struct State {
    /// A member of asyncio's enumeration.
    phase: Attribute,
    when: Attribute,
    timer: Attribute,
    task: Attribute,
    cancelling: Attribute,
}

impl State {
    #[inline]
    fn is_in(&self, py: Python<'_>, phase: &Bound<'_, PyAny>) -> bool {
        self.phase.value(py).is_some_and(|current| current.is(phase))
    }

    fn held(&self) -> [&Attribute; 5] {
        [&self.phase, &self.when, &self.timer, &self.task, &self.cancelling]
    }
}

fn new_timeout<'py>(when: Bound<'py, PyAny>) -> PyResult<Bound<'py, Timeout>> {
    let py = when.py();
    let state = State::default();
    state.phase.set(imports::timeout_created(py)?.clone());
    state.when.set(when);
    state.timer.set(py.None().into_bound(py));
    state.task.set(py.None().into_bound(py));
    Bound::new(py, Timeout { state: Confined::new(state) })
}

/// A context manager that limits what is done inside to `delay` seconds; None for no limit.
///
/// As asyncio.timeout(): TimeoutError when the time is over.
#[pyfunction]
pub fn timeout<'py>(delay: Bound<'py, PyAny>) -> PyResult<Bound<'py, Timeout>> {
    let py = delay.py();
    let event_loop = imports::running_loop(py)?.call0()?;
    if delay.is_none() {
        return new_timeout(delay);
    }
    new_timeout(event_loop.call_method0(intern!(py, "time"))?.add(delay)?)
}

/// The same with a time of the loop's clock, in seconds; as asyncio.timeout_at().
#[pyfunction]
pub fn timeout_at<'py>(when: Bound<'py, PyAny>) -> PyResult<Bound<'py, Timeout>> {
    new_timeout(when)
}

/// A method of asyncio's class.
fn theirs<'py>(
    slf: &Bound<'py, Timeout>,
    method: &Bound<'py, PyString>,
) -> PyResult<Bound<'py, PyAny>> {
    imports::stock_timeout(slf.py())?.call_method1(method, (slf,))
}

/// `__aenter__()`.
pub fn enter<'py>(owner: &Bound<'py, PyAny>) -> PyResult<Step<'py>> {
    let py = owner.py();
    let state = owner.cast::<Timeout>()?.get().state.get(py);
    let plain = !lookup::has_attributes(owner) && state.is_in(py, imports::timeout_created(py)?);
    let task = if plain { imports::current_task(py)?.call0()? } else { py.None().into_bound(py) };
    if task.is_none() {
        return stock(imports::stock_timeout(py)?, "__aenter__", (owner,));
    }
    let cancelling = task.call_method0(intern!(py, "cancelling"))?;
    state.phase.set(imports::timeout_entered(py)?.clone());
    state.task.set(task);
    state.cancelling.set(cancelling);
    if let Some(when) = state.when.value(py) {
        let event_loop = imports::running_loop(py)?.call0()?;
        let now = event_loop.call_method0(intern!(py, "time"))?;
        let expire = owner.getattr(intern!(py, "_on_timeout"))?;
        let timer = if when.le(now)? {
            event_loop.call_method1(intern!(py, "call_soon"), (expire,))?
        } else {
            event_loop.call_method1(intern!(py, "call_at"), (when, expire))?
        };
        state.timer.set(timer);
    }
    Ok(Step::Done(owner.clone()))
}

/// `__aexit__()`.
pub fn exit<'py>(owner: &Bound<'py, PyAny>, operation: Operation<'_>) -> PyResult<Step<'py>> {
    let py = owner.py();
    let state = owner.cast::<Timeout>()?.get().state.get(py);
    if !lookup::has_attributes(owner) && state.is_in(py, imports::timeout_entered(py)?) {
        if let Some(timer) = state.timer.take(py) {
            timer.call_method0(intern!(py, "cancel"))?;
        }
        state.phase.set(imports::timeout_exited(py)?.clone());
        return Ok(none(py));
    }
    let nothing = || py.None().into_bound(py);
    let (kind, value, traceback) = match operation.argument(py) {
        Some(raised) => raised.extract()?,
        None => (nothing(), nothing(), nothing()),
    };
    stock(imports::stock_timeout(py)?, "__aexit__", (owner, kind, value, traceback))
}

#[pymethods]
impl Timeout {
    #[getter]
    fn __class__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        imports::stock_timeout(slf.py()).cloned()
    }

    /// The deadline on the loop's clock, in seconds; None if there is none.
    fn when<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.due(py)
    }

    /// Whether the time was over before the block was.
    fn expired<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        theirs(slf, intern!(slf.py(), "expired"))
    }

    /// Set another deadline, or None.
    fn reschedule<'py>(
        slf: &Bound<'py, Self>,
        when: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        imports::stock_timeout(py)?.call_method1(intern!(py, "reschedule"), (slf, when))
    }

    fn __repr__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        theirs(slf, intern!(slf.py(), "__repr__"))
    }

    /// What the timer calls.
    fn _on_timeout<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        theirs(slf, intern!(slf.py(), "_on_timeout"))
    }

    /// The context of an exception is to tell of the timeout (3.13+).
    #[staticmethod]
    fn _insert_timeout_error<'py>(error: Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = error.py();
        imports::stock_timeout(py)?.call_method1(intern!(py, "_insert_timeout_error"), (error,))
    }

    fn __aenter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        Operation::create(Kind::Sync(super::Kind::EnterTimeout), slf, None, 0)
    }

    #[pyo3(signature = (exc_type, exc_val, exc_tb))]
    fn __aexit__<'py>(
        slf: &Bound<'py, Self>,
        exc_type: &Bound<'py, PyAny>,
        exc_val: &Bound<'py, PyAny>,
        exc_tb: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let raised = if exc_type.is_none() {
            None
        } else {
            Some(PyTuple::new(slf.py(), [exc_type, exc_val, exc_tb])?.into_any())
        };
        Operation::create(Kind::Sync(super::Kind::ExitTimeout), slf, raised, 0)
    }

    // ---- private attributes, for programs and for asyncio's own code

    #[getter(_state)]
    fn phase<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.state.get(py).phase.get(py, CLASS, "_state")
    }

    #[setter(_state)]
    fn set_phase(&self, phase: Bound<'_, PyAny>) {
        self.state.get(phase.py()).phase.set(phase.clone());
    }

    #[getter(_when)]
    fn due<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.state.get(py).when.get(py, CLASS, "_when")
    }

    #[setter(_when)]
    fn set_due(&self, when: Bound<'_, PyAny>) {
        self.state.get(when.py()).when.set(when.clone());
    }

    #[getter(_timeout_handler)]
    fn timer<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.state.get(py).timer.get(py, CLASS, "_timeout_handler")
    }

    #[setter(_timeout_handler)]
    fn set_timer(&self, timer: Bound<'_, PyAny>) {
        self.state.get(timer.py()).timer.set(timer.clone());
    }

    #[getter(_task)]
    fn task<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.state.get(py).task.get(py, CLASS, "_task")
    }

    #[setter(_task)]
    fn set_task(&self, task: Bound<'_, PyAny>) {
        self.state.get(task.py()).task.set(task.clone());
    }

    #[getter(_cancelling)]
    fn cancelling<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.state.get(py).cancelling.get(py, CLASS, "_cancelling")
    }

    #[setter(_cancelling)]
    fn set_cancelling(&self, cancelling: Bound<'_, PyAny>) {
        self.state.get(cancelling.py()).cancelling.set(cancelling.clone());
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let Some(state) = self.state.in_traverse(&visit) else { return Ok(()) };
        state.held().into_iter().try_for_each(|field| field.traverse(&visit))
    }

    fn __clear__(slf: &Bound<'_, Self>) {
        slf.get().state.get(slf.py()).held().into_iter().for_each(Attribute::clear);
    }
}
