//! Raw methods of native types: the arguments come from the caller's stack, without a general
//! argument parser between.
//!
//! They are put onto their type as method descriptors, which check that `self` is of that type before
//! they call.

use std::ffi::{CStr, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use pyo3::PyClass;
use pyo3::ffi::{self, Py_ssize_t, PyMethodDef, PyObject};
use pyo3::prelude::*;
use pyo3::types::{PyString, PyType};

const FAST: c_int = ffi::METH_FASTCALL | ffi::METH_KEYWORDS;

/// A METH_FASTCALL | METH_KEYWORDS function: `self`, the values, how many of them are positional, and
/// the names of the others.
pub(super) type Fast = unsafe extern "C" fn(
    *mut PyObject,
    *const *mut PyObject,
    Py_ssize_t,
    *mut PyObject,
) -> *mut PyObject;

/// A method with arguments.
pub(super) fn fast(name: &'static CStr, doc: &'static CStr, function: Fast) -> PyMethodDef {
    PyMethodDef {
        ml_name: name.as_ptr(),
        ml_meth: ffi::PyMethodDefPointer { PyCFunctionFastWithKeywords: function },
        ml_flags: FAST,
        ml_doc: doc.as_ptr(),
    }
}

/// A method without arguments.
pub(super) fn noargs(
    name: &'static CStr,
    doc: &'static CStr,
    function: ffi::PyCFunction,
) -> PyMethodDef {
    PyMethodDef {
        ml_name: name.as_ptr(),
        ml_meth: ffi::PyMethodDefPointer { PyCFunction: function },
        ml_flags: ffi::METH_NOARGS,
        ml_doc: doc.as_ptr(),
    }
}

/// Runs a raw method's body: errors become the set exception, panics too.
///
/// # Safety
/// Attached; `slf` is a `T`.
#[inline]
pub(super) unsafe fn guard<T: PyClass>(
    slf: *mut PyObject,
    body: impl FnOnce(&Bound<'_, T>) -> PyResult<*mut PyObject>,
) -> *mut PyObject {
    // SAFETY: by this function's contract.
    let this = unsafe {
        Bound::from_borrowed_ptr(Python::assume_attached(), slf).cast_into_unchecked::<T>()
    };
    let outcome = catch_unwind(AssertUnwindSafe(|| body(&this)));
    let error = match outcome {
        Ok(Ok(result)) => return result,
        Ok(Err(error)) => error,
        Err(payload) => crate::panic_error(&*payload),
    };
    // PyO3 counts attachments per thread, and an error may drop references that need the count.
    // SAFETY: by this function's contract.
    unsafe { super::attached(|py| error.restore(py)) };
    ptr::null_mut()
}

/// Puts raw methods onto a type.
pub(super) fn put<const N: usize>(
    class: &Bound<'_, PyType>,
    methods: [PyMethodDef; N],
) -> PyResult<()> {
    let py = class.py();
    // The descriptors keep pointers into this for the type's life, which is the process's.
    for method in Box::leak(Box::new(methods)) {
        // SAFETY: attached; the definition is static and its flags fit its function.
        let (name, descriptor) = unsafe {
            let descriptor = ffi::PyDescr_NewMethod(class.as_type_ptr(), &raw mut *method);
            let name = CStr::from_ptr(method.ml_name);
            (
                PyString::new(py, &name.to_string_lossy()),
                Bound::from_owned_ptr_or_err(py, descriptor)?,
            )
        };
        class.setattr(name, descriptor)?;
    }
    Ok(())
}
