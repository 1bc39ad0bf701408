//! One request and its response on a shared connection.
//!
//! It has the methods of [`crate::http::connection::Connection`] that an exchange needs, so that the
//! session does not ask which it has. Once used it is over.

use std::cell::{Cell, RefCell};

use bytes::Bytes;
use h2::Reason;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use pyo3::{PyTraverseError, PyVisit};

use super::connection::Http2Connection;
use super::message;
use super::wire::Wire;
use crate::ffi::confined::Confined;
use crate::http::head::{Head, ResponseHead};
use crate::http::stream::StreamReader;
use crate::http::wait::{Source, Wait};
use crate::http::waiting::Waiting;
use crate::http::{Lane, faults, wake};
use crate::imports;

/// See the module's documentation.
#[pyclass(frozen, weakref, dict, module = "rondel._rondel", name = "Http2Exchange")]
pub struct Exchange {
    connection: Py<Http2Connection>,
    wire: Confined<RefCell<Wire>>,
    pub waiting: Waiting,
    flags: Confined<Flags>,
}

#[derive(Default)]
struct Flags {
    begun: Cell<bool>,
    lent: Cell<bool>,
    decode: Cell<bool>,
    over: Cell<bool>,
    paused: Cell<bool>,
    arrivals: Cell<u64>,
}

impl Exchange {
    /// `used`: the connection has had others before.
    pub fn create(connection: Py<Http2Connection>, used: bool) -> Self {
        let flags = Flags { arrivals: Cell::new(u64::from(used)), ..Flags::default() };
        Exchange {
            connection,
            wire: Confined::new(RefCell::new(Wire::default())),
            waiting: Waiting::new(),
            flags: Confined::new(flags),
        }
    }

    fn flags<'a>(&'a self, py: Python<'a>) -> &'a Flags {
        self.flags.get(py)
    }

    /// The head, if it has arrived.
    pub fn take_head(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        self.waiting.take_head(py, || self.flags(py).lent.get())
    }

    /// Whether more of the request is taken.
    ///
    /// # Errors
    /// Why it will never again.
    pub fn has_room(&self, py: Python<'_>) -> PyResult<bool> {
        self.waiting.check(py)?;
        if self.flags(py).over.get() {
            return Err(faults::disconnected(py));
        }
        Ok(self.wire.get(py).borrow().has_room())
    }

    pub fn event_loop(&self) -> &Py<PyAny> {
        self.connection.get().event_loop()
    }

    /// The reader has room again.
    pub fn resume_reading(&self, py: Python<'_>) -> PyResult<()> {
        self.flags(py).paused.set(false);
        let released = self.wire.get(py).borrow_mut().release();
        if released { Http2Connection::stir(self.connection.bind(py)) } else { Ok(()) }
    }

    /// Does what there is to be done.
    pub fn advance(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        if this.flags(py).over.get() {
            return Ok(());
        }
        let news = this.wire.get(py).borrow_mut().look();
        if news.head.is_some() || !news.data.is_empty() || news.ended {
            this.flags(py).arrivals.set(this.flags(py).arrivals.get() + 1);
        }
        if news.informed {
            let waiter = this.waiting.go_ahead.get(py).take();
            wake(py, waiter)?;
        }
        if let Some(head) = news.head {
            this.announce(slf, head, news.ended && news.data.is_empty())?;
        }
        this.feed(py, news.data)?;
        if news.ended {
            return Exchange::finish(slf);
        }
        if let Some(error) = news.error {
            let error = this.fault(py, &error);
            return Exchange::fail(slf, error);
        }
        if news.room {
            let waiter = this.waiting.room_waiter.get(py).take();
            wake(py, waiter)?;
        }
        Ok(())
    }

    fn announce(
        &self,
        slf: &Bound<'_, Self>,
        answer: http::Response<()>,
        complete: bool,
    ) -> PyResult<()> {
        let py = slf.py();
        let fields = answer.headers().iter();
        let fields = fields.map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()));
        let head = Head::of_fields(answer.status().as_u16(), fields);
        let decode = self.flags(py).decode.get() && !complete;
        let decoder = if decode { head.decoder() } else { None };
        let lane = (!complete).then(|| Lane::Shared(slf.clone().unbind()));
        let event_loop = self.event_loop().clone_ref(py);
        let body = Py::new(py, StreamReader::create(event_loop, lane, decoder))?;
        if !complete {
            self.waiting.body.get(py).replace(Some(body.clone_ref(py)));
        }
        let head = Py::new(py, ResponseHead::new(head, body))?;
        let before = self.waiting.head.get(py).replace(Some(head));
        drop(before);
        let waiter = self.waiting.head_waiter.get(py).take();
        wake(py, waiter)
    }

    fn feed(&self, py: Python<'_>, data: Vec<Bytes>) -> PyResult<()> {
        let body = self.waiting.body.get(py).borrow().as_ref().map(|body| body.clone_ref(py));
        let Some(body) = body.filter(|_| !data.is_empty()) else { return Ok(()) };
        let mut too_much = self.flags(py).paused.get();
        for piece in data {
            if !piece.is_empty() {
                let bytes = PyBytes::new(py, &piece);
                too_much = body.get().feed(py, &bytes, 0, piece.len());
            }
        }
        self.flags(py).paused.set(too_much);
        if !too_much && self.wire.get(py).borrow_mut().release() {
            Http2Connection::stir(self.connection.bind(py))?;
        }
        body.get().wake(py)
    }

    /// What became of the stream, as a program is told.
    fn fault(&self, py: Python<'_>, error: &h2::Error) -> PyErr {
        if self.waiting.body.get(py).borrow().is_some() {
            return faults::incomplete(py, &error.to_string());
        }
        if error.is_remote() {
            let refused = error.reason() == Some(Reason::REFUSED_STREAM);
            if error.is_go_away() || (error.is_reset() && refused) {
                return faults::unprocessed(py);
            }
            return faults::reset(py, &error.to_string());
        }
        match self.connection.get().cause(py) {
            _ if !error.is_io() => faults::bad_message(py, &error.to_string()),
            Some(cause) if cause.is_instance_of::<pyo3::exceptions::PyOSError>() => {
                faults::of_system(&cause)
            }
            _ => faults::disconnected(py),
        }
    }

    /// The connection has ended, and `h2` has not said so.
    pub fn lost(slf: &Bound<'_, Self>) -> PyResult<()> {
        Exchange::advance(slf)?;
        let (py, this) = (slf.py(), slf.get());
        if this.flags(py).over.get() {
            return Ok(());
        }
        let has_body = this.waiting.body.get(py).borrow().is_some();
        let error = match has_body {
            true => faults::incomplete(py, "The connection was closed"),
            false => faults::disconnected(py),
        };
        Exchange::fail(slf, error)
    }

    fn finish(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        this.waiting.end(py)?;
        this.free(slf)
    }

    /// The exchange has failed; the connection goes on.
    pub fn fail(slf: &Bound<'_, Self>, error: PyErr) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        this.waiting.fail(py, error)?;
        this.free(slf)
    }

    /// The exchange is over: tells whoever lent it, once.
    fn free(&self, slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let flags = self.flags(py);
        if flags.over.replace(true) {
            return Ok(());
        }
        let number = {
            let mut wire = self.wire.get(py).borrow_mut();
            wire.reset();
            wire.number
        };
        self.connection.get().forget(py, number);
        self.waiting.wake(py, &self.waiting.head_waiter)?;
        self.waiting.wake(py, &self.waiting.room_waiter)?;
        self.waiting.cancel_timer(py)?;
        let on_free = self.waiting.on_free.get(py).take();
        if flags.lent.replace(false)
            && let Some(on_free) = on_free
        {
            on_free.call1(py, (slf,))?;
        }
        Http2Connection::stir(self.connection.bind(py))
    }

    fn send(&self, py: Python<'_>, data: Option<Bytes>) -> PyResult<()> {
        {
            let mut wire = self.wire.get(py).borrow_mut();
            match data {
                Some(data) => wire.backlog.push_back(data),
                None => wire.whole = true,
            }
            wire.push_now();
        }
        Http2Connection::stir(self.connection.bind(py))
    }
}

#[pymethods]
impl Exchange {
    /// As HttpConnection.start(); `data` is the request in HTTP/1.1's form.
    #[pyo3(signature = (data, bodiless, sending, decode, timer, on_free, /))]
    #[allow(clippy::too_many_arguments)]
    fn start(
        slf: &Bound<'_, Self>,
        data: &Bound<'_, PyBytes>,
        bodiless: bool,
        sending: bool,
        decode: bool,
        timer: Option<Py<PyAny>>,
        on_free: Option<Py<PyAny>>,
    ) -> PyResult<u64> {
        let _ = bodiless; // `h2` knows what HEAD is
        let (py, this) = (slf.py(), slf.get());
        let flags = this.flags(py);
        if flags.begun.get() {
            return Err(PyRuntimeError::new_err("the exchange has been used"));
        }
        let connection = this.connection.bind(py);
        let (request, length) = message::request(data.as_bytes()).map_err(PyValueError::new_err)?;
        let whole = !sending && length == data.as_bytes().len();
        let (number, waker, response, sender) =
            Http2Connection::begin(connection, slf, request, whole)?;
        flags.begun.set(true);
        flags.lent.set(true);
        flags.decode.set(decode);
        this.waiting.begin(py, timer, on_free);
        {
            let mut wire = this.wire.get(py).borrow_mut();
            *wire = Wire {
                number,
                waker: Some(waker),
                response: Some(response),
                sender: (!whole).then_some(sender),
                whole: !sending,
                ..Wire::default()
            };
            if !whole && length < data.as_bytes().len() {
                wire.backlog.push_back(message::body(data, length));
            }
        }
        Http2Connection::stir(connection)?;
        Ok(number)
    }

    /// Wait for the response's head.
    fn response(slf: Py<Self>) -> Wait {
        Wait::new(Source::Head(Lane::Shared(slf)))
    }

    /// Send more of the request's body.
    fn write(&self, py: Python<'_>, data: &Bound<'_, PyBytes>) -> PyResult<()> {
        self.waiting.check(py)?;
        if self.flags(py).over.get() {
            return Err(faults::disconnected(py));
        }
        self.send(py, Some(message::body(data, 0)))
    }

    /// Wait until there is room to write.
    fn drain(slf: Py<Self>) -> Wait {
        Wait::new(Source::Room(Lane::Shared(slf)))
    }

    /// The request has been given whole.
    fn sent(&self, py: Python<'_>) -> PyResult<()> {
        self.send(py, None)
    }

    /// Wake who waits to send the request's body when the server says so.
    fn expect_continue(&self, py: Python<'_>, waiter: Py<PyAny>) {
        self.waiting.expect_continue(py, waiter);
    }

    /// HTTP/2 has no switch of protocols.
    fn expect_switch(&self, status: u16) -> PyResult<()> {
        let _ = status;
        Err(PyRuntimeError::new_err("an HTTP/2 connection cannot switch to another protocol"))
    }

    /// End the exchange with an exception for who waits for it or reads.
    fn fail_with(slf: &Bound<'_, Self>, error: &Bound<'_, PyAny>) -> PyResult<()> {
        Exchange::fail(slf, PyErr::from_value(error.clone()))
    }

    /// Give the exchange up; who waits for it gets ClientConnectionError.
    #[pyo3(signature = (exchange=None, /))]
    fn close(slf: &Bound<'_, Self>, exchange: Option<u64>) -> PyResult<()> {
        let _ = exchange;
        if slf.get().flags(slf.py()).over.get() {
            return Ok(());
        }
        let error = imports::client_connection_error(slf.py())?.call1(("Connection closed",))?;
        Exchange::fail(slf, PyErr::from_value(error))
    }

    /// Bodies are delimited by the protocol, and not by HTTP chunks.
    #[classattr]
    const FRAMED: bool = true;

    /// Always False: each request has an exchange of its own.
    #[getter]
    fn reusable(&self) -> bool {
        false
    }

    /// Whether it has begun and is not over.
    #[getter]
    fn lent(&self, py: Python<'_>) -> bool {
        self.flags(py).lent.get()
    }

    /// Whether the server is held up because the body is not read.
    #[getter]
    fn reading_paused(&self, py: Python<'_>) -> bool {
        self.flags(py).paused.get()
    }

    /// How often something has arrived; not 0 if the connection has been used before.
    #[getter]
    fn arrivals(&self, py: Python<'_>) -> u64 {
        self.flags(py).arrivals.get()
    }

    /// The connection that it shares.
    #[getter]
    fn connection(&self, py: Python<'_>) -> Py<Http2Connection> {
        self.connection.clone_ref(py)
    }

    /// The connection's transport, until that is lost.
    #[getter]
    fn transport<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.connection.get().transport(py)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.connection)?;
        self.waiting.traverse(&visit)
    }

    fn __clear__(&self, py: Python<'_>) {
        self.waiting.clear(py);
    }
}
