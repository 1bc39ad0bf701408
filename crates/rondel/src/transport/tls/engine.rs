//! A TLS connection between ciphertext and plaintext.
//!
//! Where `_ssl` shares its OpenSSL, data goes straight through that ([`Connection`]), and only what it
//! does not explain by "the peer must send more" is asked again of `_ssl`, which has the exception for it.
//!
//! Elsewhere, data goes through the methods of `ssl.SSLObject` and `ssl.MemoryBIO`. A packet costs no
//! Python frame: SSLObject's methods are Python functions around those of `_ssl._SSLSocket`, which are
//! called directly. A context whose `sslobject_class` is a subclass may have methods of its own, and
//! those are called then. That there is nothing to read is an exception in the ssl module, and raising
//! costs more than reading a small message. What the BIO and OpenSSL still hold tells in advance.
//!
//! The environment variable `RONDEL_TLS=bio` asks for the second way.

use std::mem::MaybeUninit;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyMemoryView, PySlice};
use pyo3::{PyTraverseError, PyVisit};

use super::buffers::TlsBuffer;
use crate::ffi::buffer::{ON_STACK, View, bytes_by_copy, bytes_filled_by};
use crate::ffi::openssl::{Connection, Outcome};
use crate::imports;

/// The most that a TLS record carries.
const RECORD: usize = 16 * 1024;
/// What is read at once of a small message, by the second way.
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
    /// The way past `native`. The memory BIOs are not used then.
    direct: Option<Connection>,
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
        let direct = match &native {
            Some(native) if may_be_direct(context)? => Connection::find(native, context)?,
            _ => None,
        };
        let (incoming, outgoing) = match &direct {
            None => (incoming, outgoing),
            Some(connection) => {
                let [incoming, outgoing] = TlsBuffer::both(connection.pipe());
                (Bound::new(py, incoming)?.into_any(), Bound::new(py, outgoing)?.into_any())
            }
        };
        Ok(Engine {
            incoming: incoming.unbind(),
            outgoing: outgoing.unbind(),
            direct,
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

    /// The way past Python, if there is one.
    #[inline]
    pub fn direct(&self) -> Option<&Connection> {
        self.direct.as_ref()
    }

    /// Takes what came from the transport below.
    pub fn feed(&self, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = data.py();
        if let Some(connection) = &self.direct {
            connection.pipe().feed(View::readable(data)?.bytes());
            return Ok(());
        }
        self.incoming.bind(py).call_method1(intern!(py, "write"), (data,)).map(drop)
    }

    /// Bytes from the transport below that wait to be decrypted.
    pub fn undecrypted(&self, py: Python<'_>) -> PyResult<usize> {
        match &self.direct {
            Some(connection) => Ok(connection.pipe().incoming()),
            None => self.incoming.bind(py).getattr(intern!(py, "pending"))?.extract(),
        }
    }

    /// Encrypted bytes that wait for the transport below.
    pub fn unsent(&self, py: Python<'_>) -> PyResult<usize> {
        match &self.direct {
            Some(connection) => Ok(connection.pipe().outgoing()),
            None => self.outgoing.bind(py).getattr(intern!(py, "pending"))?.extract(),
        }
    }

    /// Takes the encrypted bytes out; empty when there are none.
    pub fn take_outgoing<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(self.outgoing.bind(py).call_method0(intern!(py, "read"))?.cast_into::<PyBytes>()?)
    }

    /// Drops them: there is nowhere to send them to any more.
    pub fn drop_outgoing(&self, py: Python<'_>) -> PyResult<()> {
        match &self.direct {
            Some(connection) => drop(connection.pipe().take_outgoing()),
            None => drop(self.take_outgoing(py)?),
        }
        Ok(())
    }

    /// Bytes that a read could give, or None when it would only say that it wants more. OpenSSL takes
    /// no more out of a BIO than the record that it works on, so an empty BIO and nothing decrypted
    /// in advance means just that.
    fn readable(&self, py: Python<'_>) -> PyResult<Option<usize>> {
        if let Some(connection) = &self.direct {
            let size = connection.pipe().incoming() + connection.pending(py);
            return Ok((size > 0).then_some(size));
        }
        let mut size = self.undecrypted(py)?;
        if size == 0 && self.is_native {
            size = self.native.bind(py).call_method0(intern!(py, "pending"))?.extract()?;
            if size == 0 {
                return Ok(None);
            }
        }
        Ok(Some(size))
    }

    /// Whether [`Self::read`] could give something.
    pub fn may_read(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.readable(py)?.is_some())
    }

    /// Reads plaintext, up to about `most` bytes, and says how that ended.
    pub fn read<'py>(
        &self,
        py: Python<'py>,
        most: usize,
    ) -> (Option<Bound<'py, PyBytes>>, PyResult<Read<()>>) {
        let mut chunks = Vec::new();
        let outcome = match &self.direct {
            Some(connection) => self.read_directly(py, connection, most, &mut chunks),
            None => self.read_records(py, most, &mut chunks),
        };
        let whole = if chunks.len() > 1 { joined(py, &chunks).map(Some) } else { Ok(chunks.pop()) };
        match whole {
            Ok(data) => (data, outcome),
            Err(error) => (None, Err(error)),
        }
    }

    fn read_directly<'py>(
        &self,
        py: Python<'py>,
        connection: &Connection,
        most: usize,
        chunks: &mut Vec<Bound<'py, PyBytes>>,
    ) -> PyResult<Read<()>> {
        let Some(size) = self.readable(py)? else { return Ok(Read::Wanting) };
        let outcome;
        if size <= ON_STACK {
            let mut last = Outcome::Wanting;
            let data = bytes_by_copy(py, |memory| {
                let (filled, how) = fill(py, connection, memory);
                last = how;
                filled
            });
            outcome = last;
            if !data.as_bytes().is_empty() {
                chunks.push(data);
            }
        } else {
            // A record that has come in part before is not counted.
            let size = (size + RECORD).min(most);
            let mut last = Outcome::Wanting;
            let data = bytes_filled_by(py, size, |memory| {
                let (filled, how) = fill(py, connection, memory);
                last = how;
                PyResult::Ok(filled)
            })??;
            outcome = last;
            if !data.as_bytes().is_empty() {
                chunks.push(data);
            }
        }
        match outcome {
            Outcome::Done(_) => Ok(Read::Some(())),
            Outcome::Wanting => Ok(Read::Wanting),
            Outcome::Ask => Ok(match self.read_by_object(py, RECORD)? {
                Read::Some(data) => {
                    chunks.push(data);
                    Read::Some(())
                }
                Read::Wanting => Read::Wanting,
                Read::End => Read::End,
            }),
        }
    }

    fn read_records<'py>(
        &self,
        py: Python<'py>,
        most: usize,
        chunks: &mut Vec<Bound<'py, PyBytes>>,
    ) -> PyResult<Read<()>> {
        let mut size = 0;
        while size < most {
            let Some(waiting) = self.readable(py)? else { return Ok(Read::Wanting) };
            match self.read_by_object(py, if waiting <= SMALL { SMALL } else { RECORD })? {
                Read::Some(data) => {
                    size += data.as_bytes().len();
                    chunks.push(data);
                }
                Read::Wanting => return Ok(Read::Wanting),
                Read::End => return Ok(Read::End),
            }
        }
        Ok(Read::Some(()))
    }

    fn read_by_object<'py>(
        &self,
        py: Python<'py>,
        size: usize,
    ) -> PyResult<Read<Bound<'py, PyBytes>>> {
        match self.native.bind(py).call_method1(intern!(py, "read"), (size,)) {
            Ok(data) => {
                let data = data.cast_into::<PyBytes>()?;
                Ok(if data.as_bytes().is_empty() { Read::End } else { Read::Some(data) })
            }
            Err(error) if is_again(py, &error)? => Ok(Read::Wanting),
            Err(error) => Err(error),
        }
    }

    /// Reads into the program's own buffer, as much as there is or fits; how much that was, and how
    /// it ended.
    pub fn read_into(
        &self,
        buffer: &Bound<'_, PyAny>,
        capacity: usize,
    ) -> (usize, PyResult<Read<()>>) {
        let mut filled = 0;
        let outcome = self.fill_buffer(buffer, capacity, &mut filled);
        (filled, outcome)
    }

    fn fill_buffer(
        &self,
        buffer: &Bound<'_, PyAny>,
        capacity: usize,
        filled: &mut usize,
    ) -> PyResult<Read<()>> {
        let py = buffer.py();
        if let Some(connection) = &self.direct {
            let outcome;
            {
                let mut view = View::writable(buffer)?;
                (*filled, outcome) = fill(py, connection, view.bytes_mut());
            }
            match outcome {
                Outcome::Done(_) => return Ok(Read::Some(())),
                Outcome::Wanting => return Ok(Read::Wanting),
                Outcome::Ask => {}
            }
        }
        while *filled < capacity {
            if self.direct.is_none() && self.readable(py)?.is_none() {
                return Ok(Read::Wanting);
            }
            let rest = tail(buffer, *filled)?;
            let read =
                self.native.bind(py).call_method1(intern!(py, "read"), (capacity - *filled, rest));
            match read.and_then(|count| count.extract::<usize>()) {
                Ok(0) => return Ok(Read::End),
                Ok(count) => *filled += count,
                Err(error) if is_again(py, &error)? => return Ok(Read::Wanting),
                Err(error) => return Err(error),
            }
        }
        Ok(Read::Some(()))
    }

    /// Encrypts some of the data from an offset on and returns how much; None when the peer must send
    /// something first (a renegotiation).
    pub fn write(&self, data: &Bound<'_, PyBytes>, offset: usize) -> PyResult<Option<usize>> {
        let py = data.py();
        if let Some(connection) = &self.direct {
            match connection.write(py, data.as_bytes().get(offset..).unwrap_or_default()) {
                Outcome::Done(count) => return Ok(Some(count)),
                Outcome::Wanting => return Ok(None),
                Outcome::Ask => {}
            }
        }
        let rest = tail(data.as_any(), offset)?;
        let written = self.native.bind(py).call_method1(intern!(py, "write"), (rest,));
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
        if let Some(connection) = &self.direct {
            connection.traverse(visit)?;
        }
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

/// Whether data may pass `_ssl` by. A context that tells of messages raises what its callback raised
/// from the call that it happened in.
fn may_be_direct(context: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = context.py();
    Ok(std::env::var_os("RONDEL_TLS").is_none_or(|way| way != "bio")
        && context.getattr_opt(intern!(py, "_msg_callback"))?.is_none_or(|it| it.is_none())
        && context.getattr_opt(intern!(py, "keylog_filename"))?.is_none_or(|it| it.is_none()))
}

/// Reads until memory or input are used up; how much, and how it ended.
fn fill(
    py: Python<'_>,
    connection: &Connection,
    memory: &mut [MaybeUninit<u8>],
) -> (usize, Outcome) {
    let mut filled = 0;
    while filled < memory.len() {
        if filled > 0 && connection.pipe().incoming() == 0 && connection.pending(py) == 0 {
            return (filled, Outcome::Wanting);
        }
        match connection.read(py, &mut memory[filled..]) {
            Outcome::Done(count) => filled += count,
            other => return (filled, other),
        }
    }
    (filled, Outcome::Done(filled))
}

/// The bytes of a buffer from an offset on; itself without one.
fn tail<'py>(buffer: &Bound<'py, PyAny>, offset: usize) -> PyResult<Bound<'py, PyAny>> {
    if offset == 0 {
        return Ok(buffer.clone());
    }
    let py = buffer.py();
    let bytes = PyMemoryView::from(buffer)?.call_method1(intern!(py, "cast"), ("B",))?;
    bytes.get_item(PySlice::new(py, isize::try_from(offset)?, isize::MAX, 1))
}

/// One `bytes` of many.
pub fn joined<'py>(
    py: Python<'py>,
    chunks: &[Bound<'py, PyBytes>],
) -> PyResult<Bound<'py, PyBytes>> {
    let size = chunks.iter().map(|chunk| chunk.as_bytes().len()).sum();
    PyBytes::new_with(py, size, |mut memory| {
        for chunk in chunks {
            let (here, rest) = memory.split_at_mut(chunk.as_bytes().len());
            here.copy_from_slice(chunk.as_bytes());
            memory = rest;
        }
        Ok(())
    })
}
