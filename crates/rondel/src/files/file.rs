//! `File`: an open file whose operations are awaited. The base class of all kinds in `rondel.files`.
//!
//! Below it is a synchronous object of one of four [kinds](Kind), which holds the file's state and
//! defines what every operation does; this class decides when and where to call it.

use std::cell::Cell;

use pyo3::exceptions::PyStopAsyncIteration;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyString, PyTuple};
use pyo3::{PyTraverseError, PyVisit};
use rondel_reactor::disk;

use super::attempt::{self, Reading};
use super::buffer::{FileBuffer, Tried};
use super::job::{in_thread, submit};
use super::spare;
use super::turns::{self, Turn, Turns};
use crate::coroutine::{Begun, Coroutine, Waiting};
use crate::ffi::confined::Confined;
use crate::imports;

/// How much may be written to memory while a thread writes to the file, before writing waits.
const PENDING_MOST: usize = 1024 * 1024;

/// What is below.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A [`FileBuffer`].
    Buffered,
    /// An `io.FileIO`.
    Raw,
    /// An `io.TextIOWrapper` on a [`FileBuffer`].
    Text,
    /// Any other object: all is done by threads.
    Foreign,
}

/// The operations that can be tried at once.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Read,
    Read1,
    ReadLine,
    ReadInto,
    ReadInto1,
    Peek,
    Write,
    Seek,
    Tell,
    Flush,
    Close,
    Other,
}

impl Op {
    fn of(name: &str) -> (Op, &'static str) {
        match name {
            "read" => (Op::Read, "read"),
            "read1" => (Op::Read1, "read1"),
            "readline" => (Op::ReadLine, "readline"),
            "readinto" => (Op::ReadInto, "readinto"),
            "readinto1" => (Op::ReadInto1, "readinto1"),
            "peek" => (Op::Peek, "peek"),
            "write" => (Op::Write, "write"),
            "seek" => (Op::Seek, "seek"),
            "tell" => (Op::Tell, "tell"),
            "flush" => (Op::Flush, "flush"),
            "close" => (Op::Close, "close"),
            _ => (Op::Other, "call"),
        }
    }
}

/// See the module's documentation.
#[pyclass(subclass, frozen, weakref, module = "rondel._rondel")]
pub struct File {
    state: Confined<State>,
}

pub struct State {
    pub kind: Kind,
    pub target: Py<PyAny>,
    pub buffer: Option<Py<FileBuffer>>,
    /// None: the running loop's own.
    executor: Option<Py<PyAny>>,
    /// What is to be closed after the file (a temporary file's keeper).
    pub closer: Option<Py<PyAny>>,
    turns: Turns,
    /// The turn is with a thread that writes what is pending.
    writing: Cell<bool>,
    /// Closing was cancelled before its turn came.
    close_wanted: Cell<bool>,
    pub reading: Reading,
}

impl File {
    pub fn state<'a>(&'a self, py: Python<'a>) -> &'a State {
        self.state.get(py)
    }

    pub fn turns<'a>(&'a self, py: Python<'a>) -> &'a Turns {
        &self.state(py).turns
    }

    /// Closes the file if nobody else will.
    pub fn before_next_turn(&self, py: Python<'_>) {
        let state = self.state(py);
        if !state.turns.is_wanted() && state.close_wanted.take() {
            if let Err(error) = close(py, state) {
                error.write_unraisable(py, Some(state.target.bind(py)));
            }
        }
    }

    /// Whether a write may add to memory while a thread writes.
    fn may_write_now(&self, py: Python<'_>) -> bool {
        let state = self.state(py);
        state.writing.get()
            && !state.turns.is_wanted()
            && attempt::writes_to_memory(py, state)
            && state.pending(py) < PENDING_MOST
    }
}

impl State {
    fn pending(&self, py: Python<'_>) -> usize {
        self.buffer.as_ref().map_or(0, |buffer| buffer.get().pending(py))
    }

    fn wants_writing(&self, py: Python<'_>) -> bool {
        self.buffer.as_ref().is_some_and(|buffer| {
            let buffer = buffer.get();
            buffer.pending(py) > buffer.threshold(py)
        })
    }
}

/// Closes what is below, waiting as long as it takes.
pub fn close(py: Python<'_>, state: &State) -> PyResult<Py<PyAny>> {
    let closed = state.target.call_method0(py, intern!(py, "close"));
    match &state.closer {
        Some(closer) => {
            let also = closer.call_method0(py, intern!(py, "close"));
            closed.and(also)
        }
        None => closed,
    }
}

/// Sees to it that a file whose closing was cancelled is closed.
struct Closing {
    file: Py<File>,
    pending: bool,
}

impl Drop for Closing {
    fn drop(&mut self) {
        if self.pending {
            Python::attach(|py| {
                self.file.get().state(py).close_wanted.set(true);
                // Who has the turn closes at its end.
                drop(Turn::take(py, &self.file));
            });
        }
    }
}

/// Writes what is pending, on a thread; the turn is there meanwhile.
fn write_in_background(py: Python<'_>, turn: Turn, file: &Py<File>) -> PyResult<()> {
    let state = file.get().state(py);
    state.writing.set(true);
    let writer = Writing { file: file.clone_ref(py), _turn: turn };
    submit(py, state.executor.as_ref(), move |py| {
        let file = writer.file.get();
        let state = file.state(py);
        let Some(buffer) = state.buffer.as_ref().map(Py::get) else { return Ok(py.None()) };
        while buffer.pending(py) > 0 {
            let mut bytes = buffer.take_pending(py);
            let fd = buffer.fd(py);
            let result = py.detach(|| disk::write_all(fd, &bytes));
            if let Err((written, error)) = result {
                bytes.drain(..written);
                buffer.background_failed(py, bytes, error);
                break;
            }
            spare::give_back(bytes);
            if !state.wants_writing(py) || state.turns.is_wanted() {
                break;
            }
        }
        drop(writer);
        Ok(py.None())
    })
    .map(drop)
}

struct Writing {
    file: Py<File>,
    _turn: Turn,
}

impl Drop for Writing {
    fn drop(&mut self) {
        Python::attach(|py| self.file.get().state(py).writing.set(false));
    }
}

/// An operation as a coroutine.
fn operation(
    slf: &Bound<'_, File>,
    op: Op,
    name: &'static str,
    method: Py<PyString>,
    args: Bound<'_, PyTuple>,
    end: End,
) -> Coroutine {
    let file = slf.clone().unbind();
    let args = args.unbind();
    Coroutine::at_once(name, move |py| {
        let mut turn = Turn::take(py, &file);
        if turn.is_some() || op == Op::Write && file.get().may_write_now(py) {
            let done = try_it(py, &mut turn, &file, op, &method, args.bind(py))?;
            if let Some(value) = done {
                return Ok(Begun::Done(finish(py, value, end)?));
            }
        }
        let call = Call { file, op, method, args, end };
        Ok(Begun::waits(|waiting| call.on_thread(waiting, turn)))
    })
}

/// What becomes of a result.
type End = Option<fn(&Bound<'_, PyAny>) -> PyResult<()>>;

fn finish(py: Python<'_>, value: Py<PyAny>, end: End) -> PyResult<Py<PyAny>> {
    if let Some(check) = end {
        check(value.bind(py))?;
    }
    Ok(value)
}

/// Tries an operation at once; a write may bring with it that a thread begins to write.
fn try_it(
    py: Python<'_>,
    turn: &mut Option<Turn>,
    file: &Py<File>,
    op: Op,
    method: &Py<PyString>,
    args: &Bound<'_, PyTuple>,
) -> Tried<Py<PyAny>> {
    let state = file.get().state(py);
    let done = attempt::at_once(py, state, op, method, args)?;
    if done.is_some()
        && op == Op::Write
        && state.wants_writing(py)
        && let Some(turn) = turn.take()
    {
        write_in_background(py, turn, file)?;
    }
    Ok(done)
}

/// An operation that has to wait: for its turn, for a thread, or for both.
struct Call {
    file: Py<File>,
    op: Op,
    method: Py<PyString>,
    args: Py<PyTuple>,
    end: End,
}

impl Call {
    async fn on_thread(self, waiting: Waiting, turn: Option<Turn>) -> PyResult<Py<PyAny>> {
        let mut turn = turn;
        let Call { file, op, method, args, end } = self;
        if turn.is_none() {
            let mut closing =
                Closing { file: Python::attach(|py| file.clone_ref(py)), pending: op == Op::Close };
            turn = Some(turns::wait(&waiting, &file).await?);
            closing.pending = false;
            let done = Python::attach(|py| {
                let done = try_it(py, &mut turn, &file, op, &method, args.bind(py))?;
                done.map(|value| finish(py, value, end)).transpose()
            })?;
            if let Some(value) = done {
                return Ok(value);
            }
        }
        let (executor, on_thread) = Python::attach(|py| {
            let executor = file.get().state(py).executor.as_ref().map(|it| it.clone_ref(py));
            (executor, file.clone_ref(py))
        });
        let work = move |py: Python<'_>| {
            let _turn = turn;
            let state = on_thread.get().state(py);
            if op == Op::Close {
                return close(py, state);
            }
            attempt::on_thread(py, state, op, &method, args.bind(py))
        };
        if op == Op::Close {
            // Once begun, closing ends.
            let future = Python::attach(|py| {
                let future = submit(py, executor.as_ref(), work)?;
                imports::shield(py)?.call1((future,)).map(Bound::unbind)
            })?;
            return waiting.wait(future).await;
        }
        let value = in_thread(&waiting, executor, work).await?;
        Python::attach(|py| finish(py, value, end))
    }
}

macro_rules! operations {
    ($($method:ident($slf:ident, $args:ident) = $op:ident, $name:literal;)*) => {
        $(fn $method(slf: &Bound<'_, File>, args: Bound<'_, PyTuple>) -> Coroutine {
            let method = intern!(slf.py(), $name).clone().unbind();
            operation(slf, Op::$op, $name, method, args, None)
        })*
    };
}

operations! {
    read(slf, args) = Read, "read";
    readline(slf, args) = ReadLine, "readline";
    readinto(slf, args) = ReadInto, "readinto";
    write(slf, args) = Write, "write";
    seek(slf, args) = Seek, "seek";
    tell(slf, args) = Tell, "tell";
    flush(slf, args) = Flush, "flush";
    close_file(slf, args) = Close, "close";
}

#[pymethods]
impl File {
    #[new]
    #[pyo3(signature = (target, buffer=None, *, raw=false, quick=false, executor=None, closer=None))]
    fn new(
        target: Py<PyAny>,
        buffer: Option<Py<FileBuffer>>,
        raw: bool,
        quick: bool,
        executor: Option<Py<PyAny>>,
        closer: Option<Py<PyAny>>,
    ) -> Self {
        let kind = match &buffer {
            Some(buffer) if buffer.is(&target) => Kind::Buffered,
            Some(_) => Kind::Text,
            None if raw => Kind::Raw,
            None => Kind::Foreign,
        };
        File {
            state: Confined::new(State {
                kind,
                target,
                buffer,
                executor,
                closer,
                turns: Turns::default(),
                writing: Cell::new(false),
                close_wanted: Cell::new(false),
                reading: Reading::new(quick),
            }),
        }
    }

    #[pyo3(signature = (*args))]
    fn read(slf: &Bound<'_, Self>, args: Bound<'_, PyTuple>) -> Coroutine {
        read(slf, args)
    }

    #[pyo3(signature = (*args))]
    fn readline(slf: &Bound<'_, Self>, args: Bound<'_, PyTuple>) -> Coroutine {
        readline(slf, args)
    }

    #[pyo3(signature = (*args))]
    fn readinto(slf: &Bound<'_, Self>, args: Bound<'_, PyTuple>) -> Coroutine {
        readinto(slf, args)
    }

    #[pyo3(signature = (*args))]
    fn write(slf: &Bound<'_, Self>, args: Bound<'_, PyTuple>) -> Coroutine {
        write(slf, args)
    }

    #[pyo3(signature = (*args))]
    fn seek(slf: &Bound<'_, Self>, args: Bound<'_, PyTuple>) -> Coroutine {
        seek(slf, args)
    }

    #[pyo3(signature = (*args))]
    fn tell(slf: &Bound<'_, Self>, args: Bound<'_, PyTuple>) -> Coroutine {
        tell(slf, args)
    }

    #[pyo3(signature = (*args))]
    fn flush(slf: &Bound<'_, Self>, args: Bound<'_, PyTuple>) -> Coroutine {
        flush(slf, args)
    }

    #[pyo3(signature = (*args))]
    fn close(slf: &Bound<'_, Self>, args: Bound<'_, PyTuple>) -> Coroutine {
        close_file(slf, args)
    }

    /// An operation by its name.
    #[pyo3(signature = (name, /, *args))]
    fn _call(
        slf: &Bound<'_, Self>,
        name: &Bound<'_, PyString>,
        args: Bound<'_, PyTuple>,
    ) -> PyResult<Coroutine> {
        let (op, known) = Op::of(name.to_str()?);
        Ok(operation(slf, op, known, name.clone().unbind(), args, None))
    }

    fn fileno<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.state(py).target.bind(py).call_method0(intern!(py, "fileno"))
    }

    #[getter]
    fn closed<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.state(py).target.bind(py).getattr(intern!(py, "closed"))
    }

    #[getter]
    fn name<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.state(py).target.bind(py).getattr(intern!(py, "name"))
    }

    #[getter]
    fn mode<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.state(py).target.bind(py).getattr(intern!(py, "mode"))
    }

    /// The synchronous object below.
    #[getter]
    fn _file(&self, py: Python<'_>) -> Py<PyAny> {
        self.state(py).target.clone_ref(py)
    }

    fn __aiter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __anext__(slf: &Bound<'_, Self>) -> Coroutine {
        let py = slf.py();
        let method = intern!(py, "readline").clone().unbind();
        operation(
            slf,
            Op::ReadLine,
            "__anext__",
            method,
            PyTuple::empty(py),
            Some(|line| match line.is_truthy()? {
                true => Ok(()),
                false => Err(PyStopAsyncIteration::new_err(())),
            }),
        )
    }

    fn __aenter__(slf: Py<Self>) -> Coroutine {
        Coroutine::at_once("__aenter__", |_| Ok(Begun::Done(slf.into_any())))
    }

    #[pyo3(signature = (*_args))]
    fn __aexit__(slf: &Bound<'_, Self>, _args: &Bound<'_, PyTuple>) -> Coroutine {
        close_file(slf, PyTuple::empty(slf.py()))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        if let Some(state) = self.state.in_traverse(&visit) {
            visit.call(&state.target)?;
            visit.call(&state.buffer)?;
            visit.call(&state.executor)?;
            visit.call(&state.closer)?;
        }
        Ok(())
    }
}
