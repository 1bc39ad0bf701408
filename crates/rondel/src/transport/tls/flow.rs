//! Data in both directions, with flow control.
//!
//! Plaintext that the program writes is encrypted at once as long as the transport below takes it,
//! and the ciphertext of one write() leaves in one write. When the transport below has enough, the
//! plaintext waits as it is: it is the program's own `bytes`, where ciphertext would be a copy.
//!
//! What comes from below is decrypted and delivered in large pieces. While the program has paused
//! reading it waits undecrypted, and when that is too much the transport below is paused too.

use pyo3::exceptions::{PyException, PyRuntimeError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::engine::{Read, joined};
use super::layer::{Layer, TlsLayer, app_transport};
use super::phases::{PROTOCOL_ERROR, call_eof_received, fatal_error, start_shutdown};
use super::{Phase, Told};
use crate::ffi::buffer::View;
use crate::ffi::openssl::Outcome;
use crate::imports;
use crate::streams::delivery;
use crate::transport;

/// asyncio's default high-water marks in bytes.
pub const READ_HIGH_WATER: usize = 256 * 1024;
pub const WRITE_HIGH_WATER: usize = 512 * 1024;
/// The most that a protocol gets in one call, and the most that is encrypted before the transport
/// below gets it.
const PIECE: usize = 256 * 1024;
/// The most plaintext in one TLS record; smaller writes that wait are put together up to that.
const RECORD: usize = 16 * 1024;

/// Makes an exception of data that came or went the end of the connection.
fn guarded(this: &Bound<'_, TlsLayer>, result: PyResult<()>) -> PyResult<()> {
    match result {
        Err(error) if error.is_instance_of::<PyException>(this.py()) => {
            fatal_error(this, error, PROTOCOL_ERROR)
        }
        other => other,
    }
}

// ---- from the peer to the program

/// Decrypts what there is and delivers it.
pub fn read(this: &Bound<'_, TlsLayer>) -> PyResult<()> {
    let layer = this.get().layer(this.py());
    if !matches!(layer.phase.get(), Phase::Wrapped | Phase::Flushing) {
        return Ok(());
    }
    let result = deliver(this, layer).and_then(|()| control_lower_reading(this, layer));
    guarded(this, result)
}

/// Whether the program is to get data now.
fn may_deliver(layer: &Layer) -> bool {
    !layer.app_reading_paused.get()
        && matches!(layer.phase.get(), Phase::Wrapped | Phase::Flushing)
        && layer.told.get() == Told::Made
}

fn deliver(this: &Bound<'_, TlsLayer>, layer: &Layer) -> PyResult<()> {
    if layer.app_reading_paused.get() {
        return Ok(());
    }
    // The program may pause, abort or set another protocol in each call.
    while may_deliver(layer) {
        let more = if layer.buffered.get() {
            deliver_buffer(this, layer)
        } else {
            deliver_bytes(this, layer)
        };
        if !more? {
            break;
        }
    }
    // OpenSSL may have something to say itself, and writes may have waited for what has come.
    if layer.backlog_size.get() > 0 { write_some(this, layer, false) } else { send_outgoing(this) }
}

/// Delivers a piece of up to about [`PIECE`] bytes; whether there may be more.
fn deliver_bytes(this: &Bound<'_, TlsLayer>, layer: &Layer) -> PyResult<bool> {
    let py = this.py();
    let (data, outcome) = layer.engine.read(py, PIECE);
    if let Some(data) = data
        && let Some(protocol) = layer.protocol(py)
    {
        delivery::data_received(&protocol, data)?;
    }
    go_on(this, outcome)
}

/// What follows from how a read ended: whether there may be more.
fn go_on(this: &Bound<'_, TlsLayer>, outcome: PyResult<Read<()>>) -> PyResult<bool> {
    match outcome? {
        Read::Some(()) => Ok(true),
        Read::Wanting => Ok(false),
        Read::End => end(this).map(|()| false),
    }
}

/// Decrypts into the buffer of a BufferedProtocol; whether there may be more.
fn deliver_buffer(this: &Bound<'_, TlsLayer>, layer: &Layer) -> PyResult<bool> {
    let py = this.py();
    if !layer.engine.may_read(py)? {
        return Ok(false);
    }
    let Some(protocol) = layer.protocol(py) else { return Ok(false) };
    let hint = layer.engine.undecrypted(py)?;
    let buffer = protocol.call_method1(intern!(py, "get_buffer"), (hint,))?;
    let capacity = View::writable(&buffer)?.len();
    if capacity == 0 {
        return Err(PyRuntimeError::new_err("get_buffer() returned an empty buffer"));
    }
    let (filled, outcome) = layer.engine.read_into(&buffer, capacity);
    drop(buffer);
    if filled > 0 {
        protocol.call_method1(intern!(py, "buffer_updated"), (filled,))?;
    }
    go_on(this, outcome)
}

/// The peer has sent close_notify.
fn end(this: &Bound<'_, TlsLayer>) -> PyResult<()> {
    call_eof_received(this)?;
    start_shutdown(this)
}

/// Pauses the transport below when too much waits for the program, and resumes it.
pub fn control_lower_reading(this: &Bound<'_, TlsLayer>, layer: &Layer) -> PyResult<()> {
    let py = this.py();
    let paused = layer.lower_reading_paused.get();
    if !paused && !layer.app_reading_paused.get() {
        return Ok(()); // all has been read
    }
    let size = layer.engine.undecrypted(py)?;
    let method = if !paused && size >= layer.read_high.get().max(1) {
        intern!(py, "pause_reading")
    } else if paused && size <= layer.read_low.get() {
        intern!(py, "resume_reading")
    } else {
        return Ok(());
    };
    layer.lower_reading_paused.set(!paused);
    match layer.lower_object(py) {
        Some(lower) => lower.call_method0(method).map(drop),
        None => Ok(()),
    }
}

// ---- from the program to the peer

/// Encrypts and sends plaintext that nothing is before; queues a copy of what cannot leave now.
pub fn write_memory(this: &Bound<'_, TlsLayer>, data: &[u8]) -> PyResult<()> {
    let py = this.py();
    let layer = this.get().layer(py);
    let mut written = 0;
    if layer.phase.get() == Phase::Wrapped
        && layer.backlog_size.get() == 0
        && !layer.lower_writing_paused.get()
        && let Some(connection) = layer.engine.direct()
    {
        let end = data.len().min(PIECE);
        while written < end
            && let Outcome::Done(count) = connection.write(py, &data[written..end])
        {
            written += count;
        }
    }
    // Copied before anything else can run, which may change the program's buffer.
    let rest = (written < data.len()).then(|| PyBytes::new(py, &data[written..]));
    if written > 0 {
        guarded(this, give_outgoing(py, layer))?;
    }
    match rest {
        Some(rest) => write_all(this, vec![rest]),
        None => control_app_writing(this),
    }
}

/// Queues plaintext and encrypts what may be; writes after the end are counted.
pub fn write_all(this: &Bound<'_, TlsLayer>, items: Vec<Bound<'_, PyBytes>>) -> PyResult<()> {
    let py = this.py();
    let layer = this.get().layer(py);
    if matches!(layer.phase.get(), Phase::Flushing | Phase::Shutdown | Phase::Unwrapped) {
        return warn_closed(py, layer);
    }
    for item in items {
        let size = item.as_bytes().len();
        if size > 0 {
            layer.backlog_size.set(layer.backlog_size.get() + size);
            layer.backlog.borrow_mut().push_back(item.unbind());
        }
    }
    if layer.phase.get() == Phase::Wrapped {
        return write(this, false);
    }
    control_app_writing(this)
}

#[cold]
fn warn_closed(py: Python<'_>, layer: &Layer) -> PyResult<()> {
    /// Writes after the end before a warning is logged (asyncio's figure).
    const THRESHOLD: u32 = 5;
    if layer.conn_lost.get() >= THRESHOLD {
        imports::logger(py)?.call_method1("warning", ("SSL connection is closed",))?;
    }
    layer.conn_lost.set(layer.conn_lost.get().saturating_add(1));
    Ok(())
}

/// Encrypts what is queued: as much as the transport below takes, or `all` of it before the end.
pub fn write(this: &Bound<'_, TlsLayer>, all: bool) -> PyResult<()> {
    let layer = this.get().layer(this.py());
    guarded(this, write_some(this, layer, all))
}

fn write_some(this: &Bound<'_, TlsLayer>, layer: &Layer, all: bool) -> PyResult<()> {
    while layer.backlog_size.get() > 0 && (all || !layer.lower_writing_paused.get()) {
        let goes_on = encrypt_piece(this.py(), layer)?;
        give_outgoing(this.py(), layer)?;
        if !goes_on {
            break;
        }
    }
    control_app_writing(this)
}

/// Encrypts up to [`PIECE`] bytes; false when the peer must send something first.
fn encrypt_piece(py: Python<'_>, layer: &Layer) -> PyResult<bool> {
    let mut encrypted = 0;
    while encrypted < PIECE {
        let Some((data, offset)) = next_to_encrypt(py, layer)? else { break };
        let size = data.as_bytes().len();
        let written = layer.engine.write(&data, offset);
        let count = written.as_ref().map_or(0, |count| count.unwrap_or(0));
        let left = size - offset - count.min(size - offset);
        layer.backlog_size.set(layer.backlog_size.get().saturating_sub(count));
        if left > 0 {
            layer.offset.set(offset + count);
            layer.backlog.borrow_mut().push_front(data.unbind());
        }
        if written?.is_none() {
            return Ok(false);
        }
        encrypted += count;
    }
    Ok(true)
}

/// Takes the first of the backlog out, with how much of it is encrypted already. Small ones are put
/// together, so that they share a record.
fn next_to_encrypt<'py>(
    py: Python<'py>,
    layer: &Layer,
) -> PyResult<Option<(Bound<'py, PyBytes>, usize)>> {
    let offset = layer.offset.take();
    let mut backlog = layer.backlog.borrow_mut();
    let Some(first) = backlog.pop_front() else { return Ok(None) };
    let mut size = first.as_bytes(py).len();
    if offset > 0 || backlog.is_empty() || size >= RECORD {
        return Ok(Some((first.into_bound(py), offset)));
    }
    let mut group = vec![first.into_bound(py)];
    while let Some(next) = backlog.front() {
        let next_size = next.as_bytes(py).len();
        if size + next_size > RECORD {
            break;
        }
        size += next_size;
        group.extend(backlog.pop_front().map(|next| next.into_bound(py)));
    }
    drop(backlog);
    match group.len() {
        1 => Ok(group.pop().map(|only| (only, 0))),
        _ => Ok(Some((joined(py, &group)?, 0))),
    }
}

/// Gives ciphertext to the transport below, unless that has enough.
fn give_outgoing(py: Python<'_>, layer: &Layer) -> PyResult<()> {
    if layer.lower_writing_paused.get() {
        return Ok(());
    }
    let Some(connection) = layer.engine.direct() else {
        let data = layer.engine.take_outgoing(py)?;
        return if data.as_bytes().is_empty() { Ok(()) } else { layer.lower_write(&data) };
    };
    if connection.pipe().outgoing() == 0 {
        return Ok(());
    }
    let data = connection.pipe().take_outgoing();
    let result = layer.lower_write_memory(py, &data);
    connection.pipe().reuse(data);
    result
}

/// The same, and tells the program when its queue has become short.
pub fn send_outgoing(this: &Bound<'_, TlsLayer>) -> PyResult<()> {
    give_outgoing(this.py(), this.get().layer(this.py()))?;
    control_app_writing(this)
}

/// resume_writing() of the transport below.
pub fn lower_resumed(this: &Bound<'_, TlsLayer>) -> PyResult<()> {
    let layer = this.get().layer(this.py());
    layer.lower_writing_paused.set(false);
    send_outgoing(this)?;
    if layer.backlog_size.get() > 0 && layer.phase.get() == Phase::Wrapped {
        return write(this, false);
    }
    Ok(())
}

/// Plaintext and ciphertext that the transport below has not taken.
pub fn write_buffer_size(py: Python<'_>, layer: &Layer) -> PyResult<usize> {
    // What is not held back has left.
    let held_back = layer.lower_writing_paused.get();
    let unsent = if held_back { layer.engine.unsent(py)? } else { 0 };
    Ok(layer.backlog_size.get() + unsent)
}

/// Asks the program to pause when its queue is beyond the limit, and to resume.
pub fn control_app_writing(this: &Bound<'_, TlsLayer>) -> PyResult<()> {
    let py = this.py();
    let layer = this.get().layer(py);
    let size = write_buffer_size(py, layer)?;
    let paused = layer.app_writing_paused.get();
    if !paused && size >= layer.write_high.get().max(1) {
        layer.app_writing_paused.set(true);
        tell_program(this, layer, "pause_writing")
    } else if paused && size <= layer.write_low.get() {
        layer.app_writing_paused.set(false);
        tell_program(this, layer, "resume_writing")
    } else {
        Ok(())
    }
}

fn tell_program(this: &Bound<'_, TlsLayer>, layer: &Layer, method: &'static str) -> PyResult<()> {
    let py = this.py();
    let Some(protocol) = layer.protocol(py) else { return Ok(()) };
    let Err(error) = protocol.call_method0(method) else { return Ok(()) };
    if crate::event_loop::exceptions::must_propagate(py, &error) {
        return Err(error);
    }
    let message = format!("protocol.{method}() failed");
    let Some(app) = app_transport(this)? else { return Ok(()) };
    let event_loop = layer.event_loop.bind(py);
    transport::report(event_loop, &message, &error, &app, Some(this.clone().into_any()))
}
