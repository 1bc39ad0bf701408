//! The writing side of stream sockets, with flow control.
//!
//! On a loop that has nothing else to do in this turn, a write is sent at once. Otherwise it is
//! gathered ([`super::gathering`]) and leaves at the end of the turn's phase, as do the writes of a
//! connection that has the habit of writing several times in a callback. What asks about the queue
//! (its size, the end, closing) flushes first. What the socket does not take is queued and sent when
//! the poller says that there is room.

use std::cell::Cell;
use std::io;

use pyo3::exceptions::{PyRuntimeError, PyTypeError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyByteArray, PyBytes, PyMemoryView};
use rondel_reactor::net;
use rondel_reactor::write_queue::Only;

use super::ending::{fatal_error, lose};
use super::flow;
use super::socket::{Chunk, SocketTransport, Stream, check_not_ended, update_hold};
use crate::errors::os_error;
use crate::event_loop::turn;
use crate::ffi::buffer::View;
use crate::imports;

/// Writes after the connection was lost before a warning is logged (asyncio's figure).
pub const LOST_WRITES_BEFORE_WARNING: u32 = 5;

/// Writes from this size on, in bytes, are sent at once: there is nothing to gain by holding them,
/// and their memory is still in the processor's cache.
const LARGE: usize = 16 * 1024;

/// What a program may write without waiting, in bytes, before its `drain()` lets the others have a turn.
const SHARE: usize = 64 * 1024;

const WRITE_ERROR: &str = "Fatal write error on socket transport";

/// `transport.write(data)`
pub fn write(this: &Bound<'_, SocketTransport>, data: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = this.py();
    let stream = this.get().stream(py);
    let bytes = data.cast::<PyBytes>().ok();
    if bytes.is_none()
        && !data.is_instance_of::<PyByteArray>()
        && !data.is_instance_of::<PyMemoryView>()
    {
        return Err(wrong_type(data));
    }
    check_not_ended(stream, "write")?;
    let view = if bytes.is_none() { Some(View::readable(data)?) } else { None };
    let memory = match (bytes, &view) {
        (Some(bytes), _) => bytes.as_bytes(),
        (None, Some(view)) => view.bytes(),
        (None, None) => &[],
    };
    check_not_lent(stream, "write")?;
    let result = submit(this, stream, memory, |sent| match bytes {
        Some(bytes) => (Chunk::Shared(PyBackedBytes::from(bytes.clone())), sent),
        // The program may change its buffer once write() has returned.
        None => (Chunk::Copied(memory[sent..].to_vec()), 0),
    });
    drop(view);
    result
}

/// Sends memory of ours as [`write`] does; what the socket does not take is copied.
pub fn write_memory(this: &Bound<'_, SocketTransport>, memory: &[u8]) -> PyResult<()> {
    let stream = this.get().stream(this.py());
    check_not_ended(stream, "write")?;
    check_not_lent(stream, "write")?;
    submit(this, stream, memory, |sent| (Chunk::Copied(memory[sent..].to_vec()), 0))
}

/// Sends now or queues. `keep` makes what is queued, and tells how much of that is sent, when so much
/// of the memory was sent.
fn submit(
    this: &Bound<'_, SocketTransport>,
    stream: &Stream,
    memory: &[u8],
    keep: impl FnOnce(usize) -> (Chunk, usize),
) -> PyResult<()> {
    let py = this.py();
    if memory.is_empty() {
        return Ok(());
    }
    if stream.conn_lost.get() > 0 {
        return warn_lost(py, &stream.conn_lost);
    }
    stream.written.set(stream.written.get().saturating_add(memory.len()));
    let mut sent = 0;
    if sends_now(this, stream, memory.len()) {
        match net::send(stream.endpoint.fd(py), memory) {
            Ok(count) if count == memory.len() => return Ok(()),
            Ok(count) => sent = count,
            Err(error) if net::is_retry(&error) => {}
            Err(error) => return fatal_error(this, os_error(py, &error), WRITE_ERROR),
        }
    }
    let (chunk, sent) = keep(sent);
    stream.queue.borrow_mut().push(chunk, sent);
    update_hold(this, stream)?;
    keep_within_limits(this, stream)
}

/// Whether who waits for room now had better let the others have a turn, though there is room.
///
/// A program that only writes would go on until the socket is full. That is megabytes, which leave the
/// processor's cache before they are read: a peer in the same process takes them in twice the time.
/// An answer to what was received is not held up by this, unless it is long.
#[inline]
pub fn gives_way(stream: &Stream) -> bool {
    let written = stream.written.get();
    if written > SHARE {
        stream.written.set((written - SHARE).min(SHARE));
    }
    written > SHARE
}

/// # Errors
/// `RuntimeError` while a file is sent.
fn check_not_lent(stream: &Stream, method: &str) -> PyResult<()> {
    if stream.sending_file.get() {
        let message = format!("unable to {method}; sendfile is in progress");
        return Err(PyRuntimeError::new_err(message));
    }
    Ok(())
}

/// Ends the wait of a sendfile: there is room, or the connection is lost.
pub fn tell_sendfile(stream: &Stream, py: Python<'_>) -> PyResult<()> {
    match stream.room_waiter.take() {
        Some(waiter) => turn::set_none_unless_done(waiter.bind(py)),
        None => Ok(()),
    }
}

#[cold]
fn wrong_type(data: &Bound<'_, PyAny>) -> PyErr {
    let name = data.get_type().name().map_or_else(|_| String::new(), |name| name.to_string());
    let expected = if data.py().version_info() >= (3, 14) {
        "a bytes, bytearray, or memoryview object"
    } else {
        "a bytes-like object"
    };
    PyTypeError::new_err(format!("data argument must be {expected}, not '{name}'"))
}

/// Counts a write after the connection was lost; many are worth a warning.
#[cold]
pub fn warn_lost(py: Python<'_>, conn_lost: &Cell<u32>) -> PyResult<()> {
    let lost = conn_lost.get();
    if lost >= LOST_WRITES_BEFORE_WARNING {
        imports::logger(py)?.call_method1("warning", ("socket.send() raised exception.",))?;
    }
    conn_lost.set(lost.saturating_add(1));
    Ok(())
}

/// Whether a write is to be sent at once. If not, it is gathered: the transport is on the list of those
/// to flush. (A queue that waits for the poller needs no place there.)
#[inline]
fn sends_now(this: &Bound<'_, SocketTransport>, stream: &Stream, size: usize) -> bool {
    let event_loop = stream.event_loop.borrow();
    let Some(event_loop) = &*event_loop else { return true };
    let state = event_loop.get().state(this.py());
    let habit = stream.writes_again(state.meter.callbacks.get());
    if !stream.queue.borrow().is_empty() {
        return false;
    }
    // A packet on a Unix socket costs so little that its peer had better have it soon.
    let waits = habit || !stream.endpoint.is_unix() && state.has_more_to_run();
    // Outside a run there is no end of a phase to wait for.
    if size >= LARGE || state.thread_id.get().is_none() || !waits {
        return true;
    }
    if !stream.gathering.replace(true) {
        state.gathered.add(this);
    }
    false
}

/// Asks the protocol to pause when the queue is beyond its limit, after what was only gathered has
/// had its chance to leave.
fn keep_within_limits(this: &Bound<'_, SocketTransport>, stream: &Stream) -> PyResult<()> {
    if stream.queue.borrow().len() <= stream.flow.high_water.get() {
        return Ok(());
    }
    if stream.gathering.get() {
        send_gathered(this, stream)?;
    }
    pause_protocol_if_needed(this, stream)
}

fn pause_protocol_if_needed(this: &Bound<'_, SocketTransport>, stream: &Stream) -> PyResult<()> {
    if !stream.flow.pauses(stream.queue.borrow().len()) {
        return Ok(());
    }
    let py = this.py();
    flow::tell(stream.event_loop(py).as_ref(), stream.protocol(py), this, "pause_writing")
}

fn resume_protocol_if_needed(this: &Bound<'_, SocketTransport>, stream: &Stream) -> PyResult<()> {
    if !stream.flow.resumes(stream.queue.borrow().len()) {
        return Ok(());
    }
    let py = this.py();
    flow::tell(stream.event_loop(py).as_ref(), stream.protocol(py), this, "resume_writing")
}

/// The socket has room. What was gathered keeps its place among what leaves together: every event of
/// a socket that has room says so.
pub fn ready(this: &Bound<'_, SocketTransport>) -> PyResult<()> {
    let stream = this.get().stream(this.py());
    if !stream.gathering.get() && !stream.queue.borrow().is_empty() {
        flush(this, stream)?;
    }
    if stream.sending_file.get() { tell_sendfile(stream, this.py()) } else { Ok(()) }
}

/// Sends what was gathered; errors become the connection's end, as everywhere.
pub fn flush_gathered(this: &Bound<'_, SocketTransport>) {
    let py = this.py();
    let stream = this.get().stream(py);
    if let Err(error) = send_gathered(this, stream) {
        // Only KeyboardInterrupt and SystemExit of a protocol method come here.
        error.write_unraisable(py, Some(this.as_any()));
    }
}

fn send_gathered(this: &Bound<'_, SocketTransport>, stream: &Stream) -> PyResult<()> {
    if stream.gathering.replace(false) { flush(this, stream) } else { Ok(()) }
}

/// Sends what the socket takes, and does what was waiting for the queue to be empty.
fn flush(this: &Bound<'_, SocketTransport>, stream: &Stream) -> PyResult<()> {
    if stream.conn_lost.get() > 0 {
        return Ok(());
    }
    if let Err(error) = send_queued(this.py(), stream) {
        return fatal_error(this, os_error(this.py(), &error), WRITE_ERROR);
    }
    resume_protocol_if_needed(this, stream)?; // which may write again
    if !stream.queue.borrow().is_empty() || stream.conn_lost.get() > 0 {
        return Ok(());
    }
    if stream.closing.get() {
        return lose(this, None);
    }
    if stream.write_ended.get()
        && let Err(error) = end_stream(this.py(), stream)
    {
        return fatal_error(this, error, WRITE_ERROR);
    }
    update_hold(this, stream)
}

fn send_queued(py: Python<'_>, stream: &Stream) -> io::Result<()> {
    let fd = stream.endpoint.fd(py);
    let only = stream.queue.borrow_mut().send_only(fd);
    match only? {
        Only::Sent(chunk) => drop(chunk),
        Only::Kept => {}
        Only::Not => {
            let Some(event_loop) = stream.event_loop(py) else { return Ok(()) };
            let gathered = &event_loop.get().state(py).gathered;
            gathered.drop_sent(|sent| stream.queue.borrow_mut().flush(fd, sent))?;
        }
    }
    Ok(())
}

fn end_stream(py: Python<'_>, stream: &Stream) -> PyResult<()> {
    match net::shutdown_write(stream.endpoint.fd(py)) {
        // The peer was faster with closing; reading will tell.
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => Ok(()),
        Err(error) => Err(os_error(py, &error)),
        Ok(()) => Ok(()),
    }
}

/// `transport.writelines(list_of_data)`
pub fn writelines(this: &Bound<'_, SocketTransport>, items: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = this.py();
    let stream = this.get().stream(py);
    let method = if py.version_info() >= (3, 12) { "writelines" } else { "write" };
    check_not_ended(stream, method)?;
    check_not_lent(stream, method)?;
    // All or nothing: a bad item must not leave the ones before it half sent.
    let mut chunks = Vec::new();
    for item in items.try_iter()? {
        let item = item?;
        chunks.push(match item.cast::<PyBytes>() {
            Ok(bytes) => Chunk::Shared(PyBackedBytes::from(bytes.clone())),
            Err(_) => Chunk::Copied(View::readable(&item)?.bytes().to_vec()),
        });
    }
    if chunks.iter().all(|chunk| chunk.as_ref().is_empty()) {
        return Ok(());
    }
    if stream.conn_lost.get() > 0 {
        return warn_lost(py, &stream.conn_lost);
    }
    let waits_for_room = !stream.queue.borrow().is_empty() && !stream.gathering.get();
    for chunk in chunks {
        stream.queue.borrow_mut().push(chunk, 0);
    }
    if !waits_for_room {
        stream.gathering.set(false);
        flush(this, stream)?;
    }
    update_hold(this, stream)?;
    pause_protocol_if_needed(this, stream)
}

/// `transport.write_eof()`
pub fn write_eof(this: &Bound<'_, SocketTransport>) -> PyResult<()> {
    let stream = this.get().stream(this.py());
    if stream.closing.get() || stream.write_ended.replace(true) {
        return Ok(());
    }
    if stream.gathering.get() {
        return send_gathered(this, stream);
    }
    if stream.queue.borrow().is_empty() { end_stream(this.py(), stream) } else { Ok(()) }
}

/// Loses the connection as soon as everything is sent; closing has begun already.
pub fn close_when_sent(this: &Bound<'_, SocketTransport>) -> PyResult<()> {
    let stream = this.get().stream(this.py());
    if stream.gathering.get() {
        return send_gathered(this, stream);
    }
    if stream.queue.borrow().is_empty() && stream.conn_lost.get() == 0 {
        return lose(this, None);
    }
    Ok(())
}

/// `transport.get_write_buffer_size()`
pub fn buffer_size(this: &Bound<'_, SocketTransport>) -> PyResult<usize> {
    let stream = this.get().stream(this.py());
    send_gathered(this, stream)?;
    Ok(stream.queue.borrow().len())
}

/// `transport.set_write_buffer_limits(high, low)`
pub fn set_limits(
    this: &Bound<'_, SocketTransport>,
    high: Option<&Bound<'_, PyAny>>,
    low: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    let (low, high) = flow::limits(high, low, flow::HIGH_WATER)?;
    let stream = this.get().stream(this.py());
    stream.flow.low_water.set(low);
    stream.flow.high_water.set(high);
    keep_within_limits(this, stream)
}
