//! `SocketTransport.write()` as a raw method: it is called for each answer of a server.

use pyo3::ffi::{Py_ssize_t, PyObject};
use pyo3::prelude::*;

use super::methods::{self, fast, guard, missing, only_argument};
use crate::transport::socket::SocketTransport;
use crate::transport::writing;

const WRITE: (&str, &str) = ("SocketTransport.write", "data");

unsafe extern "C" fn write(
    slf: *mut PyObject,
    args: *const *mut PyObject,
    nargs: Py_ssize_t,
    kwnames: *mut PyObject,
) -> *mut PyObject {
    // SAFETY: called by a method descriptor of SocketTransport with these flags and arguments.
    unsafe {
        guard::<SocketTransport>(slf, |transport| {
            let py = transport.py();
            let data = only_argument(py, WRITE, (args, nargs, kwnames))?;
            writing::write(transport, &data.ok_or_else(|| missing(WRITE))?)?;
            Ok(py.None().into_ptr())
        })
    }
}

/// Puts the raw methods onto the transport's type.
pub fn install(py: Python<'_>) -> PyResult<()> {
    let write = fast(
        c"write",
        c"write($self, data)\n--\n\nSend data; never blocks, what cannot be sent now is queued.",
        write,
    );
    methods::put(&py.get_type::<SocketTransport>(), [write])
}
