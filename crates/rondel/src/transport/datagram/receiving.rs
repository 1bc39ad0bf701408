//! The receiving side of datagram sockets.
//!
//! A wake-up receives a batch at once. All of it becomes Python objects before the protocol sees the
//! first: what it does then (pausing, raising, closing) cannot reach memory that is in use, and what
//! it did not come to is still there when it goes on.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use rondel_reactor::datagrams::{INTERNET_ROOM, LARGEST_ROOM};
use rondel_reactor::net;

use super::super::address::Kept;
use super::{DatagramTransport, Port, fatal_error};
use crate::errors::os_error;
use crate::event_loop::{Loop, turn};
use crate::ffi::context;

const READ_ERROR: &str = "Fatal read error on datagram transport";

/// A datagram that was received.
pub struct Arrived {
    data: Py<PyBytes>,
    /// Its sender's address, as the protocol gets it.
    sender: Py<PyAny>,
    /// The same for system calls, if it is an address of a kind known here.
    native: Option<Kept>,
}

/// Something has arrived, or an error.
pub fn ready(this: &Bound<'_, DatagramTransport>, port: &Port) -> PyResult<()> {
    let py = this.py();
    if !port.is_reading() {
        return Ok(());
    }
    let Some(event_loop) = port.event_loop(py) else { return Ok(()) };
    let received = match port.endpoint.family() {
        Some(libc::AF_INET | libc::AF_INET6) => receive(&event_loop, port, INTERNET_ROOM),
        Some(libc::AF_UNIX) => receive(&event_loop, port, LARGEST_ROOM),
        _ => receive_by_object(py, port),
    };
    match received {
        Ok(()) => deliver(this, port),
        Err(error) if super::sending::would_block(py, &error) => Ok(()),
        Err(error) if error.is_instance_of::<pyo3::exceptions::PyOSError>(py) => {
            context::run_in(port.context.bind(py), || port.error_received(&error, py))
        }
        Err(error) => fatal_error(this, error, READ_ERROR),
    }
}

fn receive(event_loop: &Bound<'_, Loop>, port: &Port, room: usize) -> PyResult<()> {
    let py = event_loop.py();
    let state = event_loop.get().state(py);
    // Taken out while Python objects are made from it: that can run the collector.
    let mut batch = state.datagrams.take().unwrap_or_default();
    let received = batch.receive(port.endpoint.fd(py), room);
    let result = match &received {
        Err(error) if net::is_retry(error) => Ok(()),
        Err(error) => Err(os_error(py, error)),
        Ok(count) => (0..*count).try_for_each(|index| {
            let (data, sender) = batch.datagram(index);
            let data = PyBytes::new(py, data).unbind();
            let native = sender.map(Kept::from);
            let sender = match &native {
                Some(native) => state.senders.to_python(py, native)?,
                None => py.None(),
            };
            port.arrived.borrow_mut().push_back(Arrived { data, sender, native });
            Ok(())
        }),
    };
    state.datagrams.replace(Some(batch));
    result
}

/// For families whose addresses only Python's socket module knows.
fn receive_by_object(py: Python<'_>, port: &Port) -> PyResult<()> {
    let Some(sock) = port.endpoint.socket(py)? else { return Ok(()) };
    let received = sock.call_method1(intern!(py, "recvfrom"), (LARGEST_ROOM,))?;
    let pair = received.extract::<(Bound<'_, PyBytes>, Py<PyAny>)>()?;
    let arrived = Arrived { data: pair.0.unbind(), sender: pair.1, native: None };
    port.arrived.borrow_mut().push_back(arrived);
    Ok(())
}

/// Gives the protocol what has arrived. An exception of its is reported, as that of any callback, and
/// the next datagram is another callback.
fn deliver(this: &Bound<'_, DatagramTransport>, port: &Port) -> PyResult<()> {
    let py = this.py();
    loop {
        let delivered = context::run_in(port.context.bind(py), || {
            while port.is_reading() {
                let Some(next) = port.arrived.borrow_mut().pop_front() else { break };
                let Some(protocol) = port.protocol(py) else { break };
                let Arrived { data, sender, native } = next;
                if let Some(native) = native {
                    drop(port.last_sender.replace(Some((native, sender.clone_ref(py)))));
                }
                protocol.call_method1(intern!(py, "datagram_received"), (data, sender))?;
            }
            Ok(())
        });
        let (Err(error), Some(event_loop)) = (delivered, port.event_loop(py)) else {
            return Ok(());
        };
        if let Err(error) = turn::report_native(&event_loop, this, Err(error)) {
            // It leaves the loop; what is left is delivered in the next run.
            deliver_later(this, port);
            return Err(error);
        }
    }
}

/// Delivers what had arrived before an interruption, in the next turn.
pub fn deliver_later(this: &Bound<'_, DatagramTransport>, port: &Port) {
    if port.arrived.borrow().is_empty() {
        return;
    }
    if let Some(event_loop) = port.event_loop(this.py()) {
        let target = this.clone().into_any().unbind();
        event_loop.get().state(this.py()).push_step(target, |target| {
            let this = target.cast::<DatagramTransport>()?;
            deliver(this, this.get().port(this.py()))
        });
    }
}
