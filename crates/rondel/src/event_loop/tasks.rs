//! Making tasks: CPython's own `asyncio.Task`, with every keyword of the running Python.

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::Loop;

/// `loop.create_task(coro, **kwargs)` with a task factory.
///
/// Up to 3.13 it is called as `factory(loop, coro)` with `context` only when it was given, and the
/// name is set afterwards; from 3.14 on it gets all keywords. (Without a factory, creating a task is
/// [`crate::ffi::tasks`].)
pub fn from_factory<'py>(
    factory: &Bound<'py, PyAny>,
    event_loop: &Bound<'py, Loop>,
    coro: &Bound<'py, PyAny>,
    kwargs: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = event_loop.py();
    if py.version_info() >= (3, 14) {
        return factory.call((event_loop, coro), kwargs);
    }
    let options = match kwargs {
        Some(kwargs) => kwargs.copy()?,
        None => PyDict::new(py),
    };
    let name = options.get_item("name")?;
    if name.is_some() {
        options.del_item("name")?;
    }
    if options.get_item("context")?.is_some_and(|context| context.is_none()) {
        options.del_item("context")?;
    }
    let task = factory.call((event_loop, coro), Some(&options))?;
    // A factory may return any future. Up to 3.12 those without set_name() were accepted.
    if let Some(name) = name.filter(|name| !name.is_none())
        && (py.version_info() >= (3, 13) || task.hasattr("set_name")?)
    {
        task.call_method1("set_name", (name,))?;
    }
    Ok(task)
}

/// `loop.set_task_factory(factory)`.
pub fn set_factory(event_loop: &Bound<'_, Loop>, factory: &Bound<'_, PyAny>) -> PyResult<()> {
    let new = if factory.is_none() {
        None
    } else if factory.is_callable() {
        Some(factory.clone().unbind())
    } else {
        return Err(PyTypeError::new_err("task factory must be a callable or None"));
    };
    // The old factory is dropped after the borrow has ended.
    drop(event_loop.get().state(event_loop.py()).task_factory.replace(new));
    Ok(())
}
