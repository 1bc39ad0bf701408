//! The transport of a pipe's reading end.

use std::cell::Cell;

use pyo3::exceptions::PyOSError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use rondel_reactor::poller::Readiness;
use rondel_reactor::{net, pipe};

use super::{End, PipeTransport};
use crate::errors::os_error;
use crate::event_loop::Loop;
use crate::event_loop::watching::Side;
use crate::ffi::confined::Confined;
use crate::ffi::context;
use crate::imports;
use crate::streams::delivery;
use crate::transport::read_size::ReadSize;
use crate::transport::reading::{MAX_READ, READS_PER_TURN, receive_by};

const REFUSAL: &str = "Pipe transport is for pipes/sockets only.";

/// Reads from a pipe, FIFO, socket or character device.
#[pyclass(extends = PipeTransport, frozen, module = "rondel._rondel", name = "ReadPipeTransport")]
pub struct ReadPipeTransport {
    reading: Confined<Reading>,
}

struct Reading {
    paused: Cell<bool>,
    read_size: ReadSize,
}

impl ReadPipeTransport {
    /// Makes a transport of the reading end, which then belongs to it.
    ///
    /// # Errors
    /// `ValueError` for files and what else cannot be polled.
    pub fn adopt<'py>(
        event_loop: &Bound<'py, Loop>,
        object: &Bound<'py, PyAny>,
        protocol: &Bound<'py, PyAny>,
        waiter: Option<Py<PyAny>>,
        extra: Option<Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, Self>> {
        let kind = ("ReadPipeTransport", REFUSAL);
        let end = End::new(event_loop, object, protocol, waiter, extra, kind)?;
        let reading = Reading { paused: Cell::new(false), read_size: ReadSize::default() };
        let base = PyClassInitializer::from(PipeTransport { end: Confined::new(end) });
        let this = ReadPipeTransport { reading: Confined::new(reading) };
        let this = Bound::new(event_loop.py(), base.add_subclass(this))?;
        end_of(&this).start(&this, started)?;
        Ok(this)
    }
}

fn end_of<'a>(this: &'a Bound<'_, ReadPipeTransport>) -> &'a End {
    this.as_super().get().end(this.py())
}

fn is_reading(this: &Bound<'_, ReadPipeTransport>) -> bool {
    !end_of(this).closing.get() && !this.get().reading.get(this.py()).paused.get()
}

/// Step: only after connection_made() does the transport read, and only then is the waiter told.
fn started(target: &Bound<'_, PyAny>) -> PyResult<()> {
    let this = target.cast::<ReadPipeTransport>()?;
    let watched =
        if is_reading(this) { end_of(this).watch(this, Side::Read, on_event) } else { Ok(()) };
    let told = end_of(this).tell_waiter(this.py());
    watched.and(told)
}

/// There is something to read, or the end.
fn on_event(target: &Bound<'_, PyAny>, readiness: Readiness) -> PyResult<()> {
    let this = target.cast::<ReadPipeTransport>()?;
    let py = this.py();
    let end = end_of(this);
    let reading = this.get().reading.get(py);
    reading.read_size.begin_turn();
    for _ in 0..READS_PER_TURN {
        let Some(event_loop) = end.event_loop(py) else { return Ok(()) };
        if !is_reading(this) {
            return Ok(());
        }
        let calls = (pipe::read, pipe::read_uninit);
        let state = event_loop.get().state(py);
        let (data, capacity) = match receive_by(py, state, end.fd, reading.read_size.get(), calls)?
        {
            Ok(received) => received,
            Err(error) if net::is_retry(&error) => return Ok(()),
            Err(error) => return fatal_error(this, end, os_error(py, &error)),
        };
        let received = data.len()?;
        if received == 0 {
            return end_of_file(this, end);
        }
        reading.read_size.learn(received, capacity);
        // As with asyncio, what data_received() raises is reported and reading goes on.
        if let Some(protocol) = end.protocol(py) {
            context::run_in(end.context.bind(py), || delivery::data_received(&protocol, data))?;
        }
        if (received < capacity && !readiness.read_closed) || received >= MAX_READ {
            return Ok(());
        }
    }
    Ok(()) // The source is level-triggered: the rest comes with the next turn.
}

fn end_of_file(this: &Bound<'_, ReadPipeTransport>, end: &End) -> PyResult<()> {
    end.log_in_debug(this, "info", "%r was closed by peer")?;
    end.closing.set(true);
    end.push_step(this, tell_end)?;
    end.lose(this, None)
}

/// Step: the protocol learns that nothing more comes; connection_lost() is the next step.
fn tell_end(target: &Bound<'_, PyAny>) -> PyResult<()> {
    let this = target.cast::<ReadPipeTransport>()?;
    end_of(this).call_protocol(this.py(), intern!(this.py(), "eof_received"), ())
}

fn fatal_error(this: &Bound<'_, ReadPipeTransport>, end: &End, error: PyErr) -> PyResult<()> {
    const MESSAGE: &str = "Fatal read error on pipe transport";
    let py = this.py();
    // A terminal whose other side is gone gives EIO, which is its way to end.
    let number = error.value(py).getattr(intern!(py, "errno"))?;
    if error.is_instance_of::<PyOSError>(py) && number.eq(libc::EIO)? {
        super::log_error_in_debug(this, end, MESSAGE, &error)?;
    } else if let Some(event_loop) = end.event_loop(py) {
        crate::transport::report(&event_loop, MESSAGE, &error, this, end.protocol(py))?;
    }
    end.lose(this, Some(error))
}

#[pymethods]
impl ReadPipeTransport {
    /// asyncio.ReadTransport has instance fields of its own, so a native class cannot derive from
    /// it; isinstance() believes `__class__`.
    #[getter]
    fn __class__(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        Ok(imports::read_transport_type(slf.py())?.clone().unbind())
    }

    /// Stop reading; connection_lost() follows.
    fn close(slf: &Bound<'_, Self>) -> PyResult<()> {
        let end = end_of(slf);
        if end.closing.get() { Ok(()) } else { end.lose(slf, None) }
    }

    /// Whether the protocol gets data.
    fn is_reading(slf: &Bound<'_, Self>) -> bool {
        is_reading(slf)
    }

    /// Stop calling data_received() until resume_reading().
    fn pause_reading(slf: &Bound<'_, Self>) -> PyResult<()> {
        if !is_reading(slf) {
            return Ok(());
        }
        slf.get().reading.get(slf.py()).paused.set(true);
        let end = end_of(slf);
        end.forget(slf, Side::Read);
        end.log_in_debug(slf, "debug", "%r pauses reading")
    }

    /// Call data_received() again.
    fn resume_reading(slf: &Bound<'_, Self>) -> PyResult<()> {
        let end = end_of(slf);
        if end.closing.get() || !slf.get().reading.get(slf.py()).paused.replace(false) {
            return Ok(());
        }
        end.watch(slf, Side::Read, on_event)?;
        end.log_in_debug(slf, "debug", "%r resumes reading")
    }

    fn __repr__(slf: &Bound<'_, Self>) -> String {
        let end = end_of(slf);
        let state = end.activity(slf.py(), is_reading(slf));
        format!("{}{state}>", end.describe())
    }
}
