//! A response's body as Python reads it: `response.content`.
//!
//! What arrives is queued as it came, without a copy; content encodings are undone when it is read.
//! Beyond twice the limit in the queue the connection stops reading, and goes on below the limit.

use std::cell::{Cell, RefCell};

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use pyo3::{PyTraverseError, PyVisit};

use super::decode::Decoder;
use super::queue::{Piece, Queue};
use super::wait::{Source, Wait};
use super::{Lane, faults, wake};
use crate::ffi::confined::Confined;
use crate::imports;

/// Bytes in the queue below which the connection reads on, unless the program says another limit
/// (aiohttp's figure). More saves no time, and a program with many connections holds this for each.
const LIMIT: usize = 64 * 1024;
/// A line may be this long.
const MAX_LINE: usize = 512 * 1024;

/// What a read wants.
pub enum Want {
    /// At most so many bytes, at least one.
    Some(usize),
    /// What is there, at least one byte.
    Any,
    /// Exactly so many; with what there is of them.
    Exactly(usize),
    /// Up to a separator.
    Until(Vec<u8>),
    /// Up to the end; with what there is of it.
    All(Vec<Piece>),
    /// A piece, and whether an HTTP chunk ends with it.
    Chunk,
    /// As the one inside, but the end of the body ends an iteration.
    Next(Box<Want>),
}

/// See the module's documentation.
#[pyclass(frozen, weakref, module = "rondel._rondel", name = "HttpBody")]
pub struct StreamReader {
    event_loop: Py<PyAny>,
    queue: Confined<RefCell<Queue>>,
    /// From which data comes, until the end.
    connection: Confined<RefCell<Option<Lane>>>,
    waiter: Confined<RefCell<Option<Py<PyAny>>>>,
    /// The exception object, and not a PyErr, so that the collector sees it with its traceback.
    error: Confined<RefCell<Option<Py<PyAny>>>>,
    ended: Confined<Cell<bool>>,
    total: Confined<Cell<u64>>,
    limit: Confined<Cell<usize>>,
}

impl StreamReader {
    pub fn create(
        event_loop: Py<PyAny>,
        connection: Option<Lane>,
        decoder: Option<Decoder>,
    ) -> Self {
        let queue = Queue { decoder, ..Queue::default() };
        StreamReader {
            event_loop,
            queue: Confined::new(RefCell::new(queue)),
            ended: Confined::new(Cell::new(connection.is_none())),
            connection: Confined::new(RefCell::new(connection)),
            waiter: Confined::new(RefCell::new(None)),
            error: Confined::new(RefCell::new(None)),
            total: Confined::new(Cell::new(0)),
            limit: Confined::new(Cell::new(LIMIT)),
        }
    }

    /// Data has arrived. Returns whether there is so much now that reading should stop.
    pub fn feed(
        &self,
        py: Python<'_>,
        bytes: &Bound<'_, PyBytes>,
        start: usize,
        end: usize,
    ) -> bool {
        let piece = Piece { bytes: bytes.clone().unbind(), start, end, ends_chunk: false };
        let mut queue = self.queue.get(py).borrow_mut();
        self.total.get(py).set(self.total.get(py).get() + piece.len() as u64);
        if queue.decoder.is_some() {
            queue.size += piece.len();
            queue.encoded.push_back(piece);
        } else {
            queue.push_plain(piece);
        }
        queue.size > self.limit.get(py).get().saturating_mul(2)
    }

    /// An HTTP chunk has ended.
    pub fn chunk_ended(&self, py: Python<'_>) {
        let mut queue = self.queue.get(py).borrow_mut();
        let queue = &mut *queue;
        let pieces = if queue.decoder.is_some() { &mut queue.encoded } else { &mut queue.plain };
        if let Some(piece) = pieces.back_mut() {
            piece.ends_chunk = true;
        }
    }

    /// The last HTTP chunk has come, which has no data.
    pub fn last_chunk(&self, py: Python<'_>) {
        let bytes = PyBytes::new(py, b"").unbind();
        let mut queue = self.queue.get(py).borrow_mut();
        if queue.decoder.is_none() {
            queue.push_plain(Piece { bytes, start: 0, end: 0, ends_chunk: true });
        }
    }

    /// Wakes who waits for data.
    pub fn wake(&self, py: Python<'_>) -> PyResult<()> {
        let waiter = self.waiter.get(py).take();
        wake(py, waiter)
    }

    /// The body is complete.
    pub fn end(&self, py: Python<'_>) -> PyResult<()> {
        self.ended.get(py).set(true);
        drop(self.connection.get(py).take());
        self.wake(py)
    }

    /// The body will not come.
    pub fn fail(&self, py: Python<'_>, error: PyErr) -> PyResult<()> {
        if self.error.get(py).borrow().is_none() {
            let error = crate::errors::exception(py, &error).unbind();
            self.error.get(py).replace(Some(error));
        }
        drop(self.connection.get(py).take());
        self.wake(py)
    }

    fn check(&self, py: Python<'_>) -> PyResult<()> {
        let error = self.error.get(py).borrow().as_ref().map(|error| error.clone_ref(py));
        error.map_or(Ok(()), |error| Err(PyErr::from_value(error.into_bound(py))))
    }

    fn undecodable(&self, py: Python<'_>, name: &str) -> PyErr {
        let error = faults::undecodable(py, name);
        let object = crate::errors::exception(py, &error).unbind();
        self.error.get(py).replace(Some(object));
        error
    }

    /// What `want` asks for; None when it has not arrived.
    pub fn take(&self, py: Python<'_>, want: &mut Want) -> PyResult<Option<Py<PyAny>>> {
        self.check(py)?;
        let taken = self.take_now(py, want)?;
        match taken {
            Some(_) => self.make_room(py)?,
            // A read that wants more than the queue should hold must get it.
            None => self.resume(py)?,
        }
        Ok(taken)
    }

    /// Lets the connection go on if little is left.
    fn make_room(&self, py: Python<'_>) -> PyResult<()> {
        let size = self.queue.get(py).borrow().size;
        if size < self.limit.get(py).get() { self.resume(py) } else { Ok(()) }
    }

    fn resume(&self, py: Python<'_>) -> PyResult<()> {
        let connection = self.connection.get(py).borrow().as_ref().map(|lane| lane.clone_ref(py));
        connection.map_or(Ok(()), |connection| connection.resume_reading(py))
    }

    fn take_now(&self, py: Python<'_>, want: &mut Want) -> PyResult<Option<Py<PyAny>>> {
        let ended = self.ended.get(py).get();
        let cell = self.queue.get(py);
        let mut queue = cell.borrow_mut();
        if queue.plain_size == 0
            && let Err(name) = queue.fill(py)
        {
            drop(queue);
            return Err(self.undecodable(py, name));
        }
        let empty = || PyBytes::new(py, b"").unbind();
        let data = match want {
            Want::Some(most) => {
                let most = *most;
                if queue.plain.front().is_some_and(|piece| piece.len() > most) {
                    queue.take_some(py, most)
                } else {
                    if let Err(name) = queue.fill_to(py, most) {
                        drop(queue);
                        return Err(self.undecodable(py, name));
                    }
                    let count = queue.plain_size.min(most);
                    (count > 0).then(|| queue.take_exactly(py, count))
                }
            }
            Want::Any if queue.plain.len() <= 1 => queue.take_some(py, usize::MAX),
            Want::Any => {
                let size = queue.plain_size;
                (size > 0).then(|| queue.take_exactly(py, size))
            }
            Want::Chunk => {
                let piece = queue.pop();
                drop(queue);
                let Some(piece) = piece else {
                    return match ended {
                        true => Ok(Some((empty(), false).into_pyobject(py)?.into_any().unbind())),
                        false => Ok(None),
                    };
                };
                let ends = piece.ends_chunk;
                return Ok(Some(
                    (piece.into_object(py), ends).into_pyobject(py)?.into_any().unbind(),
                ));
            }
            Want::All(pieces) => {
                loop {
                    while let Some(piece) = queue.pop() {
                        pieces.push(piece);
                    }
                    match queue.fill(py) {
                        Ok(()) if queue.plain.is_empty() => break,
                        Ok(()) => {}
                        Err(name) => {
                            drop(queue);
                            return Err(self.undecodable(py, name));
                        }
                    }
                }
                if !ended {
                    return Ok(None);
                }
                drop(queue);
                return join(py, std::mem::take(pieces)).map(|all| Some(all.into_any()));
            }
            Want::Exactly(count) => {
                if let Err(name) = queue.fill_to(py, *count) {
                    drop(queue);
                    return Err(self.undecodable(py, name));
                }
                if queue.plain_size >= *count {
                    Some(queue.take_exactly(py, *count))
                } else if ended {
                    let size = queue.plain_size;
                    let partial = queue.take_exactly(py, size);
                    drop(queue);
                    let error = imports::incomplete_read_error(py)?.call1((partial, *count))?;
                    return Err(PyErr::from_value(error));
                } else {
                    None
                }
            }
            Want::Until(separator) => {
                let mut found = queue.find(py, separator);
                while found.is_none() {
                    let before = queue.plain_size;
                    if before > MAX_LINE {
                        drop(queue);
                        return Err(PyValueError::new_err("Chunk too big"));
                    }
                    if let Err(name) = queue.fill(py) {
                        drop(queue);
                        return Err(self.undecodable(py, name));
                    }
                    if queue.plain_size == before {
                        break;
                    }
                    found = queue.find(py, separator);
                }
                let count = found.or(if ended { Some(queue.plain_size) } else { None });
                count.map(|count| queue.take_exactly(py, count))
            }
            Want::Next(inner) => {
                drop(queue);
                let chunked = matches!(**inner, Want::Chunk);
                let taken = self.take_now(py, inner)?;
                let Some(value) = taken else { return Ok(None) };
                let over = if chunked {
                    let (data, ends): (Bound<'_, PyBytes>, bool) = value.extract(py)?;
                    data.as_bytes().is_empty() && !ends
                } else {
                    value.cast_bound::<PyBytes>(py)?.as_bytes().is_empty()
                };
                if over {
                    return Err(pyo3::exceptions::PyStopAsyncIteration::new_err(()));
                }
                return Ok(Some(value));
            }
        };
        drop(queue);
        Ok(data.or_else(|| ended.then(empty)).map(Py::into_any))
    }

    /// The future of the next arrival.
    pub fn waiter(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let before = self.waiter.get(py).take();
        if let Some(before) = before
            && !before.call_method0(py, intern!(py, "done"))?.is_truthy(py)?
        {
            self.waiter.get(py).replace(Some(before));
            return Err(PyRuntimeError::new_err(
                "read() called while another coroutine is already waiting for incoming data",
            ));
        }
        let future = self.event_loop.call_method0(py, intern!(py, "create_future"))?;
        self.waiter.get(py).replace(Some(future.clone_ref(py)));
        Ok(future)
    }
}

fn join(py: Python<'_>, mut pieces: Vec<Piece>) -> PyResult<Py<PyBytes>> {
    if pieces.len() == 1
        && let Some(piece) = pieces.pop()
    {
        return Ok(piece.into_object(py));
    }
    let size = pieces.iter().map(Piece::len).sum();
    PyBytes::new_with(py, size, |mut memory| {
        for piece in &pieces {
            let (part, rest) = memory.split_at_mut(piece.len());
            part.copy_from_slice(piece.bytes(py));
            memory = rest;
        }
        Ok(())
    })
    .map(Bound::unbind)
}

fn body(slf: Py<StreamReader>, want: Want) -> Wait {
    Wait::new(Source::Body(slf, want))
}

#[pymethods]
impl StreamReader {
    /// A body that is complete and empty.
    #[staticmethod]
    fn empty(event_loop: Py<PyAny>) -> Self {
        StreamReader::create(event_loop, None, None)
    }

    /// Read up to `n` bytes, at least one unless the body has ended; all of it when `n` is negative.
    #[pyo3(signature = (n=-1), text_signature = "($self, n=-1)")]
    fn read(slf: Py<Self>, n: isize) -> Wait {
        let want = match n {
            0 => Want::Exactly(0),
            n if n < 0 => Want::All(Vec::new()),
            n => Want::Some(n.unsigned_abs()),
        };
        body(slf, want)
    }

    /// Read what has arrived, at least one byte unless the body has ended.
    fn readany(slf: Py<Self>) -> Wait {
        body(slf, Want::Any)
    }

    /// Read exactly `n` bytes. Raises `asyncio.IncompleteReadError` when the body ends before.
    fn readexactly(slf: Py<Self>, n: usize) -> Wait {
        body(slf, Want::Exactly(n))
    }

    /// Read up to and with the next line end, or the rest.
    fn readline(slf: Py<Self>) -> Wait {
        body(slf, Want::Until(b"\n".to_vec()))
    }

    /// Read up to and with the separator, or the rest.
    #[pyo3(signature = (separator=None))]
    fn readuntil(slf: Py<Self>, separator: Option<&[u8]>) -> PyResult<Wait> {
        let separator = separator.unwrap_or(b"\n");
        if separator.is_empty() {
            return Err(PyValueError::new_err("Separator should be at least one-byte string"));
        }
        Ok(body(slf, Want::Until(separator.to_vec())))
    }

    /// Read a piece as it arrived, and whether an HTTP chunk ends with it.
    fn readchunk(slf: Py<Self>) -> Wait {
        body(slf, Want::Chunk)
    }

    /// What has arrived, up to `n` bytes when that is not negative; b"" when there is nothing.
    #[pyo3(signature = (n=-1), text_signature = "($self, n=-1)")]
    fn read_nowait(&self, py: Python<'_>, n: isize) -> PyResult<Py<PyAny>> {
        let mut want = if n < 0 { Want::Any } else { Want::Some(n.unsigned_abs()) };
        let taken = if n == 0 { None } else { self.take(py, &mut want)? };
        Ok(taken.unwrap_or_else(|| PyBytes::new(py, b"").into_any().unbind()))
    }

    /// Have up to twice so many bytes wait to be read (the session's `read_bufsize`).
    fn set_limit(&self, py: Python<'_>, limit: usize) -> PyResult<()> {
        self.limit.get(py).set(limit);
        self.make_room(py)
    }

    /// Whether everything has been read.
    fn at_eof(&self, py: Python<'_>) -> bool {
        let mut queue = self.queue.get(py).borrow_mut();
        if queue.plain_size > 0 || !self.ended.get(py).get() {
            return false;
        }
        queue.fill(py).is_ok() && queue.plain_size == 0
    }

    /// Whether the whole body has arrived.
    fn is_eof(&self, py: Python<'_>) -> bool {
        self.ended.get(py).get()
    }

    /// Bytes that have arrived, as they were sent.
    #[getter]
    fn total_bytes(&self, py: Python<'_>) -> u64 {
        self.total.get(py).get()
    }

    /// Why the body will not come, or None.
    fn exception<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        let error = self.error.get(py).borrow().as_ref().map(|error| error.clone_ref(py));
        error.map(|error| error.into_bound(py))
    }

    /// Make further reads raise an exception.
    fn set_exception(&self, py: Python<'_>, error: &Bound<'_, PyAny>) -> PyResult<()> {
        self.fail(py, PyErr::from_value(error.clone()))
    }

    /// The pieces of at most `n` bytes, as an async iterator.
    fn iter_chunked(slf: Py<Self>, n: usize) -> StreamIterator {
        StreamIterator { stream: slf, kind: Kind::Chunked(n) }
    }

    /// The pieces as they arrive, as an async iterator.
    fn iter_any(slf: Py<Self>) -> StreamIterator {
        StreamIterator { stream: slf, kind: Kind::Any }
    }

    /// The pieces as they arrive, each with whether an HTTP chunk ends with it.
    fn iter_chunks(slf: Py<Self>) -> StreamIterator {
        StreamIterator { stream: slf, kind: Kind::Chunks }
    }

    fn __aiter__(slf: Py<Self>) -> StreamIterator {
        StreamIterator { stream: slf, kind: Kind::Lines }
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        let size = self.queue.get(py).borrow().size;
        let end = if self.ended.get(py).get() { " eof" } else { "" };
        format!("<StreamReader {size} bytes{end}>")
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.event_loop)?;
        if let Some(cell) = self.connection.in_traverse(&visit)
            && let Ok(connection) = cell.try_borrow()
            && let Some(connection) = &*connection
        {
            connection.traverse(&visit)?;
        }
        if let Some(cell) = self.waiter.in_traverse(&visit)
            && let Ok(waiter) = cell.try_borrow()
        {
            visit.call(&*waiter)?;
        }
        if let Some(cell) = self.error.in_traverse(&visit)
            && let Ok(error) = cell.try_borrow()
        {
            visit.call(&*error)?;
        }
        Ok(())
    }

    fn __clear__(&self, py: Python<'_>) {
        let connection = self.connection.get(py).take();
        let waiter = self.waiter.get(py).take();
        let error = self.error.get(py).take();
        drop((connection, waiter, error));
    }
}

enum Kind {
    Chunked(usize),
    Any,
    Chunks,
    Lines,
}

/// An async iterator over a body.
#[pyclass(frozen, module = "rondel._rondel", name = "StreamIterator")]
pub struct StreamIterator {
    stream: Py<StreamReader>,
    kind: Kind,
}

#[pymethods]
impl StreamIterator {
    fn __aiter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __anext__(&self, py: Python<'_>) -> Wait {
        let want = match self.kind {
            Kind::Chunked(size) => Want::Some(size.max(1)),
            Kind::Any => Want::Any,
            Kind::Chunks => Want::Chunk,
            Kind::Lines => Want::Until(b"\n".to_vec()),
        };
        body(self.stream.clone_ref(py), Want::Next(Box::new(want)))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.stream)
    }
}
