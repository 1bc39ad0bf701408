//! Whether the program listens to audit events (`sys.addaudithook()`).

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_void};
use std::ptr;

use pyo3::ffi::{self, PyObject};
use pyo3::prelude::*;

unsafe extern "C" {
    fn PySys_Audit(event: *const c_char, format: *const c_char, ...) -> c_int;
}

/// Notes that it was called, and fails.
unsafe extern "C" fn note(called: *mut c_void) -> *mut PyObject {
    // SAFETY: CPython calls this attached, inside the call of PySys_Audit below, with the pointer that
    // was given there.
    unsafe {
        (*called.cast::<Cell<bool>>()).set(true);
        ffi::PyErr_SetNone(ffi::PyExc_RuntimeError);
    }
    ptr::null_mut()
}

/// Whether anybody listens. CPython tells in one way only: an event's arguments are made for hooks
/// alone. This event's cannot be made, so that no hook ever gets it.
pub fn has_hooks(py: Python<'_>) -> bool {
    let called = Cell::new(false);
    let convert: unsafe extern "C" fn(*mut c_void) -> *mut PyObject = note;
    // SAFETY: attached; "O&" takes a converter of this signature and a pointer for it, which outlives
    // the call.
    let result = unsafe {
        let called: *const Cell<bool> = &raw const called;
        PySys_Audit(c"socket.connect".as_ptr(), c"O&".as_ptr(), convert, called.cast::<c_void>())
    };
    if result != 0 {
        drop(PyErr::take(py));
    }
    called.get() || result != 0
}
