//! The tables through which CPython finds the methods, attributes and slots of `Handle` and
//! `TimerHandle`; what they do is in [`crate::handle`].

use std::ffi::{CStr, c_int, c_void};
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::exceptions::PyRuntimeError;
use pyo3::ffi::{self, PyGetSetDef, PyMethodDef, PyObject};
use pyo3::prelude::*;
use pyo3::pyclass::CompareOp;
use pyo3::types::{PyFloat, PyString};

use super::handle::HandleRef;
use super::types::{self, getter};
use crate::handle::{self, or_none};

/// Runs the body of a slot or method on the handle behind `slf`.
///
/// # Safety
/// Attached, and `slf` is a live object.
unsafe fn with_handle(
    slf: *mut PyObject,
    body: impl FnOnce(Python<'_>, &HandleRef) -> PyResult<Py<PyAny>>,
) -> *mut PyObject {
    let call = |py: Python<'_>| {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            // SAFETY: by this function's contract.
            let object = unsafe { Bound::from_borrowed_ptr(py, slf) };
            let handle = HandleRef::from_object(&object)
                .ok_or_else(|| PyRuntimeError::new_err("not a handle of this loop"))?;
            body(py, &handle)
        }));
        match outcome.unwrap_or_else(|payload| Err(crate::panic_error(&*payload))) {
            Ok(value) => value.into_ptr(),
            Err(error) => {
                error.restore(py);
                std::ptr::null_mut()
            }
        }
    };
    // SAFETY: by this function's contract.
    unsafe { super::attached(call) }
}

macro_rules! methods {
    ($($name:ident => |$py:ident, $handle:ident| $body:expr;)*) => {
        $(unsafe extern "C" fn $name(slf: *mut PyObject, _unused: *mut PyObject) -> *mut PyObject {
            // SAFETY: CPython calls this attached, with a live handle.
            unsafe { with_handle(slf, |$py, $handle| $body) }
        })*
    };
}

/// `handle.cancel()`, which many timers end with.
unsafe extern "C" fn method_cancel(slf: *mut PyObject, unused: *mut PyObject) -> *mut PyObject {
    // SAFETY: CPython calls this attached, with a live handle; the reference is only borrowed. Nothing
    // here panics or drops what PyO3 has to count: see `with_handle` for what might.
    unsafe {
        let handle = ManuallyDrop::new(HandleRef::borrowed(slf));
        if handle::cancel_plainly(Python::assume_attached(), &handle) {
            return ffi::Py_NewRef(ffi::Py_None());
        }
        method_cancel_with_care(slf, unused)
    }
}

methods! {
    method_cancel_with_care => |py, handle| handle::cancel_from_python(py, handle).map(|()| py.None());
    method_cancelled => |py, handle| {
        handle::wait_for_end(py, handle);
        Ok(bool_object(py, handle.is_cancelled()))
    };
    method_get_context => |py, handle| Ok(or_none(py, handle.own_context(py)?.map(Bound::into_any)));
    method_run => |py, handle| handle::run(py, handle).map(|()| py.None());
    method_when => |py, handle| Ok(PyFloat::new(py, handle.when()).into_any().unbind());
}

fn bool_object(py: Python<'_>, value: bool) -> Py<PyAny> {
    pyo3::types::PyBool::new(py, value).to_owned().into_any().unbind()
}

macro_rules! getters {
    ($($name:ident => |$py:ident, $handle:ident| $body:expr;)*) => {
        $(unsafe extern "C" fn $name(slf: *mut PyObject, _closure: *mut c_void) -> *mut PyObject {
            // SAFETY: CPython calls this attached, with a live handle.
            unsafe { with_handle(slf, |$py, $handle| $body) }
        })*
    };
}

getters! {
    get_callback => |py, handle| Ok(or_none(py, handle.callback(py)));
    get_args => |py, handle| {
        Ok(or_none(py, handle.args(py)?.map(Bound::into_any)))
    };
    get_context => |py, handle| Ok(or_none(py, handle.own_context(py)?.map(Bound::into_any)));
    get_loop => |py, handle| Ok(handle.event_loop(py).into_any().unbind());
    get_cancelled => |py, handle| Ok(bool_object(py, handle.is_cancelled()));
    get_source_traceback => |py, handle| Ok(or_none(py, handle.source_traceback(py)));
    get_repr => |py, handle| Ok(or_none(py, handle.saved_repr(py)));
    get_class => |py, handle| Ok(handle::class(py, handle)?.clone().unbind());
    get_when => |py, handle| Ok(PyFloat::new(py, handle.when()).into_any().unbind());
    get_scheduled => |py, handle| Ok(bool_object(py, handle.is_scheduled()));
}

pub(super) unsafe extern "C" fn repr_slot(slf: *mut PyObject) -> *mut PyObject {
    let body = |py: Python<'_>, handle: &HandleRef| {
        Ok(PyString::new(py, &handle::repr(py, handle)?).into_any().unbind())
    };
    // SAFETY: CPython calls this attached, with a live handle.
    unsafe { with_handle(slf, body) }
}

pub(super) unsafe extern "C" fn hash_slot(slf: *mut PyObject) -> ffi::Py_hash_t {
    // SAFETY: CPython calls this attached, with a live TimerHandle.
    unsafe {
        super::attached(|py| {
            let object = Bound::from_borrowed_ptr(py, slf);
            let when = HandleRef::from_object(&object).map_or(0.0, |handle| handle.when());
            PyFloat::new(py, when).hash().unwrap_or(0)
        })
    }
}

pub(super) unsafe extern "C" fn compare_slot(
    slf: *mut PyObject,
    other: *mut PyObject,
    operation: c_int,
) -> *mut PyObject {
    let body = |py: Python<'_>, handle: &HandleRef| {
        // SAFETY: CPython calls the slot with two live objects.
        let other = unsafe { Bound::from_borrowed_ptr(py, other) };
        let answer = match CompareOp::from_raw(operation) {
            Some(operation) => handle::compare(py, handle, &other, operation)?,
            None => None,
        };
        Ok(answer.map_or_else(|| py.NotImplemented(), |answer| bool_object(py, answer)))
    };
    // SAFETY: CPython calls this attached, with live objects.
    unsafe { with_handle(slf, body) }
}

fn method(name: &'static CStr, doc: &'static CStr, function: ffi::PyCFunction) -> PyMethodDef {
    types::method(name, doc, ffi::PyMethodDefPointer { PyCFunction: function }, ffi::METH_NOARGS)
}

/// The method and attribute tables of `Handle`, or of what `TimerHandle` adds. They are for a type
/// that lives as long as the process, so they do too.
pub(super) fn tables(timer: bool) -> (&'static mut [PyMethodDef], &'static mut [PyGetSetDef]) {
    let mut attributes = Vec::new();
    // Each type has its own: the interpreter calls a method faster that is the type's, not its base's.
    let mut methods = vec![method(
        c"cancel",
        c"cancel($self, /)\n--\n\nCancel the call. No effect when it was made already.",
        method_cancel,
    )];
    if timer {
        methods.push(method(
            c"when",
            c"when($self, /)\n--\n\nThe time of the call in seconds on the loop's clock.",
            method_when,
        ));
        attributes.push(getter(c"_when", get_when));
        attributes.push(getter(c"_scheduled", get_scheduled));
    } else {
        methods.extend([
            method(
                c"cancelled",
                c"cancelled($self, /)\n--\n\nWhether the call was cancelled.",
                method_cancelled,
            ),
            method(
                c"get_context",
                c"get_context($self, /)\n--\n\nThe contextvars.Context in which the call is made.",
                method_get_context,
            ),
            method(
                c"_run",
                c"_run($self, /)\n--\n\nMake the call now, as the loop does.",
                method_run,
            ),
        ]);
        attributes.extend([
            // isinstance() believes this: a native class cannot derive from asyncio's.
            getter(c"__class__", get_class),
            getter(c"_callback", get_callback),
            getter(c"_args", get_args),
            getter(c"_context", get_context),
            getter(c"_loop", get_loop),
            getter(c"_cancelled", get_cancelled),
            getter(c"_source_traceback", get_source_traceback),
            getter(c"_repr", get_repr),
        ]);
    }
    methods.push(PyMethodDef::zeroed());
    attributes.push(PyGetSetDef::default());
    (Box::leak(methods.into_boxed_slice()), Box::leak(attributes.into_boxed_slice()))
}
