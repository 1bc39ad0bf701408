//! The calls of `ssl.SSLObject` and `ssl.MemoryBIO`.
//!
//! A packet costs no Python frame: SSLObject's methods are Python functions around those of
//! `_ssl._SSLSocket`, which are called directly. A context whose `sslobject_class` is a subclass may
//! have methods of its own, and those are called then.
//!
//! That there is nothing to read is an exception in the ssl module, and raising costs more than
//! reading a small message. What the BIO and OpenSSL still hold tells in advance.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use pyo3::{PyTraverseError, PyVisit};

use crate::imports;

/// The most that a TLS record carries.
const RECORD: usize = 16 * 1024;
/// What is read at once of a small message.
const SMALL: usize = 4 * 1024;

/// What came of reading.
pub enum Read<T> {
    Some(T),
    /// The peer must send more first.
    Wanting,
    /// The peer has sent close_notify.
    End,
}

/// A TLS connection without input and output of its own.
pub struct Engine {
    incoming: Py<PyAny>,
    outgoing: Py<PyAny>,
    /// The `ssl.SSLObject` that the program sees.
    object: Py<PyAny>,
    /// What its methods are called on.
    native: Py<PyAny>,
    /// `native` is OpenSSL's own, whose pending() can be believed.
    is_native: bool,
}

impl Engine {
    /// # Errors
    /// What `wrap_bio` raises: `ssl.SSLError`, `ValueError` for a bad host name.
    pub fn new(
        context: &Bound<'_, PyAny>,
        server_side: bool,
        server_hostname: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let py = context.py();
        let incoming = imports::memory_bio(py)?.call0()?;
        let outgoing = imports::memory_bio(py)?.call0()?;
        let options = PyDict::new(py);
        options.set_item(intern!(py, "server_side"), server_side)?;
        options.set_item(intern!(py, "server_hostname"), server_hostname)?;
        let object =
            context.call_method(intern!(py, "wrap_bio"), (&incoming, &outgoing), Some(&options))?;
        let stock = object.get_type().is(imports::ssl_object(py)?);
        let native = if stock { object.getattr_opt(intern!(py, "_sslobj"))? } else { None };
        Ok(Engine {
            incoming: incoming.unbind(),
            outgoing: outgoing.unbind(),
            is_native: native.is_some(),
            native: native.unwrap_or_else(|| object.clone()).unbind(),
            object: object.unbind(),
        })
    }

    /// The `ssl.SSLObject`.
    pub fn object<'py>(&self, py: Python<'py>) -> &Bound<'py, PyAny> {
        self.object.bind(py)
    }

    /// The BIO that holds what came from the transport below.
    pub fn incoming<'py>(&self, py: Python<'py>) -> &Bound<'py, PyAny> {
        self.incoming.bind(py)
    }

    /// The BIO that holds what goes to the transport below.
    pub fn outgoing<'py>(&self, py: Python<'py>) -> &Bound<'py, PyAny> {
        self.outgoing.bind(py)
    }

    /// Takes what came from the transport below.
    pub fn feed(&self, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = data.py();
        self.incoming.bind(py).call_method1(intern!(py, "write"), (data,)).map(drop)
    }

    /// Bytes from the transport below that wait to be decrypted.
    pub fn undecrypted(&self, py: Python<'_>) -> PyResult<usize> {
        self.incoming.bind(py).getattr(intern!(py, "pending"))?.extract()
    }

    /// Encrypted bytes that wait for the transport below.
    pub fn unsent(&self, py: Python<'_>) -> PyResult<usize> {
        self.outgoing.bind(py).getattr(intern!(py, "pending"))?.extract()
    }

    /// Takes the encrypted bytes out; empty when there are none.
    pub fn take_outgoing<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(self.outgoing.bind(py).call_method0(intern!(py, "read"))?.cast_into::<PyBytes>()?)
    }

    /// Bytes that a read could give, or None when it would only say that it wants more. OpenSSL takes
    /// no more out of a BIO than the record that it works on, so an empty BIO and nothing decrypted
    /// in advance means just that.
    fn readable(&self, py: Python<'_>) -> PyResult<Option<usize>> {
        let mut size = self.undecrypted(py)?;
        if size == 0 && self.is_native {
            size = self.native.bind(py).call_method0(intern!(py, "pending"))?.extract()?;
            if size == 0 {
                return Ok(None);
            }
        }
        Ok(Some(size))
    }

    /// Reads up to a record's worth of plaintext.
    pub fn read<'py>(&self, py: Python<'py>) -> PyResult<Read<Bound<'py, PyBytes>>> {
        let Some(size) = self.readable(py)? else { return Ok(Read::Wanting) };
        let size = if size <= SMALL { SMALL } else { RECORD };
        match self.native.bind(py).call_method1(intern!(py, "read"), (size,)) {
            Ok(data) => {
                let data = data.cast_into::<PyBytes>()?;
                Ok(if data.as_bytes().is_empty() { Read::End } else { Read::Some(data) })
            }
            Err(error) if is_again(py, &error)? => Ok(Read::Wanting),
            Err(error) => Err(error),
        }
    }

    /// Whether [`Self::read`] could give something.
    pub fn may_read(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.readable(py)?.is_some())
    }

    /// Reads up to `size` bytes into the program's own buffer.
    pub fn read_into(&self, buffer: &Bound<'_, PyAny>, size: usize) -> PyResult<Read<usize>> {
        let py = buffer.py();
        if self.readable(py)?.is_none() {
            return Ok(Read::Wanting);
        }
        let read = self.native.bind(py).call_method1(intern!(py, "read"), (size, buffer));
        match read.and_then(|count| count.extract::<usize>()) {
            Ok(0) => Ok(Read::End),
            Ok(count) => Ok(Read::Some(count)),
            Err(error) if is_again(py, &error)? => Ok(Read::Wanting),
            Err(error) => Err(error),
        }
    }

    /// Encrypts some of the data and returns how much; None when the peer must send something first
    /// (a renegotiation).
    pub fn write(&self, data: &Bound<'_, PyAny>) -> PyResult<Option<usize>> {
        let py = data.py();
        let written = self.native.bind(py).call_method1(intern!(py, "write"), (data,));
        match written.and_then(|count| count.extract()) {
            Ok(count) => Ok(Some(count)),
            Err(error) if is_again(py, &error)? => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Goes on with the handshake; whether it is complete.
    pub fn handshake(&self, py: Python<'_>) -> PyResult<bool> {
        self.step(py, intern!(py, "do_handshake"))
    }

    /// Goes on with the shutdown (close_notify); whether it is complete.
    pub fn shut_down(&self, py: Python<'_>) -> PyResult<bool> {
        self.step(py, intern!(py, "unwrap"))
    }

    fn step(&self, py: Python<'_>, method: &Bound<'_, pyo3::types::PyString>) -> PyResult<bool> {
        match self.object.bind(py).call_method0(method) {
            Ok(_) => Ok(true),
            Err(error) if is_again(py, &error)? => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Shows the Python objects to the collector.
    pub fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.incoming)?;
        visit.call(&self.outgoing)?;
        visit.call(&self.object)?;
        visit.call(&self.native)
    }
}

/// Whether an exception says no more than that the transport below must do something first.
fn is_again(py: Python<'_>, error: &PyErr) -> PyResult<bool> {
    Ok(error.matches(py, imports::ssl_want_read(py)?)?
        || error.matches(py, imports::ssl_syscall_error(py)?)?)
}
