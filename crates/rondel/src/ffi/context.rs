//! Entering and leaving contexts (PEP 567).

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyContext;

/// A copy of the calling thread's current context, as `contextvars.copy_context()` makes it.
pub fn copy_current(py: Python<'_>) -> PyResult<Bound<'_, PyContext>> {
    // SAFETY: attached; the result is a new reference or null with an exception set.
    unsafe {
        Bound::from_owned_ptr_or_err(py, ffi::PyContext_CopyCurrent())
            .map(|context| context.cast_into_unchecked())
    }
}

/// Runs `f` inside a context, as `Context.run` does.
///
/// # Errors
/// What `f` returns, or `RuntimeError` when the context is entered already (further down on this
/// stack, or by another thread).
#[inline]
pub fn run_in<R>(context: &Bound<'_, PyContext>, f: impl FnOnce() -> PyResult<R>) -> PyResult<R> {
    let py = context.py();
    // SAFETY: attached, and the caller's reference keeps the context alive until it is left.
    unsafe {
        if ffi::PyContext_Enter(context.as_ptr()) < 0 {
            return Err(PyErr::fetch(py));
        }
    }
    let _inside = Inside(context);
    f()
}

/// Leaves the context when it goes, also when a panic unwinds.
struct Inside<'a, 'py>(&'a Bound<'py, PyContext>);

impl Drop for Inside<'_, '_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the context was entered, and no exception is set: errors of `f` are Rust values.
        // Leaving fails only when something that was entered in between was not left; CPython keeps
        // its state then, and there is nobody to tell.
        unsafe {
            if ffi::PyContext_Exit(self.0.as_ptr()) < 0 {
                ffi::PyErr_Clear();
            }
        }
    }
}
