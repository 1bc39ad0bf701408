//! Entering and leaving contexts (PEP 567).

use std::sync::atomic::{AtomicUsize, Ordering};

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
            return run_in_copy(context, PyErr::fetch(py), f);
        }
    }
    let _inside = Inside(context);
    f()
}

/// A context that somebody further down on this stack is in, and waits in a nested run: whoever else
/// wants to run in it meanwhile runs in a copy, since waiting for it could be for ever.
#[cold]
fn run_in_copy<R>(
    context: &Bound<'_, PyContext>,
    refused: PyErr,
    f: impl FnOnce() -> PyResult<R>,
) -> PyResult<R> {
    let py = context.py();
    if SUSPENDED.load(Ordering::Relaxed) == 0 {
        return Err(refused);
    }
    // SAFETY: attached; the copy is a new reference, and entered nowhere.
    let copy: Bound<'_, PyContext> = unsafe {
        let copy = Bound::from_owned_ptr_or_err(py, ffi::PyContext_Copy(context.as_ptr()))?;
        if ffi::PyContext_Enter(copy.as_ptr()) < 0 {
            return Err(PyErr::fetch(py));
        }
        copy.cast_into_unchecked()
    };
    let _inside = Inside(&copy);
    f()
}

/// How many callbacks are suspended by nested runs, in all threads.
static SUSPENDED: AtomicUsize = AtomicUsize::new(0);

/// Contexts that were left although something runs in them, so that others may enter them meanwhile.
pub struct Suspended<'py> {
    left: Vec<Bound<'py, PyContext>>,
}

impl<'py> Suspended<'py> {
    /// Leaves those of the contexts (innermost first) that the thread is in. A context that somebody
    /// entered on top of them stays, and those below it with it.
    pub fn leave(contexts: Vec<Bound<'py, PyContext>>) -> Self {
        SUSPENDED.fetch_add(1, Ordering::Relaxed);
        let is_left = |context: &Bound<'py, PyContext>| {
            // SAFETY: attached; refused with an exception unless it is the thread's current context.
            unsafe {
                let left = ffi::PyContext_Exit(context.as_ptr()) == 0;
                if !left {
                    ffi::PyErr_Clear();
                }
                left
            }
        };
        Suspended { left: contexts.into_iter().filter(is_left).collect() }
    }
}

impl Drop for Suspended<'_> {
    /// Enters them again.
    fn drop(&mut self) {
        SUSPENDED.fetch_sub(1, Ordering::Relaxed);
        while let Some(context) = self.left.pop() {
            // SAFETY: attached, with no exception set: errors are Rust values. Nobody can be in the
            // context, since what ran meanwhile has left it; should it fail, `Inside` copes.
            unsafe {
                if ffi::PyContext_Enter(context.as_ptr()) < 0 {
                    ffi::PyErr_Clear();
                }
            }
        }
    }
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
