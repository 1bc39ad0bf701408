//! The exceptions of `rondel.http.exceptions` that arise here.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::imports;

fn made(result: PyResult<Bound<'_, PyAny>>) -> PyErr {
    result.map_or_else(|error| error, PyErr::from_value)
}

/// The server closed the connection before a response came.
pub fn disconnected(py: Python<'_>) -> PyErr {
    made(imports::server_disconnected(py).and_then(|kind| kind.call0()))
}

/// The server has not begun with the request, and will not: it may be sent again.
pub fn unprocessed(py: Python<'_>) -> PyErr {
    known(py, disconnected(py), true)
}

/// The server has given the request up.
pub fn reset(py: Python<'_>, why: &str) -> PyErr {
    let text = format!("The server has reset the stream: {why}");
    let arguments = (libc::ECONNRESET, text);
    let error = made(imports::client_os_error(py).and_then(|kind| kind.call1(arguments)));
    known(py, error, false)
}

/// With what is known of whether the server has not begun with the request.
fn known(py: Python<'_>, error: PyErr, unprocessed: bool) -> PyErr {
    match error.value(py).setattr(intern!(py, "unprocessed"), unprocessed) {
        Ok(()) => error,
        Err(other) => other,
    }
}

/// The body ended too early, or its coding is wrong.
pub fn incomplete(py: Python<'_>, why: &str) -> PyErr {
    let text = format!("Response payload is not completed: {why}");
    made(imports::client_payload_error(py).and_then(|kind| kind.call1((text,))))
}

/// The body is not encoded as it says.
pub fn undecodable(py: Python<'_>, encoding: &str) -> PyErr {
    let text = format!("400, message:\n  Can not decode content-encoding: {encoding}");
    made(imports::client_payload_error(py).and_then(|kind| kind.call1((text,))))
}

/// What came is no HTTP.
pub fn bad_message(py: Python<'_>, why: &str) -> PyErr {
    made(imports::bad_http_message(py).and_then(|kind| kind.call1((why,))))
}

/// The transport's OSError.
pub fn of_system(cause: &Bound<'_, PyAny>) -> PyErr {
    let py = cause.py();
    made(imports::client_os_error(py).and_then(|kind| {
        let args = cause.getattr(intern!(py, "args"))?;
        kind.call1(args.cast_into::<PyTuple>()?)
    }))
}
