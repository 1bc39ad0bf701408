//! Making Python types by hand: the entries of CPython's tables, and the type they add up to.

use std::ffi::{CStr, c_int, c_void};
use std::ptr;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyType;

pub fn slot(slot: c_int, pfunc: *mut c_void) -> ffi::PyType_Slot {
    ffi::PyType_Slot { slot, pfunc }
}

pub fn method(
    name: &'static CStr,
    doc: &'static CStr,
    function: ffi::PyMethodDefPointer,
    flags: c_int,
) -> ffi::PyMethodDef {
    ffi::PyMethodDef {
        ml_name: name.as_ptr(),
        ml_meth: function,
        ml_flags: flags,
        ml_doc: doc.as_ptr(),
    }
}

pub fn getter(name: &'static CStr, function: ffi::getter) -> ffi::PyGetSetDef {
    ffi::PyGetSetDef { name: name.as_ptr(), get: Some(function), ..ffi::PyGetSetDef::default() }
}

/// The member by which CPython finds an object's list of weak references, at this offset.
pub fn weakref_members(offset: usize) -> &'static mut [ffi::PyMemberDef] {
    // CPython keeps pointers into the table for the type's life, which is the process's.
    Box::leak(Box::new([
        ffi::PyMemberDef {
            name: c"__weaklistoffset__".as_ptr(),
            type_code: ffi::Py_T_PYSSIZET,
            offset: offset as ffi::Py_ssize_t,
            flags: ffi::Py_READONLY,
            doc: ptr::null(),
        },
        ffi::PyMemberDef::default(),
    ]))
}

/// Makes a type whose objects are `T`, which the collector sees and programs cannot make; `flags`
/// are what else it is.
///
/// # Safety
/// The slots end with a zero, the tables they point to are static, and the slot functions have the
/// signatures that their slots ask for.
pub unsafe fn create<'py, T>(
    py: Python<'py>,
    name: &'static CStr,
    base: Option<&Bound<'py, PyType>>,
    flags: std::ffi::c_ulong,
    slots: &mut [ffi::PyType_Slot],
) -> PyResult<Bound<'py, PyType>> {
    let common =
        ffi::Py_TPFLAGS_DEFAULT | ffi::Py_TPFLAGS_HAVE_GC | ffi::Py_TPFLAGS_DISALLOW_INSTANTIATION;
    let mut spec = ffi::PyType_Spec {
        name: name.as_ptr(),
        basicsize: size_of::<T>() as c_int,
        itemsize: 0,
        flags: (common | flags) as u32,
        slots: slots.as_mut_ptr(),
    };
    let bases = base.map_or(ptr::null_mut(), |base| base.as_ptr());
    // SAFETY: attached; the spec is valid for the call, the rest by this function's contract.
    unsafe {
        Bound::from_owned_ptr_or_err(py, ffi::PyType_FromSpecWithBases(&raw mut spec, bases))
            .map(|object| object.cast_into_unchecked())
    }
}
