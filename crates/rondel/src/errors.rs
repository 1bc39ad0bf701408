//! Errors between Rust and Python.

use std::io;

use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;

use crate::imports;

/// A system call's error as Python raises it: the subclass of OSError that belongs to the number, with
/// errno and strerror set. (PyO3's own conversion knows neither.)
pub fn os_error(py: Python<'_>, error: &io::Error) -> PyErr {
    let Some(number) = error.raw_os_error() else {
        return PyOSError::new_err(error.to_string());
    };
    let text = imports::strerror(py)
        .and_then(|strerror| strerror.call1((number,)))
        .and_then(|text| text.extract::<String>())
        .unwrap_or_else(|_| error.to_string());
    PyOSError::new_err((number, text))
}

/// The exception object of an error, with its traceback.
pub fn exception<'py>(py: Python<'py>, error: &PyErr) -> Bound<'py, PyAny> {
    error.clone_ref(py).into_value(py).into_bound(py).into_any()
}
