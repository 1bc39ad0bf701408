//! The descriptor of a Python socket object, as it is now.
//!
//! A program may close or detach a socket that it gave to a transport. The number is then nobody's,
//! or that of something opened since, which no system call of ours may reach: asyncio, which goes
//! through the object, gets EBADF. Calling `fileno()` before each system call would cost as much as
//! some of them do. So the number is read where CPython keeps it, in the first field of the object.
//! Whether it is there is tested for each object against its `fileno()`.

use std::os::fd::RawFd;

use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::{PyTraverseError, PyVisit};

use crate::imports;

/// The beginning of CPython's `PySocketSockObject` (Modules/socketmodule.h).
#[repr(C)]
struct Native {
    head: ffi::PyObject,
    fd: RawFd,
}

/// What `sock.fileno()` answers, without the call if it is a `socket.socket`, which has no attributes
/// that the program could have changed, and of which one was seen to be a [`Native`].
///
/// # Errors
/// What the object's `fileno()` raises.
#[inline]
pub fn fileno(sock: &Bound<'_, PyAny>) -> PyResult<RawFd> {
    static ARE_NATIVE: PyOnceLock<()> = PyOnceLock::new();
    let py = sock.py();
    if !sock.get_type().is(imports::socket_type(py)?) {
        return sock.call_method0(intern!(py, "fileno"))?.extract();
    }
    if ARE_NATIVE.get(py).is_none() {
        let known = Socket::new(sock)?;
        if known.is_native && known.number >= 0 {
            let _ = ARE_NATIVE.set(py, ());
        }
        return Ok(known.number);
    }
    // SAFETY: attached, and the object, which is alive, begins as another one of its class does.
    Ok(unsafe { (*sock.as_ptr().cast::<Native>()).fd })
}

/// A Python socket object, or one that is used like it, and the descriptor that it had when the
/// transport or listener was made of it.
pub struct Socket {
    object: Py<PyAny>,
    number: RawFd,
    /// The object begins as a [`Native`] does. Never true of anything but a `_socket.socket`.
    is_native: bool,
}

impl Socket {
    /// # Errors
    /// What the object's `fileno()` raises.
    pub fn new(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let py = object.py();
        let number: RawFd = object.call_method0(intern!(py, "fileno"))?.extract()?;
        let native = imports::native_socket_type(py)?;
        let room: usize = native.getattr(intern!(py, "__basicsize__"))?.extract()?;
        // SAFETY: attached, and both are alive; the name is that of a type. (isinstance() would
        // believe `__class__`.)
        let is_socket = unsafe {
            let native = native.as_ptr().cast::<ffi::PyTypeObject>();
            ffi::PyObject_TypeCheck(object.as_ptr(), native) != 0
        };
        let mut socket = Socket { object: object.clone().unbind(), number, is_native: false };
        if is_socket && room >= size_of::<Native>() {
            // SAFETY: it is a `_socket.socket`, whose memory is large enough.
            socket.is_native = unsafe { socket.stored(py) } == number;
        }
        Ok(socket)
    }

    /// The object.
    pub fn object(&self) -> &Py<PyAny> {
        &self.object
    }

    /// The descriptor that the socket had at first.
    pub fn number(&self) -> RawFd {
        self.number
    }

    /// The descriptor for a system call: -1 once the object was closed or detached. This may run
    /// Python code when [`Socket::native_fd`] is None.
    #[inline]
    pub fn fd(&self, py: Python<'_>) -> RawFd {
        self.native_fd(py).unwrap_or_else(|| {
            let answer = self.object.call_method0(py, intern!(py, "fileno"));
            let fd = answer.and_then(|fd| fd.extract::<RawFd>(py));
            self.if_still(fd.unwrap_or(-1))
        })
    }

    /// The same, as far as the object tells without being called.
    #[inline]
    pub fn native_fd(&self, py: Python<'_>) -> Option<RawFd> {
        // SAFETY: by the field's meaning.
        self.is_native.then(|| self.if_still(unsafe { self.stored(py) }))
    }

    #[inline]
    fn if_still(&self, fd: RawFd) -> RawFd {
        if fd == self.number { fd } else { -1 }
    }

    /// Another reference to the same object.
    pub fn clone_ref(&self, py: Python<'_>) -> Self {
        Socket { object: self.object.clone_ref(py), ..*self }
    }

    /// # Safety
    /// The object is a `_socket.socket` with room for a [`Native`].
    #[inline]
    unsafe fn stored(&self, _attached: Python<'_>) -> RawFd {
        // SAFETY: the object is alive and, by this function's contract, large enough. Only attached
        // threads change it, and this one is attached.
        unsafe { (*self.object.as_ptr().cast::<Native>()).fd }
    }

    /// Shows the object to the collector.
    pub fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.object)
    }
}
