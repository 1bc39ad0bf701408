//! An HTTP/2 connection, as the protocol of a transport.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::SendStream;
use h2::client::{Builder, Connection as Protocol, ResponseFuture, SendRequest};
use http::Request;
use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;
use pyo3::{PyTraverseError, PyVisit};

use super::exchange::Exchange;
use super::pipe::{Buffers, Pipe};
use super::signals::{self, Signals};
use crate::ffi::confined::Confined;
use crate::http::head::MAX_HEAD;
use crate::http::{faults, visit_slot, wake};
use crate::imports;

/// What a server may send of one body before some of it is read.
const STREAM_WINDOW: u32 = 1024 * 1024;
/// The same of all bodies together: each is bounded by itself, and one that is not read is not to
/// hold up the others.
const CONNECTION_WINDOW: u32 = 256 * 1024 * 1024;
/// What `h2` may hold of one request's body.
const SEND_BUFFER: usize = 256 * 1024;

/// The crate's two handles.
struct Engine {
    /// None when no request is to be made any more.
    requests: Option<SendRequest<Bytes>>,
    /// None when it has ended.
    protocol: Option<Protocol<Pipe, Bytes>>,
}

/// See the module's documentation.
#[pyclass(frozen, weakref, dict, module = "rondel._rondel", name = "Http2Connection")]
pub struct Http2Connection {
    event_loop: Py<PyAny>,
    transport: Confined<RefCell<Option<Py<PyAny>>>>,
    engine: Confined<RefCell<Engine>>,
    buffers: Confined<Rc<Buffers>>,
    signals: Arc<Signals>,
    /// Those whose request was sent and that are not over.
    exchanges: Confined<RefCell<HashMap<u64, Py<Exchange>>>>,
    /// Waits for the server's settings.
    opening: Confined<RefCell<Option<Py<PyAny>>>>,
    /// Why the transport was lost.
    cause: Confined<RefCell<Option<Py<PyAny>>>>,
    flags: Confined<Flags>,
}

#[derive(Default)]
struct Flags {
    closed: Cell<bool>,
    writing_paused: Cell<bool>,
    /// On the way; a call meanwhile asks for another round.
    driving: Cell<bool>,
    again: Cell<bool>,
    /// A call to flush() is on the loop's queue.
    scheduled: Cell<bool>,
    arrivals: Cell<u64>,
    begun: Cell<u64>,
}

fn engine(buffers: &Rc<Buffers>) -> Result<Engine, h2::Error> {
    let mut builder = Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_HEAD as u32)
        .max_send_buffer_size(SEND_BUFFER)
        // None until the server has said how many it allows.
        .initial_max_send_streams(0);
    let shake = pin!(builder.handshake(Pipe(Rc::clone(buffers))));
    match shake.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => {
            let (requests, protocol) = result?;
            Ok(Engine { requests: Some(requests), protocol: Some(protocol) })
        }
        // Writing to memory does not wait.
        Poll::Pending => Err(h2::Reason::INTERNAL_ERROR.into()),
    }
}

impl Http2Connection {
    /// Takes a transport over, and sends the beginning of the protocol.
    pub fn create<'py>(
        event_loop: &Bound<'py, PyAny>,
        transport: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, Self>> {
        let py = event_loop.py();
        let buffers = Rc::new(Buffers::default());
        let engine =
            engine(&buffers).map_err(|error| PyRuntimeError::new_err(error.to_string()))?;
        let connection = Http2Connection {
            event_loop: event_loop.clone().unbind(),
            transport: Confined::new(RefCell::new(Some(transport.clone().unbind()))),
            engine: Confined::new(RefCell::new(engine)),
            buffers: Confined::new(buffers),
            signals: Arc::default(),
            exchanges: Confined::new(RefCell::new(HashMap::new())),
            opening: Confined::new(RefCell::new(None)),
            cause: Confined::new(RefCell::new(None)),
            flags: Confined::new(Flags::default()),
        };
        let connection = Bound::new(py, connection)?;
        transport.call_method1(intern!(py, "set_protocol"), (&connection,))?;
        Http2Connection::drive(&connection)?;
        Ok(connection)
    }

    /// Whether TLS is spoken, and HTTP/2 in it.
    pub fn is_agreed(transport: &Bound<'_, PyAny>) -> PyResult<bool> {
        let py = transport.py();
        let tls =
            transport.call_method1(intern!(py, "get_extra_info"), (intern!(py, "ssl_object"),))?;
        if tls.is_none() {
            return Ok(false);
        }
        tls.call_method0(intern!(py, "selected_alpn_protocol"))?.eq(intern!(py, "h2"))
    }

    fn flags<'a>(&'a self, py: Python<'a>) -> &'a Flags {
        self.flags.get(py)
    }

    pub fn event_loop(&self) -> &Py<PyAny> {
        &self.event_loop
    }

    /// Why the transport was lost, if it was by an error.
    pub fn cause<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.cause.get(py).borrow().as_ref().map(|cause| cause.bind(py).clone())
    }

    pub fn transport<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.transport.get(py).borrow().as_ref().map(|transport| transport.bind(py).clone())
    }

    /// How many more exchanges may begin now.
    fn room(&self, py: Python<'_>) -> usize {
        let mut engine = self.engine.get(py).borrow_mut();
        let Some(requests) = engine.requests.as_mut().filter(|_| !self.flags(py).closed.get())
        else {
            return 0;
        };
        match requests.poll_ready(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => {
                let most = requests.current_max_send_streams();
                most.saturating_sub(self.exchanges.get(py).borrow().len())
            }
            _ => 0,
        }
    }

    /// Sends a request's head; returns the exchange's number and its handles, or why the server will
    /// never see it.
    pub fn begin(
        slf: &Bound<'_, Self>,
        exchange: &Bound<'_, Exchange>,
        request: Request<()>,
        whole: bool,
    ) -> PyResult<(u64, Waker, ResponseFuture, SendStream<Bytes>)> {
        let (py, this) = (slf.py(), slf.get());
        if this.room(py) == 0 {
            return Err(faults::unprocessed(py));
        }
        let sent = match &mut this.engine.get(py).borrow_mut().requests {
            Some(requests) => requests.send_request(request, whole).ok(),
            None => None,
        };
        let Some((response, stream)) = sent else { return Err(faults::unprocessed(py)) };
        let number = this.flags(py).begun.get() + 1;
        this.flags(py).begun.set(number);
        this.exchanges.get(py).borrow_mut().insert(number, exchange.clone().unbind());
        let waker = signals::waker(number, &this.signals);
        // The first look leaves the waker with the response.
        waker.wake_by_ref();
        Ok((number, waker, response, stream))
    }

    /// An exchange is over.
    pub fn forget(&self, py: Python<'_>, number: u64) {
        let exchange = self.exchanges.get(py).borrow_mut().remove(&number);
        drop(exchange);
    }

    /// Something may have to be sent: at once if it is all there is, otherwise together with what the other
    /// tasks of this turn begin.
    pub fn stir(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        if this.flags(py).driving.get() || !this.signals.are_raised() {
            return Ok(());
        }
        if this.exchanges.get(py).borrow().len() <= 1 {
            return Http2Connection::drive(slf);
        }
        if !this.flags(py).scheduled.replace(true) {
            let call = slf.getattr(intern!(py, "flush"))?;
            this.event_loop.call_method1(py, intern!(py, "call_soon"), (call,))?;
        }
        Ok(())
    }

    /// Lets the protocol work until it waits, sends what it has to send, and tells the news.
    fn drive(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let flags = this.flags(py);
        if flags.driving.replace(true) {
            flags.again.set(true);
            return Ok(());
        }
        let result = this.rounds(slf);
        flags.driving.set(false);
        result
    }

    fn rounds(&self, slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        loop {
            self.flags(py).again.set(false);
            self.signals.settle();
            let over = self.poll(py);
            self.send_output(py)?;
            self.tell_exchanges(py)?;
            if over {
                return self.end(py);
            }
            if !self.flags(py).again.get() && !self.signals.are_raised() {
                return Ok(());
            }
        }
    }

    /// Returns whether the protocol has ended.
    fn poll(&self, py: Python<'_>) -> bool {
        let mut engine = self.engine.get(py).borrow_mut();
        let Some(protocol) = &mut engine.protocol else { return true };
        let waker = Waker::from(Arc::clone(&self.signals));
        let over = Pin::new(protocol).poll(&mut Context::from_waker(&waker)).is_ready();
        if over {
            engine.protocol = None;
            engine.requests = None;
        }
        over
    }

    fn send_output(&self, py: Python<'_>) -> PyResult<()> {
        let buffers = self.buffers.get(py);
        if self.flags(py).writing_paused.get() {
            return Ok(());
        }
        let output = buffers.take_output();
        if buffers.refused.replace(false) {
            self.signals.raise();
        }
        match self.transport(py).filter(|_| !output.is_empty()) {
            Some(transport) => {
                let data = PyBytes::new(py, &output);
                transport.call_method1(intern!(py, "write"), (data,)).map(drop)
            }
            None => Ok(()),
        }
    }

    fn tell_exchanges(&self, py: Python<'_>) -> PyResult<()> {
        for number in self.signals.take_streams() {
            let exchange = self.exchange(py, number);
            if let Some(exchange) = exchange {
                Exchange::advance(exchange.bind(py))?;
            }
        }
        Ok(())
    }

    fn exchange(&self, py: Python<'_>, number: u64) -> Option<Py<Exchange>> {
        self.exchanges.get(py).borrow().get(&number).map(|exchange| exchange.clone_ref(py))
    }

    /// The protocol has ended: nothing is left that could still come.
    fn end(&self, py: Python<'_>) -> PyResult<()> {
        self.flags(py).closed.set(true);
        self.wake_opening(py)?;
        let left: Vec<_> = self.exchanges.get(py).borrow().keys().copied().collect();
        for number in left {
            if let Some(exchange) = self.exchange(py, number) {
                Exchange::lost(exchange.bind(py))?;
            }
        }
        match self.transport(py) {
            Some(transport) => transport.call_method0(intern!(py, "close")).map(drop),
            None => Ok(()),
        }
    }

    fn wake_opening(&self, py: Python<'_>) -> PyResult<()> {
        let waiter = self.opening.get(py).take();
        wake(py, waiter)
    }
}

#[pymethods]
impl Http2Connection {
    /// It has one from the beginning.
    fn connection_made(&self, transport: &Bound<'_, PyAny>) {
        let _ = transport;
    }

    pub fn data_received(slf: &Bound<'_, Self>, data: &Bound<'_, PyBytes>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let arrivals = &this.flags(py).arrivals;
        arrivals.set(arrivals.get() + 1);
        if data.as_bytes().is_empty() {
            return Ok(()); // which would be an end to the protocol
        }
        this.buffers.get(py).feed(PyBackedBytes::from(data.clone()));
        Http2Connection::drive(slf)?;
        if this.opening.get(py).borrow().is_some() && this.room(py) > 0 {
            this.wake_opening(py)?;
        }
        Ok(())
    }

    fn eof_received(slf: &Bound<'_, Self>) -> PyResult<()> {
        slf.get().buffers.get(slf.py()).ended.set(true);
        Http2Connection::drive(slf)
    }

    fn connection_lost(slf: &Bound<'_, Self>, exc: &Bound<'_, PyAny>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        this.flags(py).closed.set(true);
        let transport = this.transport.get(py).take();
        drop(transport);
        if !exc.is_none() {
            let before = this.cause.get(py).replace(Some(exc.clone().unbind()));
            drop(before);
        }
        this.buffers.get(py).ended.set(true);
        Http2Connection::drive(slf)?;
        this.end(py)
    }

    fn pause_writing(&self, py: Python<'_>) {
        self.flags(py).writing_paused.set(true);
    }

    fn resume_writing(slf: &Bound<'_, Self>) -> PyResult<()> {
        slf.get().flags(slf.py()).writing_paused.set(false);
        Http2Connection::drive(slf)
    }

    /// Send what the exchanges have begun.
    fn flush(slf: &Bound<'_, Self>) -> PyResult<()> {
        slf.get().flags(slf.py()).scheduled.set(false);
        Http2Connection::drive(slf)
    }

    /// A future of the server's settings, or of the connection's end.
    fn opened(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let future = self.event_loop.call_method0(py, intern!(py, "create_future"))?;
        if self.flags(py).closed.get() || self.room(py) > 0 {
            wake(py, Some(future.clone_ref(py)))?;
        } else {
            let before = self.opening.get(py).replace(Some(future.clone_ref(py)));
            wake(py, before)?;
        }
        Ok(future)
    }

    /// A new exchange; None when the server allows no more at the same time, or the connection ends.
    #[pyo3(name = "exchange")]
    fn new_exchange(slf: &Bound<'_, Self>) -> Option<Exchange> {
        let (py, this) = (slf.py(), slf.get());
        (this.room(py) > 0)
            .then(|| Exchange::create(slf.clone().unbind(), this.flags(py).begun.get() > 0))
    }

    /// How many exchanges go on.
    #[getter]
    fn active(&self, py: Python<'_>) -> usize {
        self.exchanges.get(py).borrow().len()
    }

    /// Whether no exchange can begin any more.
    #[getter]
    fn closed(&self, py: Python<'_>) -> bool {
        let mut engine = self.engine.get(py).borrow_mut();
        let noop = &mut Context::from_waker(Waker::noop());
        self.flags(py).closed.get()
            || engine
                .requests
                .as_mut()
                .is_none_or(|requests| matches!(requests.poll_ready(noop), Poll::Ready(Err(_))))
    }

    /// Say goodbye; who waits for an exchange gets ClientConnectionError.
    fn close(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        this.flags(py).closed.set(true);
        let left: Vec<_> = this.exchanges.get(py).borrow().keys().copied().collect();
        for number in left {
            if let Some(exchange) = this.exchange(py, number) {
                let error = imports::client_connection_error(py)?.call1(("Connection closed",))?;
                Exchange::fail(exchange.bind(py), PyErr::from_value(error))?;
            }
        }
        let requests = this.engine.get(py).borrow_mut().requests.take();
        drop(requests);
        Http2Connection::drive(slf)?;
        match this.transport(py) {
            Some(transport) => transport.call_method0(intern!(py, "close")).map(drop),
            None => Ok(()),
        }
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.event_loop)?;
        for slot in [&self.transport, &self.opening, &self.cause] {
            visit_slot(slot, &visit)?;
        }
        if let Some(cell) = self.exchanges.in_traverse(&visit)
            && let Ok(exchanges) = cell.try_borrow()
        {
            for exchange in exchanges.values() {
                visit.call(exchange)?;
            }
        }
        Ok(())
    }

    fn __clear__(&self, py: Python<'_>) {
        for slot in [&self.transport, &self.opening, &self.cause] {
            let object = slot.get(py).take();
            drop(object);
        }
        let exchanges = self.exchanges.get(py).take();
        drop(exchanges);
    }
}
