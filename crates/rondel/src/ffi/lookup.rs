//! Which function a method call would reach: for doing natively what a well-known one does, and only
//! if it is still the one that would be called.

use std::ptr;

use pyo3::ffi::{self, PyObject};
use pyo3::prelude::*;
use pyo3::types::PyString;

unsafe extern "C" {
    // Exported by every supported CPython: how it looks up a method to call it without binding it.
    fn _PyObject_GetMethod(
        object: *mut PyObject,
        name: *mut PyObject,
        method: *mut *mut PyObject,
    ) -> std::ffi::c_int;
    // Likewise: where an object keeps its `__dict__`; null if nowhere.
    fn _PyObject_GetDictPtr(object: *mut PyObject) -> *mut *mut PyObject;
    // Likewise: a class's attribute, without an exception when there is none.
    fn _PyType_Lookup(class: *mut ffi::PyTypeObject, name: *mut PyObject) -> *mut PyObject;
}

/// Whether `object.name(...)` would call `function`: whether neither the object's class nor the object
/// itself has put something else under that name.
#[inline]
pub fn calls(
    object: &Bound<'_, PyAny>,
    name: &Bound<'_, PyString>,
    function: &Bound<'_, PyAny>,
) -> bool {
    let mut found: *mut PyObject = ptr::null_mut();
    // SAFETY: attached; both are live. What is found is a new reference, or null with an exception set.
    unsafe {
        let unbound = _PyObject_GetMethod(object.as_ptr(), name.as_ptr(), &raw mut found);
        if found.is_null() {
            ffi::PyErr_Clear();
            return false;
        }
        let same = unbound == 1 && found == function.as_ptr();
        ffi::Py_DECREF(found);
        same
    }
}

/// Whether the object has attributes of its own. For objects of native classes that keep their
/// `__dict__` by a pointer, which is null until it is needed (on Python 3.11 an empty one is made at once).
#[inline]
pub fn has_attributes(object: &Bound<'_, PyAny>) -> bool {
    // SAFETY: attached; the place that is returned, if any, is inside the live object, and holds null or
    // a dict.
    unsafe {
        let place = _PyObject_GetDictPtr(object.as_ptr());
        !place.is_null() && !(*place).is_null() && ffi::PyDict_Size(*place) != 0
    }
}

/// Whether the object's class has exactly `value` under a name.
#[inline]
pub fn class_has(
    object: &Bound<'_, PyAny>,
    name: &Bound<'_, PyString>,
    value: &Bound<'_, PyAny>,
) -> bool {
    // SAFETY: attached; what is found is borrowed from the class and only compared.
    unsafe { _PyType_Lookup(ffi::Py_TYPE(object.as_ptr()), name.as_ptr()) == value.as_ptr() }
}
