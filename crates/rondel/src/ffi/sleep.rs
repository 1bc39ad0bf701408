//! `asyncio.sleep` where `rondel.install()` has put ours: `sleep(0)` is an operation, which is
//! two generators less; every other sleep is asyncio's own coroutine.
//!
//! Programs ask the function whether it is a coroutine function, for its signature, its code; mocks are
//! made after it. So the object answers as asyncio's function does: all attributes are that one's.

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use pyo3::ffi::{self, Py_ssize_t, PyObject, PyTypeObject};
use pyo3::prelude::*;
use pyo3::types::{PyString, PyType};

use super::methods::noargs;
use super::operation::Operation;
use super::types::{self, slot};
use crate::streams::operation::Kind;

/// The layout of the type. `ob_base` comes first, as in every Python object.
#[repr(C)]
struct SleepObject {
    ob_base: PyObject,
    call: Option<ffi::vectorcallfunc>,
    /// asyncio's function; null only after the collector cleared the object.
    stock: *mut PyObject,
    weakrefs: *mut PyObject,
}

static TYPE: AtomicPtr<PyTypeObject> = AtomicPtr::new(ptr::null_mut());

/// Makes the function that is called in place of `stock`.
///
/// # Errors
/// `MemoryError`
#[pyfunction]
#[pyo3(signature = (stock, /))]
pub fn native_sleep<'py>(stock: Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = stock.py();
    // SAFETY: attached. Every field is filled before the object is tracked or seen by anybody.
    unsafe {
        let this = ffi::PyObject_GC_New::<SleepObject>(TYPE.load(Ordering::Relaxed));
        if this.is_null() {
            return Err(PyErr::fetch(py));
        }
        (*this).call = Some(call);
        (*this).stock = stock.into_ptr();
        (*this).weakrefs = ptr::null_mut();
        ffi::PyObject_GC_Track(this.cast());
        Ok(Bound::from_owned_ptr(py, this.cast()))
    }
}

/// `sleep(delay, result=None)`
unsafe extern "C" fn call(
    slf: *mut PyObject,
    args: *const *mut PyObject,
    nargsf: usize,
    kwnames: *mut PyObject,
) -> *mut PyObject {
    // SAFETY: CPython calls it attached, with a live object of the type and live arguments.
    unsafe {
        let nargs = ffi::PyVectorcall_NARGS(nargsf);
        if kwnames.is_null() && (nargs == 1 || nargs == 2) && is_no_delay(*args) {
            let py = Python::assume_attached();
            let result = if nargs == 2 { *args.add(1) } else { ffi::Py_None() };
            let result = Bound::from_borrowed_ptr(py, result);
            return match Operation::create(Kind::Sleep, &result, None, 0) {
                Ok(operation) => operation.into_ptr(),
                Err(error) => {
                    super::attached(|py| error.restore(py));
                    ptr::null_mut()
                }
            };
        }
        ffi::PyObject_Vectorcall(stock(slf), args, nargsf, kwnames)
    }
}

/// Whether a delay is a number for which asyncio sets no timer.
///
/// # Safety
/// Attached; `delay` is a live object.
#[inline]
unsafe fn is_no_delay(delay: *mut PyObject) -> bool {
    // SAFETY: by this function's contract. An int that is too large is a long sleep, or none.
    unsafe {
        if ffi::PyLong_CheckExact(delay) != 0 {
            let mut overflow = 0;
            let value = ffi::PyLong_AsLongAndOverflow(delay, &raw mut overflow);
            return value <= 0 && overflow <= 0;
        }
        ffi::PyFloat_CheckExact(delay) != 0 && ffi::PyFloat_AS_DOUBLE(delay) <= 0.0
    }
}

/// asyncio's function, borrowed.
///
/// # Safety
/// Attached; `slf` is a live object of the type.
unsafe fn stock(slf: *mut PyObject) -> *mut PyObject {
    // SAFETY: by this function's contract.
    unsafe {
        let stock = (*slf.cast::<SleepObject>()).stock;
        if stock.is_null() { ffi::Py_None() } else { stock }
    }
}

unsafe extern "C" fn get_attribute(slf: *mut PyObject, name: *mut PyObject) -> *mut PyObject {
    // SAFETY: CPython calls the slot attached, with a live object of the type and a name.
    unsafe {
        if Bound::from_borrowed_ptr(Python::assume_attached(), name)
            .eq("__reduce_ex__")
            .is_ok_and(|is| is)
        {
            return ffi::PyObject_GenericGetAttr(slf, name);
        }
        ffi::PyObject_GetAttr(stock(slf), name)
    }
}

unsafe extern "C" fn set_attribute(
    slf: *mut PyObject,
    name: *mut PyObject,
    value: *mut PyObject,
) -> c_int {
    // SAFETY: CPython calls the slot attached, with live objects; no value means to delete it.
    unsafe { ffi::PyObject_SetAttr(stock(slf), name, value) }
}

unsafe extern "C" fn repr(slf: *mut PyObject) -> *mut PyObject {
    // SAFETY: CPython calls the slot attached, with a live object of the type.
    unsafe { ffi::PyObject_Repr(stock(slf)) }
}

/// A function is pickled by its name.
unsafe extern "C" fn reduce(_slf: *mut PyObject, _protocol: *mut PyObject) -> *mut PyObject {
    // SAFETY: CPython calls the method attached.
    unsafe { PyString::new(Python::assume_attached(), "sleep").into_any().into_ptr() }
}

unsafe extern "C" fn dealloc(object: *mut PyObject) {
    // SAFETY: CPython calls this once, attached, when the last reference is gone.
    unsafe {
        ffi::PyObject_GC_UnTrack(object.cast());
        if !(*object.cast::<SleepObject>()).weakrefs.is_null() {
            ffi::PyObject_ClearWeakRefs(object);
        }
        clear(object);
        let kind = ffi::Py_TYPE(object);
        ffi::PyObject_GC_Del(object.cast());
        ffi::Py_DECREF(kind.cast());
    }
}

unsafe extern "C" fn traverse(
    object: *mut PyObject,
    visit: ffi::visitproc,
    arg: *mut c_void,
) -> c_int {
    // SAFETY: called by the collector on a live object; the type and None are live, too.
    unsafe {
        let stock = (*object.cast::<SleepObject>()).stock;
        let seen = if stock.is_null() { 0 } else { visit(stock, arg) };
        if seen == 0 { visit(ffi::Py_TYPE(object).cast(), arg) } else { seen }
    }
}

unsafe extern "C" fn clear(object: *mut PyObject) -> c_int {
    // SAFETY: attached, and the object is alive; the field is empty before the reference goes.
    unsafe {
        let field = &raw mut (*object.cast::<SleepObject>()).stock;
        ffi::Py_XDECREF(ptr::replace(field, ptr::null_mut()));
    }
    0
}

/// Makes the type.
///
/// # Errors
/// `MemoryError`
pub fn create_type(py: Python<'_>) -> PyResult<Bound<'_, PyType>> {
    let offset = std::mem::offset_of!(SleepObject, call) as Py_ssize_t;
    let weakrefs = types::weakref_members(std::mem::offset_of!(SleepObject, weakrefs));
    // CPython keeps pointers into these tables for the type's life, which is the process's.
    let members: &'static mut [ffi::PyMemberDef] = Box::leak(Box::new([
        ffi::PyMemberDef { name: c"__vectorcalloffset__".as_ptr(), offset, ..weakrefs[0] },
        weakrefs[0],
        ffi::PyMemberDef::default(),
    ]));
    let reduce =
        ffi::PyMethodDef { ml_flags: ffi::METH_O, ..noargs(c"__reduce_ex__", c"", reduce) };
    let methods: &'static mut [ffi::PyMethodDef] =
        Box::leak(Box::new([reduce, ffi::PyMethodDef::zeroed()]));
    let doc = c"asyncio.sleep: a task's sleep(0) costs less than in Python.";
    let mut slots = [
        slot(ffi::Py_tp_dealloc, dealloc as *mut c_void),
        slot(ffi::Py_tp_traverse, traverse as *mut c_void),
        slot(ffi::Py_tp_clear, clear as *mut c_void),
        slot(ffi::Py_tp_doc, doc.as_ptr().cast_mut().cast()),
        slot(ffi::Py_tp_members, members.as_mut_ptr().cast()),
        slot(ffi::Py_tp_methods, methods.as_mut_ptr().cast()),
        slot(ffi::Py_tp_call, ffi::PyVectorcall_Call as *mut c_void),
        slot(ffi::Py_tp_getattro, get_attribute as *mut c_void),
        slot(ffi::Py_tp_setattro, set_attribute as *mut c_void),
        slot(ffi::Py_tp_repr, repr as *mut c_void),
        slot(0, ptr::null_mut()),
    ];
    let flags = ffi::Py_TPFLAGS_HAVE_VECTORCALL | ffi::Py_TPFLAGS_IMMUTABLETYPE;
    // SAFETY: the slots end with a zero, their tables are leaked, and the functions have the
    // signatures that their slots ask for.
    let made = unsafe {
        types::create::<SleepObject>(py, c"rondel._rondel.Sleep", None, flags, &mut slots)
    }?;
    TYPE.store(made.clone().into_ptr().cast(), Ordering::Relaxed);
    Ok(made)
}
