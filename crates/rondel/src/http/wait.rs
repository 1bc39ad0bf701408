//! The awaitable of everything that a response is waited for.
//!
//! It looks first, and ends at once when what it wants is there; only otherwise does it hand a
//! Future to the task that awaits it, and looks again afterwards.

use std::cell::RefCell;

use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;

use super::Lane;
use super::stream::{StreamReader, Want};
use super::websocket::WebSocket;
use crate::coroutine;
use crate::ffi::confined::Confined;
use crate::ffi::stepping::{self, Step, Steps};

/// What is waited for.
pub enum Source {
    /// Part of a body.
    Body(Py<StreamReader>, Want),
    /// A response's head.
    Head(Lane),
    /// Room to write.
    Room(Lane),
    /// A WebSocket's next message.
    Message(Py<WebSocket>),
}

impl Source {
    fn take(&mut self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        match self {
            Source::Body(stream, want) => stream.get().take(py, want),
            Source::Head(lane) => lane.take_head(py),
            Source::Room(lane) => Ok(lane.has_room(py)?.then(|| py.None())),
            Source::Message(socket) => socket.get().take(py),
        }
    }

    fn waiter(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match self {
            Source::Body(stream, _) => stream.get().waiter(py),
            Source::Head(lane) => lane.waiter(py, |waiting| &waiting.head_waiter),
            Source::Room(lane) => lane.waiter(py, |waiting| &waiting.room_waiter),
            Source::Message(socket) => socket.get().waiter(py),
        }
    }
}

impl Steps for Wait {
    fn step(slf: &Bound<'_, Self>) -> PyResult<Step> {
        slf.get().advance(slf.py())
    }
}

/// A coroutine over a [`Source`].
#[pyclass(frozen, weakref, module = "rondel._rondel", name = "HttpWait")]
pub struct Wait {
    source: Confined<RefCell<Option<Source>>>,
    future: Confined<RefCell<Option<Py<PyAny>>>>,
}

impl Wait {
    pub fn new(source: Source) -> Self {
        Wait {
            source: Confined::new(RefCell::new(Some(source))),
            future: Confined::new(RefCell::new(None)),
        }
    }

    fn advance(&self, py: Python<'_>) -> PyResult<Step> {
        // Out of its cell while Python may run.
        let Some(mut source) = self.source.get(py).take() else {
            return Err(PyRuntimeError::new_err("cannot reuse already awaited coroutine"));
        };
        let future = self.future.get(py).take();
        if let Some(future) = future {
            let result = future.call_method0(py, intern!(py, "result"))?;
            if !result.is_none(py) {
                return Ok(Step::Returned(result));
            }
        }
        if let Some(value) = source.take(py)? {
            return Ok(Step::Returned(value));
        }
        let future = source.waiter(py)?;
        future.setattr(py, intern!(py, "_asyncio_future_blocking"), true)?;
        self.source.get(py).replace(Some(source));
        self.future.get(py).replace(Some(future.clone_ref(py)));
        Ok(Step::Yielded(future))
    }

    fn end(&self, py: Python<'_>) {
        let source = self.source.get(py).take();
        let future = self.future.get(py).take();
        drop((source, future));
    }
}

#[pymethods]
impl Wait {
    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        stepping::told(self.advance(py)?)
    }

    /// Resume; asyncio's tasks send None.
    #[pyo3(signature = (value, /))]
    fn send(&self, py: Python<'_>, value: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        let _ = value;
        stepping::told(self.advance(py)?)
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
        self.end(py);
        Err(coroutine::thrown(r#type, value, traceback)?)
    }

    /// Drop the coroutine where it waits.
    fn close(&self, py: Python<'_>) {
        self.end(py);
    }

    #[getter]
    fn __name__(&self) -> &'static str {
        "read"
    }

    #[getter]
    fn __qualname__(&self) -> &'static str {
        "StreamReader.read"
    }

    fn __traverse__(&self, visit: pyo3::PyVisit<'_>) -> Result<(), pyo3::PyTraverseError> {
        if let Some(cell) = self.source.in_traverse(&visit)
            && let Ok(source) = cell.try_borrow()
        {
            match &*source {
                Some(Source::Body(stream, _)) => visit.call(stream)?,
                Some(Source::Head(lane) | Source::Room(lane)) => lane.traverse(&visit)?,
                Some(Source::Message(socket)) => visit.call(socket)?,
                None => {}
            }
        }
        if let Some(cell) = self.future.in_traverse(&visit)
            && let Ok(future) = cell.try_borrow()
        {
            visit.call(&*future)?;
        }
        Ok(())
    }

    fn __clear__(&self, py: Python<'_>) {
        self.end(py);
    }
}
