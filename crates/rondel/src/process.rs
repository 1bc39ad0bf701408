//! Child processes: noticing that one has ended, and passing on what its pipes bring.
//!
//! Starting a process and the process transport itself are Python (`rondel.subprocesses`), since
//! they run once per child. This is what the loop calls.

use std::cell::{Cell, RefCell};

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use pyo3::{IntoPyObjectExt, PyTraverseError, PyVisit};
use rondel_reactor::child::Child;
use rondel_reactor::poller::Readiness;
use rondel_reactor::slab::Key;

use crate::errors::os_error;
use crate::event_loop::Loop;
use crate::ffi::confined::Confined;
use crate::ffi::handle::HandleRef;

/// Waits in the loop, without a thread, for a child process to end; then takes its status and calls
/// `callback(returncode)`, once. The return code is None when somebody else took the status.
#[pyclass(frozen, weakref, module = "rondel._rondel", name = "ChildWatch")]
pub struct ChildWatch {
    event_loop: Py<Loop>,
    callback: Py<PyAny>,
    watch: Confined<RefCell<Option<(Child, Key)>>>,
}

#[pymethods]
impl ChildWatch {
    /// Begin to wait. Raises OSError where the system has no descriptors for processes.
    #[new]
    fn new(event_loop: Py<Loop>, callback: Py<PyAny>) -> Self {
        ChildWatch { event_loop, callback, watch: Confined::new(RefCell::new(None)) }
    }

    /// Begin to wait. Raises OSError where the system has no descriptors for processes, or when
    /// somebody has waited for the child already.
    fn start(slf: &Bound<'_, Self>, pid: i32) -> PyResult<()> {
        let py = slf.py();
        let this = slf.get();
        let child = Child::open(pid).map_err(|error| os_error(py, &error))?;
        let state = this.event_loop.get().state(py);
        let key = state.add_listener(child.fd(), slf.clone().into_any().unbind(), on_event)?;
        this.watch.get(py).replace(Some((child, key)));
        Ok(())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.event_loop)?;
        visit.call(&self.callback)
    }
}

/// The process has ended.
fn on_event(target: &Bound<'_, PyAny>, _readiness: Readiness) -> PyResult<()> {
    let this = target.cast::<ChildWatch>()?;
    let py = this.py();
    let cell = this.get().watch.get(py);
    let Some((child, key)) = cell.take() else { return Ok(()) };
    let status = match child.wait() {
        Ok(Some(status)) => Some(status),
        // A tracer has not let go of it yet: the descriptor stays readable, so this comes again.
        Ok(None) => {
            cell.replace(Some((child, key)));
            return Ok(());
        }
        Err(_) => None,
    };
    this.get().event_loop.get().state(py).remove_native(child.fd(), key);
    drop(child);
    this.get().callback.call1(py, (status,)).map(drop)
}

/// The protocol of one of a child's pipes: tells the process transport, and passes data on to its
/// protocol's `pipe_data_received()`.
#[pyclass(frozen, weakref, module = "rondel._rondel", name = "SubprocessPipe")]
pub struct SubprocessPipe {
    event_loop: Py<Loop>,
    fd: i32,
    link: Confined<Link>,
}

struct Link {
    /// The process transport, until the pipe is disconnected.
    process: RefCell<Option<Py<PyAny>>>,
    disconnected: Cell<bool>,
}

impl SubprocessPipe {
    fn process<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.link.get(py).process.borrow().as_ref().map(|process| process.bind(py).clone())
    }

    /// The protocol of the process, until its connection is lost.
    fn protocol<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let Some(process) = self.process(py) else { return Ok(None) };
        let protocol = process.getattr(intern!(py, "_protocol"))?;
        Ok((!protocol.is_none()).then_some(protocol))
    }

    fn tell(&self, py: Python<'_>, method: &str) -> PyResult<()> {
        match self.protocol(py)? {
            Some(protocol) => protocol.call_method0(method).map(drop),
            None => Ok(()),
        }
    }
}

#[pymethods]
impl SubprocessPipe {
    #[new]
    fn new(event_loop: Py<Loop>, process: Py<PyAny>, fd: i32) -> Self {
        let link = Link { process: RefCell::new(Some(process)), disconnected: Cell::new(false) };
        SubprocessPipe { event_loop, fd, link: Confined::new(link) }
    }

    /// The child's number of the pipe: 0, 1 or 2.
    #[getter]
    fn fd(&self) -> i32 {
        self.fd
    }

    /// Whether the pipe's connection is lost.
    #[getter]
    fn disconnected(slf: &Bound<'_, Self>) -> bool {
        slf.get().link.get(slf.py()).disconnected.get()
    }

    /// The process transport knows its pipes already.
    #[expect(clippy::unused_self)]
    fn connection_made(&self, _transport: &Bound<'_, PyAny>) {}

    /// Pass data on, as a callback of its own.
    fn data_received(slf: &Bound<'_, Self>, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = slf.py();
        let this = slf.get();
        let (Some(process), Some(protocol)) = (this.process(py), this.protocol(py)?) else {
            return Ok(());
        };
        let callback = protocol.getattr(intern!(py, "pipe_data_received"))?;
        let args = PyTuple::new(py, [this.fd.into_bound_py_any(py)?, data.clone()])?;
        if !process.getattr(intern!(py, "_pending"))?.is_none() {
            // The protocol's connection_made() comes first.
            return process.call_method1(intern!(py, "_call"), (callback, this.fd, data)).map(drop);
        }
        let event_loop = this.event_loop.bind(py);
        let handle = HandleRef::from_parts(event_loop, &callback, &args, None)?;
        event_loop.get().state(py).push_ready(handle);
        Ok(())
    }

    /// connection_lost() follows and says it all.
    #[expect(clippy::unused_self)]
    fn eof_received(&self) {}

    fn connection_lost(slf: &Bound<'_, Self>, exc: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = slf.py();
        let link = slf.get().link.get(py);
        link.disconnected.set(true);
        let Some(process) = link.process.take() else { return Ok(()) };
        let args = (slf.get().fd, exc);
        process.call_method1(py, intern!(py, "_pipe_connection_lost"), args).map(drop)
    }

    fn pause_writing(slf: &Bound<'_, Self>) -> PyResult<()> {
        slf.get().tell(slf.py(), "pause_writing")
    }

    fn resume_writing(slf: &Bound<'_, Self>) -> PyResult<()> {
        slf.get().tell(slf.py(), "resume_writing")
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.event_loop)?;
        let Some(link) = self.link.in_traverse(&visit) else { return Ok(()) };
        match link.process.try_borrow() {
            Ok(process) => visit.call(&*process),
            Err(_) => Ok(()),
        }
    }

    fn __clear__(slf: &Bound<'_, Self>) {
        drop(slf.get().link.get(slf.py()).process.take());
    }
}
