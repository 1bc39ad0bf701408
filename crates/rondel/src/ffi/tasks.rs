//! `create_task()` as a raw vectorcall method: `asyncio.Task(coro, loop=loop, **kwargs)` without a
//! tuple or a dict in between.

use std::ptr;

use pyo3::exceptions::PyTypeError;
use pyo3::ffi::{self, Py_ssize_t, PyObject};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple};

use super::methods::guard;
use crate::event_loop::{Loop, tasks};
use crate::imports;

/// Keywords that fit on the stack; the running Python knows three (name, context, eager_start).
const MAX_KEYWORDS: usize = 8;

pub(super) unsafe extern "C" fn create_task(
    slf: *mut PyObject,
    args: *const *mut PyObject,
    nargs: Py_ssize_t,
    kwnames: *mut PyObject,
) -> *mut PyObject {
    // SAFETY: called by a method descriptor of Loop with these arguments.
    unsafe {
        guard::<Loop>(slf, |event_loop| {
            let call = Arguments::new(event_loop.py(), args, nargs.unsigned_abs(), kwnames)?;
            let state = event_loop.get().state(event_loop.py());
            state.check_usable()?;
            if state.task_factory.borrow().is_none() {
                return new_task(event_loop, &call);
            }
            from_factory(event_loop, &call)
        })
    }
}

/// The arguments of one call: borrowed for as long as it lasts.
struct Arguments<'py> {
    coro: Bound<'py, PyAny>,
    /// One value for each keyword.
    values: *const *mut PyObject,
    names: Option<Bound<'py, PyTuple>>,
}

impl<'py> Arguments<'py> {
    /// # Safety
    /// The arguments of a METH_FASTCALL | METH_KEYWORDS method.
    unsafe fn new(
        py: Python<'py>,
        args: *const *mut PyObject,
        nargs: usize,
        kwnames: *mut PyObject,
    ) -> PyResult<Self> {
        // SAFETY: `args` holds `nargs` values and one for each of `kwnames`.
        unsafe {
            let names = Bound::from_borrowed_ptr_or_opt(py, kwnames)
                .map(|names| names.cast_into_unchecked::<PyTuple>())
                .filter(|names| !names.is_empty());
            if nargs == 1 {
                let coro = Bound::from_borrowed_ptr(py, *args);
                return Ok(Arguments { coro, values: args.add(1), names });
            }
            // create_task(coro=…) is legal, if unheard of.
            if nargs == 0
                && let Some(names) = &names
                && names.len() == 1
                && names.get_item(0)?.eq("coro")?
            {
                let coro = Bound::from_borrowed_ptr(py, *args);
                return Ok(Arguments { coro, values: args.add(1), names: None });
            }
        }
        Err(PyTypeError::new_err(format!(
            "create_task() takes exactly 1 positional argument ({nargs} given)"
        )))
    }

    fn count(&self) -> usize {
        self.names.as_ref().map_or(0, |names| names.len())
    }

    fn as_dict(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let Some(names) = &self.names else { return Ok(None) };
        let dict = PyDict::new(py);
        for (i, name) in names.iter().enumerate() {
            // SAFETY: there is a value for each name.
            dict.set_item(name, unsafe { Bound::from_borrowed_ptr(py, *self.values.add(i)) })?;
        }
        Ok(Some(dict))
    }
}

fn from_factory(event_loop: &Bound<'_, Loop>, call: &Arguments<'_>) -> PyResult<*mut PyObject> {
    let py = event_loop.py();
    let factory = event_loop
        .get()
        .state(py)
        .task_factory
        .borrow()
        .as_ref()
        .map_or_else(|| py.None(), |factory| factory.clone_ref(py));
    let keywords = call.as_dict(py)?;
    tasks::from_factory(factory.bind(py), event_loop, &call.coro, keywords.as_ref())
        .map(Bound::into_ptr)
}

fn new_task(event_loop: &Bound<'_, Loop>, call: &Arguments<'_>) -> PyResult<*mut PyObject> {
    let py = event_loop.py();
    let count = call.count();
    if count > MAX_KEYWORDS {
        return Err(PyTypeError::new_err("create_task() got too many keyword arguments"));
    }
    let names = with_loop(py, call.names.as_ref())?;
    // [the callee's slot, coro, loop, values…]
    let mut stack = [ptr::null_mut(); MAX_KEYWORDS + 3];
    stack[1] = call.coro.as_ptr();
    stack[2] = event_loop.as_ptr();
    // SAFETY: there are `count` values; everything on the stack is alive for the call.
    unsafe {
        ptr::copy_nonoverlapping(call.values, stack.as_mut_ptr().add(3), count);
        let result = ffi::PyObject_Vectorcall(
            imports::task_type(py)?.as_ptr(),
            stack.as_ptr().add(1),
            1 | ffi::PY_VECTORCALL_ARGUMENTS_OFFSET,
            names.as_ptr(),
        );
        if result.is_null() { Err(PyErr::fetch(py)) } else { Ok(result) }
    }
}

/// The keyword names with "loop" before them.
fn with_loop<'py>(
    py: Python<'py>,
    names: Option<&Bound<'py, PyTuple>>,
) -> PyResult<Bound<'py, PyTuple>> {
    static ONLY_LOOP: PyOnceLock<Py<PyTuple>> = PyOnceLock::new();
    let Some(names) = names else {
        return ONLY_LOOP
            .get_or_try_init(py, || Ok(PyTuple::new(py, ["loop"])?.unbind()))
            .map(|names| names.bind(py).clone());
    };
    let first = pyo3::intern!(py, "loop").clone().into_any();
    PyTuple::new(py, std::iter::once(first).chain(names.iter()).collect::<Vec<_>>())
}
