//! Transports.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`socket`] | connected stream sockets |
//! | [`reading`] | their reading side: into `bytes` or into the protocol's own buffer |
//! | [`writing`] | their writing side: send at once, gather, flush, flow control |
//! | [`endpoint`] | who owns the descriptor, and what get_extra_info() knows of it |
//! | [`listener`] | accepting connections |
//! | [`tls`] | TLS over any transport |
//! | [`address`] | socket addresses as Python has them |

pub mod address;
pub mod endpoint;
pub mod listener;
pub mod reading;
pub mod socket;
pub mod tls;
pub mod writing;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::event_loop::{Loop, State, exceptions};

/// Sends what transports gathered during a callback.
#[cold]
pub fn flush_gathered(py: Python<'_>, state: &State) {
    // A flush can make a protocol write again, to this transport or another.
    loop {
        let gathered = state.unflushed.take();
        if gathered.is_empty() {
            return;
        }
        for transport in gathered {
            if let Ok(transport) = transport.bind(py).cast::<socket::SocketTransport>() {
                writing::flush_gathered(transport);
            }
        }
    }
}

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
