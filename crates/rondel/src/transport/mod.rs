//! Transports.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`socket`] | connected stream sockets |
//! | [`reading`] | their reading side: into `bytes` or into the protocol's own buffer |
//! | [`read_size`] | how much is read at once |
//! | [`writing`] | their writing side: gather, send, flush, flow control |
//! | [`gathering`] | writes that leave together |
//! | [`ending`] | how their connections end |
//! | [`endpoint`] | who owns the descriptor, and what get_extra_info() knows of it |
//! | [`listener`] | accepting connections |
//! | [`datagram`] | datagram sockets, connected or not |
//! | [`pipe`] | pipes, and what can be used like one |
//! | [`tls`] | TLS over any transport |
//! | [`address`] | socket addresses as Python has them |
//! | [`flow`] | flow control: when a protocol is told to pause writing, and to go on |

pub mod address;
pub mod datagram;
pub mod ending;
pub mod endpoint;
pub mod flow;
pub mod gathering;
pub mod listener;
pub mod pipe;
pub mod read_size;
pub mod reading;
pub mod socket;
pub mod tls;
pub mod writing;

use std::os::fd::RawFd;

use pyo3::exceptions::{PyOSError, PyResourceWarning};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyWeakref, PyWeakrefMethods, PyWeakrefReference};

use self::endpoint::Endpoint;
use crate::event_loop::{Loop, exceptions};
use crate::imports;

/// Tells the loop's exception handler about an error of a transport or of its protocol.
///
/// # Errors
/// `KeyboardInterrupt` and `SystemExit`, which are never handled here.
pub fn report(
    event_loop: &Bound<'_, Loop>,
    message: &str,
    error: &PyErr,
    transport: &Bound<'_, PyAny>,
    protocol: Option<Bound<'_, PyAny>>,
) -> PyResult<()> {
    let py = event_loop.py();
    let context = PyDict::new(py);
    context.set_item("message", message)?;
    context.set_item("exception", crate::errors::exception(py, error))?;
    context.set_item("transport", transport)?;
    context.set_item("protocol", protocol)?;
    exceptions::call_handler(event_loop, &context)
}

/// Reports a fatal error of a transport, as far as it is to be reported: errors of the connection
/// itself (`OSError`) are the protocol's to know, through connection_lost().
///
/// # Errors
/// `KeyboardInterrupt` and `SystemExit`, which are never handled here.
pub fn note_fatal(
    event_loop: Option<Bound<'_, Loop>>,
    transport: &Bound<'_, PyAny>,
    protocol: Option<Bound<'_, PyAny>>,
    error: &PyErr,
    message: &str,
) -> PyResult<()> {
    let py = transport.py();
    if exceptions::must_propagate(py, error) {
        return Err(error.clone_ref(py));
    }
    let Some(event_loop) = event_loop else { return Ok(()) };
    if !error.is_instance_of::<PyOSError>(py) {
        return report(&event_loop, message, error, transport, protocol);
    }
    if event_loop.get().state(py).debug.get() {
        let info = PyDict::new(py);
        info.set_item("exc_info", crate::errors::exception(py, error))?;
        let text = format!("{}: {message}", transport.repr()?);
        imports::logger(py)?.call_method("debug", (text,), Some(&info))?;
    }
    Ok(())
}

/// A weak reference that says nothing when its object goes.
pub fn weak_reference(transport: &Bound<'_, PyAny>) -> PyResult<Py<PyWeakref>> {
    Ok(PyWeakrefReference::new(transport)?.into_any().cast_into::<PyWeakref>()?.unbind())
}

/// The descriptor is no longer the transport's.
pub fn forget_descriptor(event_loop: &Bound<'_, Loop>, fd: RawFd, transport: &Bound<'_, PyAny>) {
    let state = event_loop.get().state(event_loop.py());
    let removed = {
        let mut transports = state.transports.borrow_mut();
        match transports.get(&fd) {
            Some(weak) if weak.bind(event_loop.py()).upgrade().is_some_and(|t| t.is(transport)) => {
                transports.remove(&fd)
            }
            _ => None,
        }
    };
    drop(removed);
}

/// A transport's repr(). `polling`: whether it waits for reading and for writing, and the size of its
/// write buffer, unless the connection is lost.
pub fn description(
    name: &str,
    endpoint: &Endpoint,
    closing: bool,
    polling: Option<(bool, bool, usize)>,
) -> String {
    let state = if endpoint.is_closed() {
        " closed"
    } else if closing {
        " closing"
    } else {
        ""
    };
    let mut text = format!("<{name}{state} fd={}", endpoint.number());
    if let Some((read, write, size)) = polling {
        let polls = |polling| if polling { "polling" } else { "idle" };
        text.push_str(&format!(" read={} write=<{}, bufsize={size}>", polls(read), polls(write)));
    }
    text.push('>');
    text
}

/// A transport is deallocated that was not closed: warns, and closes its socket. `unregister` takes
/// it out of the poller before that.
pub fn abandon(py: Python<'_>, description: &str, endpoint: &Endpoint, unregister: impl FnOnce()) {
    // Deallocation may happen with an exception set, which must survive.
    let pending = PyErr::take(py);
    unregister();
    if let Ok(message) = std::ffi::CString::new(format!("unclosed transport {description}")) {
        let category = py.get_type::<PyResourceWarning>();
        if let Err(error) = PyErr::warn(py, &category, &message, 1) {
            error.write_unraisable(py, None);
        }
    }
    endpoint.abandon(py);
    if let Some(pending) = pending {
        pending.restore(py);
    }
}
