//! `StreamOperation`: what `reader.read()`, `writer.drain()` and relatives return, as a raw object.
//!
//! To Python it is a coroutine: `await`, `send`, `throw`, `close`, a warning when it was never
//! awaited. One is made for every read, so it comes from a free list, and an operation that need
//! not wait ends inside its first `send` without a future. What the operations do is in
//! [`crate::streams::operation`]; here are memory, reference counts and the coroutine protocol.

use std::cell::RefCell;
use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, Ordering};

use pyo3::exceptions::{
    PyGeneratorExit, PyRuntimeError, PyStopIteration, PyTypeError, PyValueError,
};
use pyo3::ffi::{self, Py_ssize_t, PyObject, PyTypeObject};
use pyo3::prelude::*;
use pyo3::types::{PyString, PyType};

use super::confined::Confined;
use super::stop_iteration::stop;
use super::types::{self, getter, method, slot};
use crate::coroutine;
use crate::streams::operation::{self, Kind, Step};

/// Operations kept for reuse.
const FREE_LIST: usize = 256;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    New,
    /// It has yielded the future in `waiting`.
    Waiting,
    /// A coroutine of asyncio's does the work; it is in `waiting`.
    Delegating,
    Running,
    Done,
}

/// The layout of the type. `ob_base` comes first, as in every Python object.
#[repr(C)]
pub struct OperationObject {
    ob_base: PyObject,
    /// The reader or writer; null when done.
    owner: *mut PyObject,
    /// What else the operation needs (separators, what was read so far); may be null.
    argument: *mut PyObject,
    waiting: *mut PyObject,
    weakrefs: *mut PyObject,
    size: isize,
    offset: usize,
    kind: Kind,
    phase: Phase,
}

static TYPE: AtomicPtr<PyTypeObject> = AtomicPtr::new(ptr::null_mut());
static FREE: Confined<RefCell<Vec<NonNull<OperationObject>>>> =
    Confined::new(RefCell::new(Vec::new()));

unsafe extern "C" {
    // Exported by every supported CPython for extension types with free lists (object.h).
    fn _Py_NewReference(object: *mut PyObject);
}

/// A running operation, as [`crate::streams::operation`] sees it.
#[derive(Clone, Copy)]
pub struct Operation<'a> {
    object: NonNull<OperationObject>,
    alive: PhantomData<&'a ()>,
}

impl Operation<'_> {
    /// Makes an operation on `owner`, for Python.
    #[inline]
    pub fn create<'py>(
        kind: Kind,
        owner: &Bound<'py, PyAny>,
        argument: Option<Bound<'py, PyAny>>,
        size: isize,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = owner.py();
        let reused = FREE.get(py).borrow_mut().pop();
        let kind_of_object = TYPE.load(Ordering::Relaxed);
        // SAFETY: memory on the free list was allocated as one of these objects and is untracked and
        // unreferenced. Every field is filled before the object is tracked or seen by anybody.
        unsafe {
            let object = match reused {
                Some(object) => {
                    let raw = object.as_ptr().cast::<PyObject>();
                    ffi::Py_INCREF(kind_of_object.cast());
                    (*raw).ob_type = kind_of_object;
                    _Py_NewReference(raw);
                    object
                }
                None => NonNull::new(ffi::PyObject_GC_New::<OperationObject>(kind_of_object))
                    .ok_or_else(|| PyErr::fetch(py))?,
            };
            let this = object.as_ptr();
            (*this).owner = owner.clone().into_ptr();
            (*this).argument = argument.map_or(ptr::null_mut(), Bound::into_ptr);
            (*this).waiting = ptr::null_mut();
            (*this).weakrefs = ptr::null_mut();
            (*this).size = size;
            (*this).offset = 0;
            (*this).kind = kind;
            (*this).phase = Phase::New;
            ffi::PyObject_GC_Track(this.cast());
            Ok(Bound::from_owned_ptr(py, this.cast()))
        }
    }

    /// What the operation is.
    #[inline]
    pub fn kind(&self) -> Kind {
        // SAFETY: the object is alive while this is, and there are no Rust references to its fields.
        unsafe { (*self.object.as_ptr()).kind }
    }

    /// The number that it was made with.
    #[inline]
    pub fn size(&self) -> isize {
        // SAFETY: as in `kind`.
        unsafe { (*self.object.as_ptr()).size }
    }

    /// A number that it keeps while it waits; 0 at first.
    #[inline]
    pub fn offset(&self) -> usize {
        // SAFETY: as in `kind`.
        unsafe { (*self.object.as_ptr()).offset }
    }

    /// Sets that number.
    #[inline]
    pub fn set_offset(&self, offset: usize) {
        // SAFETY: as in `kind`.
        unsafe { (*self.object.as_ptr()).offset = offset }
    }

    /// The reader or writer.
    #[inline]
    pub fn owner<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        // SAFETY: the field is null or a live object.
        unsafe { Bound::from_borrowed_ptr_or_opt(py, (*self.object.as_ptr()).owner) }
            .ok_or_else(reused_error)
    }

    /// What it was made with besides, or keeps while it waits.
    #[inline]
    pub fn argument<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        // SAFETY: the field is null or a live object.
        unsafe { Bound::from_borrowed_ptr_or_opt(py, (*self.object.as_ptr()).argument) }
    }

    /// Sets that.
    pub fn set_argument(&self, argument: Bound<'_, PyAny>) {
        // SAFETY: as in `kind`; the old value is dropped after it was replaced.
        unsafe {
            let field = &raw mut (*self.object.as_ptr()).argument;
            ffi::Py_XDECREF(ptr::replace(field, argument.into_ptr()));
        }
    }
}

#[cold]
fn reused_error() -> PyErr {
    PyRuntimeError::new_err("cannot reuse already awaited coroutine")
}

/// What `send` or `throw` lead to, with a new reference.
enum Sent {
    Yielded(*mut PyObject),
    Returned(*mut PyObject),
}

/// Lets go of everything: the operation is over.
///
/// # Safety
/// Attached; `this` is a live operation.
unsafe fn finish(this: *mut OperationObject) {
    // SAFETY: by this function's contract; the fields are empty before any reference is dropped,
    // since dropping can run code that looks at this operation.
    unsafe {
        (*this).phase = Phase::Done;
        let owner = ptr::replace(&raw mut (*this).owner, ptr::null_mut());
        let argument = ptr::replace(&raw mut (*this).argument, ptr::null_mut());
        let waiting = ptr::replace(&raw mut (*this).waiting, ptr::null_mut());
        ffi::Py_XDECREF(argument);
        ffi::Py_XDECREF(waiting);
        ffi::Py_XDECREF(owner);
    }
}

/// The usual steps of `sleep(0)`, which need nothing of PyO3.
///
/// # Safety
/// As [`resume`].
#[inline]
unsafe fn pause(this: *mut OperationObject) -> Option<Sent> {
    // SAFETY: by this function's contract. As long as it waits, that is for None.
    unsafe {
        match (*this).phase {
            Phase::New if (*this).kind == Kind::Sleep => {
                (*this).phase = Phase::Waiting;
                (*this).waiting = itself(ffi::Py_None());
                Some(Sent::Yielded(itself(ffi::Py_None())))
            }
            Phase::Waiting if (*this).kind == Kind::Sleep => {
                let result = ptr::replace(&raw mut (*this).owner, ptr::null_mut());
                finish(this);
                Some(Sent::Returned(result))
            }
            _ => None,
        }
    }
}

/// Goes on, with what the driver answered.
///
/// # Safety
/// Attached; `this` is a live operation, which the caller keeps alive.
unsafe fn resume(
    py: Python<'_>,
    this: *mut OperationObject,
    answer: PyResult<()>,
) -> PyResult<Sent> {
    // SAFETY: by this function's contract. The phase Running keeps others (a second driver, the
    // collector) from touching the fields while code of theirs can run.
    unsafe {
        let before = (*this).phase;
        match before {
            Phase::Running => return Err(PyValueError::new_err("coroutine already executing")),
            Phase::Done => return Err(reused_error()),
            Phase::New if answer.is_err() => {
                finish(this);
                return answer.map(|()| Sent::Returned(ffi::Py_None()));
            }
            Phase::New | Phase::Waiting | Phase::Delegating => {}
        }
        let object = NonNull::new_unchecked(this);
        let operation = Operation { object, alive: PhantomData };
        if before == Phase::New
            && let Some(value) = operation::at_once(operation, py)
        {
            finish(this);
            return Ok(Sent::Returned(value.into_ptr()));
        }
        (*this).phase = Phase::Running;
        let waited = ptr::replace(&raw mut (*this).waiting, ptr::null_mut());
        let waited = Bound::from_owned_ptr_or_opt(py, waited);
        let outcome = catch_unwind(AssertUnwindSafe(|| match (before, waited) {
            (Phase::Delegating, Some(inner)) => Ok(Step::Delegate(inner, answer)),
            (_, waited) => operation::step(py, operation, waited, answer),
        }));
        let step = outcome.unwrap_or_else(|payload| Err(crate::panic_error(&*payload)));
        let sent = match step {
            Ok(Step::Wait(future)) => {
                (*this).phase = Phase::Waiting;
                (*this).waiting = future.clone().into_ptr();
                return Ok(Sent::Yielded(future.into_ptr()));
            }
            Ok(Step::Done(value)) => Ok(Sent::Returned(value.into_ptr())),
            Ok(Step::Delegate(inner, answer)) => delegate(&inner, answer).inspect(|sent| {
                if matches!(sent, Sent::Yielded(_)) {
                    (*this).waiting = inner.into_ptr();
                }
            }),
            Err(error) => Err(error),
        };
        if matches!(sent, Ok(Sent::Yielded(_))) {
            (*this).phase = Phase::Delegating;
        } else {
            finish(this);
        }
        sent
    }
}

/// Drives another coroutine a step further, as `await` does.
fn delegate(inner: &Bound<'_, PyAny>, answer: PyResult<()>) -> PyResult<Sent> {
    let py = inner.py();
    if let Err(error) = answer {
        return match inner.call_method1(pyo3::intern!(py, "throw"), (error.into_value(py),)) {
            Ok(yielded) => Ok(Sent::Yielded(yielded.into_ptr())),
            Err(error) if error.is_instance_of::<PyStopIteration>(py) => {
                let value = error.value(py).getattr(pyo3::intern!(py, "value"))?;
                Ok(Sent::Returned(value.into_ptr()))
            }
            Err(error) => Err(error),
        };
    }
    let mut result = ptr::null_mut();
    // SAFETY: attached; `result` gets a new reference unless it fails.
    unsafe {
        match ffi::PyIter_Send(inner.as_ptr(), ffi::Py_None(), &raw mut result) {
            ffi::PySendResult::PYGEN_NEXT => Ok(Sent::Yielded(result)),
            ffi::PySendResult::PYGEN_RETURN => Ok(Sent::Returned(result)),
            ffi::PySendResult::PYGEN_ERROR => Err(PyErr::fetch(py)),
        }
    }
}

unsafe extern "C" fn iternext(slf: *mut PyObject) -> *mut PyObject {
    // SAFETY: CPython calls the slot attached, with a live operation.
    unsafe {
        let paused = pause(slf.cast());
        if let Some(Sent::Yielded(none)) = paused {
            return none;
        }
        super::attached(|py| {
            match paused.map_or_else(|| resume(py, slf.cast(), Ok(())), Ok) {
                Ok(Sent::Yielded(future)) => return future,
                Ok(Sent::Returned(value)) => stop(py, value),
                Err(error) => error.restore(py),
            }
            ptr::null_mut()
        })
    }
}

unsafe extern "C" fn am_send(
    slf: *mut PyObject,
    _value: *mut PyObject,
    result: *mut *mut PyObject,
) -> ffi::PySendResult {
    // SAFETY: CPython calls the slot attached, with a live operation and a place for the result.
    unsafe {
        super::attached(|py| match resume(py, slf.cast(), Ok(())) {
            Ok(Sent::Yielded(future)) => {
                *result = future;
                ffi::PySendResult::PYGEN_NEXT
            }
            Ok(Sent::Returned(value)) => {
                *result = value;
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

/// Runs the body of a method. A result is raised, as by a generator's own methods.
///
/// # Safety
/// Attached.
unsafe fn answered(body: impl FnOnce(Python<'_>) -> PyResult<Sent>) -> *mut PyObject {
    let call = |py: Python<'_>| {
        let error = match body(py) {
            Ok(Sent::Yielded(object)) => return object,
            Ok(Sent::Returned(value)) => {
                // SAFETY: attached, and the reference is ours.
                let value = unsafe { Bound::from_owned_ptr(py, value) };
                PyStopIteration::new_err((value.unbind(),))
            }
            Err(error) => error,
        };
        error.restore(py);
        ptr::null_mut()
    };
    // SAFETY: by this function's contract.
    unsafe { super::attached(call) }
}

unsafe extern "C" fn method_send(slf: *mut PyObject, value: *mut PyObject) -> *mut PyObject {
    // SAFETY: CPython calls the method attached, with a live operation.
    unsafe {
        answered(|py| {
            let this = slf.cast::<OperationObject>();
            if (*this).phase == Phase::New && value != ffi::Py_None() {
                let message = "can't send non-None value to a just-started coroutine";
                return Err(PyTypeError::new_err(message));
            }
            resume(py, this, Ok(()))
        })
    }
}

unsafe extern "C" fn method_throw(
    slf: *mut PyObject,
    args: *mut *mut PyObject,
    nargs: Py_ssize_t,
) -> *mut PyObject {
    // SAFETY: CPython calls the method attached, with a live operation and `nargs` arguments.
    unsafe {
        answered(|py| {
            let given =
                |i: isize| (i < nargs).then(|| Bound::from_borrowed_ptr(py, *args.offset(i)));
            let Some(first) = given(0).filter(|_| nargs <= 3) else {
                let message = format!("throw expected 1 to 3 arguments, got {nargs}");
                return Err(PyTypeError::new_err(message));
            };
            let value = given(1).filter(|value| !value.is_none());
            let traceback = given(2).filter(|traceback| !traceback.is_none());
            let error = coroutine::thrown(&first, value.as_ref(), traceback.as_ref())?;
            resume(py, slf.cast(), Err(error))
        })
    }
}

unsafe extern "C" fn method_close(slf: *mut PyObject, _unused: *mut PyObject) -> *mut PyObject {
    // SAFETY: CPython calls the method attached, with a live operation.
    unsafe {
        answered(|py| {
            let this = slf.cast::<OperationObject>();
            let none = || Sent::Yielded(py.None().into_ptr());
            if matches!((*this).phase, Phase::New | Phase::Done) {
                finish(this);
                return Ok(none());
            }
            match resume(py, this, Err(PyGeneratorExit::new_err(()))) {
                Ok(Sent::Returned(value)) => {
                    ffi::Py_DECREF(value);
                    Ok(none())
                }
                Ok(Sent::Yielded(future)) => {
                    ffi::Py_DECREF(future);
                    Err(PyRuntimeError::new_err("coroutine ignored GeneratorExit"))
                }
                Err(error) if is_end(py, &error) => Ok(none()),
                Err(error) => Err(error),
            }
        })
    }
}

fn is_end(py: Python<'_>, error: &PyErr) -> bool {
    error.is_instance_of::<PyGeneratorExit>(py) || error.is_instance_of::<PyStopIteration>(py)
}

unsafe extern "C" fn itself(slf: *mut PyObject) -> *mut PyObject {
    // SAFETY: CPython calls the slot attached, with a live object.
    unsafe { ffi::Py_INCREF(slf) };
    slf
}

/// # Safety
/// `slf` is a live operation.
unsafe fn kind_of(slf: *mut PyObject) -> Kind {
    // SAFETY: by this function's contract.
    unsafe { (*slf.cast::<OperationObject>()).kind }
}

unsafe extern "C" fn repr(slf: *mut PyObject) -> *mut PyObject {
    // SAFETY: CPython calls the slot attached, with a live operation.
    unsafe {
        let text = format!("<coroutine object {} at {slf:p}>", kind_of(slf).qualified_name());
        PyString::new(Python::assume_attached(), &text).into_any().into_ptr()
    }
}

unsafe extern "C" fn get_name(slf: *mut PyObject, _closure: *mut c_void) -> *mut PyObject {
    // SAFETY: CPython calls the getter attached, with a live operation.
    unsafe { PyString::new(Python::assume_attached(), kind_of(slf).name()).into_any().into_ptr() }
}

unsafe extern "C" fn get_qualname(slf: *mut PyObject, _closure: *mut c_void) -> *mut PyObject {
    // SAFETY: CPython calls the getter attached, with a live operation.
    unsafe {
        let name = kind_of(slf).qualified_name();
        PyString::new(Python::assume_attached(), &name).into_any().into_ptr()
    }
}

unsafe extern "C" fn get_running(slf: *mut PyObject, _closure: *mut c_void) -> *mut PyObject {
    // SAFETY: CPython calls the getter attached, with a live operation.
    unsafe {
        let running = (*slf.cast::<OperationObject>()).phase == Phase::Running;
        ffi::PyBool_FromLong(running.into())
    }
}

unsafe extern "C" fn get_await(slf: *mut PyObject, _closure: *mut c_void) -> *mut PyObject {
    // SAFETY: CPython calls the getter attached, with a live operation.
    unsafe {
        let waiting = (*slf.cast::<OperationObject>()).waiting;
        itself(if waiting.is_null() { ffi::Py_None() } else { waiting })
    }
}

unsafe extern "C" fn dealloc(object: *mut PyObject) {
    // SAFETY: CPython calls this once, attached, when the last reference is gone.
    unsafe {
        let py = Python::assume_attached();
        let this = object.cast::<OperationObject>();
        ffi::PyObject_GC_UnTrack(object.cast());
        if !(*this).weakrefs.is_null() {
            ffi::PyObject_ClearWeakRefs(object);
        }
        if (*this).phase == Phase::New {
            let name = (*this).kind.qualified_name();
            super::attached(|py| coroutine::warn_never_awaited(py, &name));
        }
        if (*this).phase != Phase::Done {
            finish(this);
        }
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
        ffi::Py_DECREF(kind.cast());
    }
}

unsafe extern "C" fn traverse(
    object: *mut PyObject,
    visit: ffi::visitproc,
    arg: *mut c_void,
) -> c_int {
    // SAFETY: called by the collector on a live, tracked operation; every field is live or null.
    unsafe {
        let this = object.cast::<OperationObject>();
        let kind = ffi::Py_TYPE(object).cast();
        for field in [kind, (*this).owner, (*this).argument, (*this).waiting] {
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

unsafe extern "C" fn clear(object: *mut PyObject) -> c_int {
    // SAFETY: called by the collector on a live operation.
    unsafe {
        let this = object.cast::<OperationObject>();
        if !matches!((*this).phase, Phase::Running | Phase::New) {
            finish(this);
        }
        0
    }
}

/// Makes the type.
pub fn create_type(py: Python<'_>) -> PyResult<Bound<'_, PyType>> {
    let offset = std::mem::offset_of!(OperationObject, weakrefs);
    let members = types::weakref_members(offset);
    // CPython keeps pointers into these tables for the type's life, which is the process's.
    let methods: &'static mut [ffi::PyMethodDef] = Box::leak(Box::new([
        method(
            c"send",
            c"send($self, value, /)\n--\n\nResume the operation; asyncio's tasks send None.",
            ffi::PyMethodDefPointer { PyCFunction: method_send },
            ffi::METH_O,
        ),
        method(
            c"throw",
            c"throw($self, type, value=None, traceback=None, /)\n--\n\nRaise where it waits.",
            ffi::PyMethodDefPointer { PyCFunctionFast: method_throw },
            ffi::METH_FASTCALL,
        ),
        method(
            c"close",
            c"close($self, /)\n--\n\nEnd the operation where it waits.",
            ffi::PyMethodDefPointer { PyCFunction: method_close },
            ffi::METH_NOARGS,
        ),
        ffi::PyMethodDef::zeroed(),
    ]));
    let attributes: &'static mut [ffi::PyGetSetDef] = Box::leak(Box::new([
        getter(c"__name__", get_name),
        getter(c"__qualname__", get_qualname),
        getter(c"cr_running", get_running),
        // Not cr_await: asyncio.print_call_graph() would ask who has it for its frame.
        getter(c"gi_yieldfrom", get_await),
        ffi::PyGetSetDef::default(),
    ]));
    let doc = c"What a coroutine method of a stream returns: to be awaited, once.";
    let mut slots = [
        slot(ffi::Py_tp_dealloc, dealloc as *mut c_void),
        slot(ffi::Py_tp_traverse, traverse as *mut c_void),
        slot(ffi::Py_tp_clear, clear as *mut c_void),
        slot(ffi::Py_tp_doc, doc.as_ptr().cast_mut().cast()),
        slot(ffi::Py_tp_methods, methods.as_mut_ptr().cast()),
        slot(ffi::Py_tp_getset, attributes.as_mut_ptr().cast()),
        slot(ffi::Py_tp_members, members.as_mut_ptr().cast()),
        slot(ffi::Py_tp_repr, repr as *mut c_void),
        slot(ffi::Py_tp_iter, itself as *mut c_void),
        slot(ffi::Py_tp_iternext, iternext as *mut c_void),
        slot(ffi::Py_am_await, itself as *mut c_void),
        slot(ffi::Py_am_send, am_send as *mut c_void),
        slot(0, ptr::null_mut()),
    ];
    let name = c"rondel._rondel.StreamOperation";
    // SAFETY: the slots end with a zero, their tables are leaked, and the functions have the
    // signatures that their slots ask for.
    let made = unsafe { types::create::<OperationObject>(py, name, None, 0, &mut slots) }?;
    TYPE.store(made.clone().into_ptr().cast(), Ordering::Relaxed);
    Ok(made)
}
