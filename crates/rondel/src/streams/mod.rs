//! asyncio's streams, native.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`reader`] | `StreamReader`: its state, and how data comes into it |
//! | [`buffer`] | what it has received and nobody has read |
//! | [`operation`] | what `read()`, `readline()` and relatives do when they are awaited |
//! | [`writer`] | `StreamWriter` |
//! | [`delivery`] | from a transport into a reader, native or asyncio's own, without a Python frame |
//!
//! The classes here are the first bases of `rondel.StreamReader` and `rondel.StreamWriter`; the second
//! is asyncio's class of the same name. So the natives do what happens per packet, asyncio's own code
//! does everything else, word for word as in the running Python, and `isinstance` says what programs
//! expect. That code finds what it looks for: every private attribute is there.

pub mod buffer;
pub mod delivery;
pub mod operation;
pub mod reader;
pub mod writer;

use std::cell::RefCell;

use pyo3::exceptions::PyAttributeError;
use pyo3::prelude::*;

/// An attribute that can be anything: unset before `__init__`, None, or a value.
#[derive(Default)]
pub struct Attribute(RefCell<Option<Py<PyAny>>>);

impl Attribute {
    /// The value for Python.
    ///
    /// # Errors
    /// `AttributeError` when it was never set.
    pub fn get<'py>(
        &self,
        py: Python<'py>,
        class: &str,
        name: &str,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.0.borrow().as_ref().map(|value| value.bind(py).clone()).ok_or_else(|| {
            PyAttributeError::new_err(format!("'{class}' object has no attribute '{name}'"))
        })
    }

    /// The value, unless it is None.
    #[inline]
    pub fn value<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        let value = self.0.borrow();
        value.as_ref().filter(|value| !value.is_none(py)).map(|value| value.bind(py).clone())
    }

    /// Whether there is a value that is not None.
    #[inline]
    pub fn is_some(&self, py: Python<'_>) -> bool {
        self.0.borrow().as_ref().is_some_and(|value| !value.is_none(py))
    }

    /// Sets the value.
    #[inline]
    pub fn set(&self, value: Bound<'_, PyAny>) {
        // The old one is dropped when the borrow is over.
        drop(self.0.replace(Some(value.unbind())));
    }

    /// Sets it to None; returns what it was, unless that was None.
    #[inline]
    pub fn take<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        if !self.is_some(py) {
            return None;
        }
        self.0.replace(Some(py.None())).map(|value| value.into_bound(py))
    }

    /// Lets go of the value, for the collector.
    pub fn clear(&self) {
        drop(self.0.take());
    }

    /// Shows the value to the collector.
    pub fn traverse(&self, visit: &pyo3::PyVisit<'_>) -> Result<(), pyo3::PyTraverseError> {
        match self.0.try_borrow() {
            Ok(value) => visit.call(&*value),
            Err(_) => Ok(()),
        }
    }
}
