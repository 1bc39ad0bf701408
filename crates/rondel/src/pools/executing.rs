//! `loop.run_in_executor()`: calls in pools of ours stay native, all others are Python's.
//!
//! A pool is asked directly only while it is just as it was made: a subclass, or a program that has put
//! something else in the place of `submit`, is asked through that.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

#[cfg(target_os = "linux")]
use super::processes;
use super::thread_call::Work;
use super::threads::{self, ThreadPool};
use crate::event_loop::Loop;
use crate::imports;

/// `loop.run_in_executor(executor, function, *args)`.
pub fn run_in_executor<'py>(
    event_loop: &Bound<'py, Loop>,
    executor: &Bound<'py, PyAny>,
    function: &Bound<'py, PyAny>,
    args: Bound<'py, PyTuple>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = event_loop.py();
    let state = event_loop.get().state(py);
    state.check_closed()?;
    if !state.debug.get() {
        if let Some(pool) = thread_pool(event_loop, executor)? {
            let function = function.clone().unbind();
            let work = Work { function, args: args.unbind(), kwargs: None, context: None };
            return threads::run_for(&pool, event_loop, work);
        }
        #[cfg(target_os = "linux")]
        if let Some(attributes) = process_pool(executor)? {
            return processes::run_of(executor, &attributes, event_loop, function, &args);
        }
    }
    event_loop.call_method1(intern!(py, "_run_in_executor"), (executor, function, args))
}

/// The executor, if it is a thread pool of ours. None stands for the loop's own.
fn thread_pool<'py>(
    event_loop: &Bound<'py, Loop>,
    executor: &Bound<'py, PyAny>,
) -> PyResult<Option<Bound<'py, ThreadPool>>> {
    let py = event_loop.py();
    let executor = if executor.is_none() {
        if event_loop.getattr(intern!(py, "_executor_shutdown_called"))?.is_truthy()? {
            return Ok(None);
        }
        event_loop.getattr(intern!(py, "_default_executor"))?
    } else {
        executor.clone()
    };
    if !executor.get_type().is(imports::thread_pool(py)?) {
        return Ok(None);
    }
    Ok(untouched(&executor)?.map(|_| executor.cast_into()).transpose()?)
}

/// The attributes of the executor, if it is a process pool of ours.
#[cfg(target_os = "linux")]
fn process_pool<'py>(executor: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyDict>>> {
    let py = executor.py();
    let Some((class, submit)) = processes::front(py) else { return Ok(None) };
    let kind = executor.get_type();
    if !kind.is(class) || !kind.getattr(intern!(py, "submit"))?.is(submit) {
        return Ok(None);
    }
    untouched(executor)
}

/// The executor's attributes, unless they have a `submit` of their own.
fn untouched<'py>(executor: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyDict>>> {
    let py = executor.py();
    let attributes = executor.getattr(intern!(py, "__dict__"))?.cast_into::<PyDict>()?;
    let is_replaced = attributes.contains(intern!(py, "submit"))?;
    Ok((!is_replaced).then_some(attributes))
}
