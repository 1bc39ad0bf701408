//! What `Handle` and `TimerHandle` mean to Python: asyncio's methods, attributes, repr and ordering.
//!
//! Their memory is managed in [`crate::ffi::handle`].

use std::ffi::{CStr, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::exceptions::PyRuntimeError;
use pyo3::ffi::{self, PyGetSetDef, PyMethodDef, PyObject};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyFloat};

use crate::event_loop::exceptions;
use crate::ffi::handle::HandleRef;
use crate::imports;

/// Docstring of `Handle`.
pub const HANDLE_DOC: &CStr =
    c"A callback that waits for its turn, as loop.call_soon() returns it (see asyncio.Handle).";
/// Docstring of `TimerHandle`.
pub const TIMER_HANDLE_DOC: &CStr =
    c"A callback that waits for its time, as loop.call_later() returns it (see asyncio.TimerHandle).";

/// Cancels a handle; a timer's loop is told, so that the heap can be compacted.
pub fn cancel(py: Python<'_>, handle: &HandleRef) -> PyResult<()> {
    if handle.is_cancelled() {
        return Ok(());
    }
    let event_loop = handle.event_loop(py);
    let state = event_loop.get().state(py);
    if state.debug.get() {
        // For messages about the handle after its callback is gone.
        let text = describe(py, handle, true)?;
        handle.save_repr(pyo3::types::PyString::new(py, &text).into_any());
    }
    handle.mark_cancelled();
    if handle.is_scheduled() {
        state.timer_cancelled();
    }
    Ok(())
}

/// Calls the callback in its context and reports what it raises, as asyncio's `Handle._run` does.
pub fn run(py: Python<'_>, handle: &HandleRef) -> PyResult<()> {
    let Some(context) = handle.context(py) else { return Ok(()) };
    let context = context.cast_into::<pyo3::types::PyContext>()?;
    match crate::ffi::context::run_in(&context, || handle.call(py)) {
        Ok(()) => Ok(()),
        Err(error) => report(py, handle, error),
    }
}

/// Reports a callback's exception; gives it back when it must leave the loop.
#[cold]
pub fn report(py: Python<'_>, handle: &HandleRef, error: PyErr) -> PyResult<()> {
    if exceptions::must_propagate(py, &error) {
        return Err(error);
    }
    let event_loop = handle.event_loop(py);
    let callback = callback_source(py, handle)?;
    let context = PyDict::new(py);
    context.set_item("message", format!("Exception in callback {callback}"))?;
    context.set_item("exception", crate::errors::exception(py, &error))?;
    context.set_item("handle", handle.bind(py))?;
    if let Some(stack) = handle.source_traceback(py) {
        context.set_item("source_traceback", stack)?;
    }
    exceptions::call_handler(&event_loop, &context)
}

/// asyncio's description of the callback. Newer Pythons show arguments in debug mode only, which
/// they ask about by a keyword.
fn callback_source(py: Python<'_>, handle: &HandleRef) -> PyResult<String> {
    let format = imports::format_callback_source(py)?;
    let arguments = (handle.callback(py), handle.args(py)?);
    let keywords = format.getattr("__kwdefaults__")?;
    if keywords.is_none() {
        return format.call1(arguments)?.extract();
    }
    let debug = handle.event_loop(py).get().state(py).debug.get();
    let options = PyDict::new(py);
    options.set_item("debug", debug)?;
    format.call(arguments, Some(&options))?.extract()
}

fn repr(py: Python<'_>, handle: &HandleRef) -> PyResult<String> {
    match handle.saved_repr(py) {
        Some(saved) => saved.extract(),
        None => describe(py, handle, handle.is_cancelled()),
    }
}

fn describe(py: Python<'_>, handle: &HandleRef, cancelled: bool) -> PyResult<String> {
    let object = handle.bind(py);
    let mut parts = vec![object.get_type().name()?.to_string()];
    if cancelled {
        parts.push("cancelled".into());
    }
    if is_timer(&object) {
        parts.push(format!("when={}", PyFloat::new(py, handle.when()).repr()?));
    }
    if handle.callback(py).is_some() {
        parts.push(callback_source(py, handle)?);
    }
    if let Some(stack) = handle.source_traceback(py)
        && stack.len()? > 0
    {
        let frame = stack.get_item(-1)?;
        parts.push(format!("created at {}:{}", frame.get_item(0)?, frame.get_item(1)?));
    }
    Ok(format!("<{}>", parts.join(" ")))
}

fn is_timer(object: &Bound<'_, PyAny>) -> bool {
    object.get_type().name().is_ok_and(|name| name == "TimerHandle")
}

/// Runs the body of a slot or method on the handle behind `slf`.
fn with_handle(
    slf: *mut PyObject,
    body: impl FnOnce(Python<'_>, &HandleRef) -> PyResult<Py<PyAny>>,
) -> *mut PyObject {
    Python::attach(|py| {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            // SAFETY: CPython calls slots and methods with a live object as `self`.
            let object = unsafe { Bound::from_borrowed_ptr(py, slf) };
            let handle = HandleRef::from_object(&object)
                .ok_or_else(|| PyRuntimeError::new_err("not a handle of this loop"))?;
            body(py, &handle)
        }));
        match outcome.unwrap_or_else(|payload| Err(crate::panic_error(&*payload))) {
            Ok(value) => value.into_ptr(),
            Err(error) => {
                error.restore(py);
                std::ptr::null_mut()
            }
        }
    })
}

macro_rules! methods {
    ($($name:ident => |$py:ident, $handle:ident| $body:expr;)*) => {
        $(unsafe extern "C" fn $name(slf: *mut PyObject, _unused: *mut PyObject) -> *mut PyObject {
            with_handle(slf, |$py, $handle| $body)
        })*
    };
}

methods! {
    method_cancel => |py, handle| cancel(py, handle).map(|()| py.None());
    method_cancelled => |py, handle| Ok(bool_object(py, handle.is_cancelled()));
    method_get_context => |py, handle| Ok(or_none(py, handle.context(py)));
    method_run => |py, handle| run(py, handle).map(|()| py.None());
    method_when => |py, handle| Ok(PyFloat::new(py, handle.when()).into_any().unbind());
}

fn bool_object(py: Python<'_>, value: bool) -> Py<PyAny> {
    pyo3::types::PyBool::new(py, value).to_owned().into_any().unbind()
}

fn or_none(py: Python<'_>, value: Option<Bound<'_, PyAny>>) -> Py<PyAny> {
    value.map_or_else(|| py.None(), Bound::unbind)
}

macro_rules! getters {
    ($($name:ident => |$py:ident, $handle:ident| $body:expr;)*) => {
        $(unsafe extern "C" fn $name(slf: *mut PyObject, _closure: *mut c_void) -> *mut PyObject {
            with_handle(slf, |$py, $handle| $body)
        })*
    };
}

getters! {
    get_callback => |py, handle| Ok(or_none(py, handle.callback(py)));
    get_args => |py, handle| {
        Ok(or_none(py, handle.args(py)?.map(Bound::into_any)))
    };
    get_context => |py, handle| Ok(or_none(py, handle.context(py)));
    get_loop => |py, handle| Ok(handle.event_loop(py).into_any().unbind());
    get_cancelled => |py, handle| Ok(bool_object(py, handle.is_cancelled()));
    get_source_traceback => |py, handle| Ok(or_none(py, handle.source_traceback(py)));
    get_repr => |py, handle| Ok(or_none(py, handle.saved_repr(py)));
    get_class => |py, handle| {
        let class = if is_timer(&handle.bind(py)) {
            imports::timer_handle_type(py)?
        } else {
            imports::handle_type(py)?
        };
        Ok(class.clone().unbind())
    };
    get_when => |py, handle| Ok(PyFloat::new(py, handle.when()).into_any().unbind());
    get_scheduled => |py, handle| Ok(bool_object(py, handle.is_scheduled()));
}

pub(crate) unsafe extern "C" fn repr_slot(slf: *mut PyObject) -> *mut PyObject {
    with_handle(slf, |py, handle| {
        Ok(pyo3::types::PyString::new(py, &repr(py, handle)?).into_any().unbind())
    })
}

pub(crate) unsafe extern "C" fn hash_slot(slf: *mut PyObject) -> ffi::Py_hash_t {
    Python::attach(|py| {
        // SAFETY: CPython calls the slot with a live TimerHandle.
        let object = unsafe { Bound::from_borrowed_ptr(py, slf) };
        let when = HandleRef::from_object(&object).map_or(0.0, |handle| handle.when());
        PyFloat::new(py, when).hash().unwrap_or(0)
    })
}

pub(crate) unsafe extern "C" fn compare_slot(
    slf: *mut PyObject,
    other: *mut PyObject,
    operation: c_int,
) -> *mut PyObject {
    with_handle(slf, |py, handle| {
        // SAFETY: CPython calls the slot with two live objects.
        let other = unsafe { Bound::from_borrowed_ptr(py, other) };
        if !is_timer(&other) {
            return Ok(py.NotImplemented());
        }
        let Some(other) = HandleRef::from_object(&other) else {
            return Ok(py.NotImplemented());
        };
        let (a, b) = (handle.when(), other.when());
        let answer = match operation {
            ffi::Py_LT => a < b,
            ffi::Py_GT => a > b,
            ffi::Py_LE => a < b || equal(py, handle, &other)?,
            ffi::Py_GE => a > b || equal(py, handle, &other)?,
            ffi::Py_EQ => equal(py, handle, &other)?,
            _ => !equal(py, handle, &other)?,
        };
        Ok(bool_object(py, answer))
    })
}

#[allow(clippy::float_cmp)] // asyncio compares the times exactly
fn equal(py: Python<'_>, a: &HandleRef, b: &HandleRef) -> PyResult<bool> {
    let same_call = |py| {
        PyResult::Ok(
            or_none(py, a.callback(py)).bind(py).eq(or_none(py, b.callback(py)))?
                && or_none(py, a.args(py)?.map(Bound::into_any))
                    .bind(py)
                    .eq(or_none(py, b.args(py)?.map(Bound::into_any)))?,
        )
    };
    Ok(a.when() == b.when() && a.is_cancelled() == b.is_cancelled() && same_call(py)?)
}

fn method(name: &'static CStr, doc: &'static CStr, function: ffi::PyCFunction) -> PyMethodDef {
    PyMethodDef {
        ml_name: name.as_ptr(),
        ml_meth: ffi::PyMethodDefPointer { PyCFunction: function },
        ml_flags: ffi::METH_NOARGS,
        ml_doc: doc.as_ptr(),
    }
}

fn getter(name: &'static CStr, function: ffi::getter) -> PyGetSetDef {
    PyGetSetDef { name: name.as_ptr(), get: Some(function), ..PyGetSetDef::default() }
}

/// The method and attribute tables of `Handle`, or of what `TimerHandle` adds. They are for a type
/// that lives as long as the process, so they do too.
pub(crate) fn tables(timer: bool) -> (&'static mut [PyMethodDef], &'static mut [PyGetSetDef]) {
    let mut methods = Vec::new();
    let mut attributes = Vec::new();
    if timer {
        methods.push(method(
            c"when",
            c"when($self, /)\n--\n\nThe time of the call in seconds on the loop's clock.",
            method_when,
        ));
        attributes.push(getter(c"_when", get_when));
        attributes.push(getter(c"_scheduled", get_scheduled));
    } else {
        methods.extend([
            method(
                c"cancel",
                c"cancel($self, /)\n--\n\nCancel the call. No effect when it was made already.",
                method_cancel,
            ),
            method(
                c"cancelled",
                c"cancelled($self, /)\n--\n\nWhether the call was cancelled.",
                method_cancelled,
            ),
            method(
                c"get_context",
                c"get_context($self, /)\n--\n\nThe contextvars.Context in which the call is made.",
                method_get_context,
            ),
            method(
                c"_run",
                c"_run($self, /)\n--\n\nMake the call now, as the loop does.",
                method_run,
            ),
        ]);
        attributes.extend([
            // isinstance() believes this: a native class cannot derive from asyncio's.
            getter(c"__class__", get_class),
            getter(c"_callback", get_callback),
            getter(c"_args", get_args),
            getter(c"_context", get_context),
            getter(c"_loop", get_loop),
            getter(c"_cancelled", get_cancelled),
            getter(c"_source_traceback", get_source_traceback),
            getter(c"_repr", get_repr),
        ]);
    }
    methods.push(PyMethodDef::zeroed());
    attributes.push(PyGetSetDef::default());
    (Box::leak(methods.into_boxed_slice()), Box::leak(attributes.into_boxed_slice()))
}
