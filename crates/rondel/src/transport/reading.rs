//! The reading side of stream sockets.
//!
//! Sources are edge-triggered: an event promises data until a read comes back short. A transport
//! that stops earlier (paused, closing, or its share of the turn used up) reads again by itself
//! later. A short read says so of TCP only: on a Unix socket the kernel ends a read where a
//! descriptor was passed or the sender's credentials change, whatever follows, which [`receive`] asks
//! it to tell.
//!
//! Small reads land in the loop's scratch memory and are copied into `bytes` of the right size. A
//! connection that fills it gets large `bytes` to read into directly, until its reads are small
//! again. A BufferedProtocol gives its own memory, and so does a StreamReader.

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::RawFd;

use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use rondel_reactor::net;

use super::ending::fatal_error;
use super::socket::{SocketTransport, Stream, update_hold};
use super::tls::layer::TlsLayer;
use super::{tls, writing};
use crate::errors::os_error;
use crate::event_loop::State;
use crate::ffi::buffer::{View, bytes_filled_by};
use crate::ffi::context;
use crate::imports;
use crate::streams::delivery::{self, Receiver};
use crate::streams::reader::{self, StreamReader};

/// The most that a protocol gets in one call (asyncio's figure).
pub const MAX_READ: usize = 256 * 1024;
/// Scratch memory; from this size on copying costs more than allocating.
pub const SCRATCH: usize = 32 * 1024;
/// The most that it grows to.
const MOST_SCRATCH: usize = 64 * 1024;
/// Reads of one connection in one turn, so that a fast peer cannot starve the others.
pub const READS_PER_TURN: usize = 4;

const READ_ERROR: &str = "Fatal read error on socket transport";
const DELIVERY_ERROR: &str = "Fatal error: protocol.data_received() call failed.";

enum Outcome {
    /// Everything that had arrived was taken.
    Drained,
    /// The read came back short, which does not mean that.
    Short,
    /// The read was as large as it could be: there may be more.
    Filled,
    /// Nothing was there, or the connection is over.
    Done,
}

/// The socket is readable. `to_the_end` tells that the peer has closed, so short reads do not mean
/// that nothing follows.
pub fn ready(this: &Bound<'_, SocketTransport>, to_the_end: bool) -> PyResult<()> {
    let stream = this.get().stream(this.py());
    if stream.read_scheduled.get() {
        return Ok(()); // its turn comes, and it reads to the end
    }
    let result = read_a_share(this, stream, to_the_end);
    if result.is_err() && stream.is_reading() {
        // The exception leaves the loop; what has arrived is read in the next run.
        read_later(this, stream);
    }
    result
}

fn read_a_share(
    this: &Bound<'_, SocketTransport>,
    stream: &Stream,
    to_the_end: bool,
) -> PyResult<()> {
    stream.read_size.begin_turn();
    stream.written.set(0);
    for _ in 0..READS_PER_TURN {
        if !stream.is_reading() {
            return Ok(());
        }
        let outcome = if stream.buffered.get() {
            read_into_protocol(this, stream)?
        } else {
            read_bytes(this, stream)?
        };
        match outcome {
            Outcome::Done => return Ok(()),
            Outcome::Drained if !to_the_end => return Ok(()),
            Outcome::Drained | Outcome::Short => {}
            // One large piece is a turn's share.
            Outcome::Filled if stream.read_size.get() >= MAX_READ => break,
            Outcome::Filled => {}
        }
    }
    read_later(this, stream);
    Ok(())
}

/// Reads in the next turn, whatever the poller says.
pub fn read_later(this: &Bound<'_, SocketTransport>, stream: &Stream) {
    if stream.read_scheduled.replace(true) {
        return;
    }
    if let Some(event_loop) = stream.event_loop(this.py()) {
        let target = this.clone().into_any().unbind();
        event_loop.get().state(this.py()).push_step(target, read_again);
    }
}

/// Step: goes on where a turn's share was used up, or where reading was resumed.
fn read_again(target: &Bound<'_, PyAny>) -> PyResult<()> {
    let this = target.cast::<SocketTransport>()?;
    this.get().stream(this.py()).read_scheduled.set(false);
    // Whether the peer has closed meanwhile is not known here: read until nothing comes.
    ready(this, true)
}

/// `transport.resume_reading()`
pub fn resume(this: &Bound<'_, SocketTransport>) -> PyResult<()> {
    let stream = this.get().stream(this.py());
    if stream.closing.get() || !stream.read_paused.replace(false) {
        return Ok(());
    }
    if stream.key.get().is_some() {
        // The event may have come while reading was paused.
        read_later(this, stream);
    }
    update_hold(this, stream)?;
    log_in_debug(this, stream, "resumes reading")
}

/// `transport.pause_reading()`
pub fn pause(this: &Bound<'_, SocketTransport>) -> PyResult<()> {
    let stream = this.get().stream(this.py());
    if stream.closing.get() || stream.read_paused.replace(true) {
        return Ok(());
    }
    update_hold(this, stream)?;
    log_in_debug(this, stream, "pauses reading")
}

fn log_in_debug(this: &Bound<'_, SocketTransport>, stream: &Stream, what: &str) -> PyResult<()> {
    let py = this.py();
    if let Some(event_loop) = stream.event_loop(py)
        && event_loop.get().state(py).debug.get()
    {
        imports::logger(py)?.call_method1("debug", (format!("%r {what}"), this))?;
    }
    Ok(())
}

/// What a read of so many bytes says when the kernel was not asked for more than that.
fn outcome_of(stream: &Stream, received: usize, capacity: usize) -> Outcome {
    if received == capacity {
        Outcome::Filled
    } else if stream.endpoint.is_tcp() {
        Outcome::Drained
    } else {
        Outcome::Short
    }
}

fn read_bytes(this: &Bound<'_, SocketTransport>, stream: &Stream) -> PyResult<Outcome> {
    let py = this.py();
    let Some(protocol) = stream.protocol(py) else { return Ok(Outcome::Done) };
    let layer = protocol.cast_exact::<TlsLayer>().ok();
    if let Some(layer) = layer.filter(|layer| tls::takes_memory(layer)) {
        return read_ciphertext(this, stream, layer);
    }
    let receiver = match layer {
        Some(_) => Receiver::Protocol,
        None => delivery::receiver(&protocol)?,
    };
    if let Receiver::Reader(reader) = &receiver {
        return read_into_reader(this, stream, reader);
    }
    let Some((data, capacity, cut)) = receive(this, stream)? else { return Ok(Outcome::Done) };
    let received = data.as_bytes().len();
    if received == 0 {
        return end_of_file(this, stream).map(|()| Outcome::Done);
    }
    stream.read_size.learn(received, capacity);
    let called = context::run_in(stream.context.bind(py), || match layer {
        Some(layer) => tls::received(layer, &data),
        None => delivery::give(&protocol, &receiver, data),
    });
    if let Err(error) = called {
        fatal_error(this, error, DELIVERY_ERROR)?;
        return Ok(Outcome::Done);
    }
    Ok(match outcome_of(stream, received, capacity) {
        Outcome::Short if !cut => Outcome::Drained,
        outcome => outcome,
    })
}

/// Receives into a StreamReader of ours. A read(n) that waits for the first bytes gets `bytes` that
/// are not copied again, and as much as it takes; then the reader's task comes first.
fn read_into_reader(
    this: &Bound<'_, SocketTransport>,
    stream: &Stream,
    reader: &Bound<'_, StreamReader>,
) -> PyResult<Outcome> {
    let py = this.py();
    let reader = reader.get().state(py);
    let Some(event_loop) = stream.event_loop(py) else { return Ok(Outcome::Done) };
    let (fd, size, wanted) = (stream.endpoint.fd(py), stream.read_size.get(), reader.wanted.get());
    let state = event_loop.get().state(py);
    let result = if wanted > 0 {
        let size = if size > SCRATCH { size.min(wanted.max(SCRATCH)) } else { size };
        receive_by(py, state, fd, size, (net::recv, net::recv_uninit))?.map(|(data, capacity)| {
            let received = data.as_bytes().len();
            let kept = if received > 0 { reader.append(data) } else { Ok(()) };
            kept.map(|()| (received, capacity))
        })
    } else {
        receive_behind(py, state, fd, size, reader)
    };
    let (received, capacity) = match result {
        Ok(received) => received?,
        Err(error) if net::is_retry(&error) => return Ok(Outcome::Done),
        Err(error) => {
            fatal_error(this, os_error(py, &error), READ_ERROR)?;
            return Ok(Outcome::Done);
        }
    };
    if received == 0 {
        return end_of_file(this, stream).map(|()| Outcome::Done);
    }
    stream.read_size.learn(received, capacity);
    if let Err(error) = reader.fed(py) {
        fatal_error(this, error, DELIVERY_ERROR)?;
        return Ok(Outcome::Done);
    }
    if received < capacity {
        return Ok(outcome_of(stream, received, capacity));
    }
    if wanted > 0 && stream.is_reading() {
        read_later(this, stream);
        return Ok(Outcome::Done);
    }
    Ok(Outcome::Filled)
}

/// Receives behind what the reader's buffer holds; returns how much, of how much it could have been.
fn receive_behind(
    py: Python<'_>,
    state: &State,
    fd: RawFd,
    size: usize,
    reader: &reader::State,
) -> io::Result<PyResult<(usize, usize)>> {
    let mut buffer = reader.buffer.borrow_mut();
    if size > SCRATCH
        && let Some(memory) = buffer.own_memory(py, size)
    {
        return net::recv_append(fd, memory, size).map(|received| Ok((received, size)));
    }
    let mut scratch = take_scratch(state, SCRATCH);
    let received = net::recv(fd, &mut scratch[..SCRATCH]);
    let result = received
        .map(|received| buffer.append(py, &scratch[..received]).map(|()| (received, SCRATCH)));
    drop(state.scratch.replace(scratch));
    result
}

/// Ciphertext needs no object: it goes from the loop's memory to OpenSSL.
fn read_ciphertext(
    this: &Bound<'_, SocketTransport>,
    stream: &Stream,
    layer: &Bound<'_, TlsLayer>,
) -> PyResult<Outcome> {
    let py = this.py();
    let Some(event_loop) = stream.event_loop(py) else { return Ok(Outcome::Done) };
    let state = event_loop.get().state(py);
    let capacity = stream.read_size.get().max(SCRATCH);
    let mut memory = state.ciphertext.take();
    let received = match net::recv_vec(stream.endpoint.fd(py), &mut memory, capacity) {
        Ok(0) => end_of_file(this, stream).map(|()| None),
        Ok(received) => Ok(Some(received)),
        Err(error) if net::is_retry(&error) => Ok(None),
        Err(error) => fatal_error(this, os_error(py, &error), READ_ERROR).map(|()| None),
    };
    let Some(received) = received? else {
        state.ciphertext.replace(memory);
        return Ok(Outcome::Done);
    };
    stream.read_size.learn(received, capacity);
    let (memory, called) =
        context::run_in(stream.context.bind(py), || Ok(tls::received_memory(layer, memory)))?;
    state.ciphertext.replace(memory);
    if let Err(error) = called {
        fatal_error(this, error, "Fatal error: protocol.data_received() call failed.")?;
        return Ok(Outcome::Done);
    }
    Ok(outcome_of(stream, received, capacity))
}

/// Receives into new bytes; returns them with how many they could have been, and whether a read that
/// came back short may have left something. None when nothing was there or the connection failed.
fn receive<'py>(
    this: &Bound<'py, SocketTransport>,
    stream: &Stream,
) -> PyResult<Option<(Bound<'py, PyBytes>, usize, bool)>> {
    let py = this.py();
    let fd = stream.endpoint.fd(py);
    let size = stream.read_size.get();
    let Some(event_loop) = stream.event_loop(py) else { return Ok(None) };
    let state = event_loop.get().state(py);
    let cut = Cell::new(!stream.endpoint.is_tcp());
    let received = if stream.endpoint.is_unix() {
        let note = |(received, is_cut)| {
            cut.set(is_cut);
            received
        };
        let calls = (
            |fd, memory: &mut [u8]| net::recv_told(fd, memory).map(note),
            |fd, memory: &mut [MaybeUninit<u8>]| net::recv_uninit_told(fd, memory).map(note),
        );
        receive_by(py, state, fd, size, calls)?
    } else {
        receive_by(py, state, fd, size, (net::recv, net::recv_uninit))?
    };
    match received {
        Ok((data, capacity)) => Ok(Some((data, capacity, cut.get()))),
        Err(error) if net::is_retry(&error) => Ok(None),
        Err(error) => {
            fatal_error(this, os_error(py, &error), READ_ERROR)?;
            Ok(None)
        }
    }
}

/// Reads up to `size` bytes, or a scratch full, into new bytes; returns them with how many they
/// could have been. The calls are the system's: into scratch memory, and into new `bytes`.
pub fn receive_by<'py>(
    py: Python<'py>,
    state: &State,
    fd: RawFd,
    size: usize,
    (into_scratch, into_bytes): (
        impl FnOnce(RawFd, &mut [u8]) -> io::Result<usize>,
        impl FnOnce(RawFd, &mut [MaybeUninit<u8>]) -> io::Result<usize>,
    ),
) -> PyResult<io::Result<(Bound<'py, PyBytes>, usize)>> {
    if size > SCRATCH {
        let received = bytes_filled_by(py, size, |memory| into_bytes(fd, memory))?;
        return Ok(received.map(|data| (data, size)));
    }
    let mut scratch = take_scratch(state, SCRATCH);
    let received = into_scratch(fd, &mut scratch[..SCRATCH]);
    let data = received.map(|count| (PyBytes::new(py, &scratch[..count]), SCRATCH));
    state.scratch.replace(scratch);
    Ok(data)
}

/// The loop's scratch memory, of that size at least. It is taken out while bytes are allocated from it:
/// allocating can run the collector.
fn take_scratch(state: &State, size: usize) -> Vec<u8> {
    let mut scratch = state.scratch.take();
    if scratch.len() < size {
        scratch.resize(size, 0);
    }
    scratch
}

/// Receives once, up to `size` bytes, into new bytes; for a program that asks for more than it
/// usually gets. A datagram is not cut off, so there must be room for all that was asked for.
pub fn receive_at_most<'py>(
    py: Python<'py>,
    state: &State,
    fd: RawFd,
    size: usize,
) -> PyResult<io::Result<Bound<'py, PyBytes>>> {
    let received = if size > MOST_SCRATCH || state.receives_large.get() {
        bytes_filled_by(py, size, |memory| net::recv_uninit(fd, memory))?
    } else {
        let mut scratch = take_scratch(state, size);
        let received = net::recv(fd, &mut scratch[..size]);
        let data = received.map(|count| PyBytes::new(py, &scratch[..count]));
        state.scratch.replace(scratch);
        data
    };
    if let Ok(data) = &received {
        state.receives_large.set(data.as_bytes().len() > SCRATCH);
    }
    Ok(received)
}

fn read_into_protocol(this: &Bound<'_, SocketTransport>, stream: &Stream) -> PyResult<Outcome> {
    let py = this.py();
    let Some(protocol) = stream.protocol(py) else { return Ok(Outcome::Done) };
    let context = stream.context.bind(py);
    let buffer = context::run_in(context, || {
        let buffer = protocol.call_method1(intern!(py, "get_buffer"), (-1,))?;
        if buffer.len()? == 0 {
            return Err(PyRuntimeError::new_err("get_buffer() returned an empty buffer"));
        }
        Ok(buffer)
    });
    let buffer = match buffer {
        Ok(buffer) => buffer,
        Err(error) => {
            fatal_error(this, error, "Fatal error: protocol.get_buffer() call failed.")?;
            return Ok(Outcome::Done);
        }
    };
    let received = View::writable(&buffer).and_then(|mut view| {
        let capacity = view.len();
        match net::recv_uninit(stream.endpoint.fd(py), view.bytes_mut()) {
            Ok(received) => Ok(Some((received, capacity))),
            Err(error) if net::is_retry(&error) => Ok(None),
            Err(error) => Err(os_error(py, &error)),
        }
    });
    let (received, capacity) = match received {
        Ok(Some(received)) => received,
        Ok(None) => return Ok(Outcome::Done),
        Err(error) => {
            fatal_error(this, error, READ_ERROR)?;
            return Ok(Outcome::Done);
        }
    };
    if received == 0 {
        return end_of_file(this, stream).map(|()| Outcome::Done);
    }
    let called = context::run_in(context, || {
        protocol.call_method1(intern!(py, "buffer_updated"), (received,))
    });
    if let Err(error) = called {
        fatal_error(this, error, "Fatal error: protocol.buffer_updated() call failed.")?;
        return Ok(Outcome::Done);
    }
    Ok(outcome_of(stream, received, capacity))
}

fn end_of_file(this: &Bound<'_, SocketTransport>, stream: &Stream) -> PyResult<()> {
    let py = this.py();
    log_in_debug(this, stream, "received EOF")?;
    let keep_open = match stream.call_protocol(py, intern!(py, "eof_received")) {
        Ok(answer) => answer.map_or(Ok(false), |answer| answer.is_truthy()),
        Err(error) => Err(error),
    };
    match keep_open {
        Ok(true) => {
            stream.read_ended.set(true);
            update_hold(this, stream)
        }
        Ok(false) if stream.closing.get() => Ok(()),
        Ok(false) => {
            stream.closing.set(true);
            writing::close_when_sent(this)
        }
        Err(error) => fatal_error(this, error, "Fatal error: protocol.eof_received() call failed."),
    }
}
