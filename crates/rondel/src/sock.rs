//! `loop.sock_*`: operations on sockets that the program owns.
//!
//! Each is a coroutine of [`crate::coroutine`] with the same shape: try at once; while that would
//! block, wait until the descriptor is ready and try again. Receiving and sending on streams are
//! system calls of ours; what involves addresses goes through the socket object's own C methods.

use std::io;
use std::os::fd::RawFd;

use pyo3::exceptions::{
    PyBlockingIOError, PyInterruptedError, PyOSError, PyTypeError, PyValueError,
};
use pyo3::intern;
use pyo3::prelude::*;
use rondel_reactor::net;

use crate::coroutine::{Coroutine, Waiting};
use crate::errors::os_error;
use crate::event_loop::watching::{self, Side};
use crate::event_loop::{Loop, Watcher};
use crate::ffi::buffer::{View, bytes_filled_by};
use crate::imports;

/// A try: the result, or None when it would block.
type Attempt = PyResult<Option<Py<PyAny>>>;

/// Ends the wait when it is over, also by cancellation.
struct Watching {
    event_loop: Py<Loop>,
    fd: RawFd,
    side: Side,
    future: Py<PyAny>,
}

impl Drop for Watching {
    fn drop(&mut self) {
        Python::attach(|py| {
            let state = self.event_loop.get().state(py);
            watching::forget_future(state, self.fd, self.side, &self.future);
        });
    }
}

pub fn fileno(sock: &Bound<'_, PyAny>) -> PyResult<RawFd> {
    sock.call_method0(intern!(sock.py(), "fileno"))?.extract()
}

/// What asyncio checks before each operation.
fn check(event_loop: &Bound<'_, Loop>, sock: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = event_loop.py();
    if sock.is_instance(imports::ssl_socket(py)?)? {
        return Err(PyTypeError::new_err("Socket cannot be of type SSLSocket"));
    }
    if event_loop.get().state(py).debug.get() {
        let timeout = sock.call_method0(intern!(py, "gettimeout"))?;
        if !timeout.eq(0)? {
            return Err(PyValueError::new_err("the socket must be non-blocking"));
        }
    }
    Ok(())
}

/// Waits until the socket is ready on one side.
pub async fn ready(
    waiting: &Waiting,
    event_loop: &Py<Loop>,
    sock: &Py<PyAny>,
    side: Side,
) -> PyResult<()> {
    let watching = Python::attach(|py| {
        let bound = event_loop.bind(py);
        let number = sock.bind(py).call_method0(intern!(py, "fileno"))?;
        let fd = number.extract()?;
        watching::check_no_transport(bound, fd, &number)?;
        let future = bound.call_method0(intern!(py, "create_future"))?.unbind();
        let watcher = Watcher::Future(future.clone_ref(py));
        watching::watch(py, bound.get().state(py), fd, side, watcher)?;
        PyResult::Ok(Watching { event_loop: event_loop.clone_ref(py), fd, side, future })
    })?;
    let future = Python::attach(|py| watching.future.clone_ref(py));
    waiting.wait(future).await?;
    Ok(())
}

/// The shape of all operations but connecting.
fn operation(
    event_loop: &Bound<'_, Loop>,
    name: &'static str,
    sock: Py<PyAny>,
    side: Side,
    mut attempt: impl FnMut(Python<'_>, &Bound<'_, PyAny>) -> Attempt + 'static,
) -> PyResult<Coroutine> {
    let event_loop = event_loop.clone().unbind();
    Ok(Coroutine::new(name, |waiting| async move {
        Python::attach(|py| check(event_loop.bind(py), sock.bind(py)))?;
        loop {
            if let Some(result) = Python::attach(|py| attempt(py, sock.bind(py)))? {
                return Ok(result);
            }
            ready(&waiting, &event_loop, &sock, side).await?;
        }
    }))
}

/// The result of a system call of ours: None when it would block.
fn tried<T>(py: Python<'_>, result: io::Result<T>) -> PyResult<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if net::is_retry(&error) => Ok(None),
        Err(error) => Err(os_error(py, &error)),
    }
}

/// The result of a socket object's method: None when it would block.
fn tried_method(py: Python<'_>, result: PyResult<Bound<'_, PyAny>>) -> Attempt {
    match result {
        Ok(value) => Ok(Some(value.unbind())),
        Err(error) if would_block(py, &error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn would_block(py: Python<'_>, error: &PyErr) -> bool {
    error.is_instance_of::<PyBlockingIOError>(py) || error.is_instance_of::<PyInterruptedError>(py)
}

fn integer(py: Python<'_>, value: usize) -> PyResult<Py<PyAny>> {
    Ok(value.into_pyobject(py)?.into_any().unbind())
}

/// `loop.sock_recv(sock, n)`
pub fn recv(event_loop: &Bound<'_, Loop>, sock: Py<PyAny>, n: usize) -> PyResult<Coroutine> {
    operation(event_loop, "sock_recv", sock, Side::Read, move |py, sock| {
        let fd = fileno(sock)?;
        let received = bytes_filled_by(py, n, |memory| net::recv_uninit(fd, memory))?;
        Ok(tried(py, received)?.map(|bytes| bytes.into_any().unbind()))
    })
}

/// `loop.sock_recv_into(sock, buf)`
pub fn recv_into(
    event_loop: &Bound<'_, Loop>,
    sock: Py<PyAny>,
    buf: Py<PyAny>,
) -> PyResult<Coroutine> {
    operation(event_loop, "sock_recv_into", sock, Side::Read, move |py, sock| {
        let fd = fileno(sock)?;
        let mut view = View::writable(buf.bind(py))?;
        let received = tried(py, net::recv_uninit(fd, view.bytes_mut()))?;
        received.map(|count| integer(py, count)).transpose()
    })
}

/// `loop.sock_recvfrom(sock, bufsize)`
pub fn recvfrom(
    event_loop: &Bound<'_, Loop>,
    sock: Py<PyAny>,
    bufsize: usize,
) -> PyResult<Coroutine> {
    operation(event_loop, "sock_recvfrom", sock, Side::Read, move |py, sock| {
        tried_method(py, sock.call_method1(intern!(py, "recvfrom"), (bufsize,)))
    })
}

/// `loop.sock_recvfrom_into(sock, buf, nbytes)`
pub fn recvfrom_into(
    event_loop: &Bound<'_, Loop>,
    sock: Py<PyAny>,
    buf: Py<PyAny>,
    nbytes: usize,
) -> PyResult<Coroutine> {
    operation(event_loop, "sock_recvfrom_into", sock, Side::Read, move |py, sock| {
        let size = if nbytes == 0 { buf.bind(py).len()? } else { nbytes };
        tried_method(py, sock.call_method1(intern!(py, "recvfrom_into"), (&buf, size)))
    })
}

/// `loop.sock_sendall(sock, data)`
pub fn sendall(
    event_loop: &Bound<'_, Loop>,
    sock: Py<PyAny>,
    data: Py<PyAny>,
) -> PyResult<Coroutine> {
    let mut sent = 0;
    operation(event_loop, "sock_sendall", sock, Side::Write, move |py, sock| {
        let fd = fileno(sock)?;
        let view = View::readable(data.bind(py))?;
        loop {
            let rest = view.bytes().get(sent..).unwrap_or_default();
            if rest.is_empty() && sent > 0 {
                return Ok(Some(py.None()));
            }
            match tried(py, net::send(fd, rest))? {
                None => return Ok(None),
                Some(_) if rest.is_empty() => return Ok(Some(py.None())),
                Some(count) => sent += count,
            }
        }
    })
}

/// `loop.sock_sendto(sock, data, address)`
pub fn sendto(
    event_loop: &Bound<'_, Loop>,
    sock: Py<PyAny>,
    data: Py<PyAny>,
    address: Py<PyAny>,
) -> PyResult<Coroutine> {
    operation(event_loop, "sock_sendto", sock, Side::Write, move |py, sock| {
        tried_method(py, sock.call_method1(intern!(py, "sendto"), (&data, &address)))
    })
}

/// `loop.sock_accept(sock)`
pub fn accept(event_loop: &Bound<'_, Loop>, sock: Py<PyAny>) -> PyResult<Coroutine> {
    operation(event_loop, "sock_accept", sock, Side::Read, move |py, sock| {
        let accepted = tried_method(py, sock.call_method0(intern!(py, "accept")))?;
        if let Some(pair) = &accepted {
            pair.bind(py).get_item(0)?.call_method1(intern!(py, "setblocking"), (false,))?;
        }
        Ok(accepted)
    })
}

/// `loop.sock_connect(sock, address)` with an address that needs no resolving.
pub fn connect(
    event_loop: &Bound<'_, Loop>,
    sock: Py<PyAny>,
    address: Py<PyAny>,
) -> PyResult<Coroutine> {
    let event_loop = event_loop.clone().unbind();
    Ok(Coroutine::new("sock_connect", |waiting| async move {
        let connected = Python::attach(|py| {
            let sock = sock.bind(py);
            check(event_loop.bind(py), sock)?;
            tried_method(py, sock.call_method1(intern!(py, "connect"), (&address,)))
        })?;
        if connected.is_some() {
            return Ok(Python::attach(|py| py.None()));
        }
        ready(&waiting, &event_loop, &sock, Side::Write).await?;
        Python::attach(|py| {
            let error: i32 = sock
                .bind(py)
                .call_method1(intern!(py, "getsockopt"), (libc::SOL_SOCKET, libc::SO_ERROR))?
                .extract()?;
            if error == 0 {
                return Ok(py.None());
            }
            let message = format!("Connect call failed {}", address.bind(py).str()?);
            Err(PyOSError::new_err((error, message)))
        })
    }))
}
