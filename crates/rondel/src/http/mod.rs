//! The HTTP client's hot path: one HTTP/1.1 connection as a protocol of the loop's own transports.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`connection`] | the protocol: sends a request, parses what arrives, tells when it is free again |
//! | [`head`] | a response's first part, parsed and as Python sees it |
//! | [`framing`] | where a body ends: length, chunks, or the connection's end |
//! | [`decode`] | content encodings: gzip, deflate, br, zstd |
//! | [`queue`] | what has arrived of a body and was not read |
//! | [`stream`] | the body as `response.content` |
//! | [`http2`] | a connection that many exchanges share |
//! | [`faults`] | the exceptions |
//! | [`websocket`] | frames of a WebSocket, after the switch of protocols |
//! | [`waiting`] | what an exchange keeps for those who wait for it |
//! | [`wait`] | the awaitable of all reads: no Future when what it wants has arrived |
//!
//! Bytes come from [`crate::transport`], whose TLS is the program's own `ssl.SSLContext`; what happens
//! once per connection (names, connecting, proxies) and the session's rules are `rondel.http` in
//! Python. There is no executor: the transport calls the parser, and the parser wakes the one task
//! that waits.

pub mod connection;
mod decode;
pub mod digest;
mod faults;
mod framing;
pub mod head;
pub mod http2;
mod queue;
pub mod stream;
pub mod wait;
mod waiting;
pub mod websocket;

use std::cell::RefCell;

use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};

use self::waiting::{Slot, Waiting};
use crate::ffi::confined::Confined;

/// What an exchange goes over.
pub enum Lane {
    /// A connection of HTTP/1.1, until the exchange is over.
    Alone(Py<connection::Connection>),
    /// Its part of a connection of HTTP/2.
    Shared(Py<http2::exchange::Exchange>),
}

impl Lane {
    fn clone_ref(&self, py: Python<'_>) -> Self {
        match self {
            Lane::Alone(connection) => Lane::Alone(connection.clone_ref(py)),
            Lane::Shared(exchange) => Lane::Shared(exchange.clone_ref(py)),
        }
    }

    fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        match self {
            Lane::Alone(connection) => visit.call(connection),
            Lane::Shared(exchange) => visit.call(exchange),
        }
    }

    /// The head, if it has arrived.
    fn take_head(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        match self {
            Lane::Alone(connection) => connection.get().take_head(py),
            Lane::Shared(exchange) => exchange.get().take_head(py),
        }
    }

    /// Whether more of the request is taken.
    fn has_room(&self, py: Python<'_>) -> PyResult<bool> {
        match self {
            Lane::Alone(connection) => connection.get().has_room(py),
            Lane::Shared(exchange) => exchange.get().has_room(py),
        }
    }

    /// A future that is done when there is something to look at: a head, or room.
    fn waiter(&self, py: Python<'_>, slot: fn(&Waiting) -> &Slot) -> PyResult<Py<PyAny>> {
        let (waiting, event_loop) = match self {
            Lane::Alone(connection) => (&connection.get().waiting, &connection.get().event_loop),
            Lane::Shared(exchange) => (&exchange.get().waiting, exchange.get().event_loop()),
        };
        waiting.waiter(py, event_loop, slot(waiting))
    }

    fn resume_reading(&self, py: Python<'_>) -> PyResult<()> {
        match self {
            Lane::Alone(connection) => connection.get().resume_reading(py),
            Lane::Shared(exchange) => exchange.get().resume_reading(py),
        }
    }
}

/// Shows the collector what is in a slot.
fn visit_slot<T>(
    slot: &Confined<RefCell<Option<Py<T>>>>,
    visit: &PyVisit<'_>,
) -> Result<(), PyTraverseError> {
    match slot.in_traverse(visit).map(RefCell::try_borrow) {
        Some(Ok(object)) => visit.call(&*object),
        _ => Ok(()),
    }
}

/// Wakes a task that waits for `waiter`.
fn wake(py: Python<'_>, waiter: Option<Py<PyAny>>) -> PyResult<()> {
    if let Some(waiter) = waiter
        && !waiter.call_method0(py, pyo3::intern!(py, "done"))?.is_truthy(py)?
    {
        waiter.call_method1(py, pyo3::intern!(py, "set_result"), (py.None(),))?;
    }
    Ok(())
}
