//! What can be done at once, on the loop's thread, and what a thread does when that was too little.

use std::cell::{Cell, RefCell};
use std::os::fd::RawFd;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyString, PyTuple};
use rondel_reactor::disk::{Patience, Sink};

use super::buffer::{FileBuffer, FileWouldBlock, Tried};
use super::core::INLINE_MOST;
use super::file::{Kind, Op, State};
use crate::errors::os_error;
use crate::ffi::buffer::bytes_filled_by;

/// Larger writes go to a thread at once, rather than by way of memory.
const WRITE_MOST: usize = 256 * 1024;

/// Where reading text can begin again.
///
/// io.TextIOWrapper loses what it has decoded when it cannot go on. So there is always a position
/// known from which to decode again: a cookie of its `tell()`, and how many characters were read from
/// there on.
pub struct Reading {
    /// Whether the encoding allows that. (Some codecs cannot tell positions well.)
    quick: bool,
    cookie: RefCell<Option<Py<PyAny>>>,
    since: Cell<usize>,
    /// An attempt has lost what was decoded.
    interrupted: Cell<bool>,
}

/// After so many characters a thread asks for a new position; only so many are ever read twice.
const SINCE_MOST: usize = 1024 * 1024;

impl Reading {
    pub fn new(quick: bool) -> Self {
        Reading {
            quick,
            cookie: RefCell::default(),
            since: Cell::new(0),
            interrupted: Cell::new(false),
        }
    }

    fn is_known(&self) -> bool {
        self.since.get() < SINCE_MOST && self.cookie.borrow().is_some()
    }

    fn forget(&self) {
        self.since.set(0);
        drop(self.cookie.take());
    }

    fn begin_at(&self, cookie: Py<PyAny>) {
        self.since.set(0);
        if self.quick {
            drop(self.cookie.replace(Some(cookie)));
        }
    }
}

/// Whether writing goes to memory first.
pub fn writes_to_memory(py: Python<'_>, state: &State) -> bool {
    match state.kind {
        Kind::Buffered => true,
        Kind::Text => text_writes_to_memory(state.target.bind(py)),
        Kind::Raw | Kind::Foreign => false,
    }
}

fn text_writes_to_memory(target: &Bound<'_, PyAny>) -> bool {
    let py = target.py();
    let is = |name| target.getattr(name).and_then(|flag| flag.is_truthy()).unwrap_or(true);
    !is(intern!(py, "line_buffering")) && !is(intern!(py, "write_through"))
}

/// Tries an operation; None when it would have to wait.
pub fn at_once(
    py: Python<'_>,
    state: &State,
    op: Op,
    method: &Py<PyString>,
    args: &Bound<'_, PyTuple>,
) -> Tried<Py<PyAny>> {
    let value = match (state.kind, &state.buffer) {
        (Kind::Buffered, Some(buffer)) => buffered(py, state, buffer.get(), op, method, args)?,
        (Kind::Text, Some(buffer)) => text(py, state, buffer.get(), op, method, args)?,
        (Kind::Raw, _) => raw(py, state, op, method, args)?,
        _ => None,
    };
    Ok(value.map(Bound::unbind))
}

fn buffered<'py>(
    py: Python<'py>,
    state: &'py State,
    buffer: &FileBuffer,
    op: Op,
    method: &Py<PyString>,
    args: &Bound<'py, PyTuple>,
) -> Tried<Bound<'py, PyAny>> {
    let first = args.get_item(0).ok();
    let count = args.len();
    buffer.without_waiting(py, || match (op, first) {
        (Op::Read, first) if count <= 1 => buffer.try_read(py, first.as_ref()),
        (Op::ReadLine, first) if count <= 1 => buffer.try_readline(py, first.as_ref()),
        (Op::Read1, first) if count <= 1 => buffer.try_read1(py, first.as_ref()),
        (Op::Peek, _) if count <= 1 => buffer.try_peek(py),
        (Op::ReadInto, Some(target)) if count == 1 => buffer.try_readinto(py, &target, false),
        (Op::ReadInto1, Some(target)) if count == 1 => buffer.try_readinto(py, &target, true),
        (Op::Write, Some(data)) if count == 1 => {
            if data.len().is_ok_and(|length| length > WRITE_MOST) {
                return Ok(None);
            }
            buffer.try_write(py, &data)
        }
        (Op::Tell, None) => buffer.try_tell(py),
        (Op::Flush, None) => buffer.try_flush(py),
        (Op::Seek, Some(target)) if count == 1 => buffer.try_seek(py, &target, 0),
        (Op::Seek, Some(target)) if count == 2 => match args.get_item(1)?.extract::<i32>() {
            Ok(whence) => buffer.try_seek(py, &target, whence),
            Err(_) => Ok(None),
        },
        (Op::Close, None) if state.closer.is_none() && buffer.closes_at_once(py) => {
            buffer.close(py).map(|()| Some(py.None().into_bound(py)))
        }
        // Wrong arguments: said by the method itself.
        (Op::Other, _) | (Op::Close, _) => Ok(None),
        _ => state.target.bind(py).call_method1(method, args).map(Some),
    })
}

fn text<'py>(
    py: Python<'py>,
    state: &'py State,
    buffer: &FileBuffer,
    op: Op,
    method: &Py<PyString>,
    args: &Bound<'py, PyTuple>,
) -> Tried<Bound<'py, PyAny>> {
    let target = state.target.bind(py);
    let possible = buffer.is_closed(py)
        || match op {
            Op::Read => state.reading.is_known() && is_short(py, buffer, args),
            Op::ReadLine => state.reading.is_known(),
            Op::Write => {
                // What is not text is refused at once.
                let short = args
                    .get_item(0)
                    .map_or(true, |data| data.len().map_or(true, |length| length <= WRITE_MOST));
                short && text_writes_to_memory(target)
            }
            // Another whence reads and moves in steps that cannot be repeated.
            Op::Seek => args.len() == 1,
            Op::Tell | Op::Flush => true,
            Op::Close => state.closer.is_none() && buffer.closes_at_once(py),
            _ => false,
        };
    if !possible {
        return Ok(None);
    }
    let result = buffer.without_waiting(py, || target.call_method1(method, args));
    match result {
        Ok(value) => {
            match op {
                Op::Read | Op::ReadLine => {
                    let since = &state.reading.since;
                    since.set(since.get().saturating_add(value.len()?));
                }
                Op::Seek | Op::Tell => state.reading.begin_at(value.clone().unbind()),
                Op::Write => state.reading.forget(),
                _ => {}
            }
            Ok(Some(value))
        }
        Err(error) if error.is_instance_of::<FileWouldBlock>(py) => {
            if matches!(op, Op::Read | Op::ReadLine) {
                state.reading.interrupted.set(true);
            }
            Ok(None)
        }
        Err(error) => {
            state.reading.forget();
            Err(error)
        }
    }
}

/// Whether not more than what may be read at once is asked for.
fn is_short(py: Python<'_>, buffer: &FileBuffer, args: &Bound<'_, PyTuple>) -> bool {
    match args.get_item(0).ok().and_then(|size| size.extract::<isize>().ok()) {
        Some(size) if size >= 0 => size.unsigned_abs() <= INLINE_MOST,
        _ => buffer.left(py).is_some_and(|left| left <= INLINE_MOST),
    }
}

fn raw<'py>(
    py: Python<'py>,
    state: &'py State,
    op: Op,
    method: &Py<PyString>,
    args: &Bound<'py, PyTuple>,
) -> Tried<Bound<'py, PyAny>> {
    let target = state.target.bind(py);
    match op {
        Op::Read if args.len() == 1 => {
            let Ok(size) = args.get_item(0)?.extract::<usize>() else { return Ok(None) };
            let closed = target.getattr(intern!(py, "closed"))?.is_truthy()?;
            let may = !closed && target.call_method0(intern!(py, "readable"))?.is_truthy()?;
            if size > INLINE_MOST || !may {
                return Ok(None);
            }
            let fd: RawFd = target.call_method0(intern!(py, "fileno"))?.extract()?;
            let read = bytes_filled_by(py, size, |memory| {
                let mut sink = Sink::new(memory);
                sink.read(fd, size, Patience::Now)
            })?;
            match read {
                Ok(bytes) => Ok(Some(bytes.into_any())),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
                Err(error) => Err(os_error(py, &error)),
            }
        }
        // Moving to a place, or asking for it, waits for nothing.
        Op::Tell => target.call_method1(method, args).map(Some),
        Op::Seek if args.len() == 1 => target.call_method1(method, args).map(Some),
        _ => Ok(None),
    }
}

/// Does the operation, waiting as long as it takes.
pub fn on_thread(
    py: Python<'_>,
    state: &State,
    op: Op,
    method: &Py<PyString>,
    args: &Bound<'_, PyTuple>,
) -> PyResult<Py<PyAny>> {
    let target = state.target.bind(py);
    if state.kind != Kind::Text {
        return target.call_method1(method, args).map(Bound::unbind);
    }
    let reading = &state.reading;
    if reading.interrupted.take() {
        let cookie = reading.cookie.take();
        if let Some(cookie) = cookie {
            target.call_method1(intern!(py, "seek"), (cookie,))?;
            let since = reading.since.get();
            if since > 0 {
                target.call_method1(intern!(py, "read"), (since,))?;
            }
        }
    }
    reading.forget();
    let value = target.call_method1(method, args)?;
    match op {
        Op::Seek | Op::Tell => reading.begin_at(value.clone().unbind()),
        Op::Read | Op::ReadLine if reading.quick => {
            // No position can be told in some states, as between the codec's units.
            if let Ok(cookie) = target.call_method0(intern!(py, "tell")) {
                reading.begin_at(cookie.unbind());
            }
        }
        _ => {}
    }
    Ok(value.unbind())
}

/// What a whole file holds, if it is in memory; used by [`super::whole`].
pub fn read_cached(py: Python<'_>, fd: RawFd) -> Tried<Py<PyAny>> {
    let Ok(size) = rondel_reactor::sendfile::file_size(fd) else { return Ok(None) };
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    if size == 0 || size >= INLINE_MOST {
        return Ok(None);
    }
    let read = bytes_filled_by(py, size + 1, |memory| -> std::io::Result<usize> {
        let mut sink = Sink::new(memory);
        let count = sink.read(fd, size + 1, Patience::Now)?;
        // Not the whole: the rest is not in memory, or the file changes.
        if count == size { Ok(count) } else { Err(std::io::ErrorKind::WouldBlock.into()) }
    })?;
    Ok(read.ok().map(|bytes| bytes.into_any().unbind()))
}
