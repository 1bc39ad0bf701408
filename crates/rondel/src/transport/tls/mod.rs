//! TLS over any transport: OpenSSL through the program's own `ssl.SSLContext`.
//!
//! ```text
//! program's protocol ⇄ TLSTransport (app) ⇄ TLSProtocol (layer) ⇄ transport below ⇄ socket
//!                                                  ⇅ engine
//!                          OpenSSL, directly or as SSLObject between two MemoryBIOs
//! ```
//!
//! | module | what it is |
//! | --- | --- |
//! | [`engine`] | the calls of OpenSSL, or of SSLObject and MemoryBIO |
//! | [`buffers`] | what stands for the MemoryBIOs where there are none |
//! | [`layer`] | the protocol of the transport below: its state and what Python sees of it |
//! | [`phases`] | handshake, shutdown, errors and loss: how a connection goes from state to state |
//! | [`flow`] | data in both directions, with flow control |
//! | [`app`] | the transport that the program sees |
//!
//! The states are those of asyncio's:
//!
//! ```text
//! New ─▶ Handshake ─▶ Wrapped ─▶ Flushing ─▶ Shutdown ─▶ Unwrapped
//! ```
//!
//! `Unwrapped` can be reached from everywhere, by errors and by abort(). Nothing here is reachable by
//! two threads at once, and no borrow of a cell is held across a call into Python.

pub mod app;
pub mod buffers;
pub mod engine;
mod flow;
pub mod layer;
mod phases;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// Ciphertext has come: the native way into [`layer::TlsLayer`] for transports of ours.
#[inline]
pub fn received(layer: &Bound<'_, layer::TlsLayer>, data: &Bound<'_, PyBytes>) -> PyResult<()> {
    phases::data_received(layer, data)
}

/// Whether [`received_memory`] may be called: ciphertext needs no Python object.
#[inline]
pub fn takes_memory(layer: &Bound<'_, layer::TlsLayer>) -> bool {
    layer.get().layer(layer.py()).engine.direct().is_some()
}

/// The same for memory of ours, which comes back.
pub fn received_memory(
    layer: &Bound<'_, layer::TlsLayer>,
    memory: Vec<u8>,
) -> (Vec<u8>, PyResult<()>) {
    let Some(connection) = layer.get().layer(layer.py()).engine.direct() else {
        return (memory, Ok(()));
    };
    connection.pipe().lend(memory);
    let result = phases::proceed(layer);
    (connection.pipe().give_back(), result)
}

/// How far a connection has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// The transport below is not there yet.
    New,
    Handshake,
    /// Data flows.
    Wrapped,
    /// close() was called or the peer has ended: what is queued leaves, what has come is delivered.
    Flushing,
    /// close_notify goes out and, unless the peer is gone, the peer's is waited for.
    Shutdown,
    /// Over, or given up.
    Unwrapped,
}

/// How far the program's protocol has come: connection_made(), eof_received(), connection_lost().
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Told {
    Nothing,
    Made,
    Eof,
    Lost,
}
