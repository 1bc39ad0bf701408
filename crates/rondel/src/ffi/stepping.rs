//! How an awaited object of ours hands what it yields, and its result, to the interpreter.
//!
//! PyO3 would make a StopIteration with a tuple of arguments for every result, by way of a boxed Rust
//! error. These slots, put into the class in place of PyO3's, save most of that.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use pyo3::exceptions::PyStopIteration;
use pyo3::ffi::{self, PyObject};
use pyo3::prelude::*;

use super::stop_iteration::stop;

/// What a step came to.
pub enum Step {
    /// It waits for this.
    Yielded(Py<PyAny>),
    /// It ended with this.
    Returned(Py<PyAny>),
}

/// A class whose objects are awaited.
pub trait Steps: pyo3::PyClass {
    /// Goes on until the next wait, or the end.
    fn step(slf: &Bound<'_, Self>) -> PyResult<Step>;
}

/// What a step is to those who call methods: a result is raised.
///
/// # Errors
/// `StopIteration` with the result.
pub fn told(step: Step) -> PyResult<Py<PyAny>> {
    match step {
        Step::Yielded(object) => Ok(object),
        Step::Returned(value) => Err(PyStopIteration::new_err((value,))),
    }
}

/// Puts the slots into the class.
pub fn install<T: Steps>(py: Python<'_>) {
    let class = py.get_type::<T>();
    let class = class.as_ptr().cast::<ffi::PyTypeObject>();
    // SAFETY: attached. The class is a heap type that PyO3 has just made, with its table of async
    // methods inside; nobody has cached its slots, whose functions have the signatures they ask for.
    unsafe {
        (*class).tp_iternext = Some(iternext::<T>);
        if let Some(table) = (*class).tp_as_async.as_mut() {
            table.am_send = Some(send::<T>);
        }
    }
}

/// # Safety
/// Attached; `slf` is a live object of the class.
unsafe fn step<T: Steps>(py: Python<'_>, slf: *mut PyObject) -> PyResult<Step> {
    // SAFETY: by this function's contract.
    let object = unsafe { Bound::from_borrowed_ptr(py, slf).cast_into_unchecked::<T>() };
    catch_unwind(AssertUnwindSafe(|| T::step(&object)))
        .unwrap_or_else(|payload| Err(crate::panic_error(&*payload)))
}

unsafe extern "C" fn iternext<T: Steps>(slf: *mut PyObject) -> *mut PyObject {
    // SAFETY: CPython calls the slot attached, with a live object of the class.
    unsafe {
        super::attached(|py| {
            match step::<T>(py, slf) {
                Ok(Step::Yielded(object)) => return object.into_ptr(),
                Ok(Step::Returned(value)) => stop(py, value.into_ptr()),
                Err(error) => error.restore(py),
            }
            ptr::null_mut()
        })
    }
}

unsafe extern "C" fn send<T: Steps>(
    slf: *mut PyObject,
    _value: *mut PyObject,
    result: *mut *mut PyObject,
) -> ffi::PySendResult {
    // SAFETY: CPython calls the slot attached, with a live object of the class and a place for the
    // result.
    unsafe {
        super::attached(|py| match step::<T>(py, slf) {
            Ok(Step::Yielded(object)) => {
                *result = object.into_ptr();
                ffi::PySendResult::PYGEN_NEXT
            }
            Ok(Step::Returned(value)) => {
                *result = value.into_ptr();
                ffi::PySendResult::PYGEN_RETURN
            }
            Err(error) => {
                *result = ptr::null_mut();
                error.restore(py);
                ffi::PySendResult::PYGEN_ERROR
            }
        })
    }
}
