//! Raw methods of native types: the arguments come from the caller's stack, without a general
//! argument parser between.
//!
//! They are put onto their type as method descriptors, which check that `self` is of that type before
//! they call.

use std::ffi::{CStr, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use pyo3::PyClass;
use pyo3::exceptions::PyTypeError;
use pyo3::ffi::{self, Py_ssize_t, PyMethodDef, PyObject};
use pyo3::prelude::*;
use pyo3::types::{PyString, PyTuple, PyType};

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

/// The only argument that a method takes, by position or by name, if it was given.
///
/// # Errors
/// `TypeError` that names the method when there are more, or others.
///
/// # Safety
/// Attached; what CPython gave to a method with these flags: there are `nargs` values, and one for each
/// name behind them.
#[inline]
pub(super) unsafe fn only_argument<'py>(
    py: Python<'py>,
    (method, argument): (&str, &str),
    (args, nargs, kwnames): (*const *mut PyObject, Py_ssize_t, *mut PyObject),
) -> PyResult<Option<Bound<'py, PyAny>>> {
    // SAFETY: by this function's contract.
    unsafe {
        if nargs == 0 && kwnames.is_null() {
            return Ok(None);
        }
        if nargs != 1 || !kwnames.is_null() {
            let names = Bound::from_borrowed_ptr_or_opt(py, kwnames);
            check_named((method, argument), nargs.unsigned_abs(), names)?;
        }
        // By position or by name, it is the first value.
        Ok(Some(Bound::from_borrowed_ptr(py, *args)))
    }
}

/// Whether the only argument has its name.
#[cold]
fn check_named(
    (method, argument): (&str, &str),
    nargs: usize,
    names: Option<Bound<'_, PyAny>>,
) -> PyResult<()> {
    let names: Vec<String> = match &names {
        Some(names) => names.cast::<PyTuple>()?.extract()?,
        None => Vec::new(),
    };
    let problem = match (nargs, names.as_slice()) {
        (0, [name]) if name == argument => return Ok(()),
        (1, []) => return Ok(()),
        (1, [name, ..]) if name == argument => {
            format!("got multiple values for argument '{argument}'")
        }
        (0 | 1, names) => {
            let unknown = names.iter().find(|name| *name != argument);
            format!("got an unexpected keyword argument '{}'", unknown.map_or("", String::as_str))
        }
        (count, _) => format!("takes 1 positional argument but {count} were given"),
    };
    Err(PyTypeError::new_err(format!("{method}() {problem}")))
}

/// The error of an argument that was not given.
#[cold]
pub(super) fn missing((method, argument): (&str, &str)) -> PyErr {
    let text = format!("{method}() missing 1 required positional argument: '{argument}'");
    PyTypeError::new_err(text)
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
