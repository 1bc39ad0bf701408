//! Calling what a handle holds, in its context.

use std::ptr;

use pyo3::ffi::{self, PyObject};
use pyo3::prelude::*;

use super::handle::{ARGS_IN_TUPLE, CANCELLED, HandleRef, RUNNING, SHARED, release_call};
use super::shared_context;

impl HandleRef {
    /// Calls the callback with its arguments, in the current context.
    #[inline(always)]
    fn call(&self, py: Python<'_>) -> PyResult<()> {
        let this = self.fields();
        // SAFETY: RUNNING keeps callback and arguments in place during the call, and this reference
        // keeps the object. `spare` lies before `args`, so the callee may use the slot at -1 as the
        // flag allows; it puts back what was there.
        unsafe {
            if (*this).callback.is_null() {
                return Ok(());
            }
            let nested = self.has(RUNNING);
            (*this).flags |= RUNNING;
            let result = if (*this).nargs == ARGS_IN_TUPLE {
                ffi::PyObject_Call((*this).callback, (*this).args[0], ptr::null_mut())
            } else {
                let args = (&raw mut (*this).spare).add(1);
                ffi::PyObject_Vectorcall(
                    (*this).callback,
                    args.cast_const(),
                    (*this).nargs as usize | ffi::PY_VECTORCALL_ARGUMENTS_OFFSET,
                    ptr::null_mut(),
                )
            };
            if !nested {
                (*this).flags &= !RUNNING;
                crate::handle::call_ended(self);
            }
            let outcome = if result.is_null() {
                Err(PyErr::fetch(py))
            } else {
                ffi::Py_DECREF(result);
                Ok(())
            };
            if !nested && self.has(CANCELLED) {
                release_call(this);
            }
            outcome
        }
    }

    /// Calls the callback in the handle's context. The context is left before anything that the call
    /// held can go: finalizers may want to enter it.
    #[inline]
    pub fn call_in_context(&self, py: Python<'_>) -> PyResult<()> {
        let template = if self.has(SHARED) { self.put_copy(py)? } else { None };
        let result = match self.context(py) {
            Some(context) => super::context::run_in(&context, || self.call(py)),
            None => Ok(()),
        };
        if let Some(template) = template {
            self.put_back(py, template);
        }
        result
    }

    /// Makes a context that other handles use, too, the handle's own. If that takes a copy, the template is
    /// returned: the copy may do for others.
    #[inline]
    fn put_copy<'py>(&self, py: Python<'py>) -> PyResult<Option<Template<'py>>> {
        let this = self.fields();
        // SAFETY: the flag says that the context is a template. The reference to it goes to the caller
        // when the copy has its place.
        unsafe {
            let template = (*this).context;
            let mut taken = None;
            if !shared_context::is_own(py, template) {
                let event_loop = self.event_loop(py);
                let spare = &event_loop.get().state(py).spare_context;
                (*this).context = spare.take(py, template)?.into_ptr();
                taken = Some(Template(template, py));
            }
            self.set(SHARED, false);
            Ok(taken)
        }
    }

    /// After the call: the template is the handle's context again, unless the callback changed the copy or
    /// gave it to somebody.
    #[inline]
    fn put_back(&self, py: Python<'_>, template: Template<'_>) {
        let this = self.fields();
        let event_loop = self.event_loop(py);
        let spare = &event_loop.get().state(py).spare_context;
        // SAFETY: the context is the copy, or null when the collector took it, and was left.
        unsafe {
            let copy = ptr::replace(&raw mut (*this).context, ptr::null_mut());
            let kept = Bound::from_owned_ptr_or_opt(py, copy)
                .and_then(|copy| spare.put(copy.cast_into_unchecked().unbind(), template.0, py));
            match kept {
                Some(copy) => (*this).context = copy.into_ptr(),
                None => {
                    (*this).context = template.into_ptr();
                    self.set(SHARED, true);
                }
            }
        }
    }
}

/// A handle's reference to the template that it gave up for a copy.
struct Template<'py>(*mut PyObject, Python<'py>);

impl Template<'_> {
    /// The reference, to put where it was.
    fn into_ptr(self) -> *mut PyObject {
        std::mem::ManuallyDrop::new(self).0
    }
}

impl Drop for Template<'_> {
    fn drop(&mut self) {
        // SAFETY: attached, and the reference is this one's.
        unsafe { shared_context::release(self.1, self.0) };
    }
}
