//! A callback that waits in the loop's queue without a handle.
//!
//! Most programs drop the handle that `call_soon()` gives them. When so many callbacks wait that the
//! memory of handles which have been run does not suffice for the next one, the one before is looked
//! at: if only the queue has its handle, callback, context and argument move into the queue's entry, and
//! the handle is free for the call that comes. An entry is a quarter of a handle, and it is the
//! first touch of memory that queueing many calls costs most. Before it is called, or shown to
//! anybody, it is given a handle again.

use std::ptr::{self, NonNull};

use pyo3::PyVisit;
use pyo3::ffi::{self, PyObject};
use pyo3::prelude::*;

use super::handle::{HandleRef, SHARED, THREADSAFE, release_context, visit_pointer};
use crate::event_loop::Loop;

/// What is left of the handle.
pub struct QueuedCall {
    callback: NonNull<PyObject>,
    context: NonNull<PyObject>,
    /// The argument; null when there is none.
    argument: *mut PyObject,
    flags: u8,
}

impl QueuedCall {
    /// Empties a handle that the caller alone has, if everything of it fits.
    #[inline]
    pub fn from_handle(handle: &HandleRef) -> Option<QueuedCall> {
        let this = handle.fields();
        // SAFETY: handles are touched with the GIL held. What is taken out is not there any more; a
        // handle without a callback is one like any other, as cancelled ones are.
        unsafe {
            let fits = ffi::Py_REFCNT(this.cast()) == 1
                && (*this).flags & !(SHARED | THREADSAFE) == 0
                && (*this).nargs <= 1
                && (*this).source_traceback.is_null()
                && (*this).weakrefs.is_null()
                && ffi::PyObject_GC_IsTracked(this.cast()) == 0;
            if !fits {
                return None;
            }
            let callback = NonNull::new((*this).callback)?;
            let context = NonNull::new((*this).context)?;
            (*this).callback = ptr::null_mut();
            (*this).context = ptr::null_mut();
            let argument = std::mem::replace(&mut (*this).args[0], ptr::null_mut());
            let flags = (*this).flags;
            (*this).nargs = 0;
            (*this).flags = 0;
            Some(QueuedCall { callback, context, argument, flags })
        }
    }

    /// Gives it a handle again.
    ///
    /// # Errors
    /// `MemoryError`; the callback is lost then.
    #[inline(never)]
    pub fn into_handle(self, event_loop: &Bound<'_, Loop>) -> PyResult<HandleRef> {
        let handle = HandleRef::empty(event_loop, None)?;
        let this = handle.fields();
        // SAFETY: the handle is new and holds nothing; the references move into it.
        unsafe {
            (*this).callback = self.callback.as_ptr();
            (*this).context = self.context.as_ptr();
            (*this).args[0] = self.argument;
            (*this).nargs = u8::from(!self.argument.is_null());
            (*this).flags = self.flags;
        }
        std::mem::forget(self);
        Ok(handle)
    }

    /// The callback.
    pub fn callback(&self, py: Python<'_>) -> Py<PyAny> {
        // SAFETY: attached; this owns a reference to the object.
        unsafe { Bound::from_borrowed_ptr(py, self.callback.as_ptr()).unbind() }
    }

    /// For the collector.
    pub fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), pyo3::PyTraverseError> {
        for field in [self.callback.as_ptr(), self.context.as_ptr(), self.argument] {
            // SAFETY: each is null or a reference that this owns.
            unsafe { visit_pointer(field, visit)? };
        }
        Ok(())
    }
}

impl Drop for QueuedCall {
    fn drop(&mut self) {
        // SAFETY: as with HandleRef, entries of queues are dropped with the GIL held; the references are
        // this one's.
        unsafe {
            let py = Python::assume_attached();
            ffi::Py_DECREF(self.callback.as_ptr());
            ffi::Py_XDECREF(self.argument);
            release_context(py, self.context.as_ptr(), self.flags & SHARED != 0);
        }
    }
}
