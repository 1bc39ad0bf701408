//! The types `Handle` and `TimerHandle`: made once, when the module is imported.

use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::Ordering;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyType;

use super::handle::{HANDLE_TYPE, HandleObject, TIMER_HANDLE_TYPE, clear, dealloc, traverse};
use super::handle_slots;
use super::types::{self, slot};

/// Makes the two types, with methods and attributes from [`crate::handle`].
pub fn create_types(py: Python<'_>) -> PyResult<(Bound<'_, PyType>, Bound<'_, PyType>)> {
    let handle = create_type(py, c"rondel._rondel.Handle", None, crate::handle::HANDLE_DOC)?;
    HANDLE_TYPE.store(handle.clone().into_ptr().cast(), Ordering::Relaxed);
    let timer = create_type(
        py,
        c"rondel._rondel.TimerHandle",
        Some(&handle),
        crate::handle::TIMER_HANDLE_DOC,
    )?;
    TIMER_HANDLE_TYPE.store(timer.clone().into_ptr().cast(), Ordering::Relaxed);
    // Only TimerHandle may derive from Handle: an instance of a Python subclass would not have been
    // made by `HandleRef::new`, which is what fills the fields.
    // SAFETY: attached; the type was made above and nobody else has it yet.
    unsafe { (*handle.as_type_ptr()).tp_flags &= !ffi::Py_TPFLAGS_BASETYPE };
    Ok((handle, timer))
}

fn create_type<'py>(
    py: Python<'py>,
    name: &'static std::ffi::CStr,
    base: Option<&Bound<'py, PyType>>,
    doc: &'static std::ffi::CStr,
) -> PyResult<Bound<'py, PyType>> {
    let offset = std::mem::offset_of!(HandleObject, weakrefs);
    let members = types::weakref_members(offset);
    let (methods, attributes) = handle_slots::tables(base.is_some());
    let mut slots = vec![
        slot(ffi::Py_tp_dealloc, dealloc as *mut c_void),
        slot(ffi::Py_tp_traverse, traverse as *mut c_void),
        slot(ffi::Py_tp_clear, clear as *mut c_void),
        slot(ffi::Py_tp_doc, doc.as_ptr().cast_mut().cast()),
        slot(ffi::Py_tp_methods, methods.as_mut_ptr().cast()),
        slot(ffi::Py_tp_getset, attributes.as_mut_ptr().cast()),
        slot(ffi::Py_tp_repr, handle_slots::repr_slot as *mut c_void),
    ];
    if base.is_some() {
        slots.push(slot(ffi::Py_tp_richcompare, handle_slots::compare_slot as *mut c_void));
        slots.push(slot(ffi::Py_tp_hash, handle_slots::hash_slot as *mut c_void));
    } else {
        slots.push(slot(ffi::Py_tp_members, members.as_mut_ptr().cast()));
    }
    slots.push(slot(0, ptr::null_mut()));
    let flags = if base.is_none() { ffi::Py_TPFLAGS_BASETYPE } else { 0 };
    // SAFETY: the slots end with a zero, their tables are leaked, and the functions have the
    // signatures that their slots ask for.
    unsafe { types::create::<HandleObject>(py, name, base, flags, &mut slots) }
}
