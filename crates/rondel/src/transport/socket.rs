//! Connected stream sockets: the transport object and its life.
//!
//! ```text
//!            connection_made           close() / eof / error           queue empty or abort
//! created ───────────────────▶ open ──────────────────────▶ closing ───────────────────────▶ lost
//! ```
//!
//! In `closing` nothing is read and the queue is flushed. Going to `lost` schedules connection_lost(),
//! once, by a step of the loop; that step closes the socket. [`super::reading`] and
//! [`super::writing`] are the two directions.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;

use pyo3::exceptions::{PyBaseException, PyRuntimeError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyContext, PyDict, PyTuple};
use pyo3::{PyTraverseError, PyVisit};
use rondel_reactor::net;
use rondel_reactor::poller::Readiness;
use rondel_reactor::slab::Key;
use rondel_reactor::write_queue::WriteQueue;
use socket2::SockAddr;

use super::ending::{fatal_error, force_close, forget_at_server, unregister};
use super::endpoint::Endpoint;
use super::flow::Flow;
use super::read_size::ReadSize;
use super::{reading, writing};
use crate::event_loop::{Loop, State, Target, turn};
use crate::ffi::confined::Confined;
use crate::ffi::context;
use crate::ffi::handle::HandleRef;
use crate::imports;

/// Callbacks in a row with more than one write each, after which that counts as a habit.
const HABIT: u8 = 8;

/// Data that waits to be sent: the program's own bytes, or a copy of what it may change.
pub enum Chunk {
    Shared(PyBackedBytes),
    Copied(Vec<u8>),
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        match self {
            Chunk::Shared(bytes) => bytes,
            Chunk::Copied(bytes) => bytes,
        }
    }
}

/// The transport of a connected stream socket (TCP, and Unix sockets that were passed in).
#[pyclass(frozen, dict, weakref, module = "rondel._rondel", name = "SocketTransport")]
pub struct SocketTransport {
    stream: Confined<Stream>,
}

/// A transport's state. Fields are cells, and no borrow outlives a statement that calls Python.
pub struct Stream {
    /// Gone after connection_lost().
    pub event_loop: RefCell<Option<Py<Loop>>>,
    pub protocol: RefCell<Option<Py<PyAny>>>,
    /// The protocol is a BufferedProtocol.
    pub buffered: Cell<bool>,
    /// In which the protocol's methods are called.
    pub context: Py<PyContext>,
    pub endpoint: Endpoint,
    pub key: Cell<Option<Key>>,
    /// What became possible before connection_made(); None when that is over, or without meaning.
    early: Cell<Option<Readiness>>,
    /// The loop does not keep the transport alive; see [`update_hold`].
    dormant: Cell<bool>,
    pub server: RefCell<Option<Py<PyAny>>>,
    /// The transport's id(), by which the server knows it.
    pub identity: Cell<usize>,
    waiter: RefCell<Option<Py<PyAny>>>,

    pub closing: Cell<bool>,
    /// How often writes came after the connection was lost, plus one; 0 while it is not lost.
    pub conn_lost: Cell<u32>,
    pub lost_reason: RefCell<Option<Py<PyBaseException>>>,

    pub read_paused: Cell<bool>,
    /// The peer has ended its direction and the protocol keeps ours open.
    pub read_ended: Cell<bool>,
    /// A step of the loop is going to read.
    pub read_scheduled: Cell<bool>,
    pub read_size: ReadSize,

    pub queue: RefCell<WriteQueue<Chunk>>,
    /// How many bytes were written since something was received, less the shares for which the writer
    /// has given way; see [`writing::gives_way`].
    pub written: Cell<usize>,
    /// write_eof() was called.
    pub write_ended: Cell<bool>,
    /// The callback (by its number) that wrote last, and whether it wrote more than once.
    last_writer: Cell<(u64, bool)>,
    /// How many callbacks in a row wrote more than once, up to [`HABIT`].
    repeated: Cell<u8>,
    /// On the loop's list of transports to flush; see [`super::gathering`].
    pub gathering: Cell<bool>,
    pub flow: Flow,

    /// Lent to sendfile: the program may not write.
    pub sending_file: Cell<bool>,
    /// The future of a sendfile that waits for room in the socket.
    pub room_waiter: RefCell<Option<Py<PyAny>>>,
}

impl SocketTransport {
    /// The state.
    #[inline]
    pub fn stream<'a>(&'a self, py: Python<'a>) -> &'a Stream {
        self.stream.get(py)
    }

    /// Makes a transport of a Python socket that is connected and non-blocking; schedules
    /// connection_made(), the start of reading and then the waiter's result.
    pub fn adopt<'py>(
        event_loop: &Bound<'py, Loop>,
        sock: &Bound<'py, PyAny>,
        protocol: &Bound<'py, PyAny>,
        waiter: Option<Py<PyAny>>,
        extra: Option<Bound<'py, PyDict>>,
        server: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, Self>> {
        let context = context::copy_current(event_loop.py())?;
        let endpoint = Endpoint::adopted(sock, extra)?;
        Self::open(event_loop, endpoint, protocol, &context, waiter, server)
    }

    /// Makes a transport of a connection that a listener accepted.
    pub fn accept<'py>(
        event_loop: &Bound<'py, Loop>,
        (fd, peer): (OwnedFd, SockAddr),
        protocol: &Bound<'py, PyAny>,
        context: &Bound<'py, PyContext>,
        server: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, Self>> {
        Self::open(event_loop, Endpoint::owned(fd, peer), protocol, context, None, server)
    }

    /// Makes a transport of a connection that we made; [`SocketTransport::take_over`] follows.
    pub fn connected<'py>(
        event_loop: &Bound<'py, Loop>,
        (fd, peer): (OwnedFd, SockAddr),
        protocol: &Bound<'py, PyAny>,
        waiter: Py<PyAny>,
    ) -> PyResult<Bound<'py, Self>> {
        let context = context::copy_current(event_loop.py())?;
        let endpoint = Endpoint::owned(fd, peer);
        Self::open(event_loop, endpoint, protocol, &context, Some(waiter), None)
    }

    /// Takes over the place in the poller that the socket had while it was connecting, and what
    /// became possible meanwhile; that has to wait until the transport has started.
    pub fn take_over(this: &Bound<'_, Self>, state: &State, key: Key, seen: Readiness) {
        let stream = this.get().stream(this.py());
        stream.key.set(Some(key));
        stream.early.set(Some(seen));
        state.redirect(key, this.clone().into_any().unbind(), on_event);
    }

    fn open<'py>(
        event_loop: &Bound<'py, Loop>,
        endpoint: Endpoint,
        protocol: &Bound<'py, PyAny>,
        context: &Bound<'py, PyContext>,
        waiter: Option<Py<PyAny>>,
        server: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, Self>> {
        let py = event_loop.py();
        let state = event_loop.get().state(py);
        state.check_closed()?;
        if endpoint.is_tcp() {
            // Small writes leave at once, as with asyncio. Not being able to is no reason to fail.
            let _ = net::set_nodelay(endpoint.number());
        }
        let fd = endpoint.number();
        let stream = Stream {
            event_loop: RefCell::new(Some(event_loop.clone().unbind())),
            protocol: RefCell::new(None),
            buffered: Cell::new(false),
            context: context.clone().unbind(),
            endpoint,
            key: Cell::new(None),
            early: Cell::new(None),
            dormant: Cell::new(false),
            server: RefCell::new(server),
            identity: Cell::new(0),
            waiter: RefCell::new(waiter),
            closing: Cell::new(false),
            conn_lost: Cell::new(0),
            lost_reason: RefCell::new(None),
            read_paused: Cell::new(false),
            read_ended: Cell::new(false),
            read_scheduled: Cell::new(false),
            read_size: ReadSize::default(),
            written: Cell::new(0),
            queue: RefCell::default(),
            write_ended: Cell::new(false),
            last_writer: Cell::new((u64::MAX, false)),
            repeated: Cell::new(0),
            gathering: Cell::new(false),
            flow: Flow::default(),
            sending_file: Cell::new(false),
            room_waiter: RefCell::new(None),
        };
        stream.set_protocol(protocol)?;
        // Before anybody knows the transport: a protocol that is none is the caller's error.
        let callback = protocol.getattr(intern!(py, "connection_made"))?;
        let this = Bound::new(py, SocketTransport { stream: Confined::new(stream) })?;
        let stream = this.get().stream(py);
        stream.identity.set(this.as_ptr() as usize);
        let server = stream.server.borrow().as_ref().map(|server| server.clone_ref(py));
        if let Some(server) = server {
            server.call_method1(py, intern!(py, "_attach"), (&this,))?;
        }
        let weak = super::weak_reference(&this)?;
        drop(state.transports.borrow_mut().insert(fd, weak));
        let args = PyTuple::new(py, [&this])?;
        state.push_ready(HandleRef::from_parts(event_loop, &callback, &args, Some(context))?);
        state.push_step(this.clone().into_any().unbind(), started);
        Ok(this)
    }
}

impl Stream {
    /// The loop, until the connection is lost.
    pub fn event_loop<'py>(&self, py: Python<'py>) -> Option<Bound<'py, Loop>> {
        self.event_loop.borrow().as_ref().map(|event_loop| event_loop.bind(py).clone())
    }

    /// The protocol, until the connection is lost.
    #[inline]
    pub fn protocol<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.protocol.borrow().as_ref().map(|protocol| protocol.bind(py).clone())
    }

    fn set_protocol(&self, protocol: &Bound<'_, PyAny>) -> PyResult<()> {
        let buffered = protocol.is_instance(imports::buffered_protocol(protocol.py())?)?;
        self.buffered.set(buffered);
        drop(self.protocol.replace(Some(protocol.clone().unbind())));
        Ok(())
    }

    /// Whether the protocol is to get data.
    #[inline]
    pub fn is_reading(&self) -> bool {
        !self.closing.get()
            && !self.read_paused.get()
            && !self.read_ended.get()
            && self.conn_lost.get() == 0
    }

    /// Notes a write of the callback with this number; whether another one is likely to follow.
    #[inline]
    pub fn writes_again(&self, callback: u64) -> bool {
        let (last, again) = self.last_writer.get();
        if last == callback {
            self.last_writer.set((last, true));
        } else {
            self.last_writer.set((callback, false));
            self.repeated.set(if again { HABIT.min(self.repeated.get() + 1) } else { 0 });
        }
        self.repeated.get() == HABIT
    }

    /// Calls a protocol method without arguments in the transport's context.
    pub fn call_protocol<'py>(
        &self,
        py: Python<'py>,
        method: &Bound<'py, pyo3::types::PyString>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let Some(protocol) = self.protocol(py) else { return Ok(None) };
        context::run_in(self.context.bind(py), || protocol.call_method0(method)).map(Some)
    }
}

/// The transport that a step or an event is of.
pub fn stream_of<'a>(target: &'a Bound<'_, PyAny>) -> PyResult<&'a Bound<'a, SocketTransport>> {
    // The bound's lifetime is covariant; steps are only scheduled on transports.
    Ok(target.cast::<SocketTransport>()?)
}

/// Step: only after connection_made() does the transport read, and only then is the waiter told.
fn started(target: &Bound<'_, PyAny>) -> PyResult<()> {
    let this = stream_of(target)?;
    let py = this.py();
    let stream = this.get().stream(py);
    if let Some(event_loop) = stream.event_loop(py)
        && stream.conn_lost.get() == 0
    {
        let state = event_loop.get().state(py);
        if let Some(seen) = stream.early.take() {
            if seen.readable && stream.is_reading() {
                reading::read_later(this, stream);
            }
            if seen.writable {
                writing::ready(this)?;
            }
        } else {
            match state.add_native(stream.endpoint.fd(py), target.clone().unbind(), on_event) {
                Ok(key) => {
                    stream.key.set(Some(key));
                    update_hold(this, stream)?;
                }
                Err(error) => fatal_error(this, error, "Fatal error on transport")?,
            }
        }
    }
    match stream.waiter.take() {
        Some(waiter) => turn::set_none_unless_done(waiter.bind(py)),
        None => Ok(()),
    }
}

/// What the poller's events lead to.
fn on_event(target: &Bound<'_, PyAny>, readiness: Readiness) -> PyResult<()> {
    let this = stream_of(target)?;
    let stream = this.get().stream(this.py());
    if let Some(seen) = stream.early.get() {
        stream.early.set(Some(seen.and(readiness)));
        return Ok(());
    }
    let read =
        if readiness.readable { reading::ready(this, readiness.read_closed) } else { Ok(()) };
    // An exception that leaves the loop must not take the other half of the event with it.
    let written = if readiness.writable { writing::ready(this) } else { Ok(()) };
    read.and(written)
}

/// The loop keeps a transport alive while it reads or has something to send. One that does neither
/// can only be used by the program: when the program has dropped it, it is closed, with a warning.
#[inline]
pub fn update_hold(this: &Bound<'_, SocketTransport>, stream: &Stream) -> PyResult<()> {
    let dormant = !stream.is_reading() && stream.queue.borrow().is_empty();
    if stream.dormant.get() == dormant { Ok(()) } else { change_hold(this, stream, dormant) }
}

#[cold]
fn change_hold(this: &Bound<'_, SocketTransport>, stream: &Stream, dormant: bool) -> PyResult<()> {
    let Some(key) = stream.key.get() else { return Ok(()) };
    stream.dormant.set(dormant);
    let Some(event_loop) = stream.event_loop(this.py()) else { return Ok(()) };
    let how = if dormant {
        Target::Dormant(super::weak_reference(this)?)
    } else {
        Target::Held(this.clone().into_any().unbind())
    };
    event_loop.get().state(this.py()).hold(key, how);
    Ok(())
}

#[pymethods]
impl SocketTransport {
    /// For loop.start_tls(): TLS may run over this transport.
    #[classattr]
    fn _start_tls_compatible() -> bool {
        true
    }

    /// asyncio.Transport has instance fields of its own, so a native class cannot derive from it;
    /// isinstance() believes `__class__`.
    #[getter]
    fn __class__(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        Ok(imports::transport_type(slf.py())?.clone().unbind())
    }

    /// What is known of the connection: "socket", "sockname", "peername".
    #[pyo3(signature = (name, default=None))]
    fn get_extra_info<'py>(
        slf: &Bound<'py, Self>,
        name: &Bound<'py, PyAny>,
        default: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let py = slf.py();
        Ok(slf.get().stream(py).endpoint.extra_info(py, name)?.or(default))
    }

    /// Set the protocol that gets the data from now on.
    fn set_protocol(slf: &Bound<'_, Self>, protocol: &Bound<'_, PyAny>) -> PyResult<()> {
        slf.get().stream(slf.py()).set_protocol(protocol)
    }

    /// The current protocol.
    fn get_protocol<'py>(slf: &Bound<'py, Self>) -> Option<Bound<'py, PyAny>> {
        slf.get().stream(slf.py()).protocol(slf.py())
    }

    /// Whether the transport is closed or about to be.
    fn is_closing(slf: &Bound<'_, Self>) -> bool {
        slf.get().stream(slf.py()).closing.get()
    }

    /// Stop reading, send what is queued, then close.
    fn close(slf: &Bound<'_, Self>) -> PyResult<()> {
        let stream = slf.get().stream(slf.py());
        if stream.closing.get() {
            return Ok(());
        }
        stream.closing.set(true);
        writing::close_when_sent(slf)
    }

    /// Close at once; what is queued is lost.
    fn abort(slf: &Bound<'_, Self>) -> PyResult<()> {
        force_close(slf, None)
    }

    /// The same, with the reason for connection_lost(): what asyncio's TLS over this calls.
    fn _force_close(slf: &Bound<'_, Self>, exc: &Bound<'_, PyAny>) -> PyResult<()> {
        let error = if exc.is_none() { None } else { Some(PyErr::from_value(exc.clone())) };
        force_close(slf, error)
    }

    /// Whether the protocol gets data.
    fn is_reading(slf: &Bound<'_, Self>) -> bool {
        let stream = slf.get().stream(slf.py());
        !stream.closing.get() && !stream.read_paused.get()
    }

    /// Stop calling data_received() until resume_reading().
    fn pause_reading(slf: &Bound<'_, Self>) -> PyResult<()> {
        reading::pause(slf)
    }

    /// Call data_received() again.
    fn resume_reading(slf: &Bound<'_, Self>) -> PyResult<()> {
        reading::resume(slf)
    }

    // write() is put onto the type by `ffi::transport`.

    /// Send the items of an iterable of bytes-like objects in one go.
    fn writelines(slf: &Bound<'_, Self>, list_of_data: &Bound<'_, PyAny>) -> PyResult<()> {
        writing::writelines(slf, list_of_data)
    }

    /// End the sending direction once everything is sent.
    fn write_eof(slf: &Bound<'_, Self>) -> PyResult<()> {
        writing::write_eof(slf)
    }

    /// Whether write_eof() is supported: yes.
    fn can_write_eof(&self) -> bool {
        true
    }

    /// Bytes that wait to be sent.
    fn get_write_buffer_size(slf: &Bound<'_, Self>) -> PyResult<usize> {
        writing::buffer_size(slf)
    }

    /// The (low, high) limits of the write buffer in bytes.
    fn get_write_buffer_limits(slf: &Bound<'_, Self>) -> (usize, usize) {
        let stream = slf.get().stream(slf.py());
        (stream.flow.low_water.get(), stream.flow.high_water.get())
    }

    /// Set the limits in bytes beyond which the protocol is asked to pause, and to resume.
    #[pyo3(signature = (high=None, low=None))]
    fn set_write_buffer_limits(
        slf: &Bound<'_, Self>,
        high: Option<&Bound<'_, PyAny>>,
        low: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        writing::set_limits(slf, high, low)
    }

    #[getter]
    fn _loop<'py>(slf: &Bound<'py, Self>) -> Option<Bound<'py, Loop>> {
        slf.get().stream(slf.py()).event_loop(slf.py())
    }

    /// pause_writing() was called last (private name that asyncio's own helpers use).
    #[getter]
    fn _protocol_paused(slf: &Bound<'_, Self>) -> bool {
        slf.get().stream(slf.py()).flow.paused.get()
    }

    /// How loop.sendfile() may send over the transport. (No class attribute: that would import asyncio
    /// with the extension.)
    #[getter]
    fn _sendfile_compatible(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok(imports::sendfile_mode(py)?.getattr("TRY_NATIVE")?.unbind())
    }

    /// The socket object (private name that programs use).
    #[getter]
    fn _sock<'py>(slf: &Bound<'py, Self>) -> PyResult<Option<Bound<'py, PyAny>>> {
        slf.get().stream(slf.py()).endpoint.socket(slf.py())
    }

    fn __repr__(slf: &Bound<'_, Self>) -> String {
        describe(slf.get().stream(slf.py()))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let Some(stream) = self.stream.in_traverse(&visit) else { return Ok(()) };
        visit.call(&stream.context)?;
        stream.endpoint.traverse(&visit)?;
        if let Ok(event_loop) = stream.event_loop.try_borrow() {
            visit.call(&*event_loop)?;
        }
        for field in [&stream.protocol, &stream.server, &stream.waiter, &stream.room_waiter] {
            if let Ok(field) = field.try_borrow() {
                visit.call(&*field)?;
            }
        }
        Ok(())
    }

    fn __clear__(slf: &Bound<'_, Self>) {
        let stream = slf.get().stream(slf.py());
        unregister(stream, slf.py());
        drop(stream.protocol.take());
        forget_at_server(stream, slf.py());
        drop(stream.waiter.take());
        drop(stream.room_waiter.take());
        drop(stream.event_loop.take());
    }
}

fn describe(stream: &Stream) -> String {
    let polling = stream.event_loop.borrow().is_some().then(|| {
        let size = stream.queue.borrow().len();
        let polled = stream.key.get().is_some() && stream.early.get().is_none();
        (polled && stream.is_reading(), size > 0, size)
    });
    super::description("SocketTransport", &stream.endpoint, stream.closing.get(), polling)
}

impl Drop for SocketTransport {
    fn drop(&mut self) {
        let stream = self.stream.get_mut();
        if stream.endpoint.is_closed() {
            return;
        }
        let description = describe(stream);
        Python::attach(|py| {
            super::abandon(py, &description, &stream.endpoint, || unregister(stream, py));
            forget_at_server(stream, py);
        });
    }
}

/// # Errors
/// `RuntimeError` once write_eof() was called.
pub fn check_not_ended(stream: &Stream, method: &str) -> PyResult<()> {
    if stream.write_ended.get() {
        return Err(PyRuntimeError::new_err(format!("Cannot call {method}() after write_eof()")));
    }
    Ok(())
}
