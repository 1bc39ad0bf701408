//! The loop's hot methods as raw vectorcall methods.
//!
//! `call_soon` and relatives take any number of positional arguments and one keyword. Through a
//! general argument parser that costs a tuple for each call; here the arguments go from the caller's
//! stack into the handle, and the keyword is found by comparing pointers.
//!
//! They are put onto the [`Loop`] type by [`methods`].

use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use pyo3::exceptions::PyTypeError;
use pyo3::ffi::{self, Py_ssize_t, PyObject};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple};
use rondel_reactor::clock;

use super::handle::HandleRef;
use super::methods::{self, fast, guard, noargs};
use crate::event_loop::Loop;

/// Which of the scheduling methods was called.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Soon,
    Threadsafe,
    Later,
    At,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Kind::Soon => "call_soon",
            Kind::Threadsafe => "call_soon_threadsafe",
            Kind::Later => "call_later",
            Kind::At => "call_at",
        }
    }

    /// Positional parameters before `*args`.
    const fn parameters(self) -> &'static [&'static str] {
        match self {
            Kind::Soon | Kind::Threadsafe => &["callback"],
            Kind::Later => &["delay", "callback"],
            Kind::At => &["when", "callback"],
        }
    }
}

/// Whether handles of call_soon_threadsafe() can be cancelled by other threads: from Python 3.14 on.
#[inline]
fn has_threadsafe_handles(py: Python<'_>) -> bool {
    static ANSWER: PyOnceLock<bool> = PyOnceLock::new();
    *ANSWER.get_or_init(py, || py.version_info() >= (3, 14))
}

/// The parsed arguments: borrowed pointers that live as long as the call.
struct Call {
    time: *mut PyObject,
    callback: *mut PyObject,
    args: *const *mut PyObject,
    nargs: usize,
    context: *mut PyObject,
    /// Keeps the references alive when positional parameters came as keywords.
    _owner: Option<Py<PyTuple>>,
}

/// # Safety
/// The arguments of a METH_FASTCALL | METH_KEYWORDS method whose `self` is a Loop.
#[inline]
unsafe fn schedule(
    kind: Kind,
    slf: *mut PyObject,
    args: *const *mut PyObject,
    nargs: Py_ssize_t,
    kwnames: *mut PyObject,
) -> *mut PyObject {
    // SAFETY: by this function's contract.
    unsafe {
        guard::<Loop>(slf, |event_loop| {
            let call = parse(event_loop.py(), kind, args, nargs.unsigned_abs(), kwnames)?;
            enqueue(event_loop, kind, &call)
        })
    }
}

/// # Safety
/// As [`schedule`].
#[inline]
unsafe fn parse(
    py: Python<'_>,
    kind: Kind,
    args: *const *mut PyObject,
    nargs: usize,
    kwnames: *mut PyObject,
) -> PyResult<Call> {
    let leading = kind.parameters().len();
    // SAFETY: `args` holds `nargs` positional values followed by one for each name in `kwnames`.
    unsafe {
        let mut context = ptr::null_mut();
        if !kwnames.is_null() {
            let name = ffi::PyTuple_GET_ITEM(kwnames, 0);
            if ffi::PyTuple_GET_SIZE(kwnames) != 1 || !is_context(py, name) {
                return parse_slowly(py, kind, args, nargs, kwnames);
            }
            context = *args.add(nargs);
        }
        if nargs < leading {
            return parse_slowly(py, kind, args, nargs, kwnames);
        }
        Ok(Call {
            time: if leading == 2 { *args } else { ptr::null_mut() },
            callback: *args.add(leading - 1),
            args: args.add(leading),
            nargs: nargs - leading,
            context: if context == ffi::Py_None() { ptr::null_mut() } else { context },
            _owner: None,
        })
    }
}

/// Whether a keyword's name is "context". Python code has the interned string; CPython's C Task has
/// one of its own, which is remembered when it is first seen.
///
/// # Safety
/// `name` is a live str.
#[inline]
unsafe fn is_context(py: Python<'_>, name: *mut PyObject) -> bool {
    static OF_C_TASK: AtomicPtr<PyObject> = AtomicPtr::new(ptr::null_mut());
    if name == OF_C_TASK.load(Ordering::Relaxed) || name == intern!(py, "context").as_ptr() {
        return true;
    }
    // SAFETY: `name` is a live str. The remembered one is kept alive for ever by an extra reference,
    // so that its address stays its own.
    unsafe {
        let same = Bound::from_borrowed_ptr(py, name).eq("context").unwrap_or(false);
        if same && OF_C_TASK.load(Ordering::Relaxed).is_null() {
            ffi::Py_INCREF(name);
            OF_C_TASK.store(name, Ordering::Relaxed);
        }
        same
    }
}

/// Names that are not interned, positional parameters given by name, and mistakes.
///
/// # Safety
/// As [`schedule`].
#[cold]
unsafe fn parse_slowly(
    py: Python<'_>,
    kind: Kind,
    args: *const *mut PyObject,
    nargs: usize,
    kwnames: *mut PyObject,
) -> PyResult<Call> {
    let name = kind.name();
    // SAFETY: as in `parse`.
    let (mut positional, keywords) = unsafe {
        let positional: Vec<Bound<'_, PyAny>> =
            (0..nargs).map(|i| Bound::from_borrowed_ptr(py, *args.add(i))).collect();
        let keywords = PyDict::new(py);
        if !kwnames.is_null() {
            let names = Bound::from_borrowed_ptr(py, kwnames).cast_into_unchecked::<PyTuple>();
            for (i, key) in names.iter().enumerate() {
                keywords.set_item(key, Bound::from_borrowed_ptr(py, *args.add(nargs + i)))?;
            }
        }
        (positional, keywords)
    };
    for parameter in kind.parameters().iter().skip(nargs) {
        let Some(value) = keywords.get_item(parameter)? else {
            return Err(PyTypeError::new_err(format!(
                "{name}() missing 1 required positional argument: '{parameter}'"
            )));
        };
        keywords.del_item(parameter)?;
        positional.push(value);
    }
    let context = keywords.get_item("context")?;
    if context.is_some() {
        keywords.del_item("context")?;
    }
    if let Some(unknown) = keywords.keys().iter().next() {
        let what = if kind.parameters().iter().any(|p| unknown.eq(p).unwrap_or(false)) {
            "multiple values for argument"
        } else {
            "an unexpected keyword argument"
        };
        return Err(PyTypeError::new_err(format!("{name}() got {what} '{unknown}'")));
    }
    let owner = PyTuple::new(py, positional.iter().chain(&context).collect::<Vec<_>>())?;
    // SAFETY: a tuple's items lie in one array; `owner` keeps it alive for as long as the Call.
    unsafe {
        let items = (&raw mut (*owner.as_ptr().cast::<ffi::PyTupleObject>()).ob_item)
            .cast::<*mut PyObject>();
        let kwnames = match context {
            Some(_) => PyTuple::new(py, [intern!(py, "context")])?,
            None => PyTuple::empty(py),
        };
        let names = if context.is_some() { kwnames.as_ptr() } else { ptr::null_mut() };
        let mut call = parse(py, kind, items, positional.len(), names)?;
        call._owner = Some(owner.unbind());
        Ok(call)
    }
}

/// Checks, makes the handle and puts it where it belongs. Returns a new reference to it.
#[inline]
fn enqueue(event_loop: &Bound<'_, Loop>, kind: Kind, call: &Call) -> PyResult<*mut PyObject> {
    let py = event_loop.py();
    let state = event_loop.get().state(py);
    let mut when = None;
    if kind == Kind::Later || kind == Kind::At {
        when = Some(time_argument(py, kind, call.time)?);
    }
    state.check_usable()?;
    if state.debug.get() {
        // SAFETY: the pointer is a live argument of the call.
        let callback = unsafe { Bound::from_borrowed_ptr(py, call.callback) };
        // call_later is call_at to asyncio's messages.
        let name = if kind == Kind::Later { Kind::At.name() } else { kind.name() };
        crate::event_loop::debug::check_call(
            event_loop,
            &callback,
            name,
            kind != Kind::Threadsafe,
        )?;
    }
    if !call.context.is_null() {
        check_context(py, call.context)?;
    }
    // SAFETY: the pointers are live arguments of the call.
    let handle = unsafe {
        HandleRef::new(
            py,
            event_loop.as_ptr(),
            call.callback,
            call.args,
            call.nargs,
            call.context,
            when,
        )?
    };
    if state.debug.get() {
        crate::event_loop::debug::note_origin(py, &handle)?;
    }
    let result = handle.clone_ref(py);
    match when {
        Some(when) => state.add_timer(handle, clock::from_seconds(when)),
        None => state.push_ready(handle),
    }
    if kind == Kind::Threadsafe {
        if has_threadsafe_handles(py) {
            result.set_threadsafe();
        }
        state.wake();
    }
    Ok(result.into_ptr())
}

/// A context that is none would only be found when the callback is run; asyncio's Handle fails then,
/// with an AttributeError. Here the caller is told at once.
#[inline]
fn check_context(py: Python<'_>, context: *mut PyObject) -> PyResult<()> {
    // SAFETY: `context` is a live argument of the call; comparing types reads its header.
    unsafe {
        if ffi::Py_TYPE(context) == &raw mut ffi::PyContext_Type {
            return Ok(());
        }
        let found = Bound::from_borrowed_ptr(py, context).get_type();
        Err(PyTypeError::new_err(format!(
            "context must be a contextvars.Context, not {:?}",
            found.name()?.to_string()
        )))
    }
}

#[inline]
fn time_argument(py: Python<'_>, kind: Kind, time: *mut PyObject) -> PyResult<f64> {
    // SAFETY: `time` is a live argument of the call.
    let given = unsafe {
        if time == ffi::Py_None() {
            let message = match kind {
                Kind::Later => "delay must not be None",
                _ => "when cannot be None",
            };
            return Err(PyTypeError::new_err(message));
        }
        ffi::PyFloat_AsDouble(time)
    };
    #[allow(clippy::float_cmp)] // -1.0 exactly is C's sign for "look whether there is an error"
    if given == -1.0
        && let Some(error) = PyErr::take(py)
    {
        return Err(error);
    }
    if kind == Kind::At {
        return Ok(given);
    }
    let now = clock::to_seconds(clock::now_ns());
    // SAFETY: as above. A number of another type must be one that can be added to a float.
    unsafe {
        if ffi::PyFloat_Check(time) == 0 && ffi::PyLong_Check(time) == 0 {
            let delay = Bound::from_borrowed_ptr(py, time);
            return pyo3::types::PyFloat::new(py, now).add(delay)?.extract();
        }
    }
    Ok(now + given)
}

macro_rules! scheduling_method {
    ($name:ident, $kind:expr) => {
        unsafe extern "C" fn $name(
            slf: *mut PyObject,
            args: *const *mut PyObject,
            nargs: Py_ssize_t,
            kwnames: *mut PyObject,
        ) -> *mut PyObject {
            // SAFETY: called by a method descriptor of Loop with these flags.
            unsafe { schedule($kind, slf, args, nargs, kwnames) }
        }
    };
}

scheduling_method!(call_soon, Kind::Soon);
scheduling_method!(call_soon_threadsafe, Kind::Threadsafe);
scheduling_method!(call_later, Kind::Later);
scheduling_method!(call_at, Kind::At);

unsafe extern "C" fn time(_slf: *mut PyObject, _unused: *mut PyObject) -> *mut PyObject {
    // SAFETY: attached, as every method call is; null with MemoryError set is a valid result.
    unsafe { ffi::PyFloat_FromDouble(clock::to_seconds(clock::now_ns())) }
}

unsafe extern "C" fn get_debug(slf: *mut PyObject, _unused: *mut PyObject) -> *mut PyObject {
    // SAFETY: called by a method descriptor of Loop.
    unsafe {
        guard::<Loop>(slf, |event_loop| {
            let debug = event_loop.get().state(event_loop.py()).debug.get();
            Ok(ffi::PyBool_FromLong(debug.into()))
        })
    }
}

unsafe extern "C" fn create_future(slf: *mut PyObject, _unused: *mut PyObject) -> *mut PyObject {
    static NAMES: PyOnceLock<Py<PyTuple>> = PyOnceLock::new();
    // SAFETY: called by a method descriptor of Loop.
    unsafe {
        guard::<Loop>(slf, |event_loop| {
            let py = event_loop.py();
            let names =
                NAMES.get_or_try_init(py, || PyResult::Ok(PyTuple::new(py, ["loop"])?.unbind()))?;
            let future = crate::imports::future_type(py)?;
            // The slot before the argument is the callee's to use.
            let args = [ptr::null_mut(), slf];
            let result = ffi::PyObject_Vectorcall(
                future.as_ptr(),
                args.as_ptr().add(1),
                ffi::PY_VECTORCALL_ARGUMENTS_OFFSET,
                names.as_ptr(),
            );
            if result.is_null() { Err(PyErr::fetch(py)) } else { Ok(result) }
        })
    }
}

/// Puts the raw methods onto the Loop type.
pub fn install(py: Python<'_>) -> PyResult<()> {
    let methods = [
        fast(
            c"call_soon",
            c"call_soon($self, callback, /, *args, context=None)\n--\n\nCall the callback with the arguments in the next turn of the loop.\n\nCallbacks are called in the order in which they were registered, each exactly once.\nReturns a Handle. Raises RuntimeError when the loop is closed.",
            call_soon,
        ),
        fast(
            c"call_soon_threadsafe",
            c"call_soon_threadsafe($self, callback, /, *args, context=None)\n--\n\nLike call_soon(), but may be called from any thread: it wakes the loop.",
            call_soon_threadsafe,
        ),
        fast(
            c"call_later",
            c"call_later($self, delay, callback, /, *args, context=None)\n--\n\nCall the callback after the delay in seconds. Returns a TimerHandle.\n\nEqual times are called in the order in which they were registered.",
            call_later,
        ),
        fast(
            c"call_at",
            c"call_at($self, when, callback, /, *args, context=None)\n--\n\nCall the callback at the time in seconds on the loop's clock (see time()).\n\nReturns a TimerHandle.",
            call_at,
        ),
        fast(
            c"create_task",
            c"create_task($self, coro, **kwargs)\n--\n\nSchedule a coroutine; return its asyncio.Task.\n\nKeywords are those of the running Python's create_task().",
            super::tasks::create_task,
        ),
        noargs(
            c"time",
            c"time($self, /)\n--\n\nThe loop's clock in seconds: that of time.monotonic().",
            time,
        ),
        noargs(
            c"get_debug",
            c"get_debug($self, /)\n--\n\nWhether the loop is in debug mode.",
            get_debug,
        ),
        noargs(
            c"create_future",
            c"create_future($self, /)\n--\n\nA new asyncio.Future that belongs to the loop.",
            create_future,
        ),
    ];
    methods::put(&py.get_type::<Loop>(), methods)
}
