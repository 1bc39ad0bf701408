//! What the coroutine methods of streams do when they are awaited.
//!
//! An operation is a small state machine: [`step`] does what can be done now, and either has the
//! result or names the future to wait for. It is called again when that future is done, with the
//! error that ended the wait (cancellation, usually) or without. The order of checks, and every
//! message, is asyncio's.

use std::borrow::Cow;

use memchr::memmem;
use pyo3::exceptions::{PyRuntimeError, PyStopAsyncIteration, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};

use super::reader::{State, StreamReader};
use super::writer;
use crate::ffi::operation::Operation;
use crate::{imports, sync};

/// The operations.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `read(n)` with n >= 0
    Read,
    /// `read()`
    ReadAll,
    ReadExactly,
    ReadUntil,
    ReadLine,
    /// `__anext__()`
    Next,
    Drain,
    /// `asyncio.sleep(0)`: its owner is the result.
    Sleep,
    /// Of a queue, a lock and so on.
    Sync(sync::Kind),
}

impl Kind {
    /// The method's name.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Read | Kind::ReadAll => "read",
            Kind::ReadExactly => "readexactly",
            Kind::ReadUntil => "readuntil",
            Kind::ReadLine => "readline",
            Kind::Next => "__anext__",
            Kind::Drain => "drain",
            Kind::Sleep => "sleep",
            Kind::Sync(kind) => kind.name(),
        }
    }

    /// The same with its class.
    pub fn qualified_name(self) -> String {
        let class = match self {
            Kind::Sleep => return self.name().to_owned(),
            Kind::Drain => "StreamWriter",
            Kind::Sync(kind) => kind.class(),
            _ => "StreamReader",
        };
        format!("{class}.{}", self.name())
    }
}

/// What a step leads to.
pub enum Step<'py> {
    /// The future to wait for; it is marked as waited for. None: the next turn.
    Wait(Bound<'py, PyAny>),
    Done(Bound<'py, PyAny>),
    /// This coroutine does the rest, beginning with an answer to it.
    Delegate(Bound<'py, PyAny>, PyResult<()>),
}

/// The answer of a first step that finds what it is after: the usual case when lines are read, without
/// what [`step`] has to look at for the others. None says that [`step`] is to do it.
#[inline]
pub fn at_once<'py>(operation: Operation<'_>, py: Python<'py>) -> Option<Bound<'py, PyBytes>> {
    let kind = operation.kind();
    if !matches!(kind, Kind::ReadLine | Kind::Next | Kind::ReadExactly) {
        return None;
    }
    let owner = operation.owner(py).ok()?;
    let state = owner.cast::<StreamReader>().ok()?.get().state(py);
    if state.paused.get() || state.exception.is_some(py) {
        return None;
    }
    let mut buffer = state.buffer.borrow_mut();
    let count = if kind == Kind::ReadExactly {
        let size = usize::try_from(operation.size()).ok()?;
        (size > 0 && size <= buffer.len(py)).then_some(size)?
    } else {
        let newline = buffer.look(py, |bytes| memchr::memchr(b'\n', bytes)).ok()??;
        (newline <= state.limit.get()).then_some(newline + 1)?
    };
    buffer.take(py, count).ok()
}

/// Goes on with an operation: from its start, or after the wait for the future `waited`.
///
/// # Errors
/// Those of the method.
#[inline]
pub fn step<'py>(
    py: Python<'py>,
    operation: Operation<'_>,
    waited: Option<Bound<'py, PyAny>>,
    answer: PyResult<()>,
) -> PyResult<Step<'py>> {
    let owner = operation.owner(py)?;
    let kind = operation.kind();
    match kind {
        Kind::Drain => {
            answer?;
            return writer::drain(&owner, waited.is_some());
        }
        Kind::Sleep if waited.is_none() => return Ok(Step::Wait(py.None().into_bound(py))),
        Kind::Sleep => return answer.map(|()| Step::Done(owner)),
        Kind::Sync(kind) => return sync::step(kind, &owner, operation, waited, answer),
        _ => {}
    }
    let reader = owner.cast::<StreamReader>()?;
    let state = reader.get().state(py);
    let call = Call { py, state, operation, resumed: waited.is_some() };
    let result = match waited {
        Some(waited) => call.wait_ended(&waited, answer).and_then(|()| call.go_on(kind)),
        None => call.go_on(kind),
    };
    match kind {
        Kind::ReadLine => result.or_else(|error| call.line_failed(error)),
        Kind::Next => match result.or_else(|error| call.line_failed(error))? {
            Step::Done(line) if line.len()? == 0 => Err(PyStopAsyncIteration::new_err(())),
            step => Ok(step),
        },
        _ => result,
    }
}

/// One step of a reading operation.
struct Call<'a, 'py> {
    py: Python<'py>,
    state: &'a State,
    operation: Operation<'a>,
    /// This is not the first step.
    resumed: bool,
}

impl<'py> Call<'_, 'py> {
    fn wait_ended(&self, waited: &Bound<'py, PyAny>, answer: PyResult<()>) -> PyResult<()> {
        // Nobody else's by now: whoever feeds the reader has taken the future out.
        let left = self.state.waiter.take(self.py);
        self.state.wanted.set(0);
        answer?;
        if left.is_some() && !waited.call_method0(intern!(self.py, "done"))?.is_truthy()? {
            return Err(PyRuntimeError::new_err("await wasn't used with future"));
        }
        if self.state.exception.is_some(self.py) {
            waited.call_method0(intern!(self.py, "result"))?;
        }
        Ok(())
    }

    fn go_on(&self, kind: Kind) -> PyResult<Step<'py>> {
        match kind {
            Kind::Read => self.read(),
            Kind::ReadAll => self.read_all(),
            Kind::ReadExactly => self.read_exactly(),
            _ => self.read_until(),
        }
    }

    fn length(&self) -> usize {
        self.state.buffer.borrow().len(self.py)
    }

    fn wait(&self, name: &str, wanted: usize) -> PyResult<Step<'py>> {
        self.state.wait(self.py, name, wanted).map(Step::Wait)
    }

    fn take(&self, count: usize) -> PyResult<Bound<'py, PyBytes>> {
        let taken = self.state.buffer.borrow_mut().take(self.py, count)?;
        self.state.resume_if_short(self.py)?;
        Ok(taken)
    }

    fn skip(&self, count: usize) -> PyResult<()> {
        self.state.buffer.borrow_mut().skip(self.py, count)?;
        self.state.resume_if_short(self.py)
    }

    fn nothing(&self) -> Step<'py> {
        Step::Done(PyBytes::new(self.py, b"").into_any())
    }

    fn read(&self) -> PyResult<Step<'py>> {
        let size = self.operation.size().unsigned_abs();
        if !self.resumed {
            self.state.check(self.py)?;
            if size == 0 {
                return Ok(self.nothing());
            }
            if self.length() == 0 && !self.state.eof.get() {
                return self.wait("read", size);
            }
        }
        self.take(size).map(|data| Step::Done(data.into_any()))
    }

    fn read_all(&self) -> PyResult<Step<'py>> {
        let limit = self.state.limit.get();
        let blocks = match self.operation.argument(self.py) {
            Some(blocks) => blocks.cast_into::<PyList>()?,
            None => {
                // asyncio looks once more before the first block.
                self.state.check(self.py)?;
                let blocks = PyList::empty(self.py);
                self.operation.set_argument(blocks.clone().into_any());
                blocks
            }
        };
        let mut resumed = self.resumed;
        loop {
            if !resumed {
                self.state.check(self.py)?;
                if self.length() == 0 && !self.state.eof.get() {
                    return self.wait("read", limit);
                }
            }
            resumed = false;
            let block = self.take(limit)?;
            if block.as_bytes().is_empty() {
                let joined = PyBytes::new(self.py, b"");
                return joined.call_method1(intern!(self.py, "join"), (blocks,)).map(Step::Done);
            }
            blocks.append(block)?;
        }
    }

    fn read_exactly(&self) -> PyResult<Step<'py>> {
        let size = self.operation.size();
        if !self.resumed {
            if size < 0 {
                return Err(PyValueError::new_err("readexactly size can not be less than zero"));
            }
            self.state.check(self.py)?;
            if size == 0 {
                return Ok(self.nothing());
            }
        }
        let size = size.unsigned_abs();
        if self.length() >= size {
            return self.take(size).map(|data| Step::Done(data.into_any()));
        }
        if self.state.eof.get() {
            return Err(self.incomplete(Some(size))?);
        }
        self.wait("readexactly", 0)
    }

    /// The error of an end that came too early; what there is goes with it.
    #[cold]
    fn incomplete(&self, expected: Option<usize>) -> PyResult<PyErr> {
        let partial = self.state.buffer.borrow_mut().take(self.py, usize::MAX)?;
        let error = imports::incomplete_read_error(self.py)?.call1((partial, expected))?;
        Ok(PyErr::from_value(error))
    }

    #[cold]
    fn overrun(&self, message: &str, consumed: usize) -> PyResult<PyErr> {
        let error = imports::limit_overrun_error(self.py)?.call1((message, consumed))?;
        Ok(PyErr::from_value(error))
    }

    fn read_until(&self) -> PyResult<Step<'py>> {
        let argument = self.operation.argument(self.py);
        let separators = Separators::of(argument.as_ref())?;
        if !self.resumed {
            if separators.shortest == 0 {
                let message = "Separator should be at least one-byte string";
                return Err(PyValueError::new_err(message));
            }
            self.state.check(self.py)?;
        }
        let limit = self.state.limit.get();
        // So many bytes from the beginning were searched in earlier steps.
        let offset = self.operation.offset();
        let length = self.length();
        if length >= offset + separators.shortest {
            let found = self
                .state
                .buffer
                .borrow()
                .look(self.py, |bytes| separators.first_in(bytes, offset))?;
            if let Some((start, end)) = found {
                if start > limit {
                    let message = "Separator is found, but chunk is longer than limit";
                    return Err(self.overrun(message, start)?);
                }
                return self.take(end).map(|data| Step::Done(data.into_any()));
            }
            // The longest separator may have begun already.
            let offset = (length + 1).saturating_sub(separators.longest);
            self.operation.set_offset(offset);
            if offset > limit {
                let message = "Separator is not found, and chunk exceed the limit";
                return Err(self.overrun(message, offset)?);
            }
        }
        if self.state.eof.get() {
            return Err(self.incomplete(None)?);
        }
        self.wait("readuntil", 0)
    }

    /// What readline() makes of readuntil()'s errors.
    #[cold]
    fn line_failed(&self, error: PyErr) -> PyResult<Step<'py>> {
        let py = self.py;
        let exception = error.value(py);
        if exception.is_instance(imports::incomplete_read_error(py)?)? {
            return exception.getattr(intern!(py, "partial")).map(Step::Done);
        }
        if !exception.is_instance(imports::limit_overrun_error(py)?)? {
            return Err(error);
        }
        let consumed: usize = exception.getattr(intern!(py, "consumed"))?.extract()?;
        let newline = self
            .state
            .buffer
            .borrow()
            .look(py, |bytes| bytes.get(consumed).is_some_and(|byte| *byte == b'\n'))?;
        self.skip(if newline { consumed + 1 } else { usize::MAX })?;
        let message = exception.getattr(intern!(py, "args"))?.get_item(0)?;
        let failed = PyValueError::new_err((message.unbind(),));
        failed.value(py).setattr(intern!(py, "__context__"), exception)?;
        Err(failed)
    }
}

/// What readuntil() looks for.
struct Separators<'a> {
    /// By length, the shortest first.
    all: Cow<'a, [Bound<'a, PyBytes>]>,
    shortest: usize,
    longest: usize,
}

impl<'py> Separators<'py> {
    /// From an operation's argument: None for a newline, one separator, or a tuple by length.
    fn of(argument: Option<&Bound<'py, PyAny>>) -> PyResult<Self> {
        let Some(argument) = argument else {
            return Ok(Separators { all: Cow::Borrowed(&[]), shortest: 1, longest: 1 });
        };
        let all: Vec<Bound<'py, PyBytes>> = match argument.cast::<PyTuple>() {
            Ok(several) => several
                .iter()
                .map(|separator| Ok(separator.cast_into::<PyBytes>()?))
                .collect::<PyResult<_>>()?,
            Err(_) => vec![argument.clone().cast_into::<PyBytes>()?],
        };
        let length = |separator: Option<&Bound<'py, PyBytes>>| {
            separator.map(|separator| separator.as_bytes().len()).ok_or_else(|| {
                PyValueError::new_err("Separator should contain at least one element")
            })
        };
        let (shortest, longest) = (length(all.first())?, length(all.last())?);
        Ok(Separators { all: Cow::Owned(all), shortest, longest })
    }

    /// Where the match lies that ends first; the longer separator of two that end there.
    fn first_in(&self, bytes: &[u8], offset: usize) -> Option<(usize, usize)> {
        if self.all.is_empty() {
            return memchr::memchr(b'\n', &bytes[offset..])
                .map(|at| (offset + at, offset + at + 1));
        }
        let mut first = None;
        for separator in self.all.iter() {
            let separator = separator.as_bytes();
            let Some(at) = memmem::find(&bytes[offset..], separator) else { continue };
            let (start, end) = (offset + at, offset + at + separator.len());
            if first.is_none_or(|(_, first_end)| end < first_end) {
                first = Some((start, end));
            }
        }
        first
    }
}
