//! `SocketTransport.write()` as a raw method: it is called for each answer of a server.

use pyo3::exceptions::PyTypeError;
use pyo3::ffi::{Py_ssize_t, PyObject};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::methods::{self, fast, guard};
use crate::transport::socket::SocketTransport;
use crate::transport::writing;

unsafe extern "C" fn write(
    slf: *mut PyObject,
    args: *const *mut PyObject,
    nargs: Py_ssize_t,
    kwnames: *mut PyObject,
) -> *mut PyObject {
    // SAFETY: called by a method descriptor of SocketTransport with these flags: there are `nargs`
    // values, and one for each name behind them.
    unsafe {
        guard::<SocketTransport>(slf, |transport| {
            let py = transport.py();
            if nargs != 1 || !kwnames.is_null() {
                let names = Bound::from_borrowed_ptr_or_opt(py, kwnames);
                check_named(nargs.unsigned_abs(), names)?;
            }
            // By position or by name, it is the first value.
            writing::write(transport, &Bound::from_borrowed_ptr(py, *args))?;
            Ok(py.None().into_ptr())
        })
    }
}

/// Whether the only argument is called "data".
#[cold]
fn check_named(nargs: usize, names: Option<Bound<'_, PyAny>>) -> PyResult<()> {
    let names: Vec<String> = match &names {
        Some(names) => names.cast::<PyTuple>()?.extract()?,
        None => Vec::new(),
    };
    let problem = match (nargs, names.as_slice()) {
        (0, [name]) if name == "data" => return Ok(()),
        (1, []) => return Ok(()),
        (0, []) => "missing 1 required positional argument: 'data'".to_owned(),
        (1, [name, ..]) if name == "data" => "got multiple values for argument 'data'".to_owned(),
        (0 | 1, names) => {
            let unknown = names.iter().find(|name| *name != "data");
            format!("got an unexpected keyword argument '{}'", unknown.map_or("", String::as_str))
        }
        (count, _) => format!("takes 1 positional argument but {count} were given"),
    };
    Err(PyTypeError::new_err(format!("SocketTransport.write() {problem}")))
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
