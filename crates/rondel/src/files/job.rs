//! A trip to a thread: a Rust closure that an executor calls.

use std::cell::RefCell;

use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::file::{self, File};
use crate::coroutine::{Coroutine, Waiting};
use crate::ffi::confined::Confined;
use crate::imports;

type Work = Box<dyn FnOnce(Python<'_>) -> PyResult<Py<PyAny>>>;

/// What the executor calls, once. What the closure holds goes with it, on whichever thread ends it.
#[pyclass(frozen, module = "rondel._rondel")]
struct FileJob {
    work: Confined<RefCell<Option<Work>>>,
}

#[pymethods]
impl FileJob {
    fn __call__(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let work = self.work.get(py).take();
        match work {
            Some(work) => work(py),
            None => Err(PyRuntimeError::new_err("a job runs once")),
        }
    }
}

/// The loop that runs on this thread.
///
/// # Errors
/// `RuntimeError` when there is none.
pub fn running_loop(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    let event_loop = imports::get_running_loop(py)?.call0()?;
    if event_loop.is_none() {
        return Err(PyRuntimeError::new_err("no running event loop"));
    }
    Ok(event_loop)
}

/// Hands work to a thread: the one place that decides where files wait. Returns a future of the
/// running loop; `executor` is None for the loop's own.
pub fn submit(
    py: Python<'_>,
    executor: Option<&Py<PyAny>>,
    work: impl FnOnce(Python<'_>) -> PyResult<Py<PyAny>> + 'static,
) -> PyResult<Py<PyAny>> {
    let job = FileJob { work: Confined::new(RefCell::new(Some(Box::new(work)))) };
    let job = Bound::new(py, job)?;
    let name = intern!(py, "run_in_executor");
    Ok(running_loop(py)?.call_method1(name, (executor, job))?.unbind())
}

/// Does work in a thread and waits for it. When the waiting is cancelled, work that has begun ends
/// nevertheless.
pub async fn in_thread(
    waiting: &Waiting,
    executor: Option<Py<PyAny>>,
    work: impl FnOnce(Python<'_>) -> PyResult<Py<PyAny>> + 'static,
) -> PyResult<Py<PyAny>> {
    let future = Python::attach(|py| submit(py, executor.as_ref(), work))?;
    waiting.wait(future).await
}

/// Something opened, on its way from a thread to who asked for it. If nobody takes it, because the
/// waiting was cancelled, it is closed.
#[pyclass(frozen, module = "rondel._rondel")]
struct Opened {
    object: Confined<RefCell<Option<Py<PyAny>>>>,
}

impl Drop for Opened {
    fn drop(&mut self) {
        if let Some(object) = self.object.get_mut().take() {
            Python::attach(|py| {
                let closed = match object.bind(py).cast::<File>() {
                    Ok(file) => file::close(py, file.get().state(py)),
                    Err(_) => object.call_method0(py, intern!(py, "close")),
                };
                if let Err(error) = closed {
                    error.write_unraisable(py, None);
                }
            });
        }
    }
}

/// Call ``func(*args, **kwargs)`` in the executor (None: the running loop's own) and return its result.
///
/// With ``closing`` the result is something open: if the waiting is cancelled, it is closed.
#[pyfunction]
#[pyo3(signature = (executor, closing, func, /, *args, **kwargs))]
pub fn call_in_thread(
    executor: Option<Py<PyAny>>,
    closing: bool,
    func: Py<PyAny>,
    args: Py<PyTuple>,
    kwargs: Option<Py<PyDict>>,
) -> Coroutine {
    Coroutine::new("call_in_thread", move |waiting| async move {
        let work = move |py: Python<'_>| {
            let result =
                func.call(py, args.bind(py), kwargs.as_ref().map(|kwargs| kwargs.bind(py)))?;
            if !closing {
                return Ok(result);
            }
            let opened = Opened { object: Confined::new(RefCell::new(Some(result))) };
            Ok(Bound::new(py, opened)?.into_any().unbind())
        };
        let result = in_thread(&waiting, executor, work).await?;
        Python::attach(|py| {
            let taken = result
                .bind(py)
                .cast::<Opened>()
                .ok()
                .map(|opened| opened.get().object.get(py).take());
            Ok(taken.flatten().unwrap_or(result))
        })
    })
}
