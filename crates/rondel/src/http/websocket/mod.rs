//! A client's WebSocket: what follows HTTP on a connection whose protocol was switched.
//!
//! The connection gives what arrives to [`WebSocket`], which makes messages of it and wakes the one
//! task that waits for them; what is sent becomes one masked frame and goes to the transport. When to
//! close, answer and watch is `rondel.http.websocket` in Python.

mod deflate;
mod frames;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::time::Instant;

use pyo3::buffer::PyBuffer;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};
use pyo3::{PyTraverseError, PyVisit};

use self::deflate::Deflate;
use self::frames::{BINARY, CLOSE, Framer, Message, PING, PONG, Parser, TEXT, copy_masked};
use super::connection::Connection;
use super::wait::{Source, Wait};
use super::wake;
use crate::ffi::buffer::bytes_filled_by;
use crate::ffi::confined::Confined;

/// Bytes of messages that wait, from which on the connection stops reading.
const HIGH: usize = 512 * 1024;
/// Bytes below which it goes on.
const LOW: usize = 128 * 1024;

#[derive(Default)]
struct Queue {
    messages: VecDeque<(Py<PyAny>, usize)>,
    size: usize,
}

/// See the module's documentation.
#[pyclass(frozen, weakref, module = "rondel._rondel", name = "HttpWebSocket")]
pub struct WebSocket {
    event_loop: Py<PyAny>,
    connection: Confined<RefCell<Option<Py<Connection>>>>,
    /// `(opcode, data, extra)` to a message, and `(code, text)` to an exception.
    make_message: Confined<RefCell<Option<Py<PyAny>>>>,
    make_error: Confined<RefCell<Option<Py<PyAny>>>>,
    parser: Confined<RefCell<Parser>>,
    framer: Confined<RefCell<Framer>>,
    queue: Confined<RefCell<Queue>>,
    waiter: Confined<RefCell<Option<Py<PyAny>>>>,
    error: Confined<RefCell<Option<Py<PyAny>>>>,
    /// When something arrived last.
    arrival: Confined<Cell<Instant>>,
}

impl WebSocket {
    /// Takes what has arrived; returns whether reading should stop.
    pub fn feed(&self, py: Python<'_>, data: &[u8]) -> PyResult<bool> {
        self.arrival.get(py).set(Instant::now());
        if self.error.get(py).borrow().is_some() {
            return Ok(false);
        }
        self.parser.get(py).borrow_mut().push(data);
        loop {
            let next = self.parser.get(py).borrow_mut().next();
            match next {
                Ok(Some(message)) => self.queue_message(py, message)?,
                Ok(None) => break,
                Err((code, text)) => {
                    let made = self.make(py, &self.make_error, (code, text))?;
                    self.error.get(py).replace(Some(made));
                    break;
                }
            }
        }
        self.wake(py)?;
        Ok(self.queue.get(py).borrow().size > HIGH)
    }

    fn make<'py>(
        &self,
        py: Python<'py>,
        maker: &Confined<RefCell<Option<Py<PyAny>>>>,
        arguments: impl pyo3::call::PyCallArgs<'py>,
    ) -> PyResult<Py<PyAny>> {
        let maker = maker.get(py).borrow().as_ref().map(|maker| maker.clone_ref(py));
        maker.map_or_else(|| Ok(py.None()), |maker| maker.call1(py, arguments))
    }

    fn queue_message(&self, py: Python<'_>, message: Message) -> PyResult<()> {
        let bytes = |data: Vec<u8>| {
            let object = PyBytes::new(py, &data).into_any();
            self.parser.get(py).borrow_mut().reuse(data);
            object
        };
        let (opcode, size, data, extra) = match message {
            Message::Text(text) => (TEXT, text.len(), PyString::new(py, &text).into_any(), None),
            Message::RawText(data) => (TEXT, data.len(), bytes(data), None),
            Message::Binary(data) => (BINARY, data.len(), bytes(data), None),
            Message::Ping(data) => (PING, data.len(), bytes(data), None),
            Message::Pong(data) => (PONG, data.len(), bytes(data), None),
            Message::Close(code, text) => {
                (CLOSE, 0, code.into_pyobject(py)?.into_any(), Some(text))
            }
        };
        let extra = extra.unwrap_or_default();
        let made = self.make(py, &self.make_message, (opcode, data, extra))?;
        self.enqueue(py, made, size);
        Ok(())
    }

    fn enqueue(&self, py: Python<'_>, message: Py<PyAny>, size: usize) {
        let mut queue = self.queue.get(py).borrow_mut();
        queue.size += size;
        queue.messages.push_back((message, size));
    }

    fn wake(&self, py: Python<'_>) -> PyResult<()> {
        let waiter = self.waiter.get(py).take();
        wake(py, waiter)
    }

    /// No more will come.
    pub fn fail(&self, py: Python<'_>, error: &PyErr) -> PyResult<()> {
        if self.error.get(py).borrow().is_none() {
            let error = crate::errors::exception(py, error).unbind();
            self.error.get(py).replace(Some(error));
        }
        let connection = self.connection.get(py).take();
        drop(connection);
        self.wake(py)
    }

    fn connection(&self, py: Python<'_>) -> Option<Py<Connection>> {
        self.connection.get(py).borrow().as_ref().map(|connection| connection.clone_ref(py))
    }

    fn framed<'py>(
        &self,
        py: Python<'py>,
        opcode: u8,
        data: &[u8],
        bits: Option<u8>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let (header, mask, packed) = self.framer.get(py).borrow_mut().header(opcode, data, bits);
        let payload = packed.as_deref().unwrap_or(data);
        let size = header.len() + payload.len();
        bytes_filled_by(py, size, |memory| {
            let (first, rest) = memory.split_at_mut(header.len());
            first.iter_mut().zip(&header).for_each(|(to, from)| {
                to.write(*from);
            });
            copy_masked(rest, payload, mask);
            Ok::<_, PyErr>(size)
        })?
    }

    /// The next message, if it has arrived.
    pub fn take(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let (taken, left) = {
            let mut queue = self.queue.get(py).borrow_mut();
            let taken = queue.messages.pop_front();
            queue.size -= taken.as_ref().map_or(0, |(_, size)| *size);
            (taken, queue.size)
        };
        if let Some((message, _)) = taken {
            if left < LOW
                && let Some(connection) = self.connection(py)
            {
                connection.get().resume_reading(py)?;
            }
            return Ok(Some(message));
        }
        let error = self.error.get(py).borrow().as_ref().map(|error| error.clone_ref(py));
        error.map_or(Ok(None), |error| Err(PyErr::from_value(error.into_bound(py))))
    }

    /// The future of the next arrival.
    pub fn waiter(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let future = self.event_loop.call_method0(py, intern!(py, "create_future"))?;
        let before = self.waiter.get(py).replace(Some(future.clone_ref(py)));
        wake(py, before)?;
        Ok(future)
    }
}

#[pymethods]
impl WebSocket {
    /// `compress`: the window's bits when messages are compressed, or 0. `forgetful`: each is
    /// compressed by itself. `limit`: messages of so many bytes are refused; 0 for none.
    #[new]
    #[pyo3(signature = (event_loop, connection, make_message, make_error, compress, forgetful, limit, decode_text, /))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        event_loop: Py<PyAny>,
        connection: Py<Connection>,
        make_message: Py<PyAny>,
        make_error: Py<PyAny>,
        compress: u8,
        forgetful: bool,
        limit: usize,
        decode_text: bool,
    ) -> Self {
        let deflate = (compress > 0).then(|| Deflate::new(compress, forgetful));
        WebSocket {
            event_loop,
            connection: Confined::new(RefCell::new(Some(connection))),
            make_message: Confined::new(RefCell::new(Some(make_message))),
            make_error: Confined::new(RefCell::new(Some(make_error))),
            parser: Confined::new(RefCell::new(Parser::new(compress > 0, limit, decode_text))),
            framer: Confined::new(RefCell::new(Framer::new(deflate))),
            queue: Confined::new(RefCell::new(Queue::default())),
            waiter: Confined::new(RefCell::new(None)),
            error: Confined::new(RefCell::new(None)),
            arrival: Confined::new(Cell::new(Instant::now())),
        }
    }

    /// Wait for the next message; raises what ended the connection.
    fn read(slf: Py<Self>) -> Wait {
        Wait::new(Source::Message(slf))
    }

    /// Put a message where those that arrive are.
    fn push(&self, py: Python<'_>, message: Py<PyAny>) -> PyResult<()> {
        self.enqueue(py, message, 0);
        self.wake(py)
    }

    /// A message as a masked frame, compressed by itself when `bits` tells the window's.
    #[pyo3(signature = (opcode, data, bits=None, /))]
    fn frame<'py>(
        &self,
        py: Python<'py>,
        opcode: u8,
        data: &Bound<'py, PyAny>,
        bits: Option<u8>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        if let Ok(bytes) = data.cast::<PyBytes>() {
            return self.framed(py, opcode, bytes.as_bytes(), bits);
        }
        let copy = PyBuffer::<u8>::get(data)?.to_vec(py)?;
        self.framed(py, opcode, &copy, bits)
    }

    /// For how many seconds nothing has arrived.
    fn silence(&self, py: Python<'_>) -> f64 {
        self.arrival.get(py).get().elapsed().as_secs_f64()
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.event_loop)?;
        if let Some(cell) = self.connection.in_traverse(&visit)
            && let Ok(connection) = cell.try_borrow()
        {
            visit.call(&*connection)?;
        }
        for slot in [&self.make_message, &self.make_error, &self.waiter, &self.error] {
            if let Some(cell) = slot.in_traverse(&visit)
                && let Ok(object) = cell.try_borrow()
            {
                visit.call(&*object)?;
            }
        }
        if let Some(cell) = self.queue.in_traverse(&visit)
            && let Ok(queue) = cell.try_borrow()
        {
            for (message, _) in &queue.messages {
                visit.call(message)?;
            }
        }
        Ok(())
    }

    fn __clear__(&self, py: Python<'_>) {
        for slot in [&self.make_message, &self.make_error, &self.waiter, &self.error] {
            let object = slot.get(py).take();
            drop(object);
        }
        let connection = self.connection.get(py).take();
        let queue = std::mem::take(&mut *self.queue.get(py).borrow_mut());
        drop((connection, queue));
    }
}
