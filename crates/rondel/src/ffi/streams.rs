//! The methods of streams that are called for each packet, as raw methods.
//!
//! They are put onto the native classes, and once more onto rondel's own below them: the interpreter
//! calls a method faster whose type is the object's own, not a base of it.

use pyo3::ffi::{Py_ssize_t, PyObject};
use pyo3::prelude::*;
use pyo3::types::PyType;

use super::methods::{self, fast, guard, missing, noargs, only_argument};
use super::operation::Operation;
use crate::streams::operation::Kind;
use crate::streams::reader::{self, StreamReader};
use crate::streams::writer::{self, StreamWriter};

const READ: (&str, &str) = ("StreamReader.read", "n");
const WRITE: (&str, &str) = ("StreamWriter.write", "data");

unsafe extern "C" fn read(
    slf: *mut PyObject,
    args: *const *mut PyObject,
    nargs: Py_ssize_t,
    kwnames: *mut PyObject,
) -> *mut PyObject {
    // SAFETY: called by a method descriptor of StreamReader with these flags and arguments.
    unsafe {
        guard::<StreamReader>(slf, |reader| {
            let n = only_argument(reader.py(), READ, (args, nargs, kwnames))?;
            reader::read(reader, n.as_ref()).map(Bound::into_ptr)
        })
    }
}

unsafe extern "C" fn readline(slf: *mut PyObject, _unused: *mut PyObject) -> *mut PyObject {
    // SAFETY: called by a method descriptor of StreamReader.
    unsafe { guard::<StreamReader>(slf, |reader| reader::readline(reader).map(Bound::into_ptr)) }
}

unsafe extern "C" fn write(
    slf: *mut PyObject,
    args: *const *mut PyObject,
    nargs: Py_ssize_t,
    kwnames: *mut PyObject,
) -> *mut PyObject {
    // SAFETY: called by a method descriptor of StreamWriter with these flags and arguments.
    unsafe {
        guard::<StreamWriter>(slf, |writer| {
            let py = writer.py();
            let data = only_argument(py, WRITE, (args, nargs, kwnames))?;
            writer::write(writer, &data.ok_or_else(|| missing(WRITE))?)?;
            Ok(py.None().into_ptr())
        })
    }
}

unsafe extern "C" fn drain(slf: *mut PyObject, _unused: *mut PyObject) -> *mut PyObject {
    // SAFETY: called by a method descriptor of StreamWriter.
    unsafe {
        guard::<StreamWriter>(slf, |writer| {
            Operation::create(Kind::Drain, writer, None, 0).map(Bound::into_ptr)
        })
    }
}

/// Puts the raw methods onto StreamReader, or a subclass of it.
pub fn install_reader(class: &Bound<'_, PyType>) -> PyResult<()> {
    let methods = [
        fast(
            c"read",
            c"read($self, n=-1)\n--\n\nRead up to n bytes as soon as there are any; with n = -1 everything up to the end.",
            read,
        ),
        noargs(
            c"readline",
            c"readline($self, /)\n--\n\nRead up to and including a newline, or to the end; ValueError when that is beyond the limit.",
            readline,
        ),
    ];
    methods::put(class, methods)
}

/// Puts the raw methods onto StreamWriter, or a subclass of it.
pub fn install_writer(class: &Bound<'_, PyType>) -> PyResult<()> {
    let methods = [
        fast(
            c"write",
            c"write($self, data)\n--\n\nSend data; never blocks, what cannot be sent now is queued: await drain() afterwards.",
            write,
        ),
        noargs(
            c"drain",
            c"drain($self, /)\n--\n\nWait until there is room for more.",
            drain,
        ),
    ];
    methods::put(class, methods)
}
