//! `loop.sock_*`: operations on sockets that the program owns.
//!
//! Each is a coroutine of [`crate::coroutine`] with the same shape ([`Try`]): try at once; while that
//! would block, wait until the descriptor is ready and try again. Receiving and sending on streams are
//! system calls of ours; what involves addresses goes through the socket object's own C methods.

use std::io;
use std::os::fd::RawFd;

use pyo3::exceptions::{
    PyBlockingIOError, PyInterruptedError, PyOSError, PyTypeError, PyValueError,
};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};
use rondel_reactor::net;

use crate::coroutine::{Coroutine, Operation, Waiting};
use crate::errors::os_error;
use crate::event_loop::lasting;
use crate::event_loop::watching::{self, Side};
use crate::event_loop::{Loop, State, Watcher};
use crate::ffi::buffer::View;
use crate::ffi::socket::fileno;
use crate::ffi::stepping::Step;
use crate::imports;
use crate::transport::reading;

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
            watching::forget_future(py, state, self.fd, self.side, &self.future);
        });
    }
}

/// What asyncio checks before each operation.
fn check(event_loop: &Bound<'_, Loop>, sock: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = event_loop.py();
    if !sock.get_type().is(imports::socket_type(py)?)
        && sock.is_instance(imports::ssl_socket(py)?)?
    {
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

/// Begins to watch one side of the socket, after a try that found it not ready.
fn watch(
    py: Python<'_>,
    event_loop: &Py<Loop>,
    sock: &Bound<'_, PyAny>,
    side: Side,
) -> PyResult<Watching> {
    let bound = event_loop.bind(py);
    let fd = fileno(sock)?;
    watching::check_no_transport(bound, fd, fd.into_pyobject(py)?.as_any())?;
    let future = bound.call_method0(intern!(py, "create_future"))?.unbind();
    let state = bound.get().state(py);
    if side == Side::Write || !lasting::wait(state, fd, sock, &future) {
        let watcher = Watcher::Future(future.clone_ref(py));
        watching::watch(py, state, fd, side, watcher)?;
    }
    Ok(Watching { event_loop: event_loop.clone_ref(py), fd, side, future })
}

/// Waits until the socket is ready on one side.
pub async fn ready(
    waiting: &Waiting,
    event_loop: &Py<Loop>,
    sock: &Py<PyAny>,
    side: Side,
) -> PyResult<()> {
    let watching = Python::attach(|py| watch(py, event_loop, sock.bind(py), side))?;
    let future = Python::attach(|py| watching.future.clone_ref(py));
    waiting.wait(future).await?;
    Ok(())
}

/// What an operation is about beside the socket: buffers, data, addresses.
type Subjects = [Option<Py<PyAny>>; 2];

/// All operations but connecting.
struct Try<F> {
    event_loop: Py<Loop>,
    sock: Py<PyAny>,
    side: Side,
    subjects: Subjects,
    attempt: F,
    /// While it waits.
    watching: Option<Watching>,
}

impl<F> Operation for Try<F>
where
    F: FnMut(&State, &Bound<'_, PyAny>, &Subjects) -> Attempt,
{
    fn resume(&mut self, py: Python<'_>, answer: PyResult<()>) -> PyResult<Step> {
        let watching = self.watching.take();
        answer?;
        let sock = self.sock.bind(py);
        match watching {
            Some(watching) => drop(watching.future.call_method0(py, intern!(py, "result"))?),
            None => check(self.event_loop.bind(py), sock)?,
        }
        let state = self.event_loop.get().state(py);
        if let Some(result) = (self.attempt)(state, sock, &self.subjects)? {
            return Ok(Step::Returned(result));
        }
        let watching = watch(py, &self.event_loop, sock, self.side)?;
        let future = watching.future.clone_ref(py);
        self.watching = Some(watching);
        future.setattr(py, intern!(py, "_asyncio_future_blocking"), true)?;
        Ok(Step::Yielded(future))
    }

    fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.event_loop)?;
        visit.call(&self.sock)?;
        for subject in &self.subjects {
            visit.call(subject)?;
        }
        match &self.watching {
            Some(watching) => {
                visit.call(&watching.event_loop)?;
                visit.call(&watching.future)
            }
            None => Ok(()),
        }
    }
}

fn operation(
    event_loop: &Bound<'_, Loop>,
    name: &'static str,
    sock: Py<PyAny>,
    side: Side,
    subjects: Subjects,
    attempt: impl FnMut(&State, &Bound<'_, PyAny>, &Subjects) -> Attempt + 'static,
) -> Coroutine {
    let event_loop = event_loop.clone().unbind();
    Coroutine::of_operation(name, Try { event_loop, sock, side, subjects, attempt, watching: None })
}

/// One of the subjects, which is there.
fn subject<'a, 'py>(
    py: Python<'py>,
    subjects: &'a Subjects,
    index: usize,
) -> PyResult<&'a Bound<'py, PyAny>> {
    let subject = subjects.get(index).and_then(Option::as_ref);
    subject.map(|subject| subject.bind(py)).ok_or_else(|| PyTypeError::new_err("no such argument"))
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
    let name = "sock_recv";
    Ok(operation(event_loop, name, sock, Side::Read, [None, None], move |state, sock, _| {
        let py = sock.py();
        let received = reading::receive_at_most(py, state, fileno(sock)?, n)?;
        Ok(tried(py, received)?.map(|bytes| bytes.into_any().unbind()))
    }))
}

/// `loop.sock_recv_into(sock, buf)`
pub fn recv_into(
    event_loop: &Bound<'_, Loop>,
    sock: Py<PyAny>,
    buf: Py<PyAny>,
) -> PyResult<Coroutine> {
    let name = "sock_recv_into";
    Ok(operation(event_loop, name, sock, Side::Read, [Some(buf), None], |_, sock, subjects| {
        let py = sock.py();
        let fd = fileno(sock)?;
        let mut view = View::writable(subject(py, subjects, 0)?)?;
        let received = tried(py, net::recv_uninit(fd, view.bytes_mut()))?;
        received.map(|count| integer(py, count)).transpose()
    }))
}

/// `loop.sock_recvfrom(sock, bufsize)`
pub fn recvfrom(
    event_loop: &Bound<'_, Loop>,
    sock: Py<PyAny>,
    bufsize: usize,
) -> PyResult<Coroutine> {
    let name = "sock_recvfrom";
    Ok(operation(event_loop, name, sock, Side::Read, [None, None], move |_, sock, _| {
        let py = sock.py();
        tried_method(py, sock.call_method1(intern!(py, "recvfrom"), (bufsize,)))
    }))
}

/// `loop.sock_recvfrom_into(sock, buf, nbytes)`
pub fn recvfrom_into(
    event_loop: &Bound<'_, Loop>,
    sock: Py<PyAny>,
    buf: Py<PyAny>,
    nbytes: usize,
) -> PyResult<Coroutine> {
    let name = "sock_recvfrom_into";
    Ok(operation(
        event_loop,
        name,
        sock,
        Side::Read,
        [Some(buf), None],
        move |_, sock, subjects| {
            let py = sock.py();
            let buf = subject(py, subjects, 0)?;
            let size = if nbytes == 0 { buf.len()? } else { nbytes };
            tried_method(py, sock.call_method1(intern!(py, "recvfrom_into"), (buf, size)))
        },
    ))
}

/// `loop.sock_sendall(sock, data)`
pub fn sendall(
    event_loop: &Bound<'_, Loop>,
    sock: Py<PyAny>,
    data: Py<PyAny>,
) -> PyResult<Coroutine> {
    let mut sent = 0;
    let name = "sock_sendall";
    Ok(operation(
        event_loop,
        name,
        sock,
        Side::Write,
        [Some(data), None],
        move |_, sock, subjects| {
            let py = sock.py();
            let fd = fileno(sock)?;
            let view = View::readable(subject(py, subjects, 0)?)?;
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
        },
    ))
}

/// `loop.sock_sendto(sock, data, address)`
pub fn sendto(
    event_loop: &Bound<'_, Loop>,
    sock: Py<PyAny>,
    data: Py<PyAny>,
    address: Py<PyAny>,
) -> PyResult<Coroutine> {
    let subjects = [Some(data), Some(address)];
    Ok(operation(event_loop, "sock_sendto", sock, Side::Write, subjects, |_, sock, subjects| {
        let py = sock.py();
        let (data, address) = (subject(py, subjects, 0)?, subject(py, subjects, 1)?);
        tried_method(py, sock.call_method1(intern!(py, "sendto"), (data, address)))
    }))
}

/// `loop.sock_accept(sock)`
pub fn accept(event_loop: &Bound<'_, Loop>, sock: Py<PyAny>) -> PyResult<Coroutine> {
    Ok(operation(event_loop, "sock_accept", sock, Side::Read, [None, None], |_, sock, _| {
        let py = sock.py();
        let accepted = tried_method(py, sock.call_method0(intern!(py, "accept")))?;
        if let Some(pair) = &accepted {
            pair.bind(py).get_item(0)?.call_method1(intern!(py, "setblocking"), (false,))?;
        }
        Ok(accepted)
    }))
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
