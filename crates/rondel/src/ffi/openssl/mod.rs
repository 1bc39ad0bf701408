//! OpenSSL behind a program's `ssl.SSLObject`, called without Python between.
//!
//! `_ssl` makes the connection, with all that the program's context asks for, and goes on to know it:
//! the handshake, the shutdown, callbacks and everything that a program asks of its SSLObject are
//! `_ssl`'s as before. Data goes past it: [`Connection`] calls SSL_read() and SSL_write() of the library
//! that `_ssl` is linked with, and a BIO of ours ([`pipe`]) takes the place of its memory BIOs.
//!
//! That needs the `SSL*` inside of `_ssl`'s object, whose layout is nobody's promise. It is the same in
//! CPython 3.11 to 3.14 (`Socket`, `ssl`, `ctx` after the header), and nothing is believed before it has
//! been compared with what is known otherwise ([`Connection::find`]); whatever differs, there is no
//! connection, and the caller does without.

mod library;
mod pipe;

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit, ffi};

use library::{Found, Ssl};
pub use pipe::Pipe;

/// Pythons whose `_ssl` is known.
const KNOWN: std::ops::RangeInclusive<(u8, u8)> = (3, 11)..=(3, 14);

/// What [`library::library`] has found, for OpenSSL's calls into [`pipe`].
static FOUND: AtomicPtr<Found> = AtomicPtr::new(std::ptr::null_mut());

fn found() -> Option<&'static Found> {
    // SAFETY: null, or a reference that is good for ever.
    unsafe { FOUND.load(Ordering::Acquire).as_ref() }
}

/// What came of a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// So many bytes were read or written.
    Done(usize),
    /// The peer must send more first.
    Wanting,
    /// Something else: the same method of `_ssl`'s object, called now, tells. OpenSSL repeats what it
    /// said, and its error queue still holds why.
    Ask,
}

/// The beginning of `_ssl._SSLSocket`.
#[repr(C)]
struct SslSocket {
    header: ffi::PyObject,
    /// A weak reference; none for an SSLObject.
    socket: *mut ffi::PyObject,
    ssl: *mut Ssl,
    context: *mut ffi::PyObject,
}

/// The beginning of `_ssl._SSLContext`.
#[repr(C)]
struct SslContext {
    header: ffi::PyObject,
    context: *mut std::ffi::c_void,
}

/// A connection of `_ssl`'s with a BIO of ours.
pub struct Connection {
    calls: &'static library::Library,
    ssl: *mut Ssl,
    pipe: Arc<Pipe>,
    /// `_ssl`'s object, which owns `ssl`.
    owner: Py<PyAny>,
}

impl Connection {
    /// The connection of an `_ssl._SSLSocket` that has not begun the handshake, made from a context
    /// (`ssl.SSLContext`). None where it cannot be reached.
    ///
    /// # Errors
    /// When the ssl module cannot be imported.
    pub fn find(
        object: &Bound<'_, PyAny>,
        context: &Bound<'_, PyAny>,
    ) -> PyResult<Option<Connection>> {
        let py = object.py();
        let version = py.version_info();
        if !KNOWN.contains(&(version.major, version.minor)) {
            return Ok(None);
        }
        let Some(found) = library::library(py)? else { return Ok(None) };
        FOUND.store(std::ptr::from_ref(found).cast_mut(), Ordering::Release);
        let module = py.import("_ssl")?;
        let socket_type = module.getattr("_SSLSocket")?;
        let context_type = module.getattr("_SSLContext")?;
        if !object.get_type().is(&socket_type)
            || !context.is_instance(&context_type)?
            || !holds::<SslSocket>(&socket_type)?
            || !holds::<SslContext>(&context_type)?
        {
            return Ok(None);
        }
        let Some(ssl) = Self::inside(&found.library, object, context) else { return Ok(None) };
        let pipe = Arc::new(Pipe::default());
        let Some(bio) = pipe.bio(found) else { return Ok(None) };
        // SAFETY: `ssl` is a connection that `object` owns. It takes over our only reference to the
        // BIO, for both directions, and gives up those to `_ssl`'s memory BIOs, which are empty: the
        // handshake has not begun.
        unsafe { (found.library.ssl_set_bio)(ssl, bio, bio) };
        let owner = object.clone().unbind();
        Ok(Some(Connection { calls: &found.library, ssl, pipe, owner }))
    }

    /// The `SSL*` of an object that has the right type and size, if all that it points to is what it
    /// must be.
    fn inside(
        calls: &library::Library,
        object: &Bound<'_, PyAny>,
        context: &Bound<'_, PyAny>,
    ) -> Option<*mut Ssl> {
        // SAFETY: instances of this type are at least as large, and their memory is initialised: an
        // object is allocated as zeros. Only pointers are read.
        let (socket, ssl, known) = unsafe {
            let inside = &*object.as_ptr().cast::<SslSocket>();
            (inside.socket, inside.ssl, inside.context)
        };
        // Words 1 and 3 of the three are what they must be, so the one between is the SSL*.
        if !socket.is_null() || known != context.as_ptr() || ssl.is_null() {
            return None;
        }
        // SAFETY: as above, for instances of a subclass of `_ssl._SSLContext`.
        let native_context = unsafe { (*context.as_ptr().cast::<SslContext>()).context };
        // SAFETY: `ssl` is where the layout of every known version has the SSL*, between two fields
        // that are what they must be. OpenSSL must agree: the connection's context is the one that
        // the Python context has, and its application data is the Python object.
        let agreed = unsafe {
            (calls.ssl_get_context)(ssl) == native_context
                && (calls.ssl_get_ex_data)(ssl, 0) == object.as_ptr().cast()
        };
        agreed.then_some(ssl)
    }

    /// Ciphertext in both directions.
    #[inline]
    pub fn pipe(&self) -> &Arc<Pipe> {
        &self.pipe
    }

    /// Bytes that are decrypted and not read yet.
    #[inline]
    pub fn pending(&self, _py: Python<'_>) -> usize {
        // SAFETY: the connection lives as long as its owner, and is attached code's alone.
        let pending = unsafe { (self.calls.ssl_pending)(self.ssl) };
        usize::try_from(pending).unwrap_or(0)
    }

    /// Reads decrypted bytes: with `Done(n)` the first n are initialised.
    #[inline]
    pub fn read(&self, _py: Python<'_>, memory: &mut [MaybeUninit<u8>]) -> Outcome {
        let size = c_int::try_from(memory.len()).unwrap_or(c_int::MAX);
        // SAFETY: the connection lives as long as its owner; the memory is ours to write to. OpenSSL
        // may call Python back, which this thread may do: it is attached.
        let count = unsafe { (self.calls.ssl_read)(self.ssl, memory.as_mut_ptr().cast(), size) };
        self.outcome(count)
    }

    /// Encrypts bytes, of which there must be some.
    #[inline]
    pub fn write(&self, _py: Python<'_>, data: &[u8]) -> Outcome {
        let size = c_int::try_from(data.len()).unwrap_or(c_int::MAX);
        // SAFETY: as in `read`.
        let count = unsafe { (self.calls.ssl_write)(self.ssl, data.as_ptr().cast(), size) };
        self.outcome(count)
    }

    fn outcome(&self, count: c_int) -> Outcome {
        const WANT_READ: c_int = 2;
        match usize::try_from(count) {
            Ok(count) if count > 0 => Outcome::Done(count),
            // SAFETY: the connection lives, and `count` is of the call before this one.
            _ if unsafe { (self.calls.ssl_get_error)(self.ssl, count) } == WANT_READ => {
                Outcome::Wanting
            }
            _ => Outcome::Ask,
        }
    }

    /// Shows the Python object to the collector.
    pub fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.owner)
    }
}

/// Whether instances of a type are large enough for a layout.
fn holds<T>(class: &Bound<'_, PyAny>) -> PyResult<bool> {
    let size: usize = class.getattr("__basicsize__")?.extract()?;
    Ok(size >= size_of::<T>())
}
