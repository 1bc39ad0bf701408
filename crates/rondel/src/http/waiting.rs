//! What an exchange keeps for those who wait for it, of HTTP/1.1 and of HTTP/2 alike: the waiters, what
//! they wait for, and why it will not come.

use std::cell::RefCell;

use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};

use super::head::ResponseHead;
use super::stream::StreamReader;
use super::{visit_slot, wake};
use crate::ffi::confined::Confined;

pub type Slot<T = PyAny> = Confined<RefCell<Option<Py<T>>>>;

/// An empty slot.
pub fn slot<T>() -> Slot<T> {
    Confined::new(RefCell::new(None))
}

/// See the module's documentation.
pub struct Waiting {
    /// Called when the exchange is over.
    pub on_free: Slot,
    /// Cancelled when the exchange is over.
    pub timer: Slot,
    pub head_waiter: Slot,
    pub room_waiter: Slot,
    /// A future that is done when the server wants the request's body (100 Continue).
    pub go_ahead: Slot,
    /// Why there will be no response.
    pub error: Slot,
    /// A head that nobody has taken yet.
    pub head: Slot<ResponseHead>,
    /// The body that arrives.
    pub body: Slot<StreamReader>,
}

impl Waiting {
    pub fn new() -> Self {
        Waiting {
            on_free: slot(),
            timer: slot(),
            head_waiter: slot(),
            room_waiter: slot(),
            go_ahead: slot(),
            error: slot(),
            head: slot(),
            body: slot(),
        }
    }

    fn objects(&self) -> [&Slot; 6] {
        [
            &self.on_free,
            &self.timer,
            &self.head_waiter,
            &self.room_waiter,
            &self.go_ahead,
            &self.error,
        ]
    }

    /// # Errors
    /// Why there will be no response, if that is so.
    pub fn check(&self, py: Python<'_>) -> PyResult<()> {
        let error = self.error.get(py).borrow().as_ref().map(|error| error.clone_ref(py));
        error.map_or(Ok(()), |error| Err(PyErr::from_value(error.into_bound(py))))
    }

    /// An exchange begins: `timer` is cancelled and `on_free` called when it is over.
    pub fn begin(&self, py: Python<'_>, timer: Option<Py<PyAny>>, on_free: Option<Py<PyAny>>) {
        let before = (
            self.timer.get(py).replace(timer),
            self.on_free.get(py).replace(on_free),
            self.head.get(py).take(),
            self.go_ahead.get(py).take(),
        );
        drop(before);
    }

    /// The head, if it has arrived; `expected` tells whether one is still to come.
    pub fn take_head(
        &self,
        py: Python<'_>,
        expected: impl FnOnce() -> bool,
    ) -> PyResult<Option<Py<PyAny>>> {
        let head = self.head.get(py).take();
        if let Some(head) = head {
            return Ok(Some(head.into_any()));
        }
        self.check(py)?;
        match expected() {
            true => Ok(None),
            false => Err(PyRuntimeError::new_err("no response is on its way")),
        }
    }

    /// A new future of the loop in a slot; who waited there is woken.
    pub fn waiter(
        &self,
        py: Python<'_>,
        event_loop: &Py<PyAny>,
        slot: &Slot,
    ) -> PyResult<Py<PyAny>> {
        let future = event_loop.call_method0(py, intern!(py, "create_future"))?;
        let before = slot.get(py).replace(Some(future.clone_ref(py)));
        wake(py, before)?;
        Ok(future)
    }

    /// Wakes who waits in a slot.
    pub fn wake(&self, py: Python<'_>, slot: &Slot) -> PyResult<()> {
        let waiter = slot.get(py).take();
        wake(py, waiter)
    }

    /// `waiter` is done when the server wants the request's body.
    pub fn expect_continue(&self, py: Python<'_>, waiter: Py<PyAny>) {
        let before = self.go_ahead.get(py).replace(Some(waiter));
        drop(before);
    }

    /// The response is complete.
    pub fn end(&self, py: Python<'_>) -> PyResult<()> {
        let body = self.body.get(py).take();
        body.map_or(Ok(()), |body| body.get().end(py))
    }

    /// There will be no more of it: the first reason is kept, and who reads the body gets this one.
    pub fn fail(&self, py: Python<'_>, error: PyErr) -> PyResult<()> {
        if self.error.get(py).borrow().is_none() {
            let object = crate::errors::exception(py, &error).unbind();
            self.error.get(py).replace(Some(object));
        }
        let body = self.body.get(py).take();
        body.map_or(Ok(()), |body| body.get().fail(py, error))
    }

    pub fn cancel_timer(&self, py: Python<'_>) -> PyResult<()> {
        let timer = self.timer.get(py).take();
        match timer {
            Some(timer) => timer.call_method0(py, intern!(py, "cancel")).map(drop),
            None => Ok(()),
        }
    }

    /// Shows the Python objects to the collector.
    pub fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        for slot in self.objects() {
            visit_slot(slot, visit)?;
        }
        visit_slot(&self.head, visit)?;
        visit_slot(&self.body, visit)
    }

    /// Drops the Python objects.
    pub fn clear(&self, py: Python<'_>) {
        for slot in self.objects() {
            let object = slot.get(py).take();
            drop(object);
        }
        let (head, body) = (self.head.get(py).take(), self.body.get(py).take());
        drop((head, body));
    }
}
