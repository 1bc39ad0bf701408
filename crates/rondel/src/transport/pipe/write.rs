//! The transport of a pipe's writing end, with flow control.
//!
//! Each write is one system call while nothing is queued (a pipe keeps small writes whole, and a
//! terminal may look at each); what the pipe does not take is queued and written when there is room.
//! That the last reader went away is noticed at once, by watching the end for reading too.

use std::cell::{Cell, RefCell};

use pyo3::exceptions::{PyAssertionError, PyBrokenPipeError, PyOSError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyByteArray, PyBytes, PyDict, PyMemoryView};
use rondel_reactor::pipe::Kind;
use rondel_reactor::poller::Readiness;
use rondel_reactor::write_queue::WriteQueue;
use rondel_reactor::{net, pipe};

use super::{End, PipeTransport};
use crate::errors::os_error;
use crate::event_loop::Loop;
use crate::event_loop::watching::Side;
use crate::ffi::buffer::View;
use crate::ffi::confined::Confined;
use crate::imports;
use crate::transport::flow::{self, Flow};
use crate::transport::socket::Chunk;
use crate::transport::writing::LOST_WRITES_BEFORE_WARNING;

const REFUSAL: &str = "Pipe transport is only for pipes, sockets and character devices";

/// Writes to a pipe, FIFO, socket or character device.
#[pyclass(extends = PipeTransport, frozen, module = "rondel._rondel", name = "WritePipeTransport")]
pub struct WritePipeTransport {
    writing: Confined<Writing>,
}

struct Writing {
    queue: RefCell<WriteQueue<Chunk>>,
    flow: Flow,
    /// Writes that were lost, for there was nobody to read them any more.
    lost_writes: Cell<u32>,
}

impl WritePipeTransport {
    /// Makes a transport of the writing end, which then belongs to it.
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
        let kind = ("WritePipeTransport", REFUSAL);
        let end = End::new(event_loop, object, protocol, waiter, extra, kind)?;
        let writing =
            Writing { queue: RefCell::default(), flow: Flow::default(), lost_writes: Cell::new(0) };
        let base = PyClassInitializer::from(PipeTransport { end: Confined::new(end) });
        let this = WritePipeTransport { writing: Confined::new(writing) };
        let this = Bound::new(event_loop.py(), base.add_subclass(this))?;
        end_of(&this).start(&this, started)?;
        Ok(this)
    }
}

fn end_of<'a>(this: &'a Bound<'_, WritePipeTransport>) -> &'a End {
    this.as_super().get().end(this.py())
}

impl Writing {
    fn is_empty(&self) -> bool {
        self.queue.borrow().is_empty()
    }

    fn drop_queue(&self) {
        let dropped = self.queue.borrow_mut().take();
        drop(dropped);
    }
}

/// Step: after connection_made() the reader's going away is watched for, and the waiter told.
fn started(target: &Bound<'_, PyAny>) -> PyResult<()> {
    let this = target.cast::<WritePipeTransport>()?;
    let end = end_of(this);
    // A character device can be open for both directions: something to read is no end there.
    let watched = if end.kind == Kind::Character || end.closing.get() {
        Ok(())
    } else {
        end.watch(this, Side::Read, on_reader_gone)
    };
    watched.and(end.tell_waiter(this.py()))
}

/// The writing end is "readable": nobody reads any more.
fn on_reader_gone(target: &Bound<'_, PyAny>, _readiness: Readiness) -> PyResult<()> {
    let this = target.cast::<WritePipeTransport>()?;
    let end = end_of(this);
    end.log_in_debug(this, "info", "%r was closed by peer")?;
    let unsent = !this.get().writing.get(this.py()).is_empty();
    force_close(this, unsent.then(|| PyBrokenPipeError::new_err(())))
}

/// Ends the connection now: what is queued is lost.
fn force_close(this: &Bound<'_, WritePipeTransport>, error: Option<PyErr>) -> PyResult<()> {
    end_of(this).closing.set(true);
    this.get().writing.get(this.py()).drop_queue();
    end_of(this).lose(this, error)
}

fn fatal_error(this: &Bound<'_, WritePipeTransport>, error: PyErr) -> PyResult<()> {
    const MESSAGE: &str = "Fatal write error on pipe transport";
    let py = this.py();
    let end = end_of(this);
    if error.is_instance_of::<PyOSError>(py) {
        super::log_error_in_debug(this, end, MESSAGE, &error)?;
    } else if let Some(event_loop) = end.event_loop(py) {
        crate::transport::report(&event_loop, MESSAGE, &error, this, end.protocol(py))?;
    }
    force_close(this, Some(error))
}

fn write(this: &Bound<'_, WritePipeTransport>, data: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = this.py();
    let bytes = data.cast::<PyBytes>().ok();
    if bytes.is_none()
        && !data.is_instance_of::<PyByteArray>()
        && !data.is_instance_of::<PyMemoryView>()
    {
        return Err(PyAssertionError::new_err(data.repr()?.unbind()));
    }
    let view = if bytes.is_none() { Some(View::readable(data)?) } else { None };
    let memory = match (bytes, &view) {
        (Some(bytes), _) => bytes.as_bytes(),
        (None, Some(view)) => view.bytes(),
        (None, None) => &[],
    };
    if memory.is_empty() {
        return Ok(());
    }
    let end = end_of(this);
    let writing = this.get().writing.get(py);
    if end.closing.get() {
        return warn_lost(py, writing);
    }
    let mut sent = 0;
    if writing.is_empty() {
        match pipe::write(end.fd, memory) {
            Ok(count) if count == memory.len() => return Ok(()),
            Ok(count) => sent = count,
            Err(error) if net::is_retry(&error) => {}
            Err(error) => {
                writing.lost_writes.set(writing.lost_writes.get().saturating_add(1));
                return fatal_error(this, os_error(py, &error));
            }
        }
        end.watch(this, Side::Write, on_room)?;
    }
    let (chunk, sent) = match bytes {
        Some(bytes) => (Chunk::Shared(PyBackedBytes::from(bytes.clone())), sent),
        // The program may change its buffer once write() has returned.
        None => (Chunk::Copied(memory[sent..].to_vec()), 0),
    };
    writing.queue.borrow_mut().push(chunk, sent);
    drop(view);
    pause_protocol_if_needed(this)
}

#[cold]
fn warn_lost(py: Python<'_>, writing: &Writing) -> PyResult<()> {
    let lost = writing.lost_writes.get();
    if lost >= LOST_WRITES_BEFORE_WARNING {
        let text = "pipe closed by peer or os.write(pipe, data) raised exception.";
        imports::logger(py)?.call_method1("warning", (text,))?;
    }
    writing.lost_writes.set(lost.saturating_add(1));
    Ok(())
}

/// There is room in the pipe.
fn on_room(target: &Bound<'_, PyAny>, _readiness: Readiness) -> PyResult<()> {
    let this = target.cast::<WritePipeTransport>()?;
    let py = this.py();
    let end = end_of(this);
    let writing = this.get().writing.get(py);
    let mut done = Vec::new();
    let result = writing
        .queue
        .borrow_mut()
        .flush_by(&mut done, |pieces| pipe::write_vectored(end.fd, pieces));
    drop(done);
    if let Err(error) = result {
        writing.lost_writes.set(writing.lost_writes.get().saturating_add(1));
        return fatal_error(this, os_error(py, &error));
    }
    if !writing.is_empty() {
        return resume_protocol_if_needed(this);
    }
    end.forget(target, Side::Write);
    let resumed = resume_protocol_if_needed(this); // which may write again
    if end.closing.get() && writing.is_empty() {
        end.lose(target, None)?;
    }
    resumed
}

fn pause_protocol_if_needed(this: &Bound<'_, WritePipeTransport>) -> PyResult<()> {
    let writing = this.get().writing.get(this.py());
    let waiting = writing.queue.borrow().len();
    if writing.flow.pauses(waiting) { tell_protocol(this, "pause_writing") } else { Ok(()) }
}

fn resume_protocol_if_needed(this: &Bound<'_, WritePipeTransport>) -> PyResult<()> {
    let writing = this.get().writing.get(this.py());
    let waiting = writing.queue.borrow().len();
    if writing.flow.resumes(waiting) { tell_protocol(this, "resume_writing") } else { Ok(()) }
}

fn tell_protocol(this: &Bound<'_, WritePipeTransport>, method: &'static str) -> PyResult<()> {
    let py = this.py();
    let end = end_of(this);
    flow::tell(end.event_loop(py).as_ref(), end.protocol(py), this, method)
}

#[pymethods]
impl WritePipeTransport {
    /// asyncio's class has instance fields of its own, so a native class cannot derive from it;
    /// isinstance() believes `__class__`. (asyncio's pipe writers are Transports, too.)
    #[getter]
    fn __class__(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        Ok(imports::transport_type(slf.py())?.clone().unbind())
    }

    /// Write data; never blocks, what cannot be written now is queued.
    fn write(slf: &Bound<'_, Self>, data: &Bound<'_, PyAny>) -> PyResult<()> {
        write(slf, data)
    }

    /// Write the items of an iterable of bytes-like objects, joined.
    fn writelines(slf: &Bound<'_, Self>, list_of_data: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = slf.py();
        let joined = PyBytes::new(py, b"").call_method1(intern!(py, "join"), (list_of_data,))?;
        write(slf, &joined)
    }

    /// Write what is queued, then close: a pipe has no other way to tell the end.
    fn write_eof(slf: &Bound<'_, Self>) -> PyResult<()> {
        let end = end_of(slf);
        if end.closing.replace(true) || !slf.get().writing.get(slf.py()).is_empty() {
            return Ok(());
        }
        end.lose(slf, None)
    }

    /// Whether write_eof() is supported: yes.
    fn can_write_eof(&self) -> bool {
        true
    }

    /// Write what is queued, then close.
    fn close(slf: &Bound<'_, Self>) -> PyResult<()> {
        Self::write_eof(slf)
    }

    /// Close at once; what is queued is lost.
    fn abort(slf: &Bound<'_, Self>) -> PyResult<()> {
        force_close(slf, None)
    }

    /// Bytes that wait to be written.
    fn get_write_buffer_size(slf: &Bound<'_, Self>) -> usize {
        slf.get().writing.get(slf.py()).queue.borrow().len()
    }

    /// The (low, high) limits of the write buffer in bytes.
    fn get_write_buffer_limits(slf: &Bound<'_, Self>) -> (usize, usize) {
        let writing = slf.get().writing.get(slf.py());
        (writing.flow.low_water.get(), writing.flow.high_water.get())
    }

    /// Set the limits in bytes beyond which the protocol is asked to pause, and to resume.
    #[pyo3(signature = (high=None, low=None))]
    fn set_write_buffer_limits(
        slf: &Bound<'_, Self>,
        high: Option<&Bound<'_, PyAny>>,
        low: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let (low, high) = flow::limits(high, low, flow::HIGH_WATER)?;
        let writing = slf.get().writing.get(slf.py());
        writing.flow.low_water.set(low);
        writing.flow.high_water.set(high);
        pause_protocol_if_needed(slf)
    }

    fn __repr__(slf: &Bound<'_, Self>) -> String {
        let end = end_of(slf);
        if end.closed.get() {
            return format!("{}>", end.describe());
        }
        let size = slf.get().writing.get(slf.py()).queue.borrow().len();
        let state = end.activity(slf.py(), size > 0);
        format!("{}{state} bufsize={size}>", end.describe())
    }
}
