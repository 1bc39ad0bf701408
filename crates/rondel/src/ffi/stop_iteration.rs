//! Raising StopIteration with a value, cheaply.

use std::cell::RefCell;
use std::ptr;

use pyo3::exceptions::PyStopIteration;
use pyo3::ffi::{self, PyObject, PyTypeObject};
use pyo3::prelude::*;

use super::confined::Confined;

/// Up to this size a result may stay in the spare StopIteration until the next one.
const SMALL: isize = 4096;

/// See [`stop`].
static SPARE: Confined<RefCell<Option<Py<PyAny>>>> = Confined::new(RefCell::new(None));

/// Raises StopIteration with a value, for `tp_iternext`: how an awaited object that is no generator
/// hands its result to the interpreter from Python 3.12 on.
///
/// Making that exception is dear compared to what there is to tell; so one is kept, and used again
/// if nobody else has it. It keeps the value until then, which must not be noticed: any other value
/// goes with an exception of its own.
///
/// # Safety
/// Attached; `value` is an owned reference.
pub unsafe fn stop(py: Python<'_>, value: *mut PyObject) {
    // SAFETY: by this function's contract. The spare is a StopIteration that only we refer to, so
    // its fields are nobody else's. (PyErr_SetRaisedException is not there on 3.11.)
    #[allow(deprecated)]
    unsafe {
        if value == ffi::Py_None() {
            ffi::Py_DECREF(value); // without an exception it means None
            return;
        }
        if !is_small(value) {
            return stop_with(value);
        }
        let cell = SPARE.get(py);
        let spare = cell.borrow_mut().take();
        let spare = match spare {
            Some(spare) if super::is_sole(&spare, py) => Some(spare),
            other => {
                drop(other);
                PyStopIteration::new_err(()).into_value(py).into_any().into()
            }
        };
        let Some(spare) = spare else { return };
        let exception = spare.as_ptr().cast::<ffi::PyStopIterationObject>();
        let old = ptr::replace(&raw mut (*exception).value, value);
        let context = ptr::replace(&raw mut (*exception).context, ptr::null_mut());
        let kind = ffi::Py_TYPE(spare.as_ptr()).cast::<PyObject>();
        ffi::Py_INCREF(kind);
        ffi::PyErr_Restore(kind, spare.clone_ref(py).into_ptr(), ptr::null_mut());
        ffi::Py_XDECREF(old);
        ffi::Py_XDECREF(context);
        let unused = cell.borrow_mut().replace(spare);
        drop(unused);
    }
}

/// Whether nobody would notice that a value lives a little longer.
///
/// # Safety
/// Attached; `value` is a live object.
unsafe fn is_small(value: *mut PyObject) -> bool {
    // SAFETY: by this function's contract; the size is asked of bytes only.
    unsafe {
        (ffi::PyBytes_CheckExact(value) != 0 && ffi::Py_SIZE(value) <= SMALL)
            || ffi::PyLong_CheckExact(value) != 0
            || ffi::PyBool_Check(value) != 0
            || ffi::PyFloat_CheckExact(value) != 0
    }
}

/// Raises a new StopIteration with a value, whatever that is (a tuple or an exception would otherwise
/// be taken for arguments, or for the exception).
///
/// # Safety
/// Attached; `value` is an owned reference.
unsafe fn stop_with(value: *mut PyObject) {
    // SAFETY: by this function's contract. The class is a static type whose objects are exceptions of
    // that layout, filled with nulls by its allocator; its fields are filled before anybody sees it.
    #[allow(deprecated)]
    unsafe {
        let class = ffi::PyExc_StopIteration.cast::<PyTypeObject>();
        let made = (*class).tp_alloc.map_or(ptr::null_mut(), |allocate| allocate(class, 0));
        let args = ffi::PyTuple_New(0);
        if made.is_null() || args.is_null() {
            ffi::Py_XDECREF(made);
            ffi::Py_XDECREF(args);
            ffi::Py_DECREF(value);
            return; // MemoryError is set
        }
        let exception = made.cast::<ffi::PyStopIterationObject>();
        (*exception).args = args;
        (*exception).value = value;
        ffi::Py_INCREF(class.cast());
        ffi::PyErr_Restore(class.cast(), made, ptr::null_mut());
    }
}
