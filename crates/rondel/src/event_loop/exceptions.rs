//! Handing errors to the loop's exception handler.
//!
//! The handlers themselves (`call_exception_handler`, `default_exception_handler`) are Python code in
//! the package: they are called rarely, and programs override them.

use pyo3::exceptions::{PyKeyboardInterrupt, PySystemExit, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::Loop;

/// Whether an exception must leave the loop instead of going to the handler.
pub fn must_propagate(py: Python<'_>, error: &PyErr) -> bool {
    error.is_instance_of::<PyKeyboardInterrupt>(py) || error.is_instance_of::<PySystemExit>(py)
}

/// Calls `loop.call_exception_handler(context)`.
pub fn call_handler(event_loop: &Bound<'_, Loop>, context: &Bound<'_, PyDict>) -> PyResult<()> {
    event_loop.call_method1("call_exception_handler", (context,))?;
    Ok(())
}

/// `loop.set_exception_handler(handler)`.
pub fn set_handler(event_loop: &Bound<'_, Loop>, handler: &Bound<'_, PyAny>) -> PyResult<()> {
    let new = if handler.is_none() {
        None
    } else if handler.is_callable() {
        Some(handler.clone().unbind())
    } else {
        return Err(PyTypeError::new_err(format!(
            "A callable object or None is expected, got {}",
            handler.repr()?
        )));
    };
    // The old handler is dropped after the borrow has ended.
    drop(event_loop.get().state(event_loop.py()).exception_handler.replace(new));
    Ok(())
}
