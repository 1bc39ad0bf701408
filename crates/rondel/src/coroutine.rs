//! Coroutines in Rust: an async block of ours as a Python coroutine object.
//!
//! The block waits for asyncio futures with [`Waiting::wait`], which hands the future to whoever
//! drives the coroutine (asyncio's Task) exactly as `await future` does in Python: no executor and no
//! waker of ours. Cancellation arrives as the error of that wait, and dropping the block cleans up.
//!
//! What an async block holds is hidden from the garbage collector. An [`Operation`] is a coroutine's body
//! written by hand, for those that are many: it shows what it holds, and costs less.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use pyo3::exceptions::{PyBaseException, PyRuntimeError, PyRuntimeWarning, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyType;
use pyo3::{PyTraverseError, PyVisit};

use crate::ffi::confined::Confined;
use crate::ffi::stepping::{self, Step, Steps};

type Block = Pin<Box<dyn Future<Output = PyResult<Py<PyAny>>>>>;
type First = Box<dyn FnOnce(Python<'_>) -> PyResult<Begun>>;

/// What the first step of [`Coroutine::at_once`] came to.
pub enum Begun {
    Done(Py<PyAny>),
    /// It has to wait: the block that goes on.
    Waits(Box<dyn FnOnce(Waiting) -> Block>),
}

impl Begun {
    /// Goes on with an async block.
    pub fn waits<F>(block: impl FnOnce(Waiting) -> F + 'static) -> Self
    where
        F: Future<Output = PyResult<Py<PyAny>>> + 'static,
    {
        Begun::Waits(Box::new(|waiting| Box::pin(block(waiting))))
    }
}

/// The body of a coroutine, as the states between its waits.
pub trait Operation {
    /// Goes on. `answer` is Ok at first and when a wait is over; otherwise what is raised where the
    /// coroutine waits.
    ///
    /// # Errors
    /// What the coroutine raises; it is over then.
    fn resume(&mut self, py: Python<'_>, answer: PyResult<()>) -> PyResult<Step>;

    /// Shows what it holds to the collector.
    fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError>;
}

/// What is left to do.
enum Rest {
    First(First),
    Block(Block, Rc<Exchange>),
    Operation(Box<dyn Operation>),
}

/// Between the block and the object around it.
#[derive(Default)]
struct Exchange {
    /// The future that the block waits for, on its way out.
    yielded: RefCell<Option<Py<PyAny>>>,
    /// What the driver answered, on its way in.
    answer: RefCell<Option<PyResult<()>>>,
}

/// How a block waits.
#[derive(Clone)]
pub struct Waiting(Rc<Exchange>);

struct Suspension<'a> {
    exchange: &'a Exchange,
    future: Option<Py<PyAny>>,
}

impl Future for Suspension<'_> {
    type Output = PyResult<()>;

    fn poll(mut self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(future) = self.future.take() {
            self.exchange.yielded.replace(Some(future));
            return Poll::Pending;
        }
        match self.exchange.answer.take() {
            Some(answer) => Poll::Ready(answer),
            None => Poll::Pending,
        }
    }
}

impl Waiting {
    /// Waits for an asyncio future and returns its result.
    ///
    /// # Errors
    /// The future's exception, or `CancelledError` when the task around is cancelled.
    pub async fn wait(&self, future: Py<PyAny>) -> PyResult<Py<PyAny>> {
        let kept = Python::attach(|py| {
            future.setattr(py, intern!(py, "_asyncio_future_blocking"), true)?;
            PyResult::Ok(future.clone_ref(py))
        })?;
        Suspension { exchange: &self.0, future: Some(future) }.await?;
        Python::attach(|py| kept.call_method0(py, intern!(py, "result")))
    }
}

/// A coroutine that is implemented in Rust.
#[pyclass(frozen, weakref, generic, module = "rondel._rondel", name = "Coroutine")]
pub struct Coroutine {
    name: &'static str,
    rest: Confined<RefCell<Option<Rest>>>,
    started: Confined<Cell<bool>>,
    running: Confined<Cell<bool>>,
}

impl Coroutine {
    /// Makes a coroutine of an async block. `name` is the method's, for repr and messages.
    pub fn new<F>(name: &'static str, block: impl FnOnce(Waiting) -> F) -> Self
    where
        F: Future<Output = PyResult<Py<PyAny>>> + 'static,
    {
        let exchange = Rc::new(Exchange::default());
        let block: Block = Box::pin(block(Waiting(exchange.clone())));
        Self::with(name, Rest::Block(block, exchange))
    }

    /// The same of an operation.
    pub fn of_operation(name: &'static str, operation: impl Operation + 'static) -> Self {
        Self::with(name, Rest::Operation(Box::new(operation)))
    }

    /// Makes a coroutine that usually ends in its first step, which is therefore no async block.
    pub fn at_once(
        name: &'static str,
        first: impl FnOnce(Python<'_>) -> PyResult<Begun> + 'static,
    ) -> Self {
        Self::with(name, Rest::First(Box::new(first)))
    }

    fn with(name: &'static str, rest: Rest) -> Self {
        Coroutine {
            name,
            rest: Confined::new(RefCell::new(Some(rest))),
            started: Confined::new(Cell::new(false)),
            running: Confined::new(Cell::new(false)),
        }
    }

    fn resume(&self, py: Python<'_>, answer: PyResult<()>) -> PyResult<Step> {
        let running = self.running.get(py);
        if running.get() {
            return Err(PyValueError::new_err("coroutine already executing"));
        }
        let Some(rest) = self.rest.get(py).take() else {
            return Err(PyRuntimeError::new_err("cannot reuse already awaited coroutine"));
        };
        let is_first = !self.started.get(py).replace(true);
        if is_first && let Err(error) = answer {
            drop(rest);
            return Err(error);
        }
        running.set(true);
        let step = self.go_on(py, rest, answer, is_first);
        running.set(false);
        step
    }

    fn go_on(
        &self,
        py: Python<'_>,
        rest: Rest,
        answer: PyResult<()>,
        is_first: bool,
    ) -> PyResult<Step> {
        let (mut block, exchange) = match rest {
            Rest::Operation(mut operation) => {
                let step = operation.resume(py, answer)?;
                if matches!(step, Step::Yielded(_)) {
                    self.rest.get(py).replace(Some(Rest::Operation(operation)));
                }
                return Ok(step);
            }
            Rest::Block(block, exchange) => (block, exchange),
            Rest::First(first) => match first(py)? {
                Begun::Done(value) => return Ok(Step::Returned(value)),
                Begun::Waits(block) => {
                    let exchange = Rc::new(Exchange::default());
                    (block(Waiting(exchange.clone())), exchange)
                }
            },
        };
        if !is_first {
            exchange.answer.replace(Some(answer));
        }
        match block.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => result.map(Step::Returned),
            Poll::Pending => {
                let yielded = exchange.yielded.take();
                self.rest.get(py).replace(Some(Rest::Block(block, exchange)));
                Ok(Step::Yielded(yielded.unwrap_or_else(|| py.None())))
            }
        }
    }
}

impl Steps for Coroutine {
    fn step(slf: &Bound<'_, Self>) -> PyResult<Step> {
        slf.get().resume(slf.py(), Ok(()))
    }
}

#[pymethods]
impl Coroutine {
    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        stepping::told(self.resume(py, Ok(()))?)
    }

    /// Resume the coroutine; asyncio's tasks send None.
    #[pyo3(signature = (value, /))]
    fn send(&self, py: Python<'_>, value: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        let _ = value;
        stepping::told(self.resume(py, Ok(()))?)
    }

    /// Raise an exception where the coroutine waits.
    #[pyo3(signature = (r#type, value=None, traceback=None, /))]
    fn throw(
        &self,
        py: Python<'_>,
        r#type: &Bound<'_, PyAny>,
        value: Option<&Bound<'_, PyAny>>,
        traceback: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let error = thrown(r#type, value, traceback)?;
        stepping::told(self.resume(py, Err(error))?)
    }

    /// Drop the coroutine where it waits; what it holds is released.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        if self.running.get(py).get() {
            return Err(PyValueError::new_err("coroutine already executing"));
        }
        self.started.get(py).set(true);
        let rest = self.rest.get(py).take();
        drop(rest);
        Ok(())
    }

    #[getter]
    fn __name__(&self) -> &'static str {
        self.name
    }

    #[getter]
    fn __qualname__(&self) -> String {
        format!("Loop.{}", self.name)
    }

    /// Whether the coroutine is being resumed at this moment.
    #[getter]
    fn cr_running(&self, py: Python<'_>) -> bool {
        self.running.get(py).get()
    }

    fn __repr__(slf: &Bound<'_, Self>) -> String {
        format!("<coroutine object Loop.{} at {:p}>", slf.get().name, slf.as_ptr())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let Some(rest) = self.rest.in_traverse(&visit) else { return Ok(()) };
        match rest.try_borrow().as_deref() {
            Ok(Some(Rest::Operation(operation))) => operation.traverse(&visit),
            _ => Ok(()),
        }
    }

    fn __clear__(&self, py: Python<'_>) {
        let rest = self.rest.get(py).take();
        if rest.is_some() && !self.started.get(py).replace(true) {
            warn_never_awaited(py, &format!("Loop.{}", self.name));
        }
        drop(rest);
    }
}

impl Drop for Coroutine {
    fn drop(&mut self) {
        if self.started.get_mut().get() || self.rest.get_mut().get_mut().is_none() {
            return;
        }
        let name = format!("Loop.{}", self.name);
        Python::attach(|py| warn_never_awaited(py, &name));
    }
}

/// The exception that the arguments of a coroutine's throw() mean.
pub fn thrown(
    kind: &Bound<'_, PyAny>,
    value: Option<&Bound<'_, PyAny>>,
    traceback: Option<&Bound<'_, PyAny>>,
) -> PyResult<PyErr> {
    let error = match (kind.cast::<PyType>(), value) {
        (Ok(kind), None) => PyErr::from_value(kind.call0()?),
        (Ok(_), Some(value)) if value.is_instance_of::<PyBaseException>() => {
            PyErr::from_value(value.clone())
        }
        (Ok(kind), Some(value)) => PyErr::from_value(kind.call1((value,))?),
        (Err(_), _) => PyErr::from_value(kind.clone()),
    };
    if let Some(traceback) = traceback
        && let Ok(traceback) = traceback.cast::<pyo3::types::PyTraceback>()
    {
        error.set_traceback(kind.py(), Some(traceback.clone()));
    }
    Ok(error)
}

/// Warns of a coroutine that goes without having been awaited, as Python does of its own.
pub fn warn_never_awaited(py: Python<'_>, name: &str) {
    // Deallocation may happen with an exception set, which must survive; a warning that is turned
    // into an error has nobody to go to.
    let pending = PyErr::take(py);
    let message = format!("coroutine '{name}' was never awaited\0");
    if let Ok(message) = std::ffi::CStr::from_bytes_with_nul(message.as_bytes()) {
        let category = py.get_type::<PyRuntimeWarning>();
        if let Err(error) = PyErr::warn(py, &category, message, 1) {
            error.write_unraisable(py, None);
        }
    }
    if let Some(pending) = pending {
        pending.restore(py);
    }
}
