//! The sending side of datagram sockets, with flow control.
//!
//! A datagram is sent at once unless others wait. Addresses that are literal are parsed here; others
//! (host names, families that are rare) go through the socket object, which knows them all.

use pyo3::exceptions::{
    PyBlockingIOError, PyInterruptedError, PyOSError, PyTypeError, PyValueError,
};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyByteArray, PyBytes, PyMemoryView};
use rondel_reactor::net;
use socket2::SockAddr;

use super::super::{address, address::Kept, flow, socket::Chunk, writing};
use super::{DatagramTransport, Port, fatal_error, lose, update_watch};
use crate::errors::os_error;
use crate::ffi::buffer::View;
use crate::ffi::context;

const WRITE_ERROR: &str = "Fatal write error on datagram transport";

/// Where a datagram goes.
pub enum Destination {
    /// Where the socket is connected to.
    Peer,
    Native(SockAddr),
    /// As the program gave it.
    Object(Py<PyAny>),
}

/// A datagram that waits.
pub struct Unsent {
    data: Chunk,
    pub to: Destination,
}

impl Unsent {
    /// What flow control counts.
    fn cost(&self, py: Python<'_>) -> usize {
        // asyncio's figure for a datagram's header.
        let header = if counts_headers(py) { 8 } else { 0 };
        self.data.as_ref().len() + header
    }
}

/// From 3.13 on asyncio sends empty datagrams, and counts headers so that they are limited too.
fn counts_headers(py: Python<'_>) -> bool {
    py.version_info() >= (3, 13)
}

enum Outcome {
    Sent,
    Full,
}

/// `transport.sendto(data, addr)`
pub fn sendto(
    this: &Bound<'_, DatagramTransport>,
    data: &Bound<'_, PyAny>,
    addr: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    let py = this.py();
    let port = this.get().port(py);
    let bytes = data.cast::<PyBytes>().ok();
    if bytes.is_none()
        && !data.is_instance_of::<PyByteArray>()
        && !data.is_instance_of::<PyMemoryView>()
    {
        let name = data.get_type().name()?;
        return Err(PyTypeError::new_err(format!(
            "data argument must be a bytes-like object, not '{name}'"
        )));
    }
    let view = View::readable(data)?;
    if view.len() == 0 && !counts_headers(py) {
        return Ok(());
    }
    let fixed = port.address.as_ref().map(|address| address.bind(py));
    if let (Some(fixed), Some(addr)) = (fixed, addr)
        && !addr.eq(fixed)?
    {
        let text = fixed.str()?;
        return Err(PyValueError::new_err(format!("Invalid address: must be None or {text}")));
    }
    let lost = port.conn_lost.get();
    if lost > 0 && (fixed.is_some() || port.endpoint.is_closed()) {
        return writing::warn_lost(py, &port.conn_lost);
    }
    let to = destination(port, fixed.or(addr), py)?;
    if port.queue.borrow().is_empty() {
        match send(port, &to, data, view.bytes()) {
            Ok(Outcome::Sent) => return Ok(()),
            Ok(Outcome::Full) => {}
            Err(error) if error.is_instance_of::<PyOSError>(py) => {
                return port.error_received(&error, py);
            }
            Err(error) => return fatal_error(this, error, WRITE_ERROR),
        }
    }
    if lost > 0 {
        return Ok(()); // there is no later any more
    }
    let data = match bytes {
        Some(bytes) => Chunk::Shared(PyBackedBytes::from(bytes.clone())),
        // The program may change its buffer once sendto() has returned.
        None => Chunk::Copied(view.bytes().to_vec()),
    };
    let unsent = Unsent { data, to };
    port.queued.set(port.queued.get() + unsent.cost(py));
    port.queue.borrow_mut().push_back(unsent);
    port.flushing.set(true);
    update_watch(this, port)?;
    pause_protocol_if_needed(this, port)
}

fn destination(
    port: &Port,
    addr: Option<&Bound<'_, PyAny>>,
    py: Python<'_>,
) -> PyResult<Destination> {
    if port.endpoint.is_connected() {
        return Ok(Destination::Peer);
    }
    let Some(addr) = addr else { return Ok(Destination::Object(py.None())) };
    for known in [&port.last_sender, &port.last_target] {
        // Both are immutable objects, so the same one means the same address.
        if let Some((native, object)) = &*known.borrow()
            && object.is(addr)
        {
            return Ok(Destination::Native(native.full()));
        }
    }
    match address::from_literal(addr, port.endpoint.family())? {
        Some(native) => {
            let new = Some((Kept::from(native.clone()), addr.clone().unbind()));
            drop(port.last_target.replace(new));
            Ok(Destination::Native(native))
        }
        None => Ok(Destination::Object(addr.clone().unbind())),
    }
}

/// Sends one datagram. `object` is its data for the socket object's own method.
fn send(
    port: &Port,
    to: &Destination,
    object: &Bound<'_, PyAny>,
    data: &[u8],
) -> PyResult<Outcome> {
    let py = object.py();
    let sent = match to {
        Destination::Peer => net::send(port.endpoint.fd(py), data),
        Destination::Native(address) => net::send_to(port.endpoint.fd(py), data, address),
        Destination::Object(address) => return send_by_object(port, object, address),
    };
    match sent {
        Ok(_) => Ok(Outcome::Sent),
        Err(error) if net::is_retry(&error) => Ok(Outcome::Full),
        Err(error) => Err(os_error(py, &error)),
    }
}

fn send_by_object(port: &Port, data: &Bound<'_, PyAny>, to: &Py<PyAny>) -> PyResult<Outcome> {
    let py = data.py();
    let Some(sock) = port.endpoint.socket(py)? else { return Ok(Outcome::Sent) };
    match sock.call_method1(intern!(py, "sendto"), (data, to)) {
        Ok(_) => Ok(Outcome::Sent),
        Err(error) if would_block(py, &error) => Ok(Outcome::Full),
        Err(error) => Err(error),
    }
}

/// Whether a socket object's error means "not now".
pub fn would_block(py: Python<'_>, error: &PyErr) -> bool {
    error.is_instance_of::<PyBlockingIOError>(py) || error.is_instance_of::<PyInterruptedError>(py)
}

/// The socket has room, or an error.
pub fn ready(this: &Bound<'_, DatagramTransport>, port: &Port) -> PyResult<()> {
    if !port.flushing.get() || port.conn_lost.get() > 0 {
        return Ok(());
    }
    let py = this.py();
    context::run_in(port.context.bind(py), || flush(this, port))
}

fn flush(this: &Bound<'_, DatagramTransport>, port: &Port) -> PyResult<()> {
    let py = this.py();
    loop {
        let Some(unsent) = port.queue.borrow_mut().pop_front() else { break };
        let cost = unsent.cost(py);
        port.queued.set(port.queued.get() - cost);
        let data = unsent.data.as_ref();
        let object = match &unsent.to {
            Destination::Object(_) => PyBytes::new(py, data).into_any(),
            _ => py.None().into_bound(py),
        };
        match send(port, &unsent.to, &object, data) {
            Ok(Outcome::Sent) => {}
            Ok(Outcome::Full) => {
                port.queued.set(port.queued.get() + cost);
                port.queue.borrow_mut().push_front(unsent);
                break;
            }
            // The next event goes on from here.
            Err(error) if error.is_instance_of::<PyOSError>(py) => {
                return port.error_received(&error, py);
            }
            Err(error) => return fatal_error(this, error, WRITE_ERROR),
        }
    }
    if port.flow.resumes(port.queued.get()) {
        tell_protocol(this, port, "resume_writing")?;
    }
    // The protocol may have sent more, or closed.
    if port.conn_lost.get() > 0 || !port.queue.borrow().is_empty() {
        return Ok(());
    }
    port.flushing.set(false);
    if port.closing.get() {
        return lose(this, None);
    }
    update_watch(this, port)
}

/// Asks the protocol to pause when too much waits.
pub fn pause_protocol_if_needed(this: &Bound<'_, DatagramTransport>, port: &Port) -> PyResult<()> {
    if port.flow.pauses(port.queued.get()) {
        return tell_protocol(this, port, "pause_writing");
    }
    Ok(())
}

fn tell_protocol(
    this: &Bound<'_, DatagramTransport>,
    port: &Port,
    method: &'static str,
) -> PyResult<()> {
    let py = this.py();
    flow::tell(port.event_loop(py).as_ref(), port.protocol(py), this, method)
}
