//! Entering and leaving contexts (PEP 567).

use std::ptr;

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
pub fn run_in<R>(context: &Bound<'_, PyContext>, f: impl FnOnce() -> PyResult<R>) -> PyResult<R> {
    let mut switch = ContextSwitch::new(context.py());
    // SAFETY: the caller's reference keeps the context alive until `switch` has left it.
    unsafe { switch.enter(context.as_ptr())? };
    f()
}

/// Which context the loop is in while it runs callbacks.
///
/// A run of callbacks that share a context (the steps of one task) enters it once. Leaves what it
/// entered when it is dropped.
pub struct ContextSwitch<'py> {
    py: Python<'py>,
    /// The entered context, with a reference of its own; null when outside.
    entered: *mut ffi::PyObject,
}

impl<'py> ContextSwitch<'py> {
    /// A switch that is outside any context of its own.
    pub fn new(py: Python<'py>) -> Self {
        ContextSwitch { py, entered: ptr::null_mut() }
    }

    /// Makes `context` the current one, leaving the one before if it is another.
    ///
    /// # Errors
    /// `RuntimeError` when the context is entered already (further down on this stack, or by
    /// another thread).
    ///
    /// # Safety
    /// `context` points to a live `contextvars.Context`.
    #[inline]
    pub unsafe fn enter(&mut self, context: *mut ffi::PyObject) -> PyResult<()> {
        if self.entered == context {
            return Ok(());
        }
        self.leave();
        // SAFETY: attached, and `context` is a live context by this function's contract.
        unsafe {
            if ffi::PyContext_Enter(context) < 0 {
                return Err(PyErr::fetch(self.py));
            }
            ffi::Py_INCREF(context);
        }
        self.entered = context;
        Ok(())
    }

    /// Leaves the context that was entered, if any. Must be called with no exception set.
    #[inline]
    pub fn leave(&mut self) {
        if self.entered.is_null() {
            return;
        }
        let context = std::mem::replace(&mut self.entered, ptr::null_mut());
        // SAFETY: `context` was entered by this switch, which owns a reference to it. Leaving fails
        // only when something left in between is still inside; CPython then keeps its state and the
        // exception is dropped, since there is nobody to give it to.
        unsafe {
            if ffi::PyContext_Exit(context) < 0 {
                ffi::PyErr_Clear();
            }
            ffi::Py_DECREF(context);
        }
    }
}

impl Drop for ContextSwitch<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}
