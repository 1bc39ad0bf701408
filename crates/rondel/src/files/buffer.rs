//! `FileBuffer`: the binary buffer under every buffered file of ours, as Python sees it.
//!
//! It has the interface of `io.BufferedReader`, `BufferedWriter` or `BufferedRandom`, so that
//! `io.TextIOWrapper` can sit on it, over an `io.FileIO` that opens, names and closes the file. Its
//! methods may be called from any thread. They wait for the disk without the GIL; while the buffer is
//! [set](FileBuffer::without_waiting) not to wait, they raise `FileWouldBlock` instead, which leaves
//! nothing half done.
//!
//! What a buffer of Python's refuses (a closed file, a wrong direction or argument) is refused by one:
//! `rondel.files.refusals` finds the words of the running version.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::RawFd;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};
use rondel_reactor::disk::{Patience, Sink};

use super::core::{Core, INLINE_MOST};
use crate::errors::os_error;
use crate::ffi::buffer::{View, bytes_filled_by};
use crate::ffi::confined::Confined;
use crate::imports;

pyo3::create_exception!(
    rondel._rondel,
    FileWouldBlock,
    pyo3::exceptions::PyException,
    "A file's operation would have to wait; a thread does it."
);

/// Which of Python's buffers it stands for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Read,
    Write,
    Both,
}

/// The result of an operation: None when it would have to wait.
pub type Tried<T> = PyResult<Option<T>>;

/// See the module's documentation.
#[pyclass(frozen, weakref, module = "rondel._rondel")]
pub struct FileBuffer {
    pub state: Confined<State>,
}

pub struct State {
    pub direction: Direction,
    pub fd: RawFd,
    pub local: bool,
    /// Taken out while an operation runs.
    pub core: RefCell<Option<Box<Core>>>,
    /// None when detached.
    pub raw: RefCell<Option<Py<PyAny>>>,
    pub closed: Cell<bool>,
    pub patience: Cell<Patience>,
    /// How much may be pending before a write waits for the disk.
    pub threshold: usize,
    /// What went wrong when something was written in the background.
    pub deferred: RefCell<Option<io::Error>>,
}

pub enum Failure {
    Blocked,
    Error(PyErr),
}

impl From<PyErr> for Failure {
    fn from(error: PyErr) -> Self {
        Failure::Error(error)
    }
}

pub fn unless_blocked<T>(result: Result<T, Failure>) -> Tried<T> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Failure::Blocked) => Ok(None),
        Err(Failure::Error(error)) => Err(error),
    }
}

/// The answer to Python code, which learns of what would wait by an exception.
pub fn told<T>(tried: Tried<T>) -> PyResult<T> {
    tried?.ok_or_else(|| FileWouldBlock::new_err(()))
}

impl FileBuffer {
    pub fn state<'a>(&'a self, py: Python<'a>) -> &'a State {
        self.state.get(py)
    }

    /// How much may be pending before it is worth a trip to a thread.
    pub fn threshold(&self, py: Python<'_>) -> usize {
        self.state(py).threshold
    }

    pub fn fd(&self, py: Python<'_>) -> RawFd {
        self.state(py).fd
    }

    pub fn is_closed(&self, py: Python<'_>) -> bool {
        self.state(py).closed.get()
    }

    /// Whether closing it takes no time worth mentioning.
    pub fn closes_at_once(&self, py: Python<'_>) -> bool {
        let state = self.state(py);
        state.local && state.direction == Direction::Read
    }

    pub fn can_read(&self, py: Python<'_>) -> bool {
        self.state(py).direction != Direction::Write
    }

    /// How many bytes wait to be written.
    pub fn pending(&self, py: Python<'_>) -> usize {
        self.state(py).core.borrow().as_ref().map_or(0, |core| core.pending.len())
    }

    /// How many bytes are left to read, by what the file's size says; None if asking may take time.
    pub fn left(&self, py: Python<'_>) -> Option<usize> {
        let state = self.state(py);
        if !state.local {
            return None;
        }
        state.core.borrow().as_ref().map(|core| core.left())
    }

    /// Takes what is to be written, for somebody who writes it in the background.
    pub fn take_pending(&self, py: Python<'_>) -> Vec<u8> {
        match &mut *self.state(py).core.borrow_mut() {
            Some(core) => std::mem::take(&mut core.pending),
            None => Vec::new(),
        }
    }

    /// What was written in the background failed: what is left of it comes first at the next try, and
    /// the next operation raises the error.
    pub fn background_failed(&self, py: Python<'_>, mut left: Vec<u8>, error: io::Error) {
        let state = self.state(py);
        if let Some(core) = &mut *state.core.borrow_mut() {
            left.append(&mut core.pending);
            core.pending = left;
        }
        state.deferred.replace(Some(error));
    }

    /// Calls `f` while the buffer's methods raise rather than wait.
    pub fn without_waiting<R>(&self, py: Python<'_>, f: impl FnOnce() -> R) -> R {
        let state = self.state(py);
        state.patience.set(Patience::Now);
        if let Some(core) = &mut *state.core.borrow_mut() {
            core.budget = INLINE_MOST;
        }
        let result = f();
        state.patience.set(Patience::Wait);
        result
    }

    /// Runs an operation, without the GIL if it may wait.
    pub fn run<R: Send>(
        &self,
        py: Python<'_>,
        operation: impl FnOnce(&mut Core, Patience) -> io::Result<R> + Send,
    ) -> Result<R, Failure> {
        let state = self.state(py);
        let patience = state.patience.get();
        let Some(mut core) = state.core.take() else {
            return Err(PyRuntimeError::new_err("reentrant call inside a file's buffer").into());
        };
        let result = match patience {
            Patience::Now => operation(&mut core, patience),
            Patience::Wait => py.detach(|| operation(&mut core, patience)),
        };
        state.core.replace(Some(core));
        result.map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock if patience == Patience::Now => Failure::Blocked,
            _ => Failure::Error(os_error(py, &error)),
        })
    }

    /// Looks at the buffer without asking the system.
    fn with_core<R>(&self, py: Python<'_>, look: impl FnOnce(&mut Core) -> R) -> Option<R> {
        self.state(py).core.borrow_mut().as_mut().map(|core| look(core))
    }

    /// Raises what happened in the background.
    pub fn raise_deferred(&self, py: Python<'_>) -> PyResult<()> {
        match self.state(py).deferred.take() {
            Some(error) => Err(os_error(py, &error)),
            None => Ok(()),
        }
    }

    /// Whether the method can be done at all. If not, Python's own buffer says why.
    pub fn is_possible(&self, py: Python<'_>, needed: Option<Direction>) -> bool {
        let state = self.state(py);
        let fits = match needed {
            Some(needed) => state.direction == Direction::Both || state.direction == needed,
            None => true,
        };
        fits && !state.closed.get() && state.raw.borrow().is_some()
    }

    pub fn refuse<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        args: &[Option<&Bound<'py, PyAny>>],
    ) -> PyResult<Bound<'py, PyAny>> {
        let state = self.state(py);
        let kind = match state.direction {
            _ if state.raw.borrow().is_none() => "detached",
            Direction::Read => "reader",
            Direction::Write => "writer",
            Direction::Both => "random",
        };
        let args = PyTuple::new(py, args.iter().flatten().collect::<Vec<_>>())?;
        imports::refuse(py)?.call1((kind, state.closed.get(), name, args))
    }

    pub fn raw<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match &*self.state(py).raw.borrow() {
            Some(raw) => Ok(raw.bind(py).clone()),
            None => Err(crate::files::value_error("raw stream has been detached")),
        }
    }

    /// The bytes that an operation fills in.
    fn bytes<'py>(
        &self,
        py: Python<'py>,
        most: usize,
        operation: impl FnOnce(&mut Core, &mut Sink<'_>, Patience) -> io::Result<()> + Send,
    ) -> Result<Bound<'py, PyBytes>, Failure> {
        bytes_filled_by(py, most, |memory| {
            self.run(py, |core, patience| {
                let mut sink = Sink::new(memory);
                operation(core, &mut sink, patience)?;
                Ok(sink.filled())
            })
        })?
    }

    pub fn try_read<'py>(
        &self,
        py: Python<'py>,
        size: Option<&Bound<'py, PyAny>>,
    ) -> Tried<Bound<'py, PyAny>> {
        let Some(number) = self.size(py, Direction::Read, size, true) else {
            return self.refuse(py, "read", &[size]).map(Some);
        };
        let Ok(most) = usize::try_from(number) else {
            if number < -1 {
                return self.refuse(py, "read", &[size]).map(Some);
            }
            return self.try_read_all(py);
        };
        self.raise_deferred(py)?;
        if let Some(bytes) = self.taken(py, most) {
            return Ok(Some(bytes.into_any()));
        }
        if most > INLINE_MOST && self.state(py).patience.get() == Patience::Now {
            return Ok(None);
        }
        let read = self.bytes(py, most, |core, sink, patience| core.read(sink, patience));
        unless_blocked(read.map(Bound::into_any))
    }

    /// So many bytes, if they have been read ahead.
    fn taken<'py>(&self, py: Python<'py>, count: usize) -> Option<Bound<'py, PyBytes>> {
        self.with_core(py, |core| {
            let bytes = PyBytes::new(py, core.ahead().get(..count)?);
            core.consume(count);
            Some(bytes)
        })?
    }

    fn try_read_all<'py>(&self, py: Python<'py>) -> Tried<Bound<'py, PyAny>> {
        self.raise_deferred(py)?;
        let now = self.state(py).patience.get() == Patience::Now;
        let left = match self.left(py) {
            Some(left) => left,
            None if now => return Ok(None),
            None => self.run_unblocked(py, |core| core.left())?,
        };
        if now && left >= INLINE_MOST {
            return Ok(None);
        }
        let mut ended = false;
        // One more than is expected, so that the end shows in the first call that brings less.
        let first = self.bytes(py, left.saturating_add(1), |core, sink, patience| {
            ended = core.read_to_end(sink, patience)?;
            Ok(())
        });
        let Some(first) = unless_blocked(first)? else { return Ok(None) };
        if ended {
            return Ok(Some(first.into_any()));
        }
        // It has grown, or says nothing of its size (as files in /proc do).
        let mut whole = first.as_bytes().to_vec();
        let more = self.run(py, |core, patience| {
            let mut part = vec![std::mem::MaybeUninit::uninit(); 64 * 1024];
            loop {
                let mut sink = Sink::new(&mut part);
                let ended = match core.read_to_end(&mut sink, patience) {
                    Ok(ended) => ended,
                    Err(error) => {
                        whole.extend_from_slice(core.ahead());
                        core.restore(&whole);
                        return Err(error);
                    }
                };
                whole.extend_from_slice(sink.bytes());
                if ended {
                    return Ok(whole);
                }
            }
        });
        Ok(unless_blocked(more)?.map(|whole| PyBytes::new(py, &whole).into_any()))
    }

    fn run_unblocked<R: Send>(
        &self,
        py: Python<'_>,
        look: impl FnOnce(&mut Core) -> R + Send,
    ) -> PyResult<R> {
        match self.run(py, |core, _| Ok(look(core))) {
            Ok(value) => Ok(value),
            Err(Failure::Error(error)) => Err(error),
            Err(Failure::Blocked) => Err(FileWouldBlock::new_err(())),
        }
    }

    pub fn try_read1<'py>(
        &self,
        py: Python<'py>,
        size: Option<&Bound<'py, PyAny>>,
    ) -> Tried<Bound<'py, PyAny>> {
        let Some(number) = self.size(py, Direction::Read, size, false) else {
            return self.refuse(py, "read1", &[size]).map(Some);
        };
        self.raise_deferred(py)?;
        let most = match usize::try_from(number) {
            Ok(most) => most,
            Err(_) => self.with_core(py, |core| core.size()).unwrap_or(0),
        };
        if most == 0 {
            return Ok(Some(PyBytes::new(py, b"").into_any()));
        }
        let there = self.with_core(py, |core| core.available()).unwrap_or(0);
        if let Some(bytes) = (there > 0).then(|| self.taken(py, most.min(there))).flatten() {
            return Ok(Some(bytes.into_any()));
        }
        let read = self.bytes(py, most, |core, sink, patience| core.read1(sink, patience));
        unless_blocked(read.map(Bound::into_any))
    }

    pub fn try_readline<'py>(
        &self,
        py: Python<'py>,
        size: Option<&Bound<'py, PyAny>>,
    ) -> Tried<Bound<'py, PyAny>> {
        let Some(number) = self.size(py, Direction::Read, size, true) else {
            return self.refuse(py, "readline", &[size]).map(Some);
        };
        self.raise_deferred(py)?;
        let limit = usize::try_from(number).unwrap_or(usize::MAX);
        let ahead = self.with_core(py, |core| {
            let count = core.line_ahead(limit)?;
            let line = PyBytes::new(py, core.ahead().get(..count)?);
            core.consume(count);
            Some(line)
        });
        if let Some(Some(line)) = ahead {
            return Ok(Some(line.into_any()));
        }
        let line = self.run(py, |core, patience| core.read_line(limit, patience));
        Ok(unless_blocked(line)?.map(|line| PyBytes::new(py, &line).into_any()))
    }

    pub fn try_peek<'py>(&self, py: Python<'py>) -> Tried<Bound<'py, PyAny>> {
        if !self.is_possible(py, Some(Direction::Read)) {
            return self.refuse(py, "peek", &[]).map(Some);
        }
        self.raise_deferred(py)?;
        if unless_blocked(self.run(py, |core, patience| core.peek(patience)))?.is_none() {
            return Ok(None);
        }
        let bytes = self.with_core(py, |core| PyBytes::new(py, core.ahead()).into_any());
        Ok(bytes)
    }

    pub fn try_readinto<'py>(
        &self,
        py: Python<'py>,
        target: &Bound<'py, PyAny>,
        once: bool,
    ) -> Tried<Bound<'py, PyAny>> {
        let name = if once { "readinto1" } else { "readinto" };
        if !self.is_possible(py, Some(Direction::Read)) {
            return self.refuse(py, name, &[Some(target)]).map(Some);
        }
        let Ok(mut view) = View::writable(target) else {
            return self.refuse(py, name, &[Some(target)]).map(Some);
        };
        self.raise_deferred(py)?;
        let count = if self.state(py).patience.get() == Patience::Now {
            let memory = view.bytes_mut();
            if memory.len() > INLINE_MOST {
                return Ok(None);
            }
            self.run(py, |core, patience| {
                let mut sink = Sink::new(memory);
                core.read_into(&mut sink, once, patience)?;
                Ok(sink.filled())
            })
        } else {
            // Not into memory that others may look at while this thread has let go of the GIL.
            let room = view.len();
            self.run(py, |core, patience| {
                let mut memory = Vec::with_capacity(room);
                let spare: &mut [std::mem::MaybeUninit<u8>] = memory.spare_capacity_mut();
                let mut sink = Sink::new(&mut spare[..room]);
                core.read_into(&mut sink, once, patience)?;
                Ok(sink.bytes().to_vec())
            })
            .map(|bytes| Sink::new(view.bytes_mut()).put(&bytes))
        };
        let Some(count) = unless_blocked(count)? else { return Ok(None) };
        Ok(Some(count.into_pyobject(py)?.into_any()))
    }

    pub fn try_write<'py>(
        &self,
        py: Python<'py>,
        data: &Bound<'py, PyAny>,
    ) -> Tried<Bound<'py, PyAny>> {
        if !self.is_possible(py, Some(Direction::Write)) {
            return self.refuse(py, "write", &[Some(data)]).map(Some);
        }
        if let Ok(bytes) = data.cast_exact::<PyBytes>() {
            self.write_bytes(py, bytes.as_bytes(), true)?;
            return Ok(Some(bytes.as_bytes().len().into_pyobject(py)?.into_any()));
        }
        let Ok(view) = View::readable(data) else {
            return self.refuse(py, "write", &[Some(data)]).map(Some);
        };
        self.write_bytes(py, view.bytes(), false)?;
        Ok(Some(view.len().into_pyobject(py)?.into_any()))
    }

    /// `lasting`: nobody can change them while this thread has let go of the GIL.
    fn write_bytes(&self, py: Python<'_>, bytes: &[u8], lasting: bool) -> PyResult<()> {
        self.raise_deferred(py)?;
        let state = self.state(py);
        let must_write = state.patience.get() == Patience::Wait
            && self.pending(py) + bytes.len() > state.threshold;
        if !must_write {
            return match self.with_core(py, |core| core.write(bytes)) {
                Some(result) => result.map_err(|error| os_error(py, &error)),
                None => Err(PyRuntimeError::new_err("reentrant call inside a file's buffer")),
            };
        }
        let copy;
        let bytes = if lasting {
            bytes
        } else {
            copy = bytes.to_vec();
            &copy
        };
        match self.run(py, |core, _| core.write_through(bytes)) {
            Ok(()) => Ok(()),
            Err(Failure::Error(error)) => Err(error),
            Err(Failure::Blocked) => Err(FileWouldBlock::new_err(())),
        }
    }

    pub fn try_flush<'py>(&self, py: Python<'py>) -> Tried<Bound<'py, PyAny>> {
        if !self.is_possible(py, None) {
            return self.refuse(py, "flush", &[]).map(Some);
        }
        let rewind = self.state(py).direction == Direction::Both;
        self.raise_deferred(py)?;
        let flushed = self.run(py, |core, patience| core.flush(rewind, patience));
        Ok(unless_blocked(flushed)?.map(|()| py.None().into_bound(py)))
    }

    pub fn try_tell<'py>(&self, py: Python<'py>) -> Tried<Bound<'py, PyAny>> {
        if !self.is_possible(py, None) {
            return self.refuse(py, "tell", &[]).map(Some);
        }
        self.raise_deferred(py)?;
        let position = self.run_unblocked(py, |core| core.tell())?;
        let position = position.map_err(|error| os_error(py, &error))?;
        Ok(Some(position.into_pyobject(py)?.into_any()))
    }

    pub fn try_seek<'py>(
        &self,
        py: Python<'py>,
        target: &Bound<'py, PyAny>,
        whence: i32,
    ) -> Tried<Bound<'py, PyAny>> {
        let offset = target.extract::<i64>();
        let (true, 0..=4, Ok(offset)) = (self.is_possible(py, None), whence, offset) else {
            let whence = whence.into_pyobject(py)?.into_any();
            return self.refuse(py, "seek", &[Some(target), Some(&whence)]).map(Some);
        };
        self.raise_deferred(py)?;
        let position = self.run(py, |core, patience| core.seek(offset, whence, patience));
        let Some(position) = unless_blocked(position)? else { return Ok(None) };
        Ok(Some(position.into_pyobject(py)?.into_any()))
    }

    /// A method's size argument; None when it, or the method, is to be refused.
    pub fn size(
        &self,
        py: Python<'_>,
        needed: Direction,
        size: Option<&Bound<'_, PyAny>>,
        may_be_none: bool,
    ) -> Option<isize> {
        if !self.is_possible(py, Some(needed)) {
            return None;
        }
        match size {
            None => Some(-1),
            Some(size) if size.is_none() => may_be_none.then_some(-1),
            Some(size) => size.extract().ok(),
        }
    }
}

/// Nobody has closed it: what was written is not lost, as with io's buffers.
pub fn write_the_rest(state: &State) -> io::Result<()> {
    if state.closed.get() || state.raw.try_borrow().map_or(true, |raw| raw.is_none()) {
        return Ok(());
    }
    match &mut *state.core.borrow_mut() {
        Some(core) if !core.pending.is_empty() => core.write_pending(),
        _ => Ok(()),
    }
}

pub fn report(py: Python<'_>, result: &io::Result<()>) {
    if let Err(error) = result {
        let pending = PyErr::take(py);
        os_error(py, error).write_unraisable(py, None);
        if let Some(pending) = pending {
            pending.restore(py);
        }
    }
}

impl Drop for FileBuffer {
    fn drop(&mut self) {
        let result = write_the_rest(self.state.get_mut());
        if result.is_err() {
            Python::attach(|py| report(py, &result));
        }
    }
}
