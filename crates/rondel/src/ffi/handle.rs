//! `Handle` and `TimerHandle` as raw Python objects.
//!
//! Every callback costs one of these, so they are made by hand: a free list instead of the
//! allocator, room for three arguments inside the object (with the spare slot before them that lets
//! bound methods be called without a copy), no Python-level constructor. What they mean to Python
//! (`repr`, comparison, `_run`) is in [`crate::handle`]; here are memory and reference counts.
//!
//! The collector does not know of a handle while a queue of the loop holds it: the loop shows what
//! the handle holds in its place ([`HandleRef::traverse`]). Most handles are never seen by it so, and
//! a hundred thousand timers cost it nothing. When the loop lets go of a handle that others keep, it
//! becomes an object like any other.

use std::cell::RefCell;
use std::ffi::{c_int, c_void};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, Ordering};

use pyo3::ffi::{self, PyObject, PyTypeObject};
use pyo3::prelude::*;
use pyo3::types::{PyContext, PyTuple};

use super::confined::Confined;
use super::shared_context;
use crate::event_loop::Loop;

/// Arguments that fit into the object; more go into a tuple.
const INLINE_ARGS: usize = 3;
/// Handles kept for reuse.
const FREE_LIST: usize = 512;

pub(super) const CANCELLED: u8 = 1;
/// The callback is being called: its references must stay.
pub(super) const RUNNING: u8 = 2;
/// A timer that is in the heap.
const SCHEDULED: u8 = 4;
/// From call_soon_threadsafe() on Python 3.14+; see [`crate::handle::wait_for_end`].
pub(super) const THREADSAFE: u8 = 8;
/// The context is a template that other handles use, too; see [`super::shared_context`].
pub(super) const SHARED: u8 = 16;

/// How the arguments are stored.
pub(super) const ARGS_IN_TUPLE: u8 = u8::MAX;

/// The layout of both types. `ob_base` comes first, as in every Python object.
#[repr(C)]
pub struct HandleObject {
    ob_base: PyObject,
    /// The loop; never null, kept until deallocation.
    event_loop: *mut PyObject,
    /// The context to run in; null only after the collector cleared the handle.
    pub(super) context: *mut PyObject,
    /// The callable; null when cancelled.
    pub(super) callback: *mut PyObject,
    /// Scratch for PY_VECTORCALL_ARGUMENTS_OFFSET: must lie directly before `args`.
    pub(super) spare: *mut PyObject,
    /// The arguments, or one tuple of them.
    pub(super) args: [*mut PyObject; INLINE_ARGS],
    /// Debug mode: where the handle was created (a list of frames).
    pub(super) source_traceback: *mut PyObject,
    /// Debug mode: the repr from before cancel() took the callback.
    pub(super) repr: *mut PyObject,
    pub(super) weakrefs: *mut PyObject,
    /// Timers: the time as it was given, in seconds.
    when: f64,
    pub(super) nargs: u8,
    pub(super) flags: u8,
}

pub(super) static HANDLE_TYPE: AtomicPtr<PyTypeObject> = AtomicPtr::new(ptr::null_mut());
pub(super) static TIMER_HANDLE_TYPE: AtomicPtr<PyTypeObject> = AtomicPtr::new(ptr::null_mut());
static FREE: Confined<RefCell<Vec<NonNull<HandleObject>>>> =
    Confined::new(RefCell::new(Vec::new()));

unsafe extern "C" {
    // Exported by every supported CPython for extension types with free lists (object.h).
    fn _Py_NewReference(object: *mut PyObject);
}

/// An owned reference to a handle.
pub struct HandleRef(NonNull<HandleObject>);

impl Drop for HandleRef {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: this owns a reference. HandleRefs live inside Python objects and on the stack of
        // attached threads only, so dropping one happens with the GIL held. An object is tracked only
        // if it is not yet, and it is complete.
        unsafe {
            let object = self.0.as_ptr().cast::<PyObject>();
            if ffi::Py_REFCNT(object) > 1 && ffi::PyObject_GC_IsTracked(object) == 0 {
                ffi::PyObject_GC_Track(object.cast());
            }
            ffi::Py_DECREF(object);
        }
    }
}

impl HandleRef {
    /// Makes a handle from borrowed parts, for a queue of the loop; `when` makes it a `TimerHandle`.
    ///
    /// # Safety
    /// Attached. All pointers are live objects: `event_loop` a [`Loop`], `context` a
    /// `contextvars.Context` or null for a copy of the current one, `args` points to `nargs`
    /// objects.
    #[inline]
    pub unsafe fn new(
        py: Python<'_>,
        event_loop: *mut PyObject,
        callback: *mut PyObject,
        args: *const *mut PyObject,
        nargs: usize,
        context: *mut PyObject,
        when: Option<f64>,
    ) -> PyResult<HandleRef> {
        // SAFETY: see above for the arguments. What the handle was given so far goes with it on failure.
        unsafe {
            let event_loop = Bound::from_borrowed_ptr(py, event_loop).cast_into_unchecked();
            let handle = HandleRef::empty(&event_loop, when)?;
            let this = handle.fields();
            if context.is_null() {
                let (copy, shared) = shared_context::capture(py);
                if copy.is_null() {
                    return Err(PyErr::fetch(py));
                }
                (*this).context = copy;
                (*this).flags = if shared { SHARED } else { 0 };
            } else {
                ffi::Py_INCREF(context);
                (*this).context = context;
            }
            if nargs <= INLINE_ARGS {
                for i in 0..nargs {
                    let arg = *args.add(i);
                    ffi::Py_INCREF(arg);
                    (*this).args[i] = arg;
                }
                (*this).nargs = nargs as u8;
            } else {
                (*this).args[0] = tuple_of(py, args, nargs)?.into_ptr();
                (*this).nargs = ARGS_IN_TUPLE;
            }
            ffi::Py_INCREF(callback);
            (*this).callback = callback;
            Ok(handle)
        }
    }

    /// A handle without a callback and a context.
    ///
    /// # Errors
    /// `MemoryError`
    #[inline(always)]
    pub(super) fn empty(event_loop: &Bound<'_, Loop>, when: Option<f64>) -> PyResult<HandleRef> {
        let py = event_loop.py();
        let kind = if when.is_some() { &TIMER_HANDLE_TYPE } else { &HANDLE_TYPE };
        // SAFETY: attached. The object is initialised here before anybody sees it.
        unsafe {
            let Some(object) = allocate(py, kind.load(Ordering::Relaxed)) else {
                return Err(PyErr::fetch(py));
            };
            let this = object.as_ptr();
            (*this).event_loop = event_loop.clone().into_ptr();
            (*this).context = ptr::null_mut();
            (*this).callback = ptr::null_mut();
            (*this).spare = ptr::null_mut();
            (*this).args = [ptr::null_mut(); INLINE_ARGS];
            (*this).source_traceback = ptr::null_mut();
            (*this).repr = ptr::null_mut();
            (*this).weakrefs = ptr::null_mut();
            (*this).when = when.unwrap_or(0.0);
            (*this).nargs = 0;
            (*this).flags = 0;
            // Not tracked: see `Drop`.
            Ok(HandleRef(object))
        }
    }

    /// Whether a new handle needs new memory.
    #[inline]
    pub fn none_is_free(py: Python<'_>) -> bool {
        FREE.get(py).borrow().is_empty()
    }

    /// The same from Rust values; without a context, in a copy of the current one.
    pub fn from_parts(
        event_loop: &Bound<'_, Loop>,
        callback: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
        context: Option<&Bound<'_, PyContext>>,
    ) -> PyResult<HandleRef> {
        let pointers: Vec<*mut PyObject> = args.iter_borrowed().map(|arg| arg.as_ptr()).collect();
        // SAFETY: attached by the bounds; every pointer is borrowed from a live reference. The handle
        // is complete, and tracked at once: who keeps it is for the caller to say.
        unsafe {
            let handle = HandleRef::new(
                event_loop.py(),
                event_loop.as_ptr(),
                callback.as_ptr(),
                pointers.as_ptr(),
                pointers.len(),
                context.map_or(ptr::null_mut(), |context| context.as_ptr()),
                None,
            )?;
            ffi::PyObject_GC_Track(handle.fields().cast());
            Ok(handle)
        }
    }

    /// The handle behind a Python object of one of the two types.
    pub fn from_object(object: &Bound<'_, PyAny>) -> Option<HandleRef> {
        let kind = object.get_type_ptr();
        if kind != HANDLE_TYPE.load(Ordering::Relaxed)
            && kind != TIMER_HANDLE_TYPE.load(Ordering::Relaxed)
        {
            return None;
        }
        // SAFETY: the type says that this is a HandleObject.
        let pointer = unsafe { NonNull::new_unchecked(object.clone().into_ptr().cast()) };
        Some(HandleRef(pointer))
    }

    /// The handle behind `self` of a method, without a reference of its own: never to be dropped.
    ///
    /// # Safety
    /// `object` is a live object of one of the two types.
    #[inline]
    pub(super) unsafe fn borrowed(object: *mut PyObject) -> HandleRef {
        // SAFETY: by this function's contract.
        HandleRef(unsafe { NonNull::new_unchecked(object.cast()) })
    }

    #[inline]
    pub(super) fn fields(&self) -> *mut HandleObject {
        self.0.as_ptr()
    }

    #[inline]
    pub(super) fn has(&self, flag: u8) -> bool {
        // SAFETY: the object is alive while this reference is.
        unsafe { (*self.fields()).flags & flag != 0 }
    }

    #[inline]
    pub(super) fn set(&self, flag: u8, on: bool) {
        // SAFETY: as in `has`; all accesses happen with the GIL held.
        unsafe {
            if on {
                (*self.fields()).flags |= flag;
            } else {
                (*self.fields()).flags &= !flag;
            }
        }
    }

    /// Another reference to the same handle.
    #[inline]
    pub fn clone_ref(&self, _py: Python<'_>) -> HandleRef {
        // SAFETY: attached, and the object is alive.
        unsafe { ffi::Py_INCREF(self.fields().cast()) };
        HandleRef(self.0)
    }

    /// The handle as a Python object.
    pub fn bind<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        // SAFETY: attached, and the object is alive.
        unsafe { Bound::from_borrowed_ptr(py, self.fields().cast()) }
    }

    /// Whether both are the same handle.
    pub fn is(&self, other: &HandleRef) -> bool {
        self.0 == other.0
    }

    /// Whether `cancel()` was called.
    #[inline]
    pub fn is_cancelled(&self) -> bool {
        self.has(CANCELLED)
    }

    /// Whether the callback is being called.
    pub fn is_running(&self) -> bool {
        self.has(RUNNING)
    }

    /// Whether other threads may cancel the handle and rely on the outcome.
    #[inline]
    pub fn is_threadsafe(&self) -> bool {
        self.has(THREADSAFE)
    }

    /// Lets other threads cancel the handle and rely on the outcome.
    pub fn set_threadsafe(&self) {
        self.set(THREADSAFE, true);
    }

    /// Whether the handle is a timer in the heap.
    pub fn is_scheduled(&self) -> bool {
        self.has(SCHEDULED)
    }

    /// Notes that the timer entered or left the heap.
    #[inline]
    pub fn set_scheduled(&self, on: bool) {
        self.set(SCHEDULED, on);
    }

    /// The time of a timer in seconds, as it was given.
    pub fn when(&self) -> f64 {
        // SAFETY: the object is alive while this reference is.
        unsafe { (*self.fields()).when }
    }

    /// Marks the handle cancelled and lets go of callback and arguments (after the call, when the
    /// callback is running). The caller has told the heap.
    pub fn mark_cancelled(&self) {
        self.set(CANCELLED, true);
        if !self.has(RUNNING) {
            // SAFETY: the object is alive; the fields are emptied before the references are dropped,
            // since dropping can run code that looks at this handle.
            unsafe { release_call(self.fields()) };
        }
    }

    /// The loop that the handle belongs to.
    pub fn event_loop<'py>(&self, py: Python<'py>) -> Bound<'py, Loop> {
        // SAFETY: `event_loop` is never null and always a Loop.
        unsafe { Bound::from_borrowed_ptr(py, (*self.fields()).event_loop).cast_into_unchecked() }
    }

    /// The callback; `None` when cancelled.
    pub fn callback<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        if self.is_cancelled() {
            return None;
        }
        // SAFETY: the field is a live object or null.
        unsafe { Bound::from_borrowed_ptr_or_opt(py, (*self.fields()).callback) }
    }

    /// The arguments; `None` when cancelled.
    pub fn args<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let this = self.fields();
        // SAFETY: unless cancelled, `args` holds `nargs` live objects or one live tuple.
        unsafe {
            if self.is_cancelled() || (*this).callback.is_null() {
                Ok(None)
            } else if (*this).nargs == ARGS_IN_TUPLE {
                Ok(Some(Bound::from_borrowed_ptr(py, (*this).args[0]).cast_into_unchecked()))
            } else {
                let args = (&raw const (*this).args).cast::<*mut PyObject>();
                tuple_of(py, args, (*this).nargs as usize).map(Some)
            }
        }
    }

    /// The context, for a program: nobody else's. `None` when the collector took it.
    ///
    /// # Errors
    /// `MemoryError`
    pub fn own_context<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyContext>>> {
        if self.has(SHARED) {
            // SAFETY: the flag says that the context is a template.
            unsafe {
                let own = shared_context::to_own(py, (*self.fields()).context);
                if own.is_null() {
                    return Err(PyErr::fetch(py));
                }
                (*self.fields()).context = own;
            }
            self.set(SHARED, false);
        }
        Ok(self.context(py))
    }

    /// The context; while the callback is being called, the one that it runs in.
    #[inline]
    pub fn context<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyContext>> {
        // SAFETY: the field is null or a live context: whoever makes a handle checks that.
        unsafe {
            Bound::from_borrowed_ptr_or_opt(py, (*self.fields()).context)
                .map(|context| context.cast_into_unchecked())
        }
    }

    /// Debug mode: where the handle was created.
    pub fn source_traceback<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        // SAFETY: the field is a live object or null.
        unsafe { Bound::from_borrowed_ptr_or_opt(py, (*self.fields()).source_traceback) }
    }

    /// Debug mode: notes where the handle was created.
    pub fn set_source_traceback(&self, stack: Bound<'_, PyAny>) {
        // SAFETY: the object is alive; the old value is dropped after it was replaced.
        unsafe { replace(&raw mut (*self.fields()).source_traceback, stack.into_ptr()) }
    }

    /// Debug mode: the repr from before the handle was cancelled.
    pub fn saved_repr<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        // SAFETY: the field is a live object or null.
        unsafe { Bound::from_borrowed_ptr_or_opt(py, (*self.fields()).repr) }
    }

    /// Debug mode: keeps the repr for after the cancel.
    pub fn save_repr(&self, repr: Bound<'_, PyAny>) {
        // SAFETY: as in `set_source_traceback`.
        unsafe { replace(&raw mut (*self.fields()).repr, repr.into_ptr()) }
    }

    /// Gives the reference away, for a raw method's result.
    #[inline]
    pub fn into_ptr(self) -> *mut PyObject {
        let pointer = self.0.as_ptr().cast();
        std::mem::forget(self);
        pointer
    }

    /// Shows the handle to the collector on behalf of the object that owns this reference, or what
    /// it holds when the collector does not know of it: then no second owner may show it.
    pub fn traverse(&self, visit: &pyo3::PyVisit<'_>) -> Result<(), pyo3::PyTraverseError> {
        // SAFETY: the object is alive, and what it holds is its own.
        unsafe {
            if ffi::PyObject_GC_IsTracked(self.fields().cast()) != 0 {
                return visit_pointer(self.fields().cast(), visit);
            }
            for field in held(self.fields()) {
                visit_pointer(field, visit)?;
            }
        }
        Ok(())
    }
}

/// Shows an object to the collector.
///
/// # Safety
/// `object` is null or a reference that belongs to who is being traversed.
pub(super) unsafe fn visit_pointer(
    object: *mut PyObject,
    visit: &pyo3::PyVisit<'_>,
) -> Result<(), pyo3::PyTraverseError> {
    // SAFETY: `Option<Py<PyAny>>` is a transparent pointer or null; the borrow ends with this function
    // and no count is changed.
    unsafe { visit.call(&*(&raw const object).cast::<Option<Py<PyAny>>>()) }
}

/// What a handle holds; null where there is nothing.
///
/// # Safety
/// `this` is a live handle.
unsafe fn held(this: *mut HandleObject) -> [*mut PyObject; 7] {
    // SAFETY: by this function's contract.
    unsafe {
        let [first, second, third] = (*this).args;
        let this = &*this;
        [this.event_loop, this.context, this.callback, first, second, third, this.source_traceback]
    }
}

/// # Safety
/// Attached; `args` points to `nargs` live objects.
unsafe fn tuple_of<'py>(
    py: Python<'py>,
    args: *const *mut PyObject,
    nargs: usize,
) -> PyResult<Bound<'py, PyTuple>> {
    // SAFETY: by this function's contract.
    let items = (0..nargs).map(|i| unsafe { Bound::from_borrowed_ptr(py, *args.add(i)) });
    PyTuple::new(py, items.collect::<Vec<_>>())
}

/// Drops a reference to a context, which may be that to a template.
///
/// # Safety
/// Attached; the reference is the caller's.
pub(super) unsafe fn release_context(py: Python<'_>, context: *mut PyObject, shared: bool) {
    // SAFETY: by this function's contract.
    unsafe {
        if shared {
            shared_context::release(py, context);
        } else {
            ffi::Py_XDECREF(context);
        }
    }
}

/// Replaces a field and then drops what was there.
///
/// # Safety
/// Attached; `field` holds an owned reference or null, `value` is one.
unsafe fn replace(field: *mut *mut PyObject, value: *mut PyObject) {
    // SAFETY: by this function's contract.
    unsafe {
        let old = ptr::replace(field, value);
        ffi::Py_XDECREF(old);
    }
}

/// Lets go of callback and arguments.
///
/// # Safety
/// Attached; `this` is a live handle that is not running.
pub(super) unsafe fn release_call(this: *mut HandleObject) {
    // SAFETY: by this function's contract; the fields are empty before any reference is dropped.
    unsafe {
        let callback = ptr::replace(&raw mut (*this).callback, ptr::null_mut());
        let args = ptr::replace(&raw mut (*this).args, [ptr::null_mut(); INLINE_ARGS]);
        (*this).nargs = 0;
        ffi::Py_XDECREF(callback);
        for arg in args {
            ffi::Py_XDECREF(arg);
        }
    }
}

/// Memory for a handle of the given type, with one reference and everything else unset.
///
/// # Safety
/// `kind` is one of the two types.
#[inline]
unsafe fn allocate(py: Python<'_>, kind: *mut PyTypeObject) -> Option<NonNull<HandleObject>> {
    let reused = FREE.get(py).borrow_mut().pop();
    // SAFETY: memory on the free list was allocated as one of these objects and is untracked and
    // unreferenced; it becomes a new object of `kind`, which it holds a reference to.
    unsafe {
        if let Some(object) = reused {
            let raw = object.as_ptr().cast::<PyObject>();
            ffi::Py_INCREF(kind.cast());
            (*raw).ob_type = kind;
            _Py_NewReference(raw);
            return Some(object);
        }
        NonNull::new(ffi::PyObject_GC_New::<HandleObject>(kind))
    }
}

pub(super) unsafe extern "C" fn dealloc(object: *mut PyObject) {
    // SAFETY: CPython calls this once, attached, when the last reference is gone.
    unsafe {
        let py = Python::assume_attached();
        let this = object.cast::<HandleObject>();
        ffi::PyObject_GC_UnTrack(object.cast());
        if !(*this).weakrefs.is_null() {
            ffi::PyObject_ClearWeakRefs(object);
        }
        release_call(this);
        release_context(py, (*this).context, (*this).flags & SHARED != 0);
        if !(*this).source_traceback.is_null() || !(*this).repr.is_null() {
            ffi::Py_XDECREF((*this).source_traceback);
            ffi::Py_XDECREF((*this).repr);
        }
        let event_loop = (*this).event_loop;
        let kind = ffi::Py_TYPE(object);
        {
            let mut free = FREE.get(py).borrow_mut();
            if free.len() < FREE_LIST {
                free.push(NonNull::new_unchecked(this));
            } else {
                drop(free);
                ffi::PyObject_GC_Del(object.cast());
            }
        }
        ffi::Py_DECREF(event_loop);
        ffi::Py_DECREF(kind.cast());
    }
}

pub(super) unsafe extern "C" fn traverse(
    object: *mut PyObject,
    visit: ffi::visitproc,
    arg: *mut c_void,
) -> c_int {
    // SAFETY: called by the collector on a live, tracked handle; every visited field is live.
    unsafe {
        let kind = ffi::Py_TYPE(object).cast::<PyObject>();
        for field in held(object.cast()).into_iter().chain([kind]) {
            if !field.is_null() {
                let result = visit(field, arg);
                if result != 0 {
                    return result;
                }
            }
        }
        0
    }
}

pub(super) unsafe extern "C" fn clear(object: *mut PyObject) -> c_int {
    // SAFETY: called by the collector on a live handle. The loop stays: methods rely on it, and a
    // cycle through it is broken by the loop's own clear.
    unsafe {
        let this = object.cast::<HandleObject>();
        if (*this).flags & RUNNING == 0 {
            release_call(this);
            let context = ptr::replace(&raw mut (*this).context, ptr::null_mut());
            let shared = (*this).flags & SHARED != 0;
            (*this).flags &= !SHARED;
            release_context(Python::assume_attached(), context, shared);
        }
        0
    }
}
