//! One copy of a context for many handles.
//!
//! A callback that is scheduled without a context runs in a copy of the current one. Ten thousand that
//! wait would be ten thousand copies, mostly of the same variables: memory to touch and objects for
//! the collector to visit. So handles that were made while the variables were the same hold one copy
//! between them, the template, which nobody enters. A callback runs in a [`Spare`] copy of it, and the
//! next one in the same, unless that one changed a variable or somebody else has the copy now: then it
//! stays the callback's own. Nobody can tell the difference, as long as a program that asks a handle
//! for its context is given a copy for that handle alone ([`to_own`]).
//!
//! Whether two contexts have the same variables is seen by comparing the immutable maps that they
//! refer to. Where that reference lies, and where a thread's current context, is no part of CPython's
//! interface; it is found out before it is first relied on, and where it cannot be, every handle has a
//! copy of its own.

use std::cell::{Cell, RefCell};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use pyo3::PyVisit;
use pyo3::ffi::{self, PyObject};
use pyo3::prelude::*;
use pyo3::types::PyContext;

use super::confined::Confined;

/// The template that new handles may share, and how many do. It is theirs: no reference is held here,
/// so that what the variables hold goes with the last of them.
struct Latest {
    template: Cell<*mut PyObject>,
    users: Cell<usize>,
}

static LATEST: Confined<Latest> =
    Confined::new(Latest { template: Cell::new(ptr::null_mut()), users: Cell::new(0) });

/// The beginning of CPython's `struct _pycontextobject`.
#[repr(C)]
struct ContextObject {
    ob_base: PyObject,
    previous: *mut PyObject,
    variables: *mut PyObject,
}

/// The map of the context's variables, for comparison only.
///
/// # Safety
/// `context` is a live `contextvars.Context`.
#[inline]
unsafe fn variables(context: *mut PyObject) -> *mut PyObject {
    // SAFETY: by this function's contract. A context is larger than what is read of it, which holds
    // pointers, whatever they are called.
    unsafe { (*context.cast::<ContextObject>()).variables }
}

/// Pointers at the beginning of a thread's state among which the current context is looked for; in no
/// supported Python is the state smaller.
const THREAD_STATE: usize = 36;
/// Marks of [`PLACE`].
const UNTRIED: usize = usize::MAX;
const UNKNOWN: usize = usize::MAX - 1;

/// Which pointer in a thread's state is that to its current context.
static PLACE: AtomicUsize = AtomicUsize::new(UNTRIED);

/// The pointers at the beginning of this thread's state.
fn thread_state(_py: Python<'_>) -> *const *mut PyObject {
    // SAFETY: attached, so there is one.
    unsafe { ffi::PyThreadState_Get() as *const *mut PyObject }
}

#[cold]
fn find_place(py: Python<'_>) -> usize {
    let place = try_layout(py).unwrap_or_else(|| {
        // What failed is no matter of the caller's, who goes on without sharing.
        drop(PyErr::take(py));
        UNKNOWN
    });
    PLACE.store(place, Ordering::Relaxed);
    place
}

/// Enters a context and sets a variable in it, and looks what that changes where. None: not what this
/// module would rely on, or an exception is set.
fn try_layout(py: Python<'_>) -> Option<usize> {
    let state = thread_state(py);
    // SAFETY: attached; every call returns a new reference or null. The pointers of a thread's state that
    // are looked at exist, and are only compared.
    unsafe {
        let owned = |object| Bound::from_owned_ptr_or_opt(py, object);
        let places = |context: &Bound<'_, PyAny>| -> Vec<usize> {
            (0..THREAD_STATE).filter(|place| *state.add(*place) == context.as_ptr()).collect()
        };
        let context = owned(ffi::PyContext_New())?;
        let empty = variables(context.as_ptr());
        let variable = owned(ffi::PyContextVar_New(c"rondel".as_ptr(), ptr::null_mut()))?;
        if ffi::PyContext_Enter(context.as_ptr()) < 0 {
            return None;
        }
        let token = owned(ffi::PyContextVar_Set(variable.as_ptr(), variable.as_ptr()));
        let inside = places(&context);
        if ffi::PyContext_Exit(context.as_ptr()) < 0 {
            return None;
        }
        drop(token?);
        let copy = owned(ffi::PyContext_Copy(context.as_ptr()))?;
        let set = variables(context.as_ptr());
        let shared = !set.is_null() && set != empty && set == variables(copy.as_ptr());
        match inside[..] {
            [place] if shared && places(&context).is_empty() => Some(place),
            _ => None,
        }
    }
}

/// A copy of the current context for a handle: a new reference, and whether it is a template, which
/// then has one user more. Null with an exception set when there is no memory.
#[inline]
pub(super) fn capture(py: Python<'_>) -> (*mut PyObject, bool) {
    let mut place = PLACE.load(Ordering::Relaxed);
    if place == UNTRIED {
        place = find_place(py);
    }
    // SAFETY: attached. The latest template is alive while it has users; each has a reference. A thread's
    // current context is alive, or null when it has had none yet.
    unsafe {
        if place == UNKNOWN {
            return (ffi::PyContext_CopyCurrent(), false);
        }
        let latest = LATEST.get(py);
        let template = latest.template.get();
        if !template.is_null() {
            let current = *thread_state(py).add(place);
            if !current.is_null() && variables(template) == variables(current) {
                latest.users.set(latest.users.get() + 1);
                ffi::Py_INCREF(template);
                return (template, true);
            }
        }
        let copy = ffi::PyContext_CopyCurrent();
        if copy.is_null() {
            return (copy, false);
        }
        latest.template.set(copy);
        latest.users.set(1);
        (copy, true)
    }
}

/// A handle no longer uses the template.
#[inline]
fn leave(py: Python<'_>, template: *mut PyObject) {
    let latest = LATEST.get(py);
    if latest.template.get() == template {
        latest.users.set(latest.users.get() - 1);
        if latest.users.get() == 0 {
            latest.template.set(ptr::null_mut());
        }
    }
}

/// Gives a handle's reference to a template back.
///
/// # Safety
/// Attached; the reference came from [`capture`]. Other references may go with it, and run any code.
#[inline]
pub(super) unsafe fn release(py: Python<'_>, template: *mut PyObject) {
    leave(py, template);
    // SAFETY: by this function's contract.
    unsafe { ffi::Py_DECREF(template) };
}

/// Makes a handle's template a context of its own, if the handle is its only user.
///
/// # Safety
/// As [`release`].
#[inline]
pub(super) unsafe fn is_own(py: Python<'_>, template: *mut PyObject) -> bool {
    // SAFETY: by this function's contract.
    let sole = unsafe { ffi::Py_REFCNT(template) == 1 };
    if sole {
        leave(py, template);
    }
    sole
}

/// A context for the handle alone in exchange for its reference to the template; null with an exception
/// set, and nothing exchanged, when there is no memory.
///
/// # Safety
/// As [`release`].
pub(super) unsafe fn to_own(py: Python<'_>, template: *mut PyObject) -> *mut PyObject {
    // SAFETY: by this function's contract.
    unsafe {
        if is_own(py, template) {
            return template;
        }
        let copy = ffi::PyContext_Copy(template);
        if !copy.is_null() {
            release(py, template);
        }
        copy
    }
}

/// A copy of a template that a callback ran in and left as it was, for the next one of the same turn.
#[derive(Default)]
pub struct Spare(RefCell<Option<Py<PyContext>>>);

impl Spare {
    /// The spare copy if it is one of this template, or a new one.
    ///
    /// # Safety
    /// Attached; `template` is a live template.
    #[inline]
    pub(super) unsafe fn take(
        &self,
        py: Python<'_>,
        template: *mut PyObject,
    ) -> PyResult<Py<PyContext>> {
        let spare = self.0.take();
        // SAFETY: by this function's contract.
        unsafe {
            match spare {
                Some(spare) if variables(spare.as_ptr()) == variables(template) => Ok(spare),
                _ => Bound::from_owned_ptr_or_err(py, ffi::PyContext_Copy(template))
                    .map(|copy| copy.cast_into_unchecked().unbind()),
            }
        }
    }

    /// Keeps the copy for whoever has the template, too, unless it differs from it or somebody has it:
    /// then, and when there is nobody, it is returned.
    ///
    /// # Safety
    /// As [`Spare::take`]; nobody is inside the copy.
    #[inline]
    pub(super) unsafe fn put(
        &self,
        copy: Py<PyContext>,
        template: *mut PyObject,
        py: Python<'_>,
    ) -> Option<Py<PyContext>> {
        // SAFETY: by this function's contract.
        let same = unsafe {
            variables(copy.as_ptr()) == variables(template) && ffi::Py_REFCNT(template) > 1
        };
        if !same || !super::is_sole(&copy, py) {
            return Some(copy);
        }
        let before = self.0.replace(Some(copy));
        drop(before);
        None
    }

    /// Lets go of it: what its variables hold may have no other owner.
    #[inline]
    pub fn clear(&self) {
        if self.0.borrow().is_some() {
            let spare = self.0.take();
            drop(spare);
        }
    }

    /// For the collector.
    pub fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), pyo3::PyTraverseError> {
        match self.0.try_borrow() {
            Ok(spare) => visit.call(&*spare),
            Err(_) => Ok(()),
        }
    }
}
