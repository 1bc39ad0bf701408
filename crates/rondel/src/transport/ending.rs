//! How a connection ends, for whatever reason: [`lose`] is the one way.
//!
//! It takes the transport out of the poller and schedules connection_lost(), after which the socket is
//! closed and everything let go.

use pyo3::intern;
use pyo3::prelude::*;

use super::socket::{SocketTransport, Stream, stream_of};
use super::writing;
use crate::ffi::context;

/// Ends a connection after an error.
pub fn fatal_error(this: &Bound<'_, SocketTransport>, error: PyErr, message: &str) -> PyResult<()> {
    let py = this.py();
    let stream = this.get().stream(py);
    super::note_fatal(stream.event_loop(py), this, stream.protocol(py), &error, message)?;
    force_close(this, Some(error))
}

/// Ends the connection now: what is queued is lost.
pub fn force_close(this: &Bound<'_, SocketTransport>, error: Option<PyErr>) -> PyResult<()> {
    let py = this.py();
    let stream = this.get().stream(py);
    if stream.conn_lost.get() > 0 {
        return Ok(());
    }
    let dropped = stream.queue.borrow_mut().take();
    drop(dropped);
    lose(this, error)
}

/// Schedules connection_lost(). The caller has checked that this happens once.
///
/// # Errors
/// `RuntimeError` when the loop is closed.
pub fn lose(this: &Bound<'_, SocketTransport>, error: Option<PyErr>) -> PyResult<()> {
    let py = this.py();
    let stream = this.get().stream(py);
    if let Some(event_loop) = stream.event_loop(py) {
        event_loop.get().state(py).check_closed()?;
    }
    stream.closing.set(true);
    stream.conn_lost.set(1);
    let reason = error.map(|error| error.into_value(py));
    drop(stream.lost_reason.replace(reason));
    unregister(stream, py);
    writing::tell_sendfile(stream, py)?;
    if let Some(event_loop) = stream.event_loop(py) {
        let target = this.clone().into_any().unbind();
        event_loop.get().state(py).push_step(target, connection_lost);
    }
    Ok(())
}

/// Takes the transport out of the poller.
pub fn unregister(stream: &Stream, py: Python<'_>) {
    if let Some(key) = stream.key.take()
        && let Some(event_loop) = stream.event_loop(py)
    {
        let fd = stream.endpoint.fd(py);
        event_loop.get().state(py).remove_native(fd, key);
    }
}

/// Step: the protocol learns of the end, and the socket is closed.
fn connection_lost(target: &Bound<'_, PyAny>) -> PyResult<()> {
    let this = stream_of(target)?;
    let py = this.py();
    let stream = this.get().stream(py);
    let reason = stream.lost_reason.take();
    let told = match stream.protocol(py) {
        Some(protocol) => context::run_in(stream.context.bind(py), || {
            protocol.call_method1(intern!(py, "connection_lost"), (reason,))
        })
        .map(drop),
        None => Ok(()),
    };
    let closed = shut(this);
    told.and(closed)
}

/// Tells the server of a connection that the program dropped instead of closing it.
pub fn forget_at_server(stream: &Stream, py: Python<'_>) {
    if let Some(server) = stream.server.take() {
        // The collector may have taken the server apart already: nobody waits for it then.
        let _ = server.call_method1(py, intern!(py, "_forget"), (stream.identity.get(),));
    }
}

/// Closes the socket and lets go of everything; the server learns that the connection is gone.
fn shut(this: &Bound<'_, SocketTransport>) -> PyResult<()> {
    let py = this.py();
    let stream = this.get().stream(py);
    unregister(stream, py);
    if let Some(event_loop) = stream.event_loop.take() {
        super::forget_descriptor(event_loop.bind(py), stream.endpoint.number(), this);
    }
    let closed = stream.endpoint.close(py);
    drop(stream.protocol.take());
    if let Some(server) = stream.server.take() {
        server.call_method1(py, intern!(py, "_detach"), (this,))?;
    }
    closed
}
