//! `loop.sock_sendfile()` and `loop.sendfile()` by the system call; what is checked before, and the
//! fall-back for what the system call cannot send, is Python code in the package.
//!
//! One loop serves both. They differ in how it waits: a program's socket is watched, while the source
//! of a transport is in the poller already, edge-triggered, so its events end the wait.

use std::os::fd::RawFd;

use pyo3::exceptions::{PyAttributeError, PyConnectionError, PyRuntimeError};
use pyo3::intern;
use pyo3::prelude::*;
use rondel_reactor::{net, sendfile};

use crate::coroutine::{Coroutine, Waiting};
use crate::errors::os_error;
use crate::event_loop::{Loop, turn, watching::Side};
use crate::ffi::socket::fileno;
use crate::imports;
use crate::sock;
use crate::transport::socket::SocketTransport;
use crate::transport::{reading, writing};

/// The file, and how far it has been sent.
struct Progress {
    file: RawFd,
    offset: u64,
    /// None: until the end of the file.
    count: Option<u64>,
    /// What the file's size lets expect.
    expected: u64,
    sent: u64,
}

/// What sending some of it came to.
enum Step {
    Done,
    /// The socket took some, and more is to be sent.
    Some,
    /// The socket takes nothing now.
    Full,
}

impl Progress {
    /// # Errors
    /// `SendfileNotAvailableError` for what has no descriptor or no size.
    fn new(file: &Bound<'_, PyAny>, offset: u64, count: Option<u64>) -> PyResult<Self> {
        let py = file.py();
        let unavailable = || not_available(py, "not a regular file");
        let fd: RawFd = match file.call_method0(intern!(py, "fileno")) {
            Ok(fd) => fd.extract()?,
            Err(error)
                if error.is_instance_of::<PyAttributeError>(py)
                    || error.is_instance(py, imports::unsupported_operation(py)?) =>
            {
                return Err(unavailable());
            }
            Err(error) => return Err(error),
        };
        let size = sendfile::file_size(fd).map_err(|_| unavailable())?;
        let expected = count.unwrap_or_else(|| size.saturating_sub(offset));
        // Of an empty file nothing is to be sent, and nothing is tried.
        let count = if size == 0 && count.is_none() { Some(0) } else { count };
        Ok(Progress { file: fd, offset, count, expected, sent: 0 })
    }

    fn step(&mut self, py: Python<'_>, socket: RawFd) -> PyResult<Step> {
        let left = match self.count {
            Some(count) if count <= self.sent => return Ok(Step::Done),
            Some(count) => count - self.sent,
            None => u64::MAX,
        };
        let most = usize::try_from(left).unwrap_or(usize::MAX);
        match sendfile::sendfile(socket, self.file, self.offset + self.sent, most) {
            Ok(0) => Ok(Step::Done),
            Ok(sent) => {
                self.sent += sent as u64;
                Ok(if self.count == Some(self.sent) { Step::Done } else { Step::Some })
            }
            Err(error) if net::is_retry(&error) => Ok(Step::Full),
            // Before the first byte this means that the file or socket is of the wrong kind. The
            // fall-back finds other errors again.
            Err(_) if self.sent == 0 => Err(not_available(py, "os.sendfile call failed")),
            Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => {
                let cause = os_error(py, &error);
                let told = PyConnectionError::new_err(("socket is not connected", libc::ENOTCONN));
                told.set_cause(py, Some(cause));
                Err(told)
            }
            Err(error) => Err(os_error(py, &error)),
        }
    }

    /// Whether the file's end is near enough for another step to be short.
    fn is_nearly_done(&self) -> bool {
        self.sent >= self.expected
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        // The caller sees by the file's position how much was sent, also when that was cancelled.
        let always = Python::attach(|py| py.version_info() >= (3, 14));
        if self.sent > 0 || (always && self.count != Some(0)) {
            // Files that cannot be positioned could not be sent either.
            let _ = sendfile::seek(self.file, self.offset + self.sent);
        }
    }
}

fn not_available(py: Python<'_>, message: &str) -> PyErr {
    match imports::sendfile_not_available(py).and_then(|kind| kind.call1((message,))) {
        Ok(error) => PyErr::from_value(error),
        Err(error) => error,
    }
}

fn total(progress: &Progress) -> PyResult<Py<PyAny>> {
    Python::attach(|py| Ok(progress.sent.into_pyobject(py)?.into_any().unbind()))
}

/// `loop._sock_sendfile_native(sock, file, offset, count)`
pub fn to_socket(
    event_loop: &Bound<'_, Loop>,
    socket: Py<PyAny>,
    file: Py<PyAny>,
    offset: u64,
    count: Option<u64>,
) -> Coroutine {
    let event_loop = event_loop.clone().unbind();
    Coroutine::new("_sock_sendfile_native", |waiting| async move {
        let mut progress = Python::attach(|py| Progress::new(file.bind(py), offset, count))?;
        loop {
            let step = Python::attach(|py| progress.step(py, fileno(socket.bind(py))?))?;
            match step {
                Step::Done => return total(&progress),
                Step::Some if progress.is_nearly_done() => {}
                // One step is a turn's share, also when the receiver is as fast as the sender.
                Step::Some | Step::Full => {
                    sock::ready(&waiting, &event_loop, &socket, Side::Write).await?;
                }
            }
        }
    })
}

/// A transport that is lent to sendfile: it neither reads nor writes until this is dropped.
struct Lent {
    transport: Py<SocketTransport>,
    resume_reading: bool,
}

impl Lent {
    fn new(transport: &Bound<'_, SocketTransport>) -> PyResult<Self> {
        let stream = transport.get().stream(transport.py());
        if stream.sending_file.replace(true) {
            return Err(PyRuntimeError::new_err("Empty waiter is already set"));
        }
        let resume_reading = !stream.closing.get() && !stream.read_paused.get();
        let lent = Lent { transport: transport.clone().unbind(), resume_reading };
        reading::pause(transport)?;
        Ok(lent)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        Python::attach(|py| {
            let transport = self.transport.bind(py);
            let stream = transport.get().stream(py);
            stream.sending_file.set(false);
            drop(stream.room_waiter.take());
            if self.resume_reading
                && let Err(error) = reading::resume(transport)
            {
                error.write_unraisable(py, Some(transport.as_any()));
            }
        });
    }
}

/// `loop._sendfile_native(transport, file, offset, count)`
pub fn to_transport(
    event_loop: &Bound<'_, Loop>,
    transport: Bound<'_, SocketTransport>,
    file: Py<PyAny>,
    offset: u64,
    count: Option<u64>,
) -> Coroutine {
    let event_loop = event_loop.clone().unbind();
    let transport = transport.unbind();
    Coroutine::new("_sendfile_native", |waiting| async move {
        let lent = Python::attach(|py| Lent::new(transport.bind(py)))?;
        while Python::attach(|py| writing::buffer_size(lent.transport.bind(py)))? > 0 {
            room(&waiting, &event_loop, &lent.transport).await?;
        }
        let mut progress = Python::attach(|py| Progress::new(file.bind(py), offset, count))?;
        loop {
            let step = Python::attach(|py| {
                let stream = lent.transport.get().stream(py);
                if stream.conn_lost.get() > 0 {
                    return Err(PyConnectionError::new_err("Connection closed by peer"));
                }
                progress.step(py, stream.endpoint.fd(py))
            })?;
            match step {
                Step::Done => return total(&progress),
                Step::Some if progress.is_nearly_done() => {}
                Step::Some => next_turn(&waiting, &event_loop).await?,
                Step::Full => room(&waiting, &event_loop, &lent.transport).await?,
            }
        }
    })
}

/// Waits until the transport's socket has room, or its connection is lost.
async fn room(
    waiting: &Waiting,
    event_loop: &Py<Loop>,
    transport: &Py<SocketTransport>,
) -> PyResult<()> {
    let future = Python::attach(|py| {
        let stream = transport.get().stream(py);
        if stream.conn_lost.get() > 0 {
            return Err(PyConnectionError::new_err("Connection is closed by peer"));
        }
        let future = event_loop.call_method0(py, intern!(py, "create_future"))?;
        drop(stream.room_waiter.replace(Some(future.clone_ref(py))));
        PyResult::Ok(future)
    })?;
    waiting.wait(future).await.map(drop)
}

async fn next_turn(waiting: &Waiting, event_loop: &Py<Loop>) -> PyResult<()> {
    let future = Python::attach(|py| {
        let future = event_loop.call_method0(py, intern!(py, "create_future"))?;
        let state = event_loop.get().state(py);
        state.push_step(future.clone_ref(py), turn::set_none_unless_done);
        PyResult::Ok(future)
    })?;
    waiting.wait(future).await.map(drop)
}
