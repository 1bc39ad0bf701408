//! Pipes, and what can be used like one: FIFOs, sockets, character devices.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`read`] | the transport of a reading end |
//! | [`write`] | the transport of a writing end |
//!
//! Here is what both are: an [`End`], which knows the pipe and ends once.
//!
//! ```text
//!         connection_made       close() / eof / error            connection_lost step
//! created ──────────────▶ open ──────────────────────▶ closing ──────────────────────▶ closed
//! ```
//!
//! Sources are level-triggered and belong to the descriptor, not to the transport: a terminal's
//! descriptor may have one transport for reading and another for writing.

pub mod read;
pub mod write;

use std::cell::{Cell, RefCell};
use std::os::fd::RawFd;

use pyo3::exceptions::{PyResourceWarning, PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyContext, PyDict, PyTuple};
use pyo3::{PyTraverseError, PyVisit};
use rondel_reactor::pipe::{self, Kind};

use crate::errors::os_error;
use crate::event_loop::watching::{self, Side};
use crate::event_loop::{Loop, OnEvent, Step, Watcher, turn};
use crate::ffi::confined::Confined;
use crate::ffi::context;
use crate::ffi::handle::HandleRef;
use crate::imports;

/// What the transports of both ends have in common.
#[pyclass(subclass, frozen, dict, weakref, module = "rondel._rondel", name = "PipeTransport")]
pub struct PipeTransport {
    end: Confined<End>,
}

/// One end of a pipe. Fields are cells, and no borrow outlives a statement that calls Python.
pub struct End {
    name: &'static str,
    /// Gone after connection_lost().
    event_loop: RefCell<Option<Py<Loop>>>,
    protocol: RefCell<Option<Py<PyAny>>>,
    /// In which the protocol's methods are called.
    context: Py<PyContext>,
    /// The program's object, through which the pipe is closed.
    pipe: Py<PyAny>,
    extra: Py<PyDict>,
    waiter: RefCell<Option<Py<PyAny>>>,
    pub fd: RawFd,
    pub kind: Kind,
    /// Nothing more is read, or written beyond what is queued.
    pub closing: Cell<bool>,
    /// connection_lost() is scheduled or done.
    pub lost: Cell<bool>,
    lost_reason: RefCell<Option<PyErr>>,
    closed: Cell<bool>,
}

impl End {
    /// # Errors
    /// `ValueError` with the text when the object is nothing that can be polled; it stays the
    /// caller's then, as it was.
    fn new(
        event_loop: &Bound<'_, Loop>,
        object: &Bound<'_, PyAny>,
        protocol: &Bound<'_, PyAny>,
        waiter: Option<Py<PyAny>>,
        extra: Option<Bound<'_, PyDict>>,
        (name, refusal): (&'static str, &'static str),
    ) -> PyResult<Self> {
        let py = event_loop.py();
        event_loop.get().state(py).check_closed()?;
        let fd: RawFd = object.call_method0(intern!(py, "fileno"))?.extract()?;
        let kind = pipe::kind(fd).map_err(|error| os_error(py, &error))?;
        if kind == Kind::Other {
            return Err(PyValueError::new_err(refusal));
        }
        pipe::set_nonblocking(fd).map_err(|error| os_error(py, &error))?;
        let extra = extra.unwrap_or_else(|| PyDict::new(py));
        extra.set_item(intern!(py, "pipe"), object)?;
        Ok(End {
            name,
            event_loop: RefCell::new(Some(event_loop.clone().unbind())),
            protocol: RefCell::new(Some(protocol.clone().unbind())),
            context: context::copy_current(py)?.unbind(),
            pipe: object.clone().unbind(),
            extra: extra.unbind(),
            waiter: RefCell::new(waiter),
            fd,
            kind,
            closing: Cell::new(false),
            lost: Cell::new(false),
            lost_reason: RefCell::new(None),
            closed: Cell::new(false),
        })
    }

    /// The loop, until the connection is lost.
    pub fn event_loop<'py>(&self, py: Python<'py>) -> Option<Bound<'py, Loop>> {
        self.event_loop.borrow().as_ref().map(|event_loop| event_loop.bind(py).clone())
    }

    /// The protocol, until the connection is lost.
    pub fn protocol<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.protocol.borrow().as_ref().map(|protocol| protocol.bind(py).clone())
    }

    /// Calls a protocol method in the transport's context.
    pub fn call_protocol<'py>(
        &self,
        py: Python<'py>,
        method: &Bound<'py, pyo3::types::PyString>,
        args: impl pyo3::call::PyCallArgs<'py>,
    ) -> PyResult<()> {
        let Some(protocol) = self.protocol(py) else { return Ok(()) };
        context::run_in(self.context.bind(py), || protocol.call_method1(method, args)).map(drop)
    }

    /// Whether the loop is in debug mode.
    pub fn in_debug(&self, py: Python<'_>) -> bool {
        self.event_loop(py).is_some_and(|event_loop| event_loop.get().state(py).debug.get())
    }

    /// Writes a line about the transport to asyncio's log, in debug mode.
    pub fn log_in_debug(
        &self,
        this: &Bound<'_, PyAny>,
        level: &str,
        format: &'static str,
    ) -> PyResult<()> {
        if self.in_debug(this.py()) {
            imports::logger(this.py())?.call_method1(level, (format, this))?;
        }
        Ok(())
    }

    /// Watches the descriptor until [`End::forget`].
    ///
    /// # Errors
    /// `OSError` when it cannot be polled, like `/dev/null`.
    pub fn watch(&self, this: &Bound<'_, PyAny>, side: Side, on_event: OnEvent) -> PyResult<()> {
        let py = this.py();
        let Some(event_loop) = self.event_loop(py) else { return Ok(()) };
        let watcher = Watcher::Native(this.clone().unbind(), on_event);
        watching::watch(py, event_loop.get().state(py), self.fd, side, watcher)
    }

    /// Stops watching.
    pub fn forget(&self, this: &Bound<'_, PyAny>, side: Side) {
        let py = this.py();
        if let Some(event_loop) = self.event_loop(py) {
            watching::forget_native(event_loop.get().state(py), self.fd, side, this);
        }
    }

    /// Queues a step on the transport.
    ///
    /// # Errors
    /// `RuntimeError` when the loop is closed.
    pub fn push_step(&self, this: &Bound<'_, PyAny>, step: Step) -> PyResult<()> {
        let py = this.py();
        let Some(event_loop) = self.event_loop(py) else { return Ok(()) };
        let state = event_loop.get().state(py);
        state.check_closed()?;
        state.push_step(this.clone().unbind(), step);
        Ok(())
    }

    /// Schedules connection_made(), then `started`, which ends with [`End::tell_waiter`].
    fn start(&self, this: &Bound<'_, PyAny>, started: Step) -> PyResult<()> {
        let py = this.py();
        let (Some(event_loop), Some(protocol)) = (self.event_loop(py), self.protocol(py)) else {
            return Ok(());
        };
        let callback = protocol.getattr(intern!(py, "connection_made"))?;
        let args = PyTuple::new(py, [this])?;
        let context = Some(self.context.bind(py));
        let state = event_loop.get().state(py);
        state.push_ready(HandleRef::from_parts(&event_loop, &callback, &args, context)?);
        state.push_step(this.clone().unbind(), started);
        Ok(())
    }

    /// Tells who waits for the transport that it works.
    fn tell_waiter(&self, py: Python<'_>) -> PyResult<()> {
        match self.waiter.take() {
            Some(waiter) => turn::set_none_unless_done(waiter.bind(py)),
            None => Ok(()),
        }
    }

    /// Schedules connection_lost(), once.
    ///
    /// # Errors
    /// `RuntimeError` when the loop is closed.
    pub fn lose(&self, this: &Bound<'_, PyAny>, error: Option<PyErr>) -> PyResult<()> {
        self.closing.set(true);
        if self.lost.get() {
            return Ok(());
        }
        self.forget(this, Side::Read);
        self.forget(this, Side::Write);
        self.push_step(this, connection_lost)?;
        self.lost.set(true);
        drop(self.lost_reason.replace(error));
        Ok(())
    }

    fn describe(&self) -> String {
        let mut text = format!("<{}", self.name);
        if self.closed.get() {
            text.push_str(" closed");
        } else if self.closing.get() {
            text.push_str(" closing");
        }
        text.push_str(&format!(" fd={}", self.fd));
        text
    }

    /// What `repr()` shows of a direction: nobody polls for a loop that is closed.
    fn activity(&self, py: Python<'_>, polling: bool) -> &'static str {
        match self.event_loop(py) {
            Some(event_loop) if event_loop.get().state(py).closed.get() => " open",
            Some(_) if polling => " polling",
            Some(_) => " idle",
            None => "",
        }
    }
}

/// Logs an error of the pipe itself, which is the protocol's to know through connection_lost().
fn log_error_in_debug(
    this: &Bound<'_, PyAny>,
    end: &End,
    message: &str,
    error: &PyErr,
) -> PyResult<()> {
    let py = this.py();
    if end.in_debug(py) {
        let info = PyDict::new(py);
        info.set_item("exc_info", crate::errors::exception(py, error))?;
        imports::logger(py)?.call_method("debug", ("%r: %s", this, message), Some(&info))?;
    }
    Ok(())
}

/// Step: the protocol learns of the end, and the pipe is closed.
fn connection_lost(target: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = target.py();
    let end = target.cast::<PipeTransport>()?.get().end(py);
    let reason = end.lost_reason.take().map(|error| error.into_value(py));
    let told = end.call_protocol(py, intern!(py, "connection_lost"), (reason,));
    end.closed.set(true);
    let closed = end.pipe.call_method0(py, intern!(py, "close")).map(drop);
    drop(end.protocol.take());
    drop(end.event_loop.take());
    told.and(closed)
}

impl PipeTransport {
    /// The state.
    pub fn end<'a>(&'a self, py: Python<'a>) -> &'a End {
        self.end.get(py)
    }
}

#[pymethods]
impl PipeTransport {
    /// What is known of the transport: "pipe".
    #[pyo3(signature = (name, default=None))]
    fn get_extra_info<'py>(
        slf: &Bound<'py, Self>,
        name: &Bound<'py, PyAny>,
        default: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let py = slf.py();
        Ok(slf.get().end(py).extra.bind(py).get_item(name)?.or(default))
    }

    /// Set the protocol that is called from now on.
    fn set_protocol(slf: &Bound<'_, Self>, protocol: Py<PyAny>) {
        drop(slf.get().end(slf.py()).protocol.replace(Some(protocol)));
    }

    /// The current protocol.
    fn get_protocol<'py>(slf: &Bound<'py, Self>) -> Option<Bound<'py, PyAny>> {
        slf.get().end(slf.py()).protocol(slf.py())
    }

    /// Whether the transport is closed or about to be.
    fn is_closing(slf: &Bound<'_, Self>) -> bool {
        slf.get().end(slf.py()).closing.get()
    }

    #[getter]
    fn _loop<'py>(slf: &Bound<'py, Self>) -> Option<Bound<'py, Loop>> {
        slf.get().end(slf.py()).event_loop(slf.py())
    }

    /// The pipe; None once it is closed (private name of asyncio's).
    #[getter]
    fn _pipe<'py>(slf: &Bound<'py, Self>) -> Option<Bound<'py, PyAny>> {
        let py = slf.py();
        let end = slf.get().end(py);
        (!end.closed.get()).then(|| end.pipe.bind(py).clone())
    }

    /// None says that the program has closed the pipe itself.
    #[setter(_pipe)]
    fn set_pipe(slf: &Bound<'_, Self>, pipe: &Bound<'_, PyAny>) -> PyResult<()> {
        if !pipe.is_none() {
            return Err(PyTypeError::new_err("_pipe can only be set to None"));
        }
        slf.get().end(slf.py()).closed.set(true);
        Ok(())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let Some(end) = self.end.in_traverse(&visit) else { return Ok(()) };
        visit.call(&end.context)?;
        visit.call(&end.pipe)?;
        visit.call(&end.extra)?;
        if let Ok(event_loop) = end.event_loop.try_borrow() {
            visit.call(&*event_loop)?;
        }
        for field in [&end.protocol, &end.waiter] {
            if let Ok(field) = field.try_borrow() {
                visit.call(&*field)?;
            }
        }
        Ok(())
    }

    fn __clear__(slf: &Bound<'_, Self>) {
        let end = slf.get().end(slf.py());
        drop(end.protocol.take());
        drop(end.waiter.take());
        drop(end.event_loop.take());
    }
}

impl Drop for PipeTransport {
    fn drop(&mut self) {
        let end = self.end.get_mut();
        if end.closed.get() {
            return;
        }
        // The loop watches nothing for a transport that is dropped: it would have kept it alive.
        let message = format!("unclosed transport {}>\0", end.describe());
        Python::attach(|py| {
            // Deallocation may happen with an exception set, which must survive.
            let pending = PyErr::take(py);
            if let Ok(message) = std::ffi::CStr::from_bytes_with_nul(message.as_bytes()) {
                let category = py.get_type::<PyResourceWarning>();
                if let Err(error) = PyErr::warn(py, &category, message, 1) {
                    error.write_unraisable(py, None);
                }
            }
            if let Err(error) = end.pipe.call_method0(py, intern!(py, "close")) {
                error.write_unraisable(py, None);
            }
            if let Some(pending) = pending {
                pending.restore(py);
            }
        });
    }
}
